//! Start, reload, limits, drain.

use std::io::Write;

use test_support::{Signal, wait_for};

use crate::harness::{Start, field, get, message, policy, read_message, read_until, server, startup};

const V3_0: u32 = 196_608;
const USER: [(&str, &str); 2] = [("user", "trust_user"), ("database", "shop")];

fn allow_all() -> String {
    policy("{mode: Disable}", "", "")
}

#[test]
fn it_drains() {
    let mut sidecar = Start::with(allow_all()).start();
    let mut idle = sidecar.socket();
    idle.write_all(&startup(V3_0, &USER)).unwrap();
    read_until(&mut idle, b'Z');
    let mut busy = sidecar.socket();
    busy.write_all(&startup(V3_0, &USER)).unwrap();
    read_until(&mut busy, b'Z');
    busy.write_all(&message(b'Q', b"select pg_sleep(1.5) as drain_me, 11\0"))
        .unwrap();
    wait_for("the statement to run", 20, || {
        let sql = "select count(*) from pg_stat_activity where query like '%drain_me%' and state = 'active' and pid <> pg_backend_pid()";
        (server().psql("postgres", sql).unwrap() == "1").then_some(())
    })
    .unwrap();
    sidecar.process.signal(Signal::Term).unwrap();
    // The idle one is told at once.
    let (tag, body) = read_message(&mut idle).unwrap();
    assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "57P01"));
    assert!(read_message(&mut idle).is_none(), "closed");
    // The running one gets its answer first.
    let messages = read_until(&mut busy, b'Z');
    assert!(
        messages
            .iter()
            .any(|(tag, body)| *tag == b'D' && body.ends_with(b"11")),
        "{messages:?}"
    );
    let (tag, body) = read_message(&mut busy).unwrap();
    assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "57P01"));
    let status = sidecar.process.wait(20).unwrap();
    assert!(status.success(), "{}", sidecar.process.log());
}

#[test]
fn the_grace_time_ends() {
    let mut sidecar = Start::with(allow_all()).flags(&["--drain-seconds", "1"]).start();
    let mut busy = sidecar.socket();
    busy.write_all(&startup(V3_0, &USER)).unwrap();
    read_until(&mut busy, b'Z');
    busy.write_all(&message(
        b'Q',
        b"select pg_sleep(100) as too_long_for_the_grace\0",
    ))
    .unwrap();
    wait_for("the statement to run", 20, || {
        let sql = "select count(*) from pg_stat_activity where query like '%too_long_for%' and state = 'active' and pid <> pg_backend_pid()";
        (server().psql("postgres", sql).unwrap() == "1").then_some(())
    })
    .unwrap();
    sidecar.process.signal(Signal::Term).unwrap();
    let messages = read_until(&mut busy, b'E');
    assert_eq!(field(&messages.last().unwrap().1, b'C'), "57P01");
    let status = sidecar.process.wait(20).unwrap();
    assert!(status.success(), "{}", sidecar.process.log());
}

#[test]
fn policies_are_loaded_again() {
    server()
        .psql("shop", "create table if not exists closed(a int)")
        .unwrap();
    let sidecar = Start::with(allow_all()).start();
    let path = sidecar.folder.path().join("policies/policy.yaml");
    let generation = || sidecar.status()["policies"]["generation"].as_u64().unwrap();
    assert_eq!(generation(), 1);

    // One that does not load keeps the last good one.
    std::fs::write(&path, allow_all().replace("defaultAction", "defaultActoin")).unwrap();
    let problem = wait_for("the problem to show", 20, || {
        let status = sidecar.status();
        let problem = status["policies"]["problems"][0].as_str()?;
        Some(problem.to_owned())
    })
    .unwrap();
    assert!(
        problem.contains("policy.yaml") && problem.contains("defaultActoin"),
        "{problem}"
    );
    assert_eq!(generation(), 1);
    assert_eq!(sidecar.query("user=trust_user dbname=shop", "select 1"), "1");
    wait_for("the metric", 20, || {
        let (_, text) = get(sidecar.admin, "/metrics")?;
        text.contains("weir_sidecar_policy_load_failed 1").then_some(())
    })
    .unwrap();

    // A session that is open follows the next good one.
    let mut socket = sidecar.socket();
    socket.write_all(&startup(V3_0, &USER)).unwrap();
    read_until(&mut socket, b'Z');
    std::fs::write(
        &path,
        allow_all().replace("defaultAction: Allow", "defaultAction: Deny"),
    )
    .unwrap();
    wait_for("the new policy", 20, || (generation() == 2).then_some(())).unwrap();
    assert_eq!(
        sidecar.status()["policies"]["problems"].as_array().unwrap().len(),
        0
    );
    wait_for("the refusal", 20, || {
        socket
            .write_all(&message(b'Q', b"select a from closed\0"))
            .unwrap();
        let messages = read_until(&mut socket, b'Z');
        let (_, body) = messages.iter().find(|(tag, _)| *tag == b'E')?;
        assert_eq!(field(body, b'C'), "42501", "{}", field(body, b'M'));
        Some(())
    })
    .unwrap();
}

#[test]
fn secrets_are_read_again() {
    let sidecar = Start::with(policy("{mode: Disable}", &crate::harness::credentials(), ""))
        .login("scram_user", "wrong")
        .start();
    let who = "select current_user";
    sidecar.error("user=x dbname=shop", who);
    let password = sidecar.folder.path().join("secrets/login/password");
    crate::harness::private_file(&password, "secret");
    wait_for("the new secret", 20, || {
        let generation = sidecar.status()["policies"]["generation"].as_u64()?;
        (generation == 2).then_some(())
    })
    .unwrap();
    assert_eq!(sidecar.query("user=x dbname=shop", who), "scram_user");
}

#[test]
fn connections_have_a_limit() {
    let sidecar = Start::with(allow_all())
        .flags(&["--max-connections", "2"])
        .start();
    let mut first = sidecar.socket();
    first.write_all(&startup(V3_0, &USER)).unwrap();
    read_until(&mut first, b'Z');
    let _second = sidecar.socket();
    let error = wait_for("the third to be turned away", 20, || {
        let output = sidecar.psql("user=trust_user dbname=shop", "select 1");
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    })
    .unwrap();
    assert!(error.contains("too many connections"), "{error}");
    drop(_second);
    wait_for("a place", 20, || {
        let output = sidecar.psql("user=trust_user dbname=shop", "select 1");
        output.status.success().then_some(())
    })
    .unwrap();
}

#[test]
fn it_does_not_start_without_policies_or_with_a_taken_port() {
    let said = Start::with("# nothing\n".to_owned()).refused();
    assert!(said.contains("there is no policy in"), "{said}");
    let said = Start::with(allow_all().replace("podSelector", "podSelectr")).refused();
    assert!(said.contains("podSelectr"), "{said}");
    let said = Start::with(allow_all())
        .flags(&["--upstream", "elsewhere.example:5432"])
        .refused();
    assert!(
        said.contains("no policy in") && said.contains("elsewhere.example:5432"),
        "{said}"
    );
}

#[test]
fn an_unreachable_database_is_said() {
    let nobody = test_support::free_port().unwrap();
    let sidecar = Start::with(allow_all()).upstream(nobody).start();
    let error = sidecar.error("user=trust_user dbname=shop", "select 1");
    assert!(
        error.contains("cannot reach the database localhost:5432"),
        "{error}"
    );
    // It stays ready: its own health is not the database's.
    assert_eq!(get(sidecar.admin, "/readyz").unwrap().0, 200);
}

#[test]
fn a_table_made_behind_its_back_is_found() {
    let sidecar = Start::with(policy(
        "{mode: Disable}",
        "",
        "  access: [{name: no-ddl, effect: Deny, actions: [DDL]}]\n",
    ))
    .start();
    let mut socket = sidecar.socket();
    socket.write_all(&startup(V3_0, &USER)).unwrap();
    read_until(&mut socket, b'Z');
    let name = format!("made_later_{}", sidecar.port);
    server()
        .psql(
            "shop",
            &format!("create table {name}(a int); grant select on {name} to public"),
        )
        .unwrap();
    let text = format!("select count(*) from {name}\0");
    // Not known at first, and then looked for.
    wait_for("the table to be known", 20, || {
        socket.write_all(&message(b'Q', text.as_bytes())).unwrap();
        let messages = read_until(&mut socket, b'Z');
        messages.iter().any(|(tag, _)| *tag == b'D').then_some(())
    })
    .unwrap();
}
