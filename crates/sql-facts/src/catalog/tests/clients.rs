//! What psql and drivers ask the catalogs stays open.

use super::*;
use crate::facts::FunctionClass;

/// Everything that would be refused or need a rule in a catalog query where something is protected.
fn closed(view: CatalogView<'_>, sql: &str) -> Vec<String> {
    let parsed = match crate::postgres::parse(sql) {
        Ok(parsed) => parsed,
        Err(error) => return vec![format!("{error}: {sql}")],
    };
    let mut found = Vec::new();
    for statement in &parsed.statements {
        let facts = match crate::postgres::read(statement, view) {
            Ok(facts) => facts,
            Err(error) => {
                found.push(format!("{error}: {sql}"));
                continue;
            }
        };
        for call in facts
            .calls
            .iter()
            .filter(|call| call.class != FunctionClass::Open)
        {
            found.push(format!("{} is {:?}: {sql}", call.name, call.class));
        }
        for action in &facts.actions {
            let access = action.relation.and_then(|oid| view.system_relation(oid));
            if !matches!(access, Some(SystemRelation::Open | SystemRelation::OpenExcept(_))) {
                found.push(format!("{} is {access:?}: {sql}", action.name));
            }
        }
    }
    found
}

#[test]
fn what_psql_asks_is_open() {
    let db = database();
    db.psql(
        "create table t (id serial primary key, a int references t, b text default 'x', c int generated always as (a + 1) stored);
         create index on t (b); create view v as select * from t; create materialized view m as select * from t;
         create table p (a int) partition by range (a); create table p1 partition of p default;
         create type mood as enum ('a'); create domain d as int check (value > 0); create type pair as (a int);
         create function f(int) returns int language sql as 'select 1'; create sequence s;
         create policy pol on t; alter table t enable row level security;
         create publication pub for all tables; create statistics st on a, b from t;
         create trigger tr after insert on t for each row execute function pg_catalog.suppress_redundant_updates_trigger()",
    )
    .expect("objects");
    let commands = "\\d \\d+ t \\d v \\d+ m \\d+ p \\d p1 \\d t_b_idx \\d t_id_seq \\dt+ \\di+ \\dv+ \\dm+ \\ds+ \\dn+ \\df+ \\df \\sf f(int) \\da \
                    \\dT+ \\dD+ \\dC+ \\dc+ \\do+ \\dO+ \\du+ \\dg \\dp \\z \\ddp \\dx \\dX \\dy \\dE \\des+ \\dew+ \\det+ \\dF+ \\dFd+ \\dFp+ \\dFt+ \
                    \\dL+ \\dA+ \\dAc \\dAf \\dAo \\dAp \\dP+ \\dRp+ \\dRs \\drds \\dd \\db+ \\l+ \\sv v \\dconfig+ search_path \\conninfo \\encoding";
    let mut script = "\\set ECHO_HIDDEN on\n".to_owned();
    let mut words = commands.split_ascii_whitespace().peekable();
    while let Some(command) = words.next() {
        script.push_str(command);
        while let Some(argument) = words.next_if(|word| !word.starts_with('\\')) {
            script.push(' ');
            script.push_str(argument);
        }
        script.push('\n');
    }
    let file = std::env::temp_dir().join(format!("weir-psql-{}.sql", std::process::id()));
    std::fs::write(&file, script).expect("a file");
    let printed = db.psql_file(&file);
    std::fs::remove_file(&file).expect("the file");
    let printed = printed.expect("psql's own queries");

    let catalog = catalog(&db);
    let (overlay, path) = (Overlay::default(), path(&["pg_catalog", "public"]));
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let queries: Vec<&str> = printed
        .split("********* QUERY **********")
        .skip(1)
        .filter_map(|part| part.split("**************************").next())
        .collect();
    assert!(queries.len() > 60, "{} queries", queries.len());
    let found: Vec<String> = queries.iter().flat_map(|query| closed(view, query)).collect();
    assert!(
        found.is_empty(),
        "{} of {}:\n{}",
        found.len(),
        queries.len(),
        found.join("\n")
    );
}

/// Shapes of introspection as drivers and ORMs write them (pgjdbc, Npgsql, asyncpg, SQLAlchemy, Django, Hibernate,
/// Rails), put in our own words: what counts is which relations and functions they touch.
#[test]
fn what_drivers_ask_is_open() {
    let catalog = Catalog::builtins(15).expect("reviewed");
    let (overlay, path) = (Overlay::default(), path(&["pg_catalog", "public"]));
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let queries = [
        "SELECT version()",
        "SELECT current_schema(), current_database(), current_user, session_user",
        "SHOW standard_conforming_strings",
        "SELECT t.oid, t.typname, t.typtype, t.typelem, n.nspname, r.rngsubtype FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_range r ON r.rngtypid = t.oid WHERE t.typname = ANY ($1)",
        "WITH RECURSIVE known(oid) AS (SELECT unnest($1::oid[]) UNION SELECT t.typelem FROM known k JOIN pg_catalog.pg_type t ON t.oid = k.oid) SELECT t.oid, format_type(t.oid, NULL), t.typinput::text, (SELECT array_agg(a.atttypid ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0) FROM known k JOIN pg_type t USING (oid)",
        "SELECT enumlabel FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid ORDER BY e.enumsortorder",
        "SELECT c.relname, c.relkind, d.description FROM pg_catalog.pg_class c LEFT JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0 WHERE pg_catalog.pg_table_is_visible(c.oid) AND c.relkind IN ('r', 'p', 'v')",
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, col_description(a.attrelid, a.attnum) FROM pg_attribute a LEFT JOIN pg_attrdef d ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE a.attrelid = 'x'::regclass AND NOT a.attisdropped",
        "SELECT c.conname, pg_get_constraintdef(c.oid, true), c.contype, array_position(c.conkey, a.attnum) FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)",
        "SELECT i.indexrelid::regclass, i.indisunique, pg_get_indexdef(i.indexrelid), am.amname, i.indoption, pg_get_indexdef(i.indexrelid, 1, true), information_schema._pg_expandarray(i.indkey) IS NULL FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam",
        "SELECT table_name, column_name, data_type, is_nullable, column_default, ordinal_position FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema')",
        "SELECT sequence_schema, sequence_name FROM information_schema.sequences",
        "SELECT schemaname, sequencename, data_type, start_value FROM pg_sequences",
        "SELECT kcu.column_name, rc.update_rule FROM information_schema.key_column_usage kcu JOIN information_schema.referential_constraints rc USING (constraint_name)",
        "SELECT pg_get_serial_sequence('a', 'b'), pg_get_viewdef('v'::regclass, true), pg_get_functiondef(1), pg_get_userbyid(10)",
        "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND has_schema_privilege(nspname, 'USAGE')",
        "SELECT name, setting, source FROM pg_settings WHERE name = 'TimeZone'",
        "SELECT oid, rolname, rolcanlogin FROM pg_roles",
        "SELECT pg_try_advisory_lock(1), pg_advisory_unlock(1), pg_backend_pid(), pg_is_in_recovery(), txid_current(), current_setting('search_path')",
        "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
        "SELECT pg_total_relation_size(c.oid), pg_size_pretty(pg_relation_size(c.oid)) FROM pg_class c",
        "SELECT typname, typarray FROM pg_type WHERE to_regtype('hstore') = oid",
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
    ];
    let found: Vec<String> = queries.iter().flat_map(|query| closed(view, query)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    for query in [
        "SELECT * FROM pg_stats",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_read_file('x')",
        "SELECT n_live_tup FROM pg_stat_user_tables",
        "SELECT query_to_xml('select 1', true, true, '')",
    ] {
        assert!(!closed(view, query).is_empty(), "{query}");
    }
}
