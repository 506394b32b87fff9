//! The collector as a process: the ingest thread, the pages, the admin pages, and how it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::http::{Shared, pages};
use crate::index::Index;
use crate::ingest::{Ingest, IngestAnswer, IngestError, Request, read};
use crate::log::Log;
use crate::metrics::Metrics;

/// Requests that wait for the ingest thread.
const REQUESTS_MAX: usize = 32;
/// Requests that share one fdatasync.
const BATCH_MAX: usize = 32;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// How a collector is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where sidecars and `weir` reach it.
    pub listen: SocketAddr,
    /// Where health and metrics are; `None`: beside the others.
    pub admin: Option<SocketAddr>,
    /// Its folder.
    pub data_dir: PathBuf,
}

type Job = (Request, oneshot::Sender<Result<IngestAnswer, IngestError>>);

/// Runs until `stop` is true. `ready` gets the addresses once both are open: (pages, admin).
///
/// # Errors
/// Where it cannot start, or cannot write its last entries.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(SocketAddr, SocketAddr),
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let index_path = Arc::new(config.data_dir.join("index.sqlite"));
    let log = Log::open(&config.data_dir)?;
    let index = Index::open(&index_path)?;
    let log = Arc::new(RwLock::new(log));
    let ingest = Ingest::start(Arc::clone(&log), index)?;
    let metrics = Metrics::default();
    let healthy = Arc::new(AtomicBool::new(true));
    let (send, jobs) = sync_channel::<Job>(REQUESTS_MAX);
    let thread = {
        let (log, metrics, healthy) = (Arc::clone(&log), metrics.clone(), Arc::clone(&healthy));
        std::thread::Builder::new()
            .name("weir-ingest".to_owned())
            .spawn(move || work(ingest, &jobs, &log, &metrics, &healthy))?
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let admin = match config.admin {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?,
        ),
        None => None,
    };
    let addresses = (
        listener.local_addr()?,
        admin
            .as_ref()
            .map_or(listener.local_addr(), TcpListener::local_addr)?,
    );
    {
        let log = read(&log);
        tracing::info!(log.key = %log.key().to_vkey(), log.entries = log.size(), "the log is open");
    }
    ready(addresses.0, addresses.1);
    let admin_pages = admin_pages(metrics.clone(), healthy);
    let shared = Shared {
        log,
        index_path,
        ingest: send,
        metrics,
    };
    let (main_pages, admin_pages) = match admin {
        Some(_) => (pages(shared), admin_pages),
        None => (pages(shared).merge(admin_pages), Router::new()),
    };
    let mut stop_admin = stop.clone();
    let main = axum::serve(listener, main_pages).with_graceful_shutdown(async move {
        // A closed channel means that whoever runs us is gone.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    let admin = async move {
        match admin {
            Some(listener) => {
                axum::serve(listener, admin_pages)
                    .with_graceful_shutdown(async move {
                        let _ = stop_admin.wait_for(|stop| *stop).await;
                    })
                    .await
            }
            None => Ok(()),
        }
    };
    let (main, admin) = tokio::join!(main.into_future(), admin);
    main?;
    admin?;
    tracing::info!("draining");
    // All senders are gone with the pages: the thread writes its last entries and ends.
    tokio::task::spawn_blocking(move || thread.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the ingest thread panicked"))??;
    Ok(())
}

fn admin_pages(metrics: Metrics, healthy: Arc<AtomicBool>) -> Router {
    let registry = Arc::new(metrics.register());
    let ready = Arc::clone(&healthy);
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.load(Ordering::Relaxed) {
                    (StatusCode::OK, "ok\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "the log cannot be written\n")
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
fn work(
    mut ingest: Ingest,
    jobs: &Receiver<Job>,
    log: &RwLock<Log>,
    metrics: &Metrics,
    healthy: &AtomicBool,
) -> anyhow::Result<()> {
    let mut written = Instant::now();
    let mut unwritten = true;
    loop {
        let mut batch = match jobs.recv_timeout(CHECKPOINT_EVERY) {
            Ok(job) => vec![job],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        while batch.len() < BATCH_MAX && !batch.is_empty() {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        if !batch.is_empty() {
            let (requests, answers): (Vec<Request>, Vec<_>) = batch.into_iter().unzip();
            let results = ingest.take(requests);
            healthy.store(
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
            match ingest.update_index() {
                Ok(()) => {
                    metrics.index_failed.set(0);
                }
                Err(error) => {
                    metrics.index_failed.set(1);
                    tracing::error!(%error, "the index cannot follow the log");
                }
            }
            metrics
                .log_size
                .set(i64::try_from(read(log).size()).unwrap_or(i64::MAX));
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
