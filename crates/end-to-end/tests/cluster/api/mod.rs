//! Tests against API servers alone. Each runs once for each release.

mod admission;
mod advice;
mod backstop;
mod chart;
mod cli;
mod definitions;
mod examples;
mod golden;
mod hooks;
mod manifests;
mod monitoring;
mod pods;
mod secrets;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::Command;
use test_support::cluster::{ApiServer, Release, Said};
use test_support::{Process, Signal, free_port};

/// A test: starts an API server of its own ([`server`]), because definitions and webhooks are seen by the whole of it.
pub(crate) type Test = fn(Release) -> Result<()>;

/// Every module with its tests.
pub(crate) const MODULES: &[(&str, &[(&str, Test)])] = &[
    ("admission", admission::TESTS),
    ("advice", advice::TESTS),
    ("backstop", backstop::TESTS),
    ("chart", chart::TESTS),
    ("cli", cli::TESTS),
    ("definitions", definitions::TESTS),
    ("examples", examples::TESTS),
    ("golden", golden::TESTS),
    ("hooks", hooks::TESTS),
    ("manifests", manifests::TESTS),
    ("monitoring", monitoring::TESTS),
    ("pods", pods::TESTS),
    ("secrets", secrets::TESTS),
];

/// A path in the source tree, for programs that run elsewhere.
pub(crate) fn path_of(path: &str) -> Result<String> {
    let path = test_support::workspace_root().join(path);
    Ok(path.to_str().context("the path is text")?.to_owned())
}

/// A fresh API server that serves our definitions.
pub(crate) fn server(release: Release) -> Result<ApiServer> {
    let server = ApiServer::start(release)?;
    let crds = &path_of("crds")?;
    server.kubectl().run(&["apply", "--server-side", "-f", crds])?;
    server
        .kubectl()
        .run(&["wait", "--for=condition=Established", "--timeout=60s", "-f", crds])?;
    Ok(server)
}

/// The sidecar's image of the golden pods.
const IMAGE: &str = "--set=injection.image=registry.example.com/weir:1.0.0";

/// A fresh API server with both charts, as `helm install` puts them there, and with the image of the golden pods.
pub(crate) fn installed(release: Release) -> Result<ApiServer> {
    let server = ApiServer::start(release)?;
    install(&server, "weir-crds", &[])?;
    install(&server, "weir", &[IMAGE])?;
    // Policies and webhooks are in force a moment after they are stored, each for itself.
    let fake = "{apiVersion: v1, kind: Pod, metadata: {name: probe}, spec: {containers: [{name: weir-sidecar, image: a}]}}";
    let opted_in = "{apiVersion: v1, kind: Pod, metadata: {name: probe, annotations: {weir.dev/inject: 'true'}}, \
                    spec: {containers: [{name: a, image: a}]}}";
    test_support::wait_for("policies and webhooks to be in force", 30, || {
        let (fake, asked) = (created(&server, fake).ok()?, created(&server, opted_in).ok()?);
        (!fake.ok && asked.err.contains("failed calling webhook")).then_some(())
    })?;
    Ok(server)
}

/// The same without the webhooks: nobody is asked, and the API server alone decides.
pub(crate) fn backstop(release: Release) -> Result<ApiServer> {
    let server = ApiServer::start(release)?;
    install(&server, "weir-crds", &[])?;
    install_backstop(&server)?;
    Ok(server)
}

/// Installs the chart and takes its webhooks away.
pub(crate) fn install_backstop(server: &ApiServer) -> Result<()> {
    install(
        server,
        "weir",
        &[
            IMAGE,
            "--set=injection.allowedImages={registry.example.com/weir:0.9.0}",
        ],
    )?;
    server
        .kubectl()
        .run(&["delete", "mutatingwebhookconfiguration", "weir-pods"])?;
    server
        .kubectl()
        .run(&["delete", "validatingwebhookconfiguration", "weir-policies"])?;
    let sink = "{apiVersion: weir.dev/v1alpha1, kind: LineageSink, metadata: {name: a}, spec: {stdout: {}}}";
    let opted_in = "{apiVersion: v1, kind: Pod, metadata: {name: probe, annotations: {weir.dev/inject: 'true'}}, \
                    spec: {containers: [{name: a, image: a}]}}";
    test_support::wait_for(
        "the policies to be in force and the webhooks forgotten",
        30,
        || {
            let (sink, pod) = (created(server, sink).ok()?, created(server, opted_in).ok()?);
            (sink.ok && !pod.ok && !pod.err.contains("failed calling webhook")).then_some(())
        },
    )
}

/// Nothing runs the chart's pods, so hooks and readiness are not waited for.
fn install(server: &ApiServer, chart: &str, values: &[&str]) -> Result<()> {
    let path = path_of(&format!("charts/{chart}"))?;
    let install = [
        "install",
        chart,
        &path,
        "--namespace=weir-system",
        "--create-namespace",
        "--no-hooks",
    ];
    server.kubectl().helm(&[&install[..], values].concat()).map(drop)
}

fn created(server: &ApiServer, object: &str) -> Result<Said> {
    let create = ["create", "--dry-run=server", "-f", "-"];
    server.kubectl().try_with(&create, object)
}

/// What must be said to objects, gathered so that one run shows every wrong answer.
pub(crate) struct Answers<'a> {
    server: &'a ApiServer,
    asked: usize,
    wrong: Vec<String>,
}

impl<'a> Answers<'a> {
    pub(crate) fn of(server: &'a ApiServer) -> Self {
        Self {
            server,
            asked: 0,
            wrong: Vec::new(),
        }
    }

    /// kubectl with these arguments and this object on its input: it must pass, or be refused with these words.
    pub(crate) fn expect(
        &mut self,
        what: &str,
        arguments: &[&str],
        object: Option<&Value>,
        refused: Option<&str>,
    ) -> Result<()> {
        let object = object.map(Value::to_string).unwrap_or_default();
        let said = self.server.kubectl().try_with(arguments, &object)?;
        let right = match refused {
            None => said.ok,
            Some(words) => !said.ok && said.err.contains(words),
        };
        self.note(right, || {
            format!("{what}: {refused:?} was expected, not: {}{}", said.out, said.err)
        });
        Ok(())
    }

    /// Whoever may do everything with pods makes this one, which is not kept.
    pub(crate) fn pod(&mut self, what: &str, pod: &Value, refused: Option<&str>) -> Result<()> {
        self.expect(
            what,
            &["create", "--as=dev", "--dry-run=server", "-f", "-"],
            Some(pod),
            refused,
        )
    }

    pub(crate) fn note(&mut self, right: bool, what: impl FnOnce() -> String) {
        self.asked += 1;
        if !right {
            self.wrong.push(what());
        }
    }

    /// Fails with everything that was wrong, or if little was asked.
    pub(crate) fn finish(self, at_least: usize) -> Result<()> {
        ensure!(
            self.wrong.is_empty(),
            "{} of {}:\n{}",
            self.wrong.len(),
            self.asked,
            self.wrong.join("\n")
        );
        ensure!(self.asked >= at_least, "only {} were asked", self.asked);
        Ok(())
    }
}

/// An API server with both charts, and the operator that its webhooks call. Dropped, all of it ends.
pub(crate) struct Governed {
    /// The operator's process.
    _operator: Process,
    /// The API server.
    pub(crate) server: ApiServer,
}

/// Installs both charts and runs `weir-operator` beside the API server, with the rights of its service account and no
/// others. The chart's webhooks and settings are as they are, but for the addresses: nothing runs a Service here.
pub(crate) fn governed(release: Release) -> Result<Governed> {
    let server = installed(release)?;
    let kubectl = server.kubectl();
    let (webhook, grpc, admin) = (free_port()?, free_port()?, free_port()?);
    let base = format!("https://127.0.0.1:{webhook}");
    for (kind, name) in [
        ("mutatingwebhookconfiguration", "weir-pods"),
        ("validatingwebhookconfiguration", "weir-policies"),
    ] {
        let paths = kubectl.run(&[
            "get",
            kind,
            name,
            "-o",
            "jsonpath={.webhooks[*].clientConfig.service.path}",
        ])?;
        let mut patch = Vec::new();
        for (index, path) in paths.split_whitespace().enumerate() {
            let config = format!("/webhooks/{index}/clientConfig");
            patch.push(json!({"op": "replace", "path": config, "value": {"url": format!("{base}{path}")}}));
        }
        kubectl.run(&[
            "patch",
            kind,
            name,
            "--type=json",
            "-p",
            &Value::from(patch).to_string(),
        ])?;
    }
    let chart = "jsonpath={.data.settings\\.yaml}";
    let settings = kubectl.run(&[
        "get",
        "configmap",
        "weir-operator",
        "-n",
        "weir-system",
        "-o",
        chart,
    ])?;
    let mut settings: Value = serde_yaml::from_str(&settings)?;
    settings["webhook"] = json!({"url": base});
    settings["ports"] = json!({"webhook": webhook, "grpc": grpc, "admin": admin});
    let path = server.folder().join("operator.yaml");
    std::fs::write(&path, settings.to_string())?;
    let mut command = Command::new(test_support::binary("weir-operator")?);
    command
        .env(
            "KUBECONFIG",
            server.kubeconfig_for("weir-system", "weir-operator")?,
        )
        .env("WEIR_POD_NAME", "operator-1")
        .env("WEIR_POD_IP", "127.0.0.1")
        .env("WEIR_SETTINGS", &path);
    let mut operator = Process::start(command, &server.folder().join("operator.log"), Signal::Term)?;
    // It answers, and the API server knows and trusts it, once a policy is refused in the webhook's words.
    let probe = "{apiVersion: weir.dev/v1alpha1, kind: DatabaseAccessPolicy, metadata: {name: probe}, \
                 spec: {podSelector: {}, mask: [], database: {engine: PostgreSQL, host: db}}}";
    let mut last = String::new();
    let ready = test_support::wait_for("the operator's webhooks", 60, || {
        if operator.ended().is_some() {
            return Some(false);
        }
        let create = ["create", "--dry-run=server", "-n", "default", "-f", "-"];
        last = kubectl.try_with(&create, probe).ok()?.err;
        last.contains("did you mean \"masks\"?").then_some(true)
    });
    if !matches!(ready, Ok(true)) {
        let log = operator.log();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        anyhow::bail!("the operator does not answer: {last}{}", tail.join("\n"));
    }
    Ok(Governed {
        _operator: operator,
        server,
    })
}
