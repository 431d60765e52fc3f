//! What is written on nodes, by whom, and what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fairway_controlplane::publish::Gateway;
use fairway_feed::authority::Vouch as _;
use fairway_feed::identity::Role;
use fairway_kubernetes::ca::{self, ClusterCa};
use fairway_kubernetes::conditions::{self, Teller};
use fairway_kubernetes::connect::Connect;
use fairway_kubernetes::events::{self, Herald};
use fairway_kubernetes::source::{self, Source};
use fairway_kubernetes::status::{self, LeaseOptions, NodeRanges, Writer};
use fairway_kubernetes::vouch::{Accounts, Pods};
use fairway_model::ObjectName;
use fairway_tests::apiserver::{ApiServer, Asked, What};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::join::{agent, agents_pod, empty};
use super::{PACE, PATIENCE, fail, shop};

/// A replica of the control plane, as far as it writes.
pub(super) struct Replica {
    _source: Source,
    writer: Writer,
    _teller: Teller,
    _herald: Herald,
}

impl Replica {
    pub(super) async fn new(
        server: &ApiServer,
        name: &str,
        change: impl FnOnce(&mut status::Options),
    ) -> Self {
        let connect = Connect { server: Some(server.url()), ..Connect::default() };
        let client = connect.client().await.unwrap();
        let service = Some(ObjectName::new("shop", "gate"));
        let gateway = Some(Gateway { service, ..Gateway::default() });
        let read = source::Options { pace: PACE, gateway, ..source::Options::default() };
        let source = source::start(&client, read).unwrap();
        let lease = LeaseOptions {
            identity: name.to_owned(),
            duration: Duration::from_secs(1),
            renewal: Duration::from_millis(50),
            ..LeaseOptions::new("kube-system".to_owned())
        };
        let mut options = status::Options {
            pause: Duration::from_millis(2),
            ranges: NodeRanges::new(&["10.244.0.0/16".parse().unwrap()], 24, 64).unwrap(),
            flannel: true,
            ..status::Options::new(lease)
        };
        change(&mut options);
        let quickly = conditions::Options { pause: Duration::from_millis(2), ..Default::default() };
        let writer =
            status::start(client.clone(), source.nodes.clone(), source.statuses.clone(), options);
        let (unsaid, leads) = (source.unsaid.clone(), writer.leads.clone());
        let teller = conditions::start(client.clone(), unsaid, leads, quickly);
        let (notices, leads) = (source.notices.clone(), writer.leads.clone());
        let herald = events::start(client, notices, leads, super::events::quickly(name));
        Self { _source: source, writer, _teller: teller, _herald: herald }
    }

    /// Lets another one lead at once.
    pub(super) async fn stop(self) {
        self.writer.stop().await;
    }

    pub(super) async fn comes_to(&mut self, leads: bool) {
        let found =
            timeout(PATIENCE, self.writer.leads.wait_for(|now| *now == leads)).await.map(drop);
        assert!(found.is_ok(), "never: leads is {leads}");
    }
}

fn bare(name: &str, number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{"type": "Ready", "status": "True"},
                {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]}})
}

pub(super) async fn until(server: &ApiServer, what: &str, done: impl Fn(&ApiServer) -> bool) {
    let end = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    while !done(server) {
        ticks.tick().await;
        assert!(Instant::now() < end, "never: {what}: {:#?}", server.objects());
    }
}

fn nodes(server: &ApiServer) -> BTreeMap<String, Value> {
    let objects = server.objects().into_iter().filter(|object| object["kind"] == "Node");
    objects.map(|node| (node["metadata"]["name"].as_str().unwrap().to_owned(), node)).collect()
}

fn is_done(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    let network =
        conditions.and_then(|all| all.iter().find(|one| one["type"] == "NetworkUnavailable"));
    let has_network = network.is_some_and(|network| network["status"] == "False");
    let annotated =
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"] == "vxlan";
    has_network && annotated && node["spec"]["podCIDR"].is_string()
}

fn writes(server: &ApiServer) -> usize {
    let patched = |asked: &&Asked| asked.verb == "patch" && asked.resource != "events";
    server.asked().iter().filter(patched).count()
}

pub(super) fn renewals(server: &ApiServer) -> usize {
    server.asked().iter().filter(|asked| asked.verb == "update").count()
}

/// No two nodes have pods in one range.
fn ranges_differ(server: &ApiServer) {
    let nodes = nodes(server);
    let ranges: Vec<_> =
        nodes.values().filter_map(|node| node["spec"]["podCIDR"].as_str()).collect();
    let different: BTreeSet<_> = ranges.iter().collect();
    assert_eq!(different.len(), ranges.len(), "{ranges:?}");
}

#[tokio::test]
async fn nodes_get_what_they_lack_once() {
    let server = ApiServer::start().await.unwrap();
    shop(&server);
    for number in 2..7 {
        server.put(bare(&format!("n{number}"), number));
    }
    let mut replica = Replica::new(&server, "a", |_| {}).await;
    replica.comes_to(true).await;
    until(&server, "all nodes have all", |server| nodes(server).values().all(is_done)).await;
    ranges_differ(&server);
    let node = &nodes(&server)["n2"];
    // What others wrote is still there.
    assert_eq!(node["status"]["conditions"][0], json!({"type": "Ready", "status": "True"}));
    assert_eq!(node["status"]["conditions"][1]["reason"], "FairwayKnowsNode");
    assert_eq!(node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"], "192.0.2.2");
    // The one that had a range kept it.
    assert_eq!(nodes(&server)["n1"]["spec"]["podCIDR"], "10.244.1.0/24");
    let before = (writes(&server), renewals(&server));
    assert_eq!(before.0, 12, "two a node");
    until(&server, "time passes", |server| renewals(server) > before.1 + 10).await;
    assert_eq!(writes(&server), before.0);

    // Taken back by somebody: written again, once.
    server.put(bare("n9", 9));
    until(&server, "a new one has all", |server| nodes(server).values().all(is_done)).await;
    ranges_differ(&server);
    assert_eq!(writes(&server), 14);
}

#[tokio::test]
async fn another_replica_follows_a_leader_that_ends_or_is_lost() {
    let server = ApiServer::start().await.unwrap();
    let mut first = Replica::new(&server, "a", |_| {}).await;
    first.comes_to(true).await;
    let mut second = Replica::new(&server, "b", |_| {}).await;
    let before = renewals(&server);
    until(&server, "the first renews", |server| renewals(server) > before + 5).await;
    assert!(!*second.writer.leads.borrow());
    let begun = Instant::now();
    first.writer.stop().await;
    second.comes_to(true).await;
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());

    let mut third = Replica::new(&server, "c", |_| {}).await;
    until(&server, "the third looked", |server| {
        server.asked().iter().filter(|asked| asked.verb == "get").count() > 4
    })
    .await;
    let begun = Instant::now();
    drop(second);
    third.comes_to(true).await;
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
    let lease = server.get("Lease", "kube-system", "fairway-controlplane").unwrap();
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
        (&json!("c"), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_leaders_at_once_do_no_harm() {
    let server = ApiServer::start().await.unwrap();
    server.put(bare("n0", 1));
    // The first one goes for long without looking at its Lease.
    let mut first = Replica::new(&server, "a", |options| {
        options.lease.duration = Duration::from_secs(60);
        options.lease.renewal = Duration::from_secs(20);
    })
    .await;
    first.comes_to(true).await;
    until(&server, "it has written", |server| nodes(server).values().all(is_done)).await;
    // Somebody takes the Lease from it, and a second one takes that.
    let mut lease = server.get("Lease", "kube-system", "fairway-controlplane").unwrap();
    lease["spec"]["holderIdentity"] = "".into();
    server.put(lease);
    let mut second = Replica::new(&server, "b", |_| {}).await;
    second.comes_to(true).await;
    assert!(*first.writer.leads.borrow(), "there are two");
    for number in 1..40 {
        server.put(bare(&format!("n{number}"), number));
    }
    until(&server, "all nodes have all", |server| nodes(server).values().all(is_done)).await;
    ranges_differ(&server);
    // The first one has found out when it wanted to give out a range, or will.
    assert!(*second.writer.leads.borrow());
}

/// A Service that came into being in that second, and wants an address that others want, too.
fn external(server: &ApiServer, name: &str, second: u8) {
    let created = format!("2026-01-01T00:00:0{second}Z");
    server.put(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
        "spec": {"externalIPs": ["203.0.113.77"], "ports": [{"port": 7}]}}));
}

/// What an object says it contradicts, if it says anything: status and message.
fn contradiction(
    server: &ApiServer,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Option<(String, String)> {
    let object = server.get(kind, namespace, name)?;
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|of| of["type"] == "fairway.dev/Contradiction")?;
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    Some((text("status"), text("message")))
}

#[tokio::test]
async fn objects_say_what_of_them_an_older_one_has_as_long_as_that_is_so() {
    let server = ApiServer::start().await.unwrap();
    external(&server, "b", 1);
    external(&server, "a", 2);
    let node = |name: &str, second: u8| {
        let created = format!("2026-01-01T00:00:0{second}Z");
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]}, "status": {}})
    };
    server.put(node("n1", 2));
    server.put(node("n2", 1));
    let mut replica = Replica::new(&server, "r", |_| {}).await;
    replica.comes_to(true).await;
    let is = |status: &str, part: &str| {
        let (status, part) = (status.to_owned(), part.to_owned());
        move |found: Option<(String, String)>| {
            found.is_some_and(|(found, message)| found == status && message.contains(&part))
        }
    };
    let (service, of_node) = (is("True", "shop/b"), is("True", "which node n2 has"));
    until(&server, "the younger ones are told", |server| {
        service(contradiction(server, "Service", "shop", "a"))
            && of_node(contradiction(server, "Node", "", "n1"))
    })
    .await;
    assert_eq!(contradiction(&server, "Service", "shop", "b"), None);
    assert_eq!(contradiction(&server, "Node", "", "n2"), None);

    server.delete("Service", "shop", "b");
    server.delete("Node", "", "n2");
    let (service, of_node) = (is("False", ""), is("False", ""));
    until(&server, "they are told that it is over", |server| {
        service(contradiction(server, "Service", "shop", "a"))
            && of_node(contradiction(server, "Node", "", "n1"))
    })
    .await;
    // Once each, however long it takes.
    let renewed = renewals(&server);
    until(&server, "time passes", |server| renewals(server) > renewed + 4).await;
    let writes = |resource: &str| {
        let asked = server.asked();
        asked.iter().filter(|asked| asked.verb == "patch" && asked.resource == resource).count()
    };
    assert_eq!(writes("services/status"), 2);
    assert!(writes("nodes/status") <= 4, "{}", writes("nodes/status"));
}

#[tokio::test]
async fn who_comes_too_late_reads_again() {
    let server = ApiServer::start().await.unwrap();
    server.put(bare("n1", 1));
    server.fail(fail("patch", "nodes", 3, What::Overtake));
    server.fail(fail("update", "leases", 1, What::Overtake));
    let _replica = Replica::new(&server, "a", |_| {}).await;
    until(&server, "the node has all", |server| nodes(server).values().all(is_done)).await;
    let reads =
        server.asked().iter().filter(|asked| asked.verb == "get" && asked.name == "n1").count();
    assert!(reads >= 4, "{reads}");
}

#[tokio::test]
async fn without_an_api_server_nothing_is_written_and_nobody_ends() {
    let server = ApiServer::start().await.unwrap();
    let mut replica = Replica::new(&server, "a", |_| {}).await;
    replica.comes_to(true).await;
    server.behave(|behaviour| behaviour.is_down = true);
    server.put(bare("n1", 1));
    replica.comes_to(false).await;
    assert_eq!(writes(&server), 0);
    server.behave(|behaviour| behaviour.is_down = false);
    until(&server, "the node has all", |server| nodes(server).values().all(is_done)).await;
    replica.comes_to(true).await;
}

#[tokio::test]
async fn a_refused_write_is_tried_again_ever_more_slowly() {
    let server = ApiServer::start().await.unwrap();
    server.put(bare("n1", 1));
    server.fail(fail("patch", "nodes", 1000, What::Refuse(403, "Forbidden")));
    let _replica =
        Replica::new(&server, "a", |options| options.pause = Duration::from_millis(20)).await;
    until(&server, "it was refused", |server| writes(server) >= 3).await;
    let before = renewals(&server);
    until(&server, "time passes", |server| renewals(server) > before + 10).await;
    // At full speed there would have been 25.
    assert!(writes(&server) < 10, "{}", writes(&server));
}

fn pool(server: &ApiServer, addresses: &[&str]) {
    server.put(json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
        "metadata": {"name": "main", "namespace": "metallb-system"}, "spec": {"addresses": addresses}}));
}

fn balanced(server: &ApiServer, name: &str, asked: Value) {
    let mut spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}]});
    for (field, value) in asked.as_object().unwrap() {
        spec[field] = value.clone();
    }
    server.put(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec}));
}

/// What a Service or an Ingress says of where it can be reached.
fn points(server: &ApiServer, kind: &str, name: &str) -> Value {
    server.get(kind, "shop", name).unwrap()["status"]["loadBalancer"]["ingress"].clone()
}

#[tokio::test]
async fn services_and_ingresses_say_where_they_can_be_reached() {
    let server = ApiServer::start().await.unwrap();
    server.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "site", "namespace": "shop"}, "spec": {"ingressClassName": "fairway"}}));
    balanced(&server, "gate", json!({}));
    balanced(&server, "other", json!({"loadBalancerClass": "other.example/lb"}));
    let mut replica = Replica::new(&server, "a", |_| {}).await;
    replica.comes_to(true).await;
    let renewed = renewals(&server);
    until(&server, "time passes", |server| renewals(server) > renewed + 3).await;
    assert_eq!(writes(&server), 0, "there is no pool");

    // Somebody is faster, twice.
    server.fail(fail("patch", "services", 2, What::Overtake));
    pool(&server, &["192.0.2.10-192.0.2.19"]);
    until(&server, "the Ingress has it", |server| points(server, "Ingress", "site").is_array())
        .await;
    assert_eq!(points(&server, "Ingress", "site"), json!([{"ip": "192.0.2.10"}]));
    let first = json!([{"ip": "192.0.2.10", "ipMode": "VIP"}]);
    assert_eq!(points(&server, "Service", "gate"), first);
    assert!(points(&server, "Service", "other").is_null());
    let written = writes(&server);
    assert_eq!(written, 4, "two in vain");

    // Another leader finds everything as it is, and goes on.
    replica.writer.stop().await;
    let mut replica = Replica::new(&server, "b", |_| {}).await;
    replica.comes_to(true).await;
    balanced(&server, "new", json!({}));
    until(&server, "the new one has one", |server| points(server, "Service", "new").is_array())
        .await;
    assert_eq!(points(&server, "Service", "new"), json!([{"ip": "192.0.2.11", "ipMode": "VIP"}]));
    assert_eq!((points(&server, "Service", "gate"), writes(&server)), (first, written + 1));

    // The addresses move with the pool.
    pool(&server, &["198.51.100.0/24"]);
    until(&server, "all moved", |server| {
        points(server, "Ingress", "site") == json!([{"ip": "198.51.100.0"}])
            && points(server, "Service", "new")[0]["ip"] == "198.51.100.1"
    })
    .await;
    assert_eq!(points(&server, "Service", "gate")[0]["ip"], "198.51.100.0");
    assert_eq!(writes(&server), written + 4);
}

/// The rules in `deploy/base/rbac.yaml` are what is asked for, and nothing more.
#[tokio::test]
async fn the_rights_are_those_that_are_used() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/rbac.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let mut granted = BTreeSet::new();
    for document in text.split("\n---") {
        let role: Value = serde_saphyr::from_str(document).unwrap();
        let words = |value: &Value| -> Vec<String> {
            let words = value.as_array().into_iter().flatten();
            words.map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            let names = words(&rule["resourceNames"]);
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for verb in words(&rule["verbs"]) {
                        let names = names.clone();
                        assert!(granted.insert((group.clone(), resource.clone(), verb, names)));
                    }
                }
            }
        }
    }

    let server = ApiServer::start().await.unwrap();
    shop(&server);
    server.put(bare("n2", 2));
    pool(&server, &["203.0.113.0/24"]);
    balanced(&server, "gate", json!({}));
    server.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "site", "namespace": "shop",
            "annotations": {"nginx.ingress.kubernetes.io/unheard-of": "1"}},
        "spec": {"ingressClassName": "fairway"}}));
    external(&server, "first", 1);
    external(&server, "second", 2);
    let mut first = Replica::new(&server, "a", |_| {}).await;
    until(&server, "all nodes have all", |server| nodes(server).values().all(is_done)).await;
    until(&server, "the Ingress has it", |server| points(server, "Ingress", "site").is_array())
        .await;
    first.comes_to(true).await;
    let said = |server: &ApiServer| contradiction(server, "Service", "shop", "second").is_some();
    until(&server, "what contradicts is told", said).await;
    let events = |server: &ApiServer, verb: &str| {
        server.asked().iter().any(|asked| asked.verb == verb && asked.resource == "events")
    };
    until(&server, "its owner is told", |server| events(server, "create")).await;
    drop(first);
    // One that reads pages.
    server.behave(|behaviour| behaviour.streams_lists = false);
    let mut second = Replica::new(&server, "b", |_| {}).await;
    second.comes_to(true).await;
    let renewed = renewals(&server);
    until(&server, "it is renewed", |server| renewals(server) > renewed + 2).await;
    until(&server, "it finds what was told", |server| events(server, "patch")).await;
    // The cluster keeps the CA, and says where agents are.
    let client =
        Connect { server: Some(server.url()), ..Connect::default() }.client().await.unwrap();
    let options = ca::Options {
        look: Duration::from_millis(20),
        ..ca::Options::new("kube-system".to_owned())
    };
    empty(&server, "ConfigMap");
    empty(&server, "Secret");
    let _ca = ClusterCa::obtain(client.clone(), options).await;
    let published = |server: &ApiServer| server.get("ConfigMap", "kube-system", "fairway-ca");
    let filled = |server: &ApiServer| published(server).unwrap()["data"]["ca.crt"].is_string();
    until(&server, "it is published", filled).await;
    server.put(agents_pod("agent-1", "n1"));
    server.issue("a.b.c", "fairway-feed", agent("agent-1", None));
    let agents = Some("kube-system/fairway-agent".parse().unwrap());
    let pods = Pods::new(client, Accounts::new(agents, Vec::new()).unwrap());
    assert_eq!(pods.vouch("a.b.c").await, Ok(Role::Node("n1".to_owned())));

    let used: BTreeSet<_> = server
        .asked()
        .into_iter()
        .map(|asked| {
            // What there is one of is asked for by a name that is known before.
            let known = ["leases", "secrets", "configmaps"].contains(&asked.resource.as_str());
            let names = match known && asked.verb != "create" {
                true => vec![asked.name],
                false => Vec::new(),
            };
            (asked.group, asked.resource, asked.verb.to_owned(), names)
        })
        .collect();
    assert_eq!(used, granted);
}
