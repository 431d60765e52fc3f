//! Whether pods may talk to each other and to others: what the tables of [`fairway_abi::Subject`] say.
//!
//! Two steps come between [`path`](crate::path)'s. [`police`] gives a packet that nothing changes a flow
//! if it is from or to a pod that is restricted; so what answers a flow is told from what opens one.
//! [`judge`] asks the tables about a flow, whichever of its packets is at hand: about the client as it is
//! before its address is replaced, and the endpoint that a Service chose. The record of a flow that was
//! allowed keeps under which state of policies that was ([`flow::REVISION`]), and is not asked again before
//! they change.
//!
//! The record of an older flow that is denied stays. Without it, the next packet in the other direction
//! would open a flow of its own, in which who answers is the client.

use fairway_abi::{
    Address, Config, DropReason, Event, RESOLVER_PORT, Route, RulingKey, V6, config, event, flow,
    peer, protocol, route, ruling,
};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::flow::{Opening, Scratch, opposite, translation_of};
use crate::packet::{Headers, Ip, Ports};
use crate::path::{Todo, Whence, is_led_outside, translatable};
use crate::tables::{Stage, Tables};

/// What is asked of the tables, and what they answered. Plain data without holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Question<A> {
    /// Who opens the flow.
    pub(crate) client: A,
    /// Who it is opened to.
    pub(crate) endpoint: A,
    /// The endpoint's port.
    pub(crate) port: U16,
    /// IANA number.
    pub(crate) protocol: u8,
    /// Whether the port counts: 0 or 1.
    pub(crate) has_port: u8,
    /// Bits of [`ruling`] of the client's rules; 0: none decided.
    pub(crate) egress: u32,
    /// The same of the endpoint's.
    pub(crate) ingress: u32,
    /// Whether it was about a flow that is allowed for the first time: 0 or 1.
    pub(crate) is_news: u32,
}

impl<A: Address> Question<A> {
    /// About nobody.
    pub(crate) const NONE: Self = Self {
        client: A::UNSPECIFIED,
        endpoint: A::UNSPECIFIED,
        port: U16::ZERO,
        protocol: 0,
        has_port: 0,
        egress: 0,
        ingress: 0,
        is_news: 0,
    };
}

/// Whether `client` may open a flow to `endpoint`, or send it a packet that belongs to none: by the rules
/// of whichever of them is a restricted pod of this node. Both are meant as they are after a Service chose
/// the endpoint, and before the client's address is replaced.
///
/// `port` is the endpoint's; `None` where the protocol has none, or where it is not known, as of a fragment:
/// then it is allowed only if no port makes a difference. The answer has the bits of [`ruling`] of the rule
/// that denied it, or of the one that was asked last; 0: nobody was asked, or no rule decided.
pub fn ask<A: Address, T: Tables<A>>(
    tables: &T,
    client: &A,
    endpoint: &A,
    protocol: u8,
    port: Option<U16>,
) -> Result<u32, (DropReason, u32)> {
    let mut question = Question { client: *client, endpoint: *endpoint, ..Question::NONE };
    question.protocol = protocol;
    question.has_port = u8::from(port.is_some() && has_ports(protocol));
    question.port = port.unwrap_or(U16::ZERO);
    let config = tables.config().unwrap_or_default();
    match consult(tables, &config, &mut question) {
        ALLOWED if question.ingress != 0 => Ok(question.ingress),
        ALLOWED => Ok(question.egress),
        EGRESS => Err((DropReason::PolicyEgress, question.egress)),
        _ => Err((DropReason::PolicyIngress, question.ingress)),
    }
}

/// Gives a packet without a flow one of its own if a pod that is restricted sends or receives it; what has
/// no ports is asked about at once. For a packet that [`Todo::Apply`] was decided on.
#[inline(always)]
pub fn police<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    whence: Whence,
    scratch: &mut Scratch<A>,
) -> Result<Todo, DropReason> {
    let config = tables.config().unwrap_or_default();
    if config.flags & config::POLICED == 0 || scratch.decision.is_translated() {
        return Ok(Todo::Apply);
    }
    let concerned = match whence {
        // Who leaves the node by the host's stack is no pod, or has been asked about where it came in.
        Whence::Host => false,
        Whence::Network => scratch.decision.leads_to_pod(),
        Whence::Pod | Whence::Link | Whence::Stack | Whence::Socket => true,
    };
    if !concerned || !is_about_subject(tables, headers) {
        return Ok(Todo::Apply);
    }
    let by_host = matches!(whence, Whence::Socket);
    if translatable(headers).is_err() {
        let told_its_node = matches!(whence, Whence::Pod)
            && is_about_neighbours(headers)
            && !scratch.decision.leaves();
        return if by_host || told_its_node {
            Ok(Todo::Apply)
        } else {
            ask_of_packet(tables, &config, headers, scratch)
        };
    }
    let named = matches!(whence, Whence::Network) && scratch.errand.client != A::UNSPECIFIED;
    let mark = match (by_host, named) {
        (true, _) => flow::BY_HOST,
        (_, true) => flow::CLIENT_NAMED,
        _ => 0,
    };
    // Field by field: the compiler would copy undefined bytes with a whole one.
    let errand = &mut scratch.errand;
    if !matches!(whence, Whence::Network) {
        errand.state = 0;
    }
    if mark != 0 {
        errand.state = mark;
        errand.source = headers.destination;
        errand.port = headers.destination_port;
    }
    scratch.opening = Opening {
        source: headers.source,
        destination: headers.destination,
        destination_port: headers.destination_port,
        service: 0,
        ports: (config.first_port, config.last_port),
        any_port: true,
        answers: scratch.errand,
        state: mark,
        instead: headers.source,
    };
    Ok(Todo::Open)
}

/// Asks whether a packet may go on whose flow was found or is new. `opened`: this very packet opened it.
#[inline(always)]
pub fn judge<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    whence: Whence,
    opened: bool,
    scratch: &mut Scratch<A>,
) -> Result<(), DropReason> {
    scratch.question.is_news = 0;
    // Read before anything is asked: what is allowed meanwhile by rules of before is asked again.
    let config = tables.config().unwrap_or_default();
    if config.flags & config::POLICED == 0 || matches!(whence, Whence::Host) {
        return Ok(());
    }
    if matches!(whence, Whence::Link | Whence::Stack | Whence::Socket) {
        scratch.decision.leave_to_stack();
    }
    if !scratch.decision.is_translated() {
        return Ok(());
    }
    // Most flows of restricted pods are there to be judged alone.
    if scratch.translation == headers.translation() {
        scratch.decision.change_nothing();
    }
    let reply = scratch.state & flow::REPLY != 0;
    if matches!(whence, Whence::Socket) {
        if !reply && scratch.state & flow::BY_HOST == 0 {
            mark_both(tables, scratch, flow::BY_HOST);
        }
        return Ok(());
    }
    // No process of this node is out in the network.
    let is_own = reply || !matches!(whence, Whence::Network);
    if scratch.state & flow::BY_HOST != 0 && is_own {
        return Ok(());
    }
    let names = !reply && matches!(whence, Whence::Network);
    if names && scratch.errand.client != A::UNSPECIFIED {
        meet(tables, scratch);
    }
    let revision = config.policy & flow::REVISION;
    let since = scratch.state & flow::REVISION;
    if revision != 0 && since == revision {
        return Ok(());
    }
    let Scratch { key, translation, question, answers, state, .. } = scratch;
    question.protocol = key.protocol;
    question.has_port = has_ports(key.protocol).into();
    if reply {
        question.client = translation.destination;
        question.endpoint = key.source;
        question.port = key.source_port;
    } else {
        question.client = key.source;
        question.endpoint = translation.destination;
        question.port = translation.destination_port;
    }
    if *state & flow::CLIENT_NAMED != 0 {
        let packets = if reply {
            *answers = opposite(key.protocol, translation);
            answers
        } else {
            key
        };
        // Others may have taken its place: then it is asked about who sends.
        if let Some(client) = tables.client(packets) {
            question.client = client;
        }
    }
    let answer = consult(tables, &config, question);
    if answer == ALLOWED {
        stamp(tables, revision, scratch);
        // Each flow once.
        if !reply && since == 0 {
            scratch.question.is_news = 1;
            count(tables, &scratch.question, ALLOWED);
        }
        return Ok(());
    }
    count(tables, &scratch.question, answer);
    // Unless another processor has opened it a moment ago.
    if opened && translation_of(&scratch.original) == scratch.translation {
        tables.remove_flow(Stage::HalfOpen, &scratch.key);
        tables.remove_flow(Stage::HalfOpen, &scratch.answers);
    }
    Err(reason(answer))
}

/// Whether a pod may ask the node's agent for names, whatever address it asks, by a packet that belongs to no flow and
/// is answered where it is. If not, nothing is counted: the packet goes on, and is refused then.
#[inline(always)]
pub fn allows_query<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    scratch.question.is_news = 0;
    let config = tables.config().unwrap_or_default();
    if config.flags & config::POLICED == 0 || tables.subject(&headers.source).is_none() {
        return true;
    }
    let question = &mut scratch.question;
    question.client = headers.source;
    question.endpoint = A::RESOLVER;
    question.protocol = headers.protocol;
    question.port = headers.destination_port;
    question.has_port = 1;
    if consult(tables, &config, question) != ALLOWED {
        return false;
    }
    scratch.question.is_news = 1;
    count(tables, &scratch.question, ALLOWED);
    true
}

/// Whether what the host's stack delivers to a pod is somebody else's, and the pod is restricted.
#[inline(always)]
pub fn is_guarded<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>, whence: Whence) -> bool {
    matches!(whence, Whence::Stack)
        && tables.config().unwrap_or_default().flags & config::POLICED != 0
        && tables.subject(&headers.destination).is_some()
}

/// Whether [`judge`] has just allowed a flow for the first time, which those who watch are to be told.
#[inline(always)]
pub fn is_news<A: Address>(scratch: &Scratch<A>) -> bool {
    scratch.question.is_news != 0
}

/// What those who watch are told of a packet that was dropped for this reason (a [`DropReason`]), or, if it is 0, of a
/// flow that [`judge`] allowed; but for the time, the device, and how many were not told.
#[inline(always)]
pub fn report<A: Ip>(headers: &Headers<A>, scratch: &Scratch<A>, reason: u32) -> Event {
    const ALLOWED: u32 = 0;
    const EGRESS: u32 = DropReason::PolicyEgress as u32;
    const INGRESS: u32 = DropReason::PolicyIngress as u32;
    let Scratch { question, translation, .. } = scratch;
    let verdict = match reason {
        EGRESS => question.egress,
        INGRESS => question.ingress,
        ALLOWED if question.ingress != 0 => question.ingress,
        ALLOWED => question.egress,
        _ => 0,
    };
    // Nothing is decided on what is dropped for other reasons.
    let decided = matches!(reason, ALLOWED | EGRESS | INGRESS);
    let (endpoint, endpoint_port) = match (decided, scratch.decision.is_translated()) {
        (true, true) => (translation.destination.to_v6(), translation.destination_port),
        (true, false) => (headers.destination.to_v6(), headers.destination_port),
        _ => (V6::UNSPECIFIED, U16::ZERO),
    };
    Event {
        time: 0,
        source: headers.source.to_v6(),
        destination: headers.destination.to_v6(),
        endpoint,
        source_port: headers.source_port,
        destination_port: headers.destination_port,
        endpoint_port,
        protocol: headers.protocol,
        kind: if reason == ALLOWED { event::ALLOW } else { event::DROP },
        ifindex: 0,
        reason,
        verdict,
        missed: 0,
    }
}

/// Whether a pod that is restricted sends a packet to an address that stays on its link by its kind, and is
/// forwarded by the host all the same.
#[inline(always)]
pub fn is_near<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    headers.destination.is_forwarded_from_link()
        && tables.config().unwrap_or_default().flags & config::POLICED != 0
        && tables.subject(&headers.source).is_some()
        && !is_led_outside(tables, &headers.destination)
}

/// What [`consult`] answers.
const ALLOWED: u32 = 0;
/// The client's rules deny it.
const EGRESS: u32 = 1;
/// The endpoint's do.
const INGRESS: u32 = 2;

/// Asks both ends' rules, and leaves theirs in the question.
#[inline(always)]
fn consult<A: Address, T: Tables<A>>(
    tables: &T,
    config: &Config,
    question: &mut Question<A>,
) -> u32 {
    (question.egress, question.ingress) = (0, 0);
    let egress = tables.subject(&question.client).map_or(0, |subject| subject.egress);
    let mut endpoint = question.endpoint;
    let asks_resolver = egress != 0 && is_resolver(tables, question);
    if asks_resolver {
        endpoint = A::RESOLVER;
    } else if endpoint == A::RESOLVER {
        // Whatever else this node listens on there is not the DNS server.
        endpoint = A::UNSPECIFIED;
    }
    if egress != 0 && (asks_resolver || !is_open_node(tables, config, &question.endpoint)) {
        question.egress = rule_on(tables, egress, question, &endpoint);
        if is_denied(question, question.egress) {
            return EGRESS;
        }
    }
    let ingress = tables.subject(&question.endpoint).map_or(0, |subject| subject.ingress);
    if ingress != 0 {
        question.ingress = rule_on(tables, ingress, question, &question.client);
        if is_denied(question, question.ingress) {
            return INGRESS;
        }
    }
    ALLOWED
}

#[inline(always)]
fn reason(answer: u32) -> DropReason {
    if answer == EGRESS { DropReason::PolicyEgress } else { DropReason::PolicyIngress }
}

/// Whether a ruling keeps the two ends apart. A pod's own policies leave it alone with itself.
#[inline(always)]
fn is_denied<A: Address>(question: &Question<A>, verdict: u32) -> bool {
    let itself = verdict & ruling::NAMESPACED != 0 && question.client == question.endpoint;
    verdict & ruling::DENIED != 0 && !itself
}

/// Whether an address is this node's own, and what pods send there is not restricted.
#[inline(always)]
fn is_open_node<A: Address, T: Tables<A>>(tables: &T, config: &Config, address: &A) -> bool {
    config.flags & config::POLICED_TO_NODE == 0
        && tables.pod(address).is_none()
        && tables.route(address).is_some_and(|route| route.kind.get() == route::HOST)
}

/// Whether it is about a query that the agent of this node or of a peer answers.
#[inline(always)]
fn is_resolver<A: Address, T: Tables<A>>(tables: &T, question: &Question<A>) -> bool {
    let of_dns = matches!(question.protocol, protocol::TCP | protocol::UDP)
        && question.has_port != 0
        && question.port.get() == RESOLVER_PORT;
    of_dns && has_resolver(tables, &question.endpoint)
}

/// Whether the agent of this node or of a peer answers queries at an address.
#[inline(always)]
pub(crate) fn has_resolver<A: Address, T: Tables<A>>(tables: &T, address: &A) -> bool {
    let of_peer = |route: Route<A>| route.peer.flags[0] & peer::RESOLVER != 0;
    *address == A::RESOLVER || tables.route(address).is_some_and(of_peer)
}

/// What a set of rules makes of the question, of which `other` is the other end; bits of [`ruling`].
#[cfg_attr(target_arch = "bpf", inline(never))]
fn rule_on<A: Address, T: Tables<A>>(
    tables: &T,
    set: u32,
    question: &Question<A>,
    other: &A,
) -> u32 {
    let mut key = RulingKey {
        set: U32::new(set),
        identity: U32::new(tables.identity(other)),
        protocol: 0,
        length: 0,
        port: U16::ZERO,
    };
    let first = tables.ruling(&key).or_else(|| {
        key.identity = U32::ZERO;
        tables.ruling(&key)
    });
    let Some(first) = first else { return ruling::DENIED };
    if first.lengths == 0 {
        return first.verdict;
    }
    key.protocol = question.protocol;
    if question.has_port == 0 {
        if has_ports(question.protocol) {
            let denied = first.verdict & ruling::DENIED != 0;
            return if denied { first.verdict } else { ruling::DENIED };
        }
        // A rule may be about all of a protocol that has no ports.
        if first.lengths & 1 == 0 {
            return first.verdict;
        }
        return tables.ruling(&key).map_or(first.verdict, |ruling| ruling.verdict);
    }
    let (mut length, mut mask) = (16u8, u16::MAX);
    loop {
        if first.lengths & 1 << length != 0 {
            key.length = length;
            key.port = U16::new(question.port.get() & mask);
            if let Some(ruling) = tables.ruling(&key) {
                return ruling.verdict;
            }
        }
        if length == 0 {
            return first.verdict;
        }
        length -= 1;
        mask <<= 1;
    }
}

/// Whether a destination of this protocol has a port.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

#[inline(always)]
fn is_about_subject<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    tables.subject(&headers.source).is_some() || tables.subject(&headers.destination).is_some()
}

/// Whether an ICMPv6 message is from its link alone, as those of neighbour discovery are, which are ignored
/// otherwise (RFC 4861, 7.1).
#[inline(always)]
fn is_about_neighbours<A: Ip>(headers: &Headers<A>) -> bool {
    size_of::<A>() == 16
        && headers.protocol == protocol::ICMPV6
        && headers.hop_limit == 255
        && matches!(headers.ports, Ports::None)
}

/// Asks about a packet that belongs to no flow.
#[inline(always)]
fn ask_of_packet<A: Ip, T: Tables<A>>(
    tables: &T,
    config: &Config,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<Todo, DropReason> {
    let question = &mut scratch.question;
    question.client = headers.source;
    question.endpoint = headers.destination;
    question.protocol = headers.protocol;
    question.port = headers.destination_port;
    let has_port = headers.ports.are_known() && has_ports(headers.protocol);
    question.has_port = has_port.into();
    let answer = consult(tables, config, question);
    count(tables, &scratch.question, answer);
    if answer == ALLOWED { Ok(Todo::Apply) } else { Err(reason(answer)) }
}

/// Counts what the rules that were asked decided.
#[inline(always)]
fn count<A: Address, T: Tables<A>>(tables: &T, question: &Question<A>, answer: u32) {
    let egress = question.egress & ruling::RULE;
    let ingress = question.ingress & ruling::RULE;
    if egress != 0 && answer != INGRESS {
        tables.count_rule(egress, answer == EGRESS);
    }
    if ingress != 0 && answer != EGRESS {
        tables.count_rule(ingress, answer == INGRESS);
    }
}

/// Notes in a record that the policies of this revision allow its flow.
#[inline(always)]
fn stamp<A: Address, T: Tables<A>>(tables: &T, revision: u32, scratch: &Scratch<A>) {
    let see = |stage| {
        tables.see_flow(stage, &scratch.key, |record| {
            let state = record.state.get() & !flow::REVISION;
            record.state = U32::new(state | revision);
        })
    };
    if !see(Stage::Established) {
        see(Stage::HalfOpen);
    }
}

/// Notes whose packets a peer's are, if that is news: then it is asked about him.
#[inline(always)]
fn meet<A: Address, T: Tables<A>>(tables: &T, scratch: &mut Scratch<A>) {
    let known = scratch.state & flow::CLIENT_NAMED != 0
        && tables.client(&scratch.key) == Some(scratch.errand.client);
    if !known {
        tables.note_client(&scratch.key, &scratch.errand.client);
        mark_both(tables, scratch, flow::CLIENT_NAMED);
        scratch.state = scratch.state & !flow::REVISION | flow::CLIENT_NAMED;
    }
}

/// Notes something in both of a flow's records.
#[inline(always)]
fn mark_both<A: Address, T: Tables<A>>(tables: &T, scratch: &mut Scratch<A>, mark: u32) {
    scratch.answers = opposite(scratch.key.protocol, &scratch.translation);
    let Scratch { key, answers, .. } = scratch;
    for record in [&*key, &*answers] {
        let see = |stage| tables.see_flow(stage, record, |record| record.state |= mark);
        if !see(Stage::Established) {
            see(Stage::HalfOpen);
        }
    }
}
