//! `weir status` of a cluster: policies, pods, sinks, and Weir's own workloads.
//!
//! What the API server says, and what only the operators know (`crate::operators`). Without the latter the rest is shown,
//! and why it is missing.

use anyhow::Result;
use crd_types::{Condition, DatabaseAccessPolicy, LineageSink, Time};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use pod_injection::contract::{self, Captured, Injected};
use serde::Serialize;

use crate::cluster::{Cluster, Scope, Workload, block_on};
use crate::operators::{Applied, Certificate, Operators, PodPage, leaf_is_late};
use crate::table::{plain, print, table};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    weir: Vec<Workload>,
    certificates: Vec<Certificate>,
    /// Replicas of the operator that could not be asked, and why: their pods' `applied` is absent.
    unasked: Vec<String>,
    policies: Vec<PolicyState>,
    pods: Vec<PodState>,
    sinks: Vec<SinkState>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyState {
    namespace: String,
    name: String,
    mode: &'static str,
    /// `True`, `False`, `Unknown`; absent: no operator has said anything yet.
    ready: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    matched_pods: Option<i32>,
    enforced_pods: Option<i32>,
    uninjected_pods: Option<i32>,
    restart_needed_pods: Option<i32>,
    generation: Option<i64>,
    /// The generation that the status speaks of.
    observed_generation: Option<i64>,
    age_seconds: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodState {
    namespace: String,
    name: String,
    /// Version of the sidecar: as it says itself, or of the operator that made it.
    version: Option<String>,
    image: Option<String>,
    /// What it captures: `host:port`.
    captures: Vec<String>,
    /// What it acknowledged; absent: no operator that was asked has its stream.
    applied: Option<Vec<Applied>>,
    /// End of its leaf, Unix seconds.
    certificate_not_after: Option<i64>,
    receipts_waiting: Option<u64>,
    receipts_dropped: Option<u64>,
    /// Of the sidecar's container.
    ready: bool,
    /// The pod has done its work, as a Job's does; it enforces nothing any more and is not missed.
    ended: bool,
    restarts: i32,
    age_seconds: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SinkState {
    namespace: String,
    name: String,
    kind: &'static str,
    ready: Option<String>,
    reason: Option<String>,
    delivered: Option<i64>,
    failed: Option<i64>,
    lag: Option<i64>,
    last_error: Option<String>,
}

/// Runs it: 0 all is ready, 1 something is not.
///
/// # Errors
/// Where the cluster cannot be found or read.
pub(crate) fn run(scope: &Scope, json: bool) -> Result<u8> {
    block_on(async {
        let cluster = Cluster::connect(scope).await?;
        cluster.namespace_exists().await?;
        let now = jiff::Timestamp::now().as_second();
        let (policies, pods, sinks) =
            tokio::try_join!(cluster.policies(), cluster.injected_pods(), cluster.sinks())?;
        let operators = Operators::ask(&cluster).await;
        // Who may read one namespace often may not read Weir's own.
        let weir = cluster.workloads().await.unwrap_or_else(|error| {
            eprintln!("weir: operator and collector are not shown: {error:#}");
            Vec::new()
        });
        let state = State {
            weir,
            policies: policies.iter().map(|policy| policy_state(policy, now)).collect(),
            pods: pods.iter().map(|pod| pod_state(pod, &operators, now)).collect(),
            certificates: operators.certificates,
            unasked: operators.silent,
            sinks: sinks.iter().map(sink_state).collect(),
        };
        if json {
            print(&serde_json::to_string_pretty(&state)?)?;
        } else {
            print(&text(&state, now))?;
        }
        Ok(u8::from(!state.is_well(now)))
    })
}

impl State {
    fn is_well(&self, now: i64) -> bool {
        let ready = |ready: &Option<String>| ready.as_deref() == Some("True");
        self.weir.iter().all(Workload::is_ready)
            && self
                .policies
                .iter()
                .all(|policy| ready(&policy.ready) && policy.observed_generation == policy.generation)
            && self
                .pods
                .iter()
                .all(|pod| pod.ended || pod.ready && !pod.is_late(now))
            && !self
                .certificates
                .iter()
                .any(|certificate| certificate.is_late(now))
            && self.sinks.iter().all(|sink| ready(&sink.ready))
    }
}

impl PodState {
    fn is_late(&self, now: i64) -> bool {
        self.certificate_not_after
            .is_some_and(|end| leaf_is_late(end, now))
    }

    /// `orders@3`, or `orders@2 NotCaptured` where it is not in force.
    fn show_applied(&self) -> String {
        let Some(applied) = &self.applied else {
            return UNSAID.to_owned();
        };
        let each: Vec<String> = applied
            .iter()
            .map(|one| {
                let space = if one.reason.is_empty() { "" } else { " " };
                format!("{}@{}{space}{}", one.policy, one.generation, one.reason)
            })
            .collect();
        if each.is_empty() {
            "none".to_owned()
        } else {
            plain(&each.join(", "))
        }
    }
}

fn ready_condition(conditions: &[Condition]) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == "Ready")
}

fn age(created: Option<&Time>, now: i64) -> Option<i64> {
    Some(now.saturating_sub(created?.0.as_second()).max(0))
}

fn policy_state(policy: &DatabaseAccessPolicy, now: i64) -> PolicyState {
    let status = policy.status.clone().unwrap_or_default();
    let ready = ready_condition(&status.conditions);
    PolicyState {
        namespace: policy.namespace().unwrap_or_default(),
        name: policy.name_any(),
        mode: match policy.spec.mode {
            crd_types::policy::Mode::Enforce => "Enforce",
            crd_types::policy::Mode::Audit => "Audit",
        },
        ready: ready.map(|condition| condition.status.clone()),
        reason: ready.map(|condition| condition.reason.clone()),
        message: ready.map(|condition| condition.message.clone()),
        matched_pods: status.matched_pods,
        enforced_pods: status.enforced_pods,
        uninjected_pods: status.uninjected_pods_count,
        restart_needed_pods: status.restart_needed_pods_count,
        generation: policy.metadata.generation,
        observed_generation: status.observed_generation,
        age_seconds: age(policy.metadata.creation_timestamp.as_ref(), now),
    }
}

fn pod_state(pod: &Pod, operators: &Operators, now: i64) -> PodState {
    let told = operators.pod(pod.metadata.uid.as_deref());
    let injected: Option<Injected> = annotation(pod, contract::INJECTED);
    let captured: Vec<Captured> = annotation(pod, contract::CAPTURED).unwrap_or_default();
    let container = pod
        .status
        .iter()
        .flat_map(|status| {
            status
                .init_container_statuses
                .iter()
                .flatten()
                .chain(status.container_statuses.iter().flatten())
        })
        .find(|container| container.name == contract::CONTAINER);
    PodState {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        version: told
            .map(|told| told.version.clone())
            .filter(|version| !version.is_empty())
            .or_else(|| injected.as_ref().map(|injected| injected.version.clone())),
        image: injected.map(|injected| injected.image),
        captures: captured
            .iter()
            .map(|captured| format!("{}:{}", captured.host, captured.port))
            .collect(),
        applied: told.map(|told| told.policies.clone()),
        certificate_not_after: told.and_then(PodPage::certificate_not_after),
        receipts_waiting: told.map(|told| told.receipts_waiting),
        receipts_dropped: told.map(|told| told.receipts_dropped),
        ready: container.is_some_and(|container| container.ready),
        ended: matches!(
            pod.status.as_ref().and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        ),
        restarts: container.map_or(0, |container| container.restart_count),
        age_seconds: age(pod.metadata.creation_timestamp.as_ref(), now),
    }
}

fn annotation<T: serde::de::DeserializeOwned>(pod: &Pod, name: &str) -> Option<T> {
    serde_json::from_str(pod.metadata.annotations.as_ref()?.get(name)?).ok()
}

fn sink_state(sink: &LineageSink) -> SinkState {
    let status = sink.status.clone().unwrap_or_default();
    let ready = ready_condition(&status.conditions);
    SinkState {
        namespace: sink.namespace().unwrap_or_default(),
        name: sink.name_any(),
        kind: if sink.spec.open_lineage.is_some() {
            "openLineage"
        } else {
            "stdout"
        },
        ready: ready.map(|condition| condition.status.clone()),
        reason: ready.map(|condition| condition.reason.clone()),
        delivered: status.delivered,
        failed: status.failed,
        lag: status.lag,
        last_error: status.last_error,
    }
}

/// What the operator has not said (yet).
const UNSAID: &str = "-";

fn said<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| UNSAID.to_owned(), |value| plain(&value.to_string()))
}

/// As kubectl does: the largest unit.
fn show_age(seconds: Option<i64>) -> String {
    let Some(seconds) = seconds else {
        return UNSAID.to_owned();
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long until then, as ages are shown.
fn show_until(end: i64, is_late: bool, now: i64) -> String {
    let left = end.saturating_sub(now);
    if left <= 0 {
        "ended".to_owned()
    } else if is_late {
        format!("{} late", show_age(Some(left)))
    } else {
        show_age(Some(left))
    }
}

fn show_end(end: i64) -> String {
    jiff::Timestamp::from_second(end).map_or_else(
        |_| end.to_string(),
        |end| end.strftime("%Y-%m-%d %H:%MZ").to_string(),
    )
}

fn text(state: &State, now: i64) -> String {
    let mut parts = Vec::new();
    let mut weir = table(&["WEIR", "READY", "IMAGE"]);
    for workload in &state.weir {
        let ready = match workload.wanted {
            Some(wanted) => format!("{}/{wanted}", workload.ready),
            None => "not installed".to_owned(),
        };
        weir.add_row([workload.name.to_owned(), ready, said(workload.image.as_deref())]);
    }
    if !state.weir.is_empty() {
        parts.push(weir.to_string());
    }

    let mut certificates = table(&["CERTIFICATE", "ENDS", "IN"]);
    for certificate in &state.certificates {
        certificates.add_row([
            plain(&certificate.name),
            show_end(certificate.not_after),
            show_until(certificate.not_after, certificate.is_late(now), now),
        ]);
    }
    if !state.certificates.is_empty() {
        parts.push(certificates.to_string());
    }

    let mut policies = table(&[
        "POLICY",
        "GENERATION",
        "MODE",
        "READY",
        "REASON",
        "MATCHED",
        "ENFORCED",
        "AGE",
    ]);
    for policy in &state.policies {
        // The status of an older generation says nothing of this one.
        let stale = policy.observed_generation != policy.generation;
        policies.add_row([
            format!("{}/{}", policy.namespace, policy.name),
            said(policy.generation),
            policy.mode.to_owned(),
            said(policy.ready.as_deref()),
            if stale {
                "not seen by the operator yet".to_owned()
            } else {
                said(policy.reason.as_deref())
            },
            said(policy.matched_pods),
            said(policy.enforced_pods),
            show_age(policy.age_seconds),
        ]);
    }
    parts.push(listed(policies, state.policies.is_empty(), "no policies"));

    let mut pods = table(&[
        "POD",
        "SIDECAR",
        "READY",
        "RESTARTS",
        "APPLIED",
        "CERTIFICATE",
        "WAITING",
        "CAPTURES",
        "AGE",
    ]);
    for pod in &state.pods {
        pods.add_row([
            format!("{}/{}", pod.namespace, pod.name),
            said(pod.version.as_deref()),
            match (pod.ended, pod.ready) {
                (true, _) => "ended",
                (false, true) => "yes",
                (false, false) => "no",
            }
            .to_owned(),
            pod.restarts.to_string(),
            pod.show_applied(),
            pod.certificate_not_after
                .map_or_else(|| UNSAID.to_owned(), |end| show_until(end, pod.is_late(now), now)),
            said(pod.receipts_waiting),
            plain(&pod.captures.join(", ")),
            show_age(pod.age_seconds),
        ]);
    }
    parts.push(listed(pods, state.pods.is_empty(), "no pods with a sidecar"));
    if !state.unasked.is_empty() {
        let reasons: Vec<String> = state.unasked.iter().map(|reason| plain(reason)).collect();
        parts.push(format!(
            "what pods applied, and when certificates end, is not known of:\n  {}",
            reasons.join("\n  ")
        ));
    }

    let mut sinks = table(&["SINK", "KIND", "READY", "REASON", "DELIVERED", "FAILED", "LAG"]);
    for sink in &state.sinks {
        sinks.add_row([
            format!("{}/{}", sink.namespace, sink.name),
            sink.kind.to_owned(),
            said(sink.ready.as_deref()),
            said(sink.reason.as_deref()),
            said(sink.delivered),
            said(sink.failed),
            said(sink.lag),
        ]);
    }
    parts.push(listed(sinks, state.sinks.is_empty(), "no sinks"));
    parts.join("\n\n")
}

fn listed(table: comfy_table::Table, is_empty: bool, none: &str) -> String {
    if is_empty {
        none.to_owned()
    } else {
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_says_what_was_injected_and_whether_the_sidecar_runs() {
        let pod = |ready: bool| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": "report", "annotations": {
                    "weir.dev/injected": r#"{"version":"0.1.0","image":"weir:1"}"#,
                    "weir.dev/captured": r#"[{"host":"orders-db.shop.svc","port":5432,"listen":"127.0.0.2:5432"}]"#}},
                "status": {"initContainerStatuses": [{"name": "weir-sidecar", "ready": ready, "restartCount": 2,
                    "image": "", "imageID": ""}]},
            }))
            .expect("a pod")
        };
        let state = pod_state(&pod(true), &Operators::default(), 0);
        assert_eq!(state.version.as_deref(), Some("0.1.0"));
        assert_eq!(state.captures, ["orders-db.shop.svc:5432"]);
        assert!(state.ready);
        assert_eq!(state.restarts, 2);
        assert!(!pod_state(&pod(false), &Operators::default(), 0).ready);

        // A Job's pod that is done is no reason to worry.
        let mut done = pod(false);
        if let Some(status) = &mut done.status {
            status.phase = Some("Succeeded".to_owned());
        }
        let state = |pod: &Pod| State {
            weir: Vec::new(),
            certificates: Vec::new(),
            unasked: Vec::new(),
            policies: Vec::new(),
            pods: vec![pod_state(pod, &Operators::default(), 0)],
            sinks: Vec::new(),
        };
        assert!(state(&done).is_well(0));
        assert!(!state(&pod(false)).is_well(0));
    }

    /// Ready=True of the generation before is not yet about what was applied.
    #[test]
    fn a_status_of_an_older_generation_is_not_well() {
        let state = |observed: i64| {
            let policy: DatabaseAccessPolicy = serde_json::from_value(json!({
                "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
                "metadata": {"namespace": "shop", "name": "orders", "generation": 2},
                "spec": {"podSelector": {}, "database": {"engine": "PostgreSQL", "host": "db"}},
                "status": {"observedGeneration": observed, "conditions": [{"type": "Ready", "status": "True",
                    "reason": "Enforced", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .expect("a policy");
            State {
                weir: Vec::new(),
                certificates: Vec::new(),
                unasked: Vec::new(),
                policies: vec![policy_state(&policy, 0)],
                pods: Vec::new(),
                sinks: Vec::new(),
            }
        };
        assert!(state(2).is_well(0));
        assert!(!state(1).is_well(0));
        assert!(text(&state(1), 0).contains("not seen by the operator yet"));
    }

    #[test]
    fn ages_as_kubectl_shows_them() {
        assert_eq!(show_age(Some(119)), "119s");
        assert_eq!(show_age(Some(120)), "2m");
        assert_eq!(show_age(Some(172_800)), "2d");
        assert_eq!(show_age(None), "-");
    }
}
