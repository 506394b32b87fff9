//! Ingest for pods: HTTPS, a client certificate is required, and it must be a pod's. What one pod may ask for is
//! bounded, so that none can hurt the others.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use control_api::client::now;
use control_api::peer::{Peer, PodIdentity};
use control_api::tls::{SwappableConfig, TlsConnection};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use crate::http::{BODY_BYTES_MAX, Failure, Shared, take_in};
use crate::metrics::{Reason, ReasonLabel};
use crate::sinks::write_whole;

/// Connections of all pods.
const CONNECTIONS_MAX: usize = 4096;
/// Connections of one pod: its sidecar, and one that takes over.
const CONNECTIONS_OF_POD_MAX: usize = 4;
/// Bodies in memory, all pods together, in KiB.
const BODIES_KIB: usize = 128 << 10;
/// How long a request waits for room, and how long its body may take.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// One pod may send so many requests and bytes a second, and as much at once as the burst says.
const REQUESTS_PER_SECOND: f64 = 50.0;
const REQUESTS_BURST: f64 = 200.0;
const BYTES_PER_SECOND: f64 = (16 << 20) as f64;
const BYTES_BURST: f64 = (64 << 20) as f64;
/// Pods that are remembered for their rate.
const PODS_MAX: usize = 10_000;
/// A leaf lives for a day: longer a gone pod need not be known.
const GONE_SECONDS: i64 = 2 * 24 * 3600;
const GONE_MAX: usize = 200_000;

/// Pods that are gone: their certificates count no more. Kept on disk, because a leaf outlives a restart.
#[derive(Debug, Clone)]
pub(crate) struct Gone {
    path: Arc<PathBuf>,
    /// UID, when it was heard of (Unix seconds), and since when in this process.
    uids: Arc<Mutex<HashMap<String, (i64, Instant)>>>,
    changed: watch::Sender<u64>,
}

impl Gone {
    pub(crate) fn load(path: PathBuf) -> std::io::Result<Self> {
        let kept: HashMap<String, i64> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(error),
        };
        let oldest = now().saturating_sub(GONE_SECONDS);
        let uids = kept
            .into_iter()
            .filter(|(_, at)| *at >= oldest)
            .map(|(uid, at)| (uid, (at, Instant::now())))
            .collect();
        Ok(Self {
            path: Arc::new(path),
            uids: Arc::new(Mutex::new(uids)),
            changed: watch::channel(0).0,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (i64, Instant)>> {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these count no more.
    pub(crate) fn add(&self, new: Vec<String>) {
        let text = {
            let mut uids = self.lock();
            let oldest = now().saturating_sub(GONE_SECONDS);
            uids.retain(|_, (at, _)| *at >= oldest);
            for uid in new {
                if uids.len() < GONE_MAX {
                    uids.entry(uid).or_insert((now(), Instant::now()));
                }
            }
            let kept: HashMap<&String, i64> = uids.iter().map(|(uid, (at, _))| (uid, *at)).collect();
            serde_json::to_vec(&kept).unwrap_or_default()
        };
        self.changed.send_modify(|count| *count += 1);
        // Blocks for one small write; without it a restart has to hear of them again, which the operator then says.
        if let Err(error) = write_whole(&self.path, &text) {
            tracing::warn!(%error, "the list of gone pods cannot be kept");
        }
    }

    pub(crate) fn has(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    /// Those that were heard of at least so long ago.
    pub(crate) fn since(&self, grace: Duration) -> HashSet<String> {
        self.lock()
            .iter()
            .filter(|(_, (_, since))| since.elapsed() >= grace)
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[derive(Debug)]
struct Pod {
    connections: usize,
    in_flight: Arc<Semaphore>,
    requests: f64,
    bytes: f64,
    filled: Instant,
}

/// What each pod has used up.
#[derive(Debug, Clone)]
struct Limits {
    pods: Arc<Mutex<HashMap<String, Pod>>>,
    room: Arc<Semaphore>,
}

impl Limits {
    fn new() -> Self {
        Self {
            pods: Arc::default(),
            room: Arc::new(Semaphore::new(BODIES_KIB)),
        }
    }

    fn with<T>(&self, uid: &str, what: impl FnOnce(&mut Pod) -> T) -> T {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.len() >= PODS_MAX {
            pods.retain(|_, pod| pod.connections > 0);
        }
        let pod = pods.entry(uid.to_owned()).or_insert_with(|| Pod {
            connections: 0,
            in_flight: Arc::new(Semaphore::new(1)),
            requests: REQUESTS_BURST,
            bytes: BYTES_BURST,
            filled: Instant::now(),
        });
        what(pod)
    }

    fn connect(&self, uid: &str) -> bool {
        self.with(uid, |pod| {
            let room = pod.connections < CONNECTIONS_OF_POD_MAX;
            pod.connections += usize::from(room);
            room
        })
    }

    fn disconnect(&self, uid: &str) {
        self.with(uid, |pod| pod.connections = pod.connections.saturating_sub(1));
    }

    /// One request of that many bytes; `None` when it is too much.
    fn admit(&self, uid: &str, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.with(uid, |pod| {
            let seconds = pod.filled.elapsed().as_secs_f64();
            pod.filled = Instant::now();
            pod.requests = (pod.requests + seconds * REQUESTS_PER_SECOND).min(REQUESTS_BURST);
            pod.bytes = (pod.bytes + seconds * BYTES_PER_SECOND).min(BYTES_BURST);
            let size = bytes as f64;
            if pod.requests < 1.0 || pod.bytes < size {
                return None;
            }
            let permit = Arc::clone(&pod.in_flight).try_acquire_owned().ok()?;
            pod.requests -= 1.0;
            pod.bytes -= size;
            Some(permit)
        })
    }
}

#[derive(Clone)]
struct Ingest {
    shared: Shared,
    limits: Limits,
    gone: Gone,
}

/// Serves pods until `stop`; then connections end after the request that is under way.
pub(crate) async fn serve(
    listener: TcpListener,
    config: SwappableConfig,
    shared: Shared,
    gone: Gone,
    mut stop: watch::Receiver<bool>,
) {
    let limits = Limits::new();
    let router = Router::new()
        .route("/v1/ingest", post(ingest))
        .with_state(Ingest {
            shared,
            limits: limits.clone(),
            gone: gone.clone(),
        });
    let mut incoming = control_api::tls::incoming(listener, config);
    let mut connections = JoinSet::new();
    let ending = stop.clone();
    loop {
        tokio::select! {
            connection = incoming.next() => match connection {
                Some(Ok(connection)) if connections.len() < CONNECTIONS_MAX => {
                    // Operator and collector have nothing to deliver.
                    let Some(Peer::Pod(pod)) = connection.peer().peer.clone() else {
                        tracing::debug!(address = %connection.peer().address, "not a pod");
                        continue;
                    };
                    if gone.has(&pod.pod_uid) || !limits.connect(&pod.pod_uid) {
                        continue;
                    }
                    connections.spawn(speak(connection, pod, router.clone(), limits.clone(), gone.clone(), ending.clone()));
                }
                Some(Ok(_) | Err(_)) => {}
                None => break,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn speak(
    connection: TlsConnection,
    pod: PodIdentity,
    router: Router,
    limits: Limits,
    gone: Gone,
    mut stop: watch::Receiver<bool>,
) {
    let uid = pod.pod_uid.clone();
    let service = TowerToHyperService::new(router.layer(Extension(pod)));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service));
    let mut changes = gone.changes();
    let mut draining = false;
    loop {
        // It may have gone between accept and here.
        if gone.has(&uid) {
            tracing::info!(pod.uid = %uid, "the connection of a gone pod ends");
            break;
        }
        tokio::select! {
            _ = &mut serving => break,
            _ = changes.changed() => {}
            _ = stop.wait_for(|stop| *stop), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
    limits.disconnect(&uid);
}

async fn ingest(
    State(state): State<Ingest>,
    Extension(pod): Extension<PodIdentity>,
    headers: HeaderMap,
    request: Request<Body>,
) -> Response {
    let Ingest { shared, limits, gone } = state;
    let refuse = |reason, status, text: &str| {
        shared
            .metrics
            .refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
        Failure(status, text.to_owned()).into_response()
    };
    if gone.has(&pod.pod_uid) {
        return refuse(Reason::Gone, StatusCode::FORBIDDEN, "that pod is gone");
    }
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let Some(length) = length else {
        return refuse(Reason::TooMuch, StatusCode::LENGTH_REQUIRED, "no content-length");
    };
    if length > BODY_BYTES_MAX {
        return refuse(
            Reason::TooMuch,
            StatusCode::PAYLOAD_TOO_LARGE,
            "more than one request may hold",
        );
    }
    let Some(_turn) = limits.admit(&pod.pod_uid, length) else {
        return refuse(Reason::TooMuch, StatusCode::TOO_MANY_REQUESTS, "slower, please");
    };
    let kib = u32::try_from(length / 1024 + 1).unwrap_or(u32::MAX);
    let Ok(Ok(_room)) = tokio::time::timeout(ROOM_TIMEOUT, limits.room.acquire_many(kib)).await else {
        return refuse(Reason::Busy, StatusCode::SERVICE_UNAVAILABLE, "busy");
    };
    let body = axum::body::to_bytes(request.into_body(), length);
    let Ok(Ok(body)) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
        return refuse(
            Reason::TooMuch,
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive",
        );
    };
    take_in(&shared, &headers, &body, Some(pod)).await.into_response()
}
