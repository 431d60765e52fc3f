//! The unix socket the CNI plugin speaks to.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use fairway_cni_protocol::{Refusal, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::reconciler::Command;

/// The longest request: far more than an endpoint needs.
const MAX_REQUEST: u64 = 64 * 1024;

/// Binds the socket, readable by its owner alone, and serves in the background. A socket that a dead
/// agent left is replaced; the caller made sure that no other one lives.
pub(crate) fn serve(path: &Path, commands: mpsc::Sender<Command>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set permissions of {}", path.display()))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(converse(stream, commands.clone()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection of the CNI plugin");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn converse(stream: UnixStream, commands: mpsc::Sender<Command>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match (&mut read).take(MAX_REQUEST).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "a connection of the CNI plugin ended badly");
                return;
            }
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => ask(request, &commands).await,
            Err(error) => refuse(format!("not a request: {error}")),
        };
        let Ok(mut bytes) = serde_json::to_vec(&response) else { return };
        bytes.push(b'\n');
        if write.write_all(&bytes).await.is_err() || !line.ends_with(b"\n") {
            return;
        }
    }
}

async fn ask(request: Request, commands: &mpsc::Sender<Command>) -> Response {
    let (answer, answered) = oneshot::channel();
    if commands.send(Command::Request(Box::new(request), answer)).await.is_err() {
        return stopping();
    }
    answered.await.unwrap_or_else(|_| stopping())
}

fn stopping() -> Response {
    Response::Error(Refusal { try_again: true, message: "the agent is stopping".to_owned() })
}

fn refuse(message: String) -> Response {
    Response::Error(Refusal { try_again: false, message })
}
