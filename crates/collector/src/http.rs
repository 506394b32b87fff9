//! The collector's pages.
//!
//! | page | gives |
//! |---|---|
//! | `POST /v1/ingest` | takes groups (length and binary form of each), answers [`IngestAnswer`] |
//! | `/v1/audit` | rows of [`AuditFilter`](crate::AuditFilter) |
//! | `/v1/lineage?name=&direction=` | [`Lineage`](crate::Lineage) |
//! | `/v1/groups?from=` | signed groups from that index on, as JSON lines, for `weir verify` |
//! | `/v1/range?from=&to=` | an exported range; numbers are log indexes |
//! | `/v1/receipt?index=` | the receipt of one entry |
//! | `/v1/between?from_us=&to_us=` | log indexes of what happened between two times |
//! | `/v1/status` | [`Status`] |
//! | `/checkpoint`, `/tile/…`, `/log/key` | the log as C2SP `tlog-tiles` |

use std::sync::Arc;
use std::sync::RwLock;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use receipts::{RangeHeader, RangeVersion, Receipt, SignedGroup};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use control_api::peer::PodIdentity;

use crate::index::{AuditFilter, Index};
use crate::ingest::{IngestAnswer, IngestError, Request, read};
use crate::lineage::Direction;
use crate::log::{Log, LogError};
use crate::metrics::{Metrics, Reason, ReasonLabel};
use crate::tree::{TILE_WIDTH, parse_number_path};

/// A sidecar sends about 1 MiB; a single group of the largest events is 17 MiB.
pub(crate) const BODY_BYTES_MAX: usize = 24 << 20;
/// Events of one page of groups.
const PAGE_EVENTS: u64 = 4096;

/// Work of the ingest thread.
pub(crate) enum Job {
    /// Groups.
    Take(Request, oneshot::Sender<Result<IngestAnswer, IngestError>>),
    /// Pods are gone: end their chains.
    End(
        std::collections::HashSet<String>,
        oneshot::Sender<Result<Vec<crate::index::OpenChain>, IngestError>>,
    ),
}

/// What all pages share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) log: Arc<RwLock<Log>>,
    pub(crate) index_path: Arc<std::path::PathBuf>,
    pub(crate) ingest: SyncSender<Job>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// The index, once it has what the log has now; after two seconds as it is.
    fn index(&self) -> Result<Index, Failure> {
        let index = Index::open_to_read(&self.index_path)?;
        let wanted = read(&self.log).size();
        let begun = Instant::now();
        while index.next()? < wanted && begun.elapsed() < Duration::from_secs(2) {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(index)
    }
}

/// What the collector is and has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Program and version.
    pub program: String,
    /// Key of the log.
    pub log_key: String,
    /// Entries.
    pub entries: u64,
    /// Entries under the last checkpoint.
    pub signed: u64,
    /// Entries in the index.
    pub indexed: u64,
    /// Processes that recorded.
    pub processes: u64,
    /// Of these, not ended in order.
    pub open_processes: u64,
    /// Signed gaps in the log.
    pub gaps: u64,
}

/// First line of a page of groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupsPage {
    /// Log index of the first event of the page.
    pub from: u64,
    /// Log index after its last event.
    pub to: u64,
    /// Entries of the log.
    pub size: u64,
}

/// Everything, for whoever reaches the socket.
pub(crate) fn pages(shared: Shared) -> Router {
    let ingest = Router::new()
        .route("/v1/ingest", post(ingest))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared.clone());
    questions(shared).merge(ingest)
}

/// What only reads.
pub(crate) fn questions(shared: Shared) -> Router {
    Router::new()
        .route("/v1/audit", get(audit))
        .route("/v1/lineage", get(lineage))
        .route("/v1/groups", get(groups))
        .route("/v1/range", get(range))
        .route("/v1/receipt", get(receipt))
        .route("/v1/between", get(between))
        .route("/v1/status", get(status))
        .route("/checkpoint", get(checkpoint))
        .route("/log/key", get(log_key))
        .route("/tile/{*path}", get(tile))
        .with_state(shared)
}

/// A failure as text with a status.
pub(crate) struct Failure(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({"error": self.1}))).into_response()
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<crate::IndexError> for Failure {
    fn from(error: crate::IndexError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

/// Runs something that reads files on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
}

async fn ingest(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<IngestAnswer>, Failure> {
    take_in(&shared, &headers, &body, None).await
}

/// Hands groups to the ingest thread and waits for its answer.
pub(crate) async fn take_in(
    shared: &Shared,
    headers: &HeaderMap,
    body: &[u8],
    pod: Option<PodIdentity>,
) -> Result<Json<IngestAnswer>, Failure> {
    let seen_size = headers
        .get("weir-seen-size")
        .and_then(|value| value.to_str().ok())
        .map_or(Ok(0), str::parse)
        .map_err(|_| {
            Failure(
                StatusCode::BAD_REQUEST,
                "weir-seen-size is not a number".to_owned(),
            )
        })?;
    let groups = read_groups(body)
        .ok_or_else(|| Failure(StatusCode::BAD_REQUEST, "not a list of signed groups".to_owned()))?;
    let (count, events) = (
        groups.len() as u64,
        groups.iter().map(|group| group.events.len() as u64).sum::<u64>(),
    );
    let (answer, answered) = oneshot::channel();
    let refuse = |reason, status, text| {
        shared
            .metrics
            .refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
        Failure(status, text)
    };
    let request = Request {
        groups,
        seen_size,
        pod,
    };
    match shared.ingest.try_send(Job::Take(request, answer)) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            return Err(refuse(
                Reason::Busy,
                StatusCode::SERVICE_UNAVAILABLE,
                "busy".to_owned(),
            ));
        }
        Err(TrySendError::Disconnected(_)) => {
            return Err(refuse(
                Reason::Log,
                StatusCode::SERVICE_UNAVAILABLE,
                "ending".to_owned(),
            ));
        }
    }
    match answered.await {
        Ok(Ok(answer)) => {
            shared.metrics.groups.inc_by(count);
            shared.metrics.events.inc_by(events);
            Ok(Json(answer))
        }
        Ok(Err(error)) => {
            let (reason, status) = match &error {
                IngestError::BadGroup { .. } => (Reason::BadGroup, StatusCode::UNPROCESSABLE_ENTITY),
                IngestError::Fork { .. } => (Reason::Fork, StatusCode::CONFLICT),
                IngestError::SeenMore { .. } => (Reason::SeenMore, StatusCode::CONFLICT),
                IngestError::OtherPod { .. } => (Reason::OtherPod, StatusCode::FORBIDDEN),
                IngestError::Log(_) => (Reason::Log, StatusCode::SERVICE_UNAVAILABLE),
                IngestError::Index(_) => (Reason::Index, StatusCode::SERVICE_UNAVAILABLE),
            };
            Err(refuse(reason, status, error.to_string()))
        }
        Err(_) => Err(refuse(
            Reason::Log,
            StatusCode::SERVICE_UNAVAILABLE,
            "ending".to_owned(),
        )),
    }
}

fn read_groups(body: &[u8]) -> Option<Vec<SignedGroup>> {
    let (mut rest, mut groups) = (body, Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (mut bytes, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        groups.push(
            SignedGroup::decode(&mut bytes)
                .ok()
                .filter(|_| bytes.is_empty())?,
        );
        rest = after;
    }
    (rest.is_empty() && !groups.is_empty()).then_some(groups)
}

async fn audit(State(shared): State<Shared>, Query(filter): Query<AuditFilter>) -> Result<Response, Failure> {
    let rows = blocking(move || Ok(shared.index()?.audit(&filter)?)).await?;
    Ok(Json(rows).into_response())
}

#[derive(Debug, Deserialize)]
struct LineageQuestion {
    name: String,
    direction: Direction,
}

async fn lineage(
    State(shared): State<Shared>,
    Query(question): Query<LineageQuestion>,
) -> Result<Response, Failure> {
    let answer = blocking(move || Ok(shared.index()?.lineage(&question.name, question.direction)?)).await?;
    Ok(Json(answer).into_response())
}

#[derive(Debug, Deserialize)]
struct Start {
    from: u64,
}

async fn groups(
    State(shared): State<Shared>,
    Query(Start { from }): Query<Start>,
) -> Result<Response, Failure> {
    let text = blocking(move || {
        let log = read(&shared.log);
        let (mut lines, mut to) = (String::new(), from);
        log.each_group(from, from.saturating_add(PAGE_EVENTS), |placed| {
            if let Some(line) = receipts::group_line(&placed.group) {
                lines.push_str(&line);
                lines.push('\n');
            }
            to = placed.end();
        })?;
        let page = GroupsPage {
            from,
            to,
            size: log.size(),
        };
        let head = serde_json::to_string(&page)
            .map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(format!("{head}\n{lines}"))
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], text).into_response())
}

#[derive(Debug, Deserialize)]
struct FromTo {
    from: u64,
    to: u64,
}

async fn range(
    State(shared): State<Shared>,
    Query(FromTo { from, to }): Query<FromTo>,
) -> Result<Response, Failure> {
    let text = blocking(move || Ok(export_range(&read(&shared.log), from, to)?)).await?;
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], text).into_response())
}

/// The whole groups that hold entries of `[from, to)`, with what proves that they are in the log.
///
/// # Errors
/// [`LogError`]
pub fn export_range(log: &Log, from: u64, to: u64) -> Result<String, LogError> {
    let (mut lines, mut first, mut last) = (String::new(), None, from);
    let (size, note) = log.checkpoint().cloned().unwrap_or_default();
    log.each_group(from, to.min(size), |placed| {
        if let Some(line) = receipts::group_line(&placed.group) {
            lines.push_str(&line);
            lines.push('\n');
        }
        first.get_or_insert(placed.index);
        last = placed.end();
    })?;
    let from = first.unwrap_or(from.min(size));
    let last = if first.is_some() { last } else { from };
    let header = RangeHeader {
        v: RangeVersion::V1,
        log_key: log.key().to_vkey(),
        checkpoint: note,
        from,
        to: last,
        proof: log.range_proof(from, last, size)?,
    };
    let head = serde_json::to_string(&header).unwrap_or_default();
    Ok(format!("{head}\n{lines}"))
}

#[derive(Debug, Deserialize)]
struct At {
    index: u64,
}

async fn receipt(
    State(shared): State<Shared>,
    Query(At { index }): Query<At>,
) -> Result<Json<Receipt>, Failure> {
    blocking(move || {
        read(&shared.log)
            .receipt(index)?
            .map(Json)
            .ok_or_else(|| Failure(StatusCode::NOT_FOUND, format!("the log has no entry {index}")))
    })
    .await
}

#[derive(Debug, Deserialize)]
struct Times {
    from_us: i64,
    to_us: i64,
}

async fn between(State(shared): State<Shared>, Query(times): Query<Times>) -> Result<Response, Failure> {
    let found = blocking(move || Ok(shared.index()?.between(times.from_us, times.to_us)?)).await?;
    Ok(Json(found).into_response())
}

async fn status(State(shared): State<Shared>) -> Result<Json<Status>, Failure> {
    blocking(move || {
        let index = Index::open_to_read(&shared.index_path)?;
        Ok(Json(status_of(&read(&shared.log), &index)?))
    })
    .await
}

/// What a collector with that log and index is and has.
///
/// # Errors
/// [`IndexError`](crate::IndexError)
pub fn status_of(log: &Log, index: &Index) -> Result<Status, crate::IndexError> {
    let count = |sql: &str| index.connection.query_row(sql, [], |row| row.get::<_, u64>(0));
    Ok(Status {
        program: concat!("weir-collector ", env!("CARGO_PKG_VERSION")).to_owned(),
        log_key: log.key().to_vkey(),
        entries: log.size(),
        signed: log.checkpoint().map_or(0, |(size, _)| *size),
        indexed: index.next()?,
        processes: count("SELECT count(*) FROM chains")?,
        open_processes: count("SELECT count(*) FROM chains WHERE closed = 0")?,
        gaps: count("SELECT count(*) FROM events WHERE kind = 'gap'")?,
    })
}

async fn checkpoint(State(shared): State<Shared>) -> Result<String, Failure> {
    match read(&shared.log).checkpoint() {
        Some((_, note)) => Ok(note.clone()),
        None => Err(Failure(StatusCode::NOT_FOUND, "nothing is signed yet".to_owned())),
    }
}

async fn log_key(State(shared): State<Shared>) -> String {
    format!("{}\n", read(&shared.log).key().to_vkey())
}

/// `/tile/<level>/<number>[.p/<width>]` and `/tile/entries/<number>[.p/<width>]`.
async fn tile(State(shared): State<Shared>, Path(path): Path<String>) -> Result<Response, Failure> {
    let bytes = blocking(move || {
        let missing = || Failure(StatusCode::NOT_FOUND, "no such tile".to_owned());
        let (level, rest) = path.split_once('/').ok_or_else(missing)?;
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse::<usize>().map_err(|_| missing())?),
            None => (rest, TILE_WIDTH),
        };
        let number = parse_number_path(number).ok_or_else(missing)?;
        if width == 0 || width > TILE_WIDTH {
            return Err(missing());
        }
        let log = read(&shared.log);
        if level == "entries" {
            let from = number * TILE_WIDTH as u64;
            let mut bytes = Vec::new();
            for index in from..from + width as u64 {
                let entry = log.entry(index)?.ok_or_else(missing)?;
                bytes.extend_from_slice(&u16::try_from(entry.len()).unwrap_or(u16::MAX).to_be_bytes());
                bytes.extend_from_slice(&entry);
            }
            return Ok(bytes);
        }
        let level: usize = level.parse().map_err(|_| missing())?;
        let mut bytes = log.tile(level, number).map_err(|_| missing())?;
        if bytes.len() < width * 32 {
            return Err(missing());
        }
        bytes.truncate(width * 32);
        Ok(bytes)
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
