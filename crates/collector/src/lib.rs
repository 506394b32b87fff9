//! `collector`: keeps receipts in a tamper-evident log and answers questions about them.
//!
//! ```text
//!  sidecars ──POST groups──► ingest ──► log: tail file, then segments of zstd frames   (the evidence)
//!                              │          └► RFC 6962 tree in tiles, signed checkpoints
//!                              └────────► index: SQLite, can be made anew from the log (trusted by nobody)
//!  weir audit, lineage, verify, status ◄── questions
//! ```
//!
//! Library and binary: `weir` opens the same log and index without a server. It knows receipts; it does not know
//! policies, SQL or sessions' wire.

mod http;
mod index;
mod ingest;
mod lineage;
mod log;
mod metrics;
mod operator;
mod peers;
mod serve;
mod sinks;
mod tree;

pub use http::{GroupsPage, Status, export_range, status_of};
pub use index::{AuditFilter, AuditRow, ChainPod, Index, IndexError};
pub use ingest::{Ingest, IngestAnswer, IngestError, Placed, Request};
pub use lineage::{Direction, Edge, Lineage};
pub use log::{Log, LogError, LogVerifier, PlacedGroup, is_live, verify_log};
pub use operator::OperatorConfig;
pub use serve::{Config, serve};
pub use sinks::{LoopbackSinks, SinkOrder, read_sinks_file};
