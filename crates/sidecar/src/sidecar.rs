//! The process: what all threads share, and the threads.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use access_policy::{ReceiptMode, Subject};
use bytes::BytesMut;
use control_api::BIND_CONTEXT;
use control_api::client::{IdentityClient, IdentityConfig, now};
use control_api::peer::{Peer, read_peer};
use control_api::proto;
use control_api::signed::sign_bytes;
use prometheus_client::registry::Registry;
use receipts::{Body, ChainBind, Claim, PolicyChange};
use serde_json::json;
use service_runtime::admin::Pages;
use service_runtime::drain::{Drain, Stage, Trigger};
use service_runtime::health::Health;
use session_state::Judge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsAcceptor;
use wire_protocol::postgres::Caps;

use crate::bypass::BypassWatch;
use crate::cancels::Cancels;
use crate::capture::{self, CaptureClient, ClientTls, HeldLeaf, Offer};
use crate::config::{ClientTlsConfig, Config, FolderRole, Role};
use crate::connection;
use crate::databases::Database;
use crate::fatal::{EndKind, Failure};
use crate::front::{Front, InForce};
use crate::login::{LoginContext, ask, log_in_for_catalog};
use crate::metrics::{EndLabel, Metrics, Open};
use crate::pod::Pod;
use crate::policies::folder::PolicyFolder;
use crate::policies::follow::Follow;
use crate::policies::kept::KeptSnapshot;
use crate::policies::stream::{Answer, StreamedPolicies};
use crate::policies::{Loaded, Source};
use crate::pump::client_caps;
use crate::spool::{Entry, HeldIdentity, Spool, SpoolConfig, SpoolError};
use crate::tls;
use crate::upstream::Login;

/// Texts are judged on these stacks: deep trees are walked recursively, with a bound.
const STACK_BYTES: usize = 128 * 1024 * 1024;
/// Connections that wait for one thread.
const HANDOVER_MAX: usize = 64;
/// Sessions have this long beyond the grace time to say good-bye.
const AFTER_GRACE: Duration = Duration::from_secs(3);
/// Connections above the limit that are told so at once.
const TOLD_MAX: usize = 32;
/// The collector has this long to confirm the last receipts.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open sessions go on this long with policies that are too old; new ones are refused at once.
const TOO_OLD_GRACE: Duration = Duration::from_secs(3600);
/// The first policies wait this long for the certificate that they want.
const CAPTURE_WAIT: Duration = Duration::from_secs(10);
/// The catalog has this long to be read.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(60);

/// What all sessions of one listener share. Spool, metrics and the end are those of the process.
pub struct Shared {
    /// Options.
    pub config: Arc<Config>,
    /// The clock of sessions starts here.
    pub started: Instant,
    /// Where policies come from.
    pub source: Source,
    /// The listener, with what is in force there.
    pub front: Arc<Front>,
    /// Cancel keys.
    pub cancels: Cancels,
    /// Metrics.
    pub metrics: Metrics,
    /// Receipts.
    pub spool: Arc<Spool>,
    /// The end.
    pub drain: Drain,
    /// Where receipts go.
    pub collector: Option<String>,
    /// TLS towards applications, where no policy says anything.
    pub client_tls: Option<TlsAcceptor>,
    /// The pod's certificate towards applications.
    pub capture: Option<HeldLeaf>,
    /// Who the workload is.
    pub subject: Arc<Subject>,
    /// What proves it: the pod's certificate.
    pub identity: Option<HeldIdentity>,
    /// Caps of a client after its login.
    pub client_caps: Arc<Caps>,
    /// Caps of a client that logs in.
    pub login_caps: Arc<Caps>,
    /// Caps of a server.
    pub server_caps: Arc<Caps>,
    /// Caps of what it answers to our own questions.
    pub own_answer_caps: Arc<Caps>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The workload, for receipts: proved once a certificate is held.
    pub fn workload(&self) -> Claim {
        workload(&self.subject, self.identity.as_ref())
    }

    /// How a client's wish for TLS is answered now.
    pub fn tls_offer(&self) -> Offer {
        let held = || {
            let held = self.capture.as_ref()?.borrow().clone()?;
            Some(held.acceptor.clone())
        };
        let started_with = || self.client_tls.clone().map_or(Offer::Plain, Offer::Serve);
        match &*self.front.in_force() {
            InForce::Policies(policies) => match &policies.client_tls {
                ClientTls::Plain => started_with(),
                ClientTls::Given(acceptor) => Offer::Serve(acceptor.clone()),
                ClientTls::Capture => held().map_or(Offer::NotYet, Offer::Serve),
            },
            // Who insists on TLS is to hear why nothing is served.
            InForce::Closed { .. } => held().map_or_else(started_with, Offer::Serve),
        }
    }

    /// How records of no session are kept.
    pub fn receipt_mode(&self) -> ReceiptMode {
        self.front
            .policies()
            .map_or(ReceiptMode::Durable, |policies| policies.policy.receipt_mode())
    }

    /// The policies in force give us a login of our own, with which catalogs can be read. A session may have begun under
    /// others.
    pub fn has_login(&self) -> bool {
        self.front
            .policies()
            .is_some_and(|policies| policies.upstream.login != Login::PassThrough)
    }

    /// Reads a database's catalog over a connection of our own, unless somebody did since `wanted`.
    ///
    /// # Errors
    /// Why not, for the log.
    pub async fn read_catalog(&self, database: &Database, wanted: Instant) -> Result<(), String> {
        let _reading = database.reading.lock().await;
        if database.read_since(wanted) {
            return Ok(());
        }
        let asked = Instant::now();
        let policies = self
            .front
            .policies()
            .ok_or("no policy is in force here any more")?;
        let context = LoginContext {
            upstream: &policies.upstream,
            policy: &policies.policy,
            cancels: &self.cancels,
            roles: &self.front.roles,
            client_caps: &self.login_caps,
            server_caps: &self.server_caps,
        };
        let read = async {
            let mut session = log_in_for_catalog(&context, database.name())
                .await
                .map_err(|failure| match failure {
                    Failure::Fatal(fatal) => fatal.message,
                    Failure::ClientGone(error) => error.to_string(),
                    Failure::Told(_) => "the server refused".to_owned(),
                })?;
            let sql = sql_facts::Catalog::load_sql();
            let rows = ask(&mut session.leg, &mut session.framer, sql, &mut Vec::new())
                .await
                .map_err(|error| error.to_string())?;
            session
                .leg
                .send_with(|out: &mut BytesMut| {
                    wire_protocol::postgres::write::frontend::terminate(out);
                    Ok::<(), std::convert::Infallible>(())
                })
                .unwrap_or_else(|never| match never {});
            session.leg.finish().await;
            Ok((session.server_major, rows))
        };
        let (server_major, rows) = tokio::time::timeout(CATALOG_TIMEOUT, read)
            .await
            .unwrap_or_else(|_| Err("it took too long".to_owned()))?;
        self.metrics.catalog_reads.inc();
        database.take_catalog(server_major, &rows, asked, &policies)
    }

    fn listener_status(&self) -> serde_json::Value {
        let policies = self.front.policies();
        json!({
            "listen": self.front.listen.to_string(),
            "upstream": self.front.name().to_string(),
            "dial": policies.as_ref().map(|policies| policies.upstream.dial.to_string()),
            "policies": policies.as_ref().map(|policies| policies.policy.names().collect::<Vec<_>>()),
            "openConnections": self.metrics.open.get(),
        })
    }

    fn database_status(&self) -> Vec<serde_json::Value> {
        self.front
            .databases
            .all()
            .iter()
            .map(|database| {
                let world = database.world();
                json!({
                    "name": database.name(),
                    "catalogVersion": world.as_ref().map(|world| world.catalog.version),
                    "protected": world.as_ref().map(|world| world.policy.protected),
                    "unresolved": database.unresolved().iter().map(|name| json!({
                        "policy": name.policy,
                        "field": name.field,
                        "name": name.name,
                        "wasBound": name.was_bound,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect()
    }
}

/// The listeners, once they are served.
type Live = Arc<OnceLock<Vec<Arc<Shared>>>>;

fn status(live: &Live, drain: &Drain) -> serde_json::Value {
    let version = env!("CARGO_PKG_VERSION");
    let stage = format!("{:?}", drain.stage());
    let all = live.get().map(Vec::as_slice).unwrap_or_default();
    let Some(first) = all.first() else {
        return json!({"version": version, "stage": stage, "listeners": []});
    };
    let load = first.source.status();
    let loaded = first.source.loaded();
    let spool = first.spool.status();
    json!({
        "version": version,
        "stage": stage,
        "uptimeSeconds": first.started.elapsed().as_secs(),
        "listeners": all.iter().map(|shared| shared.listener_status()).collect::<Vec<_>>(),
        "policies": {
            "generation": loaded.generation,
            "version": loaded.version,
            "origin": loaded.origin,
            "names": loaded.states.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(),
            "loadFailures": load.failures,
            "problems": load.problems,
        },
        "databases": all.iter().flat_map(|shared| shared.database_status()).collect::<Vec<_>>(),
        "spool": {
            "dir": first.config.spool_dir.display().to_string(),
            "health": format!("{:?}", spool.health),
            "boot": spool.boot.to_string(),
            "events": spool.events,
            "signed": spool.signed,
            "dropped": spool.dropped,
            "bytes": spool.bytes,
            "bytesMax": spool.bytes_max,
            "collector": first.collector,
            "delivered": spool.delivered,
            "waiting": spool.waiting,
            "deliveryError": spool.delivery_error,
        },
    })
}

/// What the operator is told.
fn report(
    live: &Live,
    identity: Option<&HeldIdentity>,
    policies: &StreamedPolicies,
    bypasses: &BypassWatch,
) -> proto::Report {
    let all = live.get().map(Vec::as_slice).unwrap_or_default();
    let unresolved = all
        .iter()
        .flat_map(|shared| shared.front.databases.all())
        .flat_map(|database| {
            let of = database.name().to_owned();
            database
                .unresolved()
                .into_iter()
                .map(move |name| proto::Unresolved {
                    policy: name.policy,
                    field: name.field,
                    name: name.name,
                    database: of.clone(),
                })
        })
        .collect();
    let spool = all.first().map(|shared| shared.spool.status());
    proto::Report {
        unresolved,
        bypasses: bypasses.report(),
        receipts_waiting: spool.as_ref().map_or(0, |spool| spool.waiting),
        receipts_dropped: spool.as_ref().map_or(0, |spool| spool.dropped),
        leaf_not_after: identity
            .and_then(|held| held.borrow().as_ref().map(|held| held.identity.not_after()))
            .unwrap_or(0),
        snapshot_in_force: policies.loaded().version,
    }
}

/// What ends the process at once.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Policies.
    #[error("policies do not load:\n  {}", .0.join("\n  "))]
    Policies(Vec<String>),
    /// A listener.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Certificates.
    #[error("TLS towards applications: {0}")]
    Tls(#[from] tls::TlsError),
    /// Threads and the like.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
    /// Receipts.
    #[error("receipts cannot be kept: {0}")]
    Spool(#[from] SpoolError),
}

/// A connection on its way to its thread.
struct Accepted {
    shared: Arc<Shared>,
    socket: std::net::TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
    /// There are too many: it is only told so.
    turned_away: bool,
}

/// Where policies come from, once there are some, and what goes with that.
struct Ready {
    source: Source,
    fronts: Vec<Arc<Front>>,
    subject: Subject,
    identity: Option<HeldIdentity>,
    collector: Option<String>,
    collector_key: Option<String>,
    /// Told of the chain of receipts.
    boot: Arc<OnceLock<String>>,
    capture: Option<HeldLeaf>,
}

/// Runs the sidecar until it is told to stop. Blocks.
///
/// # Errors
/// [`StartError`], before anything is served.
pub fn run(config: Config) -> Result<(), StartError> {
    let config = Arc::new(config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (trigger, drain) = service_runtime::drain::channel();
    let health = Health::new(&["listener", "policies"]);
    let (live, metrics) = (Live::default(), Metrics::default());
    let mut background = JoinSet::new();
    let begin = async |background: &mut JoinSet<()>| {
        begin(&config, &trigger, &drain, &health, &live, &metrics, background).await
    };
    let ready = runtime.block_on(async {
        let ready = match &config.role {
            Role::Folder(role) => from_folder(&config, role)?,
            Role::Pod(pod) => {
                // A pod waits for its first policies in view of its probes.
                begin(&mut background).await?;
                let mut stop = drain.clone();
                tokio::select! {
                    ready = from_operator(&config, pod, &live, &metrics, &mut background) => ready?,
                    () = stop.reached(Stage::Draining) => return Ok(None),
                }
            }
        };
        Ok::<_, StartError>(Some(ready))
    })?;
    let Some(ready) = ready else {
        tracing::info!("asked to stop before there were policies");
        return Ok(());
    };
    health.set("policies", true);
    let listens: Vec<String> = ready
        .fronts
        .iter()
        .map(|front| front.listen.to_string())
        .collect();
    let mode = ready.fronts.iter().find_map(|front| front.policies());
    let mut spool = SpoolConfig {
        collector: ready.collector.clone(),
        collector_key: ready.collector_key.clone(),
        identity: ready.identity.clone(),
        listen: Some(listens.join(",")),
        workload: workload(&ready.subject, ready.identity.as_ref()),
        mode: mode.map_or(ReceiptMode::Durable, |policies| policies.policy.receipt_mode()),
        ..SpoolConfig::new(&config.spool_dir)
    };
    if let Some(bytes) = config.spool_bytes_max {
        spool.bytes_max = bytes;
        spool.segment_bytes = spool.segment_bytes.min((bytes / 8).max(64 << 10));
    }
    let spool = Arc::new(Spool::open(spool)?);
    // Set once: this is the only place.
    let _ = ready.boot.set(spool.status().boot.to_string());
    let mut all = Vec::new();
    let subject = Arc::new(ready.subject.clone());
    for front in &ready.fronts {
        let client_tls = match &config.client_tls {
            ClientTlsConfig::Plain => None,
            ClientTlsConfig::SelfMade => Some(tls::acceptor_self_made(&[
                front.listen.host.clone(),
                front.endpoint.host.clone(),
            ])?),
            ClientTlsConfig::Given { certificate, key } => Some(tls::acceptor_from_files(certificate, key)?),
        };
        all.push(Arc::new(Shared {
            started: Instant::now(),
            source: ready.source.clone(),
            front: Arc::clone(front),
            cancels: Cancels::default(),
            metrics: metrics.clone(),
            spool: Arc::clone(&spool),
            drain: drain.clone(),
            collector: ready.collector.clone(),
            client_tls,
            capture: ready.capture.clone(),
            subject: Arc::clone(&subject),
            identity: ready.identity.clone(),
            client_caps: client_caps(config.statement_max_bytes),
            login_caps: Arc::new(Caps::client_login()),
            server_caps: Arc::new(Caps::server()),
            own_answer_caps: Arc::new(Caps::server_answering_us()),
            config: Arc::clone(&config),
        }));
    }
    let _ = live.set(all.clone());
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    for index in 0..config.threads {
        let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
        senders.push(sender);
        threads.push(
            thread::Builder::new()
                .name(format!("weir-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || worker(receiver))?,
        );
    }
    let result = runtime.block_on(async {
        if matches!(config.role, Role::Folder(_)) {
            begin(&mut background).await?;
        }
        control(
            &all,
            &health,
            trigger.clone(),
            drain.clone(),
            senders,
            &mut background,
        )
        .await
    });
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread ended by a panic");
        }
    }
    // The chain is closed in order; what the collector has not confirmed by then waits for the next start.
    let reason = if result.is_ok() { "drain" } else { "start failed" };
    spool.close(reason, Instant::now() + CLOSE_TIMEOUT);
    result
}

fn from_folder(config: &Config, role: &FolderRole) -> Result<Ready, StartError> {
    let folder = PolicyFolder::load(
        role.clone(),
        config.secrets_dir.clone(),
        config.allow_remote_clients,
    )
    .map_err(StartError::Policies)?;
    Ok(Ready {
        fronts: vec![Arc::clone(folder.front())],
        source: Source::Folder(Arc::new(folder)),
        subject: config.subject.clone(),
        identity: None,
        collector: config.collector.clone(),
        collector_key: config.collector_key.clone(),
        boot: Arc::default(),
        capture: None,
    })
}

/// Waits until policies are in force: those kept on disk at once, else those that the operator sends.
async fn from_operator(
    config: &Config,
    pod: &Pod,
    live: &Live,
    metrics: &Metrics,
    background: &mut JoinSet<()>,
) -> Result<Ready, StartError> {
    let fronts: Vec<Arc<Front>> = pod
        .captured
        .iter()
        .map(|one| Arc::new(Front::new(one.listen.clone(), one.endpoint.clone())))
        .collect();
    let policies = Arc::new(StreamedPolicies::new(
        &pod.uid,
        fronts.clone(),
        config.secrets_dir.clone(),
        TOO_OLD_GRACE,
    ));
    let client = IdentityClient::new(IdentityConfig {
        operator: pod.operator.clone(),
        token_file: pod.token_file.clone(),
        identity_dir: pod.identity_dir.clone(),
        bootstrap: pod.bootstrap.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    let identity = client.held();
    let kept = KeptSnapshot::new(&config.spool_dir);
    match kept.read() {
        Ok(Some(signed)) => {
            if let Answer::Ack(ack) = policies.take(&signed, &client.trust(), now()) {
                tracing::info!(
                    version = ack.version,
                    "the kept policies are in force until the operator is heard"
                );
            }
        }
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "the kept policies cannot be read"),
    }
    let boot = Arc::<OnceLock<String>>::default();
    let (for_report, with_identity, of) = (Arc::clone(live), identity.clone(), Arc::clone(&policies));
    let bypasses = Arc::new(BypassWatch::new(fronts.clone(), metrics.clone()));
    let for_follow = Arc::clone(&bypasses);
    let follow = Follow {
        operator: pod.operator.clone(),
        identity: identity.clone(),
        trust: client.trust_updates(),
        policies: Arc::clone(&policies),
        kept,
        captured: pod.captured_names(),
        boot: Arc::clone(&boot),
        report: Box::new(move || report(&for_report, Some(&with_identity), &of, &for_follow)),
    };
    let capture = CaptureClient::new(
        pod.operator.clone(),
        identity.clone(),
        pod.identity_dir.clone(),
        pod.ca_dir.clone(),
        fronts.clone(),
    );
    let mut held = capture.held();
    background.spawn(capture.run(policies.changes()));
    background.spawn(client.run());
    background.spawn(follow.run());
    background.spawn(bypasses.run());
    let looking = Arc::clone(&policies);
    background.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            looking.look(now());
        }
    });
    tracing::info!(operator = pod.operator, "waiting for policies");
    let mut headers = policies.header();
    let header = headers
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|header| header.clone());
    // The sender lives in `policies`, which is held here.
    let header = header.ok_or_else(|| io::Error::other("the policies are gone"))?;
    // An application that insists on TLS shall find it at once; one that cannot be had keeps nobody else waiting.
    let wanted = capture::wanted(&fronts);
    let obtained = held.wait_for(|leaf| {
        wanted.is_empty() || leaf.as_ref().is_some_and(|leaf| leaf.hosts.is_superset(&wanted))
    });
    let obtained = tokio::time::timeout(CAPTURE_WAIT, obtained).await.is_ok();
    if !obtained {
        tracing::error!("there is no certificate towards the application yet; it is asked for again");
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Ready {
        source: Source::Stream(policies),
        fronts,
        subject: Subject {
            service_account: Some(header.service_account),
            ..Subject::default()
        },
        identity: Some(identity),
        collector: given(header.collector.url),
        collector_key: given(header.collector.log_key),
        boot,
        capture: Some(held),
    })
}

/// Signals and admin pages.
async fn begin(
    config: &Config,
    trigger: &Trigger,
    drain: &Drain,
    health: &Health,
    live: &Live,
    metrics: &Metrics,
    background: &mut JoinSet<()>,
) -> Result<(), StartError> {
    let trigger = trigger.clone();
    background.spawn(async move {
        if let Err(error) = trigger.on_signals().await {
            tracing::error!(%error, "cannot listen to signals");
        }
    });
    if let Some(admin) = &config.admin {
        let listener = listen(&admin.host, admin.port).await?;
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let (live, for_status) = (Arc::clone(live), drain.clone());
        let pages = Pages {
            health: health.clone(),
            registry: Arc::new(registry),
            status: Arc::new(move || status(&live, &for_status)),
            drain: drain.clone(),
        };
        tracing::info!(address = %admin, "admin pages");
        background.spawn(async move {
            if let Err(error) = service_runtime::admin::serve(listener, pages).await {
                tracing::error!(%error, "the admin pages stopped");
            }
        });
    }
    Ok(())
}

/// The workload: as its certificate proves it, else as whoever started us says it.
fn workload(subject: &Subject, identity: Option<&HeldIdentity>) -> Claim {
    let held = identity.and_then(|held| held.borrow().clone());
    if let Some(leaf) = held.as_ref().and_then(|held| held.identity.leaf())
        && let Ok(Peer::Pod(pod)) = read_peer(leaf)
    {
        return Claim::verified(pod.workload());
    }
    subject
        .service_account
        .as_ref()
        .map_or_else(Claim::absent, Claim::asserted)
}

/// One thread that serves connections.
fn worker(mut receiver: mpsc::Receiver<Accepted>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a thread cannot start");
            return;
        }
    };
    LocalSet::new().block_on(&runtime, async {
        let judge = Rc::new(RefCell::new(Judge::default()));
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = receiver.recv() => match accepted {
                    Some(accepted) => {
                        tasks.spawn_local(one(Rc::clone(&judge), accepted));
                    }
                    None => break,
                },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
        // The control thread sends nothing more: what runs may end.
        while tasks.join_next().await.is_some() {}
    });
}

async fn one(judge: Rc<RefCell<Judge>>, accepted: Accepted) {
    let Accepted {
        shared,
        socket,
        peer,
        permit,
        turned_away,
    } = accepted;
    let open = Open::count(&shared.metrics.open);
    let reason = match TcpStream::from_std(socket) {
        Ok(socket) if turned_away => connection::turn_away(&shared, socket).await,
        Ok(socket) => connection::serve(Arc::clone(&shared), judge, socket, peer).await,
        Err(error) => {
            tracing::error!(%error, "a connection cannot be taken over");
            EndKind::Client
        }
    };
    drop(open);
    shared.metrics.ends.get_or_create(&EndLabel { reason }).inc();
    drop(permit);
}

/// The control thread: listens and watches.
async fn control(
    all: &[Arc<Shared>],
    health: &Health,
    trigger: Trigger,
    mut drain: Drain,
    senders: Vec<mpsc::Sender<Accepted>>,
    background: &mut JoinSet<()>,
) -> Result<(), StartError> {
    let Some(first) = all.first() else {
        return Err(StartError::Policies(vec!["no database is captured".to_owned()]));
    };
    let config = &first.config;
    let mut accepting = JoinSet::new();
    let permits = Arc::new(Semaphore::new(config.max_connections));
    for shared in all {
        let front = &shared.front;
        let listener = listen(&front.listen.host, front.listen.port).await?;
        let policies = front.policies();
        tracing::info!(
            listen = %front.listen,
            upstream = %front.name(),
            dial = policies.as_ref().map(|policies| policies.upstream.dial.to_string()),
            policies = policies.as_ref().map(|policies| policies.policy.names().collect::<Vec<_>>().join(", ")),
            "serving"
        );
        let own = policies.is_some_and(|policies| policies.upstream.login != Login::PassThrough);
        if own && config.allow_remote_clients {
            tracing::warn!(
                "clients get in without a password, and the listener is open beyond loopback (--allow-remote-clients)"
            );
        }
        accepting.spawn(accept(
            Arc::clone(shared),
            listener,
            Arc::clone(&permits),
            senders.clone(),
        ));
        background.spawn(poll_catalogs(Arc::clone(shared)));
    }
    drop(senders);
    if let Source::Folder(folder) = &first.source {
        background.spawn(Arc::clone(folder).watch(drain.clone()));
    }
    background.spawn(follow_policies(all.to_vec()));
    background.spawn(bind_chain(Arc::clone(first)));
    health.set("listener", true);
    while accepting.join_next().await.is_some() {}
    tracing::info!(open = first.metrics.open.get(), "draining");
    let idle = async {
        // Sessions end themselves; the admin pages stay up until then.
        while first.metrics.open.get() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = idle => {}
        // Whoever still logs in when the grace time is over is cut off.
        () = tokio::time::sleep(config.drain + AFTER_GRACE) => {}
        () = drain.reached(Stage::Stopped) => {}
    }
    trigger.advance(Stage::Stopped);
    background.shutdown().await;
    Ok(())
}

async fn listen(host: &str, port: u16) -> Result<TcpListener, StartError> {
    TcpListener::bind((host, port))
        .await
        .map_err(|error| StartError::Listen {
            address: format!("{host}:{port}"),
            error,
        })
}

/// Takes connections and hands them to the threads in turn, until the process drains.
async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    permits: Arc<Semaphore>,
    senders: Vec<mpsc::Sender<Accepted>>,
) {
    let told = Arc::new(Semaphore::new(TOLD_MAX));
    let mut drain = shared.drain.clone();
    for sender in senders.iter().cycle() {
        let (socket, peer) = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => break accepted,
                    Err(error) => {
                        // Out of descriptors, mostly: the next connection may find one.
                        tracing::error!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                () = drain.reached(Stage::Draining) => return,
            }
        };
        shared.metrics.connections.inc();
        let (permit, turned_away) = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => (permit, false),
            // Those are told in the protocol's own place, a few at a time; beyond that, the socket is just closed.
            Err(_) => match Arc::clone(&told).try_acquire_owned() {
                Ok(permit) => (permit, true),
                Err(_) => continue,
            },
        };
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "a connection cannot be handed over");
                continue;
            }
        };
        let accepted = Accepted {
            shared: Arc::clone(&shared),
            socket,
            peer,
            permit,
            turned_away,
        };
        if sender.send(accepted).await.is_err() {
            tracing::error!("a thread is gone");
        }
    }
}

/// Records changes of the policies, and shows them.
async fn follow_policies(all: Vec<Arc<Shared>>) {
    let Some(first) = all.first() else { return };
    let mut changes = first.source.changes();
    let metrics = &first.metrics;
    let mut recorded = 0;
    loop {
        let loaded = first.source.loaded();
        if recorded != loaded.generation {
            recorded = loaded.generation;
            metrics.policy_generation.set(loaded.generation);
            record_policies(first, loaded);
        }
        let failed = !first.source.status().problems.is_empty();
        metrics.policy_load_failed.set(failed.into());
        let unresolved: usize = all
            .iter()
            .flat_map(|shared| shared.front.databases.all())
            .map(|database| database.unresolved().len())
            .sum();
        metrics
            .unresolved_names
            .set(u64::try_from(unresolved).unwrap_or(u64::MAX));
        metrics.show_spool(&first.spool.status());
        let held = first.identity.as_ref().and_then(|held| held.borrow().clone());
        metrics
            .certificate_end
            .set(held.map_or(0, |held| held.identity.not_after()));
        // A failed load changes no generation but must show.
        let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
    }
}

fn record_policies(shared: &Shared, loaded: Loaded) {
    let (time_us, mono_us) = shared.spool.now();
    let entry = Entry {
        time_us,
        mono_us,
        session: None,
        body: Body::PolicyChange(PolicyChange {
            generation: loaded.version,
            policies: loaded.states,
            origin: loaded.origin,
        }),
    };
    shared.spool.record(entry, None, shared.receipt_mode());
}

/// Says in the chain of receipts whose it is, with each certificate that the pod comes to hold.
async fn bind_chain(shared: Arc<Shared>) {
    let Some(mut identity) = shared.identity.clone() else {
        return;
    };
    let boot = shared.spool.boot();
    let mut bound = None;
    loop {
        let held = identity.borrow_and_update().clone();
        if let Some(held) = held
            && let Some(leaf) = held.identity.leaf()
            && bound.as_ref() != Some(leaf)
            && let Ok(Peer::Pod(pod)) = read_peer(leaf)
        {
            match sign_bytes(BIND_CONTEXT, &boot.0, &held.identity) {
                Ok(signature) => {
                    let bind = ChainBind::new(pod.uri(), &held.identity.chain, &signature);
                    let (time_us, mono_us) = shared.spool.now();
                    let entry = Entry {
                        time_us,
                        mono_us,
                        session: None,
                        body: Body::ChainBind(bind),
                    };
                    shared.spool.record(entry, None, shared.receipt_mode());
                    bound = Some(leaf.clone());
                }
                Err(error) => tracing::error!(error, "the chain of receipts cannot be bound to the pod"),
            }
        }
        if identity.changed().await.is_err() {
            return;
        }
    }
}

/// Reads catalogs again from time to time, where the sidecar has a login of its own.
async fn poll_catalogs(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.config.catalog_poll);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !shared.has_login() {
            continue;
        }
        for database in shared.front.databases.all() {
            if let Err(error) = shared.read_catalog(&database, Instant::now()).await {
                shared.metrics.catalog_failures.inc();
                tracing::error!(
                    database = database.name(),
                    error,
                    "the catalog cannot be read again"
                );
            }
        }
    }
}
