//! `deploy/examples`, as somebody applies it: to an API server with both charts and a running operator.

use super::{Test, governed, path_of};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[(
    "every_example_is_taken_and_its_pods_are_injected",
    every_example_is_taken_and_its_pods_are_injected,
)];

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            found.push(path);
        }
    }
    Ok(())
}

fn every_example_is_taken_and_its_pods_are_injected(release: Release) -> Result<()> {
    let governed = governed(release)?;
    let kubectl = governed.server.kubectl();
    let examples = path_of("deploy/examples")?;
    // Once more, as one does after an edit, changes nothing.
    for again in [false, true] {
        let said = kubectl.try_run(&["apply", "--server-side", "--recursive", "-f", &examples])?;
        ensure!(said.ok, "applied again: {again}: {}", said.err);
        // The shop's server has no certificate, and one policy is for every pod: reviewers hear of both. No other
        // warnings, of Pod Security or of misplaced annotations.
        for line in said.err.lines() {
            ensure!(
                line.starts_with("Warning: spec."),
                "applied again: {again}: {line}"
            );
        }
    }
    let mut paths = Vec::new();
    files(Path::new(&examples), &mut paths)?;
    let (mut kinds, mut pods) = (BTreeSet::new(), Vec::new());
    for path in &paths {
        for text in std::fs::read_to_string(path)?.split("\n---\n") {
            let object: Value = serde_yaml::from_str(text).with_context(|| path.display().to_string())?;
            let kind = object["kind"].as_str().context("a kind")?.to_owned();
            for template in ["/spec/template", "/spec/jobTemplate/spec/template"] {
                if let Some(template) = object.pointer(template) {
                    pods.push((kind.clone(), template.clone()));
                }
            }
            kinds.insert(kind);
        }
    }
    for kind in [
        "DatabaseAccessPolicy",
        "LineageSink",
        "Deployment",
        "StatefulSet",
        "Job",
        "CronJob",
    ] {
        ensure!(kinds.contains(kind), "there is no example of a {kind}");
    }
    ensure!(pods.len() >= 4, "only {} pod templates", pods.len());
    // No controller makes the pods here: each is made as its controller would.
    for (kind, mut pod) in pods {
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["generateName"] = json!("example-");
        pod["metadata"]["namespace"] = json!("shop");
        // A StatefulSet's controller adds the volumes of its claims.
        if kind == "StatefulSet" {
            pod["spec"]["volumes"] =
                json!([{"name": "archive", "persistentVolumeClaim": {"claimName": "archive-0"}}]);
        }
        let text = pod.to_string();
        let mut last = String::new();
        // The operator sees a new policy a moment after it is stored.
        let made = test_support::wait_for("the pod", 20, || {
            let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
            let said = kubectl.try_with(&create, &text).ok()?;
            last = said.err;
            said.ok.then_some(said.out)
        })
        .with_context(|| format!("{kind}: {last}"))?;
        ensure!(last.is_empty(), "{kind}: {last}");
        let made: Value = serde_json::from_str(&made)?;
        ensure!(
            made["spec"]["initContainers"][0]["name"] == "weir-sidecar",
            "{kind} was not injected: {made}"
        );
        let captured = made["metadata"]["annotations"]["weir.dev/captured"]
            .as_str()
            .unwrap_or_default();
        ensure!(captured.contains("orders-db.shop.svc"), "{kind}: {captured}");
    }
    Ok(())
}
