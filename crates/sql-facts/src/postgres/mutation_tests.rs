//! Texts that nobody would write: reading them answers, and never tells a literal.

use proptest::prelude::*;
use proptest::sample::Index;

use super::lexer::Lexer;
use super::tests::World;
use super::*;

const SEEDS: &[&str] = &[
    "SELECT t.id, u.note, count(*) FILTER (WHERE amt > 1) OVER w FROM t LEFT JOIN u ON u.t_id = t.id WHERE t.name LIKE 'zq%' WINDOW w AS (PARTITION BY t.id ORDER BY amt DESC ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "WITH RECURSIVE r(a, b) AS (SELECT id, name FROM t UNION ALL SELECT a + 1, b FROM r WHERE a < 10) SELECT * FROM r ORDER BY 1, b LIMIT 3 OFFSET $1",
    "INSERT INTO u AS x (id, note) SELECT id, email FROM t WHERE name = 'zq1' ON CONFLICT (id) DO UPDATE SET note = excluded.note || x.note RETURNING *, (x).id",
    "UPDATE t SET (name, email) = (SELECT note, 'zq2' FROM u LIMIT 1), amt = CASE id WHEN 1 THEN 2 ELSE amt END FROM u AS j WHERE j.id = t.id AND t.amt BETWEEN 1 AND 2",
    "DELETE FROM t USING u WHERE t.id = ANY (ARRAY[1, 2]) AND EXISTS (SELECT FROM u WHERE u.t_id = t.id) RETURNING t",
    "MERGE INTO t USING (SELECT * FROM u) s ON s.t_id = t.id WHEN MATCHED AND s.note = 'zq3' THEN UPDATE SET name = s.note WHEN NOT MATCHED THEN INSERT VALUES (s.id, DEFAULT)",
    "SELECT (t).email, t.*, row_to_json(t), email::varchar(3) COLLATE \"C\", coalesce(name, 'zq4'), nullif(id, 1) FROM public.t GROUP BY GROUPING SETS ((id), (name), ()) HAVING max(amt) > 1",
    "SELECT * FROM t NATURAL JOIN s.t z JOIN LATERAL (SELECT * FROM u WHERE u.t_id = z.id) q USING (id), generate_series(1, 3) WITH ORDINALITY g(n, o)",
    "COPY t (id, email) FROM STDIN WITH (FORMAT csv, DELIMITER 'z') WHERE id > 1",
    "CREATE TABLE x (a int PRIMARY KEY CHECK (a > 0), b text DEFAULT 'zq5' REFERENCES t (id), EXCLUDE USING gist (a WITH =))",
    "ALTER TABLE t ADD COLUMN z int, ALTER COLUMN name TYPE text USING email || 'zq6', DROP CONSTRAINT x",
    "EXPLAIN (ANALYZE, COSTS off) SELECT DISTINCT ON (name) * FROM t, u WHERE t.id IN (SELECT t_id FROM u) FOR UPDATE OF t",
    "CREATE FUNCTION f(a int DEFAULT 3) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT id FROM t WHERE name = 'zq7'; END",
    "SET search_path = a, \"B\", 'zq8'",
    "PREPARE p (int, text) AS SELECT * FROM (VALUES (1, 'zq9'), ($1, $2)) AS v(x, y) UNION SELECT id, name FROM t EXCEPT SELECT 1, E'zq\\n'",
    "SELECT xmlelement(name a, xmlattributes(id AS b), name), extract(year FROM now()), substring(name FROM 1 FOR 2), name AT TIME ZONE 'zq' FROM t TABLESAMPLE system (1) REPEATABLE (2)",
    "CREATE RULE r AS ON UPDATE TO t DO INSTEAD (INSERT INTO u VALUES (old.id, new.id, 'zq'); DELETE FROM u)",
    "GRANT SELECT (id), INSERT ON t, u TO bob WITH GRANT OPTION",
];

/// One change to a list of tokens.
#[derive(Debug, Clone)]
enum Change {
    Drop(Index),
    Double(Index),
    Swap(Index, Index),
    /// A token of another seed.
    Graft(Index, usize, Index),
    /// A byte, wherever it falls.
    Byte(Index, u8),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        any::<Index>().prop_map(Change::Drop),
        any::<Index>().prop_map(Change::Double),
        (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::Swap(a, b)),
        (any::<Index>(), 0..SEEDS.len(), any::<Index>())
            .prop_map(|(at, seed, from)| Change::Graft(at, seed, from)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
    ];
    prop::collection::vec(change, 0..5)
}

fn tokens(text: &str) -> Vec<String> {
    Lexer::new(text, 0)
        .filter_map(|token| text.get(token.span).map(str::to_owned))
        .collect()
}

fn mutated(seed: &str, changes: &[Change]) -> String {
    let mut parts = tokens(seed);
    for change in changes {
        if parts.is_empty() {
            break;
        }
        match change {
            Change::Drop(at) => {
                parts.remove(at.index(parts.len()));
            }
            Change::Double(at) => {
                let part = at.get(&parts).clone();
                parts.insert(at.index(parts.len()), part);
            }
            Change::Swap(a, b) => {
                let length = parts.len();
                parts.swap(a.index(length), b.index(length));
            }
            Change::Graft(at, seed, from) => {
                let other = SEEDS.get(*seed).map(|seed| tokens(seed)).unwrap_or_default();
                parts.insert(at.index(parts.len()), format!(" {} ", from.get(&other)));
            }
            Change::Byte(at, byte) => {
                let index = at.index(parts.len());
                if let Some(part) = parts.get_mut(index) {
                    part.insert(0, char::from(*byte));
                }
            }
        }
    }
    parts.concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_always_answers(seed in 0..SEEDS.len(), changes in changes()) {
        let text = mutated(SEEDS.get(seed).copied().unwrap_or_default(), &changes);
        let world = WORLD.with(std::rc::Rc::clone);
        if let Ok(parsed) = parse(&text) {
            for statement in &parsed.statements {
                prop_assert!(text.get(statement.span.clone()).is_some());
                if let Ok(facts) = read(statement, world.view()) {
                    prop_assert!(!facts.normalized.contains("'zq"), "{}", facts.normalized);
                    for used in &facts.column_uses {
                        prop_assert!(usize::try_from(used.location).is_ok_and(|at| text.is_char_boundary(at)));
                    }
                    for range in &facts.ranges {
                        prop_assert!(range.location < 0 || usize::try_from(range.location).is_ok_and(|at| text.is_char_boundary(at)));
                    }
                }
            }
        }
    }
}

thread_local! {
    static WORLD: std::rc::Rc<World> = std::rc::Rc::new(World::new());
}
