//! Tests against API servers alone. Each runs once for each release.

mod admission;
mod chart;
mod cli;
mod definitions;

use anyhow::{Context, Result};
use test_support::cluster::{ApiServer, Release};

/// A test: starts an API server of its own ([`server`]), because definitions and webhooks are seen by the whole of it.
pub(crate) type Test = fn(Release) -> Result<()>;

/// Every module with its tests.
pub(crate) const MODULES: &[(&str, &[(&str, Test)])] = &[
    ("admission", admission::TESTS),
    ("chart", chart::TESTS),
    ("cli", cli::TESTS),
    ("definitions", definitions::TESTS),
];

/// A path in the source tree, for programs that run elsewhere.
pub(crate) fn path_of(path: &str) -> Result<String> {
    let path = test_support::workspace_root().join(path);
    Ok(path.to_str().context("the path is text")?.to_owned())
}

/// A fresh API server that serves our definitions.
pub(crate) fn server(release: Release) -> Result<ApiServer> {
    let server = ApiServer::start(release)?;
    let crds = &path_of("crds")?;
    server.kubectl().run(&["apply", "--server-side", "-f", crds])?;
    server
        .kubectl()
        .run(&["wait", "--for=condition=Established", "--timeout=60s", "-f", crds])?;
    Ok(server)
}

/// A fresh API server with both charts, as `helm install` puts them there. Nothing runs its pods, so hooks and readiness
/// are not waited for.
pub(crate) fn installed(release: Release) -> Result<ApiServer> {
    let server = ApiServer::start(release)?;
    for chart in ["weir-crds", "weir"] {
        server.kubectl().helm(&[
            "install",
            chart,
            &path_of(&format!("charts/{chart}"))?,
            "--namespace=weir-system",
            "--create-namespace",
            "--no-hooks",
        ])?;
    }
    // Policies are in force a moment after they are stored.
    let fake = "{apiVersion: v1, kind: Pod, metadata: {name: probe}, spec: {containers: [{name: weir-sidecar, image: a}]}}";
    test_support::wait_for("the admission policies to be in force", 30, || {
        let said = server
            .kubectl()
            .try_with(&["create", "--dry-run=server", "-n", "default", "-f", "-"], fake)
            .ok()?;
        (!said.ok).then_some(())
    })?;
    Ok(server)
}
