//! The authority: who signs what, for how long. No clock and no cluster in here; time comes as an argument.
//!
//! ```text
//!  root (Secret, 1 year) ──► intermediate of pods (memory, 30 days, clientAuth only) ──► leaves of pods
//!       │              └───► intermediate of the control plane (memory, 30 days) ──────► operator, collector
//!       └─ signs its successor's key too ("bridge"): who knows only the old root can follow to the new one
//!  capture root (Secret, 1 year; nothing of Weir trusts it) ──► serverAuth leaves for the hosts of `clientTLS: Serve`
//! ```

pub mod store;

use std::time::Duration;

use control_api::client::{Held, jitter};
use control_api::identity::{Identity, Trust, certificates_from_pem, certificates_to_pem, not_after};
use control_api::peer::{COLLECTOR_NAME, OPERATOR_NAME, PodIdentity, collector_uri, operator_uri};
use control_api::proto::{CaptureReply, IssueReply};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::FromDer;

/// Clocks of nodes differ: what is made now counts a little earlier.
const SKEW_S: i64 = 300;
/// Largest request that is looked at.
pub const CSR_BYTES_MAX: usize = 8 * 1024;
/// Hosts in one certificate of the capture CA.
pub const CAPTURE_HOSTS_MAX: usize = 64;

/// How long things live, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Both roots.
    pub root_s: i64,
    /// Intermediates.
    pub issuer_s: i64,
    /// Leaves.
    pub leaf_s: i64,
    /// Snapshots that leaves of the operator sign.
    pub snapshot_s: i64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: i64 = 24 * 3600;
        Self {
            root_s: 365 * DAY,
            issuer_s: 30 * DAY,
            leaf_s: DAY,
            snapshot_s: DAY,
        }
    }
}

/// What the authority cannot do.
#[derive(Debug, thiserror::Error)]
pub enum CaProblem {
    /// The request of a client: its own fault.
    #[error("the certificate request is refused: {0}")]
    Request(String),
    /// Hosts that no certificate can name: the policy's fault.
    #[error("the capture CA cannot name these hosts: {0}")]
    Hosts(String),
    /// A stored root that cannot be used: the Secret's fault.
    #[error("cannot use the stored root `{key}`: {why}")]
    Stored {
        /// Key in the Secret.
        key: &'static str,
        /// Why.
        why: String,
    },
    /// Making keys and certificates: our own fault.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Which of the two roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Of operator, collector and pods.
    Identity,
    /// Towards applications.
    Capture,
}

/// A root with its key, and the one before it while that still counts. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// Of the root itself.
    pub certificate: CertificateDer<'static>,
    /// PKCS#8, PEM.
    key_pem: String,
    /// The root before, without its key: signs nothing more, is still trusted.
    pub previous: Option<Previous>,
    /// This root's key, signed by the root before.
    pub bridge: Option<CertificateDer<'static>>,
}

/// A root that was replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Previous {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// When the last leaf that it vouches for has ended, Unix seconds.
    pub until: i64,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root")
            .field("not_after", &not_after(&self.certificate))
            .field("previous", &self.previous)
            .finish_non_exhaustive()
    }
}

impl Root {
    /// A new root.
    ///
    /// # Errors
    /// [`CaProblem::Make`]
    pub fn new(kind: Kind, now: i64, lifetimes: &Lifetimes) -> Result<Self, CaProblem> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate =
            root_params(kind, &key, now, now.saturating_add(lifetimes.root_s))?.self_signed(&key)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key_pem: key.serialize_pem(),
            previous: None,
            bridge: None,
        })
    }

    /// Its successor. The old root stays trusted until the last leaf of its intermediates has ended, and the last snapshot
    /// that one of them signed; an hour more is for replicas that hear of it late.
    ///
    /// # Errors
    /// [`CaProblem`]
    pub fn rotate(&self, kind: Kind, now: i64, lifetimes: &Lifetimes) -> Result<Self, CaProblem> {
        let mut next = Self::new(kind, now, lifetimes)?;
        let key = next.key()?;
        let until = now
            .saturating_add(lifetimes.leaf_s.max(lifetimes.snapshot_s))
            .saturating_add(3600);
        let end = not_after(&self.certificate);
        let bridge = root_params(kind, &key, now, end.min(not_after(&next.certificate)))?;
        next.bridge = Some(bridge.signed_by(&key, &self.issuer()?)?.der().clone());
        next.previous = Some(Previous {
            certificate: self.certificate.clone(),
            until: until.min(end),
        });
        Ok(next)
    }

    /// Whether a third of its life, or less, is left.
    pub fn due(&self, now: i64) -> bool {
        let (from, until) = validity(&self.certificate);
        until.saturating_sub(now) <= until.saturating_sub(from) / 3
    }

    /// The same without the root before, if that counts no more.
    pub fn without_ended(&self, now: i64) -> Option<Self> {
        let previous = self.previous.as_ref()?;
        (now >= previous.until).then(|| Self {
            previous: None,
            ..self.clone()
        })
    }

    /// Current first.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let mut list = vec![self.certificate.clone()];
        list.extend(self.previous.iter().map(|previous| previous.certificate.clone()));
        list
    }

    /// Reads what [`Root::certificate_pem`] and the like wrote, `key` names the Secret's key in problems.
    ///
    /// # Errors
    /// [`CaProblem::Stored`]; also where key and certificate do not belong together.
    pub fn from_pem(
        key: &'static str,
        certificate: &str,
        private: &str,
        previous: Option<(&str, i64)>,
        bridge: Option<&str>,
    ) -> Result<Self, CaProblem> {
        let stored = |why: String| CaProblem::Stored { key, why };
        let one = |pem: &str| {
            certificates_from_pem(pem)
                .map_err(|problem| stored(problem.to_string()))?
                .into_iter()
                .next()
                .ok_or_else(|| stored("there is no certificate".to_owned()))
        };
        let pair =
            KeyPair::from_pem(private).map_err(|error| stored(format!("the key cannot be read: {error}")))?;
        let certificate = one(certificate)?;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&certificate)
            .map_err(|error| stored(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(stored("it is no authority".to_owned()));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(stored("key and certificate do not belong together".to_owned()));
        }
        if *pair.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(stored("the key is not ECDSA P-256".to_owned()));
        }
        Ok(Self {
            certificate,
            key_pem: private.to_owned(),
            previous: match previous {
                Some((pem, until)) => Some(Previous {
                    certificate: one(pem)?,
                    until,
                }),
                None => None,
            },
            bridge: bridge.map(one).transpose()?,
        })
    }

    /// For the Secret.
    pub fn certificate_pem(&self) -> String {
        certificates_to_pem(std::slice::from_ref(&self.certificate))
    }

    /// For the Secret, and nowhere else.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    fn key(&self) -> Result<KeyPair, CaProblem> {
        Ok(KeyPair::from_pem(&self.key_pem)?)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CaProblem> {
        Ok(Issuer::from_ca_cert_der(&self.certificate, self.key()?)?)
    }
}

/// An intermediate: born in memory, never stored.
struct Intermediate {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Intermediate {
    fn new(
        name: &str,
        usages: &[ExtendedKeyUsagePurpose],
        root: &Root,
        now: i64,
        lifetimes: &Lifetimes,
    ) -> Result<Self, CaProblem> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let until = now
            .saturating_add(lifetimes.issuer_s)
            .min(not_after(&root.certificate));
        let mut params = params(name, now, until);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = usages.to_vec();
        let certificate = params.signed_by(&key, &root.issuer()?)?.der().clone();
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
        })
    }

    fn due(&self, now: i64) -> bool {
        let (from, until) = validity(&self.certificate);
        until.saturating_sub(now) <= until.saturating_sub(from) / 3
    }
}

/// Everything that signs.
pub struct Authority {
    roots: Root,
    capture: Root,
    capture_issuer: Issuer<'static, KeyPair>,
    pods: Intermediate,
    control: Intermediate,
    trust_domain: String,
    lifetimes: Lifetimes,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("root", &self.roots)
            .field("capture", &self.capture)
            .finish_non_exhaustive()
    }
}

/// When everything that signs ends, Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Root.
    pub root: i64,
    /// The root before, while it counts.
    pub previous_root: Option<i64>,
    /// Intermediate of pods.
    pub pods_issuer: i64,
    /// Intermediate of the control plane.
    pub control_issuer: i64,
    /// Root of the capture CA.
    pub capture_root: i64,
}

impl Authority {
    /// Makes intermediates under these roots.
    ///
    /// # Errors
    /// [`CaProblem`]
    pub fn new(
        roots: Root,
        capture: Root,
        trust_domain: &str,
        lifetimes: Lifetimes,
        now: i64,
    ) -> Result<Self, CaProblem> {
        let client = [ExtendedKeyUsagePurpose::ClientAuth];
        let both = [
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        Ok(Self {
            // clientAuth only, so that nothing signed by it can serve, whatever the leaf says.
            pods: Intermediate::new("Weir pods", &client, &roots, now, &lifetimes)?,
            control: Intermediate::new("Weir control plane", &both, &roots, now, &lifetimes)?,
            capture_issuer: capture.issuer()?,
            roots,
            capture,
            trust_domain: trust_domain.to_owned(),
            lifetimes,
        })
    }

    /// The root of identities.
    pub fn root(&self) -> &Root {
        &self.roots
    }

    /// The root of the capture CA.
    pub fn capture_root(&self) -> &Root {
        &self.capture
    }

    /// As identities say it.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Whom to trust now: old roots stay until every leaf moved.
    pub fn trust(&self) -> Trust {
        Trust {
            roots: self.roots.trusted(),
            capture_roots: self.capture.trusted(),
        }
    }

    /// Whether an intermediate has a third of its life, or less, left: then make a new authority from the same roots.
    pub fn issuers_due(&self, now: i64) -> bool {
        self.pods.due(now) || self.control.due(now)
    }

    /// For gauges.
    pub fn ends(&self) -> Ends {
        Ends {
            root: not_after(&self.roots.certificate),
            previous_root: self
                .roots
                .previous
                .as_ref()
                .map(|previous| not_after(&previous.certificate)),
            pods_issuer: not_after(&self.pods.certificate),
            control_issuer: not_after(&self.control.certificate),
            capture_root: not_after(&self.capture.certificate),
        }
    }

    /// A leaf for a pod. Of the request only the key counts.
    ///
    /// # Errors
    /// [`CaProblem::Request`], [`CaProblem::Make`]
    pub fn issue_pod(&self, csr: &[u8], pod: &PodIdentity, now: i64) -> Result<IssueReply, CaProblem> {
        let key = request_key(csr)?;
        let (mut params, until) = self.leaf(&self.pods, now);
        params.subject_alt_names = vec![uri(&pod.uri())?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.pods.issuer)?.der().clone();
        Ok(self.reply(leaf, &self.pods, now, until))
    }

    /// A leaf for the collector. Of the request only the key counts.
    ///
    /// # Errors
    /// [`CaProblem::Request`], [`CaProblem::Make`]
    pub fn issue_collector(&self, csr: &[u8], now: i64) -> Result<IssueReply, CaProblem> {
        let key = request_key(csr)?;
        let (params, until) = self.control_leaf(
            &collector_uri(&self.trust_domain),
            &[COLLECTOR_NAME.to_owned()],
            now,
        )?;
        let leaf = params.signed_by(&key, &self.control.issuer)?.der().clone();
        Ok(self.reply(leaf, &self.control, now, until))
    }

    /// The operator's own leaf, under its fixed name and those that the API server dials.
    ///
    /// # Errors
    /// [`CaProblem::Make`]
    pub fn own(&self, names: &[String], now: i64) -> Result<Held, CaProblem> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut all = vec![OPERATOR_NAME.to_owned()];
        all.extend(names.iter().cloned());
        let (params, until) = self.control_leaf(&operator_uri(&self.trust_domain), &all, now)?;
        let leaf = params.signed_by(&key, &self.control.issuer)?.der().clone();
        let reply = self.reply(leaf, &self.control, now, until);
        Ok(Held {
            identity: Identity::from_der(reply.chain, key.serialize_der()),
            trust: self.trust(),
            renew_at: reply.renew_at,
        })
    }

    /// A server certificate towards applications. The caller says for which hosts; of the request only the key counts.
    ///
    /// # Errors
    /// [`CaProblem`]
    pub fn issue_capture(&self, csr: &[u8], hosts: &[String], now: i64) -> Result<CaptureReply, CaProblem> {
        let key = request_key(csr)?;
        if hosts.is_empty() || hosts.len() > CAPTURE_HOSTS_MAX {
            return Err(CaProblem::Hosts(format!(
                "there are {}, not 1 to {CAPTURE_HOSTS_MAX}",
                hosts.len()
            )));
        }
        let root_ends = not_after(&self.capture.certificate);
        let until = now.saturating_add(self.lifetimes.leaf_s).min(root_ends);
        let mut params = params("Weir capture", now, until);
        params.subject_alt_names = hosts
            .iter()
            .map(|host| host_name(host))
            .collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.capture_issuer)?.der().to_vec();
        let mut chain = vec![leaf];
        chain.extend(self.capture.bridge.iter().map(|bridge| bridge.to_vec()));
        Ok(CaptureReply {
            chain,
            not_after: until,
            renew_at: renew_at(now, until),
            hosts: hosts.to_vec(),
        })
    }

    fn control_leaf(
        &self,
        name: &str,
        dns: &[String],
        now: i64,
    ) -> Result<(CertificateParams, i64), CaProblem> {
        let (mut params, until) = self.leaf(&self.control, now);
        params.subject_alt_names = vec![uri(name)?];
        for name in dns {
            params.subject_alt_names.push(host_name(name)?);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        Ok((params, until))
    }

    fn leaf(&self, issuer: &Intermediate, now: i64) -> (CertificateParams, i64) {
        let until = now
            .saturating_add(self.lifetimes.leaf_s)
            .min(not_after(&issuer.certificate));
        let mut params = params("", now, until);
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params, until)
    }

    fn reply(
        &self,
        leaf: CertificateDer<'static>,
        issuer: &Intermediate,
        now: i64,
        until: i64,
    ) -> IssueReply {
        let mut chain = vec![leaf.to_vec(), issuer.certificate.to_vec()];
        chain.extend(self.roots.bridge.iter().map(|bridge| bridge.to_vec()));
        IssueReply {
            chain,
            trust: Some(self.trust().to_proto()),
            not_after: until,
            renew_at: renew_at(now, until),
        }
    }
}

/// 70 % of the time that is left, 10 % of that more or less: what was issued together is not renewed together.
fn renew_at(now: i64, until: i64) -> i64 {
    let life = Duration::from_secs(u64::try_from(until.saturating_sub(now)).unwrap_or(0));
    let after = life.mul_f64(0.63) + jitter(life.mul_f64(0.14));
    now.saturating_add(i64::try_from(after.as_secs()).unwrap_or(0))
}

/// The public key of a request that signed itself. P-256 only.
fn request_key(csr: &[u8]) -> Result<rcgen::PublicKey, CaProblem> {
    let refused = |why: &str| CaProblem::Request(why.to_owned());
    if csr.len() > CSR_BYTES_MAX {
        return Err(refused("it is too long"));
    }
    let (rest, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(csr)
        .map_err(|_| refused("it is not PKCS#10 in DER"))?;
    if !rest.is_empty() {
        return Err(refused("there are bytes behind it"));
    }
    let algorithm = &parsed.certification_request_info.subject_pki.algorithm;
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    if algorithm.algorithm != x509_parser::oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve != Some(x509_parser::oid_registry::OID_EC_P256)
    {
        return Err(refused("its key is not ECDSA P-256"));
    }
    let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => refused("its signature is wrong"),
        other => CaProblem::Request(other.to_string()),
    })?;
    if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(refused("it is not signed with ECDSA P-256 and SHA-256"));
    }
    Ok(request.public_key)
}

fn root_params(kind: Kind, key: &KeyPair, now: i64, until: i64) -> Result<CertificateParams, CaProblem> {
    // Named by its key: two roots must never have one name, or paths between them would be guesses.
    let id = hex::encode(aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        key.public_key_raw(),
    ));
    let id = id.get(..16).unwrap_or_default();
    let name = match kind {
        Kind::Identity => format!("Weir root {id}"),
        Kind::Capture => format!("Weir capture root {id}"),
    };
    let mut params = params(&name, now, until);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if kind == Kind::Capture {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }
    Ok(params)
}

fn params(name: &str, now: i64, until: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| epoch + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    params.not_before = at(now.saturating_sub(SKEW_S));
    params.not_after = at(until);
    params.use_authority_key_identifier_extension = true;
    params
}

fn uri(text: &str) -> Result<SanType, CaProblem> {
    Ok(SanType::URI(text.try_into()?))
}

fn host_name(host: &str) -> Result<SanType, CaProblem> {
    if let Ok(address) = host.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let plain = !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !plain {
        return Err(CaProblem::Hosts(format!("`{host}` is no host name")));
    }
    Ok(SanType::DnsName(host.try_into()?))
}

fn validity(certificate: &CertificateDer<'_>) -> (i64, i64) {
    // A certificate that cannot be read has ended long ago: whatever asks will replace it.
    x509_parser::parse_x509_certificate(certificate).map_or((0, 0), |(_, parsed)| {
        let validity = parsed.validity();
        (validity.not_before.timestamp(), validity.not_after.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use control_api::peer::{Peer, read_peer};
    use control_api::tls::{Alpn, ClientAuth, client_config, server_config};
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 24 * 3600;

    fn authority(now: i64) -> Authority {
        let lifetimes = Lifetimes::default();
        let roots = Root::new(Kind::Identity, now, &lifetimes).unwrap();
        let capture = Root::new(Kind::Capture, now, &lifetimes).unwrap();
        Authority::new(roots, capture, "td", lifetimes, now).unwrap()
    }

    fn csr(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .der()
            .to_vec()
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    fn pod() -> PodIdentity {
        PodIdentity {
            trust_domain: "td".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "orders".to_owned(),
            pod_uid: "uid-1".to_owned(),
        }
    }

    fn chain(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
        chain.iter().cloned().map(CertificateDer::from).collect()
    }

    fn serves(
        roots: &[CertificateDer<'static>],
        chain: &[CertificateDer<'static>],
        name: &str,
        at: i64,
    ) -> Result<(), String> {
        let mut store = rustls::RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at.try_into().unwrap()));
        let (leaf, rest) = chain.split_first().unwrap();
        verifier
            .verify_server_cert(leaf, rest, &name, &[], at)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_pod_is_named_by_its_proof_and_by_nothing_of_its_request() {
        let authority = authority(NOW);
        let key = key();
        let mut params = CertificateParams::new(vec!["operator.weir.internal".to_owned()]).unwrap();
        params
            .subject_alt_names
            .push(uri("spiffe://td/weir/operator").unwrap());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let greedy = params.serialize_request(&key).unwrap();
        let reply = authority.issue_pod(greedy.der(), &pod(), NOW).unwrap();
        let chain = chain(&reply.chain);
        assert_eq!(read_peer(&chain[0]), Ok(Peer::Pod(pod())));
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert_eq!(
            leaf.subject_alternative_name()
                .unwrap()
                .unwrap()
                .value
                .general_names
                .len(),
            1
        );
        assert_eq!((reply.not_after, not_after(&chain[0])), (NOW + DAY, NOW + DAY));
        for _ in 0..100 {
            let reply = authority.issue_pod(greedy.der(), &pod(), NOW).unwrap();
            let part = (reply.renew_at - NOW) as f64 / DAY as f64;
            assert!((0.62..0.78).contains(&part), "{part}");
        }
        let identity = Identity::from_der(reply.chain, key.serialize_der());
        client_config(&authority.trust(), Some(&identity), Alpn::H2).unwrap();
    }

    #[test]
    fn wrong_requests_are_refused() {
        let authority = authority(NOW);
        let good = csr(&key());
        assert!(authority.issue_pod(&good, &pod(), NOW).is_ok());
        let refused = |csr: &[u8]| {
            let error = authority.issue_pod(csr, &pod(), NOW).unwrap_err();
            assert!(matches!(error, CaProblem::Request(_)), "{error}");
            error.to_string()
        };
        refused(&[]);
        refused(&good[..good.len() - 1]);
        refused(&[good.as_slice(), b"x"].concat());
        refused(&vec![0; CSR_BYTES_MAX + 1]);
        let mut changed = good.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        refused(&changed);
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(refused(&csr(&p384)).contains("P-256"));
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(refused(&csr(&ed25519)).contains("P-256"));
    }

    #[test]
    fn operator_and_collector_serve_and_pods_do_not() {
        let authority = authority(NOW);
        let roots = authority.trust().roots;
        let own = authority
            .own(&["weir-operator.weir-system.svc".to_owned()], NOW)
            .unwrap();
        for name in [OPERATOR_NAME, "weir-operator.weir-system.svc"] {
            assert_eq!(serves(&roots, &own.identity.chain, name, NOW), Ok(()));
        }
        assert!(serves(&roots, &own.identity.chain, COLLECTOR_NAME, NOW).is_err());
        assert!(serves(&roots, &own.identity.chain, OPERATOR_NAME, NOW + DAY + 1).is_err());
        server_config(&own.trust, &own.identity, ClientAuth::Optional, Alpn::H2).unwrap();
        let collector = authority.issue_collector(&csr(&key()), NOW).unwrap();
        let collector = chain(&collector.chain);
        assert_eq!(serves(&roots, &collector, COLLECTOR_NAME, NOW), Ok(()));
        assert!(serves(&roots, &collector, OPERATOR_NAME, NOW).is_err());
        assert_eq!(read_peer(&collector[0]), Ok(Peer::Collector));

        // The worst that the intermediate of pods could sign: refused for what the intermediate itself may.
        let key = key();
        let (params, _) = authority
            .control_leaf("spiffe://td/weir/operator", &[OPERATOR_NAME.to_owned()], NOW)
            .unwrap();
        let leaf = params
            .signed_by(&key, &authority.pods.issuer)
            .unwrap()
            .der()
            .clone();
        let error = serves(
            &roots,
            &[leaf, authority.pods.certificate.clone()],
            OPERATOR_NAME,
            NOW,
        )
        .unwrap_err();
        assert!(
            error.contains("extended key usage") || error.contains("Purpose"),
            "{error}"
        );
    }

    #[test]
    fn the_capture_ca_serves_applications_and_nobody_else() {
        let authority = authority(NOW);
        let trust = authority.trust();
        let hosts = ["orders.db.example".to_owned(), "10.0.0.1".to_owned()];
        let reply = authority.issue_capture(&csr(&key()), &hosts, NOW).unwrap();
        let chain = chain(&reply.chain);
        for host in &hosts {
            assert_eq!(serves(&trust.capture_roots, &chain, host, NOW), Ok(()));
            assert!(serves(&trust.roots, &chain, host, NOW).is_err());
        }
        assert!(serves(&trust.capture_roots, &chain, "other.db.example", NOW).is_err());
        assert!(read_peer(&chain[0]).is_err());
        for wrong in [
            &[][..],
            &["a b".to_owned()],
            &["*.example".to_owned()],
            &[String::new()],
        ] {
            assert!(
                authority.issue_capture(&csr(&key()), wrong, NOW).is_err(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn who_knows_one_root_knows_its_successor() {
        let lifetimes = Lifetimes::default();
        let old = authority(NOW);
        let rotated = Authority::new(
            old.root().rotate(Kind::Identity, NOW, &lifetimes).unwrap(),
            old.capture_root().rotate(Kind::Capture, NOW, &lifetimes).unwrap(),
            "td",
            lifetimes,
            NOW,
        )
        .unwrap();
        let only_new = vec![rotated.root().certificate.clone()];
        let both = rotated.trust().roots;
        assert_eq!(both.len(), 2);
        let own = rotated.own(&[], NOW).unwrap().identity.chain;
        let before = old.own(&[], NOW).unwrap().identity.chain;
        for (roots, chain, good) in [
            (&old.trust().roots, &own, true), // a pod made before the rotation
            (&both, &own, true),
            (&only_new, &own, true),
            (&both, &before, true), // a replica that has not heard yet
            (&only_new, &before, false),
        ] {
            assert_eq!(serves(roots, chain, OPERATOR_NAME, NOW).is_ok(), good);
        }
        let capture = rotated
            .issue_capture(&csr(&key()), &["db".to_owned()], NOW)
            .unwrap();
        assert_eq!(
            serves(&old.trust().capture_roots, &chain(&capture.chain), "db", NOW),
            Ok(())
        );
        // Intermediates of pods can do no more under the bridge than without it.
        let key = key();
        let (params, _) = rotated
            .control_leaf("spiffe://td/weir/operator", &[OPERATOR_NAME.to_owned()], NOW)
            .unwrap();
        let leaf = params
            .signed_by(&key, &rotated.pods.issuer)
            .unwrap()
            .der()
            .clone();
        let chain = [
            leaf,
            rotated.pods.certificate.clone(),
            rotated.root().bridge.clone().unwrap(),
        ];
        assert!(serves(&old.trust().roots, &chain, OPERATOR_NAME, NOW).is_err());
    }

    #[test]
    fn nothing_outlives_what_signed_it() {
        let lifetimes = Lifetimes {
            root_s: 40 * DAY,
            ..Lifetimes::default()
        };
        let roots = Root::new(Kind::Identity, NOW, &lifetimes).unwrap();
        let capture = Root::new(Kind::Capture, NOW, &lifetimes).unwrap();
        let late = NOW + 39 * DAY + DAY / 2;
        let authority = Authority::new(roots, capture, "td", lifetimes, late).unwrap();
        let ends = authority.ends();
        assert_eq!(ends.pods_issuer, ends.root);
        let reply = authority.issue_pod(&csr(&key()), &pod(), late).unwrap();
        assert_eq!(reply.not_after, ends.root);
        assert!(reply.renew_at < reply.not_after);
        let young = Authority::new(
            authority.root().clone(),
            authority.capture_root().clone(),
            "td",
            lifetimes,
            NOW,
        )
        .unwrap();
        assert!(!young.issuers_due(NOW) && young.issuers_due(NOW + 21 * DAY));
    }
}
