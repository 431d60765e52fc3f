//! Shorter waits for the kernel's grace periods.
//!
//! Attaching a program to a tcx hook, and removing a device that has one, waits until no processor runs
//! the hook's former list of programs (`synchronize_rcu`): some 10 ms for each hook in which nothing
//! happens, under the lock that all changes of the network take. The kernel can be told not to wait at
//! its own convenience (`rcu_expedited`, as it does by itself while it boots and for most of the other
//! waits of a device's removal); it then takes a tenth of a millisecond. It is told so only for as long
//! as a change takes, since the setting is the whole machine's. Where it cannot be changed, the waits
//! are as long as they are.

use std::fs;
use std::time::{Duration, SystemTime};

/// The kernel's own setting, `0` or `1`; gone with a reboot.
const SETTING: &str = "/sys/kernel/rcu_expedited";
/// There while somebody of ours has changed it: the setting is the machine's, and so is this.
const MARK: &str = "/run/fairway-rcu-expedited";
/// No change takes so long: whoever left an older mark was killed.
const OLD: Duration = Duration::from_secs(5);

/// While this lives, waits are short.
#[derive(Debug)]
pub struct Expedited(());

impl Expedited {
    /// None if they are already, or cannot be.
    pub fn begin() -> Option<Self> {
        let is_off = fs::read_to_string(SETTING).is_ok_and(|value| value.trim() == "0");
        (is_off && fs::write(MARK, "").is_ok() && fs::write(SETTING, "1").is_ok())
            .then_some(Self(()))
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        end();
    }
}

/// Takes back what somebody that was killed at the wrong moment left; an agent does so every second.
pub fn restore() {
    let made = fs::metadata(MARK).and_then(|mark| mark.modified());
    let age = made.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
    if age.is_some_and(|age| age > OLD) {
        end();
    }
}

fn end() {
    // What fails here is tried again: the mark is still there.
    if fs::write(SETTING, "0").is_ok() {
        let _ = fs::remove_file(MARK);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_setting_is_taken_back_also_after_a_kill() {
        if !rustix::process::geteuid().is_root() || fs::read_to_string(SETTING).is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI has to run this test as root");
            return eprintln!("NOT RUN: this test needs root, and a kernel with {SETTING}");
        }
        // Other tests attach at the same time, so each state may take a moment to be seen.
        let becomes = |value: &str| {
            let deadline = Instant::now() + 2 * OLD;
            while fs::read_to_string(SETTING).is_ok_and(|is| is.trim() != value) {
                assert!(Instant::now() < deadline, "{SETTING} does not become {value}");
                restore(); // of those whose plugins are killed
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        drop(Expedited::begin());
        becomes("0");
        std::mem::forget(Expedited::begin());
        let long_ago = SystemTime::now() - 2 * OLD;
        if let Ok(mark) = fs::File::options().write(true).open(MARK) {
            mark.set_modified(long_ago).expect("another time");
        }
        restore();
        becomes("0");
    }
}
