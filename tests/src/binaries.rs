//! The binaries under test, for tests.

use std::env;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

/// Says where they are, and that they are fresh; nothing is built then.
const FOLDER_VARIABLE: &str = "FAIRWAY_BIN_DIR";

const PACKAGES: [&str; 5] =
    ["fairway-cni", "fairway-ingress", "fairway-kubernetes", "fairway-proxy", "fairway-tests"];

/// The folder that has all of them: `FAIRWAY_BIN_DIR` if set; otherwise they are built, once a
/// test process, beside the test that asks.
pub fn binaries() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")));
    match built {
        Ok(folder) => Ok(folder),
        Err(message) => bail!("{message}"),
    }
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
        return Ok(PathBuf::from(folder));
    }
    // cargo test puts a test into target/PROFILE/deps, or target/PROFILE.
    let test = env::current_exe().context("find this program's own path")?;
    let folder = test
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"))
        .with_context(|| format!("find the build folder of {}", test.display()))?;
    let target =
        folder.parent().with_context(|| format!("find the target folder of {}", test.display()))?;
    build(folder, target)?;
    Ok(folder.to_owned())
}

/// Cargo's own lock makes parallel builds wait, but says so on each test's output; ours is silent.
fn build(folder: &Path, target: &Path) -> Result<()> {
    let path = folder.join(".fairway-lab-binaries.lock");
    let about = || format!("lock {}", path.display());
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(about)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).with_context(about)?;

    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--bins"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(target);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().context("run cargo")?;
    if !output.status.success() {
        bail!(
            "build the binaries under test: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
