//! Weir on the node, installed once by its charts, and the shop that it governs (`tests/cluster/shop`).

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use test_support::cluster::{Kubectl, Node};
use test_support::{Process, Signal, wait_for};

/// Where Weir is.
pub(crate) const SYSTEM: &str = "weir-system";

/// What tests on the node want of it: most share it, some stop the operator or remove everything.
static USE: RwLock<()> = RwLock::new(());

/// Weir as it is installed.
pub(crate) struct Weir<'node> {
    pub(crate) node: &'node Node,
    pub(crate) kubectl: &'node Kubectl,
    _shared: Option<RwLockReadGuard<'static, ()>>,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
}

/// For a test that leaves operator and collector as they are.
pub(crate) fn shared(node: &Node) -> Result<Weir<'_>> {
    let shared = USE.read().unwrap_or_else(PoisonError::into_inner);
    Weir::new(node, Some(shared), None)
}

/// For a test that stops the operator or removes Weir: no other test on the node runs meanwhile.
pub(crate) fn alone(node: &Node) -> Result<Weir<'_>> {
    let alone = USE.write().unwrap_or_else(PoisonError::into_inner);
    Weir::new(node, None, Some(alone))
}

/// Values that a test installation needs: the image made here, no storage class, a record that may go with its pod.
const VALUES: &str = "image.repository=weir.test/weir,image.tag=dev,collector.storage.type=EmptyDir";

impl<'node> Weir<'node> {
    fn new(
        node: &'node Node,
        shared: Option<RwLockReadGuard<'static, ()>>,
        alone: Option<RwLockWriteGuard<'static, ()>>,
    ) -> Result<Self> {
        static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
        static INSTALLING: Mutex<()> = Mutex::new(());
        let weir = Self {
            node,
            kubectl: node.kubectl(),
            _shared: shared,
            _alone: alone,
        };
        let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        INSTALLED
            .get_or_init(|| weir.import_and_install().map_err(|error| format!("{error:#}")))
            .clone()
            .map_err(anyhow::Error::msg)?;
        Ok(weir)
    }

    fn import_and_install(&self) -> Result<()> {
        let programs = test_support::binary("weir")?;
        for program in ["weir-operator", "weir-sidecar", "weir-collector"] {
            test_support::binary(program)?;
        }
        self.node
            .import_images(programs.parent().context("its folder")?)?;
        self.install(&[])
    }

    /// `helm upgrade --install` of both charts, with more values. It waits until the installation is usable.
    pub(crate) fn install(&self, values: &[&str]) -> Result<()> {
        let (definitions, chart) = (chart("weir-crds"), chart("weir"));
        self.kubectl.helm(&[
            "upgrade",
            "--install",
            "weir-crds",
            &definitions,
            "-n",
            SYSTEM,
            "--create-namespace",
        ])?;
        let mut arguments = vec!["upgrade", "--install", "weir", &chart, "-n", SYSTEM, "--wait"];
        arguments.extend(["--timeout", "180s", "--set", VALUES]);
        // On a node that was kept, other programs under the same tag must get new pods.
        let built = std::fs::metadata(test_support::binary("weir-operator")?)?.modified()?;
        let built = built.duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let built = format!("operator.podAnnotations.built=b{built},collector.podAnnotations.built=b{built}");
        arguments.extend(["--set", &built]);
        for value in values {
            arguments.extend(["--set", value]);
        }
        let done = self.kubectl.helm(&arguments).map(drop);
        done.with_context(|| self.picture())
    }

    /// The release's last revision.
    pub(crate) fn revision(&self) -> Result<String> {
        let history = self
            .kubectl
            .helm(&["history", "weir", "-n", SYSTEM, "-o", "json"])?;
        let history: Value = serde_json::from_str(&history)?;
        let last = history
            .as_array()
            .and_then(|all| all.last())
            .context("no revision")?;
        Ok(last["revision"].to_string())
    }

    /// What an operator of this cluster would look at first; for messages of failed tests.
    pub(crate) fn picture(&self) -> String {
        let mut picture = String::new();
        for arguments in [
            &["get", "pods", "-A"][..],
            &["get", "events", "-n", SYSTEM, "--field-selector=type!=Normal"],
            &[
                "logs",
                "-n",
                SYSTEM,
                "-l",
                "app.kubernetes.io/component=operator",
                "--tail=15",
            ],
            &[
                "logs",
                "-n",
                SYSTEM,
                "-l",
                "app.kubernetes.io/component=collector",
                "--tail=15",
            ],
        ] {
            if let Ok(said) = self.kubectl.try_run(arguments) {
                picture = format!("{picture}\n{}{}", said.out, said.err);
            }
        }
        picture
    }

    /// Sets the operator's replicas and waits until it is so.
    pub(crate) fn scale_operator(&self, replicas: u32) -> Result<()> {
        let wanted = replicas.to_string();
        self.kubectl.run(&[
            "scale",
            "deployment/weir-operator",
            "-n",
            SYSTEM,
            "--replicas",
            &wanted,
        ])?;
        let selector = "app.kubernetes.io/component=operator";
        let ready = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {end}"#;
        let arguments = ["get", "pods", "-n", SYSTEM, "-l", selector, "-o", ready];
        self.kubectl
            .wait(&arguments, 120, |out| {
                let pods: Vec<&str> = out.split_whitespace().collect();
                pods.len() == replicas as usize && pods.iter().all(|ready| *ready == "True")
            })
            .map(drop)
    }

    /// Sends a signal to the first process of a container, as the kernel does when memory is short: from a privileged
    /// pod on its node, so that it works in any cluster.
    pub(crate) fn signal_container(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        signal: &str,
    ) -> Result<()> {
        let asked = ["get", "pod", pod, "-n", namespace, "-o", "json"];
        let asked: Value = serde_json::from_str(&self.kubectl.run(&asked)?)?;
        let mut statuses = ["initContainerStatuses", "containerStatuses"]
            .into_iter()
            .filter_map(|kind| asked["status"][kind].as_array())
            .flatten();
        let status = statuses.find(|status| status["name"] == container);
        let id = status.and_then(|status| status["containerID"].as_str());
        let (_, id) = id
            .and_then(|id| id.split_once("://"))
            .context("a running container")?;
        let signal = signal.trim_start_matches("SIG");
        let name = format!("signal-{}-{}", &id[..12], signal.to_lowercase());
        let script = format!(
            "import glob, os, signal\n\
             found = sorted(int(path.split('/')[2]) for path in glob.glob('/proc/[0-9]*/cgroup') if '{id}' in open(path).read())\n\
             os.kill(found[0], signal.SIG{signal})\n"
        );
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"hostPID": true, "restartPolicy": "Never", "nodeName": asked["spec"]["nodeName"],
                "containers": [{"name": "signal", "image": "weir.test/python-client:1",
                    "command": ["python3", "-c", script], "securityContext": {"privileged": true, "runAsUser": 0}}]}});
        self.kubectl.apply("kube-system", &pod.to_string())?;
        let phase = [
            "get",
            "pod",
            &name,
            "-n",
            "kube-system",
            "-o",
            "jsonpath={.status.phase}",
        ];
        let phase = self
            .kubectl
            .wait(&phase, 60, |out| out == "Succeeded" || out == "Failed")?;
        let log = self.kubectl.run(&["logs", &name, "-n", "kube-system"])?;
        self.kubectl
            .run(&["delete", "pod", &name, "-n", "kube-system", "--wait=false"])?;
        ensure!(phase == "Succeeded", "no signal was sent: {log}");
        Ok(())
    }

    /// Runs `weir` against the collector's record and reads its JSON.
    pub(crate) fn ask_record(&self, arguments: &[&str]) -> Result<Value> {
        let forward = Forward::open(self.kubectl, SYSTEM, "statefulset/weir-collector", 8080)?;
        let collector = format!("http://127.0.0.1:{}", forward.port);
        let output = Command::new(test_support::binary("weir")?)
            .args(arguments)
            .args(["--collector", &collector, "--json"])
            .output()?;
        // `verify` ends with 1 where something is missing, and says what.
        serde_json::from_slice(&output.stdout).with_context(|| {
            let err = String::from_utf8_lossy(&output.stderr);
            format!("weir {} said: {err}", arguments.join(" "))
        })
    }

    /// A namespace with the shop's database and policy, both ready.
    pub(crate) fn shop(&self, namespace: &str) -> Result<Shop<'_>> {
        let shop = Shop {
            weir: self,
            namespace: namespace.to_owned(),
        };
        self.kubectl.namespace(namespace)?;
        let client = std::fs::read_to_string(shop_folder().join("client.py"))?;
        let client = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "client"},
            "data": {"client.py": client}});
        self.kubectl.apply(namespace, &client.to_string())?;
        shop.apply_file("database.yaml")?;
        shop.apply_file("policy.yaml")?;
        shop.wait_rollout("statefulset/orders-db")?;
        shop.wait_condition("orders", "Accepted", "True Compiled")?;
        Ok(shop)
    }
}

/// The shop in one namespace. It goes with the value, whether the test passed or not.
pub(crate) struct Shop<'weir> {
    pub(crate) weir: &'weir Weir<'weir>,
    pub(crate) namespace: String,
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        self.kubectl().drop_namespace(&self.namespace);
    }
}

impl Shop<'_> {
    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.weir.kubectl
    }

    /// kubectl in this namespace; it must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut all = arguments.to_vec();
        all.extend(["-n", &self.namespace]);
        self.kubectl().run(&all)
    }

    /// Waits until kubectl in this namespace prints what is wanted.
    pub(crate) fn wait(
        &self,
        arguments: &[&str],
        seconds_max: u64,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let mut all = arguments.to_vec();
        all.extend(["-n", &self.namespace]);
        let done = self.kubectl().wait(&all, seconds_max, wanted);
        done.with_context(|| self.picture())
    }

    pub(crate) fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl().apply(&self.namespace, yaml)
    }

    /// Applies what is taken only once something else has ended.
    pub(crate) fn wait_for_apply(&self, yaml: &str) -> Result<()> {
        let mut last = String::new();
        wait_for("an apply", 30, || {
            let done = self.apply(yaml);
            last = done
                .as_ref()
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default();
            done.ok()
        })
        .map(drop)
        .with_context(|| last)
    }

    /// Applies a file of `tests/cluster/shop`.
    pub(crate) fn apply_file(&self, name: &str) -> Result<String> {
        let text = std::fs::read_to_string(shop_folder().join(name))?;
        self.apply(&text.replace(".shop.svc", &format!(".{}.svc", self.namespace)))
    }

    /// Applies one workload of `workloads.yaml`, by its name.
    pub(crate) fn apply_workload(&self, name: &str) -> Result<()> {
        let text = std::fs::read_to_string(shop_folder().join("workloads.yaml"))?;
        let wanted = format!("metadata: {{name: {name}");
        let one = text.split("\n---\n").find(|one| one.contains(&wanted));
        self.apply(one.with_context(|| format!("no workload {name}"))?)
            .map(drop)
    }

    /// Applies [`client`].
    pub(crate) fn apply_client(
        &self,
        name: &str,
        annotations: &str,
        labels: &str,
        command: &[&str],
    ) -> Result<()> {
        self.apply(&client(name, annotations, labels, command)).map(drop)
    }

    /// Waits until a workload, `KIND/NAME`, runs as it was applied last.
    pub(crate) fn wait_rollout(&self, workload: &str) -> Result<()> {
        let arguments = ["rollout", "status", workload, "--timeout=5s"];
        self.wait(&arguments, 120, |_| true).map(drop)
    }

    /// Waits until a Job has done its work.
    pub(crate) fn wait_job(&self, name: &str) -> Result<()> {
        let arguments = ["get", "job", name, "-o", "jsonpath={.status.succeeded}"];
        self.wait(&arguments, 120, |out| out == "1").map(drop)
    }

    /// Waits until a condition of a policy is "STATUS REASON".
    pub(crate) fn wait_condition(&self, policy: &str, condition: &str, wanted: &str) -> Result<()> {
        let path = format!(
            r#"jsonpath={{.status.conditions[?(@.type=="{condition}")].status}} {{.status.conditions[?(@.type=="{condition}")].reason}}"#
        );
        self.wait(&["get", "dap", policy, "-o", &path], 60, |out| out == wanted)
            .map(drop)
    }

    /// What the application said so far, oldest first.
    pub(crate) fn answers(&self, target: &str, container: &str) -> Result<Vec<Value>> {
        let log = self.run(&["logs", target, "-c", container, "--tail=2000"])?;
        Ok(log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// Waits for an answer of the application given after the `after`-th, and gives back how many there were by then.
    pub(crate) fn wait_answer(
        &self,
        target: &str,
        kind: &str,
        after: usize,
        seconds_max: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<usize> {
        let mut last = Value::Null;
        wait_for(&format!("an answer `{kind}` of {target}"), seconds_max, || {
            let answers = self.answers(target, "app").ok()?;
            let place = answers
                .iter()
                .enumerate()
                .skip(after)
                .find(|(_, answer)| answer["kind"] == kind && wanted(answer));
            last = answers.last().cloned().unwrap_or_default();
            place.map(|(place, _)| place + 1)
        })
        .with_context(|| format!("it said last: {last}\n{}", self.picture()))
    }

    /// How many answers the application gave so far.
    pub(crate) fn answered(&self, target: &str) -> Result<usize> {
        Ok(self.answers(target, "app")?.len())
    }

    /// What one would look at first here.
    pub(crate) fn picture(&self) -> String {
        let mut picture = String::new();
        for arguments in [
            &["get", "pods,jobs,dap,lineagesinks", "-o", "wide"][..],
            &["get", "events", "--field-selector=type!=Normal"],
            &[
                "logs",
                "-l",
                "weir.dev/injected=true",
                "-c",
                "weir-sidecar",
                "--tail=10",
                "--prefix",
            ],
        ] {
            let mut all = arguments.to_vec();
            all.extend(["-n", &self.namespace]);
            if let Ok(said) = self.kubectl().try_run(&all) {
                picture = format!("{picture}\n{}{}", said.out, said.err);
            }
        }
        picture + &self.weir.picture()
    }
}

/// A pod with the shop's client. `annotations` and `labels` are YAML flow mappings.
pub(crate) fn client(name: &str, annotations: &str, labels: &str, command: &[&str]) -> String {
    let command = serde_json::Value::from(command.to_vec());
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {labels}, annotations: {annotations}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  securityContext: {{runAsNonRoot: true, runAsUser: 1000, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: app
    image: weir.test/python-client:1
    imagePullPolicy: IfNotPresent
    command: {command}
    env:
    - {{name: PGHOST, value: orders-db}}
    - {{name: PGUSER, value: anybody}}
    - {{name: PGDATABASE, value: orders}}
    securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
    volumeMounts: [{{name: app, mountPath: /app}}]
  volumes: [{{name: app, configMap: {{name: client}}}}]
"#
    )
}

/// Masked as the shop's policy says, two rows.
pub(crate) fn masked(answer: &Value) -> bool {
    answer["rows"][0][2] == "c***@example.com" && answer["rows"][1][2] == "c***@example.com"
}

/// A local port that leads somewhere in the cluster, for as long as the value lives.
pub(crate) struct Forward {
    pub(crate) port: u16,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Forward {
    /// To a port on the loopback of a pod.
    pub(crate) fn open(kubectl: &Kubectl, namespace: &str, target: &str, port: u16) -> Result<Self> {
        let wanted = format!(":{port}");
        Self::start(
            kubectl,
            &[
                "port-forward",
                "--address=127.0.0.1",
                "-n",
                namespace,
                target,
                &wanted,
            ],
        )
    }

    /// To the API server, which leads on to pods' own addresses.
    pub(crate) fn to_api_server(kubectl: &Kubectl) -> Result<Self> {
        Self::start(kubectl, &["proxy", "--port=0"])
    }

    fn start(kubectl: &Kubectl, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = Process::start(
            kubectl.command(arguments),
            &folder.path().join("log"),
            Signal::Kill,
        )?;
        let port = wait_for("kubectl to say its port", 20, || {
            let said = process.log();
            let (_, after) = said.split_once("127.0.0.1:")?;
            after.split_whitespace().next()?.parse().ok()
        })
        .with_context(|| process.log())?;
        Ok(Self {
            port,
            _process: process,
            _folder: folder,
        })
    }
}

fn chart(name: &str) -> String {
    let path = test_support::workspace_root().join("charts").join(name);
    path.to_string_lossy().into_owned()
}

fn shop_folder() -> PathBuf {
    test_support::workspace_root().join("tests/cluster/shop")
}

/// That one time of a status is not after another.
pub(crate) fn earlier_or_same(left: &Value, right: &Value) -> Result<()> {
    let (Some(left), Some(right)) = (left.as_str(), right.as_str()) else {
        anyhow::bail!("no times: {left} {right}");
    };
    // RFC 3339 in UTC with whole seconds: the text's order is the time's.
    ensure!(left <= right, "{left} is later than {right}");
    Ok(())
}
