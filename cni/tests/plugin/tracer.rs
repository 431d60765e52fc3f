//! Kills the plugin at a chosen moment: before each of its system calls that others can see.
#![expect(unsafe_code, reason = "ptrace has no safe form")]

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;

use libc::{c_int, c_long, c_void, pid_t};

/// How a traced run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Killed before this system call.
    Killed(&'static str),
    /// It made no such call, and came to its end.
    Exited { status: i32, stdout: String },
}

/// When a run is killed: before one of its system calls that change something outside of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The first is 1. How many there are may differ from run to run: some are only made if nobody
    /// else needs what they change.
    Change(usize),
    /// The first of this name.
    Call(&'static str),
}

/// Runs `command` and kills it, with all its threads, before one of its changes. That call is not made,
/// so that runs for the changes 1, 2, 3, ... leave what a kill at any instruction can leave.
#[expect(clippy::zombie_processes, reason = "`trace` waits for it, as only its tracer can")]
pub(crate) fn kill_before(mut command: Command, stdin: &str, moment: Moment) -> Ending {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // SAFETY: between fork and exec only ptrace is called, which is async-signal-safe here: it
    // touches no memory of this process.
    unsafe {
        command.pre_exec(|| {
            check(libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<c_void>(), 0)).map(drop)
        });
    }
    // The tracer is the thread that forks, so spawn, wait and ptrace all have to be here.
    let mut child = command.spawn().expect("the plugin");
    let pid = pid_t::try_from(child.id()).expect("a process id");
    // A pipe has room for a configuration before anybody reads.
    child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()).expect("stdin");
    let status = trace(pid, moment);
    let mut stdout = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut stdout).expect("stdout");
    match status {
        Ok(call) => Ending::Killed(call),
        Err(status) => Ending::Exited { status, stdout },
    }
}

/// The call it was killed before; otherwise its exit status.
fn trace(pid: pid_t, moment: Moment) -> Result<&'static str, i32> {
    let (_, status) = wait();
    assert!(libc::WIFSTOPPED(status), "stopped by its exec, not {status:#x}");
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, pid, c_long::from(options));
    request(libc::PTRACE_SYSCALL, pid, 0);
    let mut steps = 0;
    let mut restarting = HashSet::new();
    let mut killed = None;
    loop {
        let (thread, status) = wait();
        if !libc::WIFSTOPPED(status) {
            match killed {
                _ if thread != pid => continue, // a thread has ended
                Some(call) => return Ok(call),
                None => return Err(libc::WEXITSTATUS(status)),
            }
        }
        let signal = match libc::WSTOPSIG(status) {
            // A system call: a trap with this bit.
            signal if signal == libc::SIGTRAP | 0x80 => {
                match stop(thread) {
                    _ if killed.is_some() => {}
                    Stop::Restarts => {
                        restarting.insert(thread);
                    }
                    // The same call once more, as far as the program knows.
                    Stop::ChangeBegins(_) if restarting.remove(&thread) => {}
                    Stop::ChangeBegins(call) => {
                        steps += 1;
                        if moment == Moment::Change(steps) || moment == Moment::Call(call) {
                            // SAFETY: a child of ours that nobody has waited for keeps its number.
                            check(unsafe { libc::kill(pid, libc::SIGKILL) }.into())
                                .expect("killed");
                            killed = Some(call);
                        }
                    }
                    Stop::Other => {}
                }
                0
            }
            // A new thread: its start, and its creator's notice of it.
            libc::SIGTRAP | libc::SIGSTOP => 0,
            signal => signal,
        };
        if killed.is_none() {
            request(libc::PTRACE_SYSCALL, thread, signal.into());
        }
    }
}

/// What a thread has stopped at.
enum Stop {
    /// It is about to make this system call, which changes something.
    ChangeBegins(&'static str),
    /// The kernel has broken off a system call that changes something, to begin it again: a setting
    /// whose lock another process holds.
    Restarts,
    Other,
}

fn stop(thread: pid_t) -> Stop {
    // SAFETY: all of it is numbers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size it is told.
    let read = unsafe {
        let data = (&raw mut info).cast::<c_void>();
        libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size_of_val(&info), data)
    };
    if let Err(error) = check(read) {
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "{error}"); // killed meanwhile
        return Stop::Other;
    }
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: this is the variant that `op` says.
            let entry = unsafe { info.u.entry };
            change(thread, entry).map_or(Stop::Other, Stop::ChangeBegins)
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            const ERESTARTNOINTR: i64 = 513;
            // SAFETY: as above.
            let result = unsafe { info.u.exit }.sval;
            if result == -ERESTARTNOINTR { Stop::Restarts } else { Stop::Other }
        }
        _ => Stop::Other,
    }
}

/// The name of the system call if it changes something.
fn change(
    thread: pid_t,
    call: libc::__c_anonymous_ptrace_syscall_info_entry,
) -> Option<&'static str> {
    let libc::__c_anonymous_ptrace_syscall_info_entry { nr, args } = call;
    let name = match c_long::try_from(nr).expect("a number of a system call") {
        libc::SYS_open => Some((args[1], "open")),
        libc::SYS_openat => Some((args[2], "openat")),
        _ => None,
    };
    if let Some((flags, name)) = name {
        let creates = flags & u64::try_from(libc::O_CREAT | libc::O_TRUNC).expect("flags") != 0;
        return creates.then_some(name);
    }
    match c_long::try_from(nr).expect("a number of a system call") {
        libc::SYS_write => Some("write"),
        // The plugin speaks to the kernel's routing this way; what only asks changes nothing.
        libc::SYS_sendto => (!asks(thread, args[1], args[2])).then_some("sendto"),
        libc::SYS_link | libc::SYS_linkat => Some("link"),
        libc::SYS_unlink | libc::SYS_unlinkat => Some("unlink"),
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => Some("rename"),
        libc::SYS_mkdir | libc::SYS_mkdirat => Some("mkdir"),
        libc::SYS_ftruncate => Some("ftruncate"),
        _ => None,
    }
}

/// Are these bytes of the thread's memory an rtnetlink message of the `GET` kind?
fn asks(thread: pid_t, message: u64, length: u64) -> bool {
    let address = ptr::with_exposed_provenance_mut::<c_void>(
        usize::try_from(message).expect("an address of this machine"),
    );
    // SAFETY: the address is the other process's; here it is only a number.
    let word = unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, thread, address, 0) };
    // Length in four bytes, then the type in two: NEW, DEL, GET and SET of each object in a row.
    let [a, b, c, d, kind, ..] = word.to_ne_bytes();
    u64::from(u32::from_ne_bytes([a, b, c, d])) == length && kind % 4 == 2
}

fn request(request: libc::c_uint, thread: pid_t, data: c_long) {
    // SAFETY: these requests take a number as data, and read or write no memory.
    let done = unsafe { libc::ptrace(request, thread, ptr::null_mut::<c_void>(), data) };
    if let Err(error) = check(done) {
        // Killed by its other threads' end in between; its own end is waited for next.
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "ptrace {request}: {error}");
    }
}

/// Waits for a thread that this thread traces, and for nobody else's children.
fn wait() -> (pid_t, c_int) {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: the kernel writes one number where it is told.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, flags) };
    (pid_t::try_from(check(thread.into()).expect("a traced thread")).expect("its number"), status)
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
