//! A gateway in this process, backends behind it, and clients in front of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fairway_ingress::gateway::{Gateway, Options};
use fairway_model::{
    Backend, BackendPort, Endpoint, EndpointState, Endpoints, Hints, Ingress, IngressPath,
    IngressRule, IngressTls, Model, Object, ObjectName, PathType, Secret, Sensitive, Service,
    ServicePort,
};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than anything takes that does not hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

pub(crate) fn nothing() -> Body {
    Empty::new().boxed()
}

/// A server, and how many connections it has had.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers HTTP/1.1.
pub(crate) async fn backend<F, A>(answer: F) -> Server
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send,
{
    each(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(answer(request).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        }
    })
    .await
}

/// Answers HTTP/2 without TLS.
pub(crate) async fn backend_of_http_2<F, A>(answer: F) -> Server
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    each(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let builder = http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// Does whatever it wants with each connection.
pub(crate) async fn each<F, D>(doing: F) -> Server
where
    F: Fn(TcpStream) -> D + Send + Sync + 'static,
    D: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tasks.spawn(doing(stream));
        }
    });
    Server { address, connections, task }
}

/// A model, piece by piece.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) objects: Vec<Object>,
}

impl World {
    /// A Service of that name with these endpoints, on port 80.
    pub(crate) fn service(mut self, name: &str, endpoints: &[SocketAddr]) -> Self {
        let name = ObjectName::new("shop", name);
        self.objects.push(Object::Service(Service {
            name: name.clone(),
            ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
            ..Service::default()
        }));
        let endpoint = |address: &SocketAddr| Endpoint {
            address: address.ip(),
            port: address.port(),
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        let list = endpoints.iter().map(endpoint).collect();
        let ports = [(String::new(), list)].into();
        self.objects.push(Object::Endpoints(Endpoints { service: name, ports }));
        self
    }

    /// All paths of a host lead to that Service.
    pub(crate) fn host(self, host: &str, service: &str) -> Self {
        self.ingress(host, service, |_| {})
    }

    /// The same, and more is said about it.
    pub(crate) fn ingress(
        mut self,
        host: &str,
        service: &str,
        change: impl Fn(&mut Ingress),
    ) -> Self {
        let backend = Backend { service: service.to_owned(), port: BackendPort::Number(80) };
        let path = IngressPath { path: "/".to_owned(), kind: PathType::Prefix, backend };
        let mut ingress = Ingress {
            name: ObjectName::new("shop", host.replace("*", "any")),
            rules: vec![IngressRule { host: host.to_owned(), paths: vec![path] }],
            ..Ingress::default()
        };
        change(&mut ingress);
        self.objects.push(Object::Ingress(ingress));
        self
    }

    /// A host with a certificate of a Secret of its own.
    pub(crate) fn tls(self, host: &str, service: &str, certificate: &Certificate) -> Self {
        let secret = ObjectName::new("shop", format!("{host}-tls"));
        let mut world = self.ingress(host, service, |ingress| {
            ingress.options.ssl_redirect = Some(false);
            ingress.tls =
                vec![IngressTls { hosts: vec![host.to_owned()], secret: Some(secret.clone()) }];
        });
        world.objects.push(Object::Secret(Secret {
            name: secret,
            certificate: Some(certificate.pem.clone()),
            key: Some(Sensitive::new(certificate.key.clone())),
            ..Secret::default()
        }));
        world
    }

    pub(crate) fn with(mut self, object: Object) -> Self {
        self.objects.push(object);
        self
    }

    pub(crate) fn model(&self) -> Arc<Model> {
        Arc::new(self.objects.iter().cloned().collect())
    }
}

/// A gateway that serves this.
pub(crate) async fn gateway(world: &World) -> Gateway {
    let gateway = Gateway::start(&Options::default()).await.unwrap();
    gateway.apply(&world.model());
    gateway.begin().unwrap();
    gateway
}

/// A certificate of its own CA.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    pub(crate) key: String,
}

impl Certificate {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), key: key.serialize_pem() }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()
    }
}

/// What a client gets that sends these bytes and reads to the end.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be cut before all of it is there.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) type Client<B> = hyper::client::conn::http1::SendRequest<B>;

/// A connection of a client.
pub(crate) async fn client(address: SocketAddr) -> Client<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let builder = hyper::client::conn::http1::Builder::new();
    let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    client
}

pub(crate) fn get(host: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", host).body(nothing()).unwrap()
}

/// Status and body of an answer.
pub(crate) async fn read(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").unwrap();
    (status, String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// What a request over a connection of its own is answered with.
pub(crate) async fn ask(address: SocketAddr, request: Request<Body>) -> (u16, String) {
    let mut client = client(address).await;
    let response = timeout(PATIENCE, client.send_request(request)).await.expect("in time").unwrap();
    read(response).await
}

/// A connection with TLS that believes whatever it is shown.
pub(crate) async fn tls(address: SocketAddr, name: &str, protocol: &str) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(believing(protocol));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    timeout(PATIENCE, connector.connect(name, stream)).await.expect("in time").unwrap()
}

/// What the gateway shows to who asks for `name`.
pub(crate) async fn shown(address: SocketAddr, name: &str) -> CertificateDer<'static> {
    let stream = tls(address, name, "http/1.1").await;
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

pub(crate) fn believing(protocol: &str) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.dangerous().set_certificate_verifier(Arc::new(Believer(provider)));
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct Believer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
