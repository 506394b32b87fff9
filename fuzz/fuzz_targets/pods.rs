//! Pods: whatever the API server sends, injection patches, refuses or leaves it; a patch fits, and a second pass changes
//! nothing.

#![no_main]

use std::sync::{Arc, LazyLock};

use crd_types::DatabaseAccessPolicy;
use libfuzzer_sys::fuzz_target;
use pod_injection::{Context, NamespaceOptIn, Outcome, Settings, inject};
use serde_json::Value;

static POLICIES: LazyLock<Vec<Arc<DatabaseAccessPolicy>>> = LazyLock::new(|| {
    let text = include_str!("../../crates/pod-injection/tests/pods/default-policies.yaml");
    vec![Arc::new(serde_yaml::from_str(text).expect("a policy"))]
});
static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::default);

fuzz_target!(|data: &[u8]| {
    let Ok(pod) = serde_yaml::from_slice::<Value>(data) else {
        return;
    };
    let context = Context {
        namespace: "shop",
        opt_in: NamespaceOptIn::from_label(Some("required")),
        policies: &POLICIES,
        settings: &SETTINGS,
        trust_bundle: "PEM",
        version: "1",
    };
    match inject(&pod, &context) {
        Outcome::Untouched => {}
        Outcome::Refused(refusals) => assert!(!refusals.is_empty()),
        Outcome::Patch { operations, .. } => {
            let patch: json_patch::Patch =
                serde_json::from_value(Value::Array(operations)).expect("a patch");
            let mut patched = pod;
            json_patch::patch(&mut patched, &patch).expect("it fits");
            match inject(&patched, &context) {
                Outcome::Patch { operations, .. } => assert_eq!(operations, Vec::<Value>::new()),
                other => panic!("a second pass: {other:?}"),
            }
        }
    }
});
