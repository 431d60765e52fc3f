//! The server's end.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Files, H2, Loaded, VERSIONS, provider, refused};
use crate::authority::Authority;
use crate::identity::{Identity, Validity};
use crate::server::{Acceptor, Caller};

/// How often files are looked at, at most: each look is three system calls a file.
const LOOK: Duration = Duration::from_secs(1);

/// Accepts TLS; whoever shows a certificate is who it says, whoever shows none may join.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    source: Source,
    current: Mutex<Current>,
}

enum Source {
    Files(Files),
    Authority(Arc<Authority>),
}

/// What connections are accepted with, and when to look for something newer.
struct Current {
    config: Arc<ServerConfig>,
    stamps: Vec<Option<SystemTime>>,
    /// Of a certificate that is to be renewed here.
    validity: Option<Validity>,
    looked: Instant,
    /// Told once.
    failed: bool,
}

impl Server {
    /// With certificates that somebody else makes.
    pub fn files(files: Files) -> io::Result<Self> {
        Self::of(Source::Files(files))
    }

    /// With the built-in CA, which also makes the server's own certificate.
    pub fn authority(authority: Arc<Authority>) -> io::Result<Self> {
        Self::of(Source::Authority(authority))
    }

    fn of(source: Source) -> io::Result<Self> {
        let current = Mutex::new(source.load()?);
        Ok(Self(Arc::new(Shared { source, current })))
    }

    /// The newest that is any good.
    fn config(&self) -> Arc<ServerConfig> {
        let Shared { source, current } = &*self.0;
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK && source.has_news(&current) {
            match source.load() {
                Ok(next) => *current = next,
                Err(error) => {
                    if !current.failed {
                        tracing::error!(%error, "new certificates cannot be used; the old ones stay");
                    }
                    current.failed = true;
                    current.looked = Instant::now();
                }
            }
        }
        Arc::clone(&current.config)
    }
}

impl Source {
    fn load(&self) -> io::Result<Current> {
        // Before the files are read: what changes meanwhile is news again.
        let stamps = self.stamps();
        let (loaded, validity) = match self {
            // They are renewed when they change.
            Self::Files(files) => (files.load()?, None),
            Self::Authority(authority) => {
                let own = authority.own(SystemTime::now()).map_err(io::Error::other)?;
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate_der().clone()).map_err(io::Error::other)?;
                (Loaded { roots, chain: own.chain, key: own.key }, Some(own.validity))
            }
        };
        let config = Arc::new(config(loaded)?);
        Ok(Current { config, stamps, validity, looked: Instant::now(), failed: false })
    }

    fn has_news(&self, current: &Current) -> bool {
        let is_due = current.validity.is_some_and(|validity| validity.is_due(SystemTime::now()));
        is_due || self.stamps() != current.stamps
    }

    fn stamps(&self) -> Vec<Option<SystemTime>> {
        match self {
            Self::Files(Files { ca, certificate, key }) => [ca, certificate, key]
                .map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
                .to_vec(),
            Self::Authority(_) => Vec::new(),
        }
    }
}

fn config(loaded: Loaded) -> io::Result<ServerConfig> {
    let Loaded { roots, chain, key } = loaded;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        // Whoever joins has none yet.
        .allow_unauthenticated()
        .build()
        .map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(io::Error::other)?
        .with_client_cert_verifier(Arc::new(Explaining(verifier)))
        .with_single_cert(chain, key)
        .map_err(|error| io::Error::other(format!("certificate and key: {error}")))?;
    config.alpn_protocols = vec![H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl Acceptor for Server {
    type Io = TlsStream<TcpStream>;

    async fn accept(&self, stream: TcpStream) -> io::Result<(Self::Io, Caller)> {
        let io = TlsAcceptor::from(self.config()).accept(stream).await?;
        let caller = match io.get_ref().1.peer_certificates() {
            Some([certificate, ..]) => {
                Caller::Known(Identity::of(certificate).map_err(io::Error::other)?)
            }
            _ => Caller::Stranger,
        };
        Ok((io, caller))
    }
}

/// A verifier whose errors tell which certificate they are about.
#[derive(Debug)]
struct Explaining(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Explaining {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        verified.inspect_err(|error| {
            // The client is told by an alert, which has no room for this.
            tracing::warn!(reason = %refused(error.clone(), end_entity), "a client is refused");
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control plane that came up by a clock that was ahead, or that runs for as long as its certificate.
    #[test]
    fn a_certificate_of_another_time_is_made_anew_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::authority(Arc::new(Authority::open(folder.path()).unwrap())).unwrap();
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let made_at = |not_before: SystemTime| {
            let mut current = server.0.current.lock().unwrap();
            current.validity = Some(Validity { not_before, not_after: not_before + 90 * day });
            current.looked = Instant::now().checked_sub(LOOK).unwrap();
        };
        for (not_before, anew) in [(now + day, true), (now - day, false), (now - 61 * day, true)] {
            let before = server.config();
            made_at(not_before);
            assert_eq!(!Arc::ptr_eq(&before, &server.config()), anew);
        }
    }
}
