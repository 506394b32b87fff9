//! Throw-away PostgreSQL servers.

use crate::certificates::Certificates;
use crate::process::{Process, Signal};
use crate::wait::{free_port, wait_for};
use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "weir-test-pg-";

/// How the server asks clients over TCP for proof. The local socket, which these helpers use, always trusts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// No password.
    #[default]
    Trust,
    /// SCRAM-SHA-256.
    Scram,
    /// The older md5 exchange.
    Md5,
    /// The password in clear text.
    Password,
}

impl Auth {
    fn method(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Scram => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Password => "password",
        }
    }
}

/// What kind of server a test needs.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// How TCP clients log in. The superuser is `postgres` with [`Postgres::PASSWORD`].
    pub auth: Auth,
    /// Offer TLS with a made certificate (see [`Postgres::certificates`]).
    pub tls: bool,
    /// With `tls`: refuse TCP connections that do not use it.
    pub tls_only: bool,
    /// More lines of `postgresql.conf`, as name and value.
    pub settings: Vec<(String, String)>,
}

/// A running server in a temporary folder; dropping it ends the server and removes the folder.
#[derive(Debug)]
pub struct Postgres {
    // The order matters: the server ends before its folder goes.
    process: Process,
    folder: tempfile::TempDir,
    port: u16,
    certificates: Option<Certificates>,
    next: AtomicU32,
}

/// The server all tests of this process share. It ends with the process.
pub fn shared_postgres() -> Result<&'static Postgres> {
    static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
    let made =
        SHARED.get_or_init(|| Postgres::start(&PostgresOptions::default()).map_err(|e| format!("{e:#}")));
    made.as_ref().map_err(|text| anyhow::anyhow!("{text}"))
}

/// The folder of PostgreSQL's programs: `WEIR_PG_BIN`, else the newest that Debian installed.
pub fn postgres_bin() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("WEIR_PG_BIN") {
        let folder = PathBuf::from(folder);
        ensure!(
            folder.join("postgres").is_file(),
            "WEIR_PG_BIN={} has no `postgres`",
            folder.display()
        );
        return Ok(folder);
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    if let Ok(entries) = std::fs::read_dir("/usr/lib/postgresql") {
        for entry in entries.flatten() {
            let bin = entry.path().join("bin");
            if let Some(major) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                && bin.join("postgres").is_file()
            {
                found.push((major, bin));
            }
        }
    }
    found.sort();
    let newest = found.pop().map(|(_, bin)| bin);
    newest.context("no PostgreSQL server found: run scripts/install-deps.sh, or set WEIR_PG_BIN")
}

impl Postgres {
    /// The superuser's password where [`Auth`] asks for one.
    pub const PASSWORD: &'static str = "only-for-tests";

    /// Makes and starts a server.
    pub fn start(options: &PostgresOptions) -> Result<Self> {
        static SWEPT: OnceLock<()> = OnceLock::new();
        SWEPT.get_or_init(end_leftovers);

        let bin = postgres_bin()?;
        let owner = server_owner()?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let top = folder.path();
        std::fs::set_permissions(top, std::fs::Permissions::from_mode(0o755))?;
        std::fs::write(top.join("owner.pid"), std::process::id().to_string())?;
        let (data, socket) = (top.join("data"), top.join("socket"));
        std::fs::create_dir(&socket)?;
        std::fs::create_dir(&data)?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700))?;
        std::fs::write(top.join("password"), Self::PASSWORD)?;
        if let Some((uid, gid)) = owner {
            for path in [top, &data, &socket] {
                chown(path, Some(uid), Some(gid))?;
            }
        }

        let mut initdb = as_owner(&bin.join("initdb"), owner);
        // md5 needs a password stored as md5; the others read SCRAM verifiers.
        let encryption = if options.auth == Auth::Md5 {
            "md5"
        } else {
            "scram-sha-256"
        };
        initdb
            .args([
                "--no-sync",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--auth-local=trust",
            ])
            .arg(format!(
                "--auth-host={}",
                if options.auth == Auth::Md5 {
                    "md5"
                } else {
                    "scram-sha-256"
                }
            ))
            .arg(format!("--pwfile={}", top.join("password").display()))
            .arg("--pgdata")
            .arg(&data);
        run(initdb).context("initdb failed")?;

        let certificates = match options.tls {
            true => Some(write_certificates(&data, owner)?),
            false => None,
        };
        let host = if options.tls_only { "hostssl" } else { "host" };
        let method = options.auth.method();
        let hba = format!(
            "local all all trust\nlocal replication all trust\n{host} all all 127.0.0.1/32 {method}\n\
             {host} all all ::1/128 {method}\n{host} replication all 127.0.0.1/32 {method}\n"
        );
        std::fs::write(data.join("pg_hba.conf"), hba)?;
        write_settings(&data, &socket, encryption, options)?;

        let mut last = String::new();
        for _ in 0..5 {
            let port = free_port()?;
            match start_on(&bin, owner, top, port) {
                Ok(process) => {
                    return Ok(Self {
                        process,
                        folder,
                        port,
                        certificates,
                        next: AtomicU32::new(1),
                    });
                }
                Err(error) => last = format!("{error:#}"), // most likely the port was taken in between
            }
        }
        bail!("PostgreSQL does not start: {last}")
    }

    /// A standby of this server (hot, streaming), on the same port of another loopback address, such as `::1`.
    pub fn standby(&self, listen: &str) -> Result<Self> {
        let bin = postgres_bin()?;
        let owner = server_owner()?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let top = folder.path();
        std::fs::set_permissions(top, std::fs::Permissions::from_mode(0o755))?;
        std::fs::write(top.join("owner.pid"), std::process::id().to_string())?;
        let (data, socket) = (top.join("data"), top.join("socket"));
        std::fs::create_dir(&socket)?;
        if let Some((uid, gid)) = owner {
            for path in [top, &socket] {
                chown(path, Some(uid), Some(gid))?;
            }
        }
        let mut copy = as_owner(&bin.join("pg_basebackup"), owner);
        copy.args([
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            "--username=postgres",
        ])
        .arg(format!("--host={}", self.folder.path().join("socket").display()))
        .arg(format!("--port={}", self.port))
        .arg("--pgdata")
        .arg(&data);
        run(copy).context("pg_basebackup failed")?;
        let path = data.join("postgresql.conf");
        let mut settings = std::fs::read_to_string(&path)?;
        settings.push_str(&format!(
            "listen_addresses = '{listen}'\nunix_socket_directories = '{}'\n",
            socket.display()
        ));
        std::fs::write(path, settings)?;
        let process = start_on(&bin, owner, top, self.port)?;
        Ok(Self {
            process,
            folder,
            port: self.port,
            certificates: self.certificates.clone(),
            next: AtomicU32::new(1),
        })
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The server's root certificate and its own, if it was started with TLS.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// A folder that lives as long as the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The server's process, for tests that stop or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts the server again on the same port and data after it was stopped or killed.
    pub fn restart(&mut self) -> Result<()> {
        self.process.stop(Signal::Interrupt, 20)?;
        self.process = start_on(&postgres_bin()?, server_owner()?, self.folder.path(), self.port)?;
        Ok(())
    }

    /// A new, empty database with a name of its own.
    pub fn database(&self) -> Result<Database<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        self.psql("postgres", &format!("create database {name}"))?;
        Ok(Database { server: self, name })
    }

    /// Runs SQL with psql over the local socket as the superuser; gives its unaligned output without the last line end.
    /// Stops at the first error.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.psql_command(database)?;
        psql.args(["-c", sql]);
        run(psql).with_context(|| format!("psql: {sql}"))
    }

    /// Runs a file of SQL as [`Postgres::psql`] does.
    pub fn psql_file(&self, database: &str, file: &Path) -> Result<String> {
        let mut psql = self.psql_command(database)?;
        psql.arg("-f").arg(file);
        run(psql).with_context(|| format!("psql -f {}", file.display()))
    }

    fn psql_command(&self, database: &str) -> Result<Command> {
        let mut psql = Command::new(postgres_bin()?.join("psql"));
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
        .arg(self.folder.path().join("socket"))
        .args(["-p", &self.port.to_string()])
        .env_remove("PGOPTIONS")
        .env("PGCLIENTENCODING", "UTF8");
        Ok(psql)
    }
}

/// A database of a [`Postgres`].
#[derive(Debug)]
pub struct Database<'s> {
    server: &'s Postgres,
    name: String,
}

impl<'s> Database<'s> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its server.
    pub fn server(&self) -> &'s Postgres {
        self.server
    }

    /// See [`Postgres::psql`].
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.server.psql(&self.name, sql)
    }

    /// See [`Postgres::psql_file`].
    pub fn psql_file(&self, file: &Path) -> Result<String> {
        self.server.psql_file(&self.name, file)
    }

    /// `postgres://` URL over TCP as the superuser.
    pub fn url(&self) -> String {
        self.url_through(self.server.port)
    }

    /// The same, but for whatever listens on `port` (the sidecar).
    pub fn url_through(&self, port: u16) -> String {
        format!(
            "postgres://postgres:{}@127.0.0.1:{port}/{}",
            Postgres::PASSWORD,
            self.name
        )
    }

    /// Settings for tokio-postgres over TCP as the superuser.
    pub fn config(&self) -> tokio_postgres::Config {
        self.config_through(self.server.port)
    }

    /// The same, but for whatever listens on `port` (the sidecar).
    pub fn config_through(&self, port: u16) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(port)
            .user("postgres")
            .password(Postgres::PASSWORD)
            .dbname(&self.name);
        config
    }

    /// A client over TCP, its connection driven by a task of the current runtime.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        connect(&self.config()).await
    }

    /// The same through whatever listens on `port` (the sidecar).
    pub async fn connect_through(&self, port: u16) -> Result<tokio_postgres::Client> {
        connect(&self.config_through(port)).await
    }
}

async fn connect(config: &tokio_postgres::Config) -> Result<tokio_postgres::Client> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    // Ends when the client is dropped; its error, if any, is what the client's next call reports.
    tokio::spawn(connection);
    Ok(client)
}

fn start_on(bin: &Path, owner: Option<(u32, u32)>, top: &Path, port: u16) -> Result<Process> {
    let data = top.join("data");
    let _ = std::fs::remove_file(data.join("postmaster.pid"));
    let mut postgres = as_owner(&bin.join("postgres"), owner);
    postgres.arg("-D").arg(&data).args(["-p", &port.to_string()]);
    let log = top.join("server.log");
    let mut process = Process::start_with_folder(postgres, &log, Signal::Quit, Some(top))?;
    let pid_file = data.join("postmaster.pid");
    // The eighth line of the file becomes `ready` when connections are accepted.
    let ready = wait_for("PostgreSQL to accept connections", 60, || {
        if let Some(status) = process.ended() {
            return Some(Err(anyhow::anyhow!(
                "the server ended ({status}): {}",
                process.log()
            )));
        }
        let text = std::fs::read_to_string(&pid_file).ok()?;
        text.lines()
            .nth(7)
            .filter(|line| line.trim() == "ready")
            .map(|_| Ok(()))
    });
    ready??;
    Ok(process)
}

fn write_settings(data: &Path, socket: &Path, encryption: &str, options: &PostgresOptions) -> Result<()> {
    let mut text = format!(
        "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\npassword_encryption = '{encryption}'\n\
         fsync = off\nfull_page_writes = off\nmax_connections = 200\n\
         max_prepared_transactions = 20\nwal_level = logical\nshared_buffers = 64MB\n\
         timezone = 'UTC'\nlog_timezone = 'UTC'\n",
        socket.display()
    );
    if options.tls {
        text.push_str(
            "ssl = on\nssl_ca_file = 'ca.crt'\nssl_cert_file = 'tls.crt'\nssl_key_file = 'tls.key'\n",
        );
    }
    for (name, value) in &options.settings {
        text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
    }
    let path = data.join("postgresql.conf");
    let mut all = std::fs::read_to_string(&path)?;
    all.push_str(&text);
    std::fs::write(path, all)?;
    Ok(())
}

fn write_certificates(data: &Path, owner: Option<(u32, u32)>) -> Result<Certificates> {
    let certificates = Certificates::new(&["localhost", "127.0.0.1"])?;
    for path in certificates.write(data)? {
        if let Some((uid, gid)) = owner {
            chown(path, Some(uid), Some(gid))?;
        }
    }
    Ok(certificates)
}

/// Whom the server runs as: PostgreSQL refuses root, so root lends it the account `postgres` or `nobody`.
/// `None` where this process is not root: then as itself.
pub fn server_owner() -> Result<Option<(u32, u32)>> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for line in accounts.lines() {
            let mut fields = line.split(':');
            if fields.next() == Some(wanted) {
                let mut numbers = fields.skip(1).take(2).filter_map(|field| field.parse().ok());
                if let (Some(uid), Some(gid)) = (numbers.next(), numbers.next()) {
                    return Ok(Some((uid, gid)));
                }
            }
        }
    }
    bail!("running as root, and there is neither a `postgres` nor a `nobody` account to run the server as")
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command
}

fn run(mut command: Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&out.stdout)
        .trim_end_matches('\n')
        .to_owned();
    ensure!(
        out.status.success(),
        "{:?} ended with {}: {text}{}",
        command.get_program(),
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(text)
}

/// Ends servers whose test process is gone and whose watchdog is too (a reboot of the terminal, an out-of-memory
/// kill). Only processes recorded in such a folder, and only if they still run from it.
fn end_leftovers() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let top = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Some(owner) = read_pid(&top.join("owner.pid")) else {
            continue;
        };
        if Path::new(&format!("/proc/{owner}")).exists() {
            continue;
        }
        let data = top.join("data");
        if let Some(pid) = read_pid(&data.join("postmaster.pid")) {
            let ours = std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*data.to_string_lossy()));
            if ours {
                let _ = Command::new("/bin/sh")
                    .args(["-c", r#"kill -QUIT "$1""#, "kill", &pid.to_string()])
                    .status();
                let gone = || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(());
                if wait_for("a leftover server to end", 10, gone).is_err() {
                    continue;
                }
            }
        }
        let _ = std::fs::remove_dir_all(top);
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path)
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()
}
