//! The collector as a process, over its socket and on its files.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests fail loudly"
)]

mod cluster;
mod server;
mod sinks;

use std::sync::Arc;

use collector::{AuditFilter, Direction, Index, Log, verify_log};
use receipts::{
    Action, ActionStart, Body, BootId, ChainOpen, ChainWriter, Claim, Completeness, Deny, Digest, Integrity,
    LogKey, Outcome, OutcomeStatus, OutputColumn, Place, RelationAction, RelationUse, Rule, SessionClose,
    SessionId, SessionOpen, SignedGroup, SigningKey, Source, StatementLink, Transaction, TransactionState,
    Transformation, Verdict, What, Who, sign_group,
};

/// A sidecar's chain, by hand.
pub(crate) struct Sidecar {
    key: SigningKey,
    chain: ChainWriter,
    statement: u64,
}

impl Sidecar {
    pub(crate) fn new(seed: u8) -> Self {
        let key = SigningKey::from_seed(&[seed; 32]).unwrap();
        let chain = ChainWriter::new(key.boot());
        Self {
            key,
            chain,
            statement: 0,
        }
    }

    pub(crate) fn boot(&self) -> BootId {
        self.key.boot()
    }

    pub(crate) fn group(&mut self, bodies: Vec<(Option<SessionId>, Body)>) -> SignedGroup {
        let first = self.chain.next_seq();
        let events: Vec<_> = bodies
            .into_iter()
            .map(|(session, body)| {
                self.chain.link(
                    1_764_036_000_000_000 + i64::try_from(first).unwrap(),
                    first,
                    session,
                    None,
                    body,
                )
            })
            .collect();
        let leaves: Vec<Digest> = events.iter().map(|event| event.leaf).collect();
        SignedGroup {
            header: sign_group(&self.key, first, &leaves).unwrap(),
            events: events.into_iter().map(|event| event.bytes).collect(),
        }
    }

    pub(crate) fn open(&mut self) -> SignedGroup {
        let key = self.key.public();
        let start = self.start("", vec![], vec![]);
        self.group(vec![
            (
                None,
                Body::ChainOpen(ChainOpen {
                    program: "weir-sidecar test".to_owned(),
                    key,
                    workload: Claim::absent(),
                    listen: None,
                    receipt_mode: None,
                    previous: vec![],
                }),
            ),
            (
                Some(session()),
                Body::SessionOpen(SessionOpen {
                    who: start.who,
                    place: start.place,
                }),
            ),
        ])
    }

    pub(crate) fn reads(&mut self, count: usize) -> SignedGroup {
        let bodies = (0..count)
            .map(|_| {
                let start = self.start(
                    "SELECT",
                    vec![(RelationAction::Select, "public.customers", "email")],
                    vec![output("email", None, "public.customers.email", Some("Email"))],
                );
                (
                    Some(session()),
                    action(start, Some((1, TransactionState::Committed))),
                )
            })
            .collect();
        self.group(bodies)
    }

    pub(crate) fn start(
        &mut self,
        command: &str,
        relations: Vec<(RelationAction, &str, &str)>,
        output: Vec<OutputColumn>,
    ) -> ActionStart {
        self.statement += 1;
        ActionStart {
            statement: StatementLink(self.statement),
            who: Arc::new(Who {
                workload: Claim::asserted("shop/report-agent"),
                agent: Claim::claimed("reporter"),
                run: Claim::claimed("run-17"),
                ..Who::default()
            }),
            place: Arc::new(Place {
                engine: "postgresql".to_owned(),
                endpoint: "db:5432".to_owned(),
                database: Some("orders".to_owned()),
            }),
            what: Arc::new(
                What {
                    command: command.to_owned(),
                    relations: relations
                        .into_iter()
                        .map(|(action, name, column)| RelationUse {
                            name: name.to_owned(),
                            action,
                            columns: vec![column.to_owned()],
                        })
                        .collect(),
                    output,
                    ..What::default()
                }
                .with_text("SELECT email FROM customers WHERE id = $1"),
            ),
            rule: Arc::new(Rule {
                policy: "shop/orders".to_owned(),
                rule: "read-sales".to_owned(),
                code: None,
                verdict: Verdict::Permit,
                reason: None,
            }),
        }
    }
}

pub(crate) fn session() -> SessionId {
    SessionId([7; 16])
}

pub(crate) fn output(name: &str, target: Option<&str>, source: &str, mask: Option<&str>) -> OutputColumn {
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

pub(crate) fn action(start: ActionStart, transaction: Option<(u64, TransactionState)>) -> Body {
    Body::Action(Action {
        start,
        outcome: Outcome {
            status: OutcomeStatus::Ok,
            rows_returned: 2,
            rows_affected: None,
            bytes: 40,
            sqlstate: None,
            duration_us: 700,
            first_row_us: None,
            transaction: transaction.map(|(number, state)| Transaction { number, state }),
        },
    })
}

/// A log made without a server, closed in order.
fn closed_log(dir: &std::path::Path, groups: Vec<SignedGroup>) {
    let mut log = Log::open(dir).unwrap();
    log.append(groups).unwrap();
    log.sign_checkpoint().unwrap();
    log.write_checkpoint().unwrap();
    log.seal_all().unwrap();
}

/// An index of that log, in memory.
fn index_of(dir: &std::path::Path) -> Index {
    let mut index = Index::in_memory().unwrap();
    index.catch_up(&Log::open_to_read(dir).unwrap()).unwrap();
    index
}

#[test]
fn every_altered_byte_of_a_stored_frame_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::new(1);
    closed_log(dir.path(), vec![sidecar.open(), sidecar.reads(3)]);
    assert_eq!(verify_log(dir.path(), None).unwrap().integrity, Integrity::Ok);
    let path = std::fs::read_dir(dir.path().join("segments"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for path in [path, dir.path().join("checkpoint")] {
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1 << (at % 8);
            std::fs::write(&path, &altered).unwrap();
            let report = verify_log(dir.path(), None).unwrap();
            assert_eq!(
                report.integrity,
                Integrity::Invalid,
                "byte {at} of {}",
                path.display()
            );
        }
        std::fs::write(&path, &bytes).unwrap();
    }
}

/// Whoever can write the files can write checksums too: then the signature and the tree name the entry.
#[test]
fn an_entry_altered_with_its_checksums_is_named() {
    let mut sidecar = Sidecar::new(1);
    let (open, good) = (sidecar.open(), sidecar.reads(5));
    for place in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        closed_log(dir.path(), vec![open.clone(), good.clone()]);
        let checkpoint = std::fs::read(dir.path().join("checkpoint")).unwrap();
        let (key, public) = (
            std::fs::read(dir.path().join("log.key")).unwrap(),
            std::fs::read(dir.path().join("log.pub")).unwrap(),
        );
        let mut bad = good.clone();
        let text = String::from_utf8(bad.events[place].clone())
            .unwrap()
            .replace("customers", "kustomers");
        bad.events[place] = text.into_bytes();
        let forged = tempfile::tempdir().unwrap();
        std::fs::write(forged.path().join("log.key"), key).unwrap();
        std::fs::write(forged.path().join("log.pub"), public).unwrap();
        closed_log(forged.path(), vec![open.clone(), bad]);
        std::fs::write(forged.path().join("checkpoint"), checkpoint).unwrap();
        let report = verify_log(forged.path(), None).unwrap();
        assert!(
            report
                .problems
                .iter()
                .any(|problem| problem.index == Some(2 + place as u64)),
            "{report:#?}"
        );
        assert!(
            report
                .problems
                .iter()
                .any(|problem| problem.message.contains("checkpoint")),
            "{report:#?}"
        );
        // And a collector does not go on with it.
        assert!(Log::open(forged.path()).is_err());
    }
}

#[test]
fn a_log_that_lost_its_end_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::new(1);
    let mut log = Log::open(dir.path()).unwrap();
    log.append(vec![sidecar.open(), sidecar.reads(3)]).unwrap();
    log.sign_checkpoint().unwrap();
    log.write_checkpoint().unwrap();
    drop(log);
    std::fs::write(dir.path().join("tail.wal"), b"").unwrap();
    assert!(
        Log::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("5 are signed")
    );
    let report = verify_log(dir.path(), None).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Incomplete)
    );
}

#[test]
fn a_long_log_is_read_back_and_its_index_made_anew_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::new(1);
    let mut log = Log::open(dir.path()).unwrap();
    let mut index = Index::open(&dir.path().join("index.sqlite")).unwrap();
    log.append(vec![sidecar.open()]).unwrap();
    for count in [1, 200, 256, 3, 256, 256, 256, 256, 77, 256, 256] {
        log.append(vec![sidecar.reads(count)]).unwrap();
        index.catch_up(&log).unwrap();
    }
    log.sign_checkpoint().unwrap();
    log.write_checkpoint().unwrap();
    let size = log.size();
    assert_eq!(size, 2 + 2073);
    drop(log);
    let report = verify_log(dir.path(), None).unwrap();
    assert_eq!(
        (report.integrity, report.completeness, report.events),
        (Integrity::Ok, Completeness::Complete, size),
        "{report:#?}"
    );
    let again = index_of(dir.path());
    assert_eq!(index.dump().unwrap(), again.dump().unwrap());
    // Tiles that are gone or torn are made anew.
    std::fs::write(dir.path().join("tile/0/003"), [0; 8192]).unwrap();
    std::fs::remove_file(dir.path().join("tile/0/001")).unwrap();
    assert_eq!(Log::open(dir.path()).unwrap().size(), size);
}

#[test]
fn audit_and_lineage_answer_from_receipts() {
    let dir = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::new(1);
    let open = sidecar.open();
    let read = sidecar.reads(1);
    let s = Some(session());
    let committed = Some((2, TransactionState::Committed));
    let fill = sidecar.start(
        "CREATE TABLE AS",
        vec![
            (RelationAction::Select, "public.customers", "email"),
            (RelationAction::Insert, "pg_temp.seen", "mail"),
        ],
        vec![output(
            "mail",
            Some("pg_temp.seen.mail"),
            "public.customers.email",
            Some("Email"),
        )],
    );
    let write = sidecar.start(
        "INSERT",
        vec![
            (RelationAction::Insert, "public.report", "address"),
            (RelationAction::Select, "pg_temp.seen", "mail"),
        ],
        vec![output(
            "address",
            Some("public.report.address"),
            "pg_temp.seen.mail",
            None,
        )],
    );
    let undone = sidecar.start(
        "INSERT",
        vec![(RelationAction::Insert, "public.report", "note")],
        vec![output(
            "note",
            Some("public.report.note"),
            "public.payroll.salary",
            None,
        )],
    );
    let mut denied = sidecar.start(
        "SELECT",
        vec![(RelationAction::Select, "public.payroll", "salary")],
        vec![],
    );
    denied.rule = Arc::new(Rule {
        policy: "shop/orders".to_owned(),
        rule: "defaultAction".to_owned(),
        code: Some("WEIR-010".to_owned()),
        verdict: Verdict::Refuse,
        reason: Some("no rule allows Select on public.payroll".to_owned()),
    });
    let bodies = vec![
        (s, action(fill, committed)),
        (s, action(write, committed)),
        (s, action(undone, Some((3, TransactionState::RolledBack)))),
        (
            s,
            Body::Deny(Deny {
                start: denied,
                sqlstate: "42501".to_owned(),
            }),
        ),
        (
            s,
            Body::SessionClose(SessionClose {
                reason: "client".to_owned(),
                statements: 5,
            }),
        ),
    ];
    let work = sidecar.group(bodies);
    closed_log(dir.path(), vec![open, read, work]);
    let index = index_of(dir.path());
    let audit = |filter: AuditFilter| index.audit(&filter).unwrap();
    assert_eq!(audit(AuditFilter::default()).len(), 5);
    for (object, count) in [
        ("customers", 2),
        ("public.customers", 2),
        ("public.customers.email", 2),
        ("customers.email", 2),
        ("public.customers.id", 0),
        ("payroll", 1),
        ("seen", 2),
    ] {
        let rows = audit(AuditFilter {
            object: Some(object.to_owned()),
            ..AuditFilter::default()
        });
        assert_eq!(rows.len(), count, "{object}");
    }
    let refused = audit(AuditFilter {
        verdict: Some(Verdict::Refuse),
        ..AuditFilter::default()
    });
    assert_eq!(refused[0].code.as_deref(), Some("WEIR-010"));
    assert_eq!(refused[0].objects, ["select public.payroll"]);
    for (actor, count) in [
        ("reporter", 5),
        ("report*", 5),
        ("shop/report-agent", 5),
        ("someone", 0),
    ] {
        assert_eq!(
            audit(AuditFilter {
                actor: Some(actor.to_owned()),
                ..AuditFilter::default()
            })
            .len(),
            count,
            "{actor}"
        );
    }
    assert_eq!(
        audit(AuditFilter {
            run: Some("run-17".to_owned()),
            ..AuditFilter::default()
        })
        .len(),
        5
    );

    let up = index
        .lineage("public.report.address", Direction::Upstream)
        .unwrap();
    let steps: Vec<(&str, &str)> = up
        .edges
        .iter()
        .map(|edge| (edge.source.as_str(), edge.target.as_str()))
        .collect();
    assert_eq!(
        steps,
        [
            ("session:07070707/pg_temp.seen.mail", "public.report.address"),
            ("public.customers.email", "session:07070707/pg_temp.seen.mail")
        ]
    );
    assert_eq!(up.edges[1].mask.as_deref(), Some("Email"));
    let down = index.lineage("customers", Direction::Downstream).unwrap();
    let targets: Vec<&str> = down.edges.iter().map(|edge| edge.target.as_str()).collect();
    assert!(
        targets.contains(&"run:run-17") && targets.contains(&"public.report.address"),
        "{targets:?}"
    );
    // What was rolled back did not flow.
    assert!(
        index
            .lineage("payroll", Direction::Downstream)
            .unwrap()
            .edges
            .is_empty()
    );
}

/// The key beside a log is only as good as its folder: a key known from elsewhere decides.
#[test]
fn a_log_of_another_key_is_not_the_one_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path(), vec![Sidecar::new(1).open()]);
    let other = LogKey {
        name: "weir.dev/log/other".to_owned(),
        key: SigningKey::from_seed(&[3; 32]).unwrap().public(),
    };
    assert_eq!(
        verify_log(dir.path(), Some(&other)).unwrap().integrity,
        Integrity::Invalid
    );
}
