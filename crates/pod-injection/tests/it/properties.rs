//! What holds for any pod at all.

use crate::cases::Case;
use pod_injection::{Outcome, inject};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Any JSON, with our own words among its keys, so that it comes near to a pod.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("metadata".to_owned()),
        Just("spec".to_owned()),
        Just("annotations".to_owned()),
        Just("labels".to_owned()),
        Just("containers".to_owned()),
        Just("initContainers".to_owned()),
        Just("volumes".to_owned()),
        Just("hostAliases".to_owned()),
        Just("weir.dev/inject".to_owned()),
        Just("name".to_owned()),
        "[a-z/~]{0,6}",
    ];
    let text = prop_oneof![
        Just("true".to_owned()),
        Just("weir-sidecar".to_owned()),
        Just("weir-spool".to_owned()),
        ".{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A container that may be good or bad, ours or not.
fn container() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        3 => "[a-z]{1,8}",
        1 => Just("weir-sidecar".to_owned()),
        1 => Just("istio-proxy".to_owned()),
    ];
    let mount = (
        prop_oneof![Just("data"), Just("weir-ca"), Just("weir-spool"), Just("other")],
        prop_oneof![Just("/data"), Just("/var/run/weir"), Just("/etc"), Just("/srv")],
        any::<bool>(),
    )
        .prop_map(|(name, path, read)| json!({"name": name, "mountPath": path, "readOnly": read}));
    (
        name,
        prop::collection::vec(mount, 0..3),
        prop::option::of(1000..1010_i64),
        prop::collection::vec(1000..9000_u16, 0..3),
        any_json(),
    )
        .prop_map(|(name, mounts, user, ports, future)| {
            let ports: Vec<Value> = ports.iter().map(|port| json!({"containerPort": port})).collect();
            let mut container =
                json!({"name": name, "image": "a", "volumeMounts": mounts, "ports": ports, "future": future});
            if let Some(user) = user {
                container
                    .as_object_mut()
                    .unwrap()
                    .insert("securityContext".to_owned(), json!({"runAsUser": user}));
            }
            container
        })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let volume = prop_oneof![
        Just("data"),
        Just("weir-spool"),
        Just("weir-secret-x"),
        Just("other")
    ]
    .prop_map(|name| json!({"name": name, "emptyDir": {}}));
    let alias = (prop_oneof![Just("127.0.0.2"), Just("10.0.0.1")], "[a-z]{1,5}")
        .prop_map(|(ip, host)| json!({"ip": ip, "hostnames": [host]}));
    (
        prop::collection::vec(container(), 1..4),
        prop::option::of(prop::collection::vec(container(), 0..4)),
        prop::option::of(prop::collection::vec(volume, 0..4)),
        prop::option::of(prop::collection::vec(alias, 0..3)),
        any_json(),
    )
        .prop_map(|(containers, init, volumes, aliases, future)| {
            let mut spec = json!({"containers": containers, "future": future.clone()});
            for (key, list) in [("initContainers", init), ("volumes", volumes), ("hostAliases", aliases)] {
                if let Some(list) = list {
                    spec.as_object_mut().unwrap().insert(key.to_owned(), json!(list));
                }
            }
            json!({
                "metadata": {"annotations": {"weir.dev/inject": "true"}, "labels": {"app": "report"}, "future": future},
                "spec": spec,
                "future": 1,
            })
        })
}

/// Removes what the injection may touch.
fn rest(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for (path, keys) in [
        (
            "/spec",
            ["initContainers", "volumes", "hostAliases", "containers"].as_slice(),
        ),
        ("/metadata", &["annotations", "labels"]),
    ] {
        let object = pod.pointer_mut(path).unwrap().as_object_mut().unwrap();
        for key in keys {
            object.remove(*key);
        }
    }
    pod
}

fn others(pod: &Value, list: &str) -> Vec<Value> {
    let items = pod
        .pointer(&format!("/spec/{list}"))
        .and_then(Value::as_array)
        .cloned();
    let mut items = items.unwrap_or_default();
    items.retain(|item| item.get("name").and_then(Value::as_str) != Some("weir-sidecar"));
    for item in &mut items {
        item.as_object_mut().unwrap().remove("volumeMounts");
    }
    items
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_json_makes_it_panic(pod in any_json()) {
        let case = Case::read("namespace-enabled");
        if let Outcome::Patch { operations, .. } = inject(&pod, &case.context()) {
            let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
            let mut patched = pod;
            json_patch::patch(&mut patched, &patch).unwrap();
        }
    }

    #[test]
    fn any_pod_is_injected_once_and_keeps_what_is_its_own(pod in any_pod()) {
        let case = Case::read("plain");
        if let Outcome::Patch { operations, .. } = inject(&pod, &case.context()) {
            let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations)).unwrap();
            let mut patched = pod.clone();
            json_patch::patch(&mut patched, &patch).unwrap();
            prop_assert_eq!(rest(&pod), rest(&patched));
            prop_assert_eq!(others(&pod, "containers"), others(&patched, "containers"));
            prop_assert_eq!(others(&pod, "initContainers"), others(&patched, "initContainers"));
            let sidecars = patched.pointer("/spec/initContainers").unwrap().as_array().unwrap();
            let ours = |it: &&Value| it.get("name").and_then(Value::as_str) == Some("weir-sidecar");
            prop_assert_eq!(sidecars.iter().filter(ours).count(), 1);
            match inject(&patched, &case.context()) {
                Outcome::Patch { operations, .. } => prop_assert_eq!(operations, Vec::<Value>::new()),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
