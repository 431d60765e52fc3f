//! `fairway-proxy install`: puts the CNI plugin where the container runtime executes it.
//!
//! The plugin may be executed at any moment, also by name while it is replaced. The new one is
//! therefore written beside the old one, tried, and renamed over it: a call gets one or the other as
//! a whole, and a plugin that is running goes on with the file it was started from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::Value;

use crate::cni_conf::PLUGIN;

/// Where container runtimes look for plugins.
pub(crate) const BIN_DIR: &str = "/opt/cni/bin";
/// How long the plugin may take to tell its versions.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long another installation may take: as long as its plugin, and a slow disk.
const PATIENCE_FOR_OTHERS: Duration = Duration::from_secs(60);
/// Between two looks whether it is through.
const PAUSE: Duration = Duration::from_millis(10);
const MODE: u32 = 0o755;

/// What `fairway-proxy install` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Folder that the container runtime executes plugins from
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    pub cni_bin_dir: PathBuf,

    /// The plugin to install [default: fairway-cni beside this program]
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
}

/// Installs the plugin, or finds it installed; answers what to tell.
pub fn run(options: &Options) -> Result<String> {
    let source = match &options.plugin {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    let folder = &options.cni_bin_dir;
    fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    let held = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    // Two at once would write the same temporary file.
    lock(&held, folder, PATIENCE_FOR_OTHERS)?;

    let target = folder.join(PLUGIN);
    let wanted = fs::read(&source).with_context(|| format!("read {}", source.display()))?;
    if is_installed(&target, &wanted) {
        let versions = versions(&target)?;
        return Ok(format!("{} is already there; it speaks CNI {versions}", target.display()));
    }
    let temporary = folder.join(format!(".{PLUGIN}.new"));
    let result = place(&wanted, &temporary, &target)
        .and_then(|versions| {
            held.sync_all().with_context(|| format!("sync {}", folder.display()))?;
            Ok(format!("installed {}; it speaks CNI {versions}", target.display()))
        })
        .with_context(|| format!("install {} as {}", source.display(), target.display()));
    if result.is_err() {
        // What is left of it only takes room.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Holds `folder`, which is open as `held`, until that is closed.
fn lock(held: &File, folder: &Path, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        match flock(held, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK | Errno::INTR) if begin.elapsed() < patience => {
                thread::sleep(PAUSE);
            }
            Err(Errno::WOULDBLOCK) => bail!(
                "lock {}: {} has held it for {patience:?}; is another installation stuck?",
                folder.display(),
                holder(held).unwrap_or_else(|| "somebody".to_owned())
            ),
            outcome => {
                return outcome.with_context(|| format!("lock {}", folder.display()));
            }
        }
    }
}

/// Who has a lock on a file, as far as the kernel says: in a container, other containers' processes
/// have no number.
fn holder(file: &File) -> Option<String> {
    let stat = rustix::fs::fstat(file).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let id = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    // `1: FLOCK  ADVISORY  WRITE 4711 fd:01:2345 0 EOF`; those who wait have an arrow in front.
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let process = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&id.as_str())).then(|| words[4])
    });
    let process = process.filter(|number| *number != "0")?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} {}", name.trim_end()).trim_end().to_owned())
}

fn beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    let path = this.with_file_name(PLUGIN);
    ensure!(path.is_file(), "there is no {}; name the plugin with --plugin", path.display());
    Ok(path)
}

fn is_installed(target: &Path, wanted: &[u8]) -> bool {
    let executable = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 == 0o111)
    };
    executable(target) && fs::read(target).is_ok_and(|found| found == wanted)
}

/// Writes, tries, renames; answers the versions that the plugin speaks.
fn place(contents: &[u8], temporary: &Path, target: &Path) -> Result<String> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", temporary.display()));
        }
        _ => {}
    }
    write(contents, temporary).with_context(|| format!("write {}", temporary.display()))?;
    let versions = versions(temporary)?;
    fs::rename(temporary, target).context("put it in place")?;
    Ok(versions)
}

fn write(contents: &[u8], path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(contents)?;
    // The mode at opening is subject to the umask.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()
}

/// Executes the plugin as a runtime would, to be told the versions of CNI that it speaks.
fn versions(plugin: &Path) -> Result<String> {
    let about = || format!("ask {} for its versions", plugin.display());
    let mut child = start(plugin).with_context(about)?;
    let answer = talk(&mut child).with_context(about);
    if answer.is_err() {
        // It may have ended by itself; it is not to become a zombie either way.
        let _ = child.kill();
        let _ = child.wait();
    }
    let answer: Value = serde_json::from_slice(&answer?).with_context(about)?;
    let versions = answer["supportedVersions"].as_array().into_iter().flatten();
    let versions: Vec<&str> = versions.filter_map(Value::as_str).collect();
    match versions[..] {
        [] => Err(anyhow!("it answers {answer}")).with_context(about),
        [first, .., last] => Ok(format!("{first} to {last}")),
        [only] => Ok(only.to_owned()),
    }
}

fn start(plugin: &Path) -> io::Result<Child> {
    let begin = Instant::now();
    loop {
        let child = Command::new(plugin)
            .env_clear()
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        match child {
            // Another process was forked while the file was open for writing, and lets go of it
            // only as it executes something itself.
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy && begin.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

fn talk(child: &mut Child) -> Result<Vec<u8>> {
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(br#"{"cniVersion": "1.0.0"}"#) {
            // It need not read what it does not need.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        ensure!(begin.elapsed() < PATIENCE, "no answer within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    };
    let mut answer = Vec::new();
    // An answer of versions fits into the pipe, so it is all there.
    if let Some(mut output) = child.stdout.take() {
        output.read_to_end(&mut answer)?;
    }
    if !status.success() {
        bail!("it ended with {status} and said {:?}", String::from_utf8_lossy(&answer));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plugin of a few lines, which answers as ours does.
    const GOOD: &str = r#"#!/bin/sh
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.0","1.1.0"]}'
"#;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn install(&self, plugin: &str) -> Result<String> {
            let source = self.0.path().join("source");
            fs::write(&source, plugin).expect("a file");
            run(&Options { cni_bin_dir: self.bin(), plugin: Some(source) })
        }

        fn bin(&self) -> PathBuf {
            self.0.path().join("bin")
        }

        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(self.bin()).expect("a folder").flatten();
            let mut names: Vec<_> =
                entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn installs_once_and_says_so() {
        let folder = Folder::new();
        assert!(folder.install(GOOD).expect("installed").contains("0.3.0 to 1.1.0"));
        assert_eq!(folder.files(), ["fairway-cni"]);
        assert!(folder.install(GOOD).expect("found").contains("already there"));
        let plugin = folder.bin().join("fairway-cni");
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o600)).expect("a mode");
        assert!(folder.install(GOOD).expect("installed").starts_with("installed"));
        let mode = fs::metadata(plugin).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn whoever_holds_the_folder_for_too_long_is_named() {
        let folder = Folder::new();
        folder.install(GOOD).expect("installed");
        let open = || File::open(folder.bin()).expect("a folder");
        let other = open();
        flock(&other, FlockOperation::LockExclusive).expect("a lock");
        let error = lock(&open(), &folder.bin(), Duration::from_millis(20)).expect_err("held");
        let process = format!("process {}", std::process::id());
        for part in [folder.bin().to_str().expect("UTF-8"), &process, "20ms"] {
            assert!(error.to_string().contains(part), "{part}: {error:#}");
        }
        drop(other);
        // Not at once: a process that another test is starting has the file until it is executed.
        lock(&open(), &folder.bin(), PATIENCE_FOR_OTHERS).expect("free");
    }

    #[test]
    fn what_does_not_run_here_replaces_nothing() {
        let folder = Folder::new();
        folder.install(GOOD).expect("installed");
        for bad in ["", "#!/bin/sh\necho '{}'", "#!/bin/sh\nexit 3", "\x7fELF of another machine"] {
            let error = folder.install(bad).expect_err(bad);
            assert!(format!("{error:#}").contains("for its versions"), "{error:#}");
            assert_eq!(folder.files(), ["fairway-cni"]);
            let left = fs::read_to_string(folder.bin().join("fairway-cni")).expect("a file");
            assert_eq!(left, GOOD);
        }
    }

    #[test]
    fn replaces_a_plugin_that_is_being_executed() {
        let folder = Folder::new();
        // A program of the system stands for an old plugin that a runtime is executing.
        fs::create_dir(folder.bin()).expect("a folder");
        let plugin = folder.bin().join("fairway-cni");
        fs::copy("/bin/sleep", &plugin).expect("a copy");
        let mut running = loop {
            match Command::new(&plugin).arg("60").spawn() {
                // As in `start`: other tests fork.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
                other => break other.expect("it runs"),
            }
        };
        let busy = OpenOptions::new().write(true).open(&plugin).expect_err("it is executed");
        assert_eq!(busy.kind(), ErrorKind::ExecutableFileBusy);
        folder.install(GOOD).expect("installed");
        assert_eq!(running.try_wait().expect("a process"), None);
        running.kill().expect("killed");
        running.wait().expect("reaped");
        assert_eq!(fs::read_to_string(plugin).expect("a file"), GOOD);
    }

    #[test]
    fn whoever_executes_it_meanwhile_gets_a_whole_plugin() {
        let folder = Folder::new();
        let variants = [GOOD.to_owned(), format!("{GOOD}# a newer one\n")];
        folder.install(&variants[0]).expect("installed");
        let plugin = folder.bin().join("fairway-cni");
        thread::scope(|scope| {
            let caller = scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(versions(&plugin).expect("an answer"), "0.3.0 to 1.1.0");
                }
            });
            let mut turn = 0;
            while !caller.is_finished() {
                turn += 1;
                folder.install(&variants[turn % 2]).expect("installed");
            }
            assert!(turn > 1);
        });
    }
}
