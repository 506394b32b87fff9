//! Our own binaries, built when needed.

use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The folder of the workspace's `Cargo.toml`.
pub fn workspace_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap_or(Path::new("."))
            .into()
    })
}

/// The path of one of our binaries, for example `weir-sidecar`, brought up to date once per test process: a test that
/// runs an old binary proves nothing. `WEIR_BIN_DIR` names a folder of ready ones instead.
pub fn binary(name: &str) -> Result<PathBuf> {
    match profile_folder()?.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => binary_of_profile(name, "dev"),
        Some(other) => binary_of_profile(name, other),
    }
}

/// The same with a profile of one's own choice: `release` where speed is measured.
pub fn binary_of_profile(name: &str, profile: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    if let Some(folder) = std::env::var_os("WEIR_BIN_DIR") {
        let path = Path::new(&folder).join(name);
        ensure!(path.is_file(), "WEIR_BIN_DIR has no {name}");
        return Ok(path);
    }
    let mut built = BUILT
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(&format!("{profile}/{name}")) {
        return Ok(path.clone());
    }
    let folder = target_folder()?.join(if profile == "dev" { "debug" } else { profile });
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace_root())
        .args([
            "build",
            "--quiet",
            "--bin",
            name,
            "--profile",
            profile,
            "--target-dir",
        ])
        .arg(target_folder()?)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot build {name}");
    let path = folder.join(name);
    ensure!(path.is_file(), "cargo built no {}", path.display());
    built.insert(format!("{profile}/{name}"), path.clone());
    Ok(path)
}

/// The target folder this test was built into.
pub fn target_folder() -> Result<PathBuf> {
    Ok(profile_folder()?
        .parent()
        .context("a profile folder has a parent")?
        .to_owned())
}

/// `<target>/<profile>`: the test itself runs in its `deps`.
fn profile_folder() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this test runs")?;
    let deps = exe
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "deps"));
    let folder = deps.and_then(Path::parent).or_else(|| exe.parent());
    Ok(folder
        .context("this test does not run inside a target folder")?
        .to_owned())
}
