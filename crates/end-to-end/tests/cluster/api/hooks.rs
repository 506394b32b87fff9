//! The programs that the chart's hooks run, as the service accounts of the hooks: what they find out, what they say, and
//! that the chart's rights are enough for it. That helm runs them is seen on the node.

use super::{Test, created, path_of};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use test_support::binary;
use test_support::cluster::{ApiServer, Kubectl, Release};

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "install_check_is_content_with_an_operator",
        install_check_is_content_with_an_operator,
    ),
    (
        "install_check_says_why_the_webhook_does_not_answer",
        install_check_says_why_the_webhook_does_not_answer,
    ),
    (
        "removal_waits_for_pods_with_a_sidecar",
        removal_waits_for_pods_with_a_sidecar,
    ),
];

/// Applies the objects of a hook, but for its Job, and gives the kubeconfig of its service account.
fn account(server: &ApiServer, check: &str) -> Result<Kubectl> {
    let rendered = server.kubectl().helm(&[
        "template",
        "weir",
        &path_of("charts/weir")?,
        "--namespace=weir-system",
        "--kube-version=1.33.0",
        &format!("--show-only=templates/hooks/{check}.yaml"),
    ])?;
    for object in rendered
        .split("\n---\n")
        .filter(|object| !object.contains("kind: Job"))
    {
        server.kubectl().apply("weir-system", object)?;
    }
    let kubeconfig = server.kubeconfig_for("weir-system", &format!("weir-{check}"))?;
    Ok(Kubectl::chosen(&kubeconfig))
}

/// Runs weir-operator with these arguments, as that account: its exit code, and what it printed.
fn check(account: &Path, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(binary("weir-operator")?)
        .args(arguments)
        .env("KUBECONFIG", account)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(said)?))
}

fn install_check_is_content_with_an_operator(release: Release) -> Result<()> {
    let governed = super::governed(release)?;
    let account = account(&governed.server, "install-check")?;
    let look = ["install-check", "--namespace=weir-system", "--timeout-seconds=20"];
    let (code, said) = check(account.kubeconfig(), &look)?;
    ensure!(
        code == Some(0) && said.contains("the API server reaches the webhook"),
        "{code:?}: {said}"
    );
    Ok(())
}

fn install_check_says_why_the_webhook_does_not_answer(release: Release) -> Result<()> {
    let mut server = super::installed(release)?;
    let account = account(&server, "install-check")?;
    let look = |account: &Kubectl| {
        check(
            account.kubeconfig(),
            &["install-check", "--namespace=weir-system", "--timeout-seconds=2"],
        )
    };
    // No operator runs here.
    let (code, said) = look(&account)?;
    ensure!(code == Some(1), "{code:?}: {said}");
    for words in [
        "the webhook does not answer, for 2 seconds now",
        "failed calling webhook \"policies.weir.dev\"",
        "kubectl -n weir-system get pods",
        "port 9443",
    ] {
        ensure!(said.contains(words), "no `{words}` in: {said}");
    }
    // Its rights reach nothing else.
    for wrong in [["get", "dap"], ["list", "secrets"], ["delete", "dap"]] {
        let may = server.kubectl().try_run(&[
            "auth",
            "can-i",
            wrong[0],
            wrong[1],
            "-n",
            "weir-system",
            "--as=system:serviceaccount:weir-system:weir-install-check",
        ])?;
        ensure!(!may.ok, "it may {wrong:?}");
    }
    server
        .kubectl()
        .run(&["delete", "validatingwebhookconfiguration", "weir-policies"])?;
    test_support::wait_for("the webhook to be forgotten", 30, || {
        let sink =
            "{apiVersion: weir.dev/v1alpha1, kind: LineageSink, metadata: {name: a}, spec: {stdout: {}}}";
        created(&server, sink).ok()?.ok.then_some(())
    })?;
    let (code, said) = look(&account)?;
    ensure!(
        code == Some(1) && said.contains("the validating webhook is not in place"),
        "{code:?}: {said}"
    );
    // Nothing was stored by any of it.
    let policies = server.kubectl().run(&["get", "dap", "-A", "-o", "name"])?;
    ensure!(policies.is_empty(), "{policies}");
    server.kubectl().run(&["delete", "-f", &path_of("crds")?])?;
    let (code, said) = look(&account)?;
    ensure!(
        code == Some(1) && said.contains("install the chart weir-crds first"),
        "{code:?}: {said}"
    );
    server.pause();
    let (code, said) = look(&account)?;
    ensure!(
        code == Some(1) && said.contains("does not answer"),
        "{code:?}: {said}"
    );
    Ok(())
}

/// A Deployment of the namespace and one of its pods, with a sidecar.
fn governed(server: &ApiServer) -> Result<()> {
    let path = test_support::workspace_root().join("crates/pod-injection/tests/pods/plain.patched.yaml");
    let mut pod: Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
    pod["spec"]["serviceAccountName"] = json!("default");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "report", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "report"}},
            "template": {
                "metadata": {"labels": {"app": "report"}, "annotations": {"weir.dev/inject": "true"}},
                "spec": {"containers": [{"name": "app", "image": "a"}]},
            },
        },
    });
    server.kubectl().run(&["create", "namespace", "shop"])?;
    server.kubectl().apply("shop", &deployment.to_string())?;
    for (name, owner, hash) in [
        ("report-5d9c-a", "report-5d9c", json!("5d9c")),
        ("report-5d9c-b", "report-5d9c", json!("5d9c")),
        ("lone", "", Value::Null),
    ] {
        let mut pod = pod.clone();
        pod["metadata"]["name"] = json!(name);
        if !owner.is_empty() {
            pod["metadata"]["labels"]["pod-template-hash"] = hash;
            pod["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "controller": true,
                "uid": "8c1f0f7e-0000-4000-8000-000000000000",
            }]);
        }
        server.kubectl().apply("shop", &pod.to_string())?;
    }
    Ok(())
}

fn removal_waits_for_pods_with_a_sidecar(release: Release) -> Result<()> {
    let server = ApiServer::start(release)?;
    super::install(&server, "weir-crds", &[])?;
    super::install_backstop(&server)?;
    governed(&server)?;
    // The webhooks are back from here on.
    let values = "--set=injection.image=registry.example.com/weir:1.0.0";
    let upgrade = [
        "upgrade",
        "weir",
        &path_of("charts/weir")?,
        "--namespace=weir-system",
        "--no-hooks",
        values,
    ];
    server.kubectl().helm(&upgrade)?;
    let account = account(&server, "uninstall-check")?;
    let configurations = || -> Result<String> {
        let kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations";
        server.kubectl().run(&["get", kinds, "-o", "name"])
    };
    ensure!(configurations()?.lines().count() == 2, "{}", configurations()?);

    let (code, said) = check(account.kubeconfig(), &["uninstall-check"])?;
    ensure!(code == Some(1), "{code:?}: {said}");
    for words in [
        "3 pods still run with Weir's sidecar",
        "kubectl -n shop rollout restart deployment/report   # 2 pods",
        "kubectl -n shop delete pod lone",
        "helm uninstall --no-hooks",
    ] {
        ensure!(said.contains(words), "no `{words}` in: {said}");
    }
    ensure!(
        configurations()?.lines().count() == 2,
        "something was removed: {}",
        configurations()?
    );

    // By force it only says what it leaves.
    let (code, forced) = check(account.kubeconfig(), &["uninstall-check", "--force"])?;
    ensure!(
        code == Some(0) && forced.contains("3 pods keep their sidecars"),
        "{code:?}: {forced}"
    );
    ensure!(configurations()?.is_empty(), "{}", configurations()?);
    server.kubectl().helm(&upgrade)?;
    ensure!(configurations()?.lines().count() == 2, "{}", configurations()?);

    // What it tells one to do is done, word by word, and then it is content.
    let mut commands = 0;
    for line in said.lines().filter(|line| line.starts_with("  kubectl ")) {
        let told = Command::new("sh")
            .args(["-c", line.trim()])
            .env("KUBECONFIG", server.kubectl().kubeconfig())
            .env("PATH", server.kubectl().path())
            .output()?;
        ensure!(
            told.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&told.stderr)
        );
        commands += 1;
    }
    ensure!(commands == 3, "{commands} commands in: {said}");
    let annotations = server.kubectl().run(&[
        "get",
        "deployment",
        "report",
        "-n",
        "shop",
        "-o",
        "jsonpath={.spec.template.metadata}",
    ])?;
    ensure!(
        !annotations.contains("weir.dev/inject") && annotations.contains("restartedAt"),
        "{annotations}"
    );
    // Nobody makes the pods of the Deployment anew here.
    let (code, said) = check(account.kubeconfig(), &["uninstall-check"])?;
    ensure!(
        code == Some(1) && said.contains("2 pods still run"),
        "{code:?}: {said}"
    );
    for pod in ["report-5d9c-a", "report-5d9c-b"] {
        server
            .kubectl()
            .run(&["delete", "pod", pod, "-n", "shop", "--force", "--grace-period=0"])?;
    }
    let (code, said) = check(account.kubeconfig(), &["uninstall-check"])?;
    ensure!(
        code == Some(0) && said.contains("no pod has a sidecar"),
        "{code:?}: {said}"
    );
    ensure!(configurations()?.is_empty(), "{}", configurations()?);
    // A second try, after helm failed later, has nothing to remove and is content.
    let (code, said) = check(account.kubeconfig(), &["uninstall-check"])?;
    ensure!(code == Some(0), "{code:?}: {said}");
    server
        .kubectl()
        .helm(&["uninstall", "weir", "--namespace=weir-system", "--no-hooks"])?;

    Ok(())
}
