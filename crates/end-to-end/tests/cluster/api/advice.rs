//! Warnings for what would have no effect, and the type checker's word on every expression.

use super::{Answers, Test, backstop};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "an_annotation_in_the_wrong_place_is_warned_of",
        an_annotation_in_the_wrong_place_is_warned_of,
    ),
    (
        "every_expression_passes_the_type_checker",
        every_expression_passes_the_type_checker,
    ),
];

/// A workload with this of its own metadata, and this of its pod template's.
fn workload(kind: &str, own: &Value, template: &Value) -> Value {
    let (version, restart) = match kind {
        "Job" | "CronJob" => ("batch/v1", "Never"),
        _ => ("apps/v1", "Always"),
    };
    let mut pod = json!({"metadata": template, "spec": {"containers": [{"name": "app", "image": "a"}], "restartPolicy": restart}});
    if version == "apps/v1" {
        pod["metadata"]["labels"]["app"] = json!("x");
    }
    let spec = match kind {
        "Job" => json!({"template": pod}),
        "CronJob" => json!({"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": pod}}}),
        _ => json!({"selector": {"matchLabels": {"app": "x"}}, "template": pod}),
    };
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": own, "spec": spec});
    object["metadata"]["name"] = json!("x");
    object["metadata"]["namespace"] = json!("default");
    object
}

fn an_annotation_in_the_wrong_place_is_warned_of(release: Release) -> Result<()> {
    let server = backstop(release)?;
    let kubectl = server.kubectl();
    let mut answers = Answers::of(&server);
    let mut warned = |object: &Value, words: Option<&str>| -> Result<()> {
        let said = kubectl.try_with(&["create", "--dry-run=server", "-f", "-"], &object.to_string())?;
        let right = said.ok
            && match words {
                None => !said.err.contains("Warning"),
                Some(words) => said.err.matches("Warning").count() == 1 && said.err.contains(words),
            };
        answers.note(right, || {
            format!("{object}: {words:?} was expected, not: {}", said.err)
        });
        Ok(())
    };
    let (nowhere, label) = (
        Some("has no effect here"),
        Some("is an annotation of pods, not a label"),
    );
    let inject = json!({"weir.dev/inject": "true"});
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "Job",
        "CronJob",
    ] {
        for (own, template, words) in [
            (json!({}), json!({}), None),
            (
                json!({"annotations": inject}),
                json!({"annotations": inject}),
                None,
            ),
            (json!({}), json!({"annotations": inject}), None),
            (json!({"annotations": inject}), json!({}), nowhere),
            (json!({"labels": inject}), json!({}), label),
            (json!({}), json!({"labels": inject}), label),
        ] {
            warned(&workload(kind, &own, &template), words)?;
        }
    }
    let pod = |namespace: &str, more: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": more,
            "spec": {"containers": [{"name": "app", "image": "a"}]}});
        pod["metadata"]["name"] = json!("x");
        pod["metadata"]["namespace"] = json!(namespace);
        pod
    };
    warned(
        &pod("kube-system", json!({"annotations": inject})),
        Some("has no effect in this namespace"),
    )?;
    warned(&pod("default", json!({"labels": inject})), Some("not a label"))?;
    warned(&pod("default", json!({})), None)?;
    for (metadata, words) in [
        (json!({}), None),
        (json!({"labels": {"weir.dev/inject": "enabled"}}), None),
        (json!({"labels": {"weir.dev/inject": "required"}}), None),
        (
            json!({"labels": {"weir.dev/inject": "true"}}),
            Some("must be enabled or required"),
        ),
        (
            json!({"annotations": {"weir.dev/inject": "enabled"}}),
            Some("is a label of namespaces"),
        ),
    ] {
        let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        namespace["metadata"]["name"] = json!("made");
        warned(&namespace, words)?;
    }
    answers.finish(40)
}

/// The controller manager reads every expression against the types that it will meet; an API server alone compiles them
/// only.
fn every_expression_passes_the_type_checker(release: Release) -> Result<()> {
    let mut server = backstop(release)?;
    let wrong = r"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: wrong}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  validations: [{expression: 'object.spec.nonsense == 1'}]
";
    server.kubectl().apply("default", wrong)?;
    server.start_controllers(&["validatingadmissionpolicy-status-controller"])?;
    let checked = |text: &str| -> Option<Vec<(String, Value)>> {
        let list: Value = serde_json::from_str(text).ok()?;
        list["items"]
            .as_array()?
            .iter()
            .map(|it| {
                let name = it["metadata"]["name"].as_str()?.to_owned();
                let status = it["status"].as_object()?;
                (status.get("observedGeneration")? == &it["metadata"]["generation"])
                    .then(|| (name, status["typeChecking"]["expressionWarnings"].clone()))
            })
            .collect()
    };
    let said = server.kubectl().wait(
        &["get", "validatingadmissionpolicies", "-o", "json"],
        60,
        |text| checked(text).is_some(),
    )?;
    let checked = checked(&said).context("was read a moment ago")?;
    ensure!(checked.len() == 11, "{} policies", checked.len());
    for (name, warnings) in checked {
        // The checker does find what is wrong.
        ensure!(warnings.is_null() == (name != "wrong"), "{name}: {warnings}");
    }
    Ok(())
}
