//! What a policy may put in place of a value, and which of two masks counts.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;

/// A mask as a policy names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// Every value reads NULL.
    Null,
    /// Every value that is not NULL reads as this one.
    Constant {
        /// As it would stand between quotes in SQL, in the column's own type.
        value: String,
    },
    /// The first and last characters stay, the others become `*`; a value too short to hide anything becomes all `*`.
    Partial {
        /// Characters shown at the start.
        keep_first: u32,
        /// Characters shown at the end.
        keep_last: u32,
    },
    /// `a***@example.com`: first character and domain.
    Email,
    /// The start of the year, month or day.
    DateTrunc {
        /// What stays.
        unit: DateUnit,
    },
    /// A keyed token: equal values give equal tokens, nobody without the key can compute one. Made on the wire.
    Hash {
        /// The key.
        key: HashKey,
    },
}

/// What [`Mask::DateTrunc`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DateUnit {
    /// Only the year.
    Year,
    /// Year and month.
    Month,
    /// The day, without the time.
    Day,
}

impl Mask {
    /// The name a policy uses.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "Null",
            Self::Constant { .. } => "Constant",
            Self::Partial { .. } => "Partial",
            Self::Email => "Email",
            Self::DateTrunc { .. } => "DateTrunc",
            Self::Hash { .. } => "Hash",
        }
    }

    /// Smaller is stricter: the kind first, then what a mask of that kind shows.
    fn looseness(&self) -> (u8, u64) {
        match self {
            Self::Null => (0, 0),
            Self::Constant { .. } => (1, 0),
            Self::Hash { .. } => (2, 0),
            Self::DateTrunc { unit } => (3, *unit as u64),
            Self::Email => (4, 0),
            Self::Partial {
                keep_first,
                keep_last,
            } => (5, u64::from(*keep_first) + u64::from(*keep_last)),
        }
    }
}

/// The mask that counts when several apply to one column: Null, Constant, Hash, `DateTrunc`, Email, Partial, in that
/// order; of two of a kind the one that shows less, then the one named first.
pub fn strictest<'a>(masks: impl IntoIterator<Item = &'a Mask>) -> Option<&'a Mask> {
    masks.into_iter().min_by_key(|mask| mask.looseness())
}

/// The key of [`Mask::Hash`]. Prints nothing of itself.
#[derive(Clone)]
pub struct HashKey {
    secret: Arc<[u8]>,
    hmac: Arc<hmac::Key>,
}

/// A key that cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashKeyError {
    /// A short key can be guessed from one known pair.
    #[error("the key of a Hash mask has {0} bytes, it needs 16 or more")]
    TooShort(usize),
}

impl HashKey {
    /// Fewest bytes of a key.
    pub const BYTES_MIN: usize = 16;

    /// Takes the key's bytes as they are.
    ///
    /// # Errors
    /// [`HashKeyError::TooShort`] below [`Self::BYTES_MIN`] bytes.
    pub fn new(secret: &[u8]) -> Result<Self, HashKeyError> {
        if secret.len() < Self::BYTES_MIN {
            return Err(HashKeyError::TooShort(secret.len()));
        }
        Ok(Self {
            secret: Arc::from(secret),
            hmac: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)),
        })
    }

    /// HMAC-SHA-256 of a value.
    pub(crate) fn digest(&self, value: &[u8]) -> hmac::Tag {
        hmac::sign(&self.hmac, value)
    }
}

impl PartialEq for HashKey {
    fn eq(&self, other: &Self) -> bool {
        self.secret == other.secret
    }
}

impl Eq for HashKey {}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> HashKey {
        HashKey::new(b"0123456789abcdef").unwrap()
    }

    #[test]
    fn the_strictest_mask_counts_whatever_the_order() {
        let ordered = [
            Mask::Null,
            Mask::Constant { value: "x".into() },
            Mask::Hash { key: key() },
            Mask::DateTrunc { unit: DateUnit::Year },
            Mask::DateTrunc {
                unit: DateUnit::Month,
            },
            Mask::DateTrunc { unit: DateUnit::Day },
            Mask::Email,
            Mask::Partial {
                keep_first: 0,
                keep_last: 2,
            },
            Mask::Partial {
                keep_first: 1,
                keep_last: 2,
            },
        ];
        for (at, stricter) in ordered.iter().enumerate() {
            for looser in ordered.iter().skip(at) {
                assert_eq!(strictest([stricter, looser]), Some(stricter));
                assert_eq!(strictest([looser, stricter]), Some(stricter));
            }
        }
        assert_eq!(strictest([]), None);
    }

    #[test]
    fn of_two_equally_strict_masks_the_first_counts() {
        let first = Mask::Constant {
            value: "first".into(),
        };
        let second = Mask::Constant {
            value: "second".into(),
        };
        assert_eq!(strictest([&first, &second]), Some(&first));
    }

    #[test]
    fn a_key_prints_nothing_of_itself_and_is_not_short() {
        let printed = format!("{:?} {:#?}", Mask::Hash { key: key() }, key());
        for part in ["0123", "48, 49", "abcdef", "30313233"] {
            assert!(!printed.contains(part), "{printed}");
        }
        assert_eq!(HashKey::new(b"0123456789abcde"), Err(HashKeyError::TooShort(15)));
    }
}
