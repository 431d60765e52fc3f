//! Flows that were open before their pod was restricted.
//!
//! A pod that nothing restricts has no records of its flows but of those that are translated. Once it is
//! restricted, the first packet without a record opens a flow, and may well be an answer. So what its sockets
//! are connected to gets records before the first rule holds for it; they are asked about with their next
//! packet, as any flow is that is older than the policies.
//!
//! Who began is not written on a socket. One whose port somebody listens on in the same place was called, and all
//! others have called.
//!
//! What the node itself has opened is known by its sockets, never by its address: the host's stack may forward
//! under that for others. Such a flow is the node's own from its first record on, also if the pod sends next.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use fairway_abi::{Flow, FlowKey, flow};
use fairway_compile::Family;
use fairway_core::flow::opposite_of;
use fairway_netlink::{NetNs, OpenSocket, Sockets};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::adoption::Adopted;

/// Lists the sockets in a pod's network namespace; none if that is gone.
pub(crate) fn sockets(netns: &Path) -> Result<Vec<OpenSocket>> {
    let Ok(namespace) = NetNs::open(netns) else { return Ok(Vec::new()) };
    Ok(namespace.run(own_sockets)??)
}

/// Lists the sockets in the calling thread's network namespace.
pub(crate) fn own_sockets() -> Result<Vec<OpenSocket>, fairway_netlink::Error> {
    Sockets::open()?.all()
}

/// The node itself, as its pods meet it.
pub(crate) struct Host<'a> {
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) sockets: &'a [OpenSocket],
}

impl Host<'_> {
    /// Whether it may have called from here by a socket that knows no peer: then a pod's alone tells.
    fn calls_from(&self, protocol: u8, end: SocketAddr) -> bool {
        self.addresses.contains(&end.ip())
            && self.sockets.iter().any(|socket| {
                let at = socket.local;
                (socket.protocol, socket.peer, at.port()) == (protocol, None, end.port())
                    && (at.ip().is_unspecified() || at.ip() == end.ip())
            })
    }
}

/// The flows of one family that the sockets of a pod, or the node's own towards it, have open by these addresses
/// of the pod.
pub(crate) fn flows<A: Family>(
    sockets: &[OpenSocket],
    addresses: &BTreeSet<IpAddr>,
    host: &Host<'_>,
    now: u32,
) -> Vec<Adopted<A>> {
    let of_host = ends(host.sockets).filter_map(|ends| {
        let is_pods = |end: SocketAddr| addresses.contains(&end.ip());
        let by_host = if ends.is_called { 0 } else { flow::BY_HOST };
        is_pods(ends.peer()).then(|| record(&ends, by_host, now)).flatten()
    });
    let mut flows: Vec<Adopted<A>> = of_host.collect();
    let known: BTreeSet<FlowKey<A>> = flows.iter().map(|flow| flow.key).collect();
    let of_pod = ends(sockets).filter_map(|ends| {
        let calls = ends.is_called && host.calls_from(ends.socket.protocol, ends.client);
        let by_host = if calls { flow::BY_HOST } else { 0 };
        let is_pods = addresses.contains(&ends.socket.local.ip());
        is_pods.then(|| record(&ends, by_host, now)).flatten()
    });
    flows.extend(of_pod.filter(|flow: &Adopted<A>| !known.contains(&flow.key)));
    flows
}

/// A socket with a peer, and who of both has called whom.
struct Ends<'a> {
    socket: &'a OpenSocket,
    is_called: bool,
    client: SocketAddr,
    server: SocketAddr,
}

impl Ends<'_> {
    fn peer(&self) -> SocketAddr {
        if self.is_called { self.client } else { self.server }
    }
}

/// The connected ones of the sockets of one place.
fn ends(sockets: &[OpenSocket]) -> impl Iterator<Item = Ends<'_>> {
    let waits = |socket: &&OpenSocket| socket.peer.is_none();
    let served: BTreeSet<(u8, u16)> =
        sockets.iter().filter(waits).map(|socket| (socket.protocol, socket.local.port())).collect();
    sockets.iter().filter_map(move |socket| {
        let (local, peer) = (socket.local, socket.peer?);
        let is_called = served.contains(&(socket.protocol, local.port()));
        let (client, server) = if is_called { (peer, local) } else { (local, peer) };
        Some(Ends { socket, is_called, client, server })
    })
}

fn record<A: Family>(ends: &Ends<'_>, state: u32, now: u32) -> Option<Adopted<A>> {
    let Ends { socket, client, server, .. } = *ends;
    let key = FlowKey {
        source: A::of(client.ip())?,
        destination: A::of(server.ip())?,
        source_port: U16::new(client.port()),
        destination_port: U16::new(server.port()),
        protocol: socket.protocol,
        ..FlowKey::BLANK
    };
    let original = Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        last_seen: U32::new(now),
        state: U32::new(state),
        ..Flow::BLANK
    };
    let answers = opposite_of(&key, &original);
    let reply = Flow {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        last_seen: U32::new(now),
        state: U32::new(state | flow::REPLY),
        ..Flow::BLANK
    };
    let answered = socket.is_answered;
    Some(Adopted { key, original, answers, reply, answered, to_host: false })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use fairway_abi::{V4, protocol};

    use super::*;

    fn socket(protocol: u8, local: &str, peer: Option<&str>) -> OpenSocket {
        let peer = peer.map(|peer| peer.parse().unwrap());
        OpenSocket { protocol, local: local.parse().unwrap(), peer, is_answered: peer.is_some() }
    }

    #[test]
    fn who_listens_was_called_and_others_have_called() {
        let pod = BTreeSet::from([IpAddr::from([10, 0, 0, 2])]);
        let sockets = [
            socket(protocol::TCP, "0.0.0.0:80", None),
            socket(protocol::TCP, "10.0.0.2:80", Some("10.0.0.9:5000")),
            socket(protocol::TCP, "10.0.0.2:80", Some("192.0.2.1:5001")),
            socket(protocol::TCP, "10.0.0.2:4000", Some("10.0.0.9:443")),
            socket(protocol::TCP, "127.0.0.1:80", Some("127.0.0.1:5002")),
            socket(protocol::UDP, "10.0.0.2:80", Some("10.0.0.9:53")),
            socket(protocol::UDP, "[fd00::2]:80", Some("[fd00::9]:53")),
        ];
        let found = found(&sockets, &pod, &NOBODY);
        let expected = [
            (protocol::TCP, [10, 0, 0, 9], (5000, 80), false),
            // The node's address says nothing of who is behind it.
            (protocol::TCP, [192, 0, 2, 1], (5001, 80), false),
            (protocol::TCP, [10, 0, 0, 2], (4000, 443), false),
            (protocol::UDP, [10, 0, 0, 2], (80, 53), false),
        ];
        assert_eq!(found, expected);
    }

    /// Also by what the pod knows no peer of, and where its sockets are not seen.
    #[test]
    fn what_the_nodes_sockets_have_opened_is_its_own() {
        let pod = BTreeSet::from([IpAddr::from([10, 0, 0, 2])]);
        let sockets = [
            socket(protocol::TCP, "0.0.0.0:80", None),
            socket(protocol::TCP, "10.0.0.2:80", Some("192.0.2.1:5001")),
            socket(protocol::TCP, "10.0.0.2:80", Some("192.0.2.1:5002")),
            socket(protocol::TCP, "10.0.0.2:4000", Some("192.0.2.1:10250")),
            socket(protocol::UDP, "0.0.0.0:53", None),
            socket(protocol::UDP, "10.0.0.2:53", Some("192.0.2.1:6000")),
            socket(protocol::UDP, "10.0.0.2:53", Some("192.0.2.1:6001")),
        ];
        let of_node = [
            socket(protocol::TCP, "192.0.2.1:5001", Some("10.0.0.2:80")),
            socket(protocol::TCP, "192.0.2.1:5003", Some("10.0.0.3:80")),
            socket(protocol::TCP, "0.0.0.0:10250", None),
            socket(protocol::TCP, "192.0.2.1:10250", Some("10.0.0.2:4000")),
            socket(protocol::UDP, "0.0.0.0:6000", None),
            socket(protocol::UDP, "192.0.2.1:7000", Some("10.0.0.2:53")),
        ];
        let node = [[192, 0, 2, 1].into()];
        let host = Host { addresses: &node, sockets: &of_node };
        let (own, by_node) = ([10, 0, 0, 2], [192, 0, 2, 1]);
        let of_host = [
            (protocol::TCP, by_node, (5001, 80), true),
            (protocol::TCP, own, (4000, 10250), false),
            (protocol::UDP, by_node, (7000, 53), true),
        ];
        assert_eq!(found(&[], &pod, &host), of_host);
        let of_pod = [
            // Somebody else's, behind the node's address.
            (protocol::TCP, by_node, (5002, 80), false),
            (protocol::UDP, by_node, (6000, 53), true),
            (protocol::UDP, by_node, (6001, 53), false),
        ];
        assert_eq!(found(&sockets, &pod, &host), [&of_host[..], &of_pod].concat());
    }

    const NOBODY: Host<'_> = Host { addresses: &[], sockets: &[] };

    /// Protocol, client, ports, and whether the node is the client.
    type Found = (u8, V4, (u16, u16), bool);

    fn found(sockets: &[OpenSocket], pod: &BTreeSet<IpAddr>, host: &Host<'_>) -> Vec<Found> {
        flows::<V4>(sockets, pod, host, 7)
            .iter()
            .map(|found| {
                assert_eq!(opposite_of(&found.answers, &found.reply), found.key);
                assert_eq!(opposite_of(&found.key, &found.original), found.answers);
                let by_host = found.original.state.get() & flow::BY_HOST != 0;
                assert_eq!(found.reply.state.get() & flow::BY_HOST != 0, by_host);
                let ports = (found.key.source_port.get(), found.key.destination_port.get());
                (found.key.protocol, found.key.source, ports, by_host)
            })
            .collect()
    }

    #[test]
    fn the_kernel_tells_of_both_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("an address");
        let client = TcpStream::connect(server).expect("a connection");
        let local = client.local_addr().expect("an address");
        let (_accepted, _) = listener.accept().expect("a client");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let unconnected = udp.local_addr().expect("an address");
        let caller = UdpSocket::bind("127.0.0.1:0").expect("a port");
        caller.connect(unconnected).expect("a peer");
        let calling = caller.local_addr().expect("an address");
        let all = sockets(Path::new("/proc/self/ns/net")).expect("sockets");
        let tcp = |local: SocketAddr, peer: Option<SocketAddr>| OpenSocket {
            protocol: protocol::TCP,
            local,
            peer,
            is_answered: peer.is_some(),
        };
        let udp = |local, peer| OpenSocket { protocol: protocol::UDP, ..tcp(local, peer) };
        for wanted in [
            tcp(server, None),
            tcp(local, Some(server)),
            tcp(server, Some(local)),
            udp(unconnected, None),
            udp(calling, Some(unconnected)),
        ] {
            assert!(all.contains(&wanted), "{wanted:?}");
        }
        let addresses = BTreeSet::from([server.ip()]);
        let flows = flows::<V4>(&all, &addresses, &NOBODY, 0);
        let opened = flows.iter().filter(|flow| flow.key.destination_port.get() == server.port());
        let opened: Vec<_> = opened.map(|flow| flow.key.source_port.get()).collect();
        assert!(opened.contains(&local.port()), "{opened:?}");
    }
}
