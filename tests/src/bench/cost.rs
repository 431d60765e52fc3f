//! What a process and those it has started take of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The time on processors that they have taken so far, in all of their threads.
pub(super) fn cpu(process: u32) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for pid in family(process)? {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads {
            // One may have ended.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
                continue;
            };
            let time = text.split(' ').next().and_then(|time| time.parse().ok());
            all += Duration::from_nanos(time.context("a thread's time")?);
        }
    }
    ensure!(all > Duration::ZERO, "the kernel tells no times of threads (CONFIG_SCHED_INFO)");
    Ok(all)
}

/// Their memory, in bytes; what several share counts once.
pub(super) fn memory(process: u32) -> Result<f64> {
    let mut all = 0.0;
    for pid in family(process)? {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
            continue;
        };
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        all += number.context("a process's memory")?.parse::<f64>()? * 1024.0;
    }
    Ok(all)
}

/// A process, its children, and theirs.
fn family(first: u32) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // One may have ended.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name may hold anything, but a parenthesis ends it; then come its state and its parent.
        let after = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        if let Some(parent) = after.split_whitespace().nth(1).and_then(|parent| parent.parse().ok())
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![first];
    let mut at = 0;
    while let Some(pid) = family.get(at) {
        family.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    Ok(family)
}
