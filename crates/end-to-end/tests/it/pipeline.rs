//! Refusals inside transactions and pipelines: what an error of the server would do, and nothing else.

use crate::harness::client::{
    bind, copy_data, copy_done, describe_portal, execute, flush, function_call, parse, query, sync,
};
use crate::harness::{Answer, Client, Database, Sidecar};

const REFUSED: &str = "DELETE FROM scratch";

fn insert(id: u32) -> String {
    format!("INSERT INTO scratch VALUES ({id}, 'attack')")
}

fn extended(sql: &str) -> Vec<u8> {
    [
        parse("", sql),
        bind("", "", &[], &[]),
        describe_portal(""),
        execute("", 0),
    ]
    .concat()
}

fn attacks_stored(database: &Database) -> i64 {
    database
        .direct()
        .number("SELECT count(*) FROM scratch WHERE body = 'attack'")
}

#[test]
fn nothing_before_a_refusal_in_its_transaction_is_committed() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("BEGIN");
    session.must("UPDATE scratch SET body = 'attack' WHERE id = 1");
    session.query(REFUSED).refused();
    assert_eq!(session.status, b'E');
    // As after any error: only ROLLBACK helps, and COMMIT is one.
    assert_eq!(
        session
            .query("SELECT 1")
            .error()
            .map(|error| error.sqlstate().to_owned())
            .as_deref(),
        Some("25P02")
    );
    assert_eq!(session.must("COMMIT").tags, ["ROLLBACK"]);
    assert_eq!(attacks_stored(&database), 0);
    // Extended.
    session.must("BEGIN");
    session.extended("UPDATE scratch SET body = 'attack' WHERE id = 1", &[], 0);
    session.extended(REFUSED, &[], 0).refused();
    assert_eq!(session.status, b'E');
    assert_eq!(session.extended("COMMIT", &[], 0).tags, ["ROLLBACK"]);
    assert_eq!(attacks_stored(&database), 0);
    // All in one Query.
    session
        .query(&format!(
            "BEGIN; UPDATE scratch SET body = 'attack' WHERE id = 1; {REFUSED}; COMMIT"
        ))
        .refused();
    session.query("ROLLBACK");
    assert_eq!(attacks_stored(&database), 0);
    session.query(&format!("{}; {REFUSED}", insert(50))).refused();
    assert_eq!(attacks_stored(&database), 0);
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn rollback_to_a_savepoint_brings_the_transaction_back() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("BEGIN");
    session.must(&insert(50));
    session.must("SAVEPOINT s");
    session.query(REFUSED).refused();
    assert_eq!(session.status, b'E');
    session.must("ROLLBACK TO s");
    assert_eq!(session.status, b'T');
    session.must(&insert(51));
    assert_eq!(session.must("COMMIT").tags, ["COMMIT"]);
    assert_eq!(attacks_stored(&database), 2);
}

#[test]
fn a_pipeline_with_a_refusal_commits_nothing_before_it_and_skips_to_sync() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    for refused in [
        REFUSED,
        "SELECT * FROM payroll",
        "SELECT wipe()",
        "DELETE FROM",
        "no sql",
    ] {
        let mut session = sidecar.connect();
        session.send(
            &[
                extended(&insert(50)),
                extended(refused),
                extended(&insert(51)),
                sync(),
            ]
            .concat(),
        );
        let answer = session.until_ready();
        assert_eq!(answer.tags, ["INSERT 0 1"], "{answer:?}");
        assert_eq!(answer.errors.len(), 1, "{answer:?}");
        assert!(answer.kinds.ends_with("EZ"), "{}", answer.kinds);
        assert_eq!(session.status, b'I');
        assert_eq!(attacks_stored(&database), 0, "{refused}");
        // The next pipeline is not touched.
        assert_eq!(session.extended("SELECT 1", &[], 0).lines(), ["1"]);
    }
}

#[test]
fn every_pipeline_up_to_a_sync_stands_for_itself() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.send(
        &[
            extended(&insert(50)),
            sync(),
            extended(REFUSED),
            sync(),
            extended(&insert(51)),
            sync(),
            query("SELECT 7"),
        ]
        .concat(),
    );
    assert_eq!(session.until_ready().tags, ["INSERT 0 1"]);
    session.until_ready().refused();
    assert_eq!(session.until_ready().tags, ["INSERT 0 1"]);
    assert_eq!(session.until_ready().lines(), ["7"]);
    assert_eq!(attacks_stored(&database), 2);
}

#[test]
fn a_refused_parse_keeps_the_statement_of_that_name() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.send(&[parse("p", "SELECT 7"), sync(), parse("p", REFUSED), sync()].concat());
    assert!(session.until_ready().errors.is_empty());
    session.until_ready();
    session.send(&[bind("", "p", &[], &[]), execute("", 0), sync()].concat());
    assert_eq!(session.until_ready().lines(), ["7"]);
    // A refused statement cannot be bound.
    session.send(
        &[
            parse("r", REFUSED),
            sync(),
            bind("", "r", &[], &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    session.until_ready().refused();
    let answer = session.until_ready();
    assert_eq!(
        answer.error().map(|error| error.sqlstate().to_owned()).as_deref(),
        Some("26000"),
        "{answer:?}"
    );
}

#[test]
fn a_flush_is_answered_without_a_sync() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.send(&[extended("SELECT email FROM customers WHERE id = 1"), flush()].concat());
    let kinds: Vec<u8> = std::iter::from_fn(|| session.next())
        .map(|message| message.kind)
        .take(5)
        .collect();
    assert_eq!(kinds, b"12TDC");
    session.send(&[extended(REFUSED), flush()].concat());
    assert_eq!(session.next().map(|message| message.kind), Some(b'E'));
    session.send(&sync());
    session.until_ready();
    session.assert_clean();
}

#[test]
fn a_function_call_is_judged_like_a_call() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut direct = database.direct();
    let wipe = direct.number("SELECT 'public.wipe()'::regprocedure::oid::int8") as u32;
    let mut session = sidecar.connect();
    let mut call = |oid: u32, arguments: &[&str]| -> Answer {
        session.send(&function_call(oid, arguments));
        session.until_ready()
    };
    // query_to_xml, lo_get and lo_creat, pg_read_file, current_setting in a refused disguise.
    for (oid, arguments) in [
        (wipe, &[][..]),
        (2923, &["select employee from payroll", "t", "t", ""]),
        (3458, &["1"]),
        (957, &["131072"]),
        (2624, &["/etc/passwd", "0", "10"]),
    ] {
        let answer = call(oid, arguments);
        let error = answer.error().unwrap_or_else(|| panic!("{oid}: {answer:?}"));
        assert!(error.is_refusal(), "{oid}: {error:?}");
    }
    // length(text) is open.
    assert_eq!(call(1317, &["abc"]).function_result.as_deref(), Some(&b"3"[..]));
    assert_eq!(direct.number("SELECT count(*) FROM scratch"), 3);
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn copy_from_is_judged_and_ends_as_the_client_says() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.query("COPY payroll FROM STDIN").refused();
    let answer = session.query("COPY scratch (id, body) FROM STDIN");
    assert!(answer.kinds.ends_with('G'), "{answer:?}");
    session.send(
        &[
            copy_data(b"50\tattack\n"),
            copy_data(b"51\tattack\n"),
            copy_done(),
        ]
        .concat(),
    );
    assert_eq!(session.until_ready().tags, ["COPY 2"]);
    assert_eq!(attacks_stored(&database), 2);
    // What the client gives up is not loaded.
    session.query("COPY scratch (id, body) FROM STDIN");
    session.send(
        &[
            copy_data(b"52\tattack\n"),
            crate::harness::client::copy_fail("no more"),
        ]
        .concat(),
    );
    assert_eq!(
        session
            .until_ready()
            .error()
            .map(|error| error.sqlstate().to_owned())
            .as_deref(),
        Some("57014")
    );
    assert_eq!(attacks_stored(&database), 2);
    // COPY data is no SQL: a Query inside it must not slip through.
    session.query("COPY scratch (id, body) FROM STDIN");
    session.send(&[copy_data(b"53\tattack\n"), query(REFUSED)].concat());
    session.until_ready();
    assert_eq!(
        database
            .direct()
            .number("SELECT count(*) FROM scratch WHERE id <= 3"),
        3
    );
    // Rows outside the filter do not land.
    let mut session = sidecar.connect();
    let answer = session.query("COPY orders (id, tenant) FROM STDIN");
    if answer.kinds.ends_with('G') {
        session.send(&[copy_data(b"60\ta\n61\tb\n"), copy_done()].concat());
        assert!(!session.until_ready().errors.is_empty());
    }
    assert_eq!(
        database
            .direct()
            .number("SELECT count(*) FROM orders WHERE id IN (60, 61)"),
        0
    );
}

#[test]
fn a_copy_in_a_query_with_more_statements_hides_nothing() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session
        .query("COPY scratch FROM STDIN; DELETE FROM scratch")
        .refused();
    session
        .query("COPY scratch FROM STDIN; SELECT * FROM payroll")
        .refused();
    session
        .query("COPY scratch TO STDOUT; SELECT * FROM payroll")
        .refused();
    assert_eq!(database.direct().number("SELECT count(*) FROM scratch"), 3);
}

#[test]
fn replication_is_refused_at_the_door() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    for value in ["true", "database", "1", "on"] {
        let parameters = [
            ("user", "app"),
            ("database", database.name.as_str()),
            ("replication", value),
        ];
        let answer = Client::try_connect(sidecar.port, &parameters)
            .err()
            .expect("refused");
        assert!(answer.ended);
        assert!(
            answer.error().is_some_and(|error| error.is_refusal()),
            "{answer:?}"
        );
    }
    let mut session = sidecar.connect();
    for sql in ["IDENTIFY_SYSTEM", "START_REPLICATION 0/0", "BASE_BACKUP"] {
        assert!(!session.query(sql).errors.is_empty());
    }
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn errors_and_notices_repeat_no_value() {
    let database = Database::new();
    database.direct().must(
        "CREATE TABLE keyed (ssn text UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO keyed VALUES ('canary-key'); \
         GRANT ALL ON keyed TO shop_app",
    );
    let rules = ["{name: keyed, actions: [Select, Insert, Update], tables: [public.keyed]}"];
    let sidecar = Sidecar::start_with(
        &database,
        &crate::harness::sidecar::shop_policy(&database, &rules, &[]),
    );
    let mut session = sidecar.connect();
    // DETAIL of a check, a unique key, a deferred key at COMMIT; the trigger's notice prints the old row.
    for sql in [
        "UPDATE customers SET balance = -1 WHERE id = 1",
        "UPDATE customers SET id = 2 WHERE id = 1",
        "UPDATE customers SET name = NULL WHERE id = 1",
        "UPDATE customers SET name = 'Ann' WHERE id = 1",
        "INSERT INTO customers (id, name, email, balance) VALUES (70, 'x', 'y', -5)",
        "DELETE FROM customers WHERE id = 1",
    ] {
        let answer = session.query(sql);
        for report in answer.errors.iter().chain(&answer.notices) {
            assert_eq!(report.field('D'), "", "{sql}: {report:?}");
            assert_eq!(report.field('W'), "", "{sql}: {report:?}");
            assert!(!report.message().contains("old row"), "{sql}: {report:?}");
        }
    }
    let answer = session.query("BEGIN; UPDATE keyed SET ssn = ssn WHERE true AND ssn IS NOT NULL; COMMIT");
    assert!(answer.notices.is_empty());
    // The state and the name of the constraint stay: drivers and applications use them.
    let answer = session.query("UPDATE customers SET balance = -1 WHERE id = 1");
    let error = answer.error().expect("an error");
    assert_eq!(
        (error.sqlstate(), error.field('n')),
        ("23514", "customers_balance_check")
    );
    session.assert_clean();
}

#[test]
fn copy_through_the_extended_protocol_keeps_step_though_the_server_ignores_a_sync() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    // As libpq does: the Sync behind Execute arrives while the server takes COPY data, and is ignored.
    for id in [50, 60] {
        session.send(
            &[
                parse("", "COPY scratch (id, body) FROM STDIN"),
                bind("", "", &[], &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        );
        assert!(session.until_ready().kinds.ends_with('G'));
        session.send(
            &[
                copy_data(format!("{id}\tattack\n").as_bytes()),
                sync(),
                copy_done(),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(session.until_ready().tags, ["COPY 1"]);
        assert_eq!(
            session.must("SELECT email FROM customers WHERE id = 1").lines(),
            ["a***@example.com"]
        );
        assert!(session.query(REFUSED).is_refused());
    }
    assert_eq!(attacks_stored(&database), 2);
    // A COPY that fails at once while its data are on the way.
    for copy in [
        "COPY scratch (nowhere) FROM STDIN",
        "COPY payroll FROM STDIN",
        "COPY scratch FROM STDIN (FORMAT nonsense)",
    ] {
        let data = [
            copy_data(b"70\tattack\n"),
            copy_data(b"DELETE FROM scratch"),
            copy_done(),
        ]
        .concat();
        session.send(&[query(copy), data.clone(), query(REFUSED), query("SELECT 7")].concat());
        assert!(!session.until_ready().errors.is_empty(), "{copy}");
        assert!(session.until_ready().is_refused(), "{copy}");
        assert_eq!(session.until_ready().lines(), ["7"], "{copy}");
        session.send(&[extended(copy), sync(), data, sync()].concat());
        assert!(!session.until_ready().errors.is_empty(), "{copy}");
        session.until_ready();
        assert_eq!(session.must("SELECT 8").lines(), ["8"]);
    }
    assert_eq!(attacks_stored(&database), 2);
}
