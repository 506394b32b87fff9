//! Secrets: bytes that print nothing of themselves, and where they come from.

use std::fmt;
use std::sync::Arc;

/// Bytes of a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Arc<[u8]>);

impl SecretBytes {
    /// Takes bytes.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }
    /// The bytes, for the one who needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretBytes(..)")
    }
}

/// A key of a Secret, as a policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretKey {
    /// Namespace of the policy.
    pub namespace: Option<String>,
    /// Name of the Secret.
    pub name: String,
    /// Key in its data.
    pub key: String,
}

impl fmt::Display for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "key {} of Secret {}", self.key, self.name)
    }
}

/// Where Secrets come from that no manifest holds (files, as Kubernetes mounts them).
pub trait SecretSource {
    /// The bytes of that key, if there are any.
    fn secret(&self, key: &SecretKey) -> Option<SecretBytes>;
}

/// No other source than the manifests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl SecretSource for NoSecrets {
    fn secret(&self, _key: &SecretKey) -> Option<SecretBytes> {
        None
    }
}
