//! Meaning that moves: search_path, temporary tables, roles, renamed columns, prepared statements.

use crate::harness::client::{bind, describe_portal, execute, parse, sync};
use crate::harness::sidecar::shop_policy;
use crate::harness::{Client, Database, Sidecar};

/// Bind and Execute of a statement prepared before, with results in one format.
fn run_prepared(session: &mut Client, name: &str, format: i16) -> crate::harness::Answer {
    session.send(&[bind("", name, &[], &[format]), execute("", 0), sync()].concat());
    session.until_ready()
}

#[test]
fn the_second_execution_of_a_prepared_statement_is_masked_though_nothing_is_described() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.send(
        &[
            parse(
                "p",
                "SELECT id, email, card, salary FROM customers WHERE id < 3 ORDER BY id",
            ),
            sync(),
        ]
        .concat(),
    );
    assert!(session.until_ready().errors.is_empty());
    let first = run_prepared(&mut session, "p", 0);
    assert_eq!(first.rows.len(), 2, "{first:?}");
    assert_eq!(first.text(0, 1), Some("a***@example.com"));
    assert_eq!(first.text(0, 2).map(str::len), Some(64));
    assert_eq!(first.text(0, 3), Some("0"));
    for _ in 0..3 {
        assert_eq!(run_prepared(&mut session, "p", 0).rows, first.rows);
        let binary = run_prepared(&mut session, "p", 1);
        assert_eq!(binary.rows[0][1..3], first.rows[0][1..3]);
        assert_eq!(binary.rows[0][3].as_deref(), Some(&[0; 8][..]));
        // Another statement between them changes nothing.
        session.must("SELECT 1, 2");
    }
}

#[test]
fn an_int8_mask_is_an_int8_in_binary_or_null() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    let answer = session.extended("SELECT salary, born, id FROM customers ORDER BY id", &[], 1);
    assert_eq!(
        answer
            .columns
            .iter()
            .map(|column| column.type_oid)
            .collect::<Vec<_>>(),
        [20, 1082, 23]
    );
    assert_eq!(answer.rows.len(), 3, "{answer:?}");
    assert_eq!(answer.rows[0][0].as_deref(), Some(&0_i64.to_be_bytes()[..]));
    assert_eq!(answer.rows[2][0], None);
    // 1987-01-01 in days since 2000.
    assert_eq!(answer.rows[0][1].as_deref(), Some(&(-4748_i32).to_be_bytes()[..]));
}

#[test]
fn descriptions_of_governed_tables_are_those_of_the_table() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let sql = "SELECT id, name, email, phone, ssn, salary, born, balance FROM customers";
    let wanted = database
        .direct()
        .extended(&format!("{sql} WHERE false"), &[], 0)
        .columns;
    assert_eq!(sidecar.connect().extended(sql, &[], 0).columns, wanted);
    assert_eq!(sidecar.connect().query(sql).columns, wanted);
}

#[test]
fn a_statement_prepared_under_another_search_path_is_decided_again() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("SET search_path = a");
    session.must("PREPARE p AS SELECT * FROM t");
    assert_eq!(session.query("EXECUTE p").lines(), ["1|plain"]);
    session.must("SET search_path = b");
    let answer = session.query("EXECUTE p");
    assert!(answer.is_refused() || answer.lines() == ["1|~"], "{answer:?}");
    session.must("SET search_path = c");
    session.query("EXECUTE p").refused();
    // The same through the protocol.
    let mut session = sidecar.connect();
    session.must("SET search_path = a");
    session.send(
        &[
            parse("q", "SELECT * FROM t"),
            bind("", "q", &[], &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(session.until_ready().lines(), ["1|plain"]);
    session.must("SET search_path = b");
    let answer = run_prepared(&mut session, "q", 0);
    assert!(answer.is_refused() || answer.lines() == ["1|~"], "{answer:?}");
    session.must("SET search_path = c");
    run_prepared(&mut session, "q", 0).refused();
    session.must("SET search_path = a");
    assert_eq!(run_prepared(&mut session, "q", 0).lines(), ["1|plain"]);
}

#[test]
fn a_search_path_set_in_the_same_query_counts() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    for path in [
        "SET search_path = b",
        "SET search_path TO b, a",
        "SELECT set_config('search_path', 'b', false)",
        "SET LOCAL search_path = b",
    ] {
        let mut session = sidecar.connect();
        session.must("SET search_path = a");
        let answer = session.query(&format!("{path}; SELECT * FROM t"));
        let lines = answer.lines();
        assert!(
            answer.is_refused() || lines.last().is_some_and(|line| line == "1|~"),
            "{path}: {answer:?}"
        );
    }
    for path in [
        "SET search_path = c",
        "SELECT set_config('search_path', 'c', false)",
        "SELECT set_config('search_path', chr(99), false)",
    ] {
        let mut session = sidecar.connect();
        session.must("SET search_path = a");
        session.query(&format!("{path}; SELECT * FROM t")).refused();
    }
}

#[test]
fn a_search_path_that_comes_back_is_followed() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("SET search_path = c");
    session.must("BEGIN; SET search_path = a");
    assert_eq!(session.query("SELECT * FROM t").lines(), ["1|plain"]);
    session.must("ROLLBACK");
    session.query("SELECT * FROM t").refused();
    session.must("BEGIN; SET LOCAL search_path = a; COMMIT");
    session.query("SELECT * FROM t").refused();
    session.must("BEGIN; SAVEPOINT s; SET search_path = a; ROLLBACK TO s");
    session.query("SELECT * FROM t").refused();
    session.must("ROLLBACK");
    session.must("SET search_path = a");
    assert_eq!(session.query("SELECT * FROM t").lines(), ["1|plain"]);
    session.must("RESET search_path");
    let answer = session.query("SELECT * FROM t");
    assert!(!answer.errors.is_empty(), "{answer:?}");
    session.must("SET search_path = a");
    session.must("DISCARD ALL");
    let answer = session.query("SELECT * FROM t");
    assert!(!answer.errors.is_empty(), "{answer:?}");
    // A start-up option sets what RESET goes back to.
    let options = [
        ("user", "app"),
        ("database", database.name.as_str()),
        ("options", "-c search_path=c"),
    ];
    let mut session = Client::connect(sidecar.port, &options);
    session.query("SELECT * FROM t").refused();
    session.must("SET search_path = a; RESET ALL");
    session.query("SELECT * FROM t").refused();
}

#[test]
fn a_temporary_table_that_shadows_and_unshadows_is_followed() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.send(
        &[
            parse("p", "SELECT email FROM customers ORDER BY id LIMIT 1"),
            sync(),
        ]
        .concat(),
    );
    assert!(session.until_ready().errors.is_empty());
    assert_eq!(run_prepared(&mut session, "p", 0).lines(), ["a***@example.com"]);
    session
        .must("CREATE TEMP TABLE customers (id int, email text); INSERT INTO customers VALUES (1, 'mine')");
    assert_eq!(session.query("SELECT email FROM customers").lines(), ["mine"]);
    let shadowed = run_prepared(&mut session, "p", 0);
    assert!(
        shadowed.lines() == ["mine"]
            || shadowed.lines() == ["a***@example.com"]
            || !shadowed.errors.is_empty()
    );
    session.must("DROP TABLE customers");
    assert_eq!(run_prepared(&mut session, "p", 0).lines(), ["a***@example.com"]);
    assert_eq!(
        session
            .query("SELECT email FROM customers ORDER BY id LIMIT 1")
            .lines(),
        ["a***@example.com"]
    );
    // Prepared on the temporary table, run on the real one.
    session.must("CREATE TEMP TABLE payroll (employee text)");
    session.must("INSERT INTO payroll VALUES ('mine')");
    session.send(
        &[
            parse("q", "SELECT employee FROM payroll"),
            bind("", "q", &[], &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(session.until_ready().lines(), ["mine"]);
    session.must("PREPARE r AS SELECT employee FROM payroll");
    session.must("DROP TABLE payroll");
    run_prepared(&mut session, "q", 0).refused();
    session.query("EXECUTE r").refused();
    // A temporary table falls with its transaction.
    session.must("BEGIN; CREATE TEMP TABLE payroll (employee text)");
    session.must("SELECT employee FROM payroll");
    session.must("ROLLBACK");
    session.query("SELECT employee FROM payroll").refused();
    session.must("BEGIN; CREATE TEMP TABLE payroll (employee text) ON COMMIT DROP; COMMIT");
    session.query("SELECT employee FROM payroll").refused();
}

#[test]
fn a_temporary_type_or_user_operator_does_not_mislead_masks_and_filters() {
    let database = Database::new();
    database.direct().must(
        "CREATE SCHEMA y; CREATE FUNCTION y.yes(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
         CREATE OPERATOR y.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = y.yes); \
         ALTER TABLE public.orders ALTER tenant TYPE varchar; GRANT USAGE ON SCHEMA y TO shop_app",
    );
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("SET search_path = y, public, pg_catalog");
    session.must("CREATE TEMP TABLE text (x int)");
    session.must("CREATE TEMP TABLE date (x int)");
    let answer = session.extended(
        "SELECT ssn, email, born FROM customers ORDER BY id LIMIT 1",
        &[],
        0,
    );
    assert_eq!(answer.lines(), ["~|a***@example.com|1987-01-01"]);
    assert_eq!(answer.columns[0].type_oid, 25);
    assert_eq!(session.query("SELECT count(*) FROM orders").lines(), ["3"]);
}

#[test]
fn a_governed_column_renamed_behind_our_back_stays_closed() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.send(&[parse("p", "SELECT * FROM customers ORDER BY id"), sync()].concat());
    session.until_ready();
    run_prepared(&mut session, "p", 0);
    database
        .direct()
        .must("ALTER TABLE customers RENAME COLUMN email TO contact");
    for _ in 0..2 {
        // An error of the server, a refusal or the mask: never the value (until_ready looks).
        session.query("SELECT contact FROM customers");
        session.query("SELECT * FROM customers");
        run_prepared(&mut session, "p", 0);
        let mut other = sidecar.connect();
        other.query("SELECT contact FROM customers");
        other.query("SELECT c.* FROM customers c");
        other.query("COPY customers TO STDOUT");
    }
    // Swapping names behind our back.
    let mut direct = database.direct();
    direct.must("ALTER TABLE customers RENAME COLUMN name TO spare; ALTER TABLE customers RENAME COLUMN contact TO name");
    session.query("SELECT name FROM customers");
    sidecar.connect().query("SELECT name FROM customers");
    direct.must("ALTER TABLE customers RENAME TO clients; ALTER TABLE scratch RENAME TO customers");
    sidecar.connect().query("SELECT * FROM clients");
    session.query("SELECT * FROM clients");
}

#[test]
fn a_column_added_behind_our_back_does_not_open_the_table() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("SELECT * FROM b.t");
    database
        .direct()
        .must("ALTER TABLE b.t ADD w int; ALTER TABLE b.t ALTER v TYPE varchar");
    session.query("SELECT * FROM b.t");
    session.extended("SELECT * FROM b.t", &[], 1);
    session.query("SELECT t FROM b.t");
}

#[test]
fn a_migration_creates_and_uses_a_table_in_one_transaction() {
    let database = Database::new();
    let rules = [
        "{name: ddl, actions: [DDL], tables: [\"public.*\"]}",
        "{name: new, actions: [Select, Insert, Update, Delete], tables: [public.fresh]}",
    ];
    let sidecar = Sidecar::start_with(&database, &shop_policy(&database, &rules, &[]));
    let mut session = sidecar.connect();
    session.must("BEGIN");
    session.must("CREATE TABLE fresh (id int PRIMARY KEY, body text)");
    session.must("INSERT INTO fresh VALUES (1, 'x')");
    session.must("ALTER TABLE fresh ADD COLUMN more int DEFAULT 7");
    assert_eq!(
        session.must("SELECT id, body, more FROM fresh").lines(),
        ["1|x|7"]
    );
    session.must("CREATE INDEX ON fresh (body)");
    session.must("UPDATE fresh SET more = 8 WHERE id = 1");
    session.must("COMMIT");
    // Others see it as soon as the shared catalog was read again.
    let mut other = sidecar.connect();
    let seen = test_support::wait_for("the new table is known", 20, || {
        let answer = other.query("SELECT * FROM fresh");
        answer.errors.is_empty().then(|| answer.lines())
    });
    assert_eq!(seen.expect("the new table is known"), ["1|x|8"]);
    // One Query, as migration tools send it.
    let script = "BEGIN; DROP TABLE fresh; CREATE TABLE fresh (id int); INSERT INTO fresh VALUES (5); COMMIT";
    let answer = session.query(script);
    assert!(answer.errors.is_empty() || answer.is_refused(), "{answer:?}");
    // A rolled back migration leaves nothing behind.
    session.must("BEGIN; CREATE TABLE other (id int); ROLLBACK");
    assert!(!session.query("SELECT * FROM other").errors.is_empty());
}

#[test]
fn roles_are_followed() {
    let database = Database::new();
    database.direct().must("GRANT pg_read_all_data TO shop_app");
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    for role in [
        "SET ROLE pg_read_all_data",
        "SET SESSION ROLE pg_read_all_data",
        "SET SESSION AUTHORIZATION shop_app",
        "SELECT set_config('role', 'pg_read_all_data', false)",
    ] {
        session.query(role);
        assert_eq!(
            session
                .query("SELECT email FROM customers ORDER BY id LIMIT 1")
                .lines(),
            ["a***@example.com"]
        );
        session.query("SELECT * FROM payroll").refused();
    }
}

#[test]
fn settings_that_change_how_text_is_read_are_refused() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    for sql in [
        "SET standard_conforming_strings = off",
        "SELECT set_config('standard_conforming_strings', 'off', false)",
        "SET transform_null_equals = on",
    ] {
        let answer = session.query(sql);
        assert!(answer.is_refused(), "{sql}: {answer:?}");
    }
    assert_eq!(session.query("SELECT '\\'").lines(), ["\\"]);
    let options = ("options", "-c standard_conforming_strings=off");
    let parameters = [("user", "app"), ("database", database.name.as_str()), options];
    if let Ok(mut session) = Client::try_connect(sidecar.port, &parameters) {
        // One literal with the setting on; with it off the string ends before the comma.
        session.query("SELECT 'a\\'', employee FROM payroll --'");
        session.extended("SELECT 'a\\'', employee FROM payroll --'", &[], 0);
        session.query("SELECT 'a\\'; DELETE FROM scratch; --'");
    }
    assert_eq!(database.direct().number("SELECT count(*) FROM scratch"), 3);
}

#[test]
fn an_encoding_in_which_a_backslash_ends_a_character_hides_nothing() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let before = database.fingerprint();
    for encoding in ["SJIS", "BIG5", "GBK", "GB18030"] {
        let mut session = sidecar.connect();
        session.query(&format!("SET client_encoding = '{encoding}'"));
        // For the server `\x95\x5c` is one character and the quote behind it ends the string.
        let mut text = b"SELECT E'\x95\x5c', employee FROM payroll --'\0".to_vec();
        session.send(&crate::harness::client::message(b'Q', &text));
        assert!(session.until_ready().rows.is_empty());
        text = b"SELECT E'\x95\x5c'; DELETE FROM scratch --'\0".to_vec();
        session.send(&crate::harness::client::message(b'Q', &text));
        session.until_ready();
        session.query("SELECT email FROM customers");
    }
    assert_eq!(database.fingerprint(), before);
}

#[test]
fn a_portal_and_a_cursor_keep_their_masks() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("BEGIN");
    let sql = "SELECT id, card, email FROM customers WHERE card IS NULL OR true ORDER BY id";
    session.send(&[parse("", sql), sync()].concat());
    let parsed = session.until_ready();
    if parsed.errors.is_empty() {
        session.query("ROLLBACK");
    }
    let mut session = sidecar.connect();
    session.must("BEGIN");
    let sql = "SELECT id, card, email FROM customers ORDER BY id";
    session.send(
        &[
            parse("", sql),
            bind("c", "", &[], &[1]),
            describe_portal("c"),
            execute("c", 1),
            sync(),
        ]
        .concat(),
    );
    let first = session.until_ready();
    assert!(first.kinds.contains('s') && first.rows.len() == 1, "{first:?}");
    // Something else in between, in another format.
    session.extended("SELECT 1", &[], 0);
    session.send(&[execute("c", 1), execute("c", 0), sync()].concat());
    let rest = session.until_ready();
    assert_eq!(rest.rows.len(), 2, "{rest:?}");
    assert_eq!(rest.rows[0][1].as_ref().map(Vec::len), Some(64));
    session.must("COMMIT");
    // FETCH through the protocol of what SQL declared, and the other way round.
    session.must("BEGIN; DECLARE d CURSOR FOR SELECT email FROM customers ORDER BY id");
    session.send(&[describe_portal("d"), execute("d", 0), sync()].concat());
    let answer = session.until_ready();
    assert!(
        answer
            .lines()
            .first()
            .is_some_and(|line| line == "a***@example.com")
            || answer.is_refused(),
        "{answer:?}"
    );
}

#[test]
fn texts_of_other_sessions_and_old_defaults_are_not_shown() {
    let database = Database::new();
    database
        .direct()
        .must("ALTER TABLE b.t ADD COLUMN w text DEFAULT 'canary-default'");
    let sidecar = Sidecar::start(&database);
    // Another session of the same role, whose text the role may see.
    let mut other = Client::connect(
        database.port,
        &[("user", "shop_app"), ("database", &database.name)],
    );
    other.must("SELECT 'canary-activity'");
    let pid = other.number("SELECT pg_backend_pid() /* canary-comment */");
    let mut session = sidecar.connect();
    for sql in [
        "SELECT * FROM pg_stat_activity".to_owned(),
        "SELECT query FROM pg_stat_activity".to_owned(),
        "SELECT to_jsonb(a) FROM pg_stat_activity a".to_owned(),
        "SELECT * FROM pg_stat_get_activity(NULL)".to_owned(),
        format!("SELECT pg_stat_get_backend_activity({pid})"),
        "SELECT pg_stat_get_backend_activity(b) FROM pg_stat_get_backend_idset() b".to_owned(),
        "SELECT attmissingval FROM pg_attribute".to_owned(),
        "SELECT * FROM pg_attribute WHERE attrelid = 'b.t'::regclass".to_owned(),
        "SELECT a FROM pg_attribute a WHERE attrelid = 'b.t'::regclass".to_owned(),
        "COPY pg_attribute TO STDOUT".to_owned(),
        "SELECT * FROM pg_stats".to_owned(),
        "TABLE pg_stat_statements".to_owned(),
    ] {
        session.query(&sql);
    }
}

#[test]
fn what_enters_a_temporary_table_is_masked() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("CREATE TEMP TABLE mine AS SELECT id, email, ssn FROM customers");
    assert_eq!(
        session
            .must("SELECT email, ssn FROM mine ORDER BY id LIMIT 1")
            .lines(),
        ["a***@example.com|~"]
    );
    session.must("INSERT INTO mine SELECT id + 10, email, ssn FROM customers");
    session.must("CREATE TEMP TABLE more (body text)");
    session.must("INSERT INTO more SELECT email FROM customers");
    assert_eq!(
        session
            .must("SELECT count(*) FROM more WHERE body LIKE '%***@%'")
            .lines(),
        ["3"]
    );
    session.must("SELECT email INTO TEMP third FROM customers");
    session.must("TABLE third");
    for sql in [
        "CREATE TEMP TABLE raw AS SELECT card FROM customers",
        "INSERT INTO more SELECT card FROM customers",
        "SELECT card INTO TEMP raw FROM customers",
        "CREATE TEMP VIEW raw AS SELECT card FROM customers",
        "UPDATE more SET body = c.card FROM customers c",
    ] {
        assert!(session.query(sql).is_refused(), "{sql}");
        assert!(session.extended(sql, &[], 0).is_refused(), "{sql}");
    }
    session.must("PREPARE p AS SELECT card FROM customers");
    assert!(session.query("CREATE TEMP TABLE raw AS EXECUTE p").is_refused());
    session.query("TABLE raw");
    session.query("EXPLAIN (ANALYZE, VERBOSE) EXECUTE p");
}

#[test]
fn a_prepared_statement_does_not_carry_over_to_a_closed_or_filtered_table_of_the_same_name() {
    let database = Database::new();
    database.direct().must(
        "CREATE TABLE a.orders (id int, note text); INSERT INTO a.orders VALUES (1, 'plain'); \
         GRANT ALL ON a.orders TO shop_app",
    );
    let rules = ["{name: more, actions: [Select], tables: [a.orders]}"];
    let sidecar = Sidecar::start_with(&database, &shop_policy(&database, &rules, &[]));
    for by_protocol in [false, true] {
        let mut session = sidecar.connect();
        session.must("SET search_path = a");
        for (name, sql) in [
            ("t", "SELECT count(*) FROM t WHERE v LIKE 'c%'"),
            ("o", "SELECT count(*) FROM orders"),
        ] {
            if by_protocol {
                session.send(&[parse(name, sql), sync()].concat());
                session.until_ready();
                run_prepared(&mut session, name, 0);
            } else {
                session.must(&format!("PREPARE {name} AS {sql}"));
                session.must(&format!("EXECUTE {name}"));
            }
        }
        let run = |session: &mut Client, name: &str| match by_protocol {
            true => run_prepared(session, name, 0),
            false => session.query(&format!("EXECUTE {name}")),
        };
        session.must("SET search_path = c");
        let closed = run(&mut session, "t");
        assert!(closed.is_refused(), "{by_protocol} {closed:?}");
        session.must("SET search_path = public");
        let filtered = run(&mut session, "o");
        assert!(
            filtered.is_refused() || filtered.lines() == ["3"],
            "{by_protocol} {filtered:?}"
        );
        session.must("SET search_path = a");
        assert_eq!(run(&mut session, "o").lines(), ["1"]);
        assert_eq!(run(&mut session, "t").lines(), ["0"]);
    }
}

#[test]
fn a_policy_that_comes_later_holds_for_what_was_prepared_before() {
    let database = Database::new();
    let strict = shop_policy(&database, &[], &[]);
    // At first the name is free; the canaries are masked from the start.
    let sidecar = Sidecar::start_with(&database, &strict);
    let mut session = sidecar.connect();
    session.send(
        &[
            parse("p", "SELECT name FROM customers ORDER BY id LIMIT 1"),
            sync(),
        ]
        .concat(),
    );
    session.until_ready();
    assert_eq!(run_prepared(&mut session, "p", 0).lines(), ["Ann"]);
    session.must("PREPARE q AS SELECT name FROM customers ORDER BY id LIMIT 1");
    session.must("BEGIN; DECLARE c CURSOR FOR SELECT name FROM customers ORDER BY id");
    assert_eq!(session.must("FETCH 1 FROM c").lines(), ["Ann"]);
    let stricter = strict.replace(
        "  masks:\n",
        "  masks:\n  - {name: name, columns: [public.customers.name], mask: {type: Constant, value: hidden}}\n",
    );
    let hidden = || {
        sidecar
            .connect()
            .query("SELECT name FROM customers LIMIT 1")
            .lines()
            == ["hidden"]
    };
    sidecar.reload(&stricter, hidden);
    let fetched = session.query("FETCH 1 FROM c");
    assert!(!fetched.errors.is_empty(), "{fetched:?}");
    session.query("ROLLBACK");
    for _ in 0..2 {
        let answer = run_prepared(&mut session, "p", 0);
        assert!(
            answer.lines() == ["hidden"] || !answer.errors.is_empty(),
            "{answer:?}"
        );
        let answer = session.query("EXECUTE q");
        assert!(
            answer.lines() == ["hidden"] || !answer.errors.is_empty(),
            "{answer:?}"
        );
    }
    // A manifest that does not load keeps what was.
    let folder_gone_wrong = stricter.replace("defaultAction: Deny", "defaultAktion: Allow");
    sidecar.reload(&folder_gone_wrong, || sidecar.log().contains("defaultAktion"));
    assert_eq!(
        sidecar
            .connect()
            .query("SELECT name FROM customers LIMIT 1")
            .lines(),
        ["hidden"]
    );
    assert!(sidecar.connect().query("SELECT * FROM payroll").is_refused());
}

#[test]
fn long_names_of_statements_do_not_swap_plans() {
    // The server cuts names of prepared statements at 63 bytes.
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    let short = "n".repeat(63);
    let (x, y) = (format!("{short}x"), format!("{short}y"));
    session.query(&format!("PREPARE {short} AS SELECT name FROM customers"));
    session.send(
        &[
            crate::harness::client::message(b'C', format!("S{x}\0").as_bytes()),
            sync(),
        ]
        .concat(),
    );
    session.until_ready();
    session.send(&[parse(&y, "SELECT card FROM customers"), sync()].concat());
    session.until_ready();
    session.query(&format!("EXECUTE {short}"));
    let mut session = sidecar.connect();
    session.send(
        &[
            parse(&x, "SELECT card FROM customers"),
            sync(),
            parse(&y, "SELECT name FROM customers"),
            sync(),
        ]
        .concat(),
    );
    session.until_ready();
    session.until_ready();
    for name in [&x, &y, &short] {
        session.send(&[bind("", name, &[], &[]), execute("", 0), sync()].concat());
        session.until_ready();
        session.query(&format!("EXECUTE \"{name}\""));
    }
    // Names of our own are not for clients.
    let answer = sidecar.connect().query("PREPARE weir_1 AS SELECT 1");
    assert!(answer.is_refused(), "{answer:?}");
    let mut session = sidecar.connect();
    session.send(&[parse("weir_", "SELECT 1"), sync()].concat());
    assert!(session.until_ready().is_refused());
}

#[test]
fn tokens_stand_beside_values_of_many_megabytes() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    let sql = "SELECT card, repeat('x', 12000000), card, id FROM customers WHERE id < 3 ORDER BY id";
    for format in [0, 1] {
        let answer = session.extended(sql, &[], format);
        assert_eq!(answer.rows.len(), 2, "{:?}", answer.errors);
        for row in &answer.rows {
            let lengths: Vec<Option<usize>> = row.iter().map(|cell| cell.as_ref().map(Vec::len)).collect();
            assert_eq!(lengths[..3], [Some(64), Some(12_000_000), Some(64)]);
            assert_eq!(row[0], row[2]);
        }
        assert_ne!(answer.rows[0][0], answer.rows[1][0]);
    }
}
