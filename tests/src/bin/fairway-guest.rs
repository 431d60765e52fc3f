//! `fairway-guest`: the first process of a virtual machine that `cargo xtask guest` boots.
//!
//! It makes a system of the bare kernel, runs what `/plan.json` says, one after the other, and ends
//! with a line that says how that went: a virtual machine has no exit code.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fairway_netlink::Netlink;
use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, finit_module, reboot};
use serde::Deserialize;

/// What there is to do; `xtask/src/guest/image.rs` writes it.
#[derive(Deserialize)]
struct Plan {
    /// Modules for the kernel, each after those it needs.
    modules: Vec<PathBuf>,
    /// Environment of all programs.
    environment: Vec<(String, String)>,
    /// Programs to run.
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    title: String,
    program: PathBuf,
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        supervise();
    }
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("fairway-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The duties of a first process: it starts the one that works, takes care of every orphan until
/// that one ends, and switches the machine off.
fn supervise() -> ! {
    let good = match Command::new("/init").spawn() {
        Ok(worker) => reap_until(worker.id()),
        Err(error) => {
            println!("fairway-guest: start the worker: {error}");
            false
        }
    };
    println!("fairway-guest: {}", if good { "passed" } else { "failed" });
    let outcome = reboot(RebootCommand::PowerOff);
    println!("fairway-guest: switch off: {outcome:?}");
    loop {
        thread::park();
    }
}

/// Waits for children, also those whose parents have gone, until the one with this number ends;
/// whether it succeeded.
fn reap_until(worker: u32) -> bool {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((child, status))) if child.as_raw_nonzero().get().cast_unsigned() == worker => {
                return status.exit_status() == Some(0);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                println!("fairway-guest: wait for the worker: {error}");
                return false;
            }
        }
    }
}

fn work() -> Result<()> {
    make_system()?;
    let text = fs::read("/plan.json").context("read /plan.json")?;
    let plan: Plan = serde_json::from_slice(&text).context("read /plan.json")?;
    for module in &plan.modules {
        load(module)?;
    }
    let mut failed = Vec::new();
    for run in &plan.runs {
        // As cargo announces a test's program, so that results are counted alike.
        println!("     Running {} ({})", run.title, run.program.display());
        let start = Instant::now();
        let status = Command::new(&run.program)
            .args(&run.arguments)
            .env_clear()
            .envs(plan.environment.iter().map(|(name, value)| (name, value)))
            .status()
            .with_context(|| format!("start {}", run.program.display()))?;
        println!("{}: {status} after {} s", run.title, start.elapsed().as_secs());
        if !status.success() {
            failed.push(run.title.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// The file systems and the device that programs expect of every system.
fn make_system() -> Result<()> {
    for (kind, folder) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        fs::create_dir_all(folder).with_context(|| format!("make folder {folder}"))?;
        mount(kind, folder, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {kind} at {folder}"))?;
    }
    let mut netlink = Netlink::open()?;
    let loopback = netlink.link("lo")?.context("find link \"lo\"")?;
    netlink.set_up(loopback.index)?;
    // A crash ends the machine at once instead of its time being up.
    fs::write("/proc/sys/kernel/panic_on_oops", "1").context("set kernel.panic_on_oops")?;
    // What a test of the network does in vain is for the test to tell.
    fs::write("/proc/sys/kernel/printk", "2").context("set kernel.printk")
}

fn load(module: &PathBuf) -> Result<()> {
    let about = || format!("load module {}", module.display());
    let file = File::open(module).with_context(about)?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(about),
    }
}
