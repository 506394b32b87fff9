//! `make bench`: pgbench against the same server, direct, through pgbouncer in session mode, and through the sidecar.
//!
//! The rounds are interleaved, so that a busy machine slows all of them alike; what counts is the ratio to direct.
//! It does not fail on a slow result: the bar is a matter of quiet machines.

use crate::through_sidecar::{Policy, Sidecar};
use anyhow::{Context, Result, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use test_support::{
    Postgres, PostgresOptions, Process, Signal, binary_of_profile, free_port, postgres_bin, server_owner,
    wait_for_port,
};

const ROUNDS: usize = 3;
const SCALE: &str = "5";
const CLIENTS: &str = "8";

/// One kind of work, as pgbench's options.
const WORKLOADS: [(&str, &[&str]); 3] = [
    ("select, prepared", &["-S", "-M", "prepared"]),
    ("select, simple", &["-S", "-M", "simple"]),
    ("tpcb-like, extended", &["-M", "extended"]),
];

/// Runs it with `seconds` a measurement (default 2).
pub(crate) fn run(seconds: Option<&str>) -> Result<()> {
    let seconds: u32 = seconds
        .unwrap_or("2")
        .parse()
        .context("SECONDS is a whole number")?;
    println!("== starting PostgreSQL and loading pgbench's tables (scale {SCALE})");
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let server = Postgres::start(&PostgresOptions {
        settings: vec![setting("shared_buffers", "256MB"), setting("autovacuum", "off")],
        ..Default::default()
    })?;
    server.psql("postgres", "create database bench")?;
    let mut load = pgbench(server.port())?;
    load.args(["-i", "-q", "-s", SCALE, "bench"]);
    finish(&mut load)?;

    let sidecar = binary_of_profile("weir-sidecar", "release")?;
    let pass = Sidecar::start(&sidecar, &server, "bench", Policy::AllowAll)?;
    let judged = Sidecar::start(&sidecar, &server, "bench", Policy::Judged)?;
    let bouncer = PgBouncer::start(&server)?;
    let targets = [
        ("direct", server.port()),
        ("pgbouncer", bouncer.port),
        ("weir, allow-all", pass.port),
        ("weir, judged", judged.port),
    ];

    println!(
        "== {ROUNDS} interleaved rounds of {seconds} s, {CLIENTS} clients, transactions a second (median)\n"
    );
    println!(
        "{:<22}{:<18}{:>10}{:>12}{:>16}",
        "workload", "through", "tps", "of direct", "of pgbouncer"
    );
    for (workload, options) in WORKLOADS {
        let mut rates: Vec<Vec<f64>> = vec![Vec::new(); targets.len()];
        for _ in 0..ROUNDS {
            for ((_, port), rates) in targets.iter().zip(&mut rates) {
                rates.push(measure(*port, seconds, options)?);
            }
        }
        let medians: Vec<f64> = rates.into_iter().map(median).collect();
        let (direct, bouncer) = (medians.first().copied(), medians.get(1).copied());
        for ((name, _), tps) in targets.iter().zip(&medians) {
            let ratio = |base: Option<f64>| base.map_or(f64::NAN, |base| tps / base);
            println!(
                "{workload:<22}{name:<18}{tps:>10.0}{:>12.3}{:>16.3}",
                ratio(direct),
                ratio(bouncer)
            );
        }
        println!();
    }
    Ok(())
}

fn measure(port: u16, seconds: u32, options: &[&str]) -> Result<f64> {
    let mut command = pgbench(port)?;
    command
        .args(["-n", "-c", CLIENTS, "-j", "2", "-T", &seconds.to_string()])
        .args(options)
        .arg("bench");
    let text = finish(&mut command)?;
    // `tps = 1234.5 (without initial connection time)`
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .context("pgbench printed no tps")?;
    line.split_whitespace()
        .next()
        .unwrap_or("")
        .parse()
        .context("pgbench's tps is a number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn pgbench(port: u16) -> Result<Command> {
    let mut command = Command::new(postgres_bin()?.join("pgbench"));
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"])
        .env("PGPASSWORD", Postgres::PASSWORD);
    Ok(command)
}

fn finish(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.success(),
        "{:?} ended with {}: {errors}",
        command.get_program(),
        out.status
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

struct PgBouncer {
    _process: Process,
    port: u16,
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    fn start(server: &Postgres) -> Result<Self> {
        let program = [
            "/usr/sbin/pgbouncer",
            "/usr/bin/pgbouncer",
            "/usr/local/bin/pgbouncer",
        ]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .context("pgbouncer is not installed: run scripts/install-deps.sh bench")?;
        let folder = tempfile::Builder::new().prefix("weir-pgbouncer-").tempdir()?;
        let port = free_port()?;
        let top = folder.path();
        std::fs::write(
            top.join("users"),
            format!("\"postgres\" \"{}\"\n", Postgres::PASSWORD),
        )?;
        let settings = format!(
            "[databases]\nbench = host=127.0.0.1 port={} dbname=bench user=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = session\nmax_client_conn = 100\ndefault_pool_size = 50\nlogfile = {}\n\
             ignore_startup_parameters = extra_float_digits\n",
            server.port(),
            top.join("users").display(),
            top.join("log").display()
        );
        std::fs::write(top.join("pgbouncer.ini"), settings)?;
        let mut command = Command::new(program);
        command.arg("-q").arg(top.join("pgbouncer.ini"));
        if let Some((uid, gid)) = server_owner()? {
            give(top, uid, gid)?;
            command.uid(uid).gid(gid);
        }
        let process = Process::start(command, &top.join("output"), Signal::Interrupt)?;
        wait_for_port(port, 10).with_context(|| process.log())?;
        Ok(Self {
            _process: process,
            port,
            _folder: folder,
        })
    }
}

fn give(folder: &Path, uid: u32, gid: u32) -> Result<()> {
    use std::os::unix::fs::chown;
    for entry in std::fs::read_dir(folder)? {
        chown(entry?.path(), Some(uid), Some(gid))?;
    }
    chown(folder, Some(uid), Some(gid))?;
    Ok(())
}
