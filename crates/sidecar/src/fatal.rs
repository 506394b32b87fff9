//! How a connection ends before its time, and what the client is told.

use std::io;

use access_policy::RefusalCode;
use bytes::BytesMut;
use prometheus_client::encoding::EncodeLabelValue;
use wire_protocol::postgres::{WireError, write};

/// Why, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum EndKind {
    /// The client said good-bye or closed its side.
    Client,
    /// Its bytes are no messages, or no messages that may come there.
    Protocol,
    /// TLS with the client failed.
    ClientTls,
    /// Something that Weir does not let through (replication, another database).
    Refused,
    /// The database cannot be reached.
    Unreachable,
    /// The database (or TLS with it) refused the login.
    Login,
    /// The session's state or the catalog cannot be read.
    Unreadable,
    /// Too many connections, or the login took too long.
    Limit,
    /// The database closed the connection.
    DatabaseGone,
    /// The sidecar stops.
    Draining,
    /// Records could not be kept.
    Receipts,
}

/// A last message for the client. All of its text is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fatal {
    /// For metrics.
    pub kind: EndKind,
    /// SQLSTATE.
    pub sqlstate: &'static str,
    /// What failed.
    pub message: String,
    /// The mend.
    pub hint: String,
}

impl Fatal {
    /// Without a hint.
    pub fn new(kind: EndKind, sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            sqlstate,
            message: message.into(),
            hint: String::new(),
        }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The client does not keep to the protocol.
    pub fn protocol(error: &WireError) -> Self {
        Self::new(EndKind::Protocol, "08P01", format!("protocol error: {error}"))
    }

    /// The database does not keep to the protocol.
    pub fn database_protocol(error: &WireError) -> Self {
        Self::new(
            EndKind::DatabaseGone,
            "08P01",
            format!("the database sent what is no message: {error}"),
        )
    }

    /// The database closed the connection.
    pub fn database_gone() -> Self {
        Self::new(
            EndKind::DatabaseGone,
            "57P01",
            "the connection to the database was lost",
        )
    }

    /// The sidecar stops.
    pub fn draining() -> Self {
        Self::new(
            EndKind::Draining,
            "57P01",
            "terminating connection because weir-sidecar is shutting down",
        )
    }

    /// The code at the start of the message, where it has one.
    pub fn code(&self) -> Option<RefusalCode> {
        let (number, _) = self.message.strip_prefix("WEIR-")?.split_once(':')?;
        number.parse().ok().map(RefusalCode)
    }

    /// As an ErrorResponse.
    pub fn encode(&self, out: &mut BytesMut) {
        // A NUL cannot be sent; our texts have none but for names of clients repeated in them.
        let message = self.message.replace('\0', " ");
        let mut fields: Vec<(u8, &[u8])> = vec![
            (b'S', b"FATAL"),
            (b'V', b"FATAL"),
            (b'C', self.sqlstate.as_bytes()),
            (b'M', message.as_bytes()),
        ];
        if !self.hint.is_empty() {
            fields.push((b'H', self.hint.as_bytes()));
        }
        if write::backend::error_response(out, fields).is_err() {
            tracing::error!("an error message could not be written");
        }
    }
}

/// How a stage ended early.
#[derive(Debug)]
pub enum Failure {
    /// The client is gone; nobody is left to be told.
    ClientGone(io::Error),
    /// The client is told.
    Fatal(Fatal),
    /// The client was told already (by the server's own error, or in an earlier message).
    Told(EndKind),
}

impl Failure {
    /// For metrics.
    pub fn kind(&self) -> EndKind {
        match self {
            Self::ClientGone(_) => EndKind::Client,
            Self::Fatal(fatal) => fatal.kind,
            Self::Told(kind) => *kind,
        }
    }

    /// The client closed its side.
    pub fn client_closed() -> Self {
        Self::ClientGone(io::ErrorKind::UnexpectedEof.into())
    }
}

impl From<Fatal> for Failure {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}
