//! ADD: check all, reserve addresses, make the veth pair, have the agent put the pod in force, and
//! then let packets pass.

use std::net::IpAddr;

use fairway_cni_protocol::{Endpoint, NodeConfig};
use fairway_netlink::{Link, Mac, NetNs, Netlink, sysctl};
use ipnet::IpNet;

use crate::adopt;
use crate::agent::{Agent, BRIEF, PATIENT};
use crate::call::ContainerCall;
use crate::config::Config;
use crate::failure::{Code, Failure, chain};
use crate::ipam::{Reservation, Store};
use crate::pool::{self, Pool};
use crate::result::{AddResult, Interface, Ip, Route, RouteDetails};
use crate::undo::Undo;
use crate::wiring::{self, Wire};

/// Connects the container. On failure nothing of it is left.
pub(crate) fn add(call: &ContainerCall, config: &Config) -> Result<AddResult, Failure> {
    let previous = config.previous_result()?;
    if let Some(previous) = previous.as_ref().filter(|p| adopt::is_another_plugins(p, call)) {
        return adopt::add(call, config, previous.clone());
    }
    let plan = Plan::check(call, config, previous)?;
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
    /// Speaks to the kernel there.
    in_pod: Netlink,
    /// An ADD was killed before: its interface is to be made anew.
    half_made: bool,
    previous: Option<AddResult>,
    agent: Agent,
    pools: Vec<Pool>,
    mtu: u32,
}

impl<'a> Plan<'a> {
    fn check(
        call: &'a ContainerCall,
        config: &'a Config,
        previous: Option<AddResult>,
    ) -> Result<Self, Failure> {
        let pod = call.open_netns()?;
        let mac = config.mac.or(call.pod.mac);
        let wire = Wire::of(&call.attachment).with_pod_mac(mac);
        let mut in_pod = Netlink::open_in(&pod)?;
        let half_made = half_made(call, config, &wire, &mut in_pod)?;
        let mut agent = Agent::connect(config.socket.as_deref(), PATIENT)?;
        let node = agent.node_config()?;
        let mtu = config.mtu.unwrap_or(node.mtu);
        let pools = check_node(call, config, &node, mtu)?;
        Ok(Self { call, config, wire, pod, in_pod, half_made, previous, agent, pools, mtu })
    }

    fn carry_out(mut self, undo: &mut Undo) -> Result<AddResult, Failure> {
        let mut node = Netlink::open()?;
        if self.half_made {
            self.wire.delete(&mut node)?;
            self.agent.delete(&self.call.attachment)?;
        }
        let addresses = self.reserve(&mut node, undo)?;
        let host = self.create_veth(&mut node, undo)?;
        let destinations = wiring::destinations(self.config.routes.as_deref(), &addresses);
        self.wire.set_up_pod(&self.pod, &mut self.in_pod, &addresses, &destinations)?;
        // While the node's end is down nothing passes, so no packet is ever without its programs.
        let (call, config, wire) = (self.call, self.config, &self.wire);
        self.agent.add(endpoint(call, config, wire, host.index, &addresses, &self.in_pod))?;
        self.set_up_host(&mut node, host.index, &addresses)?;
        let made = self.describe(&addresses, &destinations);
        Ok(match self.previous {
            Some(previous) => made.after(previous),
            None => made,
        })
    }

    fn reserve(&mut self, node: &mut Netlink, undo: &mut Undo) -> Result<Vec<IpAddr>, Failure> {
        let store = Store::new(&self.config.data_dir);
        let owner = self.config.owner(&self.call.attachment);
        let routed = wiring::routed(node)?;
        let known = self.agent.known_addresses(&self.call.pod.uid)?;
        let Reservation { addresses, fresh } =
            store.reserve(&owner, &self.pools, &routed, &known)?;
        undo.push(move || store.give_back(&owner, &fresh).map_err(Failure::from).map_err(text));
        Ok(addresses)
    }

    fn create_veth(&self, node: &mut Netlink, undo: &mut Undo) -> Result<Link, Failure> {
        let made = self.wire.create(node, &self.pod, self.mtu);
        // Whatever else went wrong, it may have been made; one that was there is somebody else's.
        if !made.as_ref().is_err_and(fairway_netlink::Error::is_exists) {
            let wire = self.wire.clone();
            let (socket, attachment) = (self.config.socket.clone(), self.call.attachment.clone());
            undo.push(move || {
                let deleted = Netlink::open().and_then(|mut node| wire.delete(&mut node));
                // Only now may it detach its programs. An agent that does not know the endpoint
                // says yes, and one that has gone away learns from the vanished interface.
                if let Ok(mut agent) = Agent::connect(socket.as_deref(), BRIEF) {
                    let _ = agent.delete(&attachment);
                }
                deleted.map_err(Failure::from).map_err(text)
            });
        }
        Ok(made?)
    }

    fn set_up_host(
        &mut self,
        node: &mut Netlink,
        device: u32,
        addresses: &[IpAddr],
    ) -> Result<(), Failure> {
        self.wire.set_up_host(node, device, addresses).map_err(|error| {
            if error.is_exists() {
                // The next call sees that route, and chooses another address.
                let message = format!("an address was taken meanwhile: {}", chain(&error));
                Failure::new(Code::TryAgain, message)
            } else {
                error.into()
            }
        })?;
        if !self.wire.wait_until_running(node, &mut self.in_pod, addresses)? {
            let message = format!("{:?} is up but carries no packets", self.wire.host_interface);
            return Err(Failure::new(Code::TryAgain, message));
        }
        Ok(self.wire.announce(&mut self.in_pod, addresses)?)
    }

    fn describe(&self, addresses: &[IpAddr], destinations: &[IpNet]) -> AddResult {
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
        let route = |destination: &IpNet| Route {
            dst: *destination,
            gw: Some(wiring::gateway(destination.addr())),
            more: RouteDetails::default(),
        };
        AddResult {
            interfaces: vec![host, pod],
            ips: addresses.iter().map(ip).collect(),
            routes: destinations.iter().map(route).collect(),
            dns: self.config.dns.clone(),
        }
    }
}

/// The pod as the agent is to know it; `in_pod` speaks to the kernel there.
pub(crate) fn endpoint(
    call: &ContainerCall,
    config: &Config,
    wire: &Wire,
    host_ifindex: u32,
    addresses: &[IpAddr],
    in_pod: &Netlink,
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
        host_ports: config.host_ports.clone(),
        bandwidth: config.bandwidth,
        netns_cookie: in_pod.netns_cookie(),
        netns: call.netns.clone(),
    }
}

pub(crate) fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn text(failure: Failure) -> String {
    failure.message
}

/// Whether an ADD of this very attachment was killed before the pod was complete, so that this one
/// may begin anew. An error if there is a complete pod, or an interface that is somebody else's.
///
/// The node's end comes up and gets its routes last, so an interface of ours without them has never
/// carried a pod's packets to their end. One that has them may be a running pod's, and is left to DEL.
fn half_made(
    call: &ContainerCall,
    config: &Config,
    wire: &Wire,
    pod: &mut Netlink,
) -> Result<bool, Failure> {
    let interface = &call.attachment.interface;
    let exists = |what: String| Err(Failure::new(Code::InterfaceExists, what));
    let in_pod = pod.link(interface)?;
    let mut node = Netlink::open()?;
    let on_node = node.link(&wire.host_interface)?;
    let peers = |a: &Link, b: &Link| a.peer_index == Some(b.index) && b.peer_index == Some(a.index);
    match (in_pod, &on_node) {
        (Some(in_pod), on_node) if !on_node.as_ref().is_some_and(|link| peers(link, &in_pod)) => {
            return exists(format!(
                "{interface:?} already exists in {} (if an earlier ADD made it, DEL comes first)",
                call.netns
            ));
        }
        (_, None) => return Ok(false),
        (_, Some(_)) => {}
    }
    let reserved = Store::new(&config.data_dir).held_by(&config.owner(&call.attachment))?;
    let complete = reserved.is_empty()
        || on_node.is_some_and(|link| link.up)
            && wiring::leads_to(&mut node, &wire.host_interface, &reserved)?;
    if complete {
        return exists(format!(
            "{interface:?} already exists: an earlier ADD of this container and interface made it \
             and {:?} on the node, so DEL comes first",
            wire.host_interface
        ));
    }
    Ok(true)
}

/// What the pod's addresses come from. What no pod could be made of is refused before anything is
/// made.
fn check_node(
    call: &ContainerCall,
    config: &Config,
    node: &NodeConfig,
    mtu: u32,
) -> Result<Vec<Pool>, Failure> {
    let refused =
        |code, problem: String| Err(Failure::new(code, format!("node {:?} {problem}", node.node)));
    if node.pod_cidrs.is_empty() {
        return refused(Code::TryAgain, "has no pod CIDR yet".to_owned());
    }
    let wanted = [&config.wanted[..], &call.pod.wanted].concat();
    let pools = pool::pools(&node.pod_cidrs, config.ranges.as_ref(), &wanted)?;
    let ipv6 = pools.iter().any(|pool| !pool.is_ipv4());
    if ipv6 && mtu < 1280 {
        let problem = format!("has an IPv6 pod CIDR, which takes an MTU of 1280, not {mtu}");
        return refused(Code::InvalidConfig, problem);
    }
    if ipv6 && sysctl::get("net/ipv6/conf/all/forwarding").is_err() {
        let problem = "has an IPv6 pod CIDR, but its kernel has IPv6 disabled";
        return refused(Code::Kernel, problem.to_owned());
    }
    Ok(pools)
}
