//! A kube-apiserver for one test, operators as processes, and sidecars made of our own client.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use control_api::TOKEN_AUDIENCE;
use control_api::client::{Held, now};
use control_api::identity::Identity;
use control_api::peer::{OPERATOR_NAME, PodIdentity};
use control_api::proto::policies_client::PoliciesClient;
use control_api::proto::{self, operator_message, sidecar_message};
use control_api::tls::{Alpn, client_config, connect_channel};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, Config};
use operator::ca::Authority;
use operator::ca::store::{Store, StoreConfig};
use serde_json::{Value, json};
use test_support::cluster::{self, Release};
use test_support::{Process, Signal, wait_for_async};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// An API server with our definitions; it is gone with the value.
pub(crate) struct ApiServer {
    server: cluster::ApiServer,
    release: Release,
    pub(crate) client: Client,
}

/// Runs a test on an API server of its own, if there can be one here.
pub(crate) async fn on<Done: Future<Output = ()>>(release: Release, test: impl FnOnce(ApiServer) -> Done) {
    match cluster::api_servers() {
        Ok(()) => test(ApiServer::start(release).await).await,
        Err(not_here) => cluster::leave_out(&not_here).expect("a test that may be left out"),
    }
}

impl ApiServer {
    async fn start(release: Release) -> Self {
        let server = tokio::task::spawn_blocking(move || cluster::ApiServer::start(release))
            .await
            .expect("joined")
            .expect("an API server");
        let kubeconfig = server.folder().join("admin.conf");
        let parsed = kube::config::Kubeconfig::read_from(kubeconfig).expect("kubeconfig");
        let config = Config::from_custom_kubeconfig(parsed, &kube::config::KubeConfigOptions::default())
            .await
            .expect("config");
        let server = Self {
            server,
            release,
            client: Client::try_from(config).expect("client"),
        };
        for (_, yaml) in crd_types::crds_yaml().expect("definitions") {
            server
                .apply(serde_yaml::from_str(&yaml).expect("a definition"))
                .await;
        }
        for namespace in ["weir-system", "shop", "other"] {
            server
                .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
                .await;
        }
        wait_for_async("the definitions", 30, async || {
            server.get("DatabaseAccessPolicy", "shop", "none").await.ok()
        })
        .await
        .expect("served");
        server
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.server.folder().join("admin.conf")
    }

    /// A kubeconfig of the operator's own service account, with the rights that the chart gives it and no others.
    pub(crate) async fn operator_account(&self) -> PathBuf {
        let chart = test_support::workspace_root().join("charts/weir");
        let text = self
            .server
            .kubectl()
            .helm(&[
                "template",
                "weir",
                chart.to_str().expect("text"),
                "--namespace=weir-system",
                "--kube-version=1.33.0",
                "--show-only=templates/operator/rbac.yaml",
            ])
            .expect("rendered");
        for document in text
            .split("\n---\n")
            .filter(|document| document.contains("kind:"))
        {
            self.apply(serde_yaml::from_str(document).expect("a manifest"))
                .await;
        }
        self.server
            .kubeconfig_for("weir-system", "weir-operator")
            .expect("a kubeconfig")
    }

    /// How many requests the API server has answered, by its own count: (verb, resource, subresource).
    pub(crate) async fn requests(&self) -> BTreeMap<(String, String, String), u64> {
        let request = hyper::Request::get("/metrics")
            .body(Vec::new())
            .expect("a request");
        let page = self.client.request_text(request).await.expect("metrics");
        let mut counts = BTreeMap::new();
        for line in page
            .lines()
            .filter(|line| line.starts_with("apiserver_request_total{"))
        {
            let label = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                Some(rest.split_once('"')?.0.to_owned())
            };
            let (Some(verb), Some(resource), Some(subresource), Some(count)) = (
                label(",verb"),
                label(",resource"),
                label(",subresource"),
                line.rsplit(' ')
                    .next()
                    .and_then(|count| count.parse::<f64>().ok()),
            ) else {
                continue;
            };
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // reason: a small count
            let count = count as u64;
            *counts.entry((verb, resource, subresource)).or_default() += count;
        }
        counts
    }

    pub(crate) fn folder(&self) -> &Path {
        self.server.folder()
    }

    pub(crate) fn api(&self, api_version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        if kind == "DatabaseAccessPolicy" {
            resource.plural = "databaseaccesspolicies".to_owned();
        }
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// An address of its own for each operator: replicas share their ports, and both releases run at once.
    pub(crate) fn address(&self, last: u8) -> Ipv4Addr {
        match self.release {
            Release::Node => Ipv4Addr::new(127, 77, 0, last),
            Release::Next => Ipv4Addr::new(127, 78, 0, last),
        }
    }

    /// Server-side apply.
    pub(crate) async fn apply(&self, object: Value) -> DynamicObject {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let api = self.api(
            text("/apiVersion").expect("apiVersion"),
            text("/kind").expect("kind"),
            text("/metadata/namespace"),
        );
        let params = PatchParams::apply("test").force();
        api.patch(
            text("/metadata/name").expect("name"),
            &params,
            &Patch::Apply(&object),
        )
        .await
        .expect("applied")
    }

    /// A pod's projected token, as the kubelet would ask for it.
    pub(crate) async fn token(&self, namespace: &str, account: &str, pod: &str, uid: &str) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = serde_json::from_value(json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"audiences": [TOKEN_AUDIENCE], "expirationSeconds": 3600,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}},
        }))
        .expect("a token request");
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .expect("a token");
        answer.status.expect("a status").token
    }

    pub(crate) fn api_of(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let api_version = match kind {
            "Pod" | "Secret" | "ConfigMap" => "v1",
            "Event" => "events.k8s.io/v1",
            "Lease" => "coordination.k8s.io/v1",
            _ => "weir.dev/v1alpha1",
        };
        self.api(api_version, kind, Some(namespace))
    }

    pub(crate) async fn get(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, kube::Error> {
        let object = self.api_of(kind, namespace).get_opt(name).await?;
        Ok(object.map(|object| serde_json::to_value(object).expect("JSON")))
    }

    pub(crate) async fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let list = self
            .api_of(kind, namespace)
            .list(&kube::api::ListParams::default())
            .await
            .expect("listed");
        list.into_iter()
            .map(|object| serde_json::to_value(object).expect("JSON"))
            .collect()
    }

    pub(crate) async fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let params = kube::api::DeleteParams::default().grace_period(0);
        self.api_of(kind, namespace)
            .delete(name, &params)
            .await
            .expect("deleted");
    }

    /// A running pod; `None`: without a sidecar. Gives its UID.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: Value,
        captured: Option<Value>,
    ) -> String {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        });
        if let Some(captured) = captured {
            pod["metadata"]["annotations"] = json!({"weir.dev/captured": captured.to_string()});
            pod["spec"]["initContainers"] =
                json!([{"name": "weir-sidecar", "image": "weir", "restartPolicy": "Always"}]);
        }
        self.apply(pod).await;
        self.pod_status(namespace, name, json!({"phase": "Running"}))
            .await
    }

    pub(crate) async fn pod_status(&self, namespace: &str, name: &str, status: Value) -> String {
        let pod = self
            .api_of("Pod", namespace)
            .patch_status(
                name,
                &PatchParams::default(),
                &Patch::Merge(&json!({"status": status})),
            )
            .await
            .expect("status");
        pod.metadata.uid.expect("a UID")
    }

    /// Waits until this replica holds the lease.
    pub(crate) async fn led_by(&self, replica: &str, seconds_max: u64) {
        wait_for_async(&format!("{replica} to lead"), seconds_max, async || {
            let lease = self.get("Lease", "weir-system", "weir-operator").await.ok()??;
            (lease["spec"]["holderIdentity"] == replica).then_some(())
        })
        .await
        .expect("a leader");
    }

    /// Waits until a policy's status is so.
    pub(crate) async fn policy_is(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        so: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let found = wait_for_async(what, 40, async || {
            let policy = self.get("DatabaseAccessPolicy", namespace, name).await.ok()??;
            last = policy["status"].clone();
            so(&last).then_some(policy)
        })
        .await;
        found.unwrap_or_else(|error| panic!("{error}; the last status was {last:#}"))
    }
}

/// A condition of a status as (status, reason).
pub(crate) fn condition<'a>(status: &'a Value, type_: &str) -> (&'a str, &'a str) {
    status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_)
        .map(|condition| {
            (
                condition["status"].as_str().unwrap_or_default(),
                condition["reason"].as_str().unwrap_or_default(),
            )
        })
        .unwrap_or_default()
}

/// One replica. Each has a loopback address of its own.
pub(crate) struct Operator {
    pub(crate) process: Process,
    pub(crate) address: String,
}

impl Operator {
    pub(crate) async fn start(
        server: &ApiServer,
        name: &str,
        address: Ipv4Addr,
        ports: (u16, u16, u16),
    ) -> Self {
        Self::start_as(server, &server.kubeconfig(), name, address, ports).await
    }

    /// With the rights of this kubeconfig.
    pub(crate) async fn start_as(
        server: &ApiServer,
        kubeconfig: &Path,
        name: &str,
        address: Ipv4Addr,
        ports: (u16, u16, u16),
    ) -> Self {
        let settings = server.folder().join(format!("{name}.yaml"));
        let (webhook, grpc, admin) = ports;
        std::fs::write(
            &settings,
            format!(
                "webhook: {{url: 'https://{address}:{webhook}'}}\nports: {{webhook: {webhook}, grpc: {grpc}, admin: {admin}}}\n"
            ),
        )
        .expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-operator"));
        command
            .env("KUBECONFIG", kubeconfig)
            .env("WEIR_POD_NAME", name)
            .env("WEIR_POD_IP", address.to_string())
            .env("WEIR_SETTINGS", &settings)
            .env("WEIR_LOG", "info,operator=debug");
        let log = server.folder().join(format!("{name}.log"));
        let process = Process::start(command, &log, Signal::Kill).expect("weir-operator");
        let operator = Self {
            process,
            address: format!("{address}:{grpc}"),
        };
        // Other replicas find it as a pod of Weir's namespace.
        server
            .apply(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "weir-system"},
                "spec": {"containers": [{"name": "operator", "image": "weir"}]},
            }))
            .await;
        let ips = json!({"phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}]});
        server.pod_status("weir-system", name, ips).await;
        let admin = format!("{address}:{admin}");
        let ready = wait_for_async("the operator to be ready", 30, async || {
            http_ok(&admin, "/readyz").await
        })
        .await;
        if ready.is_err() {
            panic!("not ready: {}", operator.process.log());
        }
        operator
    }
}

async fn http_ok(address: &str, path: &str) -> Option<()> {
    http(address, path)
        .await?
        .starts_with("HTTP/1.1 200")
        .then_some(())
}

/// A plain GET, head and body.
pub(crate) async fn http(address: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await.ok()?;
    Some(text)
}

/// Issues certificates as the operator would, from the same roots.
pub(crate) struct Issuer(Arc<Authority>);

impl Issuer {
    pub(crate) async fn open(server: &ApiServer) -> Self {
        let store = Store::open(
            server.client.clone(),
            StoreConfig::new("weir-system", "cluster.local"),
        )
        .await
        .expect("the roots");
        Self(store.authority().borrow().clone())
    }

    pub(crate) fn pod(&self, namespace: &str, service_account: &str, uid: &str) -> Held {
        let pod = PodIdentity {
            trust_domain: "cluster.local".to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_uid: uid.to_owned(),
        };
        self.held(|csr| self.0.issue_pod(csr, &pod, now()).expect("issued"))
    }

    pub(crate) fn collector(&self) -> Held {
        self.held(|csr| self.0.issue_collector(csr, now()).expect("issued"))
    }

    fn held(&self, issue: impl FnOnce(&[u8]) -> proto::IssueReply) -> Held {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key");
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .expect("request");
        let reply = issue(csr.der());
        Held {
            identity: Identity::from_der(reply.chain, key.serialize_der()),
            trust: self.0.trust(),
            renew_at: reply.renew_at,
        }
    }
}

pub(crate) fn channel(held: &Held, address: &str) -> tonic::transport::Channel {
    let config = client_config(&held.trust, Some(&held.identity), Alpn::H2).expect("configuration");
    connect_channel(address, OPERATOR_NAME, Arc::new(config)).expect("channel")
}

/// A sidecar as the operator sees it.
pub(crate) struct Sidecar {
    pub(crate) held: Held,
    pub(crate) uid: String,
    outgoing: mpsc::Sender<proto::SidecarMessage>,
    incoming: Streaming<proto::OperatorMessage>,
}

impl Sidecar {
    pub(crate) async fn connect(held: &Held, uid: &str, address: &str) -> Result<Self, Status> {
        Self::connect_with(held, uid, address, 0).await
    }

    /// With a snapshot in force already.
    pub(crate) async fn connect_with(
        held: &Held,
        uid: &str,
        address: &str,
        version_in_force: u64,
    ) -> Result<Self, Status> {
        let (outgoing, receiver) = mpsc::channel(8);
        let hello = proto::Hello {
            version: "test".to_owned(),
            version_in_force,
            ..proto::Hello::default()
        };
        outgoing
            .send(message(sidecar_message::Message::Hello(hello)))
            .await
            .expect("room");
        let incoming = PoliciesClient::new(channel(held, address))
            .follow(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self {
            held: held.clone(),
            uid: uid.to_owned(),
            outgoing,
            incoming,
        })
    }

    /// Connects as soon as somebody listens.
    pub(crate) async fn connect_again(held: &Held, uid: &str, address: &str) -> Self {
        wait_for_async("a stream", 20, async || {
            Self::connect(held, uid, address).await.ok()
        })
        .await
        .expect("a stream")
    }

    /// The next snapshot, verified.
    pub(crate) async fn snapshot(&mut self) -> Result<proto::Snapshot, Status> {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(10), self.incoming.message())
                .await
                .expect("an answer in time")?
                .ok_or_else(|| Status::ok("closed"))?;
            if let Some(operator_message::Message::Snapshot(signed)) = message.message {
                return Ok(control_api::signed::verify(&signed, &self.held.trust, &self.uid).expect("signed"));
            }
        }
    }

    /// Whether a snapshot comes within a time in which it would have.
    pub(crate) async fn hears_nothing(&mut self, during: Duration) -> bool {
        tokio::time::timeout(during, self.incoming.message())
            .await
            .is_err()
    }

    pub(crate) async fn say(&self, said: sidecar_message::Message) {
        self.outgoing.send(message(said)).await.expect("room");
    }

    pub(crate) async fn ack(&self, version: u64) {
        let ack = proto::Ack {
            version,
            problems: Vec::new(),
        };
        self.say(sidecar_message::Message::Ack(ack)).await;
    }
}

fn message(message: sidecar_message::Message) -> proto::SidecarMessage {
    proto::SidecarMessage {
        message: Some(message),
    }
}

/// A policy for pods with `app: NAME`.
pub(crate) fn policy(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "database": {"engine": "PostgreSQL", "host": "db.shop.svc"},
        },
    })
}

/// What a pod says that captures that database.
pub(crate) fn captures() -> Option<Value> {
    Some(json!([{"host": "db.shop.svc", "port": 5432, "listen": "127.0.0.2:5432"}]))
}
