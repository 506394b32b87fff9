//! Snapshots and status by data: no API server, no clock.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // reason: tests

use std::collections::BTreeMap;
use std::sync::Arc;

use control_api::proto;
use k8s_openapi::jiff::Timestamp;
use operator::snapshots::{Selectors, selects};
use operator::status::{Question, Seen, status};
use operator::world::{Pod, Policy, RawPod, RawPolicy};
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000;

fn policy_with(namespace: &str, name: &str, spec: Value) -> Policy {
    let raw: RawPolicy = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"), "generation": 3},
        "spec": spec,
    }))
    .unwrap();
    Policy::new(&raw).unwrap()
}

fn policy(mode: &str) -> Policy {
    policy_with(
        "shop",
        "orders",
        json!({"mode": mode, "podSelector": {}, "database": {"engine": "PostgreSQL", "host": "db"}}),
    )
}

fn pod(name: &str, more: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name,
            "annotations": {"weir.dev/captured": r#"[{"host": "db", "port": 5432, "listen": "127.0.0.2:5432"}]"#}},
        "spec": {"initContainers": [{"name": "weir-sidecar"}]},
        "status": {"phase": "Running"},
    });
    for (pointer, value) in more.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    Pod::new(serde_json::from_value::<RawPod>(pod).unwrap()).unwrap()
}

fn answers(generation: i64, reason: &str) -> proto::PodReport {
    proto::PodReport {
        policies: vec![proto::PolicyAck {
            policy: "orders".to_owned(),
            generation,
            reason: reason.to_owned(),
            message: "why".to_owned(),
        }],
        ..proto::PodReport::default()
    }
}

/// (Ready, Enforced, Degraded) as `status/reason`, matched, enforced.
fn judge(policy: &Policy, pods: &[(Pod, Option<proto::PodReport>)]) -> (String, String, String, i32, i32) {
    let seen: Vec<Seen<'_>> = pods
        .iter()
        .map(|(pod, report)| Seen {
            pod,
            report: report.as_ref(),
        })
        .collect();
    let answer = status(&Question {
        policy,
        pods: &seen,
        losses: 0,
        now: Timestamp::from_second(NOW).unwrap(),
    });
    let find = |type_: &str| {
        let condition = answer
            .status
            .conditions
            .iter()
            .find(|one| one.type_ == type_)
            .unwrap();
        assert_eq!(condition.observed_generation, Some(3));
        assert!(!condition.message.is_empty());
        format!("{}/{}", condition.status, condition.reason)
    };
    (
        find("Ready"),
        find("Enforced"),
        find("Degraded"),
        answer.status.matched_pods.unwrap(),
        answer.status.enforced_pods.unwrap(),
    )
}

#[test]
fn what_the_conditions_say() {
    let good = || (pod("a", json!({})), Some(answers(3, "")));
    let report = |report: proto::Report| proto::PodReport {
        report: Some(report),
        ..answers(3, "")
    };
    let bypass = |last_seen| {
        report(proto::Report {
            bypasses: vec![proto::Bypass {
                endpoint: "db:5432".to_owned(),
                address: "10.0.0.1:5432".to_owned(),
                connections: 1,
                last_seen,
            }],
            ..proto::Report::default()
        })
    };
    let unresolved = report(proto::Report {
        unresolved: vec![proto::Unresolved {
            policy: "orders".to_owned(),
            ..proto::Unresolved::default()
        }],
        ..proto::Report::default()
    });
    let dropped = report(proto::Report {
        receipts_dropped: 1,
        ..proto::Report::default()
    });
    let bare = pod("b", json!({"/spec/initContainers": []}));
    let stale = pod("b", json!({"/metadata/annotations": {"weir.dev/captured": "[]"}}));
    let fine = "False/AsExpected";
    for (what, mode, pods, expected) in [
        (
            "all well",
            "Enforce",
            vec![good()],
            ("True/Enforced", "True/Enforced", fine, 1, 1),
        ),
        (
            "audit",
            "Audit",
            vec![good()],
            ("True/AuditMode", "False/AuditMode", fine, 1, 1),
        ),
        (
            "nobody",
            "Enforce",
            vec![],
            ("True/NoPods", "Unknown/NoPods", fine, 0, 0),
        ),
        (
            "one without a sidecar",
            "Enforce",
            vec![good(), (bare.clone(), None)],
            ("False/Uninjected", "False/Uninjected", fine, 2, 1),
        ),
        (
            "audit with one without a sidecar",
            "Audit",
            vec![good(), (bare, None)],
            ("False/Uninjected", "False/AuditMode", fine, 2, 1),
        ),
        (
            "not captured, by its annotation",
            "Enforce",
            vec![good(), (stale, Some(answers(3, "")))],
            ("False/NotCaptured", "False/NotCaptured", fine, 2, 1),
        ),
        (
            "not captured, by its word",
            "Enforce",
            vec![(pod("a", json!({})), Some(answers(3, "NotCaptured")))],
            ("False/NotCaptured", "False/NotCaptured", fine, 1, 0),
        ),
        (
            "an older generation",
            "Enforce",
            vec![(pod("a", json!({})), Some(answers(2, "")))],
            ("False/Waiting", "False/Waiting", fine, 1, 0),
        ),
        (
            "no stream",
            "Enforce",
            vec![(pod("a", json!({})), None)],
            ("False/NotConnected", "False/NotConnected", fine, 1, 0),
        ),
        (
            "refused",
            "Enforce",
            vec![(pod("a", json!({})), Some(answers(3, "SomethingNew")))],
            ("False/Refused", "False/Refused", fine, 1, 0),
        ),
        (
            "bypassed a minute ago",
            "Enforce",
            vec![(pod("a", json!({})), Some(bypass(NOW - 60)))],
            ("False/Bypassed", "False/Bypassed", fine, 1, 1),
        ),
        (
            "bypassed an hour ago",
            "Enforce",
            vec![(pod("a", json!({})), Some(bypass(NOW - 3600)))],
            ("True/Enforced", "True/Enforced", fine, 1, 1),
        ),
        (
            "a name that is not there",
            "Enforce",
            vec![(pod("a", json!({})), Some(unresolved))],
            (
                "False/UnresolvedNames",
                "True/Enforced",
                "True/UnresolvedNames",
                1,
                1,
            ),
        ),
        (
            "dropped receipts",
            "Enforce",
            vec![(pod("a", json!({})), Some(dropped))],
            ("False/ReceiptsLost", "True/Enforced", "True/ReceiptsLost", 1, 1),
        ),
        (
            "going, ended and not yet started pods do not count",
            "Enforce",
            vec![
                good(),
                (
                    pod(
                        "b",
                        json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"}),
                    ),
                    None,
                ),
                (pod("c", json!({"/status/phase": "Succeeded"})), None),
                (pod("d", json!({"/status/phase": "Pending"})), None),
            ],
            ("True/Enforced", "True/Enforced", fine, 1, 1),
        ),
    ] {
        let (ready, enforced, degraded, matched, counted) = judge(&policy(mode), &pods);
        let got = (
            ready.as_str(),
            enforced.as_str(),
            degraded.as_str(),
            matched,
            counted,
        );
        assert_eq!(got, expected, "{what}");
    }
}

#[test]
fn a_policy_that_does_not_compile_is_invalid_and_says_where() {
    let wrong = policy_with(
        "shop",
        "orders",
        json!({"podSelector": {}, "database": {"engine": "PostgreSQL", "host": "db"}, "nonsense": 1}),
    );
    let (ready, enforced, ..) = judge(&wrong, &[]);
    assert_eq!(
        (ready.as_str(), enforced.as_str()),
        ("False/Invalid", "False/Invalid")
    );
    assert!(wrong.compiled.unwrap_err().contains("nonsense"));
}

#[test]
fn last_transition_time_stays_while_the_status_stays() {
    let mut policy = policy("Enforce");
    let at = |policy: &Policy, second| {
        status(&Question {
            policy,
            pods: &[],
            losses: 0,
            now: Timestamp::from_second(second).unwrap(),
        })
        .status
    };
    policy.status = at(&policy, NOW);
    assert_eq!(at(&policy, NOW + 100), policy.status, "nothing to write");
}

#[test]
fn names_are_cut_at_twenty_beside_the_whole_count() {
    let pods: Vec<Pod> = (0..25)
        .map(|number| pod(&format!("p{number:02}"), json!({"/spec/initContainers": []})))
        .collect();
    let seen: Vec<Seen<'_>> = pods.iter().map(|pod| Seen { pod, report: None }).collect();
    let policy = policy("Enforce");
    let answer = status(&Question {
        policy: &policy,
        pods: &seen,
        losses: 0,
        now: Timestamp::from_second(NOW).unwrap(),
    });
    assert_eq!(answer.status.uninjected_pods.len(), 20);
    assert_eq!(answer.status.uninjected_pods_count, Some(25));
}

#[test]
fn only_an_empty_selector_says_every_pod() {
    let database = json!({"engine": "PostgreSQL", "host": "db"});
    let selects = |spec: Value| policy_with("shop", "orders", spec).selects(&BTreeMap::new());
    assert!(selects(json!({"podSelector": {}, "database": database})));
    assert!(!selects(json!({"database": database})), "left out");
    for unreadable in [
        json!(null),
        json!("app=report"),
        json!({"matchLabels": ["app"]}),
        json!([]),
    ] {
        let spec = json!({"podSelector": unreadable, "database": database});
        assert!(!selects(spec), "{unreadable}");
    }
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[a-c]", "[x-y]", 0..3)
}

fn selector() -> impl Strategy<Value = Value> {
    let expression = (
        "[a-c]",
        prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist", "Near"]),
        "[x-y]",
    )
        .prop_map(|(key, operator, value)| match operator {
            "Exists" | "DoesNotExist" => json!({"key": key, "operator": operator}),
            _ => json!({"key": key, "operator": operator, "values": [value]}),
        });
    (labels(), prop::collection::vec(expression, 0..3))
        .prop_map(|(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions}))
}

proptest! {
    /// Whatever is selected, a pod hears of its own namespace's policies alone, of exactly those that select it, sorted.
    #[test]
    fn a_snapshot_holds_the_policies_that_select_the_pod_and_no_others(
        policies in prop::collection::btree_map(("shop|other", "[a-f]"), selector(), 0..8),
        labels in labels(),
    ) {
        let all: Vec<Arc<Policy>> = policies
            .iter()
            .map(|((namespace, name), selector)| {
                let spec = json!({"podSelector": selector, "database": {"engine": "PostgreSQL", "host": "db"}});
                Arc::new(policy_with(namespace, name, spec))
            })
            .collect();
        let expected: Vec<&str> = all
            .iter()
            .filter(|policy| policy.namespace == "shop" && policy.selects(&labels))
            .map(|policy| policy.name.as_str())
            .collect();
        // Even where a caller mixes namespaces, and in whatever order.
        let selectors = Selectors::new(all.iter().rev().cloned());
        let mut pod = pod("p", json!({}));
        pod.labels = labels.clone();
        let snapshot = selectors
            .content(&pod, &proto::Collector::default())
            .snapshot(1, NOW, NOW + 1);
        let names: Vec<&str> = snapshot.policies.iter().map(|policy| policy.name.as_str()).collect();
        prop_assert_eq!(names, expected);
        prop_assert!(snapshot.policies.iter().all(|policy| policy.uid.starts_with("shop-")));
    }

    /// Admission and the streams agree on what a selector selects.
    #[test]
    fn admission_selects_alike(selector in selector(), labels in labels()) {
        let parsed = serde_json::from_value(selector).unwrap();
        let as_json = serde_json::to_value(&labels).unwrap();
        prop_assert_eq!(selects(&parsed, &labels), pod_injection::selects(&parsed, Some(&as_json)));
    }
}

/// Whoever meets a reason looks it up in docs/kubernetes.md: of pods that are refused, and of conditions.
#[test]
fn every_reason_is_explained() {
    let docs = std::fs::read_to_string(test_support::workspace_root().join("docs/kubernetes.md")).unwrap();
    for reason in pod_injection::Reason::ALL {
        assert!(docs.contains(&format!("`{reason}`")), "{reason}");
    }
    // Those that the code of the status writes: the texts before a comma that begin with a capital letter.
    let source = include_str!("../src/status.rs")
        .split("#[cfg(test)]")
        .next()
        .unwrap();
    let mut found = 0;
    for text in source.split('"').skip(1).step_by(2) {
        let one_word = text.len() > 5 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if one_word && text.starts_with(|letter: char| letter.is_ascii_uppercase()) && text != "Unknown" {
            assert!(docs.contains(&format!("`{text}`")), "{text}");
            found += 1;
        }
    }
    assert!(found > 15, "only {found}");
}
