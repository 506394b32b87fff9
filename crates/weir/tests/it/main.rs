//! Spool, collector and `weir` together: what a sidecar records is what `weir` shows and verifies.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests fail loudly"
)]

mod judging;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use access_policy::ReceiptMode;
use receipts::{
    Action, ActionStart, AuthFail, Body, Claim, Deny, Intent, Outcome, OutcomeStatus, OutputColumn, Place,
    RelationAction, RelationUse, Rule, SessionClose, SessionId, SessionOpen, Source, StatementLink,
    Transaction, TransactionState, Transformation, Verdict, What, Who,
};
use sidecar::spool::{Entry, Mark, Spool, SpoolConfig, SpoolRefusal};
use tokio::sync::watch;

/// A collector in this process.
struct Collector {
    url: String,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Collector {
    fn start(dir: &Path, listen: SocketAddr) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (send, ready) = std::sync::mpsc::sync_channel(1);
        let config = collector::Config {
            listen,
            admin: None,
            data_dir: dir.to_owned(),
            operator: None,
            sinks: Vec::new(),
            loopback_sinks: collector::LoopbackSinks::Refused,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let serve = collector::serve(config, move |pages, _| send.send(pages).unwrap(), stopped);
            runtime.block_on(serve).unwrap();
        });
        let address: SocketAddr = ready.recv().unwrap();
        Self {
            url: format!("http://{address}"),
            stop,
            thread: Some(thread),
        }
    }

    fn any(dir: &Path) -> Self {
        Self::start(dir, "127.0.0.1:0".parse().unwrap())
    }

    fn end(mut self) {
        self.stop.send(true).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

const S: SessionId = SessionId([0x1a; 16]);
const TIME_US: i64 = 1_764_036_000_000_000;

fn who() -> Arc<Who> {
    Arc::new(Who {
        workload: Claim::asserted("report-agent"),
        agent: Claim::claimed("reporter"),
        run: Claim::claimed("run-17"),
        database_user: Claim::claimed("shop"),
        ..Who::default()
    })
}

fn place() -> Arc<Place> {
    Arc::new(Place {
        engine: "postgresql".to_owned(),
        endpoint: "orders-db.shop.svc:5432".to_owned(),
        database: Some("orders".to_owned()),
    })
}

fn start(statement: u64, what: What, rule: Rule) -> ActionStart {
    ActionStart {
        statement: StatementLink(statement),
        who: who(),
        place: place(),
        what: Arc::new(what),
        rule: Arc::new(rule),
    }
}

fn rule(rule: &str, verdict: Verdict, code: Option<&str>) -> Rule {
    Rule {
        policy: "orders".to_owned(),
        rule: rule.to_owned(),
        code: code.map(str::to_owned),
        verdict,
        reason: code.map(|_| "no rule allows Select on public.payroll".to_owned()),
    }
}

fn outcome(returned: u64, affected: Option<u64>) -> Outcome {
    Outcome {
        status: OutcomeStatus::Ok,
        rows_returned: returned,
        rows_affected: affected,
        bytes: returned * 20,
        sqlstate: None,
        duration_us: 900,
        first_row_us: None,
        transaction: Some(Transaction {
            number: 1,
            state: TransactionState::Committed,
        }),
    }
}

fn uses(action: RelationAction, name: &str, column: &str) -> RelationUse {
    RelationUse {
        name: name.to_owned(),
        action,
        columns: vec![column.to_owned()],
    }
}

fn output(name: &str, target: Option<&str>, source: &str, mask: Option<&str>) -> OutputColumn {
    OutputColumn {
        name: name.to_owned(),
        target: target.map(str::to_owned),
        sources: vec![Source {
            column: source.to_owned(),
            transformation: Transformation::Identity,
        }],
        mask: mask.map(str::to_owned),
    }
}

/// A short day: a masked read, a refused one, a write out of a temporary table.
fn play(spool: &Spool, mode: ReceiptMode) {
    play_in(spool, mode, S);
}

fn play_in(spool: &Spool, mode: ReceiptMode, session: SessionId) {
    let time = std::cell::Cell::new(TIME_US);
    let entry = |body: Body| {
        time.set(time.get() + 1_000_000);
        Entry {
            time_us: time.get(),
            mono_us: 1,
            session: Some(session),
            body,
        }
    };
    spool.record(
        entry(Body::SessionOpen(SessionOpen {
            who: who(),
            place: place(),
        })),
        None,
        mode,
    );
    let open = spool
        .open_mark(
            Mark {
                session,
                statement: StatementLink(1),
                key: None,
                time_us: TIME_US,
            },
            mode,
        )
        .unwrap();
    let read = What {
        command: "SELECT".to_owned(),
        relations: vec![uses(RelationAction::Select, "public.customers", "email")],
        output: vec![output("email", None, "public.customers.email", Some("Email"))],
        ..What::default()
    }
    .with_text("SELECT email FROM customers WHERE id = $1");
    let action = Action {
        start: start(1, read, rule("read-sales", Verdict::Permit, None)),
        outcome: outcome(3, None),
    };
    spool.record(entry(Body::Action(action)), Some(open), mode);
    let payroll = What {
        command: "SELECT".to_owned(),
        relations: vec![uses(RelationAction::Select, "public.payroll", "salary")],
        ..What::default()
    }
    .with_text("SELECT salary FROM payroll");
    let deny = Deny {
        start: start(
            2,
            payroll,
            rule("defaultAction", Verdict::Refuse, Some("WEIR-010")),
        ),
        sqlstate: "42501".to_owned(),
    };
    spool.record(entry(Body::Deny(deny)), None, mode);
    for (statement, command, text, source, target) in [
        (
            3,
            "CREATE TABLE AS",
            "CREATE TEMP TABLE seen AS SELECT email FROM customers",
            "public.customers.email",
            "pg_temp.seen.email",
        ),
        (
            4,
            "INSERT",
            "INSERT INTO reports (address) SELECT email FROM seen",
            "pg_temp.seen.email",
            "public.reports.address",
        ),
    ] {
        let (relation, column) = target.rsplit_once('.').unwrap();
        let write = What {
            command: command.to_owned(),
            relations: vec![uses(RelationAction::Insert, relation, column)],
            output: vec![output(column, Some(target), source, None)],
            ..What::default()
        }
        .with_text(text);
        let start = start(statement, write, rule("write-reports", Verdict::Permit, None));
        let pending = spool
            .intent(entry(Body::Intent(Intent { start: start.clone() })), mode)
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let open = runtime.block_on(pending.wait()).unwrap();
        spool.record(
            entry(Body::Action(Action {
                start,
                outcome: outcome(0, Some(3)),
            })),
            Some(open),
            mode,
        );
    }
    spool.record(
        entry(Body::SessionClose(SessionClose {
            reason: "client".to_owned(),
            statements: 4,
        })),
        None,
        mode,
    );
}

fn weir(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(arguments)
        .env_remove("WEIR_COLLECTOR")
        .env_remove("WEIR_DATA_DIR")
        .env_remove("WEIR_SPOOL_DIR")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn ends(arguments: &[&str], code: i32) -> String {
    let output = weir(arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "weir {arguments:?}\n{text}");
    text
}

fn spool(dir: &Path, collector: Option<&str>) -> Spool {
    let mut config = SpoolConfig::new(dir);
    config.collector = collector.map(str::to_owned);
    Spool::open(config).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// What `weir audit` shows of [`play`].
const AUDIT: &str = include_str!("audit.txt");

#[test]
fn without_a_collector_the_spool_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let running = spool(dir.path(), None);
    play(&running, ReceiptMode::Durable);
    running.flush();
    // While the sidecar runs.
    assert!(ends(&["verify", "--spool-dir", path], 0).contains("1 processes go on recording"));
    running.close("test", soon());
    drop(running);
    let audit = ends(&["audit", "--spool-dir", path], 0);
    let shown: Vec<&str> = audit.lines().map(str::trim_end).collect();
    assert_eq!(shown, AUDIT.lines().collect::<Vec<_>>(), "{audit}");
    let refused = ends(
        &["audit", "--spool-dir", path, "--verdict", "refuse", "--json"],
        0,
    );
    let rows: Vec<serde_json::Value> = serde_json::from_str(&refused).unwrap();
    assert_eq!((rows.len(), rows[0]["code"].as_str()), (1, Some("WEIR-010")));
    assert!(
        ends(
            &[
                "audit",
                "--spool-dir",
                path,
                "--object",
                "reports",
                "--since",
                "2025-11-25"
            ],
            0
        )
        .contains("1 receipts")
    );
    assert!(ends(&["audit", "--spool-dir", path, "--since", "2025-11-26"], 0).contains("no receipts"));
    let lineage = ends(&["lineage", "reports", "--spool-dir", path, "--upstream"], 0);
    assert!(
        lineage.contains("public.customers.email") && lineage.contains("session:1a1a1a1a/pg_temp.seen.email"),
        "{lineage}"
    );
    let verdict = ends(&["verify", "--spool-dir", path], 0);
    assert!(
        verdict.contains("INTEGRITY     ok") && verdict.contains("COMPLETENESS  complete"),
        "{verdict}"
    );
    ends(&["status", "--spool-dir", path], 0);

    // A segment with a byte changed, one that ends too early, none at all.
    let (_, segment) = sidecar::spool::segments(dir.path()).unwrap().remove(0);
    let bytes = std::fs::read(&segment).unwrap();
    let mut altered = bytes.clone();
    altered[bytes.len() / 2] ^= 1;
    std::fs::write(&segment, altered).unwrap();
    assert!(ends(&["verify", "--spool-dir", path], 1).contains("INTEGRITY     INVALID"));
    std::fs::write(&segment, &bytes[..bytes.len() - 10]).unwrap();
    assert!(ends(&["verify", "--spool-dir", path], 2).contains("COMPLETENESS  INCOMPLETE"));
    std::fs::remove_file(&segment).unwrap();
    ends(&["verify", "--spool-dir", path], 3);
    ends(&["audit", "--spool-dir", "/nowhere/at/all"], 3);
    ends(&["audit", "--since", "yesterday", "--spool-dir", path], 3);
}

#[test]
fn with_a_collector_everything_is_delivered_proved_and_let_go() {
    let (log, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Collector::any(log.path());
    let url = collector.url.clone();
    let running = spool(dir.path(), Some(&url));
    // Strict: each intent waits until the collector has it.
    play(&running, ReceiptMode::Strict);
    running.close("test", soon());
    let status = running.status();
    assert_eq!((status.delivered, status.delivery_error), (status.signed, None));
    assert!(status.seen_head.is_some());
    drop(running);
    let audit = ends(&["audit", "--collector", &url], 0);
    assert!(audit.contains("4 receipts"), "{audit}");
    assert!(ends(&["lineage", "reports", "--collector", &url], 0).contains("public.customers.email"));
    let verdict = ends(&["verify", "--collector", &url], 0);
    assert!(verdict.contains("give --log-key"), "{verdict}");
    let status: serde_json::Value =
        serde_json::from_str(&ends(&["status", "--collector", &url, "--json"], 0)).unwrap();
    let key = status["log_key"].as_str().unwrap().to_owned();
    assert!(ends(&["verify", "--collector", &url, "--log-key", &key], 0).contains("(as given)"));

    // An exported part is checked without anybody's help.
    let file = log.path().join("part.weir");
    let part = file.to_str().unwrap();
    ends(
        &["export", "--collector", &url, "--from", "0", "--to", "5", part],
        0,
    );
    ends(&["verify", part, "--log-key", &key], 0);
    ends(
        &[
            "export",
            "--collector",
            &url,
            "--from",
            "2025-11-25T02:00:00Z",
            "--to",
            "2025-11-25T02:00:05Z",
            part,
        ],
        0,
    );
    ends(&["verify", part], 0);
    let exported = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, exported.replacen("customers", "Customers", 1)).unwrap();
    assert!(ends(&["verify", part], 1).contains("index"));
    std::fs::write(
        &file,
        exported
            .lines()
            .take(1)
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
    .unwrap();
    let cut = weir(&["verify", part]);
    assert_ne!(cut.status.code(), Some(0), "{}", text(&cut));
    std::fs::write(&file, "something else").unwrap();
    ends(&["verify", part], 3);

    // One receipt stands alone.
    ends(&["export", "--collector", &url, "--receipt", "3", part], 0);
    ends(&["verify", part], 0);
    let receipt = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, receipt.replacen("report", "repork", 1)).unwrap();
    ends(&["verify", part], 1);

    // The same questions to the collector's folder, while it runs and after.
    let data = log.path().to_str().unwrap();
    assert_eq!(ends(&["audit", "--data-dir", data], 0), audit);
    ends(&["verify", "--data-dir", data], 0);
    ends(&["index", "rebuild", "--data-dir", data], 3);
    collector.end();
    ends(&["verify", "--data-dir", data, "--log-key", &key], 0);
    ends(&["index", "check", "--data-dir", data], 0);
    // Somebody takes a line out of the index: the log still knows.
    std::fs::write(log.path().join("index.sqlite"), b"").unwrap();
    assert_ne!(
        weir(&["index", "check", "--data-dir", data]).status.code(),
        Some(0)
    );
    ends(&["index", "rebuild", "--data-dir", data], 0);
    ends(&["index", "check", "--data-dir", data], 0);
    assert_eq!(ends(&["audit", "--data-dir", data], 0), audit);
    ends(&["export", "--data-dir", data, part], 0);
    ends(&["verify", part], 0);
    ends(&["audit", "--collector", &url], 3);
}

/// The collector is away at first, then comes, then is replaced by another one: the spool waits, delivers, and lets
/// nothing go to a log that is not the one it knows.
#[test]
fn delivery_waits_for_its_collector_and_for_no_other() {
    let (log, other, dir) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let first = Collector::any(log.path());
    let (url, address) = (
        first.url.clone(),
        first
            .url
            .trim_start_matches("http://")
            .parse::<SocketAddr>()
            .unwrap(),
    );
    first.end();
    let running = spool(dir.path(), Some(&url));
    play(&running, ReceiptMode::Durable);
    running.flush();
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = soon();
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: {:?}", running.status());
            std::thread::yield_now();
        }
    };
    until("the failure shows", &|| running.status().delivery_error.is_some());
    let first = Collector::start(log.path(), address);
    until("all is delivered", &|| {
        running.status().delivered == running.status().signed
    });
    first.end();
    let impostor = Collector::start(other.path(), address);
    let body = Body::AuthFail(AuthFail {
        who: who(),
        place: place(),
        sqlstate: Some("28P01".to_owned()),
        reason: "the server refused the password".to_owned(),
    });
    let entry = Entry {
        time_us: TIME_US,
        mono_us: 2,
        session: None,
        body,
    };
    running.record(entry, None, ReceiptMode::Durable);
    running.flush();
    until("the impostor is noticed", &|| {
        running
            .status()
            .delivery_error
            .is_some_and(|error| !error.contains("reached"))
    });
    assert!(running.status().delivered < running.status().signed);
    impostor.end();
    let first = Collector::start(log.path(), address);
    until("the rest is delivered", &|| {
        running.status().delivered == running.status().signed
    });
    running.close("test", soon());
    drop(running);
    ends(&["verify", "--collector", &url], 0);
    first.end();
}

/// A byte of a segment changes before it is delivered: what is behind it is lost, once, and the log says so.
#[test]
fn a_damaged_segment_is_told_once() {
    let (log, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Collector::any(log.path());
    let (url, address) = (
        first.url.clone(),
        first
            .url
            .trim_start_matches("http://")
            .parse::<SocketAddr>()
            .unwrap(),
    );
    first.end();
    let running = spool(dir.path(), Some(&url));
    play(&running, ReceiptMode::Durable);
    running.flush();
    let (_, segment) = sidecar::spool::segments(dir.path()).unwrap().remove(0);
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // In place: the sidecar goes on appending to this file.
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&segment).unwrap(),
        &bytes[middle..=middle],
        middle as u64,
    )
    .unwrap();
    let collector = Collector::start(log.path(), address);
    let deadline = soon();
    // The gap is recorded behind the damage, in the same segment: it arrives with the next start.
    while running.status().delivered == 0 || running.status().signed < 10 {
        assert!(Instant::now() < deadline, "{:?}", running.status());
        std::thread::yield_now();
    }
    let events = running.status().events;
    running.close("test", soon());
    drop(running);
    assert!(events <= 10, "one gap event, not one for each look: {events}");
    let running = spool(dir.path(), Some(&url));
    running.close("test", soon());
    drop(running);
    ends(&["verify", "--collector", &url], 2);
    collector.end();
}

/// `Strict` with the collector away: the statement is refused, and what it announced is told of.
#[test]
fn strict_is_refused_while_the_collector_is_away() {
    let (log, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Collector::any(log.path());
    let url = collector.url.clone();
    collector.end();
    let running = spool(dir.path(), Some(&url));
    let what = What {
        command: "UPDATE".to_owned(),
        ..What::default()
    };
    let intent = Body::Intent(Intent {
        start: start(1, what, rule("r", Verdict::Permit, None)),
    });
    let pending = running
        .intent(
            Entry {
                time_us: TIME_US,
                mono_us: 1,
                session: Some(S),
                body: intent,
            },
            ReceiptMode::Strict,
        )
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    assert_eq!(
        runtime.block_on(pending.wait()).unwrap_err(),
        SpoolRefusal::NotAcknowledged
    );
}

/// Delivered segments are deleted, and not before.
#[test]
fn delivered_segments_go() {
    let (log, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Collector::any(log.path());
    let mut config = SpoolConfig::new(dir.path());
    config.collector = Some(collector.url.clone());
    config.segment_bytes = 4 * 1024;
    let running = Spool::open(config).unwrap();
    for number in 0..30 {
        play_in(&running, ReceiptMode::Durable, SessionId([number; 16]));
    }
    running.flush();
    let deadline = soon();
    while sidecar::spool::segments(dir.path()).unwrap().len() > 1
        || running.status().delivered < running.status().signed
    {
        assert!(Instant::now() < deadline, "{:?}", running.status());
        std::thread::yield_now();
    }
    running.close("test", soon());
    drop(running);
    let path = dir.path().to_str().unwrap();
    ends(&["verify", "--spool-dir", path], 0);
    let verdict = weir(&["verify", "--collector", &collector.url]);
    assert_eq!(verdict.status.code(), Some(0), "{}", text(&verdict));
    collector.end();
}
