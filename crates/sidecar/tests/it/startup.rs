//! First packets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::harness::{Sidecar, Start, field, message, packet, policy, read_message, read_until, startup};

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const V3_0: u32 = 196_608;
const V3_2: u32 = 196_610;

fn sidecar() -> Sidecar {
    Start::with(policy("{mode: Disable}", "", "")).start()
}

fn request(code: u32) -> Vec<u8> {
    packet(&code.to_be_bytes())
}

fn user() -> [(&'static str, &'static str); 2] {
    [("user", "trust_user"), ("database", "shop")]
}

fn one_byte(socket: &mut TcpStream) -> u8 {
    let mut byte = [0];
    socket.read_exact(&mut byte).unwrap();
    byte[0]
}

#[test]
fn encryption_is_declined_in_any_order() {
    let sidecar = sidecar();
    for requests in [[SSL_REQUEST, GSSENC_REQUEST], [GSSENC_REQUEST, SSL_REQUEST]] {
        let mut socket = sidecar.socket();
        for code in requests {
            socket.write_all(&request(code)).unwrap();
            assert_eq!(one_byte(&mut socket), b'N');
        }
        socket.write_all(&startup(V3_0, &user())).unwrap();
        let messages = read_until(&mut socket, b'Z');
        assert_eq!(messages.last().unwrap().0, b'Z');
    }
}

#[test]
fn bytes_behind_a_request_for_encryption_are_refused() {
    for sidecar in [
        sidecar(),
        Start::with(policy("{mode: Disable}", "", ""))
            .flags(&["--client-tls", "serve"])
            .start(),
    ] {
        for code in [SSL_REQUEST, GSSENC_REQUEST] {
            let mut socket = sidecar.socket();
            let mut bytes = request(code);
            bytes.extend_from_slice(&startup(V3_0, &user()));
            socket.write_all(&bytes).unwrap();
            let (tag, body) = read_message(&mut socket).unwrap();
            assert_eq!(tag, b'E');
            assert!(
                field(&body, b'M').contains("received data behind"),
                "{}",
                field(&body, b'M')
            );
            assert!(read_message(&mut socket).is_none(), "closed");
        }
    }
}

#[test]
fn versions_are_negotiated() {
    let sidecar = sidecar();
    // Version asked, options, version told (`None`: nothing is told).
    type Options<'o> = &'o [(&'o str, &'o str)];
    let cases: [(u32, Options<'_>, Option<u32>); 5] = [
        (V3_0, &[], None),
        // The server is older than 3.2, and nobody speaks 3.1.
        (V3_2, &[], Some(V3_0)),
        (V3_0 + 1, &[], Some(V3_0)),
        (V3_0 + 9999, &[("_pq_.test_protocol_negotiation", "")], Some(V3_0)),
        (V3_0, &[("_pq_.x", "1")], Some(V3_0)),
    ];
    for (asked, options, told) in cases {
        let mut socket = sidecar.socket();
        let parameters: Vec<_> = user().into_iter().chain(options.iter().copied()).collect();
        socket.write_all(&startup(asked, &parameters)).unwrap();
        let messages = read_until(&mut socket, b'Z');
        assert_eq!(messages.last().unwrap().0, b'Z', "{asked:x}");
        let negotiation = messages
            .iter()
            .find(|(tag, _)| *tag == b'v')
            .map(|(_, body)| body);
        let version = negotiation.map(|body| u32::from_be_bytes(body[..4].try_into().unwrap()));
        assert_eq!(version, told, "{asked:x}");
        if let Some(body) = negotiation {
            let count = u32::from_be_bytes(body[4..8].try_into().unwrap());
            assert_eq!(count as usize, options.len());
            for (name, _) in options {
                assert!(String::from_utf8_lossy(body).contains(name));
            }
            assert_eq!(messages[0].0, b'v', "before the authentication");
        }
    }
}

#[test]
fn other_protocols_and_replication_are_refused() {
    let sidecar = sidecar();
    for (packet, sqlstate) in [
        (startup(2 << 16, &user()), "0A000"),
        (startup(4 << 16, &user()), "0A000"),
        (
            startup(V3_0, &[("user", "trust_user"), ("replication", "database")]),
            "0A000",
        ),
        (
            startup(V3_0, &[("user", "trust_user"), ("replication", "true")]),
            "0A000",
        ),
        (startup(V3_0, &[("database", "shop")]), "28000"),
    ] {
        let mut socket = sidecar.socket();
        socket.write_all(&packet).unwrap();
        let (tag, body) = read_message(&mut socket).unwrap();
        assert_eq!(tag, b'E');
        assert_eq!(field(&body, b'C'), sqlstate, "{}", field(&body, b'M'));
        assert_eq!(field(&body, b'S'), "FATAL");
        assert!(read_message(&mut socket).is_none(), "closed");
    }
    // Words for "no" are no replication.
    let mut socket = sidecar.socket();
    socket
        .write_all(&startup(
            V3_0,
            &[
                ("user", "trust_user"),
                ("database", "shop"),
                ("replication", "off"),
            ],
        ))
        .unwrap();
    assert_eq!(read_until(&mut socket, b'Z').last().unwrap().0, b'Z');
}

#[test]
fn first_packets_have_a_bound() {
    let sidecar = sidecar();
    for bytes in [
        &b"\0\0\x27\x15\0\x03\0\0"[..],
        b"\0\0\0\x07\0\x03\0\0",
        b"\x7f\xff\xff\xff\0\x03\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut socket = sidecar.socket();
        socket.write_all(bytes).unwrap();
        let (tag, body) = read_message(&mut socket).unwrap();
        assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "08P01"));
        assert!(read_message(&mut socket).is_none(), "closed");
    }
    // A probe that says nothing disturbs nobody.
    drop(sidecar.socket());
    assert_eq!(sidecar.query("user=trust_user dbname=shop", "select 1"), "1");
}

#[test]
fn a_message_out_of_place_ends_the_session_with_a_reason() {
    let sidecar = sidecar();
    let mut socket = sidecar.socket();
    socket.write_all(&startup(V3_0, &user())).unwrap();
    read_until(&mut socket, b'Z');
    socket.write_all(b"Q\xff\xff\xff\xff").unwrap();
    let (tag, body) = read_message(&mut socket).unwrap();
    assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "08P01"));
    assert!(read_message(&mut socket).is_none(), "closed");
    // A text with a NUL inside is no text: what follows it must not run.
    let mut socket = sidecar.socket();
    socket.write_all(&startup(V3_0, &user())).unwrap();
    read_until(&mut socket, b'Z');
    socket
        .write_all(&message(b'Q', b"select 1\0; select 2\0"))
        .unwrap();
    let (tag, _) = read_message(&mut socket).unwrap();
    assert_eq!(tag, b'E');
}

fn direct_tls(sidecar: &Sidecar, alpn: &[&[u8]]) -> StreamOwned<ClientConnection, TcpStream> {
    let folder = sidecar.folder.path();
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(folder.join("client-ca.crt")).unwrap();
    use rustls::pki_types::pem::PemObject;
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let connection =
        ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    StreamOwned::new(connection, sidecar.socket())
}

#[test]
fn tls_without_asking() {
    let certificates = test_support::Certificates::new(&["127.0.0.1"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    certificates.write(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let sidecar = Start::with(policy("{mode: Disable}", "", ""))
        .flags(&["--client-tls", "serve"])
        .flags(&[
            "--client-tls-certificate",
            &path("tls.crt"),
            "--client-tls-key",
            &path("tls.key"),
        ])
        .start();
    std::fs::copy(path("ca.crt"), sidecar.folder.path().join("client-ca.crt")).unwrap();

    let mut stream = direct_tls(&sidecar, &[b"postgresql"]);
    stream.write_all(&startup(V3_0, &user())).unwrap();
    assert_eq!(read_until(&mut stream, b'Z').last().unwrap().0, b'Z');
    stream.write_all(&message(b'Q', b"select 42\0")).unwrap();
    let messages = read_until(&mut stream, b'Z');
    assert!(
        messages
            .iter()
            .any(|(tag, body)| *tag == b'D' && body.ends_with(b"42")),
        "{messages:?}"
    );

    // Without the name of the protocol, or with another, nothing is served (ALPACA).
    let mut stream = direct_tls(&sidecar, &[]);
    stream.write_all(&startup(V3_0, &user())).unwrap();
    let (tag, body) = read_message(&mut stream).unwrap();
    assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "08P01"));
    let mut stream = direct_tls(&sidecar, &[b"http/1.1"]);
    let sent = stream.write_all(&startup(V3_0, &user()));
    assert!(sent.is_err() || read_message(&mut stream).is_none());
}
