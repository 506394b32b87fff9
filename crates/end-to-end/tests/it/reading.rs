//! Runs the list of `statements.rs`: as a simple Query, and prepared with results as text and in binary.

use crate::harness::sidecar::shop_policy;
use crate::harness::{Answer, Client, Database, Sidecar};
use crate::statements::{Attack, CLOSED, DEFINITIONS, Expect, FILTERS, MASKS, WRITES};

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Simple,
    ExtendedText,
    ExtendedBinary,
}

#[test]
fn the_statements_of_the_list_would_all_run_without_weir() {
    let database = Database::new();
    let mut session = database.direct();
    let mut wrong = Vec::new();
    for attack in MASKS
        .iter()
        .chain(FILTERS)
        .chain(CLOSED)
        .chain(WRITES)
        .chain(DEFINITIONS)
    {
        // Without COMMIT and with ROLLBACK nothing of it stays; what cannot run in a block is only parsed.
        let sql = attack.sql.replace("COMMIT", "SELECT");
        let answer = session.query(&format!("BEGIN; {sql}"));
        drain(&mut session, &answer);
        session.query("ROLLBACK; DEALLOCATE ALL");
        assert_eq!(session.status, b'I');
        if let Some(error) = answer.error() {
            let never_valid = ["42601", "42P01", "42703", "42883", "42804", "42P10", "25P02"];
            if never_valid.contains(&error.sqlstate()) && !attack.sql.contains("pg_catalog.x") {
                wrong.push(format!(
                    "{}: {} {}",
                    attack.sql,
                    error.sqlstate(),
                    error.message()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn masked_columns_stay_masked() {
    run(MASKS);
}

#[test]
fn hidden_rows_stay_hidden() {
    run(FILTERS);
}

#[test]
fn what_no_rule_opens_is_closed() {
    run(CLOSED);
}

#[test]
fn forbidden_writes_do_not_happen() {
    run(WRITES);
}

#[test]
fn all_of_it_holds_where_the_clients_own_login_passes_through() {
    let database = Database::new();
    let line = "    credentials: {secretRef: {name: shop-login}, transport: Plaintext}\n";
    let policy = shop_policy(&database, &[], &[]);
    assert!(policy.contains(line));
    let sidecar = Sidecar::start_with(&database, &policy.replace(line, ""));
    for list in [MASKS, FILTERS, CLOSED, WRITES] {
        run_through(&database, &sidecar, list);
    }
}

#[test]
fn who_may_change_definitions_uncovers_nothing() {
    let database = Database::new();
    let tables = [
        "customers",
        "orders",
        "lines",
        "payroll",
        "scratch",
        "people",
        "customer_view",
        "customer_copy",
    ];
    for table in tables {
        database
            .direct()
            .must(&format!("ALTER TABLE public.{table} OWNER TO shop_app"));
    }
    database
        .direct()
        .must("ALTER TABLE a.t OWNER TO shop_app; ALTER TABLE b.t OWNER TO shop_app");
    let rules = ["{name: ddl, actions: [DDL], tables: [\"public.*\", a.t, b.t]}"];
    let sidecar = Sidecar::start_with(&database, &shop_policy(&database, &rules, &[]));
    run_through(&database, &sidecar, DEFINITIONS);
    // Whatever of it was allowed, the lists still hold.
    let mut session = sidecar.connect();
    for sql in [
        "SELECT * FROM heir",
        "SELECT * FROM customer_view",
        "SELECT ssn, email FROM customers",
        "SELECT * FROM orders",
    ] {
        session.query(sql);
    }
}

/// All failures of a list are collected: one report, not one at a time.
fn run(attacks: &[Attack]) {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    run_through(&database, &sidecar, attacks);
}

fn run_through(database: &Database, sidecar: &Sidecar, attacks: &[Attack]) {
    let before = database.fingerprint();
    let mut failures = Vec::new();
    for way in [Way::Simple, Way::ExtendedText, Way::ExtendedBinary] {
        let mut session = sidecar.connect();
        for attack in attacks {
            // Several statements exist in a simple Query only.
            if way != Way::Simple && attack.sql.contains(';') {
                continue;
            }
            let answer = send(&mut session, way, attack.sql);
            if let Err(reason) = judge(&answer, way, attack.expect) {
                failures.push(format!("{way:?} {}\n    {reason}", attack.sql));
            }
            if let Some(seen) = crate::harness::canary::find(session.received()) {
                failures.push(format!(
                    "{way:?} {}\n    A PROTECTED VALUE LEFT: {seen}",
                    attack.sql
                ));
                session = sidecar.connect();
                continue;
            }
            if answer.ended {
                failures.push(format!("{way:?} {}\n    the session ended", attack.sql));
                session = sidecar.connect();
                continue;
            }
            // After a refusal or an error the session goes on.
            if session.status != b'I' {
                session.query("ROLLBACK");
            }
            if session.query("SELECT 1").lines() != ["1"] {
                failures.push(format!("{way:?} {}\n    the session does not go on", attack.sql));
                session = sidecar.connect();
            }
        }
        if database.fingerprint() != before {
            failures.push(format!("{way:?}: the database was changed"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn send(session: &mut Client, way: Way, sql: &str) -> Answer {
    let answer = match way {
        Way::Simple => session.query_unchecked(sql),
        Way::ExtendedText => session.extended_unchecked(sql, 0),
        Way::ExtendedBinary => session.extended_unchecked(sql, 1),
    };
    drain(session, &answer);
    answer
}

/// A COPY FROM waits for data: end it.
fn drain(session: &mut Client, answer: &Answer) {
    if answer.kinds.ends_with('G') {
        session.send(&crate::harness::client::copy_fail("the test ends it"));
        session.until_ready();
    }
}

fn judge(answer: &Answer, way: Way, expect: Expect) -> Result<(), String> {
    let error = answer.error();
    let say = || {
        format!(
            "{error:?} rows {:?} copied {:?}",
            answer.lines(),
            String::from_utf8_lossy(&answer.copied)
        )
    };
    let served = || if error.is_some() { Err(say()) } else { Ok(()) };
    match expect {
        Expect::Refused => match error {
            Some(error) if error.is_refusal() => Ok(()),
            _ => Err(format!("not refused: {}", say())),
        },
        Expect::Lines(wanted) => {
            served()?;
            let same = way == Way::ExtendedBinary || answer.lines() == wanted;
            let same_count = answer.rows.len() == wanted.len();
            if same && same_count {
                Ok(())
            } else {
                Err(format!("wanted {wanted:?}: {}", say()))
            }
        }
        Expect::Copied(wanted) => {
            served()?;
            if answer.copied == wanted.as_bytes() {
                Ok(())
            } else {
                Err(format!("wanted {wanted:?}: {}", say()))
            }
        }
        Expect::Error(sqlstate) => match error {
            Some(error)
                if error.sqlstate() == sqlstate
                    && ["D", "W", "q"]
                        .iter()
                        .all(|field| error.field(field.chars().next().unwrap_or('D')).is_empty()) =>
            {
                Ok(())
            }
            _ => Err(format!("wanted the error {sqlstate}: {}", say())),
        },
        Expect::Harmless => Ok(()),
    }
}
