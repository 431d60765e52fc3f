//! A client's end: how it knows the control plane, and how it comes by a certificate of its own.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, StatusCode, Uri};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Files, H2, Loaded, VERSIONS, about, certificates, provider, refused, roots};
use crate::client::{Connector, exchange};
use crate::disk;
use crate::identity::{GatewayName, Identity, NoIdentity, Pin, Role, Validity};
use crate::wire::{Certified, Join};

/// What a node gets its first certificate for, and how it knows the CA that it gets it from.
#[derive(Clone)]
pub struct JoinToken {
    /// What `fairway-controlplane token create` printed.
    pub token: String,
    /// Of the CA's key.
    pub pin: Pin,
}

/// Shows nothing of the token.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// What an agent or a gateway in a pod gets its first certificate for: files of others, which are read again each time.
#[derive(Clone, Debug)]
pub struct PodIdentity {
    /// A token of the pod's ServiceAccount, for the control plane.
    pub token: PathBuf,
    /// The CA that the control plane's certificate comes from, as PEM.
    pub ca: PathBuf,
}

/// Connects with TLS and a certificate of its own.
#[derive(Debug)]
pub struct Client {
    files: Files,
    own: Own,
}

/// Where the client's own certificate comes from.
#[derive(Debug)]
enum Own {
    /// From somebody else, who also renews it.
    Given,
    /// From the control plane, by a token at first and over an open connection later.
    Joined(Joining),
}

/// What is needed to join.
#[derive(Debug)]
struct Joining {
    role: Role,
    by: Option<JoinBy>,
    /// The key of a request that is not answered yet: the token is good for this one alone.
    pending: PathBuf,
}

/// What is shown to join.
#[derive(Debug)]
enum JoinBy {
    Token(JoinToken),
    Pod(PodIdentity),
}

impl Client {
    /// With certificates that somebody else makes.
    pub fn files(files: Files) -> Self {
        Self { files, own: Own::Given }
    }

    /// With a certificate that the control plane gives this node for a token, kept in `folder` with its
    /// key (mode 0600) and renewed there. Once there is one the token is needed no more.
    pub fn joining(folder: &Path, node: &str, token: Option<JoinToken>) -> Self {
        Self::joining_by(folder, Role::Node(node.to_owned()), token.map(JoinBy::Token))
    }

    /// The same as a pod of a cluster, which is also needed later: whenever there is no certificate that is any
    /// good, or the control plane has got another CA, the node joins anew.
    pub fn joining_as_pod(folder: &Path, node: &str, pod: PodIdentity) -> Self {
        Self::joining_by(folder, Role::Node(node.to_owned()), Some(JoinBy::Pod(pod)))
    }

    /// The same, of a gateway: its group is what the control plane takes its ServiceAccount for, and its replica
    /// the name of its pod. The certificate is `gateway.pem`.
    pub fn joining_as_gateway(folder: &Path, gateway: GatewayName, pod: PodIdentity) -> Self {
        Self::joining_by(folder, Role::Gateway(gateway), Some(JoinBy::Pod(pod)))
    }

    fn joining_by(folder: &Path, role: Role, by: Option<JoinBy>) -> Self {
        let own = folder.join(match &role {
            Role::Gateway(_) => "gateway.pem",
            _ => "node.pem",
        });
        let files = Files { ca: folder.join("ca.crt"), certificate: own.clone(), key: own };
        let pending = folder.join("pending.key");
        Self { files, own: Own::Joined(Joining { role, by, pending }) }
    }

    /// Whether [`Self::joining`] finds a certificate in this folder.
    pub fn has_joined(folder: &Path) -> bool {
        folder.join("node.pem").exists()
    }

    /// How long the own certificate is good, if there is one.
    fn validity(&self) -> io::Result<Option<Validity>> {
        match certificates(&self.files.certificate) {
            Ok(chain) => {
                let own = chain.first().map(Validity::read).transpose();
                own.map_err(|error| {
                    about(&self.files.certificate, io::ErrorKind::InvalidData, &error)
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn about_own(&self, problem: &dyn fmt::Display) -> io::Error {
        io::Error::other(format!("own certificate {}: {problem}", self.files.certificate.display()))
    }

    /// Sees to it that there is a certificate that is any good.
    async fn prepare(&self, authority: &str) -> io::Result<()> {
        let problem = match self.validity() {
            Ok(Some(validity)) => validity.problem(SystemTime::now()),
            Ok(None) => Some("is not there".to_owned()),
            Err(error) => Some(damage(&error).ok_or(error)?),
        };
        let problem = problem.or_else(|| self.other_owner()).or_else(|| self.other_authority());
        let problem = problem.or_else(|| self.damage());
        let Some(problem) = problem else { return Ok(()) };
        match &self.own {
            Own::Joined(Joining { by: None, .. }) => Err(self.about_own(&format!(
                "{problem}; to get another one give a join token \
                 (on the control plane: fairway-controlplane token create)"
            ))),
            Own::Joined(Joining { role, by: Some(by), pending }) => {
                tracing::info!(%role, authority, "joining: {problem}");
                self.join(authority, role, by, pending).await
            }
            Own::Given => Err(self.about_own(&problem)),
        }
    }

    /// Whether what was joined with is another's: a folder may outlive the pod, or the name, that it was for.
    fn other_owner(&self) -> Option<String> {
        let Own::Joined(Joining { role, .. }) = &self.own else { return None };
        let chain = certificates(&self.files.certificate).ok()?;
        match Identity::of(chain.first()?) {
            Ok(own) if own.role == *role => None,
            Ok(own) => Some(format!("is that of {}, and this is {role}", own.role)),
            Err(error) => Some(format!("cannot be used: {error}")),
        }
    }

    /// Whether what was joined with is such that another certificate would help.
    fn damage(&self) -> Option<String> {
        match &self.own {
            Own::Joined(_) => self.config().err().as_ref().and_then(damage),
            Own::Given => None,
        }
    }

    /// What to connect with.
    fn config(&self) -> io::Result<ClientConfig> {
        let Loaded { roots, chain, key } = self.files.load()?;
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(Trust::Roots(roots))))
            .with_client_auth_cert(chain, key)
            .map_err(|error| about(&self.files.key, io::ErrorKind::InvalidData, &error))
    }

    /// Whether a pod is told of another CA than its certificate comes from. While nothing can be told, what is
    /// there is good enough.
    fn other_authority(&self) -> Option<String> {
        let Own::Joined(Joining { by: Some(JoinBy::Pod(pod)), .. }) = &self.own else {
            return None;
        };
        let (told, known) = (certificates(&pod.ca).ok()?, certificates(&self.files.ca).ok()?);
        let is_told = known.iter().any(|ca| told.contains(ca));
        (!is_told).then(|| format!("is not from the CA in {}", pod.ca.display()))
    }

    async fn join(
        &self,
        authority: &str,
        role: &Role,
        by: &JoinBy,
        pending: &Path,
    ) -> io::Result<()> {
        let (token, trust) = match by {
            JoinBy::Token(JoinToken { token, pin }) => (token.clone(), Trust::Pin(*pin)),
            JoinBy::Pod(PodIdentity { token, ca }) => {
                // The CA first: where it is missing, the control plane has not come up yet.
                let roots = roots(ca)?;
                let read = fs::read_to_string(token);
                let read = read.map_err(|error| about(token, error.kind(), &error))?;
                (read.trim().to_owned(), Trust::Roots(roots))
            }
        };
        let key =
            match fs::read_to_string(pending).ok().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
                Some(key) => key,
                None => {
                    let key = KeyPair::generate().map_err(io::Error::other)?;
                    disk::replace_secret(pending, key.serialize_pem().as_bytes())?;
                    key
                }
            };
        let verifier = Verifier::new(trust);
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        let io = handshake(authority, config).await?;
        let (node, gateway) = match role {
            Role::Gateway(name) => (None, Some(name.to_string())),
            Role::Node(name) => (Some(name.clone()), None),
            Role::Operator(_) | Role::ControlPlane => (None, None),
        };
        let join = Join { token, node, gateway, request: certificate_request(&key)? };
        let body = serde_json::to_vec(&join).map_err(io::Error::other)?;
        let uri = format!("https://{authority}/v1/join");
        let (status, answer) = exchange(io, &uri, Method::POST, body.into()).await?;
        if status != StatusCode::OK {
            let reason = String::from_utf8_lossy(&answer);
            let reason = format!("the control plane answers {status}: {}", reason.trim());
            return Err(io::Error::other(reason));
        }
        self.store(&serde_json::from_slice(&answer)?, &key)?;
        tracing::info!(%role, "joined");
        match fs::remove_file(pending) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps what the control plane gave for this key.
    fn store(&self, answer: &Certified, key: &KeyPair) -> io::Result<()> {
        use rustls::pki_types::pem::PemObject as _;
        let bad = |error: &dyn fmt::Display| {
            io::Error::other(format!("the certificate that the control plane gave: {error}"))
        };
        let made = CertificateDer::from_pem_slice(answer.certificate.as_bytes());
        let identity =
            Identity::of(&made.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
        if let Own::Joined(Joining { role, .. }) = &self.own
            && identity.role != *role
        {
            return Err(bad(&format!("is that of {}", identity.role)));
        }
        disk::replace(&self.files.ca, answer.ca.as_bytes())?;
        // One file, so that there is no moment at which the two do not belong together.
        let own = format!("{}{}", answer.certificate, key.serialize_pem());
        disk::replace_secret(&self.files.certificate, own.as_bytes())
    }
}

impl Connector for Client {
    type Io = TlsStream<TcpStream>;

    const SCHEME: &'static str = "https";

    async fn connect(&self, authority: &str) -> io::Result<Self::Io> {
        self.prepare(authority).await?;
        handshake(authority, self.config()?).await
    }

    fn renewal(&self) -> Option<SystemTime> {
        match &self.own {
            Own::Joined(_) => self.validity().ok().flatten().map(|validity| validity.renewal()),
            Own::Given => None,
        }
    }

    fn authority(&self) -> Option<Pin> {
        Pin::of(certificates(&self.files.ca).ok()?.first()?).ok()
    }

    fn request(&self) -> io::Result<(String, String)> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        Ok((certificate_request(&key)?, key.serialize_pem()))
    }

    fn renewed(&self, answer: &[u8], key: &str) -> io::Result<()> {
        let answer: Certified = serde_json::from_slice(answer)?;
        self.store(&answer, &KeyPair::from_pem(key).map_err(io::Error::other)?)
    }
}

/// Files that are not what they were; those that cannot be read now are another matter.
fn damage(error: &io::Error) -> Option<String> {
    let damaged = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound);
    damaged.then(|| format!("cannot be used: {error}"))
}

fn certificate_request(key: &KeyPair) -> io::Result<String> {
    let request = CertificateParams::default().serialize_request(key).map_err(io::Error::other)?;
    request.pem().map_err(io::Error::other)
}

async fn handshake(authority: &str, mut config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    let uri: Uri = authority.parse().map_err(io::Error::other)?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(authority).await?.collect();
    let stream = TcpStream::connect(&*addresses).await?;
    stream.set_nodelay(true)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let io =
        connecting.await.map_err(|error| match error.get_ref().and_then(|e| e.downcast_ref()) {
            // What the verifier says, which needs no introduction.
            Some(rustls::Error::General(reason)) => io::Error::other(reason.clone()),
            _ => error,
        })?;
    match io.get_ref().1.alpn_protocol() {
        Some(H2) => Ok(io),
        _ => Err(io::Error::other("whoever listens there speaks TLS, but not HTTP/2")),
    }
}

/// How the control plane's certificate is known to be good.
#[derive(Debug)]
enum Trust {
    Roots(RootCertStore),
    /// By a CA in the chain that it shows, whose key is this one.
    Pin(Pin),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(trust: Trust) -> Self {
        Self { trust, algorithms: provider().signature_verification_algorithms }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let pinned;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots,
            Trust::Pin(pin) => {
                let fits = |ca: &&CertificateDer<'_>| Pin::of(ca) == Ok(*pin);
                let ca = intermediates.iter().find(fits).ok_or_else(|| {
                    rustls::Error::General(format!(
                        "whoever listens there shows no CA whose key is {pin}"
                    ))
                })?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                pinned = roots;
                &pinned
            }
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match Identity::of(end_entity) {
            Ok(Identity { role: Role::ControlPlane, .. }) => Ok(()),
            Err(NoIdentity::None) => verify_server_name(&certificate, name),
            // Good, and somebody else's: a node that poses as the control plane.
            Ok(_) => Err(rustls::Error::General("it is not the control plane's".to_owned())),
            Err(error) => Err(rustls::Error::General(error.to_string())),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, server_name, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(|error| refused(error, end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
