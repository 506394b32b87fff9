//! What the operator knows of the cluster: policies, sinks, pods and namespaces, as the watches told it. Only what is
//! needed of each object is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crd_types::policy::ClientTlsMode;
use crd_types::{
    DatabaseAccessPolicy, DatabaseAccessPolicySpec, DatabaseAccessPolicyStatus, LabelSelector, LineageSink,
};
use crd_types::{sink::LineageSinkSpec, sink::LineageSinkStatus};
use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Pod as ApiPod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pod_injection::contract;
use serde::Deserialize;
use serde_json::Value;

use crate::snapshots::Selectors;

/// A policy as the API server has it. `spec` is kept raw: a typed one would forget what it does not know.
#[derive(kube::Resource, Deserialize, Clone, Debug)]
#[resource(inherit = "DatabaseAccessPolicy")]
pub struct RawPolicy {
    /// Name, generation and so on.
    pub metadata: ObjectMeta,
    /// `spec`, whatever it holds.
    #[serde(default)]
    pub spec: Value,
    /// `status`, whatever it holds.
    #[serde(default)]
    pub status: Value,
}

/// A sink as the API server has it.
#[derive(kube::Resource, Deserialize, Clone, Debug)]
#[resource(inherit = "LineageSink")]
pub struct RawSink {
    /// Name, generation and so on.
    pub metadata: ObjectMeta,
    /// `spec`, whatever it holds.
    #[serde(default)]
    pub spec: Value,
    /// `status`, whatever it holds.
    #[serde(default)]
    pub status: Value,
}

/// A pod, without most of it.
#[derive(kube::Resource, Deserialize, Clone, Debug)]
#[resource(inherit = "ApiPod")]
pub struct RawPod {
    /// Name, labels, annotations, owners.
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: RawPodSpec,
    #[serde(default)]
    status: RawPodStatus,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodSpec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    init_containers: Vec<RawContainer>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct RawContainer {
    name: String,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    init_container_statuses: Vec<RawContainerStatus>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct RawContainerStatus {
    state: RawState,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
struct RawState {
    running: Option<serde::de::IgnoredAny>,
    terminated: Option<serde::de::IgnoredAny>,
}

/// A namespace, of which only the labels count.
#[derive(kube::Resource, Deserialize, Clone, Debug)]
#[resource(inherit = "ApiNamespace")]
pub struct RawNamespace {
    /// Name and labels.
    pub metadata: ObjectMeta,
}

/// One policy, made ready for snapshots, admission and status.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// What sidecars get: apiVersion, kind, metadata {name, namespace, generation}, spec.
    pub manifest: Arc<str>,
    /// `spec.podSelector`. One that is missing or cannot be read selects no pod; the policy's status says what is wrong.
    pub selector: Option<LabelSelector>,
    /// The typed object, as admission works with it. None where this operator is older than the definition.
    pub object: Option<Arc<DatabaseAccessPolicy>>,
    /// `spec.mode: Audit`.
    pub audits: bool,
    /// What compiling it says.
    pub compiled: Result<Vec<access_policy::Endpoint>, String>,
    /// The status that the API server has.
    pub status: DatabaseAccessPolicyStatus,
}

impl Policy {
    /// Whether a pod with these labels is selected; the namespace is the caller's to compare.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|selector| crate::snapshots::selects(selector, labels))
    }

    /// Makes it ready.
    ///
    /// # Errors
    /// When it has no name.
    pub fn new(raw: &RawPolicy) -> Result<Self, String> {
        let name = raw.metadata.name.clone().ok_or("it has no name")?;
        let namespace = raw.metadata.namespace.clone().ok_or("it has no namespace")?;
        let generation = raw.metadata.generation.unwrap_or_default();
        let manifest = serde_json::json!({
            "apiVersion": "weir.dev/v1alpha1",
            "kind": "DatabaseAccessPolicy",
            "metadata": {"name": name, "namespace": namespace, "generation": generation},
            "spec": raw.spec,
        })
        .to_string();
        let typed = serde_json::from_value::<DatabaseAccessPolicySpec>(raw.spec.clone());
        let compiled = match (&typed, compile(&name, &manifest)) {
            (Err(error), Ok(_)) => Err(format!("spec: {error}")),
            (_, compiled) => compiled,
        };
        // What is not there, or cannot be read, selects nothing: only `{}` says every pod.
        let selector = raw
            .spec
            .get("podSelector")
            .filter(|selector| selector.is_object());
        Ok(Self {
            compiled,
            selector: selector.and_then(|selector| serde_json::from_value(selector.clone()).ok()),
            audits: raw.spec.get("mode").and_then(Value::as_str) == Some("Audit"),
            object: typed.ok().map(|spec| {
                let mut object = DatabaseAccessPolicy::new(&name, spec);
                object.metadata = ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    uid: raw.metadata.uid.clone(),
                    generation: raw.metadata.generation,
                    ..ObjectMeta::default()
                };
                Arc::new(object)
            }),
            uid: raw.metadata.uid.clone().unwrap_or_default(),
            // A status that cannot be read is one that has to be written.
            status: serde_json::from_value(raw.status.clone()).unwrap_or_default(),
            namespace,
            name,
            generation,
            manifest: manifest.into(),
        })
    }

    /// Hosts that the capture CA makes a certificate for: those of `clientTLS.mode: Serve` without one of its own.
    pub fn capture_hosts(&self) -> Vec<String> {
        let Some(object) = &self.object else {
            return Vec::new();
        };
        let database = &object.spec.database;
        let serve = database.client_tls.mode == ClientTlsMode::Serve;
        if !serve || database.client_tls.certificate_secret_ref.is_some() {
            return Vec::new();
        }
        std::iter::once(&database.host)
            .chain(database.other_endpoints.iter().map(|endpoint| &endpoint.host))
            .cloned()
            .collect()
    }
}

/// The function that sidecar and `weir explain` use, on the object's own JSON. What is wrong comes back as one text.
fn compile(name: &str, manifest: &str) -> Result<Vec<access_policy::Endpoint>, String> {
    let manifest = access_policy::Manifest {
        name: name.to_owned(),
        text: manifest.to_owned(),
    };
    match access_policy::compile(&[manifest]) {
        Ok(set) => Ok(set.endpoints().into_iter().collect()),
        Err(problems) => {
            let mut text = problems
                .iter()
                .take(3)
                .map(|problem| format!("{}: {}", problem.field, problem.message))
                .collect::<Vec<_>>()
                .join("; ");
            if problems.len() > 3 {
                text.push_str(&format!("; and {} more", problems.len().saturating_sub(3)));
            }
            Err(text)
        }
    }
}

/// One sink.
#[derive(Debug, Clone)]
pub struct Sink {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec` as JSON.
    pub spec: String,
    /// The typed form, or why there is none.
    pub typed: Result<LineageSinkSpec, String>,
    /// The status that the API server has.
    pub status: LineageSinkStatus,
}

impl Sink {
    /// Makes it ready.
    ///
    /// # Errors
    /// When it has no name.
    pub fn new(raw: &RawSink) -> Result<Self, String> {
        Ok(Self {
            name: raw.metadata.name.clone().ok_or("it has no name")?,
            namespace: raw.metadata.namespace.clone().ok_or("it has no namespace")?,
            uid: raw.metadata.uid.clone().unwrap_or_default(),
            generation: raw.metadata.generation.unwrap_or_default(),
            spec: raw.spec.to_string(),
            typed: serde_json::from_value(raw.spec.clone()).map_err(|error| error.to_string()),
            status: serde_json::from_value(raw.status.clone()).unwrap_or_default(),
        })
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Service account.
    pub service_account: String,
    /// Node that it is on.
    pub node: Option<String>,
    /// Its address.
    pub ip: Option<String>,
    /// How far it is.
    pub stage: Stage,
    /// Its controller.
    pub owner: Option<Owner>,
    /// Whether Weir's sidecar is among its containers.
    pub injected: bool,
    /// What the sidecar captures, as the annotation says.
    pub captured: Option<Vec<contract::Captured>>,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing of it runs yet.
    Waiting,
    /// At least one container was started.
    Running,
    /// It was asked to go.
    Terminating,
    /// It ended.
    Finished,
}

/// The controller of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// `apps/v1`
    pub api_version: String,
    /// `ReplicaSet`
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Pod {
    /// Keeps what is needed.
    ///
    /// # Errors
    /// When it has no name or UID.
    pub fn new(raw: RawPod) -> Result<Self, String> {
        let annotations = raw.metadata.annotations.unwrap_or_default();
        let stage = match raw.status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Stage::Finished,
            _ if raw.metadata.deletion_timestamp.is_some() => Stage::Terminating,
            Some("Running") => Stage::Running,
            // Containers that start the others (init containers) already reach databases.
            _ if raw
                .status
                .init_container_statuses
                .iter()
                .any(|status| status.state.running.is_some() || status.state.terminated.is_some()) =>
            {
                Stage::Running
            }
            _ => Stage::Waiting,
        };
        Ok(Self {
            namespace: raw.metadata.namespace.ok_or("it has no namespace")?,
            name: raw.metadata.name.ok_or("it has no name")?,
            uid: raw.metadata.uid.ok_or("it has no UID")?,
            labels: raw.metadata.labels.unwrap_or_default(),
            service_account: raw
                .spec
                .service_account_name
                .unwrap_or_else(|| "default".to_owned()),
            node: raw.spec.node_name,
            ip: raw.status.pod_ip,
            stage,
            owner: raw
                .metadata
                .owner_references
                .into_iter()
                .flatten()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| Owner {
                    api_version: owner.api_version,
                    kind: owner.kind,
                    name: owner.name,
                    uid: owner.uid,
                }),
            injected: raw
                .spec
                .init_containers
                .iter()
                .any(|container| container.name == contract::CONTAINER),
            captured: annotations
                .get(contract::CAPTURED)
                .and_then(|text| serde_json::from_str(text).ok()),
        })
    }

    /// Whether policies count it: it runs, and nobody asked it to go.
    pub fn counts(&self) -> bool {
        self.stage == Stage::Running
    }
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A policy came, went, or has another spec.
    Policy {
        /// Its namespace.
        namespace: String,
    },
    /// Only the status of a policy.
    PolicyStatus {
        /// Its namespace.
        namespace: String,
    },
    /// A pod came, or changed in what is kept of it.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its UID.
        uid: String,
    },
    /// A pod ended or was removed: its identity counts no more.
    PodGone {
        /// Its namespace.
        namespace: String,
        /// Its UID.
        uid: String,
    },
    /// A sink came, went, or has another spec or status.
    Sink,
}

/// Hears of changes.
pub type Listener = Box<dyn Fn(&Change) + Send + Sync>;

/// All that is known. Shared; readers get `Arc`s and never wait for long.
#[derive(Default)]
pub struct World {
    state: RwLock<State>,
    listeners: OnceLock<Vec<Listener>>,
}

#[derive(Default)]
struct State {
    namespaces: BTreeMap<String, Namespace>,
    sinks: BTreeMap<String, Arc<Sink>>,
    /// By UID.
    pods: HashMap<String, Arc<Pod>>,
    /// The last pods that were removed, oldest first: whose receipts were lost is asked later.
    gone: VecDeque<Arc<Pod>>,
}

/// Removed pods that are remembered.
const GONE_MAX: usize = 2000;

#[derive(Default)]
struct Namespace {
    labels: BTreeMap<String, String>,
    policies: BTreeMap<String, Arc<Policy>>,
    /// Made when first asked for after a change.
    selectors: Option<Arc<Selectors>>,
    /// Name → UID.
    pods: BTreeMap<String, String>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    /// Says who hears of changes. Once; listeners must not block and must not call back for writing.
    pub fn listen(&self, listeners: Vec<Listener>) {
        // A second call would be our own mistake, and the first listeners are the right ones.
        let _ = self.listeners.set(listeners);
    }

    fn tell(&self, changes: &[Change]) {
        for listener in self.listeners.get().into_iter().flatten() {
            for change in changes {
                listener(change);
            }
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        // Every write below leaves the maps whole between its steps.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A policy came or changed.
    pub fn policy(&self, policy: Policy) {
        let namespace = policy.namespace.clone();
        let mut state = self.write();
        let entry = state.namespaces.entry(namespace.clone()).or_default();
        let same = entry
            .policies
            .get(&policy.name)
            .is_some_and(|old| old.manifest == policy.manifest && old.uid == policy.uid);
        entry.policies.insert(policy.name.clone(), Arc::new(policy));
        // The selectors hold the policies themselves, so a new status makes them new too.
        entry.selectors = None;
        drop(state);
        self.tell(&[if same {
            Change::PolicyStatus { namespace }
        } else {
            Change::Policy { namespace }
        }]);
    }

    /// A policy went.
    pub fn policy_gone(&self, namespace: &str, name: &str) {
        let mut state = self.write();
        if let Some(entry) = state.namespaces.get_mut(namespace) {
            entry.policies.remove(name);
            entry.selectors = None;
        }
        drop(state);
        self.tell(&[Change::Policy {
            namespace: namespace.to_owned(),
        }]);
    }

    /// A list of all policies came: what is not in it went.
    pub fn only_policies(&self, keep: &BTreeSet<(String, String)>) {
        let gone: Vec<(String, String)> = self
            .read()
            .namespaces
            .iter()
            .flat_map(|(namespace, entry)| {
                entry
                    .policies
                    .keys()
                    .map(move |name| (namespace.clone(), name.clone()))
            })
            .filter(|key| !keep.contains(key))
            .collect();
        for (namespace, name) in gone {
            self.policy_gone(&namespace, &name);
        }
    }

    /// A pod came or changed.
    pub fn pod(&self, pod: Pod) {
        let mut changes = Vec::new();
        let mut state = self.write();
        let namespace = pod.namespace.clone();
        let uid = pod.uid.clone();
        let before = state.pods.get(&uid).cloned();
        if before.as_deref() == Some(&pod) {
            return;
        }
        let was_gone = before.is_some_and(|before| before.stage == Stage::Finished);
        if pod.stage == Stage::Finished && !was_gone {
            changes.push(Change::PodGone {
                namespace: namespace.clone(),
                uid: uid.clone(),
            });
        }
        let entry = state.namespaces.entry(namespace.clone()).or_default();
        let replaced = entry
            .pods
            .insert(pod.name.clone(), uid.clone())
            .filter(|old| *old != uid);
        if let Some(old) = replaced {
            // Its removal was not seen: a StatefulSet made the name anew meanwhile.
            state.pods.remove(&old);
            changes.push(Change::PodGone {
                namespace: namespace.clone(),
                uid: old,
            });
        }
        state.pods.insert(uid.clone(), Arc::new(pod));
        drop(state);
        changes.push(Change::Pod { namespace, uid });
        self.tell(&changes);
    }

    /// A pod was removed.
    pub fn pod_gone(&self, uid: &str) {
        let mut state = self.write();
        let Some(pod) = state.pods.remove(uid) else {
            return;
        };
        if let Some(entry) = state.namespaces.get_mut(&pod.namespace)
            && entry.pods.get(&pod.name).is_some_and(|of_name| of_name == uid)
        {
            entry.pods.remove(&pod.name);
        }
        if state.gone.len() >= GONE_MAX {
            state.gone.pop_front();
        }
        state.gone.push_back(Arc::clone(&pod));
        drop(state);
        self.tell(&[Change::PodGone {
            namespace: pod.namespace.clone(),
            uid: uid.to_owned(),
        }]);
    }

    /// A list of all pods came: what is not in it went.
    pub fn only_pods(&self, keep: &BTreeSet<String>) {
        let gone: Vec<String> = self
            .read()
            .pods
            .keys()
            .filter(|uid| !keep.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.pod_gone(&uid);
        }
    }

    /// A sink came or changed.
    pub fn sink(&self, sink: Sink) {
        self.write().sinks.insert(sink.key(), Arc::new(sink));
        self.tell(&[Change::Sink]);
    }

    /// A sink went.
    pub fn sink_gone(&self, key: &str) {
        self.write().sinks.remove(key);
        self.tell(&[Change::Sink]);
    }

    /// A list of all sinks came: what is not in it went.
    pub fn only_sinks(&self, keep: &BTreeSet<String>) {
        self.write().sinks.retain(|key, _| keep.contains(key));
        self.tell(&[Change::Sink]);
    }

    /// A namespace came or changed.
    pub fn namespace(&self, name: &str, labels: BTreeMap<String, String>) {
        self.write().namespaces.entry(name.to_owned()).or_default().labels = labels;
    }

    /// A namespace went. What was in it goes by its own events.
    pub fn namespace_gone(&self, name: &str) {
        if let Some(entry) = self.write().namespaces.get_mut(name) {
            entry.labels.clear();
        }
    }

    /// A label of a namespace.
    pub fn namespace_label(&self, namespace: &str, label: &str) -> Option<String> {
        self.read().namespaces.get(namespace)?.labels.get(label).cloned()
    }

    /// The pod with this UID.
    pub fn pod_by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().pods.get(uid).cloned()
    }

    /// A pod that is there, or was removed lately.
    pub fn pod_or_gone(&self, uid: &str) -> Option<Arc<Pod>> {
        let state = self.read();
        let gone = || state.gone.iter().rev().find(|pod| pod.uid == uid).cloned();
        state.pods.get(uid).cloned().or_else(gone)
    }

    /// Of these UIDs, those that belong to no pod that runs or will run.
    pub fn missing<'a>(&self, uids: impl Iterator<Item = &'a String>) -> Vec<String> {
        let state = self.read();
        uids.filter(|uid| {
            state
                .pods
                .get(*uid)
                .is_none_or(|pod| pod.stage == Stage::Finished)
        })
        .cloned()
        .collect()
    }

    /// The pod with this name.
    pub fn pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let state = self.read();
        let uid = state.namespaces.get(namespace)?.pods.get(name)?;
        state.pods.get(uid).cloned()
    }

    /// Pods of a namespace, by name.
    pub fn pods_of(&self, namespace: &str) -> Vec<Arc<Pod>> {
        let state = self.read();
        let Some(entry) = state.namespaces.get(namespace) else {
            return Vec::new();
        };
        entry
            .pods
            .values()
            .filter_map(|uid| state.pods.get(uid).cloned())
            .collect()
    }

    /// How many pods are known.
    pub fn pod_count(&self) -> usize {
        self.read().pods.len()
    }

    /// The policies of a namespace, sorted by name, ready to be matched with pods.
    pub fn selectors(&self, namespace: &str) -> Arc<Selectors> {
        {
            let state = self.read();
            match state.namespaces.get(namespace) {
                None => return Arc::default(),
                Some(entry) => {
                    if let Some(selectors) = &entry.selectors {
                        return Arc::clone(selectors);
                    }
                }
            }
        }
        let mut state = self.write();
        let Some(entry) = state.namespaces.get_mut(namespace) else {
            return Arc::default();
        };
        let policies = &entry.policies;
        let selectors = entry
            .selectors
            .get_or_insert_with(|| Arc::new(Selectors::new(policies.values().cloned())));
        Arc::clone(selectors)
    }

    /// The policies of a namespace, as admission works with them.
    pub fn policies_of(&self, namespace: &str) -> Vec<Arc<DatabaseAccessPolicy>> {
        self.read()
            .namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|entry| entry.policies.values())
            .filter_map(|policy| policy.object.clone())
            .collect()
    }

    /// The manifests of the policies of a namespace.
    pub fn manifests_of(&self, namespace: &str) -> Vec<Arc<str>> {
        self.read()
            .namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|entry| entry.policies.values())
            .map(|policy| Arc::clone(&policy.manifest))
            .collect()
    }

    /// Namespaces that have policies.
    pub fn governed_namespaces(&self) -> Vec<String> {
        self.read()
            .namespaces
            .iter()
            .filter(|(_, entry)| !entry.policies.is_empty())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// All sinks, by `namespace/name`.
    pub fn sinks(&self) -> Vec<Arc<Sink>> {
        self.read().sinks.values().cloned().collect()
    }
}
