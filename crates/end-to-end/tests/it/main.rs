//! Attacks on a real sidecar in front of a real PostgreSQL. `statements.rs` is the list; the other modules are what a
//! list cannot say.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail by it"
)]

mod bad_input;
mod drivers;
mod harness;
mod limits;
mod pipeline;
mod protocol;
mod reading;
mod session;
mod statements;
mod ten_statements;
