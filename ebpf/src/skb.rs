//! A packet buffer: access to its bytes, and the ways it can leave.
#![expect(unsafe_code, reason = "packet bytes and helpers are reached through raw pointers")]
#![expect(clippy::cast_possible_truncation, reason = "helpers take and answer C ints")]

use core::hint::black_box;
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    BPF_F_RECOMPUTE_CSUM, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, BPF_FIB_LKUP_RET_FRAG_NEEDED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_adj_room_mode::BPF_ADJ_ROOM_NET,
    bpf_check_mtu_flags::BPF_MTU_CHK_SEGS, bpf_fib_lookup as FibLookup,
    bpf_redir_neigh as Neighbour, bpf_tunnel_key as TunnelKey,
};
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_csum_diff, bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect,
    bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_head,
    bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_load_bytes,
    bpf_skb_pull_data, bpf_skb_set_tstamp, bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
};
use fairway_abi::{DropReason, TunnelEnd, V4, V6, pod, protocol};
use fairway_core::icmp::Quotable;
use fairway_core::packet::{Covers, Difference, ETHERNET, Headers, words};
use fairway_core::{Ip, Packet, Verdict, pace};
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned, transmute};

use crate::alone;
use crate::bytes::{Span, bounded_length};
use crate::family::Family;
use crate::maps::{self, Kernel, QUOTED_SIZE};

/// Drops and counts.
#[inline(always)]
pub(crate) fn refuse(reason: DropReason) -> i32 {
    maps::count(reason);
    TC_ACT_SHOT
}

/// How much of a packet's front is put in one piece if it is not: Ethernet, IP with options or
/// extension headers, TCP.
const FRONT: u32 = 128;

/// The same for an ICMP error: as far as the transport header of the packet it quotes.
pub(crate) const QUOTING: u32 = 256;

/// The `gso_size` of a packet that is a list of others, of which each is to be sent under a copy of its
/// headers (`GSO_BY_FRAGS` of Linux): what an SCTP socket sends at once.
const BY_PARTS: u32 = 0xffff;

/// A packet buffer.
pub(crate) struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    /// The packet, its headers in one piece. `headers` is what they take without options: a large
    /// packet often has no more than its headers there, and pulling its data in would cost a copy.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff, headers: u32) -> Self {
        // Without this, the compiler passes fields of the context to a function in place of the
        // context itself, and the verifier no longer knows them for packet pointers.
        let skb = black_box(skb);
        let packet = Self { skb };
        // SAFETY: reading context fields; `skb` is this program's context.
        let (length, segment) = unsafe { ((*skb).len, (*skb).gso_size) };
        let Span { start, end } = packet.span();
        let wanted = if length < headers { length } else { headers };
        // A list begins with its headers and nothing else. What is pulled to them of its first part is
        // missing where that is sent, and Linux (6.1 for one) stops for it as for a bug of its own.
        if start + wanted as usize > end && segment != BY_PARTS {
            let front = if headers < FRONT { FRONT } else { headers };
            let wanted = if length < front { length } else { front };
            // SAFETY: as above. If the kernel has no memory for it, the reads that follow find the
            // headers missing.
            unsafe { bpf_skb_pull_data(skb, wanted) };
        }
        packet
    }

    /// Puts an Ethernet header without addresses before a packet that has none; false if the kernel
    /// has no memory for it.
    #[inline(always)]
    pub(crate) fn add_ethernet(skb: *mut __sk_buff, ethertype: [u8; 2]) -> bool {
        // As in `Self::new`.
        let skb = black_box(skb);
        // SAFETY: no preconditions. The new bytes are zero.
        if unsafe { bpf_skb_change_head(skb, ETHERNET, 0) } != 0 {
            return false;
        }
        Self::new(skb, ETHERNET).store(12, ethertype).is_some()
    }

    /// Sends the packet to the device that it is leaving by, which passes its hook once more; without
    /// its Ethernet header if the device has none.
    #[inline(always)]
    pub(crate) fn send_again(&self) -> i32 {
        // SAFETY: no preconditions.
        unsafe { bpf_redirect(self.ifindex(), 0) as i32 }
    }

    /// The packet, for one who does not look into it.
    #[inline(always)]
    pub(crate) fn of(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Whether the packet stands for many that it is to be cut into.
    #[inline(always)]
    pub(crate) fn is_segmented(&self) -> bool {
        // SAFETY: reading a context field.
        unsafe { (*self.skb).gso_size != 0 }
    }

    /// The device whose hook the program runs on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        let Self { skb } = self;
        // SAFETY: reading a context field.
        unsafe { (**skb).ifindex }
    }

    /// Whether a socket of this machine sent the packet, rather than that it is forwarded: what comes in by
    /// a device, from a pod too, loses its socket there (`ip_rcv`, `ipv6_rcv`).
    #[inline(always)]
    pub(crate) fn is_of_socket(&self) -> bool {
        // SAFETY: reading a context field.
        unsafe { !(*self.skb).__bindgen_anon_2.sk.is_null() }
    }

    /// What the packet counts on the wire. How much each segment of a large one repeats is taken for
    /// headers without options.
    #[inline(always)]
    pub(crate) fn wire_bytes(&self) -> u32 {
        // SAFETY: reading context fields.
        let (length, segments, protocol) =
            unsafe { ((*self.skb).len, (*self.skb).gso_segs, (*self.skb).protocol) };
        let [first, second] = V6::ETHERTYPE;
        let v6 = u32::from(u16::from_ne_bytes([first, second]));
        let headers = if protocol == v6 { V6::HEADERS } else { V4::HEADERS };
        pace::wire_bytes(length, headers, segments)
    }

    #[inline(always)]
    fn span(&self) -> Span {
        // Read where they are used: a copy that is kept would be one of 32 bits, and no pointer for
        // the verifier.
        // SAFETY: reading context fields.
        let (start, end) = unsafe {
            let Self { skb } = *self;
            (
                ptr::read_volatile(&raw const (*skb).data),
                ptr::read_volatile(&raw const (*skb).data_end),
            )
        };
        Span { start: start as usize, end: end as usize }
    }

    /// The moment of the monotonic clock at which the packet is to depart by its sender's wish; 0: none.
    #[inline(always)]
    pub(crate) fn wish(&self) -> u64 {
        // SAFETY: reading context fields.
        let (moment, clock) = unsafe { ((*self.skb).tstamp, u32::from((*self.skb).tstamp_type)) };
        if clock == MONOTONIC { moment } else { 0 }
    }

    /// Lets the packet depart at a moment of the monotonic clock, by a device that looks at it; false if
    /// the kernel refuses, as it does for what is not IP.
    #[inline(always)]
    pub(crate) fn depart_at(&self, moment: u64) -> bool {
        // SAFETY: no preconditions.
        unsafe { bpf_skb_set_tstamp(self.skb, moment, MONOTONIC) == 0 }
    }

    /// Does what the verdict says; answers the program's return value, and in `way` the device that the
    /// packet is sent to if it is not to a pod.
    #[inline(always)]
    pub(crate) fn carry_out<A: Family>(&mut self, verdict: Verdict, way: &mut u32) -> i32 {
        match verdict {
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop(reason) => refuse(reason),
            Verdict::Pod(pod) => {
                // Handed over past the pod's veth, where a limit of what it receives is watched
                // otherwise.
                if pod.flags & pod::INGRESS_LIMITED != 0
                    && let Err(reason) = receive(self.skb, pod.ifindex)
                {
                    return refuse(reason);
                }
                let macs = [pod.mac, pod.host_mac];
                if self.store(0, macs[0]).is_none() || self.store(6, macs[1]).is_none() {
                    return refuse(DropReason::Rewrite);
                }
                // SAFETY: no preconditions; the device is looked up by its index.
                unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
            }
            Verdict::Forward => self.forward::<A>(way),
            Verdict::Tunnel(peer) => {
                if !self.address_to(&peer) {
                    return refuse(DropReason::Rewrite);
                }
                *way = maps::config().overlay_ifindex;
                // SAFETY: no preconditions.
                unsafe { bpf_redirect(*way, 0) as i32 }
            }
        }
    }

    /// Sends the packet the way the host's routes say, past the rest of its stack. What they do not
    /// cover (the node itself, an unreachable range) is the stack's to answer.
    #[inline(always)]
    fn forward<A: Family>(&self, way: &mut u32) -> i32 {
        let Some((source, destination)) = A::addresses(self) else {
            return refuse(DropReason::Malformed);
        };
        let lookup = self.look_up(source, destination, 0);
        if lookup.found { lookup.take(way) } else { TC_ACT_UNSPEC }
    }

    /// Asks the host's routes for the way of a packet between these addresses, of `length` bytes from
    /// its network header on; 0: it fits.
    #[inline(always)]
    pub(crate) fn look_up<A: Family>(&self, source: A, destination: A, length: u16) -> Lookup {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
        A::describe(&mut lookup, source, destination);
        lookup.ifindex = self.ifindex();
        lookup.__bindgen_anon_1.tot_len = length;
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the struct outlives the call and its true size is given.
        let answer = unsafe { bpf_fib_lookup(self.skb.cast(), &raw mut lookup, size, 0) };
        let found = answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS)
            || answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
        // SAFETY: the kernel wrote the MTU in place of the length.
        let mtu = unsafe { lookup.__bindgen_anon_1.mtu_result };
        let too_big = answer == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED);
        Lookup { lookup, found, exceeded: if too_big { mtu.into() } else { FITS } }
    }

    /// The MTU of a device if the packet, or a segment it will be cut into, is bigger; else [`FITS`].
    #[inline(always)]
    pub(crate) fn exceeded_mtu(skb: *mut __sk_buff, ifindex: u32) -> u32 {
        let mut mtu = 0;
        let segments = u64::from(BPF_MTU_CHK_SEGS);
        // SAFETY: `mtu` outlives the call.
        let answer = unsafe { bpf_check_mtu(skb.cast(), ifindex, &raw mut mtu, 0, segments) };
        // Below zero there is no such device, which the redirection will find out.
        if answer <= 0 {
            return FITS;
        }
        // SAFETY: reading context fields.
        let (length, segment) = unsafe { ((*skb).len, (*skb).gso_size) };
        // A device without an Ethernet header was asked about the packet's, too.
        if segment == 0 && length <= ETHERNET + mtu { FITS } else { mtu }
    }

    /// Whether no way is too narrow for the packet.
    #[inline(always)]
    pub(crate) fn is_small<A: Family>(skb: *mut __sk_buff) -> bool {
        // SAFETY: reading a context field; `skb` is this program's context.
        unsafe { (*skb).len <= ETHERNET + A::LEAST_MTU }
    }

    /// How long the packet is from its network header on, or the longest segment it will be cut into.
    /// How long the parts of a list are nobody tells but the kernel when asked for a device: 0, which
    /// fits. Their sender has made them for the way that it knows.
    #[inline(always)]
    pub(crate) fn network_length<A>(&self, headers: &Headers<A>) -> u16 {
        const TCP_OFFSET: u32 = 12;
        // SAFETY: reading context fields.
        let (length, segment) = unsafe { ((*self.skb).len, (*self.skb).gso_size) };
        let length = if segment == 0 {
            length - ETHERNET
        } else if segment == BY_PARTS {
            return 0;
        } else if headers.protocol == protocol::TCP {
            const LEAST: [u8; 2] = [5 << 4, 0];
            let [words, _] = self.load(headers.transport + TCP_OFFSET).unwrap_or(LEAST);
            headers.transport - ETHERNET + u32::from(words >> 4) * 4 + segment
        } else {
            headers.transport - ETHERNET + 8 + segment
        };
        if length > u16::MAX.into() { u16::MAX } else { length as u16 }
    }

    /// The underlay address that this packet came from, IPv4 as `::ffff:a.b.c.d`.
    #[inline(always)]
    pub(crate) fn tunnel_peer(&self) -> Option<V6> {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut key: TunnelKey = unsafe { core::mem::zeroed() };
        let size = size_of::<TunnelKey>() as u32;
        // SAFETY: the struct outlives the call and its true size is given.
        if unsafe { bpf_skb_get_tunnel_key(self.skb, &raw mut key, size, 0) } == 0 {
            if key.tunnel_id != maps::config().vni {
                return None;
            }
            // SAFETY: without the IPv6 flag the kernel filled the IPv4 member, in host order.
            let peer = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
            return Some([
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, peer[0], peer[1], peer[2], peer[3],
            ]);
        }
        let flags = u64::from(BPF_F_TUNINFO_IPV6);
        // SAFETY: as above.
        if unsafe { bpf_skb_get_tunnel_key(self.skb, &raw mut key, size, flags) } != 0
            || key.tunnel_id != maps::config().vni
        {
            return None;
        }
        // SAFETY: with the flag the kernel filled the IPv6 member, in network order.
        Some(transmute!(unsafe { key.__bindgen_anon_1.remote_ipv6 }))
    }

    /// Whether the packet is addressed to some peer's end of the overlay already.
    #[inline(always)]
    pub(crate) fn is_tunnelled(&self) -> bool {
        const EINVAL: i64 = 22;
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut key: TunnelKey = unsafe { core::mem::zeroed() };
        let size = size_of::<TunnelKey>() as u32;
        // SAFETY: the struct outlives the call and its true size is given.
        let answer = unsafe { bpf_skb_get_tunnel_key(self.skb, &raw mut key, size, 0) };
        // A key of the other family is an error of another kind.
        answer != -EINVAL
    }

    /// Addresses the packet to a peer's end of the overlay, outside and, where that end asks for it,
    /// inside; false if the kernel refuses.
    #[inline(always)]
    pub(crate) fn address_to(&mut self, peer: &TunnelEnd) -> bool {
        let any = peer.mac == [0; 6];
        (any || self.store(0, peer.mac).is_some()) && self.set_tunnel(&peer.underlay)
    }

    #[inline(always)]
    fn set_tunnel(&self, peer: &V6) -> bool {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut key: TunnelKey = unsafe { core::mem::zeroed() };
        key.tunnel_id = maps::config().vni;
        key.tunnel_ttl = 64;
        let mut flags = u64::from(BPF_F_ZERO_CSUM_TX);
        if peer[10] == 0xff && peer[11] == 0xff && peer[0] == 0 {
            let peer = [peer[12], peer[13], peer[14], peer[15]];
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(peer);
        } else {
            key.__bindgen_anon_1.remote_ipv6 = words(peer);
            // RFC 6935: a UDP checksum of zero is an exception over IPv6 that receivers must be
            // told of; the kernel's is not.
            flags = u64::from(BPF_F_TUNINFO_IPV6);
        }
        let size = size_of::<TunnelKey>() as u32;
        // SAFETY: the struct outlives the call and its true size is given.
        unsafe { bpf_skb_set_tunnel_key(self.skb, &raw mut key, size, flags) == 0 }
    }

    /// Declares that the frame is for this machine, whatever the sender wrote as its destination
    /// MAC address: a tunnel has no link layer of its own.
    #[inline(always)]
    pub(crate) fn mark_ours(&self) {
        const PACKET_HOST: u32 = 0;
        // SAFETY: no preconditions. It fails only for types that are no unicast.
        unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
    }
}

/// The clock of moments to depart at; such a moment stays with the packet when it is sent on, and into
/// a tunnel, as others do not (`BPF_SKB_TSTAMP_DELIVERY_MONO`, Linux 5.18).
const MONOTONIC: u32 = 1;

/// That no MTU is exceeded.
pub(crate) const FITS: u32 = 0;

/// What the host's routes say.
pub(crate) struct Lookup {
    lookup: FibLookup,
    /// Whether there is a way.
    pub(crate) found: bool,
    /// The way's MTU, if the packet is bigger; else [`FITS`].
    pub(crate) exceeded: u32,
}

impl Lookup {
    /// Sends the packet that way, and tells the device.
    #[inline(always)]
    pub(crate) fn take(&self, way: &mut u32) -> i32 {
        *way = self.lookup.ifindex;
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut neighbour: Neighbour = unsafe { core::mem::zeroed() };
        neighbour.nh_family = u32::from(self.lookup.family);
        // SAFETY: the lookup left the next hop's address in its destination, whose 16 bytes are
        // initialised for either family.
        neighbour.__bindgen_anon_1.ipv6_nh = unsafe { self.lookup.__bindgen_anon_4.ipv6_dst };
        let size = size_of::<Neighbour>() as i32;
        // SAFETY: the struct outlives the call and its true size is given.
        unsafe { bpf_redirect_neigh(self.lookup.ifindex, &raw mut neighbour, size, 0) as i32 }
    }
}

impl Quotable for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: reading a context field.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn sum(&self, at: u32, length: u32) -> Option<Difference> {
        /// More is quoted of no packet.
        const PIECES: u32 = 3;
        let buffer = maps::quoted()?;
        let mut sum = Difference::default();
        let mut done = 0;
        let mut piece = 0;
        while piece < PIECES {
            if done >= length {
                break;
            }
            // The verifier wants to be shown that a part is not empty.
            let left = black_box(length - done);
            if left == 0 {
                return None;
            }
            let part = if left < QUOTED_SIZE { left } else { QUOTED_SIZE };
            // SAFETY: the buffer is this processor's alone, as its slot is; no more than it holds is
            // written to it. What of it the packet does not fill adds nothing to a sum.
            let added = unsafe {
                buffer.write([0; QUOTED_SIZE as usize]);
                let length = bounded_length::<{ QUOTED_SIZE as usize }>(part);
                if bpf_skb_load_bytes(self.skb.cast(), at + done, buffer.cast(), length) != 0 {
                    return None;
                }
                bpf_csum_diff(ptr::null_mut(), 0, buffer.cast(), QUOTED_SIZE, 0)
            };
            if added < 0 {
                return None;
            }
            sum = sum.sum(added as u32);
            done += part;
            piece += 1;
        }
        (done >= length).then_some(sum)
    }

    #[inline(always)]
    fn precede<T: IntoBytes + Immutable>(&mut self, keep: u32, header: &T) -> Option<()> {
        let size = size_of::<T>() as u32;
        let place = BPF_ADJ_ROOM_MAC;
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: the header outlives the calls, and its true size is given. Shortening the packet
        // also takes from it that it was to be cut into segments.
        let done = unsafe {
            bpf_skb_change_tail(self.skb, ETHERNET + keep, 0) == 0
                && bpf_skb_adjust_room(self.skb, size as i32, place, 0) == 0
                && bpf_skb_store_bytes(
                    self.skb.cast(),
                    ETHERNET,
                    (&raw const *header).cast(),
                    size,
                    flags,
                ) == 0
        };
        done.then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> Option<()> {
        // SAFETY: the packet buffer is the running program's.
        (unsafe { bpf_skb_change_tail(self.skb, length, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn read<const N: usize>(&self, at: u32, length: u32, to: &mut [u8; N]) -> Option<()> {
        if length == 0 || length > N as u32 {
            return None;
        }
        let (to, length) = ((&raw mut *to).cast(), bounded_length::<N>(length));
        // SAFETY: no more than it holds is written to it.
        (unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to, length) } == 0).then_some(())
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, at: u32, length: u32, from: &[u8; N]) -> Option<()> {
        if length == 0 || length > N as u32 {
            return None;
        }
        let (from, length) = ((&raw const *from).cast(), bounded_length::<N>(length));
        // SAFETY: no more than it holds is read of it.
        (unsafe { bpf_skb_store_bytes(self.skb.cast(), at, from, length, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn extend(&mut self, length: u32) -> Option<()> {
        // SAFETY: the packet buffer is the running program's.
        (unsafe { bpf_skb_change_tail(self.skb, length, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn resize(&mut self, by: i32) -> Option<()> {
        // What a packet that stands for many is cut into has headers of its own.
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        // SAFETY: the packet buffer is the running program's.
        (unsafe { bpf_skb_adjust_room(self.skb, by, BPF_ADJ_ROOM_NET, flags) } == 0).then_some(())
    }

    #[inline(always)]
    fn overwrite<T: IntoBytes + Immutable>(&mut self, at: u32, value: &T) -> Option<()> {
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        let (from, size) = ((&raw const *value).cast(), size_of::<T>() as u32);
        // SAFETY: the value outlives the call, and its true size is given.
        let done = unsafe { bpf_skb_store_bytes(self.skb.cast(), at, from, size, flags) };
        (done == 0).then_some(())
    }
}

/// Counts the packet for a pod whose traffic is limited.
#[inline(never)]
fn receive(skb: *mut __sk_buff, ifindex: u32) -> Result<(), DropReason> {
    pace::receive(&Kernel, ifindex, Skb::of(skb).wire_bytes())
}

impl Packet for Skb {
    #[inline(always)]
    fn load<T: FromBytes + Unaligned>(&self, at: u32) -> Option<T> {
        self.span().load(at)
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable + Unaligned>(&mut self, at: u32, value: T) -> Option<()> {
        self.span().store(at, value)
    }

    #[inline(always)]
    fn adjust_transport_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
    ) -> Option<()> {
        let (mut flags, zero_is_none) = match covers {
            Covers::PseudoHeader { zero_is_none } => (u64::from(BPF_F_PSEUDO_HDR), zero_is_none),
            Covers::Segment { zero_is_none } => (0, zero_is_none),
        };
        if zero_is_none {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: no preconditions. The size bits of `flags` are zero: `to` is a difference.
        let done =
            unsafe { bpf_l4_csum_replace(self.skb, at, 0, u64::from(difference.to_u32()), flags) };
        (done == 0).then_some(())
    }

    #[inline(always)]
    fn adjust_sctp_checksum(field: [u8; 4], was: [U16; 2], is: [U16; 2], length: u32) -> [u8; 4] {
        alone::sctp_checksum(field, was, is, length)
    }
}
