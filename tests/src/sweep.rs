//! Removing a lab from the machine by its name alone: for `down`, and for what a lab that was
//! killed left behind. Everything absent already is fine; everything is tried.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_netlink::NetNs;
use rustix::mount::UnmountFlags;

use crate::names::{Names, netns_with_prefix};
use crate::wait::wait_until;

/// A killed process is gone within this time, or something is badly wrong.
const DEATH: Duration = Duration::from_secs(30);

/// Removes processes, cgroups, namespaces, mounts and files of a lab whose daemon does not run.
/// Reports all that could not be removed.
pub(crate) fn sweep(names: &Names) -> Result<()> {
    let mut problems = Vec::new();
    let mut note = |outcome: Result<()>| {
        if let Err(error) = outcome {
            problems.push(format!("{error:#}"));
        }
    };
    // Processes first: they hold on to all the rest.
    note(kill_all(&names.cgroup()));
    note(remove_cgroup(&names.cgroup()));
    match netns_with_prefix(&names.netns_prefix()) {
        Ok(namespaces) => {
            for name in namespaces {
                note(NetNs::delete(&name).map_err(Into::into));
            }
        }
        Err(error) => note(Err(error)),
    }
    note(unmount(&names.bpffs()));
    note(unmount(&names.run()));
    note(remove_folder(&names.root()));
    if !problems.is_empty() {
        bail!("clean up lab {}: {}", names.lab(), problems.join("; "));
    }
    Ok(())
}

/// Kills every process in a cgroup and below, and waits until they are gone.
pub(crate) fn kill_all(cgroup: &Path) -> Result<()> {
    let kill = cgroup.join("cgroup.kill");
    match fs::write(&kill, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        outcome => outcome.with_context(|| format!("write {}", kill.display()))?,
    }
    let events = cgroup.join("cgroup.events");
    wait_until(DEATH, &format!("the processes in {} to end", cgroup.display()), || {
        let text =
            fs::read_to_string(&events).with_context(|| format!("read {}", events.display()))?;
        Ok(text.lines().any(|line| line == "populated 0"))
    })
}

/// Removes a cgroup without processes, and those below it.
pub(crate) fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list {}", cgroup.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", cgroup.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    // A process that was killed leaves its cgroup a moment before that can be removed.
    wait_until(DEATH, &format!("cgroup {} to be empty", cgroup.display()), || match fs::remove_dir(
        cgroup,
    ) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).context("remove it"),
    })
}

fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH) {
        // Not there, or not a mount point.
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmount {}", target.display())),
    }
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Sweeps when a test ends, however it ends.
#[cfg(test)]
pub(crate) struct OnDrop<'a>(pub(crate) &'a Names);

#[cfg(test)]
impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = sweep(self.0) {
            eprintln!("{error:#}");
        }
    }
}
