//! The `weir` command.
//!
//! ```text
//!  audit, lineage, verify, export, index, status ──► Source: a collector, its folder, or a spool folder
//!  explain, facts ──► access-policy, sql-facts (no database, no server)
//!  status, check ──► the API server, as kubectl finds it; through it, the operators' own page
//!  demo ──► starts the other programs
//! ```
//!
//! Exit codes: 0 as asked for, 1 invalid or refused, 2 incomplete or wrong use, 3 cannot read.

pub mod audit;
pub mod check;
mod cluster;
pub mod demo;
pub mod explain;
pub mod export;
pub mod facts;
mod installed;
pub mod lineage;
mod operators;
mod probe;
mod schema;
mod source;
pub mod status;
mod table;
mod time;
pub mod verify;

pub use source::SourceArgs;
