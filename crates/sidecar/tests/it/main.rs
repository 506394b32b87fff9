//! The sidecar as a process, between real clients and a real PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking; clippy knows only functions marked #[test] as tests"
)]

mod harness;
mod life;
mod logins;
mod metrics;
mod pod;
mod startup;
mod traffic;
