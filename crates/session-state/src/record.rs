//! What the session tells the recorder. Plain data: the sidecar turns it into signed events.

use std::sync::Arc;

use access_policy::Refusal;

use crate::describe::Description;
use crate::judge::Judged;

/// One thing to record, in the order in which it happened.
#[derive(Debug, Clone)]
pub enum Record {
    /// A read was sent to the server: in the spool before its first row leaves.
    Open {
        /// Counts the session's statements from 1.
        sequence: u64,
        /// What was judged.
        statement: Arc<Judged>,
    },
    /// A write is about to be sent: durable (or acknowledged, as the policy says) before the bytes behind it go out.
    Intent {
        /// Counts the session's statements from 1.
        sequence: u64,
        /// What was judged.
        statement: Arc<Judged>,
        /// Whose relations and rows it is about: what EXECUTE and FETCH run; else the statement itself.
        rows_of: Arc<Judged>,
    },
    /// A statement that was sent has ended.
    Outcome {
        /// The same number as the `Open` or `Intent` before it.
        sequence: u64,
        /// What was judged.
        statement: Arc<Judged>,
        /// Whose relations and rows it is about: what EXECUTE and FETCH run; else the statement itself.
        rows_of: Arc<Judged>,
        /// How it ended.
        outcome: Outcome,
    },
    /// A statement was refused and never sent.
    Denied {
        /// Counts the session's statements from 1.
        sequence: u64,
        /// The text with its literals removed; empty where it could not be read.
        normalized: String,
        /// What it would have touched, where it can be read.
        description: Option<Box<Description>>,
        /// Why.
        refusal: Refusal,
    },
}

/// How a statement ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows that left towards the client.
    pub rows_returned: u64,
    /// Rows changed, as the command tag counts them.
    pub rows_affected: u64,
    /// Bytes of rows that left towards the client.
    pub bytes_returned: u64,
    /// Microseconds from sending to the last answer.
    pub duration_us: u64,
    /// SQLSTATE of the server's error, if it failed.
    pub sqlstate: Option<String>,
    /// Whether it happened is not known (connection lost).
    pub unknown: bool,
    /// Weir stopped it (limit, late wire check) for this reason.
    pub stopped: Option<Refusal>,
    /// Only a part of the rows was fetched so far (portal suspended) and no more were asked for.
    pub suspended: bool,
}
