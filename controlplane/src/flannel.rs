//! What flannel leaves on Node objects: where its tunnels end.
//!
//! ```yaml
//! flannel.alpha.coreos.com/backend-type: vxlan
//! flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"ce:a2:f5:01:02:03"}'
//! flannel.alpha.coreos.com/public-ip: 192.0.2.7
//! flannel.alpha.coreos.com/backend-v6-data: '{"VNI":1,"VtepMAC":"1e:5b:11:01:02:03"}'
//! flannel.alpha.coreos.com/public-ipv6: 2001:db8::7
//! ```
//!
//! A node that has become ours since keeps these annotations, and they do no harm: our overlay device
//! takes any MAC address, and flannel's nodes go on to send to the one they read here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairway_model::Vtep;
use ipnet::IpNet;
use serde::Deserialize;

use crate::kubernetes::{FieldError, Node, NodeAnnotations};

/// The ends of the tunnels that flannel made on a node.
pub(crate) fn vteps(annotations: &NodeAnnotations) -> impl Iterator<Item = Vtep> {
    ends(annotations).filter_map(Result::ok)
}

/// The annotations by which nodes that run flannel find this one, with pods in these ranges, if it has none of
/// flannel's own: an end at its own address for each family that it has both of.
pub fn missing(name: &str, node: &Node, ranges: &[IpNet]) -> BTreeMap<String, String> {
    let key = |short: &str| format!("flannel.alpha.coreos.com/{short}");
    let mut all = BTreeMap::new();
    if node.metadata.annotations.flannel_type.is_some() {
        return all;
    }
    for (is_family, data, address) in [
        (IpAddr::is_ipv4 as fn(&IpAddr) -> bool, "backend-data", "public-ip"),
        (IpAddr::is_ipv6, "backend-v6-data", "public-ipv6"),
    ] {
        let has_range = ranges.iter().any(|range| is_family(&range.addr()));
        if let Some(own) = node.internal_ips().find(is_family).filter(|_| has_range) {
            let device = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, some_mac(name));
            all.insert(key(data), device);
            all.insert(key(address), own.to_string());
        }
    }
    if !all.is_empty() {
        all.insert(key("backend-type"), "vxlan".to_owned());
        all.insert(key("kube-subnet-manager"), "true".to_owned());
    }
    all
}

/// An address for the node's overlay device, which takes any; always the same, as flannel's nodes keep it.
fn some_mac(name: &str) -> String {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    // Of those that nobody makes devices with.
    [0x0a, a, b, c, d, e].map(|byte| format!("{byte:02x}")).join(":")
}

/// What is wrong with the annotations.
pub(crate) fn check(annotations: &NodeAnnotations) -> impl Iterator<Item = FieldError> {
    ends(annotations).filter_map(Result::err)
}

fn ends(annotations: &NodeAnnotations) -> impl Iterator<Item = Result<Vtep, FieldError>> {
    let NodeAnnotations { flannel_type, flannel_v4, flannel_v4_address, .. } = annotations;
    let NodeAnnotations { flannel_v6, flannel_v6_address, .. } = annotations;
    let is_vxlan = flannel_type.as_deref() == Some("vxlan");
    // Without the one or the other, flannel has no tunnel of that family.
    let v4 = flannel_v4.as_deref().zip(flannel_v4_address.as_deref()).map(|(data, address)| {
        end(("backend-data", data), ("public-ip", address), IpAddr::is_ipv4)
    });
    let v6 = flannel_v6.as_deref().zip(flannel_v6_address.as_deref()).map(|(data, address)| {
        end(("backend-v6-data", data), ("public-ipv6", address), IpAddr::is_ipv6)
    });
    [v4, v6].into_iter().flatten().filter_map(Result::transpose).filter(move |_| is_vxlan)
}

/// One end, from two annotations and their values; none if there is no device.
fn end(
    data: (&str, &str),
    address: (&str, &str),
    is_family: fn(&IpAddr) -> bool,
) -> Result<Option<Vtep>, FieldError> {
    let wrong = |(key, text): (&str, &str), what: &str| {
        let field = format!("metadata.annotations[\"flannel.alpha.coreos.com/{key}\"]");
        FieldError::new(field, format!("{text:?} {what}"))
    };
    let device: Option<Device> = serde_json::from_str(data.1)
        .map_err(|error| wrong(data, &format!("cannot be read: {error}")))?;
    let Some(device) = device else { return Ok(None) };
    let mac = mac(&device.mac).ok_or_else(|| wrong(data, "has no MAC address as VtepMAC"))?;
    let underlay = address.1.parse().ok().filter(is_family);
    let underlay = underlay.ok_or_else(|| wrong(address, "is no IP address of its family"))?;
    Ok(Some(Vtep { underlay, mac }))
}

#[derive(Deserialize)]
struct Device {
    #[serde(rename = "VtepMAC")]
    mac: String,
}

/// `ce:a2:f5:01:02:03`.
fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(of: &[(&str, &str)]) -> NodeAnnotations {
        let key = |short: &str| format!("flannel.alpha.coreos.com/{short}");
        let all = of.iter().map(|(short, value)| (key(short), (*value).into()));
        serde_json::from_value(serde_json::Value::Object(all.collect())).unwrap()
    }

    const DATA: &str = r#"{"VNI":1,"VtepMAC":"ce:a2:f5:01:02:03"}"#;

    #[test]
    fn each_family_has_an_end_of_its_own() {
        let both = annotations(&[
            ("backend-type", "vxlan"),
            ("backend-data", DATA),
            ("public-ip", "192.0.2.7"),
            ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"1e:5b:11:01:02:03"}"#),
            ("public-ipv6", "2001:db8::7"),
        ]);
        let vtep = |underlay: &str, mac| Vtep { underlay: underlay.parse().unwrap(), mac };
        assert_eq!(
            vteps(&both).collect::<Vec<_>>(),
            [
                vtep("192.0.2.7", [0xce, 0xa2, 0xf5, 1, 2, 3]),
                vtep("2001:db8::7", [0x1e, 0x5b, 0x11, 1, 2, 3]),
            ]
        );
        assert_eq!(check(&both).count(), 0);
    }

    #[test]
    fn other_backends_and_halves_have_no_end() {
        for annotations in [
            annotations(&[]),
            annotations(&[("backend-type", "host-gw"), ("backend-data", "null")]),
            annotations(&[("backend-type", "vxlan"), ("backend-data", DATA)]),
            annotations(&[("backend-type", "vxlan"), ("public-ip", "192.0.2.7")]),
            annotations(&[
                ("backend-type", "vxlan"),
                ("backend-data", "null"),
                ("public-ip", "192.0.2.7"),
            ]),
        ] {
            assert_eq!((vteps(&annotations).count(), check(&annotations).count()), (0, 0));
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut node: Node = serde_json::from_value(serde_json::json!({"status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.7"},
            {"type": "InternalIP", "address": "2001:db8::7"}]}}))
        .unwrap();
        let ranges = ["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        let written = missing("n1", &node, &ranges);
        let found: NodeAnnotations =
            serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
        let underlays: Vec<String> = vteps(&found).map(|vtep| vtep.underlay.to_string()).collect();
        assert_eq!((underlays, written.len()), (vec!["192.0.2.7".into(), "2001:db8::7".into()], 6));
        // Never beside what flannel wrote, and no end without pods.
        assert_eq!(missing("n1", &node, &ranges[..1]).len(), 4);
        assert!(missing("n1", &node, &[]).is_empty());
        node.metadata.annotations = found;
        assert!(missing("n1", &node, &ranges).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let key = "metadata.annotations[\"flannel.alpha.coreos.com/";
        for (data, address, field) in [
            ("{", "192.0.2.7", "backend-data"),
            (r#"{"VtepMAC":"ce:a2"}"#, "192.0.2.7", "backend-data"),
            (r#"{"VtepMAC":"ce:a2:f5:01:02:xx"}"#, "192.0.2.7", "backend-data"),
            (DATA, "2001:db8::7", "public-ip"),
            (DATA, "", "public-ip"),
        ] {
            let annotations = annotations(&[
                ("backend-type", "vxlan"),
                ("backend-data", data),
                ("public-ip", address),
            ]);
            let errors: Vec<_> = check(&annotations).collect();
            assert_eq!(vteps(&annotations).count(), 0);
            assert!(errors[0].field.starts_with(&format!("{key}{field}")), "{:?}", errors[0]);
        }
    }
}
