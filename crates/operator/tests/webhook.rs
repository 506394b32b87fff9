//! The webhook over real HTTPS: what it answers to reviews, and what it does with what is none.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use arc_swap::ArcSwap;
use base64::Engine as _;
use crd_types::{DatabaseAccessPolicy, LabelSelector};
use operator::webhook::{Metrics, View, Webhook, serve};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use service_runtime::drain::{self, Stage, Trigger};
use test_support::Certificates;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Default)]
struct Cluster {
    label: Option<String>,
    policies: Vec<Arc<DatabaseAccessPolicy>>,
    pods: Vec<String>,
    unread: bool,
}

struct Known(RwLock<Cluster>);

impl View for Known {
    fn ready(&self) -> bool {
        !self.0.read().unwrap().unread
    }

    fn namespace_label(&self, _: &str, _: &str) -> Option<String> {
        self.0.read().unwrap().label.clone()
    }

    fn policies_of(&self, _: &str) -> Vec<Arc<DatabaseAccessPolicy>> {
        self.0.read().unwrap().policies.clone()
    }

    fn manifests_of(&self, _: &str) -> Vec<Value> {
        let policies = self.policies_of("").into_iter();
        policies
            .map(|policy| {
                let mut written = serde_json::to_value(&*policy).unwrap();
                // What nobody said is no disagreement.
                written["spec"]["database"].as_object_mut().unwrap().remove("tls");
                written
            })
            .collect()
    }

    fn injected_pods(&self, _: &str, _: &LabelSelector) -> Vec<String> {
        self.0.read().unwrap().pods.clone()
    }

    fn trust_bundle(&self) -> String {
        "PEM".to_owned()
    }
}

struct Served {
    address: SocketAddr,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    roots: String,
    known: Arc<Known>,
    trigger: Trigger,
    ended: tokio::task::JoinHandle<std::io::Result<()>>,
}

fn server_config(certificates: &Certificates) -> rustls::ServerConfig {
    let chain = CertificateDer::pem_slice_iter(certificates.certificate.as_bytes());
    rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            chain.collect::<Result<_, _>>().unwrap(),
            PrivateKeyDer::from_pem_slice(certificates.key.as_bytes()).unwrap(),
        )
        .unwrap()
}

impl Served {
    async fn new(cluster: Cluster) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let certificates = Certificates::new(&["weir-operator.weir-system.svc"]).unwrap();
        let tls = Arc::new(ArcSwap::from_pointee(server_config(&certificates)));
        let known = Arc::new(Known(RwLock::new(cluster)));
        let webhook = Webhook {
            view: Arc::clone(&known) as Arc<dyn View>,
            settings: Arc::default(),
            namespace: "weir-system".into(),
            metrics: Metrics::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, drain) = drain::channel();
        let ended = tokio::spawn(serve(listener, Arc::clone(&tls), webhook, drain));
        Self {
            address,
            tls,
            roots: certificates.ca,
            known,
            trigger,
            ended,
        }
    }

    /// Sends a body and gives back status and text.
    async fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        self.try_post(&self.roots, path, body).await.unwrap()
    }

    async fn try_post(&self, roots: &str, path: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
        let mut store = rustls::RootCertStore::empty();
        store
            .add(CertificateDer::from_pem_slice(roots.as_bytes()).unwrap())
            .unwrap();
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(store)
            .with_no_client_auth();
        let name = ServerName::try_from("weir-operator.weir-system.svc").unwrap();
        let stream = TcpStream::connect(self.address).await?;
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        let head = format!(
            "POST {path}?timeout=5s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        // A body that is too long is answered before it has been read.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    async fn review(&self, path: &str, request: Value) -> Value {
        let review =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let (status, body) = self.post(path, review.to_string().as_bytes()).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        answer["response"].clone()
    }
}

fn policy() -> Arc<DatabaseAccessPolicy> {
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"podSelector": {}, "database": {"engine": "PostgreSQL", "host": "orders-db.shop.svc"}},
        }))
        .unwrap(),
    )
}

fn pod_request(pod: Value) -> Value {
    json!({"uid": "u-1", "operation": "CREATE", "namespace": "shop", "dryRun": true, "object": pod})
}

fn pod(more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "app", "image": "a"}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"annotations": {"weir.dev/inject": "true"}}, "spec": spec})
}

#[tokio::test]
async fn a_pod_is_patched_or_refused_with_every_reason() {
    let served = Served::new(Cluster {
        policies: vec![policy()],
        ..Cluster::default()
    })
    .await;
    let answer = served.review("/pods", pod_request(pod(json!({})))).await;
    assert_eq!(
        (&answer["allowed"], &answer["uid"]),
        (&json!(true), &json!("u-1")),
        "{answer}"
    );
    assert_eq!(answer["patchType"], "JSONPatch");
    let patch = base64::engine::general_purpose::STANDARD
        .decode(answer["patch"].as_str().unwrap())
        .unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut patched = pod(json!({}));
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(
        patched.pointer("/spec/initContainers/0/name").unwrap(),
        "weir-sidecar"
    );
    // What is as it should be gets no patch.
    let again = served.review("/pods", pod_request(patched)).await;
    assert_eq!(
        (&again["allowed"], &again["patch"]),
        (&json!(true), &Value::Null),
        "{again}"
    );

    let answer = served
        .review(
            "/pods",
            pod_request(pod(json!({"hostNetwork": true, "shareProcessNamespace": true}))),
        )
        .await;
    assert_eq!(answer["allowed"], false);
    assert_eq!(
        (&answer["status"]["code"], &answer["status"]["reason"]),
        (&json!(403), &json!("HostNetwork"))
    );
    let causes = answer["status"]["details"]["causes"].as_array().unwrap();
    assert_eq!(causes.len(), 2);
    for cause in causes {
        let sentence = cause["message"].as_str().unwrap();
        assert!(
            answer["status"]["message"].as_str().unwrap().contains(sentence),
            "{answer}"
        );
    }

    let other = json!({"metadata": {}, "spec": {"containers": [{"name": "app", "image": "a"}]}});
    let answer = served.review("/pods", pod_request(other)).await;
    assert_eq!(
        (&answer["allowed"], &answer["patch"]),
        (&json!(true), &Value::Null)
    );
}

#[tokio::test]
async fn a_policy_that_comes_a_moment_after_its_pod_is_waited_for() {
    let served = Served::new(Cluster::default()).await;
    let (answer, ()) = tokio::join!(served.review("/pods", pod_request(pod(json!({})))), async {
        tokio::task::yield_now().await;
        served.known.0.write().unwrap().policies.push(policy());
    });
    assert_eq!(answer["allowed"], true, "{answer}");
    served.known.0.write().unwrap().policies.clear();
    let answer = served.review("/pods", pod_request(pod(json!({})))).await;
    assert_eq!(answer["status"]["reason"], "NoPolicy");
}

#[tokio::test]
async fn nothing_is_decided_before_everything_was_read() {
    let served = Served::new(Cluster {
        unread: true,
        policies: vec![policy()],
        ..Cluster::default()
    })
    .await;
    let answer = served.review("/pods", pod_request(pod(json!({})))).await;
    assert_eq!(
        (&answer["allowed"], &answer["status"]["code"]),
        (&json!(false), &json!(503))
    );
}

#[tokio::test]
async fn bad_input_gets_a_sentence_and_never_a_500() {
    let served = Served::new(Cluster {
        label: Some("enabled".to_owned()),
        ..Cluster::default()
    })
    .await;
    let reviews = [
        "",
        "x",
        "[]",
        "null",
        "{}",
        "\u{0}",
        r#"{"kind":"AdmissionReview"}"#,
        r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#,
        r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{}}"#,
        r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"x"}}"#,
    ];
    for body in reviews {
        for path in ["/pods", "/policies", "/sinks"] {
            let (status, text) = served.post(path, body.as_bytes()).await;
            assert_eq!(status, 400, "{path} {body}: {text}");
            assert!(!text.is_empty());
        }
    }
    for object in [
        json!(null),
        json!(1),
        json!([]),
        json!({"spec": 1}),
        json!({"spec": {"database": []}}),
    ] {
        for path in ["/pods", "/policies", "/sinks"] {
            for operation in ["CREATE", "UPDATE", "DELETE", ""] {
                let request =
                    json!({"uid": "u", "operation": operation, "object": object, "oldObject": object});
                let answer = served.review(path, request).await;
                assert!(answer["allowed"].is_boolean(), "{path} {answer}");
            }
        }
    }
    let (status, _) = served.post("/pods", &vec![b' '; (10 << 20) + 1]).await;
    assert_eq!(status, 413);
    let (status, _) = served.post("/elsewhere", b"{}").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_new_certificate_is_shown_from_the_next_handshake_on() {
    let served = Served::new(Cluster::default()).await;
    assert_eq!(served.post("/sinks", b"{}").await.0, 400);
    let next = Certificates::new(&["weir-operator.weir-system.svc"]).unwrap();
    served.tls.store(Arc::new(server_config(&next)));
    assert!(served.try_post(&served.roots, "/sinks", b"{}").await.is_err());
    assert_eq!(served.try_post(&next.ca, "/sinks", b"{}").await.unwrap().0, 400);
}

#[tokio::test]
async fn draining_ends_it_although_a_connection_stays_open() {
    let served = Served::new(Cluster::default()).await;
    let mut store = rustls::RootCertStore::empty();
    store
        .add(CertificateDer::from_pem_slice(served.roots.as_bytes()).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from("weir-operator.weir-system.svc").unwrap();
    let stream = TcpStream::connect(served.address).await.unwrap();
    let _idle = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    served.trigger.advance(Stage::Draining);
    served.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_policy_is_refused_by_field_and_its_deletion_warns() {
    let served = Served::new(Cluster {
        pods: (0..7).map(|number| format!("report-{number}")).collect(),
        ..Cluster::default()
    })
    .await;
    let object = |spec: Value| json!({"apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy", "metadata": {"name": "orders", "namespace": "shop"}, "spec": spec});
    let good = object(
        json!({"podSelector": {}, "database": {"engine": "PostgreSQL", "host": "orders-db.shop.svc"}}),
    );
    let wrong = object(
        json!({"podSelector": {}, "mask": [], "database": {"engine": "PostgreSQL", "host": "orders-db.shop.svc"}}),
    );
    let request = |operation: &str, object: &Value, old: &Value| json!({"uid": "u", "operation": operation, "namespace": "shop", "object": object, "oldObject": old});
    let answer = served
        .review("/policies", request("CREATE", &good, &Value::Null))
        .await;
    assert_eq!(answer["allowed"], true, "{answer}");
    let answer = served
        .review("/policies", request("CREATE", &wrong, &Value::Null))
        .await;
    assert_eq!(answer["allowed"], false, "{answer}");
    assert_eq!(
        answer["status"]["details"]["causes"][0]["field"], "spec.mask",
        "{answer}"
    );
    assert!(
        answer["status"]["message"]
            .as_str()
            .unwrap()
            .contains("did you mean \"masks\""),
        "{answer}"
    );
    // What is stored already may lose a finalizer.
    let answer = served
        .review("/policies", request("UPDATE", &wrong, &wrong))
        .await;
    assert_eq!(answer["allowed"], true, "{answer}");
    let answer = served
        .review("/policies", request("DELETE", &Value::Null, &good))
        .await;
    assert_eq!(answer["allowed"], true);
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("7 running pods") && warning.contains("report-4 and 2 more"),
        "{warning}"
    );
}

#[tokio::test]
async fn a_sink_is_refused_by_field() {
    let served = Served::new(Cluster::default()).await;
    let request = |namespace: &str, spec: Value| {
        json!({"uid": "u", "operation": "CREATE", "namespace": namespace, "object": {
        "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink", "metadata": {"name": "sink", "namespace": namespace}, "spec": spec}})
    };
    let url = |url: &str| json!({"openLineage": {"url": url}});
    for spec in [
        json!({"stdout": {}}),
        url("https://marquez.data.svc:5000/api/v1/lineage"),
        url("http://10.0.0.7/x"),
    ] {
        let answer = served.review("/sinks", request("shop", spec)).await;
        assert_eq!(answer["allowed"], true, "{answer}");
    }
    let filter = json!({"stdout": {}, "filter": {"namespaces": ["a"]}});
    let answer = served
        .review("/sinks", request("weir-system", filter.clone()))
        .await;
    assert_eq!(answer["allowed"], true, "{answer}");
    for (spec, field) in [
        (filter, "spec.filter.namespaces"),
        (json!({"stdout": {}, "fliter": {}}), "spec.fliter"),
        (
            json!({"openLineage": {"url": "http://x.y", "tokenSecretref": {}}}),
            "spec.openLineage.tokenSecretref",
        ),
        (url("http://127.0.0.1:5000/"), "spec.openLineage.url"),
        (url("http://[::1]/"), "spec.openLineage.url"),
        (url("http://[::ffff:127.0.0.1]/"), "spec.openLineage.url"),
        (url("http://169.254.169.254/latest"), "spec.openLineage.url"),
        (url("http://LOCALHOST./x"), "spec.openLineage.url"),
        (
            url("http://user:secret@marquez.data.svc/x"),
            "spec.openLineage.url",
        ),
        (url("http:///x"), "spec.openLineage.url"),
    ] {
        let answer = served.review("/sinks", request("shop", spec)).await;
        assert_eq!(
            answer["status"]["details"]["causes"][0]["field"], field,
            "{answer}"
        );
        assert!(!answer.to_string().contains("secret@"));
    }
}
