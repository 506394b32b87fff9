//! What is kept of what pods did: receipts, lineage, and the gap that a lost pod leaves.

use super::Test;
use super::weir::{self, masked};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::cluster::Node;
use test_support::wait_for;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "a_job_ends_with_its_receipts_delivered",
        a_job_ends_with_its_receipts_delivered,
    ),
    (
        "lineage_arrives_at_the_endpoint_of_a_sink",
        lineage_arrives_at_the_endpoint_of_a_sink,
    ),
    (
        "a_pod_that_vanishes_leaves_a_signed_gap",
        a_pod_that_vanishes_leaves_a_signed_gap,
    ),
];

fn actor(namespace: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/default")
}

fn a_job_ends_with_its_receipts_delivered(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("job-record")?;
    shop.apply_workload("nightly")?;
    shop.wait_job("nightly")?;
    // The pod has ended, its sidecar and spool with it: what the collector has now is all there will ever be.
    let receipts = weir.ask_record(&["audit", "--actor", &actor(&shop.namespace)])?;
    let statements: Vec<String> = receipts
        .as_array()
        .context("a list")?
        .iter()
        .map(Value::to_string)
        .collect();
    for wanted in ["count(*) from orders", "insert into mailing"] {
        ensure!(
            statements.iter().any(|one| one.contains(wanted)),
            "no receipt of {wanted}: {statements:#?}"
        );
    }
    // Its chain was closed by itself, and the collector has no gap for it.
    let pod = shop.run(&[
        "get",
        "pods",
        "-l",
        "app=nightly",
        "-o",
        "jsonpath={.items[0].metadata.uid}",
    ])?;
    shop.run(&["delete", "job", "nightly", "--wait=true"])?;
    let gap = gap_of(&weir, &pod)?;
    ensure!(gap.is_none(), "{gap:?}");
    Ok(())
}

/// The gap that the record has for a pod.
fn gap_of(weir: &weir::Weir<'_>, pod: &str) -> Result<Option<Value>> {
    let verified = weir.ask_record(&["verify"])?;
    ensure!(verified["integrity"] == "ok", "{verified}");
    let gaps = verified["holes"]
        .as_array()
        .cloned()
        .with_context(|| verified.to_string())?;
    Ok(gaps.into_iter().find(|gap| gap.to_string().contains(pod)))
}

fn lineage_arrives_at_the_endpoint_of_a_sink(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("lineage")?;
    shop.apply_file("lineage-endpoint.yaml")?;
    shop.wait_rollout("deployment/lineage-endpoint")?;
    shop.apply_workload("nightly")?;
    shop.wait_job("nightly")?;
    let log = shop.wait(&["logs", "deployment/lineage-endpoint", "--tail=-1"], 60, |out| {
        out.lines().any(|line| line.contains("insert into mailing"))
    })?;
    let line = log
        .lines()
        .find(|line| line.contains("insert into mailing"))
        .unwrap_or_default();
    let (path, event) = line.split_once(' ').context("a path and an event")?;
    ensure!(path == "/api/v1/lineage", "{path}");
    let event: Value = serde_json::from_str(event)?;
    ensure!(event["eventType"] == "COMPLETE", "{event}");
    let host = "postgres://orders-db:5432";
    ensure!(event["inputs"][0]["namespace"] == host, "{event}");
    let outputs = event["outputs"].as_array().context("outputs")?;
    let table = outputs
        .iter()
        .find(|output| output["name"] == "orders.public.mailing");
    let table = table.with_context(|| event.to_string())?;
    let field = &table["facets"]["columnLineage"]["fields"]["email"]["inputFields"][0];
    ensure!(
        field["name"] == "orders.public.customers" && field["field"] == "name",
        "{event}"
    );
    let delivered = "jsonpath={.status.delivered}";
    shop.wait(&["get", "lineagesink", "lineage", "-o", delivered], 30, |out| {
        out.parse::<u64>().is_ok_and(|delivered| delivered >= 2)
    })?;
    // Another namespace's sink gets nothing of this one: all that arrived is of this namespace.
    for line in log.lines().filter(|line| line.starts_with("/api/")) {
        ensure!(line.contains(r#""namespace":"kubernetes://lineage""#), "{line}");
    }
    Ok(())
}

fn a_pod_that_vanishes_leaves_a_signed_gap(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("vanished")?;
    let ask = ["python3", "-u", "/app/client.py", "loop"];
    shop.apply_client("lost", r#"{weir.dev/inject: "true"}"#, "{weir-demo: shop}", &ask)?;
    shop.wait_answer("pod/lost", "open", 0, 60, masked)?;
    let uid = shop.run(&["get", "pod", "lost", "-o", "jsonpath={.metadata.uid}"])?;
    // As when its node loses power: the sidecar gets no chance to deliver what it has and to close its chain.
    weir.signal_container(&shop.namespace, "lost", "weir-sidecar", "SIGSTOP")?;
    shop.run(&["delete", "pod", "lost", "--force", "--grace-period=0"])?;
    let gap = wait_for("a gap in the record", 60, || gap_of(&weir, &uid).ok().flatten())?;
    // It says whose receipts are missing, and the record is otherwise whole.
    ensure!(
        gap["message"]
            .as_str()
            .is_some_and(|told| told.contains(&actor(&shop.namespace))),
        "{gap}"
    );
    Ok(())
}
