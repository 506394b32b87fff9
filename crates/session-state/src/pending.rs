//! The queue of replies that the server owes, in the order of the messages it got. One entry for each message of
//! the client or of our own that is answered by something.

use std::sync::Arc;

use access_policy::Refusal;
use bytes::Bytes;

use crate::judge::Judged;
use crate::objects::{Prepared, Undo};
use crate::record::Outcome;
use crate::result::ResultPlan;

/// A statement that was sent and has not ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// Number in the session.
    pub sequence: u64,
    /// What is recorded.
    pub judged: Arc<Judged>,
    /// Whose result plan counts: for EXECUTE and FETCH that of the prepared statement or cursor.
    pub result: Arc<Judged>,
    /// Formats of the result columns: none = all text, one for all, or one each.
    pub formats: Arc<[i16]>,
    /// So far.
    pub outcome: Outcome,
    /// Microseconds on the session's clock when it was sent.
    pub sent_us: u64,
    /// Rows counted against `maxReturnedRows` before it (earlier FETCHes of its cursor).
    pub rows_before: u64,
    /// It is being stopped for this reason; its rows are dropped.
    pub stopping: Option<Refusal>,
    /// The count that a wrapped write returned.
    pub wrapped_count: Option<u64>,
}

impl Run {
    /// How its rows are treated.
    pub(crate) fn plan(&self) -> &ResultPlan {
        &self.result.result
    }
}

/// One statement of a simple Query.
#[derive(Debug)]
pub(crate) struct Part {
    /// The run; taken out when it has ended.
    pub run: Option<Run>,
    /// What to take back if it does not happen.
    pub undo: Undo,
    /// Text to send, when sent one by one.
    pub text: Arc<str>,
    /// It would commit.
    pub commits: bool,
}

/// A place in the sent text and the place in the client's text that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Byte offset in the sent text.
    pub sent: usize,
    /// Byte offset in the client's text.
    pub client: usize,
    /// What follows was copied byte by byte.
    pub linear: bool,
}

/// Both texts, for mapping an error's position. `segments` empty: sent as written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    /// What was sent.
    pub sent: Arc<str>,
    /// What the client wrote.
    pub client: Arc<str>,
    /// Ascending in `sent`.
    pub segments: Arc<[Segment]>,
}

impl Texts {
    /// The character position (from 1) in the client's text for one in the sent text.
    pub(crate) fn map_position(&self, position: usize) -> usize {
        if self.segments.is_empty() {
            return position;
        }
        let Some(byte) = self
            .sent
            .char_indices()
            .nth(position.saturating_sub(1))
            .map(|(byte, _)| byte)
        else {
            return 1;
        };
        let before = self.segments.partition_point(|segment| segment.sent <= byte);
        let Some(segment) = before.checked_sub(1).and_then(|index| self.segments.get(index)) else {
            return 1;
        };
        let client = if segment.linear {
            segment.client + (byte - segment.sent)
        } else {
            segment.client
        };
        self.client
            .char_indices()
            .take_while(|(byte, _)| *byte < client)
            .count()
            + 1
    }
}

/// A simple Query.
#[derive(Debug)]
pub(crate) struct QueryRun {
    /// Its statements.
    pub parts: Vec<Part>,
    /// The one that answers now.
    pub current: usize,
    /// For positions of errors.
    pub texts: Texts,
    /// Sent as Parse, Bind, Describe, Execute for one statement after the other, so that what it changes can be
    /// counted before it commits.
    pub one_by_one: bool,
    /// One by one: the current part changes rows that its tag does not count.
    pub(crate) counts_beside_tag: bool,
    /// One by one: what of the current part is answered now.
    pub(crate) step: Step,
    /// One by one: rows changed in the transaction before the current part, by the server's statistics.
    pub(crate) changed_before: u64,
    /// One by one: the Sync has gone.
    pub synced: bool,
    /// The refusal behind a poisoned message: the next syntax error is it.
    pub poison: Option<Refusal>,
}

impl QueryRun {
    /// The statistics are being asked.
    pub(crate) fn counting(&self) -> bool {
        self.one_by_one && !self.synced && matches!(self.step, Step::CountBefore | Step::CountAfter)
    }
}

/// What of a part is answered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The statistics before it.
    CountBefore,
    /// The statement.
    Statement,
    /// The statistics after it.
    CountAfter,
}

/// Who reads the answers of a message of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnPurpose {
    /// The session's state.
    State,
    /// The shared catalog, where the sidecar has no login of its own.
    Catalog,
    /// A statement of SQL PREPARE is prepared again.
    Prepare,
    /// Rows changed in the transaction so far, before the statement behind it.
    CountBefore,
    /// Rows changed in the transaction so far, after the statement in front of it.
    CountAfter,
}

/// One message that will be answered.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Query, until ReadyForQuery.
    Query(QueryRun),
    /// Parse.
    Parse {
        /// What to take back if it fails.
        undo: Undo,
        /// For positions.
        texts: Texts,
    },
    /// Bind.
    Bind {
        /// What to take back if it fails.
        undo: Undo,
        /// For positions.
        texts: Texts,
    },
    /// Describe of a statement or portal, until RowDescription or NoData.
    Describe {
        /// Whose plan counts.
        plan: Option<Arc<Judged>>,
        /// The statement, where one is described.
        prepared: Option<Arc<Prepared>>,
    },
    /// Execute: the run with that number.
    Execute {
        /// Run.
        sequence: u64,
        /// What to take back if it fails.
        undo: Undo,
        /// For positions.
        texts: Texts,
    },
    /// Execute of an empty text.
    ExecuteEmpty,
    /// Close.
    Close {
        /// What to take back if it fails.
        undo: Undo,
    },
    /// Sync, until ReadyForQuery.
    Sync,
    /// FunctionCall, until ReadyForQuery.
    FunctionCall {
        /// Run.
        sequence: u64,
    },
    /// A message that is no SQL, in place of one that is refused: its syntax error is replaced by the refusal.
    Poison {
        /// Why.
        refusal: Refusal,
        /// Sent as Query (until ReadyForQuery), else as Parse.
        as_query: bool,
    },
    /// Our own Parse.
    OwnParse {
        /// For positions.
        texts: Texts,
    },
    /// Our own Bind.
    OwnBind,
    /// Our own Describe: the wire check of a statement before it runs.
    OwnDescribe {
        /// It is being replaced: only its signature is wanted, which may show what the new decision masks. Nothing of
        /// it is run or delivered.
        replaced: bool,
        /// The statement.
        prepared: Arc<Prepared>,
    },
    /// Our own Execute.
    OwnExecute {
        /// Who reads the rows.
        purpose: OwnPurpose,
    },
    /// Our own Close.
    OwnClose,
    /// Our own Sync, until ReadyForQuery.
    OwnSync,
    /// A message of ours that is no SQL, so that an open transaction fails: the client has its error already.
    OwnFailure {
        /// Sent as Query: its ReadyForQuery is the client's.
        as_query: bool,
    },
    /// Our own simple Query, until ReadyForQuery.
    OwnQuery {
        /// Who reads the rows.
        purpose: OwnPurpose,
        /// It failed with this.
        failed: Option<String>,
    },
}

/// A message of the client that waits until something is known.
#[derive(Debug)]
pub(crate) struct Blocked {
    /// The message.
    pub message: ClientMessage,
    /// For what it waits.
    pub stage: Stage,
}

/// For what a message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// All answers owed, then the state is read back.
    RepliesThenState,
    /// The answer to our own question.
    State,
    /// All answers owed: then rows changed are known.
    Replies,
}

/// A message of the client, small enough to be held.
#[derive(Debug, Clone)]
pub struct ClientMessage {
    /// Type byte.
    pub tag: u8,
    /// Body.
    pub body: Bytes,
    /// Header and body.
    pub raw: Bytes,
    /// The body is only the beginning: the rest is streamed behind it.
    pub streamed: bool,
}
