//! What Services are given when they are made or changed: addresses, node ports, and what they leave open.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::store::Refusal;

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// So many addresses at a range's beginning are for those who ask for them.
const STATIC: u128 = 256;

/// The addresses and node ports that Services have.
#[derive(Default)]
pub(super) struct Numbers {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
    /// How many addresses and ports were given out, so that none is soon given out again.
    given: (u128, u16),
}

impl Numbers {
    /// Completes a Service that is to be in place of `old`, and notes what it has.
    pub(super) fn give(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        ranges: &[IpNet],
    ) -> Result<(), Refusal> {
        if !service["status"]["loadBalancer"].is_object() {
            service["status"]["loadBalancer"] = json!({});
        }
        let spec = &mut service["spec"];
        defaults(spec);
        if let Some(old) = old {
            keep(&old["spec"], spec);
            self.take_back(old);
        }
        let given = self.addresses(spec, ranges).and_then(|()| self.node_ports(spec));
        match (&given, old) {
            (Ok(()), _) => self.note(spec),
            (Err(_), Some(old)) => self.note(&old["spec"]),
            (Err(_), None) => {}
        }
        given
    }

    /// Forgets what a Service had.
    pub(super) fn take_back(&mut self, service: &Value) {
        let spec = &service["spec"];
        for address in addresses_of(spec) {
            self.addresses.remove(&address);
        }
        for port in ports_of(spec) {
            self.ports.remove(&port);
        }
    }

    fn note(&mut self, spec: &Value) {
        self.addresses.extend(addresses_of(spec));
        self.ports.extend(ports_of(spec));
    }

    fn addresses(&mut self, spec: &mut Value, ranges: &[IpNet]) -> Result<(), Refusal> {
        if spec["type"] == "ExternalName" {
            return Ok(());
        }
        let families = families(spec, ranges)?;
        spec["ipFamilies"] = json!(families);
        if spec["clusterIP"] == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        let mut addresses: Vec<IpAddr> = addresses_of(spec).collect();
        if let Some(taken) = addresses.iter().find(|wanted| self.addresses.contains(*wanted)) {
            let text = format!(
                "spec.clusterIPs: Invalid value: \"{taken}\": provided IP is already allocated"
            );
            return Err((422, "Invalid", text));
        }
        for family in families.iter().skip(addresses.len()) {
            let range = ranges.iter().find(|range| name_of(range.addr()) == *family);
            let free = range.and_then(|range| self.free_address(range));
            addresses.push(free.ok_or_else(|| full("addresses"))?);
        }
        addresses.truncate(families.len());
        spec["clusterIP"] = json!(addresses[0]);
        spec["clusterIPs"] = json!(addresses);
        Ok(())
    }

    fn free_address(&mut self, range: &IpNet) -> Option<IpAddr> {
        let bits = u32::from(range.max_prefix_len() - range.prefix_len());
        let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        let begin = if size > 2 * STATIC { STATIC } else { 1 };
        let mut offsets = (begin..size).map(|_| {
            self.given.0 += 1;
            begin + (self.given.0 - 1) % (size - begin)
        });
        offsets.find_map(|offset| {
            let address: IpAddr = match range.network() {
                IpAddr::V4(base) => {
                    Ipv4Addr::from_bits(base.to_bits() + u32::try_from(offset).ok()?).into()
                }
                IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + offset).into(),
            };
            (!self.addresses.contains(&address)).then_some(address)
        })
    }

    fn node_ports(&mut self, spec: &mut Value) -> Result<(), Refusal> {
        if let Some(taken) = ports_of(spec).find(|wanted| self.ports.contains(wanted)) {
            let text = format!(
                "spec.ports.nodePort: Invalid value: {taken}: provided port is already allocated"
            );
            return Err((422, "Invalid", text));
        }
        self.ports.extend(ports_of(spec));
        let kind = spec["type"].clone();
        let wants = kind == "NodePort"
            || kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false;
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            if wants && number(&port["nodePort"]).is_none() {
                port["nodePort"] = self.free_port()?.into();
            }
        }
        if is_checked(spec) && number(&spec["healthCheckNodePort"]).is_none() {
            spec["healthCheckNodePort"] = self.free_port()?.into();
        }
        Ok(())
    }

    fn free_port(&mut self) -> Result<u16, Refusal> {
        let size = NODE_PORTS.end() - NODE_PORTS.start() + 1;
        for _ in NODE_PORTS {
            let port = NODE_PORTS.start() + self.given.1 % size;
            self.given.1 = (self.given.1 + 1) % size;
            if self.ports.insert(port) {
                return Ok(port);
            }
        }
        Err(full("ports"))
    }
}

/// The ClusterIPs that it has or asks for.
fn addresses_of(spec: &Value) -> impl Iterator<Item = IpAddr> {
    let all = spec["clusterIPs"].as_array().filter(|all| !all.is_empty());
    let one = std::iter::once(&spec["clusterIP"]).filter(move |_| all.is_none());
    let all = all.into_iter().flatten().chain(one);
    all.filter_map(|address| address.as_str()?.parse().ok())
}

/// The ports of nodes that it has or asks for.
fn ports_of(spec: &Value) -> impl Iterator<Item = u16> {
    let ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    ports.chain([&spec["healthCheckNodePort"]]).filter_map(number)
}

/// Whether nodes tell a load balancer if they have endpoints.
fn is_checked(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// What is not said.
fn defaults(spec: &mut Value) {
    let default = |fields: &mut Value, field: &str, value: Value| {
        if fields.get(field).is_none() {
            fields[field] = value;
        }
    };
    default(spec, "type", "ClusterIP".into());
    default(spec, "sessionAffinity", "None".into());
    if spec["type"] == "ExternalName" {
        return;
    }
    default(spec, "internalTrafficPolicy", "Cluster".into());
    let two = |field: &str| spec[field].as_array().is_some_and(|all| all.len() == 2);
    let both = two("ipFamilies") || two("clusterIPs");
    default(spec, "ipFamilyPolicy", if both { "RequireDualStack" } else { "SingleStack" }.into());
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        default(port, "protocol", "TCP".into());
        let same = port["port"].clone();
        default(port, "targetPort", same);
    }
}

/// Fills in what the Service had and does not speak of, as whoever changes a Service need not repeat what it
/// was given; and drops what its new type has no use for.
fn keep(old: &Value, spec: &mut Value) {
    if spec["type"] == "ExternalName" || old["type"] == "ExternalName" {
        return;
    }
    if spec.get("ipFamilies").is_none() {
        spec["ipFamilies"] = old["ipFamilies"].clone();
    }
    if spec["clusterIP"].as_str().is_none_or(str::is_empty) {
        spec["clusterIP"] = old["clusterIP"].clone();
    }
    if spec["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
        spec["clusterIPs"] = old["clusterIPs"].clone();
    }
    let ports = old["ports"].as_array().cloned().unwrap_or_default();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let same =
            |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
        if let (None, Some(old)) = (port.get("nodePort"), ports.iter().find(same))
            && let Some(given) = old.get("nodePort")
        {
            port["nodePort"] = given.clone();
        }
    }
    if spec["type"] == "ClusterIP" {
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            port.as_object_mut().map(|port| port.remove("nodePort"));
        }
    }
    if is_checked(spec) && spec.get("healthCheckNodePort").is_none() {
        spec["healthCheckNodePort"] = old["healthCheckNodePort"].clone();
    }
}

/// The families of a Service's addresses, in order.
fn families(spec: &Value, ranges: &[IpNet]) -> Result<Vec<&'static str>, Refusal> {
    const BOTH: [&str; 2] = ["IPv4", "IPv6"];
    let cluster: Vec<&str> = ranges.iter().map(|range| name_of(range.addr())).collect();
    let asked = spec["ipFamilies"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut families: Vec<&str> =
        asked.filter_map(|asked| BOTH.into_iter().find(|family| *family == asked)).collect();
    // Whoever asks for an address asks for its family.
    let address = spec["clusterIP"].as_str().and_then(|address| address.parse().ok());
    if families.is_empty() {
        families.push(address.map_or(cluster[0], name_of));
    }
    match spec["ipFamilyPolicy"].as_str() {
        Some("PreferDualStack" | "RequireDualStack") => {
            let others = cluster.iter().find(|family| !families.contains(*family));
            families.extend(others);
        }
        _ => families.truncate(1),
    }
    if families.len() < 2 && spec["ipFamilyPolicy"] == "RequireDualStack" {
        let text = "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
                    configured for dual-stack services";
        return Err((422, "Invalid", text.to_owned()));
    }
    match families.iter().find(|family| !cluster.contains(*family)) {
        None => Ok(families),
        Some(family) => {
            let text = format!(
                "spec.ipFamilies: Invalid value: {family:?}: not configured on this cluster"
            );
            Err((422, "Invalid", text))
        }
    }
}

fn name_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn full(what: &str) -> Refusal {
    (500, "InternalError", format!("failed to allocate: no {what} are left"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<IpNet> {
        ["10.96.0.0/16", "fd00:96::/112"].map(|range| range.parse().unwrap()).to_vec()
    }

    fn given(numbers: &mut Numbers, spec: Value, old: Option<&Value>) -> Result<Value, String> {
        let mut service = json!({"spec": spec});
        let given = numbers.give(&mut service, old, &ranges());
        given.map(|()| service).map_err(|(_, _, message)| message)
    }

    #[test]
    fn services_get_what_they_ask_for_or_leave_open() {
        let mut numbers = Numbers::default();
        let mut check = |spec: Value, addresses: Value, families: Value| {
            let service = given(&mut numbers, spec, None).unwrap();
            assert_eq!(service["spec"]["clusterIPs"], addresses);
            assert_eq!(service["spec"]["ipFamilies"], families);
        };
        check(json!({}), json!(["10.96.1.0"]), json!(["IPv4"]));
        check(
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            json!(["10.96.1.1", "fd00:96::102"]),
            json!(["IPv4", "IPv6"]),
        );
        check(json!({"ipFamilies": ["IPv6"]}), json!(["fd00:96::103"]), json!(["IPv6"]));
        check(json!({"clusterIP": "10.96.0.7"}), json!(["10.96.0.7"]), json!(["IPv4"]));
        check(json!({"clusterIP": "None"}), json!(["None"]), json!(["IPv4"]));
        check(json!({"type": "ExternalName"}), Value::Null, Value::Null);
        let taken = given(&mut numbers, json!({"clusterIP": "10.96.1.0"}), None).unwrap_err();
        assert!(taken.contains("\"10.96.1.0\": provided IP is already allocated"), "{taken}");
        let mut alone = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
        let (_, _, message) = numbers.give(&mut alone, None, &ranges()[..1]).unwrap_err();
        assert!(message.contains("not configured for dual-stack"), "{message}");
    }

    #[test]
    fn what_was_given_stays_until_the_service_goes() {
        let mut numbers = Numbers::default();
        let spec = |kind: &str| json!({"type": kind, "ports": [{"port": 80}, {"port": 81}]});
        let old = given(&mut numbers, spec("NodePort"), None).unwrap();
        assert_eq!(old["spec"]["ports"][1]["nodePort"], 30001);
        // Somebody who asks for a port of it changes nothing.
        let wants = || json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]});
        assert!(given(&mut numbers, wants(), None).unwrap_err().contains("30001: provided port"));
        let same = given(&mut numbers, spec("NodePort"), Some(&old)).unwrap();
        assert_eq!(same, old);

        let less = given(&mut numbers, spec("ClusterIP"), Some(&old)).unwrap();
        assert_eq!(less["spec"]["clusterIPs"], old["spec"]["clusterIPs"]);
        assert_eq!(less["spec"]["ports"][1].get("nodePort"), None);
        let other = given(&mut numbers, wants(), None).unwrap();
        numbers.take_back(&other);
        numbers.take_back(&less);
        assert_eq!((numbers.addresses.len(), numbers.ports.len()), (0, 0));
    }

    #[test]
    fn a_load_balancer_is_told_by_a_port_of_its_own_which_nodes_have_endpoints() {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
        let service = given(&mut Numbers::default(), spec, None).unwrap();
        assert_eq!(service["spec"]["healthCheckNodePort"], 30000);
        assert_eq!(service["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(service["status"]["loadBalancer"], json!({}));
    }
}
