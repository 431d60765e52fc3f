//! What a gateway must know and nobody else may.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ObjectName;

/// Bytes of a chain of certificates, each with its length: clients take no longer messages than 64 KiB.
pub const MAX_CHAIN: usize = 48 << 10;

/// Text that is for its owner's eyes alone: it goes to whoever needs it and to nothing that is printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sensitive(String);

impl Sensitive {
    /// Keeps `text` from being printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Sensitive {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Says that there is something, not what.
impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sensitive(…)")
    }
}

/// What the routes of a gateway name of a Kubernetes Secret, and nothing else of it. Only gateways that
/// have such a route get it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its namespace and name.
    pub name: ObjectName,
    /// `tls.crt`: certificates as PEM, the one that is shown first, then those that vouch for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// `tls.key`: the private key of the first of them, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Sensitive>,
    /// `ca.crt`: whose certificates to believe, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// `tls.ocsp-staple`: what the certificate's issuer says of it, DER in Base64 (RFC 6960).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<String>,
    /// Users and what their passwords are checked against: lines of `user:hash`, as `htpasswd` writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Sensitive>,
}

/// What gateways seal TLS sessions with, so that a client that comes back may be served by any of them
/// (RFC 5077, RFC 8446 4.6.1). It is never written to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    /// 16 bytes as hexadecimal digits, by which a ticket says what it was sealed with.
    pub name: String,
    /// When sessions begin to be sealed with it, in seconds since 1970: the youngest whose time has come
    /// is used for new ones, those with an earlier time for what they have sealed.
    pub since: u64,
    /// 32 bytes as hexadecimal digits.
    pub key: Sensitive,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sensitive_is_sent_but_not_printed() {
        let secret = Secret { key: Some(Sensitive::new("the key")), ..Secret::default() };
        assert!(!format!("{secret:?} {secret:#?}").contains("the key"));
        assert!(serde_json::to_string(&secret).unwrap().contains("the key"));
    }
}
