//! Endpoints as another release writes them, in its agent's answers or in the agent's file: a reader takes
//! what it knows, and leaves out the rest. Each shape is that of the type beside it, which is strict, as
//! it is part of requests; the compiler holds the two against each other.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use crate::{Bandwidth, Endpoint, HostPort, Protocol, Rate};

/// An endpoint of any release.
pub(crate) fn endpoint<'de, D: Deserializer<'de>>(from: D) -> Result<Endpoint, D::Error> {
    EndpointShape::deserialize(from)
}

#[derive(Deserialize)]
#[serde(remote = "Endpoint", rename_all = "camelCase")]
struct EndpointShape {
    container_id: String,
    interface: String,
    #[serde(default)]
    pod_namespace: String,
    #[serde(default)]
    pod_name: String,
    #[serde(default)]
    pod_uid: String,
    host_interface: String,
    host_ifindex: u32,
    host_mac: [u8; 6],
    pod_mac: [u8; 6],
    addresses: Vec<IpAddr>,
    #[serde(default, deserialize_with = "host_ports")]
    host_ports: Vec<HostPort>,
    #[serde(default, with = "BandwidthShape")]
    bandwidth: Bandwidth,
    #[serde(default)]
    netns_cookie: Option<u64>,
    #[serde(default)]
    netns: String,
}

#[derive(Deserialize)]
#[serde(remote = "HostPort", rename_all = "camelCase")]
struct HostPortShape {
    host_port: u16,
    container_port: u16,
    protocol: Protocol,
    #[serde(default)]
    host_ip: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(remote = "Bandwidth", rename_all = "camelCase")]
struct BandwidthShape {
    #[serde(default, deserialize_with = "rate")]
    ingress: Option<Rate>,
    #[serde(default, deserialize_with = "rate")]
    egress: Option<Rate>,
}

#[derive(Deserialize)]
#[serde(remote = "Rate", rename_all = "camelCase")]
struct RateShape {
    rate: u64,
    burst: u64,
}

fn host_ports<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<HostPort>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(with = "HostPortShape")] HostPort);
    let all = Vec::<One>::deserialize(from)?;
    Ok(all.into_iter().map(|One(port)| port).collect())
}

fn rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Rate>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(with = "RateShape")] Rate);
    let one = Option::<One>::deserialize(from)?;
    Ok(one.map(|One(rate)| rate))
}
