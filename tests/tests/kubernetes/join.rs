//! How agents' pods come by their nodes' certificates, and replicas by one CA.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fairway_feed::client::{self, Follower};
use fairway_feed::identity::GatewayName;
use fairway_feed::tls::{Client, PodIdentity};
use fairway_kubernetes::ca::{self, ClusterCa};
use fairway_kubernetes::connect::Connect;
use fairway_tests::apiserver::{ApiServer, What};
use fairway_tests::binaries::binaries;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::deploy::controlplane_arguments;
use super::{PATIENCE, fail, shop};

const TOKEN: &str = "header.payload.signature";

/// Replicas' options, in a hurry.
fn kept() -> ca::Options {
    ca::Options {
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(20),
        look: Duration::from_millis(20),
        ..ca::Options::new("kube-system".to_owned())
    }
}

/// A replica, as far as it has the CA.
async fn replica(url: String) -> ClusterCa {
    let connect = Connect { server: Some(url), ..Connect::default() };
    ClusterCa::obtain(connect.client().await.unwrap(), kept()).await
}

/// What the manifests make.
pub(super) fn empty(server: &ApiServer, kind: &str) {
    server.put(json!({"apiVersion": "v1", "kind": kind,
        "metadata": {"namespace": "kube-system", "name": "fairway-ca"}}));
}

fn published(server: &ApiServer) -> Option<String> {
    let map = server.get("ConfigMap", "kube-system", "fairway-ca")?;
    map["data"]["ca.crt"].as_str().map(str::to_owned)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    while !done() {
        ticks.tick().await;
        assert!(Instant::now() < end, "never: {what}");
    }
}

/// What a TokenReview says of an agent's pod.
pub(super) fn agent(pod: &str, node: Option<&str>) -> Value {
    let mut user = json!({"username": "system:serviceaccount:kube-system:fairway-agent",
        "groups": ["system:serviceaccounts", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/pod-name": [pod],
            "authentication.kubernetes.io/pod-uid": [format!("uid-of-{pod}")]}});
    if let Some(node) = node {
        user["extra"]["authentication.kubernetes.io/node-name"] = json!([node]);
    }
    user
}

/// The agent's pod, as an object.
pub(super) fn agents_pod(pod: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "kube-system", "name": pod, "uid": format!("uid-of-{pod}")},
        "spec": {"nodeName": node, "hostNetwork": true}, "status": {"phase": "Running"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_have_one_ca() {
    let server = ApiServer::start().await.unwrap();
    server.fail(fail("update", "secrets", 1, What::Refuse(500, "InternalError")));
    server.fail(fail("get", "secrets", 2, What::Reset));
    let replicas: Vec<_> = (0..4).map(|_| tokio::spawn(replica(server.url()))).collect();
    // They wait for who may make them.
    let looks = || server.asked().iter().filter(|asked| asked.resource == "secrets").count();
    until("all have looked", || looks() > 8).await;
    empty(&server, "ConfigMap");
    empty(&server, "Secret");
    let mut all = Vec::new();
    for replica in replicas {
        all.push(timeout(PATIENCE, replica).await.unwrap().unwrap());
    }
    assert!(all.iter().all(|one| one.certificate == all[0].certificate && one.key == all[0].key));
    until("it is published", || published(&server).as_ref() == Some(&all[0].certificate)).await;

    // Whoever breaks or removes it.
    server.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"ca.crt": "mine"},
        "metadata": {"namespace": "kube-system", "name": "fairway-ca"}}));
    until("it is mended", || published(&server).as_ref() == Some(&all[0].certificate)).await;
    server.delete("ConfigMap", "kube-system", "fairway-ca");
    empty(&server, "ConfigMap");
    until("it is filled again", || published(&server).as_ref() == Some(&all[0].certificate)).await;
}

#[tokio::test]
async fn a_ca_is_never_replaced_by_itself() {
    let server = ApiServer::start().await.unwrap();
    empty(&server, "ConfigMap");
    empty(&server, "Secret");
    let old = replica(server.url()).await;
    until("it is published", || published(&server).as_ref() == Some(&old.certificate)).await;
    empty(&server, "Secret");
    let new = replica(server.url()).await;
    assert_ne!(new.certificate, old.certificate);
    // The replica that still has the old one leaves it to those that have the new one.
    until("it is published", || published(&server).as_ref() == Some(&new.certificate)).await;
    let looks = || server.asked().iter().filter(|asked| asked.resource == "secrets").count();
    let before = looks();
    until("both look again", || looks() > before + 6).await;
    let writes = server
        .asked()
        .iter()
        .filter(|asked| asked.resource == "configmaps" && asked.verb != "get")
        .count();
    assert_eq!((published(&server).as_ref(), writes), (Some(&new.certificate), 2));

    // One that is damaged is nobody's to replace.
    server.put(json!({"apiVersion": "v1", "kind": "Secret", "data": {"ca.crt": "AAAA"},
        "metadata": {"namespace": "kube-system", "name": "fairway-ca"}}));
    let reads = looks();
    let obtained = tokio::spawn(replica(server.url()));
    until("it is read again and again", || looks() > reads + 20).await;
    assert!(!obtained.is_finished());
    obtained.abort();
}

/// The program, and where it serves.
struct ControlPlane {
    _running: Child,
    endpoint: String,
}

impl ControlPlane {
    async fn start(server: &ApiServer, state: &Path) -> Self {
        let mut command = Command::new(binaries().unwrap().join("fairway-controlplane"));
        // As it is deployed, but for where it is.
        command.args(controlplane_arguments().iter().map(|arg| match arg.split_once('=') {
            Some(("--listen", _)) => "--listen=127.0.0.1:0".to_owned(),
            Some(("--api-server", _)) => format!("--api-server={}", server.url()),
            _ => arg.clone(),
        }));
        command.arg("--gateway-service-account=kube-system/fairway-gateway=edge");
        command.args(["--drain", "0", "--state-dir"]).arg(state);
        command.env_remove("FAIRWAY_LOG").stderr(Stdio::piped()).kill_on_drop(true);
        let mut running = command.spawn().unwrap();
        let mut log = BufReader::new(running.stderr.take().unwrap()).lines();
        let endpoint = loop {
            let line = timeout(PATIENCE, log.next_line()).await.unwrap().unwrap().unwrap();
            if let Some((_, address)) = line.split_once("address=") {
                break format!("https://{}", address.trim());
            }
        };
        // Whoever does not read it stops it.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { _running: running, endpoint }
    }
}

/// An agent's pod of this node, as far as it follows.
fn agent_on(node: &str, token: &str, endpoints: &[String], folder: &Path, ca: PathBuf) -> Follower {
    let folder = folder.join(format!("{node}-{token}"));
    std::fs::create_dir_all(&folder).unwrap();
    let pod = PodIdentity { token: folder.join("token"), ca };
    std::fs::write(&pod.token, token).unwrap();
    let options = client::Options {
        endpoints: endpoints.to_vec(),
        node: node.to_owned(),
        snapshot: folder.join("snapshot"),
        facts: watch::channel(Default::default()).1,
    };
    let client = Client::joining_as_pod(&folder.join("feed"), node, pod);
    client::follow_over(options, client).unwrap()
}

/// A gateway's pod, likewise.
fn gateway_of(gateway: &str, token: &str, endpoint: &str, folder: &Path, ca: PathBuf) -> Follower {
    let folder = folder.join(format!("{gateway}-{token}"));
    std::fs::create_dir_all(&folder).unwrap();
    let pod = PodIdentity { token: folder.join("token"), ca };
    std::fs::write(&pod.token, token).unwrap();
    let gateway: GatewayName = gateway.parse().unwrap();
    let options = client::GatewayOptions {
        endpoints: vec![endpoint.to_owned()],
        gateway: gateway.clone(),
        snapshot: folder.join("snapshot"),
        secrets: None,
    };
    let client = Client::joining_as_gateway(&folder.join("feed"), gateway, pod);
    client::follow_as_gateway(options, client).unwrap()
}

async fn comes_to(follower: &mut Follower, what: &str, done: impl Fn(&client::Status) -> bool) {
    let found = timeout(PATIENCE, follower.status.wait_for(|status| done(status))).await.is_ok();
    assert!(found, "never: {what}: {:?}", follower.status.borrow());
}

/// Two replicas of the program, and agents that know nothing but where they are and what a pod is given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_pods_join_by_their_service_account() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start().await.unwrap();
    shop(&server);
    empty(&server, "ConfigMap");
    empty(&server, "Secret");
    server.put(agents_pod("agent-2", "n2"));
    let states = ["a", "b"].map(|name| folder.path().join(name));
    let one = ControlPlane::start(&server, &states[0]).await;
    let two = ControlPlane::start(&server, &states[1]).await;
    let ca = folder.path().join("ca.crt");
    until("the CA is published", || published(&server).is_some()).await;
    // As the kubelet mounts it.
    std::fs::write(&ca, published(&server).unwrap()).unwrap();

    server.issue("an.agents.token", "fairway-feed", agent("agent-1", Some("n1")));
    server.issue("an.older.one", "fairway-feed", agent("agent-2", None));
    server.issue("of.its.predecessor", "fairway-feed", agent("agent-0", None));
    server.issue("for.the.server", "https://kubernetes.default.svc", agent("agent-1", Some("n1")));
    let other = json!({"username": "system:serviceaccount:shop:web", "extra": {}});
    server.issue("of.another.account", "fairway-feed", other);

    let both = [one.endpoint.clone(), two.endpoint.clone()];
    for (node, token) in [("n1", "an.agents.token"), ("n2", "an.older.one")] {
        let mut agent = agent_on(node, token, &both, folder.path(), ca.clone());
        comes_to(&mut agent, "connected", |status| status.connected).await;
        drop(agent);
        // What one replica made, the other one takes.
        for endpoint in &both {
            let endpoint = std::slice::from_ref(endpoint);
            let mut agent = agent_on(node, token, endpoint, folder.path(), ca.clone());
            comes_to(&mut agent, "connected", |status| status.connected).await;
        }
    }
    for (node, token, reason) in [
        ("n2", "an.agents.token", "this token is for node n1, not for node n2"),
        ("n1", "an.older.one", "this token is for node n2, not for node n1"),
        ("n1", "of.its.predecessor", "its pod agent-0 is not there any more"),
        ("n1", "for.the.server", "invalid bearer token"),
        ("n1", "of.another.account", "it is that of system:serviceaccount:shop:web"),
        ("n1", TOKEN, "invalid bearer token"),
    ] {
        let mut agent = agent_on(node, token, &both[..1], folder.path(), ca.clone());
        let said = |status: &client::Status| {
            status.error.as_ref().is_some_and(|error| error.contains(reason))
        };
        comes_to(&mut agent, reason, said).await;
    }
    // A gateway is its own pod, of the group that its account is for.
    let mut user = agent("gateway-1", Some("n1"));
    user["username"] = json!("system:serviceaccount:kube-system:fairway-gateway");
    server.issue("a.gateways.token", "fairway-feed", user);
    let join =
        |gateway| gateway_of(gateway, "a.gateways.token", &both[0], folder.path(), ca.clone());
    let mut own = join("edge/gateway-1");
    comes_to(&mut own, "connected", |status| status.connected).await;
    for other in ["edge/gateway-2", "shop/gateway-1"] {
        let reason = format!("this token is for gateway edge/gateway-1, not for gateway {other}");
        let said = |status: &client::Status| {
            status.error.as_ref().is_some_and(|error| error.contains(&reason))
        };
        comes_to(&mut join(other), &reason, said).await;
    }
    // While nobody can be asked, they try again.
    server.fail(fail("create", "tokenreviews", 2, What::Refuse(503, "ServiceUnavailable")));
    server.issue(TOKEN, "fairway-feed", agent("agent-1", Some("n1")));
    let mut agent = agent_on("n1", TOKEN, &both, folder.path(), ca);
    comes_to(&mut agent, "connected", |status| status.connected).await;
    assert_eq!(server.faults_left(), 0);
}
