//! Tests against API servers alone. Each runs once for each release.

mod definitions;

use anyhow::{Context, Result};
use test_support::cluster::{ApiServer, Release};

/// A test: starts an API server of its own ([`server`]), because definitions and webhooks are seen by the whole of it.
pub(crate) type Test = fn(Release) -> Result<()>;

/// Every module with its tests.
pub(crate) const MODULES: &[(&str, &[(&str, Test)])] = &[("definitions", definitions::TESTS)];

/// A fresh API server that serves our definitions.
pub(crate) fn server(release: Release) -> Result<ApiServer> {
    let server = ApiServer::start(release)?;
    let crds = test_support::workspace_root().join("crds");
    let crds = crds.to_str().context("the path is text")?;
    server.kubectl().run(&["apply", "--server-side", "-f", crds])?;
    server
        .kubectl()
        .run(&["wait", "--for=condition=Established", "--timeout=60s", "-f", crds])?;
    Ok(server)
}
