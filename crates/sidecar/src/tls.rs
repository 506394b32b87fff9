//! TLS on both sides.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The one protocol name there is (PostgreSQL 17, "direct SSL").
pub const ALPN: &[u8] = b"postgresql";

/// Where distributions keep the certificates of the system.
const SYSTEM_CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// What is wrong with certificates, or with how they were given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    File {
        /// Which.
        path: String,
        /// Why.
        error: String,
    },
    /// It holds no certificate.
    #[error("{0} holds no certificate in PEM form")]
    NoCertificate(String),
    /// The system's certificates are wanted, and there are none.
    #[error("no certificate authority is given, and this system has none of its own")]
    NoSystemCertificates,
    /// Something else.
    #[error("cannot set TLS up: {0}")]
    Rustls(#[from] rustls::Error),
    /// Making a certificate failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// How a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Not at all.
    Nothing,
    /// It comes from a known authority.
    Authority,
    /// It also is for the host.
    AuthorityAndHost,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// TLS towards the database. `ca` is PEM; without it, the system's authorities count.
///
/// # Errors
/// [`TlsError`].
pub fn connector(check: Check, ca: Option<&[u8]>) -> Result<TlsConnector, TlsError> {
    let mut given = Vec::new();
    let mut roots = RootCertStore::empty();
    if check != Check::Nothing {
        given = match ca {
            Some(pem) => {
                let name = "the secret of the certificate authority";
                certificates(pem, name)?
            }
            None => system_certificates()?,
        };
        let (added, _) = roots.add_parsable_certificates(given.iter().cloned());
        if added == 0 {
            return Err(TlsError::NoCertificate("the certificate authority".to_owned()));
        }
    }
    let provider = provider();
    let verifier = Arc::new(DatabaseVerifier {
        check,
        roots,
        // A server whose certificate signs itself is trusted by being named, as libpq does it.
        pinned: if ca.is_some() { given } else { Vec::new() },
        provider: Arc::clone(&provider),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate(name.to_owned()))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(name.to_owned()));
    }
    Ok(certificates)
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = SYSTEM_CERTIFICATES
        .iter()
        .find(|path| Path::new(path).is_file())
        .ok_or(TlsError::NoSystemCertificates)?;
    certificates(&read(Path::new(path))?, path)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::File {
        path: path.display().to_string(),
        error: error.to_string(),
    })
}

/// TLS towards the application with a certificate of ours (PEM files).
///
/// # Errors
/// [`TlsError`].
pub fn acceptor_from_files(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    acceptor_from_pem(
        &read(certificate)?,
        &certificate.display().to_string(),
        &read(key)?,
        &key.display().to_string(),
    )
}

/// TLS towards the application with a certificate of the user's, by what its parts are called.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor_from_pem(
    certificate: &[u8],
    certificate_name: &str,
    key: &[u8],
    key_name: &str,
) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(certificate, certificate_name)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::File {
        path: key_name.to_owned(),
        error: error.to_string(),
    })?;
    acceptor(chain, key)
}

/// TLS towards the application with a certificate made now, for loopback and these names. Clients that check
/// certificates (`sslmode=verify-ca` and above) need a given one.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor_self_made(names: &[String]) -> Result<TlsAcceptor, TlsError> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    all.extend(names.iter().filter(|name| !name.is_empty()).cloned());
    let made = rcgen::generate_simple_self_signed(all)?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|error| rustls::Error::General(error.to_owned()))?;
    acceptor(vec![made.cert.der().clone()], key)
}

/// TLS towards the application with this chain and key.
///
/// # Errors
/// They do not fit.
pub fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<TlsAcceptor, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The channel binding `tls-server-end-point` of a certificate (RFC 5929, section 4.1), where its signature says
/// which hash that is.
pub fn end_point_binding(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // MD5 and SHA-1 are raised to SHA-256 by the RFC.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => &aws_lc_rs::digest::SHA256,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => &aws_lc_rs::digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &aws_lc_rs::digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &aws_lc_rs::digest::SHA512,
        _ => return None,
    };
    Some(
        aws_lc_rs::digest::digest(algorithm, certificate)
            .as_ref()
            .to_vec(),
    )
}

/// Checks a database's certificate as far as its policy says.
#[derive(Debug)]
struct DatabaseVerifier {
    check: Check,
    roots: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for DatabaseVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let pinned = self
            .pinned
            .iter()
            .any(|known| known.as_ref() == end_entity.as_ref());
        if !pinned {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.check == Check::AuthorityAndHost {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
