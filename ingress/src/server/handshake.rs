//! The beginning of a connection with TLS.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_model::{TlsVersion, VerifyClient};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use super::stream::Recorder;
use crate::route::{self, HostTls, Target};
use crate::state::Snapshot;
use crate::tls::HostTickets;
use crate::tunnel;
use crate::worker::Worker;

/// How long nobody may say anything on a connection whose TLS does not end here.
const SILENCE: Duration = Duration::from_secs(3600);

/// Bytes of names of CAs that clients are told: a message of TLS has room for 64 KiB.
const MAX_HINTS: usize = 16 << 10;

/// What came of it.
#[derive(Debug)]
pub(crate) enum Handshake {
    /// TLS ends here.
    Ended(Box<TlsStream<Recorder<TcpStream>>>, Session),
    /// An endpoint of this ends it.
    Passed(Target, Vec<u8>, TcpStream),
}

/// What is known of a connection with TLS.
#[derive(Debug)]
pub(crate) struct Session {
    /// The name that the client asked for, in lower case.
    pub(crate) server_name: Option<String>,
    /// HTTP/2 was agreed upon.
    pub(crate) http2: bool,
    /// The client's certificate, and those that vouch for it.
    client: Option<Client>,
}

/// A client's certificate.
#[derive(Debug)]
struct Client {
    chain: Vec<CertificateDer<'static>>,
    subject: String,
    common_name: String,
    issuer: String,
    serial: String,
    fingerprint: String,
    pem: String,
    /// When the first of the chain ends, in seconds since 1970.
    not_after: u64,
    /// What was said last about it, and by whom.
    judged: Mutex<Option<Judgement>>,
}

/// By whom, and why it is not believed.
type Judgement = (Arc<dyn ClientCertVerifier>, Option<String>);

/// Shakes hands as the name that is asked for wants it.
pub(crate) async fn shake(worker: &Arc<Worker>, stream: TcpStream) -> io::Result<Handshake> {
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), Recorder::new(stream));
    let mut acceptor = std::pin::pin!(acceptor);
    let start = match acceptor.as_mut().await {
        Ok(start) => start,
        Err(error) => {
            // Whoever speaks no TLS is told so.
            if let Some(mut recorder) = acceptor.take_io() {
                let _ = recorder.shutdown().await;
            }
            return Err(error);
        }
    };
    let name = start.client_hello().server_name().map(str::to_ascii_lowercase);
    let snapshot = worker.state.snapshot();
    let host = snapshot.table.host_tls(name.as_deref());
    if let Some(target) = host.passthrough {
        let target = target.clone();
        let (read, stream) = start.io.into_parts();
        return Ok(Handshake::Passed(target, read, stream));
    }
    let config = config(worker, &snapshot, &host, name.as_deref()).map_err(io::Error::other)?;
    let mut stream = start.into_stream(Arc::new(config)).await?;
    let (recorder, connection) = stream.get_mut();
    recorder.stop();
    let http2 = connection.alpn_protocol() == Some(b"h2");
    let client = connection.peer_certificates().and_then(Client::read);
    Ok(Handshake::Ended(Box::new(stream), Session { server_name: name, http2, client }))
}

/// What a name is served with. It is made for each handshake, which costs little beside one, so that it is
/// never older than the snapshot.
fn config(
    worker: &Worker,
    snapshot: &Snapshot,
    host: &HostTls<'_>,
    name: Option<&str>,
) -> Result<ServerConfig, rustls::Error> {
    let secret = snapshot.table.certificate(name).secret;
    let certificate = Arc::clone(snapshot.certificates.get(secret));
    let provider = provider(&worker.state.provider, host.ciphers);
    let versions: &[&SupportedProtocolVersion] = match host.min_version {
        Some(TlsVersion::V13) => &[&TLS13],
        Some(TlsVersion::V12) | None => &[&TLS13, &TLS12],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    let asked = host.client.filter(|client| client.verify != VerifyClient::Off);
    let authority = asked.and_then(|client| snapshot.authority(&client.secret));
    let builder = match asked {
        None => builder.with_no_client_auth(),
        Some(_) => {
            let verifier = authority.and_then(|authority| authority.verifier.as_ref().ok());
            let hints = verifier.map(|verifier| verifier.root_hint_subjects().to_vec());
            // Without any, a client shows what it has.
            let short = |hints: &Vec<DistinguishedName>| {
                hints.iter().map(|hint| hint.as_ref().len() + 2).sum::<usize>() <= MAX_HINTS
            };
            let hints = hints.filter(short).unwrap_or_default();
            builder.with_client_cert_verifier(Arc::new(Ask { provider, hints }))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Always(certificate)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Whoever was asked by another CA has another certificate, maybe.
    let about = asked.map_or_else(Vec::new, |_| {
        let ca = authority.map_or("", |authority| &authority.pem);
        digest(&SHA256, ca.as_bytes()).as_ref().to_vec()
    });
    config.ticketer = Arc::new(HostTickets { tickets: Arc::clone(&worker.state.tickets), about });
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// With no other cipher suites of TLS 1.2 than those named; those of TLS 1.3 are good, and not for choosing
/// (as nginx has it).
fn provider(all: &Arc<CryptoProvider>, ciphers: &[String]) -> Arc<CryptoProvider> {
    if ciphers.is_empty() {
        return Arc::clone(all);
    }
    let mut some = CryptoProvider::clone(all);
    some.cipher_suites.retain(|suite| {
        let name = openssl_name(&format!("{:?}", suite.suite()));
        suite.tls13().is_some() || ciphers.contains(&name)
    });
    Arc::new(some)
}

/// `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256` is `ECDHE-RSA-AES128-GCM-SHA256` there.
fn openssl_name(name: &str) -> String {
    let name = name.trim_start_matches("TLS_").replace("_WITH_", "-").replace('_', "-");
    let name = name.replace("AES-128", "AES128").replace("AES-256", "AES256");
    name.replace("CHACHA20-POLY1305-SHA256", "CHACHA20-POLY1305")
}

/// Carries a connection whose TLS does not end here.
pub(crate) async fn pass(
    worker: &Arc<Worker>,
    target: &Target,
    read: &[u8],
    mut client: TcpStream,
) -> io::Result<()> {
    let upstream = |snapshot: &Snapshot| snapshot.upstream(target, false).cloned();
    let (mut endpoint, pending) = tunnel::connect(worker, upstream, |_| {}).await?;
    endpoint.write_all(read).await?;
    tunnel::both(&mut client, &mut endpoint, SILENCE).await?;
    drop(pending);
    Ok(())
}

impl Session {
    /// What decides about requests knows of it.
    pub(crate) fn with<T>(
        &self,
        snapshot: &Snapshot,
        use_it: impl FnOnce(route::Tls<'_>) -> T,
    ) -> T {
        let server_name = self.server_name.as_deref();
        let Some(client) = &self.client else {
            return use_it(route::Tls { server_name, client: None });
        };
        let rejected = client.judge(snapshot, server_name);
        use_it(route::Tls {
            server_name,
            client: Some(route::ClientCertificate {
                rejected: rejected.as_deref(),
                subject: &client.subject,
                common_name: &client.common_name,
                issuer: &client.issuer,
                serial: &client.serial,
                fingerprint: &client.fingerprint,
                pem: &client.pem,
            }),
        })
    }
}

impl Client {
    fn read(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let first = chain.first()?;
        let (_, read) = X509Certificate::from_der(first).ok()?;
        let common_name = read.subject().iter_common_name().next();
        let common_name = common_name.and_then(|name| name.as_str().ok()).unwrap_or_default();
        let pem = STANDARD.encode(first);
        let lines = pem.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        Some(Self {
            subject: distinguished(read.subject()),
            common_name: common_name.to_owned(),
            issuer: distinguished(read.issuer()),
            serial: hex(read.raw_serial()),
            fingerprint: hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, first).as_ref()),
            pem: format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n"),
            not_after: chain.iter().map(ends).min().unwrap_or_default(),
            chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
            judged: Mutex::new(None),
        })
    }

    /// Why it is not believed by whoever the snapshot says. It is looked at again when that is somebody else.
    fn judge(&self, snapshot: &Snapshot, server_name: Option<&str>) -> Option<String> {
        let nobody = || Some("nobody is believed".to_owned());
        let Some(rules) = snapshot.table.host_tls(server_name).client else { return nobody() };
        let Some(authority) = snapshot.authority(&rules.secret) else { return nobody() };
        let verifier = match &authority.verifier {
            Ok(verifier) => verifier,
            Err(why) => return Some(why.clone()),
        };
        // Those that lie between, as the client shows them.
        let depth = rules.depth.unwrap_or(1);
        if self.chain.len() > 1 + usize::try_from(depth).unwrap_or(usize::MAX) {
            return Some("its chain is too long".to_owned());
        }
        self.judge_by(verifier, UnixTime::now())
    }

    /// The same, of its chain alone. What was good is looked at again when its time is over: connections last.
    fn judge_by(&self, verifier: &Arc<dyn ClientCertVerifier>, now: UnixTime) -> Option<String> {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((by, rejected)) = &*judged
            && Arc::ptr_eq(by, verifier)
            && (rejected.is_some() || now.as_secs() <= self.not_after)
        {
            return rejected.clone();
        }
        let verified = verifier.verify_client_cert(&self.chain[0], &self.chain[1..], now);
        let rejected = verified.err().map(|error| error.to_string());
        *judged = Some((Arc::clone(verifier), rejected.clone()));
        rejected
    }
}

/// When a certificate ends, in seconds since 1970; what cannot be read is over.
fn ends(certificate: &CertificateDer<'_>) -> u64 {
    let read = X509Certificate::from_der(certificate);
    let ends = read.map(|(_, read)| read.validity().not_after.timestamp());
    ends.ok().and_then(|ends| u64::try_from(ends).ok()).unwrap_or_default()
}

/// RFC 4514: what is last in the certificate comes first.
fn distinguished(name: &X509Name<'_>) -> String {
    let mut parts = Vec::new();
    for relative in name.iter() {
        let mut attributes = Vec::new();
        for attribute in relative.iter() {
            let kind = oid2abbrev(attribute.attr_type(), oid_registry());
            let kind = kind.map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
            let value = attribute.as_str().unwrap_or_default();
            let mut escaped = String::new();
            for letter in value.chars() {
                if ",+\"\\<>;=".contains(letter) {
                    escaped.push('\\');
                }
                escaped.push(letter);
            }
            attributes.push(format!("{kind}={escaped}"));
        }
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same certificate for whoever asks.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Asks for a certificate, and takes whatever is shown by who has its key: what it is worth is said to the
/// client in HTTP, where he can read it.
struct Ask {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}

impl ClientCertVerifier for Ask {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::RootCertStore;
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::tls;

    #[test]
    fn cipher_suites_have_openssls_names() {
        let all = tls::provider();
        let names = |provider: &CryptoProvider| -> Vec<String> {
            let suites = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none());
            suites.map(|suite| openssl_name(&format!("{:?}", suite.suite()))).collect()
        };
        let known = names(&all);
        for name in [
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-RSA-CHACHA20-POLY1305",
        ] {
            assert!(known.iter().any(|known| known == name), "{name}: {known:?}");
        }
        let some = ["ECDHE-RSA-AES256-GCM-SHA384".to_owned(), "RC4-MD5".to_owned()];
        let some = provider(&all, &some);
        assert_eq!(names(&some), ["ECDHE-RSA-AES256-GCM-SHA384"]);
        assert_eq!(some.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
    }

    #[test]
    fn a_certificate_is_believed_no_longer_than_it_lasts() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::new(vec!["ann".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let own = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = crate::tls::provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier: Arc<dyn ClientCertVerifier> = verifier.build().unwrap();
        let client = Client::read(&[own.der().clone()]).unwrap();
        let ends = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));
        let later = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_001));
        assert_eq!(client.judge_by(&verifier, ends), None);
        let rejected = client.judge_by(&verifier, later);
        assert!(rejected.is_some());
        assert_eq!(client.judge_by(&verifier, later), rejected);
    }
}
