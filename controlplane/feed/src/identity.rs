//! Who is at the other end of a connection, by the URI in its certificate.
//!
//! ```text
//! spiffe://fairway/node/NAME         a node: its own stream, acknowledgements and facts
//! spiffe://fairway/gateway/GROUP     a gateway: its own stream, with the secrets of what it serves
//! spiffe://fairway/gateway/GROUP/REPLICA   the same, one of several with the same to serve
//! spiffe://fairway/operator/NAME     a person or a tool: the model and the state of nodes, to read
//! spiffe://fairway/controlplane      the server
//! ```

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::routes::check_node;

const PREFIX: &str = "spiffe://fairway/";

/// What a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node of this name, and no other.
    Node(String),
    /// A gateway: what it serves is that of its group, and what it acknowledges its own.
    Gateway(GatewayName),
    /// Reads everything, changes nothing.
    Operator(String),
    /// The server of the feed.
    ControlPlane,
}

impl Role {
    /// The URI that stands in its certificate.
    pub fn uri(&self) -> String {
        format!("{PREFIX}{self}")
    }

    fn from_uri(uri: &str) -> Result<Self, NoIdentity> {
        let unknown = || NoIdentity::Role(uri.to_owned());
        let path = uri.strip_prefix(PREFIX).ok_or_else(unknown)?;
        path.parse().map_err(|_| unknown())
    }
}

/// `node/NAME`, `gateway/GROUP`, `gateway/GROUP/REPLICA`, `operator/NAME` or `controlplane`.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Gateway(name) => write!(f, "gateway/{name}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
            Self::ControlPlane => f.write_str("controlplane"),
        }
    }
}

/// The reverse of its `Display`.
impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = match text.split_once('/') {
            Some(("node", name)) => Self::Node(name.to_owned()),
            Some(("gateway", name)) => Self::Gateway(name.parse()?),
            Some(("operator", name)) => Self::Operator(name.to_owned()),
            None if text == "controlplane" => Self::ControlPlane,
            _ => return Err(format!("{text:?} is not node/NAME, gateway/NAME or operator/NAME")),
        };
        match &role {
            Self::Node(name) | Self::Operator(name) => check_node(name)?,
            Self::Gateway(_) | Self::ControlPlane => {}
        }
        Ok(role)
    }
}

/// What a gateway is called. No part has a slash in it, so nobody can call himself something that reads as
/// another group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayName {
    /// What its replicas have in common: the name of what they serve ([`fairway_model::Ingress::gateway`]).
    pub group: String,
    /// Which of them it is; `None` if there is but one.
    pub replica: Option<String>,
}

/// `GROUP` or `GROUP/REPLICA`.
impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.replica {
            Some(replica) => write!(f, "{}/{replica}", self.group),
            None => f.write_str(&self.group),
        }
    }
}

/// The reverse of its `Display`.
impl std::str::FromStr for GatewayName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (group, replica) = match text.split_once('/') {
            Some((group, replica)) => (group, Some(replica)),
            None => (text, None),
        };
        [Some(group), replica].into_iter().flatten().try_for_each(check_node)?;
        Ok(Self { group: group.to_owned(), replica: replica.map(str::to_owned) })
    }
}

/// Whoever holds a certificate that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it may do.
    pub role: Role,
    /// Until when the certificate is good.
    pub not_after: SystemTime,
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// It cannot be read at all.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It has no URI of ours.
    #[error("the certificate names no {PREFIX}... URI")]
    None,
    /// It has more than one: which one is meant?
    #[error("the certificate names more than one {PREFIX}... URI")]
    Several,
    /// Another role than those known.
    #[error(
        "the certificate's URI {0:?} is none of {PREFIX}node/NAME, gateway/NAME, operator/NAME"
    )]
    Role(String),
}

impl Identity {
    /// Reads a certificate that somebody else has verified.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, NoIdentity> {
        let parsed = parse(certificate)?;
        let names = parsed.subject_alternative_name().map_err(|_| NoIdentity::Unreadable)?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(PREFIX) => Some(*uri),
            _ => None,
        });
        let uri = uris.next().ok_or(NoIdentity::None)?;
        if uris.next().is_some() {
            return Err(NoIdentity::Several);
        }
        Ok(Self { role: Role::from_uri(uri)?, not_after: Validity::of(&parsed).not_after })
    }
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Validity {
    /// Of a certificate, which nobody need have verified.
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Result<Self, NoIdentity> {
        Ok(Self::of(&parse(certificate)?))
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let moment = |seconds: i64| {
            // Nobody's certificate is from before 1970.
            UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        };
        let validity = certificate.validity();
        Self {
            not_before: moment(validity.not_before.timestamp()),
            not_after: moment(validity.not_after.timestamp()),
        }
    }

    /// When two thirds of it are over: time to get another.
    pub(crate) fn renewal(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }

    /// Whether it is time to get another: also of one that was made by a clock that was ahead.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        now < self.not_before || now >= self.renewal()
    }

    /// What is wrong with it now.
    pub(crate) fn problem(&self, now: SystemTime) -> Option<String> {
        if now < self.not_before {
            let from = date(self.not_before);
            return Some(format!(
                "is good from {from} on, and this machine's clock says {}",
                date(now)
            ));
        }
        if now > self.not_after {
            let until = date(self.not_after);
            return Some(format!(
                "expired at {until}, and this machine's clock says {}",
                date(now)
            ));
        }
        None
    }
}

/// A certificate in words, for errors.
pub(crate) fn describe(certificate: &CertificateDer<'_>) -> String {
    let Ok(parsed) = parse(certificate) else {
        return "a certificate that cannot be read".to_owned();
    };
    let who = match Identity::of(certificate) {
        Ok(identity) => identity.role.uri(),
        Err(_) => parsed.subject().to_string(),
    };
    let Validity { not_before, not_after } = Validity::of(&parsed);
    format!("the certificate of {who}, good from {} until {}", date(not_before), date(not_after))
}

/// A moment as `2026-11-28 10:00:00 UTC`.
pub(crate) fn date(moment: SystemTime) -> String {
    let at = OffsetDateTime::from(moment);
    let (hour, minute, second) = at.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", at.date())
}

/// The SHA-256 of a CA's public key (its SubjectPublicKeyInfo), by which a node knows the right CA
/// before it has it; what kubeadm calls `--discovery-token-ca-cert-hash`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Of this certificate's key.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, NoIdentity> {
        let parsed = parse(certificate)?;
        let hash = digest(&SHA256, parsed.public_key().raw);
        let mut pin = [0; 32];
        pin.copy_from_slice(hash.as_ref());
        Ok(Self(pin))
    }
}

/// `sha256:` and 64 hexadecimal digits.
impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not sha256: and 64 hexadecimal digits");
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut pin = [0; 32];
        for (byte, at) in pin.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(pin))
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, NoIdentity> {
    let parsed = X509Certificate::from_der(certificate.as_ref());
    parsed.map(|(_, certificate)| certificate).map_err(|_| NoIdentity::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_written_and_read() {
        for text in
            ["node/n1", "gateway/edge.example", "gateway/edge/a-1", "operator/ops", "controlplane"]
        {
            let role: Role = text.parse().unwrap();
            assert_eq!(role.to_string(), text);
            assert_eq!(Role::from_uri(&role.uri()), Ok(role));
        }
        let bad = ["", "node", "node/", "node/a/b", "node/a b", "pod/x", "controlplane/x"];
        let gateways = ["gateway/", "gateway//a", "gateway/a/", "gateway/a/b/c", "gateway/a b"];
        for bad in bad.into_iter().chain(gateways) {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
        assert!(Role::from_uri("spiffe://elsewhere/node/n1").is_err());
    }

    #[test]
    fn pins_are_written_and_read() {
        let text = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
        for bad in ["", "sha256:", "0f", &text[..70], &text.replace("0f", "+f")] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_says_when_it_is_good() {
        let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 3600);
        let validity = Validity { not_before: at(24), not_after: at(54) };
        assert_eq!(validity.renewal(), at(44));
        let due = [23, 24, 43, 44, 55].map(|hours| validity.is_due(at(hours)));
        assert_eq!(due, [true, false, false, true, true]);
        assert_eq!(validity.problem(at(30)), None);
        let early = "is good from 1970-01-02 00:00:00 UTC on, and this machine's clock says 1970-01-01 01:00:00 UTC";
        assert_eq!(validity.problem(at(1)).as_deref(), Some(early));
        let late = "expired at 1970-01-03 06:00:00 UTC, and this machine's clock says 1970-01-03 07:00:00 UTC";
        assert_eq!(validity.problem(at(55)).as_deref(), Some(late));
    }
}
