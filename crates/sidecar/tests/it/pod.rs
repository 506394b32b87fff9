//! The sidecar of a pod: an operator of ours with a made authority, the real collector, a real PostgreSQL.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use control_api::client::now;
use control_api::identity::{Identity, Trust, certificates_from_pem};
use control_api::peer::COLLECTOR_NAME;
use control_api::proto::identity_server::{Identity as IdentityService, IdentityServer};
use control_api::proto::policies_server::{Policies, PoliciesServer};
use control_api::proto::sinks_server::{Sinks, SinksServer};
use control_api::proto::{self, IssueReply, IssueRequest, sidecar_message};
use control_api::signed::sign;
use control_api::tls::{Alpn, ClientAuth, ConnectedPeer, incoming, server_config};
use serde_json::json;
use test_support::authority::{Authority, Signer};
use test_support::{Auth, Postgres, PostgresOptions, Process, Signal, binary, free_port, wait_for};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::{field, get, message, psql, read_until, server, startup};

const LISTEN: &str = "127.0.0.2";
const UID: &str = "0b5e8a52-0000-4000-8000-000000000001";

/// What the operator says; told to each stream at once.
#[derive(Clone)]
struct Says {
    policies: Vec<proto::Policy>,
    valid_seconds: i64,
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    says: watch::Receiver<Says>,
    version: Arc<AtomicU64>,
    collector: String,
    heard: Arc<Mutex<Vec<sidecar_message::Message>>>,
}

#[tonic::async_trait]
impl IdentityService for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueReply>, Status> {
        let request = request.into_inner();
        let spec = match request.token.as_str() {
            "token-of-the-pod" => {
                let uri = format!("spiffe://td/ns/shop/sa/report-agent/pod/{UID}");
                self.authority.spec(&uri, None, Signer::Pods)
            }
            "token-of-the-collector" => self.authority.spec(
                "spiffe://td/weir/collector",
                Some(COLLECTOR_NAME),
                Signer::Control,
            ),
            _ => return Err(Status::permission_denied("no such token")),
        };
        Ok(Response::new(IssueReply {
            chain: self.authority.sign_request(&spec, &request.csr).unwrap(),
            trust: Some(trust(&self.authority).to_proto()),
            not_after: now() + 3600,
            renew_at: now() + 2520,
        }))
    }
}

#[tonic::async_trait]
impl Policies for Service {
    type FollowStream = ReceiverStream<Result<proto::OperatorMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::SidecarMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.extensions().get::<ConnectedPeer>().unwrap().peer.clone();
        assert!(matches!(peer, Some(control_api::peer::Peer::Pod(_))), "{peer:?}");
        let mut messages = request.into_inner();
        let (send, receive) = mpsc::channel(4);
        let (service, mut says) = (self.clone(), self.says.clone());
        tokio::spawn(async move {
            says.mark_changed();
            loop {
                tokio::select! {
                    message = messages.message() => match message {
                        Ok(Some(message)) => service.heard.lock().unwrap().extend(message.message),
                        Ok(None) | Err(_) => return,
                    },
                    _ = says.changed() => {
                        let snapshot = service.snapshot(&says.borrow_and_update().clone());
                        let message = proto::operator_message::Message::Snapshot(snapshot);
                        let _ = send.send(Ok(proto::OperatorMessage { message: Some(message) })).await;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn issue_capture(
        &self,
        request: Request<proto::CaptureRequest>,
    ) -> Result<Response<proto::CaptureReply>, Status> {
        let hosts: Vec<String> = self
            .says
            .borrow()
            .policies
            .iter()
            .filter_map(|policy| {
                let manifest: serde_json::Value = serde_json::from_str(&policy.manifest).ok()?;
                let database = &manifest["spec"]["database"];
                (database["clientTLS"]["mode"] == "Serve")
                    .then(|| database["host"].as_str().unwrap().to_owned())
            })
            .collect();
        Ok(Response::new(proto::CaptureReply {
            chain: self
                .authority
                .sign_capture(&hosts, &request.get_ref().csr)
                .unwrap(),
            not_after: now() + 3600,
            renew_at: now() + 2520,
            hosts,
        }))
    }
}

#[tonic::async_trait]
impl Sinks for Service {
    type FollowStream = ReceiverStream<Result<proto::CollectorOrder, Status>>;

    async fn follow(
        &self,
        _: Request<Streaming<proto::CollectorMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move { send.closed().await });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

impl Service {
    fn snapshot(&self, says: &Says) -> proto::SignedSnapshot {
        let leaf = self.authority.operator().unwrap();
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        let snapshot = proto::Snapshot {
            version,
            pod_uid: UID.to_owned(),
            namespace: "shop".to_owned(),
            service_account: "report-agent".to_owned(),
            pod_name: "report-1".to_owned(),
            issued_at: now(),
            valid_until: now() + says.valid_seconds,
            policies: says.policies.clone(),
            hash: version.to_be_bytes().to_vec(),
            collector: Some(proto::Collector {
                url: self.collector.clone(),
                log_key: String::new(),
            }),
        };
        sign(&snapshot, &Identity::from_der(leaf.chain, leaf.key)).unwrap()
    }
}

fn trust(authority: &Authority) -> Trust {
    Trust {
        capture_roots: certificates_from_pem(&authority.capture_root_pem()).unwrap(),
        ..Trust::from_pem(&authority.root_pem()).unwrap()
    }
}

/// A policy for the server's own endpoint; `rules` goes into `spec`, `database` into `spec.database`.
fn policy(
    name: &str,
    generation: i64,
    database: serde_json::Value,
    rules: serde_json::Value,
) -> proto::Policy {
    let mut spec = json!({
        "podSelector": {},
        "database": {
            "engine": "PostgreSQL", "host": "127.0.0.1", "port": server().port(), "tls": {"mode": "Disable"},
            // As the API server completes it.
            "clientTLS": {"mode": "Plain"}, "capture": {"mode": "Alias"}, "targetSession": "Any",
        },
    });
    for (key, value) in database.as_object().unwrap() {
        spec["database"][key] = value.clone();
    }
    for (key, value) in rules.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let manifest = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
        "metadata": {"name": name, "namespace": "shop", "generation": generation}, "spec": spec,
    });
    proto::Policy {
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
        generation,
        manifest: manifest.to_string(),
    }
}

/// The sidecar's surroundings.
struct Pod {
    folder: tempfile::TempDir,
    authority: Arc<Authority>,
    operator: u16,
    ingest: u16,
    port: u16,
    admin: u16,
    says: watch::Sender<Says>,
    version: Arc<AtomicU64>,
    heard: Arc<Mutex<Vec<sidecar_message::Message>>>,
}

impl Pod {
    fn new(policies: Vec<proto::Policy>, valid_seconds: i64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, token) in [
            ("pod", "token-of-the-pod\n"),
            ("collector", "token-of-the-collector\n"),
        ] {
            std::fs::write(folder.path().join(format!("{name}.token")), token).unwrap();
        }
        Self {
            authority: Arc::new(Authority::new("td").unwrap()),
            folder,
            operator: free_port().unwrap(),
            ingest: free_port().unwrap(),
            port: free_port().unwrap(),
            admin: free_port().unwrap(),
            says: watch::Sender::new(Says {
                policies,
                valid_seconds,
            }),
            version: Arc::default(),
            heard: Arc::default(),
        }
    }

    /// An operator that runs until it is shut down, with all its connections.
    fn operator(&self) -> Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = Service {
            authority: Arc::clone(&self.authority),
            says: self.says.subscribe(),
            version: Arc::clone(&self.version),
            collector: format!("https://127.0.0.1:{}", self.ingest),
            heard: Arc::clone(&self.heard),
        };
        let leaf = self.authority.operator().unwrap();
        let config = server_config(
            &trust(&self.authority),
            &Identity::from_der(leaf.chain, leaf.key),
            ClientAuth::Optional,
            Alpn::H2,
        )
        .unwrap();
        let address = format!("127.0.0.1:{}", self.operator);
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let router = tonic::transport::Server::builder()
                .add_service(IdentityServer::new(service.clone()))
                .add_service(PoliciesServer::new(service.clone()))
                .add_service(SinksServer::new(service));
            tokio::spawn(
                router.serve_with_incoming(incoming(listener, Arc::new(ArcSwap::from_pointee(config)))),
            );
        });
        runtime
    }

    fn collector(&self) -> (Process, u16) {
        let pages = free_port().unwrap();
        let at = |name: &str| self.folder.path().join(name);
        std::fs::write(at("roots.pem"), self.authority.root_pem()).unwrap();
        let mut command = Command::new(binary("weir-collector").unwrap());
        command
            .args(["--listen", &format!("127.0.0.1:{pages}")])
            .args(["--operator", &format!("127.0.0.1:{}", self.operator)])
            .args(["--ingest", &format!("127.0.0.1:{}", self.ingest)])
            .arg("--data-dir")
            .arg(at("log"))
            .arg("--token-file")
            .arg(at("collector.token"))
            .arg("--identity-dir")
            .arg(at("collector-identity"))
            .arg("--trust-bundle-file")
            .arg(at("roots.pem"));
        let process = Process::start(command, &at("collector.log"), Signal::Kill).unwrap();
        wait_for("the collector", 60, || {
            get(pages, "/readyz").filter(|(status, _)| *status == 200)
        })
        .unwrap();
        (process, pages)
    }

    /// The container, as the webhook writes its environment.
    fn sidecar(&self) -> Process {
        self.sidecar_with(json!([{
            "host": "127.0.0.1", "port": server().port(), "listen": format!("{LISTEN}:{}", self.port),
        }]))
    }

    fn sidecar_with(&self, captured: serde_json::Value) -> Process {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(binary("weir-sidecar").unwrap());
        command
            .env("WEIR_OPERATOR", format!("127.0.0.1:{}", self.operator))
            .env("WEIR_TRUST_BUNDLE", self.authority.root_pem())
            .env("WEIR_CAPTURED", captured.to_string())
            .env("WEIR_POD_NAME", "report-1")
            .env("WEIR_POD_NAMESPACE", "shop")
            .env("WEIR_POD_UID", UID)
            .env("WEIR_POD_IP", "127.0.0.1")
            .env("WEIR_ADMIN_PORT", self.admin.to_string())
            .env("WEIR_TOKEN_FILE", at("pod.token"))
            .env("WEIR_IDENTITY_DIR", at("identity"))
            .env("WEIR_SPOOL_DIR", at("spool"))
            .env("WEIR_SPOOL_BYTES_MAX", "67108864")
            .env("WEIR_SECRETS_DIR", at("secrets"))
            .env("WEIR_CA_DIR", at("ca"));
        Process::start(command, &at("sidecar.log"), Signal::Kill).unwrap()
    }

    fn ready(&self, process: &mut Process) {
        wait_for("the sidecar to be ready", 60, || {
            assert!(process.ended().is_none(), "the sidecar ended: {}", process.log());
            get(self.admin, "/readyz").filter(|(status, _)| *status == 200)
        })
        .unwrap();
    }

    /// Says something else and waits until the sidecar answered that.
    fn say(&self, policies: Vec<proto::Policy>) -> sidecar_message::Message {
        let before = self.version.load(Ordering::SeqCst);
        self.says.send_modify(|says| says.policies = policies);
        wait_for("the sidecar's answer", 20, || {
            let heard = self.heard.lock().unwrap();
            heard
                .iter()
                .find(|message| match message {
                    sidecar_message::Message::Ack(ack) => ack.version > before,
                    sidecar_message::Message::Nack(nack) => nack.version > before,
                    sidecar_message::Message::Hello(_) | sidecar_message::Message::Report(_) => false,
                })
                .cloned()
        })
        .unwrap()
    }

    fn psql(&self, sql: &str) -> Output {
        psql(
            self.port,
            &format!("host={LISTEN} user=trust_user dbname=shop"),
            sql,
        )
    }

    fn error(&self, sql: &str) -> String {
        let output = self.psql(sql);
        assert!(!output.status.success(), "it must be refused: {sql}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn open() -> serde_json::Value {
    json!({"defaultAction": "Allow"})
}

fn closed() -> serde_json::Value {
    json!({"defaultAction": "Deny", "access": [{"name": "catalog", "actions": ["Select"], "tables": ["public.nothing"]}]})
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn segments(folder: &Path) -> usize {
    std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "seg"))
        .count()
}

/// Whether a file below the folder holds these bytes. The log is plain events.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        let content = std::fs::read(path).unwrap_or_default();
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[test]
fn a_pod_is_led_by_the_operator_and_goes_on_without_it() {
    server()
        .psql(
            "shop",
            "create table if not exists led (a int); grant all on led to public",
        )
        .unwrap();
    let pod = Pod::new(vec![policy("orders", 1, json!({}), open())], 3600);
    let mut sidecar = pod.sidecar();
    // It lives and waits, and nothing is let through.
    wait_for("its pages", 30, || {
        get(pod.admin, "/healthz").filter(|(status, _)| *status == 200)
    })
    .unwrap();
    let (status, body) = get(pod.admin, "/readyz").unwrap();
    assert_eq!((status, body.contains("policies")), (503, true), "{body}");
    assert!(!pod.psql("select 1").status.success());

    let operator = pod.operator();
    let (_collector, pages) = pod.collector();
    pod.ready(&mut sidecar);
    assert_eq!(
        said(&pod.psql("select count(*) from led")),
        "0",
        "{}",
        sidecar.log()
    );

    // A change holds for the next statement of a session that is open.
    let mut session = std::net::TcpStream::connect((LISTEN, pod.port)).unwrap();
    session
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    session
        .write_all(&startup(196_608, &[("user", "trust_user"), ("database", "shop")]))
        .unwrap();
    read_until(&mut session, b'Z');
    let mut ask = |sql: &[u8]| {
        session.write_all(&message(b'Q', sql)).unwrap();
        read_until(&mut session, b'Z')
            .iter()
            .find(|(tag, _)| *tag == b'E')
            .map(|(_, body)| field(body, b'M'))
    };
    assert_eq!(ask(b"select a from led\0"), None);
    let answer = pod.say(vec![policy("orders", 2, json!({}), closed())]);
    assert!(
        matches!(&answer, sidecar_message::Message::Ack(ack) if ack.problems.is_empty()),
        "{answer:?}"
    );
    let refused = ask(b"select a from led\0").expect("it must be refused");
    assert!(refused.contains("WEIR-"), "{refused}");

    // What does not compile is answered no, and what was in force stays.
    let answer = pod.say(vec![policy(
        "orders",
        3,
        json!({}),
        json!({"defaultAction": "Perhaps"}),
    )]);
    assert!(matches!(&answer, sidecar_message::Message::Nack(_)), "{answer:?}");
    assert!(ask(b"select a from led\0").is_some());

    // The receipts are with the collector, under the proved workload.
    wait_for("receipts at the collector", 30, || {
        let (_, audit) = get(pages, "/v1/audit")?;
        (audit.contains("spiffe://td/ns/shop/sa/report-agent") && audit.contains("verified")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{:?}", sidecar.log(), get(pages, "/v1/audit")));
    wait_for("a report", 20, || {
        let heard = pod.heard.lock().unwrap();
        heard
            .iter()
            .any(|message| matches!(message, sidecar_message::Message::Report(report) if report.leaf_not_after > now()))
            .then_some(())
    })
    .unwrap();

    // Without the operator, and after a restart without it: enforced all the same.
    operator.shutdown_background();
    assert!(pod.error("select a from led").contains("WEIR-"));
    sidecar.stop(Signal::Kill, 20).unwrap();
    let mut sidecar = pod.sidecar();
    pod.ready(&mut sidecar);
    assert!(pod.error("select a from led").contains("WEIR-"));
    assert_eq!(said(&pod.psql("select 1")), "1", "{}", sidecar.log());

    // The end: delivered before it goes.
    assert!(!holds(&pod.folder.path().join("log"), b"chain.close"));
    let status = sidecar.stop(Signal::Term, 30).unwrap();
    assert!(status.success(), "{}", sidecar.log());
    assert!(
        holds(&pod.folder.path().join("log"), b"chain.close"),
        "the end of the chain is not in the log: {}",
        sidecar.log()
    );
    assert!(segments(&pod.folder.path().join("spool")) <= 1);
}

#[test]
fn policies_that_are_too_old_begin_no_session() {
    let pod = Pod::new(vec![policy("orders", 1, json!({}), open())], 8);
    let _operator = pod.operator();
    let mut sidecar = pod.sidecar();
    pod.ready(&mut sidecar);
    assert_eq!(said(&pod.psql("select 1")), "1", "{}", sidecar.log());
    let error = wait_for("the end of the policies", 30, || {
        let output = pod.psql("select 1");
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    })
    .unwrap();
    assert!(error.contains("WEIR-093"), "{error}");
    // Newer ones mend it.
    pod.says.send_modify(|says| says.valid_seconds = 3600);
    wait_for("sessions again", 20, || {
        pod.psql("select 1").status.success().then_some(())
    })
    .unwrap();
}

#[test]
fn an_endpoint_without_a_usable_policy_is_closed() {
    let pod = Pod::new(Vec::new(), 3600);
    let _operator = pod.operator();
    let mut sidecar = pod.sidecar();
    pod.ready(&mut sidecar);
    let error = pod.error("select 1");
    assert!(error.contains("WEIR-092"), "{error}");
    let missing = json!({"credentials": {"secretRef": {"name": "missing"}, "transport": "Plaintext"}});
    let answer = pod.say(vec![policy("orders", 1, missing, open())]);
    let sidecar_message::Message::Ack(ack) = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!(ack.problems.len(), 1, "{ack:?}");
    assert!(ack.problems[0].message.contains("missing"), "{ack:?}");
    let error = pod.error("select 1");
    assert!(error.contains("WEIR-095") && error.contains("missing"), "{error}");
    // A policy that names more than the pod captured holds where it can, and says what is missing.
    let more = json!({"otherEndpoints": [{"host": "orders-ro.shop.svc", "port": 5432}]});
    let answer = pod.say(vec![policy("orders", 2, more, open())]);
    let sidecar_message::Message::Ack(ack) = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!(ack.problems[0].reason, "NotCaptured", "{ack:?}");
    assert_eq!(said(&pod.psql("select 1")), "1", "{}", sidecar.log());
}

#[test]
fn a_kept_snapshot_of_another_authority_is_not_taken() {
    let pod = Pod::new(vec![policy("orders", 1, json!({}), open())], 3600);
    let operator = pod.operator();
    let mut sidecar = pod.sidecar();
    pod.ready(&mut sidecar);
    sidecar.stop(Signal::Kill, 20).unwrap();
    operator.shutdown_background();
    // The same pod, but it trusts others now: what is on disk proves nothing to it.
    let mut other = Pod::new(vec![policy("orders", 1, json!({}), open())], 3600);
    std::fs::remove_dir_all(pod.folder.path().join("identity")).unwrap();
    other.folder = pod.folder;
    let process = other.sidecar();
    wait_for("the refusal", 30, || {
        process.log().contains("a snapshot is refused").then_some(())
    })
    .unwrap();
    let (status, _) = wait_for("its pages", 30, || get(other.admin, "/readyz")).unwrap();
    assert_eq!(status, 503);
    // Nothing of it is in force until an operator that is trusted speaks.
    let _operator = other.operator();
    let mut process = process;
    other.ready(&mut process);
}

#[test]
fn who_goes_around_the_sidecar_is_reported() {
    use std::os::unix::process::CommandExt;

    // A server of its own: connections of other tests to the common one go around this sidecar, too.
    let database = Postgres::start(&PostgresOptions::default()).unwrap();
    let port = database.port();
    let pod = Pod::new(vec![policy("orders", 1, json!({"port": port}), open())], 3600);
    let _operator = pod.operator();
    let mut sidecar = pod.sidecar_with(json!([{
        "host": "127.0.0.1", "port": port, "listen": format!("{LISTEN}:{}", pod.port),
    }]));
    pod.ready(&mut sidecar);
    // A session as it should be: client and server side of it are there all the time.
    let mut session = std::net::TcpStream::connect((LISTEN, pod.port)).unwrap();
    session
        .write_all(&startup(
            196_608,
            &[("user", "postgres"), ("database", "postgres")],
        ))
        .unwrap();
    read_until(&mut session, b'Z');

    let reported = |connections: u64| {
        let heard = pod.heard.lock().unwrap();
        heard.iter().rev().find_map(|message| match message {
            sidecar_message::Message::Report(report) => {
                let bypass = report.bypasses.first().cloned()?;
                assert_eq!(report.bypasses.len(), 1, "{report:?}");
                assert!(bypass.connections <= connections, "{report:?}");
                (bypass.connections == connections).then_some(bypass)
            }
            _ => None,
        })
    };
    // Another process under the sidecar's own user.
    let around = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let bypass = wait_for("the report", 30, || reported(1)).unwrap();
    assert_eq!(bypass.address, format!("127.0.0.1:{port}"));
    assert_eq!(bypass.endpoint, format!("127.0.0.1:{port}"));
    assert!((now() - bypass.last_seen).abs() < 60, "{bypass:?}");
    drop(around);
    // And one under another.
    let mut child = Command::new("bash")
        .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -r line")])
        .stdin(std::process::Stdio::piped())
        .uid(65_534)
        .spawn()
        .unwrap();
    wait_for("the second in the report", 30, || reported(2)).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    let (_, metrics) = get(pod.admin, "/metrics").unwrap();
    assert!(
        metrics.contains("weir_sidecar_bypass_connections_total 2"),
        "{metrics}"
    );
    let log = sidecar.log();
    assert!(
        log.contains("went around the sidecar") && log.contains(&format!("127.0.0.1:{port}")),
        "{log}"
    );
    // The session goes on: a bypass is told, not punished.
    session.write_all(&message(b'Q', b"select 1\0")).unwrap();
    assert!(read_until(&mut session, b'Z').iter().all(|(tag, _)| *tag != b'E'));
}

#[test]
fn an_application_that_insists_on_tls_finds_it_in_the_pod() {
    let secret = |pod: &Pod, name: &str, key: &str, text: &str| {
        let folder = pod.folder.path().join("secrets").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(key), text).unwrap();
    };
    let login = json!({"secretRef": {"name": "login"}, "transport": "Plaintext"});
    let serve = json!({"host": "localhost", "clientTLS": {"mode": "Serve"}, "credentials": login});
    let pod = Pod::new(vec![policy("orders", 1, serve.clone(), open())], 3600);
    secret(&pod, "login", "username", "scram_user");
    secret(&pod, "login", "password", "secret");
    let operator = pod.operator();
    let captured = json!([{
        "host": "localhost", "port": server().port(), "listen": format!("{LISTEN}:{}", pod.port),
    }]);
    let mut sidecar = pod.sidecar_with(captured.clone());
    pod.ready(&mut sidecar);
    let roots = pod.folder.path().join("ca/ca.crt");
    let ask_as = |user: &str, host: &str, tls: &str| {
        // The alias leads the name to the sidecar.
        let place = format!("host={host} hostaddr={LISTEN} user={user} dbname=shop {tls}");
        let output = psql(pod.port, &place, "select session_user");
        match output.status.success() {
            true => Ok(said(&output)),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let ask = |host: &str, tls: &str| ask_as("nobody", host, tls);
    let verified = format!("sslmode=verify-full sslrootcert={}", roots.display());
    let inside = Ok("scram_user".to_owned());
    // As soon as it is ready: the certificate is for the captured name, and the application has its authority.
    assert_eq!(ask("localhost", &verified), inside, "{}", sidecar.log());
    for tls in ["sslmode=require", "sslmode=prefer", "sslmode=disable"] {
        assert_eq!(ask("localhost", tls), inside, "{tls}");
    }
    assert_eq!(
        std::fs::read_to_string(&roots).unwrap(),
        pod.authority.capture_root_pem()
    );
    // For another name, or under Weir's own authority, it is nothing.
    let error = ask("elsewhere", &verified).unwrap_err();
    assert!(error.contains("does not match host name"), "{error}");
    let weirs = pod.folder.path().join("weir.pem");
    std::fs::write(&weirs, pod.authority.root_pem()).unwrap();
    let error = ask(
        "localhost",
        &format!("sslmode=verify-full sslrootcert={}", weirs.display()),
    )
    .unwrap_err();
    assert!(error.contains("certificate verify failed"), "{error}");

    // The application's own login passes through where the database is reached without TLS; with it, the policy is
    // refused before it gets here.
    let mut through = serve.clone();
    through.as_object_mut().unwrap().remove("credentials");
    pod.say(vec![policy("orders", 2, through, open())]);
    for (user, tls) in [
        ("trust_user", verified.as_str()),
        ("scram_user", verified.as_str()),
    ] {
        assert_eq!(
            ask_as(user, "localhost", tls),
            Ok(user.to_owned()),
            "{}",
            sidecar.log()
        );
    }

    // A certificate of the user's own: without its Secret nothing is let through, and why is heard over TLS too.
    let given = json!({
        "host": "localhost", "credentials": login,
        "clientTLS": {"mode": "Serve", "certificateSecretRef": {"name": "shown"}},
    });
    let answer = pod.say(vec![policy("orders", 3, given.clone(), open())]);
    let problem = match answer {
        sidecar_message::Message::Ack(ack) => ack.problems.first().cloned().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(problem.reason, "SecretMissing", "{problem:?}");
    let error = ask("localhost", &verified).unwrap_err();
    assert!(error.contains("WEIR-095") && error.contains("shown"), "{error}");
    let certificates = test_support::Certificates::new(&["localhost"]).unwrap();
    secret(&pod, "shown", "tls.key", &certificates.key);
    secret(&pod, "shown", "tls.crt", &certificates.certificate);
    let theirs = pod.folder.path().join("theirs.pem");
    std::fs::write(&theirs, &certificates.ca).unwrap();
    let theirs = format!("sslmode=verify-full sslrootcert={}", theirs.display());
    wait_for("the Secret to be seen", 20, || ask("localhost", &theirs).ok()).unwrap();
    ask("localhost", &verified).unwrap_err();

    // Plain again: the request for TLS is answered with no.
    let plain = json!({"host": "localhost", "credentials": login});
    pod.say(vec![policy("orders", 4, plain, open())]);
    let error = ask("localhost", "sslmode=require").unwrap_err();
    assert!(error.contains("does not support SSL"), "{error}");
    assert_eq!(ask("localhost", "sslmode=prefer"), inside);

    // What was obtained outlives the container, without the operator.
    pod.say(vec![policy("orders", 5, serve, open())]);
    wait_for("the certificate", 20, || ask("localhost", &verified).ok()).unwrap();
    drop(operator);
    drop(sidecar);
    let mut sidecar = pod.sidecar_with(captured);
    pod.ready(&mut sidecar);
    assert_eq!(ask("localhost", &verified), inside, "{}", sidecar.log());
}

#[test]
fn the_server_that_takes_writes_is_found_and_followed() {
    let first = Postgres::start(&PostgresOptions {
        auth: Auth::Scram,
        ..PostgresOptions::default()
    })
    .unwrap();
    let port = first.port();
    first.psql("postgres", "create table written(a int)").unwrap();
    let second = first.standby("::1").unwrap();
    let database = |login: bool, target: &str| {
        let mut database = json!({"host": "localhost", "port": port, "targetSession": target});
        if login {
            database["credentials"] = json!({"secretRef": {"name": "login"}, "transport": "Plaintext"});
        }
        database
    };
    let rules = json!({"defaultAction": "Allow"});
    let pod = Pod::new(
        vec![policy("orders", 1, database(true, "ReadWrite"), rules.clone())],
        3600,
    );
    let secrets = pod.folder.path().join("secrets/login");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("username"), "postgres").unwrap();
    std::fs::write(secrets.join("password"), Postgres::PASSWORD).unwrap();
    let _operator = pod.operator();
    let begin = || {
        let mut process = pod.sidecar_with(json!([{
            "host": "localhost", "port": port, "listen": format!("{LISTEN}:{}", pod.port),
        }]));
        pod.ready(&mut process);
        process
    };
    let write = || {
        let place = format!(
            "host={LISTEN} user=postgres dbname=postgres password={}",
            Postgres::PASSWORD
        );
        let output = psql(pod.port, &place, "insert into written values (1)");
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let count = |server: &Postgres| server.psql("postgres", "select count(*) from written").unwrap();
    let mut sidecar = begin();
    for _ in 0..3 {
        assert_eq!(write(), Ok(()), "{}", sidecar.log());
    }
    assert_eq!(count(&first), "3");

    // No server takes writes: why not is said of each address, and the standby is not used in its place.
    drop(first);
    let error = write().unwrap_err();
    assert!(
        error.contains("takes writes") && error.contains("127.0.0.1") && error.contains("is a standby"),
        "{error}"
    );
    // The next connection follows the failover.
    second.psql("postgres", "select pg_promote()").unwrap();
    assert_eq!(write(), Ok(()), "{}", sidecar.log());
    assert_eq!(count(&second), "4");

    // The other way round, and a sidecar that knows nothing yet: one of both ways meets a standby first.
    let first = second.standby("127.0.0.1").unwrap();
    assert_eq!(write(), Ok(()));
    sidecar.stop(Signal::Kill, 20).unwrap();
    let mut sidecar = begin();
    for _ in 0..3 {
        assert_eq!(write(), Ok(()), "{}", sidecar.log());
    }
    assert_eq!(count(&second), "8");

    // The application's own password cannot be asked for twice: who came to a standby is told so, and comes to the right
    // address with the next connection.
    pod.say(vec![policy(
        "orders",
        2,
        database(false, "ReadWrite"),
        rules.clone(),
    )]);
    sidecar.stop(Signal::Kill, 20).unwrap();
    let mut sidecar = begin();
    if let Err(error) = write() {
        assert!(error.contains("does not take writes"), "{error}");
    }
    for _ in 0..3 {
        assert_eq!(write(), Ok(()), "{}", sidecar.log());
    }
    let written: u64 = count(&second).parse().unwrap();
    assert!((11..=12).contains(&written), "{written}");
    // Nothing is asked of the client where the server trusts it: a standby is passed over without its knowing.
    for server in [&first, &second] {
        let path = server.folder().join("data/pg_hba.conf");
        let rules = std::fs::read_to_string(&path)
            .unwrap()
            .replace("scram-sha-256", "trust");
        std::fs::write(path, rules).unwrap();
        server.psql("postgres", "select pg_reload_conf()").unwrap();
        wait_for("the new rules", 20, || {
            let sql = "select count(*) from pg_hba_file_rules where auth_method <> 'trust'";
            (server.psql("postgres", sql).unwrap() == "0").then_some(())
        })
        .unwrap();
    }
    sidecar.stop(Signal::Kill, 20).unwrap();
    let sidecar = begin();
    assert_eq!(write(), Ok(()), "{}", sidecar.log());

    // A wrong password is the end, whoever is asked.
    let place = format!("host={LISTEN} user=nobody_here dbname=postgres");
    let output = psql(pod.port, &place, "select 1");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("role \"nobody_here\" does not exist"), "{error}");
}

#[test]
fn a_chain_of_receipts_is_bound_to_the_pod() {
    let pod = Pod::new(vec![policy("orders", 1, json!({}), open())], 3600);
    let _operator = pod.operator();
    let (_collector, pages) = pod.collector();
    let mut sidecar = pod.sidecar();
    pod.ready(&mut sidecar);
    assert_eq!(said(&pod.psql("select 1")), "1", "{}", sidecar.log());
    let verify = |roots: Option<&str>| {
        let mut command = Command::new(binary("weir").unwrap());
        command.args(["verify", "--collector", &format!("http://127.0.0.1:{pages}")]);
        if let Some(pem) = roots {
            let path = pod.folder.path().join("given.pem");
            std::fs::write(&path, pem).unwrap();
            command.arg("--roots").arg(path);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), format!("{text}{error}"))
    };
    let name = format!("spiffe://td/ns/shop/sa/report-agent/pod/{UID}");
    let (code, text) = verify(Some(&pod.authority.root_pem()));
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(&format!("{name} (under the roots given)")),
        "{text}"
    );
    let (code, text) = verify(None);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&name) && text.contains("give --roots"), "{text}");
    // A log that another authority's pods wrote is not this cluster's.
    let (code, text) = verify(Some(&Authority::new("td").unwrap().root_pem()));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("says that") && !text.contains("under the roots"),
        "{text}"
    );
}

#[test]
fn a_session_of_the_policys_login_outlives_a_policy_without_one() {
    let login = json!({"credentials": {"secretRef": {"name": "login"}, "transport": "Plaintext"}});
    // Where something is protected, definitions are read again when they change.
    let rules = json!({
        "defaultAction": "Allow",
        "masks": [{"name": "m", "columns": ["public.nothing.a"], "mask": {"type": "Null"}}],
    });
    let pod = Pod::new(vec![policy("orders", 1, login, rules.clone())], 3600);
    let secrets = pod.folder.path().join("secrets/login");
    std::fs::create_dir_all(&secrets).unwrap();
    std::fs::write(secrets.join("username"), "trust_user").unwrap();
    std::fs::write(secrets.join("password"), "secret").unwrap();
    let _operator = pod.operator();
    let mut sidecar = pod.sidecar();
    pod.ready(&mut sidecar);
    let mut session = std::net::TcpStream::connect((LISTEN, pod.port)).unwrap();
    session
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    session
        .write_all(&startup(196_608, &[("user", "anybody"), ("database", "shop")]))
        .unwrap();
    read_until(&mut session, b'Z');
    pod.say(vec![policy("orders", 2, json!({}), rules)]);
    // The definitions are read again, now on the session's own connection.
    for sql in [
        "create table outlived(a int)\0",
        "select a from outlived\0",
        "drop table outlived\0",
    ] {
        session.write_all(&message(b'Q', sql.as_bytes())).unwrap();
        let answer = read_until(&mut session, b'Z');
        assert!(
            answer.iter().all(|(tag, _)| *tag != b'E'),
            "{sql}: {}",
            sidecar.log()
        );
    }
}
