//! Names and digests, fixed in size and written as lower-case hex. Only that one spelling is read back, so that no
//! altered byte of a stored document can mean the same.

use std::fmt;

use aws_lc_rs::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $size:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $size]);

        impl $name {
            /// Reads the lower-case hex form.
            pub fn from_hex(text: &str) -> Option<Self> {
                if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return None;
                }
                let mut bytes = [0_u8; $size];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Self(bytes))
            }
            /// Takes a slice of exactly that length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut buffer = [0_u8; $size * 2];
                match hex::encode_to_slice(self.0, &mut buffer) {
                    Ok(()) => f.write_str(std::str::from_utf8(&buffer).unwrap_or_default()),
                    Err(_) => Err(fmt::Error),
                }
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Hex;
                impl de::Visitor<'_> for Hex {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes in lower-case hex", $size)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::from_hex(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
                    }
                }
                deserializer.deserialize_str(Hex)
            }
        }
        #[cfg(test)]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": $pattern})
            }
        }
    };
}

fixed_bytes!(
    /// A SHA-256 digest.
    Digest, 32, "^[0-9a-f]{64}$"
);
fixed_bytes!(
    /// One life of one process. It is the start of the SHA-256 of the public key that process signs with, so no other
    /// key can speak for it.
    BootId, 16, "^[0-9a-f]{32}$"
);
fixed_bytes!(
    /// One client connection: 128 random bits.
    SessionId, 16, "^[0-9a-f]{32}$"
);
fixed_bytes!(
    /// An Ed25519 public key.
    PublicKey, 32, "^[0-9a-f]{64}$"
);
fixed_bytes!(
    /// An Ed25519 signature.
    Signature, 64, "^[0-9a-f]{128}$"
);

impl Digest {
    /// What stands before the first event of a chain.
    pub const ZERO: Self = Self([0; 32]);

    /// SHA-256 over the parts, one after the other.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(part);
        }
        let mut bytes = [0_u8; 32];
        // SHA-256 gives 32 bytes: the two slices are equally long.
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }
}

impl BootId {
    /// The boot that signs with that key.
    pub fn of_key(key: &PublicKey) -> Self {
        let digest = Digest::of(&[b"weir-boot-v1\0", &key.0]);
        let mut bytes = [0_u8; 16];
        for (to, from) in bytes.iter_mut().zip(digest.0) {
            *to = from;
        }
        Self(bytes)
    }
}

/// The salted digest of a statement's raw text: equal texts of one boot are equal, and nobody without the salt can try
/// literals against it.
pub fn statement_key(salt: &[u8; 32], text: &str) -> Digest {
    Digest::of(&[b"weir-statement-v1\0", salt, text.as_bytes()])
}
