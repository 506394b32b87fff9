//! Records of a segment file: `length u32 | crc32c u32 | kind u8 | payload`, all big-endian; the length counts kind and
//! payload, the checksum covers them.

use receipts::{BootId, Digest, EVENT_BYTES_MAX, GroupHeader, SessionId, StatementLink};

/// Bytes before kind and payload.
pub(super) const HEAD_BYTES: usize = 8;

const KIND_START: u8 = 1;
const KIND_EVENT: u8 = 2;
const KIND_SIGNATURE: u8 = 3;
const KIND_MARK: u8 = 4;

/// An open mark: a statement began, its event will follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The session.
    pub session: SessionId,
    /// Number of the statement within it.
    pub statement: StatementLink,
    /// Salted digest of its text.
    pub key: Option<Digest>,
    /// Microseconds since 1970-01-01 UTC.
    pub time_us: i64,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// The process that writes this segment.
    Start(BootId),
    /// An event's exact bytes, not signed yet.
    Event(&'a [u8]),
    /// The signature over the events before it that have none.
    Signature(GroupHeader),
    /// An open mark.
    Mark(Mark),
}

impl Record<'_> {
    /// Appends the record.
    pub(super) fn encode_into(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend_from_slice(&[0; HEAD_BYTES]);
        match self {
            Self::Start(boot) => {
                bytes.push(KIND_START);
                bytes.extend_from_slice(&boot.0);
            }
            Self::Event(event) => {
                bytes.push(KIND_EVENT);
                bytes.extend_from_slice(event);
            }
            Self::Signature(header) => {
                bytes.push(KIND_SIGNATURE);
                header.encode_into(bytes);
            }
            Self::Mark(mark) => {
                bytes.push(KIND_MARK);
                bytes.extend_from_slice(&mark.session.0);
                bytes.extend_from_slice(&mark.statement.0.to_be_bytes());
                bytes.extend_from_slice(&mark.time_us.to_be_bytes());
                bytes.extend_from_slice(mark.key.as_ref().map_or(&[][..], |key| &key.0[..]));
            }
        }
        let (length, checksum) = {
            let body = bytes.get(start + HEAD_BYTES..).unwrap_or_default();
            (
                u32::try_from(body.len()).unwrap_or(u32::MAX),
                crc32c::crc32c(body),
            )
        };
        let head = length.to_be_bytes().into_iter().chain(checksum.to_be_bytes());
        for (to, from) in bytes.iter_mut().skip(start).zip(head) {
            *to = from;
        }
    }

    fn decode(body: &[u8]) -> Option<Record<'_>> {
        let (kind, payload) = body.split_first()?;
        match *kind {
            KIND_START => BootId::from_slice(payload).map(Record::Start),
            KIND_EVENT => Some(Record::Event(payload)),
            KIND_SIGNATURE => {
                let mut rest = payload;
                let header = GroupHeader::decode(&mut rest)?;
                rest.is_empty().then_some(Record::Signature(header))
            }
            KIND_MARK => {
                let (session, rest) = payload.split_first_chunk::<16>()?;
                let (statement, rest) = rest.split_first_chunk::<8>()?;
                let (time, rest) = rest.split_first_chunk::<8>()?;
                let key = if rest.is_empty() {
                    None
                } else {
                    Some(Digest::from_slice(rest)?)
                };
                Some(Record::Mark(Mark {
                    session: SessionId(*session),
                    statement: StatementLink(u64::from_be_bytes(*statement)),
                    key,
                    time_us: i64::from_be_bytes(*time),
                }))
            }
            _ => None,
        }
    }
}

/// The next record at the front of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// One record, and how many bytes it takes.
    Record(Record<'a>, usize),
    /// Nothing is left.
    End,
    /// The bytes stop before the record does: torn, or not all read yet.
    Short,
    /// Not a record: damaged.
    Damaged,
}

/// Reads the next record.
pub(super) fn next(bytes: &[u8]) -> Next<'_> {
    if bytes.is_empty() {
        return Next::End;
    }
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Next::Short;
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > EVENT_BYTES_MAX + 1 {
        return Next::Damaged;
    }
    let Some((checksum, rest)) = rest.split_first_chunk::<4>() else {
        return Next::Short;
    };
    let Some(body) = rest.get(..length) else {
        return Next::Short;
    };
    if crc32c::crc32c(body) != u32::from_be_bytes(*checksum) {
        return Next::Damaged;
    }
    match Record::decode(body) {
        Some(record) => Next::Record(record, HEAD_BYTES + length),
        None => Next::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_every_altered_byte_is_noticed() {
        let mark = Mark {
            session: SessionId([1; 16]),
            statement: StatementLink(5),
            key: Some(Digest([2; 32])),
            time_us: -3,
        };
        for record in [
            Record::Start(BootId([7; 16])),
            Record::Event(b"{}"),
            Record::Mark(mark),
            Record::Mark(Mark { key: None, ..mark }),
        ] {
            let mut bytes = Vec::new();
            record.encode_into(&mut bytes);
            assert_eq!(next(&bytes), Next::Record(record, bytes.len()));
            for at in 0..bytes.len() {
                assert!(!matches!(next(&bytes[..at]), Next::Record(..)), "cut at {at}");
                let mut bad = bytes.clone();
                bad[at] ^= 1 << (at % 8);
                assert!(!matches!(next(&bad), Next::Record(..)), "byte {at}");
            }
        }
    }
}
