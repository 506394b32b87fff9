//! Whether a definition in a cluster is older than ours: by what it lacks, because a version label can lie.

use serde_json::Value;

/// Fields and values of our definition that the stored one does not have. A newer one may have more.
#[must_use]
pub fn lacks(stored: &Value, ours: &Value) -> Vec<String> {
    const SCHEMA: &str = "/schema/openAPIV3Schema";
    let version = |definition: &Value| {
        definition
            .pointer("/spec/versions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find(|version| version.get("name").and_then(Value::as_str) == Some(crate::VERSION))
            .and_then(|version| version.pointer(SCHEMA))
            .cloned()
    };
    let mut missing = Vec::new();
    match (version(stored), version(ours)) {
        (Some(stored), Some(ours)) => walk("", &stored, &ours, &mut missing),
        (None, _) => missing.push(format!("version {}", crate::VERSION)),
        (_, None) => {}
    }
    missing
}

fn walk(path: &str, stored: &Value, ours: &Value, missing: &mut Vec<String>) {
    for (name, child) in ours
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        match stored.pointer(&format!("/properties/{name}")) {
            Some(stored) => walk(&path, stored, child, missing),
            None => missing.push(path),
        }
    }
    if let (Some(stored), Some(ours)) = (stored.get("items"), ours.get("items")) {
        walk(&format!("{path}[]"), stored, ours, missing);
    }
    let values = |schema: &Value| {
        schema
            .get("enum")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let known = values(stored);
    for value in values(ours) {
        if !known.contains(&value) {
            missing.push(format!("{path}: {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Value {
        let (_, yaml) = crate::crds_yaml().expect("prints").remove(0);
        serde_yaml::from_str(&yaml).expect("parses")
    }

    #[test]
    fn the_same_and_a_newer_definition_pass() {
        let mut newer = ours();
        newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["budgets"] =
            serde_json::json!({"type": "array"});
        assert_eq!(lacks(&ours(), &ours()), Vec::<String>::new());
        assert_eq!(lacks(&newer, &ours()), Vec::<String>::new());
    }

    #[test]
    fn an_older_definition_is_named_by_what_it_lacks() {
        let mut older = ours();
        let spec = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        spec["database"]["properties"]
            .as_object_mut()
            .expect("fields")
            .remove("capture");
        spec["mode"]["enum"] = serde_json::json!(["Enforce"]);
        assert_eq!(
            lacks(&older, &ours()),
            ["spec.database.capture", "spec.mode: \"Audit\""]
        );
    }

    #[test]
    fn another_version_is_no_version() {
        let mut other = ours();
        other["spec"]["versions"][0]["name"] = serde_json::json!("v1");
        assert_eq!(lacks(&other, &ours()), ["version v1alpha1"]);
    }
}
