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

/// A command as one would type it, for messages: `cargo build --release`.
pub(crate) fn spoken(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text =
        program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a command in sight of the user, terminal and all.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{} failed ({status})", spoken(command));
    Ok(())
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started, fails (its standard error is then part of the error) or prints something that is not UTF-8.
pub(crate) fn stdout_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        spoken(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed no UTF-8", spoken(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_spoken_as_typed() {
        let mut command = Command::new("/toolchains/stable/bin/cargo");
        assert_eq!(
            spoken(command.args(["build", "--release"]).env("A", "b")),
            "cargo build --release"
        );
    }

    #[test]
    fn what_a_failing_command_complained_of_is_in_the_error() {
        let error = stdout_of(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"]));
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.ends_with("failed (exit status: 3): why"), "{text}");
        assert_eq!(stdout_of(Command::new("echo").arg("out")).unwrap(), "out\n");
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
