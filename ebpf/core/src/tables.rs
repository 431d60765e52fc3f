//! What a decision may ask of the node's tables.

use fairway_abi::{
    Address, Affinity, AffinityKey, Config, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey,
    Fragments, Frontend, FrontendKey, Interface, LoadKey, MemberKey, NameAddresses, NameKey,
    Namespace, Pod, PodRange, Route, Ruling, RulingKey, Share, Subject, V6, Zone,
};

use crate::service::{self, Request};

/// The tables of one address family. Reads return copies; there is no transaction over several
/// tables, so each caller says what a racing writer may do to it.
pub trait Tables<A: Address>: Sized {
    /// What holds for the whole node.
    fn config(&self) -> Option<Config>;
    /// A Service's address.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;
    /// One endpoint of a Service.
    fn endpoint(&self, key: &EndpointKey) -> Option<Endpoint<A>>;
    /// Whether an endpoint is in a list whose clients stay with theirs.
    fn is_member(&self, key: &MemberKey<A>) -> bool;
    /// What an endpoint of a list gets, where that is not its slots alone.
    fn share(&self, key: &MemberKey<A>) -> Option<Share>;
    /// How many connections an endpoint has open, of which those to come are counted from now on if those
    /// before were not; `None`: there is no room to count them.
    fn load(&self, key: &LoadKey<A>) -> Option<u32>;
    /// Counts one more; two at once may count as one.
    fn add_load(&self, key: &LoadKey<A>);
    /// Lets an endpoint that is new have no more than has grown of its share.
    #[inline(always)]
    fn prefer_grown(&self, request: &mut Request<A>) {
        for _ in 1..service::PICKS {
            if service::pick_anew(self, request) {
                break;
            }
        }
    }
    /// The endpoint that a client stays with.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>>;
    /// Writes it down; others make room, the longest unused first.
    fn note_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity<A>);
    /// Whether a client is in one of the source ranges of a Service's port.
    fn is_in_source_range(&self, port: u32, client: &A) -> bool;
    /// Counts the choices from a list, and answers how many there were before this one; two of them
    /// that race may get the same answer.
    fn turn(&self, service: u32) -> u32;
    /// Whose processes are in the network namespace with this cookie.
    fn namespace(&self, cookie: u64) -> Option<Namespace>;
    /// The range of this node's pods.
    fn pod_range(&self) -> PodRange<A>;
    /// A pod of this node.
    fn pod(&self, address: &A) -> Option<Pod>;
    /// The addresses behind a pod's veth.
    fn interface(&self, ifindex: u32) -> Option<Interface>;
    /// The most specific route.
    fn route(&self, destination: &A) -> Option<Route<A>>;
    /// An address that is routed to the peer with this end of the tunnel, if it may send packets of
    /// clients from outside.
    fn peer(&self, underlay: &V6) -> Option<A>;
    /// Shows the stored record to `seen`, which may bring it up to date; false if there is none.
    fn see_flow(&self, stage: Stage, key: &FlowKey<A>, seen: impl FnMut(&mut Flow<A>)) -> bool;
    /// Whether there is a record under the key.
    #[inline(always)]
    fn has_flow(&self, stage: Stage, key: &FlowKey<A>) -> bool {
        self.see_flow(stage, key, |_| {})
    }
    /// Adds a record if there is none under the key; false if there is one, or no room.
    fn insert_flow(&self, stage: Stage, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Copies a half-open record to the established ones; false if there is none, or no room.
    fn promote_flow(&self, key: &FlowKey<A>) -> bool;
    /// Forgets a record.
    fn remove_flow(&self, stage: Stage, key: &FlowKey<A>);
    /// The client whose packets have a peer's address, as that peer named it.
    fn client(&self, packets: &FlowKey<A>) -> Option<A>;
    /// Writes it down; others make room, the longest unused first.
    fn note_client(&self, packets: &FlowKey<A>, client: &A);
    /// What a first fragment left.
    fn fragments(&self, key: &FragmentKey<A>) -> Option<Fragments>;
    /// Writes down what the fragments that follow need; others make room, the longest unused first.
    fn note_fragments(&self, key: &FragmentKey<A>, note: &Fragments);
    /// Which rules hold for a pod of this node; `None`: none do.
    fn subject(&self, address: &A) -> Option<Subject>;
    /// Who an address is to rules: what it is known as itself, else by the longest range that it is in;
    /// 0: like anybody.
    fn identity(&self, address: &A) -> u32;
    /// What a set of rules makes of somebody.
    fn ruling(&self, key: &RulingKey) -> Option<Ruling>;
    /// Counts for a rule that it denied a packet, or allowed a flow or a packet that belongs to none.
    fn count_rule(&self, rule: u32, denied: bool);
    /// The zone that all names of the table are in.
    fn zone(&self) -> Zone;
    /// The addresses of a name.
    fn name_addresses(&self, name: &NameKey) -> Option<NameAddresses>;
    /// Counts an answer of this kind, a sum of [`answered`](fairway_abi::answered).
    fn count_answer(&self, kind: u32);
    /// Low bits of the seconds since the machine started, roughly.
    fn seconds(&self) -> u32;
    /// Whether this node's agent answers DNS queries now.
    fn is_resolver_alive(&self) -> bool;
    /// Whether one more sender may be told now what became of its packet.
    fn may_complain(&self) -> bool;
    /// Uniformly distributed bits.
    fn random(&self) -> u32;
    /// Low bits of the kernel's jiffies.
    fn now(&self) -> u32;
}

/// Which table a flow lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No answer seen yet: the least recently used make room, so a flood of first packets cannot
    /// touch established flows.
    HalfOpen,
    /// Answered: never evicted, forgotten only when it ended or was idle for long.
    Established,
}
