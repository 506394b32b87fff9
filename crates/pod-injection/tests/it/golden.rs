//! Every odd pod we know: `pods/NAME.yaml` → `pods/NAME.patched.yaml` or `pods/NAME.refused.txt`, or to nothing (`untouched`).
//!
//! A case is a pod, and after it the policies of its namespace and the namespace itself where it carries a label; a
//! case without policies of its own has `default-policies`. `WEIR_GENERATE=1` writes the expectations again: read the
//! difference before you commit it.

use std::fmt::Write;

use crate::cases::Case;
use pod_injection::{Outcome, Reason, inject};
use serde_json::Value;

#[test]
fn each_odd_pod_becomes_what_is_written_beside_it() {
    let mut wrong = Vec::new();
    for case in Case::all() {
        let outcome = case.inject(&case.pod);
        let (text, ending) = match &outcome {
            Outcome::Untouched => ("it did not opt in\n".to_owned(), "untouched.txt"),
            Outcome::Patch { warnings, .. } => {
                let mut text = String::new();
                for warning in warnings {
                    writeln!(text, "# warning: {warning}").unwrap();
                }
                text.push_str(&yaml(&case.applied(&case.pod, &outcome)));
                (text, "patched.yaml")
            }
            Outcome::Refused(refusals) => {
                let mut text = String::new();
                for refusal in refusals {
                    writeln!(text, "{refusal}").unwrap();
                }
                (text, "refused.txt")
            }
        };
        let there: Vec<&str> = ["patched.yaml", "refused.txt", "untouched.txt"]
            .into_iter()
            .filter(|ending| case.path(ending).exists())
            .collect();
        if std::env::var_os("WEIR_GENERATE").is_some() {
            for ending in there {
                std::fs::remove_file(case.path(ending)).unwrap();
            }
            std::fs::write(case.path(ending), text).unwrap();
        } else if there != [ending] || std::fs::read_to_string(case.path(ending)).unwrap() != text {
            wrong.push(format!("{}:\n{text}", case.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "differs (WEIR_GENERATE=1 writes it):\n{}",
        wrong.join("\n")
    );
}

#[test]
fn a_second_pass_changes_nothing() {
    for case in Case::all() {
        let outcome = case.inject(&case.pod);
        if let Outcome::Patch { .. } = outcome {
            let patched = case.applied(&case.pod, &outcome);
            match case.inject(&patched) {
                Outcome::Patch { operations, .. } => {
                    assert_eq!(operations, Vec::<Value>::new(), "{}", case.name)
                }
                other => panic!("{}: {other:?}", case.name),
            }
        }
    }
}

#[test]
fn whatever_is_done_to_the_sidecar_a_pass_makes_it_whole() {
    let case = Case::read("plain");
    let whole = case.applied(&case.pod, &case.inject(&case.pod));
    let sidecar = |pod: &mut Value| {
        pod.pointer_mut("/spec/initContainers/0")
            .unwrap()
            .as_object_mut()
            .unwrap()
            .clone()
    };
    let changes: [(&str, Value); 7] = [
        ("image", "evil:1".into()),
        ("command", serde_json::json!(["sh"])),
        ("args", serde_json::json!(["-c"])),
        ("envFrom", serde_json::json!([{"secretRef": {"name": "x"}}])),
        ("env", serde_json::json!([])),
        ("restartPolicy", Value::Null),
        (
            "volumeMounts",
            serde_json::json!([{"name": "kube-api-access", "mountPath": "/x"}]),
        ),
    ];
    for (field, value) in changes {
        let mut changed = whole.clone();
        let mut container = sidecar(&mut changed);
        container.insert(field.to_owned(), value);
        *changed.pointer_mut("/spec/initContainers/0").unwrap() = Value::Object(container);
        let outcome = case.inject(&changed);
        assert_eq!(case.applied(&changed, &outcome), whole, "{field}");
    }
    for list in ["initContainers", "volumes", "hostAliases"] {
        let mut changed = whole.clone();
        let items = changed
            .pointer_mut(&format!("/spec/{list}"))
            .unwrap()
            .as_array_mut()
            .unwrap();
        items.reverse();
        items.push(items[0].clone());
        let outcome = case.inject(&changed);
        let again = case.applied(&changed, &outcome);
        assert_eq!(
            again.pointer("/spec/initContainers"),
            whole.pointer("/spec/initContainers"),
            "{list}"
        );
    }
}

#[test]
fn every_reason_has_a_pod_that_is_refused_for_it() {
    let mut missing: Vec<Reason> = Reason::ALL.to_vec();
    for case in Case::all() {
        if let Outcome::Refused(refusals) = case.inject(&case.pod) {
            missing.retain(|reason| refusals.iter().all(|refusal| refusal.reason != *reason));
        }
    }
    assert_eq!(missing, []);
}

#[test]
fn enough_odd_pods() {
    assert!(Case::all().len() >= 40);
}

fn yaml(pod: &Value) -> String {
    serde_yaml::to_string(pod).unwrap()
}

impl Case {
    fn inject(&self, pod: &Value) -> Outcome {
        inject(pod, &self.context())
    }

    fn applied(&self, pod: &Value, outcome: &Outcome) -> Value {
        let Outcome::Patch { operations, .. } = outcome else {
            panic!("{}: {outcome:?}", self.name)
        };
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations.clone())).unwrap();
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &patch).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        patched
    }
}
