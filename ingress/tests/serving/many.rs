//! More of something than anybody has: certificates, CAs, hosts.

use std::sync::Arc;
use std::time::Instant;

use fairway_ingress::tls::OWN_NAME;
use fairway_model::{Change, ClientTls, Model, Object, ObjectName, Secret};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::duties::{ask_over_tls, issued};
use super::echo;
use super::support::*;

#[tokio::test]
async fn a_certificate_that_no_client_takes_costs_no_other_host() {
    let backend = backend(echo).await;
    let (one, other) = (Certificate::new("a.example"), Certificate::new("b.example"));
    let world = |other: &Certificate| {
        let world = World::default().service("web", &[backend.address]);
        world.tls("a.example", "web", &one).tls("b.example", "web", other)
    };
    let gateway = gateway(&world(&other)).await;
    // One that is long itself.
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = (0..4000).map(|number| format!("{number}.many.example")).collect();
    let long = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let long = Certificate { pem: long.pem(), key: key.serialize_pem() };
    let thousands = Certificate { pem: other.pem.repeat(10_000), key: other.key.clone() };
    for bomb in [thousands, long] {
        let begun = Instant::now();
        gateway.apply(&world(&bomb).model());
        assert!(begun.elapsed() < PATIENCE);
        // What was there before stays.
        assert_eq!(shown(gateway.https, "b.example").await, other.der());
        assert_eq!(shown(gateway.https, "a.example").await, one.der());
        let certs = ask(gateway.admin, get("localhost", "/certs")).await.1;
        assert!(certs.contains("the chain of certificates is too long"), "{certs}");
    }
    let bomb = Certificate { pem: other.pem.repeat(10_000), key: other.key.clone() };
    let fresh = super::support::gateway(&world(&bomb)).await;
    let own = shown(fresh.https, "b.example").await;
    let (_, own) = x509_parser::parse_x509_certificate(&own).unwrap();
    assert_eq!(own.subject().to_string(), format!("CN={OWN_NAME}"));
}

#[tokio::test]
async fn of_many_hosts_a_change_makes_those_that_it_is_about() {
    let (one, other) = (backend(echo).await, backend(echo).await);
    let mut model = Model::default();
    let put = |model: &mut Model, world: World| {
        world.objects.into_iter().for_each(|object| model.apply(Change::Put(object)));
    };
    let host = |number: u32| World::default().host(&format!("{number}.example"), "web");
    put(&mut model, World::default().service("web", &[one.address]));
    (0..2000).for_each(|number| put(&mut model, host(number)));
    let gateway = gateway(&World::default()).await;
    let made = async || -> u64 {
        let metrics = ask(gateway.admin, get("localhost", "/metrics")).await.1;
        let mut lines = metrics.lines();
        let line =
            lines.find_map(|line| line.strip_prefix("fairway_ingress_compiled_hosts_total "));
        line.unwrap().parse().unwrap()
    };
    let status = async |host| ask(gateway.http, get(host, "/")).await.0;
    gateway.apply(&Arc::new(model.clone()));
    assert_eq!((made().await, status("7.example").await), (2000, 200));

    // A host comes, and one gets another path.
    put(&mut model, host(2000));
    gateway.apply(&Arc::new(model.clone()));
    assert_eq!((made().await, status("2000.example").await), (2001, 200));
    put(
        &mut model,
        World::default().ingress("7.example", "web", |ingress| {
            ingress.rules[0].paths[0].path = "/other".to_owned();
        }),
    );
    gateway.apply(&Arc::new(model.clone()));
    assert_eq!((made().await, status("7.example").await), (2002, 404));
    // Endpoints and certificates make none.
    put(&mut model, World::default().service("web", &[other.address]));
    gateway.apply(&Arc::new(model.clone()));
    let before = other.connections();
    assert_eq!((made().await, status("8.example").await), (2002, 200));
    assert!(other.connections() > before);
    let (first, second) = (Certificate::new("tls.example"), Certificate::new("tls.example"));
    put(&mut model, World::default().tls("tls.example", "web", &first));
    gateway.apply(&Arc::new(model.clone()));
    assert_eq!(shown(gateway.https, "tls.example").await, first.der());
    put(&mut model, World::default().tls("tls.example", "web", &second));
    gateway.apply(&Arc::new(model));
    assert_eq!(shown(gateway.https, "tls.example").await, second.der());
    assert_eq!(made().await, 2003);
}

/// A host that asks for certificates of these authorities.
fn asking(backend: &Server, authorities: String) -> World {
    let served = Certificate::new("a.example");
    let mut world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &served);
    let name = ObjectName::new("shop", "ca");
    for object in &mut world.objects {
        if let Object::Ingress(ingress) = object {
            let secret = name.clone();
            ingress.options.client_tls = Some(ClientTls { secret, ..ClientTls::default() });
        }
    }
    world.with(Object::Secret(Secret { name, ca: Some(authorities), ..Secret::default() }))
}

#[tokio::test]
async fn clients_are_not_told_more_authorities_than_they_can_hear_of() {
    let backend = backend(echo).await;
    let key = KeyPair::generate().unwrap();
    let authority = |number: usize| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("{number} {}", "x".repeat(250));
        params.distinguished_name.push(DnType::CommonName, name);
        params.self_signed(&key).unwrap().pem()
    };
    let all: String = (0..300).map(authority).collect();
    let gateway = gateway(&asking(&backend, all)).await;
    // There is a handshake, and then a word about the certificate that is missing.
    assert_eq!(ask_over_tls(gateway.https, None).await.0, 400);
}

#[tokio::test]
async fn a_client_that_shows_a_chain_without_end_is_not_listened_to() {
    let backend = backend(echo).await;
    let (authority, own) = issued("ann");
    let gateway = gateway(&asking(&backend, authority)).await;
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // More than a message may have, and more than may lie between.
    for (length, status) in [(1000, None), (50, Some("HTTP/1.1 400 "))] {
        let chain = vec![own.der(); length];
        let shown = CertifiedKey::from_der(chain, key.clone_key(), &provider).unwrap();
        let mut config = (*believing("http/1.1")).clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
        let stream = TcpStream::connect(gateway.https).await.unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut said = Vec::new();
        if let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await {
            let request = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(request).await;
            let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("an end");
        }
        let said = String::from_utf8_lossy(&said);
        assert!(status.map_or(said.is_empty(), |status| said.starts_with(status)), "{said}");
        assert_eq!(ask_over_tls(gateway.https, Some(&own)).await.0, 200);
    }
}

#[tokio::test]
async fn one_broken_host_of_ten_thousand_is_the_only_one_that_is_not_served() {
    let backend = backend(echo).await;
    let mut world = World::default().service("web", &[backend.address]);
    for number in 0..10_000 {
        world = world.ingress(&format!("{number}.example"), "web", |ingress| {
            if number == 5000 {
                ingress.options.use_regex = true;
                ingress.rules[0].paths[0].path = "/(".to_owned();
            }
        });
    }
    let gateway = gateway(&world).await;
    let mut open = client(gateway.http).await;
    let mut status = async |host: &str| {
        open.ready().await.unwrap();
        read(open.send_request(get(host, "/")).await.unwrap()).await.0
    };
    for (host, expected) in [
        ("0.example", 200),
        ("4999.example", 200),
        ("5000.example", 503),
        ("9999.example", 200),
        ("10000.example", 404),
    ] {
        assert_eq!(status(host).await, expected, "{host}");
    }
    gateway.apply(&world.host("10000.example", "web").model());
    assert_eq!(status("10000.example").await, 200);
    let metrics = ask(gateway.admin, get("localhost", "/metrics")).await.1;
    assert!(metrics.contains("\nfairway_ingress_problems 1\n"), "{metrics}");
}
