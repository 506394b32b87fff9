//! The proxy.

pub mod recorder;
pub mod spool;
