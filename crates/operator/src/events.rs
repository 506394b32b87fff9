//! Events: what a person looks for in `kubectl describe`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crd_types::Condition;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::world::{Owner, Pod, Policy};

/// Events that wait to be written. When it is full, events are dropped: the status says the same.
const QUEUE: usize = 256;
/// An owner is told again after this.
const AGAIN: Duration = Duration::from_secs(3600);
/// Owners that are remembered.
const OWNERS_MAX: usize = 10_000;

/// Something to say about an object.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// About what.
    pub about: ObjectReference,
    /// Whether somebody has to do something.
    pub warning: bool,
    /// PascalCase.
    pub reason: &'static str,
    /// A sentence.
    pub note: String,
    /// What was done.
    pub action: &'static str,
}

/// Takes news and writes them.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::Sender<News>,
}

impl Events {
    /// With the task that writes, until every sender is gone.
    pub fn new(client: Client, instance: String) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, mut receiver) = mpsc::channel::<News>(QUEUE);
        let recorder = Recorder::new(
            client,
            Reporter {
                controller: "weir.dev/operator".to_owned(),
                instance: Some(instance),
            },
        );
        let write = async move {
            while let Some(news) = receiver.recv().await {
                let event = Event {
                    type_: if news.warning {
                        EventType::Warning
                    } else {
                        EventType::Normal
                    },
                    reason: news.reason.to_owned(),
                    note: Some(news.note),
                    action: news.action.to_owned(),
                    secondary: None,
                };
                let written =
                    tokio::time::timeout(Duration::from_secs(5), recorder.publish(&event, &news.about));
                match written.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, reason = news.reason, "event not written"),
                    Err(_) => tracing::warn!(reason = news.reason, "event not written in time"),
                }
            }
        };
        (Self { sender }, write)
    }

    /// Says it, if there is room.
    pub fn say(&self, news: News) {
        if self.sender.try_send(news).is_err() {
            tracing::debug!("event dropped: the queue is full");
        }
    }
}

/// What changed between two lists of a policy's conditions, and is worth an event.
pub fn of_policy(policy: &Policy, before: &[Condition], after: &[Condition]) -> Vec<News> {
    let find = |conditions: &[Condition], type_: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == type_)
            .map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    [
        ("Accepted", "Invalid", true),
        ("Enforced", "Bypassed", true),
        ("Enforced", "NotCaptured", true),
        ("Enforced", "Uninjected", true),
        ("Enforced", "Enforced", false),
        ("Degraded", "ReceiptsLost", true),
        ("Degraded", "UnresolvedNames", true),
    ]
    .into_iter()
    .filter_map(|(type_, reason, warning)| {
        let (now, message) = find(after, type_)?;
        let news = now == reason && find(before, type_).is_none_or(|(then, _)| then != reason);
        news.then(|| News {
            about: ObjectReference {
                api_version: Some("weir.dev/v1alpha1".to_owned()),
                kind: Some("DatabaseAccessPolicy".to_owned()),
                namespace: Some(policy.namespace.clone()),
                name: Some(policy.name.clone()),
                uid: Some(policy.uid.clone()),
                ..ObjectReference::default()
            },
            warning,
            reason,
            note: cut(message),
            action: "Reconcile",
        })
    })
    .collect()
}

/// Who was told that pods run without a sidecar.
#[derive(Debug, Default)]
pub struct Told {
    owners: HashMap<String, Instant>,
}

impl Told {
    /// What to say about a pod that `policy` selects and that has no sidecar: once an hour for each owner.
    pub fn uninjected(&mut self, policy: &Policy, pod: &Pod, now: Instant) -> Option<News> {
        let owner = pod.owner.clone().unwrap_or_else(|| Owner {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        });
        self.owners
            .retain(|_, told| now.saturating_duration_since(*told) < AGAIN);
        if self.owners.contains_key(&owner.uid) || self.owners.len() >= OWNERS_MAX {
            return None;
        }
        self.owners.insert(owner.uid.clone(), now);
        Some(News {
            about: ObjectReference {
                api_version: Some(owner.api_version),
                kind: Some(owner.kind),
                namespace: Some(pod.namespace.clone()),
                name: Some(owner.name),
                uid: Some(owner.uid),
                ..ObjectReference::default()
            },
            warning: true,
            reason: "Uninjected",
            note: format!(
                "pod {} is selected by DatabaseAccessPolicy {} but runs without Weir's sidecar, so nothing is enforced; \
                 put the annotation weir.dev/inject: \"true\" on the pod template and restart",
                pod.name, policy.name
            ),
            action: "Observe",
        })
    }
}

/// Notes have at most 1 kB.
fn cut(note: String) -> String {
    if note.len() <= 1000 {
        return note;
    }
    let end = note.floor_char_boundary(1000);
    note.get(..end).unwrap_or_default().to_owned()
}
