//! The definitions of our resources, as an API server takes and tells them.

use super::{Test, server};
use anyhow::{Result, ensure};
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[("explain_tells_masks", explain_tells_masks)];

fn explain_tells_masks(release: Release) -> Result<()> {
    let server = server(release)?;
    let version = server.kubectl().run(&["version"])?;
    ensure!(
        version.contains(&format!("Server Version: v{}.", release.name())),
        "another release: {version}"
    );
    // Discovery lags behind `Established` by a moment.
    let told = server
        .kubectl()
        .wait(&["explain", "dap.spec.masks"], 20, |out| out.contains("FIELDS"))?;
    ensure!(told.contains("DatabaseAccessPolicy"), "{told}");
    ensure!(
        !told.contains("<no description>"),
        "a field without a description: {told}"
    );
    Ok(())
}
