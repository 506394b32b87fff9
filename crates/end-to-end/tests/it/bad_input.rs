//! Broken, huge and hostile messages: a clear error, bounded memory, other sessions untouched, nothing unjudged.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::harness::client::{bind, execute, message, parse, query, sync};
use crate::harness::{Client, Database, Sidecar};

const MEGABYTE: usize = 1024 * 1024;

#[test]
fn a_comment_of_nine_megabytes_hides_no_delete() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let before = database.fingerprint();
    let mut session = sidecar.connect();
    for size in [9 * MEGABYTE, 17 * MEGABYTE] {
        let comment = format!("/*{}*/", "x".repeat(size));
        for sql in [
            "DELETE FROM scratch",
            "DELETE FROM payroll WHERE id = 1",
            "SELECT * FROM payroll",
        ] {
            session.query(&format!("{comment} {sql}")).refused();
            session.extended(&format!("{comment} {sql}"), &[], 0).refused();
            session.query(&format!("SELECT 1 {comment}; {sql}")).refused();
        }
        let line = format!("-- {}\r", "y".repeat(size));
        session.query(&format!("{line} DELETE FROM scratch")).refused();
    }
    let masked = session.query(&format!(
        "/*{}*/ SELECT email FROM customers WHERE id = 1",
        "x".repeat(9 * MEGABYTE)
    ));
    assert!(masked.lines() == ["a***@example.com"] || masked.is_refused());
    assert_eq!(database.fingerprint(), before);
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn a_statement_of_64_megabytes_is_refused_and_not_kept() {
    let database = Database::new();
    let mut sidecar = Sidecar::start(&database);
    let mut session = sidecar.connect();
    session.must("SELECT 1");
    let before = sidecar.resident_bytes();
    let long = format!("SELECT '{}'", "z".repeat(64 * MEGABYTE));
    for _ in 0..2 {
        let answer = session.query(&long);
        assert_eq!(
            answer.error().map(|error| error.sqlstate().to_owned()).as_deref(),
            Some("54000"),
            "{:?}",
            answer.errors
        );
        let answer = session.extended(&long, &[], 0);
        assert_eq!(
            answer.error().map(|error| error.sqlstate().to_owned()).as_deref(),
            Some("54000"),
            "{:?}",
            answer.errors
        );
    }
    assert!(
        sidecar.resident_bytes() < before + 32 * MEGABYTE,
        "{} -> {}",
        before,
        sidecar.resident_bytes()
    );
    assert_eq!(session.must("SELECT 1").lines(), ["1"]);
    // Parameters of that size are streamed.
    session.send(
        &[
            parse("", "SELECT length($1::text)"),
            bind("", "", &[Some(&"p".repeat(40 * MEGABYTE))], &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(session.until_ready().lines(), [(40 * MEGABYTE).to_string()]);
}

#[test]
fn deep_expressions_are_an_error_and_the_process_lives() {
    let database = Database::new();
    let mut sidecar = Sidecar::start(&database);
    let mut other = sidecar.connect();
    let deep = [
        format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("SELECT {}1", "1+".repeat(100_000)),
        format!("SELECT {}1", "- ".repeat(100_000)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(100_000)),
        format!("SELECT true{}", " AND true".repeat(100_000)),
        format!("SELECT {}true", "NOT ".repeat(100_000)),
        format!("SELECT {}1{}", "ARRAY[".repeat(100_000), "]".repeat(100_000)),
        format!(
            "SELECT {}1{}",
            "CASE WHEN true THEN ".repeat(100_000),
            " END".repeat(100_000)
        ),
        format!(
            "{}SELECT 1{}",
            "SELECT * FROM (".repeat(50_000),
            ") x".repeat(50_000)
        ),
        format!("SELECT * FROM payroll WHERE id = {}1", "1+".repeat(100_000)),
    ];
    for sql in &deep {
        let mut session = sidecar.connect();
        let answer = session.query(sql);
        // `true AND true AND …` is a flat list; the others are too deep for the server itself.
        assert!(
            !answer.errors.is_empty() || sql.contains("AND true"),
            "{}",
            &sql[..40]
        );
        let answer = session.extended(sql, &[], 0);
        assert!(
            !answer.errors.is_empty() || sql.contains("AND true"),
            "{}",
            &sql[..40]
        );
        sidecar.resident_bytes();
        assert_eq!(other.must("SELECT 1").lines(), ["1"]);
    }
}

#[test]
fn invalid_text_is_refused() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let before = database.fingerprint();
    for text in [
        &b"SELECT '\xff\xfe'\0"[..],
        b"SELECT 1 \xc0\xaf; DELETE FROM scratch\0",
        b"SELECT \xed\xa0\x80\0",
        b"SELECT 1\0; DELETE FROM scratch\0",
        b"DELETE FROM scratch -- no final zero",
        b"",
    ] {
        for kind in [b'Q', b'P'] {
            let mut session = sidecar.connect();
            let body = if kind == b'P' {
                [b"\0", text, b"\0\0"].concat()
            } else {
                text.to_vec()
            };
            session.send(&[message(kind, &body), sync()].concat());
            let mut seen = session.until_ready();
            if !seen.ended && seen.errors.is_empty() {
                seen = session.until_ready();
            }
            assert!(!seen.errors.is_empty() || seen.ended, "{kind} {text:?}: {seen:?}");
        }
    }
    assert_eq!(database.fingerprint(), before);
}

#[test]
fn broken_framing_closes_and_forwards_nothing() {
    let database = Database::new();
    let mut sidecar = Sidecar::start(&database);
    let mut other = sidecar.connect();
    let before = database.fingerprint();
    let broken: [&[u8]; 9] = [
        b"Q\0\0\0\0",
        b"Q\0\0\0\x03",
        b"Q\xff\xff\xff\xff",
        b"Q\x80\0\0\0",
        b"Q\x7f\xff\xff\xff",
        b"\0\0\0\0\x04",
        b"~\0\0\0\x04",
        b"GET / HTTP/1.1\r\n\r\n",
        b"p\0\0\0\x08abcd",
    ];
    for bytes in broken {
        let mut session = sidecar.connect();
        session.send_raw(bytes);
        session.send_raw(&query("DELETE FROM scratch WHERE id = 1"));
        session.stop_writing();
        session.until_ended();
        sidecar.resident_bytes();
        assert_eq!(other.must("SELECT 1").lines(), ["1"]);
    }
    // Bodies whose inner lengths lie.
    let lies = [
        message(b'P', b"no zero"),
        message(b'P', b"\0SELECT 1\0\xff\xff"),
        message(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff"),
        message(b'B', b"\0\0\xff\xff\0\0"),
        message(b'B', b"\0\0\0\0\0\0\0\x01\0\x07"),
        message(b'D', b"X\0"),
        message(b'E', b"\0"),
        message(b'C', b""),
        message(b'F', b"\0\0"),
        message(b'S', b"more"),
        message(b'H', b"more"),
    ];
    for bytes in lies {
        let mut session = sidecar.connect();
        session.send(&[bytes.clone(), sync()].concat());
        session.send_raw(&query("SELECT 1"));
        session.stop_writing();
        let answer = session.until_ended();
        assert!(
            !answer.errors.is_empty() || !answer.kinds.contains('C') || bytes[0] == b'S' || bytes[0] == b'H',
            "{bytes:?}: {answer:?}"
        );
        sidecar.resident_bytes();
    }
    assert_eq!(database.fingerprint(), before);
    assert_eq!(other.must("SELECT 1").lines(), ["1"]);
}

#[test]
fn a_start_up_that_is_broken_or_too_long_is_closed() {
    let database = Database::new();
    let mut sidecar = Sidecar::start(&database);
    let long = [
        &20_000_u32.to_be_bytes()[..],
        &196_608_u32.to_be_bytes(),
        &vec![b'a'; 19_992],
    ]
    .concat();
    for bytes in [
        &b"\0\0\0\x04"[..],
        b"\0\0\0\x08\0\0\0\0",
        b"\xff\xff\xff\xff\0\x03\0\0",
        b"\0\0\0\x0c\0\x03\0\0abcd",
        &long,
        b"\x16\x03\x01\0\x05hello",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut session = Client::open(sidecar.port);
        session.send_raw(bytes);
        session.stop_writing();
        let answer = session.next_raw_until_ended();
        assert!(!String::from_utf8_lossy(&answer).contains("ReadyForQuery"));
        sidecar.resident_bytes();
    }
    // Bytes sent behind an SSLRequest before its answer are never taken as plain text.
    let mut session = Client::open(sidecar.port);
    let mut startup = [
        &196_608_u32.to_be_bytes()[..],
        b"user\0app\0database\0",
        database.name.as_bytes(),
        b"\0\0",
    ]
    .concat();
    startup.splice(0..0, (startup.len() as u32 + 4).to_be_bytes());
    session.send_raw(&[&8_u32.to_be_bytes()[..], &80_877_103_u32.to_be_bytes(), &startup].concat());
    session.stop_writing();
    let answer = session.next_raw_until_ended();
    assert!(!answer.contains(&b'Z'), "{answer:?}");
    assert_eq!(sidecar.connect().must("SELECT 1").lines(), ["1"]);
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_message_leaves_nothing_behind() {
    let database = Database::new();
    let mut sidecar = Sidecar::start(&database);
    let before = database.fingerprint();
    let whole = query("DELETE FROM scratch WHERE id = 1");
    for cut in [1, 4, 5, 10, whole.len() - 1] {
        let mut session = sidecar.connect();
        session.send(&whole[..cut]);
        session.stop_writing();
        session.until_ended();
    }
    // One that stays connected does not hold others up.
    let mut stuck = sidecar.connect();
    stuck.send(&whole[..10]);
    assert_eq!(sidecar.connect().must("SELECT 1").lines(), ["1"]);
    assert_eq!(database.fingerprint(), before);
    // A gigabyte announced is not a gigabyte taken.
    let resident = sidecar.resident_bytes();
    let mut announcing = sidecar.connect();
    announcing.send(&[&b"Q"[..], &0x3fff_ffff_u32.to_be_bytes(), b"SELECT"].concat());
    assert_eq!(sidecar.connect().must("SELECT 1").lines(), ["1"]);
    assert!(sidecar.resident_bytes() < resident + 64 * MEGABYTE);
    // The server's side of closed sessions goes as well.
    drop((stuck, announcing));
    let mut direct = database.direct();
    let mine =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'shop_app'";
    let gone = test_support::wait_for("server sessions end", 30, || {
        (direct.number(mine) <= 1).then_some(())
    });
    assert!(gone.is_ok(), "{gone:?}");
}

#[test]
fn a_server_that_stops_in_the_middle_of_a_message_ends_that_session_alone() {
    let database = Database::new();
    // A relay that lets so many bytes of the server through, then closes.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let upstream = database.port;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || cut_when_asked(client, upstream));
        }
    });
    let policy = crate::harness::sidecar::shop_policy(&database, &[], &[])
        .replace(&format!("port: {upstream}"), &format!("port: {port}"));
    let sidecar = Sidecar::start_before(port, &database.name, &policy);
    let mut other = sidecar.connect();
    let mut session = sidecar.connect();
    session.must("SELECT id FROM scratch");
    session.send(&query(&format!(
        "SELECT '{CUT}'::text AS x, repeat('y', 1000) FROM scratch"
    )));
    // With a reason, unless the client has half of a message already: then nothing may follow it.
    let answer = session.until_ended();
    let told = answer
        .error()
        .is_some_and(|error| error.sqlstate().starts_with("57P") || error.sqlstate().starts_with("08"));
    assert!(told || session.has_half_a_message(), "{:?}", answer.errors);
    assert!(answer.tags.is_empty());
    assert_eq!(other.must("SELECT 1").lines(), ["1"]);
}

/// The relay of that test closes when it sees this in the server's bytes.
const CUT: &str = "cut-here";

fn cut_when_asked(client: TcpStream, upstream: u16) {
    use std::io::Read;
    let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else {
        return;
    };
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let (mut server, mut client) = (server, client);
    let mut chunk = [0; 16_384];
    while let Ok(count @ 1..) = server.read(&mut chunk) {
        let bytes = &chunk[..count];
        match bytes
            .windows(CUT.len())
            .rposition(|window| window == CUT.as_bytes())
        {
            Some(at) => {
                let _ = client.write_all(&bytes[..at + 3]);
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
                return;
            }
            None => {
                if client.write_all(bytes).is_err() {
                    return;
                }
            }
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn many_unfinished_logins_do_not_stop_others() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let idle: Vec<TcpStream> = (0..100)
        .filter_map(|_| TcpStream::connect(("127.0.0.1", sidecar.port)).ok())
        .collect();
    for stream in &idle {
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let _ = (&mut &*stream).write_all(b"\0\0\0");
    }
    assert_eq!(sidecar.connect().must("SELECT 1").lines(), ["1"]);
}
