//! First packets: they have no type byte.

use bytes::{Bytes, BytesMut};

use super::{Reader, STARTUP_LENGTH_MAX, WireError};

/// First byte of a TLS handshake: a client that negotiates TLS directly sends it in place of a packet.
pub const TLS_HANDSHAKE: u8 = 0x16;
/// Protocol 3.0.
pub const VERSION_3_0: u32 = 196_608;
/// Protocol 3.2 (3.1 was never used).
pub const VERSION_3_2: u32 = 196_610;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// A first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// TLS is asked for.
    SslRequest,
    /// GSS encryption is asked for.
    GssEncRequest,
    /// A running statement is to be cancelled.
    Cancel(CancelRequest),
    /// A session begins.
    Startup(StartupMessage),
}

/// Who is to be cancelled.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// Process id as BackendKeyData said it.
    pub process_id: u32,
    /// Key as BackendKeyData said it, 4 to 256 bytes.
    pub key: Bytes,
}

impl std::fmt::Debug for CancelRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CancelRequest")
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

/// The start of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// Major in the upper, minor in the lower 16 bits.
    pub version: u32,
    /// Names and values in order, duplicates included (the server takes the last).
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl StartupMessage {
    /// Major version.
    pub fn major(&self) -> u32 {
        self.version >> 16
    }
    /// Minor version.
    pub fn minor(&self) -> u32 {
        self.version & 0xFFFF
    }
    /// The value that counts: the last one of that name.
    pub fn parameter(&self, name: &str) -> Option<&Bytes> {
        self.parameters
            .iter()
            .rev()
            .find(|(known, _)| known.as_ref() == name.as_bytes())
            .map(|(_, value)| value)
    }
}

/// Takes the first packet off the buffer, or `None` when more bytes are needed.
///
/// # Errors
/// [`WireError::BadLength`] for a length the server would not take either, and whatever is wrong in its content.
pub fn first_packet(buffer: &mut BytesMut) -> Result<Option<FirstPacket>, WireError> {
    let Some(word) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*word);
    if !(8..=STARTUP_LENGTH_MAX + 4).contains(&length) {
        return Err(WireError::BadLength { tag: 0, length });
    }
    let total = usize::try_from(length).map_err(|_| WireError::BadLength { tag: 0, length })?;
    if buffer.len() < total {
        return Ok(None);
    }
    let packet = buffer.split_to(total).freeze();
    let mut reader = Reader::new(&packet);
    reader.u32("the length")?;
    let packet_of = |slice: &[u8]| packet.slice_ref(slice);
    let first = match reader.u32("the protocol version")? {
        SSL => {
            reader.finish()?;
            FirstPacket::SslRequest
        }
        GSSENC => {
            reader.finish()?;
            FirstPacket::GssEncRequest
        }
        CANCEL => {
            let process_id = reader.u32("the process id")?;
            let key = reader.rest();
            if !(4..=256).contains(&key.len()) {
                return Err(WireError::BadValue {
                    what: "the length of a cancel key",
                    value: i64::try_from(key.len()).unwrap_or(i64::MAX),
                });
            }
            FirstPacket::Cancel(CancelRequest {
                process_id,
                key: packet_of(key),
            })
        }
        version => {
            let mut parameters = Vec::new();
            if version >> 16 == 3 {
                loop {
                    let name = reader.cstr()?;
                    if name.is_empty() {
                        break;
                    }
                    let value = reader.cstr()?;
                    parameters.push((packet_of(name), packet_of(value)));
                }
                reader.finish()?;
            }
            // Another major version: its layout is not known, only that it is refused.
            FirstPacket::Startup(StartupMessage { version, parameters })
        }
    };
    Ok(Some(first))
}
