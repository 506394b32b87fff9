//! The built `weir-sidecar`, started in front of the shop.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use test_support::{Process, Signal, binary, free_port, wait_for};

use super::client::Client;
use super::database::{Database, ROLE};

/// Longest start before the test fails.
const START_SECONDS_MAX: u64 = 30;

/// Ends with the value.
pub(crate) struct Sidecar {
    process: Process,
    pub(crate) port: u16,
    pub(crate) admin_port: u16,
    database: String,
    _folder: Option<tempfile::TempDir>,
}

impl Sidecar {
    /// In front of `database`, under the policy of `policy.yaml`.
    pub(crate) fn start(database: &Database) -> Self {
        Self::start_with(database, &shop_policy(database, &[], &[]))
    }

    /// Under these manifests.
    pub(crate) fn start_with(database: &Database, manifests: &str) -> Self {
        Self::start_before(database.port, &database.name, manifests)
    }

    /// In front of whatever listens on `upstream`.
    pub(crate) fn start_before(upstream: u16, database: &str, manifests: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("weir-sidecar-")
            .tempdir()
            .expect("a temporary folder");
        let policies = folder.path().join("policies");
        fs::create_dir(&policies).expect("a folder");
        fs::write(policies.join("shop.yaml"), manifests).expect("a file");
        // Between finding a free port and taking it another process may be quicker.
        let mut attempts = 0;
        loop {
            attempts += 1;
            match Self::start_once(upstream, database, &folder) {
                Ok(mut sidecar) => {
                    sidecar._folder = Some(folder);
                    return sidecar;
                }
                Err(log) if attempts < 5 && log.contains("Address already in use") => {}
                Err(log) => panic!("weir-sidecar does not get ready:\n{log}"),
            }
        }
    }

    fn start_once(upstream: u16, database: &str, folder: &tempfile::TempDir) -> Result<Self, String> {
        let (port, admin_port) = (free_port().expect("a port"), free_port().expect("a port"));
        let mut command = Command::new(binary("weir-sidecar").expect("weir-sidecar builds"));
        command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--upstream", &format!("127.0.0.1:{upstream}")])
            .args(["--admin", &format!("127.0.0.1:{admin_port}")])
            .arg("--policy-dir")
            .arg(folder.path().join("policies"))
            .arg("--spool-dir")
            .arg(folder.path().join("spool"))
            .args(["--as", "serviceAccount=agent", "--as", "claims.tenant=a"]);
        let log = folder.path().join(format!("log-{port}"));
        let process = Process::start(command, &log, Signal::Kill).expect("weir-sidecar starts");
        let mut sidecar = Self {
            process,
            port,
            admin_port,
            database: database.to_owned(),
            _folder: None,
        };
        let ready = wait_for("weir-sidecar is ready", START_SECONDS_MAX, || {
            match (sidecar.process.ended(), sidecar.is_ready()) {
                (Some(_), _) => Some(false),
                (None, true) => Some(true),
                (None, false) => None,
            }
        });
        if ready.is_ok_and(|ready| ready) {
            Ok(sidecar)
        } else {
            Err(sidecar.log())
        }
    }

    /// Writes other manifests, and waits until they are in force.
    pub(crate) fn reload(&self, manifests: &str, in_force: impl Fn() -> bool) {
        let folder = self._folder.as_ref().expect("it is set once the sidecar runs");
        fs::write(folder.path().join("policies/shop.yaml"), manifests).expect("a file");
        let seen = wait_for("the new policy is in force", START_SECONDS_MAX, || {
            in_force().then_some(())
        });
        assert!(seen.is_ok(), "{seen:?}:\n{}", self.log());
    }

    /// A session as the application opens one.
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.port, &[("user", ROLE), ("database", &self.database)])
    }

    /// `GET path` of the admin port.
    pub(crate) fn admin(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port)).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// It lives, and this much memory is resident.
    pub(crate) fn resident_bytes(&mut self) -> usize {
        assert!(
            self.process.ended().is_none(),
            "weir-sidecar ended:\n{}",
            self.log()
        );
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a line");
        let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes * 1024
    }

    fn is_ready(&self) -> bool {
        self.admin("/readyz")
            .is_some_and(|text| text.starts_with("HTTP/1.1 200"))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- weir-sidecar said ---\n{}", self.log());
        }
    }
}

/// The shop's policy, with more access rules and guardrails (YAML flow items, one a line).
pub(crate) fn shop_policy(database: &Database, access: &[&str], guardrails: &[&str]) -> String {
    let filled = include_str!("../policy.yaml")
        .replace("{port}", &database.port.to_string())
        .replace("{role}", ROLE);
    let access: String = access.iter().map(|rule| format!("  - {rule}\n")).collect();
    let guardrails: String = guardrails.iter().map(|line| format!("    {line}\n")).collect();
    filled
        .replace("  # {access}\n", &access)
        .replace("    # {guardrails}\n", &guardrails)
}
