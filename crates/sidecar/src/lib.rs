//! The proxy.

pub mod recorder;
