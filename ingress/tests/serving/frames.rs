//! Clients that break the rules of HTTP/2, or keep them and ask for nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fairway_ingress::gateway::Gateway;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::support::*;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RESET: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Headers as HPACK has them where nothing is remembered.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Of seven bits; none here is longer than two bytes can say.
            match u8::try_from(text.len()) {
                Ok(length @ ..127) => block.push(length),
                _ => block.extend([127, u8::try_from(text.len() - 127).unwrap()]),
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a.example")];

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET))
}

/// A request that nobody answers.
fn silent(stream: u32) -> Vec<u8> {
    let fields = [GET[0], GET[1], (":path", "/silent"), GET[3]];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
}

/// A request whose body is to come.
fn post(stream: u32) -> Vec<u8> {
    let fields = [(":method", "POST"), GET[1], GET[2], GET[3]];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

/// A client that says whatever it wants.
struct Client {
    read: ReadHalf<TlsStream<TcpStream>>,
    write: WriteHalf<TlsStream<TcpStream>>,
}

/// What the gateway has said.
#[derive(Debug)]
struct Said {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Said {
    /// Whether it is the head of an answer with 200, as HPACK has it.
    fn is_good(&self) -> bool {
        self.kind == HEADERS && self.payload.first() == Some(&0x88)
    }
}

impl Client {
    async fn new(address: SocketAddr) -> Self {
        let (read, write) = split(tls(address, "a.example", "h2").await);
        let mut client = Self { read, write };
        client.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client.say(&frame(SETTINGS, 0, 0, &[])).await;
        client
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.write.write_all(bytes).await.unwrap();
        self.write.flush().await.unwrap();
    }

    /// The next frame; `None` at the end.
    async fn hear(&mut self) -> Option<Said> {
        timeout(PATIENCE, hear(&mut self.read)).await.expect("in time")
    }

    /// The next frame of a stream, or of the connection as a whole if that ends.
    async fn answer(&mut self, stream: u32) -> Option<Said> {
        loop {
            let said = self.hear().await?;
            if said.kind == GOAWAY || (said.stream == stream && said.kind != WINDOW_UPDATE) {
                return Some(said);
            }
        }
    }

    /// Says `round` after `round` until the connection ends.
    async fn flood(self, first: &[u8], round: impl Fn(u32) -> Vec<u8>) {
        let Self { mut read, mut write } = self;
        let saying = async {
            write.write_all(first).await?;
            for many in 0..20_000 {
                let many: Vec<u8> = (16 * many..16 * (many + 1)).flat_map(&round).collect();
                write.write_all(&many).await?;
            }
            write.flush().await
        };
        let hearing = async { while hear(&mut read).await.is_some() {} };
        let both = async {
            tokio::select! {
                // Who hears nothing any more is not served, either.
                () = hearing => {}
                said = saying => assert!(said.is_err(), "all was taken"),
            }
        };
        timeout(PATIENCE, both).await.expect("in time");
    }
}

async fn hear(read: &mut ReadHalf<TlsStream<TcpStream>>) -> Option<Said> {
    let mut header = [0; 9];
    read.read_exact(&mut header).await.ok()?;
    let [a, b, c, kind, _, stream @ ..] = header;
    let length = u32::from_be_bytes([0, a, b, c]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    read.read_exact(&mut payload).await.ok()?;
    Some(Said { kind, stream: u32::from_be_bytes(stream), payload })
}

/// Whose backend answers `/good`, keeps to itself what it thinks of `/silent`, and is counted with all else.
async fn world() -> (Gateway, Arc<AtomicUsize>, Server) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let backend = backend(move |request: Request<Incoming>| {
        let counted = Arc::clone(&counted);
        async move {
            match request.uri().path() {
                "/good" => {}
                "/silent" => std::future::pending().await,
                _ => _ = counted.fetch_add(1, Ordering::SeqCst),
            }
            Response::new(text("good"))
        }
    })
    .await;
    let certificate = Certificate::new("a.example");
    let world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &certificate);
    (gateway(&world).await, asked, backend)
}

/// The number behind a reason, among the connections that were cut.
async fn refused(gateway: &Gateway, reason: &str) -> u32 {
    let metrics = ask(gateway.admin, super::get("localhost", "/metrics")).await.1;
    let start = format!("fairway_ingress_refused_bytes_total{{reason=\"{reason}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.map_or(0, |count| count.parse().unwrap())
}

/// A flood, how it begins and goes on, and the reason for its end.
type Flood = (&'static str, Vec<u8>, fn(u32) -> Vec<u8>, &'static str);

#[tokio::test]
async fn floods_end_with_their_connection() {
    const NOTHING: &str = "HTTP/2: too many frames that ask for nothing";
    const CALM: &str = "HTTP/2: ENHANCE_YOUR_CALM";
    let (gateway, _, _backend) = world().await;
    // Of another client, who goes on being answered.
    let mut other = client(gateway.http).await;
    let floods: [Flood; 16] = [
        ("PING", vec![], |_| frame(PING, 0, 0, &[7; 8]), NOTHING),
        ("PING that answers nobody", vec![], |_| frame(PING, 1, 0, &[7; 8]), NOTHING),
        ("SETTINGS", vec![], |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]), NOTHING),
        ("PRIORITY", vec![], |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]), NOTHING),
        ("WINDOW_UPDATE", vec![], |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), NOTHING),
        ("frames that nobody knows", vec![], |_| frame(0xfa, 0, 0, &[]), NOTHING),
        (
            "a window of nothing",
            vec![],
            |_| frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            "HTTP/2: PROTOCOL_ERROR",
        ),
        (
            "a window that overflows",
            vec![],
            |_| frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            "HTTP/2: FLOW_CONTROL_ERROR",
        ),
        ("DATA behind its end", silent(1), |_| frame(DATA, 0, 1, b"x"), "HTTP/2: STREAM_CLOSED"),
        ("DATA without any", post(1), |_| frame(DATA, 0, 1, &[]), NOTHING),
        // CVE-2023-44487
        (
            "requests that are taken back",
            vec![],
            |round| [get(2 * round + 1), frame(RESET, 0, 2 * round + 1, &[0, 0, 0, 8])].concat(),
            CALM,
        ),
        // CVE-2025-8671
        (
            "requests that the gateway has to take back",
            vec![],
            |round| {
                let stream = 2 * round + 1;
                [post(stream), frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
            },
            CALM,
        ),
        ("more streams than there may be", vec![], |round| silent(2 * round + 1), CALM),
        (
            "heads of a stream that is over, and PING",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[GET[0]])),
            |_| {
                let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[]);
                [head, frame(PING, 0, 0, &[7; 8])].concat()
            },
            NOTHING,
        ),
        (
            "a head that never ends",
            frame(HEADERS, END_STREAM, 1, &block(&GET)),
            |_| frame(CONTINUATION, 0, 1, &block(&[("a", "b")])),
            CALM,
        ),
        // A long header that is remembered, and then named by a byte, again and again.
        (
            "headers out of nothing",
            frame(HEADERS, END_STREAM, 1, &{
                let mut block = block(&GET);
                block.extend([0x40, 1, b'a', 127, 0x81, 0x1e]);
                block.extend([b'x'; 4096 - 128]);
                block
            }),
            |_| frame(CONTINUATION, 0, 1, &[0xbe; 16_000]),
            CALM,
        ),
    ];
    for (name, first, round, reason) in floods {
        let before = refused(&gateway, reason).await;
        Client::new(gateway.https).await.flood(&first, round).await;
        let counted = async {
            while refused(&gateway, reason).await == before {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("{name}: no {reason:?}"));
        other.ready().await.unwrap();
        let good = other.send_request(super::get("a.example", "/good")).await.unwrap();
        assert_eq!(read(good).await.0, 200, "after {name}");
    }
}

#[tokio::test]
async fn requests_that_are_none_never_reach_a_backend() {
    let (gateway, asked, _backend) = world().await;
    let [method, scheme, path, authority] = GET;
    let with = |field: (&'static str, &'static str)| vec![method, scheme, path, authority, field];
    for (name, fields) in [
        ("no method", vec![scheme, path, authority]),
        ("two methods", vec![method, method, scheme, path, authority]),
        ("no scheme", vec![method, path, authority]),
        ("no path", vec![method, scheme, authority]),
        ("two paths", vec![method, scheme, path, path, authority]),
        ("an empty path", vec![method, scheme, (":path", ""), authority]),
        ("a path without a slash", vec![method, scheme, (":path", "x"), authority]),
        ("a path with a space", vec![method, scheme, (":path", "/ HTTP/1.1"), authority]),
        ("a path with lines", vec![method, scheme, (":path", "/\r\nx: y"), authority]),
        ("an authority that is none", vec![method, scheme, path, (":authority", "a b")]),
        ("a user in the authority", vec![method, scheme, path, (":authority", "u@a.example")]),
        ("another host", with(("host", "b.example"))),
        ("two hosts", [with(("host", "a.example")), vec![("host", "a.example")]].concat()),
        ("nobody's pseudo-header", with((":x", "y"))),
        ("an answer's", with((":status", "200"))),
        ("a pseudo-header behind others", vec![method, scheme, path, ("x", "y"), authority]),
        ("upper case", with(("X-Upper", "y"))),
        ("a name with a space", with(("x y", "z"))),
        ("a name with lines", with(("x\r\ny", "z"))),
        ("a name with NUL", with(("x\0", "z"))),
        ("no name", with(("", "z"))),
        ("a value with LF", with(("x", "y\nz: 1"))),
        ("a value with CR", with(("x", "y\rz: 1"))),
        ("a value with NUL", with(("x", "y\0"))),
        ("connection", with(("connection", "close"))),
        ("keep-alive", with(("keep-alive", "1"))),
        ("proxy-connection", with(("proxy-connection", "close"))),
        ("upgrade", with(("upgrade", "parrot"))),
        ("transfer-encoding", with(("transfer-encoding", "chunked"))),
        ("te", with(("te", "gzip"))),
        ("a length without a body", with(("content-length", "5"))),
        ("a length that is none", with(("content-length", "+0"))),
        ("two lengths", [with(("content-length", "0")), vec![("content-length", "5")]].concat()),
        ("CONNECT", vec![(":method", "CONNECT"), authority]),
    ] {
        let mut client = Client::new(gateway.https).await;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        client.say(&head).await;
        let answer = client.answer(1).await;
        assert!(answer.as_ref().is_none_or(|said| !said.is_good()), "{name}: {answer:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_body_is_as_long_as_it_was_said_to_be() {
    let (gateway, asked, _backend) = world().await;
    let [_, scheme, path, authority] = GET;
    for (name, said, body, end) in [
        ("too little", "5", &b"1234"[..], true),
        ("too much", "3", b"1234", true),
        ("more to come than there may be", "3", b"1234", false),
    ] {
        let mut client = Client::new(gateway.https).await;
        let fields = [(":method", "POST"), scheme, path, authority, ("content-length", said)];
        client.say(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
        client.say(&frame(DATA, u8::from(end) * END_STREAM, 1, body)).await;
        let answer = client.answer(1).await.expect("an answer");
        assert!(!answer.is_good(), "{name}: {answer:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "{name}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_the_rules_costs_no_other_one() {
    let (gateway, _, _backend) = world().await;
    let mut client = Client::new(gateway.https).await;
    client.say(&silent(1)).await;
    // A window that overflows; and a goodbye, with something under way.
    client.say(&[post(3), frame(WINDOW_UPDATE, 0, 3, &[0x7f, 0xff, 0xff, 0xff])].concat()).await;
    assert_eq!(client.answer(3).await.expect("a reset").kind, RESET);
    client.say(&[post(5), frame(GOAWAY, 0, 0, &[0; 8])].concat()).await;
    client.say(&frame(DATA, END_STREAM, 5, b"body")).await;
    let answer = client.answer(5).await.expect("an answer");
    assert!(answer.is_good(), "{answer:?}");
}

/// How many requests with that status are told of.
async fn told(gateway: &Gateway, status: u16) -> u32 {
    let metrics = ask(gateway.admin, super::get("localhost", "/metrics")).await.1;
    let status = format!("status=\"{status}\"");
    let lines = metrics.lines().filter(|line| line.contains(&status));
    let counts = lines.filter_map(|line| line.strip_prefix("nginx_ingress_controller_requests{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum()
}

/// Waits until there are as many.
async fn are_told(gateway: &Gateway, status: u16, count: u32) {
    let counted = async {
        while told(gateway, status).await < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("not {count} with {status}"));
    assert_eq!(told(gateway, status).await, count, "{status}");
}

#[tokio::test]
async fn requests_that_are_none_are_told_of() {
    let (gateway, asked, _backend) = world().await;
    let mut client = Client::new(gateway.https).await;
    let long = "x".repeat(200);
    let fields: Vec<_> = GET.into_iter().chain((0..150).map(|_| ("x", &*long))).collect();
    let (first, rest) = (block(&fields[..60]), block(&fields[60..]));
    client.say(&frame(HEADERS, END_STREAM, 1, &first)).await;
    client.say(&frame(CONTINUATION, 0, 1, &rest[..16_000])).await;
    client.say(&frame(CONTINUATION, END_HEADERS, 1, &rest[16_000..])).await;
    let answer = client.answer(1).await.expect("an answer");
    assert_eq!((answer.kind, &*answer.payload), (HEADERS, &b"\x08\x03431"[..]));
    let malformed = block(&[GET[0]]);
    client.say(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &malformed)).await;
    assert_eq!(client.answer(3).await.expect("a reset").kind, RESET);
    are_told(&gateway, 431, 1).await;
    are_told(&gateway, 400, 1).await;
    assert_eq!(refused(&gateway, "HTTP/2: a head that is too long").await, 1);
    assert_eq!(refused(&gateway, "HTTP/2: a malformed request").await, 1);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn requests_whose_clients_do_not_wait_are_told_of() {
    let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
    let backend = backend(move |_: Request<Incoming>| {
        let _ = say.send(());
        std::future::pending()
    })
    .await;
    let certificate = Certificate::new("a.example");
    let world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &certificate);
    let gateway = gateway(&world).await;
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    said.recv().await.unwrap();
    drop(stream);
    are_told(&gateway, 499, 1).await;
    let mut client = Client::new(gateway.https).await;
    for (stream, end) in [(1, frame(RESET, 0, 1, &[0, 0, 0, 8])), (3, frame(PING, 0, 3, &[0; 8]))] {
        client.say(&get(stream)).await;
        said.recv().await.unwrap();
        client.say(&end).await;
        are_told(&gateway, 499, if stream == 1 { 2 } else { 3 }).await;
    }
    client = Client::new(gateway.https).await;
    client.say(&get(1)).await;
    said.recv().await.unwrap();
    drop(client);
    are_told(&gateway, 499, 4).await;
}
