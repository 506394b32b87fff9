//! Dashboard and alerts: their form, and every query in a real Prometheus that scraped the real processes.

use super::{Test, server};
use crate::processes::{self, Processes, plain_pod, runs};
use crate::prometheus::{self, Happened, Prometheus};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use test_support::cluster::Release;
use test_support::wait_for;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "the_dashboard_is_one_that_grafana_takes",
        the_dashboard_is_one_that_grafana_takes,
    ),
    (
        "every_alert_fires_on_what_it_is_for",
        every_alert_fires_on_what_it_is_for,
    ),
    ("every_query_shows_what_happened", every_query_shows_what_happened),
];

/// No Grafana is here: what it would stumble over is looked at instead.
fn the_dashboard_is_one_that_grafana_takes(_: Release) -> Result<()> {
    const UNITS: [&str; 5] = ["short", "ops", "cps", "s", "percentunit"];
    let dashboard = prometheus::dashboard()?;
    let mut variables = BTreeSet::new();
    for variable in dashboard["templating"]["list"].as_array().context("variables")? {
        variables.insert(variable["name"].as_str().context("a name")?);
    }
    ensure!(
        variables == BTreeSet::from(["datasource", "namespace"]),
        "{variables:?}"
    );
    ensure!(dashboard["uid"].is_string() && dashboard["schemaVersion"].is_u64() && dashboard["id"].is_null());
    let panels = dashboard["panels"].as_array().context("panels")?;
    let (mut ids, mut titles, mut cells) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().context("a title")?;
        ensure!(
            ids.insert(panel["id"].as_u64().context("an id")?),
            "{title}: its id is there twice"
        );
        ensure!(
            titles.insert((title, panel["type"].to_string())),
            "{title}: there twice"
        );
        let at = |name: &str| {
            panel["gridPos"][name]
                .as_u64()
                .with_context(|| format!("{title}: {name}"))
        };
        let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
        ensure!(
            w > 0 && h > 0 && x + w <= 24,
            "{title}: outside of the 24 columns"
        );
        for column in x..x + w {
            for line in y..y + h {
                ensure!(cells.insert((column, line)), "{title}: lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        ensure!(
            panel["description"]
                .as_str()
                .is_some_and(|text| text.ends_with('.')),
            "{title}: no description"
        );
        let unit = panel["fieldConfig"]["defaults"]["unit"]
            .as_str()
            .unwrap_or_default();
        ensure!(UNITS.contains(&unit), "{title}: unit {unit}");
        ensure!(
            panel["datasource"] == json!({"type": "prometheus", "uid": "${datasource}"}),
            "{title}: {}",
            panel["datasource"]
        );
        let targets = panel["targets"].as_array().context("targets")?;
        let references: BTreeSet<String> = targets.iter().map(|target| target["refId"].to_string()).collect();
        ensure!(
            !targets.is_empty() && references.len() == targets.len(),
            "{title}: its targets"
        );
        for target in targets {
            ensure!(
                target["legendFormat"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{title}: no legend"
            );
            ensure!(
                target["datasource"] == panel["datasource"],
                "{title}: another source"
            );
        }
    }
    for wanted in [
        "Verdicts by rule",
        "Masked cells",
        "Refusals",
        "Enforced and matched pods",
        "Latency added",
        "Receipts waiting",
    ] {
        ensure!(
            titles.iter().any(|(title, _)| *title == wanted),
            "no panel {wanted}"
        );
    }
    Ok(())
}

fn every_alert_fires_on_what_it_is_for(_: Release) -> Result<()> {
    let rules = super::path_of("charts/weir/alerts/weir.yaml")?;
    let test = super::path_of("tests/alerts/weir.test.yaml")?;
    for arguments in [["check", "rules", &rules], ["test", "rules", &test]] {
        let output = Command::new("promtool")
            .args(arguments)
            .output()
            .context("promtool of Debian's package prometheus: scripts/install-deps.sh cluster")?;
        ensure!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let tested = std::fs::read_to_string(test)?;
    let runbooks = std::fs::read_to_string(super::path_of("docs/runbooks.md")?)?;
    for (alert, _) in prometheus::alert_rules()? {
        ensure!(tested.contains(&alert), "{alert} is not tested");
        ensure!(
            runbooks.contains(&format!("\n## {alert}\n")),
            "{alert} has no runbook"
        );
    }
    Ok(())
}

/// The policy of the test: `customers` masked, `orders` open, all else refused.
fn policy() -> Value {
    json!({
        "defaultAction": "Deny",
        "access": [{"name": "read-sales", "actions": ["Select"], "tables": ["public.orders", "public.customers"]}],
        "masks": [{"name": "email", "columns": ["public.customers.email"], "mask": {"type": "Email"}}],
    })
}

fn every_query_shows_what_happened(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    let weir = Processes::start(&server, &policy())?;
    kubectl.apply(
        "weir-system",
        "{apiVersion: weir.dev/v1alpha1, kind: LineageSink, metadata: {name: all}, spec: {stdout: {}}}",
    )?;
    let prometheus = Prometheus::start(kubectl, &["weir-system", "shop"])?;
    ensure!(prometheus.targets() == 3, "{} targets", prometheus.targets());
    kubectl.wait(
        &[
            "get",
            "dap",
            "orders",
            "-n",
            "shop",
            "-o",
            "jsonpath={.status.enforcedPods}",
        ],
        40,
        |out| out == "1",
    )?;

    // What counts as a rate has to begin at something: once before and once after the first look.
    let statements = || -> Result<()> {
        let url = weir.database.url_through(weir.captured);
        let masked = psql(&url, "SELECT email FROM public.customers ORDER BY id LIMIT 5")?;
        ensure!(
            masked.lines().count() == 5 && masked.contains("***"),
            "not masked: {masked}"
        );
        psql(&url, "SELECT count(*) FROM public.orders")?;
        ensure!(
            psql(&url, "DELETE FROM public.orders").is_err(),
            "it was not refused"
        );
        Ok(())
    };
    statements()?;
    let cells = "sum(weir_sidecar_masked_cells_total)";
    prometheus.wait(cells, 20, |found| {
        found.first().is_some_and(|one| one.value == 5.0)
    })?;
    statements()?;
    prometheus.wait(cells, 20, |found| {
        found.first().is_some_and(|one| one.value == 10.0)
    })?;
    // A session that stays, for the panel of sessions; a pod without a sidecar, for those that are not enforced.
    let mut session = open_session(&weir.database.url_through(weir.captured))?;
    kubectl.apply("shop", &plain_pod("forgotten"))?;
    runs(kubectl, "shop", "forgotten", processes::LOOPBACK)?;

    let queries = prometheus.panels(&Happened {
        namespace: "shop",
        rule: "read-sales",
        sinks: &["weir-system/all"],
        sessions_open: 1.0,
    })?;
    ensure!(queries > 20, "only {queries} queries");
    session.kill().and_then(|()| session.wait())?;

    // A name that nobody shows makes a query that is always empty, and an alert that never fires.
    for (alert, expression) in prometheus::alert_rules()? {
        prometheus.query(&expression).with_context(|| alert.clone())?;
        for metric in prometheus::metrics_of(&expression) {
            ensure!(
                !prometheus.query(&metric)?.is_empty(),
                "{alert}: nobody shows {metric}"
            );
        }
    }
    let states = wait_for("the alerts to be looked at", 20, || {
        let states = prometheus.alerts().ok()?;
        (states.get("WeirPodsNotEnforced")? == "pending").then_some(states)
    })?;
    for (alert, state) in &states {
        // No webhook configuration is in this cluster: for one that is not there, nobody is trusted.
        let wanted = match alert.as_str() {
            "WeirPodsNotEnforced" | "WeirWebhookNotTrusted" => "pending",
            _ => "inactive",
        };
        ensure!(state == wanted, "{alert} is {state}");
    }
    ensure!(states.len() == prometheus::alert_rules()?.len(), "{states:?}");
    drop(weir);
    Ok(())
}

fn psql(url: &str, statement: &str) -> Result<String> {
    let output = Command::new(test_support::postgres_bin()?.join("psql"))
        .args(["-X", "-A", "-t", "-c", statement, url])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A logged-in session that does nothing.
fn open_session(url: &str) -> Result<std::process::Child> {
    use std::process::Stdio;
    Ok(Command::new(test_support::postgres_bin()?.join("psql"))
        .args(["-X", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}
