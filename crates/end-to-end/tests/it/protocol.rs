//! The rest of the protocol: cancel, negotiation, notifications, other databases.

use crate::harness::client::query;
use crate::harness::sidecar::shop_policy;
use crate::harness::{Client, Database, Sidecar};

#[test]
fn a_cancel_reaches_its_own_session_only() {
    let database = Database::new();
    let policy = shop_policy(&database, &[], &["functions: {allow: [pg_sleep]}"]);
    let sidecar = Sidecar::start_with(&database, &policy);
    let mut session = sidecar.connect();
    let mut other = sidecar.connect();
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    session.send(&query("SELECT pg_sleep(60)"));
    other.send(&query("SELECT pg_sleep(3)"));
    let mut direct = database.direct();
    test_support::wait_for("both sleep", 20, || (direct.number(running) == 2).then_some(()))
        .expect("both sleep");
    let cancel = |key: &[u8]| {
        let mut request = Client::open(sidecar.port);
        let length = 8 + key.len() as u32;
        request.send_raw(&[&length.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), key].concat());
        request.next_raw_until_ended();
    };
    // A wrong key cancels nothing.
    let mut wrong = session.cancel_key.clone();
    if let Some(last) = wrong.last_mut() {
        *last ^= 1;
    }
    cancel(&wrong);
    cancel(b"short");
    assert_eq!(direct.number(running), 2);
    cancel(&session.cancel_key.clone());
    let answer = session.until_ready();
    assert_eq!(
        answer.error().map(|error| error.sqlstate().to_owned()).as_deref(),
        Some("57014"),
        "{answer:?}"
    );
    assert!(other.until_ready().errors.is_empty());
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn encryption_is_declined_where_the_policy_says_plain_and_the_session_goes_on() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = Client::open(sidecar.port);
    for code in [80_877_103_u32, 80_877_104] {
        session.send_raw(&[&8_u32.to_be_bytes()[..], &code.to_be_bytes()].concat());
        assert_eq!(session.next_byte(), Some(b'N'));
    }
    let mut startup = [
        &196_608_u32.to_be_bytes()[..],
        b"user\0app\0database\0",
        database.name.as_bytes(),
        b"\0\0",
    ]
    .concat();
    startup.splice(0..0, (startup.len() as u32 + 4).to_be_bytes());
    session.send(&startup);
    assert!(session.until_ready().errors.is_empty());
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn unknown_protocol_options_are_negotiated() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    for version in [196_608_u32, 196_610, 199_600] {
        let mut session = Client::open(sidecar.port);
        let mut startup = [
            &version.to_be_bytes()[..],
            b"user\0app\0database\0",
            database.name.as_bytes(),
            b"\0_pq_.unheard\0of\0\0",
        ]
        .concat();
        startup.splice(0..0, (startup.len() as u32 + 4).to_be_bytes());
        session.send(&startup);
        let answer = session.until_ready();
        assert!(answer.kinds.contains('v'), "{version}: {answer:?}");
        assert_eq!(session.must("SELECT 1").lines(), ["1"]);
    }
}

#[test]
fn notifications_come_while_idle_and_only_from_channels_that_are_open() {
    let database = Database::new();
    let policy = shop_policy(&database, &[], &["channels: [news]"]);
    let sidecar = Sidecar::start_with(&database, &policy);
    let mut session = sidecar.connect();
    session.query("LISTEN other").refused();
    session.must("LISTEN news");
    database.direct().must("NOTIFY news, 'hello'");
    let message = session.next().expect("a notification");
    assert_eq!(message.kind, b'A');
    assert!(message.body.ends_with(b"news\0hello\0"), "{message:?}");
}

#[test]
fn another_database_of_the_server_is_not_free() {
    let database = Database::new();
    let policy = shop_policy(&database, &[], &[]).replace(
        "    engine: PostgreSQL\n",
        &format!("    engine: PostgreSQL\n    name: {}\n", database.name),
    );
    let sidecar = Sidecar::start_with(&database, &policy);
    for name in ["postgres", "shop", "template1"] {
        let answer = Client::try_connect(sidecar.port, &[("user", "app"), ("database", name)])
            .err()
            .expect("refused");
        assert!(
            answer.error().is_some_and(|error| error.is_refusal()),
            "{name}: {answer:?}"
        );
    }
    assert_eq!(sidecar.connect().must("SELECT 1").lines(), ["1"]);
}

#[test]
fn an_empty_query_is_answered_as_one() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    for sql in ["", ";", " ", "-- a comment", "/* another */"] {
        assert!(session.query(sql).kinds.starts_with('I'), "{sql}");
        let kinds = session.extended(sql, &[], 0).kinds;
        assert!(kinds.contains('I') && !kinds.contains('E'), "{sql}: {kinds}");
    }
}
