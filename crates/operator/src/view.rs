//! The world, as admission looks at it.

use std::sync::Arc;

use control_api::client::Held;
use crd_types::{DatabaseAccessPolicy, LabelSelector};
use service_runtime::health::Health;
use tokio::sync::watch;

use crate::snapshots::selects;
use crate::watches;
use crate::webhook::View;
use crate::world::World;

/// World and roots.
#[derive(Debug, Clone)]
pub struct WorldView {
    /// What is known.
    pub world: Arc<World>,
    /// Whether it is whole.
    pub health: Health,
    /// Our roots.
    pub keys: watch::Receiver<Option<Arc<Held>>>,
}

impl View for WorldView {
    fn ready(&self) -> bool {
        let missing = self.health.missing();
        self.keys.borrow().is_some()
            && !missing
                .iter()
                .any(|condition| watches::CONDITIONS.contains(condition))
    }

    fn namespace_label(&self, namespace: &str, label: &str) -> Option<String> {
        self.world.namespace_label(namespace, label)
    }

    fn policies_of(&self, namespace: &str) -> Vec<Arc<DatabaseAccessPolicy>> {
        self.world.policies_of(namespace)
    }

    fn manifests_of(&self, namespace: &str) -> Vec<serde_json::Value> {
        let manifests = self.world.manifests_of(namespace);
        let read = manifests.iter().map(|text| serde_json::from_str(text));
        read.filter_map(Result::ok).collect()
    }

    fn injected_pods(&self, namespace: &str, selector: &LabelSelector) -> Vec<String> {
        self.world
            .pods_of(namespace)
            .into_iter()
            .filter(|pod| pod.injected && pod.counts() && selects(selector, &pod.labels))
            .map(|pod| pod.name.clone())
            .collect()
    }

    fn trust_bundle(&self) -> String {
        self.keys
            .borrow()
            .as_ref()
            .map(|held| held.trust.to_pem())
            .unwrap_or_default()
    }
}
