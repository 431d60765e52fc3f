//! Server and client over loopback, and each against an impostor of the other.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairway_feed::client::{self, Follower};
use fairway_feed::{Facts, NodeFacts, server};
use fairway_model::{
    Endpoint, EndpointState, Endpoints, Hints, Model, Node, Object, ObjectName, Protocol, Service,
    ServicePort, TrafficPolicy, WireGuardKey,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

type Publisher = watch::Sender<Option<Arc<Model>>>;

/// A server that ends with this.
struct Server {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Server {
    async fn start(address: SocketAddr, publisher: &Publisher) -> Self {
        Self::listening(address, publisher, &watch::Sender::default()).await
    }

    async fn listening(
        address: SocketAddr,
        publisher: &Publisher,
        facts: &watch::Sender<NodeFacts>,
    ) -> Self {
        let listener = listen(address).await;
        let address = listener.local_addr().unwrap();
        let options = server::Options {
            ping: Duration::from_millis(20),
            coalesce: Duration::ZERO,
            facts: facts.clone(),
            ..server::Options::default()
        };
        let mut task = JoinSet::new();
        task.spawn(server::serve(listener, server::Plain, publisher.subscribe(), options));
        Self { address, _task: task }
    }

    async fn draining(publisher: &Publisher) -> (Self, watch::Sender<bool>) {
        let listener = listen(any_port()).await;
        let address = listener.local_addr().unwrap();
        let (drain, drained) = watch::channel(false);
        let options = server::Options {
            drain: drained,
            drain_time: Duration::from_millis(20),
            ..server::Options::default()
        };
        let mut task = JoinSet::new();
        task.spawn(server::serve(listener, server::Plain, publisher.subscribe(), options));
        (Self { address, _task: task }, drain)
    }

    async fn stop(self) -> SocketAddr {
        let Self { address, _task: mut task } = self;
        task.shutdown().await;
        address
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // A port that was ours a moment ago.
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(16).unwrap()
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn model(names: &[&str]) -> Arc<Model> {
    let nodes =
        names.iter().map(|name| Object::Node(Node { name: (*name).into(), ..Node::default() }));
    Arc::new(nodes.collect())
}

fn publisher(names: &[&str]) -> Publisher {
    watch::Sender::new(Some(model(names)))
}

fn follow(address: SocketAddr, folder: &TempDir) -> Follower {
    let facts = Facts { wireguard_key: Some(WireGuardKey([7; 32])), ..Facts::default() };
    follow_telling(address, folder, watch::channel(facts).1)
}

fn follow_telling(
    address: SocketAddr,
    folder: &TempDir,
    facts: watch::Receiver<Facts>,
) -> Follower {
    let endpoints = vec![format!("http://{address}")];
    let snapshot = snapshot(folder);
    client::follow(client::Options { endpoints, node: "n1".into(), snapshot, facts }).unwrap()
}

fn snapshot(folder: &TempDir) -> PathBuf {
    folder.path().join("feed.snapshot")
}

async fn model_is(follower: &mut Follower, wanted: &Model) {
    let fits = |model: &Option<Arc<Model>>| model.as_deref() == Some(wanted);
    let found = timeout(PATIENCE, follower.model.wait_for(fits)).await;
    found.expect("the model never became as wanted").unwrap();
}

async fn status_where(
    follower: &mut Follower,
    wanted: impl FnMut(&client::Status) -> bool,
) -> client::Status {
    let found = timeout(PATIENCE, follower.status.wait_for(wanted)).await;
    found.expect("the status never became as wanted").unwrap().clone()
}

/// For states that nobody announces.
async fn wait_until(mut reached: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached().await {
        assert!(Instant::now() < deadline, "it never came to that");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn requests(address: SocketAddr, tasks: &mut JoinSet<()>) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (requests, connection) =
        handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tasks.spawn(async move { drop(connection.await) });
    requests
}

async fn get(
    requests: &mut SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    path: &str,
) -> Response<Incoming> {
    let request = Request::get(format!("http://{address}{path}")).body(Empty::new()).unwrap();
    timeout(PATIENCE, requests.send_request(request)).await.unwrap().unwrap()
}

async fn get_text(address: SocketAddr, path: &str) -> (u16, String) {
    let mut tasks = JoinSet::new();
    let mut requests = requests(address, &mut tasks).await;
    let response = get(&mut requests, address, path).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_client_follows_and_says_what_it_applied() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(None);
    let server = Server::start(any_port(), &publisher).await;
    assert_eq!(get_text(server.address, "/readyz").await.0, 503);
    assert_eq!(get_text(server.address, "/v1/model").await.0, 503);
    assert_eq!(get_text(server.address, "/healthz").await.0, 200);
    let mut follower = follow(server.address, &folder);

    // The stream was there before the first model.
    for names in [&["a"][..], &["a", "b"], &["b"], &[]] {
        publisher.send_replace(Some(model(names)));
        model_is(&mut follower, &model(names)).await;
    }
    assert_eq!(get_text(server.address, "/readyz").await.0, 200);
    let (_, text) = get_text(server.address, "/v1/model").await;
    assert_eq!(text, "{}");

    let current = follower.model.borrow().clone().unwrap();
    follower.ack(&current);
    let applied = r#""revision":4,"nodes":[{"node":"n1","connected":true,"applied":4}]}"#;
    wait_until(async || get_text(server.address, "/v1/nodes").await.1.ends_with(applied)).await;
}

/// Whoever has seen a model, and asks which revision is to be in force then, is not told the one before.
#[tokio::test]
async fn a_model_that_is_shown_is_the_revision_that_is_named() {
    let publisher = Publisher::new(None);
    // Changes that follow each other closely wait.
    let (server, _drain) = Server::draining(&publisher).await;
    for (revision, names) in (1..).zip([&["a"][..], &["a", "b"], &["b"], &["c"]]) {
        publisher.send_replace(Some(model(names)));
        let text = serde_json::to_string(&*model(names)).unwrap();
        wait_until(async || get_text(server.address, "/v1/model").await.1 == text).await;
        let (_, nodes) = get_text(server.address, "/v1/nodes").await;
        assert!(nodes.contains(&format!("\"revision\":{revision},")), "{nodes}");
    }
}

#[tokio::test]
async fn a_node_says_what_only_it_knows_on_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(&["n1"]);
    let told = Facts { wireguard_key: Some(WireGuardKey([7; 32])), ..Facts::default() };
    let said = NodeFacts::from([("n1".to_owned(), told)]);
    let mut address = any_port();
    let mut follower = None;
    for _ in 0..2 {
        let facts = watch::Sender::default();
        let mut seen = facts.subscribe();
        let server = Server::listening(address, &publisher, &facts).await;
        address = server.address;
        follower.get_or_insert_with(|| follow(address, &folder));
        timeout(PATIENCE, seen.wait_for(|facts| *facts == said)).await.unwrap().unwrap();
        server.stop().await;
    }
}

#[tokio::test]
async fn a_node_says_what_it_learns_of_itself_while_connected() {
    let folder = tempfile::tempdir().unwrap();
    let facts = watch::Sender::default();
    let mut seen = facts.subscribe();
    let server = Server::listening(any_port(), &publisher(&["n1"]), &facts).await;
    let own = watch::Sender::default();
    let mut follower = follow_telling(server.address, &folder, own.subscribe());
    follower.status.wait_for(|status| status.connected).await.unwrap();
    for key in [7, 8] {
        let told = Facts { wireguard_key: Some(WireGuardKey([key; 32])), ..Facts::default() };
        own.send_replace(told.clone());
        let said = NodeFacts::from([("n1".to_owned(), told)]);
        timeout(PATIENCE, seen.wait_for(|facts| *facts == said)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_a_node_cannot_say_is_refused_and_changes_nothing() {
    let facts = watch::Sender::default();
    let server = Server::listening(any_port(), &publisher(&[]), &facts).await;
    let mut tasks = JoinSet::new();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut requests, connection) =
        handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tasks.spawn(async move { drop(connection.await) });
    let key = WireGuardKey([7; 32]);
    let good = format!(r#"{{"wireguardKey":"{key}","ofALaterVersion":1}}"#);
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(5000));
    for (method, path, body, status) in [
        ("PUT", "/v1/nodes/n%2F1/facts", &*good, 400),
        ("PUT", "/v1/nodes//facts", &good, 400),
        ("PUT", "/v1/nodes/n1/facts", "{", 400),
        ("PUT", "/v1/nodes/n1/facts", r#"{"wireguardKey":"AAAA"}"#, 400),
        ("PUT", "/v1/nodes/n1/facts", &long, 413),
        ("POST", "/v1/nodes/n1/facts", &good, 405),
        ("PUT", "/v1/nodes/n1", &good, 404),
        ("PUT", "/v1/nodes/n1/facts", &good, 200),
    ] {
        assert_eq!(*facts.borrow(), NodeFacts::new(), "before {method} {path}");
        let uri = format!("http://{}{path}", server.address);
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let answer = timeout(PATIENCE, requests.send_request(request)).await.unwrap().unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {path} {body}");
    }
    let said = Facts { wireguard_key: Some(key), ..Facts::default() };
    assert_eq!(*facts.borrow(), NodeFacts::from([("n1".to_owned(), said)]));
}

#[tokio::test]
async fn nodes_that_are_no_more_make_room_for_what_others_say() {
    const MOST: usize = 20_000;
    let said = Facts { wireguard_key: Some(WireGuardKey([7; 32])), ..Facts::default() };
    let gone = (0..MOST - 1).map(|n| (format!("gone-{n}"), said.clone()));
    let there = ("n2".to_owned(), said.clone());
    let facts = watch::Sender::new(gone.chain([there.clone()]).collect::<NodeFacts>());
    let server = Server::listening(any_port(), &publisher(&["n1", "n2"]), &facts).await;
    let folder = tempfile::tempdir().unwrap();
    let mut seen = facts.subscribe();
    let _follower = follow(server.address, &folder);
    let wanted = NodeFacts::from([("n1".to_owned(), said), there]);
    let found = timeout(PATIENCE, seen.wait_for(|facts| *facts == wanted)).await;
    assert!(found.is_ok(), "it stayed at {}", facts.borrow().len());
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let publisher = publisher(&["a"]);
    let server = Server::start(any_port(), &publisher).await;
    for (path, status) in [
        ("/v1/feed", 400),
        ("/v1/feed?version=2&node=", 400),
        ("/v1/feed?version=2&node=a%2Fb", 400),
        ("/v1/feed?version=2&node=a&revision=x&epoch=e", 400),
        ("/v1/feed?version=2&node=a&revision=1", 400),
        ("/v1/feed?node=a", 400),
        ("/v1/feed?version=1&node=a", 400),
        ("/v1/feed?version=x&node=a", 400),
        ("/v1/ack", 405),
        ("/nowhere", 404),
    ] {
        assert_eq!(get_text(server.address, path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn a_restart_of_the_server_changes_nothing_and_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(&["a"]);
    let server = Server::start(any_port(), &publisher).await;
    let mut follower = follow(server.address, &folder);
    model_is(&mut follower, &model(&["a"])).await;
    let first = status_where(&mut follower, |status| status.connected).await;
    let before = follower.model.borrow_and_update().clone().unwrap();
    follower.ack(&before);

    let address = server.stop().await;
    status_where(&mut follower, |status| !status.connected).await;
    let server = Server::start(address, &publisher).await;
    let again = status_where(&mut follower, |status| status.connected).await;
    assert_ne!(again.revision.unwrap().0, first.revision.unwrap().0, "an epoch of its own");
    assert!(!follower.model.has_changed().unwrap(), "the same content is no news");

    // The new server hears what is in force without anybody saying it again.
    wait_until(async || get_text(address, "/v1/nodes").await.1.contains(r#""applied":1"#)).await;
    publisher.send_replace(Some(model(&["b"])));
    model_is(&mut follower, &model(&["b"])).await;
    drop(server);
}

#[tokio::test]
async fn a_client_goes_on_to_the_next_server_when_its_own_drains_or_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(&["a"]);
    let (first, first_drain) = Server::draining(&publisher).await;
    let (second, second_drain) = Server::draining(&publisher).await;
    let gone = listen(any_port()).await.local_addr().unwrap();
    let endpoints = [gone, first.address, second.address].map(|at| format!("http://{at}"));
    let facts = watch::channel(Facts::default()).1;
    let (node, snapshot) = ("n1".into(), snapshot(&folder));
    let options = client::Options { endpoints: endpoints.to_vec(), node, snapshot, facts };
    let mut follower = client::follow(options).unwrap();
    let server = status_where(&mut follower, |status| status.connected).await.server;
    let (other, drain) = match server == first.address.to_string() {
        true => (second.address, first_drain),
        false => (first.address, second_drain),
    };
    drain.send_replace(true);
    let moved = |status: &client::Status| status.connected && status.server == other.to_string();
    status_where(&mut follower, moved).await;
    assert_eq!(follower.model.borrow().as_deref(), Some(&*model(&["a"])));
}

#[tokio::test]
async fn a_control_plane_that_comes_back_with_older_data_or_is_another_is_followed_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let newer = publisher(&["a", "b", "c"]);
    let server = Server::start(any_port(), &newer).await;
    let mut follower = follow(server.address, &folder);
    for names in [&["a", "b"][..], &["a", "b", "d"]] {
        newer.send_replace(Some(model(names)));
        model_is(&mut follower, &model(names)).await;
    }
    let address = server.stop().await;
    // At revision 1 of its own epoch, where the client is at revision 3 of another.
    let older = publisher(&["a", "z"]);
    let _server = Server::start(address, &older).await;
    model_is(&mut follower, &model(&["a", "z"])).await;
    older.send_replace(Some(model(&["z"])));
    model_is(&mut follower, &model(&["z"])).await;
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_no_model_and_not_the_old_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(&["a"]);
    let server = Server::start(any_port(), &publisher).await;
    let mut follower = follow(server.address, &folder);
    model_is(&mut follower, &model(&["a"])).await;
    wait_until(async || snapshot(&folder).exists()).await;
    let kept = std::fs::read(snapshot(&folder)).unwrap();
    drop(follower);
    // Where the next one is written before it takes the old one's place; root may write anywhere else.
    std::fs::create_dir(folder.path().join(".feed.snapshot.new")).unwrap();
    publisher.send_replace(Some(model(&["b"])));
    let mut follower = follow(server.address, &folder);
    for names in [&["b"][..], &["c"]] {
        publisher.send_replace(Some(model(names)));
        model_is(&mut follower, &model(names)).await;
    }
    assert_eq!(std::fs::read(snapshot(&folder)).unwrap(), kept);
}

#[tokio::test]
async fn the_last_good_state_is_there_before_the_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher(&["a"]);
    let server = Server::start(any_port(), &publisher).await;
    let mut follower = follow(server.address, &folder);
    model_is(&mut follower, &model(&["a"])).await;
    wait_until(async || snapshot(&folder).exists()).await;
    drop(follower);
    let address = server.stop().await;

    let mut follower = follow(address, &folder);
    model_is(&mut follower, &model(&["a"])).await;
    drop(follower);

    // Damaged: as if it were not there, until the control plane is.
    std::fs::write(snapshot(&folder), b"{\"format\":1}\n").unwrap();
    let mut follower = follow(address, &folder);
    follower.status.wait_for(|status| status.error.is_some()).await.unwrap();
    assert_eq!(*follower.model.borrow(), None);
    let _server = Server::start(address, &publisher).await;
    model_is(&mut follower, &model(&["a"])).await;
}

#[tokio::test]
async fn a_reader_resumes_where_it_was() {
    let publisher = publisher(&["a"]);
    let server = Server::start(any_port(), &publisher).await;
    let mut tasks = JoinSet::new();
    let mut requests = requests(server.address, &mut tasks).await;
    let mut lines =
        Lines::of(get(&mut requests, server.address, "/v1/feed?version=2&node=x").await);
    let reset = lines.next().await;
    let epoch = reset["reset"]["epoch"].as_str().unwrap().to_owned();
    lines.until_sync(1).await;
    publisher.send_replace(Some(model(&["a", "b"])));
    lines.until_sync(2).await;

    let path = format!("/v1/feed?version=2&node=x&epoch={epoch}&revision=1");
    let mut lines = Lines::of(get(&mut requests, server.address, &path).await);
    assert_eq!(lines.next().await["resume"]["revision"], 1);
    assert_eq!(lines.next().await["put"]["name"], "b");
    lines.until_sync(2).await;

    // A place nobody knows is answered with everything.
    for place in [format!("epoch={epoch}&revision=9"), "epoch=other&revision=1".into()] {
        let path = format!("/v1/feed?version=2&node=x&{place}");
        let mut lines = Lines::of(get(&mut requests, server.address, &path).await);
        assert_eq!(lines.next().await["reset"]["epoch"], epoch.as_str());
    }
}

#[tokio::test]
async fn a_slow_reader_skips_to_a_fresh_snapshot() {
    let publisher = publisher(&["a"]);
    let server = Server::start(any_port(), &publisher).await;
    let mut tasks = JoinSet::new();
    let mut requests = requests(server.address, &mut tasks).await;
    let mut slow =
        Lines::of(get(&mut requests, server.address, "/v1/feed?version=2&node=slow").await);
    slow.until_sync(1).await;

    // Far more than the history and every buffer on the way hold. Nobody reads `slow` meanwhile.
    let padding = "x".repeat(250);
    let folder = tempfile::tempdir().unwrap();
    let mut quick = follow(server.address, &folder);
    let mut newest = 0;
    for step in 0.. {
        let names: Vec<_> = (0..40).map(|at| format!("{padding}-{step}-{at}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let next = model(&names);
        publisher.send_replace(Some(Arc::clone(&next)));
        if step % 100 == 99 {
            model_is(&mut quick, &next).await;
            newest = quick.status.borrow().revision.clone().unwrap().1;
        }
        if newest > 1600 {
            break;
        }
        // Lets the server see each of them, as far as it can.
        tokio::task::yield_now().await;
    }

    let (mut resets, mut syncs) = (0, 0);
    loop {
        let line = slow.next().await;
        resets += u32::from(line.get("reset").is_some());
        if let Some(sync) = line.get("sync") {
            syncs += 1;
            if sync["revision"] == newest {
                break;
            }
        }
    }
    assert_eq!(resets, 1, "one snapshot brings it up to date");
    assert!(syncs < newest, "it read all {syncs} steps");
}

#[tokio::test]
async fn an_impostor_never_changes_the_model() {
    let good = r#"{"reset":{"epoch":"e","version":2}}
{"put":{"kind":"node","name":"evil"}}
"#;
    let cases = [
        "rubbish\n".to_owned(),
        "\u{0}\u{1}\u{2}".repeat(1000) + "\n",
        good.to_owned(),
        format!("{good}{}", r#"{"sync":{"revision":1,"digest":{}}}"#.to_owned() + "\n"),
        format!("{good}{}", r#"{"sync":{"revision":0,"digest":{}}}"#.to_owned() + "\n"),
        "{\"ping\":{}}\n{\"put\":{\"kind\":\"node\",\"name\":\"evil\"}}\n".to_owned(),
        "x".repeat(17 << 20),
    ];
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        let publisher = publisher(&["a"]);
        let server = Server::start(any_port(), &publisher).await;
        let mut follower = follow(server.address, &folder);
        model_is(&mut follower, &model(&["a"])).await;
        status_where(&mut follower, |status| status.connected).await;
        follower.model.mark_unchanged();
        let address = server.stop().await;

        let mut impostor = JoinSet::new();
        impostor.spawn(impersonate(listen(address).await, Bytes::from(case.clone())));
        let misbehaved = |status: &client::Status| {
            status.error.as_deref().is_some_and(|error| error.contains("sent what it must not"))
        };
        status_where(&mut follower, misbehaved).await;
        assert!(!follower.model.has_changed().unwrap(), "{case:.60}");
        impostor.shutdown().await;

        publisher.send_replace(Some(model(&["b"])));
        let _server = Server::start(address, &publisher).await;
        model_is(&mut follower, &model(&["b"])).await;
    }
}

/// Answers everything with `body`.
async fn impersonate(listener: TcpListener, body: Bytes) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let body = body.clone();
        connections.spawn(async move {
            let answer = hyper::service::service_fn(move |_| {
                let body = body.clone();
                async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), answer).await);
        });
    }
}

#[tokio::test]
async fn ten_thousand_services() {
    let services = (0..10_000_u16).flat_map(|number| {
        let name = ObjectName::new("shop", format!("web-{number}"));
        let [high, low] = number.to_be_bytes();
        let service = Service {
            name: name.clone(),
            cluster_ips: vec![[10, 96, high, low].into()],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            internal_traffic: TrafficPolicy::Cluster,
            external_traffic: TrafficPolicy::Cluster,
            ..Service::default()
        };
        let endpoints = (1..=5).map(|pod| Endpoint {
            address: [10, pod, high, low].into(),
            port: 8080,
            node: Some("n1".into()),
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        });
        let ports = [(String::new(), endpoints.collect())].into();
        [Object::Service(service), Object::Endpoints(Endpoints { service: name, ports })]
    });
    let whole: Arc<Model> = Arc::new(services.collect());
    let publisher = Publisher::new(Some(Arc::clone(&whole)));
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let server = Server::start(any_port(), &publisher).await;
    let mut follower = follow(server.address, &folder);
    model_is(&mut follower, &whole).await;
    println!("10,000 Services with 5 endpoints each: snapshot taken after {:?}", start.elapsed());

    let mut next = (*whole).clone();
    let last = next.services.keys().last().unwrap().clone();
    next.services.remove(&last);
    let start = Instant::now();
    publisher.send_replace(Some(Arc::new(next.clone())));
    model_is(&mut follower, &next).await;
    println!("one of them removed after {:?}", start.elapsed());
}

/// The lines of a stream, without the pings.
struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    fn of(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    async fn next(&mut self) -> serde_json::Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.buffer.drain(..=end).collect();
                let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
                if line.get("ping").is_none() {
                    return line;
                }
                continue;
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.unwrap().unwrap().unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    async fn until_sync(&mut self, revision: u64) {
        while self.next().await["sync"]["revision"] != revision {}
    }
}
