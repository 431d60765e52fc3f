//! Shorter waits for the kernel's grace periods.
//!
//! Attaching a program to a tcx hook, and removing a device that has one, waits until no processor runs
//! the hook's former list of programs (`synchronize_rcu`): some 10 ms for each hook in which nothing
//! happens, under the lock that all changes of the network take. The kernel can be told not to wait at
//! its own convenience (`rcu_expedited`, as it does by itself while it boots and for most of the other
//! waits of a device's removal); it then takes a tenth of a millisecond. It is told so only for as long
//! as a change takes, since the setting is the whole machine's. Where it cannot be changed, the waits
//! are as long as they are.
//!
//! Many changes run at once, in many processes, and any of them may be killed. So each holds a shared
//! lock of one file for its time, and whoever is the last to let go takes the setting back. The kernel
//! lets go for who is killed; if that was the last, the next change takes the setting back in its turn,
//! or an agent does within a second.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

/// The kernel's.
const KERNEL: Switch = Switch {
    setting: "/sys/kernel/rcu_expedited",
    // The setting is the machine's, and gone with a reboot, and so is this.
    mark: "/run/fairway-rcu-expedited",
};

/// While this lives, waits are short.
#[derive(Debug)]
pub struct Expedited {
    _held: Held<'static>,
}

impl Expedited {
    /// None if they are already, by somebody else's will, or cannot be.
    pub fn begin() -> Option<Self> {
        KERNEL.hold().ok().flatten().map(|held| Self { _held: held })
    }
}

/// Takes back what somebody that was killed at the wrong moment left; an agent does so every second.
pub fn restore() {
    KERNEL.restore();
}

/// A setting, and who has changed it.
#[derive(Clone, Copy, Debug)]
struct Switch<'a> {
    /// `0` or `1`.
    setting: &'a str,
    /// Locked by all that need the setting to be `1`. It says something while it was `0` before.
    mark: &'a str,
}

/// A share in the setting's being on.
#[derive(Debug)]
struct Held<'a> {
    switch: Switch<'a>,
    mark: File,
}

impl<'a> Switch<'a> {
    /// None if it is on, and not by us.
    fn hold(self) -> io::Result<Option<Held<'a>>> {
        let mut options = File::options();
        let mut mark =
            options.write(true).create(true).truncate(false).mode(0o600).open(self.mark)?;
        // Who has it alone is about to take the setting back, and done in no time.
        mark.lock_shared()?;
        let is_on = fs::read_to_string(self.setting)?.trim() != "0";
        if is_on && mark.metadata()?.len() == 0 {
            return Ok(None);
        }
        // From here on, whatever happens, it is taken back.
        if !is_on {
            mark.write_all(b"1")?;
        }
        let held = Held { switch: self, mark };
        if !is_on {
            self.set("1")?;
        }
        Ok(Some(held))
    }

    fn set(self, value: &str) -> io::Result<()> {
        File::options().write(true).open(self.setting)?.write_all(value.as_bytes())
    }

    fn restore(self) {
        let is_marked = fs::metadata(self.mark).is_ok_and(|mark| mark.len() != 0);
        if is_marked && let Ok(mark) = File::options().write(true).open(self.mark) {
            self.take_back(&mark);
        }
    }

    /// What fails here is tried again: the mark still says something.
    fn take_back(self, mark: &File) {
        // Whoever else holds it comes here later.
        if mark.try_lock().is_ok() {
            let is_ours = mark.metadata().is_ok_and(|mark| mark.len() != 0);
            if is_ours && self.set("0").is_ok() {
                let _ = mark.set_len(0);
            }
            let _ = mark.unlock();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Of two that are the last at once, both have let go before either looks for the other.
        let _ = self.mark.unlock();
        self.switch.take_back(&self.mark);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A setting and a mark of a test's own.
    struct Files {
        setting: String,
        mark: String,
        folder: std::path::PathBuf,
    }

    impl Files {
        fn new(test: &str) -> Self {
            let name = format!("fairway-grace-{test}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).expect("a folder");
            let path = |file: &str| folder.join(file).to_str().expect("UTF-8").to_owned();
            let files = Self { setting: path("setting"), mark: path("mark"), folder };
            fs::write(&files.setting, "0\n").expect("a setting");
            files
        }

        fn switch(&self) -> Switch<'_> {
            Switch { setting: &self.setting, mark: &self.mark }
        }

        fn hold(&self) -> Held<'_> {
            self.switch().hold().expect("files").expect("not somebody else's")
        }

        fn is_on(&self) -> bool {
            fs::read_to_string(&self.setting).expect("a setting").trim() == "1"
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    /// The kernel's part in a kill.
    fn kill(held: Held<'_>) {
        held.mark.unlock().expect("unlocked");
        std::mem::forget(held);
    }

    #[test]
    fn the_last_holder_takes_the_setting_back() {
        let files = Files::new("last");
        let first = files.hold();
        assert!(files.is_on());
        let second = files.hold();
        drop(first);
        assert!(files.is_on(), "for the second");
        let third = files.hold();
        drop(second);
        files.switch().restore();
        assert!(files.is_on(), "for the third");
        drop(third);
        assert!(!files.is_on());
        drop(files.hold());
        assert!(!files.is_on(), "the same again");
    }

    #[test]
    fn holders_in_many_threads_leave_the_setting_as_it_was() {
        let files = Files::new("threads");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let held = files.hold();
                        assert!(files.is_on());
                        drop(held);
                    }
                });
            }
        });
        assert!(!files.is_on());
        assert_eq!(fs::metadata(&files.mark).expect("a mark").len(), 0);
    }

    #[test]
    fn what_a_killed_holder_left_is_taken_back_by_the_next_or_by_an_agent() {
        let files = Files::new("killed");
        let killed = files.hold();
        let other = files.hold();
        kill(killed);
        files.switch().restore();
        assert!(files.is_on(), "for the one that lives");
        drop(other);
        assert!(!files.is_on());

        kill(files.hold());
        assert!(files.is_on());
        drop(files.hold());
        assert!(!files.is_on(), "the next one takes it back");

        kill(files.hold());
        files.switch().restore();
        assert!(!files.is_on(), "an agent takes it back");
    }

    #[test]
    fn what_somebody_else_has_turned_on_stays_on() {
        let files = Files::new("others");
        fs::write(&files.setting, "1\n").expect("a setting");
        assert!(files.switch().hold().expect("files").is_none());
        files.switch().restore();
        assert!(files.is_on());
    }

    #[test]
    fn the_kernels_setting_is_taken_back_also_after_a_kill() {
        let read = || fs::read_to_string(KERNEL.setting);
        if !rustix::process::geteuid().is_root() || read().is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI has to run this test as root");
            return eprintln!(
                "NOT RUN: this test needs root, and a kernel with {}",
                KERNEL.setting
            );
        }
        // Other tests hold it at the same time, so it may take a moment.
        let becomes = |value: &str| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while read().is_ok_and(|is| is.trim() != value) {
                assert!(Instant::now() < deadline, "{} does not become {value}", KERNEL.setting);
                restore(); // of those whose plugins are killed
                std::thread::yield_now();
            }
        };
        let held = Expedited::begin().expect("off, or on by us");
        becomes("1");
        drop(held);
        becomes("0");
        kill(KERNEL.hold().expect("files").expect("off, or on by us"));
        restore();
        becomes("0");
    }
}
