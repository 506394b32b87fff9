//! The application does not notice: real drivers print the same through the sidecar as direct, byte for byte.
//!
//! Each driver walks through `tests/drivers/…` twice, each time against a fresh copy of the same database.

use std::process::Command;
use std::sync::OnceLock;

use test_support::{Postgres, PostgresOptions, drivers, postgres_bin, workspace_root};

use super::harness::Sidecar;

/// Nothing is protected: everything passes, and is recorded.
const ALLOW_ALL: &str = "\
apiVersion: weir.dev/v1alpha1
kind: DatabaseAccessPolicy
metadata: {name: everything, namespace: shop}
spec:
  podSelector: {}
  database: {engine: PostgreSQL, host: 127.0.0.1, port: {port}, tls: {mode: Disable}}
  defaultAction: Allow
";

/// A server whose database `original` is the shop. Databases of one name follow each other, so they share a lock.
fn shop() -> &'static Postgres {
    static SHOP: OnceLock<Postgres> = OnceLock::new();
    SHOP.get_or_init(|| {
        let server = Postgres::start(&PostgresOptions::default()).expect("a server");
        server
            .psql("postgres", "create database original")
            .expect("a database");
        for file in ["schema.sql", "shop.sql"] {
            let file = workspace_root().join("tests/shop").join(file);
            server.psql_file("original", &file).expect("the shop loads");
        }
        server
    })
}

/// What `command` prints with the address of a fresh copy of the shop, served on the server's own port or through a
/// sidecar.
fn run(name: &str, through: bool, command: impl FnOnce(&str) -> Command) -> String {
    let server = shop();
    // The copy's name may be printed, so it is the same in both runs of a driver.
    let database = format!("shop_{name}");
    server
        .psql(
            "postgres",
            &format!("create database {database} template original"),
        )
        .expect("a copy");
    let sidecar = through.then(|| {
        let manifests = ALLOW_ALL.replace("{port}", &server.port().to_string());
        Sidecar::start_before(server.port(), &database, &manifests)
    });
    let port = sidecar.as_ref().map_or(server.port(), |sidecar| sidecar.port);
    let url = format!(
        "postgres://postgres:{}@127.0.0.1:{port}/{database}",
        Postgres::PASSWORD
    );
    // A driver that hangs is a failure with a name, not a test run without an end.
    let inner = command(&url);
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--kill-after=5", "120"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => bounded.env(key, value),
            None => bounded.env_remove(key),
        };
    }
    let out = bounded.output().expect("the driver starts");
    drop(sidecar);
    let end = out
        .status
        .code()
        .map_or("a signal".to_owned(), |code| code.to_string());
    let text = format!(
        "{}{}\nended with {end}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    server
        .psql("postgres", &format!("drop database {database} with (force)"))
        .expect("dropped");
    text
}

fn is_the_same(name: &str, last: &str, command: impl Fn(&str) -> Command) {
    let direct = run(name, false, &command);
    assert!(
        direct.contains(last),
        "{name} did not get to its end without the sidecar:\n{direct}"
    );
    let through = run(name, true, &command);
    let mut differences = Vec::new();
    let (mut one, mut two) = (direct.lines(), through.lines());
    loop {
        match (one.next(), two.next()) {
            (None, None) => break,
            (one, two) if one == two => {}
            (one, two) => differences.push(format!("  direct:  {}\n  sidecar: {}", shown(one), shown(two))),
        }
        if differences.len() == 5 {
            break;
        }
    }
    assert!(
        differences.is_empty(),
        "{name} sees another database through the sidecar:\n{}",
        differences.join("\n")
    );
}

fn shown(line: Option<&str>) -> String {
    line.map_or("(no line)".to_owned(), |line| line.chars().take(600).collect())
}

#[test]
fn psql() {
    is_the_same("psql", "ERROR:  23505", |url| {
        let mut command = Command::new(postgres_bin().expect("psql").join("psql"));
        command
            .args(["-X", "-e", "-f"])
            .arg(drivers::scripts().join("everything.psql"))
            .arg(url);
        command
    });
}

#[test]
fn psycopg() {
    is_the_same("psycopg", "end: 'reached'", |url| {
        let mut command = drivers::python("psycopg3.py").expect("psycopg is installed");
        command.arg(url);
        command
    });
}

#[test]
fn asyncpg() {
    is_the_same("asyncpg", "end: 'reached'", |url| {
        let mut command = drivers::python("asyncpg_.py").expect("asyncpg is installed");
        command.arg(url);
        command
    });
}

#[test]
fn node_postgres() {
    is_the_same("node", "end: 'reached'", |url| {
        let mut command = drivers::node("node-postgres.js").expect("node-postgres is installed");
        command.arg(url);
        command
    });
}

#[test]
fn pgbench() {
    // One client and a seed: the same transactions, so the same rows. Each protocol of pgbench follows on the other.
    is_the_same("pgbench", "tpcb done", |url| {
        let bin = postgres_bin().expect("pgbench");
        let script = format!(
            "set -e; bench='{bin}/pgbench'; psql='{bin}/psql -XAt'\n\
             $bench -q -i -s 1 '{url}' 2>/dev/null\n\
             for protocol in simple extended prepared; do\n\
               $bench -n -c 1 -t 60 --random-seed=7 -M $protocol '{url}' | grep -E 'processed|failed|mode'\n\
             done\n\
             $psql -c 'select count(*), sum(abalance), max(aid) from pgbench_accounts' '{url}'\n\
             $psql -c 'select tid, bid, aid, delta from pgbench_history order by ctid' '{url}'\n\
             echo tpcb done",
            bin = bin.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]);
        command
    });
}
