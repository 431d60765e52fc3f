//! What testssl.sh finds at a gateway: nothing that it would call more than low.

use std::process::{Child, Stdio};
use std::time::SystemTime;

use fairway_tests::api::Target;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CrlDistributionPoint, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, SignatureAlgorithm,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::{Site, secret};

/// Seconds; it takes about ten of a processor, most of them in a shell, and others want the processors, too.
const LIMIT: &str = "300";
/// Before it begins, it has openssl look for a host that is none, dozens of times. Without a name server in
/// reach each of them takes five seconds; without one at all, none.
const NAMELESS: &str = "mount --bind /dev/null /etc/resolv.conf && exec testssl \"$@\"";
/// Protocols, what a site says of itself, its headers, forward secrecy, and all holes with a name.
const ALL: &[&str] = &["-p", "-S", "-h", "-f", "-U"];
/// What has to do with the kind of key.
const KEYS: &[&str] = &["-S"];
/// What testssl.sh has to have found good, so that one that found nothing at all is no success.
const GOOD_OF_ALL: &[&str] = &[
    "SSLv2",
    "SSLv3",
    "TLS1_2",
    "TLS1_3",
    "HSTS_time",
    "HSTS_subdomains",
    "heartbleed",
    "CCS",
    "ticketbleed",
    "ROBOT",
    "secure_renego",
    "CRIME_TLS",
    "POODLE_SSL",
    "SWEET32",
    "LUCKY13",
];
const GOOD_OF_KEYS: &[&str] =
    &["cert_chain_of_trust", "cert_trust", "cert_expirationStatus", "cert_serialNumberLen"];

/// One that is under way.
pub(super) struct Scan {
    host: &'static str,
    good: Vec<&'static str>,
    child: Child,
    folder: tempfile::TempDir,
}

/// Starts to look at the last node's gateway, with a certificate of each kind.
pub(super) fn start(site: &Site) -> Vec<Scan> {
    let all = [GOOD_OF_ALL, GOOD_OF_KEYS].concat();
    vec![
        scan(site, "ecdsa.example.com", &PKCS_ECDSA_P256_SHA256, ALL, all),
        scan(site, "rsa.example.com", &PKCS_RSA_SHA256, KEYS, GOOD_OF_KEYS.to_vec()),
    ]
}

fn scan(
    site: &Site,
    host: &'static str,
    algorithm: &'static SignatureAlgorithm,
    sections: &[&str],
    good: Vec<&'static str>,
) -> Scan {
    let folder = tempfile::tempdir().unwrap();
    let name = host.split('.').next().unwrap();
    let (authority, certificate, key) = certificate(host, algorithm);
    std::fs::write(folder.path().join("ca.pem"), authority).unwrap();
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ingressClassName": "fairway",
            "tls": [{"hosts": [host], "secretName": name}],
            "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "files", "port": {"number": 80}}}}]}}]}});
    site.lab.apply(&secret("shop", name, &certificate, &key)).unwrap();
    site.lab.apply(&object.to_string()).unwrap();
    let node = site.nodes.last().unwrap().to_string();
    let mut command = site.lab.command(Target::Client, "timeout").unwrap();
    command.args([LIMIT, "unshare", "--mount", "sh", "-c", NAMELESS, "sh"]);
    command.args(["--quiet", "--color", "0", "--warnings", "off", "--fast"]);
    command.args(["--nodns", "none", "--openssl-timeout", "5", "--add-ca", "ca.pem"]);
    command.args(["--ip", &node, "--jsonfile", "found.json"]).args(sections).arg(host);
    command.current_dir(&folder).stdin(Stdio::null());
    let said = std::fs::File::create(folder.path().join("said")).unwrap();
    command.stderr(said.try_clone().unwrap()).stdout(said);
    Scan { host, good, child: command.spawn().unwrap(), folder }
}

impl Scan {
    /// Waits for what it finds.
    pub(super) fn finish(mut self) {
        self.child.wait().unwrap();
        let Self { host, good, folder, .. } = self;
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name));
        let said = read("said").unwrap();
        let found = read("found.json").ok().and_then(|text| serde_json::from_str(&text).ok());
        let found: Vec<Value> = found.unwrap_or_else(|| panic!("{host}: no findings: {said}"));
        let of = |severities: &[&str]| -> Vec<_> {
            let fits = |one: &&Value| severities.iter().any(|is| one["severity"] == *is);
            found.iter().filter(fits).filter_map(|one| one["id"].as_str()).collect()
        };
        assert_eq!(of(&["MEDIUM", "HIGH", "CRITICAL", "FATAL"]), [""; 0], "{host}: {said}");
        let fine = of(&["OK", "INFO"]);
        for id in good {
            assert!(fine.iter().any(|found| found.starts_with(id)), "{host}: no {id} in {said}");
        }
    }
}

/// An authority, a certificate for a site as one has it today, and its key, all as PEM.
fn certificate(host: &str, algorithm: &'static SignatureAlgorithm) -> (String, String, String) {
    let now = OffsetDateTime::from(SystemTime::now());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the authority of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap());
    let issuer = issuer.unwrap();
    let mut params = CertificateParams::new([host.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, host);
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(89);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let uris = vec!["http://authority.example.com/revoked.crl".to_owned()];
    params.crl_distribution_points = vec![CrlDistributionPoint { uris }];
    let key = KeyPair::generate_for(algorithm).unwrap();
    let signed = params.signed_by(&key, &issuer).unwrap();
    (issuer.pem(), signed.pem(), key.serialize_pem())
}
