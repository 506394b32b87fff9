//! Governed texts as a faulty `govern` would have made them: each is caught.

use sql_facts::{Governed, Plan};

use super::world::World;
use crate::judge::{Counted, Judge};
use crate::recheck::recheck;
use crate::{DecisionContext, SendAs};

const SETUP: &str = "create table people (id int primary key, tenant text, mail text, code text);
    create table open (id int, mail text);";

const POLICY: &str = "defaultAction: Allow
masks:
- {name: mail, columns: [public.people.mail], mask: {type: Constant, value: x}}
rowFilters:
- {name: own, tables: [public.people], predicate: \"tenant = 'a'\"}";

fn plan(context: DecisionContext<'_>, sql: &str) -> (sql_facts::StatementFacts, Plan) {
    let parsed = sql_facts::parse(sql).unwrap();
    let facts = sql_facts::read(&parsed.statements[0], context.view).unwrap();
    let judge = Judge {
        policy: context.policy,
        subject: context.subject,
        view: context.view,
        counted: Counted::Enforcing,
    };
    let plan = judge.judge(&facts).unwrap().plan;
    (facts, plan)
}

fn governed(world: &World, sql: &str) -> Governed {
    match world.decide(sql).unwrap().send() {
        SendAs::Governed(governed) => governed.clone(),
        SendAs::AsWritten => panic!("{sql} is not governed"),
    }
}

/// Changes the governed text of a statement, and tells what the check says of it.
fn tampered(world: &World, sql: &str, from: &str, to: &str) -> Result<(), String> {
    let mut governed = governed(world, sql);
    assert!(
        governed.text.contains(from),
        "{from:?} is not in {}",
        governed.text
    );
    governed.text = governed.text.replace(from, to);
    let (facts, plan) = plan(world.context(), sql);
    recheck(&governed, &facts, &plan, world.context().view)
}

const MASK: &str = "CASE WHEN w.mail IS NOT NULL THEN 'x'::pg_catalog.text END::pg_catalog.text AS mail";
const FILTER: &str = "w.tenant OPERATOR(pg_catalog.=) 'a'";

#[test]
fn what_a_faulty_govern_would_send_is_caught() {
    let world = World::new(SETUP, &[POLICY]);
    assert_eq!(world.unresolved, []);
    let select = "select id, mail from people";
    assert_eq!(tampered(&world, select, "people w", "people w"), Ok(()));
    for (sql, from, to, found) in [
        (select, MASK, "w.mail", "outside of its mask"),
        (
            select,
            MASK,
            "pg_catalog.lower(w.mail) AS mail",
            "outside of its mask",
        ),
        (
            select,
            "IS NOT NULL THEN 'x'::pg_catalog.text",
            "IS NOT NULL THEN w.mail",
            "outside of its mask",
        ),
        (
            select,
            "FROM public.people w WHERE",
            "FROM public.people w WHERE w.mail IS NULL AND",
            "outside of its mask",
        ),
        (
            select,
            "FROM public.people w",
            "FROM public.people w ORDER BY w.mail --",
            "",
        ),
        (
            select,
            FILTER,
            "w.tenant OPERATOR(pg_catalog.=) 'b'",
            "misses the row filter",
        ),
        (select, FILTER, "true OR w.id > 0", "misses the row filter"),
        (select, "'a'", "'a' OR true", "misses the row filter"),
        (select, "FROM (SELECT", "FROM public.people p2, (SELECT", ""),
        (
            select,
            "SELECT id, mail FROM",
            "SELECT id, mail, (SELECT p.mail FROM public.people p LIMIT 1) FROM",
            "outside of its mask",
        ),
        (
            select,
            "SELECT id, mail FROM",
            "SELECT id, mail, (SELECT p FROM public.people p LIMIT 1) FROM",
            "",
        ),
        (
            select,
            "SELECT id, mail FROM",
            "SELECT id, mail, (SELECT max(o.mail) FROM public.open o) FROM",
            "the client's does not",
        ),
        (
            select,
            "SELECT id, mail FROM",
            "DELETE FROM public.people; SELECT id, mail FROM",
            "not one statement",
        ),
        (
            select,
            "SELECT id, mail FROM",
            "WITH d AS (DELETE FROM public.people RETURNING 1) SELECT id, mail FROM",
            "",
        ),
        (
            select,
            "SELECT id, mail FROM",
            "SELECT FROM FROM",
            "does not parse",
        ),
        (
            "update people set mail = 'y' where id = 1",
            "THEN people.mail ELSE",
            "THEN people.mail || people.code ELSE",
            "outside of its mask",
        ),
        (
            "update people set code = 'y' where id = 1 returning mail",
            "RETURNING CASE WHEN people.mail IS NOT NULL THEN 'x'::pg_catalog.text END::pg_catalog.text",
            "RETURNING people.mail",
            "outside of its mask",
        ),
        (
            "update people set code = 'y' where id = 1",
            "people.tenant OPERATOR(pg_catalog.=) 'a'",
            "true",
            "misses the row filter",
        ),
        ("copy people to stdout", MASK, "w.mail", "outside of its mask"),
    ] {
        let problem =
            tampered(&world, sql, from, to).expect_err(&format!("not caught: {sql}: {from} → {to}"));
        assert!(problem.contains(found), "{from} → {to}: {problem}");
    }
}

#[test]
fn raw_columns_for_the_wire_go_only_to_their_cells() {
    let spec = "defaultAction: Allow\nmasks: [{name: h, columns: [public.people.mail], mask: {type: Hash, keySecretRef: {name: k, key: k}}}]";
    let world = World::with_secret(SETUP, &[spec], "k", "k", "0123456789abcdef0123");
    let sql = "select id, mail from people";
    assert_eq!(tampered(&world, sql, "people w", "people w"), Ok(()));
    for (from, to) in [
        ("SELECT id, mail FROM", "SELECT mail, id FROM"),
        ("SELECT id, mail FROM", "SELECT id, mail, mail FROM"),
        ("SELECT id, mail FROM", "SELECT id, pg_catalog.lower(mail) FROM"),
        ("SELECT id, mail FROM", "SELECT id, mail || '' FROM"),
        ("people w", "people w WHERE w.mail > ''"),
        ("people w) people", "people w) people ORDER BY mail"),
    ] {
        assert!(
            tampered(&world, sql, from, to).is_err(),
            "not caught: {from} → {to}"
        );
    }
    let mut unmasked = governed(&world, sql);
    unmasked.wire_masks.clear();
    let (facts, plan) = plan(world.context(), sql);
    assert!(recheck(&unmasked, &facts, &plan, world.context().view).is_err());
}
