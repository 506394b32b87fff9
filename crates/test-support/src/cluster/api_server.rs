//! etcd and kube-apiserver alone, on free loopback ports: for definitions, CEL, webhooks and admission policies. No
//! root, no node, no controllers: a pod that is created stays as it was created.

use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

use super::Kubectl;
use crate::{Process, Signal, free_port, wait_for};

/// Which kube-apiserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The one of the node.
    Node,
    /// The newest.
    Next,
}

impl Release {
    /// Its name in test names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "1.34",
            Self::Next => "1.37",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Node => "kube-apiserver",
            Self::Next => "kube-apiserver-next",
        }
    }
}

/// A running API server; dropped, it ends.
#[derive(Debug)]
pub struct ApiServer {
    kubectl: Kubectl,
    folder: tempfile::TempDir,
    bin: PathBuf,
    release: Release,
    port: u16,
    etcd_port: u16,
    controllers: Option<Process>,
    api: Option<Process>,
    _etcd: Process,
}

impl ApiServer {
    /// Starts one. Programs are built when they are missing.
    pub fn start(release: Release) -> Result<Self> {
        let bin = super::programs(&["api"])?;
        let folder = tempfile::Builder::new().prefix("weir-api-").tempdir()?;
        let dir = folder.path();
        let (port, etcd_port, peer_port) = (free_port()?, free_port()?, free_port()?);
        let mut etcd = Command::new(bin.join("etcd"));
        etcd.arg(format!("--data-dir={}", dir.join("etcd").display()))
            .args(["--unsafe-no-fsync", "--log-level=error"])
            .arg(format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"))
            .arg(format!(
                "--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"
            ))
            .arg(format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"));
        let etcd = Process::start(etcd, &dir.join("etcd.log"), Signal::Term)?;
        let key = rcgen::KeyPair::generate()?;
        std::fs::write(dir.join("sa.key"), key.serialize_pem())?;
        std::fs::write(dir.join("sa.pub"), key.public_key_pem())?;
        std::fs::write(dir.join("tokens.csv"), "admin,admin,admin,\"system:masters\"\n")?;
        let kubeconfig = dir.join("admin.conf");
        std::fs::write(
            &kubeconfig,
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
                 clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{}'}}}}]\n\
                 users: [{{name: admin, user: {{token: admin}}}}]\n\
                 contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n",
                dir.join("pki/apiserver.crt").display()
            ),
        )?;
        let mut server = Self {
            kubectl: Kubectl {
                bin: bin.clone(),
                kubeconfig,
            },
            folder,
            bin,
            release,
            port,
            etcd_port,
            controllers: None,
            api: None,
            _etcd: etcd,
        };
        server.resume()?;
        Ok(server)
    }

    /// kubectl for it, as a member of system:masters.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Its folder, for files of a test.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// `https://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Starts these controllers of the controller manager, of the node's release. They end with the server.
    pub fn start_controllers(&mut self, names: &[&str]) -> Result<()> {
        let mut program = Command::new(self.bin.join("kube-controller-manager"));
        program
            .arg(format!("--kubeconfig={}", self.kubectl.kubeconfig.display()))
            .arg(format!("--controllers={}", names.join(",")))
            .args(["--leader-elect=false", "--secure-port=0"]);
        let log = self.folder.path().join("controllers.log");
        self.controllers = Some(Process::start(program, &log, Signal::Term)?);
        Ok(())
    }

    /// Stops the API server; what it stored stays.
    pub fn pause(&mut self) {
        self.api = None;
    }

    /// Starts it again.
    pub fn resume(&mut self) -> Result<()> {
        let dir = self.folder.path();
        let mut api = Command::new(self.bin.join(self.release.program()));
        api.arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .arg(format!("--secure-port={}", self.port))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // The newest refuses to write a loopback address into the endpoints of `kubernetes`; nobody needs them.
            .arg("--endpoint-reconciler-type=none")
            .arg(format!("--cert-dir={}", dir.join("pki").display()))
            .arg(format!("--token-auth-file={}", dir.join("tokens.csv").display()))
            .args([
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount",
            ])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!(
                "--service-account-key-file={}",
                dir.join("sa.pub").display()
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                dir.join("sa.key").display()
            ))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged"]);
        let process = Process::start(api, &dir.join("apiserver.log"), Signal::Term)?;
        let mut process = process;
        let ready = wait_for("the API server", 90, || {
            if process.ended().is_some() {
                return Some(false);
            }
            let said = self.kubectl.try_run(&["get", "--raw", "/readyz"]).ok()?;
            let default = self.kubectl.try_run(&["get", "namespace", "default"]).ok()?;
            (said.ok && default.ok).then_some(true)
        })?;
        if !ready {
            let log = process.log();
            let tail: Vec<&str> = log.lines().rev().take(10).collect();
            anyhow::bail!("the API server died: {}", tail.join("\n"));
        }
        self.api = Some(process);
        Ok(())
    }

    /// A kubeconfig for a service account of this server, with a token made for it.
    pub fn kubeconfig_for(&self, namespace: &str, service_account: &str) -> Result<PathBuf> {
        let token = self
            .kubectl
            .run(&["create", "token", service_account, "-n", namespace])
            .context("a token for the service account")?;
        let path = self
            .folder
            .path()
            .join(format!("{namespace}-{service_account}.conf"));
        let text = std::fs::read_to_string(&self.kubectl.kubeconfig)?;
        std::fs::write(
            &path,
            text.replace("token: admin", &format!("token: {}", token.trim())),
        )?;
        Ok(path)
    }
}
