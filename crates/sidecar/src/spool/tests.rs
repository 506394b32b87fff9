//! The spool on real files: order, recovery after `kill -9`, torn ends, full disks.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use receipts::{
    Action, ActionStart, Completeness, HoleKind, Integrity, Intent, Outcome, OutcomeStatus, Place, Rule,
    SessionClose, SessionOpen, StatementLink, Verdict, What, Who,
};

use super::*;

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn start(statement: u64) -> ActionStart {
    ActionStart {
        statement: StatementLink(statement),
        who: Arc::new(Who {
            agent: Claim::claimed("agent"),
            ..Who::default()
        }),
        place: Arc::new(Place {
            engine: "postgresql".to_owned(),
            endpoint: "db:5432".to_owned(),
            database: None,
        }),
        what: Arc::new(
            What {
                command: "UPDATE".to_owned(),
                ..What::default()
            }
            .with_text("UPDATE t SET a = $1"),
        ),
        rule: Arc::new(Rule {
            policy: "p".to_owned(),
            rule: "r".to_owned(),
            code: None,
            verdict: Verdict::Permit,
            reason: None,
        }),
    }
}

fn entry(spool: &Spool, session: SessionId, body: Body) -> Entry {
    let (time_us, mono_us) = spool.now();
    Entry {
        time_us,
        mono_us,
        session: Some(session),
        body,
    }
}

fn opened(spool: &Spool, id: SessionId) {
    let open = SessionOpen {
        who: start(0).who,
        place: start(0).place,
    };
    spool.record(
        entry(spool, id, Body::SessionOpen(open)),
        None,
        ReceiptMode::Durable,
    );
}

fn closed(spool: &Spool, id: SessionId) {
    let close = SessionClose {
        reason: "client".to_owned(),
        statements: 1,
    };
    spool.record(
        entry(spool, id, Body::SessionClose(close)),
        None,
        ReceiptMode::Durable,
    );
}

fn outcome(statement: u64) -> Body {
    Body::Action(Action {
        start: start(statement),
        outcome: Outcome {
            status: OutcomeStatus::Ok,
            rows_returned: 1,
            rows_affected: None,
            bytes: 10,
            sqlstate: None,
            duration_us: 5,
            first_row_us: None,
            transaction: None,
        },
    })
}

fn mark(spool: &Spool, id: SessionId, statement: u64) -> Result<OpenStatement, SpoolRefusal> {
    let mark = Mark {
        session: id,
        statement: StatementLink(statement),
        key: None,
        time_us: spool.now().0,
    };
    spool.open_mark(mark, ReceiptMode::Durable)
}

fn intent(spool: &Spool, id: SessionId, statement: u64) -> Result<OpenStatement, SpoolRefusal> {
    let body = Body::Intent(Intent {
        start: start(statement),
    });
    let pending = spool.intent(entry(spool, id, body), ReceiptMode::Durable)?;
    block_on(pending.wait())
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn in_order(spool: &Spool) {
    spool.close("test", Instant::now());
}

#[test]
fn an_orderly_life_is_whole_and_the_folder_is_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
    assert!(matches!(
        Spool::open(SpoolConfig::new(dir.path())),
        Err(SpoolError::Locked(_))
    ));
    assert!(is_live(dir.path()));
    let s = session(1);
    opened(&spool, s);
    for statement in 0..600 {
        let open = mark(&spool, s, statement * 2).unwrap();
        spool.record(
            entry(&spool, s, outcome(statement * 2)),
            Some(open),
            ReceiptMode::Durable,
        );
    }
    let open = intent(&spool, s, 1).unwrap();
    // The intent is on disk and signed before anything may be sent.
    let (report, marks) = verify_folder(dir.path()).unwrap();
    assert_eq!(
        (report.integrity, report.in_flight),
        (Integrity::Ok, 1),
        "{report:#?}"
    );
    assert!(marks.is_empty());
    spool.record(entry(&spool, s, outcome(1)), Some(open), ReceiptMode::Durable);
    closed(&spool, s);
    in_order(&spool);
    drop(spool);
    let (report, marks) = verify_folder(dir.path()).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
    assert_eq!((report.events, report.running, report.unsigned), (606, 0, 0));
    assert!(marks.is_empty());
}

/// Events that nobody waits for are signed and on disk 50 ms later all the same.
#[test]
fn a_lone_event_is_signed_soon() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
    let before = spool.status().signed;
    let begun = Instant::now();
    opened(&spool, session(1));
    block_on(async {
        let mut signed = spool.shared.signed.subscribe();
        signed.wait_for(|signed| signed.events > before).await.unwrap();
    });
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn small_segments_roll_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = SpoolConfig::new(dir.path());
    config.segment_bytes = 8 * 1024;
    let spool = Spool::open(config).unwrap();
    opened(&spool, session(1));
    for statement in 0..100 {
        let open = intent(&spool, session(1), statement).unwrap();
        spool.record(
            entry(&spool, session(1), outcome(statement)),
            Some(open),
            ReceiptMode::Durable,
        );
    }
    closed(&spool, session(1));
    in_order(&spool);
    drop(spool);
    assert!(segments(dir.path()).unwrap().len() > 5);
    let (report, marks) = verify_folder(dir.path()).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
    assert!(marks.is_empty());
    // A segment that is taken away shows.
    std::fs::remove_file(&segments(dir.path()).unwrap()[2].1).unwrap();
    let (report, _) = verify_folder(dir.path()).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Incomplete),
        "{report:#?}"
    );
    // And the next start signs that it is missing.
    drop(Spool::open(SpoolConfig::new(dir.path())).unwrap());
    let mut told = false;
    walk(dir.path(), |item| {
        if let Item::Group(group) = item {
            told |= group
                .events
                .iter()
                .any(|event| String::from_utf8_lossy(event).contains("missing from the spool folder"));
        }
    })
    .unwrap();
    assert!(told);
}

#[test]
fn every_altered_byte_of_a_segment_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
    opened(&spool, session(1));
    let open = intent(&spool, session(1), 1).unwrap();
    spool.record(
        entry(&spool, session(1), outcome(1)),
        Some(open),
        ReceiptMode::Durable,
    );
    closed(&spool, session(1));
    in_order(&spool);
    drop(spool);
    let (_, path) = segments(dir.path()).unwrap().remove(0);
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        std::fs::write(&path, &altered).unwrap();
        let (report, _) = verify_folder(dir.path()).unwrap();
        let noticed =
            report.integrity == Integrity::Invalid || report.completeness == Completeness::Incomplete;
        assert!(noticed, "byte {at}");
    }
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (report, _) = verify_folder(dir.path()).unwrap();
        // Cut at a record's border, the rest only looks as if its process still ran.
        let noticed = report.completeness == Completeness::Incomplete
            || report.unsigned > 0
            || report.running == 1
            || report.events == 0;
        assert!(noticed, "cut to {length}: {report:#?}");
    }
}

#[test]
fn a_torn_end_becomes_a_gap_once() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
    opened(&spool, session(1));
    in_order(&spool);
    drop(spool);
    let (_, path) = segments(dir.path()).unwrap().remove(0);
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(&[0, 0, 0, 90, 1, 2, 3])
        .unwrap();
    for _ in 0..3 {
        let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
        in_order(&spool);
    }
    let (report, _) = verify_folder(dir.path()).unwrap();
    assert_eq!(report.integrity, Integrity::Ok, "{report:#?}");
    let torn: Vec<_> = report
        .holes
        .iter()
        .filter(|hole| hole.message.contains("torn record"))
        .collect();
    assert_eq!(torn.len(), 1, "{report:#?}");
    assert_eq!(torn[0].kind, HoleKind::Declared);
}

/// The cap of the folder: new statements are refused, the outcomes of running ones are kept, `BestEffort` goes on.
#[test]
fn a_full_folder_refuses_new_statements_and_keeps_outcomes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = SpoolConfig::new(dir.path());
    config.bytes_max = 40 * 1024;
    let spool = Spool::open(config).unwrap();
    opened(&spool, session(1));
    let mut running = Vec::new();
    let refusal = loop {
        let statement = running.len() as u64;
        match intent(&spool, session(1), statement) {
            Ok(open) => running.push(open),
            Err(refusal) => break refusal,
        }
        assert!(running.len() < 1000);
    };
    assert_eq!(
        (refusal.clone(), refusal.sqlstate()),
        (SpoolRefusal::Full, "53100")
    );
    assert_eq!(spool.status().health, Health::Full);
    assert_eq!(mark(&spool, session(1), 5000).unwrap_err(), SpoolRefusal::Full);
    for (statement, open) in running.into_iter().enumerate() {
        spool.record(
            entry(&spool, session(1), outcome(statement as u64)),
            Some(open),
            ReceiptMode::Durable,
        );
    }
    closed(&spool, session(1));
    in_order(&spool);
    let (report, _) = verify_folder(dir.path()).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
}

#[test]
fn strict_without_a_collector_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
    let body = Body::Intent(Intent { start: start(1) });
    let refused = spool.intent(entry(&spool, session(1), body), ReceiptMode::Strict);
    assert_eq!(refused.err(), Some(SpoolRefusal::NoCollector));
}

/// `BestEffort` under pressure: the caller never waits, what does not fit is counted, and the count is signed.
#[test]
fn best_effort_drops_and_signs_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolConfig::new(dir.path())).unwrap();
    {
        // The writer cannot get at the file: the queue fills.
        let _stuck = held(&spool.shared.segment);
        for statement in 0..(QUEUE_MAX as u64 + 700) {
            spool.record(
                entry(&spool, session(1), outcome(statement)),
                None,
                ReceiptMode::BestEffort,
            );
        }
    }
    let dropped = spool.status().dropped;
    assert!((1..=700).contains(&dropped), "{dropped}");
    closed(&spool, session(1));
    in_order(&spool);
    drop(spool);
    let (report, _) = verify_folder(dir.path()).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Incomplete)
    );
    assert_eq!(report.holes.len(), 1, "{report:#?}");
    assert!(
        report.holes[0]
            .message
            .starts_with(&format!("{dropped} events of")),
        "{report:#?}"
    );
}

/// A child process, for what needs a process to die or to have limits. Does nothing unless a test started it.
#[test]
#[ignore = "started by other tests as a process of its own"]
fn child() {
    let (Ok(dir), Ok(task)) = (std::env::var("WEIR_TEST_SPOOL"), std::env::var("WEIR_TEST_TASK")) else {
        return;
    };
    let spool = Spool::open(SpoolConfig::new(dir)).unwrap();
    let s = session(1);
    opened(&spool, s);
    let mut statement = 0;
    loop {
        statement += 1;
        match intent(&spool, s, statement) {
            Ok(open) => {
                println!("\ndurable {statement}");
                if task == "full" || statement % 3 > 0 {
                    spool.record(
                        entry(&spool, s, outcome(statement)),
                        Some(open),
                        ReceiptMode::Durable,
                    );
                }
            }
            Err(refusal) => {
                println!("\nrefused {statement} {}", refusal.sqlstate());
                if task == "full" {
                    in_order(&spool);
                    return;
                }
            }
        }
        if task == "kill" {
            // A read whose outcome will never come.
            statement += 1;
            let _open = mark(&spool, s, statement).unwrap();
            println!("\nmarked {statement}");
        }
    }
}

fn start_child(dir: &Path, task: &str, shell: &str) -> std::process::Child {
    let exe = std::env::current_exe().unwrap();
    Command::new("bash")
        .arg("-c")
        .arg(format!(
            "{shell} exec \"$0\" --ignored --exact spool::tests::child --nocapture"
        ))
        .arg(exe)
        .env("WEIR_TEST_SPOOL", dir)
        .env("WEIR_TEST_TASK", task)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn numbers(lines: &[String], word: &str) -> Vec<u64> {
    lines
        .iter()
        .filter_map(|line| line.strip_prefix(word)?.split(' ').nth(1)?.parse().ok())
        .collect()
}

/// `kill -9` in the middle of writing: what was promised to be on disk is there and signed; every statement that had
/// begun has an outcome or a signed "outcome unknown"; nothing is altered, nothing missing.
#[test]
fn kill_9_loses_nothing_promised() {
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start_child(dir.path(), "kill", "");
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            lines.push(line.unwrap());
            if numbers(&lines, "durable").len() > 20 + round * 13 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut signed = String::new();
        walk(dir.path(), |item| {
            if let Item::Group(group) = item {
                group.verify().unwrap();
                group
                    .events
                    .iter()
                    .for_each(|event| signed.push_str(&String::from_utf8_lossy(event)));
            }
        })
        .unwrap();
        for statement in numbers(&lines, "durable") {
            assert!(
                signed.contains(&format!("\"kind\":\"db.intent\",\"statement\":{statement},")),
                "{statement}"
            );
        }
        let (_, marks) = verify_folder(dir.path()).unwrap();
        for statement in numbers(&lines, "marked") {
            assert!(
                marks.iter().any(|mark| mark.statement.0 == statement),
                "mark {statement}"
            );
        }
        // The next start takes over.
        in_order(&Spool::open(SpoolConfig::new(dir.path())).unwrap());
        let (report, marks) = verify_folder(dir.path()).unwrap();
        assert_eq!(
            (report.integrity, report.completeness),
            (Integrity::Ok, Completeness::Complete),
            "{report:#?}"
        );
        assert!(marks.is_empty() && report.in_flight == 0, "{marks:?} {report:#?}");
        assert!(report.outcome_unknown >= 20);
        // And tells it once.
        in_order(&Spool::open(SpoolConfig::new(dir.path())).unwrap());
        let (again, _) = verify_folder(dir.path()).unwrap();
        assert_eq!(
            (again.outcome_unknown, again.recovered),
            (report.outcome_unknown, report.recovered)
        );
    }
}

/// The disk refuses a write in the middle of a record.
#[test]
fn a_disk_that_takes_no_more_refuses_statements_and_tears_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // The kernel's own limit of a file's size stands in for the full disk: the same short write and error.
    let mut child = start_child(dir.path(), "full", "trap '' XFSZ; ulimit -f 64;");
    let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .collect();
    assert!(child.wait().unwrap().success());
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("refused ") && line.ends_with(" 53100")),
        "{lines:?}"
    );
    assert!(numbers(&lines, "durable").len() > 10);
    let (report, _) = verify_folder(dir.path()).unwrap();
    assert_eq!(report.integrity, Integrity::Ok, "{report:#?}");
    assert!(
        report.holes.iter().all(|hole| hole.kind != HoleKind::Declared),
        "nothing torn: {report:#?}"
    );
    // With room again the next start goes on and tells of what was lost.
    in_order(&Spool::open(SpoolConfig::new(dir.path())).unwrap());
    let (report, marks) = verify_folder(dir.path()).unwrap();
    assert_eq!(report.integrity, Integrity::Ok, "{report:#?}");
    assert!(marks.is_empty() && report.in_flight == 0);
}
