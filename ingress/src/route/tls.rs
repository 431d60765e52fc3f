//! Which certificate a name gets, and what else is particular about its TLS.

use fairway_model::{ClientTls, ObjectName, TlsVersion};

use super::{Named, Table, Target, wildcard};
use crate::shared::Shared;

/// The certificates of names.
#[derive(Clone, Debug, Default)]
pub(super) struct Certificates {
    /// By name; `None`: the gateway's own.
    pub(super) exact: Shared<String, Option<ObjectName>>,
    /// By what is behind `*.`.
    pub(super) wildcards: Shared<String, Option<ObjectName>>,
    /// That of an Ingress, for names that nobody has one for.
    pub(super) unnamed: Option<ObjectName>,
    /// That of the gateway.
    pub(super) default: Option<ObjectName>,
}

/// Which certificate a name gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate<'t> {
    /// The Secret that it is in; `None`: one that the gateway makes and signs itself.
    pub secret: Option<&'t ObjectName>,
    /// Why that one.
    pub why: Why,
}

/// Why a name gets a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Why {
    /// An Ingress has it for this name.
    #[error("it is for this name")]
    Exact,
    /// An Ingress has it for all names one label longer than another one.
    #[error("it is for all names of one more label")]
    Wildcard,
    /// An Ingress has it for names that nobody has one for.
    #[error("it is an Ingress' for names that nobody has one for")]
    Unnamed,
    /// It is the gateway's.
    #[error("nobody has one for the name, and it is the gateway's")]
    Default,
    /// There is none.
    #[error("nobody has one for the name, nor has the gateway")]
    Nobody,
}

/// What is particular about a host's TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTls<'t> {
    /// What is asked of clients' certificates. Whether they are served without a good one is for
    /// [`Table::decide`] to say, so handshakes must not end for that. Its Secret may be missing: then
    /// nobody is served.
    pub client: Option<&'t ClientTls>,
    /// The oldest version.
    pub min_version: Option<TlsVersion>,
    /// The cipher suites by OpenSSL's names; none: all that there are.
    pub ciphers: &'t [String],
    /// TLS is not ended here: this gets the connection as it is.
    pub passthrough: Option<&'t Target>,
}

impl Table {
    /// The certificate for `name`, in lower case, that a client has asked for (SNI).
    pub fn certificate(&self, name: Option<&str>) -> Certificate<'_> {
        let Certificates { exact, wildcards, unnamed, default } = &self.certificates;
        let of_name = name.and_then(|name| {
            let exact = exact.get(name).map(|secret| (secret, Why::Exact));
            exact.or_else(|| wildcard(wildcards, name).map(|secret| (secret, Why::Wildcard)))
        });
        if let Some((Some(secret), why)) = of_name {
            return Certificate { secret: Some(secret), why };
        }
        match (unnamed, default) {
            (Some(secret), _) => Certificate { secret: Some(secret), why: Why::Unnamed },
            (None, Some(secret)) => Certificate { secret: Some(secret), why: Why::Default },
            (None, None) => Certificate { secret: None, why: Why::Nobody },
        }
    }

    /// The names that Ingresses have certificates for (`*.example.com`; empty: whatever nobody has one for), and
    /// the Secrets that they are in (`None`: the gateway's own), sorted.
    pub fn certificates(&self) -> Vec<(String, Option<&ObjectName>)> {
        let Certificates { exact, wildcards, unnamed, .. } = &self.certificates;
        let exact = exact.iter().map(|(name, secret)| (name.clone(), secret.as_ref()));
        let wildcards =
            wildcards.iter().map(|(name, secret)| (format!("*.{name}"), secret.as_ref()));
        let unnamed = unnamed.iter().map(|secret| (String::new(), Some(secret)));
        let mut all: Vec<_> = exact.chain(wildcards).chain(unnamed).collect();
        all.sort();
        all
    }

    /// What is particular about the TLS of `name`, in lower case, that a client has asked for (SNI).
    pub fn host_tls(&self, name: Option<&str>) -> HostTls<'_> {
        let host = match name.map(|name| (self.named(name), name)) {
            Some((Some(Named::Host(host)), _)) => Some(host),
            Some((Some(Named::Twin(_)), _)) => None,
            Some((None, name)) => self.unnamed(name),
            None => self.any.as_ref(),
        };
        let nobodys = HostTls {
            client: self.certified.as_ref().map(|certified| &certified.tls),
            min_version: self.min_tls,
            ciphers: &self.ciphers,
            passthrough: None,
        };
        host.map_or(nobodys, |host| HostTls {
            client: host.certified.as_ref().map(|certified| &certified.tls),
            min_version: host.min_tls,
            ciphers: &host.ciphers,
            passthrough: host.passthrough.as_ref(),
        })
    }
}

impl Certificates {
    /// Whether an Ingress says that `name` is served with TLS.
    pub(super) fn has(&self, name: &str) -> bool {
        self.exact.contains_key(name) || wildcard(&self.wildcards, name).is_some()
    }
}
