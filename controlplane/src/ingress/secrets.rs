//! What of a Secret goes to gateways: what somebody names it for, if it is good for that, and nothing else.
//! No message says anything of what is in it.

use fairway_model::{MAX_CHAIN, Secret, Sensitive};
use rustls::Error::InconsistentKeys;
use rustls::InconsistentKeys::{KeyMismatch, Unknown};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::kubernetes::data;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
const OCSP: &str = "tls.ocsp-staple";
const USERS: &str = "auth";
/// The types of Secrets that may have a certificate.
const TLS: [&str; 2] = ["kubernetes.io/tls", "Opaque"];

/// What a Secret is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// A host's certificate and key.
    Tls,
    /// A file of users (`auth`).
    Users,
    /// A user by each key.
    UsersByKey,
    /// Whose certificates clients show.
    ClientCa,
    /// Whose certificates backends show, and what is shown to them.
    Backend,
}

impl Role {
    /// Adds to `made` what it wants of the Secret.
    ///
    /// # Errors
    /// The Secret is not good for it; nothing was added.
    pub(super) fn take(self, secret: &data::Secret, made: &mut Secret) -> Result<(), String> {
        let text = |key: &str| secret.text(key).map_err(|wrong| format!("{key} is {wrong}"));
        let needed = |key: &str| text(key)?.ok_or_else(|| format!("{key} is not there"));
        match self {
            Self::Tls => {
                let kind = &secret.r#type;
                if !TLS.contains(&kind.as_str()) {
                    return Err(format!("its type is {kind:.100}, where {} is needed", TLS[0]));
                }
                let (certificate, key) = (needed(CERTIFICATE)?, needed(KEY)?);
                check_pair(&certificate, &key)?;
                made.ocsp = secret.base64(OCSP).map_err(|wrong| format!("{OCSP} is {wrong}"))?;
                (made.certificate, made.key) = (Some(certificate), Some(Sensitive::new(key)));
            }
            Self::Users => made.users = Some(Sensitive::new(users(&needed(USERS)?)?)),
            Self::UsersByKey => {
                let mut lines = String::new();
                for user in secret.keys().filter(|user| !user.contains(':')) {
                    lines += &format!("{user}:{}\n", needed(user)?.trim());
                }
                made.users = Some(Sensitive::new(users(&lines)?));
            }
            Self::ClientCa => {
                let ca = needed(CA)?;
                certificates(CA, &ca)?;
                made.ca = Some(ca);
            }
            Self::Backend => {
                let (ca, certificate, key) = (text(CA)?, text(CERTIFICATE)?, text(KEY)?);
                if let Some(ca) = &ca {
                    certificates(CA, ca)?;
                }
                match (certificate, key) {
                    (Some(certificate), Some(key)) => {
                        check_pair(&certificate, &key)?;
                        (made.certificate, made.key) =
                            (Some(certificate), Some(Sensitive::new(key)));
                    }
                    _ if ca.is_some() => {}
                    _ => return Err(format!("neither {CA} nor {CERTIFICATE} with {KEY} is there")),
                }
                made.ca = ca.or(made.ca.take());
            }
        }
        Ok(())
    }

    /// Adds to `made` what it took before.
    pub(super) fn keep(self, last: &Secret, made: &mut Secret) {
        let last = last.clone();
        if matches!(self, Self::Tls | Self::Backend) && made.certificate.is_none() {
            (made.certificate, made.key, made.ocsp) = (last.certificate, last.key, last.ocsp);
        }
        if matches!(self, Self::ClientCa | Self::Backend) && made.ca.is_none() {
            made.ca = last.ca;
        }
        if matches!(self, Self::Users | Self::UsersByKey) && made.users.is_none() {
            made.users = last.users;
        }
    }
}

/// Lines of a user and a hash, without comments.
fn users(text: &str) -> Result<String, String> {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut users = String::new();
    for line in lines {
        match line.split_once(':') {
            Some((user, hash)) if !user.is_empty() && !hash.is_empty() => {
                users += line;
                users.push('\n');
            }
            _ => return Err("a line of it is not USER:HASH, as htpasswd writes it".to_owned()),
        }
    }
    match users.is_empty() {
        true => Err("it has no users".to_owned()),
        false => Ok(users),
    }
}

fn certificates(key: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.ok().filter(|all| !all.is_empty());
    let all = all.ok_or_else(|| format!("{key} has no certificate in PEM"))?;
    match all.iter().all(|one| X509Certificate::from_der(one).is_ok()) {
        true => Ok(all),
        false => Err(format!("{key} has a certificate that cannot be read")),
    }
}

fn check_pair(certificate: &str, key: &str) -> Result<(), String> {
    let too_long = || format!("the chain of certificates in {CERTIFICATE} is too long for clients");
    // Base64, with something between them.
    if certificate.len() > 3 * MAX_CHAIN {
        return Err(too_long());
    }
    let chain = certificates(CERTIFICATE, certificate)?;
    if chain.iter().map(|one| one.len() + 5).sum::<usize>() > MAX_CHAIN {
        return Err(too_long());
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).ok();
    let key = key.and_then(|key| any_supported_type(&key).ok());
    let key = key.ok_or_else(|| format!("{KEY} has no private key in PEM that can be read"))?;
    match CertifiedKey::new(chain, key).keys_match() {
        Err(InconsistentKeys(KeyMismatch)) => {
            Err(format!("{KEY} is not the key of the certificate in {CERTIFICATE}"))
        }
        // As gateways judge it.
        Ok(()) | Err(InconsistentKeys(Unknown)) => Ok(()),
        Err(error) => Err(format!("the certificate in {CERTIFICATE} cannot be used: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of X.509's first version, which no gateway takes; and its key.
    const OLD: [&str; 2] = [
        "-----BEGIN CERTIFICATE-----
MIIBJDCBywIUVoL3TfdNvU4OhLpcBN1XzehlXwAwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJYS5leGFtcGxlMCAXDTI2MTEyODIxNDAyMloYDzIxMjYxMTA0MjE0MDIy
WjAUMRIwEAYDVQQDDAlhLmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQ7v/FVIG9w6npZwV10929s4SFlZmH2BKGqeO2oOKq1DqisyTxbLJBIOaVq7ja2
LDLmMcqcBFO22C6Xwgat1RllMAoGCCqGSM49BAMCA0gAMEUCIFro+1ZGnPnEZJPb
nkVFDJO30tceC65GtMTBJnitAXXBAiEAk/aNN9zqWp+0oSFOTLNXYxCVqyVOf8mm
/9eWgQ9WnRw=
-----END CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHrIPRLXlKhfCus0u
IRhXbJ4Xbh3wnQB/FO8ElQEIfFihRANCAAQ7v/FVIG9w6npZwV10929s4SFlZmH2
BKGqeO2oOKq1DqisyTxbLJBIOaVq7ja2LDLmMcqcBFO22C6Xwgat1Rll
-----END PRIVATE KEY-----",
    ];

    #[test]
    fn what_gateways_cannot_use_is_named_before_they_get_it() {
        let wrong = check_pair(OLD[0], OLD[1]).unwrap_err();
        assert!(wrong.starts_with("the certificate in tls.crt cannot be used: "), "{wrong}");
        for number in [200, 2000] {
            let wrong = check_pair(&format!("{}\n", OLD[0]).repeat(number), OLD[1]).unwrap_err();
            assert!(wrong.contains("too long for clients"), "{wrong}");
        }
    }
}
