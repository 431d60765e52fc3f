//! Runs tests on an older kernel than this machine's, in a virtual machine.
//!
//! The kernel is Debian's, out of its package; the system on it is made for the occasion and holds the test programs,
//! what they load and what they call, and nothing else. The processor is emulated, so that neither hardware nor
//! permission is needed, and everything is some ten times slower than here.
//!
//! | module | does |
//! |---|---|
//! | [`scenarios`] | lists what is run |
//! | [`kernel`] | fetches the kernel |
//! | [`image`] | makes the system |

mod image;
mod kernel;
mod scenarios;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::cargo::{self, cargo, target_directory};
use crate::step::{follow, spinner};
use crate::suite::Counts;
use scenarios::SCENARIOS;

pub(crate) use kernel::Kernel;

/// A run that takes longer is ended. A machine with two processors and much else to do needs half of it.
const LIMIT_SECONDS: &str = "1500";

/// How the first process ends what it prints.
const PASSED: &str = "fairway-guest: passed";

/// Runs every scenario, or those whose title contains `filter`, and closes with a count as `cargo xtask test` does.
///
/// Where the kernel cannot be had that is said and no error, but in CI.
///
/// # Errors
/// When something does not build, a scenario fails or does not end in time, or no scenario ran at all.
pub(crate) fn run(filter: Option<&str>) -> anyhow::Result<()> {
    let filter = filter.unwrap_or_default();
    let chosen: Vec<_> = SCENARIOS.iter().filter(|s| s.title.contains(filter)).collect();
    ensure!(!chosen.is_empty(), "no scenario has {filter:?} in its title");

    let kernel = match Kernel::obtain() {
        Ok(kernel) => kernel,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("NOT RUN: no kernel for the virtual machine: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error.context("find a kernel for the virtual machine")),
    };
    // As in the suite: in sight, and all of it, so that nothing is built twice.
    cargo::run(cargo().args(["build", "--workspace", "--bins", "--locked"]))?;
    cargo::run(cargo().args(["test", "--workspace", "--locked", "--no-run"]))?;
    let tests = test_programs()?;

    let path = folder()?.join("system.cpio");
    let title = format!("make a system for Linux {}", kernel.release);
    let spinner = spinner(&title);
    let made = image::make(&path, &kernel, &chosen, &tests);
    spinner.finish_and_clear();
    made.context(title)?;
    boot(&kernel, &path)
}

/// Where the kernel and the system are.
fn folder() -> anyhow::Result<PathBuf> {
    Ok(target_directory()?.join("guest"))
}

/// Boots, passes on what the machine prints, and counts.
fn boot(kernel: &Kernel, system: &Path) -> anyhow::Result<()> {
    let title = format!("Linux {}", kernel.release);
    let spinner = spinner(&title);
    let start = Instant::now();
    let mut counts = Counts::default();
    let mut passed = false;
    let end = follow(&mut emulator(kernel, system), |line| {
        let line = line.trim_end_matches('\r');
        passed |= line == PASSED;
        counts.read(line);
        spinner.suspend(|| println!("{line}"));
        spinner.set_message(format!("{counts}  {}", counts.latest));
    });
    spinner.finish_and_clear();
    let status = end?.status;
    counts.finish(passed);
    for failure in &counts.failures {
        eprintln!("failed: {failure}");
    }
    println!("{counts} on Linux {} in {} s", kernel.release, start.elapsed().as_secs());
    if status.code() == Some(TIMED_OUT) {
        bail!("the virtual machine was ended after {LIMIT_SECONDS} s");
    }
    ensure!(passed && counts.failed == 0, "tests failed on Linux {}", kernel.release);
    Ok(())
}

/// What timeout(1) answers when it had to end its child.
const TIMED_OUT: i32 = 124;

fn emulator(kernel: &Kernel, system: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=10", LIMIT_SECONDS, EMULATOR]);
    // `max` is every instruction the emulator knows; two processors, because that is where races are.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
    command.args(["-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(system);
    // If it hangs for two minutes it says where, and ends.
    command.args([
        "-append",
        "console=ttyS0 quiet panic=-1 watchdog_thresh=60 softlockup_panic=1 \
         sysctl.kernel.softlockup_all_cpu_backtrace=1",
    ]);
    command.stdin(std::process::Stdio::null());
    command
}

/// The emulator of Debian's package qemu-system-x86.
const EMULATOR: &str = "qemu-system-x86_64";

/// The programs that `cargo test` would run: name of the target, and path.
fn test_programs() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let messages = cargo::stdout_of(cargo().args([
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--quiet",
        "--message-format=json",
    ]))?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo test: not JSON")?;
        if message["profile"]["test"] == true
            && let (Some(name), Some(path)) =
                (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
            programs.push((format!("{kind} {name}"), PathBuf::from(path)));
        }
    }
    Ok(programs)
}
