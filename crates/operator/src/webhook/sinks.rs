//! `/sinks`: refuses what the schema cannot: fields it does not know, and what only Weir's own namespace may say.

use std::net::IpAddr;

use serde_json::Value;

use super::Webhook;
use super::metrics::{Outcome, Reviewed};
use super::policies::{refused, unchanged};
use super::review::{Cause, Request};

impl Webhook {
    /// Answers a review of a sink.
    pub(crate) fn sink(&self, request: &Request<'_>) -> Value {
        let count = |outcome| self.metrics.review(Reviewed::Sink, outcome);
        let spec = request.object().and_then(|object| object.get("spec"));
        let (Some(spec), false) = (spec, unchanged(request)) else {
            count(Outcome::Allowed);
            return request.allowed(&[]);
        };
        let mut problems = Vec::new();
        unknown_fields(spec, &crd_types::sink_schema(), "spec", &mut problems);
        let own = request.namespace() == &*self.namespace;
        if !own
            && spec
                .pointer("/filter/namespaces")
                .is_some_and(|namespaces| !namespaces.is_null())
        {
            problems.push(problem(
                "spec.filter.namespaces",
                format!(
                    "a sink in the namespace {} gets the events of that namespace alone; leave the field out, or make \
                     the sink in {}",
                    request.namespace(),
                    self.namespace
                ),
            ));
        }
        if let Some(url) = spec.pointer("/openLineage/url").and_then(Value::as_str)
            && let Some(message) = wrong_url(url)
        {
            problems.push(problem("spec.openLineage.url", message));
        }
        if problems.is_empty() {
            count(Outcome::Allowed);
            return request.allowed(&[]);
        }
        count(Outcome::Refused);
        request.refused(&refused("sink", problems), &[])
    }
}

fn problem(field: &str, message: String) -> Cause {
    Cause {
        reason: "FieldValueInvalid".to_owned(),
        field: field.to_owned(),
        message,
    }
}

/// What can be seen of an address before it is resolved. The collector looks again at what the name leads to.
fn wrong_url(url: &str) -> Option<String> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Some("must not hold a login; name a Secret in tokenSecretRef".to_owned());
    }
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name.is_empty() {
        return Some("has no host".to_owned());
    }
    let local = match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_multicast()
        }
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    };
    local.then(|| format!("`{host}` is an address of the collector itself or of its node; name another host"))
}

/// Every field that the schema does not know, by path, with the nearest that it does know.
fn unknown_fields(value: &Value, schema: &Value, path: &str, problems: &mut Vec<Cause>) {
    match value {
        Value::Object(members) => {
            let Some(known) = schema.get("properties").and_then(Value::as_object) else {
                return;
            };
            for (key, member) in members {
                match known.get(key) {
                    Some(schema) => unknown_fields(member, schema, &format!("{path}.{key}"), problems),
                    None => {
                        let field = format!("{path}.{key}");
                        let message = access_policy::unknown_field(key, known.keys().map(String::as_str));
                        problems.push(problem(&field, message));
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    unknown_fields(item, schema, &format!("{path}[{index}]"), problems);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
