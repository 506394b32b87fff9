//! What the chart puts into the API server, while no operator answers: the webhooks fail closed for those who opted in
//! and for nobody else.

use super::{Test, created, installed};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[
    (
        "what_the_webhook_makes_passes_the_backstop_and_pod_security",
        what_the_webhook_makes_passes_the_backstop_and_pod_security,
    ),
    (
        "without_operator_only_opted_in_pods_are_refused",
        without_operator_only_opted_in_pods_are_refused,
    ),
];

fn without_operator_only_opted_in_pods_are_refused(release: Release) -> Result<()> {
    let server = installed(release)?;
    let said = |metadata: &str, spec: &str| {
        server.kubectl().try_with(
            &["create", "--dry-run=server", "-n", "default", "-f", "-"],
            &format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a{metadata}}}, spec: {{containers: [{{name: app, image: a}}]{spec}}}}}"),
        )
    };
    for annotation in ["", ", annotations: {weir.dev/inject: 'false'}"] {
        let said = said(annotation, "")?;
        ensure!(said.ok, "`{annotation}` should pass: {}", said.err);
    }
    for annotation in ["true", "yes", ""] {
        let said = said(&format!(", annotations: {{weir.dev/inject: '{annotation}'}}"), "")?;
        ensure!(
            !said.ok
                && said
                    .err
                    .contains("failed calling webhook \"annotated.pods.weir.dev\""),
            "`{annotation}` should wait for the operator: {}",
            said.err
        );
    }
    let fake = said(
        "",
        ", initContainers: [{name: weir-sidecar, image: a, restartPolicy: Always}]",
    )?;
    ensure!(
        !fake.ok && fake.err.contains("only the webhook makes weir-sidecar"),
        "a hand-written sidecar should be refused: {}",
        fake.err
    );
    Ok(())
}

/// The whole way, with a real operator: annotated, injected, and taken by a namespace that enforces Pod Security
/// `restricted`; whatever the pod brings along under the sidecar's name is made anew.
fn what_the_webhook_makes_passes_the_backstop_and_pod_security(release: Release) -> Result<()> {
    let governed = super::governed(release)?;
    let kubectl = governed.server.kubectl();
    let shop = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}}
---
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  podSelector: {matchLabels: {app: report}}
  database: {engine: PostgreSQL, host: orders-db.shop.svc, credentials: {secretRef: {name: orders-login}}}
  access: [{name: read, actions: [Select], tables: [public.orders]}]
";
    kubectl.apply("shop", shop)?;
    let pod = |name: &str, fake: Option<serde_json::Value>| {
        let clean = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "report"},
                "annotations": {"weir.dev/inject": "true"}},
            "spec": {
                "serviceAccountName": "default",
                "initContainers": fake.into_iter().collect::<Vec<_>>(),
                "containers": [{"name": "app", "image": "a", "securityContext": clean}],
            },
        })
    };
    let fake = json!({"name": "weir-sidecar", "image": "evil", "command": ["sleep", "infinity"],
        "env": [{"name": "WEIR_POLICY_DIR", "value": "/tmp"}], "securityContext": {"privileged": true}});
    // The operator sees a new policy a moment after it is stored.
    let mut last = String::new();
    test_support::wait_for("the policy to be known", 20, || {
        let said = created(&governed.server, &pod("probe", None).to_string()).ok()?;
        last = said.err;
        said.ok.then_some(())
    })
    .with_context(|| last)?;
    for (name, fake) in [("plain", None), ("forged", Some(fake))] {
        let said = kubectl.try_with(&["create", "-f", "-"], &pod(name, fake).to_string())?;
        ensure!(said.ok && said.err.is_empty(), "{name}: {}", said.err);
        let stored: serde_json::Value =
            serde_json::from_str(&kubectl.run(&["get", "pod", name, "-n", "shop", "-o", "json"])?)?;
        let inits = &stored["spec"]["initContainers"];
        ensure!(inits.as_array().is_some_and(|inits| inits.len() == 1), "{inits}");
        let sidecar = &inits[0];
        ensure!(
            sidecar["name"] == "weir-sidecar"
                && sidecar["image"] != "evil"
                && sidecar["command"].is_null()
                && sidecar["securityContext"]["runAsUser"] == 15090,
            "{sidecar}"
        );
    }
    let unselected = pod("other", None).to_string().replace("report", "other");
    let said = kubectl.try_with(&["create", "-f", "-"], &unselected)?;
    ensure!(
        !said.ok && said.err.contains("no DatabaseAccessPolicy selects this pod"),
        "{}",
        said.err
    );
    Ok(())
}
