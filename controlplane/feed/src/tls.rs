//! TLS 1.3 on the way between server and clients, each of which shows a certificate.
//!
//! A client takes whom it dials for the control plane if its certificate comes from the feed's CA and
//! says so ([`Role::ControlPlane`](crate::identity::Role::ControlPlane)), or, if it has no URI of ours,
//! is one for the address that was dialled. No name is ever looked up for that. Sessions are not resumed:
//! each connection looks at certificates and clocks anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, SupportedProtocolVersion};

pub use client::{Client, JoinToken, PodIdentity};
pub use server::Server;

mod client;
mod server;

/// HTTP/2, as ALPN says it.
const H2: &[u8] = b"h2";
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Where an end finds what it is and whom it trusts, all as PEM. They are read again when they change,
/// so that whoever renews them (cert-manager, an administrator) need tell nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The CA that the other end's certificate comes from.
    pub ca: PathBuf,
    /// The end's own certificate, and those between it and the CA.
    pub certificate: PathBuf,
    /// Its key; may be the same file.
    pub key: PathBuf,
}

/// What [`Files`] hold.
struct Loaded {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Files {
    fn load(&self) -> io::Result<Loaded> {
        let key = in_file(&self.key, PrivateKeyDer::from_pem_file(&self.key))?;
        Ok(Loaded { roots: roots(&self.ca)?, chain: certificates(&self.certificate)?, key })
    }
}

/// Trust in all certificates of a file.
fn roots(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        in_file(path, roots.add(certificate))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(path).map_err(|error| about(path, error.kind(), &error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = in_file(path, certificates)?;
    match certificates.is_empty() {
        true => Err(about(path, io::ErrorKind::InvalidData, &"there is no certificate in it")),
        false => Ok(certificates),
    }
}

fn in_file<T>(path: &Path, read: Result<T, impl std::fmt::Display>) -> io::Result<T> {
    read.map_err(|error| about(path, io::ErrorKind::InvalidData, &error))
}

fn about(path: &Path, kind: io::ErrorKind, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(kind, format!("{}: {error}", path.display()))
}

/// An error about somebody's certificate, that tells which one.
fn refused(error: rustls::Error, certificate: &CertificateDer<'_>) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(why) => rustls::Error::General(format!(
            "{}: {}",
            crate::identity::describe(certificate),
            // What it says of the time is in seconds since 1970.
            match why {
                rustls::CertificateError::Expired
                | rustls::CertificateError::ExpiredContext { .. } =>
                    format!("expired; this machine's clock says {}", now()),
                rustls::CertificateError::NotValidYet
                | rustls::CertificateError::NotValidYetContext { .. } =>
                    format!("not valid yet; this machine's clock says {}", now()),
                // Two CAs of one name differ in their keys alone.
                rustls::CertificateError::UnknownIssuer
                | rustls::CertificateError::BadSignature => "is not from the feed's CA".to_owned(),
                other => other.to_string(),
            }
        )),
        error => error,
    }
}

fn now() -> String {
    crate::identity::date(std::time::SystemTime::now())
}
