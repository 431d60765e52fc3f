//! The rules that an object can break all by itself; those of Services are in `service`, those of
//! policies in `policy::check`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairway_model::{NotAKey, WireGuardKey};

use crate::flannel;
use crate::kubernetes::{
    AddressType, Annotations, EndpointSlice, FieldError, IpFamily, Node, NodeAddress, Object,
    ServiceCIDR,
};

/// The lengths of the widest ranges that can be Services'. Nodes reach nothing else in them, so that a
/// slip of the pen must not take in half of the Internet.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 32;
/// The label of a node that says which part of the cluster, that fails as one, it is in.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Set by the cluster autoscaler on a node that it is about to remove.
const ABOUT_TO_GO: &str = "ToBeDeletedByClusterAutoscaler";

impl Object {
    /// Everything that is wrong with it on its own.
    pub(crate) fn check(&self) -> Vec<FieldError> {
        match self {
            Self::Node(node) => node.check(),
            Self::Service(service) => service.check(),
            Self::EndpointSlice(slice) => slice.check(),
            Self::Namespace(namespace) => namespace.metadata.annotations.check(),
            Self::Pod(pod) => pod.metadata.annotations.check(),
            Self::ServiceCIDR(ranges) => ranges.check(),
            Self::NetworkPolicy(policy) => policy.check(),
            Self::ClusterNetworkPolicy(policy) => policy.check(),
            Self::AdminNetworkPolicy(policy) => policy.check(),
            Self::BaselineAdminNetworkPolicy(policy) => policy.check(),
            // Whatever its types let through is fine.
            Self::Endpoints(_) => Vec::new(),
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
        let mut errors = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let mut error = |field: &str, message: String| {
                errors.push(FieldError::new(format!("endpoints[{index}].{field}"), message));
            };
            if endpoint.addresses.is_empty() {
                error("addresses", "an endpoint needs an address".into());
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
