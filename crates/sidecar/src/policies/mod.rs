//! The policies in force, and where they come from: a folder ([`folder`]) or the operator ([`stream`], [`follow`]).

pub mod folder;
pub mod follow;
pub mod kept;
pub mod stream;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use access_policy::policy::{ClientTlsSettings, TlsMode};
use access_policy::{DatabasePolicy, Endpoint, Manifest, PolicySet, SecretBytes, SecretKey, SecretSource};
use receipts::{Digest, PolicyState};
use tokio::sync::watch;

use crate::capture::ClientTls;
use crate::fatal::Fatal;
use crate::tls::{Check, acceptor_from_pem, connector};
use crate::upstream::{Credentials, HostPort, Login, Resolve, SharedUpstream, Upstream, UpstreamTls};
use folder::PolicyFolder;
use stream::StreamedPolicies;

/// Policies as they were loaded, and what follows from them for connections.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Counts loads that changed something.
    pub generation: u64,
    /// Of this listener's database.
    pub policy: DatabasePolicy,
    /// How it is reached.
    pub upstream: SharedUpstream,
    /// TLS towards the application.
    pub client_tls: ClientTls,
}

/// What the last attempt to load said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadStatus {
    /// Problems of the last attempt; the policies before it are still in force.
    pub problems: Vec<String>,
    /// Attempts that failed.
    pub failures: u64,
}

/// What is in force, for the record of the change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Counts loads that changed something.
    pub generation: u64,
    /// Number that whoever reads the record knows: the snapshot's version, or the generation.
    pub version: u64,
    /// Policies with the digest of their texts.
    pub states: Vec<PolicyState>,
    /// Where they came from.
    pub origin: String,
}

/// Where policies come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Manifests on disk.
    Folder(Arc<PolicyFolder>),
    /// The operator.
    Stream(Arc<StreamedPolicies>),
}

impl Source {
    /// Tells of changes, by generation.
    pub fn changes(&self) -> watch::Receiver<u64> {
        match self {
            Self::Folder(folder) => folder.changes(),
            Self::Stream(stream) => stream.changes(),
        }
    }

    /// What the last attempt to load said.
    pub fn status(&self) -> LoadStatus {
        match self {
            Self::Folder(folder) => folder.status(),
            Self::Stream(stream) => stream.status(),
        }
    }

    /// What is in force.
    pub fn loaded(&self) -> Loaded {
        match self {
            Self::Folder(folder) => folder.loaded(),
            Self::Stream(stream) => stream.loaded(),
        }
    }

    /// Whether new sessions may begin at all.
    ///
    /// # Errors
    /// The policies are too old.
    pub fn admit(&self) -> Result<(), Fatal> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Stream(stream) => stream.admit(),
        }
    }
}

/// What files look like: a change of any is seen.
pub(crate) type Seen = BTreeMap<PathBuf, (u64, i64, i64, u64)>;

fn note_files(folder: &Path, seen: &mut Seen) {
    for path in entries(folder) {
        if let Ok(data) = std::fs::metadata(&path)
            && data.is_file()
        {
            let state = (data.len(), data.mtime(), data.mtime_nsec(), data.ino());
            seen.insert(path, state);
        }
    }
}

/// What is in a folder, in order, without hidden entries.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(listing) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = listing
        .filter_map(Result::ok)
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// What is needed beside the policies to reach a database.
#[derive(Debug)]
struct Ways<'a> {
    secrets: &'a SecretFiles,
    /// Dialled in place of the name.
    upstream_address: Option<&'a HostPort>,
    /// Where applications connect.
    listen: &'a HostPort,
    allow_remote_clients: bool,
    resolve: Resolve,
    /// An operator is there, whose capture CA makes certificates.
    capture_ca: bool,
}

/// The policies for one endpoint. `None`: there are none.
fn for_endpoint(
    set: &PolicySet,
    endpoint: &Endpoint,
    ways: &Ways<'_>,
    generation: u64,
) -> Result<Option<Policies>, Vec<String>> {
    let policy = set.for_database_with(endpoint, ways.secrets);
    if policy.is_empty() {
        return Ok(None);
    }
    let secret = |key: &SecretKey| {
        set.secret(key, ways.secrets).ok_or_else(|| {
            vec![format!(
                "there is no {key}, in the manifests or under {}",
                ways.secrets.place()
            )]
        })
    };
    let settings = policy.tls();
    let ca = settings.ca.as_ref().map(secret).transpose()?;
    let check = match settings.mode {
        TlsMode::Disable => None,
        TlsMode::Require => Some(Check::Nothing),
        TlsMode::VerifyCa => Some(Check::Authority),
        TlsMode::VerifyFull => Some(Check::AuthorityAndHost),
    };
    let tls = match check {
        None => UpstreamTls::Disable,
        Some(check) => {
            let ca = ca.as_ref().map(SecretBytes::expose);
            UpstreamTls::Use(connector(check, ca).map_err(|error| vec![format!("database.tls: {error}")])?)
        }
    };
    let login = match policy.credentials() {
        None => Login::PassThrough,
        Some(credentials) => {
            let username = secret(&credentials.username)?;
            let password = secret(&credentials.password)?;
            let username = std::str::from_utf8(username.expose())
                .map_err(|_| vec![format!("{} is not UTF-8", credentials.username)])?;
            Login::Own(Credentials {
                // Files written by hand end with a line end.
                username: username.trim_end_matches(['\r', '\n']).to_owned(),
                password: trim_line_end(password.expose()).to_vec(),
            })
        }
    };
    let client_tls = match policy.client_tls() {
        ClientTlsSettings::Plain => ClientTls::Plain,
        ClientTlsSettings::Serve {
            certificate: Some(names),
        } => {
            let (certificate, key) = (secret(&names.certificate)?, secret(&names.key)?);
            let acceptor = acceptor_from_pem(
                certificate.expose(),
                &names.certificate.to_string(),
                key.expose(),
                &names.key.to_string(),
            );
            ClientTls::Given(acceptor.map_err(|error| vec![format!("database.clientTLS: {error}")])?)
        }
        ClientTlsSettings::Serve { certificate: None } if ways.capture_ca => ClientTls::Capture,
        ClientTlsSettings::Serve { certificate: None } => {
            return Err(vec![
                "spec.database.clientTLS: without an operator nobody makes a certificate: name a certificateSecretRef"
                    .to_owned(),
            ]);
        }
    };
    if login != Login::PassThrough && !ways.allow_remote_clients && !is_loopback(ways.listen) {
        return Err(vec![format!(
            "with `credentials` clients get in without a password, so --listen {} must be on loopback (or say --allow-remote-clients)",
            ways.listen
        )]);
    }
    let target = policy.target_session(endpoint);
    let name = HostPort {
        host: endpoint.host.clone(),
        port: endpoint.port,
    };
    Ok(Some(Policies {
        generation,
        policy,
        upstream: Arc::new(Upstream {
            dial: ways.upstream_address.cloned().unwrap_or_else(|| name.clone()),
            name,
            resolve: ways.resolve,
            tls,
            login,
            target,
        }),
        client_tls,
    }))
}

/// SHA-256 of each manifest, by its name.
fn digests(manifests: &[Manifest]) -> BTreeMap<String, Digest> {
    manifests
        .iter()
        .map(|manifest| (manifest.name.clone(), Digest::of(&[manifest.text.as_bytes()])))
        .collect()
}

/// Policies with the digests of their texts, by the names the texts came under.
fn states(set: &PolicySet, digests: &BTreeMap<String, Digest>, names: Option<&[&str]>) -> Vec<PolicyState> {
    set.policies()
        .filter(|one| names.is_none_or(|names| names.contains(&one.id.as_str())))
        .map(|one| PolicyState {
            name: one.id.clone(),
            digest: digests.get(&one.file).copied().unwrap_or_else(|| Digest::of(&[])),
        })
        .collect()
}

fn trim_line_end(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

/// `localhost` or an address of the loopback network.
pub fn is_loopback(listen: &HostPort) -> bool {
    listen.host == "localhost"
        || listen
            .host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Secrets as files `DIR/NAME/KEY`.
#[derive(Debug)]
pub(crate) struct SecretFiles {
    pub(crate) folder: Option<PathBuf>,
}

impl SecretFiles {
    fn place(&self) -> String {
        match &self.folder {
            Some(folder) => folder.display().to_string(),
            None => "--secrets-dir".to_owned(),
        }
    }

    /// What the folder looks like.
    pub(crate) fn note(&self, seen: &mut Seen) {
        if let Some(secrets) = &self.folder {
            for folder in entries(secrets) {
                note_files(&folder, seen);
            }
        }
    }
}

impl SecretSource for SecretFiles {
    fn secret(&self, key: &SecretKey) -> Option<SecretBytes> {
        let folder = self.folder.as_ref()?;
        // Names of Kubernetes hold no separator; one that does must not lead elsewhere.
        let plain =
            |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0']);
        if !plain(&key.name) || !plain(&key.key) {
            return None;
        }
        let path = folder.join(&key.name).join(&key.key);
        std::fs::read(path).ok().map(SecretBytes::new)
    }
}
