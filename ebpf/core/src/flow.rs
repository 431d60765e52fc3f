//! Flow records: which translation an open flow has, in both directions.
//!
//! ```text
//! first packet   client:p ─► frontend      record  (client:p, frontend)  ─► (source:q, endpoint)
//!                                          record  (endpoint, source:q)  ─► (frontend, client:p)   REPLY
//! answer         endpoint ─► source:q      both move from half-open to established
//! ```
//!
//! Two processors may handle one flow's packets at once. Worst cases, and why they heal:
//! - Both open the flow: the records are claimed with "insert if absent", so one of them fails,
//!   finds the winner's record and uses it.
//! - A state bit or time stamp is lost to a concurrent write: the next packet of that direction
//!   writes it again, or the flow lives until its idle time is over.
//! - One moves a flow to the established table while the other looks it up: it is inserted there
//!   before it leaves the half-open table.
//!
//! Of a half-open flow, either record may be evicted at any time. Its next packet notices: a request
//! without a record for its answers opens the flow again, and an answer establishes only a pair.

use fairway_abi::{Address, DropReason, Flow, FlowKey, FragmentKey, V6, flow, protocol};
use zerocopy::FromZeros;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::Tables;
use crate::packet::{Headers, Translation, tcp};
use crate::path::{Decision, Whence};
use crate::policy::Question;
use crate::port::{Claim, Host};
use crate::service::Request;
use crate::tables::Stage;

/// Room for the records and the decision at hand, which are too large for a program's stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch<A> {
    pub(crate) key: FlowKey<A>,
    /// The opposite direction's key; that of a new flow's answers, whose port is yet to be found.
    pub(crate) answers: FlowKey<A>,
    pub(crate) original: Flow<A>,
    pub(crate) reply: Flow<A>,
    pub(crate) claim: Claim,
    /// Who brought the packet, where its answers depend on that.
    pub errand: Errand<A>,
    /// The end of the tunnel that the packet came from.
    pub peer: V6,
    /// Of a packet that the host's stack sends: whether it is to a pod, and then whose.
    pub whence: Whence,
    /// Bits of the packet's record.
    pub(crate) state: u32,
    /// Whether it is in the table of flows that nobody has answered: 0 or 1.
    pub(crate) half_open: u32,
    /// An address that is routed to the peer that is to see to the packet, if its record says so.
    pub(crate) by: A,
    /// The Service that is asked for an endpoint.
    pub(crate) request: Request<A>,
    /// What [`open`] is asked for.
    pub opening: Opening<A>,
    /// What [`follow`] found or [`open`] made.
    pub translation: Translation<A>,
    /// What the packet at hand is to become.
    pub decision: Decision,
    /// The other record of a flow whose port a new one wants.
    pub(crate) in_the_way: FlowKey<A>,
    /// Under what the fragments at hand are known.
    pub(crate) fragment: FragmentKey<A>,
    /// Where the one at hand ends.
    pub(crate) first_end: u32,
    /// What an ICMP error quotes.
    pub(crate) quoted: Headers<A>,
    /// Who the error will come from.
    pub(crate) complainant: A,
    /// What policies were asked last.
    pub(crate) question: Question<A>,
}

impl<A: Address> Default for Scratch<A> {
    fn default() -> Self {
        Self {
            key: FlowKey::new_zeroed(),
            answers: FlowKey::new_zeroed(),
            original: Flow::new_zeroed(),
            reply: Flow::new_zeroed(),
            claim: Claim::Exhausted,
            errand: Errand::NONE,
            peer: V6::UNSPECIFIED,
            whence: Whence::Host,
            state: 0,
            half_open: 0,
            by: A::UNSPECIFIED,
            request: Request::NONE,
            opening: Opening {
                source: A::UNSPECIFIED,
                destination: A::UNSPECIFIED,
                destination_port: U16::ZERO,
                service: 0,
                ports: (0, 0),
                any_port: false,
                answers: Errand::NONE,
                state: 0,
                instead: A::UNSPECIFIED,
            },
            translation: Headers::NOTHING.translation(),
            decision: Decision::NONE,
            in_the_way: FlowKey::new_zeroed(),
            fragment: FragmentKey::new_zeroed(),
            first_end: 0,
            quoted: Headers::NOTHING,
            complainant: A::UNSPECIFIED,
            question: Question::NONE,
        }
    }
}

impl<A: Address> Scratch<A> {
    /// Bits of the record of the packet at hand.
    #[inline(always)]
    pub fn state(&self) -> u32 {
        self.state
    }

    /// Where a packet whose record was found goes.
    #[inline(always)]
    pub(crate) fn towards(&self) -> &A {
        if self.state & flow::BY_PEER != 0 { &self.by } else { &self.translation.destination }
    }

    /// Source and destination of a packet that was decided on, as it leaves.
    #[inline(always)]
    pub fn addresses(&self, headers: &Headers<A>) -> (A, A) {
        if self.decision.is_translated() {
            (self.translation.source, self.translation.destination)
        } else {
            (headers.source, headers.destination)
        }
    }
}

/// What answers become by way of who brought the packet that they answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Errand<A> {
    /// Bits of [`flow`] for the record of answers; 0: nothing, they are for this node to translate.
    pub state: u32,
    /// What that record has in place of a source.
    pub source: A,
    /// The same for the source port.
    pub port: U16,
    /// Who the packet's source stands for, as the peer says that has the source; unspecified: nobody else.
    pub client: A,
}

impl<A: Address> Errand<A> {
    /// Nobody brought it on behalf of others.
    pub const NONE: Self =
        Self { state: 0, source: A::UNSPECIFIED, port: U16::ZERO, client: A::UNSPECIFIED };
}

/// Looks for the open flow this packet belongs to; true if there is one.
#[inline(always)]
pub fn follow<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    if !find(tables, headers, scratch) {
        return false;
    }
    resolve(scratch);
    let reply = scratch.state & flow::REPLY != 0;
    scratch.half_open == 0 && (reply || !headers.opens()) || settle(tables, headers, scratch)
}

/// Finds a packet's record, and brings it up to date.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn find<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    scratch.key = headers.flow();
    let now = tables.now();
    let ends = ends(headers.tcp_flags);
    let mut see = |stage| {
        tables.see_flow(stage, &scratch.key, |flow| {
            // Most packets find nothing to write, and so leave the line to other processors'
            // caches.
            if flow.last_seen.get() != now {
                flow.last_seen = U32::new(now);
            }
            let before = flow.state.get();
            let state = (before | ends) & !flow::UNSEEN;
            if before != state {
                flow.state = U32::new(state);
            }
            scratch.state = state | before & flow::UNSEEN;
            scratch.translation = translation_of(flow);
        })
    };
    scratch.half_open = 0;
    if see(Stage::Established) {
        return true;
    }
    scratch.half_open = 1;
    see(Stage::HalfOpen)
}

/// Sees to a flow whose packet may change what it is: one without an answer yet, or that is opened anew.
/// False if the record that was found is good for nothing any more.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn settle<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    let stage = if scratch.half_open == 0 { Stage::Established } else { Stage::HalfOpen };
    let (state, ends) = (scratch.state, ends(headers.tcp_flags));
    let reply = state & flow::REPLY != 0;
    scratch.answers = opposite(headers.protocol, &scratch.translation);
    if state & flow::ON_BEHALF != 0 {
        scratch.answers.destination = scratch.key.source;
        scratch.answers.destination_port = scratch.key.source_port;
    }
    let other = state_of_opposite(tables, stage, &scratch.key, &scratch.answers);
    if reply || other.is_some_and(|other| !headers.opens() || !is_over(state | other)) {
        // Where answers pass elsewhere, a client that goes on has had one.
        let first = headers.opens() || state & flow::UNSEEN != 0;
        let goes_on = state & flow::DELEGATED != 0 && !first;
        let answered = (reply || goes_on) && other.is_some() && ends & flow::RST == 0;
        if answered && !establish(tables, &scratch.answers, &scratch.key) {
            tables.see_flow(stage, &scratch.key, |flow| {
                flow.state = U32::new(flow.state.get() | flow::ANSWERED);
            });
        }
        return true;
    }
    // The client opens a new connection from a port it used before (RFC 9293, 3.6.1); or its flow has no
    // record for answers, and must not go on: they would stay untranslated, or reach whoever claimed the
    // port since.
    if other.is_some() {
        tables.remove_flow(stage, &scratch.answers);
    }
    tables.remove_flow(stage, &scratch.key);
    false
}

/// What a new flow becomes, before its source port is known to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening<A> {
    /// Source address after translation.
    pub source: A,
    /// Destination after translation.
    pub destination: A,
    /// Destination port after translation.
    pub destination_port: U16,
    /// The Service that asks for the translation; 0: none.
    pub service: u32,
    /// First and last port that may replace the client's own.
    pub ports: (u16, u16),
    /// Whether the client's own port is good as long as it is free. It is not where the source
    /// becomes the node's address: ports outside the range above belong to the node's sockets.
    pub any_port: bool,
    /// What answers become; if nothing else, what the packet was sent to.
    pub answers: Errand<A>,
    /// Bits of [`flow`] for the packet's own record.
    pub state: u32,
    /// The source to take if the packet's own port is taken and another would not do: where answers do
    /// not come back here, nobody would put the client's port back in its place.
    pub instead: A,
}

/// Opens a flow: claims a source port and writes both records.
#[inline(always)]
pub fn open<A: Address, T: Tables<A>, H: Host<A>>(
    tables: &T,
    host: &H,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<(), DropReason> {
    let opening = &scratch.opening;
    let now = U32::new(tables.now());
    scratch.key = headers.flow();
    scratch.answers = FlowKey {
        source: opening.destination,
        destination: opening.source,
        source_port: opening.destination_port,
        destination_port: headers.source_port,
        protocol: headers.protocol,
        ..FlowKey::BLANK
    };
    scratch.original = Flow {
        source: opening.source,
        destination: opening.destination,
        source_port: headers.source_port,
        destination_port: opening.destination_port,
        last_seen: now,
        service: U32::new(opening.service),
        ..Flow::BLANK
    };
    scratch.original.state = U32::new(opening.state);
    scratch.reply = Flow {
        source: headers.destination,
        destination: headers.source,
        source_port: headers.destination_port,
        destination_port: headers.source_port,
        state: U32::new(flow::REPLY | opening.answers.state),
        ..scratch.original
    };
    if opening.answers.state != 0 {
        scratch.reply.source = opening.answers.source;
        scratch.reply.source_port = opening.answers.port;
    }
    scratch.state = opening.state;
    if scratch.state & flow::DELEGATED != 0 {
        undelegate(tables, scratch);
    }
    scratch.claim = Claim::Exhausted;
    host.search(tables, scratch);
    match scratch.claim {
        Claim::Taken => {}
        Claim::Exhausted => return Err(DropReason::NoSourcePort),
        Claim::NoRoom => return Err(DropReason::NoFlowEntry),
    }
    if scratch.state & flow::DELEGATED != 0
        && scratch.answers.destination_port != headers.source_port
    {
        // Somebody else has just taken it. The client will ask again.
        tables.remove_flow(Stage::HalfOpen, &scratch.answers);
        return Err(DropReason::NoSourcePort);
    }
    if tables.insert_flow(Stage::HalfOpen, &scratch.key, &scratch.original) {
        scratch.translation = translation_of(&scratch.original);
        resolve(scratch);
        return Ok(());
    }
    // Another processor opened this very flow a moment ago: use its record, whatever endpoint it
    // chose.
    tables.remove_flow(Stage::HalfOpen, &scratch.answers);
    let mut see = |stage| {
        tables.see_flow(stage, &scratch.key, |winner| {
            scratch.state = winner.state.get();
            scratch.translation = translation_of(winner);
        })
    };
    // In this order, as an answered flow is in its new table before it leaves the old one.
    let lost = see(Stage::HalfOpen) || see(Stage::Established);
    resolve(scratch);
    if lost { Ok(()) } else { Err(DropReason::NoFlowEntry) }
}

/// Has this node see to the answers after all if the client's port is taken: the endpoint could not tell
/// such a flow from the other one.
#[inline(always)]
fn undelegate<A: Address, T: Tables<A>>(tables: &T, scratch: &mut Scratch<A>) {
    let answers = &scratch.answers;
    if !tables.has_flow(Stage::HalfOpen, answers) && !tables.has_flow(Stage::Established, answers) {
        return;
    }
    let instead = scratch.opening.instead;
    scratch.opening.any_port = instead == scratch.original.source;
    scratch.answers.destination = instead;
    scratch.original.source = instead;
    scratch.original.state = U32::new(0);
    scratch.state = 0;
}

/// Forgets the established flow that has its record of answers where a new one wants its own, if it is
/// closed; false if it is not.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub(crate) fn end_closed<A: Address, T: Tables<A>>(tables: &T, scratch: &mut Scratch<A>) -> bool {
    let mut state = 0;
    let Scratch { answers, in_the_way, .. } = scratch;
    let found = tables.see_flow(Stage::Established, answers, |reply| {
        state = reply.state.get();
        *in_the_way = opposite_of(answers, reply);
    });
    let mut other_state = 0;
    tables.see_flow(Stage::Established, &scratch.in_the_way, |other| {
        other_state = other.state.get();
    });
    let closed = (state | other_state) & flow::RST != 0 || state & other_state & flow::FIN != 0;
    if found && closed {
        tables.remove_flow(Stage::Established, &scratch.in_the_way);
        tables.remove_flow(Stage::Established, &scratch.answers);
    }
    found && closed
}

/// Lets who brought a packet of an open flow, in place of another that had brought those before it, get the
/// answers; or has them leave as those of the frontend that the packet names. An open connection stays
/// what it is: what names another frontend there cannot be one of its packets.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn reassign<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) {
    scratch.answers = opposite(headers.protocol, &scratch.translation);
    let Scratch { answers, key, errand, .. } = scratch;
    let see = |stage| {
        tables.see_flow(stage, answers, |reply| {
            let state = reply.state.get();
            let open = headers.protocol == protocol::TCP && matches!(stage, Stage::Established);
            let may =
                if errand.state == flow::BY_PEER { state & flow::BY_PEER != 0 } else { !open };
            let same = reply.source == errand.source
                && reply.source_port == errand.port
                && state & errand.state != 0;
            if may && !same && opposite_of(answers, reply) == *key {
                reply.source = errand.source;
                reply.source_port = errand.port;
                let other = state & !(flow::BY_PEER | flow::ON_BEHALF);
                reply.state = U32::new(other | errand.state);
            }
        })
    };
    if !see(Stage::Established) {
        see(Stage::HalfOpen);
    }
}

/// Completes what a record says, whose bits and translation are in `scratch`.
#[inline(always)]
pub(crate) fn resolve<A: Address>(scratch: &mut Scratch<A>) {
    if scratch.state & flow::BY_PEER != 0 {
        lead_to_peer(scratch);
    }
}

/// Apart from what is common, whose stack would hold every byte of these addresses.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn lead_to_peer<A: Address>(scratch: &mut Scratch<A>) {
    scratch.by = scratch.translation.source;
    scratch.translation.source = scratch.key.source;
    scratch.translation.source_port = scratch.key.source_port;
}

/// What a record has in the places of a packet's addresses and ports.
#[inline(always)]
pub fn translation_of<A: Address>(flow: &Flow<A>) -> Translation<A> {
    Translation {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
    }
}

/// The key under which the other direction of the flow is recorded that has this record under this key.
#[inline(always)]
pub fn opposite_of<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> FlowKey<A> {
    let mut answers = opposite(key.protocol, &translation_of(flow));
    if flow.state.get() & (flow::ON_BEHALF | flow::BY_PEER) != 0 {
        answers.destination = key.source;
        answers.destination_port = key.source_port;
    }
    answers
}

/// The key of the answers to packets that look so.
#[inline(always)]
pub fn opposite<A: Address>(protocol: u8, to: &Translation<A>) -> FlowKey<A> {
    FlowKey {
        source: to.destination,
        destination: to.source,
        source_port: to.destination_port,
        destination_port: to.source_port,
        protocol,
        ..FlowKey::BLANK
    }
}

/// How long a flow may be idle before it is forgotten, in seconds; `closed`: each direction has seen
/// its FIN, or one an RST.
pub fn idle_limit(protocol: u8, stage: Stage, closed: bool) -> u32 {
    match (protocol, stage) {
        (fairway_abi::protocol::TCP, _) if closed => 30,
        (fairway_abi::protocol::TCP, Stage::Established) => 24 * 60 * 60,
        // Either end asks every half a minute whether the other is there (RFC 9260, 8.3), and more
        // seldom when it has to ask again.
        (fairway_abi::protocol::SCTP, Stage::Established) => 300,
        (_, Stage::Established) => 120,
        (_, Stage::HalfOpen) => 30,
    }
}

#[inline(always)]
fn ends(tcp_flags: u8) -> u32 {
    let fin = if tcp_flags & tcp::FIN != 0 { flow::FIN } else { 0 };
    let rst = if tcp_flags & tcp::RST != 0 { flow::RST } else { 0 };
    fin | rst
}

/// What the opposite direction of the flow under `key` has seen. `None`: its record is gone, as
/// half-open ones may be at any time, or belongs to another flow by now.
#[inline(always)]
fn state_of_opposite<A: Address, T: Tables<A>>(
    tables: &T,
    stage: Stage,
    key: &FlowKey<A>,
    other_key: &FlowKey<A>,
) -> Option<u32> {
    let mut state = None;
    let mut see = |stage| {
        tables.see_flow(stage, other_key, |other| {
            if opposite_of(other_key, other) == *key {
                state = Some(other.state.get());
            }
        })
    };
    if !see(stage) && matches!(stage, Stage::HalfOpen) {
        // Another processor may just have established the flow.
        see(Stage::Established);
    }
    state
}

/// Whether a TCP flow has seen the end of at least one side, given what both have seen.
#[inline(always)]
fn is_over(states: u32) -> bool {
    states & (flow::FIN | flow::RST) != 0
}

/// Moves both records of an answered flow to the table that never evicts; false without room there.
/// The flow then stays where it is, marked as answered, and lives as if it had moved for as long as it
/// is not the least recently used.
#[inline(always)]
fn establish<A: Address, T: Tables<A>>(
    tables: &T,
    other_key: &FlowKey<A>,
    key: &FlowKey<A>,
) -> bool {
    if !tables.promote_flow(key) {
        return false;
    }
    if !tables.promote_flow(other_key) {
        tables.remove_flow(Stage::Established, key);
        return false;
    }
    tables.remove_flow(Stage::HalfOpen, key);
    tables.remove_flow(Stage::HalfOpen, other_key);
    true
}
