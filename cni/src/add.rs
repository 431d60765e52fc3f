//! ADD: check all, reserve addresses, make the veth pair, have the agent put the pod in force.

use std::net::IpAddr;

use fairway_cni_protocol::{Endpoint, NodeConfig};
use fairway_netlink::{Link, Mac, NetNs, Netlink, sysctl};
use ipnet::IpNet;

use crate::agent::{Agent, BRIEF, PATIENT};
use crate::call::ContainerCall;
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::ipam::Store;
use crate::result::{AddResult, Interface, Ip, Route, RouteDetails};
use crate::undo::Undo;
use crate::wiring::{self, Wire};

/// Connects the container. On failure nothing of it is left.
pub(crate) fn add(call: &ContainerCall, config: &Config) -> Result<AddResult, Failure> {
    let plan = Plan::check(call, config)?;
    let mut undo = Undo::default();
    match plan.carry_out(&mut undo) {
        Ok(result) => {
            undo.disarm();
            Ok(result)
        }
        Err(failure) => Err(failure.with_details(undo.roll_back())),
    }
}

/// All that is known before the first change; who holds one has passed every check.
struct Plan<'a> {
    call: &'a ContainerCall,
    config: &'a Config,
    wire: Wire,
    pod: NetNs,
    previous: Option<AddResult>,
    agent: Agent,
    node: NodeConfig,
    mtu: u32,
}

impl<'a> Plan<'a> {
    fn check(call: &'a ContainerCall, config: &'a Config) -> Result<Self, Failure> {
        let previous = config.previous_result()?;
        let pod = call.open_netns()?;
        let interface = &call.attachment.interface;
        if Netlink::open_in(&pod)?.link(interface)?.is_some() {
            return Err(Failure::new(
                Code::InterfaceExists,
                format!(
                    "{interface:?} already exists in {} (if an earlier ADD made it, DEL comes first)",
                    call.netns
                ),
            ));
        }
        let mut agent = Agent::connect(config.socket.as_deref(), PATIENT)?;
        let node = agent.node_config()?;
        let mtu = config.mtu.unwrap_or(node.mtu);
        check_node(&node, mtu)?;
        let wire = Wire::of(&call.attachment);
        Ok(Self { call, config, wire, pod, previous, agent, node, mtu })
    }

    fn carry_out(mut self, undo: &mut Undo) -> Result<AddResult, Failure> {
        let addresses = self.reserve(undo)?;
        let mut node = Netlink::open()?;
        let host = self.create_veth(&mut node, undo)?;
        self.wire.set_up_pod(&self.pod, &addresses)?;
        self.wire.set_up_host(&mut node, host.index, &addresses)?;
        self.put_in_force(endpoint(self.call, &self.wire, host.index, &addresses), undo)?;
        let made = self.describe(&addresses);
        Ok(match self.previous {
            Some(previous) => made.after(previous),
            None => made,
        })
    }

    fn reserve(&self, undo: &mut Undo) -> Result<Vec<IpAddr>, Failure> {
        let store = || Store::new(&self.config.data_dir, &self.config.network);
        // Registered before: a reservation that fails half-way is given back as well.
        let (giving_back, owner) = (store(), self.call.attachment.clone());
        undo.push(move || giving_back.release(&owner).map_err(Failure::from).map_err(text));
        Ok(store().reserve(&self.call.attachment, &self.node.pod_cidrs)?)
    }

    fn create_veth(&self, node: &mut Netlink, undo: &mut Undo) -> Result<Link, Failure> {
        let wire = self.wire.clone();
        undo.push(move || {
            let deleted = Netlink::open().and_then(|mut node| wire.delete(&mut node));
            deleted.map_err(Failure::from).map_err(text)
        });
        Ok(self.wire.create(node, &self.pod, self.mtu)?)
    }

    fn put_in_force(&mut self, endpoint: Endpoint, undo: &mut Undo) -> Result<(), Failure> {
        let (socket, attachment) = (self.config.socket.clone(), self.call.attachment.clone());
        undo.push(move || -> Result<(), String> {
            // An agent that has gone away in the middle learns from the vanished interface.
            if let Ok(mut agent) = Agent::connect(socket.as_deref(), BRIEF) {
                let _ = agent.delete(&attachment);
            }
            Ok(())
        });
        Ok(self.agent.add(endpoint)?)
    }

    fn describe(&self, addresses: &[IpAddr]) -> AddResult {
        let interface = |name: &str, mac: Mac| Interface {
            name: name.to_owned(),
            mac: Some(format_mac(mac)),
            mtu: Some(self.mtu),
            ..Interface::default()
        };
        let host = interface(&self.wire.host_interface, self.wire.host_mac);
        let pod = Interface {
            sandbox: Some(self.call.netns.clone()),
            ..interface(&self.wire.pod_interface, self.wire.pod_mac)
        };
        let ip = |address: &IpAddr| Ip {
            version: None,
            address: IpNet::from(*address),
            gateway: Some(wiring::gateway(*address)),
            interface: Some(1),
        };
        let route = |address: &IpAddr| Route {
            dst: wiring::everywhere(*address),
            gw: Some(wiring::gateway(*address)),
            more: RouteDetails::default(),
        };
        AddResult {
            interfaces: vec![host, pod],
            ips: addresses.iter().map(ip).collect(),
            routes: addresses.iter().map(route).collect(),
            dns: self.config.dns.clone(),
        }
    }
}

/// The pod as the agent is to know it.
pub(crate) fn endpoint(
    call: &ContainerCall,
    wire: &Wire,
    host_ifindex: u32,
    addresses: &[IpAddr],
) -> Endpoint {
    Endpoint {
        container_id: call.attachment.container_id.clone(),
        interface: call.attachment.interface.clone(),
        pod_namespace: call.pod.namespace.clone(),
        pod_name: call.pod.name.clone(),
        pod_uid: call.pod.uid.clone(),
        host_interface: wire.host_interface.clone(),
        host_ifindex,
        host_mac: wire.host_mac,
        pod_mac: wire.pod_mac,
        addresses: addresses.to_vec(),
    }
}

pub(crate) fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn text(failure: Failure) -> String {
    failure.message
}

/// What no pod could be made of is refused before anything is made.
fn check_node(node: &NodeConfig, mtu: u32) -> Result<(), Failure> {
    let ranges = &node.pod_cidrs;
    let of_v4 = ranges.iter().filter(|range| range.addr().is_ipv4()).count();
    let of_v6 = ranges.len() - of_v4;
    let (code, problem) = if ranges.is_empty() {
        (Code::TryAgain, "has no pod CIDR yet".to_owned())
    } else if of_v4 > 1 || of_v6 > 1 {
        (Code::AgentRefused, format!("has several pod CIDRs of one family: {ranges:?}"))
    } else if mtu < 1280 && of_v6 > 0 {
        (
            Code::InvalidConfig,
            format!("has an IPv6 pod CIDR, which takes an MTU of 1280, not {mtu}"),
        )
    } else if of_v6 > 0 && sysctl::get("net/ipv6/conf/all/forwarding").is_err() {
        (Code::Kernel, "has an IPv6 pod CIDR, but its kernel has IPv6 disabled".to_owned())
    } else {
        return Ok(());
    };
    Err(Failure::new(code, format!("node {:?} {problem}", node.node)))
}
