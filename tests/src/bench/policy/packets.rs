//! What a packet to a restricted pod takes in the program that asks, run by hand over the tables of the node's agent.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;

use anyhow::{Context, Result, ensure};
use fairway_netlink::{NetNs, Netlink};
use fairway_proxy::dataplane::Dataplane;

use crate::bench::bed::Bed;
use crate::bench::packet::frame::{ACK, SYN, ports_at, segment};
use crate::bench::packet::runs::{Kind, Packet, Runs};
use crate::bench::stats::Series;
use crate::topology::NodePlan;

/// Packets in a row.
const PACKETS: u16 = 2_000;
/// The first ports of rounds, which take turns: together they are more flows than the table of those that nobody has
/// answered keeps, so each round finds its own gone.
const FIRST_PORTS: [u16; 20] = {
    let mut ports = [20_000; 20];
    let mut round = 1;
    while round < ports.len() {
        ports[round] = ports[round - 1] + PACKETS;
        round += 1;
    }
    ports
};
/// What the program answers where it hands the packet to a pod (`TC_ACT_REDIRECT`).
const REDIRECT: i32 = 7;

/// Nanoseconds of a packet beyond those of a program that does nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nanos {
    /// The first one of a flow: where the pod is restricted, a record is made, and rules are asked.
    pub first: f64,
    /// A later one, of which the record says that it is allowed.
    pub later: f64,
}

/// Measures packets from a pod to another one of the node.
pub(super) fn measure(
    bed: &Bed,
    node: &NodePlan,
    client: Ipv4Addr,
    server: SocketAddr,
    rounds: u32,
) -> Result<Nanos> {
    let bpffs = bed.cluster.names.node_bpffs(&node.name);
    NetNs::open(bed.host(node).netns)?.run(|| {
        let mut dataplane = Dataplane::load(&bpffs)?;
        let program = dataplane.ebpf().program("pod_ingress").context("find the program")?;
        let program = program.fd()?.as_fd();
        let route = Netlink::open()?.route_to(client.into())?;
        let device = route.with_context(|| format!("find the way to {client}"))?.device;
        let nanos = |flags, step| -> Result<f64> {
            let (mut own, mut idle) = (Series::default(), Series::default());
            for (_, port) in (0..rounds).zip(FIRST_PORTS.into_iter().cycle()) {
                bed.check()?;
                let frame = segment((client, port).into(), server, flags)?;
                let source_port = ports_at(false);
                let packet = Packet { frame, source_port, device, step, tunnel: None };
                let runs = Runs::new(Kind::Tc, packet)?;
                let ran = runs.run(Some(program), PACKETS.into())?;
                ensure!(ran.action == REDIRECT, "the program answers {}: not let in", ran.action);
                own.push(ran.nanos.into());
                idle.push(runs.run(None, PACKETS.into())?.nanos.into());
            }
            Ok(own.median() - idle.median())
        };
        Ok(Nanos { first: nanos(SYN, 1)?, later: nanos(ACK, 0)? })
    })?
}
