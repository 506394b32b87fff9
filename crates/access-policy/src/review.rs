//! `review` and `review_sink`: what admission says of one object, as the API server sends it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::LazyLock;

use crd_types::words;
use serde_json::{Map, Value};

use crate::manifest::{self, UNCLASSIFIED};
use crate::names::ColumnName;
use crate::policy::{
    AccessRule, CaptureSettings, Effect, MaskRule, MaskSpec, Policy, PolicyMode, SubjectPattern, TlsMode,
};
use crate::yaml::{self, Findings, Node};

/// Characters of a value that a message repeats.
const VALUE_CHARS_MAX: usize = 64;
/// Most warnings that are told.
const WARNINGS_MAX: usize = 15;

/// What admission says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Review {
    /// Why the object is refused; empty = it is accepted.
    pub problems: Vec<FieldProblem>,
    /// What may surprise.
    pub warnings: Vec<String>,
}

/// Something wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldProblem {
    /// Path of the field: `spec.masks[0].mask.type`.
    pub field: String,
    /// What it holds, as JSON, cut short; `None` where it is absent or large.
    pub value: Option<String>,
    /// What is wrong, and the mend.
    pub message: String,
}

impl FieldProblem {
    /// Value and message, without the field.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.value {
            Some(value) if !self.message.contains(value.as_str()) => format!("{value}: {}", self.message),
            Some(_) | None => self.message.clone(),
        }
    }
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.field, self.sentence())
    }
}

/// Reviews a `DatabaseAccessPolicy`. `others` are policies that are there already: those of other namespaces, those
/// that cannot select a pod that this one selects, and an older version of this one do not count, nor do those that
/// are wrong themselves.
pub fn review(object: &Value, others: &[&Value]) -> Review {
    let mut review = Review::default();
    let (policy, findings) = manifest::policy_of(&reduced(object));
    review.take(object, findings);
    let Some(policy) = policy else {
        return review;
    };
    let others: Vec<Policy> = others
        .iter()
        .filter(|other| may_meet(object, other))
        .filter_map(|other| {
            let (policy, findings) = manifest::policy_of(&reduced(other));
            policy.filter(|_| findings.problems.is_empty())
        })
        .collect();
    let same: Vec<&Policy> = others
        .iter()
        .filter(|other| other.endpoints.iter().any(|name| policy.endpoints.contains(name)))
        .collect();
    let mut findings = Findings::default();
    addresses(&policy, &mut findings);
    for other in &same {
        for (field, differ) in manifest::disagreements(&policy, other) {
            if differ {
                findings.add(field, manifest::two_minds(&other.id));
            }
        }
    }
    review.take(object, findings);
    warn(object, &policy, &same, &mut review.warnings);
    review.warnings.truncate(WARNINGS_MAX);
    review
}

/// Reviews a `LineageSink`. A sink outside of `weir_namespace` gets the events of its own namespace and may not ask
/// for others.
pub fn review_sink(object: &Value, weir_namespace: &str) -> Review {
    let mut review = Review::default();
    let mut findings = Findings::default();
    let spec = sink(&Node::from_json(&reduced(object)), weir_namespace, &mut findings);
    let has = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str);
    if has("/openLineage/url").is_some_and(|url| url.starts_with("http://"))
        && spec.pointer("/openLineage/tokenSecretRef").is_some()
    {
        review.warnings.push(
            "spec.openLineage.url: the token goes over http, where whoever stands between can read it; use https"
                .to_owned(),
        );
    }
    review.take(object, findings);
    review
}

/// What is wrong with a sink. Gives its `spec`, as far as it is shaped right.
pub(crate) fn sink(node: &Node, weir_namespace: &str, findings: &mut Findings) -> Value {
    frame(node, "LineageSink", findings);
    let value = yaml::check(&SINK_SCHEMA, node, "", SINK_NOT_BUILT, findings);
    let spec = value.get("spec").cloned().unwrap_or(Value::Null);
    let kinds = ["openLineage", "stdout"].map(|kind| spec.get(kind).is_some());
    let later = findings
        .problems
        .iter()
        .any(|(_, field, _)| field.matches('.').count() == 1);
    // An unknown field beside none of the two is most likely a kind that is misspelt: that is told above.
    if kinds == [true, true] || (kinds == [false, false] && !later) {
        findings.add("spec", words::ONE_SINK);
    }
    let url = spec.pointer("/openLineage/url").and_then(Value::as_str);
    if let Some(message) = url.and_then(wrong_url) {
        findings.add("spec.openLineage.url", message);
    }
    let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
    if namespace.is_some_and(|namespace| namespace != weir_namespace)
        && spec.pointer("/filter/namespaces").is_some()
    {
        let message = format!(
            "a sink outside of {weir_namespace} gets the events of its own namespace alone; leave the field out, or \
             make the sink in {weir_namespace}"
        );
        findings.add("spec.filter.namespaces", message);
    }
    for (index, table) in spec
        .pointer("/filter/tables")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .enumerate()
    {
        if let Err(message) = crate::names::table_pattern(table) {
            findings.add(
                &format!("spec.filter.tables[{index}]"),
                format!("\"{table}\" {message}"),
            );
        }
    }
    spec
}

/// Kinds and settings of sinks that a later version brings.
const SINK_NOT_BUILT: yaml::NotBuilt<'_> = &[
    ("spec.kafka", "`kafka`"),
    ("spec.otlp", "`otlp`"),
    ("spec.objectStore", "`objectStore`"),
    ("spec.webhook", "`webhook`"),
    ("spec.delivery", "`delivery`"),
];

static SINK_SCHEMA: LazyLock<Value> = LazyLock::new(|| manifest::object_schema(crd_types::sink_schema()));

fn frame(node: &Node, kind: &str, findings: &mut Findings) {
    let text = |key| node.get(key).and_then(Node::text);
    manifest::version(text("apiVersion"), "weir.dev/v1alpha1", findings);
    if let Some(found) = text("kind")
        && found != kind
    {
        findings.add("kind", format!("is {found}; write {kind}"));
    }
}

/// The object without what the API server looks after itself: all metadata but the names, and the status.
fn reduced(object: &Value) -> Value {
    let mut reduced = Map::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        match key.as_str() {
            "status" => {}
            "metadata" => {
                let name = value.get("name").or_else(|| value.get("generateName"));
                let name = name.and_then(Value::as_str).unwrap_or_default();
                let mut metadata = Map::from_iter([(
                    "name".to_owned(),
                    // At this point a name may still be made: `generateName`, which ends with a hyphen.
                    Value::from(name.trim_end_matches('-')),
                )]);
                if let Some(namespace) = value.get("namespace") {
                    metadata.insert("namespace".to_owned(), namespace.clone());
                }
                reduced.insert(key.clone(), Value::Object(metadata));
            }
            _ => {
                reduced.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(reduced)
}

impl Review {
    fn take(&mut self, object: &Value, findings: Findings) {
        for (_, field, message) in findings.problems {
            self.problems.push(FieldProblem {
                value: value_at(object, &field),
                field,
                message,
            });
        }
    }
}

/// What stands at `spec.masks[0].mask`, if it is short.
fn value_at(object: &Value, field: &str) -> Option<String> {
    let mut value = object;
    for part in field.split(['.', '[']) {
        value = match part.strip_suffix(']') {
            Some(index) => value.get(index.parse::<usize>().ok()?)?,
            None => value.get(part)?,
        };
    }
    if value.is_null() || value.is_object() || value.is_array() {
        return None;
    }
    let text = value.to_string();
    // A URL may hold a login, and messages are logged.
    let secret = text.contains('@') && text.contains("://");
    (!secret && text.chars().count() <= VALUE_CHARS_MAX).then_some(text)
}

/// Two policies may govern one pod: same namespace, another name, and no label on which their selectors differ.
fn may_meet(object: &Value, other: &Value) -> bool {
    let text = |value: &Value, pointer: &str| {
        let text = value.pointer(pointer).and_then(Value::as_str);
        text.map(str::to_owned)
    };
    let labels = |value: &Value| {
        let labels = value
            .pointer("/spec/podSelector/matchLabels")
            .and_then(Value::as_object);
        labels.cloned().unwrap_or_default()
    };
    let theirs = labels(other);
    text(object, "/metadata/namespace") == text(other, "/metadata/namespace")
        && text(object, "/metadata/name") != text(other, "/metadata/name")
        && !labels(object)
            .iter()
            .any(|(key, value)| theirs.get(key).is_some_and(|theirs| theirs != value))
}

/// In a cluster an alias must be able to lead away from the host. On a laptop nothing is captured.
pub(crate) fn addresses(policy: &Policy, findings: &mut Findings) {
    if policy.capture != CaptureSettings::Alias {
        return;
    }
    for (index, endpoint) in policy.endpoints.iter().enumerate() {
        if endpoint.host == "localhost" || endpoint.host.parse::<IpAddr>().is_ok() {
            let field = match index.checked_sub(1) {
                None => "spec.database.host".to_owned(),
                Some(index) => format!("spec.database.otherEndpoints[{index}].host"),
            };
            findings.add(&field, words::ADDRESS_NEEDS_ENV);
        }
    }
}

fn wrong_url(url: &str) -> Option<&'static str> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Some(words::SINK_URL);
    };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    if authority.contains('@') {
        return Some("must not hold a login; name a Secret in tokenSecretRef");
    }
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let blank = |letter: char| letter.is_whitespace() || letter.is_control();
    if !matches!(scheme, "http" | "https") || name.is_empty() || url.contains(blank) {
        return Some(words::SINK_URL);
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
        // 127.1, 2130706433 and 0x7f000001 are addresses to the C library.
        Err(_) if name.split('.').all(numeric) => return Some(words::SINK_URL),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    };
    local.then_some(words::SINK_ADDRESS)
}

fn numeric(label: &str) -> bool {
    let digits = label.strip_prefix("0x").unwrap_or(label);
    let radix = if digits.len() < label.len() { 16 } else { 10 };
    !digits.is_empty() && digits.chars().all(|letter| letter.is_digit(radix))
}

fn warn(object: &Value, policy: &Policy, others: &[&Policy], warnings: &mut Vec<String>) {
    settings(object, policy, warnings);
    host(policy, warnings);
    access(policy, others, warnings);
    masks(policy, others, warnings);
    for (rule, field) in policy.row_filters.iter().map(|rule| (&rule.except, &rule.field)) {
        nobody(rule, &format!("{field}.exceptSubjects"), warnings);
    }
}

fn settings(object: &Value, policy: &Policy, warnings: &mut Vec<String>) {
    let mut say = |text: &str| warnings.push(text.to_owned());
    if policy.mode == PolicyMode::Audit {
        say("spec.mode: Audit records what it would have refused, and changes nothing");
    }
    let selects = |key: &str| {
        let part = object.pointer(&format!("/spec/podSelector/{key}"));
        part.is_some_and(|part| match part {
            Value::Object(members) => !members.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        })
    };
    if !selects("matchLabels") && !selects("matchExpressions") {
        say("spec.podSelector: selects every pod of the namespace");
    }
    match policy.tls.as_ref().map(|tls| tls.mode) {
        Some(TlsMode::Disable) => {
            say(
                "spec.database.tls.mode: Disable sends everything in the clear; set VerifyFull where the server can",
            );
        }
        Some(TlsMode::Require) => say(
            "spec.database.tls.mode: Require does not check who answers; set VerifyFull where the server can",
        ),
        Some(TlsMode::VerifyCa | TlsMode::VerifyFull) | None => {}
    }
    if policy.default_action == Effect::Allow && !policy.masks.is_empty() {
        say(
            "spec.defaultAction: Allow lets pass what no rule denies; masks hold, other columns are open to every pod selected",
        );
    }
    if policy.guardrails.max_affected_rows == Some(0) {
        say("spec.guardrails.maxAffectedRows: 0 refuses every UPDATE and DELETE that meets a row");
    }
    let open = policy.guardrails.functions.as_ref();
    if open.and_then(|functions| functions.user_defined) == Some(Effect::Allow)
        && !(policy.masks.is_empty() && policy.row_filters.is_empty())
    {
        say(
            "spec.guardrails.functions.userDefined: Allow runs code that is not seen, which may read around masks and row filters",
        );
    }
}

fn host(policy: &Policy, warnings: &mut Vec<String>) {
    let Some(endpoint) = policy.endpoints.first() else {
        return;
    };
    let other = match endpoint.port {
        3306 | 33060 => Some("MySQL"),
        1433 => Some("SQL Server"),
        1521 => Some("Oracle"),
        6379 => Some("Redis"),
        27017 => Some("MongoDB"),
        _ => None,
    };
    if let Some(other) = other {
        let port = endpoint.port;
        warnings.push(format!(
            "spec.database.port: {port} is usually a port of {other}, and engine is PostgreSQL"
        ));
    }
    let names = ["mysql", "mariadb", "mssql", "oracle", "mongo", "redis"];
    let looks = names
        .into_iter()
        .find(|name| endpoint.host.split(['.', '-']).any(|part| part.starts_with(name)));
    if let Some(name) = looks
        && endpoint.port == 5432
    {
        let host = &endpoint.host;
        warnings.push(format!(
            "spec.database.host: {host} looks like {name}, and engine is PostgreSQL"
        ));
    }
}

fn access(policy: &Policy, others: &[&Policy], warnings: &mut Vec<String>) {
    let denials: Vec<(&AccessRule, Option<&str>)> = policy
        .access
        .iter()
        .map(|rule| (rule, None))
        .chain(
            others
                .iter()
                .filter(|other| other.mode == PolicyMode::Enforce)
                .flat_map(|other| other.access.iter().map(|rule| (rule, Some(other.id.as_str())))),
        )
        .filter(|(rule, _)| rule.effect == Effect::Deny)
        .collect();
    for rule in &policy.access {
        unknown_subjects(rule, warnings);
        if rule.effect == Effect::Deny {
            continue;
        }
        if let Some((denial, owner)) = denials.iter().find(|(denial, _)| shadows(denial, rule)) {
            let owner = owner
                .map(|owner| format!(" of policy {owner}"))
                .unwrap_or_default();
            warnings.push(format!(
                "{}: {} never allows anything, because {}{owner} denies all of it",
                rule.field, rule.name, denial.name
            ));
        }
    }
}

/// Every statement that the rule could allow meets the denial.
fn shadows(denial: &AccessRule, rule: &AccessRule) -> bool {
    let everywhere = denial.tables.is_empty() && denial.columns.is_empty();
    let subjects = denial.subjects.is_empty()
        || (!rule.subjects.is_empty()
            && rule
                .subjects
                .iter()
                .all(|subject| denial.subjects.contains(subject)));
    let tables = !rule.tables.is_empty()
        && denial.columns.is_empty()
        && rule.tables.iter().all(|table| {
            denial.tables.iter().any(|denied| match (denied, table) {
                (crate::names::TablePattern::Schema(schema), crate::names::TablePattern::One(table)) => {
                    *schema == table.schema
                }
                (denied, table) => denied == table,
            })
        });
    subjects && denial.actions.is_superset(&rule.actions) && (everywhere || tables)
}

/// A sidecar proves the service account of its pod, and nobody else yet.
fn unknown_subjects(rule: &AccessRule, warnings: &mut Vec<String>) {
    if !rule.subjects.is_empty() && !rule.subjects.iter().any(proved) {
        warnings.push(format!(
            "{}.subjects: {} holds for nobody in a cluster: only serviceAccount is proved in this version",
            rule.field, rule.name
        ));
    }
}

fn proved(subject: &SubjectPattern) -> bool {
    match subject {
        SubjectPattern::ServiceAccount(_) => true,
        SubjectPattern::User(_) | SubjectPattern::Group(_) | SubjectPattern::Agent(_) => false,
    }
}

fn nobody(except: &[SubjectPattern], field: &str, warnings: &mut Vec<String>) {
    if !except.is_empty() && !except.iter().any(proved) {
        warnings.push(format!(
            "{field}: excepts nobody in a cluster: only serviceAccount is proved in this version"
        ));
    }
}

fn masks(policy: &Policy, others: &[&Policy], warnings: &mut Vec<String>) {
    let group: Vec<&Policy> = std::iter::once(policy).chain(others.iter().copied()).collect();
    for rule in &policy.masks {
        nobody(&rule.except, &format!("{}.exceptSubjects", rule.field), warnings);
        for (index, label) in rule.labels.iter().enumerate() {
            let known = group.iter().any(|policy| {
                policy
                    .classifications
                    .iter()
                    .any(|(known, _, _)| label.matches(known))
            });
            if !known {
                let field = &rule.field;
                warnings.push(format!(
                    "{field}.columnLabels[{index}]: {UNCLASSIFIED}. Until then no policy of this database is in force"
                ));
            }
        }
        let columns = columns_of(rule, &group);
        for column in &columns {
            if column.column == "id" || column.column.ends_with("_id") {
                let field = &rule.field;
                warnings.push(format!(
                    "{field}: {column} looks like a key: joins and conditions on it meet the masked value"
                ));
            }
        }
        let stricter = |column: &ColumnName| {
            let masks = group.iter().filter(|other| {
                other.id == policy.id || other.mode == PolicyMode::Enforce || policy.mode == PolicyMode::Audit
            });
            masks.flat_map(|policy| &policy.masks).find(|other| {
                other.except.is_empty()
                    && strictness(&other.mask) < strictness(&rule.mask)
                    && columns_of(other, &group).contains(column)
            })
        };
        if let Some(first) = columns.first()
            && let Some(winner) = stricter(first)
            && columns.iter().all(|column| stricter(column).is_some())
        {
            warnings.push(format!(
                "{}: {} never shows, because mask {} on the same columns is stricter",
                rule.field, rule.name, winner.name
            ));
        }
    }
}

fn columns_of(rule: &MaskRule, group: &[&Policy]) -> BTreeSet<ColumnName> {
    let labelled = group
        .iter()
        .flat_map(|policy| &policy.classifications)
        .filter(|(label, _, _)| rule.labels.iter().any(|wanted| wanted.matches(label)))
        .map(|(_, column, _)| column.clone());
    rule.columns.iter().cloned().chain(labelled).collect()
}

/// Lower is stricter.
fn strictness(mask: &MaskSpec) -> u8 {
    match mask {
        MaskSpec::Null => 0,
        MaskSpec::Constant(_) => 1,
        MaskSpec::Hash(_) => 2,
        MaskSpec::DateTrunc(_) => 3,
        MaskSpec::Email => 4,
        MaskSpec::Partial { .. } => 5,
    }
}
