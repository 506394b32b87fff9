//! Ways to get at a masked value or a hidden row. Each is refused, or runs on a real server and shows neither.

use super::world::World;

const SETUP: &str = "
    create domain short as text check (length(value) < 40);
    create type pair as (a int, b text);
    create table people (id int primary key, tenant text not null, mail text unique, born date, pay numeric(10,2), tags text[], note text, extra jsonb);
    insert into people values
      (1, 'a', 'ann@secret.example', '1980-05-06', 1234.50, '{x,y}', '12', '{\"k\": \"raw\"}'),
      (2, 'a', 'amy@secret.example', '1981-06-07', 2345.50, '{z}', '13', '{}'),
      (3, 'b', 'bob@secret.example', '1990-07-08', 9999.50, '{hidden}', 'hiddennote', '{\"k\": \"hidden\"}');
    create table open (id int primary key, people_id int references people, text text);
    insert into open values (1, 1, 'one'), (2, 2, 'two'), (3, 3, 'three');
    create view mails as select id, tenant, mail from people;";

const POLICY: &str = "defaultAction: Allow
masks:
- {name: mail, columns: [public.people.mail], mask: {type: Email}}
- {name: born, columns: [public.people.born], mask: {type: DateTrunc, unit: Year}}
- {name: pay, columns: [public.people.pay], mask: {type: Constant, value: '0'}}
- {name: tags, columns: [public.people.tags], mask: {type: 'Null'}}
- {name: extra, columns: [public.people.extra], mask: {type: Constant, value: '{}'}}
rowFilters:
- {name: own, tables: [public.people], predicate: 'tenant = :claims.tenant'}";

/// What must never come out: raw values of the masked columns, and anything of the hidden row.
const SECRETS: [&str; 10] = [
    "ann@s", "amy@s", "bob", "05-06", "06-07", "1234", "2345", "9999", "hidden", "raw",
];

const ATTEMPTS: &[&str] = &[
    "select * from people",
    "table people",
    "select mail as x from people",
    "select p.mail from people p",
    "select public.people.mail from public.people",
    "select upper(mail), substr(mail, 2), mail || '', reverse(mail), md5(mail) from people",
    "select people from people",
    "select people.* from people",
    "select (people).mail from people",
    "select (p).* from people p",
    "select row_to_json(p), to_jsonb(p), p::text from people p",
    "select json_agg(p) from people p",
    "select array_agg(mail), string_agg(mail, ','), min(mail), max(pay), sum(pay) from people",
    "select (array_agg(p))[1].mail from people p",
    "select (select p from people p limit 1).mail",
    "select x.mail from (select * from people) x",
    "select a from (select * from people) x(a, b, c)",
    "select c from people as x(a, b, c)",
    "with x as (select mail from people) select * from x",
    "with recursive x(n, m) as (select 1, mail from people union all select n + 1, m from x where n < 2) select * from x",
    "select mail from people union select text from open",
    "select text from open union all select mail from people",
    "select mail from people intersect select mail from people",
    "select mail from people except select 'x'",
    "select o.text, p.mail from open o join people p on p.id = o.people_id",
    "select o.text, p.mail from open o left join people p on p.id = o.people_id",
    "select * from open join people using (id)",
    "select * from open natural join people",
    "select o.text, l.mail from open o, lateral (select mail from people where id = o.people_id) l",
    "select (select mail from people p where p.id = o.id) from open o",
    "select exists (select 1 from people where mail = 'ann@secret.example')",
    "select count(*) from people where mail like 'ann%'",
    "select id from people where mail = 'ann@secret.example'",
    "select case when mail like 'ann@s%' then 'ann@s' || 'ecret' else 'no' end from people",
    "select id from people where pay > 1000",
    "select coalesce(mail, 'x'), nullif(mail, 'x'), greatest(mail, 'a') from people",
    "select mail::varchar(3), cast(mail as short), mail collate \"C\" from people",
    "select mail::int from people",
    "select 1 / (case when pay > 1000 then 0 else 1 end) from people",
    "select id from people where note::int = 12",
    "select id from people where note like 'hidden\\'",
    "select id from people where 1 / (case when note = 'hiddennote' then 0 else 1 end) > 0",
    "select n from (select note::int as n, count(*) from people group by note) q where n > 0",
    "select distinct mail from people order by mail",
    "select distinct on (mail) mail, id from people",
    "select mail, count(*) from people group by mail having count(*) > 0",
    "select first_value(mail) over (order by id), lag(mail) over () from people",
    "select mail from people order by pay",
    "select mail from people fetch first 1 row only",
    "select mail from people tablesample bernoulli (100)",
    "select mail from only people",
    "select unnest(tags) from people",
    "select tags[1], array_to_string(tags, ',') from people",
    "select extra->>'k', jsonb_each_text(extra) from people",
    "select j.* from people, jsonb_each_text(extra) j",
    "select ctid, xmin, tableoid::regclass, mail from people",
    "select mail from people for update",
    "select mail from people where id = 1 for no key update skip locked",
    "select * from mails",
    "select m from mails m",
    "select mail from mails where id = 1",
    "values ((select mail from people limit 1))",
    "select * from (values ((select max(mail) from people))) v",
    "select array(select mail from people)",
    "select mail = any (array['ann@secret.example']), mail from people",
    "select row(mail, pay) from people",
    "select (row(1, mail)::pair).b from people",
    "select xmlforest(mail) from people",
    "select to_json(array_agg(p.mail)) from people p",
    "select format('%s', mail), concat(mail, ''), quote_literal(mail) from people",
    "select encode(convert_to(mail, 'UTF8'), 'hex') from people",
    "select regexp_replace(mail, '^', ''), split_part(mail, '@', 1) || '@s', mail ~ '^ann@s' from people",
    "select extract(doy from born), to_char(born, 'MM-DD'), born + 0, age(born) from people",
    "select born, born::text from people",
    "copy people to stdout",
    "copy people (mail) to stdout",
    "copy (select * from people) to stdout",
    "copy people to stdout (format csv, header)",
    "explain select * from people where mail = 'ann@secret.example'",
    "explain verbose select mail from people",
    "explain analyze select mail from people",
    "explain (analyze, format json) update people set note = mail",
    "update people set note = '12' where id = 1 returning *",
    "update people set note = '12' where id = 1 returning mail, people, (people).mail",
    "update people set note = mail where id = 1 returning note",
    "update people set mail = mail where id = 1 returning mail",
    "update people p set note = o.text from open o where o.people_id = p.id returning p.*, o.*",
    "update people set note = '12' where mail like 'ann%' returning id",
    "update open set text = p.mail from people p where p.id = open.people_id returning open.text",
    "update open set text = (select mail from people where id = 1) where id = 1 returning text",
    "delete from people where id = 2 and mail = 'amy@secret.example' returning mail",
    "delete from open using people p where p.id = open.people_id and p.mail like 'ann@s%' returning p.mail, open.id",
    "insert into people (id, tenant, mail, note) values (7, 'a', 'new@x', '1') returning *",
    "insert into people (id, tenant, mail) values (1, 'a', 'x') on conflict (id) do update set note = people.mail returning note",
    "insert into people (id, tenant, mail) values (1, 'a', 'x') on conflict (id) do update set note = '12' where people.mail like 'ann%' returning people.mail",
    "insert into people (id, tenant, mail) values (1, 'a', 'x') on conflict do nothing returning mail",
    "insert into people (id, tenant, mail) values (8, 'b', 'x') returning id",
    "insert into open (id, text) select 100 + id, mail from people returning text",
    "insert into open (id, text) values (200, (select mail from people where id = 1)) returning text",
    "with w as (update people set note = '12' where id = 1 returning mail) select * from w",
    "with w as (delete from open where id = 3 returning people_id) select p.mail from people p join w on w.people_id = p.id",
    "merge into open o using people p on p.id = o.people_id when matched then update set text = p.mail",
    "merge into people p using open o on p.id = o.people_id when matched and p.mail like 'ann@s%' then update set note = o.text",
    "create temp table stolen as select * from people",
    "select * into temp stolen2 from people",
    "create view stolen3 as select * from people",
    "create materialized view stolen4 as select mail from people",
    "prepare q as select mail from people",
    "declare c cursor for select mail from people",
    "select pg_catalog.query_to_xml('select mail from people', true, true, '')",
    "select pg_catalog.table_to_xml('people', true, true, '')",
    "select * from pg_stats where tablename = 'people'",
    "select * from pg_statistic",
    "select histogram_bounds from pg_stats",
    "select pg_get_viewdef('mails'::regclass)",
    "select reltuples from pg_class where relname = 'people'",
    "alter table people alter column mail type text using mail",
    "create index on people (mail)",
    "create unique index on people (lower(mail))",
    "alter table people add constraint c check (mail not like 'ann@s%')",
    "create rule r as on update to open do also select * from people",
    "create function f() returns setof people language sql as 'select * from people'",
    "do $$ begin raise notice '%', (select mail from people limit 1); end $$",
    "truncate people cascade",
    "lock table people",
    "select set_config('a.b', mail, false) from people",
    "select current_setting('a.b', true), set_config('a.b', (select mail from people limit 1), false)",
    "notify x, 'y'",
    "select pg_notify('x', mail) from people",
    "select ts_headline(mail, 'ann'), to_tsvector(mail) from people",
    "select width_bucket(pay, 0, 10000, 10), round(pay), pay::int from people",
    "select id from people order by mail = 'ann@secret.example', id",
    "select sum(case when mail = 'ann@secret.example' then 1 else 0 end) from people",
    "select 'x' from people where id = 3",
    "select count(*) from people",
    "select max(id) from people",
    "select id from people where ctid = '(0,3)'",
    "select p.id from people p right join open o on p.id = o.people_id order by 1",
    "select p.id from open o full join people p on p.id = o.people_id where p.note = 'hiddennote'",
    "select old.mail from people old",
    "select * from people, people p2",
    "select pg_column_size(mail), length(mail) from people where mail is distinct from null",
    "select mail is null, mail = 'x', mail in ('ann@secret.example') from people",
    "select string_agg(chr(ascii(substr(mail, 2, 1))), '') from people",
];

#[test]
fn no_attempt_shows_a_masked_value_or_a_hidden_row() {
    let world = World::new(SETUP, &[POLICY]).with_claim("tenant", "a");
    assert_eq!(world.unresolved, []);
    let mut shown = Vec::new();
    let (mut ran, mut refused) = (0, Vec::new());
    for sql in ATTEMPTS {
        let permit = match world.decide(sql) {
            Ok(permit) => permit,
            Err(refusal) => {
                refused.push(format!("{sql}: {refusal}"));
                if refusal.code.0 == 7 {
                    shown.push(format!("Weir's own check failed: {sql}: {refusal}"));
                }
                continue;
            }
        };
        drop(permit);
        // Each runs in a transaction of its own that is undone.
        let sent = world.sent(sql);
        let answer = match world.db.psql(&format!("begin; {sent}; rollback")) {
            Ok(answer) => {
                ran += 1;
                answer
            }
            // DETAIL and CONTEXT do not reach a client; the message may.
            Err(error) => {
                let text = format!("{error:#}");
                let message = text
                    .lines()
                    .find(|line| line.contains("ERROR:"))
                    .unwrap_or_default()
                    .to_owned();
                message.split("ERROR:").nth(1).unwrap_or_default().to_owned()
            }
        };
        let reveals = SECRETS
            .iter()
            .find(|secret| answer.contains(**secret) && !sql.contains(**secret));
        if let Some(secret) = reveals {
            shown.push(format!("{sql} shows {secret}:\n→ {sent}\n{answer}"));
        }
    }
    println!("{ran} ran, {} refused:\n{}", refused.len(), refused.join("\n"));
    assert!(shown.is_empty(), "{}", shown.join("\n\n"));
    // The list would prove nothing if everything were refused.
    assert!(ran >= 80, "only {ran} of {} ran", ATTEMPTS.len());
}

#[test]
fn guesses_find_nothing() {
    let world = World::new(SETUP, &[POLICY]).with_claim("tenant", "a");
    for (sql, answer) in [
        ("select count(*) from people", "2"),
        ("select count(*) from people where mail like 'ann@s%'", "0"),
        ("select count(*) from people where pay > 1000", "0"),
        ("select count(*) from people where id = 3", "0"),
        (
            "select exists (select 1 from people where note = 'hiddennote')",
            "f",
        ),
        (
            "select count(p.id) from open o left join people p on p.id = o.people_id",
            "2",
        ),
        ("select max(id) from people", "2"),
        ("select id from people where note like 'hidden\\'", ""),
    ] {
        assert_eq!(world.run(sql), answer, "{sql}");
    }
}
