//! A client that asks a DNS server for one name many times a second, and once more what was not answered in time, as
//! resolvers do.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use serde::{Deserialize, Serialize};

/// Bytes of answers that may wait: those of more than a second, with what the kernel adds to each.
const ROOM: usize = 16 << 20;

/// Queries that wait for answers at most, which are told apart by 16 bits.
const AT_ONCE: usize = 1 << 15;

/// Whom to ask, and how often.
#[derive(Debug, Args)]
pub struct Options {
    /// ADDRESS:PORT
    server: SocketAddr,
    /// The name, for an A record
    name: String,
    /// Queries a second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Milliseconds until a query is asked once more, and as many until it counts as unanswered
    #[arg(long, default_value_t = 1000)]
    patience: u64,
}

/// What became of all queries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Answered at once.
    pub answered: u64,
    /// Answered when asked once more, or after that.
    pub retried: u64,
    /// Not answered.
    pub unanswered: u64,
    /// Answered by something else than an address.
    pub wrong: u64,
}

/// Asks until its standard input ends, waits for answers, and prints the summary.
pub(super) fn run(options: &Options) -> Result<()> {
    let socket = match options.server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = socket.context("open a socket")?;
    socket.set_nonblocking(true).context("not wait for answers")?;
    // Answers wait where the client has to wait for a processor. Who may not have all of it has as much as everybody.
    if set_socket_recv_buffer_size_force(&socket, ROOM).is_err() {
        set_socket_recv_buffer_size(&socket, ROOM).context("have room for answers")?;
    }
    let ended = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&ended);
    thread::spawn(move || {
        // Whatever is said, only its end counts.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ends.store(true, Ordering::Relaxed);
    });
    let summary = ask(options, &socket, &ended);
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}

fn ask(options: &Options, socket: &UdpSocket, ended: &AtomicBool) -> Summary {
    let patience = Duration::from_millis(options.patience);
    let mut summary = Summary::default();
    let mut message = query(&options.name);
    // Whether each was asked a second time.
    let mut open: HashMap<u16, bool> = HashMap::new();
    let mut due: VecDeque<(Instant, u16)> = VecDeque::new();
    let (start, mut sent, mut next) = (Instant::now(), 0u64, 0u16);
    let mut send = |id: u16| {
        message[..2].copy_from_slice(&id.to_be_bytes());
        // What cannot be sent is lost, and asked once more.
        let _ = socket.send_to(&message, options.server);
    };
    loop {
        let now = Instant::now();
        let going = !ended.load(Ordering::Relaxed);
        let wanted = now.duration_since(start).as_micros() * u128::from(options.rate) / 1_000_000;
        while going && u128::from(sent) < wanted && open.len() < AT_ONCE {
            while open.contains_key(&next) {
                next = next.wrapping_add(1);
            }
            send(next);
            open.insert(next, false);
            due.push_back((now + patience, next));
            (sent, next) = (sent + 1, next.wrapping_add(1));
        }
        let mut answer = [0; 512];
        loop {
            match socket.recv_from(&mut answer) {
                Ok((length, from)) if from == options.server && length > 12 => {
                    let id = u16::from_be_bytes([answer[0], answer[1]]);
                    let Some(again) = open.remove(&id) else { continue };
                    let good = answer[3] & 0xf == 0 && answer[7] > 0;
                    let count = match (good, again) {
                        (false, _) => &mut summary.wrong,
                        (true, false) => &mut summary.answered,
                        (true, true) => &mut summary.retried,
                    };
                    *count += 1;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A closed port, of one before.
                Err(_) => {}
            }
        }
        while let Some((_, id)) = due.front().copied().filter(|(when, _)| *when <= now) {
            due.pop_front();
            match open.get(&id) {
                Some(false) => {
                    send(id);
                    open.insert(id, true);
                    due.push_back((now + patience, id));
                }
                Some(true) => {
                    open.remove(&id);
                    summary.unanswered += 1;
                }
                None => {}
            }
        }
        if !going && open.is_empty() {
            return summary;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A query for an address (RFC 1035, 4.1).
fn query(name: &str) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Such a client somewhere in a lab; killed on drop.
#[derive(Debug)]
pub struct Lookups(Child);

impl Lookups {
    /// Starts `command`, which is `fairway-lab` without arguments.
    pub(crate) fn start(
        mut command: Command,
        server: SocketAddr,
        name: &str,
        rate: u32,
    ) -> Result<Self> {
        command.args(["app", "lookups", &server.to_string(), name, "--rate", &rate.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map(Self).context("start the client that asks for names")
    }

    /// Has it stop asking, and waits for its summary.
    pub fn finish(mut self) -> Result<Summary> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().context("the client's output")?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the client's summary {text:?}"))
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each query when it has heard it so many times, and none for good if 0.
    fn summary(after: usize) -> Summary {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let options = Options {
            server: server.local_addr().unwrap(),
            name: "web.default".into(),
            rate: 100,
            patience: 200,
        };
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ended);
        let serving = thread::spawn(move || {
            let (mut heard, start) = (HashMap::<u16, usize>::new(), Instant::now());
            while start.elapsed() < Duration::from_secs(1) {
                let mut message = [0; 64];
                let Ok((length, from)) = server.recv_from(&mut message) else { continue };
                let times = heard.entry(u16::from_be_bytes([message[0], message[1]])).or_default();
                *times += 1;
                if *times == after {
                    (message[2], message[7]) = (0x81, 1);
                    server.send_to(&message[..length], from).unwrap();
                }
                if heard.len() > 10 {
                    ends.store(true, Ordering::Relaxed);
                }
            }
        });
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let summary = ask(&options, &socket, &ended);
        serving.join().unwrap();
        summary
    }

    #[test]
    fn each_query_is_asked_twice_at_most() {
        let once = summary(1);
        assert!(once.answered > 10 && once.retried + once.unanswered == 0, "{once:?}");
        let twice = summary(2);
        assert!(twice.retried > 10 && twice.answered + twice.unanswered == 0, "{twice:?}");
        let never = summary(0);
        assert!(never.unanswered > 10 && never.answered + never.retried == 0, "{never:?}");
    }
}
