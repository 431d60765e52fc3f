//! Carries out one step of the plan.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::facts::llvm_prefix;
use super::plan::{LINKER, Step};
use crate::step::{self, Announce};

/// Does the step, within half an hour.
pub(super) fn apply(step: &Step) -> anyhow::Result<()> {
    match step {
        Step::RustSource => {
            run(step, bounded("120", "rustup").args(["component", "add", "rust-src"]))
        }
        Step::Packages(packages) => install(step, packages),
        Step::Linker(llvm) => {
            let mut cargo = bounded("1800", "cargo");
            cargo.env("LLVM_PREFIX", llvm_prefix(*llvm));
            cargo.args(["install", "bpf-linker", "--version", LINKER, "--locked", "--force"]);
            cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
            run(step, &mut cargo)
        }
    }
}

fn run(step: &Step, command: &mut Command) -> anyhow::Result<()> {
    step::run(&step.to_string(), Announce::Always, command)
}

/// A command that is ended after so many seconds. It stays in our process group, so that Ctrl-C reaches it.
pub(super) fn bounded(seconds: &str, program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=10", seconds, program]);
    command
}

fn install(step: &Step, packages: &[&str]) -> anyhow::Result<()> {
    // A stale list or one unreachable mirror of several need not matter; if it does, the installation says so better.
    if let Err(error) = update_lists() {
        eprintln!("going on with the package lists as they are: {error:#}");
    }
    let hold = ServiceHold::put()?;
    let mut apt = apt_get("1500");
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
    run(step, &mut apt)?;
    drop(hold);
    for service in SERVICES.iter().filter(|service| packages.contains(service)) {
        let title = format!("update-rc.d {service} disable");
        step::run(
            &title,
            Announce::OnTerminal,
            Command::new("update-rc.d").args([service, "disable"]),
        )?;
    }
    Ok(())
}

/// Refreshes apt's lists; waits up to a minute for another apt that holds them (apt itself waits for dpkg only).
pub(super) fn update_lists() -> anyhow::Result<()> {
    const ATTEMPTS: u32 = 30;
    let mut attempt = 1;
    loop {
        let result = step::run(
            "apt-get update",
            Announce::Always,
            apt_get("300").args(["update", "--quiet"]),
        );
        match result {
            Err(error) if attempt < ATTEMPTS && format!("{error:#}").contains("lists/lock") => {
                attempt += 1;
                std::thread::sleep(Duration::from_secs(2));
            }
            result => return result,
        }
    }
}

/// apt-get that asks nothing and waits up to five minutes for another package manager.
fn apt_get(seconds: &str) -> Command {
    let mut command = bounded(seconds, "apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Packages whose program we want and whose service we do not: pods and benchmarks run them, this machine
/// should not.
const SERVICES: [&str; 5] = ["redis-server", "nginx", "haproxy", "knot", "unbound"];

/// Keeps [`SERVICES`] from being started while it exists, by the policy file that Debian's packages ask.
///
/// Where somebody else has put such a file, as in most container images, they have decided and it is left alone.
struct ServiceHold {
    path: PathBuf,
    policy: String,
}

impl ServiceHold {
    fn put() -> anyhow::Result<Option<Self>> {
        Self::put_at(Path::new("/usr/sbin/policy-rc.d"), std::process::id())
    }

    /// Puts the file, or takes over one that another of us has put.
    fn put_at(path: &Path, owner: u32) -> anyhow::Result<Option<Self>> {
        match fs::read(path) {
            Ok(content) if !content.starts_with(MARK.as_bytes()) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        let hold = Self { path: path.to_owned(), policy: policy(owner) };
        fs::write(path, &hold.policy).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
        Ok(Some(hold))
    }
}

impl Drop for ServiceHold {
    fn drop(&mut self) {
        // What is there may by now belong to another of us, or have removed itself.
        if fs::read(&self.path).is_ok_and(|content| content == self.policy.as_bytes())
            && let Err(error) = fs::remove_file(&self.path)
        {
            eprintln!("remove {}: {error}; it is without effect from now on", self.path.display());
        }
    }
}

/// How a policy of ours begins.
const MARK: &str =
    "#!/bin/sh\n# Put here by `cargo xtask setup` for as long as it installs packages.\n";

/// The policy: exit code 101 forbids an action, 0 allows it.
///
/// Should we be killed before we can remove it, it finds its owner gone, removes itself and forbids nothing.
fn policy(owner: u32) -> String {
    let services = SERVICES.join("|");
    format!(
        "{MARK}\
         if ! kill -0 {owner} 2>/dev/null; then rm -f \"$0\"; exit 0; fi\n\
         case \"$1\" in {services}) exit 101 ;; esac\n\
         exit 0\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path for one test, removed with what is there at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let file = format!("fairway-xtask-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(file))
        }

        fn verdict_on(&self, service: &str) -> Option<i32> {
            Command::new("sh").arg(&self.0).args([service, "start"]).status().unwrap().code()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_file(&self.0).ok();
        }
    }

    #[test]
    fn our_services_are_held_and_others_are_not_until_the_hold_ends() {
        let path = Scratch::new("held");
        let hold = ServiceHold::put_at(&path.0, std::process::id()).unwrap();
        assert_eq!(path.verdict_on("redis-server"), Some(101));
        assert_eq!(path.verdict_on("nginx"), Some(101));
        assert_eq!(path.verdict_on("haproxy"), Some(101));
        assert_eq!(path.verdict_on("ssh"), Some(0));
        drop(hold);
        assert!(!path.0.exists());
    }

    #[test]
    fn a_policy_whose_owner_is_gone_removes_itself() {
        let path = Scratch::new("orphan");
        let mut owner = Command::new("true").spawn().unwrap();
        owner.wait().unwrap();
        let hold = ServiceHold::put_at(&path.0, owner.id()).unwrap();
        assert_eq!(path.verdict_on("redis-server"), Some(0));
        assert!(!path.0.exists());
        drop(hold);
    }

    #[test]
    fn a_policy_of_somebody_else_stays() {
        let path = Scratch::new("foreign");
        fs::write(&path.0, "exit 101\n").unwrap();
        assert!(ServiceHold::put_at(&path.0, std::process::id()).unwrap().is_none());
        assert_eq!(fs::read_to_string(&path.0).unwrap(), "exit 101\n");
    }

    #[test]
    fn a_policy_of_an_earlier_run_is_taken_over_and_left_to_whoever_took_it() {
        let path = Scratch::new("taken");
        let first = ServiceHold::put_at(&path.0, 1).unwrap();
        let second = ServiceHold::put_at(&path.0, std::process::id()).unwrap();
        drop(first);
        assert_eq!(path.verdict_on("redis-server"), Some(101));
        drop(second);
        assert!(!path.0.exists());
    }
}
