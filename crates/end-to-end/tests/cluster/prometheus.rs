//! A real Prometheus that scrapes Weir, and the queries of the dashboard and of the alerts, to be run in it.
//!
//! It finds its targets as the Prometheus operator would: by the chart's PodMonitors, in the API server. A test says what
//! happened before ([`Happened`]); [`Prometheus::panels`] then runs every query of the dashboard.

use crate::api::path_of;
use crate::processes::http;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};
use test_support::cluster::Kubectl;
use test_support::{Process, Signal, free_port, wait_for};

/// Long enough for the counters of a test; queries with `$__rate_interval` look so far back.
const RATE_INTERVAL: &str = "1m";

/// One result of a query.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Series {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// One query of the dashboard.
#[derive(Debug, Clone)]
struct PanelQuery {
    panel: String,
    /// `A` is the first of its panel.
    reference: String,
    /// Variables are filled in.
    expression: String,
}

/// A pod's port with metrics.
pub(crate) struct Target<'pod> {
    pub(crate) namespace: &'pod str,
    pub(crate) pod: &'pod str,
    pub(crate) address: &'pod str,
    pub(crate) port: u16,
}

/// What a test did before it looks at the dashboard: in this namespace policy `orders` selects two pods, of which one has no
/// sidecar. Through the other's sidecar went statements that rule `rule` allows, masked cells among their answers, and
/// one that no rule allows; it happens again after the first scrape, or there is no rate.
pub(crate) struct Happened<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) rule: &'a str,
    /// `namespace/name`
    pub(crate) sinks: &'a [&'a str],
    pub(crate) sessions_open: f64,
}

impl Happened<'_> {
    fn is_shown_by(&self, query: &PanelQuery, found: &[Series]) -> bool {
        let one = |labels: &[(&str, &str)]| -> Option<f64> {
            found
                .iter()
                .find(|series| labels.iter().all(|(name, value)| series.label(name) == *value))
                .map(|series| series.value)
        };
        let is = |labels: &[(&str, &str)], value: f64| one(labels) == Some(value);
        let some = |labels: &[(&str, &str)]| one(labels).is_some_and(|value| value > 0.0);
        let within = |labels: &[(&str, &str)], least: f64, most: f64| {
            one(labels).is_some_and(|value| (least..=most).contains(&value))
        };
        let here = [("namespace", self.namespace)];
        let orders = [("namespace", self.namespace), ("policy", "orders")];
        match (query.panel.as_str(), query.reference.as_str()) {
            ("Matched pods", _) => is(&[], 2.0),
            ("Enforced pods" | "Pods not enforced", _) => is(&[], 1.0),
            ("Pods that bypassed" | "Receipts lost", _) => is(&[], 0.0),
            ("Verdicts by rule", _) => {
                let policy = format!("{}/orders", self.namespace);
                let decided =
                    |rule, verdict| some(&[("policy", &policy), ("rule", rule), ("verdict", verdict)]);
                decided(self.rule, "Permit") && decided("defaultAction", "Refuse")
            }
            ("Masked cells", _) => some(&here),
            ("Refusals", _) => some(&[("code", "WEIR-011")]),
            ("Enforced and matched pods", "A") => is(&orders, 2.0),
            ("Enforced and matched pods", _) => is(&orders, 1.0),
            ("Why pods are not enforced", "A") => is(&orders, 1.0),
            ("Why pods are not enforced", _) => is(&orders, 0.0),
            ("Connections around the sidecar", _) => is(&here, 0.0),
            // Above nothing, and below a second.
            ("Latency added", _) => within(&[], f64::MIN_POSITIVE, 1.0),
            ("Statements", _) => some(&[("verdict", "Permit")]) && some(&[("verdict", "Refuse")]),
            ("Sessions", _) => is(&here, self.sessions_open),
            // Those of this moment, while statements go on.
            ("Receipts waiting", _) => within(&[], 0.0, 100.0),
            ("Age of the oldest receipt that waits", _) => within(&here, 0.0, 10.0),
            ("Spool filled", _) => within(&here, f64::MIN_POSITIVE, 0.5),
            ("Events taken by the collector", "A") => some(&[]),
            ("Events taken by the collector", _) => {
                self.sinks.iter().all(|sink| one(&[("sink", sink)]).is_some())
            }
            ("Certificates end in", "A") => {
                // Each is younger than a third of its life, and a leaf is renewed in time.
                let days = |certificate, days: f64| {
                    within(
                        &[("certificate", certificate)],
                        days * 0.6 * 86_400.0,
                        days * 86_400.0,
                    )
                };
                days("root", 365.0)
                    && days("capture_root", 365.0)
                    && days("pods_issuer", 30.0)
                    && days("control_issuer", 30.0)
                    && within(&[("certificate", "webhook")], 4.0 * 3600.0, 86_400.0)
            }
            ("Certificates end in", _) => within(&[], 4.0 * 3600.0, 86_400.0),
            ("Streams of sidecars", _) => some(&[]),
            // Nothing may have been sent lately.
            ("A change is sent within", _) => found
                .iter()
                .any(|series| series.value.is_nan() || series.value < 5.0),
            // A new panel needs a line here.
            _ => false,
        }
    }
}

/// A running Prometheus with the chart's alerts loaded.
pub(crate) struct Prometheus {
    address: String,
    process: Process,
    targets: usize,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// How many pages are scraped.
    pub(crate) fn targets(&self) -> usize {
        self.targets
    }

    /// Starts one that scrapes, once a second, what the chart's PodMonitors select in these namespaces, and waits until all
    /// of it is up. Pods that are made later are not seen.
    pub(crate) fn start(kubectl: &Kubectl, namespaces: &[&str]) -> Result<Self> {
        Self::reaching(kubectl, namespaces, &mut |target| {
            Ok((
                format!("{}:{}", target.address, target.port),
                "/metrics".to_owned(),
            ))
        })
    }

    /// The same where pods are reached by another address and path than their own.
    pub(crate) fn reaching(
        kubectl: &Kubectl,
        namespaces: &[&str],
        reach: &mut dyn FnMut(&Target<'_>) -> Result<(String, String)>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-prometheus-").tempdir()?;
        let mut jobs = Vec::new();
        for monitor in pod_monitors(kubectl)? {
            jobs.extend(scrape_configs(&monitor, kubectl, reach)?);
        }
        jobs.retain(|job| {
            let namespace = &job["static_configs"][0]["labels"]["namespace"];
            namespaces.iter().any(|wanted| namespace == wanted)
        });
        let targets = jobs.len();
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [path_of("charts/weir/alerts/weir.yaml")?],
            "scrape_configs": jobs,
        });
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"));
        let process = Process::start(command, &folder.path().join("log"), Signal::Term)
            .context("Debian's package prometheus: scripts/install-deps.sh cluster")?;
        let mut started = Self {
            address,
            process,
            targets,
            _folder: folder,
        };
        let up = format!("count(up == 1) == {targets}");
        let ready = wait_for("Prometheus to have scraped every target", 40, || {
            if started.process.ended().is_some() {
                return Some(false);
            }
            started
                .query(&up)
                .is_ok_and(|found| !found.is_empty())
                .then_some(true)
        });
        match ready {
            Ok(true) => Ok(started),
            _ => bail!(
                "not every target is up: {}\n{}",
                started.get("/api/v1/targets").unwrap_or_default(),
                started.process.log()
            ),
        }
    }

    fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = http(&self.address, "GET", path, "")?;
        ensure!(status == 200, "{path}: {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Runs a query now.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Series>> {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            write!(encoded, "%{byte:02x}")?;
        }
        let (_, body) = http(
            &self.address,
            "POST",
            "/api/v1/query",
            &format!("query={encoded}"),
        )?;
        let told: Value = serde_json::from_str(&body)?;
        ensure!(told["status"] == "success", "{expression}: {}", told["error"]);
        ensure!(
            told["data"]["resultType"] == "vector",
            "{expression}: {}",
            told["data"]["resultType"]
        );
        let list = told["data"]["result"].as_array().context("no list")?;
        list.iter()
            .map(|one| {
                let value = one["value"][1].as_str().context("no value")?.parse()?;
                let labels = serde_json::from_value(one["metric"].clone())?;
                Ok(Series { labels, value })
            })
            .collect()
    }

    /// Waits until a query gives what is wanted; what it gave last is in the error.
    pub(crate) fn wait(
        &self,
        expression: &str,
        seconds_max: u64,
        wanted: impl Fn(&[Series]) -> bool,
    ) -> Result<Vec<Series>> {
        let until = Instant::now() + Duration::from_secs(seconds_max);
        let mut last = Ok(Vec::new());
        let found = wait_for(expression, seconds_max, || {
            last = self.query(expression);
            match &last {
                Ok(found) if wanted(found) => Some(true),
                // A query that is wrong stays wrong.
                Err(_) if Instant::now() < until => None,
                _ => None,
            }
        });
        match (found, last) {
            (Ok(_), Ok(found)) => Ok(found),
            (_, last) => bail!("{expression} gives {last:?}"),
        }
    }

    /// Runs every query of the dashboard, for the namespace of `happened`, until it shows what happened there.
    pub(crate) fn panels(&self, happened: &Happened<'_>) -> Result<usize> {
        let queries = panel_queries(happened.namespace)?;
        for query in &queries {
            self.wait(&query.expression, 40, |found| happened.is_shown_by(query, found))
                .with_context(|| format!("panel `{}`, query {}", query.panel, query.reference))?;
        }
        Ok(queries.len())
    }

    /// State of each alert by its name: `inactive`, `pending`, `firing`. Fails where a rule cannot be evaluated.
    pub(crate) fn alerts(&self) -> Result<BTreeMap<String, String>> {
        let told = self.get("/api/v1/rules?type=alert")?;
        let mut states = BTreeMap::new();
        for group in told["data"]["groups"].as_array().into_iter().flatten() {
            for rule in group["rules"].as_array().into_iter().flatten() {
                ensure!(rule["health"] != "err", "{}: {}", rule["name"], rule["lastError"]);
                let text = |field: &str| rule[field].as_str().unwrap_or_default().to_owned();
                states.insert(text("name"), text("state"));
            }
        }
        Ok(states)
    }
}

/// The PodMonitors that the chart makes.
fn pod_monitors(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let rendered = kubectl.helm(&[
        "template",
        "weir",
        &path_of("charts/weir")?,
        "--namespace=weir-system",
        "--kube-version=1.33.0",
        "--set=podMonitor.enabled=true",
        "--show-only=templates/monitoring/podmonitor.yaml",
    ])?;
    let monitors = rendered
        .split("\n---\n")
        .map(|document| serde_yaml::from_str(document).with_context(|| document.to_owned()))
        .collect::<Result<Vec<Value>>>()?;
    Ok(monitors
        .into_iter()
        .filter(|it| it["kind"] == "PodMonitor")
        .collect())
}

/// What the Prometheus operator makes of a PodMonitor, for the pods that run now. (Debian's Prometheus is built without
/// discovery in Kubernetes, so the pods are looked up here.)
fn scrape_configs(
    monitor: &Value,
    kubectl: &Kubectl,
    reach: &mut dyn FnMut(&Target<'_>) -> Result<(String, String)>,
) -> Result<Vec<Value>> {
    let spec = &monitor["spec"];
    let labels = spec["selector"]["matchLabels"]
        .as_object()
        .context("matchLabels")?
        .iter()
        .map(|(name, value)| Ok(format!("{name}={}", value.as_str().context("a text")?)))
        .collect::<Result<Vec<_>>>()?
        .join(",");
    let namespace = match spec["namespaceSelector"]["any"] == true {
        true => "--all-namespaces".to_owned(),
        false => format!(
            "--namespace={}",
            monitor["metadata"]["namespace"].as_str().context("namespace")?
        ),
    };
    let pods: Value =
        serde_json::from_str(&kubectl.run(&["get", "pods", &namespace, "-l", &labels, "-o", "json"])?)?;
    let mut configs = Vec::new();
    for pod in pods["items"].as_array().context("pods")? {
        if pod["status"]["phase"] != "Running" {
            continue;
        }
        let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
        for container in lists.into_iter().flatten().flatten() {
            for port in container["ports"].as_array().into_iter().flatten() {
                let endpoints = spec["podMetricsEndpoints"].as_array().context("endpoints")?;
                for endpoint in endpoints.iter().filter(|it| it["port"] == port["name"]) {
                    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
                    let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
                    let (address, path) = reach(&Target {
                        namespace: &text(namespace),
                        pod: &text(name),
                        address: pod["status"]["podIP"].as_str().context("podIP")?,
                        port: port["containerPort"]
                            .as_u64()
                            .and_then(|port| port.try_into().ok())
                            .context("port")?,
                    })?;
                    configs.push(json!({
                        "job_name": format!("{}/{namespace}/{name}", monitor["metadata"]["name"]),
                        "metrics_path": path,
                        "honor_labels": endpoint["honorLabels"] == true,
                        "honor_timestamps": endpoint["honorTimestamps"] != false,
                        "static_configs": [{
                            "targets": [address],
                            "labels": {"namespace": namespace, "pod": name, "container": container["name"]},
                        }],
                    }));
                }
            }
        }
    }
    Ok(configs)
}

/// The dashboard as it is in the chart.
pub(crate) fn dashboard() -> Result<Value> {
    let path = path_of("charts/weir/dashboards/governance.json")?;
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Every query of the dashboard.
fn panel_queries(namespace: &str) -> Result<Vec<PanelQuery>> {
    let dashboard = dashboard()?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"]
                .as_str()
                .context("expr")?
                .replace("$__rate_interval", RATE_INTERVAL)
                .replace("$namespace", namespace);
            ensure!(!expression.contains('$'), "a variable is left: {expression}");
            queries.push(PanelQuery {
                panel: panel["title"].as_str().context("title")?.to_owned(),
                reference: target["refId"].as_str().context("refId")?.to_owned(),
                expression,
            });
        }
    }
    ensure!(queries.len() > 20, "only {} queries", queries.len());
    Ok(queries)
}

/// Alerts of the chart: name and expression.
pub(crate) fn alert_rules() -> Result<Vec<(String, String)>> {
    let path = path_of("charts/weir/alerts/weir.yaml")?;
    let rules: Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
    let rules = rules["groups"][0]["rules"].as_array().context("rules")?;
    rules
        .iter()
        .map(|rule| {
            let text = |field: &str| rule[field].as_str().map(str::to_owned).context(field.to_owned());
            Ok((text("alert")?, text("expr")?))
        })
        .collect()
}

/// Names of our metrics in a query.
pub(crate) fn metrics_of(expression: &str) -> BTreeSet<String> {
    expression
        .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
        .filter(|word| word.starts_with("weir_"))
        .map(str::to_owned)
        .collect()
}
