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
        let Ok(now) = fs::read_to_string(Self::FILE) else { return Ok(Self { nice: None }) };
        fs::write(Self::FILE, HIGHEST_PRIORITY.to_string())
            .context("run ahead of other sessions")?;
        let nice = now.rsplit(' ').next().map(|nice| nice.trim().to_owned());
        Ok(Self { nice })
    }
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
