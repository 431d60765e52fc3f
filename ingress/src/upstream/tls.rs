//! TLS to backends.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use fairway_model::{BackendTls, Model, ObjectName, Secret};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::tls::{certificates, private_key, roots};

/// Configurations by what they were made of. Two that differ in anything never share a connection, so each
/// has a number of its own.
#[derive(Debug)]
pub(crate) struct Configs {
    provider: Arc<CryptoProvider>,
    known: RwLock<HashMap<Key, Config>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    verify: bool,
    server_name: bool,
    http2: bool,
    secret: Option<ObjectName>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Unlike that of any other.
    pub(crate) number: u64,
    pub(crate) tls: Arc<ClientConfig>,
    secret: Option<Secret>,
}

/// In place of a name that does not matter.
const NOBODY: &str = "backend.invalid";

static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Configs {
    /// With what `before` knew, of Secrets that are what they were.
    pub(crate) fn new(
        provider: &Arc<CryptoProvider>,
        before: Option<&Self>,
        model: &Model,
    ) -> Self {
        let mut known = HashMap::new();
        if let Some(before) = before {
            let before = before.known.read().unwrap_or_else(PoisonError::into_inner);
            let same = |(key, config): &(&Key, &Config)| {
                let now = key.secret.as_ref().and_then(|name| model.secrets.get(name));
                now == config.secret.as_ref()
            };
            let same = before.iter().filter(same);
            known = same.map(|(key, config)| (key.clone(), config.clone())).collect();
        }
        Self { provider: Arc::clone(provider), known: RwLock::new(known) }
    }

    /// The configuration for backends that are checked so, and the name that is asked for.
    ///
    /// # Errors
    /// When what it takes to check is not there: such a backend is not talked to.
    pub(crate) fn get(
        &self,
        tls: &BackendTls,
        host: &str,
        http2: bool,
        model: &Model,
    ) -> Result<(Config, ServerName<'static>), String> {
        // Where nobody hears it and nothing is checked by it, connections are not to differ by it: clients make up
        // hosts.
        let matters = tls.verify || tls.server_name;
        let name = if matters { tls.name.as_deref().unwrap_or(host) } else { NOBODY };
        let name = match ServerName::try_from(name.to_owned()) {
            Ok(name) => name,
            Err(_) if tls.verify => return Err(format!("{name:?} is not a name of a server")),
            Err(_) => ServerName::try_from(NOBODY).map_err(|error| error.to_string())?,
        };
        let (verify, server_name, secret) = (tls.verify, tls.server_name, tls.secret.clone());
        let key = Key { verify, server_name, http2, secret };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(config) = known {
            return Ok((config, name));
        }
        let config = self.make(&key, model)?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let config = known.entry(key).or_insert(config);
        Ok((config.clone(), name))
    }

    fn make(&self, key: &Key, model: &Model) -> Result<Config, String> {
        let secret = key.secret.as_ref().and_then(|name| model.secrets.get(name));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let ca = secret.and_then(|secret| secret.ca.as_deref());
        let builder = if key.verify {
            let ca = ca.ok_or("there is no CA to check the backend's certificate with")?;
            let roots = Arc::new(roots(ca)?);
            let provider = Arc::clone(&self.provider);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            builder.with_webpki_verifier(verifier.map_err(|error| error.to_string())?)
        } else {
            let anybody = Arc::new(Anybody(Arc::clone(&self.provider)));
            builder.dangerous().with_custom_certificate_verifier(anybody)
        };
        let own = secret.and_then(|secret| secret.certificate.as_ref().zip(secret.key.as_ref()));
        let mut config = match own {
            Some((chain, key)) => builder
                .with_client_auth_cert(certificates(chain)?, private_key(key)?)
                .map_err(|error| error.to_string())?,
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = key.server_name;
        config.alpn_protocols = vec![if key.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Ok(Config { number, tls: Arc::new(config), secret: secret.cloned() })
    }
}

/// Believes any certificate, if only whoever shows it has its key.
struct Anybody(Arc<CryptoProvider>);

impl fmt::Debug for Anybody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Anybody")
    }
}

impl ServerCertVerifier for Anybody {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_matter_is_always_the_same() {
        let model = Model::default();
        let configs = Configs::new(&crate::tls::provider(), None, &model);
        let name = |server_name, host| {
            let tls = BackendTls { server_name, ..BackendTls::default() };
            configs.get(&tls, host, false, &model).unwrap().1
        };
        assert_eq!(name(false, "a.example"), name(false, "b.example"));
        assert_ne!(name(true, "a.example"), name(true, "b.example"));
    }
}
