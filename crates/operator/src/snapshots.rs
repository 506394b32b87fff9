//! Policies × a pod → what its sidecar is told. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest;
use control_api::proto;
use crd_types::LabelSelector;

use crate::world::{Pod, Policy};

/// Policies of one namespace, sorted by name, found by the labels of a pod without looking at each.
#[derive(Debug, Default)]
pub struct Selectors {
    policies: Vec<Arc<Policy>>,
    digests: Vec<[u8; 32]>,
    /// Policies that demand this label with this value: only a pod that has it can match.
    by_label: HashMap<(String, String), Vec<usize>>,
    /// Policies that demand no single label.
    others: Vec<usize>,
}

impl Selectors {
    /// From policies of one namespace.
    pub fn new(policies: impl Iterator<Item = Arc<Policy>>) -> Self {
        let mut policies: Vec<Arc<Policy>> = policies.collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let mut by_label: HashMap<(String, String), Vec<usize>> = HashMap::new();
        let mut others = Vec::new();
        for (index, policy) in policies.iter().enumerate() {
            let Some(selector) = &policy.selector else {
                continue;
            };
            match selector.match_labels.iter().flatten().next() {
                Some((key, value)) => by_label
                    .entry((key.clone(), value.clone()))
                    .or_default()
                    .push(index),
                None => others.push(index),
            }
        }
        Self {
            digests: policies.iter().map(|policy| digest_of(policy)).collect(),
            policies,
            by_label,
            others,
        }
    }

    /// All of them, sorted by name.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// Positions in [`Selectors::policies`] of those that select the pod, ascending.
    pub fn matching(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<usize> {
        let mut found: Vec<usize> = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(&(key.clone(), value.clone())))
            .flatten()
            .chain(&self.others)
            .copied()
            .filter(|index| {
                self.policies
                    .get(*index)
                    .is_some_and(|policy| policy.namespace == namespace && policy.selects(labels))
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// What the pod's sidecar is told.
    pub fn content(&self, pod: &Pod, collector: &proto::Collector) -> Content {
        let indexes = self.matching(&pod.namespace, &pod.labels);
        let policies: Vec<Arc<Policy>> = indexes
            .iter()
            .filter_map(|index| self.policies.get(*index).cloned())
            .collect();
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"weir.policies.v1\0");
        for digest in indexes.iter().filter_map(|index| self.digests.get(*index)) {
            context.update(digest);
        }
        let hash = context.finish().as_ref().to_vec();
        Content {
            pod_uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            pod_name: pod.name.clone(),
            policies,
            hash,
            collector: collector.clone(),
        }
    }
}

fn digest_of(policy: &Policy) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [
        policy.name.as_bytes(),
        policy.uid.as_bytes(),
        &policy.generation.to_be_bytes(),
        policy.manifest.as_bytes(),
    ] {
        // Lengths in front: two lists of parts never make the same bytes.
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// A snapshot without version and times: two that are equal need not be sent twice.
#[derive(Debug, Clone)]
pub struct Content {
    pod_uid: String,
    namespace: String,
    service_account: String,
    pod_name: String,
    policies: Vec<Arc<Policy>>,
    hash: Vec<u8>,
    collector: proto::Collector,
}

impl Content {
    /// Whether a sidecar that has the other needs this one.
    pub fn differs(&self, other: &Self) -> bool {
        self.hash != other.hash || self.collector != other.collector
    }

    /// Policies in it, by name and generation.
    pub fn generations(&self) -> Vec<(String, i64)> {
        self.policies
            .iter()
            .map(|policy| (policy.name.clone(), policy.generation))
            .collect()
    }

    /// SHA-256 over the policies.
    pub fn hash(&self) -> &[u8] {
        &self.hash
    }

    /// The message. Times are Unix seconds.
    pub fn snapshot(&self, version: u64, issued_at: i64, valid_until: i64) -> proto::Snapshot {
        proto::Snapshot {
            version,
            pod_uid: self.pod_uid.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            pod_name: self.pod_name.clone(),
            issued_at,
            valid_until,
            policies: self
                .policies
                .iter()
                .map(|policy| proto::Policy {
                    name: policy.name.clone(),
                    uid: policy.uid.clone(),
                    generation: policy.generation,
                    manifest: policy.manifest.to_string(),
                })
                .collect(),
            hash: self.hash.clone(),
            collector: Some(self.collector.clone()),
        }
    }
}

/// Whether a selector selects an object with these labels. As in Kubernetes, an empty selector selects all; an operator
/// that does not exist selects nothing.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = labels.get(&expression.key);
            let listed =
                value.is_some_and(|value| expression.values.iter().flatten().any(|one| one == value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
