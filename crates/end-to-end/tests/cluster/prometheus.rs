//! A real Prometheus that scrapes Weir, and the queries of the dashboard and of the alerts, to be run in it.
//!
//! It finds its targets as the Prometheus operator would: by the chart's PodMonitors, in the API server. A test says how many
//! there are ([`Prometheus::start`]); [`Prometheus::panels`] then runs every query of the dashboard.

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
pub(crate) struct PanelQuery {
    pub(crate) panel: String,
    /// `A` is the first of its panel.
    pub(crate) reference: String,
    /// Variables are filled in: every namespace.
    pub(crate) expression: String,
}

/// A pod's port with metrics.
pub(crate) struct Target<'pod> {
    pub(crate) namespace: &'pod str,
    pub(crate) pod: &'pod str,
    pub(crate) address: &'pod str,
    pub(crate) port: u16,
}

/// A running Prometheus with the chart's alerts loaded.
pub(crate) struct Prometheus {
    address: String,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes, once a second, what the chart's PodMonitors select in this cluster; waits until so many
    /// targets are up. Pods that are made later are not seen.
    pub(crate) fn start(kubectl: &Kubectl, targets: usize) -> Result<Self> {
        Self::reaching(kubectl, targets, &mut |target| {
            Ok((
                format!("{}:{}", target.address, target.port),
                "/metrics".to_owned(),
            ))
        })
    }

    /// The same where pods are reached by another address and path than their own.
    pub(crate) fn reaching(
        kubectl: &Kubectl,
        targets: usize,
        reach: &mut dyn FnMut(&Target<'_>) -> Result<(String, String)>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-prometheus-").tempdir()?;
        let mut jobs = Vec::new();
        for monitor in pod_monitors(kubectl)? {
            jobs.extend(scrape_configs(&monitor, kubectl, reach)?);
        }
        ensure!(
            jobs.len() == targets,
            "the PodMonitors select {} pods: {jobs:?}",
            jobs.len()
        );
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

    /// Runs every query of the dashboard until it gives at least one series and `wanted` accepts them.
    pub(crate) fn panels(
        &self,
        seconds_max: u64,
        wanted: impl Fn(&PanelQuery, &[Series]) -> bool,
    ) -> Result<usize> {
        let queries = panel_queries()?;
        for query in &queries {
            self.wait(&query.expression, seconds_max, |found| {
                !found.is_empty() && wanted(query, found)
            })
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
pub(crate) fn panel_queries() -> Result<Vec<PanelQuery>> {
    let dashboard = dashboard()?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"]
                .as_str()
                .context("expr")?
                .replace("$__rate_interval", RATE_INTERVAL)
                .replace("$namespace", ".*");
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
