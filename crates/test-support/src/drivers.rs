//! Real drivers in other languages: a Python environment and Node.js modules under `target/`, from the pinned lists
//! in `tests/drivers`, made once.

use crate::binaries::{target_folder, workspace_root};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command that runs `tests/drivers/SCRIPT` with Python and its drivers.
pub fn python(script: &str) -> Result<Command> {
    let list = scripts().join("requirements.txt");
    let folder = made_once("python", &[&list], |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        run(Command::new(folder.join("bin/pip"))
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--requirement",
            ])
            .arg(&list))
    })?;
    let mut command = Command::new(folder.join("bin/python"));
    command
        .arg(scripts().join(script))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("PYTHONPATH");
    Ok(command)
}

/// A command that runs `tests/drivers/SCRIPT` with Node.js and its drivers.
pub fn node(script: &str) -> Result<Command> {
    let (list, lock) = (
        scripts().join("package.json"),
        scripts().join("package-lock.json"),
    );
    let folder = made_once("node", &[&list, &lock], |folder| {
        std::fs::create_dir_all(folder)?;
        std::fs::copy(&list, folder.join("package.json"))?;
        std::fs::copy(&lock, folder.join("package-lock.json"))?;
        run(Command::new("npm")
            .args(["ci", "--silent", "--no-audit", "--no-fund"])
            .current_dir(folder))
    })?;
    let mut command = Command::new("node");
    command
        .arg(scripts().join(script))
        .env("NODE_NO_WARNINGS", "1")
        .env("NODE_PATH", folder.join("node_modules"));
    Ok(command)
}

/// The folder of the scripts.
pub fn scripts() -> PathBuf {
    workspace_root().join("tests/drivers")
}

/// Makes `target/drivers/NAME` unless it was already made from the same lists. One process at a time.
fn made_once(name: &str, lists: &[&Path], make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let top = target_folder()?.join("drivers");
    std::fs::create_dir_all(&top)?;
    let lock = File::create(top.join(format!("{name}.lock")))?;
    lock.lock().context("cannot lock the folder of drivers")?;
    let mut wanted = String::new();
    for list in lists {
        wanted.push_str(
            &std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?,
        );
    }
    let (folder, note) = (top.join(name), top.join(format!("{name}.made-from")));
    if std::fs::read_to_string(&note).ok().as_deref() != Some(wanted.as_str()) {
        let _ = std::fs::remove_dir_all(&folder);
        make(&folder)
            .with_context(|| format!("cannot install the {name} drivers (scripts/install-deps.sh test)"))?;
        std::fs::write(&note, wanted)?;
    }
    Ok(folder)
}

fn run(command: &mut Command) -> Result<()> {
    let out = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(
        out.status.success(),
        "{:?} ended with {}: {}{}",
        command.get_program(),
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}
