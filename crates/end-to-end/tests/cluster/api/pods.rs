//! The odd pods of `pod-injection` through the operator's own webhook: what the API server makes of each is what is written
//! beside it, and who is refused hears every reason.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use test_support::cluster::{Kubectl, Release, Said};

use super::{Test, governed};

pub(super) const TESTS: &[(&str, Test)] = &[(
    "each_odd_pod_goes_through_the_webhook",
    each_odd_pod_goes_through_the_webhook,
)];

/// Policies that never get into a cluster, because its definition refuses them, and its words.
const NO_POLICIES: &[(&str, &str)] = &[
    ("address-by-alias", "which no alias leads away from"),
    (
        "serve-without-credentials",
        "add credentials, or set tls.mode: Disable",
    ),
    ("wrong-host", "write the host alone"),
];

/// What the API server says itself, or makes of a pod before the webhook sees it.
const NO_PODS: &[(&str, &str)] = &[
    ("containers-are-no-list", "cannot be handled as a Pod"),
    ("no-spec", "the pod has no containers; correct the pod"),
];

/// Of its fields each API server keeps those that it knows. The sidecar is to be whole.
const NEWER: &str = "fields-newer-than-us";

/// How long a change of policies may take to reach the webhook.
const SEEN_WITHIN: Duration = Duration::from_secs(15);

/// A pod, and what is to become of it.
struct Case {
    name: String,
    pod: Value,
    /// Value of the namespace's label, and its policies.
    label: Option<String>,
    policies: Vec<Value>,
    expected: Expected,
}

enum Expected {
    Untouched,
    Patched { pod: Box<Value>, warnings: Vec<String> },
    Refused(Vec<String>),
}

fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    let documents = text.split("\n---\n");
    documents
        .map(|document| Ok(serde_yaml::from_str(document)?))
        .collect()
}

impl Case {
    fn read(folder: &Path, name: &str, defaults: &[Value]) -> Result<Option<Self>> {
        let mut parts = documents(&folder.join(format!("{name}.yaml")))?;
        let of = |parts: &mut Vec<Value>, kind: &str| -> Vec<Value> {
            parts.extract_if(.., |part| part["kind"] == kind).collect()
        };
        let namespace = of(&mut parts, "Namespace").pop();
        let mut policies = of(&mut parts, "DatabaseAccessPolicy");
        let Some(mut pod) = of(&mut parts, "Pod").pop() else {
            return Ok(None);
        };
        if policies.is_empty() && of(&mut parts, "NoPolicies").is_empty() {
            policies = defaults.to_vec();
        }
        // An API server alone runs without the plugin that fills this in, before any webhook.
        if pod["spec"].is_object() && pod["spec"]["serviceAccountName"].is_null() {
            pod["spec"]["serviceAccountName"] = json!("default");
        }
        let beside = |ending: &str| folder.join(format!("{name}.{ending}"));
        let expected = if let Ok(text) = std::fs::read_to_string(beside("patched.yaml")) {
            let own = concat!("\\\"version\\\":\\\"", env!("CARGO_PKG_VERSION"), "\\\"");
            let text = text.replace("\\\"version\\\":\\\"1.0.0\\\"", own);
            let warnings = text.lines().filter_map(|line| line.strip_prefix("# warning: "));
            let mut written: Value = serde_yaml::from_str(&text)?;
            if name == NEWER {
                written = json!({"spec": {"initContainers": written["spec"]["initContainers"]}});
            }
            Expected::Patched {
                warnings: warnings.map(str::to_owned).collect(),
                pod: Box::new(written),
            }
        } else if let Ok(text) = std::fs::read_to_string(beside("refused.txt")) {
            let sentences = text.lines().filter_map(|line| line.split_once(": "));
            Expected::Refused(sentences.map(|(_, sentence)| sentence.to_owned()).collect())
        } else {
            ensure!(beside("untouched.txt").exists(), "nothing is expected of {name}");
            Expected::Untouched
        };
        Ok(Some(Self {
            name: name.to_owned(),
            label: namespace.map(|it| {
                it["metadata"]["labels"]["weir.dev/inject"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            }),
            pod,
            policies,
            expected,
        }))
    }

    fn all(folder: &Path) -> Result<Vec<Self>> {
        let defaults = documents(&folder.join("default-policies.yaml"))?;
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name
                .strip_suffix(".yaml")
                .filter(|name| !name.ends_with(".patched"))
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        let cases = names.iter().map(|name| Self::read(folder, name, &defaults));
        Ok(cases.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// What is wrong with the answer.
    fn judge(&self, said: &Said) -> Option<String> {
        if let Some((_, words)) = NO_PODS.iter().find(|(name, _)| *name == self.name) {
            let right = !said.ok && said.err.contains(words);
            return (!right).then(|| format!("`{words}` is not in: {}{}", said.out, said.err));
        }
        match &self.expected {
            Expected::Refused(sentences) => {
                let missing = sentences
                    .iter()
                    .find(|sentence| !said.err.contains(sentence.as_str()));
                if said.ok {
                    Some("it was taken".to_owned())
                } else {
                    missing.map(|sentence| format!("`{sentence}` is not in: {}", said.err))
                }
            }
            Expected::Untouched => {
                let touched = !said.ok || said.out.contains("weir-sidecar");
                touched.then(|| format!("{}{}", said.out, said.err))
            }
            Expected::Patched { pod, warnings } => {
                if !said.ok {
                    return Some(said.err.clone());
                }
                let Ok(made) = serde_json::from_str::<Value>(&said.out) else {
                    return Some(said.out.clone());
                };
                let unsaid = warnings
                    .iter()
                    .find(|warning| !said.err.contains(warning.as_str()));
                unsaid
                    .map(|warning| format!("no warning `{warning}` in: {}", said.err))
                    .or_else(|| differs("", pod, &made))
            }
        }
    }
}

/// Where `made` lacks what is written, or has another. More than is written is the API server's: its defaults.
fn differs(path: &str, written: &Value, made: &Value) -> Option<String> {
    match (written, made) {
        (Value::Object(written), Value::Object(made)) => written.iter().find_map(|(key, written)| {
            let path = format!("{path}/{key}");
            match made.get(key) {
                Some(made) => differs(&path, written, made),
                // What says nothing is left out; these fields the API server keeps itself.
                None if matches!(written, Value::Null | Value::Bool(false)) => None,
                None if key == "managedFields" => None,
                None => Some(format!("{path} is missing: {written}")),
            }
        }),
        (Value::Array(written), Value::Array(made)) => {
            if written.len() != made.len() {
                return Some(format!(
                    "{path} has {} items, not {}: {made:?}",
                    made.len(),
                    written.len()
                ));
            }
            // The bundle is this operator's own.
            let pairs = written.iter().zip(made).enumerate();
            pairs
                .filter(|(_, (written, _))| written["name"] != "WEIR_TRUST_BUNDLE")
                .find_map(|(index, (written, made))| differs(&format!("{path}/{index}"), written, made))
        }
        (Value::String(written), Value::String(made)) if path.ends_with("/cpu") => {
            (millis(written) != millis(made)).then(|| format!("{path} is {made}, not {written}"))
        }
        (written, made) => (written != made).then(|| format!("{path} is {made}, not {written}")),
    }
}

/// The API server writes quantities its own way.
fn millis(cpu: &str) -> Option<f64> {
    match cpu.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => cpu.parse::<f64>().ok().map(|cpus| cpus * 1000.0),
    }
}

/// The namespace `shop` as a case has it. Gives what the API server says, if it takes one of the policies not.
fn prepare(kubectl: &Kubectl, case: &Case) -> Result<Option<String>> {
    let label = case.label.as_ref().map_or_else(
        || "weir.dev/inject-".to_owned(),
        |label| format!("weir.dev/inject={label}"),
    );
    kubectl.run(&["label", "namespace", "shop", "--overwrite", &label])?;
    kubectl.run(&["delete", "dap", "--all", "-n", "shop"])?;
    if case.policies.is_empty() {
        return Ok(None);
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": case.policies});
    let said = kubectl.try_with(&["create", "-f", "-"], &list.to_string())?;
    Ok((!said.ok).then_some(said.err))
}

fn each_odd_pod_goes_through_the_webhook(release: Release) -> Result<()> {
    let governed = governed(release)?;
    let kubectl = governed.server.kubectl();
    kubectl.namespace("shop")?;
    let class = "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: gvisor}, handler: runsc}";
    kubectl.apply("default", class)?;
    let folder: PathBuf = test_support::workspace_root().join("crates/pod-injection/tests/pods");
    let mut cases = Case::all(&folder)?;
    // Those that share their policies follow one another.
    cases.sort_by_key(|case| format!("{:?}{:?}", case.label, case.policies));
    let mut before: Option<&Case> = None;
    let (mut wrong, mut asked) = (Vec::new(), 0);
    for case in &cases {
        if before.is_none_or(|before| before.label != case.label || before.policies != case.policies) {
            let refused = prepare(kubectl, case)?;
            let expected = NO_POLICIES
                .iter()
                .find(|(name, _)| *name == case.name)
                .map(|(_, words)| *words);
            match (refused, expected) {
                (None, None) => before = Some(case),
                (Some(said), Some(words)) if said.contains(words) => {
                    before = None;
                    continue;
                }
                (refused, expected) => {
                    wrong.push(format!(
                        "{}: its policies: {expected:?}, but {refused:?}",
                        case.name
                    ));
                    before = None;
                    continue;
                }
            }
        }
        asked += 1;
        let create = [
            "create",
            "--namespace=shop",
            "--dry-run=server",
            "--validate=ignore",
            "-o",
            "json",
            "-f",
            "-",
        ];
        let text = case.pod.to_string();
        let since = Instant::now();
        // Until the webhook has seen the policies it answers by those before.
        let last = loop {
            let said = kubectl.try_with(&create, &text)?;
            match case.judge(&said) {
                Some(_) if since.elapsed() < SEEN_WITHIN => {}
                last => break last,
            }
        };
        wrong.extend(last.map(|last| format!("{}: {last}", case.name)));
    }
    ensure!(
        wrong.is_empty(),
        "{} of {asked}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    ensure!(asked >= 60, "only {asked} pods were asked");
    Ok(())
}
