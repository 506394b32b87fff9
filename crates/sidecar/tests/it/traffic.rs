//! Sessions at work.

use std::io::Write;
use std::time::Duration;

use test_support::wait_for;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use crate::harness::{
    Sidecar, Start, credentials, field, message, policy, read_message, read_until, server, startup,
};

const V3_0: u32 = 196_608;

fn allow_all() -> Sidecar {
    Start::with(policy("{mode: Disable}", "", "")).start()
}

fn config(port: u16) -> Config {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user("trust_user")
        .dbname("shop");
    config
}

/// Whether a backend runs that text.
fn running(text: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity where query like '%{text}%' and state = 'active' and pid <> pg_backend_pid()"
    );
    server().psql("postgres", &sql).unwrap() != "0"
}

#[tokio::test]
async fn a_statement_is_cancelled() {
    for sidecar in [
        allow_all(),
        Start::with(policy("{mode: Disable}", &credentials(), ""))
            .login("scram_user", "secret")
            .start(),
        Start::with(policy(
            "{mode: VerifyFull, caSecretRef: {name: ca, key: ca.crt}}",
            "",
            "",
        ))
        .start(),
    ] {
        let (client, connection) = config(sidecar.port).connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        let token = client.cancel_token();
        let marker = format!("marker_{}", sidecar.port);
        let text = format!("select pg_sleep(60) as {marker}");
        let query = tokio::spawn(async move {
            let result = client.simple_query(&text).await;
            (client, result)
        });
        let seen = marker.clone();
        tokio::task::spawn_blocking(move || {
            wait_for("the statement to run", 20, || running(&seen).then_some(()))
        })
        .await
        .unwrap()
        .unwrap();
        token.cancel_query(NoTls).await.unwrap();
        let (client, result) = query.await.unwrap();
        assert_eq!(result.unwrap_err().code().unwrap().code(), "57014");
        // The session goes on.
        client.simple_query("select 1").await.unwrap();
    }
}

#[tokio::test]
async fn keys_of_the_server_and_guessed_keys_cancel_nothing() {
    let sidecar = allow_all();
    let (client, connection) = config(sidecar.port).connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let pid: u32 = match &client.simple_query("select pg_backend_pid()").await.unwrap()[..] {
        [.., SimpleQueryMessage::Row(row), _] => row.get(0).unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    };
    let marker = format!("guess_{}", sidecar.port);
    let text = format!("select pg_sleep(2) as {marker}");
    let query = tokio::spawn(async move { client.simple_query(&text).await });
    let port = sidecar.port;
    tokio::task::spawn_blocking(move || {
        wait_for("the statement to run", 20, || running(&marker).then_some(())).unwrap();
        for key in [0_u32, 1, u32::MAX] {
            let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut packet = 16_u32.to_be_bytes().to_vec();
            packet.extend_from_slice(&80_877_102_u32.to_be_bytes());
            packet.extend_from_slice(&pid.to_be_bytes());
            packet.extend_from_slice(&key.to_be_bytes());
            socket.write_all(&packet).unwrap();
            assert!(read_message(&mut socket).is_none(), "closed without a word");
        }
    })
    .await
    .unwrap();
    query.await.unwrap().unwrap();
}

#[tokio::test]
async fn large_values_stream_both_ways() {
    let sidecar = allow_all();
    let (client, connection) = config(sidecar.port).connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    // 40 MB as a parameter, and back as a row.
    let value = "x".repeat(40_000_000);
    let row = client
        .query_one("select $1::text || '', length($1::text)", &[&value])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(1), 40_000_000);
    assert_eq!(row.get::<_, &str>(0), value);
    // Rows one after the other, without memory for all.
    let rows = client
        .query(
            "select repeat('y', 1000), g from generate_series(1, 50000) g",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(rows.len(), 50_000);
    assert_eq!(rows.last().unwrap().get::<_, i32>(1), 50_000);
}

#[test]
fn a_statement_above_the_cap_is_refused_and_the_session_goes_on() {
    let sidecar = Start::with(policy("{mode: Disable}", "", ""))
        .flags(&["--statement-max-bytes", "100000"])
        .start();
    let mut socket = sidecar.socket();
    socket
        .write_all(&startup(V3_0, &[("user", "trust_user"), ("database", "shop")]))
        .unwrap();
    read_until(&mut socket, b'Z');
    let mut sql = format!("select 1 /* {} */", "x".repeat(9_000_000)).into_bytes();
    sql.push(0);
    socket.write_all(&message(b'Q', &sql)).unwrap();
    let messages = read_until(&mut socket, b'Z');
    let (_, body) = messages.iter().find(|(tag, _)| *tag == b'E').expect("an error");
    assert_eq!(field(body, b'C'), "54000");
    assert!(field(body, b'H').contains("--statement-max-bytes"));
    socket.write_all(&message(b'Q', b"select 7\0")).unwrap();
    let messages = read_until(&mut socket, b'Z');
    assert!(
        messages
            .iter()
            .any(|(tag, body)| *tag == b'D' && body.ends_with(b"7")),
        "{messages:?}"
    );
}

#[tokio::test]
async fn copy_both_ways() {
    use std::process::{Command, Stdio};
    let sidecar = allow_all();
    sidecar.query(
        "user=trust_user dbname=shop",
        "drop table if exists copied; create table copied(a int, b text)",
    );
    let mut data = String::new();
    for index in 0..50_000 {
        data.push_str(&format!("{index}\tline {index}\n"));
    }
    let psql = |sql: &str| {
        let mut command = Command::new(test_support::postgres_bin().unwrap().join("psql"));
        command
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(format!(
                "host=127.0.0.1 port={} user=trust_user dbname=shop",
                sidecar.port
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    };
    let mut load = psql("copy copied from stdin").spawn().unwrap();
    load.stdin.take().unwrap().write_all(data.as_bytes()).unwrap();
    assert!(load.wait().unwrap().success(), "{}", sidecar.process.log());
    let output = psql("copy copied to stdout").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), data);
}

#[test]
fn a_client_that_closes_its_direction_still_gets_its_answers() {
    let sidecar = allow_all();
    let mut socket = sidecar.socket();
    socket
        .write_all(&startup(V3_0, &[("user", "trust_user"), ("database", "shop")]))
        .unwrap();
    read_until(&mut socket, b'Z');
    socket
        .write_all(&message(b'Q', b"select pg_sleep(0.3), 5\0"))
        .unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let messages = read_until(&mut socket, b'Z');
    assert!(
        messages
            .iter()
            .any(|(tag, body)| *tag == b'D' && body.ends_with(b"5")),
        "{messages:?}"
    );
    assert!(read_message(&mut socket).is_none(), "closed");
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_session_with_a_reason() {
    let sidecar = allow_all();
    let mut socket = sidecar.socket();
    socket
        .write_all(&startup(
            V3_0,
            &[
                ("user", "trust_user"),
                ("database", "shop"),
                ("application_name", "to_be_ended"),
            ],
        ))
        .unwrap();
    read_until(&mut socket, b'Z');
    server()
        .psql(
            "postgres",
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'to_be_ended'",
        )
        .unwrap();
    let (tag, body) = read_message(&mut socket).unwrap();
    assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "57P01"));
    assert!(read_message(&mut socket).is_none(), "closed");
}

#[tokio::test]
async fn notifications_reach_an_idle_session() {
    let sidecar = allow_all();
    let mut socket = sidecar.socket();
    socket
        .write_all(&startup(V3_0, &[("user", "trust_user"), ("database", "shop")]))
        .unwrap();
    read_until(&mut socket, b'Z');
    socket.write_all(&message(b'Q', b"listen news\0")).unwrap();
    let messages = read_until(&mut socket, b'Z');
    assert!(!messages.iter().any(|(tag, _)| *tag == b'E'), "{messages:?}");
    server().psql("shop", "notify news, 'hello'").unwrap();
    let (tag, body) = read_message(&mut socket).unwrap();
    assert_eq!(tag, b'A');
    assert!(body.ends_with(b"news\0hello\0"));
}
