//! What the status of Services and Ingresses is to say of where they can be reached, and does not say yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use fairway_model::ObjectName;
use serde_json::{Value, json};

use crate::kubernetes::{
    Kind, LoadBalancerIngress, Node, ObjectId, Objects, Phase, Pod, READY, Service, ServiceType,
};
use crate::load_balancer::Plan;

/// What is to be written as `status.loadBalancer.ingress`, of each object that says something else.
pub type Statuses = BTreeMap<ObjectId, Vec<Value>>;

/// How long nobody must have served before statuses say so: where a gateway is replaced by another one, it is gone for
/// a moment, and names in DNS would be as well.
const EMPTY_FOR: Duration = Duration::from_secs(30);

/// Since when nobody serves, if nobody does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Emptiness(Option<Instant>);

impl Emptiness {
    /// `points`, but not none of them before that has lasted.
    fn endure(&mut self, points: Option<Vec<Value>>, now: Instant) -> Option<Vec<Value>> {
        let is_empty = points.as_ref().is_some_and(Vec::is_empty);
        let since = is_empty.then(|| self.0.unwrap_or(now));
        self.0 = since;
        points.filter(|_| since.is_none_or(|since| now >= since + EMPTY_FOR))
    }

    /// When it will have lasted long enough, if that is after `now`.
    pub(crate) fn ends(self, now: Instant) -> Option<Instant> {
        self.0.map(|since| since + EMPTY_FOR).filter(|end| *end > now)
    }
}

/// Where Ingresses can be reached. Of `addresses`, `service` and `pods` the first counts that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// The classes of those that say it; none: those of our own controller.
    pub classes: Vec<String>,
    /// Addresses and host names.
    pub addresses: Vec<String>,
    /// The Service in front of what serves them.
    pub service: Option<ObjectName>,
    /// The pods that serve them at their nodes' addresses.
    pub pods: Option<LabelledPods>,
}

/// Pods of a namespace with a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledPods {
    /// The namespace.
    pub namespace: String,
    /// The label's name.
    pub label: String,
    /// What it says.
    pub value: String,
}

/// `NAMESPACE/LABEL=VALUE`; the label's name may have a slash.
impl FromStr for LabelledPods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(namespace, label)| {
            let (label, value) = label.split_once('=')?;
            let parts = [namespace, label, value].map(str::to_owned);
            parts.iter().all(|part| !part.is_empty()).then_some(parts)
        });
        let [namespace, label, value] =
            parts.ok_or_else(|| format!("{text:?} is not NAMESPACE/LABEL=VALUE"))?;
        Ok(Self { namespace, label, value })
    }
}

/// The statuses that are to be written, at the time `now`. `serves` tells of an Ingress whether it is served, and whether by a class of
/// our own controller.
pub(crate) fn statuses(
    objects: &Objects,
    plan: &Plan,
    gateway: Option<&Gateway>,
    (empty, now): (&mut Emptiness, Instant),
    serves: impl Fn(&ObjectName) -> Option<bool>,
) -> Statuses {
    let mut statuses = Statuses::new();
    for (name, addresses) in &plan.addresses {
        let Some(service) = objects.services.get(name) else { continue };
        let wanted = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
        let wanted: Vec<_> = wanted.collect();
        let said = service.status.load_balancer.ingress.iter().map(of_service);
        if wanted != said.collect::<Vec<_>>() {
            statuses.insert(ObjectId { kind: Kind::Service, name: name.clone() }, wanted);
        }
    }
    let Some(gateway) = gateway else { return statuses };
    let Some(wanted) = empty.endure(gateway.points(objects), now) else { return statuses };
    for (name, ingress) in &objects.ingresses {
        let Some(is_own) = serves(name) else { continue };
        let is_meant = match gateway.classes.is_empty() {
            true => is_own,
            false => ingress.class().is_some_and(|class| gateway.classes.contains(class)),
        };
        let said: Vec<_> = ingress.status.load_balancer.ingress.iter().map(of_ingress).collect();
        // One that cannot be read cannot be read anew either, before it is written about.
        if is_meant && !ingress.unreadable && said != wanted {
            statuses.insert(ObjectId { kind: Kind::Ingress, name: name.clone() }, wanted.clone());
        }
    }
    statuses
}

/// What an object as it is says in its status, in the form of [`Statuses`].
pub fn said(object: &crate::kubernetes::Object) -> Option<Vec<Value>> {
    use crate::kubernetes::Object;
    match object {
        Object::Service(of) => {
            Some(of.status.load_balancer.ingress.iter().map(of_service).collect())
        }
        Object::Ingress(of) => {
            Some(of.status.load_balancer.ingress.iter().map(of_ingress).collect())
        }
        _ => None,
    }
}

impl Gateway {
    /// Addresses and host names, sorted; none where nobody serves. `None`: it is not known, and what is said stays.
    fn points(&self, objects: &Objects) -> Option<Vec<Value>> {
        let mut points: Vec<Value> = match (&self.addresses[..], &self.service, &self.pods) {
            ([], Some(service), _) => at_service(objects.services.get(service)?),
            ([], None, Some(pods)) => {
                let ips = pods.nodes(objects)?.into_iter().flat_map(reachable);
                ips.map(point).collect()
            }
            (addresses, ..) => addresses.iter().map(|text| point(text)).collect(),
        };
        points.sort_by_key(Value::to_string);
        points.dedup();
        Some(points)
    }
}

/// As ingress-nginx has it: of a Service that nobody outside can reach it is the ClusterIP.
fn at_service(service: &Service) -> Vec<Value> {
    let mut points: Vec<_> = service.external_ips().map(|(_, ip)| point(&ip.to_string())).collect();
    if service.spec.r#type == ServiceType::LoadBalancer {
        points.extend(service.status.load_balancer.ingress.iter().map(of_ingress));
    } else if points.is_empty() {
        let Service { spec, .. } = service;
        let one = Some(&spec.cluster_ip).filter(|_| spec.cluster_ips.is_empty());
        let ips = spec.cluster_ips.iter().chain(one);
        points.extend(ips.filter(|ip| ip.parse::<IpAddr>().is_ok()).map(|ip| point(ip)));
    }
    points
}

/// The addresses of a node that others are to use: those outside, or else those inside.
fn reachable(node: &Node) -> Vec<&str> {
    let of = |kind: &str| -> Vec<_> {
        let addresses = node.status.addresses.iter().filter(|address| address.r#type == kind);
        addresses.map(|address| address.address.as_str()).collect()
    };
    let outside = of("ExternalIP");
    if outside.is_empty() { of("InternalIP") } else { outside }
}

impl LabelledPods {
    /// The nodes with such a pod that is ready. `None`: there are pods, but none is ready, as for a moment in between.
    fn nodes<'a>(&self, objects: &'a Objects) -> Option<Vec<&'a Node>> {
        let ours = objects.pods.iter().filter(|(name, pod)| {
            name.namespace == self.namespace
                && pod.metadata.labels.get(&self.label) == Some(&self.value)
                && !matches!(pod.status.phase, Some(Phase::Succeeded | Phase::Failed))
        });
        let ours: Vec<_> = ours.map(|(_, pod)| pod).collect();
        let is_ready = |pod: &&&std::sync::Arc<Pod>| {
            let mut conditions = pod.status.conditions.iter();
            pod.metadata.deletion_timestamp.is_none()
                && conditions.any(|of| of.r#type == READY && of.status == "True")
        };
        let ready: Vec<_> = ours.iter().filter(is_ready).collect();
        if ready.is_empty() && !ours.is_empty() {
            return None;
        }
        let nodes =
            ready.into_iter().filter_map(|pod| objects.nodes.get(pod.spec.node_name.as_ref()?));
        Some(nodes.map(|node| &**node).collect())
    }
}

fn point(text: &str) -> Value {
    match text.parse::<IpAddr>() {
        Ok(ip) => json!({"ip": ip}),
        Err(_) => json!({"hostname": text}),
    }
}

fn of_service(at: &LoadBalancerIngress) -> Value {
    match at.ip {
        Some(ip) => json!({"ip": ip, "ipMode": at.ip_mode}),
        None => json!({"hostname": at.hostname}),
    }
}

fn of_ingress(at: &LoadBalancerIngress) -> Value {
    match at.ip {
        Some(ip) => json!({"ip": ip}),
        None => json!({"hostname": at.hostname}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    #[test]
    fn only_what_says_something_else_is_written_about() {
        let mut objects = Objects::default();
        let mut put = |kind: Kind, name: &str, object: Value| {
            objects.insert(ObjectName::new("shop", name), decode(kind, object).unwrap());
        };
        let service = |ingress: Value| {
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": ingress}}})
        };
        put(
            Kind::Service,
            "gate",
            service(json!([{"ip": "192.0.2.2"}, {"hostname": "x.example"}])),
        );
        put(Kind::Service, "old", service(json!([{"ip": "192.0.2.3"}])));
        put(Kind::Service, "new", service(json!([])));
        let ingress = |class: &str, ingress: Value| {
            json!({"spec": {"ingressClassName": class, "rules": [{"host": "a.example"}]},
                "status": {"loadBalancer": {"ingress": ingress}}})
        };
        put(Kind::Ingress, "a", ingress("fairway", json!([])));
        put(Kind::Ingress, "b", ingress("other", json!([])));
        let said = json!([{"hostname": "x.example", "ports": []}, {"ip": "192.0.2.2"}]);
        put(Kind::Ingress, "c", ingress("fairway", said));
        let older =
            json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "fairway"}}});
        put(Kind::Ingress, "d", older);

        put(Kind::Ingress, "foreign", ingress("fairway", json!([])));

        let address = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let name = |name: &str| ObjectName::new("shop", name);
        let addresses = BTreeMap::from([
            (name("old"), address("192.0.2.3")),
            (name("new"), address("192.0.2.4")),
            (name("gone"), address("192.0.2.5")),
        ]);
        let plan = Plan { addresses, ..Plan::default() };
        // `foreign` has a class of that name that is somebody else's, and `b` one of another controller.
        let begin = Instant::now();
        let serves = |of: &ObjectName| (of.name != "foreign").then_some(of.name != "b");
        let text = |objects: &Objects, gateway: Option<&Gateway>| {
            let mut empty = Emptiness::default();
            // Whatever is so has been so for long.
            statuses(objects, &plan, gateway, (&mut empty, begin), serves);
            let late = (&mut empty, begin + EMPTY_FOR);
            let statuses = statuses(objects, &plan, gateway, late, serves);
            let lines = statuses.iter().map(|(id, all)| format!("{id} {}", json!(all)));
            lines.collect::<Vec<_>>()
        };
        let new = "Service shop/new [{\"ip\":\"192.0.2.4\",\"ipMode\":\"VIP\"}]";
        assert_eq!(text(&objects, None), [new]);
        let of_service = Gateway { service: Some(name("gate")), ..Gateway::default() };
        let points = "[{\"hostname\":\"x.example\"},{\"ip\":\"192.0.2.2\"}]";
        let said = |name: &str| format!("Ingress shop/{name} {points}");
        assert_eq!(text(&objects, Some(&of_service)), [new.to_owned(), said("a"), said("d")]);
        let classes = vec!["other".to_owned(), "fairway".to_owned()];
        let listed = Gateway { classes, ..of_service.clone() };
        assert_eq!(
            text(&objects, Some(&listed)),
            [new.to_owned(), said("a"), said("b"), said("d")]
        );
        let unknown = Gateway { service: Some(name("none")), ..of_service.clone() };
        assert_eq!(text(&objects, Some(&unknown)), [new]);
        let fixed = Gateway { addresses: vec!["203.0.113.1".to_owned()], ..of_service.clone() };
        assert_eq!(text(&objects, Some(&fixed)).len(), 4);
        // Nobody serves any more.
        objects.insert(name("gate"), decode(Kind::Service, service(json!([]))).unwrap());
        assert_eq!(
            text(&objects, Some(&of_service)),
            [new.to_owned(), "Ingress shop/c []".to_owned()]
        );
    }

    #[test]
    fn that_nobody_serves_is_said_when_it_has_lasted() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut empty = Emptiness::default();
        let some = Some(vec![point("192.0.2.1")]);
        let none = || Some(Vec::new());
        assert_eq!(empty.endure(some.clone(), at(0)), some);
        assert_eq!(empty.ends(at(0)), None);
        assert_eq!(empty.endure(none(), at(10)), None, "as in an upgrade");
        assert_eq!(empty.endure(none(), at(39)), None);
        assert_eq!(empty.ends(at(39)), Some(at(40)));
        assert_eq!(empty.endure(some.clone(), at(39)), some);
        assert_eq!(empty.endure(none(), at(41)), None, "it begins anew");
        assert_eq!(empty.endure(None, at(60)), None, "pods that are not ready yet");
        assert_eq!(empty.endure(none(), at(71)), None);
        assert_eq!(empty.endure(none(), at(101)), none());
        assert_eq!(empty.ends(at(101)), None);
    }

    #[test]
    fn a_service_that_nobody_outside_can_reach_has_its_own_address() {
        let points = |spec: Value| {
            let status = json!({"loadBalancer": {"ingress": [{"hostname": "x.example"}, {"ip": "192.0.2.2"}]}});
            let made = decode(Kind::Service, json!({"spec": spec, "status": status})).unwrap();
            let crate::kubernetes::Object::Service(made) = made else { unreachable!() };
            json!(at_service(&made)).to_string()
        };
        let inside = r#"[{"ip":"10.96.0.9"}]"#;
        assert_eq!(points(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]})), inside);
        assert_eq!(points(json!({"clusterIP": "None", "ports": [{"port": 80}]})), "[]");
        let node_port =
            json!({"type": "NodePort", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}]});
        assert_eq!(points(node_port.clone()), inside);
        let mut external = node_port;
        external["externalIPs"] = json!(["203.0.113.1"]);
        assert_eq!(points(external.clone()), r#"[{"ip":"203.0.113.1"}]"#);
        external["type"] = "LoadBalancer".into();
        let all = r#"[{"ip":"203.0.113.1"},{"hostname":"x.example"},{"ip":"192.0.2.2"}]"#;
        assert_eq!(points(external), all);
    }

    #[test]
    fn gateways_on_the_hosts_network_are_where_their_nodes_are() {
        let mut objects = Objects::default();
        let node = |addresses: Value| json!({"status": {"addresses": addresses}});
        let inside = |ip: &str| json!({"type": "InternalIP", "address": ip});
        for (name, addresses) in [
            (
                "n1",
                json!([inside("10.0.0.1"), {"type": "Hostname", "address": "n1"}, inside("2001:db8::1")]),
            ),
            ("n2", json!([inside("10.0.0.2"), {"type": "ExternalIP", "address": "203.0.113.2"}])),
            ("n3", json!([inside("10.0.0.3")])),
        ] {
            objects.insert(ObjectName::new("", name), decode(Kind::Node, node(addresses)).unwrap());
        }
        let pod = |node: &str, app: &str, ready: &str| {
            let conditions = json!([{"type": "Ready", "status": ready}]);
            let metadata = json!({"labels": {"example.com/app": app}});
            let pod = json!({"metadata": metadata, "spec": {"nodeName": node},
                "status": {"phase": "Running", "conditions": conditions}});
            decode(Kind::Pod, pod).unwrap()
        };
        let pods = "edge/example.com/app=gate".parse::<LabelledPods>().unwrap();
        let gateway = Gateway { pods: Some(pods), ..Gateway::default() };
        let points =
            |objects: &Objects| gateway.points(objects).map(|points| json!(points).to_string());
        let none = Some("[]".to_owned());
        assert_eq!(points(&objects), none, "nobody serves");
        objects.insert(ObjectName::new("other", "a"), pod("n3", "gate", "True"));
        objects.insert(ObjectName::new("edge", "b"), pod("n3", "else", "True"));
        assert_eq!(points(&objects), none);
        objects.insert(ObjectName::new("edge", "c"), pod("n1", "gate", "False"));
        assert_eq!(points(&objects), None, "it may be so in a moment");
        objects.insert(ObjectName::new("edge", "d"), pod("n2", "gate", "True"));
        assert_eq!(points(&objects).unwrap(), r#"[{"ip":"203.0.113.2"}]"#);
        objects.insert(ObjectName::new("edge", "c"), pod("n1", "gate", "True"));
        let both = r#"[{"ip":"10.0.0.1"},{"ip":"2001:db8::1"},{"ip":"203.0.113.2"}]"#;
        assert_eq!(points(&objects).unwrap(), both);
        for wrong in ["edge", "edge/app", "/app=x", "edge/=x", "edge/app="] {
            assert!(wrong.parse::<LabelledPods>().is_err(), "{wrong}");
        }
    }
}
