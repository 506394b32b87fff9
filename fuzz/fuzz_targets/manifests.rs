//! Manifests, as files and as the API server sends them: reading and reviewing always answers, and what review takes
//! compiles.

#![no_main]

use access_policy::{Manifest, compile, review, review_sink};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// What another policy of the namespace may bring.
const OF_OTHERS: &str = "no policy of this database classifies";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let manifest = |text: &str| Manifest {
        name: "fuzz.yaml".to_owned(),
        text: text.to_owned(),
    };
    if let Err(problems) = compile(&[manifest(text)]) {
        assert!(!problems.is_empty());
    }
    let Ok(object) = serde_yaml::from_str::<Value>(text) else {
        return;
    };
    let _ = review_sink(&object, "weir-system");
    let verdict = review(&object, &[&object]);
    for problem in &verdict.problems {
        assert!(!problem.to_string().is_empty());
    }
    if verdict.problems.is_empty() && object["kind"] == "DatabaseAccessPolicy" {
        let mut written = object.clone();
        if let Some(fields) = written.as_object_mut() {
            fields.remove("status");
            let mut metadata = serde_json::json!({"name": "fuzz"});
            if let Some(namespace) = object.pointer("/metadata/namespace") {
                metadata["namespace"] = namespace.clone();
            }
            fields.insert("metadata".to_owned(), metadata);
        }
        if let Err(problems) = compile(&[manifest(&written.to_string())]) {
            assert!(
                problems.iter().all(|problem| problem.message.contains(OF_OTHERS)),
                "review took what does not compile: {problems:?}"
            );
        }
    }
});
