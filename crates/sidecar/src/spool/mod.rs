//! The spool: receipts on disk before anybody relies on them, signed in groups, delivered to the collector.
//!
//! ```text
//!  session threads ──open_mark──────────────► segment file ◄─┐ (append, one write each)
//!        │                                                    │
//!        └─record, intent──► bounded queue ──► writer thread ─┘ links, encodes, appends, signs, fdatasync
//!                                                             │
//!  collector ◄──HTTP── delivery thread ◄── reads segments ◄───┘ deletes what a verified checkpoint covers
//! ```
//!
//! A group closes at once when a write waits for it; what arrives during its fdatasync forms the next one; otherwise
//! events wait 50 ms at most. When the queue is full, `Durable` and `Strict` make the caller wait, `BestEffort` drops
//! and counts; each loss becomes a signed `gap`. When the disk is full, `Durable` and `Strict` refuse new statements
//! with [`SpoolRefusal::Full`] and keep the outcomes of those that run.
//!
//! How a session uses it:
//! - read: [`Spool::open_mark`] before the statement is sent, [`Spool::record`] with the mark when it ended;
//! - write: [`Spool::intent`] and await it before the statement is sent, [`Spool::record`] with its mark when it ended;
//! - refusal, session.open and anything else: [`Spool::record`] without a mark.

mod ages;
mod deliver;
mod read;
mod record;
mod recover;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use access_policy::ReceiptMode;
use receipts::{Body, BootId, Claim, Digest, LogHead, LogKey, SessionId, SigningKey};
use tokio::sync::{oneshot, watch};

pub use read::{Item, segments, verify_folder, walk};
pub use record::Mark;

use ages::Ages;
use record::Record;
use segment::{ClosedSegment, OpenSegment};

/// Entries the queue holds.
const QUEUE_MAX: usize = 16_384;
/// How long `Strict` waits for the collector before the statement is refused.
const STRICT_WAIT: Duration = Duration::from_secs(10);
/// Room under the cap that new statements leave for the outcomes of running ones.
const OUTCOME_RESERVE_BYTES: u64 = 4 * 1024 * 1024;

/// The pod's certificate, as it is renewed.
pub type HeldIdentity = watch::Receiver<Option<Arc<control_api::client::Held>>>;

/// How a spool is set up.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// Folder; made if it is not there. One process at a time.
    pub dir: PathBuf,
    /// All segments together, in bytes. New statements are refused shortly before.
    pub bytes_max: u64,
    /// A segment is closed once it is that large.
    pub segment_bytes: u64,
    /// `http://host:port` of the collector; `https://` needs `identity`.
    pub collector: Option<String>,
    /// What is shown to a collector over mutual TLS.
    pub identity: Option<HeldIdentity>,
    /// The collector's key, `name+hash+base64`. Without it the key of the first answer is kept and pinned.
    pub collector_key: Option<String>,
    /// For `chain.open`: program and version.
    pub program: String,
    /// For `chain.open`: where it listens.
    pub listen: Option<String>,
    /// For `chain.open`: whom it serves.
    pub workload: Claim,
    /// For `chain.open`: the receipt mode at start.
    pub mode: ReceiptMode,
}

impl SpoolConfig {
    /// The usual limits: 1 GiB, segments of 16 MiB, no collector.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            bytes_max: 1 << 30,
            segment_bytes: 16 << 20,
            collector: None,
            identity: None,
            collector_key: None,
            program: concat!("weir-sidecar ", env!("CARGO_PKG_VERSION")).to_owned(),
            listen: None,
            workload: Claim::absent(),
            mode: ReceiptMode::Durable,
        }
    }
}

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process uses the folder.
    #[error("the spool folder `{0}` is in use by another process")]
    Locked(PathBuf),
    /// The folder or a file in it.
    #[error("cannot use the spool folder `{dir}`: {source}")]
    Io {
        /// Folder.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// No random bytes, no key.
    #[error("cannot make a signing key")]
    Key,
    /// The given collector key is not one.
    #[error("`{0}` is not the key of a log")]
    BadCollectorKey(String),
    /// The collector URL is not one we can use.
    #[error("`{0}` is not an http://host:port address (nor https:// in a pod)")]
    BadCollectorUrl(String),
}

/// Why a statement may not run: its receipt would not be safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpoolRefusal {
    /// No room.
    #[error("the receipts of this statement cannot be kept: the spool is full")]
    Full,
    /// The disk failed.
    #[error("the receipts of this statement cannot be kept: the spool failed")]
    Failed,
    /// `Strict` without a collector.
    #[error("receipts mode Strict needs a collector, and none is set")]
    NoCollector,
    /// `Strict`, and the collector did not answer in time.
    #[error("the collector did not acknowledge the intent of this statement in time")]
    NotAcknowledged,
    /// The process is ending.
    #[error("this process is ending")]
    Closing,
}

impl SpoolRefusal {
    /// SQLSTATE for the client.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Full => "53100",
            Self::Failed => "58030",
            Self::NoCollector => "55000",
            Self::NotAcknowledged => "57014",
            Self::Closing => "57P01",
        }
    }
    /// Number of the refusal's code, `WEIR-nnn`.
    pub fn code(&self) -> u16 {
        match self {
            Self::Full => 130,
            Self::Failed => 131,
            Self::NoCollector => 132,
            Self::NotAcknowledged => 133,
            Self::Closing => 134,
        }
    }
}

/// One event, before it has its place in its chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Microseconds since 1970-01-01 UTC.
    pub time_us: i64,
    /// Microseconds since the process started.
    pub mono_us: u64,
    /// The client session, for events of one.
    pub session: Option<SessionId>,
    /// What happened.
    pub body: Body,
}

/// A statement that began and whose outcome must be recorded with [`Spool::record`]. Dropped without that, the statement
/// becomes "outcome unknown" at the next start.
#[derive(Debug)]
#[must_use = "record the outcome with it"]
pub struct OpenStatement {
    unresolved: Option<Arc<AtomicU64>>,
}

/// An intent on its way to disk (`Durable`) or to the collector (`Strict`).
#[derive(Debug)]
#[must_use = "the statement may only be sent once this has resolved"]
pub struct PendingIntent {
    done: Result<oneshot::Receiver<Result<OpenStatement, SpoolRefusal>>, OpenStatement>,
    wait: Option<Duration>,
}

impl PendingIntent {
    /// Resolves when the intent is as safe as the mode asks for.
    ///
    /// # Errors
    /// [`SpoolRefusal`]: the statement must not be sent.
    pub async fn wait(self) -> Result<OpenStatement, SpoolRefusal> {
        match (self.done, self.wait) {
            (Err(open), _) => Ok(open),
            (Ok(done), None) => done.await.unwrap_or(Err(SpoolRefusal::Closing)),
            (Ok(done), Some(limit)) => match tokio::time::timeout(limit, done).await {
                Ok(result) => result.unwrap_or(Err(SpoolRefusal::Closing)),
                Err(_) => Err(SpoolRefusal::NotAcknowledged),
            },
        }
    }
}

/// Condition of the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// All is written.
    Ok,
    /// No room: new statements are refused.
    Full,
    /// The disk failed; only a new start helps.
    Failed,
}

/// For status pages and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Condition.
    pub health: Health,
    /// The process' boot id.
    pub boot: BootId,
    /// Events recorded so far.
    pub events: u64,
    /// Groups signed and on disk.
    pub groups: u64,
    /// Events lost; each loss has a signed gap.
    pub dropped: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Cap.
    pub bytes_max: u64,
    /// Of these, still in the queue.
    pub queued: usize,
    /// Events signed and on disk.
    pub signed: u64,
    /// Of this process' events, how many the collector has under a verified checkpoint.
    pub delivered: u64,
    /// Events on this disk that the collector has not under a verified checkpoint, those of ended processes included.
    pub waiting: u64,
    /// Age of the oldest of them.
    pub oldest_waiting: Option<Duration>,
    /// Last verified head of the collector's log.
    pub seen_head: Option<LogHead>,
    /// Last failure to deliver.
    pub delivery_error: Option<String>,
}

/// The spool of one process.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What session threads, writer and delivery share.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    bytes_max: u64,
    segment_bytes: u64,
    boot: BootId,
    started: Instant,
    salt: [u8; 32],
    queue: Mutex<Queue>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes callers that wait for room in the queue.
    room: Condvar,
    segment: Mutex<OpenSegment>,
    closed: Mutex<Vec<ClosedSegment>>,
    /// Bytes of all segments.
    bytes: AtomicU64,
    /// Marks were written since the last fdatasync.
    marks_unsynced: AtomicBool,
    health: AtomicU8,
    events: AtomicU64,
    groups: AtomicU64,
    dropped: AtomicU64,
    /// Position up to which segments hold signed groups that are on disk: (segment number, bytes, events signed).
    signed: watch::Sender<Signed>,
    /// Events of this process that the collector has, counted from the first.
    delivered: watch::Sender<u64>,
    /// How old events are that were signed and not delivered.
    ages: Mutex<Ages>,
    /// For every process in the folder: last event that the collector has.
    delivered_seq: Mutex<BTreeMap<BootId, u64>>,
    seen_head: Mutex<Option<LogHead>>,
    delivery_error: Mutex<Option<String>>,
    has_collector: bool,
    stop_delivery: watch::Sender<Option<Instant>>,
    /// Kept open: the lock ends with the process.
    _lock: File,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Signed {
    segment: u64,
    bytes: u64,
    events: u64,
    /// The writer has ended: nothing will be added.
    last: bool,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Queued>,
    /// Somebody waits for the next group.
    urgent: bool,
    /// Dropped and not told of yet.
    dropped: Dropped,
    closing: Option<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Dropped {
    count: u64,
    from_us: i64,
    to_us: i64,
}

/// An entry in the queue, and what to do once it is on disk.
#[derive(Debug)]
struct Queued {
    entry: Entry,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Nothing,
    /// The outcome of that statement: its mark is resolved.
    Resolve(OpenStatement),
    /// An intent: tell the caller when it is on disk.
    Durable(oneshot::Sender<Result<OpenStatement, SpoolRefusal>>),
    /// An intent: tell the caller when the collector has it.
    Strict(oneshot::Sender<Result<OpenStatement, SpoolRefusal>>),
}

impl Spool {
    /// Takes the folder's lock, puts what an ended process left into the new chain, and starts the writer and, with a
    /// collector, the delivery.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn open(config: SpoolConfig) -> Result<Self, SpoolError> {
        let io = |source| SpoolError::Io {
            dir: config.dir.clone(),
            source,
        };
        let pinned = match &config.collector_key {
            Some(text) => {
                Some(LogKey::from_vkey(text).ok_or_else(|| SpoolError::BadCollectorKey(text.clone()))?)
            }
            None => None,
        };
        let target = match &config.collector {
            Some(url) => Some(
                deliver::Target::parse(url, config.identity.clone())
                    .ok_or_else(|| SpoolError::BadCollectorUrl(url.clone()))?,
            ),
            None => None,
        };
        make_private_folder(&config.dir).map_err(io)?;
        let lock = lock_folder(&config.dir)?;
        let (mut seed, mut salt) = ([0_u8; 32], [0_u8; 32]);
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| SpoolError::Key)?;
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| SpoolError::Key)?;
        let key = SigningKey::from_seed(&seed).map_err(|_| SpoolError::Key)?;
        seed = [0; 32];
        let _ = seed;
        let started = Instant::now();
        let delivered = deliver::read_delivered(&config.dir);
        let recovered = recover::recover(&config, &key, &delivered, now_us()).map_err(io)?;
        let stop = watch::Sender::new(None);
        let signed = Signed {
            segment: recovered.segment.number,
            bytes: recovered.segment.bytes,
            events: recovered.chain.next_seq(),
            last: false,
        };
        let shared = Arc::new(Shared {
            dir: config.dir.clone(),
            bytes_max: config.bytes_max,
            segment_bytes: config.segment_bytes,
            boot: key.boot(),
            started,
            salt,
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            bytes: AtomicU64::new(
                recovered.segment.bytes + recovered.closed.iter().map(|closed| closed.bytes).sum::<u64>(),
            ),
            segment: Mutex::new(recovered.segment),
            closed: Mutex::new(recovered.closed),
            marks_unsynced: AtomicBool::new(false),
            health: AtomicU8::new(0),
            events: AtomicU64::new(recovered.chain.next_seq()),
            groups: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            signed: watch::Sender::new(signed),
            delivered: watch::Sender::new(0),
            ages: Mutex::default(),
            delivered_seq: Mutex::new(delivered.boots.clone()),
            seen_head: Mutex::new(delivered.head),
            delivery_error: Mutex::new(None),
            has_collector: target.is_some(),
            stop_delivery: stop,
            _lock: lock,
        });
        let mut threads = vec![writer::start(Arc::clone(&shared), key, recovered.chain).map_err(io)?];
        if let Some(target) = target {
            threads.push(deliver::start(Arc::clone(&shared), target, pinned, delivered).map_err(io)?);
        }
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// The process' boot id.
    pub fn boot(&self) -> BootId {
        self.shared.boot
    }

    /// Now, for [`Entry::time_us`] and [`Entry::mono_us`].
    pub fn now(&self) -> (i64, u64) {
        (now_us(), self.shared.mono_us())
    }

    /// Salted digest of a statement's text, for receipts and marks. The salt is born with the process and never leaves it.
    pub fn statement_key(&self, text: &str) -> Digest {
        receipts::statement_key(&self.shared.salt, text)
    }

    /// Whether a new statement may begin; cheap enough to be asked for each.
    ///
    /// # Errors
    /// [`SpoolRefusal`]: it would not be recorded.
    pub fn admits(&self, mode: ReceiptMode) -> Result<(), SpoolRefusal> {
        match mode {
            ReceiptMode::BestEffort => Ok(()),
            ReceiptMode::Strict if !self.shared.has_collector => Err(SpoolRefusal::NoCollector),
            ReceiptMode::Durable | ReceiptMode::Strict => self.shared.admit(),
        }
    }

    /// Says that a statement begins. When this returns, the mark is in the file; it is on disk with the next group, at
    /// most 50 ms later. `BestEffort` writes none.
    ///
    /// # Errors
    /// [`SpoolRefusal`]: the statement must not be sent.
    pub fn open_mark(&self, mark: Mark, mode: ReceiptMode) -> Result<OpenStatement, SpoolRefusal> {
        match mode {
            ReceiptMode::BestEffort => return Ok(OpenStatement { unresolved: None }),
            ReceiptMode::Durable => {}
            ReceiptMode::Strict if self.shared.has_collector => {}
            ReceiptMode::Strict => return Err(SpoolRefusal::NoCollector),
        }
        self.shared.admit()?;
        let mut bytes = Vec::with_capacity(96);
        Record::Mark(mark).encode_into(&mut bytes);
        let unresolved = {
            let mut segment = held(&self.shared.segment);
            if let Err(error) = segment.append(&bytes) {
                drop(segment);
                return Err(self.shared.write_failed(&error));
            }
            segment.unresolved.fetch_add(1, Ordering::AcqRel);
            Arc::clone(&segment.unresolved)
        };
        self.shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if !self.shared.marks_unsynced.swap(true, Ordering::AcqRel) {
            // The writer may be asleep without a time limit: one wake-up for all marks of the next 50 ms.
            let _queue = held(&self.shared.queue);
            self.shared.work.notify_one();
        }
        Ok(OpenStatement {
            unresolved: Some(unresolved),
        })
    }

    /// Hands over the intent of a write. It may be sent when [`PendingIntent::wait`] says so: in `Durable` once the
    /// intent is on disk, in `Strict` once the collector has it, in `BestEffort` at once.
    ///
    /// # Errors
    /// [`SpoolRefusal`]: the statement must not be sent.
    pub fn intent(&self, entry: Entry, mode: ReceiptMode) -> Result<PendingIntent, SpoolRefusal> {
        let (send, done) = oneshot::channel();
        let (then, wait) = match mode {
            ReceiptMode::BestEffort => {
                self.record(entry, None, mode);
                return Ok(PendingIntent {
                    done: Err(OpenStatement { unresolved: None }),
                    wait: None,
                });
            }
            ReceiptMode::Durable => (Then::Durable(send), None),
            ReceiptMode::Strict if self.shared.has_collector => (Then::Strict(send), Some(STRICT_WAIT)),
            ReceiptMode::Strict => return Err(SpoolRefusal::NoCollector),
        };
        self.shared.admit()?;
        let mut queue = self.shared.room_in_queue();
        if queue.closing.is_some() {
            return Err(SpoolRefusal::Closing);
        }
        queue.items.push_back(Queued { entry, then });
        queue.urgent = true;
        self.shared.work.notify_one();
        Ok(PendingIntent { done: Ok(done), wait })
    }

    /// Hands over an event: an outcome with the mark of its statement, or anything else without one. In `BestEffort` it is
    /// dropped and counted when the queue is full; otherwise this waits for room.
    pub fn record(&self, entry: Entry, open: Option<OpenStatement>, mode: ReceiptMode) {
        let mut queue = match mode {
            ReceiptMode::BestEffort => {
                let mut queue = held(&self.shared.queue);
                if queue.items.len() >= QUEUE_MAX || self.shared.health() != Health::Ok {
                    queue.dropped.add(entry.time_us);
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                queue
            }
            ReceiptMode::Durable | ReceiptMode::Strict => self.shared.room_in_queue(),
        };
        if queue.items.len() >= QUEUE_MAX || queue.closing.is_some() {
            // Only when the disk does not take anything any more, or after the end.
            queue.dropped.add(entry.time_us);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = queue.items.is_empty();
        let then = match open {
            Some(open) => Then::Resolve(open),
            None => Then::Nothing,
        };
        queue.items.push_back(Queued { entry, then });
        if first || queue.items.len() == receipts::GROUP_EVENTS_MAX {
            self.shared.work.notify_one();
        }
    }

    /// For status pages and metrics.
    pub fn status(&self) -> SpoolStatus {
        let shared = &self.shared;
        let queued = held(&shared.queue).items.len();
        let events = shared.events.load(Ordering::Relaxed) + queued as u64;
        let (left, left_since) = shared.left_by_others();
        let delivered = *shared.delivered.borrow();
        let own_since = held(&shared.ages).oldest(delivered);
        let oldest = [own_since, left_since].into_iter().flatten().min();
        SpoolStatus {
            health: match shared.admit() {
                Err(SpoolRefusal::Full) => Health::Full,
                _ => shared.health(),
            },
            boot: shared.boot,
            events,
            groups: shared.groups.load(Ordering::Relaxed),
            dropped: shared.dropped.load(Ordering::Relaxed),
            bytes: shared.bytes.load(Ordering::Relaxed),
            bytes_max: shared.bytes_max,
            queued,
            signed: shared.signed.borrow().events,
            delivered,
            waiting: events.saturating_sub(delivered) + left,
            oldest_waiting: oldest.map(|since| since.elapsed().unwrap_or_default()),
            seen_head: *held(&shared.seen_head),
            delivery_error: held(&shared.delivery_error).clone(),
        }
    }

    /// Waits until everything recorded so far is signed and on disk. Blocks; for tests and drains.
    pub fn flush(&self) {
        let target = self.shared.events.load(Ordering::Acquire) + held(&self.shared.queue).items.len() as u64;
        while self.shared.signed.borrow().events < target && self.shared.health() != Health::Failed {
            {
                let mut queue = held(&self.shared.queue);
                queue.urgent = true;
                self.shared.work.notify_one();
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Ends in order: signs `chain.close`, then gives the delivery until `deadline` to get everything acknowledged.
    /// Blocks. What is not delivered stays in the folder for the next start.
    pub fn close(&self, reason: &str, deadline: Instant) {
        {
            let mut queue = held(&self.shared.queue);
            if queue.closing.is_none() {
                queue.closing = Some(reason.to_owned());
            }
            self.shared.work.notify_one();
        }
        self.shared.stop_delivery.send_replace(Some(deadline));
        for thread in held(&self.threads).drain(..) {
            // A thread that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close("dropped", Instant::now());
    }
}

impl Shared {
    fn mono_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Events that ended processes left in the folder and that are not delivered, and since when they lie there at the
    /// least.
    fn left_by_others(&self) -> (u64, Option<SystemTime>) {
        let delivered = held(&self.delivered_seq).clone();
        let mut last = BTreeMap::<BootId, u64>::new();
        let mut since = None;
        for segment in held(&self.closed).iter() {
            for (boot, seq) in segment.last_seq.iter().filter(|(boot, _)| **boot != self.boot) {
                if delivered.get(boot).is_some_and(|delivered| delivered >= seq) {
                    continue;
                }
                let known = last.entry(*boot).or_default();
                *known = (*seq).max(*known);
                if since.is_none() {
                    // Written to until its process ended.
                    since = std::fs::metadata(&segment.path)
                        .and_then(|data| data.modified())
                        .ok();
                }
            }
        }
        let next = |seq: u64| seq.saturating_add(1);
        let left = last
            .iter()
            .map(|(boot, seq)| next(*seq) - delivered.get(boot).map_or(0, |seq| next(*seq)))
            .sum();
        (left, since)
    }

    fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Ok,
            1 => Health::Full,
            _ => Health::Failed,
        }
    }

    fn set_health(&self, health: Health) {
        let number = match health {
            Health::Ok => 0,
            Health::Full => 1,
            Health::Failed => 2,
        };
        let before = self.health.fetch_max(number, Ordering::AcqRel);
        if before < 2 && number < before {
            // Room again. `Failed` stays.
            let _ = self
                .health
                .compare_exchange(before, number, Ordering::AcqRel, Ordering::Acquire);
        }
        if before != number {
            tracing::warn!(spool.health = ?health, "the spool's condition changed");
        }
    }

    /// Whether a new statement may begin.
    fn admit(&self) -> Result<(), SpoolRefusal> {
        match self.health() {
            Health::Failed => return Err(SpoolRefusal::Failed),
            Health::Full => return Err(SpoolRefusal::Full),
            Health::Ok => {}
        }
        let reserve = OUTCOME_RESERVE_BYTES.min(self.bytes_max / 4);
        if self.bytes.load(Ordering::Relaxed) >= self.bytes_max.saturating_sub(reserve) {
            return Err(SpoolRefusal::Full);
        }
        Ok(())
    }

    /// Sets the condition after a failed write.
    fn write_failed(&self, error: &io::Error) -> SpoolRefusal {
        if is_full(error) {
            self.set_health(Health::Full);
            SpoolRefusal::Full
        } else {
            tracing::error!(%error, "cannot write to the spool");
            self.set_health(Health::Failed);
            SpoolRefusal::Failed
        }
    }

    /// The queue, once it has room; or full, when the spool does not take anything any more.
    fn room_in_queue(&self) -> MutexGuard<'_, Queue> {
        let mut queue = held(&self.queue);
        while queue.items.len() >= QUEUE_MAX && queue.closing.is_none() && self.health() == Health::Ok {
            self.work.notify_one();
            queue = match self.room.wait_timeout(queue, Duration::from_millis(50)) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        queue
    }

    /// Deletes segments that nobody needs any more.
    fn delete_done(&self) {
        let delivered = held(&self.delivered_seq).clone();
        let mut freed = 0;
        held(&self.closed).retain(|segment| {
            if !segment.is_done(&delivered) {
                return true;
            }
            match std::fs::remove_file(&segment.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, segment = %segment.path.display(), "cannot delete a delivered segment");
                    return true;
                }
            }
            freed += segment.bytes;
            false
        });
        if freed > 0 {
            self.bytes.fetch_sub(freed, Ordering::Relaxed);
            let _ = segment::sync_folder(&self.dir);
        }
    }
}

impl OpenStatement {
    /// Its outcome is on disk.
    fn resolve(self) {
        if let Some(unresolved) = &self.unresolved {
            unresolved.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Dropped {
    fn add(&mut self, time_us: i64) {
        if self.count == 0 {
            self.from_us = time_us;
        }
        self.count += 1;
        self.to_us = time_us;
    }
}

/// Takes a lock whose data is valid at any point, so a panic elsewhere does not matter.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disk, a quota or a limit takes no more.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_micros()).ok())
        .unwrap_or(0)
}

fn make_private_folder(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn lock_folder(dir: &Path) -> Result<File, SpoolError> {
    let io = |source| SpoolError::Io {
        dir: dir.to_owned(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(SpoolError::Locked(dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Whether a process uses the folder now.
pub fn is_live(dir: &Path) -> bool {
    match File::options().write(true).open(dir.join("lock")) {
        Ok(file) => matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)),
        Err(_) => false,
    }
}
