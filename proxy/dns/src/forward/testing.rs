//! Messages for tests, written byte by byte, and upstreams that do as they are told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::message::Wanted;

/// The type of an IPv4 address.
pub(crate) const A: u16 = 1;

/// The address of a name.
pub(crate) fn wanted(name: &str) -> Wanted {
    Wanted { name: name.parse().expect("a name"), kind: A, signatures: false, unchecked: false }
}

/// A name as labels behind their lengths, its letters as they are.
pub(crate) fn name(text: &str) -> Vec<u8> {
    let labels = text.trim_end_matches('.').split('.').filter(|label| !label.is_empty());
    let mut bytes = Vec::new();
    for label in labels {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A query with id 0x1234 that desires recursion.
pub(crate) fn query(text: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(name(text));
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// The same with an OPT record.
pub(crate) fn with_edns(mut query: Vec<u8>, payload: u16, signatures: bool) -> Vec<u8> {
    query[11] += 1;
    query.extend([0, 0, 41]);
    query.extend(payload.to_be_bytes());
    query.extend([0, 0, if signatures { 0x80 } else { 0 }, 0, 0, 0]);
    query
}

/// Where the question of a message ends.
pub(crate) fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += 1 + usize::from(message[at]);
    }
    at + 5
}

/// The name of a message's question, its letters as they are.
pub(crate) fn asked_name(message: &[u8]) -> String {
    let labels = crate::name::labels(&message[12..question_end(message) - 4]);
    let labels: Vec<_> = labels.map(|label| String::from_utf8_lossy(label).into_owned()).collect();
    labels.join(".")
}

/// An answer in the making.
pub(crate) struct Answer(Vec<u8>);

/// An answer to the query, with nothing in it.
pub(crate) fn reply_to(query: &[u8]) -> Answer {
    let mut bytes = query[..question_end(query)].to_vec();
    bytes[2] |= 0x80;
    bytes[3] |= 0x80;
    bytes[6..12].fill(0);
    Answer(bytes)
}

impl Answer {
    pub(crate) fn rcode(mut self, rcode: u8) -> Self {
        self.0[3] = self.0[3] & 0xf0 | rcode;
        self
    }

    pub(crate) fn truncated(mut self) -> Self {
        self.0[2] |= 2;
        self
    }

    /// A record of the section that is counted there, in order of the sections.
    pub(crate) fn record(
        mut self,
        section: usize,
        owner: &[u8],
        kind: u16,
        ttl: u32,
        data: &[u8],
    ) -> Self {
        self.0[section] += 1;
        self.0.extend_from_slice(owner);
        self.0.extend(kind.to_be_bytes());
        self.0.extend([0, 1]);
        self.0.extend(ttl.to_be_bytes());
        self.0.extend(u16::try_from(data.len()).expect("short data").to_be_bytes());
        self.0.extend_from_slice(data);
        self
    }

    /// An address of the name that was asked for.
    pub(crate) fn a(self, address: [u8; 4], ttl: u32) -> Self {
        self.record(7, &[0xc0, 12], A, ttl, &address)
    }

    /// The SOA of the name that was asked for.
    pub(crate) fn soa(self, ttl: u32, minimum: u32) -> Self {
        let mut data = vec![0xc0, 12, 0xc0, 12];
        data.extend([0; 16]);
        data.extend(minimum.to_be_bytes());
        self.record(9, &[0xc0, 12], 6, ttl, &data)
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// What a pretended upstream does with a query.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Says these, one after the other.
    Say(Vec<Vec<u8>>),
    /// Says so later.
    Late(Duration, Vec<u8>),
    /// Has somebody else say that, and then says this.
    Forged(Vec<u8>, Vec<u8>),
    Nothing,
}

/// Somebody to ask, on a port of the loopback address, by UDP and TCP. Probes are answered, or not, like anything else, and not noted.
#[derive(Debug)]
pub(crate) struct Pretender {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

/// A query that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) by_tcp: bool,
    pub(crate) message: Vec<u8>,
}

impl Pretender {
    /// `act` is told of a query, and whether it came by TCP.
    pub(crate) async fn new(
        act: impl Fn(&[u8], bool) -> Act + Clone + Send + Sync + 'static,
    ) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = tcp.local_addr().expect("its address");
            if let Ok(udp) = UdpSocket::bind(address).await {
                break (tcp, Arc::new(udp));
            }
        };
        let address = tcp.local_addr().expect("its address");
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let mut tasks = JoinSet::new();
        let note = |seen: &Arc<Mutex<Vec<Seen>>>| {
            let seen = Arc::clone(seen);
            move |message: &[u8], by_tcp| {
                if !asked_name(message).is_empty() {
                    seen.lock().expect("no panic").push(Seen { by_tcp, message: message.to_vec() });
                }
            }
        };
        let (by_udp, noted) = (act.clone(), note(&seen));
        tasks.spawn(async move {
            let mut buffer = [0; 2000];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                let message = &buffer[..length];
                noted(message, false);
                let act = by_udp(message, false);
                let udp = Arc::clone(&udp);
                tokio::spawn(async move {
                    let mut answers = match act {
                        Act::Say(answers) => answers,
                        Act::Late(after, answer) => {
                            sleep(after).await;
                            vec![answer]
                        }
                        Act::Forged(forged, answer) => {
                            let other = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
                            other.send_to(&forged, client).await.expect("send");
                            vec![answer]
                        }
                        Act::Nothing => Vec::new(),
                    };
                    for answer in answers.drain(..) {
                        udp.send_to(&answer, client).await.expect("send");
                    }
                });
            }
        });
        let (by_tcp, noted) = (act, note(&seen));
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let Ok(length) = stream.read_u16().await else { continue };
                let mut message = vec![0; length.into()];
                stream.read_exact(&mut message).await.expect("a query");
                noted(&message, true);
                if let Act::Say(answers) = by_tcp(&message, true) {
                    for answer in answers {
                        let length = u16::try_from(answer.len()).expect("a short answer");
                        stream.write_u16(length).await.expect("write");
                        stream.write_all(&answer).await.expect("write");
                    }
                }
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    /// One that knows every name's address.
    pub(crate) async fn honest(address: [u8; 4], ttl: u32) -> Self {
        Self::new(move |query, _| Act::Say(vec![reply_to(query).a(address, ttl).bytes()])).await
    }

    /// What it was asked until now.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Names that it was asked for, in small letters.
    pub(crate) fn names(&self) -> Vec<String> {
        self.seen().iter().map(|seen| asked_name(&seen.message).to_lowercase()).collect()
    }
}
