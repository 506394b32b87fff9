//! What the printer gets wrong is refused, so it should be little.

use super::super::workshop::Workshop;
use super::super::{brackets, proof};

/// Prints a text's tree as it is and proves the print.
fn reprint(sql: &str) -> Result<String, String> {
    let parsed = pg_raw_parse::parse(sql).map_err(|error| error.to_string())?;
    let statement = parsed.iter().next().unwrap();
    let printed = brackets::print(statement, sql).map_err(|error| error.to_string())?;
    let pieces = Workshop::new(sql.len())
        .open()
        .map_err(|error| error.to_string())?;
    proof::prove(statement, &printed, &pieces.windows).map_err(|error| format!("{error}: {}", &printed))?;
    Ok(printed)
}

#[test]
fn usual_statements_are_printed_exactly() {
    let mut wrong = Vec::new();
    for sql in [
        "select 1 from t where (a like 'x') is null",
        "select (a and b) is null, (a or b) is true, (not a) is false",
        "select not (a and b), not (a is null), not a = b, (not a) = b",
        "select (a like b) like c, a like (b like c), (a in (1,2)) in (true)",
        "select a between 1 and 2 and b, (a between 1 and 2) between c and d",
        "select a between (b and c) and d",
        "select (a is distinct from b) is not distinct from (c is distinct from d)",
        "select a is not distinct from (b is null)",
        "select (a = any (b)) = any (c), a = any (b || c)",
        "select (a collate \"C\") || b, (a || b) collate \"C\", (case when a then b end) collate \"C\"",
        "select (a + b)::int, (a::int)::text, -a::int, (-a)::int, - (- a), -1, - 1, (-1)::int, -(1)",
        "select (a and b)::int, (a is null)::text, (a like b)::text, (not a)::int",
        "select (a).b, (a.b).c, (a.b[1]).c, (f(x)).y, (a[1:2])[3], (array[1,2])[1], ((a).b).c, (a || b)[1]",
        "select a at time zone 'UTC', (a at time zone 'UTC') at time zone b, (a + b) at time zone 'x'",
        "select extract(day from a), substring(a from 1 for 2), position(a in b), overlay(a placing b from 1), trim(both 'x' from a), trim(a)",
        "select interval '1' day, interval(3) '1', interval '1 day', '1'::interval hour to minute, date '2020-01-01', timestamp(3) '2020-01-01', time with time zone '1:00'",
        "select E'a\\\\b', 'it''s', U&'\\0041', $$x'y$$, b'101', x'1F', 1e5, 1.50, 12345678901234567890, null, true",
        "select \"Weird Name\", \"select\", \"a\"\"b\" from \"User\".\"Order\" as \"Group\"",
        "select count(*) filter (where a), sum(distinct a order by b), percentile_cont(0.5) within group (order by a), f(variadic a), f(x => 1)",
        "select rank() over w, sum(a) over (partition by b order by c rows between 1 preceding and current row exclude ties) from t window w as (order by a)",
        "select * from a join b using (x) as j left join c on true cross join d natural join e full join (f join g on 1=1) h(x) on a.b = h.c",
        "select * from a, lateral (select 1) b, generate_series(1,2) with ordinality as g(x,y), rows from (f(1), g(2)) as r, unnest(a, b) as u(c,d)",
        "select * from f() as t(a int, b text)",
        "select 1 union all select 2 intersect select 3 except (select 4 union select 5 order by 1 limit 1) order by 1 offset 2 fetch first 3 rows with ties",
        "(select 1 limit 1) union (select 2 order by 1) limit 3",
        "select 1 where a is not null and (b or c) and not exists (select 1) or d",
        "values (1, default), (2, 3)",
        "with recursive q(n) as (select 1 union all select n + 1 from q where n < 3) search depth first by n set o cycle n set c using p select * from q",
        "with a as materialized (select 1), b as not materialized (insert into t values (1) returning *) select * from a, b",
        "select distinct on (a, b) a from t group by grouping sets ((a), (b, c), ()), rollup (d), cube (e) having grouping(a) = 1",
        "select a from t order by a using <, b desc nulls last, c asc nulls first for update of t skip locked for share",
        "select array(select 1), array[[1,2],[3,4]], row(1,2), (1,2), row(), a[1], a[1:2], a[:2], a[:]",
        "select coalesce(a, b), greatest(a, b), nullif(a, b), current_date, current_timestamp(3), localtime, user, session_user, current_schema",
        "select case a when 1 then 2 else 3 end, case when a then b end, (case when a then b end) is null",
        "select a ~~ b, a operator(pg_catalog.+) b * c, (a + b) * c, a + b * c, a - (b - c), a - b - c, (a || b) || c, a || (b || c)",
        "select a similar to 'x' escape 'y', a not ilike b escape '#', a not similar to b, a not between symmetric 1 and 2",
        "select (select 1)::int, exists (select 1), a in (select 1), a not in (select 1), a > all (select 1), (a, b) = (select 1, 2), (a,b) in ((1,2))",
        "select json_object('a': 1), xmlelement(name a, b), xmlserialize(content a as text), a is json, json_array(1, 2)",
        "insert into t (a, b[1], c.d) overriding system value select 1 on conflict (a, (lower(b))) where c do update set (a, b) = (1, excluded.b), c = default where t.d returning *",
        "insert into t default values on conflict on constraint x do nothing",
        "update only t as x set (a, b) = (select 1, 2), c = 1 from y where x.a = y.b returning x.*, y.a as z",
        "delete from t using a, b where t.x = a.y returning *",
        "merge into t using s on t.a = s.a when matched and t.b then update set a = 1 when matched then delete when not matched then insert (a) values (1) when not matched by source then do nothing",
        "copy (select 1) to stdout with (format csv, header true, delimiter ',', force_quote (a), null '')",
        "copy t (a, b) from stdin with (format text) where a > 1",
        "explain (analyze false, costs off, format json) select 1",
        "declare c scroll cursor with hold for select 1",
        "prepare p (int, text) as select $1, $2",
        "create temp table x on commit drop as select 1 with no data",
        "create or replace view v (a) with (security_barrier) as select 1 with local check option",
        "create materialized view if not exists m as select 1",
        "select a into temp x from t",
        "select a::varchar(20), a::char(3), a::numeric(10,2), a::bpchar, a::\"char\", a::text[], a::int[3][], a::public.mood, a::bit(3), a::bit varying, a::timestamptz(3), a::float(20)",
        "select a::pg_catalog.\"varchar\"(20), a::pg_catalog.text, a::pg_catalog.timestamptz, cast(a as pg_catalog.int4), a::pg_catalog.name",
        "select t.*, (t).*, (f(x)).* from t",
        "select $1::int + $2, $1",
        "select 1 as \"A\", 2 as select, 3 b, 4 as \"x y\"",
        "table t",
        "select from t",
        "select all a from t tablesample bernoulli (10) repeatable (3)",
        "select * from xmltable('/a' passing b columns c int path 'd', e for ordinality) x",
        "select a -> 'b' ->> 'c', a #>> '{x}', a @> b, a ? 'k', a ?| array['x'], a @@ b, |/ a, @ a, a ! b",
        "select count(*) > 1, bool_and(a = b), (a, b) overlaps (c, d)",
        "select a isnull, a notnull, a is unknown, a is not document, a is normalized, a is nfc normalized",
    ] {
        if let Err(error) = reprint(sql) {
            wrong.push(format!("{sql}\n    {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_proof_sees_every_difference_but_places() {
    let prove = |sql: &str, text: &str| {
        let parsed = pg_raw_parse::parse(sql).unwrap();
        let pieces = Workshop::new(sql.len()).open().unwrap();
        proof::prove(parsed.iter().next().unwrap(), text, &pieces.windows)
    };
    assert_eq!(
        prove("select   a,  b from t", "select a, b from t").unwrap(),
        [(7, 9), (10, 13), (17, 20)]
    );
    for (sql, text) in [
        ("select a and (b or c)", "select a and b or c"),
        ("select 'location: 5'", "select 'location: 6'"),
        ("select 'a\"'", "select 'a'"),
        ("select 1", "select 1, 1"),
        ("select 1", "select 1; select 1"),
        ("select a from t", "select a from only t"),
        ("select a from t", "select a from s.t"),
        ("select 1::text", "select 1::varchar"),
        ("select 12345678901", "select 12345678902"),
        ("select true", "select false"),
    ] {
        assert!(prove(sql, text).is_err(), "{sql} / {text}");
    }
}
