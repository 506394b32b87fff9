//! Tests that need a real Kubernetes: `api::…` run against API servers alone, once for each release; `node::…` run on
//! a whole node. They are built, started and stopped by `test-support::cluster`.
//!
//! To add a test: write `fn name(server: Release) -> Result<()>` in a module of `api`, or `fn name(node: &Node) ->
//! Result<()>` in a module of `node`, and put it into that module's `TESTS`; a new module goes into the list in
//! `api/mod.rs` or `node/mod.rs`. A test on the node makes a namespace of its own.
//!
//! What cannot run here is reported as ignored, with the reason, and counted in `target/cluster-tests-left-out`, of which
//! `make test` tells at its end. With `WEIR_REQUIRE_CLUSTER=1` it fails instead.

#![allow(clippy::panic, clippy::indexing_slicing, reason = "tests fail by it")]

mod api;
mod node;
mod processes;
mod prometheus;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;
use test_support::cluster::{self, NotHere, Release};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    let here = cluster::api_servers();
    for release in [Release::Node, Release::Next] {
        for (module, tests) in api::MODULES {
            for &(name, test) in *tests {
                let name = format!("api::{module}::{name} ({})", release.name());
                trials.push(trial(name, here.clone(), move || test(release)));
            }
        }
    }
    let here = cluster::nodes();
    for (module, tests) in node::MODULES {
        for &(name, test) in *tests {
            let run = move || test(cluster::node()?);
            trials.push(trial(format!("node::{module}::{name}"), here.clone(), run));
        }
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    if let Err(error) = cluster::stop_node() {
        eprintln!("the node did not stop: {error:#}");
    }
    conclusion.exit_code()
}

fn trial(
    name: String,
    here: Result<(), NotHere>,
    run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        let Err(not_here) = here else {
            return run()
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}")));
        };
        cluster::leave_out(&not_here).map_err(|error| Failed::from(format!("{error:#}")))?;
        Ok(Completion::ignored_with(not_here.0))
    })
}
