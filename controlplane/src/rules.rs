//! The rules that an object can break all by itself; those of Services are in `service`, those of
//! policies in `policy::check`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairway_model::{NotAKey, WireGuardKey};

use crate::flannel;
use crate::kubernetes::pool::IPAddressPool;
use crate::kubernetes::{
    AddressType, Annotations, EndpointSlice, FieldError, IpFamily, Labels, Metadata, Node,
    NodeAddress, Object, Pod, PodIp, READY, ServiceCIDR,
};

/// The lengths of the widest ranges that can be Services'. Nodes reach nothing else in them, so that a
/// slip of the pen must not take in half of the Internet.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 32;
/// The most bytes of the name or value of a label, and of what may stand before the name.
const LABEL: usize = 63;
const LABEL_PREFIX: usize = 253;
/// The most of each that Kubernetes takes.
const ENDPOINTS: usize = 1000;
const ADDRESSES: usize = 100;
const PORTS: usize = 20_000;
/// The label of a node that says which part of the cluster, that fails as one, it is in.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a node that load balancers are to leave alone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Set by the cluster autoscaler on a node that it is about to remove.
const ABOUT_TO_GO: &str = "ToBeDeletedByClusterAutoscaler";

impl Object {
    /// Everything that is wrong with it on its own.
    pub(crate) fn check(&self) -> Vec<FieldError> {
        match self {
            Self::Node(node) => node.check(),
            Self::Service(service) => {
                [service.check(), check_labels(&service.metadata.labels)].concat()
            }
            Self::EndpointSlice(slice) => slice.check(),
            Self::Namespace(namespace) => namespace.metadata.check(),
            Self::Pod(pod) => pod.check(),
            Self::ServiceCIDR(ranges) => ranges.check(),
            Self::NetworkPolicy(policy) => policy.check(),
            Self::ClusterNetworkPolicy(policy) => policy.check(),
            Self::AdminNetworkPolicy(policy) => policy.check(),
            Self::BaselineAdminNetworkPolicy(policy) => policy.check(),
            Self::IPAddressPool(pool) => pool.check(),
            Self::Ingress(ingress) => ingress.check(),
            // Whatever its types let through is fine.
            Self::Endpoints(_)
            | Self::L2Advertisement(_)
            | Self::IngressClass(_)
            | Self::Secret(_)
            | Self::ConfigMap(_) => Vec::new(),
        }
    }
}

impl Annotations {
    /// Whether the sockets of the pods it is about are to be left alone, or what is said instead.
    pub(crate) fn sockets_exempt(&self) -> Option<Result<bool, &str>> {
        self.socket_balancing.as_deref().map(|word| match word {
            "on" => Ok(false),
            "off" => Ok(true),
            other => Err(other),
        })
    }

    fn check(&self) -> Vec<FieldError> {
        let other = self.sockets_exempt().and_then(Result::err);
        let error = other.map(|other| {
            let field = "metadata.annotations.fairway.dev/socket-balancing";
            FieldError::new(field, format!("\"{other}\" is neither \"on\" nor \"off\""))
        });
        error.into_iter().collect()
    }
}

impl Metadata {
    fn check(&self) -> Vec<FieldError> {
        [self.annotations.check(), check_labels(&self.labels)].concat()
    }
}

impl Pod {
    fn check(&self) -> Vec<FieldError> {
        let mut errors = self.metadata.check();
        let mut families = BTreeSet::new();
        for (index, PodIp { ip }) in self.status.pod_ips.iter().enumerate() {
            let family = IpFamily::of(*ip);
            if !families.insert(family) {
                let field = format!("status.podIPs[{index}].ip");
                errors.push(FieldError::new(field, format!("a second {family} address")));
            }
        }
        for (list, containers) in
            [("containers", &self.spec.containers), ("initContainers", &self.spec.init_containers)]
        {
            for (at, container) in containers.iter().enumerate() {
                let named = container.ports.iter().enumerate();
                let bad =
                    named.filter(|(_, port)| !port.name.is_empty() && !is_port_name(&port.name));
                errors.extend(bad.map(|(index, port)| {
                    let field = format!("spec.{list}[{at}].ports[{index}].name");
                    FieldError::new(field, no_port_name(&port.name))
                }));
            }
        }
        errors
    }
}

/// Whether containers may call a port so.
pub(crate) fn is_port_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= 15
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && ends.iter().all(|end| end.is_some_and(|byte| plain(*byte)))
        && !name.contains("--")
}

/// What is wrong with a name that is none.
pub(crate) fn no_port_name(name: &str) -> String {
    format!(
        "\"{name:.300}\" is no name of a port: small letters, digits and single '-', at least one \
         letter, at most 15 of them"
    )
}

/// What no object's labels can be.
fn check_labels(labels: &Labels) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        let (prefix, name) = key.split_once('/').map_or((None, &**key), |(a, b)| (Some(a), b));
        let is_key = !name.is_empty()
            && is_label(name)
            && prefix.is_none_or(|prefix| !prefix.is_empty() && prefix.len() <= LABEL_PREFIX);
        let mut error = |message: String| {
            errors.push(FieldError::new(format!("metadata.labels.{key:.320}"), message));
        };
        if !is_key {
            error(format!("its name is none: at most {LABEL} letters, digits, '-', '_' and '.'"));
        } else if !is_label(value) {
            error(format!(
                "\"{value:.300}\" is no value: at most {LABEL} letters, digits, '-', '_' and '.', a \
                 letter or digit at both ends"
            ));
        }
    }
    errors
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= LABEL
        && text.bytes().all(|byte| plain(byte) || b"-_.".contains(&byte))
        && ends.into_iter().flatten().all(plain)
}

impl Node {
    /// Its addresses within the cluster, in order.
    pub(crate) fn internal_ips(&self) -> impl Iterator<Item = IpAddr> {
        let internal = self.internal().map(|(_, address)| address);
        internal.filter_map(|address| address.address.parse().ok())
    }

    /// All of its addresses, of whatever type.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.status.addresses.iter().filter_map(|address| address.address.parse().ok())
    }

    /// The key that its annotation says encrypts to it, if there is one.
    pub(crate) fn wireguard_key(&self) -> Option<Result<WireGuardKey, NotAKey>> {
        self.metadata.annotations.wireguard_key.as_deref().map(str::parse)
    }

    /// Where it is, if that is known.
    pub(crate) fn zone(&self) -> Option<&str> {
        self.metadata.labels.get(ZONE).map(String::as_str).filter(|zone| !zone.is_empty())
    }

    /// Whether it will be gone soon.
    pub(crate) fn is_leaving(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
            || self.spec.taints.iter().any(|taint| taint.key == ABOUT_TO_GO)
    }

    /// Whether it is to announce no load balancer's addresses.
    pub(crate) fn is_excluded(&self) -> bool {
        self.metadata.labels.contains_key(EXCLUDED)
    }

    /// Whether the cluster says that it is not ready. Nobody says anything in manifests.
    pub(crate) fn is_unready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|condition| condition.r#type == READY && condition.status != "True")
    }

    fn internal(&self) -> impl Iterator<Item = (usize, &NodeAddress)> {
        let addresses = self.status.addresses.iter().enumerate();
        addresses.filter(|(_, address)| address.r#type == "InternalIP")
    }

    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, NodeAddress { address, .. }) in self.internal() {
            if address.parse::<IpAddr>().is_err() {
                let field = format!("status.addresses[{index}].address");
                errors.push(FieldError::new(field, format!("\"{address}\" is no IP address")));
            }
        }
        if let Some(Err(error)) = self.wireguard_key() {
            let field = "metadata.annotations[\"fairway.dev/wireguard-public-key\"]";
            errors.push(FieldError::new(field, error.to_string()));
        }
        errors.extend(flannel::check(&self.metadata.annotations));
        errors.extend(check_labels(&self.metadata.labels));
        let mut families = BTreeSet::new();
        for (index, cidr) in self.spec.pod_cidrs.iter().enumerate() {
            let family = IpFamily::of(cidr.addr());
            if !families.insert(family) {
                let field = format!("spec.podCIDRs[{index}]");
                errors.push(FieldError::new(field, format!("a second {family} range")));
            }
        }
        errors
    }
}

impl IPAddressPool {
    fn check(&self) -> Vec<FieldError> {
        let none = self.spec.addresses.is_empty();
        let error = none.then(|| FieldError::new("spec.addresses", "needs a range"));
        error.into_iter().collect()
    }
}

impl ServiceCIDR {
    fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let cidrs = &self.spec.cidrs;
        if cidrs.is_empty() {
            errors.push(FieldError::new("spec.cidrs", "needs a range"));
        }
        let mut families = BTreeSet::new();
        for (index, cidr) in cidrs.iter().enumerate() {
            let mut error = |message: String| {
                errors.push(FieldError::new(format!("spec.cidrs[{index}]"), message));
            };
            let family = IpFamily::of(cidr.addr());
            let widest = match family {
                IpFamily::V4 => WIDEST_V4,
                IpFamily::V6 => WIDEST_V6,
            };
            if *cidr != cidr.trunc() {
                error(format!(
                    "{cidr} does not begin where its range does; is it {}?",
                    cidr.trunc()
                ));
            }
            if cidr.prefix_len() < widest {
                error(format!("{cidr} is too wide; /{widest} is the most for {family}"));
            }
            if !families.insert(family) {
                error(format!("a second {family} range"));
            }
        }
        errors
    }
}

impl EndpointSlice {
    fn check(&self) -> Vec<FieldError> {
        let family = match self.address_type {
            AddressType::V4 => IpFamily::V4,
            AddressType::V6 => IpFamily::V6,
            AddressType::Fqdn => return Vec::new(),
        };
        let mut errors = check_labels(&self.metadata.labels);
        for (field, count, most) in
            [("endpoints", self.endpoints.len(), ENDPOINTS), ("ports", self.ports.len(), PORTS)]
        {
            if count > most {
                errors.push(FieldError::new(field, format!("{count} of them; {most} is the most")));
            }
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let mut error = |field: &str, message: String| {
                errors.push(FieldError::new(format!("endpoints[{index}].{field}"), message));
            };
            if endpoint.addresses.is_empty() {
                error("addresses", "an endpoint needs an address".into());
            } else if endpoint.addresses.len() > ADDRESSES {
                let count = endpoint.addresses.len();
                error("addresses", format!("{count} of them; {ADDRESSES} is the most"));
            }
            for (kind, hints) in
                [("forZones", &endpoint.hints.for_zones), ("forNodes", &endpoint.hints.for_nodes)]
            {
                if let Some(at) = hints.iter().position(|hint| hint.name.is_empty()) {
                    error(&format!("hints.{kind}[{at}].name"), "needs a name".into());
                }
            }
            for (place, text) in endpoint.addresses.iter().enumerate() {
                match text.parse().map(IpFamily::of) {
                    Ok(found) if found == family => {}
                    _ => error(
                        &format!("addresses[{place}]"),
                        format!("\"{text}\" is no {family} address, which addressType asks for"),
                    ),
                }
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::decode::decode_unchecked;
    use crate::kubernetes::Kind;

    #[test]
    fn what_kubernetes_would_not_take_is_refused_by_field() {
        let check = |kind: Kind, value: Value, expected: &[&str]| {
            let object = decode_unchecked(kind, value.clone()).unwrap();
            let errors: Vec<_> = object.check().iter().map(|error| error.field.clone()).collect();
            assert_eq!(errors, expected, "{kind} {value:.200}");
        };
        let labels = |key: &str, value: &str| json!({"metadata": {"labels": {key: value}}});
        for (key, value) in [
            ("a", ""),
            ("A.b_c-1", "X"),
            ("example.com/a", "1.2"),
            (&format!("{}/{}", "p".repeat(253), "n".repeat(63)), &*"v".repeat(63)),
        ] {
            for kind in [Kind::Namespace, Kind::Node, Kind::Pod] {
                check(kind, labels(key, value), &[]);
            }
        }
        let long = "n".repeat(64);
        for (key, value) in [
            ("a", "-"),
            ("a", "b c"),
            ("a", &*long),
            ("-a", ""),
            ("/a", ""),
            ("a/", ""),
            ("a/b/c", ""),
            ("", "x"),
            (&long, ""),
        ] {
            for kind in [Kind::Namespace, Kind::Node, Kind::Pod] {
                check(kind, labels(key, value), &[&format!("metadata.labels.{key}")]);
            }
        }

        let port = |name: &str| {
            let ports = json!([{"containerPort": 1}, {"name": name, "containerPort": 2}]);
            json!({"spec": {"containers": [{}, {"ports": ports}]}})
        };
        for name in ["http", "a-1", "123456789012345".replace('5', "x").as_str()] {
            check(Kind::Pod, port(name), &[]);
        }
        for name in ["80", "a--b", "-a", "a-", "Http", "abcdefghijklmnop", "a b"] {
            check(Kind::Pod, port(name), &["spec.containers[1].ports[1].name"]);
        }
        let ips =
            json!({"status": {"podIPs": [{"ip": "::1"}, {"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}});
        check(Kind::Pod, ips, &["status.podIPs[2].ip"]);

        let slice = |endpoints: usize, addresses: usize| {
            let endpoint = json!({"addresses": vec!["10.0.0.1"; addresses]});
            json!({"addressType": "IPv4", "endpoints": vec![endpoint; endpoints]})
        };
        check(Kind::EndpointSlice, slice(1000, 1), &[]);
        check(Kind::EndpointSlice, slice(1001, 1), &["endpoints"]);
        check(Kind::EndpointSlice, slice(1, 100), &[]);
        check(Kind::EndpointSlice, slice(1, 101), &["endpoints[0].addresses"]);
    }
}
