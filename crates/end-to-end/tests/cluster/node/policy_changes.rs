//! What `kubectl apply` of a policy does to pods that run already.

use super::Test;
use super::weir::{self, masked};
use anyhow::{Result, ensure};
use std::time::Instant;
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("a_change_reaches_open_sessions", a_change_reaches_open_sessions),
    (
        "a_policy_after_the_pod_asks_for_a_restart",
        a_policy_after_the_pod_asks_for_a_restart,
    ),
    (
        "pods_without_a_sidecar_are_counted",
        pods_without_a_sidecar_are_counted,
    ),
];

fn a_change_reaches_open_sessions(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("changed")?;
    shop.apply_workload("report")?;
    shop.wait_rollout("deployment/report")?;
    let seen = shop.wait_answer("deployment/report", "open", 0, 30, masked)?;

    let masks = r#"{"spec":{"masks":[{"name":"contact","columns":["public.customers.email"],"mask":{"type":"Null"}}]}}"#;
    let asked = Instant::now();
    shop.run(&["patch", "dap", "orders", "--type=merge", "-p", masks])?;
    // The same session, which nobody closed: the application closes it never.
    shop.wait_answer("deployment/report", "open", seen, 20, |answer| {
        answer["rows"][0][2] == "None"
    })?;
    println!(
        "a changed policy was seen by the application after {} ms",
        asked.elapsed().as_millis()
    );
    let opened = shop.answers("deployment/report", "app")?;
    ensure!(
        !opened
            .iter()
            .any(|answer| answer["kind"] == "open" && answer["connect"].is_string()),
        "the session was opened again"
    );

    // A table that is allowed no more is refused to the same session, with its rule.
    let seen = shop.answered("deployment/report")?;
    let access = r#"{"spec":{"masks":null,"access":[{"name":"read-orders","actions":["Select"],"tables":["public.orders"]}]}}"#;
    shop.run(&["patch", "dap", "orders", "--type=merge", "-p", access])?;
    shop.wait_answer("deployment/report", "open", seen, 20, |answer| {
        answer["error"]
            .as_str()
            .is_some_and(|error| error.contains("WEIR-"))
    })?;
    shop.wait(
        &[
            "get",
            "dap",
            "orders",
            "-o",
            "jsonpath={.status.enforcedPods}/{.metadata.generation}",
        ],
        30,
        |out| out == "1/3",
    )?;
    let restarts = shop.run(&["get", "pods", "-l", "app=report", "-o",
        "jsonpath={.items[*].status.initContainerStatuses[*].restartCount} {.items[*].status.containerStatuses[*].restartCount}"])?;
    ensure!(restarts == "0 0", "{restarts}");
    Ok(())
}

const SECOND: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: archive-db}
spec: {selector: {app: orders-db}, ports: [{port: 5432}]}
---
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: archive}
spec:
  podSelector: {matchLabels: {weir-demo: shop}}
  database:
    engine: PostgreSQL
    host: archive-db
    name: orders
    tls: {mode: Disable}
    credentials: {secretRef: {name: orders-login}, transport: Plaintext}
  access:
  - {name: read, actions: [Select], tables: [public.orders]}
"#;

fn a_policy_after_the_pod_asks_for_a_restart(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("second-host")?;
    shop.apply_workload("report")?;
    shop.wait_condition("orders", "Enforced", "True Enforced")?;
    shop.wait(
        &["get", "dap", "orders", "-o", "jsonpath={.status.enforcedPods}"],
        60,
        |out| out == "1",
    )?;

    // A second host: the pod that runs has no alias for it. Its policy says so, and the first policy is not disturbed.
    shop.apply(SECOND)?;
    shop.wait_condition("archive", "Enforced", "False NotCaptured")?;
    let counts = "jsonpath={.status.matchedPods} {.status.enforcedPods} {.status.restartNeededPodsCount}";
    shop.wait(&["get", "dap", "archive", "-o", counts], 30, |out| out == "1 0 1")?;
    let message = shop.run(&[
        "get",
        "dap",
        "archive",
        "-o",
        r#"jsonpath={.status.conditions[?(@.type=="Enforced")].message}"#,
    ])?;
    ensure!(
        message.contains("restart"),
        "it does not say what to do: {message}"
    );
    shop.wait(
        &["get", "dap", "orders", "-o", "jsonpath={.status.enforcedPods}"],
        30,
        |out| out == "1",
    )?;

    shop.run(&["rollout", "restart", "deployment/report"])?;
    shop.wait(&["get", "dap", "archive", "-o", counts], 120, |out| {
        out == "1 1 0" || out == "1 1 "
    })?;
    shop.wait_condition("archive", "Enforced", "True Enforced")?;
    let pod = shop.run(&[
        "get",
        "pods",
        "-l",
        "app=report",
        "--field-selector=status.phase=Running",
        "-o",
        "name",
    ])?;
    ensure!(!pod.is_empty(), "no pod");
    Ok(())
}

fn pods_without_a_sidecar_are_counted(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("uninjected")?;
    let ask = ["python3", "-u", "/app/client.py", "loop"];
    shop.apply_client("plain", "{}", "{weir-demo: shop}", &ask)?;
    shop.wait_condition("orders", "Enforced", "False Uninjected")?;
    let counts = "jsonpath={.status.matchedPods} {.status.enforcedPods} {.status.uninjectedPodsCount}";
    shop.wait(&["get", "dap", "orders", "-o", counts], 30, |out| out == "1 0 1")?;
    shop.wait(
        &["get", "events", "-o", "jsonpath={.items[*].reason}"],
        30,
        |out| out.contains("Uninjected"),
    )?;
    Ok(())
}
