//! The demo's own PostgreSQL.

use super::free_port;
use super::processes::{End, Processes};
use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SCHEMA: &str = include_str!("../../../../tests/shop/schema.sql");
const ROWS: &str = include_str!("../../../../tests/shop/shop.sql");
/// What the sidecar logs in as; the application never learns the password.
const LOGIN: &str = "\
    create role orders_login login password 'demo-only';\n\
    grant select, insert, update, delete, truncate on all tables in schema public to orders_login;\n\
    grant usage, select, update on all sequences in schema public to orders_login;\n\
    grant create, usage on schema public to orders_login;\n";

pub(super) struct Server {
    bin: PathBuf,
    socket: PathBuf,
    port: u16,
}

impl Server {
    pub(super) fn start(folder: &Path, processes: &mut Processes) -> Result<Self> {
        let bin = programs()?;
        let owner = account()?;
        let (data, socket) = (folder.join("data"), folder.join("socket"));
        for path in [&data, &socket] {
            std::fs::create_dir(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
            if let Some((uid, gid)) = owner {
                chown(path, Some(uid), Some(gid))?;
            }
        }
        let mut initdb = as_account(&bin.join("initdb"), owner);
        initdb
            .args([
                "--no-sync",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256", "--pgdata"])
            .arg(&data);
        run(initdb).context("initdb failed")?;
        let log = folder.join("postgres.log");
        for _ in 0..5 {
            let port = free_port()?;
            let mut postgres = as_account(&bin.join("postgres"), owner);
            postgres
                .arg("-D")
                .arg(&data)
                .args(["-p", &port.to_string(), "-k"])
                .arg(&socket)
                .args([
                    "-c",
                    "listen_addresses=127.0.0.1",
                    "-c",
                    "fsync=off",
                    "-c",
                    "timezone=UTC",
                ]);
            processes.start("postgres", postgres, &log, End::Interrupt)?;
            if is_up(&data)? {
                return Ok(Self { bin, socket, port });
            }
        }
        bail!(
            "PostgreSQL does not start: {}",
            std::fs::read_to_string(log).unwrap_or_default()
        )
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its socket, where the superuser gets in without a password.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn load_shop(&self, database: &str) -> Result<()> {
        self.psql("postgres", &format!("create database {database}"))?;
        self.psql(database, &format!("begin;\n{SCHEMA}\n{ROWS}\n{LOGIN}\ncommit;"))
    }

    fn psql(&self, database: &str, sql: &str) -> Result<()> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args([
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            database,
            "-h",
        ])
        .arg(&self.socket)
        .args(["-p", &self.port.to_string(), "-c", sql]);
        run(psql)
    }
}

/// Waits until the server is up (true) or has given up (false: most likely its port was taken).
fn is_up(data: &Path) -> Result<bool> {
    let pid_file = data.join("postmaster.pid");
    let begun = Instant::now();
    loop {
        // The file's eighth line becomes `ready`; the file goes when the server does.
        let text = std::fs::read_to_string(&pid_file);
        match &text {
            Ok(text) if text.lines().nth(7).is_some_and(|line| line.trim() == "ready") => return Ok(true),
            Err(_) if begun.elapsed() > Duration::from_secs(3) => return Ok(false),
            _ => ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "PostgreSQL is not up after 30 s"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// PostgreSQL's programs: `WEIR_PG_BIN`, else the newest that Debian or Ubuntu installed.
fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("WEIR_PG_BIN") {
        return Ok(folder.into());
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
    {
        let bin = entry.path().join("bin");
        if let Some(major) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && bin.join("postgres").is_file()
        {
            found.push((major, bin));
        }
    }
    found.sort();
    found.pop().map(|(_, bin)| bin).context(
        "no PostgreSQL server found: install `postgresql`, or set WEIR_PG_BIN to the folder of its programs",
    )
}

/// PostgreSQL refuses to run as root; root lends it the account `postgres` or `nobody`.
fn account() -> Result<Option<(u32, u32)>> {
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for line in accounts.lines() {
            let mut fields = line.split(':');
            if fields.next() == Some(wanted) {
                let mut numbers = fields.skip(1).filter_map(|field| field.parse().ok());
                if let (Some(uid), Some(gid)) = (numbers.next(), numbers.next()) {
                    return Ok(Some((uid, gid)));
                }
            }
        }
    }
    bail!("running as root, and there is neither a `postgres` nor a `nobody` account to run the server as")
}

fn as_account(program: &Path, account: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    if let Some((uid, gid)) = account {
        command.uid(uid).gid(gid);
    }
    command
}

fn run(mut command: Command) -> Result<()> {
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
    Ok(())
}
