//! What an ended process left in the folder goes into the new process' chain: unsigned events as they are, statements
//! without an outcome as "outcome unknown", torn ends and missing numbers as gaps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use receipts::{
    Body, BootId, ChainOpen, ChainWriter, Digest, EncodedEvent, Event, GROUP_EVENTS_MAX, Gap, GapChain,
    OutcomeUnknown, Place, PreviousBoot, ReadEvent, Recovered, SessionId, SigningKey, StatementLink, Who,
    leaf_hash, read_event, sign_group,
};

use super::SpoolConfig;
use super::deliver::DeliveredState;
use super::read::{Item, segments, walk};
use super::record::Record;
use super::segment::{ClosedSegment, OpenSegment};

/// A file of zeros that is given up when the disk is full, so that running statements can still be recorded.
pub(super) const RESERVE_FILE: &str = "reserve";
const RESERVE_BYTES: u64 = 1 << 20;

/// What a spool starts from.
pub(super) struct Recovery {
    pub(super) chain: ChainWriter,
    pub(super) segment: OpenSegment,
    pub(super) closed: Vec<ClosedSegment>,
}

#[derive(Default)]
struct Found {
    boots: BTreeMap<BootId, FoundBoot>,
    /// Order in which processes appear.
    order: Vec<BootId>,
    /// Begun and not ended.
    open: BTreeMap<(SessionId, StatementLink), (BootId, Option<Digest>, i64)>,
    sessions: HashMap<SessionId, (Arc<Who>, Arc<Place>)>,
    /// Already in some later chain.
    recovered: HashSet<(BootId, u64)>,
    told_gaps: HashSet<(BootId, Option<u64>, Option<u64>)>,
    torn: Vec<(PathBuf, BootId, u64, u64)>,
    closed: Vec<ClosedSegment>,
    last_segment: u64,
}

#[derive(Default)]
struct FoundBoot {
    first_signed: Option<u64>,
    last_signed: Option<(u64, Digest)>,
    holes: Vec<(u64, u64)>,
    unsigned: BTreeMap<u64, Vec<u8>>,
}

pub(super) fn recover(
    config: &SpoolConfig,
    key: &SigningKey,
    delivered: &DeliveredState,
    now_us: i64,
) -> io::Result<Recovery> {
    // Given up for the records of this start, and made anew after them if there is room.
    let _ = std::fs::remove_file(config.dir.join(RESERVE_FILE));
    let found = find(&config.dir)?;
    let mut chain = ChainWriter::new(key.boot());
    let mut events = Vec::new();
    let mut add = |session, body| events.push(chain.link(now_us, 0, session, delivered.head, body));
    add(
        None,
        Body::ChainOpen(ChainOpen {
            program: config.program.clone(),
            key: key.public(),
            workload: config.workload.clone(),
            listen: config.listen.clone(),
            receipt_mode: Some(format!("{:?}", config.mode)),
            previous: found.previous(),
        }),
    );
    for body in found.bodies(delivered) {
        add(None, body);
    }
    let mut segment = OpenSegment::create(&config.dir, found.last_segment + 1, key.boot())?;
    write(&mut segment, key, &events)?;
    // Only now that the gap is signed: keep the torn bytes beside, so that they are not found again.
    for (path, _, good, _) in &found.torn {
        put_aside(path, *good)?;
    }
    match make_reserve(&config.dir, config.bytes_max) {
        Ok(()) => {}
        Err(error) if super::is_full(&error) => {
            tracing::warn!("the disk under the spool is full");
        }
        Err(error) => return Err(error),
    }
    Ok(Recovery {
        chain,
        segment,
        closed: found.closed,
    })
}

fn write(segment: &mut OpenSegment, key: &SigningKey, events: &[EncodedEvent]) -> io::Result<()> {
    for chunk in events.chunks(GROUP_EVENTS_MAX) {
        let mut bytes = Vec::new();
        for event in chunk {
            Record::Event(&event.bytes).encode_into(&mut bytes);
        }
        segment.append(&bytes)?;
        let leaves: Vec<Digest> = chunk.iter().map(|event| event.leaf).collect();
        let first = chunk.first().map_or(0, |event| event.seq);
        let header = sign_group(key, first, &leaves).map_err(io::Error::other)?;
        bytes.clear();
        Record::Signature(header).encode_into(&mut bytes);
        segment.append(&bytes)?;
    }
    segment.file.sync_data()
}

fn find(dir: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let sizes: BTreeMap<u64, (PathBuf, u64)> = segments(dir)?
        .into_iter()
        .map(|(number, path)| {
            let bytes = std::fs::metadata(&path)?.len();
            Ok((number, (path, bytes)))
        })
        .collect::<io::Result<_>>()?;
    found.last_segment = sizes.keys().next_back().copied().unwrap_or(0);
    let mut current = None;
    let mut last_seq: BTreeMap<u64, BTreeMap<BootId, u64>> = BTreeMap::new();
    walk(dir, |item| match item {
        Item::Segment { number, boot } => {
            current = Some((number, boot));
            if !found.boots.contains_key(&boot) {
                found.order.push(boot);
                found.boots.insert(boot, FoundBoot::default());
            }
        }
        Item::Group(group) => {
            let header = &group.header;
            if let Some((number, _)) = current {
                last_seq
                    .entry(number)
                    .or_default()
                    .insert(header.boot, header.last_seq());
            }
            let boot = found.boots.entry(header.boot).or_default();
            boot.first_signed.get_or_insert(header.first_seq);
            if let Some((last, _)) = boot.last_signed
                && header.first_seq > last + 1
            {
                boot.holes.push((last + 1, header.first_seq - 1));
            }
            if let Some(last) = group.events.last() {
                boot.last_signed = Some((header.last_seq(), leaf_hash(last)));
            }
            for event in &group.events {
                found.event(event);
            }
        }
        Item::Unsigned(bytes) => {
            if let Ok(event) = read_event(&bytes) {
                let proxy = match &event {
                    ReadEvent::Known(event) => event.proxy,
                    ReadEvent::Unknown(header) => header.proxy,
                };
                found.event(&bytes);
                found
                    .boots
                    .entry(proxy.boot)
                    .or_default()
                    .unsigned
                    .insert(proxy.seq, bytes);
            }
        }
        Item::Mark(mark) => {
            if let Some((_, boot)) = current {
                found
                    .open
                    .insert((mark.session, mark.statement), (boot, mark.key, mark.time_us));
            }
        }
        Item::Orphan(header) => {
            found
                .boots
                .entry(header.boot)
                .or_default()
                .holes
                .push((header.first_seq, header.last_seq()));
        }
        Item::Torn {
            path,
            number,
            boot,
            good_bytes,
            lost_bytes,
            ..
        } => {
            let boot = boot.or(current.filter(|(at, _)| *at == number).map(|(_, boot)| boot));
            found
                .torn
                .push((path, boot.unwrap_or(BootId([0; 16])), good_bytes, lost_bytes));
        }
    })?;
    for (number, (path, bytes)) in sizes {
        found.closed.push(ClosedSegment {
            path,
            bytes,
            unresolved: Arc::new(AtomicU64::new(0)),
            last_seq: last_seq.remove(&number).unwrap_or_default(),
        });
    }
    Ok(found)
}

impl Found {
    fn event(&mut self, bytes: &[u8]) {
        let Ok(ReadEvent::Known(event)) = read_event(bytes) else {
            return;
        };
        let Event {
            session,
            body,
            time_us,
            proxy,
            ..
        } = *event;
        let session = session.map(|link| link.id);
        match body {
            Body::SessionOpen(open) => {
                if let Some(session) = session {
                    self.sessions.insert(session, (open.who, open.place));
                }
            }
            Body::SessionClose(_) => {
                if let Some(session) = session {
                    self.sessions.remove(&session);
                }
            }
            Body::Intent(intent) => {
                if let Some(session) = session {
                    let key = intent.start.what.key;
                    self.open
                        .insert((session, intent.start.statement), (proxy.boot, key, time_us));
                }
            }
            Body::Action(action) => {
                if let Some(session) = session {
                    self.open.remove(&(session, action.start.statement));
                }
            }
            Body::Deny(deny) => {
                if let Some(session) = session {
                    self.open.remove(&(session, deny.start.statement));
                }
            }
            Body::OutcomeUnknown(unknown) => {
                self.open.remove(&(unknown.of_session, unknown.statement));
            }
            Body::Recovered(recovered) => {
                self.recovered.insert((recovered.boot, recovered.seq));
            }
            Body::Gap(gap) => {
                self.told_gaps.insert((gap.boot, gap.from, gap.to));
            }
            Body::ChainOpen(_)
            | Body::ChainClose(_)
            | Body::AuthFail(_)
            | Body::PolicyChange(_)
            | Body::ChainPeer(_)
            | Body::ChainBind(_) => {}
        }
    }

    fn previous(&self) -> Vec<PreviousBoot> {
        self.order
            .iter()
            .filter_map(|boot| {
                let (seq, head) = self.boots.get(boot)?.last_signed?;
                Some(PreviousBoot {
                    boot: *boot,
                    seq,
                    head,
                })
            })
            .collect()
    }

    /// Everything to tell, oldest first.
    fn bodies(&self, delivered: &DeliveredState) -> Vec<Body> {
        let mut bodies = Vec::new();
        let mut gap = |boot: BootId, range: Option<(u64, u64)>, reason: String| {
            let (from, to) = (range.map(|range| range.0), range.map(|range| range.1));
            if range.is_none() || !self.told_gaps.contains(&(boot, from, to)) {
                bodies.push(Body::Gap(Gap {
                    chain: if range.is_some() {
                        GapChain::Process
                    } else {
                        GapChain::Unchained
                    },
                    boot,
                    from,
                    to,
                    count: range.map(|(from, to)| to - from + 1),
                    from_us: None,
                    to_us: None,
                    reason,
                }));
            }
        };
        for (boot, found) in &self.boots {
            let covered = delivered.boots.get(boot).map_or(0, |seq| seq + 1);
            if let Some(first) = found.first_signed
                && first > covered
            {
                gap(
                    *boot,
                    Some((covered, first - 1)),
                    "missing from the spool folder".to_owned(),
                );
            }
            for hole in &found.holes {
                gap(*boot, Some(*hole), "missing from the spool folder".to_owned());
            }
        }
        for (_, boot, _, lost) in &self.torn {
            gap(
                *boot,
                None,
                format!("torn record: {lost} bytes at the end of a segment cannot be read"),
            );
        }
        for boot in &self.order {
            let Some(found) = self.boots.get(boot) else {
                continue;
            };
            let signed_to = found.last_signed.map(|(seq, _)| seq);
            for (seq, bytes) in &found.unsigned {
                if signed_to.is_some_and(|signed| *seq <= signed) || self.recovered.contains(&(*boot, *seq)) {
                    continue;
                }
                let event = String::from_utf8_lossy(bytes).into_owned();
                bodies.push(Body::Recovered(Recovered {
                    boot: *boot,
                    seq: *seq,
                    event,
                }));
            }
        }
        let mut told = BTreeSet::new();
        for ((session, statement), (boot, key, begun_us)) in &self.open {
            if told.insert((*session, *statement)) {
                let (who, place) = match self.sessions.get(session) {
                    Some((who, place)) => (Some(Arc::clone(who)), Some(Arc::clone(place))),
                    None => (None, None),
                };
                bodies.push(Body::OutcomeUnknown(OutcomeUnknown {
                    boot: *boot,
                    of_session: *session,
                    statement: *statement,
                    key: *key,
                    begun_us: *begun_us,
                    who,
                    place,
                }));
            }
        }
        bodies
    }
}

/// Copies what follows the good bytes to a file beside and cuts it off.
fn put_aside(path: &Path, good_bytes: u64) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    file.seek(SeekFrom::Start(good_bytes))?;
    let mut torn = Vec::new();
    file.read_to_end(&mut torn)?;
    let mut aside = File::create(path.with_extension("torn"))?;
    aside.write_all(&torn)?;
    aside.sync_all()?;
    file.set_len(good_bytes)?;
    file.sync_all()
}

/// Makes the file of zeros if it is not there.
pub(super) fn make_reserve(dir: &Path, bytes_max: u64) -> io::Result<()> {
    let path = dir.join(RESERVE_FILE);
    let bytes = RESERVE_BYTES.min(bytes_max / 8);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes) {
        return Ok(());
    }
    let made = File::create(&path).and_then(|mut file| {
        let block = [0_u8; 4096];
        for _ in 0..bytes.div_ceil(4096) {
            file.write_all(&block)?;
        }
        file.set_len(bytes)?;
        file.sync_data()
    });
    if made.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    made
}
