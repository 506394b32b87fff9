//! `control-api`: what operator, sidecar and collector say to each other, and how they know each other.
//!
//! ```text
//!  sidecar ──Identity.Issue(CSR, token)──► operator          (proto)
//!  sidecar ◄──Policies.Follow───────────► operator           (proto)
//!  collector ◄──Sinks.Follow────────────► operator           (proto)
//!       └── tls: who may speak to whom; peer: who it is, read from its certificate; signed: snapshots that prove themselves
//! ```

pub mod client;
pub mod identity;
pub mod peer;
pub mod signed;
pub mod tls;

/// Messages and services, made from `proto/control.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)] // reason: generated
pub mod proto {
    tonic::include_proto!("weir.control.v1");
}

/// Audience of the tokens that pods prove themselves with.
pub const TOKEN_AUDIENCE: &str = "weir.dev/identity";
/// First bytes of what is signed for a snapshot.
pub const SNAPSHOT_CONTEXT: &[u8] = b"weir.snapshot.v1\0";
/// First bytes of what a pod signs to say that a chain of receipts is its.
pub const BIND_CONTEXT: &[u8] = b"weir.chain.bind.v1\0";
