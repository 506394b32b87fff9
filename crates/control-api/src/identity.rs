//! What a process shows of itself, and whom it trusts.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::proto;

/// Certificate chain (leaf first) and the leaf's key. `Debug` shows no key.
pub struct Identity {
    /// Leaf first, then its issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// Why certificates or keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityProblem {
    /// Text or bytes that are none.
    #[error("cannot read {what}: {why}")]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// There is nothing to trust.
    #[error("there is no root certificate to trust")]
    NoRoots,
}

impl Identity {
    /// The leaf.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }

    /// When the leaf ends, Unix seconds; 0 where it cannot be read.
    pub fn not_after(&self) -> i64 {
        self.leaf().map_or(0, not_after)
    }

    /// Reads a chain and a PKCS#8 key, both DER.
    pub fn from_der(chain: Vec<Vec<u8>>, key: Vec<u8>) -> Self {
        Self {
            chain: chain.into_iter().map(CertificateDer::from).collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
        }
    }
}

/// When a certificate ends, Unix seconds; 0 where it cannot be read.
pub fn not_after(certificate: &CertificateDer<'_>) -> i64 {
    x509_parser::parse_x509_certificate(certificate.as_ref())
        .map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp())
}

/// Roots that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Of operator, collector and pods.
    pub roots: Vec<CertificateDer<'static>>,
    /// Towards applications only.
    pub capture_roots: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// From a message.
    pub fn from_proto(bundle: &proto::TrustBundle) -> Self {
        let read = |list: &[Vec<u8>]| list.iter().cloned().map(CertificateDer::from).collect();
        Self {
            roots: read(&bundle.roots),
            capture_roots: read(&bundle.capture_roots),
        }
    }

    /// As a message.
    pub fn to_proto(&self) -> proto::TrustBundle {
        let write = |list: &[CertificateDer<'static>]| list.iter().map(|one| one.to_vec()).collect();
        proto::TrustBundle {
            roots: write(&self.roots),
            capture_roots: write(&self.capture_roots),
        }
    }

    /// From the PEM of the roots (no capture roots).
    ///
    /// # Errors
    /// [`IdentityProblem`]; also where there is not one certificate.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityProblem> {
        let roots = certificates_from_pem(pem)?;
        if roots.is_empty() {
            return Err(IdentityProblem::NoRoots);
        }
        Ok(Self {
            roots,
            capture_roots: Vec::new(),
        })
    }

    /// The roots as PEM (no capture roots).
    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.roots)
    }

    /// For rustls.
    ///
    /// # Errors
    /// [`IdentityProblem`]
    pub(crate) fn store(&self) -> Result<Arc<rustls::RootCertStore>, IdentityProblem> {
        let mut store = rustls::RootCertStore::empty();
        for root in &self.roots {
            store
                .add(root.clone())
                .map_err(|error| IdentityProblem::Unreadable {
                    what: "a root certificate",
                    why: error.to_string(),
                })?;
        }
        if store.is_empty() {
            return Err(IdentityProblem::NoRoots);
        }
        Ok(Arc::new(store))
    }
}

/// Every certificate of a PEM text.
///
/// # Errors
/// [`IdentityProblem`]
pub fn certificates_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityProblem> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityProblem::Unreadable {
            what: "PEM certificates",
            why: error.to_string(),
        })
}

/// Certificates as PEM.
pub fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(certificate.as_ref());
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}
