//! The DNS server's Service, which a folder of manifests need not have.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::manifests::{self, DEFAULT_NODE_PORTS, Options, Source};
use fairway_model::{Model, Service};
use tempfile::TempDir;
use tokio::time::timeout;

struct Folder {
    dir: TempDir,
    state: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() }
    }

    /// Writes a Service of that namespace and name with this text for its `spec`.
    fn write(&self, namespace: &str, name: &str, spec: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n{spec}"
        );
        fs::write(self.dir.path().join(format!("{name}.yaml")), text).unwrap();
    }

    fn start(&self, ranges: &[&str]) -> Source {
        manifests::start(Options {
            dir: self.dir.path().to_owned(),
            state_dir: self.state.path().to_owned(),
            service_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            node_port_range: DEFAULT_NODE_PORTS,
            local: None,
            resolver: Some(manifests::default_resolver()),
        })
        .unwrap()
    }
}

async fn model_where(source: &mut Source, wanted: impl Fn(&Model) -> bool) -> Arc<Model> {
    let fits = |model: &Option<Arc<Model>>| model.as_deref().is_some_and(&wanted);
    let found = timeout(Duration::from_secs(20), source.model.wait_for(fits)).await;
    found.expect("the model never became as wanted").unwrap().clone().unwrap()
}

fn dns(model: &Model) -> Option<&Service> {
    model.services.get(&manifests::default_resolver())
}

/// The addresses of the DNS server's Service.
async fn addresses(source: &mut Source) -> Vec<IpAddr> {
    let model = model_where(source, |model| dns(model).is_some()).await;
    dns(&model).unwrap().cluster_ips.clone()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn it_is_at_the_tenth_address_of_each_range() {
    let folder = Folder::new();
    let mut source = folder.start(&["10.96.0.0/12", "fd00:10:96::/112"]);
    assert_eq!(addresses(&mut source).await, ips(&["10.96.0.10", "fd00:10:96::a"]));
    let model = source.model.borrow().clone().unwrap();
    let ports = &dns(&model).unwrap().ports;
    let ports: Vec<_> =
        ports.iter().map(|of| (&*of.name, of.port, of.protocol.to_string())).collect();
    assert_eq!(ports, [("dns", 53, "UDP".to_owned()), ("dns-tcp", 53, "TCP".to_owned())]);
    assert!(source.problems.borrow().is_empty());
}

#[tokio::test]
async fn a_range_without_a_tenth_address_has_room_for_it_all_the_same() {
    let folder = Folder::new();
    let mut source = folder.start(&["10.96.0.0/29"]);
    assert_eq!(addresses(&mut source).await.len(), 1);
}

#[tokio::test]
async fn the_folders_own_is_the_one_there_is_as_long_as_it_is_there() {
    let folder = Folder::new();
    let spec = "  clusterIP: 10.96.0.53\n  ports:\n  - port: 53\n    protocol: UDP\n";
    folder.write("kube-system", "kube-dns", spec);
    let mut source = folder.start(&["10.96.0.0/12"]);
    assert_eq!(addresses(&mut source).await, ips(&["10.96.0.53"]));
    fs::remove_file(folder.dir.path().join("kube-dns.yaml")).unwrap();
    let made = ips(&["10.96.0.10"]);
    model_where(&mut source, |model| dns(model).is_some_and(|of| of.cluster_ips == made)).await;
}

#[tokio::test]
async fn whoever_asks_for_its_address_has_it() {
    let folder = Folder::new();
    let mut source = folder.start(&["10.96.0.0/12"]);
    addresses(&mut source).await;
    let spec = "  clusterIP: 10.96.0.10\n  ports:\n  - port: 53\n    protocol: UDP\n";
    folder.write("dns", "coredns", spec);
    let model = model_where(&mut source, |model| dns(model).is_none()).await;
    let found: Vec<_> = model.services.values().flat_map(|of| of.cluster_ips.clone()).collect();
    assert_eq!(found, ips(&["10.96.0.10"]));
    assert!(source.problems.borrow().is_empty());
}

#[tokio::test]
async fn an_empty_folder_stays_one_over_a_restart() {
    let folder = Folder::new();
    for _ in 0..2 {
        let mut source = folder.start(&["10.96.0.0/12"]);
        assert_eq!(addresses(&mut source).await, ips(&["10.96.0.10"]));
    }
}
