//! The built-in certificate authority of a control plane that has no other, and the tokens by which
//! nodes and gateways get their first certificate. What other tokens are good for, somebody else says ([`Vouch`]).
//!
//! ```text
//! STATE/ca/ca.crt            the CA's certificate; its key's hash is the pin that nodes are given
//! STATE/ca/ca.key            its key, mode 0600
//! STATE/ca/tokens/ID.json    one for each token: the hash of its secret, until when, for whom
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::disk;
use crate::identity::{self, Role, Validity, hex};

/// How long a certificate of a node is good: one that was away for a summer still comes back.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long the CA's own is good.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are good from an hour before they are made, and that is part of their life: clocks of
/// nodes differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// See the module.
pub struct Authority {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    life: Duration,
    /// Held while a token is looked at and marked.
    tokens: Mutex<()>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Why there is no authority, or nothing comes from it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{0}")]
    File(String, #[source] io::Error),
    /// One of two files is missing: which CA was it?
    #[error("{0} is there, {1} is not: put the missing one back, or remove both for a new CA")]
    Half(PathBuf, PathBuf),
    /// What is in the files is no CA.
    #[error("{0}: {1}")]
    Unusable(PathBuf, String),
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Why a token gets no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this token is not known here, or it has expired: fairway-controlplane token create")]
    Unknown,
    #[error("this token is for {0}, not for {1}")]
    Other(String, String),
    #[error(
        "tokens of this control plane's own are for nodes: a gateway joins by its pod's ServiceAccount, or is given \
         a certificate (fairway-controlplane certificate create gateway/GROUP)"
    )]
    NotAGateways,
    #[error("this token was used already, by node {0}: fairway-controlplane token create")]
    Used(String),
    #[error("the certificate request cannot be used: {0}")]
    Request(rcgen::Error),
    #[error(
        "this control plane takes no tokens of ServiceAccounts (--agent-service-account, \
         --gateway-service-account)"
    )]
    NoServiceAccounts,
    #[error("this token of a ServiceAccount lets nobody join: {0}")]
    ServiceAccount(String),
    #[error("the control plane cannot have this token looked at now: {0}")]
    NotNow(String),
    #[error("the control plane cannot look at its tokens: {0}")]
    Tokens(io::Error),
    #[error("the control plane cannot make a certificate: {0}")]
    Make(rcgen::Error),
}

/// What is remembered of a token; its secret is not.
#[derive(Serialize, Deserialize)]
struct Token {
    /// The SHA-256 of the secret.
    secret: String,
    /// Seconds since 1970.
    expires: u64,
    /// The only node that may use it, as often as it likes; others are used once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Who has used it: the same node with the same key may ask again, as the answer may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<Use>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    node: String,
    /// The SHA-256 of its public key.
    key: String,
}

/// Knows tokens that are not the authority's own, such as those of a cluster's ServiceAccounts.
pub trait Vouch: std::fmt::Debug + Send + Sync {
    /// The node or gateway that this token speaks for.
    fn vouch<'a>(&'a self, token: &'a str) -> Vouching<'a>;
}

/// See [`Vouch::vouch`].
pub type Vouching<'a> = Pin<Box<dyn Future<Output = Result<Role, NotVouched>> + Send + 'a>>;

/// Why nobody vouches for who shows a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotVouched {
    /// The token is no good, for this reason.
    #[error("{0}")]
    Refused(String),
    /// Nobody can tell now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<NotVouched> for Refused {
    fn from(not: NotVouched) -> Self {
        match not {
            NotVouched::Refused(why) => Self::ServiceAccount(why),
            NotVouched::Unavailable(why) => Self::NotNow(why),
        }
    }
}

/// Whether a token is of the form that [`Vouch`] knows (a JSON Web Token: three parts) and not the authority's
/// own (two).
pub(crate) fn is_foreign(token: &str) -> bool {
    token.split('.').count() == 3
}

/// A certificate with its key, for whoever keeps both in memory.
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) validity: Validity,
}

impl Authority {
    /// The one of this folder; a new one if there is none yet. Blocks on the disk.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => {}
            (false, false) => {
                let made = Self::generate()?;
                write(&certificate, &key, (&made.0, &made.1))?;
            }
            (true, false) => return Err(Error::Half(certificate, key)),
            (false, true) => return Err(Error::Half(key, certificate)),
        }
        let read = |path: &Path| {
            let failed = |error| Error::File(format!("cannot read {}", path.display()), error);
            fs::read_to_string(path).map_err(failed)
        };
        let (pem, key_pem) = (read(&certificate)?, read(&key)?);
        let unusable = |path: &Path, why: String| Error::Unusable(path.to_owned(), why);
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| unusable(&certificate, error.to_string()))?;
        let pair =
            KeyPair::from_pem(&key_pem).map_err(|error| unusable(&key, error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| unusable(&certificate, error.to_string()))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(unusable(&key, format!("is not the key of {}", certificate.display())));
        }
        if !parsed.is_ca() {
            return Err(unusable(&certificate, "is no CA's certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair)
            .map_err(|error| unusable(&certificate, error.to_string()))?;
        let folder = folder.to_owned();
        let (life, tokens) = (CERTIFICATE_LIFE, Mutex::new(()));
        Ok(Self { folder, certificate: der, pem, issuer, life, tokens })
    }

    /// A new CA: its certificate and its key, both as PEM, for whoever keeps them elsewhere.
    pub fn generate() -> Result<(String, String), Error> {
        let pair = KeyPair::generate()?;
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + CA_LIFE);
        params.serial_number = Some(serial()?);
        params.distinguished_name = name("Fairway feed CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok((params.self_signed(&pair)?.pem(), pair.serialize_pem()))
    }

    /// The one that somebody else keeps, with a copy in this folder in the place of what is there. Blocks on
    /// the disk.
    pub fn given(folder: &Path, certificate: &str, key: &str) -> Result<Self, Error> {
        write(&folder.join("ca.crt"), &folder.join("ca.key"), (certificate, key))?;
        Self::open(folder)
    }

    /// The same, whose certificates are good for this long.
    #[must_use]
    pub fn with_life(self, life: Duration) -> Self {
        Self { life, ..self }
    }

    /// What nodes are to be given along with a token.
    pub fn pin(&self) -> identity::Pin {
        identity::Pin::of(&self.certificate).expect("it was read when this was opened")
    }

    /// The CA's certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// The CA's key, from which others may be derived.
    pub(crate) fn key_der(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    pub(crate) fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A new certificate and its key, both as PEM, for a role that has no connection to ask over.
    pub fn certificate_for(&self, role: &Role) -> Result<(String, String), Error> {
        let key = KeyPair::generate()?;
        let params = self.params(role, SystemTime::now())?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// The server's own, which never touches the disk.
    pub(crate) fn own(&self, now: SystemTime) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let certificate = self.params(&Role::ControlPlane, now)?.signed_by(&key, &self.issuer)?;
        let der = certificate.der().clone();
        let validity = Validity::read(&der).expect("it was made just now");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it was made just now");
        // With the CA's: a node that joins knows no more of it than its pin.
        Ok(Issued { chain: vec![der, self.certificate.clone()], key, validity })
    }

    /// A certificate of `role` for the key of this request, whatever else that asks for.
    pub(crate) fn sign(
        &self,
        role: &Role,
        request: &str,
        now: SystemTime,
    ) -> Result<String, Refused> {
        let mut request =
            CertificateSigningRequestParams::from_pem(request).map_err(Refused::Request)?;
        request.params = self.params(role, now).map_err(Refused::Make)?;
        request.signed_by(&self.issuer).map(|made| made.pem()).map_err(Refused::Make)
    }

    /// A new token, for one node or for one whose name is not known yet. Blocks on the disk.
    pub fn token(
        folder: &Path,
        node: Option<&str>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<String, Error> {
        let random = |bytes: &mut [u8]| {
            aws_lc_rs::rand::fill(bytes)
                .map_err(|_| Error::File("no random numbers".to_owned(), io::Error::other("")))
        };
        let (mut id, mut secret) = ([0; 3], [0; 16]);
        random(&mut id)?;
        random(&mut secret)?;
        let (id, secret) = (hex(&id), hex(&secret));
        let token = Token {
            secret: hash(secret.as_bytes()),
            expires: seconds(now + ttl),
            node: node.map(str::to_owned),
            used: None,
        };
        let path = token_file(folder, &id);
        write_token(&path, &token)
            .map_err(|error| Error::File(format!("cannot write {}", path.display()), error))?;
        Ok(format!("{id}.{secret}"))
    }

    /// Takes a token for a certificate of exactly this node. Blocks on the disk.
    pub(crate) fn join(
        &self,
        token: &str,
        node: &str,
        request: &str,
        now: SystemTime,
    ) -> Result<String, Refused> {
        let parsed =
            CertificateSigningRequestParams::from_pem(request).map_err(Refused::Request)?;
        let own = Use { node: node.to_owned(), key: hash(parsed.public_key.der_bytes()) };
        let (id, secret) = token.split_once('.').ok_or(Refused::Unknown)?;
        // It becomes part of a path.
        if id.len() != 6 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Refused::Unknown);
        }
        let path = token_file(&self.folder, id);
        let _looking = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match fs::read(&path) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Refused::Unknown),
            Err(error) => return Err(Refused::Tokens(error)),
        };
        let mut known: Token =
            serde_json::from_slice(&known).map_err(|error| Refused::Tokens(error.into()))?;
        if known.secret != hash(secret.as_bytes()) {
            return Err(Refused::Unknown);
        }
        if seconds(now) >= known.expires {
            // Nobody will ask for it again.
            let _ = fs::remove_file(&path);
            return Err(Refused::Unknown);
        }
        match (&known.node, &known.used) {
            (Some(bound), _) if bound != node => {
                return Err(other(&Role::Node(bound.clone()), &Role::Node(node.to_owned())));
            }
            (Some(_), _) => {}
            (None, Some(used)) if *used != own => return Err(Refused::Used(used.node.clone())),
            (None, Some(_)) => {}
            (None, None) => {
                known.used = Some(own);
                write_token(&path, &known).map_err(Refused::Tokens)?;
            }
        }
        self.sign(&Role::Node(node.to_owned()), request, now)
    }

    /// A certificate of exactly whom somebody else has vouched for.
    pub(crate) fn join_vouched(
        &self,
        vouched: &Role,
        wanted: &Role,
        request: &str,
        now: SystemTime,
    ) -> Result<String, Refused> {
        if vouched != wanted {
            return Err(other(vouched, wanted));
        }
        self.sign(vouched, request, now)
    }

    fn params(&self, role: &Role, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
        let own = Validity::read(&self.certificate).map(|validity| validity.not_after);
        let mut params = CertificateParams::default();
        let (from, until) = (now - BACKDATE, now - BACKDATE + self.life);
        params.not_before = OffsetDateTime::from(from);
        params.not_after = OffsetDateTime::from(own.map_or(until, |own| own.min(until)));
        params.serial_number = Some(serial()?);
        params.distinguished_name = name(&role.to_string());
        params.subject_alt_names = vec![SanType::URI(role.uri().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::ControlPlane => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// In words: `node n1`, `gateway edge/a`.
fn other(bound: &Role, wanted: &Role) -> Refused {
    let [bound, wanted] = [bound, wanted].map(|role| role.to_string().replacen('/', " ", 1));
    Refused::Other(bound, wanted)
}

/// The key first: a certificate without one is what an error names best, and neither is of use alone.
fn write(certificate: &Path, key: &Path, pem: (&str, &str)) -> Result<(), Error> {
    let failed =
        |path: &Path, error| Error::File(format!("cannot write {}", path.display()), error);
    disk::replace_secret(key, pem.1.as_bytes()).map_err(|error| failed(key, error))?;
    disk::replace(certificate, pem.0.as_bytes()).map_err(|error| failed(certificate, error))
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // RFC 5280 allows 64 characters; who it is stands in the URI, whole.
    name.push(DnType::CommonName, common.chars().take(64).collect::<String>());
    name
}

fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    // Positive.
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

fn token_file(folder: &Path, id: &str) -> PathBuf {
    folder.join("tokens").join(format!("{id}.json"))
}

fn write_token(path: &Path, token: &Token) -> io::Result<()> {
    disk::replace_secret(path, &serde_json::to_vec(token)?)
}

/// The SHA-256, in hexadecimal digits.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Since 1970.
pub(crate) fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::identity::Identity;

    const HOUR: Duration = Duration::from_secs(3600);

    fn request() -> String {
        let key = KeyPair::generate().unwrap();
        // What it asks for is not what it gets.
        let params = CertificateParams::new(["spiffe.example".to_owned()]).unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn role(pem: &str) -> Role {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        Identity::of(&der).unwrap().role
    }

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let pin = Authority::open(folder.path()).unwrap().pin();
        assert_eq!(Authority::open(folder.path()).unwrap().pin(), pin);
        let key = folder.path().join("ca.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path()).unwrap();
        fs::copy(other.path().join("ca.key"), &key).unwrap();
        let error = Authority::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not the key of"), "{error}");
        fs::remove_file(&key).unwrap();
        assert!(matches!(Authority::open(folder.path()), Err(Error::Half(..))));
    }

    #[test]
    fn an_authority_that_somebody_else_keeps_takes_the_place_of_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        Authority::open(folder.path()).unwrap();
        let (certificate, key) = Authority::generate().unwrap();
        for _ in 0..2 {
            let given = Authority::given(folder.path(), &certificate, &key).unwrap();
            assert_eq!(given.certificate(), certificate);
        }
        assert_eq!(Authority::open(folder.path()).unwrap().certificate(), certificate);
        let (_, other) = Authority::generate().unwrap();
        let error = Authority::given(folder.path(), &certificate, &other).unwrap_err();
        assert!(error.to_string().contains("is not the key of"), "{error}");
    }

    #[test]
    fn a_token_is_good_for_one_node_once_and_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let now = SystemTime::now();
        let token = Authority::token(folder.path(), None, HOUR, now).unwrap();
        let (first, second) = (request(), request());

        let made = authority.join(&token, "n1", &first, now).unwrap();
        assert_eq!(role(&made), Role::Node("n1".to_owned()));
        // Its answer was lost.
        authority.join(&token, "n1", &first, now).unwrap();
        for (node, request) in [("n2", &first), ("n1", &second)] {
            assert!(matches!(authority.join(&token, node, request, now), Err(Refused::Used(_))));
        }
        let late = authority.join(&token, "n1", &first, now + HOUR);
        assert!(matches!(late, Err(Refused::Unknown)));
        // Nor if the clock goes back again.
        assert!(matches!(authority.join(&token, "n1", &first, now), Err(Refused::Unknown)));
    }

    #[test]
    fn a_token_of_a_node_is_no_other_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let now = SystemTime::now();
        let token = Authority::token(folder.path(), Some("n1"), HOUR, now).unwrap();
        let error = authority.join(&token, "n2", &request(), now).unwrap_err();
        assert_eq!(error.to_string(), "this token is for node n1, not for node n2");
        // With another key each time: it was installed anew.
        for _ in 0..2 {
            authority.join(&token, "n1", &request(), now).unwrap();
        }
    }

    #[test]
    fn what_is_no_token_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let now = SystemTime::now();
        let token = Authority::token(folder.path(), None, HOUR, now).unwrap();
        let wrong = format!("{}.{}", &token[..6], "0".repeat(32));
        let request = request();
        for bad in ["", ".", "../../ca.x", "../ca.", "abcdef.0", &wrong, &token[..38]] {
            let refused = authority.join(bad, "n1", &request, now);
            assert!(matches!(refused, Err(Refused::Unknown)), "{bad}");
        }
        let refused = authority.join(&token, "n1", "no request", now);
        assert!(matches!(refused, Err(Refused::Request(_))));
        authority.join(&token, "n1", &request, now).unwrap();
    }
}
