//! The event schema `weir.event/v1`. Published as `docs/weir.event.v1.schema.json`, which a test writes from these types.
//!
//! No field holds an SQL literal, a parameter or a row value: texts are normalized before they get here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, Digest, PublicKey, SessionId};

/// Largest event in bytes: entry bundles of `tlog-tiles` carry the length in 16 bits.
pub const EVENT_BYTES_MAX: usize = 65_535;
/// Largest normalized text kept in an event; longer ones are cut and marked.
pub const TEXT_BYTES_MAX: usize = 8 * 1024;

/// The schema's name and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Version {
    /// The only one so far.
    #[default]
    #[serde(rename = "weir.event/v1")]
    V1,
}

/// One thing that happened, with its place in its chains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(title = "weir.event/v1"))]
pub struct Event {
    /// Schema version.
    pub v: Version,
    /// Microseconds since 1970-01-01 UTC, by the recording process' clock.
    pub time_us: i64,
    /// Microseconds since that process started, by a clock that never goes back.
    pub mono_us: u64,
    /// Place in the chain of the process.
    pub proxy: ProcessLink,
    /// Place in the chain of the client session, for events of one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<SessionLink>,
    /// The last head of the collector's log that this process verified.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seen_head: Option<LogHead>,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// The fields of an event that its chains rest on; reads every later version that keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EventHeader {
    /// Kind, such as `db.action`.
    pub kind: String,
    /// Time.
    pub time_us: i64,
    /// Place in the chain of the process.
    pub proxy: ProcessLink,
    /// Place in the chain of the session.
    #[serde(default)]
    pub session: Option<SessionLink>,
    /// Head seen.
    #[serde(default)]
    pub seen_head: Option<LogHead>,
}

/// Place of an event among all events of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessLink {
    /// The process.
    pub boot: BootId,
    /// Counts from 0 without a hole.
    pub seq: u64,
    /// Leaf hash of the event before; zeros for the first.
    pub prev: Digest,
}

/// Place of an event among all events of one client session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionLink {
    /// The session.
    pub id: SessionId,
    /// Counts from 0 without a hole.
    pub seq: u64,
    /// Leaf hash of the session's event before; zeros for the first.
    pub prev: Digest,
}

/// Size and root of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogHead {
    /// Number of entries.
    pub size: u64,
    /// Root of the tree.
    pub root: Digest,
}

/// What happened, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind")]
pub enum Body {
    /// A process starts to record.
    #[serde(rename = "chain.open")]
    ChainOpen(ChainOpen),
    /// A process stops recording, in order.
    #[serde(rename = "chain.close")]
    ChainClose(ChainClose),
    /// A client logged in.
    #[serde(rename = "session.open")]
    SessionOpen(SessionOpen),
    /// A client's connection ended.
    #[serde(rename = "session.close")]
    SessionClose(SessionClose),
    /// A login failed.
    #[serde(rename = "auth.fail")]
    AuthFail(AuthFail),
    /// A write is about to be sent to the database.
    #[serde(rename = "db.intent")]
    Intent(Intent),
    /// A statement ran: what it was and what came of it.
    #[serde(rename = "db.action")]
    Action(Action),
    /// A statement was refused and did not run.
    #[serde(rename = "db.deny")]
    Deny(Deny),
    /// A statement was begun and nobody knows what came of it, because the recording process ended.
    #[serde(rename = "db.outcome_unknown")]
    OutcomeUnknown(OutcomeUnknown),
    /// Events are missing.
    #[serde(rename = "gap")]
    Gap(Gap),
    /// An event that an ended process wrote and could not sign any more.
    #[serde(rename = "recovered")]
    Recovered(Recovered),
    /// Other policies are in force.
    #[serde(rename = "policy.change")]
    PolicyChange(PolicyChange),
    /// The collector's word for which pod delivers a chain.
    #[serde(rename = "chain.peer")]
    ChainPeer(ChainPeer),
    /// The pod's own word, signed with its certificate's key, that a chain is its.
    #[serde(rename = "chain.bind")]
    ChainBind(ChainBind),
}

impl Body {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ChainOpen(_) => "chain.open",
            Self::ChainClose(_) => "chain.close",
            Self::SessionOpen(_) => "session.open",
            Self::SessionClose(_) => "session.close",
            Self::AuthFail(_) => "auth.fail",
            Self::Intent(_) => "db.intent",
            Self::Action(_) => "db.action",
            Self::Deny(_) => "db.deny",
            Self::OutcomeUnknown(_) => "db.outcome_unknown",
            Self::Gap(_) => "gap",
            Self::Recovered(_) => "recovered",
            Self::PolicyChange(_) => "policy.change",
            Self::ChainPeer(_) => "chain.peer",
            Self::ChainBind(_) => "chain.bind",
        }
    }
}

/// How sure a statement about identity is, surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// A signature was checked.
    Verified,
    /// Said by whoever set this process up.
    Asserted,
    /// Said by the client.
    Claimed,
    /// Not known.
    Absent,
}

/// A value about somebody, and how sure it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Claim {
    /// Left out when absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// How sure.
    pub assurance: Assurance,
}

impl Claim {
    /// Proved by a signature.
    pub fn verified(value: impl Into<String>) -> Self {
        Self {
            value: Some(value.into()),
            assurance: Assurance::Verified,
        }
    }
    /// Said by whoever set the process up.
    pub fn asserted(value: impl Into<String>) -> Self {
        Self {
            value: Some(value.into()),
            assurance: Assurance::Asserted,
        }
    }
    /// Said by the client.
    pub fn claimed(value: impl Into<String>) -> Self {
        Self {
            value: Some(value.into()),
            assurance: Assurance::Claimed,
        }
    }
    /// Not known.
    pub fn absent() -> Self {
        Self {
            value: None,
            assurance: Assurance::Absent,
        }
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::absent()
    }
}

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Who {
    /// Pod or service account.
    pub workload: Claim,
    /// Person.
    pub user: Claim,
    /// AI agent.
    pub agent: Claim,
    /// Run of that agent or job.
    pub run: Claim,
    /// Task within the run.
    #[serde(default)]
    pub task: Claim,
    /// `application_name` and its like.
    #[serde(default)]
    pub application: Claim,
    /// The role the database sees.
    pub database_user: Claim,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub client_address: Option<String>,
}

/// Where it happens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Place {
    /// `postgresql` or `mysql`.
    pub engine: String,
    /// `host:port` of the database, in canonical form.
    pub endpoint: String,
    /// Database name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<String>,
}

/// A place among the statements of a session: pairs an intent or an open mark with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct StatementLink(pub u64);

/// What a statement is and touches. The same for every execution of the same text under the same decision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct What {
    /// Command: `SELECT`, `INSERT`, `CREATE TABLE`, `COPY TO` …
    pub command: String,
    /// The text with its literals removed; empty where it could not be read.
    pub text: String,
    /// `text` was cut.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub text_cut: bool,
    /// Salted digest of the text as the client sent it.
    pub key: Option<Digest>,
    /// Relations read and written.
    pub relations: Vec<RelationUse>,
    /// Columns that decide which rows come out, without being in them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub filters: Vec<Source>,
    /// Row filters of the policies that were applied, by rule name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub row_filters: Vec<String>,
    /// Functions called, by name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub functions: Vec<String>,
    /// Result columns, and assigned columns of a write.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub output: Vec<OutputColumn>,
    /// The text could not be read (an Audit policy, or a database without protection, let it pass).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub unreadable: bool,
    /// Lists that were left out because the event would have been too large.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub left_out: Vec<String>,
}

/// What is done to a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RelationAction {
    /// Rows are read.
    Select,
    /// Rows are added.
    Insert,
    /// Rows are changed.
    Update,
    /// Rows are removed.
    Delete,
    /// All rows are removed.
    Truncate,
    /// Its definition is changed.
    Ddl,
    /// A procedure is called.
    Call,
    /// It is administered.
    Admin,
}

/// One relation and what is done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RelationUse {
    /// `schema.relation`; `pg_temp.relation` for the session's own temporary ones.
    pub name: String,
    /// What is done.
    pub action: RelationAction,
    /// Columns read, set or named; `*` for the whole row.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub columns: Vec<String>,
}

/// How a column derives from another (OpenLineage, ColumnLineageDatasetFacet 1-2-0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Transformation {
    /// Direct: as it is.
    Identity,
    /// Direct: computed from it.
    Transformation,
    /// Direct: aggregated.
    Aggregation,
    /// Indirect: join condition.
    Join,
    /// Indirect: grouping.
    GroupBy,
    /// Indirect: WHERE, HAVING, FILTER.
    Filter,
    /// Indirect: ORDER BY.
    Sort,
    /// Indirect: window definition.
    Window,
    /// Indirect: decides between values.
    Conditional,
}

impl Transformation {
    /// The name as in the JSON form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "IDENTITY",
            Self::Transformation => "TRANSFORMATION",
            Self::Aggregation => "AGGREGATION",
            Self::Join => "JOIN",
            Self::GroupBy => "GROUP_BY",
            Self::Filter => "FILTER",
            Self::Sort => "SORT",
            Self::Window => "WINDOW",
            Self::Conditional => "CONDITIONAL",
        }
    }
    /// The value itself reaches the result.
    pub fn is_direct(self) -> bool {
        match self {
            Self::Identity | Self::Transformation | Self::Aggregation => true,
            Self::Join | Self::GroupBy | Self::Filter | Self::Sort | Self::Window | Self::Conditional => {
                false
            }
        }
    }
}

/// A column that something comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Source {
    /// `schema.relation.column`.
    pub column: String,
    /// How.
    pub transformation: Transformation,
}

/// One column of the result, or one assigned column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputColumn {
    /// Its name.
    pub name: String,
    /// For a write: `schema.relation.column` that is assigned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// Where it comes from.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sources: Vec<Source>,
    /// The mask that was applied, by type (`Partial`, `Null` …).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mask: Option<String>,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Runs.
    Permit,
    /// Does not run.
    Refuse,
    /// Waits for an approval.
    Hold,
    /// Runs, and would have been refused.
    Audit,
}

impl Verdict {
    /// The name as in the JSON form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Refuse => "refuse",
            Self::Hold => "hold",
            Self::Audit => "audit",
        }
    }
}

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rule {
    /// Policy, `namespace/name` or `name`.
    pub policy: String,
    /// Rule within it.
    pub rule: String,
    /// Code of the refusal, `WEIR-nnn`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<String>,
    /// What was decided.
    pub verdict: Verdict,
    /// The reason in words, for refusals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// How a statement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OutcomeStatus {
    /// The server completed it.
    Ok,
    /// The server answered with an error.
    Error,
    /// Weir stopped it (a limit, a timeout).
    Stopped,
    /// The client closed a portal or cursor before its end, or went away.
    Partial,
    /// The connection to the server broke.
    Lost,
}

/// State of a transaction after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TransactionState {
    /// Still open: a later event of the session with the same number tells.
    Open,
    /// Failed, waiting for ROLLBACK.
    Failed,
    /// Committed.
    Committed,
    /// Rolled back.
    RolledBack,
    /// Not known.
    Unknown,
}

/// The transaction a statement ran in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Transaction {
    /// Counts within the session.
    pub number: u64,
    /// Its state after the statement.
    pub state: TransactionState,
}

/// What came of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Outcome {
    /// How it ended.
    pub status: OutcomeStatus,
    /// Rows delivered to the client.
    pub rows_returned: u64,
    /// Rows changed, where the server says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rows_affected: Option<u64>,
    /// Bytes of rows delivered to the client.
    pub bytes: u64,
    /// SQLSTATE of an error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sqlstate: Option<String>,
    /// Microseconds from the message to its last answer.
    pub duration_us: u64,
    /// Microseconds from the message to its first row.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_row_us: Option<u64>,
    /// The transaction, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transaction: Option<Transaction>,
}

/// `chain.open`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChainOpen {
    /// `weir-sidecar` or `weir-collector`, with its version.
    pub program: String,
    /// Public key that signs this chain.
    pub key: PublicKey,
    /// Workload the process serves.
    #[serde(default)]
    pub workload: Claim,
    /// `host:port` it listens on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub listen: Option<String>,
    /// `BestEffort`, `Durable` or `Strict`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub receipt_mode: Option<String>,
    /// The processes before it whose events were in its folder, the latest last.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub previous: Vec<PreviousBoot>,
}

/// The head of an earlier process' chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PreviousBoot {
    /// That process.
    pub boot: BootId,
    /// Its last signed event.
    pub seq: u64,
    /// Leaf hash of that event.
    pub head: Digest,
}

/// `chain.close`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChainClose {
    /// Why.
    pub reason: String,
}

/// `session.open`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionOpen {
    /// Who.
    pub who: Arc<Who>,
    /// Where.
    pub place: Arc<Place>,
}

/// `session.close`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionClose {
    /// Why: `client`, `server`, `drain`, `refused`, `error`.
    pub reason: String,
    /// Statements judged in it.
    pub statements: u64,
}

/// `auth.fail`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuthFail {
    /// Who tried.
    pub who: Arc<Who>,
    /// Where.
    pub place: Arc<Place>,
    /// SQLSTATE that the client got.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sqlstate: Option<String>,
    /// Why.
    pub reason: String,
}

/// What a statement is, before it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActionStart {
    /// Number of the statement within the session.
    pub statement: StatementLink,
    /// Who.
    pub who: Arc<Who>,
    /// Where.
    pub place: Arc<Place>,
    /// What.
    pub what: Arc<What>,
    /// Why it may, or may not.
    pub rule: Arc<Rule>,
}

/// `db.intent`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Intent {
    /// The statement.
    #[serde(flatten)]
    pub start: ActionStart,
}

/// `db.action`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Action {
    /// The statement.
    #[serde(flatten)]
    pub start: ActionStart,
    /// What came of it.
    pub outcome: Outcome,
}

/// `db.deny`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Deny {
    /// The statement.
    #[serde(flatten)]
    pub start: ActionStart,
    /// SQLSTATE that the client got.
    pub sqlstate: String,
}

/// `db.outcome_unknown`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutcomeUnknown {
    /// The process that began it.
    pub boot: BootId,
    /// The session it ran in.
    pub of_session: SessionId,
    /// Number of the statement within that session.
    pub statement: StatementLink,
    /// Salted digest of the text.
    pub key: Option<Digest>,
    /// When it began.
    pub begun_us: i64,
    /// Who, where that process' records still tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub who: Option<Arc<Who>>,
    /// Where, likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub place: Option<Arc<Place>>,
}

/// Which chain has a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum GapChain {
    /// Chain of a process.
    Process,
    /// Events that never got a place in a chain (dropped under pressure, or torn).
    Unchained,
}

/// `gap`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gap {
    /// Which chain.
    pub chain: GapChain,
    /// The process whose events are missing.
    pub boot: BootId,
    /// First missing number, where there are numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<u64>,
    /// Last missing number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<u64>,
    /// How many events are missing, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
    /// Earliest time of what is missing, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_us: Option<i64>,
    /// Latest time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_us: Option<i64>,
    /// Why: `dropped: spool full`, `torn record`, `never arrived` …
    pub reason: String,
}

/// `recovered`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Recovered {
    /// The process that wrote it.
    pub boot: BootId,
    /// Its number in that process' chain.
    pub seq: u64,
    /// The event's exact bytes.
    pub event: String,
}

/// `policy.change`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyChange {
    /// Counts up with each change.
    pub generation: u64,
    /// The policies now in force.
    pub policies: Vec<PolicyState>,
    /// Where they come from.
    pub origin: String,
}

/// `chain.peer`: in the collector's own chain, before the first group that the pod delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChainPeer {
    /// The process.
    pub boot: BootId,
    /// SPIFFE ID of the pod, from its verified certificate: `spiffe://TD/ns/NS/sa/SA/pod/UID`.
    pub peer: String,
}

/// `chain.bind`: in the chain itself, once for each certificate that the pod holds while it records. Whoever trusts the root
/// above the certificates need not trust the collector to know whose the chain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChainBind {
    /// SPIFFE ID of the pod, as the first certificate says it.
    pub peer: String,
    /// Leaf first, then its issuers; DER in lower-case hex.
    pub certificates: Vec<String>,
    /// By the leaf's key over `weir.chain.bind.v1`, a zero byte and the 16 bytes of the boot id: ECDSA P-256 with SHA-256,
    /// ASN.1, in lower-case hex.
    pub signature: String,
}

impl ChainBind {
    /// From bytes.
    pub fn new(peer: String, certificates: &[impl AsRef<[u8]>], signature: &[u8]) -> Self {
        Self {
            peer,
            certificates: certificates.iter().map(hex::encode).collect(),
            signature: hex::encode(signature),
        }
    }

    /// Certificates and signature; `None` where they are no bytes.
    pub fn decode(&self) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
        let certificates = self.certificates.iter().map(hex::decode);
        let certificates = certificates.collect::<Result<_, _>>().ok()?;
        Some((certificates, hex::decode(&self.signature).ok()?))
    }
}

/// One policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyState {
    /// Name.
    pub name: String,
    /// SHA-256 of its text.
    pub digest: Digest,
}

/// An event read back from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadEvent {
    /// Of this schema.
    Known(Box<Event>),
    /// Of a kind or version that is not known here; its chains can be checked all the same.
    Unknown(EventHeader),
}

/// Reads an event's bytes.
///
/// # Errors
/// Where not even the chain fields can be read.
pub fn read_event(bytes: &[u8]) -> Result<ReadEvent, serde_json::Error> {
    match serde_json::from_slice::<Event>(bytes) {
        Ok(event) => Ok(ReadEvent::Known(Box::new(event))),
        Err(_) => serde_json::from_slice::<EventHeader>(bytes).map(ReadEvent::Unknown),
    }
}

impl What {
    /// Cuts `text` to [`TEXT_BYTES_MAX`] at a character's border.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Self {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.text_cut = end < text.len();
        self.text = text.get(..end).unwrap_or_default().to_owned();
        self
    }
}

impl Event {
    /// The bytes that are kept and signed: at most [`EVENT_BYTES_MAX`]. Where a statement touches so much that they
    /// would be more, its longest lists are left out and named in `left_out`.
    pub fn encode(&mut self) -> Vec<u8> {
        let mut bytes = self.to_bytes();
        let mut step = 0;
        while bytes.len() > EVENT_BYTES_MAX && self.body.leave_out(step) {
            step += 1;
            bytes = self.to_bytes();
        }
        bytes
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1024);
        serde_json::to_writer(&mut bytes, self)
            .expect("strings, numbers and lists always serialize to memory");
        bytes
    }
}

impl Body {
    /// Leaves the next longest part out; `false` when there is nothing left to leave out.
    fn leave_out(&mut self, step: u32) -> bool {
        match self {
            Self::Intent(Intent { start })
            | Self::Action(Action { start, .. })
            | Self::Deny(Deny { start, .. }) => {
                let what = Arc::make_mut(&mut start.what);
                let name = match step {
                    0 => {
                        what.output
                            .iter_mut()
                            .for_each(|column| column.sources.truncate(8));
                        "sources beyond 8 of each output column"
                    }
                    1 => {
                        what.filters.truncate(64);
                        what.output.truncate(200);
                        "output columns beyond 200, filters beyond 64"
                    }
                    2 => {
                        what.output.clear();
                        what.filters.clear();
                        "output, filters"
                    }
                    3 => {
                        what.relations
                            .iter_mut()
                            .for_each(|relation| relation.columns.clear());
                        what.functions.clear();
                        "columns of relations, functions"
                    }
                    4 => {
                        what.relations.truncate(100);
                        what.relations
                            .iter_mut()
                            .for_each(|relation| cut(&mut relation.name, 200));
                        what.row_filters.clear();
                        "relations beyond 100, row filters"
                    }
                    5 => {
                        let who = Arc::make_mut(&mut start.who);
                        let place = Arc::make_mut(&mut start.place);
                        for claim in [
                            &mut who.workload,
                            &mut who.user,
                            &mut who.agent,
                            &mut who.run,
                            &mut who.task,
                            &mut who.application,
                            &mut who.database_user,
                        ] {
                            claim.value.iter_mut().for_each(|value| cut(value, 256));
                        }
                        place.database.iter_mut().for_each(|value| cut(value, 256));
                        if let Some(reason) = &mut Arc::make_mut(&mut start.rule).reason {
                            cut(reason, 256);
                        }
                        "long names"
                    }
                    _ => return false,
                };
                what.left_out.push(name.to_owned());
                true
            }
            Self::Recovered(recovered) => {
                // Longer than the limit only by its envelope: its digest still ties it to what is in the file.
                if step > 0 {
                    return false;
                }
                let digest = crate::merkle::leaf_hash(recovered.event.as_bytes());
                recovered.event = format!("too large to repeat; leaf hash {digest}");
                true
            }
            Self::ChainOpen(open) => {
                if step > 0 {
                    return false;
                }
                let surplus = open.previous.len().saturating_sub(200);
                open.previous.drain(..surplus);
                true
            }
            Self::PolicyChange(change) => {
                change.policies.truncate(200);
                step == 0
            }
            Self::SessionOpen(SessionOpen { who, .. }) | Self::AuthFail(AuthFail { who, .. }) => {
                if step > 0 {
                    return false;
                }
                let who = Arc::make_mut(who);
                for claim in [
                    &mut who.user,
                    &mut who.agent,
                    &mut who.run,
                    &mut who.task,
                    &mut who.application,
                    &mut who.database_user,
                ] {
                    claim.value.iter_mut().for_each(|value| cut(value, 256));
                }
                true
            }
            Self::ChainClose(_)
            | Self::SessionClose(_)
            | Self::OutcomeUnknown(_)
            | Self::Gap(_)
            | Self::ChainPeer(_)
            | Self::ChainBind(_) => false,
        }
    }
}

fn cut(text: &mut String, bytes_max: usize) {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
