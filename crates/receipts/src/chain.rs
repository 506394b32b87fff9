//! [`ChainWriter`]: gives each event its place in the chain of the process and of its session.

use std::collections::HashMap;

use crate::event::{Body, Event, LogHead, ProcessLink, SessionLink, Version};
use crate::ids::{BootId, Digest, SessionId};
use crate::merkle::leaf_hash;

/// An event with its place in its chains, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedEvent {
    /// Number in the chain of the process.
    pub seq: u64,
    /// Leaf hash of the bytes.
    pub leaf: Digest,
    /// Exact bytes.
    pub bytes: Vec<u8>,
}

/// The two chains of one process. Only one exists for a boot id.
#[derive(Debug)]
pub struct ChainWriter {
    boot: BootId,
    next_seq: u64,
    last: Digest,
    /// Open sessions: next number and last leaf. A `session.close` takes its session out.
    sessions: HashMap<SessionId, (u64, Digest)>,
}

impl ChainWriter {
    /// Both chains empty.
    pub fn new(boot: BootId) -> Self {
        Self {
            boot,
            next_seq: 0,
            last: Digest::ZERO,
            sessions: HashMap::new(),
        }
    }

    /// The process.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Number the next event will get.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Leaf hash of the last event; zeros before the first.
    pub fn head(&self) -> Digest {
        self.last
    }

    /// Links and encodes one event.
    pub fn link(
        &mut self,
        time_us: i64,
        mono_us: u64,
        session: Option<SessionId>,
        seen_head: Option<LogHead>,
        body: Body,
    ) -> EncodedEvent {
        let closes = matches!(body, Body::SessionClose(_));
        let link = session.map(|id| {
            let (seq, prev) = self.sessions.get(&id).copied().unwrap_or((0, Digest::ZERO));
            SessionLink { id, seq, prev }
        });
        let mut event = Event {
            v: Version::V1,
            time_us,
            mono_us,
            proxy: ProcessLink {
                boot: self.boot,
                seq: self.next_seq,
                prev: self.last,
            },
            session: link,
            seen_head,
            body,
        };
        let bytes = event.encode();
        let leaf = leaf_hash(&bytes);
        let seq = self.next_seq;
        self.next_seq += 1;
        self.last = leaf;
        if let Some(link) = link {
            if closes {
                self.sessions.remove(&link.id);
            } else {
                self.sessions.insert(link.id, (link.seq + 1, leaf));
            }
        }
        EncodedEvent { seq, leaf, bytes }
    }
}
