//! Tests that need a real Kubernetes: `api::…` run against API servers alone, once for each release; `node::…` run on
//! a whole node. They are built, started and stopped by `test-support::cluster`.
//!
//! To add a test: write `fn name(server: Release) -> Result<()>` in a module of `api`, or `fn name(node: &Node) ->
//! Result<()>` in a module of `node`, and put it into that module's `TESTS`; a new module goes into the list in
//! `api/mod.rs` or `node/mod.rs`. A test on the node makes a namespace of its own.
//!
//! What cannot run here is reported as ignored, with the reason, and counted in `target/cluster-tests-left-out`, which
//! `make test` prints at its end. With `WEIR_REQUIRE_CLUSTER=1` it fails instead.

#![allow(clippy::panic, clippy::indexing_slicing, reason = "tests fail by it")]

mod api;
mod node;
mod processes;
mod prometheus;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use test_support::cluster::{self, NotHere, Release};

/// How many did not run, and why the first of them did not.
#[derive(Default)]
struct LeftOut {
    count: AtomicUsize,
    why: OnceLock<String>,
}

fn main() -> ExitCode {
    let left_out = Arc::new(LeftOut::default());
    let mut trials = Vec::new();
    let here = cluster::api_servers();
    for release in [Release::Node, Release::Next] {
        for (module, tests) in api::MODULES {
            for &(name, test) in *tests {
                let name = format!("api::{module}::{name} ({})", release.name());
                trials.push(trial(name, here.clone(), &left_out, move || test(release)));
            }
        }
    }
    let here = cluster::nodes();
    for (module, tests) in node::MODULES {
        for &(name, test) in *tests {
            let run = move || test(cluster::node()?);
            trials.push(trial(
                format!("node::{module}::{name}"),
                here.clone(),
                &left_out,
                run,
            ));
        }
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    if let Err(error) = cluster::stop_node() {
        eprintln!("the node did not stop: {error:#}");
    }
    if let Some(why) = left_out.why.get() {
        let line = format!(
            "{} cluster tests did not run: {why}. To run them: as root, without {}, `cargo test -p end-to-end --test cluster`\n",
            left_out.count.load(Ordering::Relaxed),
            cluster::SKIP,
        );
        eprint!("{line}");
        if let Ok(target) = test_support::target_folder() {
            let _ = std::fs::write(target.join("cluster-tests-left-out"), line);
        }
    }
    conclusion.exit_code()
}

fn trial(
    name: String,
    here: Result<(), NotHere>,
    left_out: &Arc<LeftOut>,
    run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    let left_out = left_out.clone();
    Trial::ignorable_test(name, move || {
        let Err(NotHere(why)) = here else {
            return run()
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:#}")));
        };
        if cluster::wanted(cluster::REQUIRE) {
            return Err(Failed::from(format!("{why}, and {} is set", cluster::REQUIRE)));
        }
        left_out.count.fetch_add(1, Ordering::Relaxed);
        let _ = left_out.why.set(why.clone());
        Ok(Completion::ignored_with(why))
    })
}
