//! One receipt → one OpenLineage run event. Pure.
//!
//! Column lineage in OpenLineage hangs on an output dataset. A read has none, so its result stands as one: dataset type
//! `JOB_OUTPUT`, in the job's namespace and under the job's name. Without it no consumer could show which columns a
//! workload sees.

use std::collections::{BTreeMap, BTreeSet};

use receipts::{
    Action, ActionStart, Body, Deny, Digest, Event, OutcomeStatus, RelationAction, Source, Verdict,
};
use serde_json::{Map, Value, json};

use super::told::Told;

/// Who makes these events.
pub(crate) const PRODUCER: &str = concat!(
    "https://github.com/weir-dev/weir/tree/v",
    env!("CARGO_PKG_VERSION")
);
const RUN_EVENT: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";
/// Weir's own facet, published as `docs/openlineage/WeirReceiptRunFacet.json`.
const RECEIPT_FACET: &str = "https://raw.githubusercontent.com/weir-dev/weir/main/docs/openlineage/WeirReceiptRunFacet.json#/$defs/WeirReceiptRunFacet";

/// The run event of a `db.action` or `db.deny`; `None` for anything else.
pub(crate) fn run_event(told: &Told, job_namespace: Option<&str>) -> Option<Value> {
    let event = told.event.as_deref()?;
    let (start, event_type, end) = match &event.body {
        Body::Action(action) => (&action.start, event_type(action.outcome.status), End::Ran(action)),
        Body::Deny(deny) => (&deny.start, "FAIL", End::Refused(deny)),
        Body::ChainOpen(_)
        | Body::ChainClose(_)
        | Body::SessionOpen(_)
        | Body::SessionClose(_)
        | Body::AuthFail(_)
        | Body::Intent(_)
        | Body::OutcomeUnknown(_)
        | Body::Gap(_)
        | Body::Recovered(_)
        | Body::PolicyChange(_)
        | Body::ChainPeer(_)
        | Body::ChainBind(_) => return None,
    };
    let job = Job::of(told, start, job_namespace);
    let (inputs, outputs) = datasets(&job, start, &end);
    let mut job_facets = Map::new();
    job_facets.insert(
        "jobType".to_owned(),
        facet(
            "https://openlineage.io/spec/facets/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
            json!({"processingType": "BATCH", "integration": "WEIR", "jobType": "QUERY"}),
        ),
    );
    if !start.what.text.is_empty() {
        job_facets.insert(
            "sql".to_owned(),
            facet(
                "https://openlineage.io/spec/facets/1-1-0/SQLJobFacet.json#/$defs/SQLJobFacet",
                json!({"query": start.what.text, "dialect": dialect(start)}),
            ),
        );
    }
    let mut run_facets = Map::new();
    run_facets.insert("weir_receipt".to_owned(), receipt_facet(told, event, start, &end));
    if let Some(message) = end.problem() {
        run_facets.insert(
            "errorMessage".to_owned(),
            facet(
                "https://openlineage.io/spec/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
                json!({"message": message, "programmingLanguage": "SQL"}),
            ),
        );
    }
    Some(json!({
        "eventType": event_type,
        "eventTime": time(event.time_us),
        "producer": PRODUCER,
        "schemaURL": RUN_EVENT,
        "run": {"runId": run_id(event.time_us, &told.leaf), "facets": run_facets},
        "job": {"namespace": job.namespace, "name": job.name, "facets": job_facets},
        "inputs": inputs,
        "outputs": outputs,
    }))
}

enum End<'a> {
    Ran(&'a Action),
    Refused(&'a Deny),
}

impl End<'_> {
    /// What went wrong. No server message: those can hold values.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Ran(action) => {
                let what = match action.outcome.status {
                    OutcomeStatus::Ok | OutcomeStatus::Partial => return None,
                    OutcomeStatus::Error => "the database answered with an error",
                    OutcomeStatus::Stopped => "stopped by Weir",
                    OutcomeStatus::Lost => "the connection to the database was lost",
                };
                Some(match &action.outcome.sqlstate {
                    Some(sqlstate) => format!("{what} (SQLSTATE {sqlstate})"),
                    None => what.to_owned(),
                })
            }
            Self::Refused(deny) => {
                let rule = &deny.start.rule;
                Some(format!(
                    "refused by rule `{}` of policy `{}` ({}, SQLSTATE {})",
                    rule.rule,
                    rule.policy,
                    rule.code.as_deref().unwrap_or("no code"),
                    deny.sqlstate
                ))
            }
        }
    }
}

fn event_type(status: OutcomeStatus) -> &'static str {
    match status {
        OutcomeStatus::Ok | OutcomeStatus::Partial => "COMPLETE",
        OutcomeStatus::Error | OutcomeStatus::Stopped | OutcomeStatus::Lost => "FAIL",
    }
}

/// The same workload and the same statement shape are the same job.
struct Job {
    namespace: String,
    name: String,
}

impl Job {
    fn of(told: &Told, start: &ActionStart, namespace: Option<&str>) -> Self {
        let namespace = match (namespace, &told.pod) {
            (Some(namespace), _) => namespace.to_owned(),
            (None, Some(pod)) => format!("kubernetes://{}", pod.namespace),
            // No pod was proved: a laptop, or a sidecar outside the cluster.
            (None, None) => "weir://unbound".to_owned(),
        };
        let workload = match &told.pod {
            Some(pod) => pod.workload.rsplit('/').next().unwrap_or_default(),
            None => start.who.database_user.value.as_deref().unwrap_or("unknown"),
        };
        let what = &start.what;
        let shape = Digest::of(&[
            b"weir-job-v1\0",
            start.place.endpoint.as_bytes(),
            b"\0",
            start.place.database.as_deref().unwrap_or_default().as_bytes(),
            b"\0",
            what.command.as_bytes(),
            b"\0",
            what.text.as_bytes(),
        ])
        .to_string();
        let command = match what.command.as_str() {
            "" => "statement".to_owned(),
            command => command.to_lowercase().replace(' ', "_"),
        };
        Self {
            name: format!("{workload}.{command}.{}", shape.get(..12).unwrap_or_default()),
            namespace,
        }
    }
}

/// A version 7 UUID of the receipt's time and hash: told again, it is the same run.
fn run_id(time_us: i64, leaf: &Digest) -> String {
    let millis = u64::try_from(time_us / 1000).unwrap_or(0) & 0xffff_ffff_ffff;
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes
        .iter_mut()
        .zip(millis.to_be_bytes().into_iter().skip(2).chain(leaf.0))
    {
        *to = from;
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

fn time(time_us: i64) -> String {
    jiff::Timestamp::from_microsecond(time_us)
        .unwrap_or_default()
        .to_string()
}

fn dialect(start: &ActionStart) -> &'static str {
    match start.place.engine.as_str() {
        "mysql" => "mysql",
        _ => "postgres",
    }
}

fn facet(schema: &str, fields: Value) -> Value {
    let mut facet = Map::new();
    facet.insert("_producer".to_owned(), PRODUCER.into());
    facet.insert("_schemaURL".to_owned(), schema.into());
    if let Value::Object(fields) = fields {
        facet.extend(fields);
    }
    Value::Object(facet)
}

fn receipt_facet(told: &Told, event: &Event, start: &ActionStart, end: &End<'_>) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    put("boot", event.proxy.boot.to_string().into());
    put("seq", event.proxy.seq.into());
    put("logIndex", told.index.into());
    put("verdict", verdict(start.rule.verdict).into());
    put("policy", start.rule.policy.clone().into());
    put("rule", start.rule.rule.clone().into());
    put("code", start.rule.code.clone().into());
    if let Some(pod) = &told.pod {
        put("workload", pod.workload.clone().into());
        put("podUid", pod.uid.clone().into());
    }
    put("databaseUser", start.who.database_user.value.clone().into());
    if let End::Ran(action) = end {
        put("rowsReturned", action.outcome.rows_returned.into());
        put("rowsAffected", action.outcome.rows_affected.into());
        put("durationMicros", action.outcome.duration_us.into());
    }
    facet(RECEIPT_FACET, Value::Object(fields))
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Permit => "Permit",
        Verdict::Refuse => "Refuse",
        Verdict::Hold => "Hold",
        Verdict::Audit => "Audit",
    }
}

/// Naming of databases as OpenLineage's naming page says for PostgreSQL.
fn dataset_names(start: &ActionStart, relation: &str) -> (String, String) {
    let scheme = dialect(start);
    let database = start.place.database.as_deref().unwrap_or("unknown");
    (
        format!("{scheme}://{}", start.place.endpoint),
        format!("{database}.{relation}"),
    )
}

/// A session's own temporary tables are nobody else's data set; the system catalogs are nobody's data.
fn is_dataset(relation: &str) -> bool {
    ["pg_temp.", "pg_catalog.", "pg_toast.", "information_schema."]
        .iter()
        .all(|schema| !relation.starts_with(schema))
}

/// `schema.relation.column` at its last point outside quotes.
fn split_column(column: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut last = None;
    for (at, character) in column.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '.' if !quoted => last = Some(at),
            _ => {}
        }
    }
    column
        .split_at_checked(last?)
        .map(|(relation, column)| (relation, column.get(1..).unwrap_or_default()))
}

type Transformations = BTreeSet<(&'static str, &'static str, bool)>;
/// Input fields of one output field, by data set and column.
type Inputs = BTreeMap<(String, String), Transformations>;

fn add(inputs: &mut Inputs, source: &Source, masked: bool) {
    let Some((relation, column)) = split_column(&source.column) else {
        return;
    };
    if !is_dataset(relation) {
        return;
    }
    let kind = if source.transformation.is_direct() {
        "DIRECT"
    } else {
        "INDIRECT"
    };
    inputs
        .entry((relation.to_owned(), column.to_owned()))
        .or_default()
        .insert((kind, source.transformation.name(), masked && kind == "DIRECT"));
}

fn input_fields(start: &ActionStart, inputs: &Inputs) -> Vec<Value> {
    inputs
        .iter()
        .map(|((relation, column), transformations)| {
            let (namespace, name) = dataset_names(start, relation);
            let transformations: Vec<Value> = transformations
                .iter()
                .map(|(kind, subtype, masking)| {
                    json!({"type": kind, "subtype": subtype, "description": "", "masking": masking})
                })
                .collect();
            json!({"namespace": namespace, "name": name, "field": column, "transformations": transformations})
        })
        .collect()
}

fn datasets(job: &Job, start: &ActionStart, end: &End<'_>) -> (Vec<Value>, Vec<Value>) {
    let what = &start.what;
    let mut inputs: BTreeSet<&str> = BTreeSet::new();
    // Each target with its columns; the result of a read is the one without a name.
    let mut outputs: BTreeMap<Option<&str>, BTreeMap<&str, Inputs>> = BTreeMap::new();
    for relation in what
        .relations
        .iter()
        .filter(|relation| is_dataset(&relation.name))
    {
        match relation.action {
            RelationAction::Select => {
                inputs.insert(&relation.name);
            }
            RelationAction::Insert
            | RelationAction::Update
            | RelationAction::Delete
            | RelationAction::Truncate
            | RelationAction::Ddl => {
                outputs.entry(Some(&relation.name)).or_default();
            }
            RelationAction::Call | RelationAction::Admin => {}
        }
    }
    for column in &what.output {
        let (target, field) = match column.target.as_deref().and_then(split_column) {
            Some((relation, field)) if is_dataset(relation) => (Some(relation), field),
            // Into a temporary table: it stays within the session.
            Some(_) => continue,
            None => (None, column.name.as_str()),
        };
        let fields = outputs.entry(target).or_default().entry(field).or_default();
        for source in &column.sources {
            add(fields, source, column.mask.is_some());
            if let Some((relation, _)) =
                split_column(&source.column).filter(|(relation, _)| is_dataset(relation))
            {
                inputs.insert(relation);
            }
        }
    }
    let mut decides = Inputs::new();
    for source in &what.filters {
        add(&mut decides, source, false);
    }
    let inputs = inputs
        .into_iter()
        .map(|relation| {
            let (namespace, name) = dataset_names(start, relation);
            json!({"namespace": namespace, "name": name})
        })
        .collect();
    let written = outputs.keys().flatten().count();
    let outputs = outputs
        .iter()
        .map(|(target, fields)| {
            let mut facets = Map::new();
            if !fields.is_empty() || !decides.is_empty() {
                let by_field: Map<String, Value> = fields
                    .iter()
                    .map(|(field, inputs)| {
                        ((*field).to_owned(), json!({"inputFields": input_fields(start, inputs)}))
                    })
                    .collect();
                facets.insert(
                    "columnLineage".to_owned(),
                    facet(
                        "https://openlineage.io/spec/facets/1-2-0/ColumnLineageDatasetFacet.json#/$defs/ColumnLineageDatasetFacet",
                        json!({"fields": by_field, "dataset": input_fields(start, &decides)}),
                    ),
                );
            }
            let mut dataset = Map::new();
            match target {
                Some(relation) => {
                    let (namespace, name) = dataset_names(start, relation);
                    dataset.insert("namespace".to_owned(), namespace.into());
                    dataset.insert("name".to_owned(), name.into());
                    if let End::Ran(action) = end
                        && let (Some(rows), 1) = (action.outcome.rows_affected, written)
                    {
                        let statistics = facet(
                            "https://openlineage.io/spec/facets/1-0-2/OutputStatisticsOutputDatasetFacet.json#/$defs/OutputStatisticsOutputDatasetFacet",
                            json!({"rowCount": rows}),
                        );
                        dataset.insert("outputFacets".to_owned(), json!({"outputStatistics": statistics}));
                    }
                }
                None => {
                    dataset.insert("namespace".to_owned(), job.namespace.clone().into());
                    dataset.insert("name".to_owned(), job.name.clone().into());
                    // Only here every column is known; of a table a statement knows those that it names.
                    let columns: Vec<Value> = fields.keys().map(|name| json!({"name": name})).collect();
                    facets.insert(
                        "schema".to_owned(),
                        facet(
                            "https://openlineage.io/spec/facets/1-2-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet",
                            json!({"fields": columns}),
                        ),
                    );
                    facets.insert(
                        "datasetType".to_owned(),
                        facet(
                            "https://openlineage.io/spec/facets/1-0-1/DatasetTypeDatasetFacet.json#/$defs/DatasetTypeDatasetFacet",
                            json!({"datasetType": "JOB_OUTPUT"}),
                        ),
                    );
                }
            }
            dataset.insert("facets".to_owned(), Value::Object(facets));
            Value::Object(dataset)
        })
        .collect();
    (inputs, outputs)
}
