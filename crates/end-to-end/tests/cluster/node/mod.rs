//! Tests on a whole node. They share it: each makes a namespace of its own.

mod pods;

use anyhow::Result;
use test_support::cluster::Node;

/// A test on the shared node.
pub(crate) type Test = fn(&Node) -> Result<()>;

/// Every module with its tests.
pub(crate) const MODULES: &[(&str, &[(&str, Test)])] = &[("pods", pods::TESTS)];
