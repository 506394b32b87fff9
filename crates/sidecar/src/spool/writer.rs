//! The writer thread: links, encodes, appends, signs, syncs.

use std::io;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use receipts::{
    Body, ChainClose, ChainWriter, Digest, GROUP_EVENTS_MAX, Gap, GapChain, SigningKey, sign_group,
};
use tokio::sync::oneshot;

use super::record::Record;
use super::segment::OpenSegment;
use super::{
    Dropped, Health, OpenStatement, Queue, Queued, Shared, Signed, SpoolRefusal, Then, held, now_us,
};

/// Events that nobody waits for are written together, at most that much later.
const WRITE_DELAY: Duration = Duration::from_millis(5);
/// And signed and synced together, at most that much later: with the write delay, 50 ms.
const GROUP_DELAY: Duration = Duration::from_millis(45);
/// How often a full disk is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

pub(super) fn start(shared: Arc<Shared>, key: SigningKey, chain: ChainWriter) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("weir-spool".to_owned())
        .spawn(move || {
            Writer {
                shared,
                key,
                chain,
                unwritten: Vec::new(),
                unwritten_events: 0,
                unsigned: Vec::new(),
                first_unsigned: None,
                durable: Vec::new(),
                resolved: Vec::new(),
                strict: Vec::new(),
                told_fill: Fill::Low,
            }
            .run();
        })
}

struct Writer {
    shared: Arc<Shared>,
    key: SigningKey,
    chain: ChainWriter,
    /// Records that are encoded and not in the file yet (a full disk); empty otherwise.
    unwritten: Vec<u8>,
    unwritten_events: usize,
    /// Leaves of the events in the file that no signature covers yet.
    unsigned: Vec<Digest>,
    first_unsigned: Option<Instant>,
    /// Told after the next fdatasync.
    durable: Vec<oneshot::Sender<Result<OpenStatement, SpoolRefusal>>>,
    /// Resolved after the next fdatasync.
    resolved: Vec<OpenStatement>,
    /// Told once the collector has that many events.
    strict: Vec<(u64, oneshot::Sender<Result<OpenStatement, SpoolRefusal>>)>,
    told_fill: Fill,
}

/// How full the folder is, as far as it was said in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Low,
    High,
    Full,
}

struct Batch {
    items: Vec<Queued>,
    dropped: Dropped,
    urgent: bool,
    closing: Option<String>,
}

impl Writer {
    fn run(mut self) {
        loop {
            let batch = self.wait();
            self.tell_strict();
            let closing = batch.closing.clone();
            let room = batch.items.len();
            self.link(batch.items, batch.dropped);
            if room > 0 {
                self.shared.room.notify_all();
            }
            if let Some(reason) = &closing {
                self.link_body(
                    None,
                    Body::ChainClose(ChainClose {
                        reason: reason.clone(),
                    }),
                );
            }
            let written = self.write();
            let due = self
                .first_unsigned
                .is_some_and(|first| first.elapsed() >= GROUP_DELAY);
            let marks = self.shared.marks_unsynced.load(Ordering::Acquire);
            let full_group = self.unsigned.len() >= GROUP_EVENTS_MAX;
            if written
                && (batch.urgent
                    || due
                    || full_group
                    || closing.is_some()
                    || (marks && self.unsigned.is_empty()))
            {
                self.commit();
            }
            if closing.is_some() {
                break;
            }
        }
        self.shared.signed.send_modify(|signed| signed.last = true);
        for (_, done) in self.strict.drain(..) {
            let _ = done.send(Err(SpoolRefusal::Closing));
        }
    }

    /// Sleeps until there is something to do, and takes it.
    fn wait(&self) -> Batch {
        let mut queue = held(&self.shared.queue);
        let entered = Instant::now();
        let free = GROUP_EVENTS_MAX
            .saturating_sub(self.unsigned.len() + self.unwritten_events)
            .max(1);
        loop {
            if queue.closing.is_some()
                || (queue.urgent && !queue.items.is_empty())
                || queue.items.len() >= free
            {
                break;
            }
            let marks = self.shared.marks_unsynced.load(Ordering::Acquire);
            let mut limit: Option<Duration> = None;
            let mut at_most = |duration: Duration| {
                limit = Some(limit.map_or(duration, |limit| limit.min(duration)));
            };
            if !queue.items.is_empty() || queue.dropped.count > 0 {
                at_most(WRITE_DELAY);
            }
            if marks {
                at_most(GROUP_DELAY);
            }
            if let Some(first) = self.first_unsigned {
                at_most(GROUP_DELAY.saturating_sub(first.elapsed()));
            }
            if !self.unwritten.is_empty() {
                at_most(RETRY_DELAY);
            }
            if !self.strict.is_empty() {
                // The delivery wakes us; this only bounds a lost wake-up.
                at_most(GROUP_DELAY);
            }
            let health = self.shared.health();
            if health == Health::Full {
                at_most(RETRY_DELAY);
            }
            if queue.urgent && self.unsigned.is_empty() && self.unwritten.is_empty() && queue.items.is_empty()
            {
                queue.urgent = false;
            }
            if queue.urgent {
                break;
            }
            match limit {
                None => {
                    queue = self
                        .shared
                        .work
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner)
                }
                Some(limit) => {
                    let rest = limit.saturating_sub(entered.elapsed());
                    if rest.is_zero() {
                        break;
                    }
                    queue = match self.shared.work.wait_timeout(queue, rest) {
                        Ok((queue, _)) => queue,
                        Err(poisoned) => poisoned.into_inner().0,
                    };
                    if !self.strict.is_empty() {
                        break;
                    }
                }
            }
        }
        self.take(&mut queue, free)
    }

    fn take(&self, queue: &mut Queue, free: usize) -> Batch {
        // While the disk is full nothing is taken: what is linked is kept, and the queue stays bounded.
        let stuck = !self.unwritten.is_empty() && self.shared.health() != Health::Ok;
        let count = if stuck { 0 } else { queue.items.len().min(free) };
        let items: Vec<Queued> = queue.items.drain(..count).collect();
        let urgent = queue.urgent;
        queue.urgent = queue.urgent && !queue.items.is_empty();
        let dropped = if stuck {
            Dropped::default()
        } else {
            std::mem::take(&mut queue.dropped)
        };
        let closing = queue.closing.clone().filter(|_| queue.items.is_empty() || stuck);
        Batch {
            items,
            dropped,
            urgent,
            closing,
        }
    }

    fn link(&mut self, items: Vec<Queued>, dropped: Dropped) {
        if dropped.count > 0 {
            self.link_body(
                None,
                Body::Gap(Gap {
                    chain: GapChain::Unchained,
                    boot: self.chain.boot(),
                    from: None,
                    to: None,
                    count: Some(dropped.count),
                    from_us: Some(dropped.from_us),
                    to_us: Some(dropped.to_us),
                    reason: "dropped: the spool did not take them".to_owned(),
                }),
            );
        }
        for Queued { entry, then } in items {
            let head = *held(&self.shared.seen_head);
            let event = self
                .chain
                .link(entry.time_us, entry.mono_us, entry.session, head, entry.body);
            self.take_event(event);
            match then {
                Then::Nothing => {}
                Then::Resolve(open) => self.resolved.push(open),
                Then::Durable(done) => self.durable.push(done),
                Then::Strict(done) => self.strict.push((self.chain.next_seq(), done)),
            }
        }
    }

    fn link_body(&mut self, session: Option<receipts::SessionId>, body: Body) {
        let head = *held(&self.shared.seen_head);
        let event = self
            .chain
            .link(now_us(), self.shared.mono_us(), session, head, body);
        self.take_event(event);
    }

    fn take_event(&mut self, event: receipts::EncodedEvent) {
        Record::Event(&event.bytes).encode_into(&mut self.unwritten);
        self.unwritten_events += 1;
        self.unsigned.push(event.leaf);
        self.first_unsigned.get_or_insert_with(Instant::now);
        self.shared.events.store(self.chain.next_seq(), Ordering::Release);
    }

    /// Appends what is encoded. Afterwards it is in the file, or the spool's condition says why not.
    fn write(&mut self) -> bool {
        if self.unwritten.is_empty() {
            if self.shared.health() == Health::Full && self.room_again() {
                self.shared.set_health(Health::Ok);
            }
            return true;
        }
        let result = held(&self.shared.segment).append(&self.unwritten);
        let result = result.or_else(|error| {
            // The file kept for this: what runs can still be recorded.
            std::fs::remove_file(self.shared.dir.join(super::recover::RESERVE_FILE)).map_err(|_| error)?;
            held(&self.shared.segment).append(&self.unwritten)?;
            self.shared.set_health(Health::Full);
            Ok::<(), io::Error>(())
        });
        match result {
            Ok(()) => {
                self.shared
                    .bytes
                    .fetch_add(self.unwritten.len() as u64, Ordering::Relaxed);
                self.unwritten.clear();
                self.unwritten_events = 0;
                if self.shared.health() == Health::Full && self.room_again() {
                    self.shared.set_health(Health::Ok);
                }
                true
            }
            Err(error) => {
                let refusal = self.shared.write_failed(&error);
                for done in self
                    .durable
                    .drain(..)
                    .chain(self.strict.drain(..).map(|(_, done)| done))
                {
                    let _ = done.send(Err(refusal.clone()));
                }
                false
            }
        }
    }

    /// Under the cap again, and the file kept for a full disk can be made anew.
    fn room_again(&self) -> bool {
        let reserve = super::OUTCOME_RESERVE_BYTES.min(self.shared.bytes_max / 4);
        self.shared.bytes.load(Ordering::Relaxed) < self.shared.bytes_max.saturating_sub(reserve)
            && super::recover::make_reserve(&self.shared.dir, self.shared.bytes_max).is_ok()
    }

    /// Signs what is unsigned, syncs, and tells whoever waits.
    fn commit(&mut self) {
        let shared = Arc::clone(&self.shared);
        let signed_events = self.chain.next_seq();
        if !self.unsigned.is_empty() {
            let mut records = Vec::new();
            let mut first = signed_events - self.unsigned.len() as u64;
            for leaves in self.unsigned.chunks(GROUP_EVENTS_MAX) {
                match sign_group(&self.key, first, leaves) {
                    Ok(header) => Record::Signature(header).encode_into(&mut records),
                    // Chunks have 1 to 256 leaves, so this does not happen; unsigned events are recovered later.
                    Err(problem) => tracing::error!(%problem, "cannot sign a group of receipts"),
                }
                first += leaves.len() as u64;
                shared.groups.fetch_add(1, Ordering::Relaxed);
            }
            self.unwritten = records;
            self.unwritten_events = 0;
            if !self.write() {
                // The signature goes with the next attempt; the events are in the file, unsigned.
                self.unwritten.clear();
                return;
            }
        }
        shared.marks_unsynced.store(false, Ordering::Release);
        let (file, number, bytes) = {
            let segment = held(&shared.segment);
            (Arc::clone(&segment.file), segment.number, segment.bytes)
        };
        if let Err(error) = file.sync_data() {
            // After a failed fdatasync nobody knows what is on disk: no more promises by this process.
            tracing::error!(%error, "cannot sync the spool");
            shared.set_health(Health::Failed);
            for done in self
                .durable
                .drain(..)
                .chain(self.strict.drain(..).map(|(_, done)| done))
            {
                let _ = done.send(Err(SpoolRefusal::Failed));
            }
            return;
        }
        self.unsigned.clear();
        self.first_unsigned = None;
        for open in self.resolved.drain(..) {
            open.resolve();
        }
        for done in self.durable.drain(..) {
            open_and_tell(&shared, done);
        }
        held(&shared.ages).signed(signed_events, SystemTime::now());
        // Marks may stand behind `bytes` already; delivery only needs the groups before it.
        shared.signed.send_replace(Signed {
            segment: number,
            bytes,
            events: signed_events,
            last: false,
        });
        if bytes >= shared.segment_bytes {
            self.rotate(signed_events);
        }
        shared.delete_done();
        self.tell_fill();
    }

    /// Says once when the folder gets full, early enough to do something.
    fn tell_fill(&mut self) {
        let (bytes, bytes_max) = (self.shared.bytes.load(Ordering::Relaxed), self.shared.bytes_max);
        let fill = if self.shared.admit() == Err(SpoolRefusal::Full) {
            Fill::Full
        } else if bytes >= bytes_max / 10 * 7 {
            Fill::High
        } else {
            Fill::Low
        };
        if fill != self.told_fill {
            match fill {
                Fill::Low => tracing::info!(bytes, bytes_max, "the spool has room again"),
                Fill::High => tracing::warn!(bytes, bytes_max, "the spool is 70 % full"),
                Fill::Full => {
                    tracing::error!(bytes, bytes_max, "the spool is full: new statements are refused")
                }
            }
            self.told_fill = fill;
        }
    }

    fn rotate(&mut self, signed_events: u64) {
        let mut segment = held(&self.shared.segment);
        match OpenSegment::create(&self.shared.dir, segment.number + 1, self.chain.boot()) {
            Ok(next) => {
                // Marks of the last moments are in the old file; they were promised to be on disk 50 ms later.
                if let Err(error) = segment.file.sync_data() {
                    tracing::error!(%error, "cannot sync the spool");
                    self.shared.set_health(Health::Failed);
                }
                let closed = segment.close(self.chain.boot(), signed_events.checked_sub(1));
                self.shared.bytes.fetch_add(next.bytes, Ordering::Relaxed);
                *segment = next;
                drop(segment);
                held(&self.shared.closed).push(closed);
            }
            Err(error) => {
                // The old one goes on being used.
                drop(segment);
                self.shared.write_failed(&error);
            }
        }
    }

    fn tell_strict(&mut self) {
        let delivered = *self.shared.delivered.borrow();
        let (ready, waiting) = std::mem::take(&mut self.strict)
            .into_iter()
            .partition(|(events, _)| *events <= delivered);
        self.strict = waiting;
        let ready: Vec<_> = ready;
        for (_, done) in ready {
            open_and_tell(&self.shared, done);
        }
    }
}

/// Counts the statement as begun in the open segment and tells its caller; a caller that went away took its statement
/// with it.
fn open_and_tell(shared: &Shared, done: oneshot::Sender<Result<OpenStatement, SpoolRefusal>>) {
    let unresolved = {
        let segment = held(&shared.segment);
        segment.unresolved.fetch_add(1, Ordering::AcqRel);
        Arc::clone(&segment.unresolved)
    };
    if let Err(Ok(open)) = done.send(Ok(OpenStatement {
        unresolved: Some(unresolved),
    })) {
        open.resolve();
    }
}
