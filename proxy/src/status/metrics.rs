//! What the agent counts, and how it is shown to Prometheus.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fairway_abi::{DropReason, RuleCount, answered};
use fairway_compile::policy::RuleName;
use fairway_core::dns::kind;
use fairway_dns::server::Elsewhere;
use fairway_model::{Endpoint, EndpointState, Model, ServicePort, TrafficPolicy};

use super::{Probe, Status};
use crate::dataplane::usage::Usage;
use crate::policy::Census;
use crate::selftest::{Finding, Outcome};

/// Upper bounds of the buckets of durations, in seconds: kube-proxy's.
const BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];

/// What changed between two models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    services: u64,
    /// Of so many Services.
    endpoints: u64,
}

impl Changes {
    /// From one model to the next.
    pub(crate) fn between(old: &Model, new: &Model) -> Self {
        Self {
            services: old.services.diff(&new.services).count() as u64,
            endpoints: old.endpoints.diff(&new.endpoints).count() as u64,
        }
    }

    pub(super) fn add(&mut self, more: Self) {
        self.services += more.services;
        self.endpoints += more.endpoints;
    }
}

/// Ports of Services that have endpoints, but none on the node, by the policy that asks for one there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NoLocal {
    internal: usize,
    external: usize,
}

impl NoLocal {
    /// On this node, of this model.
    pub(crate) fn of(model: &Model, node: &str) -> Self {
        let mut counts = Self::default();
        for service in model.services.values() {
            let is_outside = !service.external_ips.is_empty()
                || !service.load_balancer_ips.is_empty()
                || service.ports.iter().any(|port| port.node_port.is_some());
            let internal = service.internal_traffic == TrafficPolicy::Local;
            let external = service.external_traffic == TrafficPolicy::Local && is_outside;
            if service.cluster_ips.is_empty() || !(internal || external) {
                continue;
            }
            let endpoints = model.endpoints.get(&service.name);
            let elsewhere = |port: &&ServicePort| {
                let of_port = endpoints.and_then(|all| all.ports.get(&port.name));
                let mut serve = of_port.into_iter().flatten();
                let serves = |one: &&Endpoint| one.state != EndpointState::NotReady;
                let here = |one: &Endpoint| one.node.as_deref() == Some(node);
                serve.clone().any(|one| serves(&one)) && !serve.any(|one| serves(&one) && here(one))
            };
            let count = service.ports.iter().filter(elsewhere).count();
            counts.internal += if internal { count } else { 0 };
            counts.external += if external { count } else { 0 };
        }
        counts
    }
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub(super) struct Durations {
    /// At most as long as the bucket's bound.
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

impl Durations {
    pub(super) fn add(&mut self, took: Duration) {
        self.count += 1;
        self.seconds += took.as_secs_f64();
        for (bound, count) in BUCKETS.iter().zip(&mut self.buckets) {
            *count += u64::from(took.as_secs_f64() <= *bound);
        }
    }

    /// As the lines of a histogram, without its name.
    fn lines(&self) -> Vec<(String, f64)> {
        let bucket = |bound: &str, count: u64| (format!("_bucket{{le=\"{bound}\"}}"), count as f64);
        let buckets = BUCKETS.iter().zip(self.buckets);
        let mut lines: Vec<_> =
            buckets.map(|(bound, count)| bucket(&bound.to_string(), count)).collect();
        lines.push(bucket("+Inf", self.count));
        lines.push(("_sum".to_owned(), self.seconds));
        lines.push(("_count".to_owned(), self.count as f64));
        lines
    }
}

impl Status {
    /// All metrics in the Prometheus text format, under kube-proxy's names where they mean the same.
    pub(crate) fn metrics(&self) -> String {
        let inner = self.lock();
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let plain = |value: f64| [(String::new(), value)];

        family(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "histogram",
            "Time it took to bring the kernel to a new state.",
            &inner.syncs.lines(),
        );
        family(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "gauge",
            "When the kernel was last brought to a new state.",
            &plain(inner.last_synced.map_or(0.0, seconds)),
        );
        family(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "gauge",
            "When a new state was last asked for.",
            &plain(seconds(inner.last_queued)),
        );
        family(
            "fairway_sync_failures_total",
            "counter",
            "Attempts to bring the kernel to a new state that failed.",
            &plain(inner.failures as f64),
        );
        let [total, queued, behind] = inner.changes;
        for (name, object, total, pending) in [
            ("service", "Services", total.services, queued.services + behind.services),
            ("endpoint", "endpoints", total.endpoints, queued.endpoints + behind.endpoints),
        ] {
            family(
                &format!("kubeproxy_sync_proxy_rules_{name}_changes_total"),
                "counter",
                &format!("Changes of {object} that were heard of."),
                &plain(total as f64),
            );
            family(
                &format!("kubeproxy_sync_proxy_rules_{name}_changes_pending"),
                "gauge",
                &format!("Changes of {object} that are not in force yet."),
                &plain(pending as f64),
            );
        }
        let (node, announced) = &inner.announced;
        let announced = announced.iter().map(|(service, ip)| {
            let place =
                format!("service=\"{service}\",protocol=\"layer2\",node=\"{node}\",ip=\"{ip}\"");
            (format!("{{{place}}}"), 1.0)
        });
        family(
            "metallb_speaker_announced",
            "gauge",
            "Addresses of load balancers that this node announces.",
            &announced.collect::<Vec<_>>(),
        );
        let NoLocal { internal, external } = inner.no_local_endpoints;
        family(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "Ports of Services that have endpoints, but none here where their policy wants one.",
            &[("internal", internal), ("external", external)]
                .map(|(policy, count)| (format!("{{traffic_policy=\"{policy}\"}}"), count as f64)),
        );
        let tables = |of: fn(&Usage) -> Option<f64>| -> Vec<_> {
            let tables = inner.tables.iter();
            let label = |usage: &Usage| format!("{{table=\"{}\"}}", usage.table);
            tables.filter_map(|usage| Some((label(usage), of(usage)?))).collect()
        };
        family(
            "fairway_table_entries",
            "gauge",
            "Entries in a table of the kernel, as of the last half minute.",
            &tables(|usage| Some(usage.entries?.now as f64)),
        );
        family(
            "fairway_table_max_entries",
            "gauge",
            "Entries that a table of the kernel has room for.",
            &tables(|usage| Some(usage.entries?.most.into())),
        );
        family(
            "fairway_table_bytes",
            "gauge",
            "Memory that a table takes, as the kernel says.",
            &tables(|usage| Some(usage.bytes? as f64)),
        );
        for (probe, name) in Probe::ALL.into_iter().zip(["healthz", "livez"]) {
            let counts = inner.probes[probe as usize];
            let codes = [200, 503].map(|code| format!("{{code=\"{code}\"}}"));
            let lines: Vec<_> = codes.into_iter().zip(counts.map(|count| count as f64)).collect();
            family(
                &format!("kubeproxy_proxy_{name}_total"),
                "counter",
                &format!("Answers to /{name}, by status."),
                &lines,
            );
        }
        family(
            "fairway_health_check_node_port_failures_total",
            "counter",
            "Attempts to listen on a Service's healthCheckNodePort that failed.",
            &plain(inner.health_check_failures as f64),
        );
        let drops: Vec<_> = DropReason::ALL
            .iter()
            .map(|reason| {
                let count = inner.drops.get(*reason as usize).copied().unwrap_or(0);
                (format!("{{reason=\"{}\"}}", reason.name()), count as f64)
            })
            .collect();
        family("fairway_drops_total", "counter", "Packets dropped, by reason.", &drops);
        let answers = (0..answered::TABLE).map(|kind| {
            let is = |bit: u32| kind & bit != 0;
            // As CoreDNS numbers families.
            let family = if is(answered::BY_V6) { 2 } else { 1 };
            let asked = if is(answered::AAAA) { "AAAA" } else { "A" };
            let found = if is(answered::NO_DATA) { "nodata" } else { "address" };
            let labels = format!("{{family=\"{family}\",type=\"{asked}\",answer=\"{found}\"}}");
            (labels, inner.answers.get(kind as usize).copied().unwrap_or(0) as f64)
        });
        family(
            "fairway_dns_kernel_answers_total",
            "counter",
            "Queries of pods that the kernel answered; coredns_dns_requests_total has them, too.",
            &answers.collect::<Vec<_>>(),
        );
        family(
            "fairway_flows",
            "gauge",
            "Open flows that have a record.",
            &plain(inner.flows as f64),
        );
        family(
            "fairway_frontends",
            "gauge",
            "Service addresses in the kernel.",
            &plain(inner.frontends as f64),
        );
        family(
            "fairway_wireguard_unreachable_nodes",
            "gauge",
            "Nodes that have no usable WireGuard key, so that no pod here and there reach each other.",
            &plain(inner.unreachable as f64),
        );
        family(
            "fairway_paced_devices",
            "gauge",
            "Devices out of the node with fq, where what pods send beyond their limits waits and is not dropped.",
            &plain(inner.paced as f64),
        );
        family("fairway_pods", "gauge", "Pods of this node.", &plain(inner.pods as f64));
        let Census { subjects, rules, identities, rulings, revision } = inner.policies;
        for (name, help, value) in [
            ("subjects", "Addresses of pods of this node that a policy restricts.", subjects),
            ("rules", "Rules of policies that hold for a pod of this node.", rules),
            ("identities", "Groups of addresses that no rule tells apart.", identities),
            ("rulings", "What rules make of those, as entries of a table.", rulings),
        ] {
            family(&format!("fairway_policy_{name}"), "gauge", help, &plain(value as f64));
        }
        family(
            "fairway_policy_revision",
            "gauge",
            "Number of the state of policies that open flows are held against; it begins anew some time.",
            &plain(revision.into()),
        );
        family(
            "fairway_policy_verdicts_total",
            "counter",
            "Flows that a rule allowed and packets that it denied, since it came into force here.",
            &verdicts(&inner.verdicts),
        );
        let tests = inner.selftest.iter().map(|Finding { check, peer, outcome, .. }| {
            let good = f64::from(u8::from(*outcome != Outcome::Failed));
            (format!("{{check=\"{check}\",peer=\"{peer}\"}}"), good)
        });
        family(
            "fairway_selftest",
            "gauge",
            "Whether a test of the node, or of the way to a peer, ended well.",
            &tests.collect::<Vec<_>>(),
        );
        family(
            "fairway_cni_waiting",
            "gauge",
            "Pods whose start waits until the control plane has told this node of them.",
            &plain(inner.waiting as f64),
        );
        family(
            "fairway_cni_add_duration_seconds",
            "histogram",
            "Time from a pod's registration by the CNI plugin to the answer, waiting included.",
            &inner.adds.lines(),
        );
        family(
            "fairway_cni_add_refused_total",
            "counter",
            "Registrations by the CNI plugin that were refused.",
            &plain(inner.refused_adds as f64),
        );
        if let Some(dns) = self.dns.get() {
            text.push_str(&dns.metrics(&answers_of_kernel(&inner.answers)));
        }
        text
    }
}

/// What the kernel has answered, by kind, a sum of [`answered`], as CoreDNS counts it.
fn answers_of_kernel(answers: &[u64]) -> Vec<Elsewhere> {
    let count = |kind: u32| answers.get(kind as usize).copied().unwrap_or_default();
    let of = |v6, aaaa| {
        let family = if v6 { answered::BY_V6 } else { 0 };
        let asked = family + if aaaa { answered::AAAA } else { 0 };
        let kind = if aaaa { kind::AAAA } else { kind::A };
        let count = count(asked) + count(asked + answered::NO_DATA);
        Elsewhere { server: "kernel", v6, kind, count }
    };
    vec![of(false, false), of(false, true), of(true, false), of(true, true)]
}

/// How many rules have counters of their own; what all others said is one sum.
const MOST_RULES: usize = 1000;

/// Labels and values of [`RuleCount`]s. Rules that nobody has asked have none.
fn verdicts(all: &[(RuleName, RuleCount)]) -> Vec<(String, f64)> {
    let mut lines = Vec::new();
    let mut others = RuleCount::default();
    let asked = all.iter().filter(|(_, count)| count.allowed + count.denied > 0);
    for (number, (rule, count)) in asked.enumerate() {
        if number >= MOST_RULES {
            others.allowed += count.allowed;
            others.denied += count.denied;
            continue;
        }
        let direction = if rule.ingress { "ingress" } else { "egress" };
        let index = rule.index.map_or_else(|| "none".to_owned(), |index| index.to_string());
        let labels =
            format!("policy=\"{}\",direction=\"{direction}\",rule=\"{index}\"", rule.policy);
        for (verdict, count) in [("allowed", count.allowed), ("denied", count.denied)] {
            if count > 0 {
                lines.push((format!("{{{labels},verdict=\"{verdict}\"}}"), count as f64));
            }
        }
    }
    for (verdict, count) in [("allowed", others.allowed), ("denied", others.denied)] {
        if count > 0 {
            let labels = "policy=\"others\",direction=\"\",rule=\"\"";
            lines.push((format!("{{{labels},verdict=\"{verdict}\"}}"), count as f64));
        }
    }
    lines
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use fairway_model::{Endpoints, Hints, Object, ObjectName, PolicyName, Service};

    use super::*;

    #[test]
    fn changes_wait_until_they_are_in_force() {
        let named = |names: &[&str], port: u16| -> Model {
            let port = ServicePort { port, ..ServicePort::default() };
            let services = names.iter().map(|name| Service {
                name: ObjectName::new("shop", *name),
                ports: vec![port.clone()],
                ..Service::default()
            });
            services.map(Object::Service).collect()
        };
        let changes = |old: &Model, new: &Model| Changes::between(old, new).services;
        assert_eq!(changes(&named(&["a", "b"], 1), &named(&["b", "c"], 1)), 2);
        assert_eq!(changes(&named(&["a", "b"], 1), &named(&["a", "b"], 2)), 2);
        let status = Status::new();
        let seen = |name: &str| {
            let text = status.metrics();
            let name = format!("kubeproxy_sync_proxy_rules_{name} ");
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        };
        let pending = || seen("endpoint_changes_pending");
        status.queued(Changes { services: 0, endpoints: 2 });
        assert_eq!(pending(), "2");
        status.taken();
        status.queued(Changes { services: 1, endpoints: 1 });
        status.behind(Some(Instant::now()));
        assert_eq!(pending(), "3");
        status.behind(None);
        assert_eq!(pending(), "1", "what came meanwhile");
        status.taken();
        status.behind(None);
        assert_eq!([pending(), seen("service_changes_pending")], ["0", "0"]);
        let totals = ["endpoint_changes_total", "service_changes_total"].map(seen);
        assert_eq!(totals, ["3", "1"]);
    }

    #[test]
    fn rules_are_counted_by_name_and_the_many_in_one_sum() {
        let rule = |name: &str, index: Option<usize>, allowed, denied| {
            let policy =
                PolicyName { namespace: "shop".into(), name: name.into(), ..PolicyName::default() };
            let rule = RuleName { policy, ingress: true, index, name: String::new() };
            (rule, RuleCount { allowed, denied })
        };
        let few =
            [rule("deny", None, 0, 7), rule("web", Some(2), 5, 0), rule("idle", Some(0), 0, 0)];
        let expected = [("deny", "none", "denied", 7.0), ("web", "2", "allowed", 5.0)].map(
            |(policy, rule, verdict, count)| {
                let policy = format!("policy=\"NetworkPolicy shop/{policy}\"");
                (
                    format!(
                        "{{{policy},direction=\"ingress\",rule=\"{rule}\",verdict=\"{verdict}\"}}"
                    ),
                    count,
                )
            },
        );
        assert_eq!(verdicts(&few), expected);
        let many: Vec<_> =
            (0..MOST_RULES + 3).map(|index| rule("many", Some(index), 2, 0)).collect();
        let lines = verdicts(&many);
        assert_eq!(lines.len(), MOST_RULES + 1);
        assert_eq!(lines.last().map(|(_, count)| *count), Some(6.0));
    }

    #[test]
    fn ports_without_an_endpoint_here_count_where_a_policy_wants_one() {
        use TrafficPolicy::{Cluster, Local};
        let count = |internal, external, node_port, endpoints: &[(&str, EndpointState)]| {
            let name = ObjectName::new("shop", "web");
            let service = Service {
                name: name.clone(),
                cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                ports: vec![ServicePort { node_port, port: 80, ..ServicePort::default() }],
                internal_traffic: internal,
                external_traffic: external,
                ..Service::default()
            };
            let endpoints = endpoints.iter().map(|(node, state)| Endpoint {
                address: "10.244.0.2".parse().unwrap(),
                port: 8080,
                node: Some((*node).to_owned()),
                state: *state,
                hints: Hints::default(),
                weight: 1,
                hostname: None,
            });
            let ports = [(String::new(), endpoints.collect())].into();
            let endpoints = Endpoints { service: name, ports };
            let model = [Object::Service(service), Object::Endpoints(endpoints)];
            let NoLocal { internal, external } = NoLocal::of(&model.into_iter().collect(), "a");
            [internal, external]
        };
        use EndpointState::{NotReady, Ready, ServingTerminating};
        let elsewhere = &[("b", Ready)][..];
        assert_eq!(count(Local, Local, Some(30_000), elsewhere), [1, 1]);
        assert_eq!(count(Local, Local, None, elsewhere), [1, 0], "nobody outside reaches it");
        assert_eq!(count(Cluster, Cluster, Some(30_000), elsewhere), [0, 0]);
        assert_eq!(count(Local, Cluster, None, &[]), [0, 0], "no endpoints at all");
        assert_eq!(count(Local, Cluster, None, &[("b", NotReady)]), [0, 0]);
        let leaving = [("a", ServingTerminating), ("b", Ready)];
        assert_eq!(count(Local, Cluster, None, &leaving), [0, 0], "it still serves");
    }

    #[test]
    fn each_metric_is_described_once_and_each_series_is_there_once() {
        let status = Status::new();
        let usage = |table: &str| Usage {
            table: table.to_owned(),
            entries: Some(crate::dataplane::usage::Entries { now: 3, most: 4 }),
            bytes: Some(4096),
        };
        status.tables(vec![usage("flows4"), usage("flows6")]);
        let text = status.metrics();
        assert!(text.contains("\nfairway_table_max_entries{table=\"flows6\"} 4\n"), "{text}");
        let mut kinds = BTreeMap::new();
        let mut series = std::collections::BTreeSet::new();
        let mut described = "";
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                described = help.split_once(' ').expect("a text").0;
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                assert_eq!(name, described);
                assert_eq!(kinds.insert(name, kind), None, "{name} twice");
                let is_counter = name.ends_with("_total") && !name.contains("no_local_endpoints");
                assert_eq!(kind == "counter", is_counter, "{name}");
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok() && series.insert(name), "{line}");
                let end = name.strip_prefix(described).expect(line);
                assert!(end.is_empty() || end.starts_with('{') || kinds[described] == "histogram");
            }
        }
    }

    #[test]
    fn findings_are_shown_until_they_change() {
        let status = Status::new();
        let finding = |outcome| Finding {
            check: "path_mtu".to_owned(),
            peer: "n2".to_owned(),
            outcome,
            message: String::new(),
        };
        status.found(vec![finding(Outcome::Failed)]);
        let line = |good: u8| format!("fairway_selftest{{check=\"path_mtu\",peer=\"n2\"}} {good}");
        assert!(status.metrics().contains(&line(0)));
        assert!(status.selftest().contains("\"outcome\":\"failed\""), "{}", status.selftest());
        status.found(vec![finding(Outcome::Noted)]);
        assert!(status.metrics().contains(&line(1)));
    }

    #[test]
    fn what_the_kernel_answers_is_counted_as_coredns_counts() {
        let all = answers_of_kernel(&[1, 20, 300, 4000, 50_000, 600_000, 7_000_000, 80_000_000]);
        let counts: Vec<_> = all.iter().map(|one| (one.v6, one.kind, one.count)).collect();
        let (a, aaaa) = (kind::A, kind::AAAA);
        assert_eq!(
            counts,
            [(false, a, 301), (false, aaaa, 4020), (true, a, 7_050_000), (true, aaaa, 80_600_000)]
        );
    }

    #[test]
    fn metrics_carry_the_names_dashboards_know() {
        let status = Status::new();
        status.synced(Duration::from_millis(3));
        status.drops(vec![0, 0, 7]);
        status.answers(vec![0, 0, 0, 0, 0, 9, 0, 4]);
        status.waiting(2);
        status.paced(1);
        status.added(Duration::from_millis(3), false);
        status.added(Duration::from_secs(11), true);
        let text = status.metrics();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "fairway_drops_total{reason=\"spoofed_source\"} 7",
            "fairway_dns_kernel_answers_total{family=\"1\",type=\"A\",answer=\"address\"} 0",
            "fairway_dns_kernel_answers_total{family=\"2\",type=\"AAAA\",answer=\"address\"} 9",
            "fairway_dns_kernel_answers_total{family=\"2\",type=\"AAAA\",answer=\"nodata\"} 4",
            "fairway_cni_waiting 2",
            "fairway_paced_devices 1",
            "fairway_cni_add_duration_seconds_bucket{le=\"0.004\"} 1",
            "fairway_cni_add_duration_seconds_count 2",
            "fairway_cni_add_refused_total 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
