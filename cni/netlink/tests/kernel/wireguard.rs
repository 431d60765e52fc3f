use fairway_netlink::{DeviceChange, NetNs, Netlink, PeerChange, PrivateKey, WireGuard};
use ipnet::IpNet;

use crate::netns;

/// A device of a node, where the kernel has any; elsewhere what it says instead is looked at.
fn device(netns: &NetNs) -> Option<(Netlink, u32, WireGuard)> {
    let mut node = Netlink::open_in(netns).expect("a socket");
    match (node.create_wireguard("wg0", Some(1440)), WireGuard::open_in(netns)) {
        (Ok(link), Ok(wireguard)) => {
            assert_eq!((link.kind.as_deref(), link.mtu), (Some("wireguard"), 1440));
            assert_eq!(link.mac, None);
            Some((node, link.index, wireguard))
        }
        (Err(no_link), Err(no_family)) => {
            assert_eq!(no_link.errno(), Some(libc::EOPNOTSUPP), "{no_link:?}");
            assert!(no_family.is_not_found(), "{no_family:?}");
            eprintln!("NOT RUN: this kernel has no WireGuard");
            None
        }
        other => panic!("one without the other: {other:?}"),
    }
}

/// RFC 7748, 6.1: Alice's and Bob's keys.
const ALICE: [u8; 32] = [
    0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
    0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
];
const ALICE_PUBLIC: [u8; 32] = [
    0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a,
    0x0d, 0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
];

fn peer(number: u8, allowed: Vec<IpNet>) -> PeerChange {
    PeerChange::Set {
        public_key: [number; 32],
        endpoint: Some(([192, 0, 2, number], 51820).into()),
        keepalive: 25,
        allowed,
    }
}

#[test]
fn a_device_gets_its_key_and_shows_the_public_one() {
    let Some(netns) = netns() else { return };
    let Some((_node, index, mut wireguard)) = device(&netns) else { return };
    assert_eq!(wireguard.device(index).unwrap().unwrap().public_key, None);
    let key = PrivateKey(ALICE);
    let change = DeviceChange {
        private_key: Some(&key),
        listen_port: Some(51821),
        fwmark: Some(7),
        ..DeviceChange::default()
    };
    wireguard.configure(index, &change).unwrap();
    let shown = wireguard.device(index).unwrap().unwrap();
    assert_eq!(shown.public_key, Some(ALICE_PUBLIC));
    assert_eq!((shown.index, shown.listen_port, shown.fwmark), (index, 51821, 7));
    assert_eq!(wireguard.device(index + 1000).unwrap(), None);
}

#[test]
fn peers_come_change_and_go() {
    let Some(netns) = netns() else { return };
    let Some((_node, index, mut wireguard)) = device(&netns) else { return };
    // More than one message each way.
    let many: Vec<IpNet> = (0..400).map(|n| format!("fd00:{n:x}::/64").parse().unwrap()).collect();
    let net = |number: u8| vec![IpNet::new([10, 244, number, 0].into(), 24).unwrap()];
    let mut peers: Vec<PeerChange> = (1..200).map(|number| peer(number, net(number))).collect();
    peers.push(peer(200, many.clone()));
    let change = DeviceChange { replace_peers: true, peers: &peers, ..DeviceChange::default() };
    wireguard.configure(index, &change).unwrap();
    let shown = wireguard.device(index).unwrap().unwrap();
    assert_eq!(shown.peers.len(), 200);
    let find = |shown: &fairway_netlink::WireGuardDevice, number: u8| {
        shown.peers.iter().find(|peer| peer.public_key == [number; 32]).cloned()
    };
    let mut allowed = find(&shown, 200).unwrap().allowed;
    allowed.sort();
    let mut expected = many;
    expected.sort();
    assert_eq!(allowed, expected);
    let seven = find(&shown, 7).unwrap();
    assert_eq!(seven.endpoint, Some(([192, 0, 2, 7], 51820).into()));
    assert_eq!((seven.keepalive, &seven.allowed), (25, &net(7)));

    // One goes, one takes over another's range; the others are not touched.
    let peers = [PeerChange::Remove([8; 32]), PeerChange::Remove([250; 32]), peer(9, net(10))];
    wireguard.configure(index, &DeviceChange { peers: &peers, ..DeviceChange::default() }).unwrap();
    let shown = wireguard.device(index).unwrap().unwrap();
    assert_eq!(shown.peers.len(), 199);
    assert_eq!(find(&shown, 8), None);
    assert_eq!(find(&shown, 9).unwrap().allowed, net(10));
    assert_eq!(find(&shown, 10).unwrap().allowed, []);
    assert_eq!(find(&shown, 7), Some(seven));
}
