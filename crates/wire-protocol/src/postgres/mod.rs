//! The PostgreSQL protocol, versions 3.0 and 3.2.

pub mod backend;
mod framer;
pub mod frontend;
mod reader;
pub mod rewrite;
pub mod startup;
pub mod tag;
pub mod write;

#[cfg(test)]
mod tests;

pub use backend::BackendMessage;
pub use framer::{Above, Cap, Caps, Frame, Framer, Message, Run};
pub use frontend::FrontendMessage;
pub use reader::Reader;

/// The longest message the protocol allows, its length word included (1 GiB - 1, as in the server).
pub const MESSAGE_LENGTH_MAX: u32 = 0x3FFF_FFFF;
/// The longest first packet, its length word left out (as in the server).
pub const STARTUP_LENGTH_MAX: u32 = 10_000;
/// Default of `--statement-max-bytes`.
pub const STATEMENT_LENGTH_DEFAULT: u32 = 32 * 1024 * 1024;
/// Messages up to this length are handed out whole, longer ones stream.
pub const WHOLE_LENGTH_DEFAULT: u32 = 64 * 1024;

/// What is wrong with bytes of a peer, or with a message that was to be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length word is below 4, above the protocol's limit, or above what may come in this phase.
    #[error("message {} announces {length} bytes", tag::name(*.tag))]
    BadLength {
        /// Message type; 0 for a first packet.
        tag: u8,
        /// The length word.
        length: u32,
    },
    /// The message ends in the middle of a value.
    #[error("the message ends inside {what}")]
    Truncated {
        /// Which value.
        what: &'static str,
    },
    /// A string without its final NUL.
    #[error("a string has no end")]
    Unterminated,
    /// Bytes follow the end of the message's content (a NUL inside a text shows as this, too).
    #[error("{count} bytes follow the end of the content")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// No message of that type exists in this direction.
    #[error("unknown message type {}", tag::name(*.tag))]
    UnknownTag {
        /// Message type.
        tag: u8,
    },
    /// A value that the protocol does not define.
    #[error("{what} cannot be {value}")]
    BadValue {
        /// Which value.
        what: &'static str,
        /// What came.
        value: i64,
    },
    /// A message of ours would not fit the protocol's lengths.
    #[error("{what} is too long to be sent")]
    TooLongToWrite {
        /// Which value.
        what: &'static str,
    },
    /// A text of ours holds a NUL, which no string of the protocol can carry.
    #[error("a text to be sent holds a NUL")]
    NulInText,
}
