//! Ports that are passed on as they are.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_ingress::gateway::{Gateway, Options};
use fairway_model::{self as model, BackendPort, Model, Object, ObjectName, Protocol, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::nobody;
use super::support::*;

/// A port that nobody else is given, until this is dropped.
struct Free(TcpSocket, u16);

impl Free {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        Self(socket, port)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

fn to(port: u16, service: &str) -> Stream {
    Stream {
        protocol: Protocol::Tcp,
        port,
        service: ObjectName::new("shop", service),
        backend_port: BackendPort::Number(80),
        ..Stream::default()
    }
}

fn serving(world: World, streams: &[Stream]) -> Arc<Model> {
    let settings = model::Gateway {
        streams: streams.to_vec(),
        trusted: vec!["127.0.0.0/8".parse().unwrap()],
        ..model::Gateway::default()
    };
    world.with(Object::Gateway(settings)).model()
}

/// Says its name, then what it hears when that is over.
async fn named(name: &'static str) -> Server {
    each(move |mut stream| async move {
        let _ = stream.write_all(name.as_bytes()).await;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        let _ = stream.write_all(&heard).await;
    })
    .await
}

async fn hears(stream: &mut TcpStream, expected: &str) {
    let mut heard = vec![0; expected.len()];
    timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), expected);
}

/// What is heard by who says `word` and no more.
async fn talk(mut stream: TcpStream, word: &str) -> String {
    let _ = stream.write_all(word.as_bytes()).await;
    let _ = stream.shutdown().await;
    let mut heard = String::new();
    // It may be cut.
    let _ = timeout(PATIENCE, stream.read_to_string(&mut heard)).await.expect("in time");
    heard
}

async fn connect(free: &Free) -> TcpStream {
    TcpStream::connect(free.address()).await.unwrap()
}

async fn told(gateway: &Gateway, path: &str) -> String {
    ask(gateway.admin, get("localhost", path)).await.1
}

#[tokio::test]
async fn connections_outlive_changes_of_their_port() {
    let (one, two) = (named("one").await, named("two").await);
    let (first, second) = (Free::new(), Free::new());
    let dead = nobody().await;
    let world = || {
        World::default()
            .service("one", &[dead, one.address])
            .service("two", &[two.address])
            .service("none", &[])
    };
    let gateway = gateway(&World::default()).await;
    gateway.apply(&serving(world(), &[to(first.1, "one"), to(second.1, "none")]));
    // One of the endpoints is not there; nobody notices.
    for _ in 0..5 {
        assert_eq!(talk(connect(&first).await, "word").await, "oneword");
    }
    assert_eq!(talk(connect(&second).await, "word").await, "");
    let mut open = connect(&first).await;
    hears(&mut open, "one").await;

    gateway.apply(&serving(world(), &[to(first.1, "two"), to(second.1, "two")]));
    assert_eq!(talk(connect(&first).await, "").await, "two");
    assert_eq!(talk(connect(&second).await, "").await, "two");
    let metrics = told(&gateway, "/metrics").await;
    let labels = format!("{{port=\"{}\",protocol=\"TCP\"}}", first.1);
    for (name, count) in [
        ("connections_total", 7),
        ("connections", 1),
        ("failed_total", 0),
        ("received_bytes_total", 20),
        ("sent_bytes_total", 7 * 5 + 3 + 3),
    ] {
        let line = format!("fairway_ingress_stream_{name}{labels} {count}");
        assert!(metrics.lines().any(|have| have == line), "{line}: {metrics}");
    }
    let routes = told(&gateway, "/routes").await;
    assert!(routes.contains(&format!("\"path\":\":{}\",\"kind\":\"TCP\"", first.1)), "{routes}");

    gateway.apply(&serving(world(), &[to(second.1, "two")]));
    // Workers hear of it in a moment.
    let gone = async {
        while let Ok(stream) = TcpStream::connect(first.address()).await {
            drop(stream);
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("in time");
    assert_eq!(talk(connect(&second).await, "").await, "two");
    assert_eq!(talk(open, "still there").await, "still there");
}

#[tokio::test]
async fn a_port_that_cannot_be_had_disturbs_nobody() {
    let one = named("one").await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = Free::new();
    let gateway = gateway(&World::default()).await;
    let world = World::default().service("one", &[one.address]).host("a.example", "one");
    let model = serving(
        world,
        &[
            to(taken.local_addr().unwrap().port(), "one"),
            to(gateway.http.port(), "one"),
            to(gateway.admin.port(), "one"),
            to(free.1, "one"),
        ],
    );
    gateway.apply(&model);
    let problems = async |count: u32| {
        let metrics = told(&gateway, "/metrics").await;
        let line = format!("fairway_ingress_problems {count}");
        assert!(metrics.lines().any(|have| have == line), "{line}: {metrics}");
    };
    problems(3).await;
    assert_eq!(talk(connect(&free).await, "").await, "one");
    assert_eq!(ask(gateway.http, get("nowhere.example", "/")).await.0, 404);

    let again = taken.local_addr().unwrap();
    drop(taken);
    gateway.apply(&model);
    problems(2).await;
    assert_eq!(talk(TcpStream::connect(again).await.unwrap(), "").await, "one");
    let missing = serving(World::default(), &[to(free.1, "gone")]);
    gateway.apply(&missing);
    problems(1).await;
}

#[tokio::test]
async fn proxy_headers_are_taken_and_given() {
    let echo = named("").await;
    let streams = [Free::new(), Free::new(), Free::new()];
    let [took, gave, both] = &streams;
    let flags = |free: &Free, accept_proxy, send_proxy| Stream {
        accept_proxy,
        send_proxy,
        ..to(free.1, "echo")
    };
    let model = serving(
        World::default().service("echo", &[echo.address]),
        &[flags(took, true, false), flags(gave, false, true), flags(both, true, true)],
    );
    let gateway = gateway(&World::default()).await;
    gateway.apply(&model);
    let header = "PROXY TCP4 192.0.2.1 192.0.2.2 1234 9000\r\n";
    let word = format!("{header}word");
    assert_eq!(talk(connect(took).await, &word).await, "word");
    assert_eq!(talk(connect(took).await, "a word without a header").await, "");
    assert_eq!(talk(connect(both).await, &word).await, word);
    let stream = connect(gave).await;
    let (client, server) = (stream.local_addr().unwrap(), gave.address());
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", client.port(), server.port());
    assert_eq!(talk(stream, "word").await, format!("{header}word"));
}

/// Says its name and what it was told, to whoever tells it anything.
async fn answering(name: &'static str, tasks: &mut JoinSet<()>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tasks.spawn(async move {
        let mut heard = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut heard).await {
            let answer = [name.as_bytes(), &heard[..length]].concat();
            let _ = socket.send_to(&answer, from).await;
        }
    });
    address
}

/// A port of datagrams that leads to these.
fn datagrams(port: u16, endpoints: &[SocketAddr]) -> Arc<Model> {
    let mut world = World::default().service("dns", endpoints);
    for object in &mut world.objects {
        match object {
            Object::Service(service) => {
                let tcp = service.ports[0].clone();
                let udp = model::ServicePort {
                    name: "dns".to_owned(),
                    protocol: Protocol::Udp,
                    ..tcp.clone()
                };
                service.ports = vec![tcp, udp];
            }
            Object::Endpoints(endpoints) => {
                let list = endpoints.ports.remove("").unwrap();
                endpoints.ports.insert("dns".to_owned(), list);
            }
            _ => {}
        }
    }
    serving(world, &[Stream { protocol: Protocol::Udp, ..to(port, "dns") }])
}

/// What is answered; it is asked again and again, as some datagrams are lost. So there may be answers to what was asked
/// before.
async fn question(socket: &UdpSocket, word: &str) -> String {
    let mut heard = [0; 2000];
    let answered = async {
        loop {
            // It may be refused, as long as nobody is there.
            let _ = socket.send(word.as_bytes()).await;
            let answer = async {
                loop {
                    let length = socket.recv(&mut heard).await.ok()?;
                    let answer = String::from_utf8_lossy(&heard[..length]).into_owned();
                    if answer.trim_start_matches(char::is_alphabetic) == word {
                        return Some(answer);
                    }
                }
            };
            if let Ok(Some(answer)) = timeout(Duration::from_millis(200), answer).await {
                return answer;
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("in time")
}

#[tokio::test]
async fn datagrams_are_answered_by_whom_they_were_sent_to() {
    let mut tasks = JoinSet::new();
    let (one, two) = (answering("one", &mut tasks).await, answering("two", &mut tasks).await);
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for (http, from, asked) in [
        ("[::]:0", "0.0.0.0:0", "127.0.0.9"),
        ("[::]:0", "[::1]:0", "::1"),
        ("0.0.0.0:0", "0.0.0.0:0", "127.0.0.9"),
    ] {
        let options = Options { http: http.parse().unwrap(), workers: 2, ..Options::default() };
        let gateway = Gateway::start(&options).await.unwrap();
        gateway.apply(&datagrams(free, &[one, two]));
        gateway.begin().unwrap();
        // A socket that is connected hears nobody else.
        let asked = SocketAddr::new(asked.parse().unwrap(), free);
        let mut names = BTreeSet::new();
        let mut clients = Vec::new();
        while names.len() < 2 {
            let client = UdpSocket::bind(from).await.unwrap();
            client.connect(asked).await.unwrap();
            let answer = question(&client, "-first").await;
            let (name, _) = answer.split_once('-').unwrap();
            for word in ["-second", "-third", "-fourth"] {
                assert_eq!(question(&client, word).await, format!("{name}{word}"));
            }
            assert_eq!(question(&client, "").await, name);
            names.insert(name.to_owned());
            clients.push(client);
        }
        let metrics = told(&gateway, "/metrics").await;
        let labels = format!("{{port=\"{free}\",protocol=\"UDP\"}} {}", clients.len());
        for name in ["connections", "connections_total"] {
            let line = format!("fairway_ingress_stream_{name}{labels}");
            assert!(metrics.lines().any(|have| have == line), "{line}: {metrics}");
        }
    }
}

#[tokio::test]
async fn flows_of_endpoints_that_go_go_to_others() {
    let (mut first, mut second) = (JoinSet::new(), JoinSet::new());
    let one = answering("one", &mut first).await;
    let two = answering("two", &mut second).await;
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let gateway = gateway(&World::default()).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", free)).await.unwrap();
    gateway.apply(&datagrams(free, &[one]));
    assert_eq!(question(&client, "-a").await, "one-a");
    gateway.apply(&datagrams(free, &[two]));
    assert_eq!(question(&client, "-b").await, "two-b");
    gateway.apply(&datagrams(free, &[one, two]));
    assert_eq!(question(&client, "-c").await, "two-c");
    // Nobody says that it is gone, but that nobody listens there.
    second.shutdown().await;
    assert_eq!(question(&client, "-d").await, "one-d");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_cannot_keep_a_flow_by_talking() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let talks = socket.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (_, from) = socket.recv_from(&mut [0; 100]).await.unwrap();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            let _ = socket.send_to(b"talks-a", from).await;
        }
    });
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let gateway = gateway(&World::default()).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", free)).await.unwrap();
    gateway.apply(&datagrams(free, &[talks]));
    assert_eq!(question(&client, "-a").await, "talks-a");
    gateway.apply(&datagrams(free, &[]));
    let line = format!("fairway_ingress_stream_connections{{port=\"{free}\",protocol=\"UDP\"}} 0");
    let over = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while !told(&gateway, "/metrics").await.lines().any(|have| have == line) {
            ticks.tick().await;
        }
    };
    timeout(PATIENCE, over).await.expect("in time");
}
