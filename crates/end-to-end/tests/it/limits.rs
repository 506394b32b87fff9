//! Guardrails that count: rows changed, rows delivered, seconds.

use std::time::{Duration, Instant};

use crate::harness::client::{bind, execute, parse, sync};
use crate::harness::sidecar::shop_policy;
use crate::harness::{Database, Sidecar};

#[test]
fn rows_changed_are_counted_over_the_transaction_before_it_commits() {
    let database = Database::new();
    let policy = shop_policy(&database, &[], &["maxAffectedRows: 2"]);
    let sidecar = Sidecar::start_with(&database, &policy);
    let mut session = sidecar.connect();
    session.must("UPDATE scratch SET body = 'few' WHERE id < 3");
    let many = "UPDATE scratch SET body = 'many' WHERE id < 4";
    let stored = || {
        database
            .direct()
            .number("SELECT count(*) FROM scratch WHERE body = 'many'")
    };
    for attempt in [
        many.to_owned(),
        format!("{many}; SELECT 1"),
        format!("WITH u AS ({many} RETURNING id) SELECT count(*) FROM u"),
    ] {
        let answer = session.query(&attempt);
        assert!(!answer.errors.is_empty(), "{attempt}: {answer:?}");
        assert_eq!(stored(), 0, "{attempt}");
    }
    assert!(!session.extended(many, &[], 0).errors.is_empty());
    assert_eq!(stored(), 0);
    // In portions.
    session.query("ROLLBACK");
    session.must("BEGIN");
    session.must("UPDATE scratch SET body = 'many' WHERE id = 1");
    session.must("UPDATE scratch SET body = 'many' WHERE id = 2");
    session.query("UPDATE scratch SET body = 'many' WHERE id = 3");
    session.query("COMMIT");
    assert_eq!(stored(), 0);
    // A cascade counts.
    let mut session = sidecar.connect();
    session.query("DELETE FROM orders WHERE id = 1");
    assert_eq!(
        database
            .direct()
            .number("SELECT count(*) FROM lines WHERE order_id = 1"),
        2
    );
}

#[test]
fn rows_delivered_are_counted() {
    let database = Database::new();
    let policy = shop_policy(&database, &[], &["maxReturnedRows: 2"]);
    let sidecar = Sidecar::start_with(&database, &policy);
    let mut session = sidecar.connect();
    assert_eq!(session.must("SELECT id FROM scratch LIMIT 2").rows.len(), 2);
    // A short result is over before it can be stopped. The session goes on, an open transaction is aborted.
    let answer = session.query("SELECT id FROM scratch");
    assert!(answer.rows.len() <= 2 && answer.is_refused(), "{answer:?}");
    let answer = session.extended("SELECT id FROM scratch", &[], 1);
    assert!(answer.rows.len() <= 2 && answer.is_refused(), "{answer:?}");
    assert_eq!(session.must("SELECT 1").rows.len(), 1);
    for extended in [false, true] {
        session.must("BEGIN");
        let answer = match extended {
            false => session.query("SELECT id FROM scratch"),
            true => session.extended("SELECT id FROM scratch", &[], 1),
        };
        assert!(answer.rows.len() <= 2 && answer.is_refused(), "{answer:?}");
        assert!(
            !session.query("SELECT 1").errors.is_empty(),
            "the transaction goes on, extended: {extended}"
        );
        session.must("ROLLBACK");
    }
    let answer = sidecar.connect().extended("SELECT id FROM scratch", &[], 1);
    assert!(answer.rows.len() <= 2 && answer.is_refused(), "{answer:?}");
    let answer = sidecar.connect().query("COPY scratch (id) TO STDOUT");
    assert!(
        answer.copied.split(|byte| *byte == b'\n').count() <= 3 && !answer.errors.is_empty(),
        "{answer:?}"
    );
    // In portions of one portal.
    let mut session = sidecar.connect();
    session.must("BEGIN");
    session.send(
        &[
            parse("", "SELECT id FROM scratch"),
            bind("c", "", &[], &[]),
            execute("c", 2),
            execute("c", 2),
            sync(),
        ]
        .concat(),
    );
    let answer = session.until_ready();
    assert!(answer.rows.len() <= 2 && answer.is_refused(), "{answer:?}");
    // One that is still under way is stopped, and the session goes on.
    let mut session = sidecar.connect();
    let answer = session.query("SELECT n, repeat('x', 100) FROM generate_series(1, 5000000) n");
    assert!(answer.rows.len() <= 2 && answer.is_refused(), "{answer:?}");
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled() {
    let database = Database::new();
    let policy = shop_policy(
        &database,
        &[],
        &["statementTimeoutSeconds: 1", "functions: {allow: [pg_sleep]}"],
    );
    let sidecar = Sidecar::start_with(&database, &policy);
    let mut session = sidecar.connect();
    let start = Instant::now();
    let answer = session.query("SELECT pg_sleep(20)");
    assert!(!answer.errors.is_empty(), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let start = Instant::now();
    let answer = session.extended("SELECT pg_sleep(20)", &[], 0);
    assert!(answer.is_refused(), "{answer:?}");
    assert_eq!(session.extended("SELECT 1", &[], 0).lines(), ["1"]);
    // The client cannot lift it.
    session.query("SET statement_timeout = 0");
    assert!(!session.extended("SELECT pg_sleep(20)", &[], 0).errors.is_empty());
    assert!(start.elapsed() < Duration::from_secs(15));
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}
