//! How a pod comes to its certificate, and keeps it fresh.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::watch;

use crate::identity::{Identity, IdentityProblem, Trust, certificates_from_pem, certificates_to_pem};
use crate::peer::OPERATOR_NAME;
use crate::proto::IssueRequest;
use crate::proto::identity_client::IdentityClient as Grpc;
use crate::tls::{Alpn, client_config, connect_channel};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Wall clocks jump (suspend, live migration): no timer runs longer than this unseen.
const LOOK: Duration = Duration::from_secs(30);

const KEY_FILE: &str = "leaf.key";
const CHAIN_FILE: &str = "chain.pem";
const ROOTS_FILE: &str = "roots.pem";
const CAPTURE_ROOTS_FILE: &str = "capture-roots.pem";
const RENEW_FILE: &str = "renew-at";

/// Where the certificate comes from and where it is kept.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// `host:port` of the operator.
    pub operator: String,
    /// Pod-bound token, read anew for each request.
    pub token_file: PathBuf,
    /// Folder in memory: what is kept there outlives the container, not the pod.
    pub identity_dir: PathBuf,
    /// Trusted at first.
    pub bootstrap: Trust,
    /// Our version, for the operator's log.
    pub version: String,
}

/// A certificate that is held.
#[derive(Debug, Clone)]
pub struct Held {
    /// Chain and key.
    pub identity: Identity,
    /// Roots, as the operator said them last.
    pub trust: Trust,
    /// When to ask again, Unix seconds.
    pub renew_at: i64,
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueProblem {
    /// The token's file.
    #[error("cannot read the token {path}: {error}")]
    Token {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Making the key.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    /// TLS.
    #[error(transparent)]
    Identity(#[from] IdentityProblem),
    /// Address.
    #[error("cannot reach the operator: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// It said no.
    #[error("the operator gives no certificate: {0}")]
    Refused(String),
    /// An answer without a certificate.
    #[error("the operator's answer holds no certificate")]
    Empty,
}

/// Obtains and renews.
#[derive(Debug)]
pub struct IdentityClient {
    config: IdentityConfig,
    sender: watch::Sender<Option<Arc<Held>>>,
}

impl IdentityClient {
    /// Takes up what an earlier process of this pod kept, if it still counts.
    pub fn new(config: IdentityConfig) -> Self {
        let kept = read_kept(&config.identity_dir).filter(|held| held.identity.not_after() > now());
        let (sender, _) = watch::channel(kept.map(Arc::new));
        Self { config, sender }
    }

    /// What is held, and every change of it.
    pub fn held(&self) -> watch::Receiver<Option<Arc<Held>>> {
        self.sender.subscribe()
    }

    /// Roots that count before anything was obtained: those kept, else those given at the start.
    pub fn trust(&self) -> Trust {
        let kept = self.sender.borrow().as_ref().map(|held| held.trust.clone());
        kept.unwrap_or_else(|| self.config.bootstrap.clone())
    }

    /// For whoever hears of new roots over a verified connection (the policy stream): they count at once, and are kept.
    pub fn trust_updates(&self) -> TrustUpdates {
        TrustUpdates {
            sender: self.sender.clone(),
            dir: self.config.identity_dir.clone(),
        }
    }

    /// Obtains and renews until the task is dropped. Failures are logged and tried again, ever slower.
    pub async fn run(self) {
        let mut retry = RETRY_FIRST;
        loop {
            let renew_at = self.sender.borrow().as_ref().map_or(0, |held| held.renew_at);
            let wait = renew_at - now();
            if wait > 0 {
                let wait = Duration::from_secs(u64::try_from(wait).unwrap_or(0));
                tokio::time::sleep(wait.min(LOOK)).await;
                continue;
            }
            match self.obtain().await {
                Ok(held) => {
                    tracing::info!(not_after = held.identity.not_after(), "certificate obtained");
                    retry = RETRY_FIRST;
                    self.sender.send_replace(Some(Arc::new(held)));
                }
                Err(error) => {
                    tracing::warn!(%error, "no certificate");
                    // Full jitter: pods that started together do not ask together again.
                    tokio::time::sleep(jitter(retry)).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// One request, with a new key.
    ///
    /// # Errors
    /// [`IssueProblem`]
    pub async fn obtain(&self) -> Result<Held, IssueProblem> {
        let path = &self.config.token_file;
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| IssueProblem::Token {
                path: path.clone(),
                error,
            })?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let tls = client_config(&self.trust(), None, Alpn::H2)?;
        let channel = connect_channel(&self.config.operator, OPERATOR_NAME, Arc::new(tls))?;
        let mut request = tonic::Request::new(IssueRequest {
            csr: csr.der().to_vec(),
            token: token.trim().to_owned(),
            version: self.config.version.clone(),
        });
        request.set_timeout(REQUEST_TIMEOUT);
        let reply = tokio::time::timeout(REQUEST_TIMEOUT, Grpc::new(channel).issue(request))
            .await
            .map_err(|_| IssueProblem::Refused("no answer in time".to_owned()))?
            .map_err(|status| IssueProblem::Refused(describe(&status)))?
            .into_inner();
        if reply.chain.is_empty() {
            return Err(IssueProblem::Empty);
        }
        let trust = match &reply.trust {
            Some(bundle) if !bundle.roots.is_empty() => Trust::from_proto(bundle),
            _ => self.trust(),
        };
        let identity = Identity::from_der(reply.chain, key.serialize_der());
        // Proves that key and leaf belong together, and that the roots can be read, before the old ones go.
        client_config(&trust, Some(&identity), Alpn::H2)?;
        let held = Held {
            // An answer that is due at once would be asked for again without end.
            renew_at: reply.renew_at.max(now().saturating_add(1)),
            identity,
            trust,
        };
        keep_or_warn(&self.config.identity_dir, &held);
        Ok(held)
    }
}

/// Takes over roots. Before anything is held there is nothing to do: the first answer brings them.
#[derive(Debug, Clone)]
pub struct TrustUpdates {
    sender: watch::Sender<Option<Arc<Held>>>,
    dir: PathBuf,
}

impl TrustUpdates {
    /// Trusts `trust` from now on. A bundle without a usable root changes nothing: it would cut us off for good.
    ///
    /// # Errors
    /// [`IdentityProblem`]
    pub fn take(&self, trust: Trust) -> Result<(), IdentityProblem> {
        trust.store()?;
        let mut changed = None;
        self.sender.send_if_modified(|held| match held {
            Some(held) if held.trust != trust => {
                let new = Arc::new(Held {
                    trust,
                    ..Held::clone(held)
                });
                changed = Some(Arc::clone(&new));
                *held = new;
                true
            }
            Some(_) | None => false,
        });
        if let Some(held) = changed {
            keep_or_warn(&self.dir, &held);
        }
        Ok(())
    }
}

/// A gRPC status in words, with what lies under it.
fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Seconds since 1970-01-01 UTC.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}

/// A random part of `most`: what waits for the same thing does not wake together.
pub fn jitter(most: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return most;
    }
    most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
        .max(Duration::from_millis(1)) // zero would spin
}

/// Without the folder all works on; only a restart must ask anew.
fn keep_or_warn(dir: &Path, held: &Held) {
    if let Err(error) = keep(dir, held) {
        tracing::warn!(%error, dir = %dir.display(), "the certificate cannot be kept");
    }
}

fn keep(dir: &Path, held: &Held) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let key = held.identity.key.secret_der();
    // The chain comes last: a key without its chain counts as nothing, an old chain does not fit a new key.
    write_private(&dir.join(KEY_FILE), key)?;
    write_private(&dir.join(ROOTS_FILE), held.trust.to_pem().as_bytes())?;
    write_private(
        &dir.join(CAPTURE_ROOTS_FILE),
        certificates_to_pem(&held.trust.capture_roots).as_bytes(),
    )?;
    write_private(&dir.join(RENEW_FILE), held.renew_at.to_string().as_bytes())?;
    write_private(
        &dir.join(CHAIN_FILE),
        certificates_to_pem(&held.identity.chain).as_bytes(),
    )
}

/// Writes a file that only this user may read; it appears whole.
///
/// # Errors
/// From the system.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(new, path)
}

fn read_kept(dir: &Path) -> Option<Held> {
    let text = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let chain = certificates_from_pem(&text(CHAIN_FILE)?).ok()?;
    let key = std::fs::read(dir.join(KEY_FILE)).ok()?;
    let trust = Trust {
        roots: certificates_from_pem(&text(ROOTS_FILE)?).ok()?,
        capture_roots: certificates_from_pem(&text(CAPTURE_ROOTS_FILE)?).ok()?,
    };
    let identity = Identity::from_der(chain.iter().map(|one| one.to_vec()).collect(), key);
    // Proves that key and chain belong together.
    client_config(&trust, Some(&identity), Alpn::H2).ok()?;
    Some(Held {
        identity,
        trust,
        renew_at: text(RENEW_FILE)?.trim().parse().ok()?,
    })
}
