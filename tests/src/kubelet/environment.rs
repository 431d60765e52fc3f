//! The environment and files that a kubelet gives a container.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairway_model::{Protocol, Service};

use crate::spec::{Container, DnsConfigOption, DnsPolicy, Pod, PodSpec};

/// The domain below which Services have their names.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// A container's variables: those of Services first, so that the pod's own win.
pub(crate) fn variables(
    pod: &Pod,
    container: &Container,
    services: &[Service],
    addresses: &[IpAddr],
    host_address: IpAddr,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::from([
        ("HOSTNAME".to_owned(), hostname(pod).to_owned()),
        (
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ),
    ]);
    if pod.spec.enable_service_links.unwrap_or(true) {
        for service in services {
            service_variables(service, &mut variables);
        }
    }
    for variable in &container.env {
        let field = variable.value_from.as_ref().and_then(|source| source.field_ref.as_ref());
        let value = match (&variable.value, field) {
            (Some(value), _) => expand(value, &variables),
            (None, Some(field)) => pod_field(pod, &field.field_path, addresses, host_address),
            (None, None) => String::new(),
        };
        variables.insert(variable.name.clone(), value);
    }
    variables
}

/// `{NAME}_SERVICE_HOST` and its kin, and the older ones that look like Docker's links.
fn service_variables(service: &Service, variables: &mut BTreeMap<String, String>) {
    let (Some(address), Some(first)) = (service.cluster_ips.first(), service.ports.first()) else {
        return;
    };
    let prefix = variable_name(&service.name.name);
    let mut set = |tail: &str, value: String| variables.insert(format!("{prefix}{tail}"), value);
    let url = |port: u16, protocol: Protocol| {
        let host = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        format!("{}://{host}:{port}", protocol.to_string().to_lowercase())
    };
    set("_SERVICE_HOST", address.to_string());
    set("_SERVICE_PORT", first.port.to_string());
    set("_PORT", url(first.port, first.protocol));
    for port in &service.ports {
        if !port.name.is_empty() {
            let tail = format!("_SERVICE_PORT_{}", variable_name(&port.name));
            set(&tail, port.port.to_string());
        }
        let link = format!("_PORT_{}_{}", port.port, port.protocol);
        set(&link, url(port.port, port.protocol));
        set(&format!("{link}_PROTO"), port.protocol.to_string().to_lowercase());
        set(&format!("{link}_PORT"), port.port.to_string());
        set(&format!("{link}_ADDR"), address.to_string());
    }
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}

fn pod_field(pod: &Pod, path: &str, addresses: &[IpAddr], host_address: IpAddr) -> String {
    match path {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.nodeName" => pod.spec.node_name.clone().unwrap_or_default(),
        "status.hostIP" => host_address.to_string(),
        "status.podIP" => addresses.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => join(addresses, ","),
        _ => String::new(),
    }
}

/// Puts variables in for `$(NAME)`. An unknown name stays as it is, and `$$` is a dollar sign.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inside| inside.split_once(')'))
            && let Some(value) = variables.get(name)
        {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// What the pod calls itself.
pub(crate) fn hostname(pod: &Pod) -> &str {
    let name = pod.spec.hostname.as_deref().unwrap_or(&pod.metadata.name);
    name.get(..63).unwrap_or(name) // the kernel takes 64 bytes, DNS 63
}

/// `/etc/hosts`.
pub(crate) fn hosts_file(pod: &Pod, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "# Written by the lab's kubelet\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let hostname = hostname(pod);
    let name = match &pod.spec.subdomain {
        Some(subdomain) => {
            let namespace = &pod.metadata.namespace;
            format!("{hostname}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}\t{hostname}")
        }
        None => hostname.to_owned(),
    };
    for address in addresses {
        text += &format!("{address}\t{name}\n");
    }
    text
}

/// `/etc/resolv.conf`, where the cluster's name server is `dns` and this is the machine's own.
pub(crate) fn resolv_conf(pod: &Pod, dns: IpAddr, machine: &str) -> String {
    let PodSpec { dns_policy, dns_config, host_network, .. } = &pod.spec;
    let words = |keyword: &str| {
        let lines = machine.lines().rev().map(str::split_ascii_whitespace);
        let of = lines.filter_map(|mut line| (line.next() == Some(keyword)).then_some(line));
        of.map(|line| line.map(str::to_owned).collect::<Vec<_>>()).next().unwrap_or_default()
    };
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    let of_cluster = match dns_policy {
        DnsPolicy::ClusterFirst => !host_network,
        DnsPolicy::ClusterFirstWithHostNet => true,
        DnsPolicy::Default | DnsPolicy::None => false,
    };
    if !of_cluster && *dns_policy != DnsPolicy::None {
        let names = machine.lines().filter_map(|line| line.strip_prefix("nameserver "));
        servers.extend(names.map(|name| name.trim().to_owned()));
        searches.extend(words("search"));
        options.extend(words("options"));
    }
    if of_cluster {
        let namespace = &pod.metadata.namespace;
        let levels = [format!("{namespace}.svc."), "svc.".to_owned(), String::new()];
        searches.extend(levels.map(|level| format!("{level}{CLUSTER_DOMAIN}")));
        searches.extend(words("search"));
        servers.push(dns.to_string());
        options.push("ndots:5".to_owned());
    }
    servers.extend(dns_config.nameservers.iter().cloned());
    searches.extend(dns_config.searches.iter().cloned());
    for DnsConfigOption { name, value } in &dns_config.options {
        options.retain(|known| known.split(':').next() != Some(name.as_str()));
        options
            .push(value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
    }
    let mut text = String::new();
    for (keyword, values) in [("search", searches), ("options", options)] {
        if !values.is_empty() {
            text += &format!("{keyword} {}\n", values.join(" "));
        }
    }
    text + &servers.iter().map(|server| format!("nameserver {server}\n")).collect::<String>()
}

fn join(addresses: &[IpAddr], separator: &str) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(separator)
}

#[cfg(test)]
mod tests {
    use fairway_model::{ObjectName, ServicePort, TrafficPolicy};
    use serde_json::json;

    use super::*;

    fn service(name: &str, address: Option<&str>, ports: &[(&str, u16)]) -> Service {
        let port = |(name, port): &(&str, u16)| ServicePort {
            name: (*name).to_owned(),
            protocol: Protocol::Tcp,
            port: *port,
            node_port: None,
        };
        Service {
            name: ObjectName::new("default", name),
            cluster_ips: address.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.iter().map(port).collect(),
            internal_traffic: TrafficPolicy::Cluster,
            external_traffic: TrafficPolicy::Cluster,
            ..Service::default()
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        let metadata = json!({"name": "web-1", "namespace": "shop", "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn given(pod: &Pod, services: &[Service]) -> BTreeMap<String, String> {
        let own = ["10.244.0.2".parse().unwrap()];
        let host = "192.168.240.11".parse().unwrap();
        let mut all = variables(pod, &pod.spec.containers[0], services, &own, host);
        all.remove("PATH");
        all.remove("HOSTNAME");
        all
    }

    #[test]
    fn services_become_variables_in_both_fashions() {
        let pod = pod(json!({"containers": [{"name": "c"}]}));
        let services = [
            service("redis-master", Some("10.96.0.7"), &[("client", 6379)]),
            service("headless", None, &[("", 80)]),
        ];
        let lines: Vec<String> =
            given(&pod, &services).iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "REDIS_MASTER_PORT=tcp://10.96.0.7:6379",
                "REDIS_MASTER_PORT_6379_TCP=tcp://10.96.0.7:6379",
                "REDIS_MASTER_PORT_6379_TCP_ADDR=10.96.0.7",
                "REDIS_MASTER_PORT_6379_TCP_PORT=6379",
                "REDIS_MASTER_PORT_6379_TCP_PROTO=tcp",
                "REDIS_MASTER_SERVICE_HOST=10.96.0.7",
                "REDIS_MASTER_SERVICE_PORT=6379",
                "REDIS_MASTER_SERVICE_PORT_CLIENT=6379",
            ]
        );
    }

    #[test]
    fn service_links_can_be_refused() {
        let pod = pod(json!({"containers": [{"name": "c"}], "enableServiceLinks": false}));
        assert!(given(&pod, &[service("a", Some("10.96.0.7"), &[("", 80)])]).is_empty());
    }

    #[test]
    fn own_variables_may_use_others() {
        let pod = pod(json!({"containers": [{"name": "c", "env": [
            {"name": "URL", "value": "http://$(A_SERVICE_HOST)/$(NOPE)$$(X)$"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ]}]}));
        let all = given(&pod, &[service("a", Some("10.96.0.7"), &[("", 80)])]);
        assert_eq!(all["URL"], "http://10.96.0.7/$(NOPE)$(X)$");
        assert_eq!(all["IP"], "10.244.0.2");
    }

    #[test]
    fn files_know_the_pod() {
        let pod = pod(json!({"containers": [{"name": "c"}]}));
        let hosts = hosts_file(&pod, &["10.244.0.2".parse().unwrap()]);
        assert!(hosts.ends_with("10.244.0.2\tweb-1\n"));
    }

    #[test]
    fn names_are_asked_for_as_the_pod_says() {
        const MACHINE: &str =
            "# by hand\nnameserver 192.0.2.53\nsearch corp.example\noptions edns0\n";
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                       options ndots:5\nnameserver 10.96.0.10\n";
        let machine = "search corp.example\noptions edns0\nnameserver 192.0.2.53\n";
        let config = json!({"nameservers": ["192.0.2.9"], "searches": ["x.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        for (spec, expected) in [
            (json!({}), cluster.to_owned()),
            (json!({"hostNetwork": true}), machine.to_owned()),
            (json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster.to_owned()),
            (json!({"dnsPolicy": "Default"}), machine.to_owned()),
            (
                json!({"dnsPolicy": "None", "dnsConfig": config}),
                "search x.example\noptions ndots:2 edns0\nnameserver 192.0.2.9\n".to_owned(),
            ),
            (
                json!({"dnsConfig": config}),
                "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example x.example\n\
                 options ndots:2 edns0\nnameserver 10.96.0.10\nnameserver 192.0.2.9\n"
                    .to_owned(),
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([{"name": "c"}]);
            let dns = "10.96.0.10".parse().unwrap();
            assert_eq!(resolv_conf(&pod(spec.clone()), dns, MACHINE), expected, "{spec}");
        }
    }

    #[test]
    fn a_pod_of_a_headless_service_knows_its_whole_name() {
        let spec = json!({"containers": [{"name": "c"}], "hostname": "db-0", "subdomain": "db"});
        let hosts = hosts_file(&pod(spec), &["10.244.0.2".parse().unwrap()]);
        assert!(hosts.ends_with("10.244.0.2\tdb-0.db.shop.svc.cluster.local\tdb-0\n"), "{hosts}");
    }
}
