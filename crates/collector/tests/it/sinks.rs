//! Sinks through the real process. The OpenLineage endpoint is a small server of ours: the published schemas are the
//! judge of what is sent, and a server of ours can fail, stall and come back on command.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use receipts::{
    Body, Deny, Outcome, OutcomeStatus, RelationAction, Source, Transaction, TransactionState,
    Transformation, Verdict,
};
use serde_json::{Value, json};
use test_support::{Process, Signal, wait_for};

use crate::{Sidecar, action, output, server, session};

/// Takes what is posted while its status is 2xx.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) events: Arc<Mutex<Vec<Value>>>,
    pub(crate) status: Arc<AtomicU16>,
    /// Requests that were refused.
    pub(crate) refused: Arc<Mutex<Vec<Value>>>,
}

impl Endpoint {
    pub(crate) fn start() -> Self {
        let (send, address) = std::sync::mpsc::sync_channel(1);
        let endpoint = Self {
            url: String::new(),
            events: Arc::default(),
            status: Arc::new(AtomicU16::new(200)),
            refused: Arc::default(),
        };
        let state = endpoint.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                    send.send(listener.local_addr().unwrap()).unwrap();
                    let router = axum::Router::new()
                        .route("/api/v1/lineage", post(take))
                        .with_state(state);
                    axum::serve(listener, router).await.unwrap();
                });
        });
        Self {
            url: format!("http://{}/api/v1/lineage", address.recv().unwrap()),
            ..endpoint
        }
    }

    pub(crate) fn all(&self) -> Vec<Value> {
        self.events.lock().unwrap().clone()
    }

    /// Numbers of the receipts, in the order in which they came.
    pub(crate) fn seqs(&self) -> Vec<u64> {
        self.all().iter().map(seq).collect()
    }
}

fn seq(event: &Value) -> u64 {
    event["run"]["facets"]["weir_receipt"]["seq"].as_u64().unwrap()
}

async fn take(State(endpoint): State<Endpoint>, axum::Json(event): axum::Json<Value>) -> StatusCode {
    let status = StatusCode::from_u16(endpoint.status.load(Ordering::SeqCst)).unwrap();
    // Bad for good, whatever else the status is.
    if event["run"]["facets"]["errorMessage"].is_object() && status == StatusCode::ACCEPTED {
        endpoint.refused.lock().unwrap().push(event);
        return StatusCode::UNPROCESSABLE_ENTITY;
    }
    if status.is_success() {
        endpoint.events.lock().unwrap().push(event);
    } else {
        endpoint.refused.lock().unwrap().push(event);
    }
    status
}

struct Collector {
    process: Process,
    address: String,
}

impl Collector {
    fn start(dir: &Path, sinks: &str) -> Self {
        Self::start_with(dir, sinks, &["--allow-loopback-sinks"])
    }

    fn start_with(dir: &Path, sinks: &str, more: &[&str]) -> Self {
        let file = dir.join("sinks.yaml");
        std::fs::write(&file, sinks).unwrap();
        let log = dir.join("output");
        let before = std::fs::read_to_string(&log).unwrap_or_default().len();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-collector"));
        command
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.join("data"))
            .arg("--sinks-file")
            .arg(file)
            .args(more);
        let process = Process::start(command, &log, Signal::Kill).unwrap();
        let address = wait_for("the collector's address", 30, || {
            process.log().get(before..)?.lines().find_map(|line| {
                Some(
                    line.strip_prefix("weir-collector listens on ")?
                        .split(',')
                        .next()?
                        .to_owned(),
                )
            })
        })
        .unwrap();
        Self { process, address }
    }

    /// Lines of a stdout sink.
    fn lines(&self, sink: &str) -> Vec<Value> {
        self.process
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["sink"] == sink)
            .collect()
    }

    fn metrics(&self) -> String {
        server::get(&self.address, "/metrics")
    }
}

fn manifest(name: &str, spec: &Value) -> String {
    let manifest = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink", "metadata": {"name": name}, "spec": spec,
    });
    // JSON is YAML.
    format!("---\n{manifest}\n")
}

fn open_lineage(name: &str, url: &str) -> String {
    manifest(name, &json!({"openLineage": {"url": url, "timeoutSeconds": 1}}))
}

/// A read with a mask and a filter, a write, an error, a refusal.
fn four(sidecar: &mut Sidecar) -> receipts::SignedGroup {
    let mut read = sidecar.start(
        "SELECT",
        vec![(RelationAction::Select, "public.customers", "email")],
        vec![output("email", None, "public.customers.email", Some("Email"))],
    );
    let what = Arc::make_mut(&mut read.what);
    what.filters.push(Source {
        column: "public.customers.id".to_owned(),
        transformation: Transformation::Filter,
    });
    let write = sidecar.start(
        "INSERT",
        vec![
            (RelationAction::Insert, "public.orders", "note"),
            (RelationAction::Select, "public.customers", "name"),
        ],
        vec![output(
            "note",
            Some("public.orders.note"),
            "public.customers.name",
            None,
        )],
    );
    let error = sidecar.start(
        "UPDATE",
        vec![(RelationAction::Update, "public.orders", "note")],
        vec![],
    );
    let mut refused = sidecar.start(
        "DELETE",
        vec![(RelationAction::Delete, "ward.\"Person\"", "*")],
        vec![],
    );
    let rule = Arc::make_mut(&mut refused.rule);
    rule.verdict = Verdict::Refuse;
    rule.code = Some("WEIR-001".to_owned());
    rule.reason = Some("no rule allows it".to_owned());
    let outcome = |status, sqlstate: Option<&str>| Outcome {
        status,
        rows_returned: 0,
        rows_affected: Some(3),
        bytes: 0,
        sqlstate: sqlstate.map(str::to_owned),
        duration_us: 5,
        first_row_us: None,
        transaction: Some(Transaction {
            number: 2,
            state: TransactionState::Committed,
        }),
    };
    sidecar.group(vec![
        (Some(session()), action(read, None)),
        (
            Some(session()),
            Body::Action(receipts::Action {
                start: write,
                outcome: outcome(OutcomeStatus::Ok, None),
            }),
        ),
        (
            Some(session()),
            Body::Action(receipts::Action {
                start: error,
                outcome: outcome(OutcomeStatus::Error, Some("23505")),
            }),
        ),
        (
            Some(session()),
            Body::Deny(Deny {
                start: refused,
                sqlstate: "42501".to_owned(),
            }),
        ),
    ])
}

/// Everything that is published, by its URL.
fn check_against_schemas(event: &Value) {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openlineage/WeirReceiptRunFacet.json");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(schemas)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.push(ours);
    let mut registry = jsonschema::Registry::new();
    for path in paths {
        let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let id = schema["$id"].as_str().unwrap().to_owned();
        registry = registry.add(id, schema).unwrap();
    }
    let registry = registry.prepare().unwrap();
    let check = |url: &str, value: &Value| {
        let validator = jsonschema::options()
            .with_registry(&registry)
            .should_validate_formats(true)
            .build(&json!({"$ref": url}))
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        if let Err(error) = validator.validate(value) {
            panic!("{url}: {error}\n{value:#}");
        }
    };
    check(event["schemaURL"].as_str().unwrap(), event);
    let mut holders = vec![&event["run"]["facets"], &event["job"]["facets"]];
    for dataset in event["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .chain(event["outputs"].as_array().unwrap())
    {
        holders.extend([
            &dataset["facets"],
            &dataset["outputFacets"],
            &dataset["inputFacets"],
        ]);
    }
    for facet in holders
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|facets| facets.values())
    {
        check(facet["_schemaURL"].as_str().unwrap(), facet);
    }
}

#[test]
fn run_events_hold_against_the_published_schemas() {
    let (dir, endpoint) = (tempfile::tempdir().unwrap(), Endpoint::start());
    let collector = Collector::start(dir.path(), &open_lineage("marquez", &endpoint.url));
    wait_for_cursor(dir.path());
    let mut sidecar = Sidecar::new(1);
    server::accepted(&collector.address, &[sidecar.open(), four(&mut sidecar)]);
    wait_for("four run events", 20, || {
        (endpoint.all().len() == 4).then_some(())
    })
    .unwrap();
    let events = endpoint.all();
    events.iter().for_each(check_against_schemas);
    let [read, write, error, refused] = events.as_slice() else {
        panic!("{events:#?}")
    };
    assert_eq!(read["eventType"], "COMPLETE");
    assert_eq!(
        read["inputs"],
        json!([{"namespace": "postgres://db:5432", "name": "orders.public.customers"}])
    );
    let result = &read["outputs"][0];
    assert_eq!(result["name"], read["job"]["name"]);
    assert_eq!(result["facets"]["datasetType"]["datasetType"], "JOB_OUTPUT");
    assert_eq!(
        result["facets"]["columnLineage"]["fields"]["email"]["inputFields"],
        json!([{"namespace": "postgres://db:5432", "name": "orders.public.customers", "field": "email",
                "transformations": [{"type": "DIRECT", "subtype": "IDENTITY", "description": "", "masking": true}]}])
    );
    let decides = &result["facets"]["columnLineage"]["dataset"][0];
    assert_eq!(decides["field"], "id");
    assert_eq!(decides["transformations"][0]["type"], "INDIRECT");
    assert_eq!(write["outputs"][0]["name"], "orders.public.orders");
    assert_eq!(
        write["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"],
        3
    );
    let sources = &write["outputs"][0]["facets"]["columnLineage"]["fields"]["note"]["inputFields"];
    assert_eq!(sources[0]["transformations"][0]["masking"], false);
    assert_eq!(error["eventType"], "FAIL");
    assert!(
        error["run"]["facets"]["errorMessage"]["message"]
            .as_str()
            .unwrap()
            .contains("23505")
    );
    assert_eq!(refused["eventType"], "FAIL");
    assert_eq!(refused["run"]["facets"]["weir_receipt"]["verdict"], "Refuse");
    assert_eq!(refused["outputs"][0]["name"], "orders.ward.\"Person\"");
    let runs: BTreeSet<&str> = events
        .iter()
        .map(|event| event["run"]["runId"].as_str().unwrap())
        .collect();
    assert_eq!(runs.len(), 4);
    assert_ne!(read["job"]["name"], write["job"]["name"]);
    wait_for("the metrics", 10, || {
        let metrics = collector.metrics();
        (metrics.contains("weir_sink_delivered_total{kind=\"OpenLineage\"} 4")
            && metrics.contains("weir_sink_lag{sink=\"/marquez\"} 0"))
        .then_some(())
    })
    .unwrap();
}

fn cursors(dir: &Path) -> Vec<Value> {
    std::fs::read_dir(dir.join("data/sinks"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
        .filter(|value: &Value| value["next"].is_u64())
        .collect()
}

fn wait_for_cursor(dir: &Path) {
    wait_for("the sink's first cursor", 20, || {
        (!cursors(dir).is_empty()).then_some(())
    })
    .unwrap();
}

/// A new sink begins at the end; killed between delivery and save it is told again, and nothing is left out.
#[test]
fn kill_9_leaves_nothing_out_and_keeps_the_order() {
    let (dir, endpoint) = (tempfile::tempdir().unwrap(), Endpoint::start());
    let mut sidecar = Sidecar::new(1);
    let plain = Collector::start(dir.path(), "");
    server::accepted(&plain.address, &[sidecar.open(), sidecar.reads(5)]);
    drop(plain);
    let sinks = open_lineage("marquez", &endpoint.url);
    let first = 7; // `chain.open`, `session.open`, five reads: before the sink was made
    let mut next = first;
    for round in 0..6 {
        let collector = Collector::start(dir.path(), &sinks);
        wait_for_cursor(dir.path());
        for _ in 0..10 {
            server::accepted(&collector.address, &[sidecar.reads(4)]);
            next += 4;
        }
        // Killed while it delivers: somewhere between the acknowledgement and the cursor.
        let reached = first + 40 * round + 5;
        wait_for("some deliveries", 20, || {
            endpoint.seqs().iter().any(|seq| *seq >= reached).then_some(())
        })
        .unwrap();
        drop(collector);
    }
    let _collector = Collector::start(dir.path(), &sinks);
    wait_for("everything", 30, || {
        (endpoint.seqs().last() == Some(&(next - 1))).then_some(())
    })
    .unwrap();
    let seqs = endpoint.seqs();
    let mut seen = first;
    for seq in &seqs {
        assert!(*seq <= seen, "{seq} came before {seen}: {seqs:?}");
        assert!(*seq >= first, "told of what was before the sink: {seq}");
        seen = seen.max(seq + 1);
    }
    assert_eq!(seen, next);
    let runs = |seq_wanted: u64| -> BTreeSet<String> {
        endpoint
            .all()
            .iter()
            .filter(|event| seq(event) == seq_wanted)
            .map(|event| event["run"]["runId"].to_string())
            .collect()
    };
    // Told twice it is the same run.
    assert!((first..next).all(|seq| runs(seq).len() == 1));
}

/// One endpoint that is down, one that stands still, one sink on standard output: each for itself; ingest for all.
#[test]
fn sinks_do_not_wait_for_each_other() {
    let (dir, down) = (tempfile::tempdir().unwrap(), Endpoint::start());
    down.status.store(503, Ordering::SeqCst);
    // Takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}/", silent.local_addr().unwrap());
    let sinks = [
        open_lineage("down", &down.url),
        open_lineage("silent", &silent_url),
        manifest("lines", &json!({"stdout": {}})),
        manifest(
            "refusals",
            &json!({"stdout": {}, "filter": {"tables": ["ward.*"], "verdicts": ["Refuse"]}}),
        ),
        // Bound to a namespace: in this form nobody proves one, so it hears of nothing.
        manifest("lines", &json!({"stdout": {}}))
            .replace("\"metadata\":{", "\"metadata\":{\"namespace\":\"shop\","),
    ]
    .concat();
    let collector = Collector::start(dir.path(), &sinks);
    wait_for("five cursors", 20, || {
        (cursors(dir.path()).len() == 5).then_some(())
    })
    .unwrap();
    let mut sidecar = Sidecar::new(1);
    server::accepted(&collector.address, &[sidecar.open(), four(&mut sidecar)]);
    wait_for("lines", 10, || {
        (collector.lines("/lines").len() == 6).then_some(())
    })
    .unwrap();
    let lines = collector.lines("/lines");
    assert_eq!(lines[0]["event"]["kind"], "chain.open");
    assert_eq!(lines[5]["event"]["kind"], "db.deny");
    wait_for("the refusal", 10, || {
        (collector.lines("/refusals").len() == 1).then_some(())
    })
    .unwrap();
    wait_for("tries", 10, || {
        (down.refused.lock().unwrap().len() >= 2).then_some(())
    })
    .unwrap();
    assert!(down.all().is_empty());
    assert!(collector.metrics().contains("weir_sink_lag{sink=\"/down\"} 6"));
    server::accepted(&collector.address, &[sidecar.reads(3)]);
    down.status.store(201, Ordering::SeqCst);
    wait_for("it comes back", 30, || (down.all().len() == 7).then_some(())).unwrap();
    assert_eq!(down.seqs(), (2..9).collect::<Vec<u64>>(), "in order, each once");
    assert!(collector.lines("shop/lines").is_empty());
}

/// What the endpoint calls bad for good is left out after three tries, and told.
#[test]
fn a_bad_event_does_not_stand_in_the_way() {
    let (dir, endpoint) = (tempfile::tempdir().unwrap(), Endpoint::start());
    endpoint.status.store(202, Ordering::SeqCst);
    let collector = Collector::start(dir.path(), &open_lineage("picky", &endpoint.url));
    wait_for_cursor(dir.path());
    let mut sidecar = Sidecar::new(1);
    server::accepted(
        &collector.address,
        &[sidecar.open(), four(&mut sidecar), sidecar.reads(1)],
    );
    wait_for("what comes after", 40, || {
        (endpoint.all().len() == 3).then_some(())
    })
    .unwrap();
    assert_eq!(endpoint.seqs(), [2, 3, 6]);
    assert_eq!(endpoint.refused.lock().unwrap().len(), 6, "three tries each");
    assert!(collector.process.log().contains("an event was left out"));
    wait_for("the cursor", 10, || {
        cursors(dir.path())
            .first()
            .filter(|cursor| cursor["delivered"] == 3)
            .cloned()
    })
    .unwrap();
}

#[test]
fn a_sink_cannot_lead_to_this_machine() {
    let (dir, endpoint) = (tempfile::tempdir().unwrap(), Endpoint::start());
    let sinks = open_lineage("local", &endpoint.url.replace("127.0.0.1", "localhost"));
    let collector = Collector::start_with(dir.path(), &sinks, &[]);
    wait_for_cursor(dir.path());
    let mut sidecar = Sidecar::new(1);
    server::accepted(&collector.address, &[sidecar.open(), sidecar.reads(1)]);
    wait_for("a failure", 10, || {
        cursors(dir.path())
            .first()
            .filter(|cursor| cursor["failed"].as_u64() >= Some(2))
            .cloned()
    })
    .unwrap();
    assert!(endpoint.all().is_empty() && endpoint.refused.lock().unwrap().is_empty());
}

#[test]
fn a_file_of_sinks_is_read_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sinks.yaml");
    let problem = |text: &str| {
        std::fs::write(&path, text).unwrap();
        collector::read_sinks_file(&path).unwrap_err()
    };
    let with = |spec: Value| problem(&manifest("one", &spec));
    assert!(
        with(json!({"stdout": {}, "filter": {"table": ["a.b"]}}))
            .contains("unknown field `spec.filter.table`")
    );
    assert!(
        with(json!({"openLineage": {"url": "http://x", "tokenSecretRef": {"name": "a", "key": "b"}}}))
            .contains("operator")
    );
    let one = manifest("one", &json!({"stdout": {}}));
    assert!(problem(&format!("{one}{one}")).contains("twice"));
    assert!(problem(&one.replace("LineageSink", "Pod")).contains("not a LineageSink"));
}
