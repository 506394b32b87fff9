//! What governing means: the governed statement over the real data gives what the client's statement gives over a
//! copy of the tables that physically holds visible rows and masked values only.

use row_masking::Mask;

use super::{World, outcomes};

const TABLES: &str = "
    create table {s}.p(id int primary key, cust int, amt int, note text, email text, d date, tags text[]);
    create table {s}.c(id int primary key, name text, tenant text, age int, phone varchar(12));
    create table {s}.n(id int, word text);
";

const ROWS: &str = "
    insert into real.c select i, 'name' || i, case when i % 3 = 0 then 'b' else 'a' end, 20 + i,
        case when i % 4 <> 0 then '0700' || i end from generate_series(1, 12) i;
    insert into real.p select i, 1 + i % 14, case when i % 5 = 0 then null when i % 3 = 0 then 0 else i end,
        case when i % 3 = 0 then 'secret' || i when i % 7 = 0 then null else i::text end,
        'u' || i % 9 || '@x.org', date '2024-01-01' + i * 11, array['t' || i % 3, case when i % 3 = 0 then 'hidden' end]
        from generate_series(1, 40) i;
    insert into real.n values (1, 'one'), (2, 'two'), (3, null), (40, 'forty');
    insert into copy.c select id, name, tenant, 1, (case when char_length(phone) > 3
        then repeat('*', char_length(phone) - 3) || right(phone, 3) else repeat('*', char_length(phone)) end)::varchar(12) from real.c where tenant = 'a';
    insert into copy.p select id, cust, amt, note, null, (date_trunc('month', d))::date, tags from real.p where id % 3 <> 0;
    insert into copy.n select * from real.n;
";

/// How many statements are made.
const STATEMENTS: usize = 800;

/// A small random source; the seed is part of the message of a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Scalar expressions over `p` under the alias `{a}`; the later ones are not quiet.
const INTS: &[&str] = &[
    "{a}.id",
    "{a}.cust",
    "{a}.amt",
    "length({a}.note)",
    "coalesce({a}.amt, 1)",
    "{a}.amt + 1",
    "100 / {a}.id",
    "nullif({a}.amt, 2)",
];
const TEXTS: &[&str] = &[
    "{a}.note",
    "{a}.email",
    "upper({a}.note)",
    "{a}.note || 'x'",
    "coalesce({a}.email, 'none')",
    "left({a}.note, 2)",
    "{a}.tags[1]",
    "{a}.d::text",
    "{a}::text",
];
const CONDITIONS: &[&str] = &[
    "{a}.id < 20",
    "{a}.amt is not null",
    "{a}.note like '1%'",
    "{a}.email is null",
    "{a}.note::int > 10",
    "100 / {a}.amt > 5",
    "{a}.note ~ '^[0-9]+$'",
    "{a}.id in (1, 2, 4, 7)",
    "{a}.amt between 2 and 30",
    "exists (select 1 from c where c.id = {a}.cust)",
    "{a}.cust in (select id from c where c.age = 1)",
    "{a}.d >= date '2024-03-01'",
    "'t1' = any ({a}.tags)",
    "({a}.note)::int % 2 = 0",
    "substr({a}.note, 1, {a}.amt) <> 'zz'",
    "{a}.note is distinct from '4'",
    "not ({a}.amt = 4)",
    "{a} is not null",
    "row({a}.id, {a}.amt) > row(3, 4)",
    "{a}.id = (select max(x.id) from p x where x.cust = {a}.cust)",
    "sqrt({a}.amt - 1) >= 0",
    "to_number({a}.note, '999') > 3",
];

fn fill(text: &str, alias: &str) -> String {
    text.replace("{a}", alias)
}

fn condition(random: &mut Random, alias: &str) -> String {
    let one = fill(random.pick(CONDITIONS), alias);
    match random.below(5) {
        0 => format!("({one}) and ({})", fill(random.pick(CONDITIONS), alias)),
        1 => format!("({one}) or {}", fill(random.pick(CONDITIONS), alias)),
        2 => format!("not ({one})"),
        _ => one,
    }
}

fn statement(random: &mut Random) -> String {
    let (int, text) = (fill(random.pick(INTS), "x"), fill(random.pick(TEXTS), "x"));
    let (other, test) = (fill(random.pick(TEXTS), "x"), condition(random, "x"));
    let more = condition(random, "y");
    match random.below(50) {
        0 => format!("select {int}, {text} from p x where {test}"),
        1 => format!("select * from p x where {test}"),
        2 => format!("select x.*, c.name, c.phone from p x join c on c.id = x.cust where {test}"),
        3 => format!("select c.id, x.note, {int} from c left join p x on x.cust = c.id and {test}"),
        4 => format!("select q.k, count(*) from (select {int} as k from p x) q where q.k > 3 group by q.k"),
        5 => format!("select {int} as k, count(*), max({text}) from p x where {test} group by 1"),
        6 => format!("with q as (select * from p x where {test}) select count(*), sum(amt) from q"),
        7 => format!(
            "select q.n from (select {text} as n from p x union select word from n) q where q.n like '1%' or q.n is null"
        ),
        8 => format!("select distinct {text} from p x where {test}"),
        9 => format!(
            "select x.cust, sum(x.amt) filter (where {test}) from p x group by x.cust having count(*) > 1"
        ),
        10 => format!(
            "select q.m from (select {text} as m, count(*) from p x group by {text}) q where length(q.m) > 1"
        ),
        11 => format!(
            "select x.id, row_number() over (partition by x.cust order by x.id) from p x where {test}"
        ),
        12 => format!(
            "select n.id, l.* from n left join lateral (select x.id, {text} as z from p x where x.id = n.id and {test}) l on true"
        ),
        13 => format!("select row_to_json(x) from p x where {test}"),
        14 => format!("select x, x.id from c left join p x on x.cust = c.id where x.id is null or {test}"),
        15 => format!("select c.*, (select count(*) from p x where x.cust = c.id and {test}) from c"),
        16 => format!("select * from c natural join (select id, {text} as word from p x) q"),
        17 => format!(
            "select x.id, x.note, x.email, count(c.id) from p x left join c on c.id = x.cust where {test} group by x.id"
        ),
        18 => format!("select * from p x join n using (id) where {test}"),
        19 => format!(
            "select q.id from (select x.* from p x) q where q.note::int > 5 and q.id in (select id from p where {})",
            condition(random, "p")
        ),
        20 => format!("select array_agg(x order by x.id) from p x where {test}"),
        21 => format!("select {text}, {other} from p x where {test} order by 1 nulls first, {int}, x.id"),
        22 => "select j.id, j.note, j.name from (p x join c on c.id = x.cust) as j(id, cust, amt, note, e, d, tags, cid, name) where j.note::int > 2".to_owned(),
        23 => format!(
            "select x.id, y.id from p x full join p y on x.id = y.cust and {more} where coalesce(x.id, 0) < 30"
        ),
        24 => format!(
            "select x.id from p x where exists (select 1 from p y where y.cust = x.cust and {more}) and {test}"
        ),
        25 => format!("select x.cust, {text} from p x group by x.cust, {text} having max(x.id) > 3"),
        26 => "select q.k from (select x.note as k, count(*) as z from p x group by x.note) q where q.k::int > 4 and q.z = 1".to_owned(),
        27 => "select x.note from p x group by x.note having x.note::int > 10 or x.note is null".to_owned(),
        28 => {
            format!("select distinct on (x.cust) x.cust, {text} from p x where {test} order by x.cust, x.id")
        }
        29 => format!("select count(*) from p x, generate_series(1, 3) g where x.amt = g + 1 and {test}"),
        30 => format!(
            "select * from (values (1), (2), (40)) v(id) left join p x using (id) where {test} or x.id is null"
        ),
        31 => "with recursive r(i) as (select 1 union all select x.id from r join p x on x.id = r.i + 1) select count(*), max(i) from r".to_owned(),
        32 => format!(
            "with a as (select {text} as v, x.id from p x), b as (select * from a where v is not null) select b.id from b where upper(b.v) <> 'Q' order by b.id"
        ),
        33 => format!(
            "select array(select {text} from p x where {test} order by x.id), exists (select from p y where {more})"
        ),
        34 => format!(
            "select * from p x where x.id = any (array(select y.id from p y where {more})) and {test}"
        ),
        35 => format!("select case when {test} then {text} else {other} end from p x"),
        36 => format!("select count({text}), count(distinct {int}) from p x where {test}"),
        37 => format!(
            "(select x.id from p x where {test}) except (select y.id from p y where {more}) order by 1"
        ),
        38 => format!("select x.*, n.* from p x, n where n.id = x.id and {test}"),
        39 => format!(
            "select sum(q.v) from (select {int} as v, {text} as t from p x where {test} limit 100) q where q.v > 0"
        ),
        40 => format!("select lag({text}) over w, x.id from p x where {test} window w as (order by x.id)"),
        41 => format!("select (x).id, (x).email, x is null, x.* from p x where {test}"),
        43 => format!("select q.* from (select {text} as t, count(*) as z from p x where {test} group by 1) q where q.z > 0 and q.t <> 'w'"),
        44 => format!("select q.t from (select {int} as t, max({text}) as z from p x group by t) q where q.t > 2 order by 1"),
        45 => format!("select * from (select {int} + 1 as a, {int} as b, count(*) from p x group by {int} having {int} > 0) q where q.a > 1"),
        46 => format!("select * from (select x.note::int + 1 as a, x.note::int as b, sum(x.amt) + max(x.note::int) as c from p x group by x.note::int order by x.note::int) q where q.a > 1 or {}", fill(random.pick(&["q.b = 1", "q.c > 4"]), "q")),
        47 => format!("select * from (select {int} as a, x.cust, count(*) from p x group by rollup (1, x.cust)) q where q.a > 3"),
        48 => "select a from (select x.note::int as a from p x group by x.note::int having max(x.id) > x.note::int - 1) q where a > 2".to_owned(),
        42 => format!(
            "select grouping(x.cust), x.cust, count(*) from p x where {test} group by rollup (x.cust)"
        ),
        _ => format!("select x.id from p x where {test} order by {int}, x.id limit 5"),
    }
}

fn world() -> World {
    let setup = format!(
        "create schema real; create schema copy; {}{}{ROWS}",
        TABLES.replace("{s}", "real"),
        TABLES.replace("{s}", "copy")
    );
    let mut world = World::new(&setup);
    world.path.0 = vec!["pg_catalog".to_owned(), "real".to_owned()];
    // Dear, so that the planner runs the client's cheaper conditions first where it may.
    world.filter("real.p", "lower(trim(replace((id % 3)::text, ' ', ''))) <> '0'");
    world.filter("real.c", "tenant = 'a' and age between 0 and 1000");
    world.mask("real.p", "email", &Mask::Null);
    world.mask(
        "real.p",
        "d",
        &Mask::DateTrunc {
            unit: row_masking::DateUnit::Month,
        },
    );
    world.mask(
        "real.c",
        "age",
        &Mask::Constant {
            value: "1".to_owned(),
        },
    );
    world.mask(
        "real.c",
        "phone",
        &Mask::Partial {
            keep_first: 0,
            keep_last: 3,
        },
    );
    world
}

#[test]
fn governing_means_a_copy_with_masked_and_visible_rows_only() {
    let world = world();
    let seed = 0x9e37_79b9_7f4a_7c15;
    let mut random = Random(seed);
    let (mut clients, mut ours, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STATEMENTS {
        let sql = statement(&mut random);
        match world.try_govern(&sql) {
            Ok(governed) => {
                clients.push(sql);
                ours.push(governed.text);
            }
            Err(error) => refused.push(format!("{error}: {sql}")),
        }
    }
    let expected = outcomes(&world.db, "set search_path = copy;", &clients);
    let seen = outcomes(&world.db, "set search_path = real;", &ours);
    let mut wrong = Vec::new();
    for index in 0..clients.len() {
        if expected.get(&index) != seen.get(&index) {
            wrong.push(format!(
                "{}\n→ {}\nexpected {:?}\nseen     {:?}",
                clients[index],
                ours[index],
                expected.get(&index),
                seen.get(&index)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "seed {seed}: {} of {} differ\n{}",
        wrong.len(),
        clients.len(),
        wrong.iter().take(12).cloned().collect::<Vec<_>>().join("\n\n")
    );
    let failing = expected
        .values()
        .filter(|outcome| !outcome.starts_with("state 00000"))
        .count();
    assert!(
        failing * 4 < clients.len(),
        "{failing} of {} statements fail on the copy as well",
        clients.len()
    );
    assert!(
        refused.len() * 10 < STATEMENTS,
        "{} refused:\n{}",
        refused.len(),
        refused.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
}

/// Writes that set only columns that are not masked.
fn write(random: &mut Random) -> String {
    let (int, test) = (fill(random.pick(INTS), "x"), condition(random, "x"));
    let text = fill(
        random.pick(&[
            "{a}.note",
            "upper({a}.note)",
            "{a}.note || 'x'",
            "left({a}.note, 2)",
            "'new'",
        ]),
        "x",
    );
    match random.below(9) {
        0 => format!("update p x set amt = {int} where {test}"),
        1 => format!("update p as x set note = {text}, cust = cust + 1 where {test} returning *"),
        2 => format!("delete from p x where {test} returning x.id, x.email"),
        3 => format!("update p x set note = c.tenant from c where c.id = x.cust and {test}"),
        4 => format!("delete from p x using c where c.id = x.cust and {test} returning c.phone, x.*"),
        5 => format!("with q as (update p x set amt = 0 where {test} returning id) select count(*) from q"),
        6 => format!("insert into n select x.id, {text} from p x where {test}"),
        7 => format!("update n set word = {text} from p x where x.id = n.id and {test} returning n.*"),
        _ => format!(
            "merge into p x using c on c.id = x.cust and {test} when matched and x.id > 5 then delete when matched then update set note = c.name"
        ),
    }
}

#[test]
fn writing_means_the_same_on_the_copy_and_hidden_rows_stay() {
    let world = world();
    let visible = "id % 3 <> 0";
    let shown = |schema: &str, filter: &str, date: &str| {
        format!(
            "select id, cust, amt, note, {date}, tags from {schema}.p where {filter}; select * from {schema}.n; rollback"
        )
    };
    let seed = 0x1234_5678_9abc_def1;
    let mut random = Random(seed);
    let (mut clients, mut ours, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
    while clients.len() < 250 {
        let sql = write(&mut random);
        let governed = world
            .try_govern(&sql)
            .unwrap_or_else(|error| panic!("{sql}\n{error}"));
        assert!(governed.strip.is_empty() && governed.count_as.is_none(), "{sql}");
        clients.push(format!("begin; {sql}; {}", shown("copy", "true", "d")));
        let date = "date_trunc('month', d)::date";
        ours.push(format!(
            "begin; {}; {}",
            governed.text,
            shown("real", visible, date)
        ));
        hidden.push(format!(
            "begin; {}; select 'written'; select * from real.p where not ({visible}); rollback",
            governed.text
        ));
    }
    let expected = outcomes(&world.db, "set search_path = copy;", &clients);
    let seen = outcomes(&world.db, "set search_path = real;", &ours);
    for index in 0..clients.len() {
        assert_eq!(
            expected.get(&index),
            seen.get(&index),
            "seed {seed}\n{}\n→ {}",
            clients[index],
            ours[index]
        );
    }
    let raw = world.db.psql("select * from real.p where id % 3 = 0").unwrap();
    let mut raw: Vec<&str> = raw.lines().collect();
    raw.sort_unstable();
    let mut written = 0;
    for (index, outcome) in outcomes(&world.db, "set search_path = real;", &hidden) {
        // Some raise an error, on the copy as well.
        if !outcome.contains("written") {
            continue;
        }
        written += 1;
        for row in &raw {
            assert!(outcome.contains(row), "{}\nchanged {row}", hidden[index]);
        }
    }
    assert!(
        written * 2 > hidden.len(),
        "{written} of {} were written",
        hidden.len()
    );
}
