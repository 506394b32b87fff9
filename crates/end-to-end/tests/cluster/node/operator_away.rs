//! The operator stops: what was in force stays in force, for as long as the snapshot says.

use super::Test;
use super::weir::{self, masked};
use anyhow::{Result, ensure};
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "enforcement_goes_on_through_restarts",
        enforcement_goes_on_through_restarts,
    ),
    (
        "after_its_end_new_sessions_are_refused",
        after_its_end_new_sessions_are_refused,
    ),
];

fn enforcement_goes_on_through_restarts(node: &Node) -> Result<()> {
    let weir = weir::alone(node)?;
    let shop = weir.shop("operator-away")?;
    shop.apply_workload("worker")?;
    shop.wait_answer("pod/worker-0", "open", 0, 60, masked)?;
    weir.scale_operator(0)?;
    let seen = shop.answered("pod/worker-0")?;
    shop.wait_answer("pod/worker-0", "new", seen, 30, masked)?;

    // Both containers of the pod begin anew, the sidecar from what it kept.
    weir.signal_container(&shop.namespace, "worker-0", "weir-sidecar", "SIGKILL")?;
    weir.signal_container(&shop.namespace, "worker-0", "app", "SIGKILL")?;
    let restarts = "jsonpath={.status.initContainerStatuses[0].restartCount} {.status.containerStatuses[0].restartCount}";
    shop.wait(&["get", "pod", "worker-0", "-o", restarts], 60, |out| {
        out == "1 1"
    })?;
    shop.wait_answer("pod/worker-0", "new", 0, 60, masked)?;
    let answers = shop.answers("pod/worker-0", "app")?;
    ensure!(
        answers
            .iter()
            .all(|answer| answer["rows"].is_null() || masked(answer)),
        "a row went out as it is: {answers:?}"
    );

    // Meanwhile pods that ask for a sidecar are refused with what to do; others are created.
    let ask = ["python3", "-u", "/app/client.py", "once", "select 1"];
    let refused = shop.apply_client("asks", r#"{weir.dev/inject: "true"}"#, "{weir-demo: shop}", &ask);
    let refused = format!(
        "{:#}",
        refused
            .err()
            .map_or_else(String::new, |error| format!("{error:#}"))
    );
    ensure!(
        refused.contains("weir"),
        "it was not refused, or not plainly: {refused}"
    );
    shop.apply_client("plain", "{}", "{}", &ask)?;

    weir.scale_operator(2)?;
    // And a change reaches it again.
    let masks = r#"{"spec":{"masks":[{"name":"contact","columns":["public.customers.email"],"mask":{"type":"Null"}}]}}"#;
    let seen = shop.answered("pod/worker-0")?;
    shop.run(&["patch", "dap", "orders", "--type=merge", "-p", masks])?;
    shop.wait_answer("pod/worker-0", "new", seen, 60, |answer| {
        answer["rows"][0][2] == "None"
    })?;
    Ok(())
}

fn after_its_end_new_sessions_are_refused(node: &Node) -> Result<()> {
    let weir = weir::alone(node)?;
    let shop = weir.shop("outlived")?;
    // The shortest that the chart allows.
    weir.install(&["operator.snapshotValidSeconds=60"])?;
    shop.apply_workload("worker")?;
    shop.wait_answer("pod/worker-0", "new", 0, 60, masked)?;
    weir.scale_operator(0)?;
    let seen = shop.answered("pod/worker-0")?;
    shop.wait_answer("pod/worker-0", "new", seen, 120, |answer| {
        answer["connect"]
            .as_str()
            .is_some_and(|error| error.contains("WEIR-"))
    })?;
    let answers = shop.answers("pod/worker-0", "app")?;
    let refused = answers.iter().rev().find(|answer| answer["connect"].is_string());
    println!(
        "{}",
        refused.map_or(&serde_json::Value::Null, |answer| &answer["connect"])
    );

    weir.scale_operator(2)?;
    let seen = shop.answered("pod/worker-0")?;
    shop.wait_answer("pod/worker-0", "new", seen, 60, masked)?;
    weir.install(&[])
}
