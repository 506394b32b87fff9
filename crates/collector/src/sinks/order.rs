//! Which sinks there are: from the operator, from the last set on disk, or from a file of manifests.

use std::io;
use std::path::Path;

use control_api::proto;
use crd_types::sink::LineageSinkSpec;
use serde::Deserialize;
use serde_json::Value;

use super::cursor::write_whole;

/// One sink.
#[derive(Clone, PartialEq)]
pub struct SinkOrder {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// Or why there is none.
    pub(crate) spec: Result<LineageSinkSpec, String>,
    /// Only events of this namespace; empty: of all.
    pub(crate) events_of: String,
    pub(crate) token: String,
}

impl std::fmt::Debug for SinkOrder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SinkOrder")
            .field("sink", &self.full_name())
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl SinkOrder {
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn from_proto(sink: proto::Sink) -> Self {
        Self {
            spec: serde_json::from_str(&sink.spec)
                .map_err(|error| format!("its spec cannot be read: {error}")),
            namespace: sink.namespace,
            name: sink.name,
            uid: sink.uid,
            generation: sink.generation,
            events_of: sink.events_of,
            token: sink.token,
        }
    }
}

/// The set that was in force last. Tokens are not in it: they are kept in memory alone.
pub(crate) fn read_kept(path: &Path) -> io::Result<Option<Vec<SinkOrder>>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let kept: Vec<Kept> = serde_json::from_slice(&bytes)?;
    Ok(Some(
        kept.into_iter()
            .map(|kept| SinkOrder {
                namespace: kept.namespace,
                name: kept.name,
                uid: kept.uid,
                generation: kept.generation,
                spec: kept.spec.ok_or_else(|| "its spec cannot be read".to_owned()),
                events_of: kept.events_of,
                token: String::new(),
            })
            .collect(),
    ))
}

pub(crate) fn write_kept(path: &Path, orders: &[SinkOrder]) -> io::Result<()> {
    let kept: Vec<Kept> = orders
        .iter()
        .map(|order| Kept {
            namespace: order.namespace.clone(),
            name: order.name.clone(),
            uid: order.uid.clone(),
            generation: order.generation,
            spec: order.spec.clone().ok(),
            events_of: order.events_of.clone(),
        })
        .collect();
    write_whole(path, &serde_json::to_vec(&kept)?)
}

#[derive(serde::Serialize, Deserialize)]
struct Kept {
    namespace: String,
    name: String,
    uid: String,
    generation: i64,
    spec: Option<LineageSinkSpec>,
    events_of: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
}

/// Reads `LineageSink` manifests, for a collector without an operator. Without a namespace a sink hears of everything,
/// with one only of that namespace, as in a cluster.
///
/// # Errors
/// What is wrong with which manifest, in words.
pub fn read_sinks_file(path: &Path) -> Result<Vec<SinkOrder>, String> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {place}: {error}"))?;
    let manifests: Vec<Manifest> =
        serde_yaml::from_multiple(&text).map_err(|error| format!("{place}: {error}"))?;
    let mut orders: Vec<SinkOrder> = Vec::new();
    for manifest in manifests {
        let name = &manifest.metadata.name;
        let wrong = |what: String| format!("{place}: sink `{name}`: {what}");
        if manifest.kind != "LineageSink" || manifest.api_version != "weir.dev/v1alpha1" {
            return Err(wrong(format!(
                "`{}` of `{}` is not a LineageSink of weir.dev/v1alpha1",
                manifest.kind, manifest.api_version
            )));
        }
        let spec: LineageSinkSpec =
            serde_json::from_value(manifest.spec.clone()).map_err(|error| wrong(error.to_string()))?;
        let known = serde_json::to_value(&spec).map_err(|error| wrong(error.to_string()))?;
        if let Some(field) = unknown(&manifest.spec, &known, "spec") {
            return Err(wrong(format!("unknown field `{field}`")));
        }
        if spec
            .open_lineage
            .as_ref()
            .is_some_and(|open| open.token_secret_ref.is_some())
        {
            return Err(wrong(
                "`tokenSecretRef` needs the operator: a file has no Secrets".to_owned(),
            ));
        }
        let namespace = manifest.metadata.namespace.clone();
        let order = SinkOrder {
            uid: match manifest.metadata.uid.as_str() {
                "" => format!("{namespace}/{name}"),
                uid => uid.to_owned(),
            },
            name: name.clone(),
            generation: 0,
            spec: Ok(spec),
            events_of: namespace.clone(),
            namespace,
            token: String::new(),
        };
        if orders.iter().any(|other| other.uid == order.uid) {
            return Err(wrong("stands there twice".to_owned()));
        }
        orders.push(order);
    }
    Ok(orders)
}

/// A field that was given and that the type does not have.
fn unknown(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match known.get(name) {
                Some(known) => unknown(value, known, &path),
                // An empty list or null is left out when it is written again.
                None if value.is_null() || value.as_array().is_some_and(Vec::is_empty) => None,
                None => Some(path),
            }
        }),
        _ => None,
    }
}
