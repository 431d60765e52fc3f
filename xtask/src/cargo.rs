//! Calls of the cargo that called us.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The workspace's root folder.
///
/// Known at compile time: an xtask always runs from the checkout that built it.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// A cargo command that runs in the workspace's root.
pub(crate) fn cargo() -> Command {
    // Cargo names itself to the programs it runs; under rustup that is the real binary, not the shim.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// What `cargo metadata` says of the workspace, without its dependencies' own dependencies.
pub(crate) fn metadata() -> anyhow::Result<Value> {
    let json = stdout_of(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&json).context("cargo metadata: its answer is not JSON")
}

/// The folder that cargo builds into, wherever the user's configuration put it.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let metadata = metadata()?;
    let directory = metadata["target_directory"]
        .as_str()
        .context("cargo metadata: its answer names no target_directory")?;
    Ok(PathBuf::from(directory))
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started, fails (its standard error is then part of the error) or prints something that is not UTF-8.
pub(crate) fn stdout_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no UTF-8"))
}
