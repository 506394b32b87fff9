//! The record of what the demo started, so that exactly that can be ended later.

use anyhow::{Context, Result, bail};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// SIGTERM: drain.
    Term,
    /// SIGINT: PostgreSQL's fast shutdown.
    Interrupt,
}

impl End {
    fn signal(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Interrupt => "INT",
        }
    }
}

/// A file of lines `signal pid start-time name`. The start time tells a process from a later one with the same id.
pub(super) struct Processes {
    record: PathBuf,
}

impl Processes {
    pub(super) fn new(record: PathBuf) -> Self {
        Self { record }
    }

    /// Starts `command` in the background, in a process group of its own, with its output in `log`.
    pub(super) fn start(&mut self, name: &str, mut command: Command, log: &Path, end: End) -> Result<()> {
        use std::io::Write;
        let out = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let started = start_time(child.id()).with_context(|| format!("{name} ended at once"))?;
        let mut record = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.record)?;
        writeln!(record, "{} {} {started} {name}", end.signal(), child.id())?;
        Ok(())
    }

    /// Ends what is recorded and still running, the last started first. Says how many that were.
    pub(super) fn stop(&self) -> Result<usize> {
        let Ok(text) = std::fs::read_to_string(&self.record) else {
            return Ok(0);
        };
        let mut ended = 0;
        for line in text.lines().rev() {
            let mut words = line.split(' ');
            let (Some(signal), Some(pid), Some(started), Some(name)) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                bail!("{} holds a line that is not ours: {line}", self.record.display());
            };
            let pid: u32 = pid.parse().with_context(|| format!("not a process id: {line}"))?;
            let runs = || start_time(pid).as_deref() == Some(started);
            if !runs() {
                continue;
            }
            send(signal, pid)?;
            let patience = Instant::now() + Duration::from_secs(15);
            while runs() {
                if Instant::now() > patience {
                    println!("{name} ({pid}) does not end, so it is killed");
                    send("KILL", pid)?;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            ended += 1;
        }
        Ok(ended)
    }
}

fn send(signal: &str, pid: u32) -> Result<()> {
    Command::new("/bin/sh")
        .args(["-c", r#"kill -s "$1" "$2""#, "kill", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .context("cannot run kill")?;
    Ok(())
}

/// When a running process was started, in the kernel's ticks; a dead one that waits to be collected does not count.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}
