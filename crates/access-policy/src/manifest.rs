//! `compile`: YAML texts → [`PolicySet`], or every problem with file, line and field.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use crd_types::LabelSelector;
use crd_types::policy as crd;
use crd_types::words;
use serde_json::{Value, json};
use sql_facts::facts::Action;

use crate::names::{self, ColumnName, Prefix, TablePattern};
use crate::policy::{
    AccessRule, CaptureSettings, CertificateSettings, ClientTlsSettings, CredentialSettings, Effect,
    Endpoint, FunctionRules, GuardrailRules, ManifestSecrets, MaskRule, MaskSpec, Policy, PolicyMode,
    PolicySet, ReceiptMode, RowFilterRule, SubjectPattern, TargetSession, TlsMode, TlsSettings,
};
use crate::predicate::Predicate;
use crate::review;
use crate::secret::{SecretBytes, SecretKey};
use crate::yaml::{self, Findings, Node};

/// One YAML text (which may hold several documents) and the name it came under.
#[derive(Clone)]
pub struct Manifest {
    /// File name or object name, for messages.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// Without the text: it may hold Secrets.
impl std::fmt::Debug for Manifest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Manifest")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Something wrong in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {field}: {message}")]
pub struct Problem {
    /// [`Manifest::name`].
    pub file: String,
    /// From 1; 0 = unknown.
    pub line: usize,
    /// From 1; 0 = unknown.
    pub column: usize,
    /// Path of the field: `spec.masks[0].mask.type`.
    pub field: String,
    /// What is wrong, and the mend.
    pub message: String,
}

/// Compiles manifests: `DatabaseAccessPolicy` documents become policies, `Secret` documents serve as secrets, other
/// kinds are problems. All problems are collected.
///
/// # Errors
/// Every [`Problem`] found; nothing is compiled halfway.
pub fn compile(manifests: &[Manifest]) -> Result<PolicySet, Vec<Problem>> {
    let mut compiling = Compiling::default();
    for manifest in manifests {
        compiling.text(manifest);
    }
    compiling.across();
    if compiling.problems.is_empty() {
        Ok(PolicySet {
            policies: compiling
                .policies
                .into_iter()
                .map(|(policy, _)| Arc::new(policy))
                .collect(),
            secrets: Arc::new(compiling.secrets),
        })
    } else {
        Err(compiling.problems)
    }
}

/// What admission would say of these files. Unlike [`compile`] it also looks at sinks, and at what only a cluster cannot
/// do; kinds that are not ours are left to others. `weir_namespace`: the one of Weir itself.
pub fn check_files(manifests: &[Manifest], weir_namespace: &str) -> Vec<Problem> {
    let mut compiling = Compiling {
        weir_namespace: Some(weir_namespace.to_owned()),
        ..Compiling::default()
    };
    for manifest in manifests {
        compiling.text(manifest);
    }
    compiling.across();
    compiling.problems
}

/// Fields of the design that a later version brings, so that they are not called misspelt.
const NOT_BUILT: &[(&str, &str)] = &[
    ("spec.identity", "`identity`"),
    ("spec.approvals", "`approvals`"),
    ("spec.budgets", "`budgets`"),
    ("spec.receipts.capture", "`receipts.capture`"),
    ("spec.receipts.rowLedger", "`receipts.rowLedger`"),
];

static POLICY_SCHEMA: LazyLock<Value> = LazyLock::new(|| object_schema(crd_types::spec_schema()));

/// Schema of an object of ours, around that of its `spec`.
pub(crate) fn object_schema(spec: Value) -> Value {
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": metadata_schema(),
            "spec": spec,
            "status": {},
        }
    })
}

static SECRET_SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": metadata_schema(),
            "type": {"type": "string"},
            "immutable": {"type": "boolean"},
            "data": texts,
            "stringData": texts,
        }
    })
});

pub(crate) fn metadata_schema() -> Value {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 253},
            "namespace": {"type": "string", "minLength": 1, "maxLength": 63},
            "labels": texts,
            "annotations": texts,
            // What the API server adds, so that a manifest read back from it is one.
            "uid": {},
            "resourceVersion": {},
            "creationTimestamp": {},
            "deletionTimestamp": {},
            "deletionGracePeriodSeconds": {},
            "generation": {},
            "generateName": {},
            "ownerReferences": {},
            "finalizers": {},
            "managedFields": {},
            "selfLink": {},
        }
    })
}

/// One policy that came as JSON, and what is wrong with it. `None`, where its shape is wrong.
pub(crate) fn policy_of(object: &Value) -> (Option<Policy>, Findings) {
    let node = Node::from_json(object);
    let mut findings = Findings::default();
    let mut compiling = Compiling::default();
    let manifest = Manifest {
        name: String::new(),
        text: String::new(),
    };
    match node.get("kind").and_then(Node::text) {
        Some("DatabaseAccessPolicy") | None => {}
        Some(other) => findings.add("kind", format!("is {other}; write DatabaseAccessPolicy")),
    }
    version(
        node.get("apiVersion").and_then(Node::text),
        "weir.dev/v1alpha1",
        &mut findings,
    );
    compiling.policy(&manifest, &node, &mut findings);
    (compiling.policies.pop().map(|(policy, _)| policy), findings)
}

#[derive(Default)]
struct Compiling {
    /// For a cluster, where Weir is in this namespace.
    weir_namespace: Option<String>,
    problems: Vec<Problem>,
    policies: Vec<(Policy, Findings)>,
    secrets: ManifestSecrets,
    secret_names: BTreeMap<(Option<String>, String), String>,
}

impl Compiling {
    fn text(&mut self, manifest: &Manifest) {
        let documents = match yaml::documents(&manifest.text) {
            Ok(documents) => documents,
            Err((at, message)) => {
                self.problems.push(Problem {
                    file: manifest.name.clone(),
                    line: at.line,
                    column: at.column,
                    field: String::new(),
                    message,
                });
                return;
            }
        };
        for document in &documents {
            let mut findings = Findings::default();
            findings.places.insert(String::new(), document.at);
            self.document(manifest, document, &mut findings);
            self.take(&manifest.name, &mut findings);
        }
    }

    fn take(&mut self, file: &str, findings: &mut Findings) {
        let found = std::mem::take(&mut findings.problems);
        self.problems
            .extend(found.into_iter().map(|(at, field, message)| Problem {
                file: file.to_owned(),
                line: at.line,
                column: at.column,
                field,
                message,
            }));
    }

    fn document(&mut self, manifest: &Manifest, document: &Node, findings: &mut Findings) {
        let text = |key| document.get(key).and_then(Node::text);
        for key in ["apiVersion", "kind"] {
            if let Some(node) = document.get(key) {
                findings.places.insert(key.to_owned(), node.at);
            }
        }
        match text("kind") {
            Some("DatabaseAccessPolicy") => {
                version(text("apiVersion"), "weir.dev/v1alpha1", findings);
                self.policy(manifest, document, findings);
            }
            Some("Secret") => {
                version(text("apiVersion"), "v1", findings);
                self.secret(manifest, document, findings);
            }
            Some("LineageSink") if self.weir_namespace.is_some() => {
                let namespace = self.weir_namespace.as_deref().unwrap_or_default();
                review::sink(document, namespace, findings);
            }
            Some(kind @ ("LineageSink" | "AccessRequest" | "AccessApproval")) => {
                findings.add("kind", not_here(kind));
            }
            Some(kind) if self.weir_namespace.is_some() => {
                if text("apiVersion").is_some_and(|version| version.starts_with("weir.dev/")) {
                    let known = ["DatabaseAccessPolicy", "LineageSink"].into_iter();
                    findings.add("kind", yaml::unknown("kind", kind, known));
                }
            }
            Some(kind) => {
                let known = ["DatabaseAccessPolicy", "Secret"].into_iter();
                findings.add("kind", yaml::unknown("kind", kind, known));
            }
            None => findings.add("kind", "is required: DatabaseAccessPolicy or Secret"),
        }
    }

    fn secret(&mut self, manifest: &Manifest, document: &Node, findings: &mut Findings) {
        let value = yaml::check(&SECRET_SCHEMA, document, "", &[], findings);
        let (namespace, name) = object_name(&value, findings);
        let id = (namespace, name);
        let mut data = BTreeMap::new();
        for (key, encoded) in value.get("data").and_then(Value::as_object).into_iter().flatten() {
            let encoded: String = encoded.as_str().unwrap_or_default().split_whitespace().collect();
            match base64_decode(&encoded) {
                Some(bytes) => {
                    data.insert(key.clone(), SecretBytes::new(bytes));
                }
                None => findings.add(
                    &format!("data.{key}"),
                    "is not base64; stringData takes plain text",
                ),
            }
        }
        for (key, plain) in value
            .get("stringData")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let bytes = plain.as_str().unwrap_or_default().as_bytes().to_vec();
            data.insert(key.clone(), SecretBytes::new(bytes));
        }
        if let Some(other) = self.secret_names.insert(id.clone(), manifest.name.clone()) {
            findings.add(
                "metadata.name",
                format!("another Secret of that name is in {other}"),
            );
        }
        self.secrets.insert(id, data);
    }

    fn policy(&mut self, manifest: &Manifest, document: &Node, findings: &mut Findings) {
        let value = yaml::check(&POLICY_SCHEMA, document, "", NOT_BUILT, findings);
        for (_, field, message) in &mut findings.problems {
            let at = |path: &[&str]| path.iter().try_fold(document, |node, key| node.get(key))?.text();
            match field.as_str() {
                "spec.database.engine"
                    if matches!(at(&["spec", "database", "engine"]), Some("MySQL" | "MariaDB")) =>
                {
                    *message = "MySQL is not in this version; set PostgreSQL".to_owned();
                }
                "spec.database.capture.mode"
                    if at(&["spec", "database", "capture", "mode"]) == Some("Redirect") =>
                {
                    *message = "Redirect is not in this version; set Alias or Env".to_owned();
                }
                _ => {}
            }
        }
        let (namespace, name) = object_name(&value, findings);
        // What is misshapen has been named above; the meaning of the rest is checked only where the shape is right.
        if !findings.problems.is_empty() {
            return;
        }
        let spec = value.get("spec").cloned().unwrap_or(Value::Null);
        let tls_stated = spec.pointer("/database/tls").is_some();
        match serde_json::from_value::<crd::DatabaseAccessPolicySpec>(spec) {
            Ok(spec) => {
                let id = match &namespace {
                    Some(namespace) => format!("{namespace}/{name}"),
                    None => name,
                };
                let file = manifest.name.clone();
                let checker = Checker { findings, namespace };
                let policy = checker.policy(id, file, &spec, tls_stated);
                if self.weir_namespace.is_some() {
                    review::addresses(&policy, findings);
                }
                let places = Findings {
                    problems: Vec::new(),
                    places: findings.places.clone(),
                };
                self.policies.push((policy, places));
            }
            Err(error) => findings.add("spec", format!("is not a policy: {error}")),
        }
    }

    /// What only shows when all policies are known.
    fn across(&mut self) {
        let set = PolicySet {
            policies: self
                .policies
                .iter()
                .map(|(policy, _)| Arc::new(policy.clone()))
                .collect(),
            secrets: Arc::default(),
        };
        let mut problems = Vec::new();
        let mut ids: BTreeMap<&str, &str> = BTreeMap::new();
        for (policy, places) in &self.policies {
            let mut add = |field: &str, message: String| {
                let mut findings = Findings {
                    problems: Vec::new(),
                    places: places.places.clone(),
                };
                findings.add(field, message);
                problems.extend(
                    findings
                        .problems
                        .into_iter()
                        .map(|found| (policy.file.clone(), found)),
                );
            };
            if let Some(other) = ids.insert(&policy.id, &policy.file) {
                add(
                    "metadata.name",
                    format!("another policy is called {} in {other}", policy.id),
                );
            }
            let Some(first) = policy.endpoints.first() else {
                continue;
            };
            let group = set.group(first);
            for other in group.iter().take_while(|other| other.id != policy.id) {
                for (field, differ) in disagreements(policy, other) {
                    if differ {
                        add(field, two_minds(&other.id));
                    }
                }
            }
            let labels: BTreeSet<&str> = group
                .iter()
                .flat_map(|policy| policy.classifications.iter().map(|(label, _, _)| label.as_str()))
                .collect();
            for mask in &policy.masks {
                for (index, label) in mask.labels.iter().enumerate() {
                    if !labels.iter().any(|known| label.matches(known)) {
                        add(
                            &format!("{}.columnLabels[{index}]", mask.field),
                            UNCLASSIFIED.to_owned(),
                        );
                    }
                }
            }
        }
        self.problems
            .extend(problems.into_iter().map(|(file, (at, field, message))| Problem {
                file,
                line: at.line,
                column: at.column,
                field,
                message,
            }));
    }
}

/// What is said of a mask's label that no column has.
pub(crate) const UNCLASSIFIED: &str =
    "no policy of this database classifies a column with such a label; add it to classifications";

/// What policies of one database must agree on, and whether these two do not.
pub(crate) fn disagreements(mine: &Policy, theirs: &Policy) -> [(&'static str, bool); 3] {
    fn differ<T: PartialEq>(mine: &Option<T>, theirs: &Option<T>) -> bool {
        matches!((mine, theirs), (Some(mine), Some(theirs)) if mine != theirs)
    }
    [
        ("spec.database.tls", differ(&mine.tls, &theirs.tls)),
        (
            "spec.database.credentials",
            differ(&mine.credentials, &theirs.credentials),
        ),
        // Plain is what left out means, so Serve of one is Serve of all.
        (
            "spec.database.clientTLS",
            matches!((&mine.client_tls, &theirs.client_tls),
                (ClientTlsSettings::Serve { certificate: mine }, ClientTlsSettings::Serve { certificate: theirs })
                    if mine != theirs),
        ),
    ]
}

pub(crate) fn two_minds(other: &str) -> String {
    format!("differs from policy {other}, which names the same database; say the same in both")
}

fn not_here(kind: &str) -> String {
    if kind == "LineageSink" {
        "LineageSink is read by the operator from the cluster; keep it out of this folder".to_owned()
    } else {
        format!("{kind} is not in this version; leave the document out")
    }
}

pub(crate) fn version(found: Option<&str>, expected: &str, findings: &mut Findings) {
    match found {
        Some(found) if found == expected => {}
        Some(found) => findings.add("apiVersion", format!("is {found}; this version reads {expected}")),
        None => findings.add("apiVersion", format!("is required: {expected}")),
    }
}

fn object_name(value: &Value, findings: &mut Findings) -> (Option<String>, String) {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let letters = |text: &str| {
        text.chars().all(|letter| {
            letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-' || letter == '.'
        }) && !text.starts_with(['-', '.'])
            && !text.ends_with(['-', '.'])
    };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    for (field, text) in [("metadata.namespace", &namespace), ("metadata.name", &name)] {
        if text.as_deref().is_some_and(|text| !letters(text)) {
            findings.add(field, "may hold lower-case letters, digits, `-` and `.` only");
        }
    }
    (namespace, name.unwrap_or_default())
}

/// Standard base64 with padding, as Kubernetes writes Secrets.
fn base64_decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let stem = text.trim_end_matches('=');
    if text.len() - stem.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(stem.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for letter in stem.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 0xff).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

/// Turns one policy's fields into what they mean.
struct Checker<'f> {
    findings: &'f mut Findings,
    namespace: Option<String>,
}

impl Checker<'_> {
    fn policy(
        mut self,
        id: String,
        file: String,
        spec: &crd::DatabaseAccessPolicySpec,
        tls_stated: bool,
    ) -> Policy {
        self.distinct(
            "spec.access",
            "name",
            spec.access.iter().map(|rule| rule.name.as_str()),
        );
        self.distinct(
            "spec.masks",
            "name",
            spec.masks.iter().map(|rule| rule.name.as_str()),
        );
        self.distinct(
            "spec.rowFilters",
            "name",
            spec.row_filters.iter().map(|rule| rule.name.as_str()),
        );
        let labels = spec.classifications.iter().map(|rule| rule.label.as_str());
        self.distinct("spec.classifications", "label", labels);
        self.selector(&spec.pod_selector);
        let tls = self.tls(&spec.database.tls);
        let credentials = self.credentials(&spec.database);
        let client_tls = self.client_tls(&spec.database);
        let target_session = match spec.database.target_session {
            crd::TargetSession::Any => TargetSession::Any,
            crd::TargetSession::ReadWrite => TargetSession::ReadWrite,
        };
        Policy {
            id,
            file,
            namespace: self.namespace.clone(),
            mode: match spec.mode {
                crd::Mode::Enforce => PolicyMode::Enforce,
                crd::Mode::Audit => PolicyMode::Audit,
            },
            endpoints: self.endpoints(&spec.database),
            database: spec.database.name.clone(),
            tls: tls_stated.then_some(tls),
            credentials,
            transport: spec
                .database
                .credentials
                .as_ref()
                .map(|credentials| credentials.transport),
            client_tls,
            capture: self.capture(&spec.database.capture),
            target_session,
            default_action: effect(spec.default_action),
            classifications: self.classifications(&spec.classifications),
            access: self.each("spec.access", &spec.access, Self::access),
            masks: self.each("spec.masks", &spec.masks, Self::mask_rule),
            row_filters: self.each("spec.rowFilters", &spec.row_filters, Self::row_filter),
            guardrails: self.guardrails(spec.guardrails.as_ref()),
            receipt_mode: match spec.receipts.mode {
                crd::ReceiptMode::BestEffort => ReceiptMode::BestEffort,
                crd::ReceiptMode::Durable => ReceiptMode::Durable,
                crd::ReceiptMode::Strict => ReceiptMode::Strict,
            },
        }
    }

    fn distinct<'n>(&mut self, list: &str, key: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = BTreeSet::new();
        for (index, name) in names.enumerate() {
            let field = format!("{list}[{index}].{key}");
            if name.trim() != name || name.chars().any(char::is_control) {
                self.findings.add(
                    &field,
                    "must not begin or end with a blank, or hold control characters",
                );
            }
            if !seen.insert(name) {
                self.findings.add(
                    &field,
                    format!("\"{name}\" is given twice in {list}; names are distinct"),
                );
            }
        }
    }

    fn each<T, R>(&mut self, list: &str, rules: &[T], one: impl Fn(&mut Self, String, &T) -> R) -> Vec<R> {
        let rules = rules.iter().enumerate();
        rules
            .map(|(index, rule)| one(self, format!("{list}[{index}]"), rule))
            .collect()
    }

    /// Parses every text of a list; what does not parse is a problem at its own place.
    fn texts<R>(
        &mut self,
        field: &str,
        texts: &[String],
        parse: impl Fn(&str) -> Result<R, String>,
    ) -> Vec<R> {
        let mut parsed = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match parse(text) {
                Ok(value) => parsed.push(value),
                Err(message) => self
                    .findings
                    .add(&format!("{field}[{index}]"), format!("\"{text}\" {message}")),
            }
        }
        parsed
    }

    fn selector(&mut self, selector: &LabelSelector) {
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let field = format!("spec.podSelector.matchExpressions[{index}]");
            let values = expression
                .values
                .as_ref()
                .is_some_and(|values| !values.is_empty());
            match expression.operator.as_str() {
                "In" | "NotIn" if values => {}
                "In" | "NotIn" => self
                    .findings
                    .add(&field, format!("{} needs values", expression.operator)),
                "Exists" | "DoesNotExist" if !values => {}
                "Exists" | "DoesNotExist" => {
                    self.findings
                        .add(&field, format!("{} takes no values", expression.operator));
                }
                other => {
                    let known = ["In", "NotIn", "Exists", "DoesNotExist"].into_iter();
                    let message = yaml::unknown("value", other, known);
                    self.findings.add(&format!("{field}.operator"), message);
                }
            }
        }
    }

    fn endpoints(&mut self, database: &crd::Database) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        let first = ("spec.database.host".to_owned(), &database.host, database.port);
        let others = database.other_endpoints.iter().enumerate().map(|(index, other)| {
            let field = format!("spec.database.otherEndpoints[{index}].host");
            (field, &other.host, other.port)
        });
        for (field, host, port) in std::iter::once(first).chain(others) {
            match Endpoint::new(host, port) {
                Ok(endpoint) if endpoints.contains(&endpoint) => {
                    self.findings
                        .add(&field, format!("{endpoint} {}", words::NAMED_TWICE));
                }
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.findings.add(&field, format!("\"{host}\" {message}")),
            }
        }
        endpoints
    }

    fn tls(&mut self, tls: &crd::Tls) -> TlsSettings {
        let mode = match tls.mode {
            crd::TlsMode::Disable => TlsMode::Disable,
            crd::TlsMode::Require => TlsMode::Require,
            crd::TlsMode::VerifyCA => TlsMode::VerifyCa,
            crd::TlsMode::VerifyFull => TlsMode::VerifyFull,
        };
        if tls.ca_secret_ref.is_some() && mode < TlsMode::VerifyCa {
            self.findings
                .add("spec.database.tls.caSecretRef", words::CA_NEEDS_VERIFY);
        }
        let ca = tls.ca_secret_ref.as_ref().map(|reference| SecretKey {
            namespace: self.namespace.clone(),
            name: reference.name.clone(),
            key: reference.key.clone(),
        });
        TlsSettings { mode, ca }
    }

    fn credentials(&mut self, database: &crd::Database) -> Option<CredentialSettings> {
        let credentials = database.credentials.as_ref()?;
        let enough = match credentials.transport {
            crd::Transport::VerifiedTLS => database.tls.mode == crd::TlsMode::VerifyFull,
            crd::Transport::AnyTLS => database.tls.mode != crd::TlsMode::Disable,
            crd::Transport::Plaintext => true,
        };
        if !enough {
            self.findings.add("spec.database.credentials", words::TRANSPORT);
        }
        let key = |key: &str| SecretKey {
            namespace: self.namespace.clone(),
            name: credentials.secret_ref.name.clone(),
            key: key.to_owned(),
        };
        Some(CredentialSettings {
            username: key("username"),
            password: key("password"),
        })
    }

    fn client_tls(&mut self, database: &crd::Database) -> ClientTlsSettings {
        let settings = &database.client_tls;
        let field = "spec.database.clientTLS";
        let key = |name: &str, key: &str| SecretKey {
            namespace: self.namespace.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
        };
        match settings.mode {
            crd::ClientTlsMode::Plain => {
                if settings.certificate_secret_ref.is_some() {
                    self.findings.add(
                        &format!("{field}.certificateSecretRef"),
                        words::CERTIFICATE_NEEDS_SERVE,
                    );
                }
                ClientTlsSettings::Plain
            }
            crd::ClientTlsMode::Serve => {
                let certificate =
                    settings
                        .certificate_secret_ref
                        .as_ref()
                        .map(|reference| CertificateSettings {
                            certificate: key(&reference.name, "tls.crt"),
                            key: key(&reference.name, "tls.key"),
                        });
                if database.credentials.is_none() && database.tls.mode != crd::TlsMode::Disable {
                    self.findings.add(field, words::SERVE_NEEDS_CREDENTIALS);
                }
                ClientTlsSettings::Serve { certificate }
            }
        }
    }

    fn capture(&mut self, capture: &crd::Capture) -> CaptureSettings {
        let field = "spec.database.capture.env";
        match (capture.mode, &capture.env) {
            (crd::CaptureMode::Alias, None) => CaptureSettings::Alias,
            (crd::CaptureMode::Alias, Some(_)) => {
                self.findings.add(field, words::ENV_NEEDS_MODE);
                CaptureSettings::Alias
            }
            (crd::CaptureMode::Env, env) => {
                let env = env.clone().unwrap_or_default();
                let mut seen = BTreeSet::new();
                for (list, names) in [
                    ("hostVariables", &env.host_variables),
                    ("portVariables", &env.port_variables),
                    ("urlVariables", &env.url_variables),
                ] {
                    for (index, name) in names.iter().enumerate() {
                        let at = format!("{field}.{list}[{index}]");
                        if name.is_empty() || name.contains(['=', '$']) || name.contains(char::is_whitespace)
                        {
                            let message = format!(
                                "\"{name}\" is not the name of a variable; write it as in the container's env"
                            );
                            self.findings.add(&at, message);
                        } else if !seen.insert(name) {
                            let message =
                                format!("\"{name}\" is named twice; a variable holds one of host, port, URL");
                            self.findings.add(&at, message);
                        }
                    }
                }
                if env.host_variables.is_empty() && env.url_variables.is_empty() {
                    self.findings.add(
                        field,
                        "names no variable that holds the host; mode Env needs hostVariables or urlVariables",
                    );
                }
                CaptureSettings::Env {
                    host_variables: env.host_variables,
                    port_variables: env.port_variables,
                    url_variables: env.url_variables,
                }
            }
        }
    }

    fn classifications(&mut self, rules: &[crd::Classification]) -> Vec<(String, ColumnName, String)> {
        let mut columns = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let label = format!("spec.classifications[{index}].label");
            match Prefix::parse(&rule.label) {
                Err(message) => self.findings.add(&label, message),
                Ok(_) if rule.label.contains('*') => {
                    self.findings
                        .add(&label, "is a name; `*` belongs to columnLabels of a mask");
                }
                Ok(_) => {}
            }
            let field = format!("spec.classifications[{index}].columns");
            for (at, column) in self
                .texts(&field, &rule.columns, names::column_name)
                .into_iter()
                .enumerate()
            {
                columns.push((rule.label.clone(), column, format!("{field}[{at}]")));
            }
        }
        columns
    }

    fn subjects(&mut self, field: &str, subjects: &[crd::SubjectRef]) -> Vec<SubjectPattern> {
        let mut patterns = Vec::new();
        for (index, subject) in subjects.iter().enumerate() {
            let account = subject
                .service_account
                .clone()
                .map(SubjectPattern::ServiceAccount);
            let user = subject.user.clone().map(SubjectPattern::User);
            let group = subject.group.clone().map(SubjectPattern::Group);
            let agent = subject.agent.clone().map(SubjectPattern::Agent);
            let mut given = [account, user, group, agent].into_iter().flatten();
            match (given.next(), given.next()) {
                (Some(pattern), None) => patterns.push(pattern),
                _ => self
                    .findings
                    .add(&format!("{field}[{index}]"), words::ONE_SUBJECT),
            }
        }
        patterns
    }

    fn access(&mut self, field: String, rule: &crd::AccessRule) -> AccessRule {
        let tables = self.texts(&format!("{field}.tables"), &rule.tables, names::table_pattern);
        let columns = self.texts(&format!("{field}.columns"), &rule.columns, names::column_name);
        let mut actions = BTreeSet::new();
        for (index, named) in rule.actions.iter().enumerate() {
            let action = action(*named);
            if !actions.insert(action) {
                self.findings
                    .add(&format!("{field}.actions[{index}]"), "is given twice; keep one");
            }
            let columnar = matches!(action, Action::Select | Action::Insert | Action::Update);
            if !rule.columns.is_empty() && !columnar {
                self.findings
                    .add(&format!("{field}.columns"), words::COLUMNS_NARROW);
            }
        }
        if !tables.is_empty() {
            for (index, column) in columns.iter().enumerate() {
                let table = &column.table;
                if !tables
                    .iter()
                    .any(|pattern| pattern.matches(&table.schema, &table.name))
                {
                    self.findings.add(
                        &format!("{field}.columns[{index}]"),
                        format!("\"{column}\" is of a table that the rule does not name"),
                    );
                }
            }
        }
        AccessRule {
            name: rule.name.clone(),
            effect: effect(rule.effect),
            subjects: self.subjects(&format!("{field}.subjects"), &rule.subjects),
            actions,
            tables,
            columns,
            field,
        }
    }

    fn mask_rule(&mut self, field: String, rule: &crd::MaskRule) -> MaskRule {
        if rule.columns.is_empty() && rule.column_labels.is_empty() {
            self.findings
                .add(&field, "names nothing; it needs columns or columnLabels");
        }
        MaskRule {
            name: rule.name.clone(),
            columns: self.texts(&format!("{field}.columns"), &rule.columns, names::column_name),
            labels: self.texts(
                &format!("{field}.columnLabels"),
                &rule.column_labels,
                Prefix::parse,
            ),
            mask: self.mask(&format!("{field}.mask"), &rule.mask),
            except: self.subjects(&format!("{field}.exceptSubjects"), &rule.except_subjects),
            field,
        }
    }

    fn mask(&mut self, field: &str, mask: &crd::Mask) -> MaskSpec {
        let given = [
            ("value", mask.value.is_some(), crd::MaskType::Constant),
            ("keepFirst", mask.keep_first.is_some(), crd::MaskType::Partial),
            ("keepLast", mask.keep_last.is_some(), crd::MaskType::Partial),
            ("unit", mask.unit.is_some(), crd::MaskType::DateTrunc),
            ("keySecretRef", mask.key_secret_ref.is_some(), crd::MaskType::Hash),
        ];
        for (name, present, owner) in given {
            if present && owner != mask.kind {
                let message = match owner {
                    crd::MaskType::Constant => words::VALUE_OF_CONSTANT,
                    crd::MaskType::DateTrunc => words::UNIT_OF_DATE_TRUNC,
                    crd::MaskType::Hash => words::KEY_OF_HASH,
                    crd::MaskType::Partial | crd::MaskType::Null | crd::MaskType::Email => {
                        words::KEEP_OF_PARTIAL
                    }
                };
                self.findings.add(&format!("{field}.{name}"), message);
            }
        }
        let needs = |findings: &mut Findings, name: &str| {
            findings.add(
                &format!("{field}.{name}"),
                format!("is required by mask {:?}; add it", mask.kind),
            );
            MaskSpec::Null
        };
        match mask.kind {
            crd::MaskType::Null => MaskSpec::Null,
            crd::MaskType::Email => MaskSpec::Email,
            crd::MaskType::Constant => match &mask.value {
                Some(value) => MaskSpec::Constant(value.clone()),
                None => needs(self.findings, "value"),
            },
            crd::MaskType::Partial => match (mask.keep_first, mask.keep_last) {
                (None, None) => needs(self.findings, "keepLast"),
                (first, last) => MaskSpec::Partial {
                    keep_first: first.unwrap_or(0),
                    keep_last: last.unwrap_or(0),
                },
            },
            crd::MaskType::DateTrunc => match mask.unit {
                Some(crd::DateUnit::Year) => MaskSpec::DateTrunc(row_masking::DateUnit::Year),
                Some(crd::DateUnit::Month) => MaskSpec::DateTrunc(row_masking::DateUnit::Month),
                Some(crd::DateUnit::Day) => MaskSpec::DateTrunc(row_masking::DateUnit::Day),
                None => needs(self.findings, "unit"),
            },
            crd::MaskType::Hash => match &mask.key_secret_ref {
                Some(reference) => MaskSpec::Hash(SecretKey {
                    namespace: self.namespace.clone(),
                    name: reference.name.clone(),
                    key: reference.key.clone(),
                }),
                None => needs(self.findings, "keySecretRef"),
            },
        }
    }

    fn row_filter(&mut self, field: String, rule: &crd::RowFilterRule) -> RowFilterRule {
        let tables: Vec<TablePattern> =
            self.texts(&format!("{field}.tables"), &rule.tables, names::table_pattern);
        let predicate = match Predicate::parse(&rule.predicate) {
            Ok(predicate) => predicate,
            Err(message) => {
                self.findings.add(&format!("{field}.predicate"), message);
                Predicate::nothing()
            }
        };
        RowFilterRule {
            name: rule.name.clone(),
            tables,
            predicate,
            except: self.subjects(&format!("{field}.exceptSubjects"), &rule.except_subjects),
            field,
        }
    }

    fn guardrails(&mut self, guardrails: Option<&crd::Guardrails>) -> GuardrailRules {
        let Some(rules) = guardrails else {
            return GuardrailRules::default();
        };
        let field = "spec.guardrails";
        let functions = rules.functions.as_ref().map(|functions| FunctionRules {
            allow: self.texts(
                &format!("{field}.functions.allow"),
                &functions.allow,
                Prefix::parse,
            ),
            deny: self.texts(&format!("{field}.functions.deny"), &functions.deny, Prefix::parse),
            user_defined: functions.user_defined.map(effect),
        });
        let channels = rules
            .channels
            .as_ref()
            .map(|channels| self.texts(&format!("{field}.channels"), channels, Prefix::parse));
        let server = rules.server_access.as_ref();
        GuardrailRules {
            require_where_update: rules.require_where.contains(&crd::WhereAction::Update),
            require_where_delete: rules.require_where.contains(&crd::WhereAction::Delete),
            max_affected_rows: rules.max_affected_rows,
            max_returned_rows: rules.max_returned_rows,
            statement_timeout_seconds: rules.statement_timeout_seconds,
            functions,
            channels,
            files: server.and_then(|server| server.files).map(effect),
            programs: server.and_then(|server| server.programs).map(effect),
        }
    }
}

fn effect(effect: crd::Effect) -> Effect {
    match effect {
        crd::Effect::Allow => Effect::Allow,
        crd::Effect::Deny => Effect::Deny,
    }
}

fn action(action: crd::Action) -> Action {
    match action {
        crd::Action::Select => Action::Select,
        crd::Action::Insert => Action::Insert,
        crd::Action::Update => Action::Update,
        crd::Action::Delete => Action::Delete,
        crd::Action::Truncate => Action::Truncate,
        crd::Action::Ddl => Action::Ddl,
        crd::Action::Call => Action::Call,
        crd::Action::Admin => Action::Admin,
    }
}
