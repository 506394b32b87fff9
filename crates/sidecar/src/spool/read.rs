//! Reads a spool folder from outside: what `weir audit` and `weir verify` see, and what recovery and delivery start
//! from. Takes no lock and changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use receipts::{
    Body, BootId, GroupHeader, HoleKind, ProblemKind, ReadEvent, Report, Scope, SignedGroup, Verifier,
    read_event,
};

use super::record::{Mark, Next, Record, next};

/// Something in a spool folder, in the order it was written.
#[derive(Debug)]
pub enum Item {
    /// A new segment file, written by that process.
    Segment {
        /// Number of the segment.
        number: u64,
        /// The process.
        boot: BootId,
    },
    /// A signed group. Not verified yet.
    Group(SignedGroup),
    /// A signature for which the events are not there.
    Orphan(GroupHeader),
    /// A statement began.
    Mark(Mark),
    /// An event that no signature covers.
    Unsigned(Vec<u8>),
    /// From here on the segment cannot be read.
    Torn {
        /// The file.
        path: PathBuf,
        /// Number of the segment.
        number: u64,
        /// The process that wrote it, where its first record still says so.
        boot: Option<BootId>,
        /// Bytes that can be read.
        good_bytes: u64,
        /// Bytes after them.
        lost_bytes: u64,
        /// They are there, but are not what was written (otherwise the file just ends too early).
        damaged: bool,
    },
}

/// Numbers and paths of the segments in a folder, oldest first.
///
/// # Errors
/// Where the folder cannot be read.
pub fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "seg")
            && let Some(number) = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse().ok())
        {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Walks a folder.
///
/// # Errors
/// Where a file cannot be read. A segment that is deleted meanwhile (it was delivered) is skipped.
pub fn walk(folder: &Path, mut each: impl FnMut(Item)) -> io::Result<()> {
    for (number, path) in segments(folder)? {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        walk_segment(number, &path, &bytes, &mut each);
    }
    Ok(())
}

fn walk_segment(number: u64, path: &Path, bytes: &[u8], each: &mut impl FnMut(Item)) {
    let (mut rest, mut boot, mut pending) = (bytes, None, Pending::default());
    loop {
        match next(rest) {
            Next::Record(record, length) => {
                rest = rest.get(length..).unwrap_or_default();
                match record {
                    Record::Start(id) => {
                        boot = Some(id);
                        each(Item::Segment { number, boot: id });
                    }
                    Record::Event(event) => pending.events.push(event.to_vec()),
                    Record::Signature(header) => each(match pending.sign(header) {
                        Some(group) => Item::Group(group),
                        None => Item::Orphan(header),
                    }),
                    Record::Mark(mark) => each(Item::Mark(mark)),
                }
            }
            Next::End => break,
            found @ (Next::Short | Next::Damaged) => {
                pending
                    .events
                    .drain(..)
                    .for_each(|event| each(Item::Unsigned(event)));
                each(Item::Torn {
                    path: path.to_owned(),
                    number,
                    boot,
                    good_bytes: (bytes.len() - rest.len()) as u64,
                    lost_bytes: rest.len() as u64,
                    damaged: found == Next::Damaged,
                });
                return;
            }
        }
    }
    pending
        .events
        .drain(..)
        .for_each(|event| each(Item::Unsigned(event)));
}

/// Events that wait for their signature. A group never spans two segments.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) events: Vec<Vec<u8>>,
}

impl Pending {
    /// Takes the events that the header signs.
    pub(super) fn sign(&mut self, header: GroupHeader) -> Option<SignedGroup> {
        let count = usize::from(header.count);
        if self.events.len() < count {
            return None;
        }
        Some(SignedGroup {
            header,
            events: self.events.drain(..count).collect(),
        })
    }
}

/// Verifies a folder: every signature and link, and what is missing. Statements that have begun and have no outcome are
/// given beside the report: in the folder of a live process they are running, in another its next start will tell of
/// them.
///
/// # Errors
/// Where the folder or a file in it cannot be read.
pub fn verify_folder(folder: &Path) -> io::Result<(Report, Vec<Mark>)> {
    let live = super::is_live(folder);
    let mut verifier = Verifier::new(Scope::Whole);
    begin_where_delivered(&mut verifier, folder);
    let last = segments(folder)?.last().map(|(number, _)| *number);
    let mut marks = BTreeMap::new();
    let resolve = |marks: &mut BTreeMap<_, _>, bytes: &[u8]| {
        let Ok(ReadEvent::Known(event)) = read_event(bytes) else {
            return;
        };
        let session = event.session.map(|link| link.id);
        match (event.body, session) {
            (Body::Action(action), Some(session)) => {
                marks.remove(&(session, action.start.statement));
            }
            (Body::Deny(deny), Some(session)) => {
                marks.remove(&(session, deny.start.statement));
            }
            (Body::OutcomeUnknown(unknown), _) => {
                marks.remove(&(unknown.of_session, unknown.statement));
            }
            _ => {}
        }
    };
    walk(folder, |item| match item {
        Item::Segment { .. } => {}
        Item::Group(group) => {
            verifier.group(None, &group);
            group.events.iter().for_each(|event| resolve(&mut marks, event));
        }
        Item::Orphan(header) => verifier.hole(
            HoleKind::Missing,
            format!(
                "events {}..={} of {}: signed, and not there",
                header.first_seq,
                header.last_seq(),
                header.boot
            ),
        ),
        Item::Mark(mark) => {
            marks.insert((mark.session, mark.statement), mark);
        }
        Item::Unsigned(event) => {
            verifier.unsigned(&event);
            resolve(&mut marks, &event);
        }
        Item::Torn { number, .. } if live && Some(number) == last => {
            // Its writer is in the middle of a record.
        }
        Item::Torn {
            path,
            good_bytes,
            lost_bytes,
            damaged,
            ..
        } => {
            let place = format!("{} from byte {good_bytes}: {lost_bytes} bytes", path.display());
            if damaged {
                verifier.problem(
                    ProblemKind::Unreadable,
                    None,
                    format!("{place} are not what was written"),
                );
            } else {
                verifier.hole(
                    HoleKind::Declared,
                    format!("{place} are a record without its end"),
                );
            }
        }
    })?;
    // What was delivered and let go while we read is not missing.
    begin_where_delivered(&mut verifier, folder);
    Ok((verifier.finish(), marks.into_values().collect()))
}

fn begin_where_delivered(verifier: &mut Verifier, folder: &Path) {
    for (boot, seq) in super::deliver::read_delivered(folder).boots {
        verifier.begin(boot, seq.saturating_add(1));
    }
}
