//! The process that owns a lab: builds it, keeps it running, answers clients, takes it down.
//!
//! It reports on standard output, a JSON document a line, until the lab is ready. Whatever ends it
//! (a request, a signal, the end of the process it is tied to, a failure on the way up), the lab
//! is swept from the machine before it exits.

mod clients;
mod parts;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;
use rustix::mount::MountFlags;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use self::clients::Desk;
use self::parts::Parts;
use crate::cluster::{Cluster, Options};
use crate::names::{Names, STATE_ROOT};
use crate::sweep::sweep;

/// What the daemon reports while it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "with", rename_all = "camelCase")]
pub(crate) enum Event {
    /// What it does now.
    Progress(String),
    /// Everything runs.
    Ready,
    /// It gave up, for this reason, and has cleaned up.
    Failed(String),
}

/// Runs a lab to its end. If `tied`, the end of standard input ends it. Reports a failure itself.
pub(crate) fn run(options: Options, tied: bool) -> ExitCode {
    match live_and_clean_up(options, tied) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            tracing::error!("{message}");
            // Nobody may be listening any more; the exit code tells as well.
            let _ = report(&Event::Failed(message));
            ExitCode::FAILURE
        }
    }
}

/// The lock that whoever makes or removes a lab holds; `None` if another process holds it. This
/// process's number is in it.
pub(crate) fn try_lock(names: &Names) -> Result<Option<File>> {
    fs::create_dir_all(STATE_ROOT).with_context(|| format!("create {STATE_ROOT}"))?;
    let path = names.lock();
    let about = || format!("lock {}", path.display());
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(about)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).with_context(about),
        }
        // The last holder removes the file; what we hold may be that removed one.
        let held = file.metadata().with_context(about)?;
        if fs::metadata(&path).is_ok_and(|named| named.ino() == held.ino()) {
            // A longer number of a killed holder must not show behind ours.
            file.set_len(0).with_context(about)?;
            (&file).write_all(std::process::id().to_string().as_bytes()).with_context(about)?;
            return Ok(Some(file));
        }
    }
}

/// Whether somebody holds the lock. For the moment of the look nobody else can take it.
pub(crate) fn is_locked(names: &Names) -> Result<bool> {
    let path = names.lock();
    let about = || format!("look at lock {}", path.display());
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.with_context(about)?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).with_context(about),
    }
}

/// Gives the lock back, and leaves no file.
pub(crate) fn unlock(names: &Names, lock: File) {
    // Removed while held: see `try_lock`. If it stays, the next holder takes it over.
    let _ = fs::remove_file(names.lock());
    drop(lock);
}

fn live_and_clean_up(options: Options, tied: bool) -> Result<()> {
    let cluster = Arc::new(Cluster::plan(options)?);
    let names = &cluster.names;
    let Some(lock) = try_lock(names)? else {
        bail!(
            "lab {0} is running already; stop it with `fairway-lab down --name {0}`, or choose another --name",
            names.lab()
        );
    };
    let outcome = sweep(names).context("remove what an earlier lab left").and_then(|()| {
        let outcome = live(&cluster, tied);
        cluster.stop();
        outcome.and(sweep(names))
    });
    unlock(names, lock);
    outcome
}

/// Builds the lab and serves until told to end.
fn live(cluster: &Arc<Cluster>, tied: bool) -> Result<()> {
    make_folders(cluster)?;
    log_to_file(&cluster.names)?;
    let (end, told) = mpsc::channel();
    watch_for_end(cluster, &end, tied)?;
    let progress = |what: &str| report(&Event::Progress(what.to_owned()));
    let parts = Arc::new(Parts::start(cluster, progress)?);
    let desk = Desk { cluster: Arc::clone(cluster), parts: Arc::clone(&parts), end };
    let outcome = clients::serve(desk).and_then(|()| until_told(&told));
    parts.shut_down();
    outcome
}

fn until_told(told: &Receiver<String>) -> Result<()> {
    report(&Event::Ready)?;
    detach_output()?;
    tracing::info!("ready");
    let reason = told.recv().context("wait for the end")?;
    tracing::info!("going down: {reason}");
    Ok(())
}

fn make_folders(cluster: &Cluster) -> Result<()> {
    let names = &cluster.names;
    let create = |path: &Path| {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
    };
    create(&names.manifests())?;
    create(&names.controlplane_state())?;
    create(&names.outside_cgroup())?;
    if let Some(folder) = names.log("daemon").parent() {
        create(folder)?;
    }
    mount_file_systems(names)?;
    for node in &cluster.topology.nodes {
        create(&names.node_bpffs(&node.name))?;
        create(&names.node_state(&node.name))?;
        create(&names.system_cgroup(&node.name))?;
        create(&names.node_cgroup(&node.name).join("pods"))?;
    }
    Ok(())
}

/// Mounts the lab's own file systems.
pub(crate) fn mount_file_systems(names: &Names) -> Result<()> {
    for (folder, kind) in [(names.bpffs(), "bpf"), (names.run(), "tmpfs")] {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        rustix::mount::mount("none", &folder, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount a {kind} at {}", folder.display()))?;
    }
    Ok(())
}

/// From here on, standard error is the daemon's log.
fn log_to_file(names: &Names) -> Result<()> {
    let path = names.log("daemon");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::stdio::dup2_stderr(file.as_fd()).context("redirect standard error")?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_target(false).init();
    Ok(())
}

/// Standard output was for whoever started the lab.
fn detach_output() -> Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdout(null.as_fd()).context("redirect standard output")
}

fn report(event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event).context("encode an event")?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    let written = out.write_all(&line).and_then(|()| out.flush());
    written.context("report: whoever started this lab went away")
}

/// Signals, and the end of standard input if `tied`, stop the lab, also on its way up.
fn watch_for_end(cluster: &Arc<Cluster>, end: &Sender<String>, tied: bool) -> Result<()> {
    let tell = |cluster: &Arc<Cluster>, end: &Sender<String>| {
        let (cluster, end) = (Arc::clone(cluster), end.clone());
        move |reason: &str| {
            cluster.stop();
            // Nobody listens if the lab is on its way down already.
            let _ = end.send(reason.to_owned());
        }
    };
    if tied {
        let tell = tell(cluster, end);
        spawn("tie", move || {
            let mut rest = Vec::new();
            // An error is an end as well.
            let _ = io::stdin().lock().read_to_end(&mut rest);
            tell("the process it was tied to has ended");
        })?;
    }
    if let Some(pid) = cluster.options.while_pid {
        let process = open_process(pid).with_context(|| format!("--while-pid {pid}"))?;
        let tell = tell(cluster, end);
        spawn("while-pid", move || {
            match rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
                Ok(_) => tell("the process of --while-pid has ended"),
                Err(error) => tracing::error!("cannot wait for process {pid}: {error}"),
            }
        })?;
    }
    let tell = tell(cluster, end);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start the runtime that waits for signals")?;
    spawn("signals", move || {
        let reason = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            io::Result::Ok(tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            })
        });
        match reason {
            Ok(reason) => tell(reason),
            Err(error) => tracing::error!("cannot wait for signals: {error}"),
        }
    })?;
    Ok(())
}

/// A handle that becomes readable when the process ends.
fn open_process(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process number")?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("no such process")
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("start thread {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_holds_one_number_and_leaves_no_file() {
        if !crate::may_run("lock") {
            return;
        }
        let names = Names::of(&crate::unique_name("lock")).unwrap();
        fs::create_dir_all(STATE_ROOT).unwrap();
        assert!(!is_locked(&names).unwrap());
        // As a killed holder leaves it.
        fs::write(names.lock(), "123456789012345\n").unwrap();
        assert!(!is_locked(&names).unwrap());
        let lock = try_lock(&names).unwrap().unwrap();
        assert!(is_locked(&names).unwrap());
        assert!(try_lock(&names).unwrap().is_none());
        let text = fs::read_to_string(names.lock()).unwrap();
        assert_eq!(text, std::process::id().to_string());
        unlock(&names, lock);
        assert!(!names.lock().exists());
    }
}
