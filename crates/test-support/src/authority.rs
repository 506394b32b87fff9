//! A made authority as the operator has it: one root, an intermediate for pods, one for operator and collector; and a
//! root apart, for certificates towards applications.
//!
//! Everything is DER, so that this room need not know the rooms that read it.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: i64 = 24 * 3600;

/// Root and intermediates.
#[derive(Debug)]
pub struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    pods: CertifiedIssuer<'static, KeyPair>,
    control: CertifiedIssuer<'static, KeyPair>,
    capture: CertifiedIssuer<'static, KeyPair>,
    trust_domain: String,
}

/// Who signs a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// Intermediate of pods: clientAuth only.
    Pods,
    /// Intermediate of operator and collector.
    Control,
}

/// What a leaf says.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// serverAuth beside clientAuth.
    pub server: bool,
    /// Who signs.
    pub signer: Signer,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Leaf first, then its issuer. DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Vec<u8>,
}

impl Authority {
    /// A fresh root with both intermediates, valid around now.
    pub fn new(trust_domain: &str) -> Result<Self> {
        let root = CertifiedIssuer::self_signed(ca("test root", &[]), KeyPair::generate()?)?;
        let client = [ExtendedKeyUsagePurpose::ClientAuth];
        let both = [
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let pods = CertifiedIssuer::signed_by(ca("test pods", &client), KeyPair::generate()?, &root)?;
        let control =
            CertifiedIssuer::signed_by(ca("test control plane", &both), KeyPair::generate()?, &root)?;
        let capture = CertifiedIssuer::self_signed(ca("test capture root", &[]), KeyPair::generate()?)?;
        Ok(Self {
            root,
            pods,
            control,
            capture,
            trust_domain: trust_domain.to_owned(),
        })
    }

    /// The root, DER.
    pub fn root(&self) -> Vec<u8> {
        self.root.der().to_vec()
    }

    /// The root, PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The root of certificates towards applications, PEM.
    pub fn capture_root_pem(&self) -> String {
        self.capture.pem()
    }

    /// A certificate towards applications for the key of a request (PKCS#10, DER): the chain.
    pub fn sign_capture(&self, hosts: &[String], csr: &[u8]) -> Result<Vec<Vec<u8>>> {
        let request = rcgen::CertificateSigningRequestParams::from_der(&csr.into())?;
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&request.public_key, &self.capture)?;
        Ok(vec![certificate.der().to_vec()])
    }

    /// A sidecar's leaf.
    pub fn pod(&self, namespace: &str, service_account: &str, pod_uid: &str) -> Result<Leaf> {
        let uri = format!(
            "spiffe://{}/ns/{namespace}/sa/{service_account}/pod/{pod_uid}",
            self.trust_domain
        );
        self.issue(&self.spec(&uri, None, Signer::Pods))
    }

    /// An operator's leaf.
    pub fn operator(&self) -> Result<Leaf> {
        let uri = format!("spiffe://{}/weir/operator", self.trust_domain);
        self.issue(&self.spec(&uri, Some("operator.weir.internal"), Signer::Control))
    }

    /// The collector's leaf.
    pub fn collector(&self) -> Result<Leaf> {
        let uri = format!("spiffe://{}/weir/collector", self.trust_domain);
        self.issue(&self.spec(&uri, Some("collector.weir.internal"), Signer::Control))
    }

    /// A usual leaf, to be made wrong in one point. With a name it may serve.
    pub fn spec(&self, uri: &str, name: Option<&str>, signer: Signer) -> LeafSpec {
        LeafSpec {
            uris: vec![uri.to_owned()],
            names: name.map(str::to_owned).into_iter().collect(),
            server: name.is_some(),
            signer,
            not_before: now() - DAY,
            not_after: now() + DAY,
        }
    }

    /// Signs whatever is said, right or wrong.
    pub fn issue(&self, spec: &LeafSpec) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let (certificate, issuer) = {
            let params = leaf_params(spec)?;
            match spec.signer {
                Signer::Pods => (params.signed_by(&key, &self.pods)?, self.pods.der()),
                Signer::Control => (params.signed_by(&key, &self.control)?, self.control.der()),
            }
        };
        Ok(Leaf {
            chain: vec![certificate.der().to_vec(), issuer.to_vec()],
            key: key.serialize_der(),
        })
    }

    /// As [`Authority::issue`] for the key of a request (PKCS#10, DER): the chain.
    pub fn sign_request(&self, spec: &LeafSpec, csr: &[u8]) -> Result<Vec<Vec<u8>>> {
        let request = rcgen::CertificateSigningRequestParams::from_der(&csr.into())?;
        let params = leaf_params(spec)?;
        let (certificate, issuer) = match spec.signer {
            Signer::Pods => (
                params.signed_by(&request.public_key, &self.pods)?,
                self.pods.der(),
            ),
            Signer::Control => (
                params.signed_by(&request.public_key, &self.control)?,
                self.control.der(),
            ),
        };
        Ok(vec![certificate.der().to_vec(), issuer.to_vec()])
    }
}

fn ca(name: &str, usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = usages.to_vec();
    params
}

fn leaf_params(spec: &LeafSpec) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(spec.names.clone())?;
    for uri in &spec.uris {
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into()?));
    }
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if spec.server {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(u64::try_from(spec.not_before)?);
    params.not_after = epoch + Duration::from_secs(u64::try_from(spec.not_after)?);
    Ok(params)
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}
