//! Endpoints of many Services change all the time while clients make connections and agents die.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, Source, may_run, unique_name};

const SERVICES: usize = 50;
/// For how long endpoints change.
const CHURN: Duration = Duration::from_secs(12);
/// Changes faster than this the control plane takes as one.
const PACE: Duration = Duration::from_millis(80);
/// How long the last change may take to reach the model.
const NEWS: Duration = Duration::from_secs(10);

/// A pod on each node that answers all the time, and "asker" on node3.
const PODS: [(&str, &str); 4] =
    [("one", "node1"), ("two", "node2"), ("three", "node3"), ("asker", "node3")];

#[test]
fn no_connection_fails_while_endpoints_change_and_agents_die() {
    if !may_run("churn") {
        return;
    }
    let lab = Lab::up(Options::named(unique_name("churn"))).unwrap();
    for (name, node) in PODS {
        lab.apply(&pod(name, node)).unwrap();
    }
    let address = |(name, _): (&str, &str)| -> IpAddr {
        let pod = lab.wait_for_pods("default", "app", name, 1).unwrap().remove(0);
        pod["status"]["podIP"].as_str().unwrap().parse().unwrap()
    };
    let servers = [PODS[0], PODS[1], PODS[2]].map(address);
    address(PODS[3]);
    lab.apply(&(0..SERVICES).map(service).collect::<String>()).unwrap();
    let churn = Churn::new(&lab, servers);
    churn.write(&[0b111; SERVICES]);
    for number in 0..SERVICES {
        lab.wait_for_endpoints(&name(number), 3).unwrap();
    }

    let (inside, outside) = ways(&lab);
    let url = |server: &SocketAddr| format!("http://{server}/hostname");
    let load = |from: Target, servers: &[SocketAddr]| {
        lab.start_load(from, &servers.iter().map(url).collect::<Vec<_>>(), 100, 4).unwrap()
    };
    let asker = Target::Pod { namespace: "default".to_owned(), name: "asker".to_owned() };
    let loads = [load(asker, &inside), load(Target::Client, &outside)];

    let over = AtomicBool::new(false);
    let mut changes = 0;
    let last = thread::scope(|scope| {
        let churning = scope.spawn(|| churn.run(&over));
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let start = Instant::now();
        while start.elapsed() < CHURN {
            changes += changes_within(&lab, Duration::from_millis(200 + random.below(1200)));
            let node = ["node1", "node3"][usize::from(random.below(2) == 1)];
            lab.restart_agent(node, true).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        churning.join().unwrap()
    });

    for load in loads {
        let summary = load.finish().unwrap();
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.ok > 500, "{summary:?}");
        assert_eq!(summary.by_pod.len(), 3, "each of them served: {summary:?}");
    }
    let kills: u32 = lab.nodes().unwrap().iter().map(|node| node.agent_restarts).sum();
    println!("{changes} times {SERVICES} lists were seen to change, {kills} agents were killed");
    assert!(changes > 5 && kills >= 3, "{changes} changes, {kills} kills");

    // Every node ends where the last change leads.
    let expected: Vec<Vec<IpAddr>> = last.iter().map(|set| churn.members(*set)).collect();
    wait_until(NEWS, "the last change", || {
        let model = lab.model()?;
        Ok((0..SERVICES).all(|number| {
            let endpoints = &model.endpoints[&name(number)];
            let known = endpoints.ports.values().flatten().map(|endpoint| endpoint.address);
            let mut known: Vec<IpAddr> = known.collect();
            known.sort_unstable();
            known == expected[number]
        }))
    })
    .unwrap();
    for (number, server) in inside.iter().enumerate().step_by(7) {
        let count = expected[number].len();
        lab.wait_for_endpoints(&name(number), count).unwrap();
        for node in ["node1", "node2", "node3"] {
            let from = Target::Node { node: node.to_owned() };
            let answer = lab.get(from, &url(server)).unwrap();
            let at = PODS.iter().position(|(name, _)| *name == answer).unwrap();
            assert!(last[number] & 1 << at != 0, "{answer} serves no more: {:b}", last[number]);
        }
    }
}

/// How often the model was seen to change within some time.
fn changes_within(lab: &Lab, time: Duration) -> u32 {
    let start = Instant::now();
    let mut known = lab.model().unwrap().endpoints;
    let mut changes = 0;
    while start.elapsed() < time {
        thread::sleep(PACE / 8);
        let now = lab.model().unwrap().endpoints;
        changes += u32::from(now != known);
        known = now;
    }
    changes
}

/// Writes the Services' EndpointSlices, all of them each time.
struct Churn<'a> {
    lab: &'a Lab,
    servers: [IpAddr; 3],
}

/// Which of the servers are a Service's endpoints, a bit each.
type Sets = [u8; SERVICES];

impl<'a> Churn<'a> {
    fn new(lab: &'a Lab, servers: [IpAddr; 3]) -> Self {
        Self { lab, servers }
    }

    /// Changes until told that it is over; answers what is to be in force then.
    fn run(&self, over: &AtomicBool) -> Sets {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut sets = [0b111; SERVICES];
        while !over.load(Ordering::Relaxed) {
            for set in &mut sets {
                // Another one, and never none.
                let step = 1 + random.below(6);
                *set = u8::try_from((u64::from(*set) - 1 + step) % 7 + 1).unwrap();
            }
            self.write(&sets);
            thread::sleep(PACE);
        }
        sets
    }

    fn members(&self, set: u8) -> Vec<IpAddr> {
        let there = (0..).zip(self.servers).filter(|(at, _)| set & 1 << at != 0);
        let mut members: Vec<_> = there.map(|(_, address)| address).collect();
        members.sort_unstable();
        members
    }

    /// In a folder in one step, as nobody is to read half of it.
    fn write(&self, sets: &Sets) {
        let mut text = String::new();
        for (number, set) in sets.iter().enumerate() {
            let members = self.members(*set);
            let endpoints = members.iter().map(|address| format!("{{addresses: [{address}]}}"));
            let endpoints: Vec<_> = endpoints.collect();
            write!(
                text,
                "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
                 metadata: {{name: churn{number}, namespace: default, \
                 labels: {{kubernetes.io/service-name: churn{number}}}}}, \
                 addressType: IPv4, ports: [{{name: http, port: 8080}}], \
                 endpoints: [{}]}}\n",
                endpoints.join(", ")
            )
            .unwrap();
        }
        if Source::of_environment() == Source::Api {
            self.lab.apply(&text).unwrap();
            return;
        }
        let folder = self.lab.manifests();
        let draft = folder.with_file_name("churn.draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, folder.join("churn-slices.yaml")).unwrap();
    }
}

fn pod(name: &str, node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, \
         spec: {{nodeName: {node}, \
         containers: [{{name: c, image: agnhost, ports: [{{containerPort: 8080}}]}}]}}}}"
    )
}

fn service(number: usize) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: churn{number}}}, \
         spec: {{type: NodePort, ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}\n"
    )
}

fn name(number: usize) -> ObjectName {
    ObjectName::new("default", format!("churn{number}"))
}

/// The Services' ClusterIPs, and their node ports on node1.
fn ways(lab: &Lab) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let services = lab.model().unwrap().services;
    let node = lab.nodes().unwrap().remove(0).addresses[0];
    let ways = (0..SERVICES).map(|number| {
        let service = &services[&name(number)];
        let port = &service.ports[0];
        (
            SocketAddr::new(service.cluster_ips[0], port.port),
            SocketAddr::new(node, port.node_port.unwrap()),
        )
    });
    ways.unzip()
}

/// xorshift64: the same changes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
