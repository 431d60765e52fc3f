//! What clients and the daemon say to each other: one JSON document a line each way over a unix
//! socket, one answer for each request.

use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_model::Model;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::objects::{Key, Kind};
use crate::process::Place;

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Add or replace objects.
    Apply {
        /// Checked by the client already.
        objects: Vec<(Key, Value)>,
    },
    /// Take objects away, and wait until they are gone.
    Delete {
        /// Which.
        keys: Vec<Key>,
        /// Pods too at once.
        force: bool,
    },
    /// All objects of a kind.
    List {
        /// Which kind.
        kind: Kind,
    },
    /// What the control plane made of them.
    Model,
    /// How the nodes are doing.
    Nodes,
    /// Answered when every node has in force what the control plane knows now.
    InStep,
    /// Where to start a process.
    Locate {
        /// Beside whom.
        target: Target,
    },
    /// Another number of replicas.
    Scale {
        /// A workload.
        key: Key,
        /// How many.
        replicas: u32,
    },
    /// The files in which something's output is.
    Logs {
        /// Whose.
        target: Target,
    },
    /// End an agent's process; it is started again. Answered when it serves again.
    RestartAgent {
        /// On which node.
        node: String,
        /// Without a word of warning.
        kill: bool,
    },
    /// Start an agent again after it was killed, or kill it and keep it away. Answered when it serves, or
    /// is gone.
    Agent {
        /// On which node.
        node: String,
        /// Whether it shall run.
        run: bool,
    },
    /// Start a gateway again after it was killed, or kill it and keep it away. Answered when it serves, or is
    /// gone.
    Gateway {
        /// On which node.
        node: String,
        /// Whether it shall run.
        run: bool,
    },
    /// Make a node that flannel runs one of ours; it must have no pods then. Answered when its agent
    /// serves.
    Convert {
        /// Which node.
        node: String,
    },
    /// Take the power from a node, or give it back. Answered when nothing runs there any more, or when its
    /// agent has been started.
    Power {
        /// Which node.
        node: String,
        /// What becomes of it.
        power: Power,
    },
    /// Start the control plane again after it was killed, or kill it and keep it away. Answered
    /// when it serves, or is gone.
    Controlplane {
        /// Whether it shall run.
        run: bool,
    },
    /// Stop the lab. Answered before it happens.
    Down,
}

/// Whether a node's machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Power {
    /// It does not: only what is on its disk is left.
    Off,
    /// It does, with the disk that it had.
    On,
    /// It does, as a new machine of the same name: its disk is empty.
    New,
}

/// Someone in the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A node; of logs, its agent's.
    Node {
        /// Its name.
        node: String,
    },
    /// A node's gateway.
    Gateway {
        /// The node's name.
        node: String,
    },
    /// The outside client.
    Client,
    /// The control plane.
    Controlplane,
    /// The lab itself.
    Daemon,
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", content = "with", rename_all = "camelCase")]
pub enum Response {
    /// Done; a line for each object.
    Done(Vec<String>),
    /// To [`Request::List`].
    Objects(Vec<Value>),
    /// To [`Request::Model`].
    Model(Box<Model>),
    /// To [`Request::Nodes`].
    Nodes(Vec<NodeInfo>),
    /// To [`Request::Locate`].
    Place(Place),
    /// To [`Request::Logs`].
    Files(Vec<PathBuf>),
    /// Not done, and why.
    Error(String),
}

/// How a node is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Whether its agent serves.
    pub ready: bool,
    /// Underlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Ranges of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// The agent's process.
    pub agent_pid: Option<u32>,
    /// How often it was started again.
    pub agent_restarts: u32,
    /// How it ended last.
    pub agent_last_end: Option<String>,
    /// The gateway's process.
    pub gateway_pid: Option<u32>,
}

/// Longer than any request takes: some wait until pods are gone or agents serve.
const LIMIT: Duration = Duration::from_secs(300);
/// To go down is promised at once.
const DOWN_LIMIT: Duration = Duration::from_secs(5);

/// Asks the daemon behind `socket`. One that hangs is an error, sooner or later.
pub fn ask(socket: &Path, request: &Request) -> Result<Response> {
    let about = || format!("talk to the lab at {}", socket.display());
    let limit = if matches!(request, Request::Down) { DOWN_LIMIT } else { LIMIT };
    let mut stream = UnixStream::connect(socket).with_context(about)?;
    stream.set_write_timeout(Some(limit)).with_context(about)?;
    stream.set_read_timeout(Some(limit)).with_context(about)?;
    let mut line = serde_json::to_vec(request).context("encode a request")?;
    line.push(b'\n');
    stream.write_all(&line).map_err(hang(limit)).with_context(about)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(hang(limit)).with_context(about)?;
    if answer.is_empty() {
        bail!("the lab went away before it answered");
    }
    match serde_json::from_str(&answer).context("read the lab's answer")? {
        Response::Error(message) => bail!(message),
        response => Ok(response),
    }
}

/// The system's words for a timeout, "resource temporarily unavailable", say nothing.
fn hang(limit: Duration) -> impl Fn(io::Error) -> io::Error {
    move |error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s: it hangs", limit.as_secs()),
        ),
        _ => error,
    }
}
