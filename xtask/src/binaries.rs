//! The binaries that users run: built in release mode, listed, or become.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, anyhow};

use crate::cargo::{self, cargo, target_directory};
use crate::step::{self, Announce};

/// Packages that hold the binaries. The agent's build script compiles the eBPF object and embeds it.
const PACKAGES: [&str; 5] =
    ["fairway-proxy", "fairway-cni", "fairway-ingress", "fairway-kubernetes", "fairway-tests"];

/// What a user of `build` is shown.
const BINARIES: [&str; 5] =
    ["fairway-proxy", "fairway-cni", "fairway-controlplane", "fairway-ingress", "fairway-lab"];

/// How to compile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    /// Release unless asked otherwise.
    pub(crate) fn new(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Release }
    }
}

/// Builds the binaries in sight of the user, then prints where each is and how large.
pub(crate) fn build_and_list(profile: Profile) -> anyhow::Result<()> {
    build(profile)?;
    list(
        &BINARIES
            .into_iter()
            .map(|name| binary(name, profile))
            .collect::<anyhow::Result<Vec<_>>>()?,
    )
}

/// Builds the binaries in sight of the user.
pub(crate) fn build(profile: Profile) -> anyhow::Result<()> {
    cargo::run(&mut build_command(profile)).map_err(hint_at_setup)
}

/// Prints where files are, and how large.
pub(crate) fn list(files: &[PathBuf]) -> anyhow::Result<()> {
    for path in files {
        let size = path
            .metadata()
            .with_context(|| format!("look at {}: nothing was made there", path.display()))?
            .len();
        println!("{:>10}  {}", mebibytes(size), path.display());
    }
    Ok(())
}

/// Builds the binaries, silently when they are fresh, and replaces this process with one of them.
///
/// Replacing, not waiting, makes terminal, signals and exit code those of the binary. Returns only on failure.
pub(crate) fn build_and_become(name: &str, args: &[OsString]) -> anyhow::Result<()> {
    step::run("build", Announce::OnTerminal, &mut build_command(Profile::Release))
        .map_err(hint_at_setup)?;
    let path = binary(name, Profile::Release)?;
    let failure = Command::new(&path).args(args).exec();
    Err(failure).with_context(|| format!("become {}", path.display()))
}

/// Puts the likely remedy last: a compiler's complaint before it may be long.
fn hint_at_setup(error: anyhow::Error) -> anyhow::Error {
    anyhow!("{error:#}\nhint: if a tool is missing, `cargo xtask setup` finds it")
}

fn build_command(profile: Profile) -> Command {
    let mut command = cargo();
    command.args(["build", "--locked", "--bins"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    if profile == Profile::Release {
        command.arg("--release");
    }
    command
}

/// Where the build puts a binary.
pub(crate) fn binary(name: &str, profile: Profile) -> anyhow::Result<PathBuf> {
    let folder = match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    };
    Ok(target_directory()?.join(folder).join(name))
}

/// A size with one decimal, rounded up: `1.5 MiB`.
fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_to_a_tenth() {
        for (bytes, text) in
            [(0, "0.0 MiB"), (1, "0.1 MiB"), (1 << 20, "1.0 MiB"), ((1 << 20) + 1, "1.1 MiB")]
        {
            assert_eq!(mebibytes(bytes), text);
        }
    }
}
