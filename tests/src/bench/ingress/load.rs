//! What clients do, and how it goes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail, ensure};
use clap::ValueEnum;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::HOST;
use super::backend::{ECHO_PATH, LARGE, LARGE_PATH, SMALL, SMALL_PATH, UPLOAD_PATH};
use super::http1::Connection;
use super::http2::{Session, header_block};
use super::pace::Pace;
use super::proxy::Ports;
use super::websocket::{KEY, masked};

/// One way to use a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// HTTP/1.1 on connections that are kept.
    Plain,
    /// The same over TLS.
    Tls,
    /// HTTP/2 over TLS.
    Http2,
    /// A new connection, a full handshake, and one request.
    Full,
    /// The same with a session that is taken up again.
    Resumed,
    /// Messages that come back.
    WebSocket,
    /// Large answers.
    Download,
    /// Large requests.
    Upload,
}

/// Streams of a connection of HTTP/2.
const STREAMS: usize = 10;
/// Of a message by WebSocket.
const PAYLOAD: &[u8] = &[b'x'; 64];
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients' ends of TLS.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Trust {
    /// Believes the certificates of this CA alone. TLS 1.3 with X25519 and AES-128-GCM, so that all proxies have
    /// the same to do, also the one with post-quantum key exchange.
    pub(super) fn new(ca: &str) -> Result<Self> {
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).context("read the CA")?;
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let config = |protocol: &[u8]| -> Result<_> {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.resumption = Resumption::disabled();
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Arc::new(config))
        };
        Ok(Self { http1: config(b"http/1.1")?, http2: config(b"h2")? })
    }

    /// A client that takes up sessions again, its own.
    fn resuming(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.http1);
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
        Arc::new(config)
    }
}

/// A load.
#[derive(Debug)]
pub(super) struct Load<'a> {
    /// What clients do.
    pub way: Way,
    /// On how many connections.
    pub connections: usize,
    /// So many times a second; without a rate as fast as it goes.
    pub rate: Option<f64>,
    /// Where the proxy is.
    pub ports: Ports,
    /// Whom clients believe.
    pub trust: &'a Trust,
}

/// How a load went.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What was answered.
    pub done: u64,
    /// What was not, or not as it should be.
    pub failed: u64,
    /// The first reason for that.
    pub error: Option<Error>,
    /// How long each took from when it was due, in nanoseconds, ordered.
    pub latencies: Vec<u64>,
    /// What was counted beside it, such as a processor's time.
    pub spent: Duration,
}

/// Counts, in one thread.
#[derive(Debug, Default)]
struct Counts {
    done: Cell<u64>,
    failed: Cell<u64>,
    error: RefCell<Option<Error>>,
    latencies: RefCell<Vec<u64>>,
    /// Whether latencies are kept.
    keeps: Cell<bool>,
}

impl Counts {
    fn answered(&self, due: Instant) {
        self.done.set(self.done.get() + 1);
        if self.keeps.get() {
            let nanoseconds = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.borrow_mut().push(nanoseconds);
        }
    }

    fn fail(&self, error: Error) {
        self.failed.set(self.failed.get() + 1);
        self.error.borrow_mut().get_or_insert(error);
    }
}

impl Load<'_> {
    /// Runs the load while `during` goes on, and a little before: `warm`. `spent` is asked before and after, and
    /// the difference is told.
    pub(super) async fn run(
        &self,
        warm: Duration,
        mut spent: impl FnMut() -> Result<Duration>,
        during: impl Future<Output = Result<()>>,
    ) -> Result<Outcome> {
        let counts = Rc::new(Counts::default());
        let pace = Rc::new(self.rate.map_or(Pace::Closed, Pace::of_rate));
        let local = LocalSet::new();
        let client = Rc::new(Client::new(self.way, self.ports, self.trust)?);
        let mut clients = JoinSet::new();
        for _ in 0..self.connections {
            let (client, pace) = (Rc::clone(&client), Rc::clone(&pace));
            clients.spawn_local_on(client.serve(pace, Rc::clone(&counts)), &local);
        }
        let measure = async {
            tokio::time::sleep(warm).await;
            counts.keeps.set(true);
            let (spent_before, done_before) = (spent()?, counts.done.get());
            during.await?;
            // On a machine that has much else to do, the first answer may come late.
            let late = Instant::now() + PATIENCE;
            while counts.done.get() == done_before && Instant::now() < late {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let (spent_after, done_after) = (spent()?, counts.done.get());
            counts.keeps.set(false);
            Ok((spent_after.saturating_sub(spent_before), done_after - done_before))
        };
        let (spent, done) = local
            .run_until(async {
                tokio::select! {
                    measured = measure => measured,
                    kept = pace.keep() => kept.and_then(|()| bail!("the clock stands still")),
                }
            })
            .await?;
        drop(clients);
        let mut latencies = counts.latencies.take();
        latencies.sort_unstable();
        Ok(Outcome {
            done,
            failed: counts.failed.get(),
            error: counts.error.take(),
            latencies,
            spent,
        })
    }
}

/// What all connections of a load have in common.
#[derive(Debug)]
struct Client {
    way: Way,
    ports: Ports,
    trust: Trust,
    /// As it is sent.
    request: Vec<u8>,
}

impl Client {
    fn new(way: Way, ports: Ports, trust: &Trust) -> Result<Self> {
        let request = match way {
            Way::Http2 => header_block(HOST, SMALL_PATH)?,
            Way::Download => get(LARGE_PATH, ""),
            Way::WebSocket => get(
                ECHO_PATH,
                &format!(
                    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: {KEY}\r\n"
                ),
            ),
            Way::Upload => {
                let head = format!(
                    "POST {UPLOAD_PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {LARGE}\r\n\r\n"
                );
                [head.as_bytes(), &vec![b'x'; LARGE]].concat()
            }
            _ => get(SMALL_PATH, ""),
        };
        Ok(Self { way, ports, trust: trust.clone(), request })
    }

    /// Uses one connection after the other, until it is ended.
    async fn serve(self: Rc<Self>, pace: Rc<Pace>, counts: Rc<Counts>) {
        let sessions = self.trust.resuming();
        loop {
            if let Err(error) = self.use_connection(&sessions, &pace, &counts).await {
                counts.fail(error);
                // One that is not there does not come back at once.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    async fn use_connection(
        &self,
        sessions: &Arc<ClientConfig>,
        pace: &Pace,
        counts: &Counts,
    ) -> Result<()> {
        match self.way {
            Way::Plain | Way::Download | Way::Upload => {
                let stream = connect(self.ports.http).await?;
                self.ask_again_and_again(stream, pace, counts).await
            }
            Way::Tls => {
                let stream = handshake(self.ports.https, &self.trust.http1).await?;
                self.ask_again_and_again(stream, pace, counts).await
            }
            Way::Http2 => {
                let stream = handshake(self.ports.https, &self.trust.http2).await?;
                ensure!(
                    stream.get_ref().1.alpn_protocol() == Some(b"h2"),
                    "the server has no HTTP/2"
                );
                self.ask_in_streams(stream, pace, counts).await
            }
            Way::Full => {
                let due = pace.turn().await;
                let kind = self.ask_once(&self.trust.http1).await?;
                ensure!(kind == Some(HandshakeKind::Full), "not a full handshake: {kind:?}");
                counts.answered(due);
                Ok(())
            }
            Way::Resumed => {
                // The first of a client has nothing to take up.
                self.ask_once(sessions).await?;
                loop {
                    let due = pace.turn().await;
                    let kind = self.ask_once(sessions).await?;
                    ensure!(kind == Some(HandshakeKind::Resumed), "not a session's: {kind:?}");
                    counts.answered(due);
                }
            }
            Way::WebSocket => {
                let mut connection = Connection::new(connect(self.ports.http).await?);
                let answer = connection.exchange(&self.request).await?;
                ensure!(answer.status == 101, "the answer is {}", answer.status);
                let frame = masked(PAYLOAD);
                loop {
                    let due = pace.turn().await;
                    patient(connection.echo(&frame, PAYLOAD)).await?;
                    counts.answered(due);
                }
            }
        }
    }

    async fn ask_again_and_again(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        pace: &Pace,
        counts: &Counts,
    ) -> Result<()> {
        let length = if self.way == Way::Download { LARGE } else { SMALL };
        let mut connection = Connection::new(stream);
        loop {
            let due = tokio::select! {
                biased;
                // As whoever keeps connections looks at them before they are used.
                closed = connection.closed() => return closed,
                due = pace.turn() => due,
            };
            let answer = patient(connection.expect(&self.request, length)).await?;
            counts.answered(due);
            if answer.closes {
                return Ok(());
            }
        }
    }

    async fn ask_in_streams(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        pace: &Pace,
        counts: &Counts,
    ) -> Result<()> {
        let mut session = Session::new(stream);
        loop {
            while session.under_way() < STREAMS
                && let Some(due) = pace.turn_now()
            {
                session.ask(&self.request, due);
            }
            session.flush().await?;
            if session.under_way() == 0 {
                let due = pace.turn().await;
                session.ask(&self.request, due);
                continue;
            }
            let room = session.under_way() < STREAMS;
            tokio::select! {
                read = patient(session.read()) => read?,
                due = pace.turn(), if room => session.ask(&self.request, due),
            }
            while let Some(answered) = session.next()? {
                ensure!(answered.length == SMALL, "the answer has {} bytes", answered.length);
                counts.answered(answered.due);
            }
        }
    }

    /// On a connection of its own.
    async fn ask_once(&self, config: &Arc<ClientConfig>) -> Result<Option<HandshakeKind>> {
        let mut connection = Connection::new(handshake(self.ports.https, config).await?);
        patient(connection.expect(&self.request, SMALL)).await?;
        let kind = connection.stream.get_ref().1.handshake_kind();
        // The server may have closed it as well.
        let _ = connection.stream.shutdown().await;
        Ok(kind)
    }
}

/// A request without a body; `headers` are whole lines.
pub(super) fn get(path: &str, headers: &str) -> Vec<u8> {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: fairway-bench\r\nAccept: */*\r\n{headers}\r\n"
    );
    head.into_bytes()
}

/// Opens a connection.
pub(super) async fn connect(to: std::net::SocketAddr) -> Result<TcpStream> {
    let stream = patient(async { Ok(TcpStream::connect(to).await?) }).await;
    let stream = stream.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a connection with TLS.
async fn handshake(
    to: std::net::SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(HOST)?;
    let stream = connect(to).await?;
    let connector = TlsConnector::from(Arc::clone(config));
    patient(async { Ok(connector.connect(name, stream).await?) }).await.context("TLS handshake")
}

/// The certificate that is shown.
pub(super) async fn shown(
    to: std::net::SocketAddr,
    trust: &Trust,
) -> Result<CertificateDer<'static>> {
    let stream = handshake(to, &trust.http1).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.context("no certificate")?.clone().into_owned())
}

/// Opens connections with TLS, asks once on each, and keeps them.
pub(super) async fn idle(
    number: u32,
    to: std::net::SocketAddr,
    trust: &Trust,
) -> Result<Vec<Connection<TlsStream<TcpStream>>>> {
    let request = get(SMALL_PATH, "");
    let mut open = Vec::new();
    for _ in 0..number {
        let mut connection = Connection::new(handshake(to, &trust.http1).await?);
        patient(connection.expect(&request, SMALL)).await?;
        open.push(connection);
    }
    Ok(open)
}

/// Not longer than anybody would wait.
pub(super) async fn patient<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.context("no answer")?
}
