//! The schema, groups, receipts and the verifier, through the crate's front door.

use std::sync::Arc;

use crate::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn start(statement: u64, command: &str) -> ActionStart {
    ActionStart {
        statement: StatementLink(statement),
        who: Arc::new(Who {
            workload: Claim::asserted("shop/report-agent"),
            agent: Claim::claimed("report-agent"),
            run: Claim::verified("run-17"),
            database_user: Claim::claimed("shop"),
            ..Who::default()
        }),
        place: Arc::new(Place {
            engine: "postgresql".to_owned(),
            endpoint: "orders-db.shop.svc:5432".to_owned(),
            database: Some("orders".to_owned()),
        }),
        what: Arc::new(
            What {
                command: command.to_owned(),
                key: Some(statement_key(&[3; 32], "SELECT 1")),
                relations: vec![RelationUse {
                    name: "public.customers".to_owned(),
                    action: RelationAction::Select,
                    columns: vec!["email".to_owned()],
                }],
                output: vec![OutputColumn {
                    name: "email".to_owned(),
                    target: None,
                    sources: vec![Source {
                        column: "public.customers.email".to_owned(),
                        transformation: Transformation::Identity,
                    }],
                    mask: Some("Email".to_owned()),
                }],
                filters: vec![Source {
                    column: "public.customers.id".to_owned(),
                    transformation: Transformation::Filter,
                }],
                functions: vec!["pg_catalog.lower".to_owned()],
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

fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Ok,
        rows_returned: 3,
        rows_affected: None,
        bytes: 120,
        sqlstate: None,
        duration_us: 850,
        first_row_us: Some(600),
        transaction: Some(Transaction {
            number: 1,
            state: TransactionState::Committed,
        }),
    }
}

/// One body of each kind, in an order that makes a whole chain.
fn samples(key: &SigningKey) -> Vec<(Option<SessionId>, Body)> {
    let start_1 = start(1, "SELECT");
    let s = Some(session(1));
    vec![
        (
            None,
            Body::ChainOpen(ChainOpen {
                program: "weir-sidecar 0.1.0".to_owned(),
                key: key.public(),
                workload: Claim::asserted("shop/report-agent"),
                listen: Some("127.0.0.1:6432".to_owned()),
                receipt_mode: Some("Durable".to_owned()),
                previous: vec![],
            }),
        ),
        (
            None,
            Body::PolicyChange(PolicyChange {
                generation: 1,
                policies: vec![PolicyState {
                    name: "shop/orders".to_owned(),
                    digest: Digest([4; 32]),
                }],
                origin: "directory".to_owned(),
            }),
        ),
        (
            s,
            Body::SessionOpen(SessionOpen {
                who: Arc::clone(&start_1.who),
                place: Arc::clone(&start_1.place),
            }),
        ),
        (
            s,
            Body::Intent(Intent {
                start: start(2, "UPDATE"),
            }),
        ),
        (
            s,
            Body::Action(Action {
                start: start(2, "UPDATE"),
                outcome: outcome(),
            }),
        ),
        (
            s,
            Body::Action(Action {
                start: start_1.clone(),
                outcome: outcome(),
            }),
        ),
        (
            s,
            Body::Deny(Deny {
                start: start(3, "DELETE"),
                sqlstate: "42501".to_owned(),
            }),
        ),
        (
            s,
            Body::SessionClose(SessionClose {
                reason: "client".to_owned(),
                statements: 3,
            }),
        ),
        (
            None,
            Body::AuthFail(AuthFail {
                who: start_1.who,
                place: start_1.place,
                sqlstate: Some("28P01".to_owned()),
                reason: "the server refused the password".to_owned(),
            }),
        ),
        (
            None,
            Body::OutcomeUnknown(OutcomeUnknown {
                boot: BootId([2; 16]),
                of_session: session(9),
                statement: StatementLink(4),
                key: None,
                begun_us: 5,
                who: None,
                place: None,
            }),
        ),
        (
            None,
            Body::ChainClose(ChainClose {
                reason: "SIGTERM".to_owned(),
            }),
        ),
    ]
}

fn losses() -> Vec<(Option<SessionId>, Body)> {
    vec![
        (
            None,
            Body::Gap(Gap {
                chain: GapChain::Unchained,
                boot: BootId([2; 16]),
                from: None,
                to: None,
                count: Some(2),
                from_us: Some(1),
                to_us: Some(2),
                reason: "dropped: spool full".to_owned(),
            }),
        ),
        (
            None,
            Body::Recovered(Recovered {
                boot: BootId([2; 16]),
                seq: 0,
                event: "{\"kind\":\"gap\"}".to_owned(),
            }),
        ),
    ]
}

fn encode(key: &SigningKey, bodies: Vec<(Option<SessionId>, Body)>) -> Vec<EncodedEvent> {
    let mut writer = ChainWriter::new(key.boot());
    bodies
        .into_iter()
        .enumerate()
        .map(|(at, (session, body))| {
            writer.link(
                1_764_036_000_000_000 + at as i64,
                at as u64,
                session,
                Some(LogHead {
                    size: 7,
                    root: Digest([1; 32]),
                }),
                body,
            )
        })
        .collect()
}

fn groups(key: &SigningKey, bodies: Vec<(Option<SessionId>, Body)>, size: usize) -> Vec<SignedGroup> {
    encode(key, bodies)
        .chunks(size)
        .map(|chunk| {
            let leaves: Vec<Digest> = chunk.iter().map(|event| event.leaf).collect();
            SignedGroup {
                header: sign_group(key, chunk[0].seq, &leaves).unwrap(),
                events: chunk.iter().map(|event| event.bytes.clone()).collect(),
            }
        })
        .collect()
}

fn verify(groups: &[SignedGroup], scope: Scope) -> Report {
    let mut verifier = Verifier::new(scope);
    let mut index = 0;
    for group in groups {
        verifier.group(Some(index), group);
        index += group.events.len() as u64;
    }
    verifier.finish()
}

/// The published schema is what the types say, and samples of each kind hold against it.
#[test]
fn published_schema() {
    let schema = schemars::generate::SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<Event>();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/weir.event.v1.schema.json"
    );
    if std::env::var_os("WEIR_GENERATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        published, text,
        "run the tests of `receipts` with WEIR_GENERATE=1 and commit the schema"
    );

    let validator = jsonschema::validator_for(&serde_json::from_str(&published).unwrap()).unwrap();
    let key = key(1);
    let mut bodies = samples(&key);
    bodies.push((
        None,
        Body::ChainPeer(ChainPeer {
            boot: BootId([6; 16]),
            peer: "spiffe://cluster.local/ns/shop/sa/report-agent/pod/9f0c".to_owned(),
        }),
    ));
    let bind = ChainBind::new(
        "spiffe://cluster.local/ns/shop/sa/report-agent/pod/9f0c".to_owned(),
        &[b"leaf".to_vec(), b"issuer".to_vec()],
        b"signature",
    );
    let decoded = (vec![b"leaf".to_vec(), b"issuer".to_vec()], b"signature".to_vec());
    assert_eq!(bind.decode(), Some(decoded));
    bodies.push((None, Body::ChainBind(bind)));
    bodies.extend(losses());
    let kinds: std::collections::BTreeSet<_> = bodies.iter().map(|(_, body)| body.kind()).collect();
    assert_eq!(kinds.len(), 14, "one sample of each kind");
    for event in encode(&key, bodies) {
        let value: serde_json::Value = serde_json::from_slice(&event.bytes).unwrap();
        if let Err(error) = validator.validate(&value) {
            panic!("{value:#}\n{error}");
        }
        assert!(
            matches!(read_event(&event.bytes).unwrap(), ReadEvent::Known(_)),
            "{value:#}"
        );
        for field in ["v", "kind", "time_us", "proxy"] {
            let mut broken = value.clone();
            broken.as_object_mut().unwrap().remove(field);
            assert!(!validator.is_valid(&broken), "the schema does not miss `{field}`");
        }
        let mut other = value;
        other["kind"] = "db.something".into();
        assert!(!validator.is_valid(&other), "the schema accepts an unknown kind");
    }
}

#[test]
fn an_untouched_chain_is_whole() {
    let key = key(1);
    for size in [1, 2, 3, 256] {
        let report = verify(&groups(&key, samples(&key), size), Scope::Whole);
        assert_eq!(
            (report.integrity, report.completeness),
            (Integrity::Ok, Completeness::Complete),
            "{report:#?}"
        );
        assert_eq!(
            (report.events, report.processes, report.running, report.sessions),
            (11, 1, 0, 1)
        );
        assert_eq!(report.outcome_unknown, 1);
    }
}

/// Every byte of a stored group: framing, signature, key, root, events.
#[test]
fn no_altered_byte_of_a_group_verifies_and_its_index_is_named() {
    let key = key(1);
    let all = groups(&key, samples(&key), 4);
    let mut before = 100;
    for group in &all {
        let bytes = group.encode();
        // Where each event's bytes lie in the binary form.
        let mut places = Vec::new();
        let mut at = GroupHeader::BYTES;
        for event in &group.events {
            places.push(at + 4..at + 4 + event.len());
            at += 4 + event.len();
        }
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1 << (at % 8);
            let Ok(read) = SignedGroup::decode(&mut altered.as_slice()) else {
                continue;
            };
            let mut verifier = Verifier::new(Scope::Part);
            verifier.group(Some(before), &read);
            let report = verifier.finish();
            assert_eq!(report.integrity, Integrity::Invalid, "byte {at}");
            if let Some(place) = places.iter().position(|place| place.contains(&at)) {
                let expected = before + place as u64;
                assert!(
                    report
                        .problems
                        .iter()
                        .any(|problem| problem.index == Some(expected)),
                    "byte {at} of event {expected}: {:?}",
                    report.problems
                );
            }
        }
        before += group.events.len() as u64;
    }
}

#[test]
fn a_receipt_stands_alone() {
    let key = key(1);
    let all = groups(&key, samples(&key), 256);
    for at in 0..all[0].events.len() {
        let receipt = all[0].receipt(at).unwrap();
        receipt.verify().unwrap();
        let text = serde_json::to_string(&receipt).unwrap();
        for byte in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[byte] ^= 1;
            if let Ok(read) = serde_json::from_slice::<Receipt>(&altered) {
                assert!(read.verify().is_err(), "byte {byte} of receipt {at}");
            }
        }
    }
    // Another process' name on the same key, or the same name on another key.
    let mut receipt = all[0].receipt(0).unwrap();
    receipt.group.key = SigningKey::from_seed(&[9; 32]).unwrap().public();
    assert_eq!(receipt.verify(), Err(GroupProblem::BadKey));
}

#[test]
fn what_is_missing_is_incomplete_not_invalid() {
    let key = key(1);
    for missing in 0..11 {
        let mut all = groups(&key, samples(&key), 1);
        all.remove(missing);
        let report = verify(&all, Scope::Whole);
        assert_eq!(
            report.integrity,
            Integrity::Ok,
            "{missing}: {:?}",
            report.problems
        );
        // Without its last event a chain only looks as if it went on.
        if missing == 10 {
            assert_eq!((report.completeness, report.running), (Completeness::Complete, 1));
        } else {
            assert_eq!(report.completeness, Completeness::Incomplete, "{missing}");
        }
    }
}

#[test]
fn a_successor_gives_a_cut_tail_away() {
    let (old, new) = (key(1), key(2));
    let mut all = groups(&old, samples(&old), 1);
    let last = SignedGroup::clone(&all[9]);
    let previous = PreviousBoot {
        boot: old.boot(),
        seq: 9,
        head: last.verify().unwrap()[0],
    };
    all.truncate(8);
    let mut bodies = samples(&new);
    if let (_, Body::ChainOpen(open)) = &mut bodies[0] {
        open.previous.push(previous);
    }
    bodies.retain(|(session, _)| session.is_none());
    all.extend(groups(&new, bodies, 1));
    let report = verify(&all, Scope::Whole);
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Incomplete),
        "{report:#?}"
    );
    assert!(
        report
            .holes
            .iter()
            .any(|hole| hole.message.starts_with("events 8..=9")),
        "{:?}",
        report.holes
    );
}

#[test]
fn replay_fork_and_reorder() {
    let key = key(1);
    let all = groups(&key, samples(&key), 3);
    let mut replayed = all.clone();
    replayed.push(all[1].clone());
    assert_eq!(
        verify(&replayed, Scope::Whole).problems[0].kind,
        ProblemKind::Twice
    );

    // Two histories signed with one key: the second one tells event 3 otherwise.
    let mut bodies = samples(&key);
    bodies[3].1 = Body::Deny(Deny {
        start: start(7, "UPDATE"),
        sqlstate: "42501".to_owned(),
    });
    let other = groups(&key, bodies, 3);
    let mut forked = all.clone();
    forked[1] = other[1].clone();
    let report = verify(&forked, Scope::Whole);
    assert_eq!(report.integrity, Integrity::Invalid);
    assert_eq!(report.problems[0].kind, ProblemKind::BrokenLink);
    assert_eq!(report.problems[0].index, Some(6));

    // Groups in another order are still the same chain; events in another order within a group are not.
    let mut reordered = all.clone();
    reordered.swap(1, 2);
    assert_eq!(
        verify(&reordered, Scope::Whole).completeness,
        Completeness::Complete
    );
    let mut swapped = all;
    swapped[1].events.swap(0, 1);
    assert_eq!(verify(&swapped, Scope::Whole).integrity, Integrity::Invalid);
}

/// A process was killed between writing and signing: its tail stays unsigned in the folder, and its successor's chain
/// holds a copy. Byte for byte the same it is one event; anything else is a second history.
#[test]
fn an_unsigned_tail_and_its_recovered_copy_are_one_history() {
    let (old, new) = (key(1), key(2));
    let events = encode(&old, samples(&old).into_iter().take(7).collect());
    let (signed, tail) = events.split_at(5);
    let leaves: Vec<Digest> = signed.iter().map(|event| event.leaf).collect();
    let first = SignedGroup {
        header: sign_group(&old, 0, &leaves).unwrap(),
        events: signed.iter().map(|event| event.bytes.clone()).collect(),
    };
    let report = |keeps_tail: bool, copy: &dyn Fn(String) -> String| {
        let mut bodies: Vec<_> = samples(&new).into_iter().take(1).collect();
        if let (_, Body::ChainOpen(open)) = &mut bodies[0] {
            open.previous.push(PreviousBoot {
                boot: old.boot(),
                seq: 4,
                head: leaves[4],
            });
        }
        bodies.extend(tail.iter().map(|event| {
            let text = copy(String::from_utf8(event.bytes.clone()).unwrap());
            let recovered = Recovered {
                boot: old.boot(),
                seq: event.seq,
                event: text,
            };
            (None, Body::Recovered(recovered))
        }));
        let mut verifier = Verifier::new(Scope::Whole);
        verifier.group(None, &first);
        if keeps_tail {
            tail.iter().for_each(|event| verifier.unsigned(&event.bytes));
        }
        for group in groups(&new, bodies, 2) {
            verifier.group(None, &group);
        }
        verifier.finish()
    };
    let (kept, gone) = (report(true, &|text| text), report(false, &|text| text));
    assert_eq!(kept.integrity, Integrity::Ok, "{kept:#?}");
    assert_eq!(
        (kept.integrity, kept.completeness, kept.recovered),
        (gone.integrity, gone.completeness, 2),
        "{kept:#?} {gone:#?}"
    );
    let altered = report(true, &|text| text.replace("report-agent", "somebody-else"));
    assert_eq!(altered.integrity, Integrity::Invalid, "{altered:#?}");
}

#[test]
fn an_announced_write_without_outcome_is_a_hole_once_its_session_ended() {
    let key = key(1);
    let mut bodies = samples(&key);
    bodies.remove(4);
    let report = verify(&groups(&key, bodies.clone(), 256), Scope::Whole);
    assert_eq!(report.holes[0].kind, HoleKind::IntentWithoutOutcome);
    bodies.truncate(4);
    let report = verify(&groups(&key, bodies, 256), Scope::Whole);
    assert_eq!(
        (report.completeness, report.in_flight),
        (Completeness::Complete, 1)
    );
}

#[test]
fn declared_losses_are_holes() {
    let key = key(1);
    let mut bodies = samples(&key);
    bodies.insert(3, losses().remove(0));
    let report = verify(&groups(&key, bodies, 256), Scope::Whole);
    assert_eq!(report.holes[0].kind, HoleKind::Declared);
}

/// An exported range: every altered byte is noticed.
#[test]
fn no_altered_byte_of_an_exported_range_verifies() {
    let (log, key) = (key(5), key(1));
    let all = groups(&key, samples(&key), 4);
    let leaves: Vec<Digest> = all.iter().flat_map(|group| group.verify().unwrap()).collect();
    let name = "weir.test/log".to_owned();
    let checkpoint = Checkpoint {
        origin: name.clone(),
        size: leaves.len() as u64,
        root: root_of(&leaves),
    };
    let log_key = LogKey {
        name,
        key: log.public(),
    };
    let header = RangeHeader {
        v: RangeVersion::V1,
        log_key: log_key.to_vkey(),
        checkpoint: checkpoint.sign(&log),
        from: 4,
        to: 8,
        proof: range_proof(leaves.as_slice(), 4, 8, leaves.len() as u64).unwrap(),
    };
    let text = format!(
        "{}\n{}\n",
        serde_json::to_string(&header).unwrap(),
        group_line(&all[1]).unwrap()
    );
    let (_, report) = verify_range(text.as_bytes(), Some(&log_key)).unwrap();
    assert_eq!(
        (report.integrity, report.completeness),
        (Integrity::Ok, Completeness::Complete),
        "{report:#?}"
    );
    let clean = report;
    for at in 0..text.len() {
        let mut altered = text.clone().into_bytes();
        altered[at] ^= 1 << (at % 7);
        if let Ok((_, report)) = verify_range(&altered, Some(&log_key)) {
            // The final newline is not evidence; anything else is.
            if at + 1 == text.len() && report == clean {
                continue;
            }
            let bad =
                report.integrity == Integrity::Invalid || report.completeness == Completeness::Incomplete;
            assert!(bad, "byte {at}");
        }
    }
}

#[test]
fn an_event_never_exceeds_its_limit() {
    let key = key(1);
    let mut wide = start(1, "SELECT");
    let what = Arc::make_mut(&mut wide.what);
    what.output = (0..1600)
        .map(|number| OutputColumn {
            name: format!("column_{number}"),
            target: None,
            sources: (0..20)
                .map(|source| Source {
                    column: format!("public.a_rather_long_table_name_{source}.column_{number}"),
                    transformation: Transformation::Transformation,
                })
                .collect(),
            mask: None,
        })
        .collect();
    what.relations = (0..5000)
        .map(|number| RelationUse {
            name: format!("public.partition_of_something_{number}"),
            action: RelationAction::Select,
            columns: vec!["id".to_owned(); 5],
        })
        .collect();
    let shared = Arc::clone(&wide.what);
    let events = encode(
        &key,
        vec![(
            Some(session(1)),
            Body::Action(Action {
                start: wide,
                outcome: outcome(),
            }),
        )],
    );
    assert!(events[0].bytes.len() <= EVENT_BYTES_MAX);
    let text = String::from_utf8(events[0].bytes.clone()).unwrap();
    assert!(text.contains("left_out"), "{text}");
    assert_eq!(shared.relations.len(), 5000, "the shared facts stay as they are");
    let long = What::default().with_text(&"é".repeat(TEXT_BYTES_MAX));
    assert!(long.text_cut && long.text.len() <= TEXT_BYTES_MAX);
}
