//! The gateway as a service: what the service manager is told, and how the program is replaced while it serves.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{self, Command};
use std::thread::{self, JoinHandle};

use tracing::{info, warn};

/// Tells the service manager, if one wants to hear (`sd_notify(3)`).
pub(crate) fn notify(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    let tell = || -> io::Result<()> {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&socket)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(error) = tell() {
        warn!(%error, "cannot tell the service manager {state:?}");
    }
}

/// A process with the program that is there now.
#[derive(Debug, Default)]
pub(crate) struct Successor(Option<JoinHandle<()>>);

impl Successor {
    /// Starts one, with the same arguments; it takes over by itself. One at a time.
    pub(crate) fn start(&mut self) {
        if process::id() == 1 {
            warn!(
                "no other gateway is started: it would end with this one, the first process of its container"
            );
            return;
        }
        if self.0.as_ref().is_some_and(|watching| !watching.is_finished()) {
            warn!("another gateway is on its way already");
            return;
        }
        let mut arguments = env::args_os();
        // Not the file that this process runs, which may have been replaced.
        let program = arguments.next().unwrap_or_default();
        match Command::new(&program).args(arguments).spawn() {
            Ok(mut child) => {
                info!(pid = child.id(), "another gateway starts, to take over from this one");
                self.0 = Some(thread::spawn(move || match child.wait() {
                    Ok(status) => warn!("the other gateway has ended ({status})"),
                    Err(error) => warn!(%error, "nothing is known of the other gateway"),
                }));
            }
            Err(error) => warn!(%error, "cannot start {}", program.display()),
        }
    }
}
