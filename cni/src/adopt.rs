//! An interface that an earlier plugin of the chain has made for this very attachment, as `ptp`
//! does: it is registered as it is, so that Services and policies hold for it. Nothing of it is
//! made, changed or removed here but what the node's end filters by reverse path.
//!
//! What the programs at the node's end take for granted has to be so: it is the one way to the pod,
//! and the node routes the pod's addresses to it. A port of a bridge is neither, and is refused.

use std::net::IpAddr;

use fairway_netlink::{Link, NetNs, Netlink};

use crate::agent::{Agent, PATIENT};
use crate::call::ContainerCall;
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::result::AddResult;
use crate::wiring::{Wire, leads_to};

/// The interface and its addresses, as they are.
pub(crate) struct Adopted {
    pub(crate) wire: Wire,
    /// Of the node's end.
    pub(crate) host_ifindex: u32,
    pub(crate) addresses: Vec<IpAddr>,
    /// Speaks to the kernel in the pod.
    pub(crate) in_pod: Netlink,
}

/// Whether the previous result says that another plugin has made the interface of this call.
pub(crate) fn is_another_plugins(previous: &AddResult, call: &ContainerCall) -> bool {
    let ours = Wire::of(&call.attachment).host_interface;
    previous.interface_of(call).is_some()
        && !previous.interfaces.iter().any(|i| i.name == ours && !i.is_in_sandbox())
}

/// Registers the interface; the previous result is the answer.
pub(crate) fn add(
    call: &ContainerCall,
    config: &Config,
    previous: AddResult,
) -> Result<AddResult, Failure> {
    let pod = call.open_netns()?;
    let adopted = Adopted::find(call, &pod, &previous)?;
    let mut agent = Agent::connect(config.socket.as_deref(), PATIENT)?;
    let node = agent.node_config()?;
    for address in &adopted.addresses {
        if !node.pod_cidrs.iter().any(|range| range.contains(address)) {
            return Err(unusable(format!(
                "its address {address} is in none of the pod CIDRs of node {:?}, {:?}, and no other \
                 node would find it",
                node.node, node.pod_cidrs
            ))
            .about(&subject(call)));
        }
    }
    adopted.wire.accept_any_source(&adopted.addresses)?;
    agent.add(crate::add::endpoint(
        call,
        config,
        &adopted.wire,
        adopted.host_ifindex,
        &adopted.addresses,
        &adopted.in_pod,
    ))?;
    Ok(previous)
}

impl Adopted {
    /// Finds both ends and holds what the previous result says of them against what they are.
    pub(crate) fn find(
        call: &ContainerCall,
        pod: &NetNs,
        previous: &AddResult,
    ) -> Result<Self, Failure> {
        Self::find_both_ends(call, pod, previous).map_err(|failure| failure.about(&subject(call)))
    }

    fn find_both_ends(
        call: &ContainerCall,
        pod: &NetNs,
        previous: &AddResult,
    ) -> Result<Self, Failure> {
        let mut pod = Netlink::open_in(pod)?;
        let Some(pod_end) = pod.link(&call.attachment.interface)? else {
            return Err(unusable(format!("it is not in {}", call.netns)));
        };
        let mut node = Netlink::open()?;
        let node_end = match pod_end.peer_index {
            Some(index) if is_veth(&pod_end) => node.link_by_index(index)?,
            _ => None,
        };
        let node_end =
            node_end.filter(|link| is_veth(link) && link.peer_index == Some(pod_end.index));
        let Some(node_end) = node_end else {
            let kind = pod_end.kind.as_deref().unwrap_or("no virtual device");
            return Err(unusable(format!(
                "it is no veth whose other end is on the node, but {kind}"
            )));
        };
        if let Some(master) = node_end.master {
            let master =
                node.link_by_index(master)?.map_or("another device".to_owned(), |l| l.name);
            return Err(unusable(format!(
                "its end on the node, {:?}, is a port of {master:?}, which sends packets past it; \
                 a plugin that routes (ptp) can come before this one, or none",
                node_end.name
            )));
        }
        let addresses = previous.addresses_of(call);
        check_addresses(&addresses)?;
        let present = pod.addresses(pod_end.index)?;
        for address in &addresses {
            if !present.iter().any(|found| found.net.addr() == *address) {
                return Err(unusable(format!("it does not have the address {address}")));
            }
        }
        if !leads_to(&mut node, &node_end.name, &addresses)? {
            return Err(unusable(format!(
                "the node does not route {addresses:?} to {:?}, its end there",
                node_end.name
            )));
        }
        let no_mac = || unusable("it has no Ethernet address");
        let wire = Wire {
            host_mac: node_end.mac.ok_or_else(no_mac)?,
            host_interface: node_end.name,
            pod_mac: pod_end.mac.ok_or_else(no_mac)?,
            pod_interface: pod_end.name,
        };
        Ok(Self { wire, host_ifindex: node_end.index, addresses, in_pod: pod })
    }
}

fn check_addresses(addresses: &[IpAddr]) -> Result<(), Failure> {
    let of_v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if addresses.is_empty() || of_v4 > 1 || addresses.len() - of_v4 > 1 {
        let problem = "it has to have one address, or one of each family, and has";
        return Err(unusable(format!("{problem} {addresses:?}")));
    }
    Ok(())
}

fn is_veth(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth")
}

fn subject(call: &ContainerCall) -> String {
    format!(
        "key \"prevResult\" has {:?}, made by a plugin before this one",
        call.attachment.interface
    )
}

fn unusable(problem: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidConfig, problem)
}
