use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use fairway_model::{Change, Model, Object};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::sleep;

use super::*;
use crate::forward::testing::{A, Act, Pretender, asked_name, query, reply_to};
use crate::forward::{Options as ForwardOptions, Upstreams};
use crate::zone;

const SECOND: Duration = Duration::from_secs(1);
const SERVICE: &str = "web.shop.svc.cluster.local";

fn object(text: serde_json::Value) -> Change {
    Change::Put(serde_json::from_value::<Object>(text).expect("an object"))
}

/// A Service with a ClusterIP, and a headless one with so many endpoints.
fn model(cluster_ip: &str, headless: usize) -> Model {
    let endpoint = |number: usize| {
        let number = u32::try_from(number).expect("few");
        let address = Ipv4Addr::from_bits(0x0a01_0000 + number);
        json!({"address": address, "port": 6379, "state": "ready"})
    };
    let endpoints: Vec<_> = (0..headless).map(endpoint).collect();
    let port = |port: u16| json!([{"name": "main", "protocol": "TCP", "port": port}]);
    let name = |name| json!({"namespace": "shop", "name": name});
    let mut model = Model::default();
    for change in [
        json!({
            "kind": "service", "name": name("web"), "cluster_ips": [cluster_ip], "ports": port(80)
        }),
        json!({"kind": "service", "name": name("redis"), "ports": port(6379)}),
        json!({"kind": "endpoints", "service": name("redis"), "ports": {"main": endpoints}}),
    ] {
        model.apply(object(change));
    }
    model
}

fn asking(upstreams: &[&Pretender]) -> ForwardOptions {
    let upstreams = upstreams.iter().map(|upstream| upstream.address).collect();
    ForwardOptions { upstreams: Upstreams::These(upstreams), ..ForwardOptions::default() }
}

/// A server on loopback addresses.
struct Served {
    service: Arc<Service>,
    server: Server,
    sockets: Sockets,
}

impl Served {
    fn new(upstreams: &[&Pretender], clients: impl Clients + 'static, options: Options) -> Self {
        Self::with(asking(upstreams), clients, options)
    }

    fn with(forward: ForwardOptions, clients: impl Clients + 'static, options: Options) -> Self {
        let forwarder = Forwarder::new(forward, Handle::current());
        let search = vec!["example".parse().expect("a name")];
        let zone = Zone::new(zone::Options { search, ..zone::Options::default() });
        let zone = zone.next(&model("10.96.0.10", 250), 1);
        let addresses = ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().expect("an address"));
        // A port that is free for datagrams may be somebody's for streams.
        let sockets = (0..20).find_map(|_| Sockets::bind(&addresses, 2).ok()).expect("sockets");
        let workers = sockets.workers().expect("workers");
        let service = Service::new(zone, forwarder, Box::new(clients), workers, options);
        let service = Arc::new(service);
        let server = Server::start(&service, &sockets, &Handle::current()).expect("a server");
        Self { service, server, sockets }
    }

    fn open(upstreams: &[&Pretender]) -> Self {
        Self::new(upstreams, |_| Access::Known, Options::default())
    }

    fn v4(&self) -> SocketAddr {
        self.sockets.addresses().expect("addresses")[0]
    }

    fn v6(&self) -> SocketAddr {
        self.sockets.addresses().expect("addresses")[1]
    }

    /// The value of a series.
    fn count(&self, series: &str) -> u64 {
        let text = self.service.metrics(&[]);
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().expect("a number"))
    }

    async fn stop(self) {
        assert!(self.server.stop(10 * SECOND).await);
    }
}

async fn client(from: [u8; 4], server: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind((Ipv4Addr::from(from), 0)).await.expect("a port");
    client.connect(server).await.expect("connect");
    client
}

async fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 2000];
    let length = timeout(10 * SECOND, client.recv(&mut buffer)).await;
    buffer.truncate(length.expect("an answer in time").expect("an answer"));
    buffer
}

async fn by_udp(server: SocketAddr, message: &[u8]) -> Message {
    let any: IpAddr =
        if server.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() };
    let client = UdpSocket::bind((any, 0)).await.expect("a port");
    client.connect(server).await.expect("connect");
    client.send(message).await.expect("send");
    read(&receive(&client).await)
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).expect("short").to_be_bytes(), message].concat()
}

async fn receive_by_tcp(stream: &mut TcpStream) -> Vec<u8> {
    let answer = async {
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    timeout(10 * SECOND, answer).await.expect("an answer in time").expect("an answer")
}

async fn by_tcp(server: SocketAddr, message: &[u8]) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("connect");
    stream.write_all(&framed(message)).await.expect("write");
    read(&receive_by_tcp(&mut stream).await)
}

fn read(message: &[u8]) -> Message {
    Message::from_vec(message).expect("a message")
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_and_streams_are_answered_from_the_zone() {
    let served = Served::open(&[]);
    for server in [served.v4(), served.v6()] {
        for message in
            [by_udp(server, &query(SERVICE, A)).await, by_tcp(server, &query(SERVICE, A)).await]
        {
            assert_eq!(message.metadata.id, 0x1234);
            assert!(message.metadata.authoritative);
            assert_eq!(data(&message), ["10.96.0.10"]);
        }
        let message = by_udp(server, &query("db.shop.svc.cluster.local", A)).await;
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    }
    let of = |proto, family| {
        let of = format!("proto=\"{proto}\",family=\"{family}\",type=\"A\"");
        served.count(&format!("coredns_dns_requests_total{{server=\"dns://:53\",zone=\".\",{of}}}"))
    };
    assert_eq!([of("udp", 1), of("tcp", 1), of("udp", 2), of("tcp", 2)], [2, 1, 2, 1]);
    let responses =
        "coredns_dns_responses_total{server=\"dns://:53\",zone=\".\",rcode=\"NXDOMAIN\"}";
    assert_eq!(served.count(responses), 2);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_zone_is_answered_from_at_once() {
    let served = Served::open(&[]);
    let server = served.v4();
    for last in 11..20 {
        let address = format!("10.96.0.{last}");
        let zone = served.service.zone().next(&model(&address, 0), last);
        served.service.set_zone(zone);
        assert_eq!(data(&by_udp(server, &query(SERVICE, A)).await), [address]);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_asks_by_tcp_for_what_does_not_fit_a_datagram() {
    let served = Served::open(&[]);
    let server = served.v4();
    let short = by_udp(server, &query("redis.shop.svc.cluster.local", A)).await;
    assert!(short.metadata.truncation);
    let port = server.port().to_string();
    let dig = |more: &'static [&'static str]| {
        let port = port.clone();
        tokio::task::spawn_blocking(move || {
            let mut dig = Command::new("dig");
            dig.args(["+short", "+tries=1", "@127.0.0.1", "-p", &port]).args(more);
            let output = dig.output().expect("run dig: install bind9-dnsutils");
            String::from_utf8(output.stdout).expect("text")
        })
    };
    let all = dig(&["redis.shop.svc.cluster.local"]).await.expect("dig");
    assert_eq!(all.lines().count(), 250, "{all}");
    let one = dig(&["WEB.shop.svc.cluster.local"]).await.expect("dig");
    assert_eq!(one, "10.96.0.10\n");
    let service = dig(&["_main._tcp.web.shop.svc.cluster.local", "SRV"]).await.expect("dig");
    assert!(service.ends_with(" 80 web.shop.svc.cluster.local.\n"), "{service}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_what_it_can_before_what_others_take_long_for() {
    let upstream = Pretender::new(|asked, _| {
        Act::Late(Duration::from_millis(300), reply_to(asked).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let served = Served::open(&[&upstream]);
    let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
    let mut all = framed(&query("a.example", A));
    for _ in 0..100 {
        all.extend(framed(&query(SERVICE, A)));
    }
    // In pieces of any size.
    for piece in all.chunks(7) {
        stream.write_all(piece).await.expect("write");
    }
    let mut heard = Vec::new();
    for _ in 0..101 {
        heard.push(asked_name(&receive_by_tcp(&mut stream).await));
    }
    assert_eq!(heard.iter().filter(|name| *name == SERVICE).count(), 100);
    assert_eq!(heard[100], "a.example");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_send_all_its_queries_and_then_half_close() {
    let upstream = Pretender::new(|asked, _| {
        Act::Late(Duration::from_millis(100), reply_to(asked).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let served = Served::open(&[&upstream]);
    let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
    for number in 0..100 {
        let message = framed(&query(&format!("a{number}.example"), A));
        stream.write_all(&message).await.expect("write");
    }
    stream.shutdown().await.expect("shut down");
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..100 {
        heard.insert(asked_name(&receive_by_tcp(&mut stream).await));
    }
    assert_eq!(heard.len(), 100);
    assert_eq!(stream.read(&mut [0; 1]).await.expect("the end"), 0);
    served.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_is_closed() {
    let served = Served::open(&[]);
    let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
    // Byte by byte is no way to keep it.
    let began = tokio::time::Instant::now();
    for _ in 0..12 {
        let _ = stream.write_all(&[0]).await;
        sleep(SECOND).await;
    }
    let mut end = [0; 1];
    assert!(matches!(stream.read(&mut end).await, Ok(0) | Err(_)));
    assert!(began.elapsed() < 20 * SECOND);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_client_are_bounded() {
    let options = Options { connections_of_one: 3, ..Options::default() };
    let served = Served::new(&[], |_| Access::Known, options);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
        stream.write_all(&framed(&query(SERVICE, A))).await.expect("write");
        receive_by_tcp(&mut stream).await;
        streams.push(stream);
    }
    let mut more = TcpStream::connect(served.v4()).await.expect("connect");
    assert!(matches!(more.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert_eq!(served.count("fairway_dns_connections_refused_total"), 1);
    // One that goes makes room.
    streams.pop();
    let mut tries = 0;
    loop {
        let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
        let _ = stream.write_all(&framed(&query(SERVICE, A))).await;
        if stream.read_u16().await.is_ok() {
            break;
        }
        tries += 1;
        assert!(tries < 1000);
    }
    drop(streams);
    served.stop().await;
}

/// A stream of this client whose first query is answered.
async fn stream_from(client: [u8; 4], server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::from(client), 0).into()).expect("a port");
    let mut stream = socket.connect(server).await.expect("connect");
    ask_again(&mut stream).await;
    stream
}

async fn ask_again(stream: &mut TcpStream) {
    stream.write_all(&framed(&query(SERVICE, A))).await.expect("write");
    assert_eq!(data(&read(&receive_by_tcp(stream).await)), ["10.96.0.10"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_of_whoever_has_the_most_make_room_for_others() {
    let options = Options { connections: 8, connections_of_one: 4, ..Options::default() };
    let served = Served::new(&[], |_| Access::Known, options);
    let mut streams = Vec::new();
    for last in [3, 1, 1, 1, 1, 2, 2, 2] {
        streams.push(stream_from([127, 0, 0, last], served.v4()).await);
        // Their order is told by milliseconds.
        sleep(Duration::from_millis(2)).await;
    }
    // That one is not the one that is idle for longest any more.
    ask_again(&mut streams[1]).await;
    sleep(Duration::from_millis(2)).await;
    let more = stream_from([127, 0, 0, 4], served.v4()).await;
    let end = timeout(10 * SECOND, streams[2].read(&mut [0; 1])).await.expect("an end in time");
    assert!(matches!(end, Ok(0) | Err(_)));
    streams.remove(2);
    for stream in &mut streams {
        ask_again(stream).await;
    }
    assert_eq!(served.count("fairway_dns_connections_refused_total"), 0);
    drop((streams, more));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_a_stream_are_answered_that_come_before_something_else() {
    let upstream = Pretender::new(|asked, _| {
        Act::Late(Duration::from_millis(50), reply_to(asked).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let served = Served::open(&[&upstream]);
    let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
    let mut no_query = query(SERVICE, A);
    no_query[2] |= 0x80;
    let all = [query(SERVICE, A), query("www.example", A), no_query, query(SERVICE, A)];
    let all: Vec<u8> = all.iter().flat_map(|message| framed(message)).collect();
    stream.write_all(&all).await.expect("write");
    for expected in ["10.96.0.10", "192.0.2.1"] {
        assert_eq!(data(&read(&receive_by_tcp(&mut stream).await)), [expected]);
    }
    assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_gives_no_signs() {
    let hangs = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&hangs);
    let clients = move |_| {
        while state.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        Access::Known
    };
    let served = Served::new(&[], clients, Options::default());
    let signs = served.server.signs();
    let is_silent_for = |at_least: Duration| signs.since().elapsed() > at_least;
    let wait_for = async |silent: bool| {
        let begin = Instant::now();
        while is_silent_for(8 * signs::EVERY) != silent {
            assert!(begin.elapsed() < 20 * SECOND, "it is never silent: {silent}");
            sleep(Duration::from_millis(5)).await;
        }
    };
    wait_for(false).await;
    hangs.store(true, Ordering::Relaxed);
    let client = client([127, 0, 0, 1], served.v4()).await;
    client.send(&query(SERVICE, A)).await.expect("send");
    wait_for(true).await;
    hangs.store(false, Ordering::Relaxed);
    receive(&client).await;
    wait_for(false).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_query_is_counted_and_not_answered() {
    let served = Served::open(&[]);
    let client = client([127, 0, 0, 1], served.v4()).await;
    let mut answer = query(SERVICE, A);
    answer[2] |= 0x80;
    let good = query(SERVICE, A);
    for message in [&[][..], &[0], &[0xff; 11], &answer, &good[..4]] {
        client.send(message).await.expect("send");
    }
    // Datagrams of one socket are taken in order.
    client.send(&good).await.expect("send");
    assert_eq!(data(&read(&receive(&client).await)), ["10.96.0.10"]);
    assert_eq!(
        client.try_recv(&mut [0; 10]).expect_err("nothing more").kind(),
        io::ErrorKind::WouldBlock
    );
    let dropped =
        |reason| served.count(&format!("fairway_dns_dropped_total{{reason=\"{reason}\"}}"));
    assert_eq!([dropped("short"), dropped("answer")], [4, 1]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_the_next_query_is_answered() {
    let served = Served::open(&[]);
    let client = client([127, 0, 0, 1], served.v4()).await;
    let good = query(SERVICE, A);
    let mut dice = 1_u64;
    for round in 0..200 {
        for _ in 0..20 {
            let mut bad = good.clone();
            for _ in 0..4 {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(dice >> 33).expect("small") % bad.len();
                bad[at] = dice.to_le_bytes()[7];
            }
            bad[..2].copy_from_slice(&[0xff, 0xff]);
            client.send(&bad).await.expect("send");
        }
        client.send(&good).await.expect("send");
        loop {
            let heard = receive(&client).await;
            if heard[..2] == good[..2] {
                assert_eq!(data(&read(&heard)), ["10.96.0.10"], "round {round}");
                break;
            }
        }
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_whatever_they_ask() {
    let upstream = Pretender::honest([192, 0, 2, 1], 60).await;
    let access = |address: IpAddr| {
        if address == Ipv4Addr::new(127, 0, 0, 2) { Access::Stranger } else { Access::Known }
    };
    let served = Served::new(&[&upstream], access, Options::default());
    let stranger = client([127, 0, 0, 2], served.v4()).await;
    for name in [SERVICE, "a.example"] {
        stranger.send(&query(name, A)).await.expect("send");
        let message = read(&receive(&stranger).await);
        assert_eq!(message.metadata.response_code, ResponseCode::Refused);
        assert!(message.answers.is_empty());
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(served.count("fairway_dns_strangers_total"), 2);
    let known = client([127, 0, 0, 3], served.v4()).await;
    known.send(&query("a.example", A)).await.expect("send");
    assert_eq!(data(&read(&receive(&known).await)), ["192.0.2.1"]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_client_leaves_others_alone() {
    let options = Options { rate: 1000, ..Options::default() };
    let silent = Pretender::new(|_, _| Act::Nothing).await;
    let served = Served::new(&[&silent], |_| Access::Known, options);
    let (server, ends) = (served.v4(), Arc::new(AtomicBool::new(false)));
    // Some of it for upstreams that never answer.
    let flood = {
        let ends = Arc::clone(&ends);
        thread::spawn(move || {
            let client = std::net::UdpSocket::bind("127.0.0.2:0").expect("a port");
            client.connect(server).expect("connect");
            let mut sent = 0_u64;
            while !ends.load(Ordering::Relaxed) {
                let external = query(&format!("a{sent}.example"), A);
                for message in [query(SERVICE, A), external] {
                    // The queue of the socket is full now and then.
                    sent += u64::from(client.send(&message).is_ok());
                }
            }
            sent
        })
    };
    let other = client([127, 0, 0, 3], server).await;
    for _ in 0..300 {
        other.send(&query(SERVICE, A)).await.expect("send");
        assert_eq!(data(&read(&receive(&other).await)), ["10.96.0.10"]);
    }
    ends.store(true, Ordering::Relaxed);
    let sent = flood.join().expect("no panic");
    assert!(served.count("fairway_dns_dropped_total{reason=\"rate\"}") > 0, "of {sent}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_names_come_from_upstreams_and_then_from_memory() {
    let upstream = Pretender::honest([192, 0, 2, 1], 60).await;
    let served = Served::open(&[&upstream]);
    for _ in 0..3 {
        assert_eq!(data(&by_udp(served.v4(), &query("a.example", A)).await), ["192.0.2.1"]);
        assert_eq!(data(&by_tcp(served.v6(), &query("A.Example", A)).await), ["192.0.2.1"]);
    }
    assert_eq!(upstream.names(), ["a.example"]);
    assert_eq!(served.count("coredns_cache_hits_total{type=\"success\"}"), 5);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_serves_those_for_whom_there_is_no_place_to_wait() {
    let silent = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&silent);
    let upstream = Pretender::new(move |asked, _| {
        if state.load(Ordering::Relaxed) {
            return Act::Nothing;
        }
        Act::Say(vec![reply_to(asked).a([192, 0, 2, 1], 1).bytes()])
    })
    .await;
    let forward = ForwardOptions { most_of_one: 4, ..asking(&[&upstream]) };
    let served = Served::with(forward, |_| Access::Known, Options::default());
    by_udp(served.v4(), &query("a.example", A)).await;
    silent.store(true, Ordering::Relaxed);
    sleep(Duration::from_millis(1100)).await;
    let client = client([127, 0, 0, 1], served.v4()).await;
    for _ in 0..10 {
        client.send(&query("a.example", A)).await.expect("send");
    }
    for _ in 0..10 {
        assert_eq!(data(&read(&receive(&client).await)), ["192.0.2.1"]);
    }
    let rejected = served.count("coredns_forward_max_concurrent_rejects_total");
    assert_eq!(rejected, 6, "they were more than may wait");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_finds_a_name_along_its_search_list_in_one_round_trip() {
    let upstream = Pretender::new(|asked, _| {
        let known = asked_name(asked).to_lowercase() == "www.example.com";
        Act::Say(vec![if known {
            reply_to(asked).a([192, 0, 2, 1], 60).bytes()
        } else {
            reply_to(asked).rcode(3).soa(60, 60).bytes()
        }])
    })
    .await;
    let served = Served::new(&[&upstream], |_| Access::Pod("shop".into()), Options::default());
    for _ in 0..2 {
        let asked = query("www.example.com.shop.svc.cluster.local", A);
        let message = by_udp(served.v4(), &asked).await;
        assert_eq!(data(&message), ["www.example.com.", "192.0.2.1"]);
        assert_eq!(message.answers[0].record_type(), RecordType::CNAME);
    }
    let mut names = upstream.names();
    names.sort();
    assert_eq!(names, ["www.example.com", "www.example.com.example"]);
    // Another namespace's list is not walked.
    let message = by_udp(served.v4(), &query("www.example.com.other.svc.cluster.local", A)).await;
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_upstreams_is_answered_before_the_server_has_stopped() {
    let upstream = Pretender::new(|asked, _| {
        Act::Late(Duration::from_millis(300), reply_to(asked).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let served = Served::open(&[&upstream]);
    let client = client([127, 0, 0, 1], served.v4()).await;
    client.send(&query("a.example", A)).await.expect("send");
    let mut stream = TcpStream::connect(served.v4()).await.expect("connect");
    stream.write_all(&framed(&query("b.example", A))).await.expect("write");
    while upstream.seen().len() < 2 {
        tokio::task::yield_now().await;
    }
    served.stop().await;
    assert_eq!(data(&read(&receive(&client).await)), ["192.0.2.1"]);
    assert_eq!(data(&read(&receive_by_tcp(&mut stream).await)), ["192.0.2.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_waits_no_longer_than_it_is_told() {
    let upstream = Pretender::new(|_, _| Act::Nothing).await;
    let served = Served::open(&[&upstream]);
    let client = client([127, 0, 0, 1], served.v4()).await;
    client.send(&query("a.example", A)).await.expect("send");
    while upstream.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!served.server.stop(Duration::from_millis(50)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn series_are_as_many_whatever_is_asked() {
    let served = Served::open(&[]);
    let client = client([127, 0, 0, 1], served.v4()).await;
    let mut lengths = std::collections::BTreeSet::new();
    for round in 0..2 {
        for kind in 0..300 {
            let name = format!("r{round}x{kind}.shop.svc.cluster.local");
            client.send(&query(&name, kind)).await.expect("send");
            receive(&client).await;
        }
        let text = served.service.metrics(&[]);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<_> = lines.filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "each once in {text}");
        lengths.insert(all);
    }
    assert_eq!(lengths.len(), 1, "{lengths:?}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_answer_is_counted_beside_and_has_series_of_its_own() {
    let served = Served::open(&[]);
    let client = client([127, 0, 0, 1], served.v4()).await;
    client.send(&query("redis.shop.svc.cluster.local", 1)).await.expect("send");
    receive(&client).await;
    let one = |v6, kind, count| Elsewhere { server: "kernel", v6, kind, count };
    let text = served.service.metrics(&[one(false, 1, 7), one(true, 28, 5), one(true, 1, 0)]);
    let of = |name: &str| -> Vec<_> {
        text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')).collect()
    };
    assert_eq!(
        of("coredns_dns_requests_total"),
        [
            r#"server="dns://:53",zone=".",proto="udp",family="1",type="A"} 1"#,
            r#"server="kernel",zone=".",proto="udp",family="1",type="A"} 7"#,
            r#"server="kernel",zone=".",proto="udp",family="2",type="AAAA"} 5"#,
        ]
    );
    assert_eq!(
        of("coredns_dns_responses_total"),
        [
            r#"server="dns://:53",zone=".",rcode="NOERROR"} 1"#,
            r#"server="kernel",zone=".",rcode="NOERROR"} 12"#,
        ]
    );
    served.stop().await;
}

#[test]
fn an_answer_comes_from_an_address_so_sockets_of_all_are_refused() {
    let all = ["0.0.0.0:0", "[::]:0"].map(|text| text.parse().expect("an address"));
    for address in all {
        assert!(Sockets::bind(&[address], 1).is_err());
    }
}

#[test]
fn sockets_that_are_handed_over_are_those_of_the_same_workers() {
    let addresses = ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().expect("an address"));
    // A port that is free for datagrams may be somebody's for streams.
    let sockets = (0..20).find_map(|_| Sockets::bind(&addresses, 3).ok()).expect("sockets");
    let handed: Vec<_> =
        sockets.all().map(|socket| socket.try_clone_to_owned().expect("a copy")).collect();
    assert_eq!(handed.len(), 8);
    let adopted = Sockets::adopt(handed).expect("sockets");
    assert_eq!(adopted.workers().expect("workers"), 3);
    assert_eq!(adopted.addresses().expect("known"), sockets.addresses().expect("known"));
}
