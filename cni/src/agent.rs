//! Questions to the node's agent over its unix socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fairway_cni_protocol::{
    Endpoint, KnownAddresses, NodeConfig, Refusal, Request, Response, encode, socket_path,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::call::Attachment;
use crate::failure::{Code, Failure, chain};

/// For ADD and CHECK: attaching programs and filling tables is quick, a busy node is not.
pub(crate) const PATIENT: Duration = Duration::from_secs(30);
/// For the calls that get by without an answer.
pub(crate) const BRIEF: Duration = Duration::from_secs(5);

/// Why a question was not answered with yes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "the agent does not answer on {} (is fairway-proxy running on this node?)",
        socket.display()
    )]
    Away { socket: PathBuf, source: io::Error },
    #[error("the agent on {} gave an answer that is none (is it of another version?)", socket.display())]
    Garbled { socket: PathBuf, source: serde_json::Error },
    #[error("the agent on {} answered another question", socket.display())]
    OffTheMark { socket: PathBuf },
    #[error("the agent refuses: {}", .0.message)]
    Refused(Refusal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            // An agent that is being replaced is away, or still the old one, for a moment.
            Error::Away { .. } | Error::Garbled { .. } | Error::OffTheMark { .. } => Code::TryAgain,
            Error::Refused(Refusal { try_again: true, .. }) => Code::TryAgain,
            Error::Refused(_) => Code::AgentRefused,
        };
        Self::new(code, chain(&error))
    }
}

/// A connection to the agent.
pub(crate) struct Agent {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Agent {
    /// Connects to the configured socket, or the usual one. Nothing about this connection takes
    /// longer than `patience`.
    pub(crate) fn connect(configured: Option<&Path>, patience: Duration) -> Result<Self, Error> {
        let socket = socket_path(configured).to_owned();
        match connect(&socket, patience) {
            Ok(stream) => Ok(Self { socket, stream: BufReader::new(stream) }),
            Err(source) => Err(Error::Away { socket, source }),
        }
    }

    pub(crate) fn node_config(&mut self) -> Result<NodeConfig, Error> {
        match self.ask(&Request::NodeConfig)? {
            Response::NodeConfig(config) => Ok(config),
            other => Err(self.otherwise(other)),
        }
    }

    /// The addresses that a pod and others had before; none, if the agent has nothing to say of that.
    pub(crate) fn known_addresses(&mut self, uid: &str) -> Result<KnownAddresses, Error> {
        match self.ask(&Request::KnownAddresses { uid: uid.to_owned() })? {
            Response::KnownAddresses(known) => Ok(known),
            _ => Ok(KnownAddresses::default()),
        }
    }

    /// Returns when the endpoint is in force.
    pub(crate) fn add(&mut self, endpoint: Endpoint) -> Result<(), Error> {
        self.ask_to(&Request::AddEndpoint { endpoint })
    }

    pub(crate) fn check(&mut self, endpoint: Endpoint) -> Result<(), Error> {
        self.ask_to(&Request::CheckEndpoint { endpoint })
    }

    pub(crate) fn delete(&mut self, attachment: &Attachment) -> Result<(), Error> {
        self.ask_to(&Request::DeleteEndpoint {
            container_id: attachment.container_id.clone(),
            interface: attachment.interface.clone(),
        })
    }

    /// All that is registered.
    pub(crate) fn endpoints(&mut self) -> Result<Vec<Endpoint>, Error> {
        match self.ask(&Request::ListEndpoints)? {
            Response::Endpoints { endpoints } => {
                Ok(endpoints.into_iter().map(|registered| registered.endpoint).collect())
            }
            other => Err(self.otherwise(other)),
        }
    }

    fn ask_to(&mut self, request: &Request) -> Result<(), Error> {
        match self.ask(request)? {
            Response::Ok => Ok(()),
            other => Err(self.otherwise(other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, Error> {
        let line = self
            .exchange(request)
            .map_err(|source| Error::Away { socket: self.socket.clone(), source })?;
        serde_json::from_str(&line)
            .map_err(|source| Error::Garbled { socket: self.socket.clone(), source })
    }

    fn exchange(&mut self, request: &Request) -> io::Result<String> {
        self.stream.get_mut().write_all(&encode(request)?)?;
        let mut answer = String::new();
        self.stream.by_ref().take(ANSWER_LIMIT).read_line(&mut answer)?;
        if answer.ends_with('\n') {
            Ok(answer)
        } else {
            let problem = if answer.is_empty() { "closed without an answer" } else { "cut short" };
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem))
        }
    }

    fn otherwise(&self, response: Response) -> Error {
        match response {
            Response::Error(refusal) => Error::Refused(refusal),
            Response::Ok
            | Response::NodeConfig(_)
            | Response::KnownAddresses(_)
            | Response::Endpoints { .. }
            | Response::Name(_) => Error::OffTheMark { socket: self.socket.clone() },
        }
    }
}

/// Answers are a few hundred bytes, the list of a full node's endpoints a few hundred times that.
const ANSWER_LIMIT: u64 = 1 << 20;

/// Like `UnixStream::connect`, which would wait for ever on an agent that has stopped accepting.
fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&stream, Timeout::Send, Some(patience))?;
    set_socket_timeout(&stream, Timeout::Recv, Some(patience))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    Ok(stream.into())
}
