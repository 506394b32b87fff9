//! `receipts`: what happened, as bytes that can be proved later.
//!
//! ```text
//!  Body ──ChainWriter──► Event (exact bytes) ──sign_group──► SignedGroup ──receipt──► Receipt (verifiable alone)
//!                          │ seq, prev (process)                 │
//!                          └ seq, prev (session)                 └──Verifier──► integrity verdict + completeness verdict
//!
//!  leaf hash of an event = its RFC 6962 leaf hash = `prev` of its successor = its leaf in the group's tree and in the log's
//! ```
//!
//! Pure: time, salts, keys' seeds and boot ids come in as arguments. It knows no socket, file, policy or SQL. The bytes
//! that were signed are the bytes that are kept: nothing is ever written anew in order to be verified.

mod chain;
mod event;
mod group;
mod ids;
mod merkle;
mod note;
mod range;
#[cfg(test)]
mod tests;
mod verify;

pub use chain::{ChainWriter, EncodedEvent};
pub use event::{
    Action, ActionStart, Assurance, AuthFail, Body, ChainBind, ChainClose, ChainOpen, ChainPeer, Claim, Deny,
    EVENT_BYTES_MAX, Event, EventHeader, Gap, GapChain, Intent, LogHead, Outcome, OutcomeStatus,
    OutcomeUnknown, OutputColumn, Place, PolicyChange, PolicyState, PreviousBoot, ProcessLink, ReadEvent,
    Recovered, RelationAction, RelationUse, Rule, SessionClose, SessionLink, SessionOpen, Source,
    StatementLink, TEXT_BYTES_MAX, Transaction, TransactionState, Transformation, Verdict, Version, What,
    Who, read_event,
};
pub use group::{
    GROUP_EVENTS_MAX, GroupHeader, GroupProblem, Receipt, ReceiptVersion, SignedGroup, SigningKey, sign_group,
};
pub use ids::{BootId, Digest, PublicKey, SessionId, Signature, statement_key};
pub use merkle::{
    Frontier, HashSource, NodeMissing, consistency_proof, empty_root, hash_range, inclusion_proof, leaf_hash,
    node_hash, range_proof, root_of, root_of_range, verify_consistency, verify_inclusion,
};
pub use note::{Checkpoint, LogKey, NoteProblem};
pub use range::{RangeHeader, RangeProblem, RangeVersion, group_line, read_group_line, verify_range};
pub use verify::{
    Binding, Completeness, Hole, HoleKind, Integrity, Problem, ProblemKind, Report, Scope, Verifier,
};
