//! `make regress`: PostgreSQL's own regression scripts against the same kind of server, direct and through the
//! sidecar with an allow-all policy. The outputs must be alike.
//!
//! The scripts come with the distribution's source package, fetched once into `target/regress`. They run twice direct,
//! because a few of them print something new each time: a difference between those two runs is not ours.

use crate::through_sidecar::{Policy, Sidecar};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use test_support::{Postgres, PostgresOptions, binary, postgres_bin, target_folder};

/// Scripts whose differences the README explains.
const EXPLAINED: [&str; 0] = [];

/// Runs all scripts of the schedule, or those named (and `test_setup`, on which all stand).
pub(crate) fn run(wanted: &[String]) -> Result<()> {
    let major = server_major()?;
    let results = target_folder()?.join("regress").join(format!("results-{major}"));
    let _ = std::fs::remove_dir_all(&results);
    // The server itself reads the data files, and it may run as another user than the one whose home this is.
    let place = tempfile::Builder::new().prefix("weir-regress-").tempdir()?;
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755))?;
    let suite = unpack(&source(major)?, place.path())?;
    let mut scripts = schedule(&suite)?;
    if !wanted.is_empty() {
        scripts.retain(|name| name == "test_setup" || wanted.contains(name));
    }
    println!(
        "== {} scripts of PostgreSQL {major}: direct, direct again, through the sidecar",
        scripts.len()
    );
    std::thread::scope(|scope| -> Result<()> {
        let runs = [("direct", false), ("again", false), ("sidecar", true)].map(|(name, through)| {
            let (suite, scripts, folder) = (&suite, &scripts, results.join(name));
            scope.spawn(move || run_all(name, suite, scripts, &folder, through))
        });
        for run in runs {
            run.join().map_err(|_| anyhow::anyhow!("a run panicked"))??;
        }
        Ok(())
    })?;
    report(&results, &scripts)
}

/// Compares the results; an unexplained difference is an error.
fn report(results: &Path, scripts: &[String]) -> Result<()> {
    let (mut alike, mut restless, mut explained, mut different) = (0, Vec::new(), Vec::new(), Vec::new());
    for script in scripts {
        let read = |run: &str| std::fs::read_to_string(results.join(run).join(format!("{script}.out")));
        let (direct, again, sidecar) = (read("direct")?, read("again")?, read("sidecar")?);
        if quiet(&direct) == quiet(&sidecar) {
            alike += 1;
        } else if EXPLAINED.contains(&script.as_str()) {
            explained.push(script.as_str());
        } else if quiet(&direct) != quiet(&again) && only_restless_lines(&direct, &again, &sidecar) {
            restless.push(script.as_str());
        } else {
            different.push(script.as_str());
        }
    }
    println!("alike: {alike} of {}", scripts.len());
    println!(
        "differ between two direct runs in the same lines: {}",
        restless.join(" ")
    );
    println!("differ as README.md explains: {}", explained.join(" "));
    println!("differ: {}", different.join(" "));
    println!("results: {}", results.display());
    ensure!(
        different.is_empty(),
        "{} scripts differ; for example: diff {1}/direct/{2}.out {1}/sidecar/{2}.out",
        different.len(),
        results.display(),
        different.first().unwrap_or(&"")
    );
    Ok(())
}

/// Lines of the sidecar's output that are new compared with direct must stand where direct is restless too.
fn only_restless_lines(direct: &str, again: &str, sidecar: &str) -> bool {
    let (direct, again, sidecar): (Vec<&str>, Vec<&str>, Vec<&str>) = (
        direct.lines().collect(),
        again.lines().collect(),
        sidecar.lines().collect(),
    );
    direct.len() == again.len()
        && direct.len() == sidecar.len()
        && direct
            .iter()
            .zip(&again)
            .zip(&sidecar)
            .all(|((one, two), three)| one != two || one == three)
}

/// What changes from run to run and means nothing: temporary folders and ports.
fn quiet(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        match line.find("/tmp/weir-") {
            Some(_) => out.push_str("(a line that names a temporary folder)"),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

fn run_all(name: &str, suite: &Path, scripts: &[String], results: &Path, through: bool) -> Result<()> {
    std::fs::create_dir_all(results)?;
    let server = Postgres::start(&PostgresOptions::default())?;
    server.psql(
        "postgres",
        "create database regression template template0 encoding 'UTF8' locale 'C'",
    )?;
    for setting in [
        "lc_messages = 'C'",
        "lc_monetary = 'C'",
        "lc_numeric = 'C'",
        "lc_time = 'C'",
        "bytea_output = 'hex'",
        "timezone_abbreviations = 'Default'",
    ] {
        server.psql("postgres", &format!("alter database regression set {setting}"))?;
    }
    let sidecar = match through {
        true => Some(Sidecar::start(
            &binary("weir-sidecar")?,
            &server,
            "regression",
            Policy::AllowAll,
        )?),
        false => None,
    };
    let port = sidecar.as_ref().map_or(server.port(), |sidecar| sidecar.port);
    // The scripts write here, as the server's user and as ours.
    let scratch = tempfile::Builder::new().prefix("weir-regress-out-").tempdir()?;
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777))?;
    std::fs::create_dir(scratch.path().join("results"))?;
    std::fs::set_permissions(
        scratch.path().join("results"),
        std::fs::Permissions::from_mode(0o777),
    )?;
    for script in scripts {
        let out = std::fs::File::create(results.join(format!("{script}.out")))?;
        let input = std::fs::File::open(suite.join(format!("sql/{script}.sql")))?;
        let mut psql = Command::new("timeout");
        psql.arg("300").arg(postgres_bin()?.join("psql"));
        psql.args([
            "-X",
            "-a",
            "-q",
            "-v",
            "HIDE_TABLEAM=on",
            "-v",
            "HIDE_TOAST_COMPRESSION=on",
        ])
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            "regression",
            "-p",
            &port.to_string(),
        ])
        .current_dir(scratch.path())
        .env("PGTZ", "PST8PDT")
        .env("PGDATESTYLE", "Postgres, MDY")
        .env("PGOPTIONS", "-c intervalstyle=postgres_verbose")
        .env("PGPASSWORD", Postgres::PASSWORD)
        .env("PG_ABS_SRCDIR", suite)
        .env("PG_ABS_BUILDDIR", scratch.path())
        .env("PG_LIBDIR", suite)
        .env("PG_DLSUFFIX", ".so")
        .env("LC_MESSAGES", "C")
        .env_remove("LC_ALL")
        .stdin(Stdio::from(input))
        .stdout(out.try_clone()?)
        .stderr(out);
        let status = psql.status().context("cannot run psql")?;
        if status.code() == Some(124) {
            println!("{name}: {script} did not end within 300 s");
        }
    }
    println!("{name}: done");
    Ok(())
}

/// The scripts in the order of the schedule, group by group.
fn schedule(suite: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(suite.join("parallel_schedule"))?;
    let mut seen = BTreeSet::new();
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("test:"))
        .flat_map(str::split_whitespace);
    // `tablespace` comes first in some majors and wants a folder of the source tree that the server may write.
    Ok(names
        .filter(|name| *name != "tablespace" && seen.insert(*name))
        .map(str::to_owned)
        .collect())
}

fn server_major() -> Result<u32> {
    let out = Command::new(postgres_bin()?.join("postgres"))
        .arg("--version")
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let digits = text
        .split_whitespace()
        .find_map(|word| word.split('.').next()?.parse().ok());
    digits.with_context(|| format!("cannot read a version in {text:?}"))
}

/// Unpacks the suite where the server's user can read it.
fn unpack(archive: &Path, place: &Path) -> Result<PathBuf> {
    let status = Command::new("tar")
        .args([
            "--extract",
            "--no-same-owner",
            "--strip-components=4",
            "--wildcards",
            "-C",
        ])
        .arg(place)
        .arg("--file")
        .arg(archive)
        .arg("*/src/test/regress/*")
        .status()
        .context("cannot run tar")?;
    ensure!(status.success(), "cannot unpack {}", archive.display());
    let status = Command::new("chmod").args(["-R", "a+rX"]).arg(place).status()?;
    ensure!(status.success(), "cannot open {} to the server", place.display());
    Ok(place.to_owned())
}

/// The upstream tarball of the distribution's source package, fetched with apt into `target/regress`.
fn source(major: u32) -> Result<PathBuf> {
    let folder = target_folder()?.join("regress");
    std::fs::create_dir_all(&folder)?;
    let package = format!("postgresql-{major}");
    if let Some(found) = tarball(&folder, &package)? {
        return Ok(found);
    }
    println!("== fetching the source package {package}");
    // The system's own lists with `deb` turned into `deb-src`, in a state folder of our own. The second try leaves
    // out the security suite, whose older files mirrors may have dropped.
    for security in [true, false] {
        std::fs::write(folder.join("sources.list"), source_lists(security)?)?;
        for place in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(place))?;
        }
        let apt = |arguments: &[&str]| -> Result<bool> {
            let at = |option: &str, name: &str| format!("{option}={}", folder.join(name).display());
            let status = Command::new("apt-get")
                .args([
                    "-q",
                    "-o",
                    "Dir::Etc::sourceparts=/dev/null",
                    "-o",
                    "APT::Sandbox::User=root",
                ])
                .args([
                    "-o",
                    &at("Dir::Etc::sourcelist", "sources.list"),
                    "-o",
                    &at("Dir::State::lists", "lists"),
                ])
                .args(["-o", &at("Dir::Cache", "cache")])
                .args(arguments)
                .current_dir(&folder)
                .stdout(Stdio::null())
                .status()
                .context("cannot run apt-get: the scripts come from a Debian or Ubuntu source package")?;
            Ok(status.success())
        };
        if apt(&["update"])? && apt(&["source", "--download-only", &package])? {
            break;
        }
    }
    match tarball(&folder, &package)? {
        Some(found) => Ok(found),
        None => bail!("apt offers no source package {package} here"),
    }
}

fn tarball(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if name.starts_with(package) && name.contains(".orig.tar") && !name.ends_with(".asc") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// One-line `deb-src` entries from all of apt's lists, in both of their formats.
fn source_lists(security: bool) -> Result<String> {
    let mut out = String::new();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => {
                for line in text.lines().filter_map(|line| line.trim().strip_prefix("deb ")) {
                    writeln!(out, "deb-src {line}")?;
                }
            }
            Some("sources") => {
                for stanza in text.split("\n\n") {
                    stanza_lines(stanza, &mut out)?;
                }
            }
            _ => {}
        }
    }
    Ok(out
        .lines()
        .filter(|line| security || !line.contains("security"))
        .map(|line| format!("{line}\n"))
        .collect())
}

fn stanza_lines(stanza: &str, out: &mut String) -> Result<()> {
    let field = |name: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let (Some(addresses), Some(suites)) = (field("URIs:"), field("Suites:")) else {
        return Ok(());
    };
    let signed = field("Signed-By:")
        .map(|path| format!("[signed-by={path}] "))
        .unwrap_or_default();
    for address in addresses.split_whitespace() {
        for suite in suites.split_whitespace() {
            writeln!(
                out,
                "deb-src {signed}{address} {suite} {}",
                field("Components:").unwrap_or("")
            )?;
        }
    }
    Ok(())
}
