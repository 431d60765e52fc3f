//! What the status of Services and Ingresses is to say of where they can be reached, and does not say yet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairway_model::ObjectName;
use serde_json::{Value, json};

use crate::kubernetes::{Kind, LoadBalancerIngress, ObjectId, Objects, ServiceType};
use crate::load_balancer::Plan;

/// What is to be written as `status.loadBalancer.ingress`, of each object that says something else.
pub type Statuses = BTreeMap<ObjectId, Vec<Value>>;

/// Where Ingresses of a class can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The class.
    pub class: String,
    /// The Service in front of what serves them; not asked where there are addresses.
    pub service: Option<ObjectName>,
    /// Addresses and host names.
    pub addresses: Vec<String>,
}

/// The statuses that are to be written.
pub(crate) fn statuses(objects: &Objects, plan: &Plan, gateway: Option<&Gateway>) -> Statuses {
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
    // Nothing is taken back where nothing is known.
    let wanted = gateway.points(objects);
    for (name, ingress) in objects.ingresses.iter().filter(|_| !wanted.is_empty()) {
        let said: Vec<_> = ingress.status.load_balancer.ingress.iter().map(of_ingress).collect();
        // One that cannot be read cannot be read anew either, before it is written about.
        if ingress.class() == Some(&gateway.class) && !ingress.unreadable && said != wanted {
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
    /// Addresses and host names, sorted.
    fn points(&self, objects: &Objects) -> Vec<Value> {
        let mut points: Vec<Value> = self.addresses.iter().map(|text| point(text)).collect();
        let service = self.service.as_ref().filter(|_| points.is_empty());
        if let Some(service) = service.and_then(|name| objects.services.get(name)) {
            points.extend(service.external_ips().map(|(_, ip)| point(&ip.to_string())));
            if service.spec.r#type == ServiceType::LoadBalancer {
                points.extend(service.status.load_balancer.ingress.iter().map(of_ingress));
            }
        }
        points.sort_by_key(Value::to_string);
        points.dedup();
        points
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

        let address = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let name = |name: &str| ObjectName::new("shop", name);
        let addresses = BTreeMap::from([
            (name("old"), address("192.0.2.3")),
            (name("new"), address("192.0.2.4")),
            (name("gone"), address("192.0.2.5")),
        ]);
        let plan = Plan { addresses, ..Plan::default() };
        let text = |gateway: Option<&Gateway>| {
            let statuses = statuses(&objects, &plan, gateway);
            let lines = statuses.iter().map(|(id, all)| format!("{id} {}", json!(all)));
            lines.collect::<Vec<_>>()
        };
        let new = "Service shop/new [{\"ip\":\"192.0.2.4\",\"ipMode\":\"VIP\"}]";
        assert_eq!(text(None), [new]);
        let of_service = Gateway {
            class: "fairway".to_owned(),
            service: Some(name("gate")),
            addresses: Vec::new(),
        };
        let points = "[{\"hostname\":\"x.example\"},{\"ip\":\"192.0.2.2\"}]";
        assert_eq!(
            text(Some(&of_service)),
            [
                new.to_owned(),
                format!("Ingress shop/a {points}"),
                format!("Ingress shop/d {points}")
            ]
        );
        let unknown = Gateway { service: Some(name("none")), ..of_service.clone() };
        assert_eq!(text(Some(&unknown)), [new]);
        let fixed = Gateway { addresses: vec!["203.0.113.1".to_owned()], ..of_service };
        assert_eq!(text(Some(&fixed)).len(), 4);
    }
}
