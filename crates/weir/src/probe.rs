//! What a database answers to somebody who comes without a sidecar and without a password.
//!
//! TLS is done as a sidecar does it, with the same code: what is found here is what pods will find.

use std::time::Duration;

use rustls::pki_types::ServerName;
use sidecar::tls::{Check, connector};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// For one connection, from the look-up to the first byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The longest answer that is read: an error's fields are short.
const ANSWER_BYTES_MAX: u64 = 8 * 1024;

/// How a policy wants the connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    /// `tls.mode: Disable`
    Plain,
    /// TLS; without `ca` (PEM) the system's authorities count.
    Tls { check: Check, ca: Option<Vec<u8>> },
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// How the server answers a login; by TLS or without, whichever lets in.
    pub(crate) login: Login,
    /// Why a connection as the policy wants it does not come about.
    pub(crate) wish_fails: Option<String>,
}

/// The answer to a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// No connection.
    Unreachable(String),
    /// It asks for a password, or lets in without one.
    Accepted { without_password: bool },
    /// It refuses this login with TLS and without, in these words.
    Refused(String),
    /// No PostgreSQL.
    Unreadable,
}

/// Asks an endpoint: as the policy wishes, and, where that lets nobody in, the other way.
pub(crate) async fn probe(host: &str, port: u16, wish: &Wish) -> Answer {
    let first = once(host, port, wish).await;
    let other = match wish {
        Wish::Plain => Wish::Tls {
            check: Check::Nothing,
            ca: None,
        },
        Wish::Tls { .. } => Wish::Plain,
    };
    let (login, wish_fails) = match first {
        Once::Login(login @ (Login::Accepted { .. } | Login::Unreachable(_) | Login::Unreadable)) => {
            return Answer {
                login,
                wish_fails: None,
            };
        }
        Once::Login(login @ Login::Refused(_)) => (login, None),
        Once::NoTls => (
            Login::Refused("it does not speak TLS".to_owned()),
            Some("the server does not speak TLS".to_owned()),
        ),
        Once::Handshake(problem) => (
            // Whoever does not look at the certificate comes further.
            match once(
                host,
                port,
                &Wish::Tls {
                    check: Check::Nothing,
                    ca: None,
                },
            )
            .await
            {
                Once::Login(login) => login,
                Once::NoTls | Once::Handshake(_) => Login::Refused("TLS fails".to_owned()),
            },
            Some(problem),
        ),
    };
    let login = match login {
        Login::Refused(words) => match once(host, port, &other).await {
            Once::Login(login @ Login::Accepted { .. }) => login,
            _ => Login::Refused(words),
        },
        login => login,
    };
    Answer { login, wish_fails }
}

/// One connection.
#[derive(Debug)]
enum Once {
    Login(Login),
    /// SSLRequest was answered `N`.
    NoTls,
    /// Why.
    Handshake(String),
}

async fn once(host: &str, port: u16, wish: &Wish) -> Once {
    match tokio::time::timeout(TIMEOUT, ask(host, port, wish)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Once::Login(Login::Unreachable(error.to_string())),
        Err(_) => Once::Login(Login::Unreachable("no answer in time".to_owned())),
    }
}

/// A startup message and the first message of the answer. No password is ever sent.
async fn ask(host: &str, port: u16, wish: &Wish) -> std::io::Result<Once> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut stream = TcpStream::connect((host, port)).await?;
    let Wish::Tls { check, ca } = wish else {
        let login = login(&mut stream).await.unwrap_or(Login::Unreadable);
        return Ok(Once::Login(login));
    };
    stream.write_all(&SSL_REQUEST).await?;
    match stream.read_u8().await {
        Ok(b'S') => {}
        Ok(b'N') => return Ok(Once::NoTls),
        Ok(_) | Err(_) => return Ok(Once::Login(Login::Unreadable)),
    }
    let connector = match connector(*check, ca.as_deref()) {
        Ok(connector) => connector,
        Err(error) => return Ok(Once::Handshake(error.to_string())),
    };
    let name = match ServerName::try_from(host.trim_end_matches('.').to_owned()) {
        Ok(name) => name,
        Err(error) => return Ok(Once::Handshake(error.to_string())),
    };
    match connector.connect(name, stream).await {
        Ok(mut stream) => Ok(Once::Login(login(&mut stream).await.unwrap_or(Login::Unreadable))),
        Err(error) => Ok(Once::Handshake(error.to_string())),
    }
}

async fn login(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<Login> {
    const VERSION_3: u32 = 3 << 16;
    let body = b"user\0weir_check\0database\0postgres\0application_name\0weir check\0\0";
    let length = u32::try_from(body.len() + 8).map_err(std::io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(&VERSION_3.to_be_bytes());
    message.extend_from_slice(body);
    stream.write_all(&message).await?;
    stream.flush().await?;
    let kind = stream.read_u8().await?;
    let length = u64::from(stream.read_u32().await?);
    match kind {
        b'R' if (8..ANSWER_BYTES_MAX).contains(&length) => {
            let without_password = stream.read_u32().await? == 0;
            // Terminate; the server forgets the session at once. It may have closed already.
            let _ = stream.write_all(b"X\0\0\0\x04").await;
            let _ = stream.shutdown().await;
            Ok(Login::Accepted { without_password })
        }
        b'E' if (5..ANSWER_BYTES_MAX).contains(&length) => {
            let mut fields = Vec::new();
            // A server that has said no may end without TLS's closing; what came counts.
            let _ = stream.take(length - 4).read_to_end(&mut fields).await;
            Ok(Login::Refused(refusal(&fields)))
        }
        _ => Ok(Login::Unreadable),
    }
}

/// The words of an ErrorResponse. Who is let in by address sees an AuthenticationOk before any error.
fn refusal(fields: &[u8]) -> String {
    fields
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"M"))
        .map_or_else(
            || "without a reason".to_owned(),
            |words| String::from_utf8_lossy(words).into_owned(),
        )
}

#[cfg(test)]
mod tests {
    use test_support::{Postgres, PostgresOptions};

    use super::*;

    const ACCEPTED: Login = Login::Accepted {
        without_password: true,
    };

    /// The test server trusts local addresses: whoever comes is let in, whatever becomes of the role after that.
    #[tokio::test]
    async fn a_real_server_that_trusts_this_address_is_told_apart_from_none() {
        let server = test_support::shared_postgres().expect("PostgreSQL");
        let answer = probe("127.0.0.1", server.port(), &Wish::Plain).await;
        assert_eq!(answer.login, ACCEPTED);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = closed.local_addr().expect("its address").port();
        drop(closed);
        let answer = probe("127.0.0.1", port, &Wish::Plain).await;
        assert!(matches!(answer.login, Login::Unreachable(_)), "{answer:?}");
    }

    /// The server's certificate is for `localhost` and 127.0.0.1; 127.0.0.2 is the same server under a name that it has not.
    #[tokio::test]
    async fn tls_is_checked_as_the_policy_says_and_a_login_is_found_all_the_same() {
        let server = Postgres::start(&PostgresOptions {
            tls: true,
            tls_only: true,
            settings: vec![("listen_addresses".to_owned(), "127.0.0.1,127.0.0.2".to_owned())],
            ..PostgresOptions::default()
        })
        .expect("PostgreSQL");
        let ca = server.certificates().expect("TLS").ca.clone().into_bytes();
        let other = test_support::Certificates::new(&["localhost"]).expect("another authority");
        let tls = |check, ca: &[u8]| Wish::Tls {
            check,
            ca: Some(ca.to_vec()),
        };
        for (host, wish, fails) in [
            ("127.0.0.1", tls(Check::AuthorityAndHost, &ca), None),
            (
                "127.0.0.1",
                tls(Check::Authority, other.ca.as_bytes()),
                Some("invalid peer certificate"),
            ),
            ("127.0.0.2", tls(Check::Authority, &ca), None),
            (
                "127.0.0.2",
                tls(Check::AuthorityAndHost, &ca),
                Some("invalid peer certificate"),
            ),
            (
                "127.0.0.1",
                tls(Check::Authority, b"no PEM"),
                Some("no certificate"),
            ),
            ("127.0.0.1", Wish::Plain, None),
        ] {
            let answer = probe(host, server.port(), &wish).await;
            assert_eq!(answer.login, ACCEPTED, "{host} {wish:?}");
            match (&answer.wish_fails, fails) {
                (None, None) => {}
                (Some(told), Some(words)) => assert!(told.contains(words), "{told}"),
                other => panic!("{host} {wish:?}: {other:?}"),
            }
        }
        let plain = test_support::shared_postgres().expect("PostgreSQL");
        let answer = probe("127.0.0.1", plain.port(), &tls(Check::Nothing, &ca)).await;
        assert_eq!(answer.login, ACCEPTED);
        assert_eq!(
            answer.wish_fails.as_deref(),
            Some("the server does not speak TLS")
        );
    }

    #[test]
    fn a_refusal_keeps_the_servers_words() {
        assert_eq!(
            refusal(b"SFATAL\0C28000\0Mno pg_hba.conf entry\0\0"),
            "no pg_hba.conf entry"
        );
    }
}
