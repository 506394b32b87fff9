//! The process: what all threads share, and the threads.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use access_policy::Subject;
use bytes::BytesMut;
use prometheus_client::registry::Registry;
use receipts::{Body, Claim, PolicyChange};
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

use crate::cancels::Cancels;
use crate::config::{ClientTlsConfig, Config};
use crate::connection;
use crate::databases::{Database, Databases};
use crate::fatal::{EndKind, Failure};
use crate::login::{LoginContext, ask, log_in_for_catalog};
use crate::metrics::{EndLabel, Metrics};
use crate::policies::{Policies, PolicyStore};
use crate::pump::client_caps;
use crate::spool::{Entry, Spool, SpoolConfig, SpoolError};
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
/// The catalog has this long to be read.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(60);

/// What all threads share.
pub struct Shared {
    /// Options.
    pub config: Arc<Config>,
    /// The clock of sessions starts here.
    pub started: Instant,
    /// Policies in force.
    pub policies: Arc<PolicyStore>,
    /// Databases used.
    pub databases: Databases,
    /// Cancel keys.
    pub cancels: Cancels,
    /// Metrics.
    pub metrics: Metrics,
    /// Receipts.
    pub spool: Arc<Spool>,
    /// The end.
    pub drain: Drain,
    /// TLS towards applications.
    pub client_tls: Option<TlsAcceptor>,
    /// Who the workload is.
    pub subject: Arc<Subject>,
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
        let policies = self.policies.current();
        let context = LoginContext {
            upstream: &policies.upstream,
            policy: &policies.policy,
            cancels: &self.cancels,
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

    fn status(&self) -> serde_json::Value {
        let policies = self.policies.current();
        let load = self.policies.status();
        let spool = self.spool.status();
        let databases: Vec<_> = self
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
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "stage": format!("{:?}", self.drain.stage()),
            "uptimeSeconds": self.started.elapsed().as_secs(),
            "listeners": [{
                "listen": self.config.listen.to_string(),
                "upstream": policies.upstream.name.to_string(),
                "dial": policies.upstream.dial.to_string(),
                "openConnections": self.metrics.open.get(),
            }],
            "policies": {
                "generation": policies.generation,
                "names": policies.policy.names().collect::<Vec<_>>(),
                "loadFailures": load.failures,
                "problems": load.problems,
            },
            "databases": databases,
            "spool": {
                "dir": self.config.spool_dir.display().to_string(),
                "health": format!("{:?}", spool.health),
                "boot": spool.boot.to_string(),
                "events": spool.events,
                "signed": spool.signed,
                "dropped": spool.dropped,
                "bytes": spool.bytes,
                "bytesMax": spool.bytes_max,
                "collector": self.config.collector,
                "delivered": spool.delivered,
                "deliveryError": spool.delivery_error,
            },
        })
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
    socket: std::net::TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
    /// There are too many: it is only told so.
    turned_away: bool,
}

/// Runs the sidecar until it is told to stop. Blocks.
///
/// # Errors
/// [`StartError`], before anything is served.
pub fn run(config: Config) -> Result<(), StartError> {
    let config = Arc::new(config);
    let policies = Arc::new(PolicyStore::load(Arc::clone(&config)).map_err(StartError::Policies)?);
    let spool = Arc::new(Spool::open(SpoolConfig {
        collector: config.collector.clone(),
        collector_key: config.collector_key.clone(),
        listen: Some(config.listen.to_string()),
        workload: workload(&config.subject),
        mode: policies.current().policy.receipt_mode(),
        ..SpoolConfig::new(&config.spool_dir)
    })?);
    let client_tls = match &config.client_tls {
        ClientTlsConfig::Plain => None,
        ClientTlsConfig::SelfMade => Some(tls::acceptor_self_made(&[
            config.listen.host.clone(),
            policies.endpoint().host.clone(),
        ])?),
        ClientTlsConfig::Given { certificate, key } => Some(tls::acceptor_from_files(certificate, key)?),
    };
    let (trigger, drain) = service_runtime::drain::channel();
    let shared = Arc::new(Shared {
        started: Instant::now(),
        policies,
        databases: Databases::default(),
        cancels: Cancels::default(),
        metrics: Metrics::default(),
        spool,
        drain,
        client_tls,
        subject: Arc::new(config.subject.clone()),
        client_caps: client_caps(config.statement_max_bytes),
        login_caps: Arc::new(Caps::client_login()),
        server_caps: Arc::new(Caps::server()),
        own_answer_caps: Arc::new(Caps::server_answering_us()),
        config,
    });
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    for index in 0..shared.config.threads {
        let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
        let shared = Arc::clone(&shared);
        senders.push(sender);
        threads.push(
            thread::Builder::new()
                .name(format!("weir-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || worker(&shared, receiver))?,
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(control(Arc::clone(&shared), trigger, senders));
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread ended by a panic");
        }
    }
    // The chain is closed in order; what the collector has not confirmed by then waits for the next start.
    let reason = if result.is_ok() { "drain" } else { "start failed" };
    shared.spool.close(reason, Instant::now() + CLOSE_TIMEOUT);
    result
}

/// The workload, as whoever started us says it.
fn workload(subject: &Subject) -> Claim {
    subject
        .service_account
        .as_ref()
        .map_or_else(Claim::absent, Claim::asserted)
}

/// One thread that serves connections.
fn worker(shared: &Arc<Shared>, mut receiver: mpsc::Receiver<Accepted>) {
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
                        let (shared, judge) = (Arc::clone(shared), Rc::clone(&judge));
                        tasks.spawn_local(one(shared, judge, accepted));
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

/// Counts an open connection; also one that ends by a panic is counted off.
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    fn count(metrics: &Metrics) -> Self {
        metrics.open.inc();
        Self(metrics.open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn one(shared: Arc<Shared>, judge: Rc<RefCell<Judge>>, accepted: Accepted) {
    let Accepted {
        socket,
        peer,
        permit,
        turned_away,
    } = accepted;
    let open = Open::count(&shared.metrics);
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

/// The control thread: listens, watches, serves the admin pages.
async fn control(
    shared: Arc<Shared>,
    trigger: Trigger,
    senders: Vec<mpsc::Sender<Accepted>>,
) -> Result<(), StartError> {
    let health = Health::new(&["listener", "policies"]);
    health.set("policies", true);
    let mut background = JoinSet::new();
    let last = trigger.clone();
    background.spawn(async move {
        if let Err(error) = trigger.on_signals().await {
            tracing::error!(%error, "cannot listen to signals");
        }
    });
    let listener = listen(&shared.config.listen.host, shared.config.listen.port).await?;
    if let Some(admin) = &shared.config.admin {
        let listener = listen(&admin.host, admin.port).await?;
        let pages = pages(&shared, &health);
        tracing::info!(address = %admin, "admin pages");
        background.spawn(async move {
            if let Err(error) = service_runtime::admin::serve(listener, pages).await {
                tracing::error!(%error, "the admin pages stopped");
            }
        });
    }
    background.spawn(Arc::clone(&shared.policies).watch(shared.drain.clone()));
    background.spawn(follow_policies(Arc::clone(&shared)));
    background.spawn(poll_catalogs(Arc::clone(&shared)));
    let policies = shared.policies.current();
    tracing::info!(
        listen = %shared.config.listen,
        upstream = %policies.upstream.name,
        dial = %policies.upstream.dial,
        policies = policies.policy.names().collect::<Vec<_>>().join(", "),
        "serving"
    );
    if policies.upstream.login != Login::PassThrough && shared.config.allow_remote_clients {
        tracing::warn!(
            "clients get in without a password, and the listener is open beyond loopback (--allow-remote-clients)"
        );
    }
    health.set("listener", true);
    drop(policies);
    accept(&shared, listener, senders).await;
    tracing::info!(open = shared.metrics.open.get(), "draining");
    let mut drain = shared.drain.clone();
    let idle = async {
        // Sessions end themselves; the admin pages stay up until then.
        while shared.metrics.open.get() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = idle => {}
        // Whoever still logs in when the grace time is over is cut off.
        () = tokio::time::sleep(shared.config.drain + AFTER_GRACE) => {}
        () = drain.reached(Stage::Stopped) => {}
    }
    last.advance(Stage::Stopped);
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

fn pages(shared: &Arc<Shared>, health: &Health) -> Pages {
    let mut registry = Registry::default();
    shared.metrics.register(&mut registry);
    let for_status = Arc::clone(shared);
    Pages {
        health: health.clone(),
        registry: Arc::new(registry),
        status: Arc::new(move || for_status.status()),
        drain: shared.drain.clone(),
    }
}

/// Takes connections and hands them to the threads in turn, until the process drains.
async fn accept(shared: &Arc<Shared>, listener: TcpListener, senders: Vec<mpsc::Sender<Accepted>>) {
    let permits = Arc::new(Semaphore::new(shared.config.max_connections));
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

/// Binds changed policies to the catalogs that are known.
async fn follow_policies(shared: Arc<Shared>) {
    let mut changes = shared.policies.changes();
    let metrics = &shared.metrics;
    let mut recorded = 0;
    loop {
        let policies = shared.policies.current();
        if recorded != policies.generation {
            recorded = policies.generation;
            record_policies(&shared, &policies);
        }
        for database in shared.databases.all() {
            database.take_policies(&policies);
        }
        metrics.policy_generation.set(policies.generation);
        let failed = !shared.policies.status().problems.is_empty();
        metrics.policy_load_failed.set(failed.into());
        let unresolved: usize = shared
            .databases
            .all()
            .iter()
            .map(|database| database.unresolved().len())
            .sum();
        metrics
            .unresolved_names
            .set(u64::try_from(unresolved).unwrap_or(u64::MAX));
        // A failed load changes no generation but must show.
        let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
    }
}

fn record_policies(shared: &Shared, policies: &Policies) {
    let (time_us, mono_us) = shared.spool.now();
    let entry = Entry {
        time_us,
        mono_us,
        session: None,
        body: Body::PolicyChange(PolicyChange {
            generation: policies.generation,
            policies: policies.states.clone(),
            origin: shared.config.policy_dir.display().to_string(),
        }),
    };
    shared.spool.record(entry, None, policies.policy.receipt_mode());
}

/// Reads catalogs again from time to time, where the sidecar has a login of its own.
async fn poll_catalogs(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(shared.config.catalog_poll);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if shared.policies.current().upstream.login == Login::PassThrough {
            continue;
        }
        for database in shared.databases.all() {
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
