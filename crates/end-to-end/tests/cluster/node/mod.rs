//! Tests on a whole node. They share it and one installation of Weir: each makes a namespace of its own.

mod bypass;
mod monitoring;
mod operator_away;
mod pods;
mod policy_changes;
mod record;
mod removal;
mod weir;
mod workloads;

use anyhow::Result;
use test_support::cluster::Node;

/// A test on the shared node.
pub(crate) type Test = fn(&Node) -> Result<()>;

/// Every module with its tests.
pub(crate) const MODULES: &[(&str, &[(&str, Test)])] = &[
    ("pods", pods::TESTS),
    ("workloads", workloads::TESTS),
    ("policy_changes", policy_changes::TESTS),
    ("record", record::TESTS),
    ("bypass", bypass::TESTS),
    ("monitoring", monitoring::TESTS),
    ("operator_away", operator_away::TESTS),
    ("removal", removal::TESTS),
];
