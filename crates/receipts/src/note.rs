//! Checkpoints of a log as signed notes (C2SP `tlog-checkpoint` and `signed-note`).

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::ids::{Digest, PublicKey};

/// What a log commits to: its first `size` entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log, the first line of the note.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Digest,
}

/// The key of a log, with the log's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogKey {
    /// Name of the log.
    pub name: String,
    /// Its public key.
    pub key: PublicKey,
}

/// Why a note is not a checkpoint of that log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteProblem {
    /// Not a note, or not one of a checkpoint.
    #[error("not a checkpoint: {0}")]
    Malformed(&'static str),
    /// A log of another name.
    #[error("checkpoint of the log `{found}`, not of `{expected}`")]
    OtherLog {
        /// First line.
        found: String,
        /// The key's name.
        expected: String,
    },
    /// No valid signature by the key.
    #[error("the checkpoint is not signed by the log's key")]
    BadSignature,
}

impl Checkpoint {
    /// The signed text.
    fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root.0)
        )
    }

    /// The note, signed under the origin's name.
    pub fn sign(&self, key: &crate::SigningKey) -> String {
        let log_key = LogKey {
            name: self.origin.clone(),
            key: key.public(),
        };
        let text = self.text();
        let mut signature = log_key.hash().to_vec();
        signature.extend_from_slice(&key.sign_raw(text.as_bytes()).0);
        format!("{text}\n— {} {}\n", self.origin, STANDARD.encode(signature))
    }

    /// Reads a note and checks the signature of that log; signatures of others (witnesses) are skipped.
    ///
    /// # Errors
    /// [`NoteProblem`]
    pub fn verify(note: &str, key: &LogKey) -> Result<Self, NoteProblem> {
        let (text, signatures) = note
            .split_once("\n\n")
            .ok_or(NoteProblem::Malformed("no blank line"))?;
        let mut lines = text.split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteProblem::Malformed("not three lines"));
        };
        let size_number: u64 = size
            .parse()
            .map_err(|_| NoteProblem::Malformed("size is not a number"))?;
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|bytes| Digest::from_slice(&bytes));
        let checkpoint = Self {
            origin: origin.to_owned(),
            size: size_number,
            root: root.ok_or(NoteProblem::Malformed("root is not a hash"))?,
        };
        if checkpoint.text() != format!("{text}\n") {
            return Err(NoteProblem::Malformed("not written in the one way allowed"));
        }
        if checkpoint.origin != key.name {
            return Err(NoteProblem::OtherLog {
                found: checkpoint.origin,
                expected: key.name.clone(),
            });
        }
        let signed = format!("{text}\n");
        let body = signatures
            .strip_suffix('\n')
            .ok_or(NoteProblem::Malformed("no newline at the end"))?;
        for line in body.split('\n') {
            let rest = line
                .strip_prefix("— ")
                .ok_or(NoteProblem::Malformed("signature line"))?;
            let (name, encoded) = rest
                .split_once(' ')
                .ok_or(NoteProblem::Malformed("signature line"))?;
            if name != key.name {
                continue;
            }
            let bytes = STANDARD
                .decode(encoded)
                .map_err(|_| NoteProblem::Malformed("signature is not base64"))?;
            let Some((hash, signature)) = bytes.split_first_chunk::<4>() else {
                return Err(NoteProblem::Malformed("signature is too short"));
            };
            if *hash != key.hash() {
                continue;
            }
            return match UnparsedPublicKey::new(&ED25519, key.key.0).verify(signed.as_bytes(), signature) {
                Ok(()) => Ok(checkpoint),
                Err(_) => Err(NoteProblem::BadSignature),
            };
        }
        Err(NoteProblem::BadSignature)
    }
}

impl LogKey {
    /// The first four bytes of `SHA-256(name ‖ LF ‖ 0x01 ‖ key)`; 1 is the number of Ed25519.
    fn hash(&self) -> [u8; 4] {
        let Digest([a, b, c, d, ..]) = Digest::of(&[self.name.as_bytes(), b"\n\x01", &self.key.0]);
        [a, b, c, d]
    }

    /// `name+hash+base64`, the form in which such keys are passed around.
    pub fn to_vkey(&self) -> String {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&self.key.0);
        format!(
            "{}+{}+{}",
            self.name,
            hex::encode(self.hash()),
            STANDARD.encode(bytes)
        )
    }

    /// Reads [`LogKey::to_vkey`].
    pub fn from_vkey(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '+');
        let (name, hash, encoded) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = STANDARD.decode(encoded).ok()?;
        let key = PublicKey::from_slice(bytes.strip_prefix(&[1])?)?;
        let key = Self {
            name: name.to_owned(),
            key,
        };
        (hex::encode(key.hash()) == hash && !name.is_empty() && !name.contains(char::is_whitespace))
            .then_some(key)
    }
}

/// Used by [`crate::SigningKey`].
pub(crate) fn public_of(pair: &Ed25519KeyPair) -> PublicKey {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(pair.public_key().as_ref()) {
        *to = *from;
    }
    PublicKey(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_verifies_and_no_altered_byte_of_it_does() {
        let key = crate::SigningKey::from_seed(&[7; 32]).unwrap();
        let log = LogKey {
            name: "weir.test/log".to_owned(),
            key: key.public(),
        };
        assert_eq!(LogKey::from_vkey(&log.to_vkey()).as_ref(), Some(&log));
        let checkpoint = Checkpoint {
            origin: log.name.clone(),
            size: 1234,
            root: Digest([9; 32]),
        };
        let note = checkpoint.sign(&key);
        assert_eq!(Checkpoint::verify(&note, &log).as_ref(), Ok(&checkpoint));
        for at in 0..note.len() {
            for bit in [1_u8, 0x20] {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= bit;
                if let Ok(text) = String::from_utf8(bytes) {
                    assert!(
                        Checkpoint::verify(&text, &log).is_err(),
                        "byte {at} bit {bit}: {text}"
                    );
                }
            }
        }
        let other = LogKey {
            name: log.name.clone(),
            key: crate::SigningKey::from_seed(&[8; 32]).unwrap().public(),
        };
        assert_eq!(Checkpoint::verify(&note, &other), Err(NoteProblem::BadSignature));
    }
}
