//! The watches that keep [`World`] true. One object that cannot be read never stops a watch.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use service_runtime::drain::{Drain, Stage};
use service_runtime::health::Health;

use crate::metrics::{Metrics, OfResource, Watched};
use crate::world::{Pod, Policy, RawNamespace, RawPod, RawPolicy, RawSink, Sink, World};

/// Objects of one page of a list.
const PAGE: u32 = 250;

/// Conditions of readiness that the watches meet.
pub const CONDITIONS: [&str; 4] = ["policies", "sinks", "pods", "namespaces"];

/// What every watch needs.
#[derive(Clone)]
pub struct Watches {
    /// The API server.
    pub client: Client,
    /// What is kept true.
    pub world: Arc<World>,
    /// Counts failures.
    pub metrics: Arc<Metrics>,
    /// Says when the first list is complete.
    pub health: Health,
    /// The end.
    pub drain: Drain,
}

impl Watches {
    /// Runs all watches until the process stops.
    pub async fn run(self) {
        tokio::join!(self.policies(), self.sinks(), self.pods(), self.namespaces());
    }

    async fn policies(&self) {
        let mut keep = BTreeSet::new();
        self.follow::<RawPolicy>(Watched::Policies, "policies", |event| {
            let key = |raw: &RawPolicy| {
                let metadata = &raw.metadata;
                Some((metadata.namespace.clone()?, metadata.name.clone()?))
            };
            match event {
                Event::Init => keep.clear(),
                Event::InitApply(raw) | Event::Apply(raw) => {
                    keep.extend(key(&raw));
                    match Policy::new(&raw) {
                        Ok(policy) => self.world.policy(policy),
                        Err(problem) => self.passed_over(Watched::Policies, key(&raw), &problem),
                    }
                }
                Event::Delete(raw) => {
                    if let Some((namespace, name)) = key(&raw) {
                        self.world.policy_gone(&namespace, &name);
                    }
                }
                Event::InitDone => self.world.only_policies(&keep),
            }
        })
        .await;
    }

    async fn sinks(&self) {
        let mut keep = BTreeSet::new();
        self.follow::<RawSink>(Watched::Sinks, "sinks", |event| match event {
            Event::Init => keep.clear(),
            Event::InitApply(raw) | Event::Apply(raw) => match Sink::new(&raw) {
                Ok(sink) => {
                    keep.insert(sink.key());
                    self.world.sink(sink);
                }
                Err(problem) => self.passed_over(Watched::Sinks, None, &problem),
            },
            Event::Delete(raw) => {
                if let Ok(sink) = Sink::new(&raw) {
                    self.world.sink_gone(&sink.key());
                }
            }
            Event::InitDone => self.world.only_sinks(&keep),
        })
        .await;
    }

    async fn pods(&self) {
        let mut keep = BTreeSet::new();
        self.follow::<RawPod>(Watched::Pods, "pods", |event| match event {
            Event::Init => keep.clear(),
            Event::InitApply(raw) | Event::Apply(raw) => match Pod::new(raw) {
                Ok(pod) => {
                    keep.insert(pod.uid.clone());
                    self.world.pod(pod);
                }
                Err(problem) => self.passed_over(Watched::Pods, None, &problem),
            },
            Event::Delete(raw) => {
                if let Some(uid) = raw.metadata.uid {
                    self.world.pod_gone(&uid);
                }
            }
            Event::InitDone => self.world.only_pods(&keep),
        })
        .await;
    }

    async fn namespaces(&self) {
        self.follow::<RawNamespace>(Watched::Namespaces, "namespaces", |event| match event {
            Event::InitApply(raw) | Event::Apply(raw) => {
                if let Some(name) = raw.metadata.name {
                    self.world
                        .namespace(&name, raw.metadata.labels.unwrap_or_default());
                }
            }
            Event::Delete(raw) => {
                if let Some(name) = raw.metadata.name {
                    self.world.namespace_gone(&name);
                }
            }
            Event::Init | Event::InitDone => {}
        })
        .await;
    }

    async fn follow<K>(&self, resource: Watched, condition: &'static str, mut apply: impl FnMut(Event<K>))
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let api: Api<DeserializeGuard<K>> = Api::all(self.client.clone());
        let config = watcher::Config::default().page_size(PAGE);
        let mut stream = watcher::watcher(api, config).default_backoff().boxed();
        let mut drain = self.drain.clone();
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = drain.reached(Stage::Stopped) => return,
            };
            let event = match event {
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    // It starts again by itself, ever slower.
                    tracing::warn!(?resource, %error, "watch failed");
                    self.metrics
                        .watch_failures
                        .get_or_create(&OfResource { resource })
                        .inc();
                    continue;
                }
                None => return,
            };
            let done = matches!(event, Event::InitDone);
            if let Some(event) = self.open(resource, event) {
                apply(event);
            }
            if done {
                self.health.set(condition, true);
            }
        }
    }

    fn open<K>(&self, resource: Watched, event: Event<DeserializeGuard<K>>) -> Option<Event<K>> {
        let open = |guard: DeserializeGuard<K>| match guard.0 {
            Ok(object) => Some(object),
            Err(invalid) => {
                let key = invalid.metadata.namespace.zip(invalid.metadata.name);
                self.passed_over(resource, key, &invalid.error);
                None
            }
        };
        match event {
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
            Event::InitApply(guard) => open(guard).map(Event::InitApply),
            Event::Apply(guard) => open(guard).map(Event::Apply),
            Event::Delete(guard) => open(guard).map(Event::Delete),
        }
    }

    fn passed_over(&self, resource: Watched, key: Option<(String, String)>, problem: &str) {
        let (namespace, name) = key.unwrap_or_default();
        tracing::error!(?resource, namespace, name, problem, "object passed over");
        self.metrics
            .unreadable_objects
            .get_or_create(&OfResource { resource })
            .inc();
    }
}
