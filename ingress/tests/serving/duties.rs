//! What is owed before a request goes on, and what becomes of its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fairway_ingress::gateway::Options;
use fairway_ingress::route::Public;
use fairway_model::{
    Affinity, Backend, BackendPort, BackendProtocol, BackendTls, BasicAuth, Choice, ClientTls,
    ExternalAuth, Gateway, Ingress, IngressTls, Limits, Mirror, Object, ObjectName, Secret,
    Sensitive, TicketKey,
};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::HandshakeKind;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::echo;
use super::support::*;

fn secret(name: &str) -> Secret {
    Secret { name: ObjectName::new("shop", name), ..Secret::default() }
}

fn with(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get(path).header("host", "a.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(nothing()).unwrap()
}

#[tokio::test]
async fn a_password_is_asked_for_before_anything_is_sent() {
    let backend = backend(echo).await;
    // Of "secret": quick to check, and slow.
    let users = "quick:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n\
                 slow:$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe\n";
    let world = World::default()
        .service("web", &[backend.address])
        .with(Object::Secret(Secret { users: Some(Sensitive::new(users)), ..secret("users") }))
        .ingress("a.example", "web", |ingress| {
            let secret = ObjectName::new("shop", "users");
            ingress.options.basic_auth = Some(BasicAuth { secret, realm: "Shop".to_owned() });
        });
    let gateway = gateway(&world).await;
    let mut client = client(gateway.http).await;
    let refused = client.send_request(get("a.example", "/")).await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["www-authenticate"], "Basic realm=\"Shop\"");
    assert_eq!(backend.connections(), 0);
    // quick:secret, quick:wrong, slow:password twice, slow:wrong
    for (said, status) in [
        ("cXVpY2s6c2VjcmV0", 200),
        ("cXVpY2s6d3Jvbmc=", 401),
        ("c2xvdzpwYXNzd29yZA==", 200),
        ("c2xvdzpwYXNzd29yZA==", 200),
        ("c2xvdzp3cm9uZw==", 401),
    ] {
        let request = with("/", &[("authorization", &format!("Basic {said}"))]);
        assert_eq!(ask(gateway.http, request).await.0, status, "{said}");
    }
}

#[tokio::test]
async fn somebody_else_is_asked_who_may_pass() {
    let web = backend(echo).await;
    let auth = backend(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["x-original-method"], "POST");
        assert_eq!(request.headers()["content-length"], "0");
        let user = request.headers().get("x-user").map(|user| user.to_str().unwrap().to_owned());
        let response = Response::builder();
        match user.as_deref() {
            Some("ann") => response.header("x-role", "admin").header("set-cookie", "seen=1"),
            Some("broken") => response.status(500),
            Some("eve") => response.status(403),
            _ => response.status(401),
        }
        .body(text("ignored"))
        .unwrap()
    })
    .await;
    let world = World::default().service("web", &[web.address]).service("auth", &[auth.address]);
    let world = world.ingress("a.example", "web", |ingress| {
        ingress.options.external_auth = Some(ExternalAuth {
            url: "http://auth.shop.svc.cluster.local/check".parse().unwrap(),
            method: Some("POST".to_owned()),
            response_headers: vec!["x-role".to_owned()],
            signin: Some("https://login.example/".parse().unwrap()),
            ..ExternalAuth::default()
        });
    });
    let gateway = gateway(&world).await;
    let post = |user: &str| {
        let request = Request::post("/").header("host", "a.example").header("x-user", user);
        // What the gateway adds for whoever is asked, no client takes away.
        let request = request.header("connection", "x-original-method");
        request.header("x-role", "forged").body(text("body")).unwrap()
    };
    let mut client = client(gateway.http).await;
    let passed = client.send_request(post("ann")).await.unwrap();
    assert_eq!(passed.headers()["set-cookie"], "seen=1");
    let (status, said) = read(passed).await;
    assert_eq!(status, 200);
    assert!(said.contains("x-role: admin\n") && !said.contains("forged"), "{said}");
    assert!(said.ends_with("body"), "{said}");
    client.ready().await.unwrap();
    let sent = client.send_request(post("nobody")).await.unwrap();
    assert_eq!(sent.status(), 302);
    assert!(sent.headers()["location"].to_str().unwrap().starts_with("https://login.example/?rd="));
    assert_eq!(ask(gateway.http, post("eve")).await.0, 403);
    assert_eq!(ask(gateway.http, post("broken")).await.0, 500);
    assert_eq!(auth.connections(), 1, "its connection is kept");
    // Who is to be asked is not there: nobody passes.
    drop(auth);
    assert_eq!(ask(gateway.http, post("ann")).await.0, 500);
}

#[tokio::test]
async fn an_answer_about_who_may_pass_holds_as_long_as_it_is_said_to() {
    let (web, asked) = (backend(echo).await, Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    let auth = backend(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let user = request.headers().get("x-user").cloned();
        let mut response = Response::builder().status(if user.is_some() { 200 } else { 403 });
        if user.is_some_and(|user| user == "own") {
            response = response.header("set-cookie", "session=1");
        }
        async move { response.body(nothing()).unwrap() }
    })
    .await;
    let url = format!("http://{}/", auth.address);
    let world = |seconds| {
        let world = World::default().service("web", &[web.address]);
        world.ingress("a.example", "web", |ingress| {
            ingress.options.external_auth = Some(ExternalAuth {
                url: url.parse().unwrap(),
                cache_key: Some("$http_x_user".parse().unwrap()),
                cache_for: vec![(200, seconds)],
                ..ExternalAuth::default()
            });
        })
    };
    let gateway = gateway(&world(60)).await;
    for user in ["ann", "ann", "bob", "ann"] {
        assert_eq!(ask(gateway.http, with("/", &[("x-user", user)])).await.0, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    for _ in 0..2 {
        assert_eq!(ask(gateway.http, with("/", &[])).await.0, 403);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4, "it is said of 200 alone");
    gateway.apply(&world(61).model());
    assert_eq!(ask(gateway.http, with("/", &[("x-user", "ann")])).await.0, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 5, "the route is another one");
    for _ in 0..2 {
        assert_eq!(ask(gateway.http, with("/", &[("x-user", "own")])).await.0, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 7, "its cookie is for one alone");
}

#[tokio::test]
async fn who_is_asked_may_close_a_connection_at_any_time() {
    let web = backend(echo).await;
    // Answers once, and closes when it is asked again.
    let auth = each(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.read(&mut [0; 1000]).await;
    })
    .await;
    let url = format!("http://{}/", auth.address);
    let world = World::default().service("web", &[web.address]);
    let world = world.ingress("a.example", "web", |ingress| {
        ingress.options.external_auth =
            Some(ExternalAuth { url: url.parse().unwrap(), ..ExternalAuth::default() });
    });
    let gateway = gateway(&world).await;
    for _ in 0..3 {
        assert_eq!(ask(gateway.http, get("a.example", "/")).await.0, 200);
    }
    assert_eq!(auth.connections(), 3);
}

#[tokio::test]
async fn an_answer_goes_no_faster_than_it_may() {
    let backend = backend(|_| async { Response::new(text("x".repeat(2000))) }).await;
    let world = World::default().service("web", &[backend.address]).ingress(
        "a.example",
        "web",
        |ingress| {
            ingress.options.limits =
                Limits { rate: Some(2000), rate_after: 500, ..Limits::default() };
        },
    );
    let gateway = gateway(&world).await;
    let begun = std::time::Instant::now();
    let (status, said) = ask(gateway.http, get("a.example", "/")).await;
    assert_eq!((status, said.len()), (200, 2000));
    // 500 at once, and the last 500 when 1000 have gone in half a second.
    assert!(begun.elapsed() >= std::time::Duration::from_millis(490), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_takes_no_more_than_its_share() {
    let backend = backend(echo).await;
    let world = World::default().service("web", &[backend.address]).ingress(
        "a.example",
        "web",
        |ingress| {
            ingress.options.limits =
                Limits { per_minute: Some(2), burst: Some(1), ..Limits::default() };
        },
    );
    let gateway = gateway(&world).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(ask(gateway.http, get("a.example", "/")).await.0);
    }
    assert_eq!(answers, [200, 200, 200, 503, 503]);
}

#[tokio::test]
async fn errors_and_missing_endpoints_have_pages_of_their_own() {
    let web = backend(|_| async { Response::builder().status(404).body(text("plain")).unwrap() });
    let pages = backend(|request: Request<Incoming>| async move {
        let code = request.headers()["x-code"].to_str().unwrap().to_owned();
        Response::builder().status(418).body(text(format!("page for {code}"))).unwrap()
    });
    let (web, pages) = (web.await, pages.await);
    let page = |ingress: &mut Ingress| {
        ingress.options.custom_errors = vec![404, 503];
        let port = BackendPort::Number(80);
        ingress.options.default_backend = Some(Backend { service: "pages".to_owned(), port });
    };
    let world = World::default()
        .service("web", &[web.address])
        .service("pages", &[pages.address])
        .ingress("a.example", "web", page);
    let gateway = gateway(&world).await;
    let answer = ask(gateway.http, get("a.example", "/")).await;
    assert_eq!(answer, (418, "page for 404".to_owned()));
}

#[tokio::test]
async fn a_page_for_an_error_is_limited_as_the_answer_is() {
    let web = backend(|_| async { Response::builder().status(404).body(text("plain")).unwrap() });
    let pages = backend(|_| async { Response::new(text("page")) });
    let (web, pages) = (web.await, pages.await);
    let world = World::default().service("web", &[web.address]).service("pages", &[pages.address]);
    let world = world.ingress("a.example", "web", |ingress| {
        ingress.options.custom_errors = vec![404];
        let port = BackendPort::Number(80);
        ingress.options.default_backend = Some(Backend { service: "pages".to_owned(), port });
        // A byte a second, so that the page is under way while somebody else asks.
        ingress.options.limits =
            Limits { connections: Some(1), rate: Some(1), ..Limits::default() };
    });
    let gateway = gateway(&world).await;
    let mut client = client(gateway.http).await;
    let page = client.send_request(get("a.example", "/")).await.unwrap();
    assert_eq!(page.status(), 200);
    assert_eq!(ask(gateway.http, get("a.example", "/")).await.0, 503);
}

#[tokio::test]
async fn a_copy_goes_to_somebody_else() {
    let (say, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let copies = backend(move |request: Request<Incoming>| {
        let say = say.clone();
        async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let path = request.uri().to_string();
            let (_, body) = read(Response::new(request.into_body())).await;
            say.send(format!("{host}{path} {body}")).unwrap();
            Response::builder().status(500).body(nothing()).unwrap()
        }
    })
    .await;
    let web = backend(echo).await;
    let url = format!("http://{}/copy$request_uri", copies.address);
    let world = World::default().service("web", &[web.address]).ingress(
        "a.example",
        "web",
        move |ingress| {
            ingress.options.mirror = Some(Mirror {
                url: url.parse().unwrap(),
                host: Some("copy.example".to_owned()),
                no_body: false,
            });
        },
    );
    let gateway = gateway(&world).await;
    let request = Request::post("/x").header("host", "a.example").body(text("body")).unwrap();
    assert_eq!(ask(gateway.http, request).await.0, 200);
    let copy = timeout(PATIENCE, heard.recv()).await.expect("in time").unwrap();
    assert_eq!(copy, "copy.example/copy/x body");
}

async fn named(name: &'static str) -> Server {
    backend(move |_| async move { Response::new(text(name)) }).await
}

#[tokio::test]
async fn a_client_stays_where_its_cookie_says() {
    let (one, two, three) = (named("one").await, named("two").await, named("three").await);
    let all = [one.address, two.address, three.address];
    for persistent in [false, true] {
        let world = World::default().service("web", &all).ingress("a.example", "web", |ingress| {
            let name = "route".to_owned();
            ingress.options.affinity = Some(Affinity { name, persistent, ..Affinity::default() });
        });
        let gateway = gateway(&world).await;
        let mut open = client(gateway.http).await;
        let response = open.send_request(get("a.example", "/")).await.unwrap();
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.ends_with("; Path=/; HttpOnly"), "{cookie}");
        let cookie = cookie.split(';').next().unwrap();
        let (_, first) = read(response).await;
        for _ in 0..10 {
            open.ready().await.unwrap();
            let response = open.send_request(with("/", &[("cookie", cookie)])).await.unwrap();
            assert!(!response.headers().contains_key("set-cookie"));
            assert_eq!(read(response).await.1, first, "persistent: {persistent}");
        }
    }
}

#[tokio::test]
async fn what_is_alike_goes_to_the_same_endpoint() {
    let (one, two) = (named("one").await, named("two").await);
    let world = World::default().service("web", &[one.address, two.address]).ingress(
        "a.example",
        "web",
        |ingress| ingress.options.choice = Some(Choice::Hash("$request_uri".parse().unwrap())),
    );
    let gateway = gateway(&world).await;
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..20 {
        let path = format!("/{number}");
        let first = ask(gateway.http, get("a.example", &path)).await.1;
        assert_eq!(ask(gateway.http, get("a.example", &path)).await.1, first);
        seen.insert(first);
    }
    assert_eq!(seen.len(), 2);
}

/// A CA, and a certificate of it for `name` along with its key.
pub(super) fn issued(name: &str) -> (String, Certificate) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (ca.pem(), Certificate { pem: certificate.pem(), key: key.serialize_pem() })
}

pub(super) async fn ask_over_tls(
    address: std::net::SocketAddr,
    own: Option<&Certificate>,
) -> (u16, String) {
    let mut config = (*believing("http/1.1")).clone();
    if let Some(own) = own {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        let key = rustls::sign::CertifiedKey::from_der(vec![own.der()], key, &provider).unwrap();
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(key));
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let builder = hyper::client::conn::http1::Builder::new();
    let (mut client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    read(client.send_request(get("a.example", "/")).await.unwrap()).await
}

#[tokio::test]
async fn clients_show_certificates_of_the_right_ca() {
    let backend = backend(echo).await;
    let (ca, good) = issued("ann");
    let (_, other) = issued("eve");
    let served = Certificate::new("a.example");
    let mut world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &served);
    for object in &mut world.objects {
        if let Object::Ingress(ingress) = object {
            let secret = ObjectName::new("shop", "ca");
            ingress.options.client_tls = Some(ClientTls { secret, ..ClientTls::default() });
        }
    }
    let world =
        |ca: String| world.clone().with(Object::Secret(Secret { ca: Some(ca), ..secret("ca") }));
    let gateway = gateway(&world(ca)).await;
    assert_eq!(ask_over_tls(gateway.https, None).await.0, 400);
    assert_eq!(ask_over_tls(gateway.https, Some(&other)).await.0, 400);
    let (status, said) = ask_over_tls(gateway.https, Some(&good)).await;
    assert_eq!(status, 200);
    assert!(said.contains("ssl-client-verify: SUCCESS\n"), "{said}");
    assert!(said.contains("ssl-client-subject-dn: CN=ann\n"), "{said}");
    gateway.apply(&world(issued("x").0).model());
    assert_eq!(ask_over_tls(gateway.https, Some(&good)).await.0, 400);
}

#[tokio::test]
async fn a_session_is_taken_up_again_by_another_replica() {
    let backend = backend(echo).await;
    let certificate = Certificate::new("a.example");
    let objects = |key: &str| {
        let key = Sensitive::new(key.repeat(32));
        let key = TicketKey { name: "01".repeat(16), since: 1, key };
        World::default()
            .service("web", &[backend.address])
            .tls("a.example", "web", &certificate)
            .with(Object::TicketKey(key))
    };
    let world = |key: &str| objects(key).model();
    let (one, other) = (gateway(&World::default()).await, gateway(&World::default()).await);
    one.apply(&world("aa"));
    let mut config = (*believing("http/1.1")).clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let connector = TlsConnector::from(Arc::new(config));
    let shake = async |address| {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        // Tickets come along with the answer.
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
        stream.get_ref().1.handshake_kind().unwrap()
    };
    assert!(matches!(shake(one.https).await, HandshakeKind::Full));
    other.apply(&world("bb"));
    assert!(matches!(shake(other.https).await, HandshakeKind::Full), "the keys differ");
    other.apply(&world("aa"));
    assert!(matches!(shake(one.https).await, HandshakeKind::Full), "its ticket is of another key");
    assert!(matches!(shake(other.https).await, HandshakeKind::Resumed));
    // From now on certificates are asked for, which is not done when a session is taken up.
    let mut asking = objects("aa");
    for object in &mut asking.objects {
        if let Object::Ingress(ingress) = object {
            let secret = ObjectName::new("shop", "ca");
            ingress.options.client_tls = Some(ClientTls { secret, ..ClientTls::default() });
        }
    }
    let ca = Secret { ca: Some(issued("x").0), ..secret("ca") };
    other.apply(&asking.with(Object::Secret(ca)).model());
    assert!(matches!(shake(other.https).await, HandshakeKind::Full), "nobody was asked");
    assert!(matches!(shake(other.https).await, HandshakeKind::Resumed));
}

/// Ends TLS itself, and says a word.
async fn secure(certificate: &Certificate) -> Server {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    each(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let _ = stream.read(&mut [0; 1000]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nword").await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

#[tokio::test]
async fn tls_that_does_not_end_here_is_passed_by_its_name() {
    let (theirs, ours) = (Certificate::new("a.example"), Certificate::new("b.example"));
    let backend = secure(&theirs).await;
    // Nobody listens there, and nobody else can.
    let gone = tokio::net::TcpSocket::new_v4().unwrap();
    gone.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let world = World::default()
        .service("web", &[gone.local_addr().unwrap(), backend.address])
        .ingress("a.example", "web", |ingress| {
            ingress.options.passthrough = true;
            ingress.tls = vec![IngressTls { hosts: vec!["a.example".to_owned()], secret: None }];
        })
        .tls("b.example", "web", &ours);
    let gateway = gateway(&world).await;
    let mut stream = tls(gateway.https, "a.example", "http/1.1").await;
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], theirs.der());
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut said)).await.expect("an end").unwrap();
    assert!(said.ends_with("word"), "{said}");
    for _ in 0..8 {
        assert_eq!(shown(gateway.https, "a.example").await, theirs.der());
    }
    assert_eq!(shown(gateway.https, "b.example").await, ours.der());
}

#[tokio::test]
async fn a_backends_certificate_is_checked_where_that_is_asked_for() {
    let (ca, certificate) = issued("backend.example");
    let backend = secure(&certificate).await;
    let (right, wrong) = (Secret { ca: Some(ca), ..secret("right") }, issued("x").0);
    let wrong = Secret { ca: Some(wrong), ..secret("wrong") };
    let mut world = World::default().service("web", &[backend.address]);
    for (host, verify, secret, name) in [
        ("any.example", false, None, None),
        ("right.example", true, Some("right"), Some("backend.example")),
        ("name.example", true, Some("right"), Some("other.example")),
        ("wrong.example", true, Some("wrong"), Some("backend.example")),
        ("none.example", true, None, Some("backend.example")),
    ] {
        world = world.ingress(host, "web", |ingress| {
            ingress.options.protocol = BackendProtocol::Https;
            let secret = secret.map(|secret| ObjectName::new("shop", secret));
            let (name, server_name) = (name.map(str::to_owned), false);
            ingress.options.backend_tls = BackendTls { verify, secret, name, server_name };
        });
    }
    let world = world.with(Object::Secret(right)).with(Object::Secret(wrong));
    let gateway = gateway(&world).await;
    for (host, status) in [
        ("any.example", 200),
        ("right.example", 200),
        ("name.example", 502),
        ("wrong.example", 502),
        ("none.example", 502),
    ] {
        assert_eq!(ask(gateway.http, get(host, "/")).await.0, status, "{host}");
    }
}

#[tokio::test]
async fn who_is_trusted_says_who_connects() {
    let backend = backend(echo).await;
    let gateway_object = |trusted: &str| {
        Object::Gateway(Gateway {
            proxy_protocol: true,
            trusted: vec![trusted.parse().unwrap()],
            ..Gateway::default()
        })
    };
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world.clone().with(gateway_object("127.0.0.0/8"))).await;
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let said = format!("PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n{request}");
    let answer = raw(gateway.http, said.as_bytes()).await;
    assert!(answer.contains("x-real-ip: 192.0.2.7"), "{answer}");
    assert!(answer.contains("x-forwarded-proto: http\n"), "{answer}");
    // TLS was ended in front.
    let ended = said.replace("1234 80", "1234 443");
    let answer = raw(gateway.http, ended.as_bytes()).await;
    assert!(answer.contains("x-forwarded-proto: https\n"), "{answer}");
    assert!(answer.contains("x-forwarded-port: 443\n"), "{answer}");
    assert_eq!(raw(gateway.http, request.as_bytes()).await, "");
    gateway.apply(&world.with(gateway_object("10.0.0.0/8")).model());
    let answer = raw(gateway.http, said.as_bytes()).await;
    assert!(answer.contains("x-real-ip: 127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn clients_see_the_ports_that_they_connect_to() {
    let backend = backend(echo).await;
    let certificate = Certificate::new("b.example");
    let world = World::default()
        .service("web", &[backend.address])
        .host("a.example", "web")
        .tls("b.example", "web", &certificate)
        .ingress("c.example", "web", |ingress| ingress.options.force_ssl_redirect = Some(true));
    let public = Public { http: Some(8080), https: Some(8443) };
    let options = Options { public, ..Options::default() };
    let gateway = fairway_ingress::gateway::Gateway::start(&options).await.unwrap();
    gateway.apply(&world.model());
    gateway.begin().unwrap();
    let answer = ask(gateway.http, get("a.example", "/")).await.1;
    assert!(answer.contains("x-forwarded-port: 8080\n"), "{answer}");
    let request = "GET / HTTP/1.1\r\nHost: c.example\r\nConnection: close\r\n\r\n";
    let answer = raw(gateway.http, request.as_bytes()).await;
    assert!(answer.contains("location: https://c.example:8443/\r\n"), "{answer}");
    let mut stream = tls(gateway.https, "b.example", "http/1.1").await;
    stream.write_all(request.replace("c.example", "b.example").as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.contains("x-forwarded-port: 8443\n"), "{answer}");
}

#[tokio::test]
async fn connections_are_shared_only_by_what_is_the_same() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let backend = backend(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        echo(request)
    })
    .await;
    let world = World::default()
        .service("one", &[backend.address])
        .service("two", &[backend.address])
        .host("one.example", "one")
        .host("two.example", "two");
    let gateway = gateway(&world).await;
    for host in ["one.example", "two.example", "one.example"] {
        assert_eq!(ask(gateway.http, get(host, "/")).await.0, 200);
    }
    assert_eq!((asked.load(Ordering::SeqCst), backend.connections()), (3, 1));
}
