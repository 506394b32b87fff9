//! Every kind of workload, governed from one annotation: the driver, the host name and the port stay as they are.

use super::Test;
use super::weir::{self, earlier_or_same, masked};
use anyhow::{Result, ensure};
use serde_json::Value;
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("every_kind_is_governed", every_kind_is_governed),
    (
        "a_changed_address_of_the_service_is_followed",
        a_changed_address_of_the_service_is_followed,
    ),
    ("helm_test_passes", helm_test_passes),
    (
        "variables_are_rewritten_where_names_cannot_be",
        variables_are_rewritten_where_names_cannot_be,
    ),
];

fn helm_test_passes(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    weir.kubectl
        .helm(&["test", "weir", "-n", weir::SYSTEM, "--timeout", "120s"])?;
    Ok(())
}

fn every_kind_is_governed(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    // The injected pods pass the strictest of Pod Security's levels, as the applications do by themselves.
    let shop = weir.shop("every-kind")?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    shop.kubectl()
        .run(&["label", "namespace", &shop.namespace, restricted])?;
    shop.apply_file("workloads.yaml")?;
    // Its next minute is not waited for.
    shop.run(&[
        "patch",
        "cronjob",
        "every-minute",
        "-p",
        r#"{"spec":{"suspend":true}}"#,
    ])?;
    shop.run(&["create", "job", "now", "--from=cronjob/every-minute"])?;

    for workload in ["deployment/report", "statefulset/worker"] {
        shop.wait_rollout(workload)?;
        shop.wait_answer(workload, "open", 0, 30, masked)?;
        shop.wait_answer(workload, "new", 0, 30, masked)?;
    }
    for job in ["nightly", "now"] {
        shop.wait_job(job)?;
    }
    let first = shop.answers("job/nightly", "look-first")?;
    ensure!(
        first.iter().any(|answer| answer["rows"][0][0] == "100"),
        "init container: {first:?}"
    );
    let nightly = shop.answers("job/nightly", "app")?;
    ensure!(
        nightly.iter().any(|answer| answer["rows"][0][0] == "Customer 1"),
        "{nightly:?}"
    );
    let now = shop.answers("job/now", "app")?;
    ensure!(
        now.iter()
            .any(|answer| answer["rows"][0][0] == "c***@example.com"),
        "{now:?}"
    );

    let pods = shop.run(&["get", "pods", "-l", "weir-demo=shop", "-o", "json"])?;
    let pods: Value = serde_json::from_str(&pods)?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    ensure!(pods.len() == 4, "{} pods", pods.len());
    for pod in &pods {
        let sidecar = &pod["spec"]["initContainers"][0];
        ensure!(
            sidecar["name"] == "weir-sidecar" && sidecar["restartPolicy"] == "Always",
            "{sidecar}"
        );
        let status = |kind: &str, name: &str| {
            let all = pod["status"][kind].as_array().cloned().unwrap_or_default();
            let one = all
                .into_iter()
                .find(|one| one["name"] == name)
                .unwrap_or_default();
            let state = &one["state"];
            let began = |state: &Value| state["startedAt"].clone();
            if state["running"].is_null() {
                began(&state["terminated"])
            } else {
                began(&state["running"])
            }
        };
        earlier_or_same(
            &status("initContainerStatuses", "weir-sidecar"),
            &status("containerStatuses", "app"),
        )?;
    }
    // Pods that ended count no more: one of the Deployment, one of the StatefulSet.
    shop.wait_condition("orders", "Enforced", "True Enforced")?;
    let counts = "jsonpath={.status.matchedPods} {.status.enforcedPods}";
    shop.wait(&["get", "dap", "orders", "-o", counts], 30, |out| out == "2 2")?;
    let table = shop.run(&["get", "dap"])?;
    let line: Vec<&str> = table
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        matches!(
            line.as_slice(),
            ["orders", "True", "Enforced", "Enforce", "2", "2", _]
        ),
        "{table}"
    );
    // kubectl's default container is the application, so people need not name it.
    let log = shop.run(&["logs", "worker-0", "--tail=1"])?;
    ensure!(log.contains("rows"), "{log}");
    Ok(())
}

fn a_changed_address_of_the_service_is_followed(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("moved")?;
    shop.apply_workload("report")?;
    shop.wait_rollout("deployment/report")?;
    shop.wait_answer("deployment/report", "new", 0, 30, masked)?;

    let address = || shop.run(&["get", "service", "orders-db", "-o", "jsonpath={.spec.clusterIP}"]);
    let before = address()?;
    shop.run(&["delete", "service", "orders-db"])?;
    // The address goes to somebody else, so that the Service cannot get it back.
    let other = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: other}}\nspec: {{clusterIP: {before}, ports: [{{port: 5432}}]}}\n"
    );
    shop.wait_for_apply(&other)?;
    shop.apply_file("database.yaml")?;
    ensure!(address()? != before, "the address did not change");

    let after = shop.answered("deployment/report")?;
    shop.wait_answer("deployment/report", "new", after, 60, masked)?;
    let restarts = shop.run(&["get", "pods", "-l", "app=report", "-o",
        "jsonpath={.items[*].status.initContainerStatuses[*].restartCount} {.items[*].status.containerStatuses[*].restartCount}"])?;
    ensure!(restarts == "0 0", "{restarts}");
    Ok(())
}

/// Capture mode `Env`: the host is an address, which no alias can catch.
fn variables_are_rewritten_where_names_cannot_be(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("variables")?;
    let path = ["get", "service", "orders-db", "-o", "jsonpath={.spec.clusterIP}"];
    let address = shop.run(&path)?;
    shop.run(&["delete", "dap", "orders"])?;
    let policy =
        std::fs::read_to_string(test_support::workspace_root().join("tests/cluster/shop/policy.yaml"))?;
    let mut policy: Value = serde_yaml::from_str(&policy)?;
    policy["spec"]["database"]["host"] = address.as_str().into();
    policy["spec"]["database"]["capture"] =
        serde_json::json!({"mode": "Env", "env": {"hostVariables": ["PGHOST"]}});
    shop.apply(&policy.to_string())?;

    let ask = ["python3", "-u", "/app/client.py", "loop"];
    let pod = weir::client(
        "addressed",
        r#"{weir.dev/inject: "true"}"#,
        "{weir-demo: shop}",
        &ask,
    );
    shop.apply(&pod.replace("value: orders-db", &format!("value: {address}")))?;
    shop.wait_answer("pod/addressed", "open", 0, 60, masked)?;
    let pod: Value = serde_json::from_str(&shop.run(&["get", "pod", "addressed", "-o", "json"])?)?;
    ensure!(
        pod["spec"]["hostAliases"].is_null(),
        "{}",
        pod["spec"]["hostAliases"]
    );
    let environment = pod["spec"]["containers"][0]["env"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let host = environment
        .iter()
        .find(|variable| variable["name"] == "PGHOST")
        .cloned()
        .unwrap_or_default();
    ensure!(
        host["value"]
            .as_str()
            .is_some_and(|host| host.starts_with("127.")),
        "{host}"
    );
    shop.wait_condition("orders", "Enforced", "True Enforced")
}
