//! Snapshots that prove themselves: signed by a replica of the operator, verified against the roots alone.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use prost::Message as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::{Identity, Trust};
use crate::peer::{OPERATOR_NAME, Peer, PodIdentity, read_peer};
use crate::{BIND_CONTEXT, SNAPSHOT_CONTEXT, proto};

/// Largest snapshot, encoded.
pub const SNAPSHOT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why a snapshot does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotProblem {
    /// The key cannot sign.
    #[error("cannot sign the snapshot: {0}")]
    Signing(String),
    /// Too large.
    #[error("the snapshot is larger than {SNAPSHOT_BYTES_MAX} bytes")]
    TooLarge,
    /// Not a snapshot.
    #[error("the snapshot cannot be read: {0}")]
    Unreadable(String),
    /// The chain does not lead to a root, or was not valid when it signed.
    #[error("the snapshot's signer is not trusted: {0}")]
    Signer(String),
    /// The signature is wrong.
    #[error("the snapshot's signature is wrong")]
    Signature,
    /// For somebody else.
    #[error("the snapshot is for the pod {0}, not for this one")]
    OtherPod(String),
    /// Too old.
    #[error("the snapshot was valid until {valid_until} (Unix seconds), now is {now}")]
    Expired {
        /// Its end.
        valid_until: i64,
        /// Now.
        now: i64,
    },
}

/// Signs with the key of a replica's certificate.
///
/// # Errors
/// [`SnapshotProblem::Signing`], [`SnapshotProblem::TooLarge`]
pub fn sign(
    snapshot: &proto::Snapshot,
    identity: &Identity,
) -> Result<proto::SignedSnapshot, SnapshotProblem> {
    let bytes = snapshot.encode_to_vec();
    if bytes.len() > SNAPSHOT_BYTES_MAX {
        return Err(SnapshotProblem::TooLarge);
    }
    Ok(proto::SignedSnapshot {
        signature: sign_bytes(SNAPSHOT_CONTEXT, &bytes, identity).map_err(SnapshotProblem::Signing)?,
        snapshot: bytes,
        chain: identity.chain.iter().map(|one| one.to_vec()).collect(),
    })
}

/// ECDSA P-256 with SHA-256 over `context` and `bytes`, by the key of `identity`.
///
/// # Errors
/// Where the key is of another kind.
pub fn sign_bytes(context: &[u8], bytes: &[u8], identity: &Identity) -> Result<Vec<u8>, String> {
    let key =
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&identity.key).map_err(|error| error.to_string())?;
    let signer = key
        .choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256])
        .ok_or("the key is not P-256")?;
    let message = [context, bytes].concat();
    signer.sign(&message).map_err(|error| error.to_string())
}

/// Checks a signature made by [`sign_bytes`] against the public key of `leaf`. Does not check the leaf.
pub fn verify_bytes(context: &[u8], bytes: &[u8], signature: &[u8], leaf: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf.as_ref()) else {
        return false;
    };
    let public = &parsed.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public.as_ref())
        .verify(&[context, bytes].concat(), signature)
        .is_ok()
}

/// Verifies a snapshot for this pod. When it ends is for [`check_validity`].
///
/// # Errors
/// [`SnapshotProblem`]
pub fn verify(
    signed: &proto::SignedSnapshot,
    trust: &Trust,
    pod_uid: &str,
) -> Result<proto::Snapshot, SnapshotProblem> {
    if signed.snapshot.len() > SNAPSHOT_BYTES_MAX {
        return Err(SnapshotProblem::TooLarge);
    }
    let signer = |why: String| SnapshotProblem::Signer(why);
    let chain: Vec<CertificateDer<'_>> = signed
        .chain
        .iter()
        .map(|one| CertificateDer::from(one.as_slice()))
        .collect();
    let (leaf, issuers) = chain
        .split_first()
        .ok_or_else(|| signer("it shows no certificate".to_owned()))?;
    // The signature first: what is not signed is not even decoded.
    if !verify_bytes(SNAPSHOT_CONTEXT, &signed.snapshot, &signed.signature, leaf) {
        return Err(SnapshotProblem::Signature);
    }
    let snapshot = proto::Snapshot::decode(signed.snapshot.as_slice())
        .map_err(|error| SnapshotProblem::Unreadable(error.to_string()))?;
    let issued_at =
        u64::try_from(snapshot.issued_at).map_err(|_| signer("it was issued at no time".to_owned()))?;
    let store = trust.store().map_err(|problem| signer(problem.to_string()))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(
        store,
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
    )
    .build()
    .map_err(|error| signer(error.to_string()))?;
    let name = ServerName::try_from(OPERATOR_NAME).map_err(|error| signer(error.to_string()))?;
    verifier
        .verify_server_cert(
            leaf,
            issuers,
            &name,
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(issued_at)),
        )
        .map_err(|error| signer(error.to_string()))?;
    if read_peer(leaf) != Ok(Peer::Operator) {
        return Err(signer("it is not an operator".to_owned()));
    }
    if snapshot.pod_uid != pod_uid {
        return Err(SnapshotProblem::OtherPod(snapshot.pod_uid));
    }
    Ok(snapshot)
}

/// Checks a pod's word that the chain of receipts of this boot is its, given at that time (Unix seconds). Without `trust` only
/// the signature is checked: then the certificates prove nothing but that they belong together.
///
/// # Errors
/// Why it does not count.
pub fn verify_bind(
    boot: &[u8],
    certificates: &[Vec<u8>],
    signature: &[u8],
    trust: Option<&Trust>,
    at: i64,
) -> Result<PodIdentity, String> {
    let chain: Vec<CertificateDer<'_>> = certificates
        .iter()
        .map(|one| CertificateDer::from(one.as_slice()))
        .collect();
    let (leaf, issuers) = chain.split_first().ok_or("it shows no certificate")?;
    if !verify_bytes(BIND_CONTEXT, boot, signature, leaf) {
        return Err("the signature is wrong".to_owned());
    }
    if let Some(trust) = trust {
        let store = trust.store().map_err(|problem| problem.to_string())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(store, provider)
            .build()
            .map_err(|error| error.to_string())?;
        let at = u64::try_from(at).map_err(|_| "it was given at no time")?;
        verifier
            .verify_client_cert(leaf, issuers, UnixTime::since_unix_epoch(Duration::from_secs(at)))
            .map_err(|error| error.to_string())?;
    }
    match read_peer(leaf) {
        Ok(Peer::Pod(pod)) => Ok(pod),
        Ok(Peer::Operator | Peer::Collector) => Err("the certificate is not a pod's".to_owned()),
        Err(problem) => Err(problem.to_string()),
    }
}

/// Is it still in force?
///
/// # Errors
/// [`SnapshotProblem::Expired`]
pub fn check_validity(snapshot: &proto::Snapshot, now: i64) -> Result<(), SnapshotProblem> {
    if now >= snapshot.valid_until {
        return Err(SnapshotProblem::Expired {
            valid_until: snapshot.valid_until,
            now,
        });
    }
    Ok(())
}
