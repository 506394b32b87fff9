//! Before Weir goes: who still depends on it?

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use pod_injection::contract::{CONTAINER, INJECT, PODS_WEBHOOKS, POLICIES_WEBHOOKS};

use super::{Finding, client};

/// Pods asked for at a time.
const PAGE: u32 = 500;
/// Workloads that are printed: one screen.
const WORKLOADS_MAX: usize = 12;

/// What helm calls this installation.
#[derive(Debug, Clone, clap::Args)]
pub struct Release {
    /// The release's name and namespace, as in `weir -n weir-system`.
    #[arg(long)]
    release: Option<String>,
    /// The revision that is to be removed.
    #[arg(long, requires = "release")]
    revision: Option<u32>,
}

impl Release {
    /// A pre-delete hook that fails leaves the release in the state `uninstalling`, in which helm refuses upgrades.
    fn way_back(&self) -> String {
        let (Some(release), Some(revision)) = (&self.release, self.revision) else {
            return String::new();
        };
        let (name, rest) = release.split_once(' ').unwrap_or((release, ""));
        format!(
            "\nTo keep Weir after all (helm takes the release for half removed, and refuses upgrades until then):\n  \
             helm rollback {name} {revision} {rest}"
        )
    }
}

pub(super) async fn look(force: bool, release: &Release) -> Finding {
    let client = match client().await {
        Ok(client) => client,
        Err(finding) => return finding,
    };
    let dependents = match dependents(&client).await {
        Ok(dependents) => dependents,
        // Asked with force, not knowing is no reason to stay.
        Err(error) if force => {
            println!("cannot list pods ({error}); going on, because of --force");
            Dependents::default()
        }
        Err(error) => return Finding::Unknown(format!("cannot list pods: {error}")),
    };
    if !dependents.is_empty() && !force {
        return Finding::Bad(format!("{dependents}{}", release.way_back()));
    }
    if let Err(error) = remove_webhooks(&client).await {
        return Finding::Unknown(format!("cannot remove the webhook configurations: {error}"));
    }
    Finding::Good(match dependents.pods() {
        0 => "no pod has a sidecar; the webhook configurations are removed".to_owned(),
        pods => format!("{pods} pods keep their sidecars (--force); the webhook configurations are removed"),
    })
}

async fn dependents(client: &Client) -> Result<Dependents, kube::Error> {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut found = Dependents::default();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = pods.list(&page).await?;
        found.extend(&list.items);
        match list.metadata.continue_ {
            Some(token) if !token.is_empty() => page = page.continue_token(&token),
            _ => return Ok(found),
        }
    }
}

/// Without an operator nothing answers them, and the API server would refuse what they match.
async fn remove_webhooks(client: &Client) -> Result<(), kube::Error> {
    let params = DeleteParams::default();
    let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone());
    gone(mutating.delete(PODS_WEBHOOKS, &params).await.map(|_| ()))?;
    let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    gone(validating.delete(POLICIES_WEBHOOKS, &params).await.map(|_| ()))
}

fn gone(answer: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

/// What a pod belongs to: what has to be restarted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Workload {
    /// `kubectl rollout restart` knows it: `deployment/report`.
    Rollout(String),
    /// A Job ends by itself.
    Job(String),
    /// Owned by something that only its own tools restart.
    Other(String),
    /// Nobody makes it anew.
    Pod(String),
}

#[derive(Debug, Default)]
struct Dependents {
    /// By namespace and workload: how many pods, and whether the pod itself opted in.
    workloads: BTreeMap<(String, Workload), (usize, bool)>,
}

impl Dependents {
    fn extend(&mut self, pods: &[Pod]) {
        for pod in pods.iter().filter(|pod| has_sidecar(pod)) {
            let key = (pod.namespace().unwrap_or_default(), workload(pod));
            let opted_in = pod.annotations().contains_key(INJECT);
            let (count, by_annotation) = self.workloads.entry(key).or_default();
            *count += 1;
            *by_annotation |= opted_in;
        }
    }

    fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }

    fn pods(&self) -> usize {
        self.workloads.values().map(|(count, _)| count).sum()
    }
}

/// The container counts, not a label: labels of a running pod can be changed.
fn has_sidecar(pod: &Pod) -> bool {
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let going = pod.metadata.deletion_timestamp.is_some();
    let carries = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .any(|container| container.name == CONTAINER);
    carries && !ended && !going
}

fn workload(pod: &Pod) -> Workload {
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else {
        return Workload::Pod(pod.name_any());
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            // A Deployment names its ReplicaSets after itself and this label.
            let deployment = pod
                .labels()
                .get("pod-template-hash")
                .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            match deployment {
                Some(name) => Workload::Rollout(format!("deployment/{name}")),
                None => Workload::Other(format!("replicaset/{}", owner.name)),
            }
        }
        "StatefulSet" => Workload::Rollout(format!("statefulset/{}", owner.name)),
        "DaemonSet" => Workload::Rollout(format!("daemonset/{}", owner.name)),
        "Job" => Workload::Job(owner.name.clone()),
        kind => Workload::Other(format!("{}/{}", kind.to_lowercase(), owner.name)),
    }
}

impl std::fmt::Display for Dependents {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            out,
            "{} pods still run with Weir's sidecar. Without the operator they go on with the policies they have until \
             those run out, and then take no new sessions.",
            self.pods()
        )?;
        let mut opt_out = String::new();
        let mut restart = String::new();
        for ((namespace, workload), (pods, by_annotation)) in self.workloads.iter().take(WORKLOADS_MAX) {
            let restarted = match workload {
                Workload::Rollout(name) => {
                    if *by_annotation {
                        writeln!(
                            opt_out,
                            "  kubectl -n {namespace} patch {name} --type=merge -p \
                             '{{\"spec\":{{\"template\":{{\"metadata\":{{\"annotations\":{{\"{INJECT}\":null}}}}}}}}}}'"
                        )?;
                    }
                    format!("kubectl -n {namespace} rollout restart {name}")
                }
                Workload::Job(name) => {
                    format!(
                        "kubectl -n {namespace} wait --for=condition=complete job/{name}   # or delete it"
                    )
                }
                Workload::Other(name) => {
                    format!("# restart {name} in namespace {namespace} by its own means")
                }
                Workload::Pod(name) => {
                    format!("kubectl -n {namespace} delete pod {name}   # nobody makes it anew")
                }
            };
            let noun = if *pods == 1 { "pod" } else { "pods" };
            writeln!(restart, "  {restarted}   # {pods} {noun}")?;
        }
        let mut labelled: Vec<&str> = self
            .workloads
            .iter()
            .filter(|(_, (_, by_annotation))| !by_annotation)
            .map(|((namespace, _), _)| namespace.as_str())
            .collect();
        labelled.dedup();
        for namespace in labelled.iter().take(WORKLOADS_MAX) {
            writeln!(opt_out, "  kubectl label namespace {namespace} {INJECT}-")?;
        }
        writeln!(
            out,
            "\nTake their opt-in away, or they come back with a sidecar:\n\n{opt_out}"
        )?;
        writeln!(
            out,
            "and restart them. From then on nothing governs what they ask:\n\n{restart}"
        )?;
        if self.workloads.len() > WORKLOADS_MAX {
            writeln!(
                out,
                "  ... and {} workloads more: kubectl get pods -A -l {INJECT}ed=true\n",
                self.workloads.len() - WORKLOADS_MAX
            )?;
        }
        write!(
            out,
            "Then run `helm uninstall` again. To leave those pods as they are: `helm uninstall --no-hooks`."
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, name: &str, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": namespace, "annotations": {"weir.dev/inject": "true"}},
            "spec": {"containers": [], "initContainers": [{"name": "weir-sidecar"}]},
            "status": {"phase": "Running"},
        });
        json_patch::merge(&mut pod, &more);
        serde_json::from_value(pod).expect("a pod")
    }

    fn owned(kind: &str, name: &str) -> Value {
        json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "1", "controller": true}])
    }

    fn told(pods: &[Pod]) -> String {
        let mut dependents = Dependents::default();
        dependents.extend(pods);
        dependents.to_string()
    }

    #[test]
    fn pods_without_a_running_sidecar_do_not_count() {
        let mut dependents = Dependents::default();
        dependents.extend(&[
            pod("shop", "ended", json!({"status": {"phase": "Succeeded"}})),
            pod("shop", "failed", json!({"status": {"phase": "Failed"}})),
            pod(
                "shop",
                "going",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
            pod("shop", "plain", json!({"spec": {"initContainers": null}})),
            pod(
                "shop",
                "other",
                json!({"spec": {"initContainers": [{"name": "migrate"}]}}),
            ),
        ]);
        assert!(dependents.is_empty(), "{dependents:?}");
    }

    #[test]
    fn a_pending_pod_counts_and_so_does_one_whose_label_was_taken_off() {
        let mut dependents = Dependents::default();
        dependents.extend(&[pod("shop", "waits", json!({"status": {"phase": "Pending"}}))]);
        assert_eq!(dependents.pods(), 1);
    }

    #[test]
    fn a_deployment_is_told_once_with_its_restart() {
        let deployed = |name: &str| {
            pod(
                "shop",
                name,
                json!({"metadata": {
                    "labels": {"pod-template-hash": "5d9c7"},
                    "ownerReferences": owned("ReplicaSet", "daily-report-5d9c7"),
                }}),
            )
        };
        let text = told(&[deployed("a"), deployed("b")]);
        assert!(text.starts_with("2 pods"), "{text}");
        assert!(
            text.contains("  kubectl -n shop rollout restart deployment/daily-report   # 2 pods\n"),
            "{text}"
        );
        assert!(
            text.contains(r#"patch deployment/daily-report --type=merge -p '{"spec":{"template":{"metadata":{"annotations":{"weir.dev/inject":null}}}}}'"#),
            "{text}"
        );
        assert!(text.contains("helm uninstall --no-hooks"), "{text}");
        assert_eq!(text.matches("rollout restart").count(), 1, "{text}");
    }

    #[test]
    fn each_kind_of_owner_has_its_line() {
        for (kind, name, line) in [
            ("StatefulSet", "ledger", "rollout restart statefulset/ledger"),
            ("DaemonSet", "agent", "rollout restart daemonset/agent"),
            ("Job", "nightly-1", "wait --for=condition=complete job/nightly-1"),
            (
                "ReplicaSet",
                "alone",
                "# restart replicaset/alone in namespace shop by its own means",
            ),
            (
                "Cluster",
                "pg",
                "# restart cluster/pg in namespace shop by its own means",
            ),
        ] {
            let text = told(&[pod(
                "shop",
                "a",
                json!({"metadata": {"ownerReferences": owned(kind, name)}}),
            )]);
            assert!(text.contains(line), "{kind}: {text}");
        }
        let text = told(&[pod("shop", "alone", json!({}))]);
        assert!(text.contains("kubectl -n shop delete pod alone"), "{text}");
    }

    #[test]
    fn where_the_namespace_opted_in_its_label_has_to_go() {
        let text = told(&[pod("bank", "a", json!({"metadata": {"annotations": null}}))]);
        assert!(
            text.contains("  kubectl label namespace bank weir.dev/inject-\n"),
            "{text}"
        );
    }

    #[test]
    fn a_hundred_workloads_fit_on_one_screen() {
        let pods: Vec<Pod> = (0..100)
            .map(|number| {
                let name = format!("set-{number:03}");
                pod(
                    "shop",
                    &name,
                    json!({"metadata": {"ownerReferences": owned("StatefulSet", &name)}}),
                )
            })
            .collect();
        let text = told(&pods);
        assert!(text.contains("and 88 workloads more"), "{text}");
        assert!(text.lines().count() < 40, "{text}");
    }
}
