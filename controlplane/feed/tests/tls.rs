//! Who may connect, who may say and hear what, and what happens when certificates are no good.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fairway_feed::authority::{Authority, NotVouched, Vouch, Vouching};
use fairway_feed::client::{self, Connector as _, Follower, Status, ask};
use fairway_feed::identity::{GatewayName, Pin, Role};
use fairway_feed::tls::{Client, Files, JoinToken, PodIdentity};
use fairway_feed::{ModelReceiver, disk, server, tls};
use fairway_model::{Model, Node, Object};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

/// A control plane that serves a model of one node and ends with this.
struct Server {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Server {
    async fn start(acceptor: tls::Server, authority: Option<Arc<Authority>>, node: &str) -> Self {
        Self::publishing(acceptor, authority, watch::channel(Some(model(node))).1).await
    }

    /// With the built-in CA, where somebody vouches for nodes.
    async fn vouching(authority: &Arc<Authority>, node: &str) -> Self {
        let acceptor = tls::Server::authority(Arc::clone(authority)).unwrap();
        let models = watch::channel(Some(model(node))).1;
        Self::with(acceptor, Some(Arc::clone(authority)), Some(Arc::new(Known)), models).await
    }

    async fn publishing(
        acceptor: tls::Server,
        authority: Option<Arc<Authority>>,
        models: ModelReceiver,
    ) -> Self {
        Self::with(acceptor, authority, None, models).await
    }

    async fn with(
        acceptor: tls::Server,
        authority: Option<Arc<Authority>>,
        vouch: Option<Arc<dyn Vouch>>,
        models: ModelReceiver,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let options = server::Options {
            ping: Duration::from_millis(50),
            authority,
            vouch,
            ..server::Options::default()
        };
        let mut task = JoinSet::new();
        task.spawn(server::serve(listener, acceptor, models, options));
        Self { address, _task: task }
    }

    /// With the built-in CA.
    async fn of(authority: &Arc<Authority>, node: &str) -> Self {
        let acceptor = tls::Server::authority(Arc::clone(authority)).unwrap();
        Self::start(acceptor, Some(Arc::clone(authority)), node).await
    }

    fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }
}

/// Takes `of.NODE.pod` for the token of an agent on that node, and `edge.POD.gateway` for that of a gateway.
#[derive(Debug)]
struct Known;

impl Vouch for Known {
    fn vouch<'a>(&'a self, token: &'a str) -> Vouching<'a> {
        let known = match token.split('.').collect::<Vec<_>>()[..] {
            ["of", node, "pod"] => Ok(Role::Node(node.to_owned())),
            ["edge", pod, "gateway"] => {
                Ok(Role::Gateway(GatewayName { group: "edge".into(), replica: Some(pod.into()) }))
            }
            [_, _, "later"] => Err(NotVouched::Unavailable("nobody can be asked".into())),
            _ => Err(NotVouched::Refused("it has expired".into())),
        };
        Box::pin(async move { known })
    }
}

/// What a pod is given: a token, and the CA.
fn pod(folder: &Path, token: &str, ca: &str) -> PodIdentity {
    let pod = PodIdentity { token: folder.join("token"), ca: folder.join("mounted.crt") };
    disk::replace(&pod.token, format!("{token}\n").as_bytes()).unwrap();
    disk::replace(&pod.ca, ca.as_bytes()).unwrap();
    pod
}

fn model(node: &str) -> Arc<Model> {
    nodes(&[node])
}

fn nodes(names: &[&str]) -> Arc<Model> {
    let node = |name: &&str| Object::Node(Node { name: (*name).into(), ..Node::default() });
    Arc::new(names.iter().map(node).collect())
}

/// A CA and the folder it is in.
fn authority() -> (Arc<Authority>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(Authority::open(folder.path()).unwrap()), folder)
}

fn token(authority: &Authority, folder: &TempDir, node: Option<&str>) -> JoinToken {
    let token = Authority::token(folder.path(), node, HOUR, SystemTime::now()).unwrap();
    JoinToken { token, pin: authority.pin() }
}

/// A certificate from tomorrow, as one from today looks to a clock that has jumped back.
fn of_tomorrow(ca: &TempDir, role: &Role, files: &Files) {
    let read = |name: &str| std::fs::read_to_string(ca.path().join(name)).unwrap();
    let authority = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), authority).unwrap();
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() + 24 * HOUR).into();
    params.subject_alt_names = vec![SanType::URI(role.uri().try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    disk::replace_secret(&files.key, key.serialize_pem().as_bytes()).unwrap();
    disk::replace(&files.certificate, certificate.as_bytes()).unwrap();
}

/// Files of whoever this is.
fn files(authority: &Authority, role: Role, folder: &Path) -> Files {
    let files = Files {
        ca: folder.join("ca.crt"),
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
    };
    let (certificate, key) = authority.certificate_for(&role).unwrap();
    disk::replace(&files.ca, authority.certificate().as_bytes()).unwrap();
    disk::replace_secret(&files.key, key.as_bytes()).unwrap();
    disk::replace(&files.certificate, certificate.as_bytes()).unwrap();
    files
}

fn follow(server: &Server, connector: Client, folder: &TempDir) -> Follower {
    let options = client::Options {
        endpoints: vec![server.endpoint()],
        node: "n1".into(),
        snapshot: folder.path().join("snapshot"),
        facts: watch::channel(Default::default()).1,
    };
    client::follow_over(options, connector).unwrap()
}

async fn status_where(follower: &mut Follower, wanted: impl FnMut(&Status) -> bool) -> Status {
    let found = timeout(PATIENCE, follower.status.wait_for(wanted)).await;
    found.expect("the status never became as wanted").unwrap().clone()
}

/// Why it cannot connect.
async fn error(follower: &mut Follower) -> String {
    status_where(follower, |status| status.error.is_some()).await.error.unwrap()
}

async fn connected(follower: &mut Follower) {
    let found =
        timeout(PATIENCE, follower.status.wait_for(|status| status.connected)).await.is_ok();
    assert!(found, "{:?}", follower.status.borrow());
}

async fn get(server: &Server, connector: &Client, path: &str) -> (StatusCode, String) {
    send(server, connector, Method::GET, path, "").await
}

async fn send(
    server: &Server,
    connector: &Client,
    method: Method,
    path: &str,
    body: &str,
) -> (StatusCode, String) {
    let body = Bytes::from(body.to_owned());
    let (status, body) = ask(connector, &server.endpoint(), method, path, body).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_node_joins_by_token_and_pin_and_comes_back_without() {
    let (authority, ca) = authority();
    let server = Server::of(&authority, "a").await;
    let state = tempfile::tempdir().unwrap();
    let keys = state.path().join("feed");
    let token = token(&authority, &ca, None);
    for token in [Some(token.clone()), None] {
        let mut follower = follow(&server, Client::joining(&keys, "n1", token), &state);
        connected(&mut follower).await;
        assert_eq!(follower.model.borrow().as_deref(), Some(&*model("a")));
    }
    use std::os::unix::fs::PermissionsExt as _;
    let own = keys.join("node.pem");
    assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!keys.join("pending.key").exists());

    // The token is used up.
    let other = tempfile::tempdir().unwrap();
    let connector = Client::joining(&other.path().join("feed"), "n1", Some(token));
    let error = error(&mut follow(&server, connector, &other)).await;
    assert!(error.contains("403 Forbidden: this token was used already, by node n1"), "{error}");
}

#[tokio::test]
async fn who_joins_gets_nothing_without_the_right_token_and_gives_nothing_to_another_ca() {
    let (authority, ca) = authority();
    let server = Server::of(&authority, "a").await;
    let good = token(&authority, &ca, Some("n2"));
    let zero: Pin = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    for (token, reason) in [
        (good.clone(), "this token is for node n2, not for node n1"),
        (JoinToken { token: "abcdef.0".into(), ..good.clone() }, "this token is not known here"),
        (JoinToken { pin: zero, ..good }, "shows no CA whose key is sha256:000"),
    ] {
        let state = tempfile::tempdir().unwrap();
        let connector = Client::joining(&state.path().join("feed"), "n1", Some(token));
        let error = error(&mut follow(&server, connector, &state)).await;
        assert!(error.contains(reason), "{error}");
        assert!(!state.path().join("feed/node.pem").exists());
    }
}

#[tokio::test]
async fn a_pod_joins_by_its_own_token_as_its_own_node_alone() {
    let ((authority, _ca), (other, _ca_too)) = (authority(), authority());
    let server = Server::vouching(&authority, "a").await;
    let state = tempfile::tempdir().unwrap();
    let keys = state.path().join("feed");
    let own = pod(state.path(), "of.n1.pod", authority.certificate());
    for _ in 0..2 {
        let connector = Client::joining_as_pod(&keys, "n1", own.clone());
        connected(&mut follow(&server, connector, &state)).await;
        // The second time without: it has a certificate.
        disk::replace(&own.token, b"of.nobody.any-more").unwrap();
    }

    for (token, ca, reason) in [
        ("of.n2.pod", &authority, "this token is for node n2, not for node n1"),
        ("edge.a.gateway", &authority, "this token is for gateway edge/a, not for node n1"),
        ("an.old.one", &authority, "lets nobody join: it has expired"),
        ("a.b.later", &authority, "503 Service Unavailable: the control plane cannot have"),
        ("abcdef.0", &authority, "this token is not known here"),
        ("of.n1.pod", &other, "is not from the feed's CA"),
    ] {
        let state = tempfile::tempdir().unwrap();
        let pod = pod(state.path(), token, ca.certificate());
        let connector = Client::joining_as_pod(&state.path().join("feed"), "n1", pod);
        let error = error(&mut follow(&server, connector, &state)).await;
        assert!(error.contains(reason), "{error}");
        assert!(!state.path().join("feed/node.pem").exists());
    }

    // Where nobody vouches.
    let server = Server::of(&authority, "a").await;
    let state = tempfile::tempdir().unwrap();
    let own = pod(state.path(), "of.n1.pod", authority.certificate());
    let connector = Client::joining_as_pod(&state.path().join("feed"), "n1", own);
    let error = error(&mut follow(&server, connector, &state)).await;
    assert!(error.contains("takes no tokens of ServiceAccounts"), "{error}");
}

#[tokio::test]
async fn a_gateway_joins_by_its_own_token_as_its_own_replica_alone() {
    let (authority, _ca) = authority();
    let server = Server::vouching(&authority, "a").await;
    let follow = |gateway: &str, token: &str| {
        let state = tempfile::tempdir().unwrap();
        let pod = pod(state.path(), token, authority.certificate());
        let gateway: GatewayName = gateway.parse().unwrap();
        let connector =
            Client::joining_as_gateway(&state.path().join("feed"), gateway.clone(), pod);
        let options = client::GatewayOptions {
            endpoints: vec![server.endpoint()],
            gateway,
            snapshot: state.path().join("snapshot"),
            secrets: None,
        };
        (client::follow_as_gateway(options, connector).unwrap(), state)
    };
    let (mut follower, state) = follow("edge/a", "edge.a.gateway");
    connected(&mut follower).await;
    assert_eq!(follower.model.borrow().as_deref(), Some(&Model::default()));
    let own = std::fs::read(state.path().join("feed/gateway.pem")).unwrap();

    for (gateway, token, reason) in [
        ("edge/b", "edge.a.gateway", "is for gateway edge/a, not for gateway edge/b"),
        ("edge", "edge.a.gateway", "is for gateway edge/a, not for gateway edge"),
        ("shop/a", "edge.a.gateway", "is for gateway edge/a, not for gateway shop/a"),
        ("edge/a", "of.n1.pod", "this token is for node n1, not for gateway edge/a"),
        ("edge/a", "abcdef.0", "tokens of this control plane's own are for nodes"),
    ] {
        let (mut follower, state) = follow(gateway, token);
        let error = error(&mut follower).await;
        assert!(error.contains(reason), "{error}");
        assert!(!state.path().join("feed/gateway.pem").exists());
    }

    // With another's certificate, as one that was stolen: it is for that one's stream alone.
    let state = tempfile::tempdir().unwrap();
    let options = client::GatewayOptions {
        endpoints: vec![server.endpoint()],
        gateway: "shop/a".parse().unwrap(),
        snapshot: state.path().join("snapshot"),
        secrets: None,
    };
    let files = Files {
        ca: state.path().join("ca.crt"),
        certificate: state.path().join("gateway.pem"),
        key: state.path().join("gateway.pem"),
    };
    disk::replace(&files.ca, authority.certificate().as_bytes()).unwrap();
    disk::replace_secret(&files.key, &own).unwrap();
    let mut follower = client::follow_as_gateway(options, Client::files(files)).unwrap();
    let error = error(&mut follower).await;
    let reason =
        "403 Forbidden: this is for gateway/shop/a, and the certificate is that of gateway/edge/a";
    assert!(error.contains(reason), "{error}");
}

/// Folders outlive pods, and names of nodes.
#[tokio::test]
async fn who_finds_anothers_certificate_joins_as_itself() {
    let (authority, _ca) = authority();
    let server = Server::vouching(&authority, "a").await;
    let state = tempfile::tempdir().unwrap();
    let keys = state.path().join("feed");
    for (replica, token) in [
        ("a", "edge.a.gateway"),
        ("b", "edge.b.gateway"),
        ("b", "it.has.one"),
        ("a", "edge.a.gateway"),
    ] {
        let gateway = GatewayName { group: "edge".into(), replica: Some(replica.into()) };
        let pod = pod(state.path(), token, authority.certificate());
        let connector = Client::joining_as_gateway(&keys, gateway.clone(), pod);
        let options = client::GatewayOptions {
            endpoints: vec![server.endpoint()],
            gateway,
            snapshot: state.path().join("snapshot"),
            secrets: None,
        };
        connected(&mut client::follow_as_gateway(options, connector).unwrap()).await;
    }

    let pod = pod(state.path(), "of.n0.pod", authority.certificate());
    let client = Client::joining_as_pod(&keys, "n0", pod.clone());
    let facts = async |client: &Client, node: &str| {
        send(&server, client, Method::PUT, &format!("/v1/nodes/{node}/facts"), "{}").await.0
    };
    assert_eq!(facts(&client, "n0").await, StatusCode::OK);
    disk::replace(&pod.token, b"of.n1.pod").unwrap();
    let client = Client::joining_as_pod(&keys, "n1", pod);
    assert_eq!(facts(&client, "n1").await, StatusCode::OK);

    // Who has no way to is told whose it is.
    let client = Client::joining(&keys, "n2", None);
    let asked = ask(&client, &server.endpoint(), Method::GET, "/healthz", Bytes::new()).await;
    let failed = format!("{:?}", asked.unwrap_err());
    let reason = "node.pem: is that of node/n1, and this is node/n2; to get another one";
    assert!(failed.contains(reason), "{failed}");
}

#[tokio::test]
async fn a_pod_waits_for_the_ca_and_follows_it_to_another_one() {
    let ((old, _ca), (new, _ca_too)) = (authority(), authority());
    let server = Server::vouching(&old, "a").await;
    let state = tempfile::tempdir().unwrap();
    let keys = state.path().join("feed");
    let own = pod(state.path(), "of.n1.pod", old.certificate());
    std::fs::remove_file(&own.ca).unwrap();
    let mut follower = follow(&server, Client::joining_as_pod(&keys, "n1", own.clone()), &state);
    let failed = error(&mut follower).await;
    assert!(failed.contains("mounted.crt: No such file"), "{failed}");
    disk::replace(&own.ca, old.certificate().as_bytes()).unwrap();
    connected(&mut follower).await;
    drop((follower, server));

    let server = Server::vouching(&new, "b").await;
    let mut follower = follow(&server, Client::joining_as_pod(&keys, "n1", own.clone()), &state);
    let failed = error(&mut follower).await;
    assert!(failed.contains("is not from the feed's CA"), "{failed}");
    disk::replace(&own.ca, new.certificate().as_bytes()).unwrap();
    connected(&mut follower).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_while_its_connection_stays() {
    let ca = tempfile::tempdir().unwrap();
    // Two thirds of it are over at once, as it begins an hour ago.
    let life = HOUR + HOUR / 4;
    let authority = Arc::new(Authority::open(ca.path()).unwrap().with_life(life));
    let server = Server::of(&authority, "n1").await;
    let state = tempfile::tempdir().unwrap();
    let keys = state.path().join("feed");
    let token = token(&authority, &ca, None);
    let mut follower = follow(&server, Client::joining(&keys, "n1", Some(token)), &state);
    connected(&mut follower).await;
    let first = std::fs::read(keys.join("node.pem")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read(keys.join("node.pem")).unwrap() == first {
        assert!(Instant::now() < deadline, "it is never renewed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(follower.status.borrow().connected);
    drop(follower);
    // The next connection is with the new one.
    let mut follower = follow(&server, Client::joining(&keys, "n1", None), &state);
    connected(&mut follower).await;
}

/// Takes whatever certificate a server shows.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

/// Connects, shows no certificate, and says nothing.
async fn stranger(address: SocketAddr) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().dangerous();
    let config = config.with_custom_certificate_verifier(Arc::new(Credulous)).with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// Waits until the other side has ended a connection, in whatever way.
async fn ended(stream: &mut TlsStream<TcpStream>) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it never ends");
}

/// Whoever reaches the port can be a caller without a certificate.
#[tokio::test]
async fn strangers_keep_nobody_away_and_do_not_stay() {
    let (authority, ca) = authority();
    let acceptor = tls::Server::authority(Arc::clone(&authority)).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = server::Options {
        authority: Some(Arc::clone(&authority)),
        strangers: (1, Duration::from_secs(3)),
        ..server::Options::default()
    };
    let mut task = JoinSet::new();
    task.spawn(server::serve(listener, acceptor, watch::channel(Some(model("a"))).1, options));
    let server = Server { address, _task: task };

    // It has all the room that there is.
    let mut first = stranger(address).await;
    ended(&mut stranger(address).await).await;
    let early = timeout(Duration::ZERO, first.read_u8()).await;
    assert!(early.is_err(), "the second one was to be sent away: {early:?}");
    let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let known = files(&authority, "node/n1".parse().unwrap(), folder.path());
    connected(&mut follow(&server, Client::files(known), &state)).await;

    ended(&mut first).await;
    let (state, token) = (tempfile::tempdir().unwrap(), token(&authority, &ca, None));
    let connector = Client::joining(&state.path().join("feed"), "n1", Some(token));
    connected(&mut follow(&server, connector, &state)).await;
}

#[tokio::test]
async fn nobody_hears_or_says_what_is_anothers() {
    let (authority, _ca) = authority();
    let server = Server::of(&authority, "a").await;
    let folder = tempfile::tempdir().unwrap();
    let client = |role: &str| {
        let folder = folder.path().join(role);
        Client::files(files(&authority, role.parse().unwrap(), &folder))
    };
    let (node, gateway) = (client("node/n1"), client("gateway/g1"));
    let operator = client("operator/ops");

    let reason = "this is for node/n2, and the certificate is that of node/n1\n";
    let refused = (StatusCode::FORBIDDEN, reason.to_owned());
    let ack = r#"{"node":"n2","epoch":"e","revision":1}"#;
    assert_eq!(get(&server, &node, "/v1/feed?version=2&node=n2").await, refused);
    assert_eq!(send(&server, &node, Method::POST, "/v1/ack", ack).await, refused);
    let facts = send(&server, &node, Method::PUT, "/v1/nodes/n2/facts", "{}").await;
    assert_eq!(facts, refused);
    let facts = send(&server, &node, Method::PUT, "/v1/nodes/n1/facts", "{}").await;
    assert_eq!(facts.0, StatusCode::OK);

    for path in ["/v1/model", "/v1/nodes"] {
        for client in [&node, &gateway] {
            assert_eq!(get(&server, client, path).await.0, StatusCode::FORBIDDEN, "{path}");
        }
        assert_eq!(get(&server, &operator, path).await.0, StatusCode::OK, "{path}");
    }
    for client in [&gateway, &operator] {
        assert_eq!(
            get(&server, client, "/v1/feed?version=2&node=n1").await.0,
            StatusCode::FORBIDDEN
        );
    }

    // Neither another group's, nor that of another replica of its own, whatever it calls itself.
    let replica = client("gateway/g1/a");
    for (client, own, others) in [
        (&gateway, "g1", &["g2", "g1/a", "g2/g1"][..]),
        (&replica, "g1/a", &["g1", "g1/b", "g2/a", "a/g1", "a"]),
        (&node, "", &["n1"]),
    ] {
        for other in others {
            let path = format!("/v1/feed?version=2&gateway={other}");
            let (status, reason) = get(&server, client, &path).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{own} asks for {other}");
            assert!(reason.starts_with(&format!("this is for gateway/{other}, and ")), "{reason}");
        }
    }
    for bad in ["g1/", "/a", "g1/a/b"] {
        let path = format!("/v1/feed?version=2&gateway={bad}");
        assert_eq!(get(&server, &gateway, &path).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn neither_end_takes_a_certificate_of_another_ca() {
    let ((one, _ca), (two, _ca_too)) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    let ours = files(&one, Role::Node("n1".into()), folder.path());
    let server = Server::of(&two, "a").await;
    let failed = error(&mut follow(&server, Client::files(ours.clone()), &folder)).await;
    let reason = "the certificate of spiffe://fairway/controlplane, good from ";
    assert!(failed.contains(reason), "{failed}");
    assert!(failed.contains("is not from the feed's CA"), "{failed}");

    // A client that trusts the server, and is nobody there.
    disk::replace(&ours.ca, two.certificate().as_bytes()).unwrap();
    let failed = error(&mut follow(&server, Client::files(ours), &folder)).await;
    assert!(failed.contains("alert"), "{failed}");
}

#[tokio::test]
async fn a_node_cannot_pose_as_the_control_plane() {
    let (authority, _ca) = authority();
    let folder = tempfile::tempdir().unwrap();
    let poser = files(&authority, Role::Node("n2".into()), &folder.path().join("n2"));
    let server = Server::start(tls::Server::files(poser).unwrap(), None, "evil").await;
    let own = files(&authority, Role::Node("n1".into()), &folder.path().join("n1"));
    let mut follower = follow(&server, Client::files(own), &folder);
    let failed = error(&mut follower).await;
    assert!(failed.contains("spiffe://fairway/node/n2"), "{failed}");
    assert_eq!(*follower.model.borrow(), None);
}

#[tokio::test]
async fn certificates_out_of_their_time_are_named_and_the_last_good_state_stays() {
    let (authority, ca) = authority();
    let folder = tempfile::tempdir().unwrap();
    let own = files(&authority, Role::Node("n1".into()), folder.path());
    let server = Server::of(&authority, "a").await;
    let mut follower = follow(&server, Client::files(own.clone()), &folder);
    connected(&mut follower).await;
    let deadline = Instant::now() + PATIENCE;
    while !folder.path().join("snapshot").exists() {
        assert!(Instant::now() < deadline, "there is never a snapshot");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop((follower, server));

    let expired = Authority::open(ca.path()).unwrap().with_life(HOUR / 2);
    let expired = Arc::new(expired);
    let server = Server::of(&expired, "b").await;
    let mut follower = follow(&server, Client::files(own), &folder);
    let failed = error(&mut follower).await;
    assert!(failed.contains("the certificate of spiffe://fairway/controlplane"), "{failed}");
    assert!(failed.contains("expired; this machine's clock says 20"), "{failed}");
    assert_eq!(follower.model.borrow().as_deref(), Some(&*model("a")));

    let own = files(&expired, Role::Node("n1".into()), folder.path());
    let server = Server::of(&authority, "b").await;
    let mut follower = follow(&server, Client::files(own.clone()), &folder);
    let failed = error(&mut follower).await;
    let reason = format!("own certificate {}: expired at 20", own.certificate.display());
    assert!(failed.contains(&reason), "{failed}");
    assert_eq!(follower.model.borrow().as_deref(), Some(&*model("a")));
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_while_its_connection_is_open_cuts_no_node_off() {
    let (authority, ca) = authority();
    let models = watch::Sender::new(Some(model("n1")));
    let acceptor = || tls::Server::authority(Arc::clone(&authority)).unwrap();
    let server = Server::publishing(acceptor(), None, models.subscribe()).await;
    let folder = tempfile::tempdir().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let (mut follower, end) = loop {
        // An hour of it lies in the past. It is to be made, and used once, in what is left.
        let left = Duration::from_secs(3);
        let brief = Authority::open(ca.path()).unwrap().with_life(HOUR + left);
        let end = SystemTime::now() + left;
        let own = files(&brief, Role::Node("n1".into()), folder.path());
        let mut follower = follow(&server, Client::files(own), &folder);
        let known = |status: &Status| status.connected || status.error.is_some();
        if status_where(&mut follower, known).await.connected {
            break (follower, end);
        }
        assert!(Instant::now() < deadline, "{:?}", follower.status.borrow());
    };
    // The same as a clock that jumps ahead.
    while SystemTime::now() <= end + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let next = nodes(&["n1", "n2"]);
    models.send_replace(Some(Arc::clone(&next)));
    let arrived = follower.model.wait_for(|model| model.as_deref() == Some(&*next));
    timeout(PATIENCE, arrived).await.unwrap().unwrap();
    assert!(follower.status.borrow().connected);

    // It was the last connection with that one, and what is in force stays.
    drop(server);
    let of_own = |status: &Status| {
        status.error.as_deref().is_some_and(|error| error.contains("own certificate"))
    };
    let failed = status_where(&mut follower, of_own).await.error.unwrap();
    assert!(failed.contains("expired at 20"), "{failed}");
    assert_eq!(follower.model.borrow().as_deref(), Some(&*next));
}

/// A connection that stays open, whatever is asked over it.
struct Open {
    requests: SendRequest<Full<Bytes>>,
    endpoint: String,
    _driver: JoinSet<()>,
}

impl Open {
    async fn to(server: &Server, client: &Client) -> std::io::Result<Self> {
        let io = TokioIo::new(client.connect(&server.address.to_string()).await?);
        let handshake = http2::handshake(TokioExecutor::new(), io);
        let (requests, connection) = handshake.await.map_err(std::io::Error::other)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { requests, endpoint: server.endpoint(), _driver: driver })
    }

    async fn ask(&mut self, method: Method, path: &str) -> Response<Incoming> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.endpoint));
        let request = request.body(Full::from("{}")).unwrap();
        timeout(PATIENCE, self.requests.send_request(request)).await.unwrap().unwrap()
    }
}

/// Reads an answer to its end.
async fn whole(answer: Response<Incoming>) -> String {
    let body = timeout(PATIENCE, answer.into_body().collect()).await.expect("it never ends");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn nobody_but_a_node_of_the_cluster_outlives_its_certificate() {
    let (authority, ca) = authority();
    let models = watch::Sender::new(Some(model("n1")));
    let acceptor = tls::Server::authority(Arc::clone(&authority)).unwrap();
    let own = Some(Arc::clone(&authority));
    let server = Server::publishing(acceptor, own, models.subscribe()).await;
    let folder = tempfile::tempdir().unwrap();
    let asked = [
        ("node/n1", Method::GET, "/v1/feed?version=2&node=n1"),
        ("node/n2", Method::GET, "/v1/feed?version=2&node=n2"),
        ("gateway/edge/a", Method::GET, "/v1/feed?version=2&gateway=edge/a"),
        ("operator/ops", Method::GET, "/v1/model"),
    ];
    let deadline = Instant::now() + PATIENCE;
    let (mut open, end) = loop {
        // As above: an hour of it lies in the past, and the rest is to be enough to ask once.
        let left = Duration::from_secs(3);
        let brief = Authority::open(ca.path()).unwrap().with_life(HOUR + left);
        let end = SystemTime::now() + left;
        let mut open = Vec::new();
        for (role, method, path) in &asked {
            let own = files(&brief, role.parse().unwrap(), &folder.path().join(role));
            let Ok(mut connection) = Open::to(&server, &Client::files(own)).await else { break };
            let answer = connection.ask(method.clone(), path).await;
            if answer.status() == StatusCode::OK {
                open.push((connection, answer));
            }
        }
        if open.len() == asked.len() {
            break (open, end);
        }
        assert!(Instant::now() < deadline, "{} of them get in", open.len());
    };
    while SystemTime::now() <= end + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let answers: Vec<_> = asked.iter().zip(&mut open).collect();
    for ((role, method, path), (connection, _)) in answers {
        let again = connection.ask(method.clone(), path).await;
        assert_eq!(again.status(), StatusCode::FORBIDDEN, "{role}");
        let reason = whole(again).await;
        assert!(reason.starts_with("the certificate expired at 20"), "{role}: {reason}");
    }
    let (mut n1, stream) = open.remove(0);
    let answer = n1.ask(Method::PUT, "/v1/nodes/n1/facts").await;
    assert_eq!(answer.status(), StatusCode::OK);
    for (_, stream) in open {
        whole(stream).await;
    }
    // Until it is none any more.
    models.send_replace(Some(model("n2")));
    assert!(!whole(stream).await.contains(r#""name":"n2""#));
}

#[tokio::test]
async fn a_clock_that_is_behind_is_named_and_cured_by_the_right_time() {
    let (authority, ca) = authority();
    let folder = tempfile::tempdir().unwrap();
    let own = files(&authority, Role::Node("n1".into()), &folder.path().join("n1"));
    let theirs = files(&authority, Role::ControlPlane, &folder.path().join("server"));
    of_tomorrow(&ca, &Role::ControlPlane, &theirs);
    let server = Server::start(tls::Server::files(theirs).unwrap(), None, "a").await;
    let mut follower = follow(&server, Client::files(own.clone()), &folder);
    let failed = error(&mut follower).await;
    assert!(failed.contains("the certificate of spiffe://fairway/controlplane"), "{failed}");
    assert!(failed.contains("not valid yet; this machine's clock says 20"), "{failed}");

    let server = Server::of(&authority, "a").await;
    of_tomorrow(&ca, &Role::Node("n1".into()), &own);
    let mut follower = follow(&server, Client::files(own.clone()), &folder);
    let failed = error(&mut follower).await;
    assert!(failed.contains("own certificate"), "{failed}");
    assert!(failed.contains(" is good from 20"), "{failed}");
    // When clock and certificate agree, it goes on by itself.
    files(&authority, Role::Node("n1".into()), &folder.path().join("n1"));
    connected(&mut follower).await;
}

#[tokio::test]
async fn who_renews_gets_no_other_name_than_its_own() {
    let (authority, _ca) = authority();
    let server = Server::of(&authority, "n1").await;
    let folder = tempfile::tempdir().unwrap();
    let role = Role::Node("n1".into());
    let client = Client::files(files(&authority, role.clone(), folder.path()));
    for wanted in [Role::Node("n2".into()), Role::ControlPlane, Role::Operator("ops".into())] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(wanted.uri().try_into().unwrap())];
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let body = serde_json::json!({"request": request.pem().unwrap()}).to_string();
        let (status, answer) = send(&server, &client, Method::POST, "/v1/renew", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let pem = answer["certificate"].as_str().unwrap().as_bytes();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let names: Vec<_> = names.value.general_names.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(names[0].contains(&role.uri()), "{names:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_no_more_gets_no_other_certificate() {
    let (authority, _ca) = authority();
    let models = watch::Sender::new(None);
    let acceptor = tls::Server::authority(Arc::clone(&authority)).unwrap();
    let own = Some(Arc::clone(&authority));
    let server = Server::publishing(acceptor, own, models.subscribe()).await;
    let folder = tempfile::tempdir().unwrap();
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap());
    let body = serde_json::json!({"request": request.unwrap().pem().unwrap()}).to_string();
    let renew = async |role: &str| {
        let files = files(&authority, role.parse().unwrap(), &folder.path().join(role));
        send(&server, &Client::files(files), Method::POST, "/v1/renew", &body).await
    };
    // Who can tell that it is no more?
    assert_eq!(renew("node/n1").await.0, StatusCode::SERVICE_UNAVAILABLE);
    models.send_replace(Some(model("n1")));
    assert_eq!(renew("node/n1").await.0, StatusCode::OK);
    models.send_replace(Some(model("n2")));
    let reason = "there is no node n1, so its certificate is not renewed\n";
    assert_eq!(renew("node/n1").await, (StatusCode::FORBIDDEN, reason.to_owned()));
    // Who is no node at all is none of the cluster's.
    for role in ["gateway/edge/a", "operator/ops"] {
        assert_eq!(renew(role).await.0, StatusCode::OK, "{role}");
    }
}

#[tokio::test]
async fn a_pod_whose_certificate_is_damaged_joins_anew() {
    let (authority, _ca) = authority();
    let server = Server::vouching(&authority, "a").await;
    let state = tempfile::tempdir().unwrap();
    let keys = state.path().join("feed");
    let pod = pod(state.path(), "of.n1.pod", authority.certificate());
    let [own, ca] = ["node.pem", "ca.crt"].map(|name| keys.join(name));
    let connect = async || {
        let connector = Client::joining_as_pod(&keys, "n1", pod.clone());
        connected(&mut follow(&server, connector, &state)).await;
        (std::fs::read_to_string(&own).unwrap(), std::fs::read_to_string(&ca).unwrap())
    };
    let (good, good_ca) = connect().await;
    assert_eq!(connect().await.0, good);
    let key = good.find("-----BEGIN PRIVATE").unwrap();
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    for (file, damaged) in [
        (&own, "noise".to_owned()),
        (&own, String::new()),
        (&own, good[..key / 2].to_owned()),
        (&own, good[..key].to_owned()),
        (&own, good[..key + 60].to_owned()),
        (&own, format!("{}{other_key}", &good[..key])),
        (&own, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
        (&ca, "noise".to_owned()),
        (&ca, good_ca[..good_ca.len() / 2].to_owned()),
    ] {
        std::fs::write(file, &damaged).unwrap();
        let (next, next_ca) = connect().await;
        assert!(next != good && next != damaged, "{}: {damaged}", file.display());
        assert_eq!(next_ca, good_ca);
    }
    std::fs::remove_file(&ca).unwrap();
    connect().await;

    // Who has no way to is told what is wrong, and keeps what there is.
    std::fs::write(&own, "noise").unwrap();
    let failed = error(&mut follow(&server, Client::joining(&keys, "n1", None), &state)).await;
    assert!(failed.contains("there is no certificate in it; to get another one"), "{failed}");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "noise");
}

#[tokio::test]
async fn a_server_takes_up_new_files_and_keeps_the_old_while_they_are_no_good() {
    let ((old, _ca), (new, _ca_too)) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    let own = files(&old, Role::ControlPlane, &folder.path().join("server"));
    let server = Server::start(tls::Server::files(own.clone()).unwrap(), None, "a").await;
    let ops = |authority: &Authority, name: &str| {
        Client::files(files(authority, Role::Operator("ops".into()), &folder.path().join(name)))
    };
    let (before, after) = (ops(&old, "before"), ops(&new, "after"));
    assert_eq!(get(&server, &before, "/v1/model").await.0, StatusCode::OK);
    disk::replace(&own.certificate, b"no certificate").unwrap();
    assert_eq!(get(&server, &before, "/v1/model").await.0, StatusCode::OK);

    files(&new, Role::ControlPlane, &folder.path().join("server"));
    let deadline = Instant::now() + PATIENCE;
    let endpoint = server.endpoint();
    let asked = || ask(&after, &endpoint, Method::GET, "/v1/model", Bytes::new());
    while asked().await.is_err() {
        assert!(Instant::now() < deadline, "it never takes them up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
