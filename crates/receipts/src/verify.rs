//! [`Verifier`]: walks signed groups and says two things about them. *Integrity*: nothing that is here was altered,
//! forged, repeated or put in another place. *Completeness*: nothing is missing. Every chain link is computed anew from
//! the events' bytes; no stored hash is trusted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::Serialize;

use crate::event::{Body, ChainBind, EventHeader, Gap, PreviousBoot, ReadEvent, StatementLink, read_event};
use crate::group::{GroupProblem, SignedGroup};
use crate::ids::{BootId, Digest, SessionId};
use crate::merkle::{leaf_hash, root_of};

/// Findings kept of each sort; more are counted only.
const FINDINGS_MAX: usize = 200;

/// What the groups given are supposed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Everything from the first event of each process on.
    Whole,
    /// A cut: chains may begin and end anywhere, but have no holes in between.
    Part,
}

/// Verdict on what is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrity {
    /// Nothing was altered.
    Ok,
    /// Something was; see the problems.
    Invalid,
}

/// Verdict on what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Completeness {
    /// Nothing.
    Complete,
    /// Something; see the holes.
    Incomplete,
}

/// What is wrong with something that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Bytes that are no group, event or record.
    Unreadable,
    /// Signature or key.
    BadSignature,
    /// The event is not the one that was signed.
    Altered,
    /// The event's own number or process is not the one it was signed for.
    Misplaced,
    /// It does not follow from the event before it.
    BrokenLink,
    /// The same number of a chain twice: a replay, or two histories.
    Twice,
    /// The log's tree or checkpoint does not fit.
    Tree,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What.
    pub kind: ProblemKind,
    /// Log index, where it is about one entry.
    pub index: Option<u64>,
    /// In words, with process and number where known.
    pub message: String,
}

/// Why something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoleKind {
    /// Numbers of a chain that are not here.
    Missing,
    /// A signed event says that events were lost.
    Declared,
    /// A session has no end though its process ended in order.
    SessionWithoutEnd,
    /// A write was announced and has no outcome though its session or process ended.
    IntentWithoutOutcome,
    /// The log's checkpoint speaks of more entries than are here.
    Shorter,
}

/// One thing that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// What.
    pub kind: HoleKind,
    /// In words.
    pub message: String,
}

/// Both verdicts with their reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Verdict on what is here.
    pub integrity: Integrity,
    /// Verdict on what is missing.
    pub completeness: Completeness,
    /// What was looked at.
    pub scope: Scope,
    /// Signed events seen.
    pub events: u64,
    /// Groups seen.
    pub groups: u64,
    /// Processes seen.
    pub processes: u64,
    /// Of these, not ended: their next events are still to come.
    pub running: u64,
    /// Client sessions seen.
    pub sessions: u64,
    /// Events that are written but not signed yet.
    pub unsigned: u64,
    /// Writes announced in sessions that have not ended.
    pub in_flight: u64,
    /// Statements whose outcome nobody knows; each has a signed event that says so.
    pub outcome_unknown: u64,
    /// Events taken over from an ended process.
    pub recovered: u64,
    /// What is wrong, at most 200.
    pub problems: Vec<Problem>,
    /// How much is wrong.
    pub problem_count: u64,
    /// What is missing, at most 200.
    pub holes: Vec<Hole>,
    /// How much is missing.
    pub hole_count: u64,
    /// Which pods say that chains are theirs, for whoever can check certificates; at most 200.
    #[serde(skip)]
    pub bindings: Vec<Binding>,
}

/// A `chain.bind`, in a chain that is signed. Whether the pod's own signature is right is not checked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The process.
    pub boot: BootId,
    /// When it was written, microseconds since 1970-01-01 UTC.
    pub time_us: i64,
    /// What it says.
    pub bind: ChainBind,
}

impl Report {
    /// Something else is wrong.
    pub fn problem(&mut self, kind: ProblemKind, message: String) {
        self.integrity = Integrity::Invalid;
        self.problem_count += 1;
        if self.problems.len() < FINDINGS_MAX {
            self.problems.push(Problem {
                kind,
                index: None,
                message,
            });
        }
    }
}

/// Walks groups in the order they are kept.
#[derive(Debug)]
pub struct Verifier {
    scope: Scope,
    processes: BTreeMap<BootId, Process>,
    sessions: HashMap<SessionId, Session>,
    declared: Vec<Gap>,
    previous: Vec<PreviousBoot>,
    begins: HashMap<BootId, u64>,
    events: u64,
    groups: u64,
    unsigned: u64,
    /// Of the unsigned events seen, so that a `recovered` copy of one is not taken for a second history.
    unsigned_leaves: HashMap<(BootId, u64), Digest>,
    outcome_unknown: u64,
    recovered: u64,
    problems: Vec<Problem>,
    problem_count: u64,
    holes: Vec<Hole>,
    hole_count: u64,
    bindings: Vec<Binding>,
}

#[derive(Debug, Default)]
struct Process {
    chain: Chain,
    closed: bool,
    superseded: bool,
}

#[derive(Debug)]
struct Session {
    chain: Chain,
    boot: BootId,
    closed: bool,
    intents: HashSet<StatementLink>,
}

/// Runs of numbers without a hole, in the order they came.
#[derive(Debug, Default)]
struct Chain {
    runs: Vec<Run>,
}

#[derive(Debug)]
struct Run {
    first: u64,
    /// `prev` of the first; `None` where that event was altered.
    first_prev: Option<Digest>,
    last: u64,
    /// Leaf of the last; likewise.
    last_leaf: Option<Digest>,
}

enum Linked {
    Fits,
    Broken,
    Twice,
}

impl Chain {
    fn add(&mut self, seq: u64, prev: Option<Digest>, leaf: Option<Digest>) -> Linked {
        if self.runs.iter().any(|run| run.first <= seq && seq <= run.last) {
            return Linked::Twice;
        }
        let before = seq.checked_sub(1);
        if let Some(run) = self.runs.iter_mut().rev().find(|run| Some(run.last) == before) {
            let fits = match (run.last_leaf, prev) {
                (Some(last), Some(prev)) => last == prev,
                _ => true,
            };
            run.last = seq;
            run.last_leaf = leaf;
            return if fits { Linked::Fits } else { Linked::Broken };
        }
        self.runs.push(Run {
            first: seq,
            first_prev: prev,
            last: seq,
            last_leaf: leaf,
        });
        match prev {
            Some(prev) if seq == 0 && prev != Digest::ZERO => Linked::Broken,
            _ => Linked::Fits,
        }
    }

    /// Sorted runs, joined where they meet; and the numbers at whose start a link is broken.
    fn joined(mut self) -> (Vec<Run>, Vec<u64>) {
        self.runs.sort_by_key(|run| run.first);
        let (mut joined, mut broken) = (Vec::<Run>::new(), Vec::new());
        for run in self.runs {
            match joined.last_mut() {
                Some(before) if before.last.checked_add(1) == Some(run.first) => {
                    if let (Some(leaf), Some(prev)) = (before.last_leaf, run.first_prev)
                        && leaf != prev
                    {
                        broken.push(run.first);
                    }
                    before.last = run.last;
                    before.last_leaf = run.last_leaf;
                }
                _ => joined.push(run),
            }
        }
        (joined, broken)
    }
}

impl Verifier {
    /// Nothing seen yet.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            processes: BTreeMap::new(),
            sessions: HashMap::new(),
            declared: Vec::new(),
            previous: Vec::new(),
            begins: HashMap::new(),
            events: 0,
            groups: 0,
            unsigned: 0,
            unsigned_leaves: HashMap::new(),
            outcome_unknown: 0,
            recovered: 0,
            problems: Vec::new(),
            problem_count: 0,
            holes: Vec::new(),
            hole_count: 0,
            bindings: Vec::new(),
        }
    }

    /// The chain of that process may begin at that number: what is before it was delivered and let go.
    pub fn begin(&mut self, boot: BootId, seq: u64) {
        self.begins.insert(boot, seq);
    }

    /// The next group; `index` is the log index of its first event, where it is in a log. Gives the leaf hashes of its
    /// events, altered or not.
    pub fn group(&mut self, index: Option<u64>, group: &SignedGroup) -> Vec<Digest> {
        self.groups += 1;
        let header = &group.header;
        let leaves: Vec<Digest> = group.events.iter().map(|event| leaf_hash(event)).collect();
        let at = |place: usize| index.map(|index| index.saturating_add(place as u64));
        let mut altered = None;
        match group.verify() {
            Ok(_) => {}
            Err(problem @ (GroupProblem::BadKey | GroupProblem::BadSignature | GroupProblem::Malformed)) => {
                altered = Some(0..leaves.len());
                self.problem(
                    ProblemKind::BadSignature,
                    at(0),
                    format!(
                        "events {}..={} of {}: {problem}",
                        header.first_seq,
                        header.last_seq(),
                        header.boot
                    ),
                );
            }
            Err(GroupProblem::BadRoot) => {
                let place = altered_event(group, &leaves);
                altered = Some(place..place + 1);
                self.problem(
                    ProblemKind::Altered,
                    at(place),
                    format!(
                        "event {} of {} is not the one that was signed",
                        header.first_seq.saturating_add(place as u64),
                        header.boot
                    ),
                );
            }
        }
        for (place, (event, leaf)) in group.events.iter().zip(&leaves).enumerate() {
            self.events += 1;
            let seq = header.first_seq.saturating_add(place as u64);
            let trusted = !altered.as_ref().is_some_and(|range| range.contains(&place));
            self.event(at(place), event, *leaf, trusted, Some((header.boot, seq)));
        }
        leaves
    }

    /// An event that is written but not signed yet (the tail of a spool folder).
    pub fn unsigned(&mut self, event: &[u8]) {
        self.unsigned += 1;
        let leaf = leaf_hash(event);
        if let Ok(ReadEvent::Known(known)) = read_event(event) {
            self.unsigned_leaves
                .insert((known.proxy.boot, known.proxy.seq), leaf);
        }
        self.event(None, event, leaf, true, None);
    }

    /// Something that the caller found wrong (an unreadable record, a checkpoint).
    pub fn problem(&mut self, kind: ProblemKind, index: Option<u64>, message: String) {
        self.problem_count += 1;
        if self.problems.len() < FINDINGS_MAX {
            self.problems.push(Problem { kind, index, message });
        }
    }

    /// Something that the caller found missing.
    pub fn hole(&mut self, kind: HoleKind, message: String) {
        self.hole_count += 1;
        if self.holes.len() < FINDINGS_MAX {
            self.holes.push(Hole { kind, message });
        }
    }

    fn event(
        &mut self,
        at: Option<u64>,
        bytes: &[u8],
        leaf: Digest,
        trusted: bool,
        signed_as: Option<(BootId, u64)>,
    ) {
        let event = match read_event(bytes) {
            Ok(event) => event,
            Err(_) => {
                let (boot, seq) = signed_as.unwrap_or((BootId([0; 16]), 0));
                if trusted {
                    self.problem(
                        ProblemKind::Unreadable,
                        at,
                        format!("event {seq} of {boot} is not an event"),
                    );
                }
                if signed_as.is_some() {
                    // Its number counts as present: it is here, only not readable.
                    let _ = self.processes.entry(boot).or_default().chain.add(seq, None, None);
                }
                return;
            }
        };
        let header = match &event {
            ReadEvent::Known(event) => EventHeader {
                kind: event.body.kind().to_owned(),
                time_us: event.time_us,
                proxy: event.proxy,
                session: event.session,
                seen_head: event.seen_head,
            },
            ReadEvent::Unknown(header) => header.clone(),
        };
        if trusted
            && let Some((boot, seq)) = signed_as
            && (header.proxy.boot, header.proxy.seq) != (boot, seq)
        {
            self.problem(
                ProblemKind::Misplaced,
                at,
                format!(
                    "signed as event {seq} of {boot}, says {} of {}",
                    header.proxy.seq, header.proxy.boot
                ),
            );
        }
        let (boot, seq) = signed_as.unwrap_or((header.proxy.boot, header.proxy.seq));
        self.link(at, boot, seq, &header, leaf, trusted);
        // What an altered event says is not taken for anything.
        if trusted && let ReadEvent::Known(event) = event {
            if let Body::ChainBind(bind) = &event.body
                && self.bindings.len() < FINDINGS_MAX
            {
                self.bindings.push(Binding {
                    boot,
                    time_us: event.time_us,
                    bind: bind.clone(),
                });
            }
            self.body(at, boot, header.session.map(|link| link.id), event.body);
        }
    }

    fn link(
        &mut self,
        at: Option<u64>,
        boot: BootId,
        seq: u64,
        header: &EventHeader,
        leaf: Digest,
        trusted: bool,
    ) {
        let (prev, leaf) = if trusted {
            (Some(header.proxy.prev), Some(leaf))
        } else {
            (None, None)
        };
        let process = self.processes.entry(boot).or_default();
        match process.chain.add(seq, prev, leaf) {
            Linked::Fits => {}
            Linked::Broken => {
                self.problem(
                    ProblemKind::BrokenLink,
                    at,
                    format!("event {seq} of {boot} does not follow from the one before it"),
                );
            }
            Linked::Twice => {
                self.problem(
                    ProblemKind::Twice,
                    at,
                    format!("event {seq} of {boot} is here twice: a replay, or two histories"),
                );
                return;
            }
        }
        let Some(link) = header.session.filter(|_| trusted) else {
            return;
        };
        let session = self.sessions.entry(link.id).or_insert_with(|| Session {
            chain: Chain::default(),
            boot,
            closed: false,
            intents: HashSet::new(),
        });
        match session.chain.add(link.seq, Some(link.prev), leaf) {
            Linked::Fits => {}
            Linked::Broken => self.problem(
                ProblemKind::BrokenLink,
                at,
                format!(
                    "event {} of session {} does not follow from the one before it",
                    link.seq, link.id
                ),
            ),
            Linked::Twice => self.problem(
                ProblemKind::Twice,
                at,
                format!("event {} of session {} is here twice", link.seq, link.id),
            ),
        }
    }

    fn body(&mut self, at: Option<u64>, boot: BootId, session: Option<SessionId>, body: Body) {
        let session = session.and_then(|id| self.sessions.get_mut(&id));
        match body {
            Body::ChainOpen(open) => {
                if BootId::of_key(&open.key) != boot {
                    self.problem(
                        ProblemKind::Misplaced,
                        at,
                        format!("chain.open of {boot} names another key"),
                    );
                }
                for previous in open.previous {
                    self.processes.entry(previous.boot).or_default().superseded = true;
                    self.previous.push(previous);
                }
            }
            Body::ChainClose(_) => self.processes.entry(boot).or_default().closed = true,
            Body::SessionClose(_) => {
                if let Some(session) = session {
                    session.closed = true;
                }
            }
            Body::Intent(intent) => {
                if let Some(session) = session {
                    session.intents.insert(intent.start.statement);
                }
            }
            Body::Action(action) => {
                if let Some(session) = session {
                    session.intents.remove(&action.start.statement);
                }
            }
            Body::OutcomeUnknown(unknown) => {
                self.outcome_unknown += 1;
                if let Some(session) = self.sessions.get_mut(&unknown.of_session) {
                    session.intents.remove(&unknown.statement);
                }
            }
            Body::Gap(gap) => self.declared.push(gap),
            Body::Recovered(recovered) => {
                self.recovered += 1;
                let inner = recovered.event.as_bytes();
                let leaf = leaf_hash(inner);
                if self.unsigned_leaves.remove(&(recovered.boot, recovered.seq)) == Some(leaf) {
                    // The unsigned original still stands in the folder, byte for byte: one event, told again.
                    return;
                }
                // Recursion ends: each level is shorter than the one around it, and doubles its quoting.
                self.event(at, inner, leaf, true, Some((recovered.boot, recovered.seq)));
            }
            // An intent that could not be kept as asked for is followed by a refusal.
            Body::Deny(deny) => {
                if let Some(session) = session {
                    session.intents.remove(&deny.start.statement);
                }
            }
            Body::SessionOpen(_)
            | Body::AuthFail(_)
            | Body::PolicyChange(_)
            | Body::ChainPeer(_)
            | Body::ChainBind(_) => {}
        }
    }

    /// The verdicts.
    pub fn finish(mut self) -> Report {
        let (processes, sessions) = (
            std::mem::take(&mut self.processes),
            std::mem::take(&mut self.sessions),
        );
        let (process_count, session_count) = (processes.len() as u64, sessions.len() as u64);
        let declared = std::mem::take(&mut self.declared);
        let mut last_seen: HashMap<BootId, Option<u64>> = HashMap::new();
        let mut ended: HashMap<BootId, (bool, bool)> = HashMap::new();
        let mut running = 0;
        for (boot, process) in processes {
            running += u64::from(!process.closed && !process.superseded && !process.chain.runs.is_empty());
            ended.insert(boot, (process.closed, process.superseded));
            let (runs, broken) = process.chain.joined();
            for seq in broken {
                self.problem(
                    ProblemKind::BrokenLink,
                    None,
                    format!("event {seq} of {boot} does not follow from the one before it"),
                );
            }
            last_seen.insert(boot, runs.last().map(|run| run.last));
            let first = runs.first().map(|run| run.first);
            let mut expected = match (self.scope, self.begins.get(&boot)) {
                (Scope::Whole, None) => Some(0),
                (Scope::Whole, Some(begin)) => first.map(|first| first.min(*begin)),
                (Scope::Part, _) => first,
            };
            for run in &runs {
                if let Some(expected) = expected
                    && run.first > expected
                {
                    self.hole(
                        HoleKind::Missing,
                        format!("events {expected}..={} of {boot}", run.first - 1),
                    );
                }
                expected = run.last.checked_add(1);
            }
        }
        for previous in std::mem::take(&mut self.previous) {
            let seen = last_seen.get(&previous.boot).copied().flatten();
            let missing_from = match seen {
                Some(seen) if seen >= previous.seq => continue,
                Some(seen) => seen + 1,
                None if self.scope == Scope::Part => continue,
                None if self
                    .begins
                    .get(&previous.boot)
                    .is_some_and(|begin| *begin > previous.seq) =>
                {
                    continue;
                }
                None => 0,
            };
            self.hole(
                HoleKind::Missing,
                format!(
                    "events {missing_from}..={} of {}, which its successor names",
                    previous.seq, previous.boot
                ),
            );
        }
        for gap in declared {
            // A hole that was filled later shows as no missing numbers, so only what has no numbers is told again.
            if let (Some(from), Some(to)) = (gap.from, gap.to) {
                if last_seen
                    .get(&gap.boot)
                    .copied()
                    .flatten()
                    .is_some_and(|last| last >= to)
                {
                    continue;
                }
                self.hole(
                    HoleKind::Declared,
                    format!("events {from}..={to} of {}: {}", gap.boot, gap.reason),
                );
            } else {
                let count = gap.count.map_or_else(
                    || "an unknown number of events".to_owned(),
                    |count| format!("{count} events"),
                );
                self.hole(
                    HoleKind::Declared,
                    format!("{count} of {}: {}", gap.boot, gap.reason),
                );
            }
        }
        let mut in_flight = 0;
        for (id, session) in sessions {
            let (closed, superseded) = ended.get(&session.boot).copied().unwrap_or_default();
            let (runs, broken) = session.chain.joined();
            for seq in broken {
                self.problem(
                    ProblemKind::BrokenLink,
                    None,
                    format!("event {seq} of session {id} does not follow from the one before it"),
                );
            }
            let cut = self.begins.get(&session.boot).is_some_and(|begin| *begin > 0);
            let mut expected = match self.scope {
                Scope::Whole if !cut => Some(0),
                Scope::Whole | Scope::Part => runs.first().map(|run| run.first),
            };
            for run in &runs {
                if let Some(expected) = expected
                    && run.first > expected
                {
                    self.hole(
                        HoleKind::Missing,
                        format!("events {expected}..={} of session {id}", run.first - 1),
                    );
                }
                expected = run.last.checked_add(1);
            }
            if session.closed || closed || superseded {
                // A process that was killed could not end its sessions.
                if !session.closed && closed {
                    self.hole(
                        HoleKind::SessionWithoutEnd,
                        format!("session {id} of {}", session.boot),
                    );
                }
                let mut open: Vec<_> = session.intents.into_iter().collect();
                open.sort_unstable();
                for StatementLink(statement) in open {
                    self.hole(
                        HoleKind::IntentWithoutOutcome,
                        format!("statement {statement} of session {id}"),
                    );
                }
            } else {
                in_flight += session.intents.len() as u64;
            }
        }
        Report {
            integrity: if self.problem_count == 0 {
                Integrity::Ok
            } else {
                Integrity::Invalid
            },
            completeness: if self.hole_count == 0 {
                Completeness::Complete
            } else {
                Completeness::Incomplete
            },
            scope: self.scope,
            events: self.events,
            groups: self.groups,
            processes: process_count,
            running,
            sessions: session_count,
            unsigned: self.unsigned,
            in_flight,
            outcome_unknown: self.outcome_unknown,
            recovered: self.recovered,
            problems: self.problems,
            problem_count: self.problem_count,
            holes: self.holes,
            hole_count: self.hole_count,
            bindings: self.bindings,
        }
    }
}

/// Which event of a group with a wrong root was altered. Where a link does not fit, either the event before it was
/// altered or the link itself: if the linked hash instead of the event's leads to the signed root, it was the event.
/// The last event has no successor in the group that could link to it.
fn altered_event(group: &SignedGroup, leaves: &[Digest]) -> usize {
    for (place, (leaf, next)) in leaves.iter().zip(group.events.iter().skip(1)).enumerate() {
        let Ok(next) = serde_json::from_slice::<EventHeader>(next) else {
            return place + 1;
        };
        if next.proxy.prev != *leaf {
            let mut mended = leaves.to_vec();
            if let Some(leaf) = mended.get_mut(place) {
                *leaf = next.proxy.prev;
            }
            return if root_of(&mended) == group.header.root {
                place
            } else {
                place + 1
            };
        }
    }
    leaves.len().saturating_sub(1)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "index {index}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}
