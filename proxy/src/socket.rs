//! The unix socket the CNI plugin speaks to.
//!
//! Whoever may speak here may connect anything to the node's network, so that is root alone: by the
//! folder, by the socket's mode, and by asking the kernel who called.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_cni_protocol::{Refusal, Request, Response, decode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::dns::Explainer;
use crate::reconciler::Command;

/// The longest request: far more than an endpoint needs.
const MAX_REQUEST: u64 = 64 * 1024;
/// Connections served at a time, each of which may be an ADD that waits; more wait to be accepted.
const CONNECTIONS: usize = 512;
/// What a client is given for each thing it does.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Between requests: the plugin makes a pod's interface meanwhile.
    idle: Duration,
    /// To finish a request that has begun, or to take an answer.
    line: Duration,
}

const LIMITS: Limits = Limits { idle: Duration::from_secs(60), line: Duration::from_secs(5) };

/// Binds the socket and serves in the background. A socket that a dead agent left is replaced.
pub(crate) async fn serve(
    path: &Path,
    commands: mpsc::Sender<Command>,
    dns: Option<Arc<Explainer>>,
) -> Result<()> {
    let listener = bind(path).await?;
    tokio::spawn(accept(listener, Agent { commands, dns }, LIMITS));
    Ok(())
}

async fn bind(path: &Path) -> Result<UnixListener> {
    secure_folder(path)?;
    remove_dead(path).await?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set permissions of {}", path.display()))?;
    Ok(listener)
}

/// Makes the folder for this user alone. One that is there may be read by others, but whoever may
/// write to it could put a socket of his own in the place of ours.
fn secure_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make folder {}", folder.display()))?;
    let found = fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
    if found.uid() != own_uid() || found.mode() & 0o022 != 0 {
        bail!(
            "socket {}: its folder belongs to user {} and has mode {:o}, so that others than user {} \
             could replace the socket; give it another folder with --socket, or make this one's mode \
             700",
            path.display(),
            found.uid(),
            found.mode() & 0o7777,
            own_uid()
        );
    }
    Ok(())
}

/// Takes away a socket on which nobody listens any more, and nothing else.
async fn remove_dead(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        Ok(found) if !found.file_type().is_socket() => {
            bail!(
                "socket {}: there is something else of that name; it is left alone",
                path.display()
            )
        }
        Ok(_) => {}
    }
    // No answer within the limit is somebody who is too busy to accept.
    let dead = matches!(
        timeout(LIMITS.line, UnixStream::connect(path)).await,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused
    );
    if !dead {
        bail!("socket {}: another process listens on it; is it another agent?", path.display());
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

async fn accept(listener: UnixListener, agent: Agent, limits: Limits) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    converse(stream, agent, limits).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection of the CNI plugin");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, agent: Agent, limits: Limits) {
    let stranger = match stream.peer_cred() {
        Ok(peer) if peer.uid() == own_uid() => None,
        Ok(peer) => Some(format!("user {} may not speak to the agent", peer.uid())),
        Err(error) => Some(format!("the kernel does not say who calls: {error}")),
    };
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let (response, last) = match &stranger {
            Some(reason) => {
                warn!("refused a connection to the CNI plugin's socket: {reason}");
                (refuse(reason.clone()), true)
            }
            None => match request(&mut read, limits).await {
                Ok(Some(line)) => match decode(&line) {
                    Ok(request) => {
                        let answer = tokio::select! {
                            answer = agent.ask(request) => answer,
                            // Whoever has gone wants no answer, and gets nothing put in force.
                            () = gone(&mut read) => return,
                        };
                        (answer, false)
                    }
                    Err(refusal) => (Response::Error(refusal), false),
                },
                Ok(None) => return,
                Err(problem) => {
                    debug!("a connection of the CNI plugin ended badly: {problem}");
                    (refuse(problem), true)
                }
            },
        };
        let Ok(mut bytes) = serde_json::to_vec(&response) else { return };
        bytes.push(b'\n');
        let written = timeout(limits.line, write.write_all(&bytes)).await;
        if last || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// The next request's line; `None` if there is no other, an error if there never will be.
async fn request(
    read: &mut BufReader<OwnedReadHalf>,
    limits: Limits,
) -> Result<Option<Vec<u8>>, String> {
    match timeout(limits.idle, read.fill_buf()).await {
        Ok(Ok([])) | Err(_) => return Ok(None),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(format!("read a request: {error}")),
    }
    let mut line = Vec::new();
    let mut bounded = read.take(MAX_REQUEST);
    match timeout(limits.line, bounded.read_until(b'\n', &mut line)).await {
        Err(_) => Err(format!("a request was not finished within {:?}", limits.line)),
        Ok(Err(error)) => Err(format!("read a request: {error}")),
        Ok(Ok(_)) if line.ends_with(b"\n") => Ok(Some(line)),
        Ok(Ok(_)) if line.len() as u64 == MAX_REQUEST => {
            Err(format!("a request is longer than {MAX_REQUEST} bytes"))
        }
        Ok(Ok(_)) => Err("the connection ended within a request".to_owned()),
    }
}

/// Returns when the client has closed its side. One that says more instead can wait.
async fn gone(read: &mut BufReader<OwnedReadHalf>) {
    if let Ok([_, ..]) = read.fill_buf().await {
        std::future::pending::<()>().await;
    }
}

/// Who answers requests.
#[derive(Clone)]
struct Agent {
    /// The thread that changes the kernel.
    commands: mpsc::Sender<Command>,
    dns: Option<Arc<Explainer>>,
}

impl Agent {
    async fn ask(&self, request: Request) -> Response {
        if let (Some(dns), Request::ResolveName { name, kind, from }) = (&self.dns, &request) {
            return match dns.explain(name, kind, from.as_deref()).await {
                Ok(resolved) => Response::Name(resolved),
                Err(error) => refuse(format!("{error:#}")),
            };
        }
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Request(Box::new(request), answer)).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    }
}

fn stopping() -> Response {
    Response::Error(Refusal { try_again: true, message: "the agent is stopping".to_owned() })
}

fn refuse(message: String) -> Response {
    Response::Error(Refusal { try_again: false, message })
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
