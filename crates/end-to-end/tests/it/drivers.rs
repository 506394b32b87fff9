//! Real drivers: what is not governed comes out as without Weir, byte for byte as the driver prints it; what is
//! governed stays governed through statement caches, cursors, pipelines and binary formats.

use std::process::{Command, Output};

use crate::harness::sidecar::shop_policy;
use crate::harness::tap::Tap;
use crate::harness::{Database, Sidecar};

#[test]
fn psycopg3_gets_masks() {
    govern("psycopg3_governed.py");
}

#[test]
fn asyncpg_gets_masks() {
    govern("asyncpg_governed.py");
}

#[test]
fn node_postgres_gets_masks() {
    govern("node_governed.js");
}

#[test]
fn psycopg2_gets_the_same_results() {
    compare("psycopg2_.py");
}

#[test]
fn psql_gets_the_same_results_and_masks() {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let tap = Tap::before(sidecar.port);
    // Only what is this test's own: the server is shared, and other tests make databases on it.
    let own_database = format!("\\l {}", database.name);
    let plain = [
        "\\d",
        "\\d+ scratch",
        "\\dt *.*",
        "\\dv",
        "\\df",
        "\\dn",
        &own_database,
        "\\du shop_app",
        "\\conninfo",
        "SELECT * FROM scratch ORDER BY id",
        "\\copy scratch TO STDOUT",
        "SELECT 1/0",
    ];
    for command in plain {
        let direct = psql(database.port, "shop_app", &database.name, command);
        let governed = psql(tap.port, "shop_app", &database.name, command);
        let same = |output: &Output| {
            let text = [output.stdout.as_slice(), &output.stderr].concat();
            String::from_utf8_lossy(&text)
                .replace(&database.port.to_string(), "PORT")
                .replace(&tap.port.to_string(), "PORT")
        };
        assert_eq!(same(&governed), same(&direct), "{command}");
    }
    for (command, wanted) in [
        (
            "SELECT email FROM customers ORDER BY id",
            "a***@example.com\nb***@example.org\nc***@example.net\n",
        ),
        (
            "\\copy (SELECT email FROM customers ORDER BY id) TO STDOUT",
            "a***@example.com\nb***@example.org\nc***@example.net\n",
        ),
        ("TABLE b.t", "1|\n"),
        ("SELECT count(*) FROM orders", "3\n"),
    ] {
        let output = psql(tap.port, "shop_app", &database.name, command);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            wanted,
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for command in [
        "DELETE FROM scratch",
        "TABLE payroll",
        "\\copy payroll TO STDOUT",
        "\\dt+ payroll",
        "\\lo_import /etc/hostname",
    ] {
        psql(tap.port, "shop_app", &database.name, command);
    }
    tap.assert_clean();
}

fn psql(port: u16, user: &str, database: &str, command: &str) -> Output {
    let program = test_support::postgres_bin()
        .expect("PostgreSQL's programs")
        .join("psql");
    let mut psql = Command::new(program);
    psql.args([
        "-X",
        "-q",
        "-A",
        "-t",
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-U",
        user,
        "-d",
        database,
        "-c",
        command,
    ]);
    psql.env_clear()
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .output()
        .expect("psql runs")
}

/// The script prints the same through a sidecar as without.
fn compare(script: &str) {
    let database = Database::new();
    let direct = run(script, database.port, &database.name);
    let rules = ["{name: all, actions: [Select, Insert, Update, Delete], tables: [\"public.*\"]}"];
    let sidecar = Sidecar::start_with(&database, &shop_policy(&database, &rules, &[]));
    let governed = run(script, sidecar.port, &database.name);
    assert!(!direct.is_empty());
    assert_eq!(governed, direct, "{script}");
}

/// The script checks by itself, and ends with `done`; nothing protected came through.
fn govern(script: &str) {
    let database = Database::new();
    let sidecar = Sidecar::start(&database);
    let tap = Tap::before(sidecar.port);
    let printed = run(script, tap.port, &database.name);
    assert!(printed.trim_end().ends_with("done"), "{printed}");
    tap.assert_clean();
}

fn run(script: &str, port: u16, database: &str) -> String {
    let command = if script.ends_with(".js") {
        test_support::drivers::node(script)
    } else {
        test_support::drivers::python(script)
    };
    let mut command = command.expect("the drivers are installed");
    let output = command
        .args([port.to_string(), database.to_owned()])
        .output()
        .expect("the script runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script} on port {port}:\n{printed}{errors}"
    );
    printed
}
