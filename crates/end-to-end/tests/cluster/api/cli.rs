//! `weir status` and `weir check` on a real API server.

use super::{Test, server};
use crate::processes::{self, Processes};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use test_support::cluster::{ApiServer, Kubectl, Release};
use test_support::{binary, wait_for};

pub(super) const TESTS: &[(&str, Test)] = &[
    ("what_is_not_installed_is_said", what_is_not_installed_is_said),
    (
        "statuses_are_told_as_they_are_written",
        statuses_are_told_as_they_are_written,
    ),
    (
        "running_parts_tell_what_they_applied",
        running_parts_tell_what_they_applied,
    ),
    ("kubectl_finds_the_plugin", kubectl_finds_the_plugin),
];

struct Told {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Told {
    fn has(&self, words: &[&str]) -> Result<()> {
        for words in words {
            ensure!(
                self.out.contains(words) || self.err.contains(words),
                "no `{words}` in:\n{}\n{}",
                self.out,
                self.err
            );
        }
        Ok(())
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {}\n{}", self.out, self.err))
    }
}

fn run(program: &Path, kubeconfig: &Path, arguments: &[&str]) -> Result<Told> {
    let output = Command::new(program)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .env_remove("WEIR_SPOOL_DIR")
        .stdin(Stdio::null())
        .output()?;
    Ok(Told {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

fn weir(kubectl: &Kubectl, arguments: &[&str]) -> Result<Told> {
    run(&binary("weir")?, kubectl.kubeconfig(), arguments)
}

/// Without definitions nothing can be listed, and the mend is named; without webhooks pods would go unseen.
fn what_is_not_installed_is_said(release: Release) -> Result<()> {
    let bare = ApiServer::start(release)?;
    let status = weir(bare.kubectl(), &["status", "-A"])?;
    ensure!(status.code == Some(3), "{:?}", status.code);
    // Policies and sinks are asked for at once: which of them is told first is open.
    status.has(&["the cluster does not know ", "is Weir installed?", "weir check"])?;
    let check = weir(bare.kubectl(), &["check", "-A"])?;
    ensure!(check.code == Some(1), "{:?}", check.code);
    check.has(&[
        "BAD definition databaseaccesspolicies.weir.dev is not installed",
        "BAD definition lineagesinks.weir.dev is not installed",
        "mend: helm upgrade --install weir-crds",
    ])?;
    ensure!(!check.out.contains("policy "), "it went on: {}", check.out);
    drop(bare);

    let defined = server(release)?;
    let check = weir(defined.kubectl(), &["check", "-A"])?;
    ensure!(check.code == Some(1), "{:?}", check.code);
    check.has(&[
        "ok  definition databaseaccesspolicies.weir.dev",
        "BAD webhook configuration weir-pods is not there",
        "why:  pods are made without a sidecar",
        "BAD webhook configuration weir-policies is not there",
        "BAD weir-operator is not in namespace weir-system",
        "BAD weir-collector is not in namespace weir-system",
        "?   certificates",
    ])?;
    let status = weir(defined.kubectl(), &["status", "-A"])?;
    ensure!(status.code == Some(1), "{:?}", status.code);
    status.has(&[
        "not installed",
        "no policies",
        "no pods with a sidecar",
        "no sinks",
    ])?;
    let nowhere = weir(defined.kubectl(), &["status", "-n", "nowhere"])?;
    ensure!(nowhere.code == Some(3), "{:?}", nowhere.code);
    nowhere.has(&["there is no namespace nowhere"])
}

/// Reads columns by their heads: a table that does not line up gives nonsense.
fn row<'a>(text: &'a str, heads: &[&str], of: &str) -> Result<Vec<&'a str>> {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with(heads[0]));
    let head = lines
        .next()
        .with_context(|| format!("no table {heads:?} in:\n{text}"))?;
    let line = lines
        .find(|line| line.trim_start().starts_with(of))
        .with_context(|| format!("no row {of} in:\n{text}"))?;
    let starts = heads
        .iter()
        .map(|name| {
            head.find(name)
                .with_context(|| format!("no column {name} in: {head}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let ends = starts.iter().skip(1).copied().chain([line.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| {
            let cell = line
                .get(*start..end)
                .with_context(|| format!("short row: {line}"))?;
            ensure!(
                *start == 0 || line.as_bytes()[*start - 1] == b' ',
                "a cell runs over: {line}"
            );
            Ok(cell.trim())
        })
        .collect()
}

const POD_HEADS: [&str; 9] = [
    "POD",
    "SIDECAR",
    "READY",
    "RESTARTS",
    "APPLIED",
    "CERTIFICATE",
    "WAITING",
    "CAPTURES",
    "AGE",
];
const POLICY_HEADS: [&str; 8] = [
    "POLICY",
    "GENERATION",
    "MODE",
    "READY",
    "REASON",
    "MATCHED",
    "ENFORCED",
    "AGE",
];

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message,
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// No operator runs: what it would have written stands in the objects.
fn statuses_are_told_as_they_are_written(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    kubectl.namespace("shop")?;
    kubectl.namespace("other")?;
    let policy = |name: &str| {
        json!({"apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy", "metadata": {"name": name},
            "spec": {"podSelector": {"matchLabels": {"app": processes::APP}},
                "database": {"engine": "PostgreSQL", "host": "orders-db.shop.svc.invalid", "tls": {"mode": "Disable"}}}})
        .to_string()
    };
    let told = |name: &str, status: Value| -> Result<()> {
        let patch = json!({"status": status}).to_string();
        kubectl.run(&[
            "patch",
            "dap",
            name,
            "-n",
            "shop",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
        Ok(())
    };
    for name in ["orders", "payroll", "unseen"] {
        kubectl.apply("shop", &policy(name))?;
    }
    told(
        "orders",
        json!({"observedGeneration": 1, "matchedPods": 12, "enforcedPods": 3,
        "uninjectedPods": ["old-a", "old-b"], "uninjectedPodsCount": 7,
        "restartNeededPods": ["report-1"], "restartNeededPodsCount": 2,
        "conditions": [condition("Ready", "False", "Uninjected", "7 of 12 pods run without a sidecar"),
            condition("Accepted", "True", "Compiled", "the policy compiles"),
            condition("Degraded", "True", "ReceiptsLost", "2 pods ended without delivering all receipts")]}),
    )?;
    told(
        "payroll",
        json!({"observedGeneration": 1, "matchedPods": 2, "enforcedPods": 2,
        "conditions": [condition("Ready", "True", "Enforced", "all 2 pods enforce generation 1")]}),
    )?;
    let captures = json!([{"host": "orders-db.shop.svc", "port": 5432, "listen": "127.0.0.2:5432"}]);
    kubectl.apply("shop", &processes::injected_pod("report-1", &captures, 15090))?;
    processes::runs(kubectl, "shop", "report-1", processes::LOOPBACK)?;
    kubectl.apply("shop", &processes::plain_pod("old-a"))?;
    kubectl.apply(
        "other",
        "{apiVersion: weir.dev/v1alpha1, kind: LineageSink, metadata: {name: console}, spec: {stdout: {}}}",
    )?;

    let status = weir(kubectl, &["status", "-A"])?;
    ensure!(status.code == Some(1), "{:?}", status.code);
    let cells = row(&status.out, &POLICY_HEADS, "shop/orders")?;
    ensure!(
        cells[1..7] == ["1", "Enforce", "False", "Uninjected", "12", "3"],
        "{cells:?}"
    );
    let cells = row(&status.out, &POLICY_HEADS, "shop/payroll")?;
    ensure!(
        cells[1..7] == ["1", "Enforce", "True", "Enforced", "2", "2"],
        "{cells:?}"
    );
    let cells = row(&status.out, &POLICY_HEADS, "shop/unseen")?;
    ensure!(
        cells[3..6] == ["-", "not seen by the operator yet", "-"],
        "{cells:?}"
    );
    let cells = row(&status.out, &POD_HEADS, "shop/report-1")?;
    ensure!(
        cells[1..8]
            == [
                env!("CARGO_PKG_VERSION"),
                "yes",
                "0",
                "-",
                "-",
                "-",
                "orders-db.shop.svc:5432"
            ],
        "{cells:?}"
    );
    let heads = ["SINK", "KIND", "READY", "REASON", "DELIVERED", "FAILED", "LAG"];
    let cells = row(&status.out, &heads, "other/console")?;
    ensure!(cells[1..] == ["stdout", "-", "-", "-", "-", "-"], "{cells:?}");
    status.has(&["no operator runs in namespace weir-system"])?;
    let wide = status
        .out
        .lines()
        .filter(|line| line.chars().count() > 120)
        .count();
    ensure!(wide == 0, "{wide} lines are wider than a screen:\n{}", status.out);

    let json = weir(kubectl, &["status", "-n", "shop", "--json"])?.json()?;
    ensure!(json["policies"][0]["restartNeededPods"] == 2, "{json}");
    ensure!(
        json["pods"][0]["applied"].is_null() && json["pods"][0]["ready"] == true,
        "{json}"
    );
    ensure!(json["sinks"] == json!([]), "of another namespace: {json}");

    let check = weir(kubectl, &["check", "-n", "shop"])?;
    ensure!(check.code == Some(1), "{:?}", check.code);
    check.has(&[
        "BAD policy shop/orders: 7 pods without a sidecar",
        "why:  old-a, old-b and 5 more",
        "BAD policy shop/orders: 2 pods made before the policy named this host, port or Secret",
        "why:  report-1 and 1 more",
        "mend: kubectl rollout restart",
        "BAD policy shop/orders: ReceiptsLost",
        "ok  policy shop/payroll",
        "BAD policy shop/unseen: the operator has not seen its current form",
        "ok  database orders-db.shop.svc.invalid:5432 is not reachable from here",
    ])?;
    let json = weir(kubectl, &["check", "-n", "shop", "--json"])?.json()?;
    let findings = json.as_array().context("a list")?;
    ensure!(
        findings.iter().any(|it| it["level"] == "bad"
            && it["mend"]
                .as_str()
                .is_some_and(|mend| mend.contains("weir.dev/inject"))),
        "{json}"
    );

    // Who may read the namespace only is told what is missing, and sees the rest.
    kubectl.run(&["create", "serviceaccount", "reader", "-n", "shop"])?;
    kubectl.run(&[
        "create",
        "role",
        "reader",
        "-n",
        "shop",
        "--verb=get,list",
        "--resource=databaseaccesspolicies.weir.dev,lineagesinks.weir.dev,pods",
    ])?;
    kubectl.run(&[
        "create",
        "rolebinding",
        "reader",
        "-n",
        "shop",
        "--role=reader",
        "--serviceaccount=shop:reader",
    ])?;
    let reader = server.kubeconfig_for("shop", "reader")?;
    let status = run(&binary("weir")?, &reader, &["status", "-n", "shop"])?;
    status.has(&[
        "operator and collector are not shown",
        "may not read pods",
        "shop/payroll",
    ])?;
    let status = run(&binary("weir")?, &reader, &["status", "-A"])?;
    ensure!(status.code == Some(3), "{:?}", status.code);
    status.has(&["may not read"])
}

/// The real operator, collector and sidecar: what the pod applied, and all ends of certificates.
fn running_parts_tell_what_they_applied(release: Release) -> Result<()> {
    let server = server(release)?;
    let kubectl = server.kubectl();
    let weir_is = Processes::start(&server, &json!({"defaultAction": "Allow"}))?;
    let status = wait_for("the policy to be applied", 40, || {
        let told = weir(kubectl, &["status", "-n", "shop", "--json"])
            .ok()?
            .json()
            .ok()?;
        (told["policies"][0]["ready"] == "True"
            && told["pods"][0]["certificateNotAfter"].is_i64()
            && told["certificates"]
                .as_array()?
                .iter()
                .any(|it| it["name"] == "collector"))
        .then_some(told)
    })
    .with_context(|| format!("the operator said {}", weir_is.operator.log()))?;
    let applied = json!([{"policy": "orders", "generation": 1, "reason": "", "message": ""}]);
    ensure!(status["pods"][0]["applied"] == applied, "{status}");
    ensure!(status["unasked"] == json!([]), "{status}");
    let names: Vec<&str> = status["certificates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str())
        .collect();
    let own = format!("operator {}", processes::OPERATOR);
    ensure!(
        names
            == [
                "root",
                "capture root",
                "issuer of pods",
                "issuer of operator and collector",
                &own,
                "collector"
            ],
        "{names:?}"
    );

    kubectl.run(&[
        "patch",
        "dap",
        "orders",
        "-n",
        "shop",
        "--type=merge",
        "-p",
        r#"{"spec": {"mode": "Audit"}}"#,
    ])?;
    wait_for("generation 2 to be applied", 20, || {
        let told = weir(kubectl, &["status", "-n", "shop"]).ok()?;
        let cells = row(&told.out, &POD_HEADS, "shop/report-1").ok()?;
        (cells[4] == "orders@2" && cells[5] == "23h").then_some(())
    })?;
    let status = weir(kubectl, &["status", "-n", "shop"])?;
    let cells = row(&status.out, &["CERTIFICATE", "ENDS", "IN"], "collector")?;
    ensure!(cells[2] == "23h", "{cells:?}");

    let check = weir(kubectl, &["check", "-n", "shop"])?;
    let host = format!("127.0.0.1:{}", weir_is.postgres.port());
    check.has(&[
        "ok  certificates of operator and collector",
        &format!("BAD database {host} lets in without Weir, and without a password"),
    ])
}

/// A link named `kubectl-weir` on the PATH is a command of kubectl.
fn kubectl_finds_the_plugin(release: Release) -> Result<()> {
    let server = server(release)?;
    let folder = server.folder().join("plugins");
    std::fs::create_dir(&folder)?;
    let link = folder.join("kubectl-weir");
    std::os::unix::fs::symlink(binary("weir")?, &link)?;
    let path = format!(
        "{}:{}",
        folder.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let kubectl = |arguments: &[&str]| -> Result<Told> {
        let output = server
            .kubectl()
            .command(arguments)
            .env("PATH", &path)
            .stdin(Stdio::null())
            .output()?;
        Ok(Told {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    };
    kubectl(&["plugin", "list"])?.has(&["kubectl-weir"])?;
    let status = kubectl(&["weir", "status", "-A"])?;
    ensure!(status.code == Some(1), "{:?} {}", status.code, status.err);
    status.has(&["no policies"])?;
    kubectl(&["weir", "check", "--help"])?.has(&["Usage: kubectl weir check"])
}
