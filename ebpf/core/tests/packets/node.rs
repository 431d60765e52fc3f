//! A node to send packets through: its tables, and the places where packets enter it.
//!
//! ```text
//!          ┌ POD, OTHER_POD
//!   NODE ──┤ uplink ─┬─ CLIENT, OUTSIDE and everything else that is not of the cluster
//!          │         ├─ NEIGHBOUR, a node whose pods (DIRECT_POD) are routed plainly
//!          └ overlay ── PEER, a node that is behind the tunnel as its pods (REMOTE_POD) are
//! ```

use fairway_abi::{DropReason, Pod, PodRange, Route, TunnelEnd, V4, V6, peer, route};
use fairway_core::memory::{Frame, Memory};
use fairway_core::packet::Ports;
use fairway_core::{Verdict, path};
use zerocopy::native_endian::U32;

use crate::frame::{Builder, End, Family, Transport, assert_checksums, ends};

pub(crate) const POD: [u8; 4] = [10, 244, 1, 2];
pub(crate) const OTHER_POD: [u8; 4] = [10, 244, 1, 3];
pub(crate) const REMOTE_POD: [u8; 4] = [10, 244, 2, 2];
pub(crate) const DIRECT_POD: [u8; 4] = [10, 244, 3, 2];
pub(crate) const VIP: [u8; 4] = [10, 96, 0, 10];
pub(crate) const OTHER_VIP: [u8; 4] = [10, 96, 0, 11];
pub(crate) const NODE: [u8; 4] = [192, 0, 2, 1];
pub(crate) const PEER: [u8; 4] = [192, 0, 2, 2];
pub(crate) const CLIENT: [u8; 4] = [198, 51, 100, 7];
pub(crate) const OUTSIDE: [u8; 4] = [203, 0, 113, 5];
/// The source that translated packets take through the tunnel.
pub(crate) const OVERLAY: [u8; 4] = [10, 244, 1, 0];
/// [`PEER`] as the overlay names it.
pub(crate) const PEER_UNDERLAY: V6 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 2];
/// Its end of the overlay.
pub(crate) const PEER_END: TunnelEnd = TunnelEnd::at(PEER_UNDERLAY);

/// Ports that source translation may take here.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 1024..=29_999;

/// A node and what is around it.
#[derive(Clone)]
pub(crate) struct Node<A: Family> {
    pub(crate) tables: Memory<A>,
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Sent<A> {
    pub(crate) verdict: Verdict,
    pub(crate) frame: Frame,
    pub(crate) before: Frame,
    family: std::marker::PhantomData<A>,
}

impl<A: Family> Node<A> {
    pub(crate) fn new() -> Self {
        let mut tables = Memory::<A>::default();
        tables.config.masquerade4 = V4::at(NODE);
        tables.config.masquerade6 = V6::at(NODE);
        tables.config.first_port = *PORTS.start();
        tables.config.last_port = *PORTS.end();
        for address in [POD, OTHER_POD] {
            tables.pods.insert(A::at(address), pod(address));
            tables.interfaces.insert(pod(address).ifindex, A::at(address).interface());
        }
        tables.pod_range = range(OVERLAY);
        let mut node = Self { tables };
        node.route(NODE, 32, route::HOST, None, [0; 16]);
        node.route([10, 244, 1, 0], 24, route::HOST, None, [0; 16]);
        node.route([10, 244, 2, 0], 24, route::TUNNEL, Some(OVERLAY), PEER_UNDERLAY);
        node.route([10, 244, 3, 0], 24, route::DIRECT, Some(NODE), [0; 16]);
        node.route(PEER, 32, route::TUNNEL_NODE, Some(OVERLAY), PEER_UNDERLAY);
        node
    }

    pub(crate) fn route(
        &mut self,
        prefix: [u8; 4],
        length: u32,
        kind: u32,
        source: Option<[u8; 4]>,
        underlay: V6,
    ) {
        let source = source.map_or(A::UNSPECIFIED, A::at);
        let flags = match kind {
            route::DIRECT if length == 32 => peer::KNOWN | peer::NODE,
            route::TUNNEL | route::DIRECT => peer::KNOWN | peer::TAKES_CLIENTS,
            route::TUNNEL_NODE => peer::KNOWN | peer::NODE,
            _ => 0,
        };
        let peer = TunnelEnd { flags: [flags, 0], ..TunnelEnd::at(underlay) };
        let found = Route { kind: U32::new(kind), source, peer };
        self.tables.routes.push((A::ADDRESS_BITS - 32 + length, A::at(prefix), found));
    }

    /// Adds a Service, to be reached from inside and outside.
    pub(crate) fn service(
        &mut self,
        frontend: ([u8; 4], u16),
        protocol: u8,
        to: &[([u8; 4], u16)],
    ) {
        let endpoints: Vec<_> = to.iter().map(|(address, port)| (A::at(*address), *port)).collect();
        self.tables.service(A::at(frontend.0), frontend.1, protocol, &endpoints);
    }

    /// [`POD`] or [`OTHER_POD`], whoever the source says, sends a packet.
    pub(crate) fn pod_sends(&self, packet: &Builder<A>) -> Sent<A> {
        self.enter(packet, |source| self.tables.pods[&source].ifindex)
    }

    /// The pod behind this interface sends a packet.
    pub(crate) fn interface_brings(&self, packet: &Builder<A>, ifindex: u32) -> Sent<A> {
        self.enter(packet, |_| ifindex)
    }

    fn enter(&self, packet: &Builder<A>, ifindex: impl FnOnce(A) -> u32) -> Sent<A> {
        let before = packet.frame();
        let ifindex = ifindex(ends::<A>(&before).0.0);
        Sent::check(before, |frame| path::from_pod(frame, &self.tables, ifindex))
    }

    /// A packet arrives from the network.
    pub(crate) fn uplink_brings(&self, packet: &Builder<A>) -> Sent<A> {
        Sent::check(packet.frame(), |frame| path::from_uplink(frame, &self.tables))
    }

    /// A packet arrives through the tunnel from [`PEER`].
    pub(crate) fn overlay_brings(&self, packet: &Builder<A>) -> Sent<A> {
        self.tunnel_brings(packet, &PEER_UNDERLAY)
    }

    /// A packet arrives through the tunnel.
    pub(crate) fn tunnel_brings(&self, packet: &Builder<A>, peer: &V6) -> Sent<A> {
        Sent::check(packet.frame(), |frame| path::from_overlay(frame, &self.tables, peer))
    }

    /// The host's stack sends a packet.
    pub(crate) fn host_sends(&self, packet: &Builder<A>) -> Sent<A> {
        Sent::check(packet.frame(), |frame| path::from_host(frame, &self.tables))
    }

    /// The host's stack delivers a packet to a pod; of a socket of the node, or something it forwards.
    pub(crate) fn delivers(&self, packet: &Builder<A>, by_socket: bool) -> Sent<A> {
        Sent::check(packet.frame(), |frame| path::to_pod(frame, &self.tables, by_socket))
    }

    /// The host's stack sends a packet on the overlay device.
    pub(crate) fn host_sends_to_overlay(&self, packet: &Builder<A>) -> Sent<A> {
        Sent::check(packet.frame(), |frame| path::to_overlay(frame, &self.tables))
    }

    /// How many records there are: without an answer yet, and established.
    pub(crate) fn flows(&self) -> (usize, usize) {
        (self.tables.half_open.borrow().len(), self.tables.established.borrow().len())
    }
}

impl<A: Family> Sent<A> {
    /// Runs `path` on a frame; what is not dropped must carry valid checksums, of fragments in the
    /// network header alone.
    fn check(before: Frame, path: impl FnOnce(&mut Frame) -> Verdict) -> Self {
        let mut frame = before.clone();
        let verdict = path(&mut frame);
        let fragment = A::parse(&frame).is_ok_and(|headers| headers.ports == Ports::Fragment);
        if fragment {
            assert!(A::header_is_valid(&frame.bytes), "network header checksum of {frame:02x?}");
        } else if !matches!(verdict, Verdict::Drop(_)) {
            assert_checksums::<A>(&frame);
        }
        Self { verdict, frame, before, family: std::marker::PhantomData }
    }

    pub(crate) fn ends(&self) -> (End<A>, End<A>) {
        ends(&self.frame)
    }

    /// What its receiver answers.
    pub(crate) fn answer(&self, transport: Transport) -> Builder<A> {
        Builder::answer(&self.frame, transport)
    }

    /// Asserts where the packet goes, from whom and to whom.
    #[track_caller]
    pub(crate) fn goes(&self, verdict: Verdict, source: End<A>, destination: End<A>) -> &Self {
        assert_eq!((self.verdict, self.ends()), (verdict, (source, destination)));
        self
    }

    /// Asserts where the packet goes, from whom and to whom as it came.
    #[track_caller]
    pub(crate) fn goes_unchanged(&self, verdict: Verdict) -> &Self {
        let (source, destination) = ends(&self.before);
        self.goes(verdict, source, destination)
    }

    /// Asserts that the packet is dropped for this reason.
    #[track_caller]
    pub(crate) fn is_dropped(&self, reason: DropReason) {
        assert_eq!(self.verdict, Verdict::Drop(reason));
    }

    /// Asserts that the packet is left to the host's stack as it came.
    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!((self.verdict, &self.frame), (Verdict::Pass, &self.before));
    }
}

/// The range of 256 addresses that begins with this one.
pub(crate) fn range<A: Family>(first: [u8; 4]) -> PodRange<A> {
    let mut mask = vec![0xff; size_of::<A>()];
    mask.pop();
    mask.push(0);
    let mask = A::read_from_bytes(&mask).expect("as long as an address");
    PodRange { network: A::at(first), mask }
}

/// The verdict that hands a packet to a pod.
pub(crate) fn to_pod(address: [u8; 4]) -> Verdict {
    Verdict::Pod(pod(address))
}

fn pod([.., last]: [u8; 4]) -> Pod {
    Pod {
        ifindex: u32::from(last) + 10,
        mac: [0x02, 0, 0, 0, 1, last],
        host_mac: [0x02, 0, 0, 0, 2, last],
        flags: 0,
    }
}
