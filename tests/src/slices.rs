//! EndpointSlices of Services, as the controllers of Kubernetes would make them.
//!
//! [`plan`] looks at all objects and says what to change; it reads no clock and keeps nothing. Slices that
//! others have made are left alone. Those of a Service that is gone are orphans like any other's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::objects::{Key, Kind, text};
use crate::store::{Objects, is_ready, is_terminating};

/// Says which Service a slice is of.
const SERVICE: &str = "kubernetes.io/service-name";
/// Says whose work a slice is.
const MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const OF_PODS: &str = "endpointslice-controller.k8s.io";
const OF_ENDPOINTS: &str = "endpointslicemirroring-controller.k8s.io";
/// As many endpoints are in one slice at most.
const MOST: usize = 100;

/// What is to become of slices: their new content, or `None` for one to be taken away.
pub(crate) fn plan(objects: &Objects) -> Vec<(Key, Option<Value>)> {
    let mut wanted = BTreeMap::new();
    for (key, service) in objects.iter().filter(|(key, _)| key.kind == Kind::Service) {
        let selector = service["spec"]["selector"].as_object().filter(|all| !all.is_empty());
        let Some(selector) = selector.filter(|_| service["spec"]["type"] != "ExternalName") else {
            continue;
        };
        for family in service["spec"]["ipFamilies"].as_array().into_iter().flatten() {
            let family = family.as_str().unwrap_or_default();
            let all = slices(objects, key, service, selector, family);
            for (index, (ports, endpoints)) in all.into_iter().enumerate() {
                let name = format!("{}-{}-{index}", key.name, family.to_lowercase());
                let mut slice = slice(key, service, &name, family, &ports, &endpoints);
                if service["spec"]["clusterIP"] == "None" {
                    slice["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
                }
                wanted.insert(Key::new(Kind::EndpointSlice, &key.namespace, &name), slice);
            }
        }
    }
    for (key, endpoints) in objects.iter().filter(|(key, _)| key.kind == Kind::Endpoints) {
        wanted.extend(mirrored(objects, key, endpoints));
    }
    let is_ours = |slice: &Value| {
        let manager = &slice["metadata"]["labels"][MANAGER];
        *manager == OF_PODS || *manager == OF_ENDPOINTS
    };
    let ours =
        objects.iter().filter(|(key, slice)| key.kind == Kind::EndpointSlice && is_ours(slice));
    let gone = ours.filter(|(key, _)| !wanted.contains_key(key));
    let mut changes: Vec<_> = gone.map(|(key, _)| (key.clone(), None)).collect();
    let same = |key: &Key, slice: &Value| {
        objects.get(key).is_some_and(|there| {
            ["endpoints", "ports"].iter().all(|field| there[field] == slice[field])
                && there["metadata"]["labels"] == slice["metadata"]["labels"]
                && there["metadata"]["ownerReferences"] == slice["metadata"]["ownerReferences"]
        })
    };
    let news = wanted.into_iter().filter(|(key, slice)| !same(key, slice));
    changes.extend(news.map(|(key, slice)| (key, Some(slice))));
    changes
}

/// The slices of endpoints that were given in the older kind, to a Service that selects no pods.
fn mirrored(objects: &Objects, key: &Key, endpoints: &Value) -> Vec<(Key, Value)> {
    let service = objects.get(&Key::new(Kind::Service, &key.namespace, &key.name));
    let is_given =
        |service: &Value| service["spec"]["selector"].as_object().is_none_or(Map::is_empty);
    if !service.is_some_and(|service| is_given(service)) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for (index, subset) in endpoints["subsets"].as_array().into_iter().flatten().enumerate() {
        for family in ["IPv4", "IPv6"] {
            let mut found = Vec::new();
            for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
                for given in subset[field].as_array().into_iter().flatten() {
                    let Some(address) = given["ip"].as_str().filter(|ip| is_of(ip, family)) else {
                        continue;
                    };
                    let mut endpoint =
                        json!({"addresses": [address], "conditions": {"ready": ready}});
                    for field in ["hostname", "nodeName", "targetRef"] {
                        if let Some(value) = given.get(field) {
                            endpoint[field] = value.clone();
                        }
                    }
                    found.push(endpoint);
                }
            }
            if found.is_empty() {
                continue;
            }
            let name = format!("{}-mirror-{}-{index}", key.name, family.to_lowercase());
            let ports = subset["ports"].as_array().cloned().unwrap_or_default();
            let slice = slice(key, endpoints, &name, family, &ports, &found);
            all.push((Key::new(Kind::EndpointSlice, &key.namespace, &name), slice));
        }
    }
    all
}

fn is_of(address: &str, family: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"))
}

/// Ports and endpoints of each slice, at least one: pods for which a port's name means another number are
/// in slices of their own.
fn slices(
    objects: &Objects,
    key: &Key,
    service: &Value,
    selector: &Map<String, Value>,
    family: &str,
) -> Vec<(Vec<Value>, Vec<Value>)> {
    let mut by_ports: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for (pod_key, pod) in objects {
        let labels = &pod["metadata"]["labels"];
        let selected = pod_key.kind == Kind::Pod
            && pod_key.namespace == key.namespace
            && selector.iter().all(|(label, value)| labels[label] == *value);
        if !selected || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            continue;
        }
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let mut addresses = addresses.filter_map(|ip| ip["ip"].as_str());
        let Some(address) = addresses.find(|address| is_of(address, family)) else { continue };
        let ports = ports(service, pod);
        let (_, endpoints) = by_ports
            .entry(Value::from(ports.clone()).to_string())
            .or_insert_with(|| (ports, Vec::new()));
        endpoints.push(endpoint(objects, service, pod_key, pod, address));
    }
    let mut all = Vec::new();
    for (ports, endpoints) in by_ports.into_values() {
        all.extend(endpoints.chunks(MOST).map(|some| (ports.clone(), some.to_vec())));
    }
    if all.is_empty() {
        all.push((Vec::new(), Vec::new()));
    }
    all
}

/// A Service's ports as numbers of this pod; without those that it does not have.
fn ports(service: &Value, pod: &Value) -> Vec<Value> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.filter_map(|port| {
        let protocol = port.get("protocol").cloned().unwrap_or("TCP".into());
        let number = match &port["targetPort"] {
            Value::String(name) => named_port(pod, name, &protocol)?,
            Value::Null => port["port"].clone(),
            number => number.clone(),
        };
        let name = port.get("name").cloned().unwrap_or("".into());
        Some(json!({"name": name, "protocol": protocol, "port": number}))
    });
    found.collect()
}

fn named_port(pod: &Value, name: &str, protocol: &Value) -> Option<Value> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports =
        containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let found = ports.find(|port| {
        port["name"] == name && port.get("protocol").unwrap_or(&"TCP".into()) == protocol
    });
    found.map(|port| port["containerPort"].clone())
}

fn endpoint(objects: &Objects, service: &Value, key: &Key, pod: &Value, address: &str) -> Value {
    let (serving, terminating) = (is_ready(pod), is_terminating(pod));
    let ready = service["spec"]["publishNotReadyAddresses"] == true || serving && !terminating;
    let node = text(pod, "/spec/nodeName").unwrap_or_default();
    let of_node = objects.get(&Key::new(Kind::Node, "", &node));
    let zone =
        of_node.and_then(|node| node["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str());
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": key.namespace, "name": key.name,
            "uid": pod["metadata"]["uid"]},
    });
    if let Some(zone) = zone {
        endpoint["zone"] = zone.into();
    }
    if let Some(hostname) = pod["spec"].get("hostname")
        && pod["spec"]["subdomain"] == service["metadata"]["name"]
    {
        endpoint["hostname"] = hostname.clone();
    }
    let distribution = service["spec"]["trafficDistribution"].as_str().filter(|_| ready);
    if let (Some(_), Some(zone)) = (distribution, zone) {
        endpoint["hints"]["forZones"] = json!([{"name": zone}]);
    }
    if distribution == Some("PreferSameNode") {
        endpoint["hints"]["forNodes"] = json!([{"name": node}]);
    }
    endpoint
}

/// A slice that `owner`, a Service or the endpoints that were given to it, is the reason for.
fn slice(
    owner_key: &Key,
    owner: &Value,
    name: &str,
    family: &str,
    ports: &[Value],
    endpoints: &[Value],
) -> Value {
    let manager = if owner_key.kind == Kind::Service { OF_PODS } else { OF_ENDPOINTS };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": owner_key.namespace,
            "labels": {SERVICE: owner_key.name, MANAGER: manager},
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": owner_key.kind.as_str(),
                "name": owner_key.name,
                "uid": owner["metadata"]["uid"],
                "controller": true,
            }],
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn put(objects: &mut Objects, kind: Kind, name: &str, mut object: Value) {
        object["metadata"]["name"] = name.into();
        objects.insert(Key::new(kind, "default", name), Arc::new(object));
    }

    fn service(objects: &mut Objects, name: &str, ports: Value) {
        let spec =
            json!({"selector": {"app": "web"}, "ipFamilies": ["IPv4", "IPv6"], "ports": ports});
        put(objects, Kind::Service, name, json!({"spec": spec, "metadata": {"uid": "s"}}));
    }

    fn pod(objects: &mut Objects, name: &str, ip: &str, http: u16, ready: &str) {
        let pod = json!({
            "metadata": {"labels": {"app": "web"}, "uid": name},
            "spec": {"nodeName": "n1",
                "containers": [{"ports": [{"name": "http", "containerPort": http}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready}]},
        });
        put(objects, Kind::Pod, name, pod);
    }

    fn take(objects: &mut Objects, changes: Vec<(Key, Option<Value>)>) {
        for (key, change) in changes {
            match change {
                Some(slice) => drop(objects.insert(key, Arc::new(slice))),
                None => drop(objects.remove(&key)),
            }
        }
    }

    /// Each slice in a line.
    fn shown(objects: &Objects) -> Vec<String> {
        let slices = objects.iter().filter(|(key, _)| key.kind == Kind::EndpointSlice);
        let line = |(key, slice): (&Key, &Arc<Value>)| {
            let ports = slice["ports"].as_array().unwrap().iter();
            let ports: Vec<_> = ports.map(|port| port["port"].to_string()).collect();
            let endpoints = slice["endpoints"].as_array().unwrap().iter().map(|endpoint| {
                let is = |name: &str| endpoint["conditions"][name] == true;
                let flags = [("ready", 'r'), ("serving", 's'), ("terminating", 't')];
                let flags: String =
                    flags.iter().filter(|(name, _)| is(name)).map(|(_, flag)| flag).collect();
                format!(" {}={flags}", endpoint["addresses"][0].as_str().unwrap())
            });
            format!("{}:{}{}", key.name, ports.join(","), endpoints.collect::<String>())
        };
        slices.map(line).collect()
    }

    #[test]
    fn slices_follow_services_and_pods() {
        let mut objects = Objects::new();
        service(&mut objects, "web", json!([{"port": 80, "targetPort": "http"}]));
        pod(&mut objects, "a", "10.0.0.1", 8080, "True");
        pod(&mut objects, "b", "10.0.0.2", 8080, "False");
        pod(&mut objects, "c", "10.0.0.3", 9090, "True");
        let changes = plan(&objects);
        take(&mut objects, changes);
        let all = [
            "web-ipv4-0:8080 10.0.0.1=rs 10.0.0.2=",
            "web-ipv4-1:9090 10.0.0.3=rs",
            // Nobody has an address of that family.
            "web-ipv6-0:",
        ];
        assert_eq!(shown(&objects), all);
        assert_eq!(plan(&objects), []);

        // One that ends serves as long as it is ready; one that has ended is no endpoint.
        let change = |objects: &mut Objects, name: &str, pointer: [&str; 2], value: &str| {
            let pod = objects.get_mut(&Key::new(Kind::Pod, "default", name)).unwrap();
            Arc::make_mut(pod)[pointer[0]][pointer[1]] = value.into();
        };
        change(&mut objects, "a", ["metadata", "deletionTimestamp"], "soon");
        change(&mut objects, "c", ["status", "phase"], "Failed");
        let changes = plan(&objects);
        take(&mut objects, changes);
        assert_eq!(shown(&objects), ["web-ipv4-0:8080 10.0.0.1=st 10.0.0.2=", "web-ipv6-0:"]);

        // Somebody else's stays.
        put(&mut objects, Kind::EndpointSlice, "z", json!({"ports": [], "endpoints": []}));
        objects.remove(&Key::new(Kind::Service, "default", "web"));
        let changes = plan(&objects);
        take(&mut objects, changes);
        assert_eq!(shown(&objects), ["z:"]);
    }

    #[test]
    fn pods_have_their_hostnames_in_the_service_that_is_their_subdomain() {
        let mut objects = Objects::new();
        service(&mut objects, "web", json!([{"port": 80}]));
        pod(&mut objects, "a", "10.0.0.1", 80, "True");
        let key = Key::new(Kind::Pod, "default", "a");
        for (subdomain, expected) in [("web", json!("a-0")), ("other", Value::Null)] {
            let spec = &mut Arc::make_mut(objects.get_mut(&key).unwrap())["spec"];
            (spec["hostname"], spec["subdomain"]) = ("a-0".into(), subdomain.into());
            let changes = plan(&objects);
            take(&mut objects, changes);
            let slice = &objects[&Key::new(Kind::EndpointSlice, "default", "web-ipv4-0")];
            assert_eq!(slice["endpoints"][0]["hostname"], expected, "{subdomain}");
        }
    }

    #[test]
    fn endpoints_of_the_older_kind_are_mirrored_where_no_pods_are_selected() {
        let mut objects = Objects::new();
        let given = json!({"metadata": {"uid": "e"}, "subsets": [{
            "addresses": [{"ip": "192.0.2.1", "nodeName": "n1"}, {"ip": "2001:db8::1"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"name": "", "port": 5432, "protocol": "TCP"}]}]});
        put(&mut objects, Kind::Endpoints, "db", given.clone());
        put(&mut objects, Kind::Endpoints, "web", given);
        assert_eq!(plan(&objects), [], "of no Service");
        put(&mut objects, Kind::Service, "db", json!({"spec": {"ipFamilies": ["IPv4"]}}));
        service(&mut objects, "web", json!([{"port": 80}]));
        let changes = plan(&objects);
        take(&mut objects, changes);
        let all = [
            "db-mirror-ipv4-0:5432 192.0.2.1=r 192.0.2.2=",
            "db-mirror-ipv6-0:5432 2001:db8::1=r",
            "web-ipv4-0:",
            "web-ipv6-0:",
        ];
        assert_eq!(shown(&objects), all);
        assert_eq!(plan(&objects), []);
    }

    #[test]
    fn who_is_published_unready_is_ready_and_many_are_in_several_slices() {
        let mut objects = Objects::new();
        service(&mut objects, "web", json!([{"port": 80}]));
        let key = Key::new(Kind::Service, "default", "web");
        let spec = &mut Arc::make_mut(objects.get_mut(&key).unwrap())["spec"];
        spec["publishNotReadyAddresses"] = true.into();
        spec["ipFamilies"] = json!(["IPv4"]);
        for number in 0..=MOST {
            pod(&mut objects, &format!("p{number}"), &format!("10.0.1.{number}"), 80, "False");
        }
        let changes = plan(&objects);
        let counts: Vec<_> = changes
            .iter()
            .map(|(_, slice)| slice.as_ref().unwrap()["endpoints"].as_array().unwrap().len())
            .collect();
        assert_eq!(counts, [MOST, 1]);
        let first = &changes[0].1.as_ref().unwrap()["endpoints"][0];
        assert_eq!(
            first["conditions"],
            json!({"ready": true, "serving": false, "terminating": false})
        );
    }
}
