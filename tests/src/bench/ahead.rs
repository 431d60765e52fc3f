//! Priority over other processes of the machine.

use std::fs;

use anyhow::{Context, Result};

/// As nice(2) counts.
const HIGHEST_PRIORITY: i32 = -20;

/// While it lives, this session's processes come before those of others: where the kernel shares the
/// processors among sessions (`sched_autogroup_enabled`), the priorities of processes say nothing about
/// that.
pub(super) struct Ahead {
    /// What the session had before.
    nice: Option<String>,
}

impl Ahead {
    const FILE: &str = "/proc/self/autogroup";

    /// From now on.
    pub(super) fn of_others() -> Result<Self> {
        rustix::process::setpriority_process(None, HIGHEST_PRIORITY)
            .context("run ahead of other processes")?;
        let nice = fs::read_to_string(Self::FILE).ok().as_deref().and_then(nice);
        if nice.is_some() {
            fs::write(Self::FILE, HIGHEST_PRIORITY.to_string())
                .context("run ahead of other sessions")?;
        }
        Ok(Self { nice })
    }
}

/// What a session's file says. It is empty where the kernel shares nothing among sessions, and for
/// sessions that began before it did, such as the first process's: those have no priority to change.
fn nice(file: &str) -> Option<String> {
    Some(file.trim().rsplit_once(" nice ")?.1.to_owned())
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(nice) = &self.nice
            && let Err(error) = fs::write(Self::FILE, nice)
        {
            eprintln!("give this session its priority back: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::nice;

    #[test]
    fn a_session_without_a_priority_of_its_own_is_left_alone() {
        assert_eq!(nice("/autogroup-3594 nice -5\n").as_deref(), Some("-5"));
        assert_eq!(nice(""), None);
    }
}
