//! Entries of the log as sinks see them, and which of them a sink is told.

use std::sync::Arc;

use crd_types::policy::Action;
use crd_types::sink::{SinkFilter, SinkVerdict};
use receipts::{ActionStart, Body, Digest, Event, ReadEvent, RelationAction, Verdict, leaf_hash, read_event};

use crate::index::ChainPod;

/// One entry.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// Log index.
    pub(crate) index: u64,
    /// The event's exact bytes.
    pub(crate) bytes: Vec<u8>,
    /// Hash of the event that is told: of the original where it was recovered.
    pub(crate) leaf: Digest,
    /// The event, what was recovered taken out of its cover; `None` where it cannot be read.
    pub(crate) event: Option<Box<Event>>,
    /// The pod that delivered it.
    pub(crate) pod: Option<Arc<ChainPod>>,
}

impl Told {
    pub(crate) fn new(index: u64, bytes: &[u8], pod: Option<Arc<ChainPod>>) -> Self {
        let mut told = Self {
            index,
            bytes: bytes.to_vec(),
            leaf: leaf_hash(bytes),
            event: known(bytes),
            pod,
        };
        if let Some(Body::Recovered(recovered)) = told.event.as_ref().map(|event| &event.body)
            && let Some(inner) = known(recovered.event.as_bytes())
        {
            told.leaf = leaf_hash(recovered.event.as_bytes());
            told.event = Some(inner);
        }
        told
    }

    /// Where it is, for people.
    pub(crate) fn reference(&self) -> String {
        match &self.event {
            Some(event) => format!("receipt {}/{}", event.proxy.boot, event.proxy.seq),
            None => format!("log entry {}", self.index),
        }
    }
}

fn known(bytes: &[u8]) -> Option<Box<Event>> {
    match read_event(bytes) {
        Ok(ReadEvent::Known(event)) => Some(event),
        Ok(ReadEvent::Unknown(_)) | Err(_) => None,
    }
}

/// Whether a sink that may see the events of `events_of` (empty: of all) is told this one.
pub(crate) fn is_told(told: &Told, events_of: &str, filter: Option<&SinkFilter>) -> bool {
    let namespace = told.pod.as_ref().map(|pod| pod.namespace.as_str());
    // Nobody proved where it comes from: it is for nobody but Weir's own namespace.
    if !events_of.is_empty() && namespace != Some(events_of) {
        return false;
    }
    let Some(filter) = filter else { return true };
    if !filter.namespaces.is_empty()
        && !namespace.is_some_and(|name| filter.namespaces.iter().any(|wanted| wanted == name))
    {
        return false;
    }
    if filter.tables.is_empty() && filter.actions.is_empty() && filter.verdicts.is_empty() {
        return true;
    }
    let start = told.event.as_ref().and_then(|event| start_of(&event.body));
    let Some(start) = start else { return false };
    (filter.verdicts.is_empty()
        || filter
            .verdicts
            .iter()
            .any(|wanted| verdict(*wanted) == start.rule.verdict))
        && ((filter.tables.is_empty() && filter.actions.is_empty())
            || start.what.relations.iter().any(|relation| {
                (filter.tables.is_empty()
                    || filter.tables.iter().any(|pattern| fits(pattern, &relation.name)))
                    && (filter.actions.is_empty()
                        || filter
                            .actions
                            .iter()
                            .any(|wanted| action(*wanted) == relation.action))
            }))
}

fn start_of(body: &Body) -> Option<&ActionStart> {
    match body {
        Body::Intent(intent) => Some(&intent.start),
        Body::Action(action) => Some(&action.start),
        Body::Deny(deny) => Some(&deny.start),
        Body::ChainOpen(_)
        | Body::ChainClose(_)
        | Body::SessionOpen(_)
        | Body::SessionClose(_)
        | Body::AuthFail(_)
        | Body::OutcomeUnknown(_)
        | Body::Gap(_)
        | Body::Recovered(_)
        | Body::PolicyChange(_)
        | Body::ChainPeer(_)
        | Body::ChainBind(_) => None,
    }
}

fn fits(pattern: &str, relation: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(schema) if schema.ends_with('.') => relation.starts_with(schema),
        Some(_) | None => pattern == relation,
    }
}

fn verdict(verdict: SinkVerdict) -> Verdict {
    match verdict {
        SinkVerdict::Permit => Verdict::Permit,
        SinkVerdict::Refuse => Verdict::Refuse,
        SinkVerdict::Audit => Verdict::Audit,
    }
}

fn action(action: Action) -> RelationAction {
    match action {
        Action::Select => RelationAction::Select,
        Action::Insert => RelationAction::Insert,
        Action::Update => RelationAction::Update,
        Action::Delete => RelationAction::Delete,
        Action::Truncate => RelationAction::Truncate,
        Action::Ddl => RelationAction::Ddl,
        Action::Call => RelationAction::Call,
        Action::Admin => RelationAction::Admin,
    }
}
