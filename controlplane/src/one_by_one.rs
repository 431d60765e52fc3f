//! Objects that change one by one make what all of them at once make: the same model, the same problems, the same
//! that is to be written, whatever was kept of the models before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fairway_model::ObjectName;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::allocate::{Allocator, Ranges};
use crate::decode::decode;
use crate::ingress::{CONTROLLER, NGINX};
use crate::kubernetes::{Kind, ObjectId, Objects};
use crate::live::{Live, identify_value, read};
use crate::load_balancer::Classes;
use crate::manifests::DEFAULT_NODE_PORTS;
use crate::pipeline::Pipeline;
use crate::publish::Gateway;

/// An object that comes, changes or goes.
#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    value: Value,
    gone: bool,
    /// A model is made before the next one.
    settled: bool,
}

/// Few of everything, so that objects meet.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        let number = self.0 % end;
        self.0 = (self.0 / end).rotate_right(17) ^ 0x9e37_79b9_7f4a_7c15;
        number
    }

    fn rarely(&mut self) -> bool {
        self.below(8) == 0
    }

    fn one<T: Clone>(&mut self, all: &[T]) -> T {
        let index = self.below(all.len() as u64);
        all[usize::try_from(index).unwrap()].clone()
    }

    fn labels(&mut self) -> Value {
        let none = json!({});
        let some =
            [none, json!({"app": "x"}), json!({"app": "y"}), json!({"app": "x", "tier": "a"})];
        self.one(&some)
    }

    fn selector(&mut self) -> Value {
        match self.below(3) {
            0 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
            _ => json!({"matchLabels": self.labels()}),
        }
    }

    fn moment(&mut self) -> String {
        format!("2026-01-01T00:00:0{}Z", self.below(3))
    }
}

const KINDS: [Kind; 21] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Node,
    Kind::Pod,
    Kind::Pod,
    Kind::Pod,
    Kind::Service,
    Kind::Service,
    Kind::Service,
    Kind::Endpoints,
    Kind::EndpointSlice,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::IPAddressPool,
    Kind::ServiceCIDR,
    Kind::Ingress,
    Kind::Ingress,
    Kind::IngressClass,
    Kind::Secret,
    Kind::ConfigMap,
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        (0..KINDS.len() + 1, any::<u64>(), prop::bool::weighted(0.2), prop::bool::weighted(0.7));
    let step = step.prop_map(|(kind, seed, gone, settled)| {
        let kind = KINDS.get(kind).copied().unwrap_or(Kind::L2Advertisement);
        // The cluster's own ranges are remembered should their object go for a moment, and what a Secret had.
        let gone = gone && !matches!(kind, Kind::ServiceCIDR | Kind::Secret);
        Step { kind, value: object(kind, &mut Dice(seed)), gone, settled }
    });
    prop::collection::vec(step, 1..40)
}

fn object(kind: Kind, dice: &mut Dice) -> Value {
    let (mut value, name) = match kind {
        Kind::Namespace => (json!({}), dice.one(&["a", "b"])),
        Kind::Node => (node(dice), dice.one(&["n0", "n1", "n2"])),
        Kind::Pod => (pod(dice), dice.one(&["p0", "p1", "p2"])),
        Kind::Service => (service(dice), dice.one(&["s0", "s1", "s2"])),
        Kind::Endpoints => {
            let at = json!([{"ip": "10.0.0.7", "nodeName": "n1"}]);
            let subset = json!({"addresses": at, "ports": [{"port": 8080}]});
            (json!({"subsets": [subset]}), dice.one(&["s0", "s1", "s2"]))
        }
        Kind::EndpointSlice => (slice(dice), dice.one(&["e0", "e1", "e2"])),
        Kind::NetworkPolicy => (policy(dice), dice.one(&["p0", "p1"])),
        Kind::ClusterNetworkPolicy => (cluster_policy(dice), dice.one(&["c0", "c1"])),
        Kind::IPAddressPool => {
            let addresses = dice.one(&["192.0.2.0/31", "192.0.2.0/30", "192.0.2.1-192.0.2.2"]);
            let mut value = json!({"spec": {"addresses": [addresses]}});
            if dice.rarely() {
                value["spec"]["serviceAllocation"] =
                    json!({"namespaceSelectors": [dice.selector()]});
            }
            (value, dice.one(&["main", "more"]))
        }
        Kind::L2Advertisement => {
            (json!({"spec": {"nodeSelectors": [dice.selector()]}}), dice.one(&["l0", "l1"]))
        }
        Kind::Ingress => (ingress(dice), dice.one(&["i0", "i1"])),
        Kind::IngressClass => {
            let controller = dice.one(&[CONTROLLER, NGINX, "other.example/x"]);
            let usual = dice.one(&["true", "false"]);
            let annotations = json!({"ingressclass.kubernetes.io/is-default-class": usual});
            let value = json!({"metadata": {"annotations": annotations}, "spec": {"controller": controller}});
            (value, dice.one(&["web", "more"]))
        }
        Kind::Secret => {
            let users = dice.one(&["me:x", "you:y"]);
            (json!({"stringData": {"auth": users}}), dice.one(&["x0", "x1"]))
        }
        Kind::ConfigMap => {
            let headers = dice.one(&[json!({"X-A": "b"}), json!({"Upgrade": "x"})]);
            (json!({"data": headers}), "c0")
        }
        _ => {
            let cidr = dice.one(&["10.96.0.0/24", "10.97.0.0/24", "172.16.0.0/24"]);
            (json!({"spec": {"cidrs": [cidr]}}), dice.one(&["kubernetes", "more"]))
        }
    };
    let metadata = &mut value["metadata"];
    metadata["name"] = name.into();
    if kind.is_namespaced() {
        metadata["namespace"] = dice.one(&["a", "b"]).into();
    }
    if metadata.get("labels").is_none() {
        metadata["labels"] = dice.labels();
    }
    if !dice.rarely() {
        metadata["creationTimestamp"] = dice.moment().into();
    }
    if dice.rarely() {
        // Of no kind can this be read.
        value["spec"] = json!(5);
        value["subsets"] = json!(5);
        value["metadata"]["labels"] = json!({"a": "-"});
    }
    value
}

fn node(dice: &mut Dice) -> Value {
    let mut labels = dice.labels();
    labels["topology.kubernetes.io/zone"] = dice.one(&["z0", "z1"]).into();
    let ranges =
        [json!([]), json!(["10.244.0.0/24"]), json!(["10.244.0.0/23"]), json!(["10.244.1.0/24"])];
    let says = json!([{"type": "fairway.dev/Contradiction", "status": "True", "message": "x"}]);
    let conditions = if dice.rarely() { says } else { json!([]) };
    let address = format!("172.16.0.{}", dice.below(3));
    json!({
        "metadata": {"labels": labels}, "spec": {"podCIDRs": dice.one(&ranges)},
        "status": {"addresses": [{"type": "InternalIP", "address": address}], "conditions": conditions},
    })
}

fn pod(dice: &mut Dice) -> Value {
    let node = dice.one(&[json!("n0"), json!("n1"), json!("gone")]);
    let ips = (0..dice.below(3)).map(|_| json!({"ip": format!("10.0.0.{}", dice.below(4))}));
    // The check of a pod refuses two of a family; one of each passes.
    let mut ips: Vec<Value> = ips.take(1).collect();
    if dice.rarely() {
        ips.push(json!({"ip": "2001:db8::1"}));
    }
    let port = json!({"name": dice.one(&["http", "dns"]), "containerPort": 80 + dice.below(2)});
    let ready = dice.one(&["True", "False"]);
    let mut pod = json!({
        "metadata": {"uid": "u"},
        "spec": {"nodeName": node, "hostNetwork": dice.rarely(), "containers": [{"ports": [port]}]},
        "status": {"phase": dice.one(&["Running", "Running", "Failed"]), "podIPs": ips,
            "conditions": [{"type": "Ready", "status": ready}]},
    });
    if dice.rarely() {
        pod["spec"]["hostname"] = dice.one(&["h0", "h1"]).into();
        pod["spec"]["subdomain"] = dice.one(&["s0", "s1"]).into();
    }
    if dice.rarely() {
        pod["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
    }
    if dice.rarely() {
        pod["metadata"]["annotations"] = json!({"fairway.dev/socket-balancing": "off"});
    }
    pod
}

fn service(dice: &mut Dice) -> Value {
    let kind = dice.one(&[
        "ClusterIP",
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "LoadBalancer",
        "ExternalName",
    ]);
    let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    let ip = dice.one(&["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "None"]);
    let ip = if ip == "None" && has_node_ports { "10.96.0.5" } else { ip };
    let mut port =
        json!({"port": 80 + dice.below(2), "targetPort": dice.one(&[json!(80), json!("http")])});
    if has_node_ports {
        port["nodePort"] = (30_000 + dice.below(4)).into();
    }
    let mut service = json!({
        "metadata": {"uid": dice.one(&["", "u1"])},
        "spec": {"type": kind, "clusterIP": ip, "selector": dice.labels(), "ports": [port]},
    });
    if dice.rarely() {
        service["spec"]["externalIPs"] = dice.one(&[json!(["203.0.113.1"]), json!(["192.0.2.1"])]);
    }
    if dice.below(2) == 0 {
        let ip = format!("192.0.2.{}", dice.below(3));
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    }
    if kind == "ExternalName" {
        service["spec"]["externalName"] = dice.one(&["a.example.com", "b.example.com."]).into();
    }
    if dice.rarely() {
        service["spec"]["trafficDistribution"] = "PreferClose".into();
    }
    if dice.rarely() {
        service["metadata"]["labels"] =
            json!({"service.kubernetes.io/service-proxy-name": "other"});
    }
    let annotations = [
        json!({}),
        json!({"service.kubernetes.io/topology-mode": "Auto"}),
        json!({"fairway.dev/balancing": "maglev", "fairway.dev/slow-start": "5s"}),
        json!({"fairway.dev/weights": "zone/z0=3"}),
        json!({"metallb.io/allow-shared-ip": "us"}),
        json!({"metallb.io/loadBalancerIPs": "192.0.2.1"}),
    ];
    service["metadata"]["annotations"] = dice.one(&annotations);
    service
}

fn ingress(dice: &mut Dice) -> Value {
    let name = |name: &str| format!("nginx.ingress.kubernetes.io/{name}");
    let users = dice.one(&["x0", "x1"]);
    let annotations = [
        json!({}),
        json!({name("proxy-body-size"): "big", name("use-regex"): "true"}),
        json!({name("default-backend"): "s0"}),
        json!({name("custom-headers"): "c0"}),
        json!({name("auth-type"): "basic", name("auth-secret"): users}),
    ];
    let backend = json!({"service": {"name": "s0", "port": {"number": 80}}});
    let mut spec = json!({"defaultBackend": backend});
    if dice.below(4) > 0 {
        spec["ingressClassName"] = dice.one(&["web", "more", "fairway", "nginx"]).into();
    }
    json!({"metadata": {"annotations": dice.one(&annotations)}, "spec": spec})
}

fn slice(dice: &mut Dice) -> Value {
    let mut labels = json!({"kubernetes.io/service-name": dice.one(&["s0", "s1", "s2"])});
    if dice.rarely() {
        labels["service.kubernetes.io/headless"] = "".into();
    }
    if dice.rarely() {
        labels["service.kubernetes.io/service-proxy-name"] = "other".into();
    }
    let mut endpoint = |last: u64| {
        json!({"addresses": [format!("10.0.0.{last}")], "nodeName": dice.one(&["n0", "n1", "n2"]),
            "conditions": {"ready": !dice.rarely()}, "targetRef": {"kind": "Pod", "name": "p0"}})
    };
    let mut endpoints = [endpoint(1), endpoint(2)];
    if dice.rarely() {
        endpoints[0]["hostname"] = "h0".into();
    }
    let ports = dice.one(&[json!([{"port": 80}]), json!([{"port": 80}]), json!([])]);
    json!({"metadata": {"labels": labels}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports})
}

fn policy(dice: &mut Dice) -> Value {
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/30"]}});
    let peers = [
        json!({"podSelector": dice.selector()}),
        json!({"namespaceSelector": dice.selector()}),
        json!({"namespaceSelector": {}, "podSelector": dice.selector()}),
        block,
    ];
    let mut rule = |field: &str| json!([{field: [dice.one(&peers), dice.one(&peers)], "ports": [{"port": dice.one(&[json!("http"), json!(80)])}]}]);
    let (from, to) = (rule("from"), rule("to"));
    json!({"spec": {"podSelector": dice.selector(), "ingress": from, "egress": to,
        "policyTypes": dice.one(&[json!(["Ingress"]), json!(["Ingress", "Egress"])])}})
}

fn cluster_policy(dice: &mut Dice) -> Value {
    let peers = [
        json!({"namespaces": dice.selector()}),
        json!({"nodes": dice.selector()}),
        json!({"pods": {"namespaceSelector": dice.selector(), "podSelector": dice.selector()}}),
    ];
    let rule = json!({"action": dice.one(&["Accept", "Deny"]), "to": [dice.one(&peers)]});
    json!({"spec": {"tier": "Admin", "priority": dice.below(3), "subject": {"namespaces": dice.selector()}, "egress": [rule]}})
}

/// Long enough for anything.
const HOUR: Duration = Duration::from_secs(3600);

/// What was read of an object: when it was good the last time, if it was, and what is there now.
type Heard = BTreeMap<ObjectId, (Option<Value>, Value)>;

fn live() -> Live {
    let mut live = Live::new(vec!["10.96.0.0/24".parse().unwrap()]).unwrap();
    let gateway = Gateway { service: Some(ObjectName::new("a", "s0")), ..Gateway::default() };
    live.publish(Classes::default(), Some(gateway));
    live
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_api_server(steps in steps()) {
        let (mut kept, mut heard) = (live(), Heard::new());
        let mut now = Instant::now();
        for Step { kind, value, gone, settled } in steps {
            let id = identify_value(kind, &value).unwrap();
            if gone {
                heard.remove(&id);
                kept.remove(&id);
            } else {
                let good = decode(kind, value.clone()).is_ok().then(|| value.clone());
                let last = heard.get(&id).and_then(|(good, _)| good.clone());
                heard.insert(id, (good.or(last), value.clone()));
                kept.put(read(kind, value).unwrap());
            }
            if !settled {
                continue;
            }
            let (model, problems) = kept.model();
            let mut whole = live();
            for (id, (good, now)) in &heard {
                let values = good.iter().chain([now]);
                values.for_each(|value| whole.put(read(id.kind, value.clone()).unwrap()));
            }
            let (expected, expected_problems) = whole.model();
            prop_assert_eq!(problems, expected_problems);
            prop_assert_eq!(&model, &expected);
            prop_assert_eq!(kept.unsaid(), whole.unsaid());
            // As long after the change as after the beginning.
            for live in [&mut kept, &mut whole] {
                now += HOUR;
                live.look(now);
                live.look(now + HOUR);
            }
            prop_assert_eq!(kept.statuses(), whole.statuses());
        }
    }

    #[test]
    fn manifests(steps in steps()) {
        let ranges = Ranges::new(vec!["10.96.0.0/24".parse().unwrap()], DEFAULT_NODE_PORTS).unwrap();
        let mut kept = Pipeline::new(Allocator::new(ranges), None, BTreeMap::new());
        let mut objects = Objects::default();
        for Step { kind, value, gone, settled } in steps {
            let id = identify_value(kind, &value).unwrap();
            match decode(kind, value) {
                _ if gone => objects.remove(&id),
                Ok(object) => objects.insert(id.name, object),
                Err(_) => continue,
            }
            if !settled {
                continue;
            }
            // Who holds what is remembered, and what was accepted; nothing else makes a difference.
            let mut whole = kept.restarted();
            let found = kept.run_all(&objects, |_| false);
            let expected = whole.run_all(&objects, |_| false);
            prop_assert_eq!(found.refused, expected.refused);
            prop_assert_eq!(found.contradictions, expected.contradictions);
            prop_assert_eq!(found.warnings, expected.warnings);
            prop_assert_eq!(found.model, expected.model);
        }
    }
}
