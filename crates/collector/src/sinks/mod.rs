//! Lineage sinks: each a task of its own that reads the log from its cursor on, tells what the sink may see, and moves
//! the cursor once the sink has acknowledged.
//!
//! ```text
//!  operator, or --sinks-file ──orders──► sinks ──┬─► task: cursor ► log ► told ► openLineage | stdout
//!                                                └─► task …                └─► status, metrics
//! ```
//!
//! At least once, strictly in the order of the log. A sink that does not take waits with growing pauses; nobody waits for
//! it: ingest only tells how long the log is.

mod cursor;
mod endpoint;
mod openlineage;
mod order;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Bytes;
use control_api::client::{jitter, now};
use control_api::proto::SinkStatus;
use crd_types::sink::SinkFilter;
use receipts::BootId;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::index::{ChainPod, Index};
use crate::ingest::read;
use crate::log::Log;
use crate::metrics::{KindLabel, Metrics, SinkKind, SinkLabel};
use cursor::{Cursor, CursorFile};
use endpoint::{Answer, Endpoint};
use told::{Told, is_told};

pub(crate) use cursor::write_whole;
pub use endpoint::LoopbackSinks;
pub use order::{SinkOrder, read_sinks_file};
pub(crate) use order::{read_kept, write_kept};

/// Entries that are read at once, and at most lie between two saves of the cursor.
const BATCH_ENTRIES: u64 = 64;
/// Acknowledged events between two saves.
const SAVE_EVERY: u32 = 16;
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// An event that the endpoint calls bad is sent so often before it is left out.
const POISON_TRIES: u32 = 3;
/// Sinks at once.
pub(crate) const SINKS_MAX: usize = 1024;
/// Sinks with a metric of their own.
const SINK_LABELS_MAX: usize = 256;

/// What the tasks share.
#[derive(Clone)]
pub(crate) struct SinkWorld {
    pub(crate) log: Arc<RwLock<Log>>,
    pub(crate) index_path: Arc<PathBuf>,
    /// Folder of the cursors.
    pub(crate) dir: PathBuf,
    /// Entries in log and index.
    pub(crate) size: watch::Receiver<u64>,
    pub(crate) loopback: LoopbackSinks,
    pub(crate) metrics: Metrics,
    pub(crate) states: SinkStates,
}

/// How all sinks fare, by `namespace/name`.
#[derive(Debug, Clone)]
pub(crate) struct SinkStates {
    states: Arc<Mutex<BTreeMap<String, SinkStatus>>>,
    changed: watch::Sender<u64>,
}

impl Default for SinkStates {
    fn default() -> Self {
        Self {
            states: Arc::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl SinkStates {
    fn set(&self, status: &SinkStatus) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.get(&status.sink) != Some(status) {
            states.insert(status.sink.clone(), status.clone());
            drop(states);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    fn remove(&self, sink: &str) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.remove(sink);
    }

    pub(crate) fn all(&self) -> Vec<SinkStatus> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().cloned().collect()
    }

    /// Counts up with each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

struct Running {
    order: SinkOrder,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        let Self { stop, mut task, .. } = self;
        let _ = stop.send(true);
        // A task that waits for a slow endpoint is not waited for: what it did not save is told again.
        if tokio::time::timeout(Duration::from_secs(1), &mut task)
            .await
            .is_err()
        {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Runs the sinks that are ordered until `stop`.
pub(crate) async fn run(
    world: SinkWorld,
    mut orders: watch::Receiver<Arc<Vec<SinkOrder>>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut running: HashMap<String, Running> = HashMap::new();
    loop {
        let wanted = Arc::clone(&orders.borrow_and_update());
        let old: Vec<String> = running
            .iter()
            .filter(|(_, one)| !wanted.contains(&one.order))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in old {
            if let Some(one) = running.remove(&uid) {
                let name = one.order.full_name();
                one.end().await;
                if !wanted.iter().any(|order| order.full_name() == name) {
                    world.states.remove(&name);
                    world.metrics.sink_lag.remove(&SinkLabel { sink: name });
                }
            }
        }
        for order in wanted.iter().take(SINKS_MAX) {
            if !running.contains_key(&order.uid) {
                let (stop, stopped) = watch::channel(false);
                let labelled = running.len() < SINK_LABELS_MAX;
                let task = tokio::spawn(Sink::new(order.clone(), world.clone(), stopped, labelled).run());
                let order = order.clone();
                running.insert(order.uid.clone(), Running { order, stop, task });
            }
        }
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { break },
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    // Whoever gives orders is gone: the sinks go on until the end.
    let _ = stop.wait_for(|stop| *stop).await;
    for (_, one) in running {
        one.end().await;
    }
}

enum Way {
    OpenLineage {
        endpoint: Box<Endpoint>,
        job_namespace: Option<String>,
    },
    Stdout,
}

/// Ended because it was told to.
struct Stopped;

struct Sink {
    order: SinkOrder,
    world: SinkWorld,
    stop: watch::Receiver<bool>,
    file: CursorFile,
    cursor: Cursor,
    status: SinkStatus,
    pods: HashMap<BootId, Arc<ChainPod>>,
    unsaved: u32,
    labelled: bool,
}

impl Sink {
    fn new(order: SinkOrder, world: SinkWorld, stop: watch::Receiver<bool>, labelled: bool) -> Self {
        Self {
            file: CursorFile::new(&world.dir, &order.uid),
            cursor: Cursor::default(),
            status: SinkStatus {
                sink: order.full_name(),
                generation: order.generation,
                reason: "Starting".to_owned(),
                ..SinkStatus::default()
            },
            pods: HashMap::new(),
            unsaved: 0,
            order,
            world,
            stop,
            labelled,
        }
    }

    async fn run(mut self) {
        if self.waits_for_token() {
            // The operator sends the sink again with it.
            "waits for its token, which only the operator can bring".clone_into(&mut self.status.message);
            self.tell();
            return;
        }
        self.tell();
        let way = match self.way() {
            Ok(way) => way,
            Err(problem) => {
                self.status.reason = "Invalid".to_owned();
                self.status.message = problem;
                self.tell();
                return;
            }
        };
        if self.begin().await.is_ok() {
            let _ = self.go(way).await;
        }
    }

    fn waits_for_token(&self) -> bool {
        let spec = self.order.spec.as_ref().ok();
        let open = spec.and_then(|spec| spec.open_lineage.as_ref());
        self.order.token.is_empty() && open.is_some_and(|open| open.token_secret_ref.is_some())
    }

    fn way(&self) -> Result<Way, String> {
        let spec = self.order.spec.as_ref().map_err(Clone::clone)?;
        match (&spec.open_lineage, &spec.stdout) {
            (Some(open), None) => {
                let timeout = Duration::from_secs(u64::from(open.timeout_seconds.clamp(1, 60)));
                let endpoint = Endpoint::new(&open.url, &self.order.token, timeout, self.world.loopback)?;
                Ok(Way::OpenLineage {
                    endpoint: Box::new(endpoint),
                    job_namespace: open.job_namespace.clone(),
                })
            }
            (None, Some(_)) => Ok(Way::Stdout),
            (Some(_), Some(_)) | (None, None) => Err("names no kind of sink, or two".to_owned()),
        }
    }

    /// Takes up the cursor. A sink that was never seen begins at the end of the log as it is now.
    async fn begin(&mut self) -> Result<(), Stopped> {
        let mut pause = PAUSE_FIRST;
        loop {
            let end = *self.world.size.borrow();
            let found = self.file.read().and_then(|found| match found {
                Some(cursor) => Ok(cursor),
                None => {
                    let new = Cursor {
                        next: end,
                        ..Cursor::default()
                    };
                    self.file.write(&new)?;
                    Ok(new)
                }
            });
            match found {
                Ok(cursor) => {
                    self.cursor = cursor;
                    return Ok(());
                }
                Err(error) => self.fail(format!("its cursor: {error}"), &mut pause).await?,
            }
        }
    }

    async fn go(&mut self, mut way: Way) -> Result<(), Stopped> {
        let mut pause = PAUSE_FIRST;
        self.status.ready = true;
        self.status.reason = "Delivering".to_owned();
        self.tell();
        loop {
            self.wait_for_entries().await?;
            let (next, batch) = match self.read().await {
                Ok(read) => read,
                Err(error) => {
                    self.fail(format!("the log: {error}"), &mut pause).await?;
                    continue;
                }
            };
            match &mut way {
                Way::OpenLineage {
                    endpoint,
                    job_namespace,
                } => {
                    for told in &batch {
                        let Some(event) = openlineage::run_event(told, job_namespace.as_deref()) else {
                            continue;
                        };
                        let body = Bytes::from(event.to_string());
                        self.post(endpoint, told, &body, &mut pause).await?;
                    }
                }
                Way::Stdout => {
                    while let Err(error) = self.write_lines(&batch).await {
                        self.fail(format!("standard output: {error}"), &mut pause).await?;
                    }
                    let count = batch.len() as u64;
                    self.taken(count, &mut pause);
                }
            }
            self.cursor.next = next;
            self.save(&mut pause).await?;
            self.tell();
        }
    }

    async fn wait_for_entries(&mut self) -> Result<(), Stopped> {
        let next = self.cursor.next;
        tokio::select! {
            grown = self.world.size.wait_for(|size| *size > next) => grown.map(drop).map_err(|_| Stopped),
            _ = self.stop.wait_for(|stop| *stop) => Err(Stopped),
        }
    }

    /// The next entries that this sink is told, and where the cursor is after them.
    async fn read(&mut self) -> Result<(u64, Vec<Told>), String> {
        let (log, index_path, from) = (
            Arc::clone(&self.world.log),
            Arc::clone(&self.world.index_path),
            self.cursor.next,
        );
        let (order, mut pods) = (self.order.clone(), std::mem::take(&mut self.pods));
        let work = move || -> Result<_, String> {
            let index = Index::open_to_read(&index_path).map_err(|error| error.to_string())?;
            let filter: Option<SinkFilter> = order.spec.ok().and_then(|spec| spec.filter);
            // Without the index nobody knows whose an entry is.
            let to = index
                .next()
                .map_err(|error| error.to_string())?
                .min(from + BATCH_ENTRIES);
            let mut groups = Vec::new();
            read(&log)
                .each_group(from, to, |placed| groups.push(placed.clone()))
                .map_err(|error| error.to_string())?;
            let mut batch = Vec::new();
            for placed in groups {
                let boot = placed.group.header.boot;
                if let std::collections::hash_map::Entry::Vacant(vacant) = pods.entry(boot)
                    && let Some(pod) = index.pod_of(&boot).map_err(|error| error.to_string())?
                {
                    vacant.insert(Arc::new(pod));
                }
                for (event, at) in placed.group.events.iter().zip(placed.index..) {
                    if at >= from && at < to {
                        let told = Told::new(at, event, pods.get(&boot).cloned());
                        if is_told(&told, &order.events_of, filter.as_ref()) {
                            batch.push(told);
                        }
                    }
                }
            }
            if pods.len() > 4096 {
                pods.clear();
            }
            Ok((to.max(from), batch, pods))
        };
        let (next, batch, pods) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())??;
        self.pods = pods;
        Ok((next, batch))
    }

    /// Until the endpoint took it, or called it bad three times.
    async fn post(
        &mut self,
        endpoint: &mut Endpoint,
        told: &Told,
        body: &Bytes,
        pause: &mut Duration,
    ) -> Result<(), Stopped> {
        let mut tries = 0;
        loop {
            let answer = tokio::select! {
                answer = endpoint.post(body.clone()) => answer,
                _ = self.stop.wait_for(|stop| *stop) => return Err(Stopped),
            };
            match answer {
                Answer::Taken => {
                    self.taken(1, pause);
                    self.cursor.next = told.index + 1;
                    self.unsaved += 1;
                    if self.unsaved >= SAVE_EVERY {
                        self.save(pause).await?;
                    }
                    return Ok(());
                }
                Answer::Poison(code) => {
                    tries += 1;
                    if tries >= POISON_TRIES {
                        self.cursor.failed += 1;
                        self.status.last_error =
                            format!("answered {code} to {}, which was left out", told.reference());
                        tracing::warn!(sink = %self.status.sink, code, receipt = %told.reference(), "an event was left out");
                        self.tell();
                        *pause = PAUSE_FIRST;
                        return Ok(());
                    }
                    let problem = format!("answered {code} to {}", told.reference());
                    self.fail(problem, pause).await?;
                }
                Answer::Again(problem) => self.fail(problem, pause).await?,
            }
        }
    }

    async fn write_lines(&self, batch: &[Told]) -> std::io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            sink: &'a str,
            index: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            namespace: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            workload: Option<&'a str>,
            event: &'a RawValue,
        }
        let mut lines = Vec::new();
        for told in batch {
            // What is not JSON cannot stand in a JSON line; `weir verify` tells of it.
            let Ok(event) = serde_json::from_slice::<&RawValue>(&told.bytes) else {
                continue;
            };
            serde_json::to_writer(
                &mut lines,
                &Line {
                    sink: &self.status.sink,
                    index: told.index,
                    namespace: told.pod.as_ref().map(|pod| pod.namespace.as_str()),
                    workload: told.pod.as_ref().map(|pod| pod.workload.as_str()),
                    event,
                },
            )?;
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        // Whoever reads slowly holds up this thread, and the other sinks that write there.
        tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut out = std::io::stdout().lock();
            out.write_all(&lines)?;
            out.flush()
        })
        .await?
    }

    fn taken(&mut self, count: u64, pause: &mut Duration) {
        if count == 0 {
            return;
        }
        let kind = match self
            .order
            .spec
            .as_ref()
            .ok()
            .and_then(|spec| spec.stdout.as_ref())
        {
            Some(_) => SinkKind::Stdout,
            None => SinkKind::OpenLineage,
        };
        self.world
            .metrics
            .sink_delivered
            .get_or_create(&KindLabel { kind })
            .inc_by(count);
        self.cursor.delivered += count;
        self.cursor.last_delivery = now();
        *pause = PAUSE_FIRST;
        if !self.status.ready {
            self.status.ready = true;
            self.status.reason = "Delivering".to_owned();
            self.status.message.clear();
        }
        self.tell();
    }

    async fn save(&mut self, pause: &mut Duration) -> Result<(), Stopped> {
        while let Err(error) = self.file.write(&self.cursor) {
            self.fail(format!("its cursor: {error}"), pause).await?;
        }
        self.unsaved = 0;
        Ok(())
    }

    /// Says what went wrong and waits, each time longer.
    async fn fail(&mut self, problem: String, pause: &mut Duration) -> Result<(), Stopped> {
        self.cursor.failed += 1;
        // A cursor that lags only makes the sink hear something twice.
        let _ = self.file.write(&self.cursor);
        self.status.ready = false;
        self.status.reason = "Failing".to_owned();
        self.status.message.clone_from(&problem);
        self.status.last_error = problem;
        self.tell();
        let wait = *pause / 2 + jitter(*pause / 2);
        *pause = (*pause * 2).min(PAUSE_MAX);
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            _ = self.stop.wait_for(|stop| *stop) => Err(Stopped),
        }
    }

    fn tell(&mut self) {
        self.status.delivered = self.cursor.delivered;
        self.status.failed = self.cursor.failed;
        self.status.last_delivery = self.cursor.last_delivery;
        self.status.lag = self.world.size.borrow().saturating_sub(self.cursor.next);
        if self.labelled {
            self.world
                .metrics
                .sink_lag
                .get_or_create(&SinkLabel {
                    sink: self.status.sink.clone(),
                })
                .set(i64::try_from(self.status.lag).unwrap_or(i64::MAX));
        }
        self.world.states.set(&self.status);
    }
}
