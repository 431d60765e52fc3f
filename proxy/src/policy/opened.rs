//! Flows that were open before their pod was restricted.
//!
//! A pod that nothing restricts has no records of its flows but of those that are translated. Once it is
//! restricted, the first packet without a record opens a flow, and may well be an answer. So what its sockets
//! are connected to gets records before the first rule holds for it; they are asked about with their next
//! packet, as any flow is that is older than the policies.
//!
//! Who began is not written on a socket. One whose port somebody listens on in the pod was called, and all
//! others have called.

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
    let found = namespace.run(|| Sockets::open().and_then(|mut sockets| sockets.all()));
    Ok(found??)
}

/// The flows of one family that a pod's sockets have open by these addresses of it. Those that the node
/// itself has opened, by one of its own addresses, stay its own.
pub(crate) fn flows<A: Family>(
    sockets: &[OpenSocket],
    addresses: &BTreeSet<IpAddr>,
    node: &[IpAddr],
    now: u32,
) -> Vec<Adopted<A>> {
    let waits = |socket: &&OpenSocket| socket.peer.is_none();
    let served: BTreeSet<(u8, u16)> =
        sockets.iter().filter(waits).map(|socket| (socket.protocol, socket.local.port())).collect();
    let flow = |socket: &OpenSocket| {
        let peer = socket.peer?;
        if !addresses.contains(&socket.local.ip()) {
            return None;
        }
        let is_called = served.contains(&(socket.protocol, socket.local.port()));
        let (client, server) = if is_called { (peer, socket.local) } else { (socket.local, peer) };
        let by_host = is_called && node.contains(&client.ip());
        record(client, server, socket, if by_host { flow::BY_HOST } else { 0 }, now)
    };
    sockets.iter().filter_map(flow).collect()
}

fn record<A: Family>(
    client: SocketAddr,
    server: SocketAddr,
    socket: &OpenSocket,
    state: u32,
    now: u32,
) -> Option<Adopted<A>> {
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
        let node = [[192, 0, 2, 1].into()];
        let found: Vec<_> = flows::<V4>(&sockets, &pod, &node, 7)
            .iter()
            .map(|found| {
                assert_eq!(opposite_of(&found.answers, &found.reply), found.key);
                assert_eq!(opposite_of(&found.key, &found.original), found.answers);
                let by_host = found.original.state.get() & flow::BY_HOST != 0;
                let ports = (found.key.source_port.get(), found.key.destination_port.get());
                (found.key.protocol, found.key.source, ports, by_host)
            })
            .collect();
        let expected = [
            (protocol::TCP, [10, 0, 0, 9], (5000, 80), false),
            (protocol::TCP, [192, 0, 2, 1], (5001, 80), true),
            (protocol::TCP, [10, 0, 0, 2], (4000, 443), false),
            (protocol::UDP, [10, 0, 0, 2], (80, 53), false),
        ];
        assert_eq!(found, expected);
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
        let flows = flows::<V4>(&all, &addresses, &[], 0);
        let opened = flows.iter().filter(|flow| flow.key.destination_port.get() == server.port());
        let opened: Vec<_> = opened.map(|flow| flow.key.source_port.get()).collect();
        assert!(opened.contains(&local.port()), "{opened:?}");
    }
}
