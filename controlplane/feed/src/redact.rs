//! The model as people see it: that there are secrets, and not what they are.

use fairway_model::{Model, Secret, Sensitive, TicketKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::authority::hash;
use crate::identity::{Validity, date};

/// What stands for what is not shown.
const SET: &str = "set";

/// The same, without anything that is for gateways alone.
pub(crate) fn redacted(model: &Model) -> Model {
    let mut shown = model.clone();
    for secret in model.secrets.values() {
        shown.secrets.insert(redacted_secret(secret));
    }
    for key in model.ticket_keys.values() {
        let TicketKey { name, since, key: _ } = key;
        let (name, since) = (name.clone(), *since);
        shown.ticket_keys.insert(TicketKey { name, since, key: Sensitive::new(SET) });
    }
    shown
}

fn redacted_secret(secret: &Secret) -> Secret {
    let Secret { name, certificate, key, ca, ocsp, users } = secret;
    Secret {
        name: name.clone(),
        certificate: certificate.as_deref().map(described),
        key: key.as_ref().map(|_| Sensitive::new(SET)),
        ca: ca.as_deref().map(described),
        ocsp: ocsp.as_ref().map(|_| SET.to_owned()),
        users: users.as_ref().map(|_| Sensitive::new(SET)),
    }
}

/// The first of these certificates: its hash, as `openssl x509 -fingerprint -sha256` has it but for the
/// colons, and until when it is good.
fn described(pem: &str) -> String {
    let Ok(certificate) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
        return "set, without a certificate in PEM".to_owned();
    };
    let until = match Validity::read(&certificate) {
        Ok(validity) => format!("good until {}", date(validity.not_after)),
        Err(_) => "which cannot be read".to_owned(),
    };
    format!("sha256:{}, {until}", hash(&certificate))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use fairway_model::{Node, Object, ObjectName};
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn what_is_there_is_shown_and_what_it_is_is_not() {
        let mut params = CertificateParams::new(["shop.example".to_owned()]).unwrap();
        params.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 32)).into();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let hidden = |text: &str| Some(Sensitive::new(format!("5ec2e7 {text}")));
        let secret = Secret {
            name: ObjectName::new("shop", "tls"),
            certificate: Some(certificate.clone()),
            key: hidden("key"),
            ca: Some("5ec2e7".into()),
            ocsp: Some("5ec2e7".into()),
            users: hidden("users"),
        };
        let users = Secret {
            name: ObjectName::new("shop", "users"),
            users: hidden("users"),
            ..Secret::default()
        };
        let key = Sensitive::new("5ec2e7");
        let tickets = TicketKey { name: "t".into(), since: 7, key };
        let node = Node { name: "n1".into(), ..Node::default() };
        let model: Model = [
            Object::Node(node),
            Object::Secret(secret),
            Object::Secret(users),
            Object::TicketKey(tickets),
        ]
        .into_iter()
        .collect();
        let shown = serde_json::to_value(redacted(&model)).unwrap();
        let text = shown.to_string();
        assert!(!text.contains("5ec2e7") && !text.contains("BEGIN"), "{text}");
        let fingerprint = shown["secrets"][0]["certificate"].as_str().unwrap();
        assert!(fingerprint.starts_with("sha256:"), "{fingerprint}");
        assert!(fingerprint.ends_with(", good until 2106-02-07 06:28:16 UTC"), "{fingerprint}");
        let expected = serde_json::json!({
            "nodes": [{"name": "n1"}],
            "secrets": [
                {"name": {"namespace": "shop", "name": "tls"}, "certificate": fingerprint,
                    "key": "set", "ca": "set, without a certificate in PEM", "ocsp": "set",
                    "users": "set"},
                {"name": {"namespace": "shop", "name": "users"}, "users": "set"},
            ],
            "ticketKeys": [{"name": "t", "since": 7, "key": "set"}],
        });
        assert_eq!(shown, expected);
        for debug in [format!("{model:?}"), format!("{model:#?}")] {
            assert_eq!(debug.matches("Sensitive(…)").count(), 4, "{debug}");
            assert!(!debug.contains("5ec2e7 "), "{debug}");
        }
    }
}
