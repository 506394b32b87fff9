//! `sql-facts`: what a statement means, and the governed text that replaces it.
//!
//! ```text
//!  text ──parse──► Parsed ──read(Catalog, SearchPath)──► StatementFacts
//!                     │                                      │
//!                     └────────── govern(Plan, facts) ───────┴──► Governed { text, positions, strip, wire masks }
//! ```
//!
//! Pure: no clock, no socket, no policy. It knows SQL, the catalog and a [`Plan`]; it does not know who asks or
//! which rule asked for a mask (`access-policy` does). What it does not understand is [`Unreadable`] with a reason,
//! never a guess.

pub mod catalog;
pub mod facts;
mod form;
pub mod plan;
pub mod postgres;

pub use catalog::{AttNum, Catalog, CatalogView, Column, Oid, Overlay, Relation, RelationKind, SearchPath};
pub use facts::{StatementFacts, StatementKind, Unreadable};
pub use plan::{CannotGovern, Governed, Plan, RelationPlan};
pub use postgres::{
    Parsed, ParsedStatement, Reach, StatementKey, govern, parse, print, print_filter, reach, read,
    read_with_types, statement_key,
};
