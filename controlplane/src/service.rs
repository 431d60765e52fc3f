//! The rules of a Service that it can break all by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::kubernetes::{FieldError, IpFamily, IpFamilyPolicy, Service, ServiceSpec, ServiceType};

/// The annotations that ask for endpoints close by, the newer one first.
const TOPOLOGY: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
/// The word in place of an address that makes a Service headless.
const NONE: &str = "None";
/// Whoever sets this label balances the Service instead of us.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

impl Service {
    /// Whether it is ours to balance, or at least to know the endpoints of.
    pub(crate) fn is_ours(&self) -> bool {
        self.may_hold_numbers() && !self.metadata.labels.contains_key(PROXY_NAME)
    }

    /// Whether it can have addresses and node ports at all, whoever balances it.
    pub(crate) fn may_hold_numbers(&self) -> bool {
        self.spec.r#type != ServiceType::ExternalName
    }

    /// Whether it has endpoints but no address of its own.
    pub(crate) fn is_headless(&self) -> bool {
        self.spec.cluster_ip_texts().any(|text| text == NONE)
    }

    /// Whether its ports get numbers on the nodes although it asks for none in particular.
    pub(crate) fn wants_node_ports(&self) -> bool {
        match self.spec.r#type {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => self.spec.allocate_load_balancer_node_ports != Some(false),
            ServiceType::ClusterIP | ServiceType::ExternalName => false,
        }
    }

    /// The addresses it asks for.
    pub(crate) fn requested_ips(&self) -> Vec<IpAddr> {
        let texts = self.spec.cluster_ip_texts();
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    /// The families it gets in a cluster that has `cluster`, in order.
    pub(crate) fn families(&self, cluster: &[IpFamily]) -> Result<Vec<IpFamily>, FieldError> {
        let spec = &self.spec;
        let mut wanted = spec.ip_families.clone();
        if wanted.is_empty() {
            wanted = self.requested_ips().into_iter().map(IpFamily::of).collect();
        }
        if wanted.is_empty() {
            wanted.extend(cluster.first());
        }
        let both = matches!(
            spec.ip_family_policy,
            Some(IpFamilyPolicy::PreferDualStack | IpFamilyPolicy::RequireDualStack)
        );
        if both && let [only] = wanted[..] {
            let other = match only {
                IpFamily::V4 => IpFamily::V6,
                IpFamily::V6 => IpFamily::V4,
            };
            wanted.push(other);
        }
        if spec.ip_family_policy == Some(IpFamilyPolicy::PreferDualStack) {
            let had = wanted.clone();
            wanted.retain(|family| cluster.contains(family));
            if wanted.is_empty() {
                wanted = had;
            }
        }
        match wanted.iter().find(|family| !cluster.contains(family)) {
            Some(family) => Err(FieldError::new(
                "spec.ipFamilies",
                format!("this cluster has no {family} service range"),
            )),
            None => Ok(wanted),
        }
    }

    /// Everything that is wrong with it on its own.
    pub(crate) fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.spec.r#type != ServiceType::ExternalName {
            self.check_addresses(&mut errors);
            self.check_ports(&mut errors);
        }
        errors
    }

    fn check_addresses(&self, errors: &mut Vec<FieldError>) {
        let spec = &self.spec;
        let mut families = Vec::new();
        for (index, text) in spec.cluster_ip_texts().enumerate() {
            let field = match spec.cluster_ips.is_empty() {
                true => "spec.clusterIP".to_owned(),
                false => format!("spec.clusterIPs[{index}]"),
            };
            match text.parse::<IpAddr>() {
                Ok(address) => {
                    if families.contains(&IpFamily::of(address)) {
                        let family = IpFamily::of(address);
                        errors.push(FieldError::new(field, format!("a second {family} address")));
                    }
                    families.push(IpFamily::of(address));
                }
                Err(_) if text == NONE => {
                    if spec.cluster_ips.len() > 1 {
                        errors.push(FieldError::new(field, "\"None\" must stand alone"));
                    } else if matches!(
                        spec.r#type,
                        ServiceType::NodePort | ServiceType::LoadBalancer
                    ) {
                        let message = format!("a {} Service cannot be headless", spec.r#type);
                        errors.push(FieldError::new(field, message));
                    }
                }
                Err(_) => {
                    let message = format!("\"{text}\" is neither an IP address nor \"None\"");
                    errors.push(FieldError::new(field, message));
                }
            }
        }
        if let (Some(first), false) = (spec.cluster_ips.first(), spec.cluster_ip.is_empty())
            && *first != spec.cluster_ip
        {
            let message = format!("differs from spec.clusterIPs[0], which is {first}");
            errors.push(FieldError::new("spec.clusterIP", message));
        }
        let distinct: BTreeSet<_> = spec.ip_families.iter().collect();
        if distinct.len() != spec.ip_families.len() {
            errors.push(FieldError::new("spec.ipFamilies", "names a family twice"));
        }
        if spec.ip_family_policy == Some(IpFamilyPolicy::SingleStack)
            && (spec.ip_families.len() > 1 || families.len() > 1)
        {
            let message = "SingleStack, but two families are asked for";
            errors.push(FieldError::new("spec.ipFamilyPolicy", message));
        }
        let misfit = families.iter().zip(&spec.ip_families).find(|(a, b)| a != b);
        if let Some((address, family)) = misfit {
            let message = format!("has {family} where the address asked for is {address}");
            errors.push(FieldError::new("spec.ipFamilies", message));
        }
    }

    fn check_ports(&self, errors: &mut Vec<FieldError>) {
        let ports = &self.spec.ports;
        if ports.is_empty() && !self.is_headless() {
            errors.push(FieldError::new("spec.ports", "a Service needs at least one port"));
        }
        let mut names = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        let mut node_ports = BTreeSet::new();
        for (index, port) in ports.iter().enumerate() {
            let mut error = |field: &str, message: String| {
                errors.push(FieldError::new(format!("spec.ports[{index}].{field}"), message));
            };
            if port.name.is_empty() && ports.len() > 1 {
                error("name", "every one of several ports needs a name".into());
            } else if !names.insert(&port.name) {
                error("name", format!("\"{}\" is there twice", port.name));
            }
            let number = port.port.get();
            if !numbers.insert((port.protocol, number)) {
                error("port", format!("{} {number} is there twice", port.protocol));
            }
            let Some(node_port) = port.node_port else {
                continue;
            };
            if !matches!(self.spec.r#type, ServiceType::NodePort | ServiceType::LoadBalancer) {
                let r#type = self.spec.r#type;
                error("nodePort", format!("a {type} Service has no node ports"));
            } else if !node_ports.insert((port.protocol, node_port)) {
                let number = node_port.get();
                error("nodePort", format!("{} {number} is there twice", port.protocol));
            }
        }
    }
}

impl ServiceSpec {
    fn cluster_ip_texts(&self) -> impl Iterator<Item = &str> {
        let single = Some(&self.cluster_ip).filter(|_| self.cluster_ips.is_empty());
        let texts = self.cluster_ips.iter().chain(single);
        texts.map(String::as_str).filter(|text| !text.is_empty())
    }
}

/// What the manifest of a Service asks for and does not get; it is in force without. Taken from the
/// plain value, since the types hold only what is honoured.
pub(crate) fn not_honoured(service: &Value) -> Vec<FieldError> {
    let spec = &service["spec"];
    let mut found = Vec::new();
    let mut warn = |field: String, what: &str| found.push(FieldError::new(field, what));
    if spec["sessionAffinity"] == "ClientIP" {
        let message = "not honoured: each connection of a client may reach another endpoint";
        warn("spec.sessionAffinity".into(), message);
    }
    if is_given(&spec["externalIPs"]) {
        let message = "not honoured: the Service does not answer at these addresses";
        warn("spec.externalIPs".into(), message);
    }
    if is_given(&spec["loadBalancerSourceRanges"]) {
        let message = "not honoured: clients outside these ranges are let in, too";
        warn("spec.loadBalancerSourceRanges".into(), message);
    }
    let anywhere = "not honoured: endpoints are chosen without regard to where they are";
    if is_given(&spec["trafficDistribution"]) {
        warn("spec.trafficDistribution".into(), anywhere);
    }
    for annotation in TOPOLOGY {
        let mode = service["metadata"]["annotations"][annotation].as_str();
        if mode.is_some_and(|mode| !mode.is_empty() && !mode.eq_ignore_ascii_case("disabled")) {
            warn(format!("metadata.annotations.{annotation}"), anywhere);
        }
    }
    found
}

fn is_given(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn mistakes_are_named_together() {
        let check = |spec, expected: &[&str]| {
            let errors = service(spec).check();
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected);
        };
        use serde_json::json;
        check(json!({"ports": [{"port": 80}]}), &[]);
        check(json!({"clusterIP": "None"}), &[]);
        check(json!({"type": "ExternalName", "externalName": "x"}), &[]);
        check(json!({}), &["spec.ports: a Service needs at least one port"]);
        check(
            json!({"ports": [{"port": 80}, {"name": "a", "port": 80, "nodePort": 30000}]}),
            &[
                "spec.ports[0].name: every one of several ports needs a name",
                "spec.ports[1].port: TCP 80 is there twice",
                "spec.ports[1].nodePort: a ClusterIP Service has no node ports",
            ],
        );
        check(
            json!({"clusterIP": "10.0.0", "ports": [{"port": 80}]}),
            &["spec.clusterIP: \"10.0.0\" is neither an IP address nor \"None\""],
        );
        check(
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
            &["spec.clusterIP: a NodePort Service cannot be headless"],
        );
        check(
            json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"], "ports": [{"port": 80}]}),
            &["spec.clusterIPs[1]: a second IPv4 address"],
        );
        // DNS: one number, two protocols.
        check(
            json!({"type": "NodePort", "ports": [
                {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053},
                {"name": "tcp", "port": 53, "protocol": "TCP", "nodePort": 30053},
            ]}),
            &[],
        );
    }

    #[test]
    fn families() {
        let (v4, v6) = (IpFamily::V4, IpFamily::V6);
        let of = |spec, cluster: &[IpFamily]| {
            let families = service(spec).families(cluster);
            families.map_err(|error| error.to_string())
        };
        use serde_json::json;
        let missing = || Err("spec.ipFamilies: this cluster has no IPv6 service range".to_owned());
        assert_eq!(of(json!({}), &[v6, v4]), Ok(vec![v6]));
        assert_eq!(of(json!({"ipFamilies": ["IPv6"]}), &[v4]), missing());
        assert_eq!(of(json!({"clusterIP": "fd00::1"}), &[v4, v6]), Ok(vec![v6]));
        let prefer = json!({"ipFamilyPolicy": "PreferDualStack"});
        assert_eq!(of(prefer.clone(), &[v4]), Ok(vec![v4]));
        assert_eq!(of(prefer, &[v6, v4]), Ok(vec![v6, v4]));
        let require = json!({"ipFamilyPolicy": "RequireDualStack"});
        assert_eq!(of(require.clone(), &[v4]), missing());
        assert_eq!(of(require, &[v4, v6]), Ok(vec![v4, v6]));
    }
}
