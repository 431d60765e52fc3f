//! The gateway's binary, from the feed to its end.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

mod handover;
mod idle;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairway_feed::server;
use fairway_model::{
    Backend, BackendPort, Endpoint, EndpointState, Endpoints, Hints, Ingress, IngressPath,
    IngressRule, Model, Object, ObjectName, PathType, Service, ServicePort,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(30);

/// Killed when it is dropped.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A control plane's feed.
struct Feed {
    address: SocketAddr,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Feed {
    fn start(models: watch::Receiver<Option<Arc<Model>>>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let options = server::Options::default();
            tokio::spawn(server::serve(listener, server::Plain, models, options));
            address
        });
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || runtime.block_on(stopped));
        Self { address, _stop: stop }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn model(backend: SocketAddr) -> Arc<Model> {
    let name = ObjectName::new("shop", "web");
    let port = ServicePort { port: 80, ..ServicePort::default() };
    let service = Service { name: name.clone(), ports: vec![port], ..Service::default() };
    let endpoint = Endpoint {
        address: backend.ip(),
        port: backend.port(),
        node: None,
        state: EndpointState::Ready,
        hints: Hints::default(),
        weight: 1,
        hostname: None,
    };
    let endpoints =
        Endpoints { service: name.clone(), ports: [(String::new(), vec![endpoint])].into() };
    let backend = Backend { service: "web".to_owned(), port: BackendPort::Number(80) };
    let path = IngressPath { path: "/".to_owned(), kind: PathType::Prefix, backend };
    let rule = IngressRule { host: "a.example".to_owned(), paths: vec![path] };
    let ingress = Ingress { name, rules: vec![rule], ..Ingress::default() };
    let objects =
        [Object::Service(service), Object::Endpoints(endpoints), Object::Ingress(ingress)];
    Arc::new(objects.into_iter().collect())
}

/// Says one word to whoever asks.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nword",
            );
        }
    });
    address
}

/// What is answered; empty if nobody is there.
fn get(address: &str, host: &str, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn wait_for(what: &str, mut state: impl FnMut() -> bool) {
    let start = Instant::now();
    while !state() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::yield_now();
    }
}

/// The value of a field in a line of the log.
fn field(line: &str, name: &str) -> Option<String> {
    let rest = line.split_once(&format!("{name}="))?.1;
    rest.split_whitespace().next().map(str::to_owned)
}

#[test]
fn a_gateway_follows_the_feed_and_ends_when_it_is_told_to() {
    let (publisher, models) = watch::channel(None);
    let feed = Feed::start(models);
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 256; exec \"$0\" \"$@\""]);
    command.arg(env!("CARGO_BIN_EXE_fairway-ingress"));
    command.args(["run", "--feed", &feed.url(), "--workers", "2", "--drain-wait", "0"]);
    command.args(["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--state-dir").arg(folder.path()).args(["--access-log", "json"]);
    command.stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut gateway = Gateway(command.spawn().unwrap());
    let mut log = BufReader::new(gateway.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("the gateway runs") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the gateway has ended");
    }
    let drain = std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let http = field(&line, "http").unwrap();
    let admin = field(&line, "admin").unwrap();
    assert!(get(&admin, "localhost", "/readyz").starts_with("HTTP/1.1 503"));

    publisher.send_replace(Some(model(backend())));
    wait_for("ready", || get(&admin, "localhost", "/readyz").starts_with("HTTP/1.1 200"));
    let answer = get(&http, "a.example", "/x");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("word"), "{answer}");

    // What is no request is told of as well.
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000));
    for bad in ["GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", &long] {
        let mut stream = TcpStream::connect(&http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bad.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }

    let mut shown = Command::new(env!("CARGO_BIN_EXE_fairway-ingress"));
    let shown = shown.args(["routes", "--admin", &admin]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let row: Vec<_> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["a.example", "/", "Prefix", "shop/web", "shop/web:80", "1"], "{shown}");

    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.0.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [.., soft, hard, _] = files.split_whitespace().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(soft, hard, "as many descriptors as it may have");

    // Acknowledged, so the control plane knows.
    wait_for("acknowledged", || {
        get(&feed.address.to_string(), "localhost", "/v1/nodes").contains("fairway")
    });
    let pid = Pid::from_raw(i32::try_from(gateway.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let mut ended = None;
    wait_for("the end", || {
        ended = gateway.0.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success());
    let mut said = String::new();
    gateway.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let said: Vec<serde_json::Value> =
        said.lines().map(serde_json::from_str).collect::<Result<_, _>>().unwrap();
    let told =
        |reason: &str| -> Vec<_> { said.iter().filter(|line| line["reason"] == reason).collect() };
    assert_eq!(said[0]["target"], "/x");
    assert_eq!(said[0]["service"], "shop/web");
    let folded = told("a header that is folded");
    assert!(folded.len() == 1 && folded[0]["status"] == 400, "{said:?}");
    let long = told("a request line that is too long");
    assert!(long.len() == 1 && long[0]["status"] == 414, "{said:?}");
    drain.join().unwrap().unwrap();
}
