//! The policies in force: read from a folder, watched, the last good ones kept.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use access_policy::policy::TlsMode;
use access_policy::{DatabasePolicy, Endpoint, Manifest, PolicySet, SecretBytes, SecretKey, SecretSource};
use arc_swap::ArcSwap;
use receipts::{Digest, PolicyState};
use service_runtime::drain::{Drain, Stage};
use tokio::sync::watch;

use crate::config::Config;
use crate::tls::{Check, connector};
use crate::upstream::{Credentials, HostPort, Login, SharedUpstream, Upstream, UpstreamTls};

/// How often the folders are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Largest manifest.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Policies as they were loaded, and what follows from them for connections.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Counts loads that changed something.
    pub generation: u64,
    /// Of this listener's database.
    pub policy: DatabasePolicy,
    /// How it is reached.
    pub upstream: SharedUpstream,
    /// For the record of the change.
    pub states: Vec<PolicyState>,
}

/// What the last attempt to load said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadStatus {
    /// Problems of the last attempt; the policies before it are still in force.
    pub problems: Vec<String>,
    /// Attempts that failed.
    pub failures: u64,
}

/// The policies in force.
#[derive(Debug)]
pub struct PolicyStore {
    config: Arc<Config>,
    endpoint: Endpoint,
    current: ArcSwap<Policies>,
    status: Mutex<LoadStatus>,
    changed: watch::Sender<u64>,
}

impl PolicyStore {
    /// Loads for the first time.
    ///
    /// # Errors
    /// Every problem found; without policies nothing is served.
    pub fn load(config: Arc<Config>) -> Result<Self, Vec<String>> {
        let loaded = compile(&config.policy_dir)?;
        let endpoint = endpoint_of(&config, &loaded.set)?;
        let policies = policies(&config, &endpoint, &loaded, 1)?;
        let (changed, _) = watch::channel(1);
        Ok(Self {
            config,
            endpoint,
            current: ArcSwap::from_pointee(policies),
            status: Mutex::default(),
            changed,
        })
    }

    /// In force now.
    pub fn current(&self) -> Arc<Policies> {
        self.current.load_full()
    }

    /// The database's name.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the last attempt said.
    pub fn status(&self) -> LoadStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Loads again; what does not load leaves the last good policies in force.
    pub fn reload(&self) {
        let generation = self.current.load().generation + 1;
        let loaded = compile(&self.config.policy_dir)
            .and_then(|loaded| policies(&self.config, &self.endpoint, &loaded, generation));
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(policies) => {
                let names: Vec<&str> = policies.policy.names().collect();
                tracing::info!(generation, policies = names.join(", "), "policies loaded");
                status.problems.clear();
                self.current.store(Arc::new(policies));
                self.changed.send_replace(generation);
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::error!(%problem, "policies do not load; the last good ones stay in force");
                }
                status.problems = problems;
                status.failures += 1;
            }
        }
    }

    /// Watches the folders until the process drains.
    pub async fn watch(self: Arc<Self>, mut drain: Drain) {
        let mut seen = self.fingerprint();
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.reached(Stage::Draining) => return,
            }
            let now = self.fingerprint();
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    /// What the folders look like. Follows links, so that a folder swapped as Kubernetes does it shows.
    fn fingerprint(&self) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
        let mut seen = BTreeMap::new();
        note_files(&self.config.policy_dir, &mut seen);
        if let Some(secrets) = &self.config.secrets_dir {
            for folder in entries(secrets) {
                note_files(&folder, &mut seen);
            }
        }
        seen
    }
}

fn note_files(folder: &Path, seen: &mut BTreeMap<PathBuf, (u64, i64, i64, u64)>) {
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

/// A folder's manifests, compiled.
struct Loaded {
    set: PolicySet,
    /// SHA-256 of each manifest.
    digests: BTreeMap<String, Digest>,
}

fn compile(folder: &Path) -> Result<Loaded, Vec<String>> {
    let cannot =
        |path: &Path, error: std::io::Error| vec![format!("cannot read {}: {error}", path.display())];
    std::fs::read_dir(folder).map_err(|error| cannot(folder, error))?;
    let mut manifests = Vec::new();
    for path in entries(folder) {
        let is_manifest = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"));
        if !is_manifest {
            continue;
        }
        let size = std::fs::metadata(&path)
            .map_err(|error| cannot(&path, error))?
            .len();
        if size > MANIFEST_BYTES_MAX {
            return Err(vec![format!(
                "{} is larger than {MANIFEST_BYTES_MAX} bytes",
                path.display()
            )]);
        }
        let text = std::fs::read_to_string(&path).map_err(|error| cannot(&path, error))?;
        manifests.push(Manifest {
            name: path.display().to_string(),
            text,
        });
    }
    let digests = manifests
        .iter()
        .map(|manifest| (manifest.name.clone(), Digest::of(&[manifest.text.as_bytes()])))
        .collect();
    match access_policy::compile(&manifests) {
        Ok(set) => Ok(Loaded { set, digests }),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
    }
}

fn endpoint_of(config: &Config, set: &PolicySet) -> Result<Endpoint, Vec<String>> {
    if let Some(upstream) = &config.upstream {
        return Endpoint::new(&upstream.host, upstream.port)
            .map_err(|error| vec![format!("--upstream: the host {error}")]);
    }
    let mut databases = set.databases();
    match (databases.pop(), databases.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(vec![format!(
            "there is no policy in {}",
            config.policy_dir.display()
        )]),
        (Some(last), _) => {
            databases.push(last);
            let names: Vec<String> = databases.iter().map(ToString::to_string).collect();
            Err(vec![format!(
                "the policies name several databases ({}): choose one with --upstream",
                names.join(", ")
            )])
        }
    }
}

fn policies(
    config: &Config,
    endpoint: &Endpoint,
    loaded: &Loaded,
    generation: u64,
) -> Result<Policies, Vec<String>> {
    let secrets = SecretFiles {
        folder: config.secrets_dir.clone(),
    };
    let set = &loaded.set;
    let policy = set.for_database_with(endpoint, &secrets);
    if policy.is_empty() {
        return Err(vec![format!(
            "no policy in {} names the database {endpoint}",
            config.policy_dir.display()
        )]);
    }
    let secret = |key: &SecretKey| {
        set.secret(key, &secrets).ok_or_else(|| {
            vec![format!(
                "there is no {key}, in the manifests or under --secrets-dir"
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
    if login != Login::PassThrough && !config.allow_remote_clients && !is_loopback(&config.listen) {
        return Err(vec![format!(
            "with `credentials` clients get in without a password, so --listen {} must be on loopback (or say --allow-remote-clients)",
            config.listen
        )]);
    }
    let name = HostPort {
        host: endpoint.host.clone(),
        port: endpoint.port,
    };
    let names: Vec<&str> = policy.names().collect();
    let states = set
        .policies()
        .filter(|one| names.contains(&one.id.as_str()))
        .map(|one| PolicyState {
            name: one.id.clone(),
            digest: loaded
                .digests
                .get(&one.file)
                .copied()
                .unwrap_or_else(|| Digest::of(&[])),
        })
        .collect();
    Ok(Policies {
        generation,
        states,
        policy,
        upstream: Arc::new(Upstream {
            dial: config.upstream_address.clone().unwrap_or_else(|| name.clone()),
            name,
            tls,
            login,
        }),
    })
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
struct SecretFiles {
    folder: Option<PathBuf>,
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
