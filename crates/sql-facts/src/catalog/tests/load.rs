//! `load_sql` and `from_rows`.

use super::*;
use crate::facts::FunctionOrigin;
use row_masking::TypeClass;

#[test]
fn columns_are_spelled_as_the_server_would_take_them() {
    let db = database();
    db.psql(
        r#"create domain short as varchar(5) collate "C" check (value <> '');
           create type mood as enum ('a', 'b'); create type pair as (x int, y text);
           create table "T 0" (a int); create table "T 1" (a text, b varchar(20), c char(9), d numeric(10,2), e numeric(5,-2), f timestamp(3),
             g interval day to second(3), h interval(2), i interval year, j time(0), k bit(3), l bit varying(7),
             m varchar(4)[], n short, o mood, p pair, q "char", r name, s int4range, t text collate "C", u bit,
             v interval, w int[][], x timestamptz(1), y json, z name collate "default", aa name collate "C",
             bb mood[], cc numeric, dd short[], ee int4multirange, ff "T 0"[], gg xml, hh numeric(4))"#,
    )
    .expect("a table");
    let catalog = catalog(&db);
    let (overlay, path) = (Overlay::default(), path(&["pg_catalog", "public"]));
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let table = view.resolve_relation(None, "T 1").expect("the table");
    let spelled: Vec<(&str, &str, Option<&str>)> = table
        .columns
        .iter()
        .map(|c| {
            (
                c.name.as_str(),
                c.column_type.sql.as_str(),
                c.column_type.collation.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        spelled,
        [
            ("a", "pg_catalog.text", None),
            ("b", "pg_catalog.\"varchar\"(20)", None),
            ("c", "pg_catalog.bpchar(9)", None),
            ("d", "pg_catalog.\"numeric\"(10,2)", None),
            ("e", "pg_catalog.\"numeric\"(5,-2)", None),
            ("f", "pg_catalog.\"timestamp\"(3)", None),
            ("g", "interval day to second(3)", None),
            ("h", "interval(2)", None),
            ("i", "interval year", None),
            ("j", "pg_catalog.\"time\"(0)", None),
            ("k", "pg_catalog.\"bit\"(3)", None),
            ("l", "pg_catalog.varbit(7)", None),
            ("m", "pg_catalog.\"varchar\"(4)[]", None),
            ("n", "pg_catalog.\"varchar\"(5)", Some("pg_catalog.\"C\"")),
            ("o", "public.mood", None),
            ("p", "public.pair", None),
            ("q", "pg_catalog.\"char\"", None),
            ("r", "pg_catalog.name", None),
            ("s", "pg_catalog.int4range", None),
            ("t", "pg_catalog.text", Some("pg_catalog.\"C\"")),
            ("u", "pg_catalog.\"bit\"(1)", None),
            ("v", "pg_catalog.\"interval\"", None),
            ("w", "pg_catalog.int4[]", None),
            ("x", "pg_catalog.timestamptz(1)", None),
            ("y", "pg_catalog.\"json\"", None),
            ("z", "pg_catalog.name", Some("pg_catalog.\"default\"")),
            ("aa", "pg_catalog.name", None),
            ("bb", "public.mood[]", None),
            ("cc", "pg_catalog.\"numeric\"", None),
            ("dd", "public.short[]", None),
            ("ee", "pg_catalog.int4multirange", None),
            ("ff", "public.\"T 0\"[]", None),
            ("gg", "pg_catalog.xml", None),
            ("hh", "pg_catalog.\"numeric\"(4,0)", None),
        ]
    );
    let class = |name: &str| table.column(name).map(|c| c.column_type.class);
    assert_eq!(class("n"), Some(TypeClass::Varchar));
    assert_eq!(class("o"), Some(TypeClass::Enum));
    assert_eq!(class("p"), Some(TypeClass::Composite));
    assert_eq!(class("bb"), Some(TypeClass::Array));
    assert_eq!(class("ee"), Some(TypeClass::Range));

    // What is spelled means the same type, modifier and collation to the server.
    let list: Vec<String> = table
        .columns
        .iter()
        .map(|c| {
            let collation = c
                .column_type
                .collation
                .as_ref()
                .map(|name| format!(" COLLATE {name}"))
                .unwrap_or_default();
            format!("{} {}{collation}", quote_identifier(&c.name), c.column_type.sql)
        })
        .collect();
    let differing = db
        .psql(&format!(
            "create table again ({});
             select a.attname, format_type(a.atttypid, a.atttypmod), format_type(b.atttypid, b.atttypmod)
             from pg_attribute a join pg_attribute b on a.attnum = b.attnum
               and b.attrelid = 'again'::regclass and a.attrelid = '\"T 1\"'::regclass
             where (a.atttypid, a.atttypmod, a.attcollation) is distinct from (b.atttypid, b.atttypmod, b.attcollation)
               and a.attnum > 0 and a.attname <> 'n'",
            list.join(", ")
        ))
        .expect("the same table again");
    assert_eq!(differing, "");
}

#[test]
fn relations_carry_what_judging_needs() {
    let db = database();
    db.psql(
        "create function f() returns int language sql as 'select 1';
         create function g() returns trigger language plpgsql as 'begin return new; end';
         create table p (id serial primary key, a int default f(), b int generated always as (a + 1) stored);
         create table c (k int primary key) inherits (p);
         create table q (x int, y int, z int, p int references p on delete cascade, primary key (y, x) include (z));
         create sequence s; create table u (id int default nextval('s'));
         create trigger before_q before insert on q for each row execute function g();
         create trigger after_p after insert on p for each row execute function g();
         create rule r as on insert to u do also select 1;
         create view v with (security_invoker = on) as select id, a from p where a > 0;
         create materialized view m as select id from v;
         create table parts (a int, b text) partition by range (a);
         create table part1 partition of parts for values from (0) to (10);
         create index on q (z); alter table u drop column id; alter table u add id2 int default nextval('s');",
    )
    .expect("tables");
    let catalog = catalog(&db);
    let (overlay, path) = (Overlay::default(), path(&["pg_catalog", "public"]));
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let get = |name: &str| view.resolve_relation(None, name).expect("a relation");
    let (p, q, u) = (get("p"), get("q"), get("u"));

    assert_eq!(p.primary_key, [1]);
    assert_eq!(q.primary_key, [2, 1]);
    assert_eq!(
        p.column("a").map(|c| c.default_code.clone()),
        Some(vec!["public.f".to_owned()])
    );
    assert_eq!(
        p.column("b").and_then(|c| c.generated_from.clone()),
        Some(vec![2])
    );
    assert_eq!(get("c").parents, [p.oid]);
    assert_eq!(get("part1").parents, [get("parts").oid]);
    assert_eq!(get("parts").kind, RelationKind::PartitionedTable);
    assert_eq!(get("p_id_seq").owned_by, Some((p.oid, 1)));
    assert!(get("p_id_seq").used_by.contains(&(p.oid, 1)));
    assert_eq!(get("s").used_by, [(u.oid, 2)]);
    assert_eq!(get("q_z_idx").owned_by, Some((q.oid, 0)));
    assert!(q.before_row_triggers);
    assert!(!p.before_row_triggers);
    assert_eq!(p.triggers, ["after_p"]);
    assert_eq!(u.rules, ["r"]);
    assert_eq!(
        p.cascades,
        [Cascade {
            relation: q.oid,
            on_delete: true,
            on_update: false
        }]
    );
    let v = get("v");
    assert!(v.security_invoker);
    assert!(v.definition.as_ref().is_some_and(|text| text.contains("FROM p")));
    assert_eq!(v.definition_path.0, ["pg_catalog", "public", ""]);
    assert_eq!(get("m").kind, RelationKind::MaterializedView);
    assert_eq!(u.columns.first().map(|c| c.number), Some(2));
    assert!(view.resolve_relation(Some("pg_catalog"), "pg_class").is_some());
}

#[test]
fn a_temporary_relation_shadows_names_and_types() {
    let db = database();
    db.psql("create table orders (a int)").expect("a table");
    let catalog = catalog(&db);
    let overlay = overlay(
        &db,
        &catalog,
        "create temp table text (x int); create temp table orders (b text)",
    );
    // A path that was read before the temporary schema existed.
    let path = path(&["pg_catalog", "public"]);
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let class = |schema, name| view.resolve_type(schema, name, &[]).map(|t| t.class);
    assert_eq!(class(None, "text"), Some(TypeClass::Composite));
    assert_eq!(class(Some("pg_catalog"), "text"), Some(TypeClass::Text));
    assert_eq!(class(Some("pg_temp"), "text"), Some(TypeClass::Composite));
    let orders = view.resolve_relation(None, "orders").expect("a table");
    assert_eq!(orders.persistence, Persistence::Temporary);
    assert!(orders.column("b").is_some());
    assert!(
        view.resolve_relation(Some("public"), "orders")
            .is_some_and(|r| r.column("a").is_some())
    );

    let none = Overlay::default();
    let view = CatalogView {
        catalog: &catalog,
        overlay: &none,
        path: &path,
    };
    assert!(
        view.resolve_relation(None, "orders")
            .is_some_and(|r| r.column("a").is_some())
    );
}

#[test]
fn the_layer_holds_what_the_open_transaction_did() {
    let db = database();
    db.psql(
        "create table gone (a int); create table kept (a int); create table renamed (a int);
         create table widened (a int); create view over as select a from widened; create table keyed (a int not null)",
    )
    .expect("tables");
    let catalog = catalog(&db);
    let overlay = overlay(
        &db,
        &catalog,
        "begin; drop table gone; savepoint s; alter table renamed rename to other; release s;
         create table fresh (a int, b text); create domain d as int; create type e as enum ('x');
         alter table widened rename a to aa; create function fun(int) returns int language sql as 'select 1';
         savepoint t; create table undone (a int); rollback to t; alter table keyed add primary key (a)",
    );
    let path = path(&["pg_catalog", "public"]);
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let has = |name: &str| view.resolve_relation(None, name).is_some();
    assert!(!has("gone") && has("kept") && !has("renamed") && has("other") && has("fresh") && !has("undone"));
    assert!(
        view.resolve_relation(None, "widened")
            .is_some_and(|r| r.column("aa").is_some())
    );
    assert!(
        view.resolve_relation(None, "over")
            .is_some_and(|r| { r.definition.as_ref().is_some_and(|text| text.contains("aa")) })
    );
    assert_eq!(
        view.resolve_relation(None, "keyed")
            .map(|r| r.primary_key.clone()),
        Some(vec![1])
    );
    assert_eq!(view.function(None, "fun", 1).origin, FunctionOrigin::UserDefined);
    assert!(
        view.resolve_type(None, "d", &[])
            .is_some_and(|t| t.base_oid == 23 && t.oid != 23)
    );
    assert!(
        view.resolve_type(None, "e[]", &[])
            .is_some_and(|t| t.class == TypeClass::Array)
    );
    assert!(overlay.relations.values().flatten().all(|r| r.name != "kept"));
}

#[test]
fn user_code_is_known_by_name_path_and_number_of_arguments() {
    let db = database();
    db.psql(
        "create schema y;
         create function y.lower(text, int default 1) returns text language sql as 'select 1::text';
         create function y.many(int, variadic text[]) returns int language sql as 'select 1';
         create function public.own(int) returns int language sql as 'select 1';
         create function y.always(varchar, varchar) returns bool language sql as 'select true';
         create operator y.= (leftarg = varchar, rightarg = varchar, function = y.always);
         create domain y.checked as text check (y.lower(value) <> '');
         create domain y.plain as text check (value ~ 'a'); create domain y.files as text check (length(pg_read_file(value)) > 0)",
    )
    .expect("functions");
    let catalog = catalog(&db);
    let overlay = Overlay::default();
    let (with, without) = (
        path(&["pg_catalog", "y", "public"]),
        path(&["pg_catalog", "public"]),
    );
    let with = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &with,
    };
    let without = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &without,
    };
    use FunctionOrigin::{BuiltIn, Unknown, UserDefined};
    assert_eq!(with.function(None, "lower", 1).origin, UserDefined);
    assert_eq!(with.function(None, "lower", 2).origin, UserDefined);
    assert_eq!(with.function(None, "lower", 3).origin, Unknown);
    assert_eq!(with.function(Some("pg_catalog"), "lower", 1).origin, BuiltIn);
    assert_eq!(without.function(None, "lower", 1).origin, BuiltIn);
    assert_eq!(without.function(Some("y"), "lower", 1).origin, UserDefined);
    assert_eq!(with.function(None, "many", 5).origin, UserDefined);
    assert_eq!(with.function(None, "nobody", 5).origin, Unknown);
    assert_eq!(with.operator(None, "=", 2).origin, UserDefined);
    assert_eq!(without.operator(None, "=", 2).origin, BuiltIn);
    assert_eq!(with.operator(Some("pg_catalog"), "=", 2).origin, BuiltIn);
    assert_eq!(with.cast("checked").origin, UserDefined);
    assert_eq!(with.cast("y.checked[]").origin, UserDefined);
    assert_eq!(with.cast("plain").origin, BuiltIn);
    assert_eq!(with.function(None, "plain", 1).origin, BuiltIn);
    assert_eq!(with.cast("nobody").origin, Unknown);
    let own = db
        .psql("select 'public.own'::regproc::oid")
        .expect("an oid")
        .parse()
        .expect("a number");
    assert_eq!(with.function_by_oid(own).origin, UserDefined);
    assert_eq!(with.function_by_oid(870).origin, BuiltIn);
}

#[test]
fn builtins_are_what_a_new_server_has() {
    let db = database();
    let real = catalog(&db);
    let builtins = Catalog::builtins(major(&db)).expect("reviewed");
    let columns = |catalog: &Catalog, oid: &Oid| catalog.relations.get(oid).map(|r| r.columns.clone());
    for oid in builtins
        .names
        .get("pg_catalog")
        .expect("the schema")
        .values()
        .filter(|oid| **oid < 10000)
    {
        assert_eq!(columns(&builtins, oid), columns(&real, oid));
    }
    assert!(Catalog::builtins(9).is_none());
    assert_eq!(
        Catalog::from_rows(9, 1, []).err(),
        Some(CatalogError::UnknownMajor(9))
    );
}

#[test]
fn the_statements_mean_the_same_under_any_path_and_role() {
    let db = database();
    db.psql(
        "create table t (id serial primary key, a int default 1, b varchar(3)); create view v as select a from t;
         create domain d as int check (value > 0);
         create schema evil; create role plain_reader login; grant usage on schema evil to public;
         create function evil.never(oid, oid) returns bool language sql as 'select false';
         create function evil.never(name, name) returns bool language sql as 'select false';
         create function evil.never(\"char\", \"char\") returns bool language sql as 'select false';
         create function evil.never(xid, int) returns bool language sql as 'select false';
         create operator evil.= (leftarg = oid, rightarg = oid, function = evil.never);
         create operator evil.<> (leftarg = oid, rightarg = oid, function = evil.never);
         create operator evil.>= (leftarg = oid, rightarg = oid, function = evil.never);
         create operator evil.= (leftarg = name, rightarg = name, function = evil.never);
         create operator evil.<> (leftarg = name, rightarg = name, function = evil.never);
         create operator evil.= (leftarg = \"char\", rightarg = \"char\", function = evil.never);
         create operator evil.<> (leftarg = \"char\", rightarg = \"char\", function = evil.never);
         create function evil.age(xid) returns int language sql as 'select 99';
         create function evil.json_build_array(variadic \"any\") returns json language internal as 'json_build_array';
         create table evil.pg_class (oid int); create table evil.pg_attribute (oid int); create domain evil.oid as int;
         create type evil.text as enum ('x'); create type evil.\"char\" as enum ('y')",
    )
    .expect("a schema that shadows pg_catalog");
    let sorted = |printed: String| {
        // The first row says the path itself, and definitions are printed for it.
        let mut lines: Vec<String> = printed
            .lines()
            .filter(|line| {
                !line.starts_with("session|") && !line.starts_with("view|") && !line.contains("CHECK")
            })
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    for sql in [Catalog::load_sql(), Overlay::load_sql()] {
        let plainly = sorted(db.psql(sql).expect("rows"));
        let shadowed = sorted(
            db.psql(&format!("set search_path = evil, pg_catalog, public; {sql}"))
                .expect("rows"),
        );
        let by_another = sorted(db.psql(&format!("set role plain_reader; {sql}")).expect("rows"));
        assert!(!plainly.is_empty());
        assert!(
            plainly == shadowed,
            "{:?}",
            plainly.iter().zip(&shadowed).find(|(a, b)| a != b)
        );
        assert!(
            plainly == by_another,
            "{:?}",
            plainly.iter().zip(&by_another).find(|(a, b)| a != b)
        );
    }
    let in_transaction = format!(
        "set search_path = evil, pg_catalog, public; begin; create table public.fresh (a int); {}",
        Overlay::load_sql()
    );
    let catalog = catalog(&db);
    let printed = db.psql(&in_transaction).expect("rows");
    let overlay = Overlay::from_rows(&catalog, rows(&printed)).expect("rows that are understood");
    assert!(
        overlay
            .relations
            .values()
            .flatten()
            .any(|relation| relation.name == "fresh")
    );
    db.psql("drop schema evil cascade; drop role plain_reader")
        .expect("the role is the server's");
}
