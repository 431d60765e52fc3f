//! `runtimeConfig.portMappings`: ports of the node that lead to the pod, as the conventions of CNI
//! define them for the reference plugin `portmap`.

use std::net::IpAddr;

use fairway_cni_protocol::{HostPort, Protocol};
use serde_json::{Map, Value};

use crate::config::wrong;
use crate::failure::Failure;

/// Where the list is, for error messages.
const KEY: &str = "runtimeConfig.portMappings";

/// The ports asked for. An entry whose host port is 0 asks for none, which is how Kubernetes spells
/// it; some runtimes leave such entries out, and others do not.
pub(crate) fn parse(value: &Value) -> Result<Vec<HostPort>, Failure> {
    let entries = value.as_array().ok_or_else(|| wrong(KEY, "expected a list", value))?;
    let mut ports: Vec<HostPort> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let key = format!("{KEY}[{index}]");
        let fields = entry.as_object().ok_or_else(|| wrong(&key, "expected an object", entry))?;
        let Some(port) = parse_entry(&key, fields)? else { continue };
        match ports.iter().find(|earlier| earlier.overlaps(&port)) {
            Some(earlier) if *earlier == port => {}
            Some(earlier) => {
                let problem = format!("already leads to port {}", earlier.container_port);
                return Err(wrong(&format!("{key}.hostPort"), &problem, &port.to_string().into()));
            }
            None => ports.push(port),
        }
    }
    Ok(ports)
}

fn parse_entry(key: &str, fields: &Map<String, Value>) -> Result<Option<HostPort>, Failure> {
    let host_port = port(key, "hostPort", fields)?;
    if host_port == 0 {
        return Ok(None);
    }
    let container_port = port(key, "containerPort", fields)?;
    if container_port == 0 {
        let found = fields.get("containerPort").unwrap_or(&Value::Null);
        let problem = "expected a number from 1 to 65535";
        return Err(wrong(&format!("{key}.containerPort"), problem, found));
    }
    Ok(Some(HostPort {
        host_port,
        container_port,
        protocol: protocol(key, fields)?,
        host_ip: host_ip(key, fields)?,
    }))
}

/// An absent port is 0.
fn port(key: &str, name: &str, fields: &Map<String, Value>) -> Result<u16, Failure> {
    let value = fields.get(name).filter(|value| !value.is_null());
    let Some(value) = value else { return Ok(0) };
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| wrong(&format!("{key}.{name}"), "expected a port number", value))
}

fn protocol(key: &str, fields: &Map<String, Value>) -> Result<Protocol, Failure> {
    let Some(value) = fields.get("protocol").filter(|value| !value.is_null()) else {
        return Ok(Protocol::Tcp);
    };
    match value.as_str().map(str::to_ascii_lowercase).as_deref() {
        Some("tcp" | "") => Ok(Protocol::Tcp),
        Some("udp") => Ok(Protocol::Udp),
        Some("sctp") => Ok(Protocol::Sctp),
        _ => Err(wrong(&format!("{key}.protocol"), "expected tcp, udp or sctp", value)),
    }
}

fn host_ip(key: &str, fields: &Map<String, Value>) -> Result<Option<IpAddr>, Failure> {
    let value = fields.get("hostIP").filter(|value| !value.is_null());
    let Some(value) = value.filter(|value| *value != "") else { return Ok(None) };
    let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let usable = address.filter(|address| !address.is_multicast());
    let problem = "expected an IP address of the node";
    usable.map(Some).ok_or_else(|| wrong(&format!("{key}.hostIP"), problem, value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(value: &Value) -> Vec<String> {
        let ports = parse(value).unwrap();
        ports.iter().map(|port| format!("{port} to {}", port.container_port)).collect()
    }

    #[test]
    fn as_runtimes_send_them() {
        assert_eq!(
            shown(&json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
                {"hostPort": 53, "containerPort": 53, "protocol": "Udp", "hostIP": "::"},
                {"hostPort": 0, "containerPort": 9090, "protocol": "TCP"},
                {"hostPort": 132, "containerPort": 132, "protocol": "sctp", "hostIP": null},
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 81, "containerPort": 80, "more": {}},
            ])),
            [
                "*:8080/tcp to 80",
                "192.0.2.1:53/udp to 5353",
                "[::]:53/udp to 53",
                "*:132/sctp to 132",
                "*:81/tcp to 80"
            ]
        );
        assert!(shown(&json!([])).is_empty());
    }

    #[test]
    fn each_mistake_names_its_key() {
        let check = |value: Value, texts: &[&str]| {
            let failure = parse(&value).unwrap_err();
            for text in texts {
                assert!(failure.message.contains(text), "{text:?} in {:?}", failure.message);
            }
        };
        let good = json!({"hostPort": 80, "containerPort": 80});
        let with = |key: &str, value: Value| {
            let mut bad = good.clone();
            bad[key] = value;
            json!([good.clone(), bad])
        };
        check(json!({}), &["runtimeConfig.portMappings", "a list"]);
        check(json!([8080]), &["portMappings[0]", "found 8080"]);
        check(with("hostPort", json!(65536)), &["portMappings[1].hostPort", "65536"]);
        check(with("hostPort", json!("81")), &["portMappings[1].hostPort", "\"81\""]);
        check(with("hostPort", json!(-1)), &["portMappings[1].hostPort", "-1"]);
        check(with("containerPort", json!(0)), &["portMappings[1].containerPort", "found 0"]);
        check(
            with("containerPort", json!(81)),
            &["portMappings[1].hostPort", "already", "*:80/tcp"],
        );
        check(with("protocol", json!("icmp")), &["portMappings[1].protocol", "icmp"]);
        check(with("hostIP", json!("node")), &["portMappings[1].hostIP", "\"node\""]);
        check(with("hostIP", json!("224.0.0.1")), &["portMappings[1].hostIP"]);
    }
}
