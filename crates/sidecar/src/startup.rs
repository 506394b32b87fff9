//! The first packets of a client: TLS or not, cancel or session.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_rustls::TlsAcceptor;
use wire_protocol::postgres::startup::{
    CancelRequest, FirstPacket, StartupMessage, TLS_HANDSHAKE, VERSION_3_0, VERSION_3_2, first_packet,
};

use crate::capture::Offer;
use crate::fatal::{EndKind, Failure, Fatal};
use crate::rewound::Rewound;
use crate::stream::{Leg, Stream};
use crate::tls::ALPN;

/// From the connection to the end of the login, as `authentication_timeout` of the server.
pub const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What the client wants.
#[derive(Debug)]
pub enum Wish {
    /// Cancel a session.
    Cancel(CancelRequest),
    /// A session.
    Session(StartupMessage),
    /// Nothing: it closed without a word, as port probes do.
    Nothing,
}

/// Reads the first packets, with TLS on the way. Returns the leg (TLS may have changed it) even when it fails, so
/// that the client can be told.
pub async fn receive(leg: Leg, tls: &Offer) -> (Option<Leg>, Result<Wish, Failure>) {
    let mut leg = leg;
    let (mut asked_tls, mut asked_gss) = (false, false);
    match leg.fill().await {
        Ok(0) => return (Some(leg), Ok(Wish::Nothing)),
        Ok(_) => {}
        Err(error) => return (Some(leg), Err(Failure::ClientGone(error))),
    }
    if leg.received.first() == Some(&TLS_HANDSHAKE) {
        let Offer::Serve(acceptor) = tls else {
            // No error can be put in words the client would understand.
            return (None, Err(Failure::Told(EndKind::ClientTls)));
        };
        leg = match handshake(leg, acceptor).await {
            Ok(leg) => leg,
            Err(failure) => return (None, Err(failure)),
        };
        let named = match leg.stream() {
            Stream::Server(stream) => stream.get_ref().1.alpn_protocol() == Some(ALPN),
            Stream::Plain(_) | Stream::Client(_) => false,
        };
        if !named {
            let fatal = Fatal::new(
                EndKind::ClientTls,
                "08P01",
                "direct TLS needs the ALPN protocol `postgresql`",
            );
            return (Some(leg), Err(fatal.into()));
        }
        asked_tls = true;
        asked_gss = true;
    }
    loop {
        let packet = match first_packet(&mut leg.received) {
            Ok(packet) => packet,
            Err(error) => return (Some(leg), Err(Fatal::protocol(&error).into())),
        };
        let Some(packet) = packet else {
            match leg.fill().await {
                Ok(0) if leg.received.is_empty() => return (Some(leg), Ok(Wish::Nothing)),
                Ok(0) => return (Some(leg), Err(Failure::client_closed())),
                Ok(_) => continue,
                Err(error) => return (Some(leg), Err(Failure::ClientGone(error))),
            }
        };
        match packet {
            FirstPacket::Cancel(request) => return (Some(leg), Ok(Wish::Cancel(request))),
            FirstPacket::Startup(message) => {
                if !leg.received.is_empty() {
                    return (Some(leg), Err(early_data("the first packet").into()));
                }
                return (Some(leg), Ok(Wish::Session(message)));
            }
            FirstPacket::SslRequest if !asked_tls => {
                // CVE-2021-23214: what came in the clear must not be taken for what came encrypted.
                if !leg.received.is_empty() {
                    return (Some(leg), Err(early_data("the request for TLS").into()));
                }
                asked_tls = true;
                let answer: &'static [u8] = match tls {
                    Offer::Serve(_) => b"S",
                    Offer::Plain => b"N",
                    // A client that insists would take "no" for the end of the matter.
                    Offer::NotYet => return (Some(leg), Err(no_certificate().into())),
                };
                leg.send(Bytes::from_static(answer));
                if let Err(error) = leg.flush().await {
                    return (Some(leg), Err(Failure::ClientGone(error)));
                }
                if let Offer::Serve(acceptor) = tls {
                    leg = match handshake(leg, acceptor).await {
                        Ok(leg) => leg,
                        Err(failure) => return (None, Err(failure)),
                    };
                    asked_gss = true;
                }
            }
            FirstPacket::GssEncRequest if !asked_gss => {
                if !leg.received.is_empty() {
                    return (
                        Some(leg),
                        Err(early_data("the request for GSS encryption").into()),
                    );
                }
                asked_gss = true;
                leg.send(Bytes::from_static(b"N"));
                if let Err(error) = leg.flush().await {
                    return (Some(leg), Err(Failure::ClientGone(error)));
                }
            }
            FirstPacket::SslRequest | FirstPacket::GssEncRequest => {
                let fatal = Fatal::new(EndKind::Protocol, "08P01", "encryption was asked for twice");
                return (Some(leg), Err(fatal.into()));
            }
        }
    }
}

fn no_certificate() -> Fatal {
    Fatal::new(
        EndKind::ClientTls,
        "57P03",
        "WEIR-096: there is no certificate towards the application yet",
    )
    .hint("try again in a moment; weir-sidecar's log says what the operator answers")
}

fn early_data(after: &str) -> Fatal {
    Fatal::new(
        EndKind::Protocol,
        "08P01",
        format!("received data behind {after}, before its answer"),
    )
}

/// TLS with the client. What was read already is handed to it.
async fn handshake(leg: Leg, acceptor: &TlsAcceptor) -> Result<Leg, Failure> {
    let (stream, received) = leg.into_parts();
    let Stream::Plain(socket) = stream else {
        return Err(Failure::Told(EndKind::ClientTls));
    };
    let accepted = acceptor.accept(Rewound::new(received.freeze(), socket)).await;
    match accepted {
        Ok(stream) => Ok(Leg::new(Stream::Server(Box::new(stream)))),
        Err(error) => {
            tracing::debug!(%error, "no TLS with the client");
            Err(Failure::Told(EndKind::ClientTls))
        }
    }
}

/// What of a client's wishes can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Version asked of the server.
    pub version: u32,
    /// Version the client asked for.
    pub asked: u32,
    /// `_pq_.` options that nobody here knows; they are not passed on.
    pub unknown: Vec<Bytes>,
    /// The other parameters, in order.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// User the client names.
    pub user: Bytes,
    /// Database the client names.
    pub database_named: Option<Bytes>,
}

/// Reads a StartupMessage.
///
/// # Errors
/// Another protocol, replication, no user.
pub fn terms(message: &StartupMessage) -> Result<Terms, Fatal> {
    if message.major() != 3 {
        return Err(Fatal::new(
            EndKind::Protocol,
            "0A000",
            format!(
                "unsupported frontend protocol {}.{}: weir-sidecar supports 3.0 and 3.2",
                message.major(),
                message.minor()
            ),
        ));
    }
    let replication = message.parameter("replication");
    let wants_none = |value: &Bytes| {
        let value = value.to_ascii_lowercase();
        matches!(value.as_slice(), b"false" | b"off" | b"no" | b"0" | b"f" | b"n")
    };
    if replication.is_some_and(|value| !wants_none(value)) {
        return Err(Fatal::new(
            EndKind::Refused,
            "0A000",
            "WEIR-090: replication is not let through: a copy of the data cannot be governed",
        )
        .hint("connect to the database itself for replication, with a role of its own"));
    }
    let user = message.parameter("user").filter(|user| !user.is_empty()).cloned();
    let Some(user) = user else {
        return Err(Fatal::new(
            EndKind::Protocol,
            "28000",
            "no PostgreSQL user name specified in startup packet",
        ));
    };
    let database_named = message
        .parameter("database")
        .filter(|name| !name.is_empty())
        .cloned();
    let mut unknown = Vec::new();
    let mut parameters = Vec::new();
    for (name, value) in &message.parameters {
        if name.starts_with(b"_pq_.") {
            unknown.push(name.clone());
        } else if !matches!(name.as_ref(), b"replication" | b"user" | b"database") {
            parameters.push((name.clone(), value.clone()));
        }
    }
    Ok(Terms {
        // Never 3.1, which no server has.
        version: if message.minor() >= 2 {
            VERSION_3_2
        } else {
            VERSION_3_0
        },
        asked: message.version,
        unknown,
        parameters,
        user,
        database_named,
    })
}

impl Terms {
    /// The first packet for the server.
    ///
    /// # Errors
    /// When it grows too long.
    pub fn startup(&self, user: &[u8], database: &[u8]) -> Result<Bytes, Fatal> {
        let mut out = BytesMut::new();
        let own: [(&[u8], &[u8]); 2] = [(b"user", user), (b"database", database)];
        let given = self
            .parameters
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()));
        wire_protocol::postgres::write::frontend::startup(
            &mut out,
            self.version,
            own.into_iter().chain(given),
        )
        .map_err(|error| Fatal::protocol(&error))?;
        Ok(out.freeze())
    }
}
