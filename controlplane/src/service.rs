//! The rules of a Service that it can break all by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::kubernetes::{
    FieldError, IpFamily, IpFamilyPolicy, IpMode, Service, ServiceSpec, ServiceType,
    SessionAffinity, TargetPort, TrafficDistribution,
};
use crate::rules::{is_port_name, no_port_name};
use fairway_model::{Balancing, Forwarding, TrafficPolicy};
use ipnet::IpNet;

use crate::weights::Weights;

/// The word in place of an address that makes a Service headless.
const NONE: &str = "None";
/// Where an older manifest says which clients a load balancer lets in.
const SOURCE_RANGES: &str =
    "metadata.annotations.service.beta.kubernetes.io/load-balancer-source-ranges";
/// The seconds that a client may stay with its endpoint...
const AFFINITY: RangeInclusive<u32> = 1..=86400;
/// ...and those that it does unless said otherwise.
const DEFAULT_AFFINITY: u32 = 10800;
/// The seconds that an endpoint may take to get all of its share.
const SLOW_START: RangeInclusive<u32> = 1..=3600;
/// Whoever sets this label balances the Service instead of us.
pub(crate) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

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

    /// The name of which its own is an alias.
    pub(crate) fn alias(&self) -> Option<&str> {
        let alias =
            (self.spec.r#type == ServiceType::ExternalName).then_some(&*self.spec.external_name)?;
        let alias = alias.strip_suffix('.').unwrap_or(alias);
        is_dns_name(alias).then_some(alias)
    }

    /// Whether pods count as ready before they are, and while they end.
    pub(crate) fn publishes_all(&self) -> bool {
        let older = self.metadata.annotations.tolerate_unready.as_deref();
        self.spec.publish_not_ready_addresses || older == Some("true")
    }

    /// Whether its ports get numbers on the nodes although it asks for none in particular.
    pub(crate) fn wants_node_ports(&self) -> bool {
        match self.spec.r#type {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => self.spec.allocate_load_balancer_node_ports != Some(false),
            ServiceType::ClusterIP | ServiceType::ExternalName => false,
        }
    }

    /// Whether nodes are to tell a load balancer if they have endpoints of it.
    pub(crate) fn needs_health_check(&self) -> bool {
        self.spec.r#type == ServiceType::LoadBalancer
            && self.spec.external_traffic_policy == TrafficPolicy::Local
    }

    /// Addresses from elsewhere at which it answers, and the fields that name them.
    pub(crate) fn external_ips(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let ips = self.spec.external_ips.iter().enumerate();
        ips.map(|(index, ip)| (format!("spec.externalIPs[{index}]"), *ip))
    }

    /// Addresses of its load balancer to which packets come as they are, and the fields that name
    /// them.
    pub(crate) fn load_balancer_ips(&self) -> impl Iterator<Item = (String, IpAddr)> {
        let ingress = self.status.load_balancer.ingress.iter().enumerate();
        let balanced = self.spec.r#type == ServiceType::LoadBalancer;
        let captured = ingress.filter(move |(_, at)| balanced && at.ip_mode == IpMode::VIP);
        captured.filter_map(|(index, at)| {
            Some((format!("status.loadBalancer.ingress[{index}].ip"), at.ip?))
        })
    }

    /// The clients that its load balancer lets in; all if it names none.
    pub(crate) fn source_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.source_range_texts().into_iter().filter_map(|(_, text)| text.parse().ok())
    }

    /// How many seconds a client stays with its endpoint, if it does.
    pub(crate) fn affinity(&self) -> Option<u32> {
        let stays = self.spec.session_affinity == SessionAffinity::ClientIP && !self.is_headless();
        let seconds = self.spec.session_affinity_config.client_ip.timeout_seconds;
        let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
        stays.then(|| seconds.unwrap_or(DEFAULT_AFFINITY))
    }

    /// How its endpoints are chosen, or what is said instead.
    pub(crate) fn balancing(&self) -> Result<Balancing, &str> {
        match self.metadata.annotations.balancing.as_deref() {
            None | Some("random") => Ok(Balancing::Random),
            Some("round-robin") => Ok(Balancing::RoundRobin),
            Some("least-connections") => Ok(Balancing::LeastConnections),
            Some("maglev") => Ok(Balancing::Maglev),
            Some(other) => Err(other),
        }
    }

    /// Which of its endpoints get more new connections than others, or what is wrong with what is said.
    pub(crate) fn weights(&self) -> Result<Weights<'_>, String> {
        Weights::read(self.metadata.annotations.weights.as_deref().unwrap_or_default())
    }

    /// For how many seconds the share of an endpoint that is new grows, if that is wanted, or what is said
    /// instead.
    pub(crate) fn slow_start(&self) -> Result<Option<u32>, &str> {
        let Some(text) = self.metadata.annotations.slow_start.as_deref() else { return Ok(None) };
        let seconds = ["s", "m", "h"].into_iter().zip([1, 60, 3600]).find_map(|(unit, seconds)| {
            let number = text.strip_suffix(unit)?;
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse::<u32>().ok().filter(|_| digits)?.checked_mul(seconds)
        });
        match seconds.filter(|seconds| SLOW_START.contains(seconds)) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(text),
        }
    }

    /// How clients from outside reach its endpoints on other nodes, if it says so, or what it says
    /// instead.
    pub(crate) fn forwarding(&self) -> Result<Option<Forwarding>, &str> {
        match self.metadata.annotations.forwarding.as_deref() {
            None => Ok(None),
            Some("snat") => Ok(Some(Forwarding::Snat)),
            Some("keep") => Ok(Some(Forwarding::Keep)),
            Some("dsr") => Ok(Some(Forwarding::Dsr)),
            Some(other) => Err(other),
        }
    }

    /// Which endpoints are better for a client. An annotation that asks for something else counts
    /// first, as it does in Kubernetes.
    pub(crate) fn distribution(&self) -> Option<TrafficDistribution> {
        let topology = self.topology().is_some_and(|(_, mode)| matches!(mode, "Auto" | "auto"));
        self.spec.traffic_distribution.filter(|_| !topology)
    }

    /// The annotation by which it asks for endpoints that are shared out among zones, and how.
    pub(crate) fn topology(&self) -> Option<(&'static str, &str)> {
        let annotations = &self.metadata.annotations;
        let older = annotations.topology_hints.as_deref();
        let newer = annotations.topology_mode.as_deref();
        let older = older.map(|mode| ("service.kubernetes.io/topology-aware-hints", mode));
        let newer = newer.map(|mode| ("service.kubernetes.io/topology-mode", mode));
        let none = |mode: &str| mode.is_empty() || mode.eq_ignore_ascii_case("disabled");
        older.or(newer).filter(|(_, mode)| !none(mode))
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
            self.check_outside(&mut errors);
            self.check_choice(&mut errors);
        } else if self.alias().is_none() {
            let message = format!("\"{:.300}\" is no name of the DNS", self.spec.external_name);
            errors.push(FieldError::new("spec.externalName", message));
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
            if !port.name.is_empty() && !is_dns_label(&port.name) {
                let name = &port.name;
                error(
                    "name",
                    format!(
                        "\"{name:.300}\" is no name: small letters, digits and '-', a \
                    letter or digit at both ends, at most 63 of them"
                    ),
                );
            }
            if let Some(TargetPort::Name(name)) = &port.target_port
                && !is_port_name(name)
            {
                error("targetPort", no_port_name(name));
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

    /// What clients from outside see of it.
    fn check_outside(&self, errors: &mut Vec<FieldError>) {
        let spec = &self.spec;
        for (field, ip) in self.external_ips() {
            if let Some(what) = unfit(ip).or(is_link_local(ip).then_some("a link-local address")) {
                errors.push(FieldError::new(field, format!("{ip} is {what}")));
            }
        }
        for (field, ip) in self.load_balancer_ips() {
            if let Some(what) = unfit(ip) {
                errors.push(FieldError::new(field, format!("{ip} is {what}")));
            }
        }
        for (field, text) in self.source_range_texts() {
            if spec.r#type != ServiceType::LoadBalancer {
                let message = format!("a {} Service has no load balancer", spec.r#type);
                errors.push(FieldError::new(field, message));
            } else if text.parse::<IpNet>().is_err() {
                let message = format!("\"{text}\" is no range such as 10.0.0.0/8");
                errors.push(FieldError::new(field, message));
            }
        }
        if let Some(number) = spec.health_check_node_port {
            let mut error =
                |message: String| errors.push(FieldError::new("spec.healthCheckNodePort", message));
            if !self.needs_health_check() {
                error("only a LoadBalancer with externalTrafficPolicy Local has one".to_owned());
            } else if spec.ports.iter().any(|port| port.node_port == Some(number)) {
                error(format!("{} is also a node port of this Service", number.get()));
            }
        }
    }

    /// How it chooses endpoints.
    fn check_choice(&self, errors: &mut Vec<FieldError>) {
        let spec = &self.spec;
        if let Some(seconds) = spec.session_affinity_config.client_ip.timeout_seconds {
            let fits = u32::try_from(seconds).is_ok_and(|seconds| AFFINITY.contains(&seconds));
            let mut error = |message: String| {
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                errors.push(FieldError::new(field, message));
            };
            if spec.session_affinity != SessionAffinity::ClientIP {
                error("spec.sessionAffinity is not ClientIP".to_owned());
            } else if !fits {
                let (least, most) = AFFINITY.into_inner();
                error(format!("{seconds} is not between {least} and {most}"));
            }
        }
        if let Err(other) = self.balancing() {
            let message =
                format!("\"{other}\" is none of random, round-robin, least-connections and maglev");
            errors.push(FieldError::new("metadata.annotations.fairway.dev/balancing", message));
        }
        if let Err(message) = self.weights() {
            errors.push(FieldError::new("metadata.annotations.fairway.dev/weights", message));
        }
        if let Err(text) = self.slow_start() {
            let message = format!("\"{text}\" is no time from 1s to 1h, such as 30s or 5m");
            errors.push(FieldError::new("metadata.annotations.fairway.dev/slow-start", message));
        }
        if let Err(other) = self.forwarding() {
            let message = format!("\"{other}\" is none of snat, keep and dsr");
            errors.push(FieldError::new("metadata.annotations.fairway.dev/forwarding", message));
        }
    }

    /// The annotation counts only where the newer field says nothing.
    fn source_range_texts(&self) -> Vec<(String, &str)> {
        let ranges = &self.spec.load_balancer_source_ranges;
        let older = self.metadata.annotations.source_ranges.as_deref().unwrap_or_default().trim();
        if ranges.is_empty() && !older.is_empty() {
            let texts = older.split(',').map(|text| (SOURCE_RANGES.to_owned(), text.trim()));
            return texts.collect();
        }
        let texts = ranges
            .iter()
            .enumerate()
            .map(|(index, text)| (format!("spec.loadBalancerSourceRanges[{index}]"), text.trim()));
        texts.collect()
    }
}

/// Whether it is one label of the DNS.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && text.bytes().all(|byte| plain(byte) || byte == b'-')
        && ends.iter().all(|end| end.is_some_and(plain))
}

/// Whether it is labels of the DNS with dots between.
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Why nobody can route the address to a node, if that is so.
fn unfit(ip: IpAddr) -> Option<&'static str> {
    let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let kinds = [
        (ip.is_unspecified(), "the unspecified address"),
        (ip.is_loopback(), "a loopback address"),
        (ip.is_multicast(), "a multicast address"),
        (mapped, "an IPv4 address in the form of an IPv6 one"),
    ];
    kinds.into_iter().find_map(|(is, what)| is.then_some(what))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl ServiceSpec {
    fn cluster_ip_texts(&self) -> impl Iterator<Item = &str> {
        let single = Some(&self.cluster_ip).filter(|_| self.cluster_ips.is_empty());
        let texts = self.cluster_ips.iter().chain(single);
        texts.map(String::as_str).filter(|text| !text.is_empty())
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
        check(json!({"type": "ExternalName", "externalName": "db.example.com."}), &[]);
        check(
            json!({"type": "ExternalName", "externalName": "db..example.com"}),
            &["spec.externalName: \"db..example.com\" is no name of the DNS"],
        );
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
        check(
            json!({"ports": [{"name": "a_b", "port": 80, "targetPort": "HTTP"}]}),
            &[
                "spec.ports[0].name: \"a_b\" is no name: small letters, digits and '-', a letter or \
                 digit at both ends, at most 63 of them",
                "spec.ports[0].targetPort: \"HTTP\" is no name of a port: small letters, digits and \
                 single '-', at least one letter, at most 15 of them",
            ],
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
