//! A client that tries to reach many ports at once, and says which are reached: those where a test server answers.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use fairway_model::Protocol;

use super::sctp;

/// Whom to reach.
#[derive(Debug, Args)]
pub struct Options {
    /// tcp:ADDRESS:PORT, udp:… or sctp:…
    #[arg(required = true)]
    ports: Vec<Port>,
    /// How long to try, in milliseconds
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
}

/// A port of somebody, by a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub Protocol, pub SocketAddr);

/// As `tcp:10.0.0.1:80`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.to_string().to_lowercase(), self.1)
    }
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (protocol, address) = text.split_once(':').context("say PROTOCOL:ADDRESS:PORT")?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => bail!("protocol {other:?}: say tcp, udp or sctp"),
        };
        Ok(Self(protocol, address.parse()?))
    }
}

/// Tries all at once, and prints each that is reached on a line, then `done`.
pub(super) fn run(options: &Options) -> Result<()> {
    let limit = Duration::from_millis(options.timeout.max(1));
    thread::scope(|scope| {
        for port in &options.ports {
            scope.spawn(move || {
                if is_reached(*port, limit) {
                    println!("{port}");
                }
            });
        }
    });
    println!("{DONE}");
    Ok(())
}

const DONE: &str = "done";

fn is_reached(Port(protocol, address): Port, limit: Duration) -> bool {
    match protocol {
        Protocol::Tcp => TcpStream::connect_timeout(&address, limit).is_ok(),
        Protocol::Udp => answers(address, limit).unwrap_or(false),
        Protocol::Sctp => sctp::associates(address, limit),
    }
}

/// Whether somebody answers by UDP. A question that was lost is asked again, once.
fn answers(address: SocketAddr, limit: Duration) -> std::io::Result<bool> {
    let socket = match address {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    socket.connect(address)?;
    socket.set_read_timeout(Some((limit / 2).max(Duration::from_millis(1))))?;
    let end = Instant::now() + limit;
    while Instant::now() < end {
        // Somebody who refuses lets neither in.
        if socket.send(b"hostname").is_ok() && socket.recv(&mut [0; 256]).is_ok() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(false)
}

/// Such a client somewhere in a lab; killed on drop.
#[derive(Debug)]
pub struct Reach(Child);

impl Reach {
    /// Starts `command`, which is `fairway-lab` without arguments.
    pub(crate) fn start(mut command: Command, ports: &[Port], timeout: Duration) -> Result<Self> {
        command.args(["app", "reach", "--timeout", &timeout.as_millis().to_string()]);
        command.args(ports.iter().map(Port::to_string)).stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().map(Self).context("start the client that reaches ports")
    }

    /// Waits for its end; the ports that were reached.
    pub fn finish(mut self) -> Result<BTreeSet<Port>> {
        let output = self.0.stdout.take().context("the client's output")?;
        let mut reached = BTreeSet::new();
        for line in BufReader::new(output).lines() {
            let line = line.context("read what the client reached")?;
            if line == DONE {
                return Ok(reached);
            }
            reached.insert(line.parse()?);
        }
        bail!("the client that reaches ports ended early")
    }
}

impl Drop for Reach {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_they_are_read() {
        for text in ["tcp:10.0.0.1:80", "udp:[fd00::1]:53", "sctp:10.0.0.1:9"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
        }
        for text in ["10.0.0.1:80", "tcp:10.0.0.1", "ip:10.0.0.1:80"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_who_answers_is_reached() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let limit = Duration::from_millis(50);
        assert!(is_reached(Port(Protocol::Tcp, tcp.local_addr().unwrap()), limit));
        assert!(!is_reached(Port(Protocol::Udp, silent.local_addr().unwrap()), limit));
        let answers = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = answers.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (_, from) = answers.recv_from(&mut [0; 9]).unwrap();
            answers.send_to(b"me", from).unwrap();
        });
        assert!(is_reached(Port(Protocol::Udp, address), Duration::from_secs(5)));
        server.join().unwrap();
    }
}
