//! Prints the custom resource definitions, with the bounds and markers that every object, list, map and string needs.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::policy::DatabaseAccessPolicy;
use crate::sink::LineageSink;

/// Bound of a string whose field gives none (Kubernetes charges CEL rules by these bounds).
const STRING_MAX: u64 = 253;
/// Bound of a list whose field gives none.
const ITEMS_MAX: u64 = 64;
/// Bound of a map whose field gives none.
const PROPERTIES_MAX: u64 = 64;

/// Every custom resource definition, as (file name under `crds/`, YAML).
///
/// # Errors
/// A message, if a definition cannot be printed (our own mistake).
pub fn crds_yaml() -> Result<Vec<(String, String)>, String> {
    [
        (
            "databaseaccesspolicies.weir.dev.yaml",
            DatabaseAccessPolicy::crd(),
        ),
        ("lineagesinks.weir.dev.yaml", LineageSink::crd()),
    ]
    .into_iter()
    .map(|(name, definition)| {
        let mut definition = serde_json::to_value(definition).map_err(|error| error.to_string())?;
        for version in definition
            .pointer_mut("/spec/versions")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(root) = version.pointer_mut("/schema/openAPIV3Schema") {
                // What stands beside `spec` must reach the webhook too.
                let spec = root.pointer_mut("/properties/spec").map(|spec| {
                    close(spec);
                    spec.get("description").cloned().unwrap_or_default()
                });
                if let (Some(root), Some(text)) = (root.as_object_mut(), spec) {
                    root.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
                    // In place of the derive's own words.
                    root.insert("description".to_owned(), text);
                }
            }
        }
        let yaml = serde_yaml::to_string(&definition).map_err(|error| error.to_string())?;
        let header = "# Printed from crates/crd-types by `make generate`. Edit the types, not this file.\n";
        Ok((name.to_owned(), format!("{header}{yaml}")))
    })
    .collect()
}

/// The schema of a policy's `spec`, as the definition has it. Whoever reads manifests checks them against this.
pub fn spec_schema() -> Value {
    closed_spec(serde_json::to_value(DatabaseAccessPolicy::crd()).unwrap_or(Value::Null))
}

/// The same of a sink.
pub fn sink_schema() -> Value {
    closed_spec(serde_json::to_value(LineageSink::crd()).unwrap_or(Value::Null))
}

fn closed_spec(definition: Value) -> Value {
    let mut schema = definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .cloned()
        .unwrap_or(Value::Null);
    close(&mut schema);
    schema
}

/// Gives every node its bounds, and lets every object keep unknown fields: they must reach the webhook, which names
/// them, in place of being dropped by the API server.
fn close(schema: &mut Value) {
    let Some(node) = schema.as_object_mut() else {
        return;
    };
    match node.get("type").and_then(Value::as_str) {
        Some("object") => {
            // A default for a whole object would make what is left out look as if it had been said, and policies of
            // one database must not differ in what they say.
            node.remove("default");
            if node.contains_key("additionalProperties") {
                bound(node, "maxProperties", PROPERTIES_MAX);
            } else {
                node.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
            }
        }
        Some("array") => bound(node, "maxItems", ITEMS_MAX),
        Some("string") if !node.contains_key("enum") => bound(node, "maxLength", STRING_MAX),
        // The API server knows no unsigned numbers and warns of their formats; `minimum` says it.
        Some("integer") => {
            node.insert("format".to_owned(), json!("int64"));
        }
        _ => {}
    }
    describe(node);
    for (key, child) in node.iter_mut() {
        match key.as_str() {
            "properties" => {
                for property in child.as_object_mut().into_iter().flat_map(Map::values_mut) {
                    close(property);
                }
            }
            "items" | "additionalProperties" => {
                close(child);
                // The list's own text says it; `kubectl explain` would print both.
                if let Some(item) = child.as_object_mut() {
                    item.remove("description");
                }
            }
            _ => {}
        }
    }
}

/// Doc comments are wrapped for the source; `kubectl explain` wraps for the terminal, and does not tell defaults.
fn describe(node: &mut Map<String, Value>) {
    let left_out = match node.get("default") {
        Some(Value::String(value)) => Some(value.clone()),
        Some(Value::Number(value)) => Some(value.to_string()),
        _ => None,
    };
    if let Some(Value::String(text)) = node.get_mut("description") {
        *text = text.replace('\n', " ");
        if let Some(value) = left_out {
            text.push_str(&format!(" Left out: {value}."));
        }
    }
}

fn bound(node: &mut Map<String, Value>, key: &str, limit: u64) {
    if !node.contains_key(key) {
        node.insert(key.to_owned(), json!(limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `crds/` is what the types print, and the chart's copies are that with one annotation. `WEIR_GENERATE=1` writes both.
    #[test]
    fn crds_folder_and_chart_are_current() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (name, text) in crds_yaml().expect("prints") {
            is_current(&root.join("crds").join(&name), &text);
            is_current(
                &root.join("charts/weir-crds/templates").join(&name),
                &chart_copy(&text),
            );
        }
    }

    fn is_current(path: &std::path::Path, text: &str) {
        if std::env::var_os("WEIR_GENERATE").is_some() {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
            std::fs::write(path, text).expect("written");
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(stored, text, "{} is stale: run make generate", path.display());
    }

    /// Helm must not delete a definition with its release: every policy would go with it. What Helm would take for an
    /// action of its own is written as text.
    fn chart_copy(crd: &str) -> String {
        let (head, rest) = crd.split_once("metadata:\n").expect("metadata");
        let escaped = |text: &str| text.replace("{{", "{{ \"{{\" }}");
        format!(
            "{}metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n{}",
            escaped(head),
            escaped(rest)
        )
    }

    fn walk(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
        visit(path, schema);
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), child, visit);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], visit);
        }
    }

    #[test]
    fn every_node_has_its_bound_and_every_field_its_text() {
        let mut fields = 0;
        let mut visit = |path: &str, node: &Value| {
            fields += 1;
            match node["type"].as_str() {
                Some("object") => assert!(
                    node["x-kubernetes-preserve-unknown-fields"] == json!(true)
                        || node["maxProperties"].is_number(),
                    "{path} drops unknown fields"
                ),
                Some("array") => assert!(node["maxItems"].is_number(), "{path} has no maxItems"),
                Some("string") => assert!(
                    node["enum"].is_array() || node["maxLength"].is_number(),
                    "{path} has no maxLength"
                ),
                Some("integer") => {}
                other => panic!("{path} has type {other:?}"),
            }
            if !path.ends_with("[]") && path != "spec" {
                assert!(
                    node["description"].is_string(),
                    "{path} has no text for kubectl explain"
                );
            }
        };
        walk("spec", &spec_schema(), &mut visit);
        walk("spec", &sink_schema(), &mut visit);
        assert!(fields > 60, "the walk saw only {fields} fields");
    }

    #[test]
    fn lists_of_rules_are_maps_by_their_name() {
        let schema = spec_schema();
        for (list, key) in [
            ("access", "name"),
            ("masks", "name"),
            ("rowFilters", "name"),
            ("classifications", "label"),
        ] {
            let node = &schema["properties"][list];
            assert_eq!(node["x-kubernetes-list-type"], json!("map"), "{list}");
            assert_eq!(node["x-kubernetes-list-map-keys"], json!([key]), "{list}");
        }
    }

    #[test]
    fn defaults_are_printed() {
        let schema = spec_schema();
        for (pointer, default) in [
            ("/properties/mode", json!("Enforce")),
            ("/properties/defaultAction", json!("Deny")),
            ("/properties/database/properties/port", json!(5432)),
            ("/properties/access/items/properties/effect", json!("Allow")),
            (
                "/properties/database/properties/tls/properties/mode",
                json!("VerifyFull"),
            ),
        ] {
            let node = schema.pointer(pointer).expect("field");
            assert_eq!(node["default"], default, "{pointer}");
        }
    }
}
