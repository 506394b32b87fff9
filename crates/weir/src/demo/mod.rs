//! `weir demo`: a governed PostgreSQL on this machine, and an AI agent's day played against it.
//!
//! ```text
//! weir demo ──starts──► PostgreSQL with the shop   (a folder of its own under the temporary folder)
//!     │                 weir-collector
//!     │                 weir-sidecar with deploy/examples
//!     └──plays──► the day's statements ──► sidecar ──► PostgreSQL, then weir audit, lineage, verify
//! ```
//! What it started goes on running until `weir demo --stop`, which ends exactly the processes it recorded.

mod day;
mod processes;
mod server;

use anyhow::{Context, Result, bail, ensure};
use processes::{End, Processes};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The flags of `weir demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End what an earlier `weir demo` left running, and remove its files
    #[arg(long)]
    stop: bool,
    /// The policies to enforce
    #[arg(long, value_name = "DIR", default_value = "deploy/examples/policies")]
    policy_dir: PathBuf,
    /// The secrets they name, as files DIR/NAME/KEY
    #[arg(long, value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
}

/// The name the example policies give the database; the sidecar dials the throw-away server under it.
const DATABASE_HOST: &str = "orders-db.shop.svc";
/// The database of that name.
const DATABASE: &str = "shop";

/// Runs the demo, or ends it.
///
/// # Errors
/// What could not be started, or what came out otherwise than the policy says.
pub fn run(args: &Args) -> Result<()> {
    let place = Place::of_this_user()?;
    if args.stop {
        return match place.processes().stop()? {
            0 => {
                println!("nothing of the demo was running");
                place.remove()
            }
            ended => {
                println!("ended {ended} processes of the demo");
                place.remove()
            }
        };
    }
    ensure!(
        args.policy_dir.is_dir(),
        "no folder {}: run this in the project's folder, or name one with --policy-dir",
        args.policy_dir.display()
    );
    if place.processes().stop()? > 0 {
        println!("== ended the demo that was still running");
    }
    place.make()?;
    let outcome = start_and_play(args, &place);
    if outcome.is_err() {
        // Nothing half-started is left behind; the logs are, for whoever looks for the reason.
        place.processes().stop()?;
        eprintln!("the logs are in {}", place.folder.display());
    }
    outcome
}

fn start_and_play(args: &Args, place: &Place) -> Result<()> {
    let begun = Instant::now();
    let mut processes = place.processes();

    step(begun, "starting PostgreSQL in a temporary folder");
    let server = server::Server::start(&place.folder, &mut processes)?;
    step(
        begun,
        "loading the shop: 100 products, 1,400 customers, 3,400 orders, 100 people on the payroll",
    );
    server.load_shop(DATABASE)?;

    step(begun, "starting weir-collector");
    let collector_port = free_port()?;
    let mut collector = Command::new(binary("weir-collector")?);
    collector
        .args(["--listen", &format!("127.0.0.1:{collector_port}")])
        .arg("--data-dir")
        .arg(place.folder.join("log"));
    let collector_log = place.folder.join("collector.log");
    processes.start("weir-collector", collector, &collector_log, End::Term)?;
    wait_until_ready(collector_port, &collector_log)?;
    let collector_url = format!("http://127.0.0.1:{collector_port}");

    step(
        begun,
        &format!(
            "starting weir-sidecar with the policies of {}",
            args.policy_dir.display()
        ),
    );
    let (port, admin_port) = (free_port()?, free_port()?);
    let mut sidecar = Command::new(binary("weir-sidecar")?);
    sidecar
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--upstream", &format!("{DATABASE_HOST}:5432")])
        .args(["--upstream-address", &format!("127.0.0.1:{}", server.port())])
        .args(["--admin", &format!("127.0.0.1:{admin_port}")])
        .args(["--collector", &collector_url])
        .args([
            "--as",
            "serviceAccount=report-agent",
            "--as",
            "claims.tenant=north",
        ])
        .arg("--policy-dir")
        .arg(&args.policy_dir)
        .arg("--spool-dir")
        .arg(place.folder.join("spool"));
    if let Some(secrets) = &args.secrets_dir {
        sidecar.arg("--secrets-dir").arg(secrets);
    }
    let sidecar_log = place.folder.join("sidecar.log");
    processes.start("weir-sidecar", sidecar, &sidecar_log, End::Term)?;
    wait_until_ready(admin_port, &sidecar_log)?;

    step(begun, "an AI agent's day");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(day::play(port, DATABASE))?;

    wait_until_delivered(admin_port)?;
    let weir = std::env::current_exe()?;
    for arguments in [&["audit"][..], &["lineage", "public.reports"], &["verify"]] {
        println!("\n$ weir {}", arguments.join(" "));
        let status = Command::new(&weir)
            .args(arguments)
            .args(["--collector", &collector_url])
            .status()
            .context("cannot run weir")?;
        ensure!(
            status.success(),
            "weir {} ended with {status}",
            arguments.join(" ")
        );
    }

    println!(
        "\nEverything is still running ({:.0} s so far). Try it by hand:\n",
        begun.elapsed().as_secs_f64()
    );
    println!("  psql 'host=127.0.0.1 port={port} dbname={DATABASE} user=agent sslmode=disable'");
    println!("  {} audit --collector {collector_url}", weir.display());
    println!("\nand without Weir, to compare:\n");
    println!(
        "  psql 'host={} port={} dbname={DATABASE} user=postgres'",
        server.socket().display(),
        server.port()
    );
    println!("\n`make demo-stop` ends it.");
    Ok(())
}

fn step(begun: Instant, what: &str) {
    println!("== [{:>4.1} s] {what}", begun.elapsed().as_secs_f64());
}

/// Where one user's demo lives. Under the temporary folder, because the server may have to run as another user, who
/// cannot enter a home.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn of_this_user() -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let uid = std::fs::metadata("/proc/self")
            .context("cannot read /proc")?
            .uid();
        let folder = std::env::temp_dir().join(format!("weir-demo-{uid}"));
        // Somebody else may have made a folder of this name to have us write into theirs.
        if let Ok(found) = std::fs::symlink_metadata(&folder) {
            ensure!(
                found.is_dir() && found.uid() == uid,
                "{} exists and is not ours: remove it, or set TMPDIR",
                folder.display()
            );
        }
        Ok(Self { folder })
    }

    fn make(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        self.remove()?;
        std::fs::create_dir(&self.folder)
            .with_context(|| format!("cannot make the folder {}", self.folder.display()))?;
        // The server's user must be able to enter, not to look around.
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o711))?;
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }

    fn processes(&self) -> Processes {
        Processes::new(self.folder.join("processes"))
    }
}

/// Our other binaries stand beside this one.
fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "{} is missing: build it with `cargo build --bin {name}`",
        path.display()
    );
    Ok(path)
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind a loopback port")?;
    Ok(listener.local_addr()?.port())
}

fn wait_until_ready(port: u16, log: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_ready(port).unwrap_or(false) {
        if Instant::now() > end {
            bail!(
                "not ready within 20 s: {}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn is_ready(port: u16) -> Result<bool> {
    Ok(get(port, "/readyz")?.starts_with("HTTP/1.1 200"))
}

/// Waits until the collector has what the sidecar recorded: receipts follow their statements by some milliseconds.
fn wait_until_delivered(admin_port: u16) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut before = None;
    loop {
        let answer = get(admin_port, "/status")?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status: serde_json::Value =
            serde_json::from_str(body).context("the sidecar's status is not JSON")?;
        let count = |field| status.pointer(field).and_then(serde_json::Value::as_u64);
        let (recorded, delivered) = (count("/spool/events"), count("/spool/delivered"));
        // Twice the same: the session's own end is recorded shortly after its last statement.
        if recorded.is_some() && recorded == delivered && before == recorded {
            return Ok(());
        }
        before = recorded.filter(|_| recorded == delivered);
        ensure!(
            Instant::now() < end,
            "the receipts did not reach the collector within 20 s: {body}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn get(port: u16, page: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A place of a test's own; what runs in it ends with the test, however that ends.
    pub(super) struct TestPlace {
        pub(super) place: Place,
        _top: tempfile::TempDir,
    }

    impl TestPlace {
        pub(super) fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            // The server's user must be able to pass through.
            std::fs::set_permissions(top.path(), PermissionsExt::from_mode(0o711)).unwrap();
            let place = Place {
                folder: top.path().join("demo"),
            };
            place.make().unwrap();
            Self { place, _top: top }
        }
    }

    impl Drop for TestPlace {
        fn drop(&mut self) {
            let _ = self.place.processes().stop();
        }
    }

    #[test]
    fn what_was_started_is_ended_and_nothing_else() {
        let test = TestPlace::new();
        let place = &test.place;
        let server = server::Server::start(&place.folder, &mut place.processes()).unwrap();
        server.load_shop(DATABASE).unwrap();

        // A recorded id that now belongs to another process: this test.
        let record = place.folder.join("processes");
        let mut text = std::fs::read_to_string(&record).unwrap();
        let pid: u32 = text.split(' ').nth(1).unwrap().parse().unwrap();
        text.push_str(&format!("KILL {} 1 other\n", std::process::id()));
        std::fs::write(&record, text).unwrap();

        assert_eq!(place.processes().stop().unwrap(), 1);
        assert_eq!(place.processes().stop().unwrap(), 0);
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command.is_empty(), "the server still runs");
        place.remove().unwrap();
        assert!(!place.folder.exists());
    }
}
