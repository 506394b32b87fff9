//! One server for all tests, a sidecar for each.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use test_support::{Postgres, PostgresOptions, Process, Signal, binary, free_port, postgres_bin, wait_for};

/// Name by which policies know the server; its certificate is for it.
pub(crate) const HOST: &str = "localhost";
/// Port by which policies know it.
pub(crate) const PORT: u16 = 5432;

/// A server with TLS and one user for each way of logging in, all with the password `secret`.
pub(crate) fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Postgres::start(&PostgresOptions {
            tls: true,
            ..PostgresOptions::default()
        })
        .unwrap();
        for sql in [
            "set password_encryption = 'scram-sha-256'; create role scram_user login password 'secret'; \
             create role clear_user login password 'secret'; create role trust_user login; \
             set password_encryption = 'md5'; create role md5_user login password 'secret'",
            "create database shop",
            "create database other",
        ] {
            server.psql("postgres", sql).unwrap();
        }
        server
            .psql("shop", "grant all on schema public to public")
            .unwrap();
        let hba = server.folder().join("data/pg_hba.conf");
        let mut rules = String::from("local all all trust\n");
        for (user, method) in [
            ("scram_user", "scram-sha-256"),
            ("clear_user", "password"),
            ("md5_user", "md5"),
            ("trust_user", "trust"),
            ("postgres", "trust"),
        ] {
            rules.push_str(&format!("host all {user} 127.0.0.1/32 {method}\n"));
        }
        std::fs::write(&hba, rules).unwrap();
        server.psql("postgres", "select pg_reload_conf()").unwrap();
        // The reload is done when the new rules are in force.
        wait_for("the server's new rules", 10, || {
            let method = server
                .psql(
                    "postgres",
                    "select auth_method from pg_hba_file_rules where 'md5_user' = any(user_name)",
                )
                .ok()?;
            (method == "md5").then_some(())
        })
        .unwrap();
        server
    })
}

/// A policy for the server. `database` is indented into `spec.database`, `spec` into `spec`.
pub(crate) fn policy(tls: &str, database: &str, spec: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: DatabaseAccessPolicy\nmetadata: {{name: test}}\nspec:\n  \
         podSelector: {{}}\n  database:\n    engine: PostgreSQL\n    host: {HOST}\n    port: {PORT}\n    \
         tls: {tls}\n{database}  defaultAction: Allow\n{spec}"
    )
}

/// `database` part: the sidecar logs in as `user`, over whatever there is.
pub(crate) fn credentials() -> String {
    "    credentials: {secretRef: {name: login}, transport: Plaintext}\n".to_owned()
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) admin: u16,
}

/// How a sidecar is started.
pub(crate) struct Start {
    policy: String,
    arguments: Vec<String>,
    login: Option<(String, String)>,
    upstream_port: Option<u16>,
    listen_host: &'static str,
}

impl Start {
    /// With this policy.
    pub(crate) fn with(policy: String) -> Self {
        Self {
            policy,
            arguments: Vec::new(),
            login: None,
            upstream_port: None,
            listen_host: "127.0.0.1",
        }
    }
    /// With more flags.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }
    /// With a Secret `login`.
    pub(crate) fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }
    /// Dials another port.
    pub(crate) fn upstream(mut self, port: u16) -> Self {
        self.upstream_port = Some(port);
        self
    }

    /// Listens elsewhere.
    pub(crate) fn listen(mut self, host: &'static str) -> Self {
        self.listen_host = host;
        self
    }

    /// Writes the folders and gives the command.
    pub(crate) fn command(&self, folder: &Path, port: u16, admin: u16) -> Command {
        let policies = folder.join("policies");
        let secrets = folder.join("secrets");
        std::fs::create_dir_all(&policies).unwrap();
        std::fs::create_dir_all(secrets.join("ca")).unwrap();
        std::fs::write(policies.join("policy.yaml"), &self.policy).unwrap();
        if let Some(certificates) = server().certificates() {
            std::fs::write(secrets.join("ca/ca.crt"), &certificates.ca).unwrap();
        }
        if let Some((user, password)) = &self.login {
            std::fs::create_dir_all(secrets.join("login")).unwrap();
            std::fs::write(secrets.join("login/username"), user).unwrap();
            // As `echo` writes it.
            std::fs::write(secrets.join("login/password"), format!("{password}\n")).unwrap();
        }
        let mut command = Command::new(binary("weir-sidecar").unwrap());
        command
            .args(["--listen", &format!("{}:{port}", self.listen_host)])
            .args(["--admin", &format!("127.0.0.1:{admin}")])
            .args([
                "--upstream-address",
                &format!(
                    "127.0.0.1:{}",
                    self.upstream_port.unwrap_or_else(|| server().port())
                ),
            ])
            .arg("--policy-dir")
            .arg(&policies)
            .arg("--secrets-dir")
            .arg(&secrets)
            .arg("--spool-dir")
            .arg(folder.join("spool"))
            .args(&self.arguments)
            .env("WEIR_LOG", "info,sidecar=debug");
        command
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(self) -> Sidecar {
        let folder = tempfile::tempdir().unwrap();
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let command = self.command(folder.path(), port, admin);
        let log = folder.path().join("log");
        let mut process = Process::start(command, &log, Signal::Kill).unwrap();
        wait_for("the sidecar to be ready", 30, || {
            assert!(process.ended().is_none(), "the sidecar ended: {}", process.log());
            let (status, _) = get(admin, "/readyz")?;
            (status == 200).then_some(())
        })
        .unwrap();
        Sidecar {
            process,
            folder,
            port,
            admin,
        }
    }

    /// Starts it where it must refuse to start; what it says.
    pub(crate) fn refused(self) -> String {
        let folder = tempfile::tempdir().unwrap();
        let output = self
            .command(folder.path(), free_port().unwrap(), free_port().unwrap())
            .output()
            .unwrap();
        assert!(!output.status.success(), "it must not start");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Sidecar {
    /// The page `/status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let (status, body) = get(self.admin, "/status").unwrap();
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// Runs psql through it; `conninfo` is added to host and port.
    pub(crate) fn psql(&self, conninfo: &str, sql: &str) -> Output {
        psql(self.port, conninfo, sql)
    }

    /// psql that must succeed; its output.
    pub(crate) fn query(&self, conninfo: &str, sql: &str) -> String {
        let output = self.psql(conninfo, sql);
        assert!(
            output.status.success(),
            "psql {conninfo}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.process.log()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// psql that must fail; its error.
    pub(crate) fn error(&self, conninfo: &str, sql: &str) -> String {
        let output = self.psql(conninfo, sql);
        assert!(
            !output.status.success(),
            "psql {conninfo} must fail\n{}",
            self.process.log()
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A socket to it.
    pub(crate) fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }
}

pub(crate) fn psql(port: u16, conninfo: &str, sql: &str) -> Output {
    Command::new(postgres_bin().unwrap().join("psql"))
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])
        .arg(format!(
            "host=127.0.0.1 port={port} connect_timeout=20 {conninfo}"
        ))
        .env("PGPASSWORD", "secret")
        .env_remove("PGOPTIONS")
        .output()
        .unwrap()
}

/// GET of an admin page: status and body.
pub(crate) fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}

/// A message of the protocol: type and body.
pub(crate) fn read_message(socket: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    socket.read_exact(&mut header).ok()?;
    let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 4];
    socket.read_exact(&mut body).ok()?;
    Some((header[0], body))
}

/// Messages up to the first of type `last`, or to the end.
pub(crate) fn read_until(socket: &mut impl Read, last: u8) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((tag, body)) = read_message(socket) {
        all.push((tag, body));
        if tag == last {
            break;
        }
    }
    all
}

/// A StartupMessage.
pub(crate) fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    packet(&body)
}

/// A packet without a type.
pub(crate) fn packet(body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32 + 4).to_be_bytes().to_vec();
    out.extend_from_slice(body);
    out
}

/// A message with a type.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&packet(body));
    out
}

/// The field of an ErrorResponse.
pub(crate) fn field(body: &[u8], code: u8) -> String {
    body.split(|byte| *byte == 0)
        .find(|part| part.first() == Some(&code))
        .map(|part| String::from_utf8_lossy(&part[1..]).into_owned())
        .unwrap_or_default()
}

/// A file that only its owner may read.
pub(crate) fn private_file(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let _ = chown(path, None, None);
}
