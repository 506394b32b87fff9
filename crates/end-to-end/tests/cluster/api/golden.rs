//! The odd pods of `pod-injection` as an API server sees them: what injection makes of one is taken, and what opted in
//! and was not injected is refused.

use super::{Answers, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use test_support::cluster::Release;

pub(super) const TESTS: &[(&str, Test)] = &[(
    "each_odd_pod_is_taken_as_injection_leaves_it",
    each_odd_pod_is_taken_as_injection_leaves_it,
)];

/// What no API server takes as a pod, injected or not, and what it says.
const NO_PODS: &[(&str, &str)] = &[
    ("containers-are-no-list", "cannot be handled as a Pod"),
    ("empty-containers", "spec.containers: Required value"),
    ("ephemeral-containers", "cannot be set on create"),
    ("no-containers", "spec.containers: Required value"),
    ("no-spec", "spec.containers: Required value"),
    (
        "own-host-alias-of-governed-name",
        "a lowercase RFC 1123 subdomain",
    ),
    ("static-pod", "must set spec.nodeName"),
];

fn each_odd_pod_is_taken_as_injection_leaves_it(release: Release) -> Result<()> {
    let server = super::backstop::server(release)?;
    let folder = test_support::workspace_root().join("crates/pod-injection/tests/pods");
    let read = |path: &std::path::Path| -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(path)?;
        text.split("\n---\n")
            .map(|it| Ok(serde_yaml::from_str(it)?))
            .collect()
    };
    let mut answers = Answers::of(&server);
    let (mut patched, mut refused) = (0, 0);
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a name")?;
        let Some(case) = name
            .strip_suffix(".yaml")
            .filter(|name| !name.ends_with(".patched"))
        else {
            continue;
        };
        let documents = read(&path)?;
        let Some(before) = documents.iter().find(|it| it["kind"] == "Pod") else {
            continue;
        };
        let label = documents.iter().find(|it| it["kind"] == "Namespace").map(|it| {
            it["metadata"]["labels"]["weir.dev/inject"]
                .as_str()
                .unwrap_or_default()
        });
        let namespace = match label {
            None | Some("") => "plain",
            Some("enabled") => "enabled",
            Some("required") => "required",
            Some(_) => "mistyped",
        };
        let mut ask = |pod: &Value, what: &str, refused: Option<&str>| {
            let mut pod = pod.clone();
            pod["metadata"]["namespace"] = json!(namespace);
            // As in `backstop`.
            if pod["spec"].is_object() && pod["spec"]["serviceAccountName"].is_null() {
                pod["spec"]["serviceAccountName"] = json!("default");
            }
            // Fields of the future are dropped, as for a client that is newer than the API server.
            let create = [
                "create",
                "--as=dev",
                "--dry-run=server",
                "--validate=ignore",
                "-f",
                "-",
            ];
            answers.expect(&format!("{case} {what}"), &create, Some(&pod), refused)
        };
        if folder.join(format!("{case}.patched.yaml")).exists() {
            let after = read(&folder.join(format!("{case}.patched.yaml")))?;
            ask(after.first().context("a pod")?, "injected", None)?;
            patched += 1;
        }
        if folder.join(format!("{case}.untouched.txt")).exists() {
            ask(before, "untouched", None)?;
        } else {
            let no_pod = NO_PODS
                .iter()
                .find(|(name, _)| *name == case)
                .map(|(_, words)| *words);
            ask(
                before,
                "not injected",
                Some(no_pod.unwrap_or("ValidatingAdmissionPolicy 'weir-pods'")),
            )?;
            refused += 1;
        }
    }
    ensure!(
        patched >= 30 && refused >= 70,
        "only {patched} and {refused} were asked"
    );
    answers.finish(100)
}
