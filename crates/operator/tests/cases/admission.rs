//! The API server calls the webhooks: while certificates rotate, and while nobody answers.

use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};
use test_support::{Signal, wait_for_async};

use super::identity::rotate_roots;
use crate::FIRST;
use crate::support::{ApiServer, Operator, policy};

/// The chart's two configurations, but at an address in place of a Service. Without a bundle: that is the operator's.
async fn webhooks(server: &ApiServer, base: &str) {
    let webhook = |name: &str, path: &str, group: &str, version: &str, resource: &str, operations: Value| {
        json!({
            "name": name,
            "clientConfig": {"url": format!("{base}{path}")},
            "rules": [{"apiGroups": [group], "apiVersions": [version], "operations": operations,
                "resources": [resource], "scope": "Namespaced"}],
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 5,
            "admissionReviewVersions": ["v1"],
        })
    };
    let mut pods = webhook(
        "annotated.pods.weir.dev",
        "/pods",
        "",
        "v1",
        "pods",
        json!(["CREATE"]),
    );
    pods["sideEffects"] = json!("NoneOnDryRun");
    pods["reinvocationPolicy"] = json!("IfNeeded");
    pods["matchConditions"] = json!([{"name": "opted-in",
        "expression": "object.metadata.?annotations[?'weir.dev/inject'].orValue('false') != 'false'"}]);
    server
        .apply(
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "weir-pods"}, "webhooks": [pods]}),
        )
        .await;
    let changes = json!(["CREATE", "UPDATE"]);
    let policies = webhook(
        "policies.weir.dev",
        "/policies",
        "weir.dev",
        "v1alpha1",
        "databaseaccesspolicies",
        changes.clone(),
    );
    let sinks = webhook(
        "sinks.weir.dev",
        "/sinks",
        "weir.dev",
        "v1alpha1",
        "lineagesinks",
        changes,
    );
    server
        .apply(
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "weir-policies"}, "webhooks": [policies, sinks]}),
        )
        .await;
}

/// How many roots every webhook of both configurations carries; nothing while they differ.
async fn roots_in_bundles(server: &ApiServer) -> Option<usize> {
    use base64::Engine as _;
    let mut counts = Vec::new();
    for (kind, name) in [
        ("MutatingWebhookConfiguration", "weir-pods"),
        ("ValidatingWebhookConfiguration", "weir-policies"),
    ] {
        let api = server.api("admissionregistration.k8s.io/v1", kind, None);
        let object = serde_json::to_value(api.get(name).await.ok()?).ok()?;
        for webhook in object["webhooks"].as_array()? {
            let bundle = webhook["clientConfig"]["caBundle"].as_str()?;
            let pem = base64::engine::general_purpose::STANDARD.decode(bundle).ok()?;
            counts.push(String::from_utf8(pem).ok()?.matches("BEGIN CERTIFICATE").count());
        }
    }
    let first = *counts.first()?;
    counts.iter().all(|count| *count == first).then_some(first)
}

async fn bundles_hold(server: &ApiServer, count: usize) {
    wait_for_async("the roots in both configurations", 40, async || {
        (roots_in_bundles(server).await? == count).then_some(())
    })
    .await
    .expect("bundles");
}

/// Creates, and only asks: nothing is kept.
async fn try_create(server: &ApiServer, object: Value) -> Result<Value, String> {
    create(server, object, true).await
}

async fn create(server: &ApiServer, object: Value, dry_run: bool) -> Result<Value, String> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap()
            .to_owned()
    };
    let namespace = text("/metadata/namespace");
    let api = server.api(&text("/apiVersion"), &text("/kind"), Some(&namespace));
    let typed: DynamicObject = serde_json::from_value(object).unwrap();
    let params = PostParams {
        dry_run,
        ..PostParams::default()
    };
    match api.create(&params, &typed).await {
        Ok(object) => Ok(serde_json::to_value(object).unwrap()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => Err(error.to_string()),
    }
}

fn pod(name: &str, annotation: Option<&str>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "report"}},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "app"}]},
    });
    if let Some(annotation) = annotation {
        pod["metadata"]["annotations"] = json!({"weir.dev/inject": annotation});
    }
    pod
}

/// A policy that only the webhook refuses: the schema cannot know what makes sense.
fn wrong_policy(name: &str) -> Value {
    let mut wrong = policy("shop", name, "report");
    wrong["spec"]["rowFilters"] =
        json!([{"name": "own", "tables": ["public.orders"], "predicate": "tenant = = 1"}]);
    wrong
}

/// Both webhooks answer, by what they say.
async fn both_answer(server: &ApiServer) -> Result<(), String> {
    let injected = try_create(server, pod("asks", Some("true"))).await?;
    let first = &injected["spec"]["initContainers"][0]["name"];
    if first != "weir-sidecar" {
        return Err(format!("no sidecar in front: {injected}"));
    }
    try_create(server, policy("shop", "fine", "report")).await?;
    let refused = try_create(server, wrong_policy("wrong"))
        .await
        .expect_err("refused");
    if refused.contains("rowFilters") && !refused.contains("failed calling webhook") {
        Ok(())
    } else {
        Err(refused)
    }
}

async fn both_webhooks_outlive_a_rotated_certificate(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    webhooks(&server, &format!("https://{}:9443", server.address(61))).await;
    let rights = server.operator_account().await;
    let _operator = Operator::start_as(&server, &rights, "operator-1", server.address(61), FIRST).await;
    bundles_hold(&server, 1).await;
    both_answer(&server).await.expect("answers");

    // Asked without a pause while the root, the certificate and the bundles change.
    rotate_roots(&server).await;
    let mut asked = 0;
    while roots_in_bundles(&server).await != Some(2) {
        both_answer(&server).await.expect("answers while it rotates");
        asked += 1;
        assert!(asked < 2000, "the bundles never changed");
    }
    both_answer(&server).await.expect("answers by the new roots");
    println!("asked {asked} times while the root changed");

    // What somebody else writes into a bundle does not stay.
    server
        .apply(
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "weir-pods"},
            "webhooks": [{"name": "annotated.pods.weir.dev",
                "clientConfig": {"url": format!("https://{}:9443/pods", server.address(61)), "caBundle": ""},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                    "resources": ["pods"], "scope": "Namespaced"}],
                "sideEffects": "NoneOnDryRun", "admissionReviewVersions": ["v1"]}]}),
        )
        .await;
    bundles_hold(&server, 2).await;
    both_answer(&server).await.expect("answers after the repair");
}

async fn without_the_operator_only_those_who_opted_in_are_refused(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    webhooks(&server, &format!("https://{}:9443", server.address(62))).await;
    let mut operator = Operator::start(&server, "operator-1", server.address(62), FIRST).await;
    bundles_hold(&server, 1).await;
    both_answer(&server).await.expect("answers");
    operator.process.stop(Signal::Kill, 10).expect("killed");

    for annotation in ["true", "ture", ""] {
        let refused = create(&server, pod("opted-in", Some(annotation)), false)
            .await
            .expect_err("an opted-in pod never runs without its sidecar");
        assert!(
            refused.contains("failed calling webhook"),
            "{annotation}: {refused}"
        );
    }
    for (name, annotation) in [("bare", None), ("out", Some("false"))] {
        let created = create(&server, pod(name, annotation), false).await.expect(name);
        assert_eq!(created["spec"]["initContainers"], Value::Null, "{name}");
    }
    let refused = create(&server, policy("shop", "later", "report"), false)
        .await
        .expect_err("a policy that nobody read");
    assert!(refused.contains("failed calling webhook"), "{refused}");

    // It comes back, and with it everything else.
    let _operator = Operator::start(&server, "operator-1", server.address(62), FIRST).await;
    wait_for_async("the webhooks to answer again", 20, async || {
        both_answer(&server).await.ok()
    })
    .await
    .expect("answers");
    let created = create(&server, pod("opted-in", Some("true")), false)
        .await
        .expect("injected");
    assert_eq!(created["spec"]["initContainers"][0]["name"], "weir-sidecar");
}

on_each_release!(
    both_webhooks_outlive_a_rotated_certificate,
    without_the_operator_only_those_who_opted_in_are_refused,
);
