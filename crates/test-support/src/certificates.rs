//! A made certificate authority with one server certificate, for `localhost` and `127.0.0.1`.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use std::path::{Path, PathBuf};

/// PEM texts and, after [`Certificates::write`], their files.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The root certificate that clients trust.
    pub ca: String,
    /// The server's certificate.
    pub certificate: String,
    /// The server's private key.
    pub key: String,
}

impl Certificates {
    /// A fresh root and a server certificate for these names (DNS names or IP addresses).
    pub fn new(names: &[&str]) -> Result<Self> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "test root");
        let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "test server");
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &issuer)?;
        Ok(Self {
            ca: issuer.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` (mode 0600) into `folder`.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        use std::os::unix::fs::PermissionsExt;
        let mut paths = Vec::new();
        for (name, text) in [
            ("ca.crt", &self.ca),
            ("tls.crt", &self.certificate),
            ("tls.key", &self.key),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            let mode = if name == "tls.key" { 0o600 } else { 0o644 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            paths.push(path);
        }
        Ok(paths)
    }
}
