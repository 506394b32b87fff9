//! The Governance dashboard over pods that a kubelet runs: every query in a real Prometheus that scraped them.

use super::Test;
use super::weir::{self, Forward, masked};
use crate::prometheus::{Prometheus, panel_queries};
use anyhow::{Result, ensure};
use std::collections::HashMap;
use test_support::cluster::Node;

pub(super) const TESTS: &[(&str, Test)] = &[("every_panel_shows_these_pods", every_panel_shows_these_pods)];

fn every_panel_shows_these_pods(node: &Node) -> Result<()> {
    // Alone: the dashboard is over the whole cluster.
    let weir = weir::alone(node)?;
    let injected = ["get", "pods", "-A", "-l", "weir.dev/injected=true", "-o", "name"];
    weir.kubectl.wait(&injected, 120, str::is_empty)?;
    let shop = weir.shop("seen")?;
    shop.apply_file("lineage-endpoint.yaml")?;
    for workload in ["report", "worker"] {
        shop.apply_workload(workload)?;
    }
    for workload in ["deployment/report", "statefulset/worker"] {
        shop.wait_answer(workload, "open", 0, 90, masked)?;
    }
    shop.wait(
        &["get", "dap", "orders", "-o", "jsonpath={.status.enforcedPods}"],
        60,
        |out| out == "2",
    )?;

    // Two operators, the collector, two sidecars: through the API server, because pods need not be reachable from here.
    let api = Forward::to_api_server(weir.kubectl)?;
    let prometheus = Prometheus::reaching(weir.kubectl, 5, &mut |target| {
        let (namespace, pod, port) = (target.namespace, target.pod, target.port);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
        Ok((format!("127.0.0.1:{}", api.port), path))
    })?;
    // Refused to the application of a running pod, at least twice while Prometheus looks: a rate needs two points.
    let refused = || {
        let ask = ["python3", "/app/client.py", "once", "delete from orders"];
        let mut arguments = vec!["exec", "-n", &shop.namespace, "worker-0", "-c", "app", "--"];
        arguments.extend(ask);
        shop.kubectl().try_run(&arguments)
    };
    let said = refused()?;
    ensure!(
        !said.ok && said.out.contains("WEIR-"),
        "it was not refused: {}{}",
        said.out,
        said.err
    );
    prometheus.wait("sum(weir_sidecar_refusals_total) >= 1", 20, |found| {
        !found.is_empty()
    })?;
    refused()?;
    prometheus.wait("sum(weir_sidecar_refusals_total) >= 2", 20, |found| {
        !found.is_empty()
    })?;

    let wanted = HashMap::from([
        ("Matched pods", 2.0..3.0),
        ("Enforced pods", 2.0..3.0),
        ("Pods not enforced", 0.0..1.0),
        ("Pods that bypassed", 0.0..1.0),
        ("Masked cells", 0.1..1000.0),
        ("Verdicts by rule", 0.01..1000.0),
        ("Refusals", 0.001..1000.0),
        ("Latency added", 0.000_000_1..1.0),
        ("Streams of sidecars", 2.0..3.0),
    ]);
    let queries = prometheus.panels(60, |query, found| {
        wanted
            .get(query.panel.as_str())
            .is_none_or(|range| found.iter().any(|series| range.contains(&series.value)))
    })?;
    ensure!(queries == panel_queries()?.len(), "{queries}");
    Ok(())
}
