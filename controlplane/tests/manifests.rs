//! A folder that changes, and the model that follows.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::manifests::{
    self, DEFAULT_NODE_PORTS, Error, LocalNode, LocalPod, Options, Source,
};
use fairway_model::{EndpointState, Model, Node, Object, ObjectName, Service, ServiceRange};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder of manifests and a state folder.
struct Cluster {
    dir: TempDir,
    state: TempDir,
}

impl Cluster {
    fn new(files: &[(&str, String)]) -> Self {
        let cluster =
            Self { dir: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            cluster.write(name, text);
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn options(&self) -> Options {
        Options {
            dir: self.dir.path().to_owned(),
            state_dir: self.state.path().to_owned(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            node_port_range: DEFAULT_NODE_PORTS,
            local: None,
            resolver: None,
        }
    }

    fn start(&self) -> Source {
        manifests::start(self.options()).unwrap()
    }
}

async fn model_where(source: &mut Source, wanted: impl Fn(&Model) -> bool) -> Arc<Model> {
    let fits = |model: &Option<Arc<Model>>| model.as_deref().is_some_and(&wanted);
    let found = timeout(PATIENCE, source.model.wait_for(fits)).await;
    found.expect("the model never became as wanted").unwrap().clone().unwrap()
}

/// Waits until exactly this is wrong; paths without the folder's.
async fn problems(cluster: &Cluster, source: &mut Source, expected: &[&str]) {
    let prefix = format!("{}/", cluster.dir.path().display());
    let texts = |problems: &[manifests::Problem]| -> Vec<String> {
        problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    };
    let fits = |problems: &Vec<manifests::Problem>| texts(problems) == expected;
    if timeout(PATIENCE, source.problems.wait_for(fits)).await.is_err() {
        let found = source.problems.borrow();
        assert_eq!(texts(&found), expected);
    }
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n{spec}"
    )
}

fn node_port(name: &str, number: u16) -> String {
    service(name, &format!("  type: NodePort\n  ports:\n  - port: 80\n    nodePort: {number}\n"))
}

fn plain(name: &str) -> String {
    service(name, "  ports:\n  - port: 80\n")
}

fn shop(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn has(model: &Model, names: &[&str]) -> bool {
    model.services.keys().map(|name| name.name.as_str()).eq(names.iter().copied())
}

fn numbers(service: &Service) -> Vec<Option<u16>> {
    service.ports.iter().map(|port| port.node_port).collect()
}

#[tokio::test]
async fn an_empty_folder_is_an_empty_model_and_a_missing_one_an_error() {
    let cluster = Cluster::new(&[]);
    let mut source = cluster.start();
    let cidrs = cluster.options().service_cidrs;
    let range = Object::ServiceRange(ServiceRange { name: "kubernetes".into(), cidrs });
    assert_eq!(*model_where(&mut source, |_| true).await, [range].into_iter().collect());

    let mut options = cluster.options();
    options.dir = cluster.path("missing");
    assert!(matches!(manifests::start(options), Err(Error::Folder(..))));
    // One process a state folder.
    assert!(matches!(manifests::start(cluster.options()), Err(Error::Busy(_))));
}

#[tokio::test]
async fn files_come_change_and_go() {
    let cluster = Cluster::new(&[("web.yaml", plain("web")), ("notes.txt", "not: [".into())]);
    let mut source = cluster.start();
    let first = model_where(&mut source, |model| has(model, &["web"])).await;

    // In a folder made later, by the rename that a careful writer uses.
    fs::create_dir(cluster.path("more")).unwrap();
    cluster.write("more/.api.yaml.tmp", &plain("api"));
    fs::rename(cluster.path("more/.api.yaml.tmp"), cluster.path("more/api.yaml")).unwrap();
    model_where(&mut source, |model| has(model, &["api", "web"])).await;

    cluster.write("web.yaml", &plain("shop-front"));
    model_where(&mut source, |model| has(model, &["api", "shop-front"])).await;

    fs::remove_dir_all(cluster.path("more")).unwrap();
    model_where(&mut source, |model| has(model, &["shop-front"])).await;

    // The same name finds its old address.
    cluster.write("web.yaml", &plain("web"));
    let last = model_where(&mut source, |model| has(model, &["web"])).await;
    assert_eq!(last, first);
    problems(&cluster, &mut source, &[]).await;
}

#[tokio::test]
async fn what_is_broken_keeps_its_last_good_state() {
    let both = format!("{}---\n{}", plain("api"), plain("web"));
    let cluster = Cluster::new(&[("both.yaml", both.clone()), ("other.yaml", plain("other"))]);
    let mut source = cluster.start();
    let good = model_where(&mut source, |model| has(model, &["api", "other", "web"])).await;

    // An object that cannot be read, while the rest of its file goes on.
    cluster.write(
        "both.yaml",
        &format!("{}---\n{}", plain("api"), node_port("web", 0).replace("80", "x")),
    );
    problems(
        &cluster,
        &mut source,
        &["both.yaml:18: Service shop/web: spec.ports[0].port: invalid type: string \"x\", expected a port number"],
    )
    .await;
    assert_eq!(*source.model.borrow(), Some(good.clone()));

    // A document that cannot even be named.
    cluster.write("both.yaml", &format!("{}---\nspec: [\n", plain("api")));
    problems(&cluster, &mut source, &["both.yaml:10: unclosed bracket '['"]).await;
    assert_eq!(*source.model.borrow(), Some(good.clone()));

    // A file that somebody is about to write.
    cluster.write("both.yaml", "");
    problems(
        &cluster,
        &mut source,
        &["both.yaml: the file is empty; what it held stays in force until the file has contents \
           again or is removed"],
    )
    .await;
    assert_eq!(*source.model.borrow(), Some(good.clone()));

    // Others are free to change all the while.
    fs::remove_file(cluster.path("other.yaml")).unwrap();
    model_where(&mut source, |model| has(model, &["api", "web"])).await;

    cluster.write("both.yaml", &both);
    problems(&cluster, &mut source, &[]).await;
    fs::remove_file(cluster.path("both.yaml")).unwrap();
    model_where(&mut source, |model| has(model, &[])).await;
}

/// A NetworkPolicy whose only rule has this peer.
fn policy(peer: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec:
  ingress:
  - from:
    - {peer}
"
    )
}

/// How many rules the only policy has for what its pods receive.
fn rules(model: &Model) -> Option<usize> {
    Some(model.policies.values().next()?.ingress.as_ref()?.len())
}

#[tokio::test]
async fn a_policy_that_breaks_keeps_its_last_good_state_and_one_that_never_was_good_denies() {
    let cluster = Cluster::new(&[("p.yaml", policy("{podSelector: {}}"))]);
    let mut source = cluster.start();
    let good = model_where(&mut source, |model| rules(model) == Some(1)).await;
    let wrong = "p.yaml:7: NetworkPolicy shop/p: spec.ingress[0].from[0]: needs a podSelector, a \
                 namespaceSelector or an ipBlock";
    let never = "p.yaml:1: NetworkPolicy shop/p: it never could be read, so that what it may \
                 restrict is denied until it is mended or removed";
    cluster.write("p.yaml", &policy("{}"));
    problems(&cluster, &mut source, &[wrong]).await;
    assert_eq!(*source.model.borrow(), Some(good.clone()));

    // Also across a restart...
    drop(source);
    let mut source = cluster.start();
    problems(&cluster, &mut source, &[wrong]).await;
    assert_eq!(*source.model.borrow(), Some(good));
    drop(source);

    // ...but not for somebody who never saw it.
    let again = Cluster::new(&[("p.yaml", policy("{}"))]);
    let mut source = again.start();
    problems(&again, &mut source, &[never, wrong]).await;
    assert_eq!(rules(source.model.borrow().as_ref().unwrap()), Some(0));
    // What stands in for it stays as long as it may be there...
    again.write("p.yaml", "spec: [");
    problems(&again, &mut source, &["p.yaml:1: unclosed bracket '['"]).await;
    assert_eq!(rules(source.model.borrow().as_ref().unwrap()), Some(0));
    // ...and is not taken for a good state of it at the next start.
    again.write("p.yaml", &policy("{}"));
    problems(&again, &mut source, &[never, wrong]).await;
    drop(source);
    let mut source = again.start();
    problems(&again, &mut source, &[never, wrong]).await;
    again.write("p.yaml", &policy("{podSelector: {}}"));
    model_where(&mut source, |model| rules(model) == Some(1)).await;
    std::fs::remove_file(again.path("p.yaml")).unwrap();
    model_where(&mut source, |model| model.policies.is_empty()).await;
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_wins() {
    let cluster =
        Cluster::new(&[("a.yaml", node_port("web", 30001)), ("b.yaml", node_port("web", 30002))]);
    let mut source = cluster.start();
    let prefix = cluster.dir.path().display();
    let expected =
        format!("b.yaml:1: Service shop/web: it is also in {prefix}/a.yaml:1, which wins");
    let expected = expected.replace(&format!("{prefix}/"), "");
    problems(&cluster, &mut source, &[&expected]).await;
    let model = model_where(&mut source, |_| true).await;
    assert_eq!(numbers(&model.services[&shop("web")]), [Some(30001)]);

    fs::remove_file(cluster.path("a.yaml")).unwrap();
    model_where(&mut source, |model| numbers(&model.services[&shop("web")]) == [Some(30002)]).await;
    problems(&cluster, &mut source, &[]).await;
}

#[tokio::test]
async fn a_taken_number_is_refused_by_name_until_it_is_free() {
    let cluster = Cluster::new(&[("web.yaml", node_port("web", 30080))]);
    let mut source = cluster.start();
    model_where(&mut source, |model| has(model, &["web"])).await;

    cluster.write("api.yaml", &node_port("api", 30080));
    problems(
        &cluster,
        &mut source,
        &["api.yaml:10: Service shop/api: spec.ports[0].nodePort: 30080 is already taken by shop/web"],
    )
    .await;
    assert!(has(source.model.borrow().as_deref().unwrap(), &["web"]));

    // A Service that is there keeps its accepted form, not only its number.
    cluster.write("api.yaml", &node_port("api", 30081));
    model_where(&mut source, |model| has(model, &["api", "web"])).await;
    cluster.write("api.yaml", &node_port("api", 30080));
    problems(
        &cluster,
        &mut source,
        &["api.yaml:10: Service shop/api: spec.ports[0].nodePort: 30080 is already taken by shop/web"],
    )
    .await;
    let model = model_where(&mut source, |model| has(model, &["api", "web"])).await;
    assert_eq!(numbers(&model.services[&shop("api")]), [Some(30081)]);

    fs::remove_file(cluster.path("web.yaml")).unwrap();
    let model = model_where(&mut source, |model| has(model, &["api"])).await;
    assert_eq!(numbers(&model.services[&shop("api")]), [Some(30080)]);
    problems(&cluster, &mut source, &[]).await;
}

#[tokio::test]
async fn a_port_of_an_external_address_stays_with_who_has_it_across_a_restart() {
    let at = |name: &str, port: u16| {
        service(name, &format!("  externalIPs: [203.0.113.1]\n  ports:\n  - port: {port}\n"))
    };
    let cluster = Cluster::new(&[("web.yaml", at("web", 80)), ("api.yaml", at("api", 81))]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["api", "web"])).await;
    cluster.write("api.yaml", &at("api", 80));
    let taken = "api.yaml:7: Service shop/api: spec.externalIPs[0]: 203.0.113.1 TCP 80 is already \
                 taken by shop/web";
    problems(&cluster, &mut source, &[taken]).await;
    assert_eq!(*source.model.borrow(), Some(before.clone()));
    drop(source);

    let mut source = cluster.start();
    problems(&cluster, &mut source, &[taken]).await;
    assert_eq!(model_where(&mut source, |_| true).await, before);
    fs::remove_file(cluster.path("web.yaml")).unwrap();
    let model = model_where(&mut source, |model| has(model, &["api"])).await;
    assert_eq!(model.services[&shop("api")].ports[0].port, 80);
    problems(&cluster, &mut source, &[]).await;
}

#[tokio::test]
async fn a_load_balancers_address_stays_across_a_restart() {
    let pool = |addresses: &str| {
        format!(
            "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: main}}\n\
             spec: {{addresses: [{addresses}]}}\n---\n\
             apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: all}}\n"
        )
    };
    let plain = |name: &str| service(name, "  type: LoadBalancer\n  ports:\n  - port: 81\n");
    let addresses = |model: &Model, name: &str| {
        let service = &model.services[&shop(name)];
        let text = service.load_balancer_ips.iter().map(ToString::to_string);
        (text.collect::<Vec<_>>().join(" "), service.pool.clone())
    };
    let of = |text: &str| (text.to_owned(), Some("main".to_owned()));
    let files = [("pool.yaml", pool("192.0.2.10-192.0.2.12")), ("b.yaml", plain("b"))];
    let cluster = Cluster::new(&files);
    let mut source = cluster.start();
    let model = model_where(&mut source, |model| has(model, &["b"])).await;
    assert_eq!(addresses(&model, "b"), of("192.0.2.10"));
    assert_eq!(model.pools["main"].announcements.len(), 1);
    drop(source);

    // One that comes first by name; and an announcer that there is not here.
    cluster.write("a.yaml", &plain("a"));
    cluster
        .write("bgp.yaml", "apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: x}\n");
    let mut source = cluster.start();
    let model = model_where(&mut source, |model| has(model, &["a", "b"])).await;
    assert_eq!(addresses(&model, "a"), of("192.0.2.11"));
    assert_eq!(addresses(&model, "b"), of("192.0.2.10"));
    let bgp = "bgp.yaml:1: warning: not supported: a BGPPeer changes nothing here; load balancers' \
               addresses are announced by ARP and neighbour discovery alone (L2Advertisement)";
    problems(&cluster, &mut source, &[bgp]).await;
    fs::remove_file(cluster.path("bgp.yaml")).unwrap();

    // The pool moves, and then is too small for both.
    cluster.write("pool.yaml", &pool("198.51.100.1/32"));
    let model = model_where(&mut source, |model| {
        addresses(model, "a").0 == "198.51.100.1" || addresses(model, "b").0 == "198.51.100.1"
    })
    .await;
    assert_eq!(addresses(&model, "a"), of("198.51.100.1"));
    assert_eq!(addresses(&model, "b"), (String::new(), None));
    assert!(!model.services[&shop("b")].cluster_ips.is_empty(), "it is there within the cluster");
}

#[tokio::test]
async fn a_health_checks_number_is_remembered() {
    let balancer = "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  ports:\n  - port: 80\n";
    let cluster = Cluster::new(&[("web.yaml", service("web", balancer))]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["web"])).await;
    let number = before.services[&shop("web")].health_check_node_port.unwrap();
    drop(source);

    // Who comes first by name asks for it after the restart.
    cluster.write("api.yaml", &node_port("api", number));
    let mut source = cluster.start();
    let taken = format!(
        "api.yaml:10: Service shop/api: spec.ports[0].nodePort: {number} is already taken by shop/web"
    );
    problems(&cluster, &mut source, &[&taken]).await;
    assert_eq!(model_where(&mut source, |_| true).await, before);
}

#[tokio::test]
async fn a_wrong_word_leaves_the_service_as_it_was() {
    let with = |key: &str, word: &str, number: u16| {
        let annotation = format!("metadata:\n  annotations:\n    fairway.dev/{key}: {word}");
        node_port("web", number).replace("metadata:", &annotation)
    };
    let cluster = Cluster::new(&[("web.yaml", with("balancing", "maglev", 30080))]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["web"])).await;
    for (key, word, wrong) in [
        (
            "balancing",
            "fair",
            "\"fair\" is none of random, round-robin, least-connections and maglev",
        ),
        ("weights", "web-0=1", "\"web-0=1\" is none of pod/NAME=WEIGHT, node/... and zone/..."),
        ("slow-start", "soon", "\"soon\" is no time from 1s to 1h, such as 30s or 5m"),
    ] {
        cluster.write("web.yaml", &with(key, word, 30081));
        let field = format!("metadata.annotations.fairway.dev/{key}");
        let wrong = format!("web.yaml:5: Service shop/web: {field}: {wrong}");
        problems(&cluster, &mut source, &[&*wrong]).await;
        assert_eq!(*source.model.borrow(), Some(before.clone()), "{key}");
    }
}

#[tokio::test]
async fn ranges_of_services_come_and_go() {
    let cidr = |range: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: more\nspec:\n  \
             cidrs:\n  - {range}\n"
        )
    };
    let asks = service("web", "  clusterIP: 10.97.0.7\n  ports:\n  - port: 80\n");
    let cluster = Cluster::new(&[("web.yaml", asks)]);
    let mut source = cluster.start();
    let outside = |ranges: &str| {
        format!(
            "web.yaml:7: Service shop/web: spec.clusterIP: 10.97.0.7 is not a usable address of the \
             service range {ranges}"
        )
    };
    problems(&cluster, &mut source, &[&outside("10.96.0.0/16")]).await;

    cluster.write("more.yaml", &cidr("10.97.0.0/24"));
    let model = model_where(&mut source, |model| has(model, &["web"])).await;
    assert_eq!(model.service_ranges["more"].cidrs, ["10.97.0.0/24".parse().unwrap()]);
    problems(&cluster, &mut source, &[]).await;

    // A mistake changes nothing.
    cluster.write("more.yaml", &cidr("10.97.0.0/x"));
    let wrong = "more.yaml:7: ServiceCIDR more: spec.cidrs[0]: invalid IP address syntax";
    problems(&cluster, &mut source, &[wrong]).await;
    assert_eq!(*source.model.borrow(), Some(model.clone()));

    // Who has an address keeps it.
    cluster.write("more.yaml", &cidr("10.98.0.0/24"));
    problems(&cluster, &mut source, &[&outside("10.96.0.0/16, 10.98.0.0/24")]).await;
    let moved = |model: &Model| model.service_ranges["more"].cidrs[0].to_string().contains(".98.");
    let next = model_where(&mut source, moved).await;
    assert_eq!(next.services, model.services);

    fs::remove_file(cluster.path("more.yaml")).unwrap();
    let model = model_where(&mut source, |model| model.service_ranges.len() == 1).await;
    assert_eq!(next.services, model.services);
}

#[tokio::test]
async fn a_broken_file_holds_no_number_of_what_is_gone_from_others() {
    let files = [("web.yaml", node_port("web", 30080)), ("zzz.yaml", plain("zzz"))];
    let cluster = Cluster::new(&files);
    let mut source = cluster.start();
    model_where(&mut source, |model| has(model, &["web", "zzz"])).await;
    cluster.write("zzz.yaml", "kind: [\n");
    problems(&cluster, &mut source, &["zzz.yaml:1: unclosed bracket '['"]).await;
    fs::remove_file(cluster.path("web.yaml")).unwrap();
    model_where(&mut source, |model| has(model, &["zzz"])).await;
    cluster.write("api.yaml", &node_port("api", 30080));
    model_where(&mut source, |model| has(model, &["api", "zzz"])).await;
}

#[tokio::test]
async fn a_service_that_becomes_a_mere_name_gives_its_numbers_back() {
    let cluster = Cluster::new(&[("web.yaml", node_port("web", 30080))]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["web"])).await;
    let address = before.services[&shop("web")].cluster_ips[0];

    // Others balance it, and it names the number only.
    let label = "metadata:\n  labels: {service.kubernetes.io/service-proxy-name: other}";
    cluster.write("web.yaml", &node_port("web", 30080).replace("metadata:", label));
    model_where(&mut source, |model| has(model, &[])).await;
    cluster.write("api.yaml", &node_port("api", 30080));
    problems(
        &cluster,
        &mut source,
        &["api.yaml:10: Service shop/api: spec.ports[0].nodePort: 30080 is already taken by shop/web"],
    )
    .await;

    cluster
        .write("web.yaml", &service("web", "  type: ExternalName\n  externalName: example.com\n"));
    model_where(&mut source, |model| has(model, &["api", "web"])).await;
    let asks = format!("  clusterIP: {address}\n  ports:\n  - port: 80\n");
    cluster.write("cart.yaml", &service("cart", &asks));
    let model = model_where(&mut source, |model| has(model, &["api", "cart", "web"])).await;
    assert_eq!(model.services[&shop("cart")].cluster_ips, [address]);
    problems(&cluster, &mut source, &[]).await;
}

#[tokio::test]
async fn a_restart_moves_nothing() {
    let holder =
        service("web", "  type: NodePort\n  clusterIP: 10.96.7.7\n  ports:\n  - port: 80\n");
    let cluster = Cluster::new(&[("web.yaml", holder)]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["web"])).await;
    drop(source);

    // It no longer asks for its address, and one that comes first by name now does.
    cluster.write("web.yaml", &service("web", "  type: NodePort\n  ports:\n  - port: 80\n"));
    cluster.write("api.yaml", &service("api", "  clusterIP: 10.96.7.7\n  ports:\n  - port: 80\n"));
    let mut source = cluster.start();
    problems(
        &cluster,
        &mut source,
        &["api.yaml:7: Service shop/api: spec.clusterIP: 10.96.7.7 is already taken by shop/web"],
    )
    .await;
    assert_eq!(model_where(&mut source, |_| true).await, before);
    drop(source);

    // Broken while nobody looked: what it holds is kept for it.
    cluster.write("web.yaml", "kind: [\n");
    let mut source = cluster.start();
    problems(
        &cluster,
        &mut source,
        &[
            "api.yaml:7: Service shop/api: spec.clusterIP: 10.96.7.7 is already taken by shop/web",
            "web.yaml:1: unclosed bracket '['",
        ],
    )
    .await;
    drop(source);

    fs::write(cluster.state.path().join("allocations.json"), "{").unwrap();
    let error = manifests::start(cluster.options()).unwrap_err().to_string();
    assert!(error.contains("allocations.json: it is damaged"), "{error}");
}

#[tokio::test]
async fn a_restart_keeps_what_is_broken_and_brings_nothing_back() {
    let files = [
        ("api.yaml", node_port("api", 30081)),
        ("cart.yaml", plain("cart")),
        ("gone.yaml", plain("gone")),
        ("late.yaml", plain("late")),
        ("web.yaml", node_port("web", 30080)),
    ];
    let cluster = Cluster::new(&files);
    let mut source = cluster.start();
    let before =
        model_where(&mut source, |model| has(model, &["api", "cart", "gone", "late", "web"])).await;
    drop(source);

    // While nobody looks one asks for what another has, one cannot be named any more, one cannot
    // be read, one is being written and one is removed.
    cluster.write("api.yaml", &node_port("api", 30080));
    cluster.write("cart.yaml", &plain("cart").replace("80", "x"));
    fs::remove_file(cluster.path("gone.yaml")).unwrap();
    cluster.write("late.yaml", "");
    cluster.write("web.yaml", "kind: [\n");
    let expected = [
        "api.yaml:10: Service shop/api: spec.ports[0].nodePort: 30080 is already taken by shop/web",
        "cart.yaml:8: Service shop/cart: spec.ports[0].port: invalid type: string \"x\", expected a \
         port number",
        "late.yaml: the file is empty; what it held stays in force until the file has contents \
         again or is removed",
        "web.yaml:1: unclosed bracket '['",
    ];
    // Twice: a start that only falls back remembers no less.
    for _ in 0..2 {
        let mut source = cluster.start();
        problems(&cluster, &mut source, &expected).await;
        let after = model_where(&mut source, |_| true).await;
        assert!(has(&after, &["api", "cart", "late", "web"]));
        for service in after.services.values() {
            let name = &service.name;
            assert_eq!(before.services[name], *service);
        }
    }

    cluster.write("web.yaml", &plain("web"));
    fs::remove_file(cluster.path("late.yaml")).unwrap();
    let mut source = cluster.start();
    model_where(&mut source, |model| has(model, &["api", "cart", "web"])).await;
}

#[tokio::test]
async fn a_folder_that_is_not_mounted_yet_wipes_nothing() {
    let cluster = Cluster::new(&[]);
    let dir = cluster.path("manifests");
    let away = cluster.path("away");
    let options = || Options { dir: dir.clone(), ..cluster.options() };
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), node_port("web", 0)).unwrap();
    fs::write(dir.join("api.yaml"), plain("api")).unwrap();
    let mut source = manifests::start(options()).unwrap();
    let before = model_where(&mut source, |model| has(model, &["api", "web"])).await;
    drop(source);
    let remembered = |name: &str| fs::read(cluster.state.path().join(name)).unwrap();
    let states = ["allocations.json", "last-good.json"];
    let old = states.map(remembered);

    fs::rename(&dir, &away).unwrap();
    fs::create_dir(&dir).unwrap();
    let mut source = manifests::start(options()).unwrap();
    let waits = |problems: &Vec<manifests::Problem>| {
        problems.iter().any(|problem| problem.message.contains("is it mounted?"))
    };
    timeout(PATIENCE, source.problems.wait_for(waits)).await.unwrap().unwrap();
    assert_eq!(*source.model.borrow(), None);
    assert_eq!(states.map(remembered), old);

    // It comes with a broken file, which is still fallen back on.
    fs::write(away.join("api.yaml"), "kind: [\n").unwrap();
    fs::remove_dir(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    assert_eq!(model_where(&mut source, |_| true).await, before);

    // Emptied under our eyes it is empty, and stays so.
    fs::remove_file(dir.join("api.yaml")).unwrap();
    fs::remove_file(dir.join("web.yaml")).unwrap();
    model_where(&mut source, |model| has(model, &[])).await;
    drop(source);
    let mut source = manifests::start(options()).unwrap();
    model_where(&mut source, |model| has(model, &[])).await;
}

#[tokio::test]
async fn a_damaged_fallback_is_reported_and_ignored() {
    let cluster = Cluster::new(&[("api.yaml", plain("api")), ("web.yaml", plain("web"))]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["api", "web"])).await;
    drop(source);

    let file = cluster.state.path().join("last-good.json");
    fs::write(&file, "{").unwrap();
    cluster.write("web.yaml", "kind: [\n");
    let mut source = cluster.start();
    model_where(&mut source, |model| has(model, &["api"])).await;
    let found = source.problems.borrow_and_update().clone();
    assert!(
        found.iter().any(|problem| problem.to_string().contains("last-good.json: ")),
        "{found:?}"
    );
    // What is mended has its address again.
    cluster.write("web.yaml", &plain("web"));
    assert_eq!(model_where(&mut source, |model| has(model, &["api", "web"])).await, before);
    problems(&cluster, &mut source, &[]).await;
}

#[tokio::test]
async fn what_cannot_be_remembered_is_not_given_out() {
    let cluster = Cluster::new(&[("web.yaml", plain("web"))]);
    let mut source = cluster.start();
    let before = model_where(&mut source, |model| has(model, &["web"])).await;
    // A folder in the way of the temporary file fails the write, for root too.
    let obstacle = cluster.state.path().join(".allocations.json.new");
    fs::create_dir(&obstacle).unwrap();
    cluster.write("api.yaml", &plain("api"));
    let found = timeout(PATIENCE, source.problems.wait_for(|problems| !problems.is_empty()));
    let found = found.await.unwrap().unwrap().clone();
    assert!(found[0].to_string().contains("cannot be remembered in"), "{found:?}");
    assert_eq!(*source.model.borrow(), Some(before));

    // Tried again without being told.
    fs::remove_dir(obstacle).unwrap();
    model_where(&mut source, |model| has(model, &["api", "web"])).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_by_a_link() {
    let cluster = Cluster::new(&[]);
    let version = |name: &str, text: &str| {
        fs::create_dir(cluster.path(name)).unwrap();
        cluster.write(&format!("{name}/web.yaml"), text);
        std::os::unix::fs::symlink(name, cluster.path("..data_tmp")).unwrap();
        fs::rename(cluster.path("..data_tmp"), cluster.path("..data")).unwrap();
    };
    version("..1", &node_port("web", 30001));
    std::os::unix::fs::symlink("..data/web.yaml", cluster.path("web.yaml")).unwrap();
    let mut source = cluster.start();
    model_where(&mut source, |model| has(model, &["web"])).await;
    version("..2", &node_port("web", 30002));
    model_where(&mut source, |model| {
        model.services.get(&shop("web")).is_some_and(|web| numbers(web) == [Some(30002)])
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_vanishes_changes_nothing() {
    let cluster = Cluster::new(&[]);
    let dir = cluster.path("manifests");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), plain("web")).unwrap();
    let mut source = manifests::start(Options { dir: dir.clone(), ..cluster.options() }).unwrap();
    let before = model_where(&mut source, |model| has(model, &["web"])).await;

    fs::rename(&dir, cluster.path("away")).unwrap();
    let gone = |problems: &Vec<manifests::Problem>| {
        problems.iter().any(|problem| problem.message.contains("the last good state stays"))
    };
    timeout(PATIENCE, source.problems.wait_for(gone)).await.unwrap().unwrap();
    assert_eq!(*source.model.borrow(), Some(before));

    // Another folder in its place is watched like the first.
    fs::create_dir(cluster.path("next")).unwrap();
    fs::write(cluster.path("next/api.yaml"), plain("api")).unwrap();
    fs::rename(cluster.path("next"), &dir).unwrap();
    model_where(&mut source, |model| has(model, &["api"])).await;
    replace(&dir.join("api.yaml"), &plain("last"));
    model_where(&mut source, |model| has(model, &["last"])).await;
}

fn replace(path: &Path, text: &str) {
    let hidden = path.with_file_name(".replacement");
    fs::write(&hidden, text).unwrap();
    fs::rename(hidden, path).unwrap();
}

#[tokio::test]
async fn a_node_that_runs_alone_says_what_it_knows() {
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop, labels: {app: web}}\n";
    let web = service("web", "  selector: {app: web}\n  ports:\n  - port: 80\n");
    let cluster = Cluster::new(&[("all.yaml", format!("{web}---\n{pod}"))]);
    let (pods, registered) = watch::channel(Vec::new());
    let node = Node { name: "n1".into(), ..Node::default() };
    let local = Some(LocalNode { node: node.clone(), pods: registered });
    let mut source = manifests::start(Options { local, ..cluster.options() }).unwrap();
    let model = model_where(&mut source, |model| has(model, &["web"])).await;
    assert_eq!(model.nodes["n1"], node);
    assert!(model.endpoints[&shop("web")].ports[""].is_empty());

    let address: IpAddr = "10.244.0.5".parse().unwrap();
    let (namespace, name, uid) = ("shop".into(), "cart".into(), "u".into());
    pods.send_replace(vec![LocalPod { namespace, name, uid, addresses: vec![address] }]);
    let first = |model: &Model| model.endpoints[&shop("web")].ports[""].first().cloned();
    let model = model_where(&mut source, |model| first(model).is_some()).await;
    let endpoint = first(&model).unwrap();
    assert_eq!((endpoint.address, endpoint.node.as_deref()), (address, Some("n1")));
    assert_eq!(endpoint.state, EndpointState::Ready);

    // What the folder says itself counts more.
    let unready = format!("{pod}status: {{conditions: [{{type: Ready, status: 'False'}}]}}\n");
    cluster.write("all.yaml", &format!("{web}---\n{unready}"));
    model_where(&mut source, |model| {
        first(model).is_some_and(|endpoint| endpoint.state == EndpointState::NotReady)
    })
    .await;
    pods.send_replace(Vec::new());
    model_where(&mut source, |model| first(model).is_none()).await;
}

#[test]
fn a_node_may_name_the_key_that_encrypts_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.yaml");
    let read = |key: &str| {
        let manifest = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    \
             fairway.dev/wireguard-public-key: {key}\n"
        );
        fs::write(&path, manifest).unwrap();
        let ranges = vec!["10.96.0.0/12".parse().unwrap()];
        manifests::check(std::slice::from_ref(&path), ranges, DEFAULT_NODE_PORTS).unwrap()
    };
    let key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let good = read(key);
    assert_eq!(good.problems, []);
    assert_eq!(good.model.nodes["n1"].wireguard_key, Some(key.parse().unwrap()));
    let bad = read("hSDwCYkwp1R0");
    let [problem] = &bad.problems[..] else { panic!("{:?}", bad.problems) };
    let place = "node.yaml:6: Node n1: \
                 metadata.annotations[\"fairway.dev/wireguard-public-key\"]: ";
    assert!(problem.to_string().contains(place), "{problem}");
}

/// An Ingress that says whom it lets in by a word that cannot be read stays as it was, whether it breaks while
/// somebody looks or not.
#[tokio::test]
async fn a_restart_keeps_who_is_kept_out() {
    let ingress = |name: &str, ranges: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {name}
  annotations: {{nginx.ingress.kubernetes.io/allowlist-source-range: '{ranges}'}}
spec: {{defaultBackend: {{service: {{name: web, port: {{number: 80}}}}}}}}
"
        )
    };
    let cluster = Cluster::new(&[
        ("a.yaml", ingress("a", "10.0.0.0/8")),
        ("b.yaml", ingress("b", "10.0.0.0/8")),
    ]);
    let mut source = cluster.start();
    let name = |name: &str| ObjectName::new("default", name);
    let good = model_where(&mut source, |model| model.ingresses.len() == 2).await;
    cluster.write("a.yaml", &ingress("a", "10.0.0.0/99"));
    let field = "metadata.annotations.nginx.ingress.kubernetes.io/allowlist-source-range";
    let wrong = |name: &str| {
        format!(
            "{name}.yaml:5: Ingress default/{name}: {field}: \"10.0.0.0/99\" is neither a range such as \
             10.0.0.0/8 nor an address; it keeps somebody out, so that the Ingress is not served without it"
        )
    };
    problems(&cluster, &mut source, &[&wrong("a")]).await;
    assert_eq!(source.model.borrow().as_ref().unwrap().ingresses, good.ingresses);
    drop(source);

    cluster.write("b.yaml", &ingress("b", "10.0.0.0/99"));
    cluster.write("c.yaml", &ingress("c", "10.0.0.0/99"));
    for _ in 0..2 {
        let mut source = cluster.start();
        let model = model_where(&mut source, |_| true).await;
        let mut ingresses = model.ingresses.clone();
        assert!(ingresses.remove(&name("c")).is_some_and(|ingress| ingress.denied));
        assert_eq!(ingresses, good.ingresses);
        let never = "c.yaml:1: Ingress default/c: it was never good, and is not served until it is";
        problems(&cluster, &mut source, &[&wrong("a"), &wrong("b"), never, &wrong("c")]).await;
    }
    cluster.write("b.yaml", &ingress("b", "10.1.0.0/16"));
    let mut source = cluster.start();
    let model = model_where(&mut source, |_| true).await;
    let allowed = |at: &str| model.ingresses.get(&name(at)).unwrap().options.allow[0].to_string();
    assert_eq!((allowed("a"), allowed("b")), ("10.0.0.0/8".to_owned(), "10.1.0.0/16".to_owned()));
}
