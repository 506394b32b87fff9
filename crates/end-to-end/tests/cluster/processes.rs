//! Weir around an API server, as processes of this machine: operator, collector, the sidecar of one pod, PostgreSQL.
//! What no kubelet does here is done by hand: pods are objects that say they run, tokens are asked for as a kubelet does.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;
use test_support::cluster::{ApiServer, Kubectl};
use test_support::{Database, Postgres, Process, Signal, binary, free_port, shared_postgres, wait_for};

/// Of the operator's pod.
pub(crate) const OPERATOR: &str = "weir-operator-0";
/// Where the processes run that the API server need not reach.
pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// All of it; dropped, it ends.
pub(crate) struct Processes {
    /// Where the application of the pod finds its database.
    pub(crate) captured: u16,
    pub(crate) database: Database<'static>,
    pub(crate) postgres: &'static Postgres,
    // In the order in which they end.
    _sidecar: Process,
    _collector: Process,
    pub(crate) operator: Process,
}

/// An address of this machine that the API server is willing to reach: it is not on loopback.
pub(crate) fn own_address() -> Result<IpAddr> {
    // No packet is sent: the kernel only chooses the address that it would send from.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let chosen = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr())
        .context("this machine has no address but loopback")?;
    Ok(chosen.ip())
}

/// The labels of the pods of namespace `shop`.
pub(crate) const APP: &str = "report-agent";

/// An injected pod as the webhook makes it: its sidecar captures the database by an address.
pub(crate) fn injected_pod(name: &str, captured: &serde_json::Value, admin: u16) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop",
            "labels": {"app": APP, "weir.dev/injected": "true"},
            "annotations": {
                "weir.dev/inject": "true",
                "weir.dev/captured": captured.to_string(),
                "weir.dev/injected": json!({"version": env!("CARGO_PKG_VERSION"), "image": "weir:1"}).to_string(),
            }},
        "spec": {"serviceAccountName": APP,
            "initContainers": [{"name": "weir-sidecar", "image": "weir:1", "restartPolicy": "Always",
                "ports": [{"name": "weir-admin", "containerPort": admin}]}],
            "containers": [{"name": "app", "image": "app"}]},
    })
    .to_string()
}

/// A pod that nobody injected.
pub(crate) fn plain_pod(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": APP}},
        "spec": {"serviceAccountName": APP, "containers": [{"name": "app", "image": "app"}]},
    })
    .to_string()
}

/// Says what a kubelet would say: it runs at that address, and so does its sidecar, if it has one.
pub(crate) fn runs(kubectl: &Kubectl, namespace: &str, pod: &str, address: IpAddr) -> Result<()> {
    let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
    "initContainerStatuses": [{
        "name": "weir-sidecar", "ready": true, "started": true, "restartCount": 0, "image": "weir:1",
        "imageID": "", "state": {"running": {}},
    }]});
    let patch = json!({"status": status}).to_string();
    kubectl.run(&[
        "patch",
        "pod",
        pod,
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ])?;
    Ok(())
}

/// A pod's projected token, as its kubelet would ask for it.
fn token(kubectl: &Kubectl, namespace: &str, account: &str, pod: &str, uid: &str) -> Result<String> {
    let uid = format!("--bound-object-uid={uid}");
    let pod = format!("--bound-object-name={pod}");
    let arguments = [
        "create",
        "token",
        account,
        "-n",
        namespace,
        "--audience=weir.dev/identity",
        "--bound-object-kind=Pod",
        &pod,
        &uid,
    ];
    Ok(kubectl.run(&arguments)?.trim().to_owned())
}

fn uid(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<String> {
    kubectl.run(&[
        "get",
        "pod",
        pod,
        "-n",
        namespace,
        "-o",
        "jsonpath={.metadata.uid}",
    ])
}

impl Processes {
    /// Starts them on an API server with our definitions; `policy` is the `spec` of policy `shop/orders` without its
    /// `database` and `podSelector`.
    pub(crate) fn start(server: &ApiServer, policy: &serde_json::Value) -> Result<Self> {
        let kubectl = server.kubectl();
        let address = own_address()?;
        for namespace in ["weir-system", "shop"] {
            kubectl.namespace(namespace)?;
        }
        let rbac = kubectl.helm(&[
            "template",
            "weir",
            &crate::api::path_of("charts/weir")?,
            "--namespace=weir-system",
            "--kube-version=1.33.0",
            "--show-only=templates/operator/rbac.yaml",
        ])?;
        kubectl.apply("weir-system", &rbac)?;
        for (namespace, account) in [("weir-system", "weir-collector"), ("shop", APP)] {
            let account =
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
            kubectl.apply(namespace, &account.to_string())?;
        }
        let grpc = free_port()?;
        let ingest = free_port()?;
        let operator = operator(server, address, grpc, ingest)?;
        let operator_grpc = format!("{address}:{grpc}");
        let roots = kubectl.wait(
            &[
                "get",
                "configmap",
                "weir-trust",
                "-n",
                "weir-system",
                "-o",
                r"jsonpath={.data.roots\.pem}",
            ],
            40,
            |pem| pem.contains("BEGIN CERTIFICATE"),
        )?;
        let collector = collector(server, &operator_grpc, ingest, &roots)?;

        let postgres = shared_postgres()?;
        let database = postgres.database()?;
        test_support::shop::load(&database)?;
        let mut spec = json!({
            "podSelector": {"matchLabels": {"app": APP}},
            "database": {"engine": "PostgreSQL", "host": "127.0.0.1", "port": postgres.port(),
                "tls": {"mode": "Disable"},
                "capture": {"mode": "Env", "env": {"urlVariables": ["DATABASE_URL"]}}},
        });
        for (key, value) in policy.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let policy = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
            "metadata": {"name": "orders"}, "spec": spec});
        kubectl.apply("shop", &policy.to_string())?;

        let captured = free_port()?;
        let captures = json!([{
            "host": "127.0.0.1", "port": postgres.port(), "listen": format!("{LOOPBACK}:{captured}"),
        }]);
        let admin = free_port()?;
        kubectl.apply("shop", &injected_pod("report-1", &captures, admin))?;
        runs(kubectl, "shop", "report-1", LOOPBACK)?;
        let sidecar = sidecar(server, &operator_grpc, &roots, &captures, admin)?;
        Ok(Self {
            captured,
            database,
            postgres,
            _sidecar: sidecar,
            _collector: collector,
            operator,
        })
    }
}

/// Labels of the chart's pods.
fn labels(component: &str) -> serde_json::Value {
    json!({"app.kubernetes.io/name": "weir", "app.kubernetes.io/instance": "weir",
        "app.kubernetes.io/component": component})
}

fn operator(server: &ApiServer, address: IpAddr, grpc: u16, ingest: u16) -> Result<Process> {
    let kubectl = server.kubectl();
    let (webhook, admin) = (free_port()?, free_port()?);
    let settings = server.folder().join("settings.yaml");
    std::fs::write(
        &settings,
        format!(
            "webhook: {{url: 'https://{address}:{webhook}'}}\n\
             collector: {{url: 'https://127.0.0.1:{ingest}'}}\n\
             ports: {{webhook: {webhook}, grpc: {grpc}, admin: {admin}}}\n"
        ),
    )?;
    let mut command = Command::new(binary("weir-operator")?);
    command
        .env(
            "KUBECONFIG",
            server.kubeconfig_for("weir-system", "weir-operator")?,
        )
        .env("WEIR_POD_NAME", OPERATOR)
        .env("WEIR_POD_IP", address.to_string())
        .env("WEIR_SETTINGS", &settings);
    let mut process = Process::start(command, &server.folder().join("operator.log"), Signal::Kill)?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": OPERATOR,
            "labels": labels("operator")},
        "spec": {"containers": [{"name": "operator", "image": "weir",
            "ports": [{"name": "weir-admin", "containerPort": admin}]}]},
    });
    kubectl.apply("weir-system", &pod.to_string())?;
    runs(kubectl, "weir-system", OPERATOR, address)?;
    let admin = format!("{address}:{admin}");
    ready("the operator", &mut process, &admin)?;
    Ok(process)
}

fn collector(server: &ApiServer, operator: &str, ingest: u16, roots: &str) -> Result<Process> {
    let kubectl = server.kubectl();
    let admin = free_port()?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "weir-collector-0", "labels": labels("collector")},
        "spec": {"serviceAccountName": "weir-collector", "containers": [{"name": "collector", "image": "weir",
            "ports": [{"name": "weir-admin", "containerPort": admin}]}]},
    });
    kubectl.apply("weir-system", &pod.to_string())?;
    runs(kubectl, "weir-system", "weir-collector-0", LOOPBACK)?;
    let uid = uid(kubectl, "weir-system", "weir-collector-0")?;
    let token = token(kubectl, "weir-system", "weir-collector", "weir-collector-0", &uid)?;
    let folder = server.folder().join("collector");
    std::fs::create_dir_all(folder.join("identity"))?;
    std::fs::write(folder.join("token"), token)?;
    std::fs::write(folder.join("roots.pem"), roots)?;
    let admin = format!("127.0.0.1:{admin}");
    let mut command = Command::new(binary("weir-collector")?);
    command
        .env("WEIR_INGEST", format!("127.0.0.1:{ingest}"))
        .env("WEIR_LISTEN", "127.0.0.1:0")
        .env("WEIR_ADMIN", &admin)
        .env("WEIR_DATA_DIR", folder.join("data"))
        .env("WEIR_OPERATOR", operator)
        .env("WEIR_TOKEN_FILE", folder.join("token"))
        .env("WEIR_IDENTITY_DIR", folder.join("identity"))
        .env("WEIR_TRUST_BUNDLE_FILE", folder.join("roots.pem"));
    let mut process = Process::start(command, &folder.join("log"), Signal::Kill)?;
    ready("the collector", &mut process, &admin)?;
    Ok(process)
}

fn sidecar(
    server: &ApiServer,
    operator: &str,
    roots: &str,
    captures: &serde_json::Value,
    port: u16,
) -> Result<Process> {
    let kubectl = server.kubectl();
    let uid = uid(kubectl, "shop", "report-1")?;
    let folder = server.folder().join("sidecar");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(
        folder.join("token"),
        token(kubectl, "shop", APP, "report-1", &uid)?,
    )?;
    let mut command = Command::new(binary("weir-sidecar")?);
    command
        .env("WEIR_OPERATOR", operator)
        .env("WEIR_TRUST_BUNDLE", roots)
        .env("WEIR_CAPTURED", captures.to_string())
        .env("WEIR_POD_NAME", "report-1")
        .env("WEIR_POD_NAMESPACE", "shop")
        .env("WEIR_POD_UID", &uid)
        .env("WEIR_POD_IP", LOOPBACK.to_string())
        .env("WEIR_ADMIN_PORT", port.to_string())
        .env("WEIR_TOKEN_FILE", folder.join("token"))
        .env("WEIR_IDENTITY_DIR", folder.join("identity"))
        .env("WEIR_SPOOL_DIR", folder.join("spool"))
        .env("WEIR_SPOOL_BYTES_MAX", "67108864")
        .env("WEIR_SECRETS_DIR", folder.join("secrets"))
        .env("WEIR_CA_DIR", folder.join("ca"));
    let mut process = Process::start(command, &folder.join("log"), Signal::Kill)?;
    let admin = format!("{LOOPBACK}:{port}");
    ready("the sidecar", &mut process, &admin)?;
    Ok(process)
}

fn ready(what: &str, process: &mut Process, admin: &str) -> Result<()> {
    let ready = wait_for(&format!("{what} to be ready"), 60, || {
        if process.ended().is_some() {
            return Some(false);
        }
        let (status, _) = http(admin, "GET", "/readyz", "").ok()?;
        (status == 200).then_some(true)
    });
    match ready {
        Ok(true) => Ok(()),
        Ok(false) => bail!("{what} ended: {}", process.log()),
        Err(error) => bail!("{error}: {}", process.log()),
    }
}

/// Plain HTTP to a process of this machine: status and body. A form is posted, nothing is got.
pub(crate) fn http(address: &str, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        socket,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    ensure!(
        !head.to_lowercase().contains("transfer-encoding"),
        "chunked: {head}"
    );
    Ok((status, body.to_owned()))
}
