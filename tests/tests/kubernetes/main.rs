//! The model that comes of an API server, however it misbehaves: always what the objects say once it is
//! quiet, and never a part of it in between.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

mod connect;
mod deploy;
mod events;
mod ingress;
mod join;
mod leader;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairway_controlplane::manifests;
use fairway_kubernetes::connect::Connect;
use fairway_kubernetes::source::{self, Pace, Source};
use fairway_model::Model;
use fairway_tests::apiserver::{ApiServer, Asked, Fault, What};
use fairway_tests::binaries::binaries;
use fairway_tests::http::get;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a server is quiet between bookmarks; a real one for about a minute.
const BOOKMARKS: Duration = Duration::from_secs(1);

const SERVICES: &str = "10.96.0.0/16";

/// Quick, so that tests are.
const PACE: Pace = Pace {
    answer: Duration::from_secs(10),
    silence: Duration::from_secs(20),
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(100),
    absent: Duration::from_millis(50),
};

/// A server, a source that follows it, and every model that the source ever published.
struct Run {
    server: ApiServer,
    source: Source,
    published: Arc<Mutex<Vec<Arc<Model>>>>,
    _task: JoinSet<()>,
}

impl Run {
    async fn new(prepare: impl FnOnce(&ApiServer)) -> Self {
        Self::paced(PACE, prepare).await
    }

    async fn paced(pace: Pace, prepare: impl FnOnce(&ApiServer)) -> Self {
        Self::with(source::Options { pace, ..source::Options::default() }, prepare).await
    }

    async fn with(options: source::Options, prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::start().await.unwrap();
        // What tells where ClusterIPs come from, as in any newer cluster.
        server.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [SERVICES]}}));
        prepare(&server);
        let connect = Connect { server: Some(server.url()), ..Connect::default() };
        let client = connect.client().await.unwrap();
        let source = source::start(&client, options).unwrap();
        let published = Arc::new(Mutex::new(Vec::new()));
        let mut task = JoinSet::new();
        let (mut models, all) = (source.model.clone(), Arc::clone(&published));
        task.spawn(async move {
            while models.changed().await.is_ok() {
                all.lock().unwrap().extend(models.borrow_and_update().clone());
            }
        });
        Self { server, source, published, _task: task }
    }

    /// Waits until the model is what a folder with the server's objects makes, byte for byte.
    async fn settles(&mut self) -> Arc<Model> {
        let expected = text(&of_folder(&self.server.objects()));
        let fits = |model: &Option<Arc<Model>>| {
            model.as_deref().is_some_and(|model| text(model) == expected)
        };
        let end = Instant::now() + PATIENCE;
        while timeout(BOOKMARKS, self.source.model.wait_for(fits)).await.is_err() {
            self.server.bookmark();
            if Instant::now() < end {
                continue;
            }
            let found = self.source.model.borrow().as_deref().map(text).unwrap_or_default();
            let problems = self.source.problems.borrow().clone();
            let differs = found.lines().zip(expected.lines()).find(|(one, other)| one != other);
            panic!("{differs:?} {problems:?}\n{found}\n{expected}");
        }
        self.source.model.borrow().clone().unwrap()
    }

    /// Waits until something is wrong with that text in it.
    async fn complains(&mut self, words: &str) {
        let found = self.source.problems.wait_for(|problems| {
            problems.iter().any(|problem| problem.to_string().contains(words))
        });
        let found = timeout(PATIENCE, found).await.map(drop);
        assert!(found.is_ok(), "nobody said {words:?}: {:?}", self.source.problems.borrow());
    }

    async fn is_content(&mut self) {
        let none = timeout(PATIENCE, self.source.problems.wait_for(Vec::is_empty)).await.map(drop);
        assert!(none.is_ok(), "{:?}", self.source.problems.borrow());
    }

    /// What was asked of a kind with that verb.
    fn asked(&self, verb: &str, resource: &str) -> Vec<Asked> {
        let mut asked = self.server.asked();
        asked.retain(|asked| asked.verb == verb && asked.resource == resource);
        asked
    }

    fn lists(&self, resource: &str) -> usize {
        let streamed = self.asked("watch", resource);
        let streamed =
            streamed.iter().filter(|asked| asked.query.contains_key("sendInitialEvents"));
        let whole = self.asked("list", resource);
        let whole = whole.iter().filter(|asked| {
            !asked.query.contains_key("continue")
                && asked.query.get("limit").is_none_or(|limit| limit != "1")
        });
        streamed.count() + whole.count()
    }

    /// Does something while nobody is connected.
    async fn goes_away_and_comes_back(&self, meanwhile: impl FnOnce(&ApiServer)) {
        self.server.behave(|behaviour| behaviour.is_down = true);
        let before = self.server.connections();
        // All of them have tried again by then.
        self.until("nobody is connected", |run| run.server.connections() > before + 30).await;
        meanwhile(&self.server);
        self.server.behave(|behaviour| behaviour.is_down = false);
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut ticks = tokio::time::interval(Duration::from_millis(2));
        while !done(self) {
            ticks.tick().await;
            assert!(Instant::now() < end, "never: {what}; asked: {:#?}", self.server.asked());
        }
    }

    /// Every published model must have what was there all the time.
    fn never_without(&self, services: usize, pods: usize) {
        for model in self.published.lock().unwrap().iter() {
            let found = (model.services.len(), model.pods.len());
            assert!(found.0 >= services && found.1 >= pods, "{found:?}");
        }
    }
}

fn text(model: &Model) -> String {
    serde_json::to_string_pretty(model).unwrap()
}

/// The model of a folder that has these objects.
fn of_folder(objects: &[Value]) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(folder.path().join("all.json"), list.to_string()).unwrap();
    let cidrs = vec![SERVICES.parse().unwrap()];
    manifests::check(&[folder.path().to_owned()], cidrs, 30000..=u16::MAX).unwrap().model
}

fn pod(name: &str, labels: Value, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]},
            {"name": "d", "image": "y"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
            {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]}})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]}})
}

fn slice(service: &str, number: usize, ips: &[String]) -> Value {
    let endpoints = ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}));
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{number}"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"port": 8080, "protocol": "TCP", "name": ""}]})
}

fn policy(name: &str, app: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": app}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}})
}

fn node(name: &str, number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": format!("10.244.{number}.0/24"), "podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}]}})
}

/// A small cluster: 2 Services, 3 pods.
fn shop(server: &ApiServer) {
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    server.put(node("n1", 1));
    for (name, app, ip) in
        [("a", "web", "10.244.1.2"), ("b", "web", "10.244.1.3"), ("c", "db", "10.244.1.4")]
    {
        server.put(pod(name, json!({"app": app}), ip));
    }
    for name in ["web", "db"] {
        server.put(service(name));
    }
    server.put(slice("web", 1, &["10.244.1.2".into(), "10.244.1.3".into()]));
    server.put(policy("db", "db"));
}

fn fail(verb: &'static str, resource: &'static str, times: usize, what: What) -> Fault {
    Fault { verb, resource, times, what }
}

#[tokio::test]
async fn nothing_is_published_before_every_kind_was_listed() {
    let mut run = Run::new(|server| {
        shop(server);
        server.fail(fail("watch", "networkpolicies", 3, What::Refuse(500, "InternalError")));
    })
    .await;
    run.complains("NetworkPolicy: the API server cannot be followed: 500 InternalError").await;
    run.settles().await;
    run.is_content().await;
    // A first model, and all of it.
    assert_eq!(run.published.lock().unwrap().len(), 1);
    let (pods, policies) = (run.lists("pods"), run.lists("networkpolicies"));
    assert_eq!((pods, policies), (1, 4));
}

#[tokio::test]
async fn changes_are_followed() {
    let mut run = Run::new(shop).await;
    run.settles().await;
    run.server.put(pod("d", json!({"app": "db"}), "10.244.1.5"));
    run.server.delete("Pod", "shop", "a");
    run.server.put(slice("web", 1, &["10.244.1.3".into()]));
    run.settles().await;
    run.server.delete("Service", "shop", "db");
    run.server.delete("NetworkPolicy", "shop", "db");
    let model = run.settles().await;
    assert_eq!((model.services.len(), model.policies.len()), (1, 0));
    // Told by watches alone.
    assert_eq!(run.lists("pods"), 1);
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_read_in_pages() {
    let mut run = Run::new(|server| {
        server.behave(|behaviour| behaviour.streams_lists = false);
        server.put(node("n1", 1));
        for number in 0..1100 {
            let ip = format!("10.244.{}.{}", number / 250, number % 250);
            server.put(pod(&format!("p{number}"), json!({"app": "x"}), &ip));
        }
        // The second page is not there any more; what follows is read as a whole.
        server.fail(fail("list", "pods", 1, What::Wait(Duration::ZERO)));
        server.fail(fail("list", "pods", 1, What::Refuse(410, "Expired")));
    })
    .await;
    let model = run.settles().await;
    assert_eq!(model.pods.len(), 1100);
    let limits: Vec<_> =
        run.asked("list", "pods").iter().map(|asked| asked.query.get("limit").cloned()).collect();
    assert_eq!(limits, [Some("500".to_owned()), Some("500".to_owned()), None]);
    assert_eq!(run.published.lock().unwrap().len(), 1);

    // And in pages again after that.
    run.goes_away_and_comes_back(|server| {
        server.put(pod("one-more", json!({"app": "x"}), "10.244.9.9"));
        server.compact();
    })
    .await;
    let model = run.settles().await;
    assert_eq!(model.pods.len(), 1101);
    let pages = run
        .asked("list", "pods")
        .iter()
        .filter(|asked| asked.query.contains_key("continue"))
        .count();
    assert_eq!(pages, 1 + 2);
    run.never_without(0, 1100);
}

#[tokio::test]
async fn a_version_that_is_forgotten_is_a_reason_to_list_again() {
    for by_status in [true, false] {
        let mut run = Run::new(|server| {
            server.behave(|behaviour| behaviour.gone_by_status = by_status);
            shop(server);
        })
        .await;
        run.settles().await;
        run.goes_away_and_comes_back(|server| {
            server.delete("Pod", "shop", "a");
            server.put(pod("d", json!({"app": "db"}), "10.244.1.5"));
            server.compact();
        })
        .await;
        run.settles().await;
        run.is_content().await;
        assert_eq!(run.lists("pods"), 2, "by status: {by_status}");
        run.never_without(2, 3);
    }
}

#[tokio::test]
async fn lines_arrive_in_pieces_and_break_off() {
    let mut run = Run::new(|server| {
        server.behave(|behaviour| behaviour.pieces = Some(7));
        shop(server);
        server.fail(fail("watch", "pods", 1, What::CutAfter(900)));
        server.fail(fail("watch", "pods", 1, What::Reset));
    })
    .await;
    run.settles().await;
    for number in 0..5 {
        run.server.put(pod("a", json!({"app": "web", "n": number.to_string()}), "10.244.1.2"));
        run.server.cut();
        run.server.put(pod("d", json!({"app": "db", "n": number.to_string()}), "10.244.1.5"));
        run.settles().await;
    }
    run.is_content().await;
    // A watch goes on where it broke off.
    assert_eq!(run.lists("pods"), 3);
    assert_eq!(run.lists("services"), 1);
    run.never_without(2, 3);
}

#[tokio::test]
async fn errors_and_slow_answers_only_take_time() {
    let answer = Duration::from_millis(400);
    let mut run = Run::paced(Pace { answer, ..PACE }, |server| {
        shop(server);
        server.fail(fail("watch", "services", 1, What::Wait(Duration::from_secs(5))));
        server.fail(fail("watch", "pods", 1, What::Refuse(503, "ServiceUnavailable")));
    })
    .await;
    run.settles().await;
    for what in [
        What::ErrorEvent(500, "InternalError"),
        What::ErrorEvent(410, "Expired"),
        What::ErrorEvent(429, "TooManyRequests"),
        What::Refuse(504, "Timeout"),
        What::Refuse(401, "Unauthorized"),
        What::Wait(Duration::from_secs(5)),
        What::Reset,
    ] {
        run.server.fail(fail("watch", "pods", 2, what.clone()));
        run.server.end_watches();
        run.server.put(pod(
            "d",
            json!({"app": "db", "now": format!("{what:?}").len().to_string()}),
            "10.244.1.5",
        ));
        run.until("the faults are over", |run| run.server.faults_left() == 0).await;
        run.settles().await;
        run.is_content().await;
    }
    run.never_without(2, 3);
}

#[tokio::test]
async fn who_is_to_come_later_does() {
    let mut run = Run::new(shop).await;
    run.settles().await;
    run.server.fail(fail("watch", "pods", 1, What::Throttle(1)));
    let before = run.asked("watch", "pods").len();
    run.server.end_watches();
    run.until("it was refused", |run| run.server.faults_left() == 0).await;
    let begun = Instant::now();
    run.until("it came again", |run| run.asked("watch", "pods").len() == before + 2).await;
    assert!(begun.elapsed() > Duration::from_millis(950), "{:?}", begun.elapsed());
    run.settles().await;
}

#[tokio::test]
async fn another_history_is_noticed() {
    let mut run = Run::new(shop).await;
    run.settles().await;
    // What was done since the backup is not known any more.
    run.server.restore();
    run.server.delete("Pod", "shop", "b");
    run.settles().await;
    run.is_content().await;
    assert_eq!(run.lists("pods"), 2);

    // Where the connection survives, a bookmark gives it away.
    run.server.put(pod("b", json!({"app": "web"}), "10.244.1.3"));
    run.settles().await;
}

#[tokio::test]
async fn a_silent_connection_is_given_up_and_costs_nothing() {
    let silence = Duration::from_millis(100);
    let mut run = Run::paced(Pace { silence, ..PACE }, shop).await;
    run.settles().await;
    run.until("watches begin anew", |run| run.asked("watch", "pods").len() > 4).await;
    run.server.put(pod("d", json!({"app": "db"}), "10.244.1.5"));
    run.settles().await;
    run.is_content().await;
    assert_eq!((run.lists("pods"), run.published.lock().unwrap().len()), (1, 2));
    // A bookmark moves on where a watch begins.
    run.server.bookmark();
    let version = |run: &Run| {
        let last = run.asked("watch", "nodes").pop().unwrap();
        last.query.get("resourceVersion").and_then(|version| version.parse::<u64>().ok())
    };
    let known = run.server.get("Pod", "shop", "d").unwrap();
    let known = known["metadata"]["resourceVersion"].as_str().unwrap().parse().ok();
    run.until("nodes are watched from there", |run| version(run) == known).await;
}

#[tokio::test]
async fn kinds_come_and_go_with_their_definitions() {
    let tiers = ["clusternetworkpolicies", "adminnetworkpolicies", "baselineadminnetworkpolicies"];
    let mut run = Run::new(|server| {
        server.behave(|behaviour| behaviour.without.extend(tiers));
        shop(server);
    })
    .await;
    assert_eq!(run.settles().await.policies.len(), 1);
    run.is_content().await;
    run.server.behave(|behaviour| behaviour.without.clear());
    run.server.put(json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "all"}, "spec": {"tier": "Admin", "priority": 1,
            "subject": {"namespaces": {}}, "egress": [{"action": "Deny", "to": [{"networks": ["192.0.2.0/24"]}]}]}}));
    assert_eq!(run.settles().await.policies.len(), 2);
    // One answer is not enough to take a policy away.
    run.server.fail(fail("watch", "clusternetworkpolicies", 2, What::Refuse(404, "NotFound")));
    run.server.end_watches();
    run.until("it was not there for a moment", |run| run.server.faults_left() == 0).await;
    run.settles().await;
    run.never_without(2, 3);
    assert!(run.published.lock().unwrap().iter().skip(1).all(|model| model.policies.len() == 2));
    run.server.delete("ClusterNetworkPolicy", "", "all");
    run.server.behave(|behaviour| behaviour.without.extend(tiers));
    run.server.end_watches();
    assert_eq!(run.settles().await.policies.len(), 1);
}

#[tokio::test]
async fn what_every_cluster_has_is_never_taken_for_empty() {
    let mut run = Run::new(shop).await;
    run.settles().await;
    run.server.behave(|behaviour| behaviour.without.extend(["pods"]));
    run.server.end_watches();
    run.complains("Pod: the API server cannot be followed: 404").await;
    run.until("it goes on to try", |run| run.lists("pods") > 6).await;
    run.never_without(2, 3);
    run.server.behave(|behaviour| behaviour.without.clear());
    run.settles().await;
    run.is_content().await;
    assert_eq!(run.published.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_denies_or_stays_as_it_was() {
    let mut wrong = policy("db", "db");
    wrong["spec"]["ingress"][0]["form"] = json!([]);
    let mut run = Run::new(|server| {
        shop(server);
        server.put(wrong.clone());
    })
    .await;
    run.complains("NetworkPolicy shop/db: spec.ingress[0]").await;
    run.complains("is denied until it is mended").await;
    run.settles().await;
    run.server.put(policy("db", "db"));
    let good = run.settles().await;
    run.is_content().await;
    run.server.put(wrong);
    run.complains("NetworkPolicy shop/db: spec.ingress[0]").await;
    // The folder that the test holds against it remembers nothing of before.
    assert_eq!(text(run.source.model.borrow().as_deref().unwrap()), text(&good));
}

#[tokio::test]
async fn only_who_has_the_token_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start().await.unwrap();
    server.behave(|behaviour| behaviour.token = Some("sesame".into()));
    shop(&server);
    let kubeconfig = |token: &str| {
        let user = json!({"name": "me", "user": {"token": token}});
        let cluster = json!({"name": "here", "cluster": {"server": server.url()}});
        let context = |name: &str, cluster: &str| json!({"name": name, "context": {"cluster": cluster, "user": "me"}});
        let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "wrong",
            "clusters": [cluster], "users": [user],
            "contexts": [context("wrong", "nowhere"), context("right", "here")]});
        let path = folder.path().join(token);
        std::fs::write(&path, file.to_string()).unwrap();
        path
    };
    let start = async |path: PathBuf| {
        let context = Some("right".to_owned());
        let connect = Connect { kubeconfig: Some(path), context, server: None };
        let client = connect.client().await.unwrap();
        source::start(&client, source::Options { pace: PACE, ..Default::default() }).unwrap()
    };
    let mut known = start(kubeconfig("sesame")).await;
    let model = timeout(PATIENCE, known.model.wait_for(Option::is_some)).await.unwrap();
    assert_eq!(model.unwrap().as_deref().map(|model| model.pods.len()), Some(3));
    let mut stranger = start(kubeconfig("poppy")).await;
    let refused = stranger.problems.wait_for(|problems| {
        problems.iter().any(|problem| problem.to_string().contains("401 Unauthorized"))
    });
    drop(timeout(PATIENCE, refused).await.unwrap());
    assert!(stranger.model.borrow().is_none());

    let nothing = Connect { kubeconfig: Some("/nowhere".into()), ..Connect::default() };
    let error = nothing.client().await.err().unwrap();
    assert_eq!(format!("{error}"), "kubeconfig /nowhere: cannot be used");
}

#[tokio::test]
async fn the_program_serves_what_the_cluster_has() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start().await.unwrap();
    shop(&server);
    let kubeconfig = folder.path().join("config");
    let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server.url()}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}]});
    std::fs::write(&kubeconfig, file.to_string()).unwrap();
    let mut command = Command::new(binaries().unwrap().join("fairway-controlplane"));
    command.args(["run", "--kubernetes", "--listen", "127.0.0.1:0", "--service-cidr", SERVICES]);
    command.arg("--kubeconfig").arg(&kubeconfig);
    command.arg("--state-dir").arg(folder.path().join("state"));
    command.env_remove("FAIRWAY_LOG").stderr(Stdio::piped()).kill_on_drop(true);
    let mut running = command.spawn().unwrap();
    let mut log = BufReader::new(running.stderr.take().unwrap()).lines();
    let mut address = None;
    let mut leads = false;
    // The log says which port it got.
    while address.is_none() || !leads {
        let line = timeout(PATIENCE, log.next_line()).await.unwrap().unwrap().unwrap();
        leads |= line.contains("leads: writes status");
        if let Some((_, found)) = line.split_once("address=") {
            address = Some(found.trim().parse().unwrap());
        }
    }
    let address = address.unwrap();
    let model = move || loop {
        let answer = get(address, "/v1/model", PATIENCE).unwrap();
        if answer.status == 200 {
            return serde_json::from_slice::<Model>(&answer.body).unwrap();
        }
    };
    let model = timeout(PATIENCE, tokio::task::spawn_blocking(model)).await.unwrap().unwrap();
    let mut objects = server.objects();
    objects.retain(|object| object["kind"] != "Lease");
    assert_eq!(text(&model), text(&of_folder(&objects)));

    let pid = rustix::process::Pid::from_raw(running.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(timeout(PATIENCE, running.wait()).await.unwrap().unwrap().success());
    // Nobody has to wait for another one to lead.
    let lease = server.get("Lease", "kube-system", "fairway-controlplane").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "");
}

/// Objects of all kinds, changed at random while the server misbehaves at random, with both ways of listing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_model_is_that_of_a_folder() {
    for seed in 1..=4 {
        let mut random = Random(seed);
        let mut run = Run::new(|server| {
            server.behave(|behaviour| {
                behaviour.streams_lists = seed % 2 == 0;
                behaviour.gone_by_status = seed % 3 == 0;
                behaviour.pieces = (seed > 2).then_some(11);
            });
            shop(server);
        })
        .await;
        run.settles().await;
        for _ in 0..10 {
            for _ in 0..random.below(12) {
                random.change(&run.server);
            }
            random.trouble(&run.server);
            random.change(&run.server);
            run.settles().await;
        }
        run.never_without(1, 0);
    }
}

/// Examples, and manifests as they are in this repository, as an API server has them.
#[tokio::test]
async fn examples_make_the_same_model_from_a_folder_and_from_an_api_server() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    let mut run = Run::new(|server| {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.extension().is_none_or(|extension| extension != "yaml") {
                    continue;
                }
                for document in std::fs::read_to_string(&path).unwrap().split("\n---") {
                    let object = serde_saphyr::from_str::<Value>(document).unwrap();
                    for object in made_by_controllers(object) {
                        server.put(object);
                        count += 1;
                    }
                }
            }
        }
    })
    .await;
    let model = run.settles().await;
    assert!(count >= 6 && model.services.len() >= 3 && !model.pods.is_empty(), "{count}");
}

/// What controllers make of it; anything else as it is, if it is for the network.
fn made_by_controllers(object: Value) -> Vec<Value> {
    match object["kind"].as_str() {
        Some("ReplicationController") => {
            let template = &object["spec"]["template"];
            let pods = (0..object["spec"]["replicas"].as_u64().unwrap_or(1)).map(|number| {
                let name = format!("{}-{number}", object["metadata"]["name"].as_str().unwrap());
                let mut pod = template.clone();
                pod["apiVersion"] = "v1".into();
                pod["kind"] = "Pod".into();
                pod["metadata"]["name"] = name.into();
                pod["spec"]["nodeName"] = "n1".into();
                pod
            });
            pods.collect()
        }
        Some("Service") => vec![object],
        _ => Vec::new(),
    }
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    fn change(&mut self, server: &ApiServer) {
        let names = ["a", "b", "c", "d", "e", "web-2"];
        let (name, app) = (self.pick(&names), self.pick(&["web", "db", "cart"]));
        let ip = format!("10.244.1.{}", 2 + self.below(200));
        match self.below(14) {
            0 | 1 => drop(server.put(pod(name, json!({"app": app}), &ip))),
            2 => server.delete("Pod", "shop", name),
            3 => {
                let mut service = service(app);
                service["spec"]["type"] =
                    self.pick(&["ClusterIP", "NodePort", "LoadBalancer"]).into();
                // The numbers that it has been given stay its own.
                if let Some(old) = server.get("Service", "shop", app) {
                    service["spec"] = old["spec"].clone();
                    service["spec"]["selector"]["app"] = app.into();
                }
                server.put(service);
            }
            4 => server.delete("Service", "shop", self.pick(&["db", "cart"])),
            5 => {
                let headless = json!({"apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": "peers", "namespace": "shop"},
                    "spec": {"clusterIP": "None", "selector": {"app": app}, "ports": [{"port": 1, "name": "p"}]}});
                server.put(headless);
            }
            6 => drop(server.put(slice(app, 1, &[ip]))),
            7 => server.delete("EndpointSlice", "shop", &format!("{app}-1")),
            8 => drop(server.put(policy(name, app))),
            9 => server.delete("NetworkPolicy", "shop", name),
            10 => drop(server.put(node(
                self.pick(&["n1", "n2", "n3"]),
                1 + usize::try_from(self.below(3)).unwrap(),
            ))),
            11 => server.delete("Node", "", self.pick(&["n2", "n3"])),
            12 => drop(server.put(json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": self.pick(&["shop", "other"]), "labels": {"team": name}}}))),
            _ => drop(server.put(json!({"apiVersion": "policy.networking.k8s.io/v1alpha1",
                "kind": "AdminNetworkPolicy", "metadata": {"name": name},
                "spec": {"priority": self.below(99), "subject": {"namespaces": {}},
                    "ingress": [{"action": "Allow", "from": [{"namespaces": {}}]}]}}))),
        }
    }

    fn trouble(&mut self, server: &ApiServer) {
        let verb = self.pick(&["list", "watch"]);
        let verb = if verb == "list" { "list" } else { "watch" };
        match self.below(9) {
            0 => server.cut(),
            1 => {
                server.compact();
                server.cut();
            }
            2 => {
                server.restore();
            }
            3 => server.end_watches(),
            4 => server.bookmark(),
            5 => {
                server.fail(fail(verb, "", 5, What::Refuse(500, "InternalError")));
                server.cut();
            }
            6 => {
                server.fail(fail(verb, "", 5, What::Reset));
                server.end_watches();
            }
            7 => {
                server.fail(fail("watch", "", 5, What::ErrorEvent(410, "Expired")));
                server.end_watches();
            }
            _ => {
                server.fail(fail("watch", "", 5, What::CutAfter(700)));
                server.end_watches();
            }
        }
    }
}
