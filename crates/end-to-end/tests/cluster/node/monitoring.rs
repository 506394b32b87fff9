//! The dashboard of pods as they are scraped, and the command line in a cluster that is really there.

use super::Test;
use super::weir::{self, Forward, SYSTEM, masked};
use crate::prometheus::{Happened, Prometheus};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use test_support::cluster::{Kubectl, Node};
use test_support::{binary, wait_for};

pub(super) const TESTS: &[(&str, Test)] = &[
    ("every_panel_shows_these_pods", every_panel_shows_these_pods),
    (
        "status_and_check_tell_how_it_stands",
        status_and_check_tell_how_it_stands,
    ),
];

fn every_panel_shows_these_pods(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("dashboard")?;
    let sink =
        "{apiVersion: weir.dev/v1alpha1, kind: LineageSink, metadata: {name: out}, spec: {stdout: {}}}";
    shop.apply(sink)?;
    shop.apply_workload("report")?;
    shop.wait_answer("deployment/report", "new", 0, 60, masked)?;
    // It opted out, and the policy selects it all the same.
    let sleep = ["python3", "-c", "import time; time.sleep(3600)"];
    shop.apply_client("forgotten", "{}", "{weir-demo: shop}", &sleep)?;
    shop.wait_condition("orders", "Enforced", "False Uninjected")?;
    // What no rule allows, by the way of the application.
    let refused = || -> Result<()> {
        let all = [
            "exec",
            "-n",
            &shop.namespace,
            "deployment/report",
            "-c",
            "app",
            "--",
            "python3",
            "/app/client.py",
            "once",
            "delete from orders",
        ];
        let said = shop.kubectl().try_run(&all)?;
        ensure!(
            said.out.contains("WEIR-011") || said.out.contains("42501"),
            "{}{}",
            said.out,
            said.err
        );
        Ok(())
    };
    refused()?;
    // Through the API server, because pods need not be reachable from here.
    let api = Forward::to_api_server(weir.kubectl)?;
    let prometheus = Prometheus::reaching(shop.kubectl(), &[SYSTEM, &shop.namespace], &mut |target| {
        let (namespace, pod, port) = (target.namespace, target.pod, target.port);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
        Ok((format!("127.0.0.1:{}", api.port), path))
    })?;
    ensure!(prometheus.targets() >= 3, "only {} targets", prometheus.targets());
    refused()?;
    let sink = format!("{}/out", shop.namespace);
    prometheus
        .panels(&Happened {
            namespace: &shop.namespace,
            rule: "read-shop",
            sinks: &[&sink],
            // The loop keeps one; the other it opens comes and goes.
            sessions_open: 1.0,
        })
        .with_context(|| shop.picture())?;
    let alerts = format!("ALERTS{{namespace=\"{}\"}}", shop.namespace);
    prometheus.wait(&alerts, 20, |found| {
        found.len() == 1
            && found.iter().all(|alert| {
                alert.label("alertname") == "WeirPodsNotEnforced" && alert.label("alertstate") == "pending"
            })
    })?;
    Ok(())
}

fn weir_says(kubectl: &Kubectl, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(binary("weir")?)
        .args(arguments)
        .arg("--json")
        .env("KUBECONFIG", kubectl.kubeconfig())
        .env_remove("WEIR_SPOOL_DIR")
        .output()?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "weir {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn status_and_check_tell_how_it_stands(node: &Node) -> Result<()> {
    let weir = weir::shared(node)?;
    let shop = weir.shop("told")?;
    shop.apply_workload("report")?;
    shop.wait_condition("orders", "Enforced", "True Enforced")?;
    let status = wait_for("weir status to tell what the pod applied", 30, || {
        let status = weir_says(shop.kubectl(), &["status", "-n", &shop.namespace]).ok()?;
        status["pods"][0]["certificateNotAfter"]
            .is_i64()
            .then_some(status)
    })?;
    ensure!(status["unasked"] == serde_json::json!([]), "{status}");
    ensure!(
        status["pods"][0]["applied"][0]["policy"] == "orders"
            && status["pods"][0]["applied"][0]["generation"] == status["policies"][0]["generation"],
        "{status}"
    );
    let certificates: Vec<&str> = status["certificates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str())
        .collect();
    ensure!(certificates.contains(&"collector"), "{certificates:?}");
    for workload in status["weir"].as_array().context("workloads")? {
        ensure!(workload["ready"] == workload["wanted"], "{workload}");
    }

    // From here the database's name leads nowhere, and nothing else is wrong.
    let check = weir_says(shop.kubectl(), &["check", "-n", &shop.namespace])?;
    let bad: Vec<&Value> = check
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finding| finding["level"] != "good")
        .collect();
    ensure!(bad.is_empty(), "{bad:?}");
    // A pod that is made without a sidecar is one.
    let sleep = ["python3", "-c", "import time; time.sleep(3600)"];
    shop.apply_client("forgotten", "{}", "{weir-demo: shop}", &sleep)?;
    shop.wait_condition("orders", "Enforced", "False Uninjected")?;
    let check = weir_says(shop.kubectl(), &["check", "-n", &shop.namespace])?.to_string();
    ensure!(
        check.contains("1 pods without a sidecar") && check.contains("forgotten"),
        "{check}"
    );
    Ok(())
}
