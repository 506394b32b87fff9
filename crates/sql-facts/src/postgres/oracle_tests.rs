//! `read` against PostgreSQL's own analyser: what a view or function depends on, and what its columns are called.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use test_support::shared_postgres;

use super::*;
use crate::catalog::{AttNum, Catalog, Overlay, SearchPath};
use crate::facts::Action;

const SCHEMA: &str = r#"
create schema s;
create type pair as (x int, y text);
create table dept (id int primary key, name text not null, parent int references dept (id), budget numeric(12, 2));
create table emp (id int primary key, name text, email varchar(80), dept_id int references dept (id), salary numeric, hired date, tags text[], doc jsonb, p pair);
create table log (id bigint generated always as identity, at timestamptz default now(), emp_id int, what text);
create table s.emp (id int, note text);
create table parts (k int, v text) partition by range (k);
create table parts_1 partition of parts for values from (0) to (100);
create table "Mixed Case" ("Id" int, "Full Name" text);
create view rich as select id, name, salary from emp where salary > 1000;
"#;

/// Each is a query with distinct column names.
const QUERIES: &[&str] = &[
    "select 1 as one, 'x'::text as two",
    "select id, name from emp",
    "select * from dept",
    "select e.*, d.name as dept from emp e join dept d on d.id = e.dept_id",
    "select e.id as eid, d.id as did from emp e, dept d where e.dept_id = d.id and d.budget > 100",
    "select count(*), max(salary), min(hired) from emp group by dept_id having avg(salary) > 10 order by count(*)",
    "select id, lower(email) from emp where name like 'a%' order by hired desc limit 3 offset 1",
    "select id from emp union select id from dept union all select emp_id from log",
    "select name from emp except select name from dept intersect select what from log order by 1",
    "select * from emp natural join s.emp z",
    "select id, note from emp join s.emp z using (id)",
    "select id from emp full join s.emp using (id)",
    "select j.id as a, emp.name from emp join dept using (id, name) as j",
    "select q.m from (select email as m, salary from emp) q where q.salary > 1",
    "select x.what from emp e, lateral (select what from log where emp_id = e.id limit 1) x",
    "select e.id, (select count(*) from log l where l.emp_id = e.id) from emp e",
    "select id from emp e where exists (select 1 from log where emp_id = e.id and what = e.name)",
    "select id from emp where dept_id in (select id from dept where budget is not null)",
    "select id from emp where (id, name) = any (select id, name from dept)",
    "select id from emp where salary > all (select budget from dept)",
    "with t as (select id, email from emp) select t.id from t",
    "with emp as (select name from dept) select name from emp",
    "with a as (select id from emp), b as (select a.id from a join dept on dept.id = a.id) select * from b",
    "with recursive r(id, depth) as (select id, 0 from dept where parent is null union all select d.id, depth + 1 from r join dept d on d.parent = r.id) select * from r",
    "with recursive r as (select id, parent from dept union select d.id, d.parent from dept d, r where d.parent = r.id) search depth first by id set seq select id from r order by seq",
    "with recursive r as (select id, parent from dept union all select d.id, d.parent from dept d, r where d.parent = r.id) cycle id set looped using path select id, looped from r where not looped",
    "select emp from emp",
    "select (e).email from emp e",
    "select (e.p).x, (p).y as why from emp e",
    "select row_to_json(e) from emp e",
    "select e::text as t, count(e) from emp e group by e",
    "select tags[1] as first, tags[1:2] as some, doc -> 'a' ->> 'b' as deep from emp",
    "select ctid, tableoid, xmin from emp",
    "select public.emp.id, s.emp.note from public.emp, s.emp",
    "select \"Id\", m.\"Full Name\" from \"Mixed Case\" m",
    "select v.* from (values (1, 'a'), (2, 'b')) v(k, t)",
    "values (1, 2), ((select max(id) from emp), 3)",
    "select * from generate_series(1, 3)",
    "select n, ord from generate_series(1, 3) with ordinality g(n, ord)",
    "select * from jsonb_each('{}')",
    "select key, e.id from emp e, jsonb_each(e.doc)",
    "select t from emp, unnest(tags) t",
    "select * from unnest(array[1, 2])",
    "select * from rows from (generate_series(1, 2), generate_series(1, 3)) r(a, b)",
    "select * from jsonb_to_recordset('[]') r(a int, b text)",
    "select * from pg_partition_tree('parts')",
    "select * from xmltable('/a' passing xml '<a/>' columns x int path 'x', o for ordinality) t",
    "select rank() over w, sum(salary) over (w rows between 1 preceding and current row) as s from emp window w as (partition by dept_id order by hired)",
    "select lag(name, 1, email) over (order by id) from emp",
    "select string_agg(name, ',' order by hired) filter (where salary > 1), percentile_cont(0.5) within group (order by salary) from emp",
    "select dept_id, grouping(dept_id) from emp group by rollup (dept_id, hired)",
    "select dept_id as name from emp group by name, dept_id",
    "select distinct on (dept_id) dept_id as d, id from emp order by dept_id, salary",
    "select name as x, salary as y from emp order by y, x using <",
    "select case when salary > 1 then name else email end from emp",
    "select case dept_id when 1 then 'x'::text end, coalesce(name, email), nullif(id, 1), greatest(id, dept_id) from emp",
    "select id between 1 and 2 as a, name is distinct from email as b, name similar to 'x' as c, tags = '{}' as d from emp",
    "select array(select name from dept where id = e.dept_id), array[id, dept_id] as two from emp e",
    "select extract(year from hired), hired + interval '1 day' as tomorrow, current_date, hired at time zone 'utc' as z from emp",
    "select cast(salary as int), name collate \"C\", email::text from emp",
    "select (select (select max(budget) from dept d where d.id = e.dept_id) from log limit 1) as m from emp e",
    "select * from (emp cross join log) as j (a, b)",
    "select a.id as ai, c.id as ci from emp a left join (dept b join log c on c.emp_id = b.id) on b.id = a.dept_id",
    "select x.id from emp x right join dept y on x.dept_id = y.id where y.parent is null",
    "select 1 as present from emp tablesample system (10) repeatable (3)",
    "select id from only parts_1 p(id, v)",
    "select r.name from rich r where r.salary < 5",
    "select xmlelement(name e, xmlattributes(id as i), name) from emp",
    "select exists (select from dept), true, not (id = 1) as n from emp",
    "select table_name from information_schema.tables where table_schema = 'public'",
    "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid where a.attnum > 0",
    "select sum(x.n) from (select count(*) as n from emp group by dept_id) x",
    "select d.id from dept d where d.id not in (select coalesce(dept_id, 0) from emp where name || email > 'x')",
    "select e.name from emp e where (select e.salary) > 3",
    "select id from emp for update",
];

const WRITES: &[&str] = &[
    "insert into log (emp_id, what) values (1, 'x')",
    "insert into log (emp_id, what) select id, name from emp where salary > 1",
    "insert into dept select id, name from emp",
    "insert into dept (id, name) values (1, 'x') on conflict do nothing",
    "insert into dept as d (id, name) values (1, 'x') on conflict (id) do update set name = excluded.name || d.name, budget = d.budget + 1 where d.parent > 0",
    "insert into s.emp default values",
    "insert into emp (id, tags[1], p.x) values (1, 'a', 2)",
    "update emp set salary = salary * 2 where id = 3",
    "update emp e set name = d.name from dept d where d.id = e.dept_id and d.budget > 1",
    "update emp set (name, email) = (select what, 'x' from log where emp_id = emp.id limit 1)",
    "update emp set tags[2] = 'x', dept_id = default where hired < now()",
    "update only parts set v = 'x' where k = 1",
    "update rich set name = 'x' where id = 1",
    "delete from emp",
    "delete from emp e using dept d where d.id = e.dept_id and d.name = 'x'",
    "delete from log where emp_id in (select id from emp where name is null)",
    "merge into emp e using log l on l.emp_id = e.id when matched and l.what = 'bye' then delete when matched then update set name = l.what when not matched then insert (id, name) values (l.emp_id, l.what)",
    "with gone as (delete from log where id = 1 returning emp_id) update emp set salary = 0 from gone where gone.emp_id = emp.id",
    "with new as (insert into dept (id, name) select id, name from emp returning id) select id from new",
];

#[test]
fn reads_are_what_the_server_records() {
    let server = shared_postgres().expect("a server");
    let database = server.database().expect("a database");
    database.psql(SCHEMA).expect("the schema");
    let mut script = String::new();
    for (number, query) in QUERIES.iter().enumerate() {
        let _ = writeln!(script, "create view q{number} as {query};");
    }
    for (number, write) in WRITES.iter().enumerate() {
        let _ = writeln!(
            script,
            "create function w{number}() returns void language sql begin atomic {write}; end;"
        );
    }
    let version: u32 = database
        .psql("show server_version_num")
        .expect("a version")
        .parse()
        .expect("a number");
    let major = u16::try_from(version / 10000).expect("a small number");
    let rows = database.psql(Catalog::load_sql()).expect("the catalog");
    let catalog = Catalog::from_rows(major, 1, rows.lines().filter_map(|line| line.split_once('|')))
        .expect("rows that are understood");
    database
        .psql(&script)
        .expect("every query is one that the server takes");
    let depends = database
        .psql(
            "select coalesce(v.relname, p.proname), d.refobjid, d.refobjsubid from pg_depend d \
             left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid \
             left join pg_class v on v.oid = r.ev_class \
             left join pg_proc p on d.classid = 'pg_proc'::regclass and p.oid = d.objid \
             where d.refclassid = 'pg_class'::regclass and coalesce(v.relname, p.proname) ~ '^[qw][0-9]+$' \
             and d.refobjid is distinct from v.oid \
             and d.refobjid in (select oid from pg_class where relkind <> 'c')",
        )
        .expect("what depends on what");
    let names = database
        .psql(
            "select c.relname, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid \
             where c.relname ~ '^q[0-9]+$' and a.attnum > 0 order by c.relname, a.attnum",
        )
        .expect("names of columns");

    let overlay = Overlay::default();
    let path = SearchPath(vec!["pg_catalog".to_owned(), "public".to_owned()]);
    let view = CatalogView {
        catalog: &catalog,
        overlay: &overlay,
        path: &path,
    };
    let statements = QUERIES
        .iter()
        .enumerate()
        .map(|(number, sql)| (format!("q{number}"), *sql));
    let statements = statements.chain(
        WRITES
            .iter()
            .enumerate()
            .map(|(number, sql)| (format!("w{number}"), *sql)),
    );
    for (object, sql) in statements {
        let parsed = parse(sql).expect("the server took it");
        let facts = parsed
            .statements
            .first()
            .map(|statement| read(statement, view))
            .expect("one statement");
        let facts = facts.unwrap_or_else(|error| unreachable!("{sql}: {error}"));
        // The server's own objects are not recorded, a whole row like the mere mention, and of MERGE only what it
        // reads.
        let recorded = |action: Action| match action {
            Action::Insert | Action::Update => !sql.starts_with("merge"),
            Action::Delete => false,
            Action::Select | Action::Truncate | Action::Ddl | Action::Call | Action::Admin => true,
        };
        let mut ours: BTreeMap<Oid, BTreeSet<AttNum>> = BTreeMap::new();
        for action in &facts.actions {
            if let Some(relation) = action.relation.filter(|relation| *relation >= 16384) {
                let columns = action.columns.iter().copied();
                let columns = columns.filter(|column| *column != 0 && recorded(action.action));
                ours.entry(relation).or_default().extend(columns);
            }
        }
        let mut servers: BTreeMap<Oid, BTreeSet<AttNum>> = BTreeMap::new();
        for line in depends.lines() {
            let mut parts = line.split('|');
            if parts.next() != Some(object.as_str()) {
                continue;
            }
            let mut number = || {
                parts
                    .next()
                    .and_then(|part| part.parse::<i64>().ok())
                    .expect("a number")
            };
            let relation = Oid::try_from(number()).expect("an OID");
            let column = AttNum::try_from(number()).expect("a column's number");
            if relation >= 16384 {
                servers
                    .entry(relation)
                    .or_default()
                    .extend(Some(column).filter(|column| *column != 0));
            }
        }
        // `pg_partition_tree('parts')` holds a relation as a constant, which reads no row of it.
        if !sql.contains("pg_partition_tree") {
            assert_eq!(ours, servers, "what {sql} touches");
        }
        if object.starts_with('q') {
            let ours: Vec<&str> = facts.output.iter().map(|output| output.name.as_str()).collect();
            let lines = names.lines().filter_map(|line| line.split_once('|'));
            let servers: Vec<&str> = lines
                .filter(|(view, _)| *view == object)
                .map(|(_, name)| name)
                .collect();
            assert_eq!(ours, servers, "columns of {sql}");
        }
    }
}
