//! An exported range of a log: JSON lines that are verified offline. The first line is a [`RangeHeader`], then one line
//! for each signed group, in log order.

use serde::{Deserialize, Serialize};

use crate::group::{GroupHeader, SignedGroup};
use crate::ids::Digest;
use crate::merkle::root_of_range;
use crate::note::{Checkpoint, LogKey};
use crate::verify::{HoleKind, ProblemKind, Report, Scope, Verifier};

/// Version of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeVersion {
    /// The only one so far.
    #[serde(rename = "weir.range/v1")]
    V1,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeHeader {
    /// Version.
    pub v: RangeVersion,
    /// Key of the log, `name+hash+base64`.
    pub log_key: String,
    /// Checkpoint of the log, signed.
    pub checkpoint: String,
    /// Log index of the first event.
    pub from: u64,
    /// Log index after the last event.
    pub to: u64,
    /// The hashes that lead from the events to the checkpoint's root.
    pub proof: Vec<Digest>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupLine {
    group: GroupHeader,
    events: Vec<String>,
}

/// Why a file cannot be read as a range at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeProblem {
    /// The first line is not a header.
    #[error("not an exported range: the first line is no header ({0})")]
    NoHeader(String),
}

/// One group as a line, without the newline. `None` where an event is not UTF-8, which none of ours is.
pub fn group_line(group: &SignedGroup) -> Option<String> {
    let events: Option<Vec<String>> = group
        .events
        .iter()
        .map(|event| String::from_utf8(event.clone()).ok())
        .collect();
    serde_json::to_string(&GroupLine {
        group: group.header,
        events: events?,
    })
    .ok()
}

/// Reads [`group_line`]. Nothing is checked but the form.
///
/// # Errors
/// Where the line is not a group.
pub fn read_group_line(line: &str) -> Result<SignedGroup, serde_json::Error> {
    let line: GroupLine = serde_json::from_str(line)?;
    Ok(SignedGroup {
        header: line.group,
        events: line.events.into_iter().map(String::into_bytes).collect(),
    })
}

/// Verifies a range. `trusted` is the log's key as the verifier got it from elsewhere; without it the key in the file is
/// taken, which proves that the file is in itself whole but not whose log it is.
///
/// # Errors
/// [`RangeProblem`] where it is not a range at all.
pub fn verify_range(text: &[u8], trusted: Option<&LogKey>) -> Result<(RangeHeader, Report), RangeProblem> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let header: RangeHeader =
        serde_json::from_slice(first).map_err(|error| RangeProblem::NoHeader(error.to_string()))?;
    let mut verifier = Verifier::new(Scope::Part);
    let mut leaves = Vec::new();
    let (mut line_number, mut ended) = (1, false);
    for line in lines {
        line_number += 1;
        if line.is_empty() {
            ended = true;
            continue;
        }
        let index = header.from.saturating_add(leaves.len() as u64);
        match serde_json::from_slice::<GroupLine>(line) {
            Ok(group) if !ended => {
                let group = SignedGroup {
                    header: group.group,
                    events: group.events.into_iter().map(String::into_bytes).collect(),
                };
                leaves.extend(verifier.group(Some(index), &group));
            }
            Ok(_) => verifier.problem(
                ProblemKind::Unreadable,
                Some(index),
                format!("line {line_number}: after the end"),
            ),
            Err(error) => {
                verifier.problem(
                    ProblemKind::Unreadable,
                    Some(index),
                    format!("line {line_number} is not a group: {error}"),
                );
            }
        }
    }
    let found = header.from.saturating_add(leaves.len() as u64);
    if found < header.to {
        verifier.hole(
            HoleKind::Shorter,
            format!("the range ends at {found}, its header says {}", header.to),
        );
    }
    check_tree(&mut verifier, &header, &leaves, trusted);
    Ok((header, verifier.finish()))
}

fn check_tree(verifier: &mut Verifier, header: &RangeHeader, leaves: &[Digest], trusted: Option<&LogKey>) {
    let key = match (trusted, LogKey::from_vkey(&header.log_key)) {
        (Some(trusted), Some(key)) if *trusted != key => {
            return verifier.problem(
                ProblemKind::Tree,
                None,
                format!("the range is of the log {}, not of the trusted one", key.name),
            );
        }
        (_, Some(key)) => key,
        (_, None) => {
            return verifier.problem(ProblemKind::Tree, None, "the log's key is not a key".to_owned());
        }
    };
    let checkpoint = match Checkpoint::verify(&header.checkpoint, &key) {
        Ok(checkpoint) => checkpoint,
        Err(problem) => return verifier.problem(ProblemKind::Tree, None, problem.to_string()),
    };
    let whole = header.from.checked_add(leaves.len() as u64) == Some(header.to);
    let empty = header.from == header.to
        && leaves.is_empty()
        && header.to <= checkpoint.size
        && header.proof.is_empty();
    if !whole
        || (!empty
            && root_of_range(leaves, header.from, checkpoint.size, &header.proof) != Some(checkpoint.root))
    {
        verifier.problem(
            ProblemKind::Tree,
            Some(header.from),
            format!(
                "the events {}..{} are not those of the signed log",
                header.from, header.to
            ),
        );
    }
}
