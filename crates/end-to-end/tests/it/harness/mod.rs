//! What the attacks stand on: a database with canaries, a sidecar in front of it, a client that speaks raw protocol,
//! and a tap that listens in on drivers.

pub(crate) mod canary;
pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod sidecar;
pub(crate) mod tap;

pub(crate) use client::{Answer, Client};
pub(crate) use database::Database;
pub(crate) use sidecar::Sidecar;
