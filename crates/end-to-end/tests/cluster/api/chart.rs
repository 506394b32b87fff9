//! What helm makes of the charts, rendered for each release, and `deploy/`, which is printed from them.

use super::{Test, path_of};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use test_support::cluster::{self, ApiServer, Release, Said};
use test_support::workspace_root;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "a_value_that_nobody_reads_is_refused_by_its_path",
        a_value_that_nobody_reads_is_refused_by_its_path,
    ),
    (
        "deploy_is_what_the_charts_render",
        deploy_is_what_the_charts_render,
    ),
    (
        "every_object_is_taken_by_the_api_server",
        every_object_is_taken_by_the_api_server,
    ),
    (
        "it_renders_with_everything_on_and_everything_off",
        it_renders_with_everything_on_and_everything_off,
    ),
    ("lint_is_content", lint_is_content),
    (
        "plain_manifests_install_the_same",
        plain_manifests_install_the_same,
    ),
    (
        "the_operator_starts_anew_when_its_settings_change",
        the_operator_starts_anew_when_its_settings_change,
    ),
];

fn template(release: Release, more: &[&str]) -> Result<Said> {
    let version = format!("--kube-version={}.0", release.name());
    let chart = path_of("charts/weir")?;
    let arguments = ["template", "weir", &chart, "--namespace=weir-system", &version];
    cluster::helm()?.try_helm(&[&arguments[..], more].concat())
}

/// What the chart renders, hooks and tests too.
fn rendered(release: Release, more: &[&str]) -> Result<Vec<Value>> {
    let said = template(release, more)?;
    ensure!(said.ok, "{more:?}: {}", said.err);
    documents(&said.out)
}

/// The objects of a text of many.
fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = text
        .split("\n---\n")
        .map(|document| serde_yaml::from_str(document).with_context(|| document.to_owned()))
        .collect::<Result<Vec<Value>>>()?;
    Ok(documents
        .into_iter()
        .filter(|it| it["kind"].is_string())
        .collect())
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    objects.iter().filter_map(|it| it["kind"].as_str()).collect()
}

fn names(objects: &[Value]) -> Vec<String> {
    let name = |it: &Value| {
        format!(
            "{} {} {}",
            it["kind"], it["metadata"]["namespace"], it["metadata"]["name"]
        )
    };
    objects.iter().map(name).collect()
}

const EVERYTHING_ON: &str = "podMonitor.enabled=true,prometheusRule.enabled=true,dashboards.enabled=true,\
    flowSchema.enabled=true,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000,\
    imagePullSecrets={registry},operator.priorityClassName=high,collector.storage.storageClassName=fast,\
    operator.podAnnotations.a=b,operator.podLabels.c=d,collector.podAnnotations.a=b,collector.podLabels.c=d,\
    uninstall.force=true";
const EVERYTHING_OFF: &str = "operator.podDisruptionBudget.enabled=false,networkPolicy.enabled=false,\
    rbac.aggregateToView=false,installCheck.enabled=false,uninstall.guard=false,collector.storage.type=EmptyDir,\
    operator.nodeSelector=null,collector.nodeSelector=null,operator.replicas=1";

fn it_renders_with_everything_on_and_everything_off(release: Release) -> Result<()> {
    let on = rendered(release, &["--set", EVERYTHING_ON])?;
    let off = rendered(release, &["--set", EVERYTHING_OFF])?;
    for kind in [
        "PodMonitor",
        "PrometheusRule",
        "FlowSchema",
        "NetworkPolicy",
        "PodDisruptionBudget",
    ] {
        ensure!(kinds(&on).contains(kind), "{kind} is missing");
        ensure!(!kinds(&off).contains(kind), "{kind} is there");
    }
    for objects in [&on, &off, &rendered(release, &[])?] {
        let names = names(objects);
        let distinct: BTreeSet<&String> = names.iter().collect();
        ensure!(names.len() == distinct.len(), "one twice: {names:?}");
        let pods = objects.iter().filter(|it| is_restricted(it)).count();
        ensure!(pods >= 4, "only {pods} pods were looked at");
    }
    Ok(())
}

/// Requests on every container, no token that nobody asked for, read-only files. (Pod Security is asked of the API
/// server itself.) False: it is not about a pod.
fn is_restricted(object: &Value) -> bool {
    let pod = match object["kind"].as_str() {
        Some("Pod") => &object["spec"],
        Some("Deployment" | "StatefulSet" | "Job") => &object["spec"]["template"]["spec"],
        _ => return false,
    };
    let name = &object["metadata"]["name"];
    assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
    for container in pod["containers"].as_array().into_iter().flatten() {
        assert_eq!(
            container["securityContext"]["readOnlyRootFilesystem"], true,
            "{name}"
        );
        assert!(container["resources"]["requests"]["memory"].is_string(), "{name}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
    }
    true
}

/// Every rendered object that this API server serves, with the fields it knows, and in a namespace that enforces Pod
/// Security `restricted`: a pod template that is not clean would be warned of, a field that does not exist is refused.
fn every_object_is_taken_by_the_api_server(release: Release) -> Result<()> {
    let server = ApiServer::start(release)?;
    let kubectl = server.kubectl();
    kubectl.run(&["create", "namespace", "weir-system"])?;
    kubectl.run(&[
        "label",
        "namespace",
        "weir-system",
        "pod-security.kubernetes.io/enforce=restricted",
        "pod-security.kubernetes.io/warn=restricted",
    ])?;
    let mut taken = 0;
    for values in [EVERYTHING_ON, EVERYTHING_OFF] {
        for object in rendered(release, &["--set", values])? {
            // The Prometheus operator is not here.
            if object["apiVersion"] == "monitoring.coreos.com/v1" {
                continue;
            }
            let said = kubectl.try_with(
                &["create", "--dry-run=server", "--validate=strict", "-f", "-"],
                &object.to_string(),
            )?;
            ensure!(said.ok && !said.err.contains("Warning"), "{object}: {}", said.err);
            taken += 1;
        }
    }
    ensure!(taken > 60, "only {taken} objects");
    Ok(())
}

fn deploy_is_what_the_charts_render(_: Release) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let status = Command::new(workspace_root().join("scripts/generate-deploy.sh"))
        .arg(folder.path())
        .status()?;
    ensure!(status.success(), "scripts/generate-deploy.sh failed");
    for file in ["install.yaml", "monitoring.yaml"] {
        let fresh = std::fs::read_to_string(folder.path().join(file))?;
        let committed = std::fs::read_to_string(workspace_root().join("deploy").join(file))?;
        ensure!(fresh == committed, "deploy/{file} is stale: run make generate");
    }
    Ok(())
}

/// `kubectl apply` of deploy/ on an empty API server gives the objects that helm gives, but for hooks and tests.
fn plain_manifests_install_the_same(release: Release) -> Result<()> {
    let server = ApiServer::start(release)?;
    let manifests = path_of("deploy/install.yaml")?;
    // Once more, and by kustomize, changes nothing: it is how one upgrades.
    for how in [["-f", &manifests], ["-k", &path_of("deploy")?]] {
        let apply = [&["apply", "--server-side"], &how[..]].concat();
        let said = server.kubectl().try_run(&apply)?;
        ensure!(said.ok && said.err.is_empty(), "{}", said.err);
    }
    let plain = documents(&std::fs::read_to_string(&manifests)?)?;
    let plain: BTreeSet<String> = names(&plain).into_iter().collect();
    for object in rendered(release, &["--no-hooks"])? {
        if !object["metadata"]["annotations"]["helm.sh/hook"].is_null() {
            continue;
        }
        let name = names(std::slice::from_ref(&object)).concat();
        ensure!(plain.contains(&name), "{name} is not in deploy/install.yaml");
    }
    Ok(())
}

fn a_value_that_nobody_reads_is_refused_by_its_path(release: Release) -> Result<()> {
    for (set, says) in [
        ("operator.replica=3", "replica"),
        ("operator.replicas=0", "operator/replicas"),
        ("injection.image=a b", "injection/image"),
        ("injection.resources.cpuRequest=", "cpuRequest"),
        ("collector.storage.type=HostPath", "storage/type"),
        ("image.digest=latest", "image/digest"),
        ("uninstall.force=maybe", "uninstall/force"),
        ("operator.snapshotValidSeconds=1", "snapshotValidSeconds"),
        ("webhook.failurePolicy=Ignore", "webhook"),
        ("nonsense=1", "nonsense"),
    ] {
        let said = template(release, &["--set", set])?;
        let error = said.err.replace('.', "/").replace("//", "/");
        ensure!(!said.ok, "{set} was taken");
        ensure!(error.contains(says), "{set}: {error}");
    }
    Ok(())
}

fn lint_is_content(_: Release) -> Result<()> {
    for chart in ["charts/weir", "charts/weir-crds"] {
        cluster::helm()?.helm(&["lint", "--strict", &path_of(chart)?])?;
    }
    Ok(())
}

/// The checksum makes pods start anew when settings change, and only then.
fn the_operator_starts_anew_when_its_settings_change(release: Release) -> Result<()> {
    let checksum = |more: &[&str]| -> Result<String> {
        let objects = rendered(release, more)?;
        let deployment = objects
            .iter()
            .find(|it| it["kind"] == "Deployment")
            .context("no Deployment")?;
        let checksum = &deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"];
        Ok(checksum.as_str().context("no checksum")?.to_owned())
    };
    let before = checksum(&[])?;
    ensure!(before == checksum(&[])?, "it is another one each time");
    ensure!(
        before == checksum(&["--set", "podMonitor.enabled=true"])?,
        "for nothing"
    );
    ensure!(
        before != checksum(&["--set", "injection.spoolSize=2Gi"])?,
        "it stays"
    );
    Ok(())
}
