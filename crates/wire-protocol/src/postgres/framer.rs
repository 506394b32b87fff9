//! Cuts what was read into messages.
//!
//! ```text
//!             ≤ cap                                     > cap
//!  header ──► Whole(Message)      Stream: Head, Part, Part(last)      Drain: TooLong, then silence to its end
//!                                                                     Refuse: an error
//! ```
//! A buffer never has to hold more than the cap of the message it begins with, and grows only with bytes that came.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{MESSAGE_LENGTH_MAX, STATEMENT_LENGTH_DEFAULT, WHOLE_LENGTH_DEFAULT, WireError, tag};

/// Bytes of a message's header: type and length word.
const HEADER: usize = 5;
/// A streamed message is announced once so many of its bytes are here, so that the names at its front can be read.
const PREFIX_MIN: usize = 16 * 1024;

/// What happens to a message above its cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Above {
    /// It is handed out in pieces: [`Frame::Head`], then [`Frame::Part`]s.
    Stream,
    /// [`Frame::TooLong`], then its bytes are dropped as they come.
    Drain,
    /// [`WireError::BadLength`].
    Refuse,
}

/// The cap of one message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Longest message that is handed out whole, in bytes on the wire.
    pub whole_max: u32,
    /// What happens to longer ones.
    pub above: Above,
}

/// Caps by message type; shared by all connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    by_tag: Vec<(u8, Cap)>,
    others: Cap,
}

impl Caps {
    /// The same cap for every type.
    pub fn all(others: Cap) -> Self {
        Self {
            by_tag: Vec::new(),
            others,
        }
    }

    /// What a client sends after its authentication. `statement_max` is `--statement-max-bytes`.
    pub fn client(statement_max: u32) -> Self {
        let statement = Cap {
            // The header and, for Parse, names and types stand beside the text.
            whole_max: statement_max
                .saturating_add(WHOLE_LENGTH_DEFAULT)
                .min(MESSAGE_LENGTH_MAX),
            above: Above::Drain,
        };
        Self::all(Cap {
            whole_max: WHOLE_LENGTH_DEFAULT,
            above: Above::Stream,
        })
        .with(tag::QUERY, statement)
        .with(tag::PARSE, statement)
    }

    /// What a client sends while it logs in: nothing long (the server's limit for tokens is 65,535).
    pub fn client_login() -> Self {
        Self::all(Cap {
            whole_max: WHOLE_LENGTH_DEFAULT + 16,
            above: Above::Refuse,
        })
    }

    /// What a server sends. Descriptions and errors are needed whole; 1,600 columns with long names take 140 KiB.
    pub fn server() -> Self {
        let needed_whole = Cap {
            whole_max: 1024 * 1024,
            above: Above::Stream,
        };
        Self::all(Cap {
            whole_max: WHOLE_LENGTH_DEFAULT,
            above: Above::Stream,
        })
        // A row is masked or stripped as a whole; a longer one passes in pieces where nothing of it is changed.
        .with(
            tag::DATA_ROW,
            Cap {
                whole_max: 16 * 1024 * 1024,
                above: Above::Stream,
            },
        )
        .with(tag::ROW_DESCRIPTION, needed_whole)
        .with(tag::PARAMETER_DESCRIPTION, needed_whole)
        .with(tag::ERROR_RESPONSE, needed_whole)
        .with(tag::NOTICE_RESPONSE, needed_whole)
    }

    /// The same while an answer to a question of our own comes in: its rows describe a whole catalog and are held.
    pub fn server_answering_us() -> Self {
        Self::server().with(
            tag::DATA_ROW,
            Cap {
                whole_max: 512 * 1024 * 1024,
                above: Above::Stream,
            },
        )
    }

    /// Sets the cap of one type.
    #[must_use]
    pub fn with(mut self, tag: u8, cap: Cap) -> Self {
        self.by_tag.retain(|(known, _)| *known != tag);
        self.by_tag.push((tag, cap));
        self
    }

    /// The cap of a type.
    pub fn of(&self, tag: u8) -> Cap {
        self.by_tag
            .iter()
            .find(|(known, _)| *known == tag)
            .map_or(self.others, |(_, cap)| *cap)
    }
}

impl Default for Caps {
    fn default() -> Self {
        Self::client(STATEMENT_LENGTH_DEFAULT)
    }
}

/// A whole message: a slice of what was read. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub tag: u8,
    /// Header and body, as they came.
    pub raw: Bytes,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "Message({}, {} bytes)",
            tag::name(self.tag),
            self.raw.len()
        )
    }
}

impl Message {
    /// The body, without type and length word.
    pub fn body(&self) -> &[u8] {
        self.raw.get(HEADER..).unwrap_or_default()
    }
    /// The body as a slice that shares the memory.
    pub fn body_bytes(&self) -> Bytes {
        let mut body = self.raw.clone();
        drop(body.split_to(HEADER.min(body.len())));
        body
    }
}

/// What comes out of a [`Framer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message within its cap.
    Whole(Message),
    /// A longer one begins. `prefix` holds the header and the first bytes of the body (at least 16 KiB with the
    /// header); `Part`s follow until `last`.
    Head {
        /// Type.
        tag: u8,
        /// Length of the body (without type and length word).
        length: u32,
        /// Header and first bytes of the body, as they came.
        prefix: Bytes,
    },
    /// More of the message that a `Head` (or a partial [`Run`]) began.
    Part {
        /// As they came; never empty.
        bytes: Bytes,
        /// The message ends here.
        last: bool,
    },
    /// A message above its cap. Its bytes are dropped as they come; the next frame is the next message.
    TooLong {
        /// Type.
        tag: u8,
        /// Length of the body.
        length: u32,
    },
}

/// A stretch of messages of one type, as they came, in one slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The bytes.
    pub bytes: Bytes,
    /// Messages whose header is in `bytes`.
    pub started: u64,
    /// Messages whose last byte is in `bytes`.
    pub completed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A header comes next.
    Header,
    /// So many bytes of the message `tag` are still to be handed out.
    Streaming { tag: u8, remaining: usize },
    /// So many bytes are still to be dropped.
    Draining { remaining: usize },
}

/// Cuts one direction of a connection into frames. It holds no bytes itself: the caller reads into a `BytesMut` and
/// calls [`Framer::next`] until it says `None`.
#[derive(Debug, Clone)]
pub struct Framer {
    caps: Arc<Caps>,
    state: State,
}

impl Framer {
    /// Starts at a message's header.
    pub fn new(caps: Arc<Caps>) -> Self {
        Self {
            caps,
            state: State::Header,
        }
    }

    /// Changes the caps, from the next header on.
    pub fn set_caps(&mut self, caps: Arc<Caps>) {
        self.caps = caps;
    }

    /// Between two messages. If the peer closes its side elsewhere, it stopped in the middle of one.
    pub fn between_messages(&self) -> bool {
        self.state == State::Header
    }

    /// The next frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`WireError::BadLength`]: the stream cannot be understood from here on, both sides must be closed.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        loop {
            match self.state {
                State::Header => {}
                State::Streaming { tag, remaining } => {
                    if buffer.is_empty() {
                        return Ok(None);
                    }
                    let bytes = buffer.split_to(remaining.min(buffer.len())).freeze();
                    let left = remaining - bytes.len();
                    self.state = after(tag, left);
                    return Ok(Some(Frame::Part {
                        bytes,
                        last: left == 0,
                    }));
                }
                State::Draining { remaining } => {
                    if buffer.is_empty() {
                        return Ok(None);
                    }
                    let dropped = remaining.min(buffer.len());
                    drop(buffer.split_to(dropped));
                    self.state = match remaining - dropped {
                        0 => State::Header,
                        remaining => State::Draining { remaining },
                    };
                    continue;
                }
            }
            let Some(header) = Header::read(buffer)? else {
                return Ok(None);
            };
            let cap = self.caps.of(header.tag);
            if header.total <= usize::try_from(cap.whole_max).unwrap_or(usize::MAX).max(HEADER) {
                if buffer.len() < header.total {
                    return Ok(None);
                }
                let raw = buffer.split_to(header.total).freeze();
                return Ok(Some(Frame::Whole(Message { tag: header.tag, raw })));
            }
            match cap.above {
                Above::Stream => {
                    if buffer.len() < header.total.min(PREFIX_MIN) {
                        return Ok(None);
                    }
                    // Everything may be here already; a last Part must follow all the same, so one byte stays back.
                    let prefix = buffer.split_to((header.total - 1).min(buffer.len())).freeze();
                    let left = header.total - prefix.len();
                    self.state = after(header.tag, left);
                    return Ok(Some(Frame::Head {
                        tag: header.tag,
                        length: header.body(),
                        prefix,
                    }));
                }
                Above::Drain => {
                    self.state = State::Draining {
                        remaining: header.total,
                    };
                    return Ok(Some(Frame::TooLong {
                        tag: header.tag,
                        length: header.body(),
                    }));
                }
                Above::Refuse => {
                    return Err(WireError::BadLength {
                        tag: header.tag,
                        length: header.length,
                    });
                }
            }
        }
    }

    /// The longest stretch of messages of type `tag` at the front of the buffer, as one slice: how rows and COPY data
    /// that need no mask are forwarded read by read. At most `started_max` messages are begun. With `partial`, the
    /// last one may be cut (its rest comes with the next run, or as [`Frame::Part`]s), so nothing has to be held
    /// back; a message that was begun so far counts as started there and as completed where it ends. `None`: the
    /// next message is another one, or more bytes are needed; ask [`Framer::next`].
    ///
    /// # Errors
    /// As [`Framer::next`]; what is in front of the bad header comes out first.
    pub fn next_run(
        &mut self,
        buffer: &mut BytesMut,
        tag: u8,
        started_max: u64,
        partial: bool,
    ) -> Result<Option<Run>, WireError> {
        let mut end = 0_usize;
        let mut started = 0_u64;
        let mut completed = 0_u64;
        let mut state = State::Header;
        match self.state {
            State::Header => {}
            State::Streaming { tag: open, remaining } if open == tag => {
                if remaining > buffer.len() {
                    end = buffer.len();
                    state = State::Streaming {
                        tag,
                        remaining: remaining - end,
                    };
                } else {
                    end = remaining;
                    completed = 1;
                }
            }
            State::Streaming { .. } | State::Draining { .. } => return Ok(None),
        }
        while state == State::Header && started < started_max {
            let front = buffer.get(end..).unwrap_or_default();
            let header = match Header::read(front) {
                Ok(Some(header)) if header.tag == tag => header,
                Ok(_) => break,
                Err(_) if end > 0 => break,
                Err(error) => return Err(error),
            };
            if front.len() >= header.total {
                end += header.total;
                started += 1;
                completed += 1;
            } else if partial {
                end = buffer.len();
                started += 1;
                state = State::Streaming {
                    tag,
                    remaining: header.total - front.len(),
                };
            } else {
                break;
            }
        }
        if end == 0 {
            return Ok(None);
        }
        self.state = state;
        Ok(Some(Run {
            bytes: buffer.split_to(end).freeze(),
            started,
            completed,
        }))
    }
}

fn after(tag: u8, remaining: usize) -> State {
    if remaining == 0 {
        State::Header
    } else {
        State::Streaming { tag, remaining }
    }
}

/// A checked header.
#[derive(Debug, Clone, Copy)]
struct Header {
    tag: u8,
    /// The length word: body and itself.
    length: u32,
    /// Bytes on the wire: type, length word, body.
    total: usize,
}

impl Header {
    fn read(front: &[u8]) -> Result<Option<Self>, WireError> {
        let Some([tag, length @ ..]) = front.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (tag, length) = (*tag, u32::from_be_bytes(*length));
        if !(4..=MESSAGE_LENGTH_MAX).contains(&length) {
            return Err(WireError::BadLength { tag, length });
        }
        let total = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(1))
            .ok_or(WireError::BadLength { tag, length })?;
        Ok(Some(Self { tag, length, total }))
    }

    fn body(self) -> u32 {
        self.length.saturating_sub(4)
    }
}
