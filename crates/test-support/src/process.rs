//! A child process that cannot outlive the test that started it.

use crate::wait::wait_for;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// The signals tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ask to end in good order.
    Term,
    /// End with a fast shutdown (PostgreSQL).
    Interrupt,
    /// End at once, with children (PostgreSQL).
    Quit,
    /// End without being asked.
    Kill,
    /// Stop being scheduled.
    Stop,
    /// Go on after [`Signal::Stop`].
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

/// A running child with its output in a file. Dropping it ends it; if this whole process is killed, the watchdog does.
#[derive(Debug)]
pub struct Process {
    child: Child,
    watchdog: Child,
    log: PathBuf,
    at_end: Signal,
}

// The watchdog: waits for a line ("done": nothing left to do) or for the end of the pipe (the test is gone).
const WATCHDOG: &str = r#"read -r line; [ "$line" = done ] && exit 0
kill -"$1" "$2" 2>/dev/null
i=0; while kill -0 "$2" 2>/dev/null && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done
kill -KILL "$2" 2>/dev/null; [ -n "$3" ] && rm -rf -- "$3"; exit 0"#;

impl Process {
    /// Starts `command` with stdout and stderr appended to `log`; `at_end` is what it is sent when dropped.
    pub fn start(command: Command, log: &Path, at_end: Signal) -> Result<Self> {
        Self::start_with_folder(command, log, at_end, None)
    }

    /// The same; `folder` is removed if this process dies without dropping the value.
    pub(crate) fn start_with_folder(
        mut command: Command,
        log: &Path,
        at_end: Signal,
        folder: Option<&Path>,
    ) -> Result<Self> {
        let out = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log {}", log.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        // An own process group: Ctrl-C in the terminal reaches the test, and the test ends its children itself.
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "watchdog", at_end.name(), &child.id().to_string()])
            .arg(folder.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the watchdog")?;
        Ok(Self {
            child,
            watchdog,
            log: log.to_owned(),
            at_end,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to exactly this process. Does nothing if it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        let sent = Command::new("/bin/kill")
            .args(["-s", signal.name(), &self.child.id().to_string()])
            .stderr(Stdio::null())
            .status()
            .or_else(|_| {
                // A system without /bin/kill still has the shell's own.
                Command::new("/bin/sh")
                    .args([
                        "-c",
                        r#"kill -s "$1" "$2""#,
                        "kill",
                        signal.name(),
                        &self.child.id().to_string(),
                    ])
                    .status()
            })
            .context("cannot run kill")?;
        ensure!(
            sent.success() || self.ended().is_some(),
            "cannot signal process {}",
            self.child.id()
        );
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, seconds_max: u64) -> Result<ExitStatus> {
        let id = self.child.id();
        wait_for(&format!("the end of process {id}"), seconds_max, || {
            self.child.try_wait().ok().flatten()
        })
    }

    /// Sends `signal` and waits for the end.
    pub fn stop(&mut self, signal: Signal, seconds_max: u64) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(seconds_max)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.ended().is_some() || self.stop(self.at_end, 10).is_ok();
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(mut pipe) = self.watchdog.stdin.take() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.watchdog.wait();
    }
}
