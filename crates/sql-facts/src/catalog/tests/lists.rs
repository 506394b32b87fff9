//! The reviewed lists are whole, and say what they should.

use super::*;
use crate::facts::{FunctionClass, FunctionOrigin};

/// What an expression says of itself in a session with nothing of its own.
struct Fresh(Catalog, Overlay, SearchPath);

impl Fresh {
    fn new(major: u16) -> Self {
        Self(
            Catalog::builtins(major).expect("reviewed"),
            Overlay::default(),
            path(&["pg_catalog", "public"]),
        )
    }
    fn view(&self) -> CatalogView<'_> {
        CatalogView {
            catalog: &self.0,
            overlay: &self.1,
            path: &self.2,
        }
    }
}

#[test]
fn every_function_and_relation_of_every_major_was_looked_at() {
    assert_eq!(builtins::unlisted_functions(), Vec::<String>::new());
    assert_eq!(builtins::listed_but_unknown(), Vec::<String>::new());
    for major in 13..=18 {
        let server = Fresh::new(major);
        let builtins = builtins::of_major(major).expect("reviewed");
        for relation in server.0.relations.values() {
            if matches!(relation.schema.as_str(), "pg_catalog" | "information_schema") {
                assert!(
                    builtins.lists(relation),
                    "{major}: {}.{}",
                    relation.schema,
                    relation.name
                );
            }
        }
    }
}

#[test]
fn the_generated_tables_are_those_of_the_server() {
    let db = database();
    let major = major(&db);
    let mut printed: Vec<String> = db
        .psql(
            "select concat_ws(E'\\t', case n.nspname when 'pg_catalog' then '' else n.nspname || '.' end || p.proname,
                 case when p.oid < 12000 then p.oid else 0 end, p.prokind,
                 p.pronargdefaults, case when p.provariadic <> 0 then 'v' else '-' end, p.provolatile,
                 case when p.proleakproof then 'l' else '-' end, p.prorettype, array_to_string(p.proargtypes::oid[], ' '),
                 coalesce((select string_agg(a.name || ':' || a.type, ' ' order by a.place)
                    from unnest(p.proargnames, p.proargmodes, p.proallargtypes) with ordinality as a(name, mode, type, place)
                    where a.mode in ('o', 'b', 't')), ''))
             from pg_proc p join pg_namespace n on n.oid = p.pronamespace
             where p.oid < 16384 and n.nspname in ('pg_catalog', 'information_schema')",
        )
        .expect("the functions")
        .lines()
        .map(str::to_owned)
        .collect();
    let mut known = builtins::function_lines(major);
    printed.sort();
    known.sort();
    // A minor release may bring a function (15.20 did, for pg_upgrade). What the lists do not know must be closed; what
    // this server does not have yet may be known.
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter()
            .filter(|line| other.binary_search(line).is_err())
            .cloned()
            .collect()
    };
    let server = Fresh::new(major);
    let (new, missing) = (only(&printed, &known), only(&known, &printed));
    assert!(new.len() + missing.len() <= 8, "new {new:?}, missing {missing:?}");
    for line in new.iter().chain(&missing) {
        let fields: Vec<&str> = line.split('\t').collect();
        let name = fields.first().copied().unwrap_or_default();
        let arguments = fields
            .get(8)
            .map_or(0, |types| types.split(' ').filter(|oid| !oid.is_empty()).count());
        let class = server.view().function(Some("pg_catalog"), name, arguments).class;
        assert!(
            matches!(class, FunctionClass::Unlisted | FunctionClass::Server),
            "{name} with {arguments} arguments is {class:?}, and not alike here and in the lists"
        );
    }
}

#[test]
fn every_built_in_operator_only_computes() {
    for major in 13..=18 {
        let server = Fresh::new(major);
        for (name, operands) in builtins::of_major(major).expect("reviewed").operator_names() {
            let facts = server.view().operator(None, name, operands);
            assert_eq!(
                facts.class,
                FunctionClass::Open,
                "{major}: {name} with {operands} operands"
            );
        }
    }
}

#[test]
fn functions_have_the_class_of_what_they_do() {
    use FunctionClass::*;
    let server = Fresh::new(15);
    let view = server.view();
    for (name, arguments, class) in [
        ("lower", 1, Open),
        ("now", 0, Open),
        ("count", 0, Open),
        ("concat", 7, Open),
        ("jsonb_build_object", 0, Open),
        ("format_type", 2, Open),
        ("pg_get_viewdef", 2, Open),
        ("has_table_privilege", 3, Open),
        ("current_setting", 1, Open),
        ("pg_advisory_lock", 1, Open),
        ("pg_sleep", 1, Open),
        ("set_config", 3, Settings),
        ("lo_get", 1, ReadsRows),
        ("loread", 2, ReadsRows),
        ("table_to_xml", 4, ReadsRows),
        ("currval", 1, ReadsRows),
        ("lastval", 0, ReadsRows),
        ("pg_stat_get_live_tuples", 1, ReadsRows),
        ("nextval", 1, Writes),
        ("setval", 2, Writes),
        ("lo_put", 3, Writes),
        ("lowrite", 2, Writes),
        ("lo_import", 1, Server),
        ("pg_read_file", 1, Server),
        ("pg_read_binary_file", 4, Server),
        ("pg_ls_dir", 1, Server),
        ("pg_terminate_backend", 1, Server),
        ("pg_stat_get_activity", 1, Server),
        ("pg_create_logical_replication_slot", 2, Server),
        ("query_to_xml", 4, RunsSql),
        ("ts_stat", 1, RunsSql),
        ("ts_rewrite", 2, RunsSql),
        ("ts_rewrite", 3, Open),
        ("int4in", 1, Unlisted),
        ("plpgsql_validator", 1, Unlisted),
    ] {
        let facts = view.function(None, name, arguments);
        assert_eq!(
            (facts.class, facts.origin),
            (class, FunctionOrigin::BuiltIn),
            "{name} with {arguments} arguments"
        );
    }
    assert!(view.function(None, "pg_read_file", 1).server_files);
    assert!(!view.function(None, "pg_terminate_backend", 1).server_files);
    assert_eq!(view.function(None, "lo_get", 1).relations, [2613]);
    assert!(view.function(None, "sum", 1).aggregate);
    assert!(view.function(None, "row_number", 0).aggregate);
    // Called with a number of arguments that no overload takes: nobody's.
    assert_eq!(view.function(None, "lower", 3).origin, FunctionOrigin::Unknown);
    // What a newer major brought is not there in an older one.
    assert_eq!(
        view.function(None, "pg_input_is_valid", 2).origin,
        FunctionOrigin::Unknown
    );
    assert_eq!(
        Fresh::new(16).view().function(None, "pg_input_is_valid", 2).class,
        RunsSql
    );
    // By OID: lo_get, texteq, and none.
    assert_eq!(view.function_by_oid(3458).class, ReadsRows);
    assert_eq!(view.function_by_oid(67).class, Open);
    assert_eq!(view.function_by_oid(9_999_999).class, Unlisted);
}

#[test]
fn functions_give_their_columns() {
    let server = Fresh::new(18);
    let view = server.view();
    assert_eq!(
        view.function_columns("pg_partition_ancestors", 1),
        Some(&[("relid", 2205)][..])
    );
    assert_eq!(
        view.function_columns("json_each", 1),
        Some(&[("key", 25), ("value", 114)][..])
    );
    assert_eq!(view.function_columns("generate_series", 2), Some(&[][..]));
    assert_eq!(view.function_columns("json_to_record", 1), None);
    assert_eq!(view.function_columns("nobody", 1), None);
    // Two overloads, of which one gives a set of pairs.
    assert_eq!(view.function_columns("ts_parse", 2).map(<[_]>::len), Some(2));
}

#[test]
fn system_relations_are_open_or_closed() {
    let server = Fresh::new(15);
    let view = server.view();
    let access = |name: &str| {
        view.resolve_relation(None, name)
            .and_then(|r| view.system_relation(r.oid))
    };
    assert_eq!(access("pg_class"), Some(SystemRelation::Open));
    assert_eq!(access("pg_stats"), Some(SystemRelation::NeedsRule));
    assert_eq!(access("pg_authid"), Some(SystemRelation::NeedsRule));
    assert_eq!(access("pg_stat_user_tables"), Some(SystemRelation::NeedsRule));
    let attribute = view.resolve_relation(None, "pg_attribute").expect("a relation");
    let missing = attribute.column("attmissingval").expect("a column").number;
    assert_eq!(
        access("pg_attribute"),
        Some(SystemRelation::OpenExcept(vec![missing]))
    );
    let columns = view
        .resolve_relation(Some("information_schema"), "columns")
        .expect("a relation");
    assert_eq!(view.system_relation(columns.oid), Some(SystemRelation::Open));
}

#[test]
fn a_domain_check_counts_by_the_functions_it_calls() {
    let db = database();
    db.psql(
        "create domain plain as text check (value ~ 'a' and length(value) > 1);
         create domain files as text check (length(pg_read_file(value)) > 0);
         create type pair as (a int, b files)",
    )
    .expect("domains");
    let catalog = catalog(&db);
    let (overlay, path) = (Overlay::default(), path(&["pg_catalog", "public"]));
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    assert_eq!(view.cast("plain").class, FunctionClass::Open);
    assert_eq!(view.cast("files").class, FunctionClass::Server);
    assert_eq!(view.cast("files[]").class, FunctionClass::Server);
    assert_eq!(view.cast("pair").class, FunctionClass::Server);
    assert_eq!(view.cast("int4").class, FunctionClass::Open);
}
