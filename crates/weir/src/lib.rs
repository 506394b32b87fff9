//! The `weir` command.

pub mod demo;
