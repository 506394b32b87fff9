//! TLS towards the application (`clientTLS: Serve`): who has which certificate, and how a pod comes to one of the capture
//! CA. That CA is trusted by nothing of Weir; the application sees its root as `/var/run/weir/ca.crt`, which is written here.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use access_policy::Endpoint;
use control_api::client::{jitter, now, write_private};
use control_api::identity::{Identity, Trust, certificates_from_pem, certificates_to_pem};
use control_api::peer::OPERATOR_NAME;
use control_api::proto::CaptureRequest;
use control_api::proto::policies_client::PoliciesClient;
use control_api::tls::{Alpn, client_config, connect_channel};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::front::{Front, InForce};
use crate::spool::HeldIdentity;
use crate::tls;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Wall clocks jump: no timer runs longer than this unseen.
const LOOK: Duration = Duration::from_secs(30);

/// The application's trust file, in the folder it is shown.
const CA_FILE: &str = "ca.crt";
const KEY_FILE: &str = "capture.key";
const CHAIN_FILE: &str = "capture-chain.pem";
const RENEW_FILE: &str = "capture-renew-at";
const HOSTS_FILE: &str = "capture-hosts";

/// What policies say about TLS towards the application.
#[derive(Clone)]
pub enum ClientTls {
    /// Nothing: what the sidecar was started with counts.
    Plain,
    /// With this certificate of the user's.
    Given(TlsAcceptor),
    /// With one of the capture CA.
    Capture,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Plain => "Plain",
            Self::Given(_) => "Given",
            Self::Capture => "Capture",
        })
    }
}

/// How a client's wish for TLS is answered now.
#[derive(Clone)]
pub enum Offer {
    /// No.
    Plain,
    /// Yes.
    Serve(TlsAcceptor),
    /// There is no certificate yet.
    NotYet,
}

/// A certificate towards applications.
pub struct Leaf {
    /// Serves with it.
    pub acceptor: TlsAcceptor,
    /// Hosts it is for, in canonical form.
    pub hosts: BTreeSet<String>,
    /// When to ask again, Unix seconds.
    pub renew_at: i64,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Leaf")
            .field("hosts", &self.hosts)
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

/// The certificate of the pod, as it is renewed.
pub type HeldLeaf = watch::Receiver<Option<Arc<Leaf>>>;

/// Obtains and renews the pod's certificate of the capture CA, and writes the application's trust file.
#[derive(Debug)]
pub struct CaptureClient {
    /// `host:port` of the operator.
    pub operator: String,
    /// What is shown to it.
    pub identity: HeldIdentity,
    /// Folder in memory: what is kept there outlives the container.
    pub identity_dir: PathBuf,
    /// Folder that the application sees.
    pub ca_dir: Option<PathBuf>,
    /// Whose policies say what is wanted.
    pub fronts: Vec<Arc<Front>>,
    sender: watch::Sender<Option<Arc<Leaf>>>,
}

impl CaptureClient {
    /// Takes up what an earlier process of this pod kept.
    pub fn new(
        operator: String,
        identity: HeldIdentity,
        identity_dir: PathBuf,
        ca_dir: Option<PathBuf>,
        fronts: Vec<Arc<Front>>,
    ) -> Self {
        let kept = read_kept(&identity_dir);
        Self {
            operator,
            identity,
            identity_dir,
            ca_dir,
            fronts,
            sender: watch::Sender::new(kept.map(Arc::new)),
        }
    }

    /// What is held, and every change of it.
    pub fn held(&self) -> HeldLeaf {
        self.sender.subscribe()
    }

    /// Runs until the task is dropped. `changes` tells of other policies.
    pub async fn run(mut self, mut changes: watch::Receiver<u64>) {
        let mut retry = RETRY_FIRST;
        let mut shown = None;
        let mut told = String::new();
        loop {
            // Seen from here on: what changes later ends the wait below.
            self.identity.mark_unchanged();
            changes.mark_unchanged();
            self.show_roots(&mut shown);
            let wait = match self.due() {
                Some(wanted) => match self.obtain(&wanted).await {
                    Ok(leaf) => {
                        tracing::info!(hosts = ?leaf.hosts, "certificate towards the application obtained");
                        (retry, told) = (RETRY_FIRST, String::new());
                        self.sender.send_replace(Some(Arc::new(leaf)));
                        continue;
                    }
                    Err(error) => {
                        if told != error {
                            tracing::warn!(%error, "no certificate towards the application");
                            told = error;
                        }
                        let wait = jitter(retry);
                        retry = (retry * 2).min(RETRY_MAX);
                        wait
                    }
                },
                None => LOOK,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = changes.changed() => if changed.is_err() { return },
                changed = self.identity.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Hosts for which a certificate is to be asked now.
    fn due(&self) -> Option<BTreeSet<String>> {
        let wanted = wanted(&self.fronts);
        let held = self.sender.borrow();
        let good = held
            .as_ref()
            .is_some_and(|leaf| leaf.hosts.is_superset(&wanted) && now() < leaf.renew_at);
        (!wanted.is_empty() && !good).then_some(wanted)
    }

    async fn obtain(&self, wanted: &BTreeSet<String>) -> Result<Leaf, String> {
        let held = self.identity.borrow().clone();
        let held = held.ok_or("the pod has no identity yet")?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .map_err(|error| error.to_string())?;
        let tls =
            client_config(&held.trust, Some(&held.identity), Alpn::H2).map_err(|error| error.to_string())?;
        let channel = connect_channel(&self.operator, OPERATOR_NAME, Arc::new(tls))
            .map_err(|error| error.to_string())?;
        let request = CaptureRequest {
            csr: csr.der().to_vec(),
        };
        let mut client = PoliciesClient::new(channel);
        let reply = tokio::time::timeout(REQUEST_TIMEOUT, client.issue_capture(request))
            .await
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
            .into_inner();
        let hosts: BTreeSet<String> = reply.hosts.iter().filter_map(|host| canonical(host)).collect();
        if let Some(missing) = wanted.difference(&hosts).next() {
            return Err(format!("the operator's certificate is not for {missing}"));
        }
        let identity = Identity::from_der(reply.chain, key.serialize_der());
        let leaf = Leaf {
            acceptor: acceptor(&identity)?,
            hosts,
            // An answer that is due at once would be asked for again without end.
            renew_at: reply.renew_at.max(now().saturating_add(1)),
        };
        if let Err(error) = keep(&self.identity_dir, &identity, &leaf) {
            tracing::warn!(%error, "the certificate towards the application cannot be kept");
        }
        Ok(leaf)
    }

    /// Writes the roots of the capture CA where the application looks for them.
    fn show_roots(&self, shown: &mut Option<Trust>) {
        let Some(folder) = &self.ca_dir else { return };
        let held = self.identity.borrow().clone();
        let Some(trust) = held.map(|held| held.trust.clone()) else {
            return;
        };
        if trust.capture_roots.is_empty() || shown.as_ref() == Some(&trust) {
            return;
        }
        match write_shown(folder, &certificates_to_pem(&trust.capture_roots)) {
            Ok(()) => *shown = Some(trust),
            Err(error) => tracing::error!(
                %error, folder = %folder.display(),
                "the application cannot be shown the certificate authority"
            ),
        }
    }
}

/// Hosts whose policies want a certificate of the capture CA.
pub fn wanted(fronts: &[Arc<Front>]) -> BTreeSet<String> {
    fronts
        .iter()
        .filter(|front| match &*front.in_force() {
            InForce::Policies(policies) => matches!(policies.client_tls, ClientTls::Capture),
            InForce::Closed { .. } => false,
        })
        .map(|front| front.endpoint.host.clone())
        .collect()
}

fn canonical(host: &str) -> Option<String> {
    // The port does not matter.
    Endpoint::new(host, 1).ok().map(|endpoint| endpoint.host)
}

fn acceptor(identity: &Identity) -> Result<TlsAcceptor, String> {
    tls::acceptor(identity.chain.clone(), identity.key.clone_key()).map_err(|error| error.to_string())
}

/// The file appears whole, and may be read by whatever user the application runs as.
fn write_shown(folder: &Path, pem: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(folder)?;
    let new = folder.join("ca.crt.new");
    std::fs::write(&new, pem)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(new, folder.join(CA_FILE))
}

fn keep(folder: &Path, identity: &Identity, leaf: &Leaf) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let hosts: Vec<&str> = leaf.hosts.iter().map(String::as_str).collect();
    // The chain comes last: an old chain does not fit a new key.
    write_private(&folder.join(KEY_FILE), identity.key.secret_der())?;
    write_private(&folder.join(HOSTS_FILE), hosts.join("\n").as_bytes())?;
    write_private(&folder.join(RENEW_FILE), leaf.renew_at.to_string().as_bytes())?;
    write_private(
        &folder.join(CHAIN_FILE),
        certificates_to_pem(&identity.chain).as_bytes(),
    )
}

fn read_kept(folder: &Path) -> Option<Leaf> {
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let chain = certificates_from_pem(&text(CHAIN_FILE)?).ok()?;
    let key = std::fs::read(folder.join(KEY_FILE)).ok()?;
    PrivateKeyDer::try_from(key.as_slice()).ok()?;
    let identity = Identity::from_der(chain.iter().map(|one| one.to_vec()).collect(), key);
    if identity.not_after() <= now() {
        return None;
    }
    Some(Leaf {
        // Proves that key and chain belong together.
        acceptor: acceptor(&identity).ok()?,
        hosts: text(HOSTS_FILE)?.lines().map(str::to_owned).collect(),
        renew_at: text(RENEW_FILE)?.trim().parse().ok()?,
    })
}
