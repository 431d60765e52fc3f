//! TLS that ends here: certificates, session tickets, and what a name is served with.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_model::{
    Difference, MAX_CHAIN, Model, ObjectName, Objects, Secret, Sensitive, TicketKey,
};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::shared::Shared;

/// The common name of the certificate for names that nobody has one for.
pub const OWN_NAME: &str = "Fairway gateway: no certificate for this name";

/// AWS-LC, with a key exchange that no quantum computer undoes asked for first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let groups =
        vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    Arc::new(CryptoProvider { kx_groups: groups, ..default_provider() })
}

/// All certificates in a text.
///
/// # Errors
/// When there is none, or what looks like one is none.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| format!("the certificates are not PEM: {error}"))?;
    if all.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(all) }
}

/// The private key in a text.
///
/// # Errors
/// When there is none; the reason shows nothing of the text.
pub(crate) fn private_key(pem: &Sensitive) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem.reveal().as_bytes())
        .map_err(|_| "the private key is no PEM".to_owned())
}

/// Whom to believe.
///
/// # Errors
/// When there is nobody, or one of them is no CA.
pub(crate) fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| format!("a CA cannot be used: {error}"))?;
    }
    Ok(roots)
}

/// A certificate that is served.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    /// The names that it is for, as it says.
    pub(crate) names: Vec<String>,
    /// In seconds since 1970.
    pub(crate) not_after: i64,
    /// Its serial number as hexadecimal digits.
    pub(crate) serial: String,
    /// What it was read from.
    source: Arc<Secret>,
    /// The Secret has something else now, which cannot be used, and why.
    pub(crate) broken: Option<(Arc<Secret>, String)>,
}

/// The certificates of a snapshot.
#[derive(Debug)]
pub(crate) struct Certificates {
    known: Shared<ObjectName, Arc<Certificate>>,
    /// For names that nobody has one for.
    own: Arc<CertifiedKey>,
}

impl Certificates {
    /// None but its own.
    pub(crate) fn new(provider: &CryptoProvider) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, OWN_NAME);
        let certificate = params.self_signed(&key)?;
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let own = CertifiedKey::from_der(vec![certificate.der().clone()], der, provider)?;
        Ok(Self { known: Shared::default(), own: Arc::new(own) })
    }

    /// Those of the Secrets that `before` became: the last good one stays where there is a new one that cannot be used.
    /// What is wrong is told to `problem`, once.
    pub(crate) fn next(
        &self,
        before: &Objects<Secret>,
        after: &Objects<Secret>,
        provider: &CryptoProvider,
        problem: &mut dyn FnMut(&ObjectName, &str),
    ) -> Self {
        let mut known = self.known.clone();
        for difference in before.diff(after) {
            let name = difference.name();
            let Difference { after: Some(secret), .. } = difference else {
                known.remove(name);
                continue;
            };
            if secret.certificate.is_none() && secret.key.is_none() {
                known.remove(name);
                continue;
            }
            let last = known.get(name);
            if last.is_some_and(|last| last.source == *secret && last.broken.is_none()) {
                continue;
            }
            match Certificate::read(secret, provider) {
                Ok(certificate) => known.insert(name.clone(), Arc::new(certificate)),
                Err(why) => {
                    problem(name, &why);
                    if let Some(last) = last {
                        let broken = Some((Arc::clone(secret), why));
                        let last = Certificate { broken, ..Certificate::clone(last) };
                        known.insert(name.clone(), Arc::new(last));
                    }
                }
            }
        }
        Self { known, own: Arc::clone(&self.own) }
    }

    /// That of a Secret, or its own.
    pub(crate) fn get(&self, secret: Option<&ObjectName>) -> &Arc<CertifiedKey> {
        let known = secret.and_then(|name| self.known.get(name));
        known.map_or(&self.own, |certificate| &certificate.key)
    }

    /// All but its own, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Certificate>)> {
        self.known.iter()
    }
}

impl Certificate {
    fn read(secret: &Arc<Secret>, provider: &CryptoProvider) -> Result<Self, String> {
        let pem = secret.certificate.as_deref().ok_or("there is no certificate")?;
        // Base64, with something between them; nobody reads thousands to find out.
        if pem.len() > 3 * MAX_CHAIN {
            return Err("the chain of certificates is too long for clients".to_owned());
        }
        let chain = certificates(pem)?;
        if chain.iter().map(|one| one.len() + 5).sum::<usize>() > MAX_CHAIN {
            return Err("the chain of certificates is too long for clients".to_owned());
        }
        let key = private_key(secret.key.as_ref().ok_or("there is no private key")?)?;
        let (_, first) = X509Certificate::from_der(&chain[0])
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let mut names = Vec::new();
        if let Ok(Some(alternatives)) = first.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    names.push((*name).to_ascii_lowercase());
                }
            }
        }
        let not_after = first.validity().not_after.timestamp();
        let serial = first.raw_serial_as_string().replace(':', "");
        let mut key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| format!("certificate and key cannot be used: {error}"))?;
        if let Some(staple) = &secret.ocsp {
            key.ocsp =
                Some(STANDARD.decode(staple.trim()).map_err(|_| "the OCSP answer is no Base64")?);
        }
        let (key, source) = (Arc::new(key), Arc::clone(secret));
        Ok(Self { key, names, not_after, serial, source, broken: None })
    }
}

/// Seals TLS sessions with the keys that all replicas have, so that a client that comes back may come to any
/// of them. Where nobody gives any out it makes its own.
pub(crate) struct Tickets {
    keys: RwLock<Vec<Sealing>>,
}

struct Sealing {
    name: [u8; NAME],
    /// In seconds since 1970.
    since: u64,
    key: LessSafeKey,
    /// Not given by anybody.
    own: bool,
}

const NAME: usize = 16;
const NONCE: usize = 12;
/// How long a key of its own is used; it is known for as long again.
const PERIOD: u64 = 6 * 3600;
/// How long a session may be taken up again.
const LIFETIME: Duration = Duration::from_secs(6 * 3600);

impl Tickets {
    pub(crate) fn new() -> Self {
        Self { keys: RwLock::default() }
    }

    /// Takes what a model has, or makes a key if it has none and the last one is old.
    pub(crate) fn update(&self, model: &Model, now: SystemTime) {
        let given: Vec<_> = model.ticket_keys.values().filter_map(Sealing::read).collect();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if !given.is_empty() {
            *keys = given;
        } else {
            let now = seconds(now);
            keys.retain(|key| key.own && key.since + 2 * PERIOD > now);
            if keys.iter().all(|key| key.since + PERIOD <= now) {
                keys.extend(Sealing::random(now));
            }
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.since));
    }

    fn seal(&self, plain: &[u8], about: &[u8], now: u64) -> Option<Vec<u8>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().find(|key| key.since <= now)?;
        let mut nonce = [0; NONCE];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from([&key.name[..], about].concat());
        key.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .ok()?;
        Some([&key.name[..], &nonce, &sealed].concat())
    }

    fn open(&self, ticket: &[u8], about: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().find(|key| key.name == *name)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut sealed = sealed.to_vec();
        let aad = Aad::from([&key.name[..], about].concat());
        let plain = key.key.open_in_place(nonce, aad, &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

impl Sealing {
    fn read(given: &TicketKey) -> Option<Self> {
        let name = <[u8; NAME]>::try_from(hex(&given.name)?).ok()?;
        let key = UnboundKey::new(&AES_256_GCM, &hex(given.key.reveal())?).ok()?;
        Some(Self { name, since: given.since, key: LessSafeKey::new(key), own: false })
    }

    fn random(since: u64) -> Option<Self> {
        let (mut name, mut key) = ([0; NAME], [0; 32]);
        aws_lc_rs::rand::fill(&mut name).ok()?;
        aws_lc_rs::rand::fill(&mut key).ok()?;
        let key = UnboundKey::new(&AES_256_GCM, &key).ok()?;
        Some(Self { name, since, key: LessSafeKey::new(key), own: true })
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

/// Tickets of one handshake. Who takes a session up again is not asked for a certificate, so a ticket is good
/// only where the same is asked.
#[derive(Debug)]
pub(crate) struct HostTickets {
    pub(crate) tickets: Arc<Tickets>,
    /// What is asked of clients' certificates: empty, or of a length of its own.
    pub(crate) about: Vec<u8>,
}

impl ProducesTickets for HostTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.tickets.seal(plain, &self.about, seconds(SystemTime::now()))
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.tickets.open(ticket, &self.about)
    }
}

/// Since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2);
    pairs.map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use fairway_model::Object;

    use super::*;

    fn secret(name: &str, host: &str) -> Secret {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        Secret {
            name: ObjectName::new("shop", name),
            certificate: Some(certificate.pem()),
            key: Some(Sensitive::new(key.serialize_pem())),
            ..Secret::default()
        }
    }

    fn model(secrets: &[&Secret]) -> Model {
        secrets.iter().map(|secret| Object::Secret((*secret).clone())).collect()
    }

    #[test]
    fn the_last_good_certificate_stays_where_the_new_one_is_broken() {
        let provider = provider();
        let none = Certificates::new(&provider).unwrap();
        let good = secret("tls", "a.example");
        let name = Some(&good.name);
        let mut problems = Vec::new();
        let mut then = Model::default();
        let mut next = |before: &Certificates, secrets: &[&Secret]| {
            let mut problem =
                |name: &ObjectName, why: &str| problems.push(format!("{name}: {why}"));
            let now = model(secrets);
            let next = before.next(&then.secrets, &now.secrets, &provider, &mut problem);
            then = now;
            next
        };
        let one = next(&none, &[&good]);
        assert!(!Arc::ptr_eq(one.get(name), one.get(None)));
        assert_eq!(one.known.get(&good.name).unwrap().names, ["a.example"]);

        // A key of another certificate, twice the same.
        let broken = Secret { key: secret("x", "x").key, ..good.clone() };
        let two = next(&one, &[&broken]);
        let two = next(&two, &[&broken]);
        assert!(Arc::ptr_eq(two.get(name), one.get(name)));
        let three = next(&two, &[&secret("tls", "b.example")]);
        assert!(!Arc::ptr_eq(three.get(name), one.get(name)));
        assert!(three.known.get(&good.name).unwrap().broken.is_none());
        let gone = next(&three, &[]);
        assert!(Arc::ptr_eq(gone.get(name), none.get(None)));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("shop/tls: certificate and key cannot be used"));
    }

    #[test]
    fn what_one_replica_seals_another_opens() {
        let key = |number: u8, since| {
            let key = Sensitive::new(format!("{number:02x}").repeat(32));
            Object::TicketKey(TicketKey { name: format!("{number:02x}").repeat(16), since, key })
        };
        let model = |keys: &[(u8, u64)]| -> Model {
            keys.iter().map(|(number, since)| key(*number, *since)).collect()
        };
        let (one, other) = (Tickets::new(), Tickets::new());
        one.update(&model(&[(1, 100), (2, 200), (3, 300)]), UNIX_EPOCH);
        other.update(&model(&[(2, 200), (3, 300), (4, 400)]), UNIX_EPOCH);
        let sealed = one.seal(b"session", b"", 250).unwrap();
        assert_eq!(sealed[..NAME], [2; NAME]);
        assert_eq!(other.open(&sealed, b"").unwrap(), b"session");
        // Too old, from a clock that is ahead, and not sealed by anybody.
        assert_eq!(other.open(&one.seal(b"session", b"", 150).unwrap(), b""), None);
        assert_eq!(other.open(&one.seal(b"session", b"", 350).unwrap(), b"").unwrap(), b"session");
        // Where something else is asked.
        assert_eq!(other.open(&sealed, b"certificates"), None);
        let mut forged = sealed.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(other.open(&forged, b""), None);
        assert_eq!(other.open(&sealed[..20], b""), None);
    }

    #[test]
    fn without_keys_from_elsewhere_there_are_some_that_change() {
        let tickets = Tickets::new();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        tickets.update(&Model::default(), at(0));
        let first = tickets.seal(b"session", b"", 1).unwrap();
        tickets.update(&Model::default(), at(PERIOD));
        let second = tickets.seal(b"session", b"", PERIOD).unwrap();
        assert_ne!(first[..NAME], second[..NAME]);
        assert!(tickets.open(&first, b"").is_some());
        tickets.update(&Model::default(), at(2 * PERIOD));
        assert!(tickets.open(&first, b"").is_none());
        assert!(tickets.open(&second, b"").is_some());
    }
}
