//! Reads the cases.

use std::path::PathBuf;
use std::sync::Arc;

use crd_types::DatabaseAccessPolicy;
use pod_injection::{Context, NamespaceOptIn, Settings};
use serde_json::Value;

/// The namespace of every case.
const NAMESPACE: &str = "shop";

/// One odd pod.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) pod: Value,
    label: Option<String>,
    policies: Vec<Arc<DatabaseAccessPolicy>>,
    settings: Settings,
}

impl Case {
    /// All cases, by name.
    pub(crate) fn all() -> Vec<Self> {
        let mut names: Vec<String> = std::fs::read_dir(folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|file| file.strip_suffix(".yaml").map(ToOwned::to_owned))
            .filter(|name| !name.ends_with(".patched") && name != "default-policies")
            .collect();
        names.sort();
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// One case.
    pub(crate) fn read(name: &str) -> Self {
        let mut case = Self {
            name: name.to_owned(),
            pod: Value::Null,
            label: None,
            policies: Vec::new(),
            settings: Settings {
                image: "registry.example.com/weir:1.0.0".to_owned(),
                ..Settings::default()
            },
        };
        let mut documents = documents(name);
        let own = ["DatabaseAccessPolicy", "NoPolicies"];
        if !documents.iter().any(|document| own.contains(&kind(document))) {
            documents.extend(self::documents("default-policies"));
        }
        for document in documents {
            match kind(&document) {
                "DatabaseAccessPolicy" => {
                    let policy =
                        serde_json::from_value(document).unwrap_or_else(|error| panic!("{name}: {error}"));
                    case.policies.push(Arc::new(policy));
                }
                "Namespace" => {
                    let label = document.pointer("/metadata/labels/weir.dev~1inject");
                    case.label = label.and_then(Value::as_str).map(ToOwned::to_owned);
                }
                "NoPolicies" => {}
                _ => case.pod = document,
            }
        }
        case
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            namespace: NAMESPACE,
            opt_in: NamespaceOptIn::from_label(self.label.as_deref()),
            policies: &self.policies,
            settings: &self.settings,
            trust_bundle: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            version: "1.0.0",
        }
    }

    pub(crate) fn path(&self, ending: &str) -> PathBuf {
        folder().join(format!("{}.{ending}", self.name))
    }
}

fn kind(document: &Value) -> &str {
    document.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn documents(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap();
    text.split("\n---\n")
        .map(|document| serde_yaml::from_str(document).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pods")
}
