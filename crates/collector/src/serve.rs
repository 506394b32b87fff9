//! The collector as a process: the ingest thread, the pages, the admin pages, and how it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use control_api::client::{Held, IdentityClient};
use control_api::tls::{Alpn, ClientAuth, server_config};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::http::{Job, Shared, pages, questions};
use crate::index::Index;
use crate::ingest::{Ingest, IngestError, Request, read};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::operator::{Link, OperatorConfig, end_chains};
use crate::peers::{self, Gone};
use crate::sinks::{self, LoopbackSinks, SinkOrder, SinkStates, SinkWorld, read_kept};

/// Requests that wait for the ingest thread.
const REQUESTS_MAX: usize = 32;
/// Requests that share one fdatasync.
const BATCH_MAX: usize = 32;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// How a collector is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where `weir` reaches it, and without an operator sidecars too.
    pub listen: SocketAddr,
    /// Where health and metrics are; `None`: beside the others.
    pub admin: Option<SocketAddr>,
    /// Its folder.
    pub data_dir: PathBuf,
    /// In a cluster.
    pub operator: Option<OperatorConfig>,
    /// Sinks, where no operator says them.
    pub sinks: Vec<SinkOrder>,
    /// May sinks lead to this machine?
    pub loopback_sinks: LoopbackSinks,
}

/// Runs until `stop` is true. `ready` gets the addresses once all are open: (pages, admin).
///
/// # Errors
/// Where it cannot start, or cannot write its last entries.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(SocketAddr, SocketAddr),
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    if config.operator.is_some() {
        // Whoever reaches them reads what everybody did: in a cluster the API server asks for the right first.
        anyhow::ensure!(
            config.listen.ip().is_loopback(),
            "with an operator the pages are on loopback only (kubectl port-forward leads there), not on {}",
            config.listen
        );
    }
    let index_path = Arc::new(config.data_dir.join("index.sqlite"));
    let log = Log::open(&config.data_dir)?;
    let index = Index::open(&index_path)?;
    let log = Arc::new(RwLock::new(log));
    let ingest = Ingest::start(Arc::clone(&log), index)?;
    let metrics = Metrics::default();
    let healthy = Arc::new(AtomicBool::new(true));
    let (send, jobs) = sync_channel::<Job>(REQUESTS_MAX);
    let (grown, size) = watch::channel(read(&log).size());
    let thread = {
        let worker = Worker {
            log: Arc::clone(&log),
            metrics: metrics.clone(),
            healthy: Arc::clone(&healthy),
            grown,
        };
        std::thread::Builder::new()
            .name("weir-ingest".to_owned())
            .spawn(move || worker.work(ingest, &jobs))?
    };
    let listener = bind(config.listen).await?;
    let admin = match config.admin {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let addresses = (
        listener.local_addr()?,
        admin
            .as_ref()
            .map_or(listener.local_addr(), TcpListener::local_addr)?,
    );
    let log_key = {
        let log = read(&log);
        tracing::info!(log.key = %log.key().to_vkey(), log.entries = log.size(), "the log is open");
        log.key().to_vkey()
    };
    let shared = Shared {
        log: Arc::clone(&log),
        index_path: Arc::clone(&index_path),
        ingest: send.clone(),
        metrics: metrics.clone(),
    };
    let dir = config.data_dir.join("sinks");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let states = SinkStates::default();
    let world = SinkWorld {
        log,
        index_path: Arc::clone(&index_path),
        dir: dir.clone(),
        size,
        loopback: config.loopback_sinks,
        metrics: metrics.clone(),
        states: states.clone(),
    };
    let kept = dir.join("set.json");
    let first = match &config.operator {
        Some(_) => read_kept(&kept)
            .context("cannot read the set of sinks that was kept")?
            .unwrap_or_default(),
        None => config.sinks,
    };
    let (orders, ordered) = watch::channel(Arc::new(first));
    let mut tasks = JoinSet::new();
    tasks.spawn(sinks::run(world, ordered, stop.clone()));
    let in_cluster = config.operator.is_some();
    let mut certified = None;
    if let Some(operator) = config.operator {
        let gone =
            Gone::load(config.data_dir.join("gone.json")).context("cannot read the list of gone pods")?;
        let client = IdentityClient::new(operator.identity.clone());
        certified = Some(client.held());
        let (told, lost) = mpsc::channel(256);
        tasks.spawn(
            Link {
                operator: operator.identity.operator.clone(),
                held: client.held(),
                trust: client.trust_updates(),
                orders,
                kept,
                states,
                gone: gone.clone(),
                index_path,
                log_key,
                metrics: metrics.clone(),
                lost,
            }
            .run(stop.clone()),
        );
        tasks.spawn(end_chains(
            gone.clone(),
            send,
            told,
            metrics.clone(),
            stop.clone(),
        ));
        let pods = bind(operator.ingest).await?;
        tasks.spawn(serve_pods(
            pods,
            client.held(),
            shared.clone(),
            gone,
            stop.clone(),
        ));
        let mut stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = client.run() => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        });
    } else {
        drop(send);
    }
    ready(addresses.0, addresses.1);
    let admin_pages = admin_pages(metrics, healthy, certified);
    let (main_pages, admin_pages) = match (in_cluster, admin.is_some()) {
        (true, true) => (questions(shared), admin_pages),
        (true, false) => (questions(shared).merge(admin_pages), Router::new()),
        (false, true) => (pages(shared), admin_pages),
        (false, false) => (pages(shared).merge(admin_pages), Router::new()),
    };
    let main = axum::serve(listener, main_pages).with_graceful_shutdown(stopped(stop.clone()));
    let admin = async move {
        match admin {
            Some(listener) => {
                axum::serve(listener, admin_pages)
                    .with_graceful_shutdown(stopped(stop))
                    .await
            }
            None => Ok(()),
        }
    };
    let (main, admin) = tokio::join!(main.into_future(), admin);
    main?;
    admin?;
    tracing::info!("draining");
    while tasks.join_next().await.is_some() {}
    // All senders are gone with the pages and tasks: the thread writes its last entries and ends.
    tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the ingest thread panicked"))??;
    Ok(())
}

/// A closed channel means that whoever runs us is gone.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

/// Serves pods once there is a certificate, and with the newest one.
async fn serve_pods(
    listener: TcpListener,
    mut held: watch::Receiver<Option<Arc<Held>>>,
    shared: Shared,
    gone: Gone,
    mut stop: watch::Receiver<bool>,
) {
    let config = |held: &watch::Receiver<Option<Arc<Held>>>| {
        let held = held.borrow().clone()?;
        match server_config(&held.trust, &held.identity, ClientAuth::Required, Alpn::Http1) {
            Ok(config) => Some(Arc::new(config)),
            Err(problem) => {
                tracing::error!(%problem, "pods cannot be served with this certificate");
                None
            }
        }
    };
    let first = loop {
        if let Some(first) = config(&held) {
            break first;
        }
        tokio::select! {
            changed = held.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    };
    let swappable = Arc::new(ArcSwap::new(first));
    let refresh = async {
        while held.changed().await.is_ok() {
            if let Some(new) = config(&held) {
                swappable.store(new);
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = peers::serve(listener, Arc::clone(&swappable), shared, gone, stop) => {}
        () = refresh => {}
    }
}

fn admin_pages(
    metrics: Metrics,
    healthy: Arc<AtomicBool>,
    certified: Option<watch::Receiver<Option<Arc<Held>>>>,
) -> Router {
    let registry = Arc::new(metrics.register());
    let ready = Arc::clone(&healthy);
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if !ready.load(Ordering::Relaxed) {
                    (StatusCode::SERVICE_UNAVAILABLE, "the log cannot be written\n")
                } else if certified.as_ref().is_some_and(|held| held.borrow().is_none()) {
                    (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "no certificate from the operator yet\n",
                    )
                } else {
                    (StatusCode::OK, "ok\n")
                }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                let mut text = String::new();
                match prometheus_client::encoding::text::encode(&mut text, &registry) {
                    Ok(()) => (StatusCode::OK, text),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
                }
            }),
        )
}

/// The ingest thread.
struct Worker {
    log: Arc<RwLock<Log>>,
    metrics: Metrics,
    healthy: Arc<AtomicBool>,
    /// Entries that are in log and index.
    grown: watch::Sender<u64>,
}

impl Worker {
    fn work(self, mut ingest: Ingest, jobs: &Receiver<Job>) -> anyhow::Result<()> {
        let mut written = Instant::now();
        let mut unwritten = true;
        loop {
            let mut batch = Vec::new();
            let mut ends = Vec::new();
            let mut sort = |job| match job {
                Job::Take(request, answer) => batch.push((request, answer)),
                Job::End(uids, answer) => ends.push((uids, answer)),
            };
            match jobs.recv_timeout(CHECKPOINT_EVERY) {
                Ok(job) => {
                    sort(job);
                    for _ in 1..BATCH_MAX {
                        match jobs.try_recv() {
                            Ok(job) => sort(job),
                            Err(_) => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !batch.is_empty() {
                let (requests, answers): (Vec<Request>, Vec<_>) = batch.into_iter().unzip();
                let results = ingest.take(requests);
                self.healthy.store(
                    !results
                        .iter()
                        .any(|result| matches!(result, Err(IngestError::Log(_)))),
                    Ordering::Relaxed,
                );
                for (answer, result) in answers.into_iter().zip(results) {
                    // A sender that went away asks again and is told the same.
                    let _ = answer.send(result);
                }
                unwritten = true;
                self.index(&mut ingest);
            }
            // After the deliveries that came before.
            for (uids, answer) in ends {
                let _ = answer.send(ingest.end_chains_of(&uids));
                unwritten = true;
                self.index(&mut ingest);
            }
            if unwritten && written.elapsed() >= CHECKPOINT_EVERY {
                match ingest.write_checkpoint() {
                    Ok(()) => unwritten = false,
                    Err(error) => tracing::error!(%error, "cannot write the checkpoint"),
                }
                written = Instant::now();
            }
        }
        ingest.close("drain")?;
        Ok(())
    }

    fn index(&self, ingest: &mut Ingest) {
        let size = read(&self.log).size();
        match ingest.update_index() {
            Ok(()) => {
                self.metrics.index_failed.set(0);
                self.grown.send_replace(size);
            }
            Err(error) => {
                self.metrics.index_failed.set(1);
                tracing::error!(%error, "the index cannot follow the log");
            }
        }
        self.metrics.log_size.set(i64::try_from(size).unwrap_or(i64::MAX));
    }
}
