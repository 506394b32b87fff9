//! Groups: up to 256 events under one signature, and the receipt of each of them.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::event::EVENT_BYTES_MAX;
use crate::ids::{BootId, Digest, PublicKey, Signature};
use crate::merkle::{inclusion_proof, leaf_hash, root_of, verify_inclusion};

/// Most events in one group.
pub const GROUP_EVENTS_MAX: usize = 256;

/// Domain separation: nothing else that Weir signs starts with this.
const SIGNED_PREFIX: &[u8] = b"weir-group-v1\0";
/// First byte of the binary form.
const FORMAT: u8 = 1;

/// A signing key, born in memory.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    /// The key of that seed: 32 bytes from the operating system's random source.
    ///
    /// # Errors
    /// Where the crypto library refuses.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, GroupProblem> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| GroupProblem::BadKey)?;
        let public = crate::note::public_of(&pair);
        Ok(Self { pair, public })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The boot that this key speaks for.
    pub fn boot(&self) -> BootId {
        BootId::of_key(&self.public)
    }

    /// Only for texts with a domain of their own.
    pub(crate) fn sign_raw(&self, message: &[u8]) -> Signature {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(self.pair.sign(message).as_ref()) {
            *to = *from;
        }
        Signature(bytes)
    }
}

/// What is signed of a group, and the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupHeader {
    /// The process.
    pub boot: BootId,
    /// Number of the group's first event in the chain of the process; the others follow without a hole.
    pub first_seq: u64,
    /// Number of events, 1 to 256.
    pub count: u16,
    /// Root of the tree over the events.
    pub root: Digest,
    /// Key of the process.
    pub key: PublicKey,
    /// Signature over all of the above.
    pub signature: Signature,
}

/// Events with the signature over them. The events are exact bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedGroup {
    /// What was signed.
    pub header: GroupHeader,
    /// Exact bytes of each event.
    pub events: Vec<Vec<u8>>,
}

/// Why a group or receipt does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupProblem {
    /// The bytes are not a group.
    #[error("not a signed group")]
    Malformed,
    /// The key is not the one the boot id stands for, or unusable.
    #[error("the key does not belong to the process")]
    BadKey,
    /// The signature does not match.
    #[error("the signature does not match")]
    BadSignature,
    /// The events do not lead to the signed root.
    #[error("the events are not the ones that were signed")]
    BadRoot,
}

/// Signs the tree over those leaves, which are the events from `first_seq` on: 1 to [`GROUP_EVENTS_MAX`] of them.
///
/// # Errors
/// [`GroupProblem::Malformed`] for no leaves or too many.
pub fn sign_group(key: &SigningKey, first_seq: u64, leaves: &[Digest]) -> Result<GroupHeader, GroupProblem> {
    if leaves.is_empty() || leaves.len() > GROUP_EVENTS_MAX {
        return Err(GroupProblem::Malformed);
    }
    let count = u16::try_from(leaves.len()).map_err(|_| GroupProblem::Malformed)?;
    let (boot, root) = (key.boot(), root_of(leaves));
    let signature = key.sign_raw(&signed_bytes(&boot, first_seq, count, &root));
    Ok(GroupHeader {
        boot,
        first_seq,
        count,
        root,
        key: key.public(),
        signature,
    })
}

fn signed_bytes(boot: &BootId, first_seq: u64, count: u16, root: &Digest) -> Vec<u8> {
    let mut message = SIGNED_PREFIX.to_vec();
    message.extend_from_slice(&boot.0);
    message.extend_from_slice(&first_seq.to_be_bytes());
    message.extend_from_slice(&count.to_be_bytes());
    message.extend_from_slice(&root.0);
    message
}

impl GroupHeader {
    /// Size of the binary form.
    pub const BYTES: usize = 1 + 16 + 8 + 2 + 32 + 32 + 64;

    /// Checks key and signature.
    ///
    /// # Errors
    /// [`GroupProblem::BadKey`], [`GroupProblem::BadSignature`]
    pub fn verify(&self) -> Result<(), GroupProblem> {
        if BootId::of_key(&self.key) != self.boot {
            return Err(GroupProblem::BadKey);
        }
        let message = signed_bytes(&self.boot, self.first_seq, self.count, &self.root);
        UnparsedPublicKey::new(&ED25519, self.key.0)
            .verify(&message, &self.signature.0)
            .map_err(|_| GroupProblem::BadSignature)
    }

    /// Number of the last event.
    pub fn last_seq(&self) -> u64 {
        self.first_seq
            .saturating_add(u64::from(self.count))
            .saturating_sub(1)
    }

    /// Appends the binary form.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.boot.0);
        bytes.extend_from_slice(&self.first_seq.to_be_bytes());
        bytes.extend_from_slice(&self.count.to_be_bytes());
        bytes.extend_from_slice(&self.root.0);
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&self.signature.0);
    }

    /// Reads the binary form from the front of `bytes`.
    pub fn decode(bytes: &mut &[u8]) -> Option<Self> {
        if take::<1>(bytes)? != [FORMAT] {
            return None;
        }
        let header = Self {
            boot: BootId(take(bytes)?),
            first_seq: u64::from_be_bytes(take(bytes)?),
            count: u16::from_be_bytes(take(bytes)?),
            root: Digest(take(bytes)?),
            key: PublicKey(take(bytes)?),
            signature: Signature(take(bytes)?),
        };
        let count = usize::from(header.count);
        (1..=GROUP_EVENTS_MAX).contains(&count).then_some(header)
    }
}

impl SignedGroup {
    /// Checks key, signature and that the events are the signed ones; gives their leaf hashes.
    ///
    /// # Errors
    /// [`GroupProblem`]
    pub fn verify(&self) -> Result<Vec<Digest>, GroupProblem> {
        self.header.verify()?;
        if self.events.len() != usize::from(self.header.count) {
            return Err(GroupProblem::Malformed);
        }
        let leaves: Vec<Digest> = self.events.iter().map(|event| leaf_hash(event)).collect();
        if root_of(&leaves) != self.header.root {
            return Err(GroupProblem::BadRoot);
        }
        Ok(leaves)
    }

    /// The receipt of one event of the group, by its place in it.
    pub fn receipt(&self, index: usize) -> Option<Receipt> {
        let leaves: Vec<Digest> = self.events.iter().map(|event| leaf_hash(event)).collect();
        let event = std::str::from_utf8(self.events.get(index)?).ok()?.to_owned();
        let path = inclusion_proof(leaves.as_slice(), index as u64, leaves.len() as u64).ok()?;
        Some(Receipt {
            v: ReceiptVersion::V1,
            event,
            index: u16::try_from(index).ok()?,
            path,
            group: self.header,
        })
    }

    /// Binary form: header, then each event with its length.
    pub fn encode(&self) -> Vec<u8> {
        let size: usize = self.events.iter().map(|event| event.len() + 4).sum();
        let mut bytes = Vec::with_capacity(GroupHeader::BYTES + size);
        self.header.encode_into(&mut bytes);
        for event in &self.events {
            bytes.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(event);
        }
        bytes
    }

    /// Reads the binary form from the front of `bytes`. Nothing is checked but the framing.
    ///
    /// # Errors
    /// [`GroupProblem::Malformed`]
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, GroupProblem> {
        let header = GroupHeader::decode(bytes).ok_or(GroupProblem::Malformed)?;
        let mut events = Vec::with_capacity(usize::from(header.count));
        for _ in 0..header.count {
            let length = u32::from_be_bytes(take(bytes).ok_or(GroupProblem::Malformed)?) as usize;
            if length > EVENT_BYTES_MAX {
                return Err(GroupProblem::Malformed);
            }
            let (event, rest) = bytes.split_at_checked(length).ok_or(GroupProblem::Malformed)?;
            events.push(event.to_vec());
            *bytes = rest;
        }
        Ok(Self { header, events })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// Version of a receipt's JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReceiptVersion {
    /// The only one so far.
    #[serde(rename = "weir.receipt/v1")]
    V1,
}

/// One event that can be verified by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Version of this form.
    pub v: ReceiptVersion,
    /// The event's exact bytes.
    pub event: String,
    /// Its place in the group.
    pub index: u16,
    /// From its leaf up to the group's root.
    pub path: Vec<Digest>,
    /// What was signed.
    pub group: GroupHeader,
}

impl Receipt {
    /// Checks signature, path, and that the event names the process and number it was signed for.
    ///
    /// # Errors
    /// [`GroupProblem`]
    pub fn verify(&self) -> Result<(), GroupProblem> {
        self.group.verify()?;
        let leaf = leaf_hash(self.event.as_bytes());
        let (index, size) = (u64::from(self.index), u64::from(self.group.count));
        if !verify_inclusion(&leaf, index, size, &self.path, &self.group.root) {
            return Err(GroupProblem::BadRoot);
        }
        let header: crate::event::EventHeader =
            serde_json::from_str(&self.event).map_err(|_| GroupProblem::Malformed)?;
        let seq = self
            .group
            .first_seq
            .checked_add(index)
            .ok_or(GroupProblem::Malformed)?;
        if header.proxy.boot != self.group.boot || header.proxy.seq != seq {
            return Err(GroupProblem::Malformed);
        }
        Ok(())
    }
}
