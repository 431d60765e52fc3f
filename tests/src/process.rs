//! Starting processes in the right place: network namespace, cgroup, and for containers a mount
//! and UTS namespace of their own.
//!
//! Never through `ip netns exec`: that mounts a new sysfs and so hides the bpffs below it.
#![expect(
    unsafe_code,
    reason = "what happens between fork and exec, and unshare, have no safe form"
)]

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairway_netlink::NetNs;
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

/// Where a process belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its cgroup, which exists.
    pub cgroup: PathBuf,
    /// A process whose mount and UTS namespaces and environment it shares.
    pub beside: Option<u32>,
}

impl Place {
    /// Makes `command` start here.
    pub fn apply(&self, command: &mut Command) -> Result<()> {
        join_cgroup(command, &self.cgroup)?;
        NetNs::open(&self.netns)?.enter_on_spawn(command)?;
        if let Some(pid) = self.beside {
            command.env_clear().envs(environment_of(pid)?);
            for (name, kind) in [
                ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
                ("mnt", LinkNameSpaceType::Mount),
            ] {
                let path = format!("/proc/{pid}/ns/{name}");
                let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
                // SAFETY: between fork and exec this makes one system call on an open descriptor
                // that the closure owns; it neither allocates nor takes a lock.
                unsafe {
                    command.pre_exec(move || {
                        Ok(rustix::thread::move_into_link_name_space(
                            namespace.as_fd(),
                            Some(kind),
                        )?)
                    });
                }
            }
        }
        Ok(())
    }
}

fn environment_of(pid: u32) -> Result<Vec<(OsString, OsString)>> {
    let path = format!("/proc/{pid}/environ");
    let bytes = fs::read(&path).with_context(|| format!("read {path}"))?;
    let variables = bytes.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((text(&variable[..at]), text(&variable[at + 1..])))
    });
    Ok(variables.collect())
}

/// Starts what is added to it with no more of root's power than `unit`, a service of systemd, leaves it, and as in a
/// container that is not privileged: with mounts of its own, among which the kernel's settings are read-only.
pub(crate) fn confined(unit: &str) -> Command {
    const CONTAINER: &str =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let mut command = Command::new("unshare");
    // Mounts of the machine are seen as they come, such as pods' namespaces.
    command.args(["--mount", "--propagation=slave", "sh", "-c", CONTAINER, "sh", "setpriv"]);
    command.arg(format!("--bounding-set=-all{}", capabilities(unit)));
    command.args(["--inh-caps=-all", "--no-new-privs"]);
    command
}

/// `CapabilityBoundingSet` in the words of setpriv(1): `,+net_admin,+bpf`.
fn capabilities(unit: &str) -> String {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = lines.flat_map(str::split_whitespace).filter_map(|name| name.strip_prefix("CAP_"));
    names.map(|name| format!(",+{}", name.to_lowercase())).collect()
}

/// What a container sees instead of the machine's own.
#[derive(Clone, Debug)]
pub(crate) struct Disguise {
    /// Its host name.
    pub hostname: String,
    /// Files to see in place of others; those whose target the machine lacks are left out.
    pub files: Vec<(PathBuf, PathBuf)>,
}

impl Disguise {
    /// Gives `command` mount and UTS namespaces of its own and fills them.
    pub(crate) fn apply(&self, command: &mut Command) -> Result<()> {
        let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let files = self
            .files
            .iter()
            .filter(|(_, target)| target.exists())
            .map(|(source, target)| Ok((c_string(source)?, c_string(target)?)))
            .collect::<Result<Vec<_>>>()?;
        let hostname = self.hostname.clone();
        // SAFETY: between fork and exec this makes system calls on values prepared above; no call
        // allocates or takes a lock. Unsharing mount and UTS namespaces (and with the former,
        // root and working directory) affects the forked child alone.
        unsafe {
            command.pre_exec(move || {
                rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWUTS)?;
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change(c"/", private)?;
                for (source, target) in &files {
                    rustix::mount::mount_bind(source.as_c_str(), target.as_c_str())?;
                }
                Ok(rustix::system::sethostname(hostname.as_bytes())?)
            });
        }
        Ok(())
    }
}

/// Makes `command` a process of the lab's: its output is appended to `log`, it hears nothing on
/// standard input, no terminal reaches it, and it dies with the thread that starts it.
pub(crate) fn supervised(command: &mut Command, log: &Path) -> Result<()> {
    let open = || OpenOptions::new().create(true).append(true).open(log);
    let about = || format!("open {}", log.display());
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    command
        .stdin(Stdio::null())
        .stdout(open().with_context(about)?)
        .stderr(open().with_context(about)?);
    // SAFETY: between fork and exec this makes two system calls without allocation or lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            rustix::process::setsid()?;
            Ok(())
        });
    }
    Ok(())
}

/// Sends a signal to a child that has not been waited for. A child that has ended is no error.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Not yet waited for, so the number is still this child's; ESRCH cannot happen, and a
        // zombie takes any signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Ends a child: politely, then after `grace` by force.
pub(crate) fn end(child: &mut Child, grace: Duration) -> io::Result<()> {
    signal(child, Signal::TERM);
    let deadline = Instant::now() + grace;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            signal(child, Signal::KILL);
            child.wait()?;
            return Ok(());
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Makes `command` the leader of a session of its own, out of reach of this one's terminal.
pub(crate) fn own_session(command: &mut Command) {
    // SAFETY: between fork and exec this makes one system call without allocation or lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}

/// Runs `command` to its end with `input` on standard input, and takes what it prints; after
/// `limit` it is killed, which is an error.
pub(crate) fn output_within(
    command: &mut Command,
    input: &[u8],
    limit: Duration,
) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let about = || format!("run {name}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(about)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let stdout = scope.spawn(|| read_all(stdout));
        let stderr = scope.spawn(|| read_all(stderr));
        if let Some(mut stdin) = stdin {
            // One that ends without reading says why elsewhere.
            let _ = stdin.write_all(input);
        }
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait().with_context(about)? {
                break status;
            }
            if Instant::now() >= deadline {
                child.kill().with_context(about)?;
                child.wait().with_context(about)?;
                bail!("{name} was killed after {} s", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(2));
        };
        let whole = |output: thread::Result<io::Result<Vec<u8>>>| {
            output.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        Ok(Output {
            status,
            stdout: whole(stdout.join()).with_context(about)?,
            stderr: whole(stderr.join()).with_context(about)?,
        })
    })
}

fn read_all(source: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        source.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// How often a process is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(20);

fn join_cgroup(command: &mut Command, cgroup: &Path) -> Result<()> {
    let path = cgroup.join("cgroup.procs");
    let mut procs = OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    // SAFETY: between fork and exec this writes one byte, "the writer itself", to an open file
    // that the closure owns; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || procs.write_all(b"0"));
    }
    Ok(())
}
