//! Who gets which certificate, from nothing: operator and collector as processes, tokens of the API server.

use std::path::Path;
use std::process::Command;

use control_api::client::{IdentityClient, IdentityConfig, IssueProblem};
use control_api::identity::Trust;
use serde_json::{Value, json};
use test_support::{Process, Signal, binary, free_port, wait_for_async};

use crate::FIRST;
use crate::support::{self, ApiServer, Operator, Sidecar, captures, condition, policy};

/// The roots as the collector's pod would mount them, once there are so many.
pub(crate) async fn roots(server: &ApiServer, count: usize) -> String {
    wait_for_async("the ConfigMap with the roots", 40, async || {
        let map = server
            .get("ConfigMap", "weir-system", "weir-trust")
            .await
            .ok()??;
        let pem = map["data"]["roots.pem"].as_str()?.to_owned();
        (pem.matches("BEGIN CERTIFICATE").count() == count).then_some(pem)
    })
    .await
    .expect("roots")
}

/// Asks for new roots, as a person would.
pub(crate) async fn rotate_roots(server: &ApiServer) {
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "weir-ca", "namespace": "weir-system", "annotations": {"weir.dev/rotate": "now"}}});
    server.apply(secret).await;
}

async fn account(server: &ApiServer, namespace: &str, name: &str) {
    server
        .apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}))
        .await;
}

/// A running pod of an account; gives its UID.
async fn pod_of(server: &ApiServer, namespace: &str, name: &str, account: &str, injected: bool) -> String {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "report"}},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "app"}]},
    });
    if injected {
        let said = json!({"version": "1", "image": "weir"});
        pod["metadata"]["labels"]["weir.dev/injected"] = json!("true");
        pod["metadata"]["annotations"] = json!({
            "weir.dev/captured": captures().unwrap().to_string(),
            "weir.dev/injected": said.to_string(),
        });
        pod["spec"]["initContainers"] =
            json!([{"name": "weir-sidecar", "image": "weir", "restartPolicy": "Always"}]);
    }
    server.apply(pod).await;
    server
        .pod_status(namespace, name, json!({"phase": "Running"}))
        .await
}

/// What a pod's process would do with this token and these roots.
fn client(folder: &Path, operator: &str, token: &str, roots: &str) -> IdentityClient {
    std::fs::create_dir_all(folder.join("identity")).unwrap();
    std::fs::write(folder.join("token"), token).unwrap();
    IdentityClient::new(IdentityConfig {
        operator: operator.to_owned(),
        token_file: folder.join("token"),
        identity_dir: folder.join("identity"),
        bootstrap: Trust::from_pem(roots).unwrap(),
        version: "test".to_owned(),
    })
}

async fn refusal(client: &IdentityClient) -> String {
    match client.obtain().await {
        Err(IssueProblem::Refused(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a certificate was issued"),
    }
}

struct Collector {
    process: Process,
    admin: String,
}

impl Collector {
    /// As the chart starts it.
    async fn start(folder: &Path, operator: &str, token: &str, roots: &str) -> Self {
        std::fs::create_dir_all(folder.join("identity")).unwrap();
        std::fs::write(folder.join("token"), token).unwrap();
        std::fs::write(folder.join("roots.pem"), roots).unwrap();
        let admin = format!("127.0.0.1:{}", free_port().unwrap());
        let mut command = Command::new(binary("weir-collector").unwrap());
        command
            .env("WEIR_INGEST", "127.0.0.1:0")
            .env("WEIR_LISTEN", "127.0.0.1:0")
            .env("WEIR_ADMIN", &admin)
            .env("WEIR_DATA_DIR", folder.join("data"))
            .env("WEIR_OPERATOR", operator)
            .env("WEIR_TOKEN_FILE", folder.join("token"))
            .env("WEIR_IDENTITY_DIR", folder.join("identity"))
            .env("WEIR_TRUST_BUNDLE_FILE", folder.join("roots.pem"));
        let process = Process::start(command, &folder.join("log"), Signal::Kill).unwrap();
        let collector = Self { process, admin };
        let connected = wait_for_async("the collector to be connected", 40, async || {
            let page = support::http(&collector.admin, "/metrics").await?;
            page.contains("weir_collector_operator_connected 1").then_some(())
        })
        .await;
        if connected.is_err() {
            panic!("not connected: {}", collector.process.log());
        }
        collector
    }
}

fn sink(generation: i64) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink",
        "metadata": {"name": "all", "namespace": "weir-system"},
        "spec": {"stdout": {}, "filter": {"namespaces": [format!("shop-{generation}")]}},
    })
}

async fn sink_is_ready(server: &ApiServer, generation: i64) {
    wait_for_async("the sink's status from the collector", 40, async || {
        let sink = server.get("LineageSink", "weir-system", "all").await.ok()??;
        (condition(&sink["status"], "Ready").0 == "True"
            && sink["status"]["observedGeneration"] == generation)
            .then_some(())
    })
    .await
    .expect("ready");
}

async fn operator_and_collector_begin_with_nothing_and_outlive_a_root(server: ApiServer) {
    account(&server, "weir-system", "weir-collector").await;
    let uid = pod_of(
        &server,
        "weir-system",
        "weir-collector-0",
        "weir-collector",
        false,
    )
    .await;
    let rights = server.operator_account().await;
    let operator = Operator::start_as(&server, &rights, "operator-1", server.address(51), FIRST).await;
    let first = roots(&server, 1).await;
    let token = server
        .token("weir-system", "weir-collector", "weir-collector-0", &uid)
        .await;
    let folder = server.folder().join("collector");
    let mut collector = Collector::start(&folder, &operator.address, &token, &first).await;
    server.apply(sink(1)).await;
    sink_is_ready(&server, 1).await;

    // A new root: what is open stays open, and the collector goes on with its old leaf.
    rotate_roots(&server).await;
    let both = roots(&server, 2).await;
    assert!(
        both.contains(first.trim()),
        "the old root stays until every leaf moved"
    );
    server.apply(sink(2)).await;
    sink_is_ready(&server, 2).await;
    // One that kept its certificate, and whose pod still mounts the old roots, comes back.
    collector.process.stop(Signal::Kill, 10).unwrap();
    let mut collector = Collector::start(&folder, &operator.address, &token, &first).await;
    collector.process.stop(Signal::Kill, 10).unwrap();
    // And so does one that kept nothing, with old roots and with new ones.
    for (name, pem) in [("with-old", &first), ("with-new", &both)] {
        let folder = server.folder().join(name);
        Collector::start(&folder, &operator.address, &token, pem).await;
    }

    // Whoever takes the roots away, or puts others there, is overruled.
    server.delete("ConfigMap", "weir-system", "weir-trust").await;
    assert_eq!(roots(&server, 2).await, both);

    let page = support::http(&format!("{}:8081", server.address(51)), "/metrics")
        .await
        .unwrap();
    for certificate in [
        "root",
        "previous_root",
        "pods_issuer",
        "control_issuer",
        "capture_root",
        "webhook",
    ] {
        let line = format!("weir_certificate_not_after_seconds{{certificate=\"{certificate}\"}}");
        let end: i64 = page
            .lines()
            .find_map(|metric| metric.strip_prefix(&line))
            .unwrap_or_else(|| panic!("no gauge {line}"))
            .trim()
            .parse()
            .unwrap();
        assert!(end > control_api::client::now(), "{line} {end}");
    }
}

async fn a_pod_gets_a_leaf_for_itself_or_nothing(server: ApiServer) {
    for (namespace, name) in [("shop", "report"), ("shop", "other"), ("other", "weir-collector")] {
        account(&server, namespace, name).await;
    }
    server.apply(policy("shop", "orders", "report")).await;
    let injected = pod_of(&server, "shop", "report-1", "report", true).await;
    let bare = pod_of(&server, "shop", "bare-1", "report", false).await;
    let fake = pod_of(&server, "other", "weir-collector-0", "weir-collector", false).await;
    let operator = Operator::start(&server, "operator-1", server.address(52), FIRST).await;
    let roots = roots(&server, 1).await;
    let folder = server.folder().join("pods");
    let who = |token: &str| client(&folder, &operator.address, token, &roots);

    let token = server.token("shop", "report", "report-1", &injected).await;
    let held = who(&token).obtain().await.expect("a leaf");
    assert!(held.renew_at < held.identity.not_after());
    // With it the pod's own stream opens.
    let mut sidecar = Sidecar::connect(&held, &injected, &operator.address)
        .await
        .expect("a stream");
    assert_eq!(sidecar.snapshot().await.expect("a snapshot").policies.len(), 1);

    let why = refusal(&who(&server.token("shop", "report", "bare-1", &bare).await)).await;
    assert!(why.contains("not injected"), "{why}");
    // The collector's account counts in Weir's own namespace alone.
    let why = refusal(&who(&server
        .token("other", "weir-collector", "weir-collector-0", &fake)
        .await))
    .await;
    assert!(why.contains("not injected"), "{why}");
    let why = refusal(&who("no-token")).await;
    assert!(why.contains("the token is refused"), "{why}");
    // Right pod, but a token for the API server.
    let other_audience = {
        let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
            kube::Api::namespaced(server.client.clone(), "shop");
        let request = serde_json::from_value(json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"audiences": ["https://kubernetes.default.svc"],
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "report-1", "uid": injected}},
        }))
        .unwrap();
        let answer = accounts
            .create_token_request("report", &kube::api::PostParams::default(), &request)
            .await
            .unwrap();
        answer.status.unwrap().token
    };
    let why = refusal(&who(&other_audience)).await;
    assert!(why.contains("the token is refused"), "{why}");

    // The pod goes: its token is worth nothing, and a new pod of the same name is another one.
    server.delete("Pod", "shop", "report-1").await;
    let again = pod_of(&server, "shop", "report-1", "report", true).await;
    assert_ne!(again, injected);
    let why = refusal(&who(&token)).await;
    assert!(
        why.contains("gone") || why.contains("the token is refused"),
        "{why}"
    );
    let page = support::http(&format!("{}:8081", server.address(52)), "/metrics")
        .await
        .unwrap();
    assert!(
        page.contains("weir_identity_requests_total{outcome=\"Pod\"} 1"),
        "{page}"
    );
    drop(sidecar);
}

on_each_release!(
    operator_and_collector_begin_with_nothing_and_outlive_a_root,
    a_pod_gets_a_leaf_for_itself_or_nothing,
);
