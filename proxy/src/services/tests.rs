//! Plans as text, and what readers in the kernel see while they are carried out.

use fairway_abi::{V4, protocol};
use fairway_core::path::any_port;
use fairway_model::{ObjectName, Protocol};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::sandbox::sandbox;

/// The second that plans are made in.
const NOW: u32 = 1000;

/// The tables of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kernel {
    frontends: BTreeMap<FrontendKey<V4>, Frontend>,
    endpoints: BTreeMap<EndpointKey, Endpoint<V4>>,
    members: BTreeSet<MemberKey<V4>>,
    shares: BTreeMap<(u32, Endpoint<V4>), Share>,
    ranges: BTreeSet<(u8, RangeKey<V4>)>,
}

impl Kernel {
    fn write(&mut self, write: Write<V4>) {
        match write {
            Write::Member(key) => drop(self.members.insert(key)),
            Write::NoMember(key) => drop(self.members.remove(&key)),
            Write::Share(MemberKey { service, endpoint }, share) => {
                self.shares.insert((service.get(), endpoint), share);
            }
            Write::NoShare(MemberKey { service, endpoint }) => {
                self.shares.remove(&(service.get(), endpoint));
            }
            Write::Range(length, key) => drop(self.ranges.insert((length, key))),
            Write::NoRange(length, key) => drop(self.ranges.remove(&(length, key))),
            Write::Endpoint(key, endpoint) => drop(self.endpoints.insert(key, endpoint)),
            Write::Frontend(key, record) => drop(self.frontends.insert(key, record)),
            Write::NoFrontend(key) => drop(self.frontends.remove(&key)),
        }
    }

    /// Everything that readers who come by a frontend may find: each slot below its length.
    fn found(&self, key: &FrontendKey<V4>) -> Vec<Option<Endpoint<V4>>> {
        let Some(record) = self.frontends.get(key) else { return Vec::new() };
        let slot =
            |slot| EndpointKey { service: record.service, generation: record.generation, slot };
        (0..record.endpoints).map(|number| self.endpoints.get(&slot(number)).copied()).collect()
    }

    /// What a starting agent reads.
    fn adopt(&self) -> State<V4> {
        let mut state = State::read(
            self.frontends.iter().map(|(key, record)| (*key, *record)).collect(),
            self.endpoints.iter().map(|(key, endpoint)| (*key, *endpoint)).collect(),
        );
        let members = self.members.iter();
        state.members = members.map(|key| (key.service.get(), key.endpoint)).collect();
        state.shares.clone_from(&self.shares);
        let ranges = self.ranges.iter();
        state.ranges =
            ranges.map(|(length, key)| (key.port.get(), length - PORT_BITS, key.network)).collect();
        state
    }
}

/// An agent and its kernel.
#[derive(Clone, Debug)]
struct Node {
    state: State<V4>,
    kernel: Kernel,
}

impl Default for Node {
    fn default() -> Self {
        Self { state: State::read(Vec::new(), Vec::new()), kernel: Kernel::default() }
    }
}

impl Node {
    /// Brings the kernel to `want`; answers the steps as text.
    fn reach(&mut self, want: &[EndpointList<V4>]) -> Vec<String> {
        let steps = plan(&self.state, want, NOW);
        let told = steps.iter().map(tell).collect();
        for step in steps {
            self.apply(step, |_| {});
        }
        told
    }

    /// Carries a step out, and shows the kernel after each write.
    fn apply(&mut self, step: Step<V4>, mut see: impl FnMut(&Kernel)) {
        for write in self.state.writes(&step).expect("few endpoints") {
            self.kernel.write(write);
            see(&self.kernel);
        }
        self.state.note(step, Instant::now());
    }

    /// The agent ends, and its successor starts.
    fn restart(&mut self) {
        self.state = self.kernel.adopt();
    }
}

/// `service[slot] = endpoint`, `size service = length`, `frontend -> service`, `frontend -> nowhere`,
/// `retire service`.
fn tell(step: &Step<V4>) -> String {
    let frontend = |key: &FrontendKey<V4>| format!(".{}:{}", key.address[3], key.port);
    match step {
        Step::PutEndpoint { service, slot, endpoint } => {
            format!("{service}[{slot}] = .{}", endpoint.address[3])
        }
        Step::PutMember { service, endpoint } => {
            format!("{service} keeps .{}", endpoint.address[3])
        }
        Step::RemoveMember { service, endpoint } => {
            format!("{service} lets go of .{}", endpoint.address[3])
        }
        Step::PutShare { service, endpoint, share } => {
            let Share { since, growth, weight } = *share;
            let last = endpoint.address[3];
            match weight.get() {
                1 => format!("{service} grows .{last} from {since} for {growth}"),
                _ => format!("{service} weighs .{last} as {weight}, from {since} for {growth}"),
            }
        }
        Step::RemoveShare { service, endpoint } => {
            format!("{service} has all of .{}", endpoint.address[3])
        }
        Step::PutRange { port, length, network } => {
            format!("{port} lets in .{}/{length}", network[3])
        }
        Step::RemoveRange { port, length, network } => {
            format!("{port} shuts out .{}/{length}", network[3])
        }
        Step::Shape { service, shape } => {
            let mut text = format!("size {service} = {}", shape.length);
            if shape.port != *service {
                text += &format!(", port {}", shape.port);
            }
            if shape.choice != Choice::default() {
                text += &format!(", choice {} {}", shape.choice.flags, shape.choice.affinity);
            }
            text
        }
        Step::PutFrontend { key, service, flags: 0 } => format!("{} -> {service}", frontend(key)),
        Step::PutFrontend { key, service, flags } => {
            format!("{} -> {service}, flags {flags}", frontend(key))
        }
        Step::RemoveFrontend { key } => format!("{} -> nowhere", frontend(key)),
        Step::Retire { service } => format!("retire {service}"),
    }
}

/// The list of Service `name` with these frontends (last octet) and endpoints (last octet).
fn list(name: &str, frontends: &[u8], endpoints: &[u8]) -> EndpointList<V4> {
    let frontend = |last: &u8| FrontendKey {
        address: [10, 96, 0, *last],
        port: U16::new(80),
        protocol: protocol::TCP,
        scope: scope::INTERNAL,
    };
    let endpoint = |last: &u8| Endpoint {
        address: [10, 244, 0, *last],
        port: U16::new(8080),
        reserved: [0; 2],
    };
    EndpointList {
        name: ListName::Service {
            service: ObjectName::new("shop", name),
            port: "http".to_owned(),
            protocol: Protocol::Tcp,
            local: false,
        },
        frontends: frontends.iter().map(frontend).map(|key| (key, 0)).collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        weights: BTreeMap::new(),
        lingering: BTreeSet::new(),
        choice: Choice::default(),
        growth: 0,
        source_ranges: BTreeSet::new(),
    }
}

/// A node that holds these lists.
fn holding(lists: &[EndpointList<V4>]) -> Node {
    let mut node = Node::default();
    node.reach(lists);
    node
}

/// Asserts the steps from one set of lists to another.
#[track_caller]
fn check(have: &[EndpointList<V4>], want: &[EndpointList<V4>], steps: &[&str]) {
    assert_eq!(holding(have).reach(want), steps);
}

#[test]
fn a_new_service_is_led_to_when_its_endpoints_are_there() {
    let steps = ["1[0] = .2", "1[1] = .3", "size 1 = 2", ".10:80 -> 1", ".11:80 -> 1"];
    check(&[], &[list("web", &[10, 11], &[2, 3])], &steps);
}

#[test]
fn nothing_to_do_is_no_step() {
    let web = [list("web", &[10], &[2]), list("empty", &[11], &[])];
    check(&web, &web, &[]);
}

#[test]
fn growing_writes_the_slot_before_the_length() {
    let steps = ["1[1] = .3", "size 1 = 2"];
    check(&[list("web", &[10], &[2])], &[list("web", &[10], &[2, 3])], &steps);
}

#[test]
fn shrinking_fills_the_gap_before_the_length_and_leaves_the_spare_slot() {
    let steps = ["1[0] = .4", "size 1 = 2"];
    check(&[list("web", &[10], &[2, 3, 4])], &[list("web", &[10], &[3, 4])], &steps);
}

#[test]
fn replacing_an_endpoint_is_one_write() {
    check(&[list("web", &[10], &[2, 3])], &[list("web", &[10], &[2, 4])], &["1[1] = .4"]);
}

/// The list with an endpoint (last octet) of another weight than 1.
fn weighing(list: EndpointList<V4>, last: u8, weight: u16) -> EndpointList<V4> {
    let weights = list.endpoints.iter().filter(|one| one.address[3] == last);
    EndpointList { weights: weights.map(|one| (*one, weight)).collect(), ..list }
}

#[test]
fn a_weight_is_slots_that_are_there_before_they_are_counted() {
    let plain = list("web", &[10], &[2, 3]);
    let heavy = weighing(plain.clone(), 2, 3);
    let more = ["1[0] = .3", "1[1] = .2", "1[2] = .2", "1[3] = .2", "size 1 = 4"];
    check(std::slice::from_ref(&plain), std::slice::from_ref(&heavy), &more);
    check(std::slice::from_ref(&heavy), std::slice::from_ref(&heavy), &[]);
    // Back to one slot each, in whatever order.
    let mut node = holding(&[heavy]);
    node.reach(std::slice::from_ref(&plain));
    assert_reached(&node.kernel, &[plain]);
}

/// The list with endpoints whose share grows for so long when they are new.
fn growing_for(growth: u32, list: EndpointList<V4>) -> EndpointList<V4> {
    let flags = if growth > 0 { frontend::GROWING } else { 0 };
    EndpointList { growth, choice: Choice { flags, affinity: 0 }, ..list }
}

#[test]
fn an_endpoint_that_comes_is_known_to_be_new_before_it_is_chosen() {
    let of = |growth, endpoints: &[u8]| [growing_for(growth, list("web", &[10], endpoints))];
    let mut node = Node::default();
    let first =
        ["1 grows .2 from 1000 for 28", "1[0] = .2", "size 1 = 1, choice 16 0", ".10:80 -> 1"];
    assert_eq!(node.reach(&of(28, &[2])), first);
    let steps = plan(&node.state, &of(28, &[2, 3]), NOW + 5);
    assert_eq!(steps.iter().map(tell).next(), Some("1 grows .3 from 1005 for 28".to_owned()));
    steps.into_iter().for_each(|step| node.apply(step, |_| {}));
    // Who stays goes on as it began, also in another agent's hands.
    node.restart();
    assert_eq!(node.reach(&of(28, &[2, 3])), ["size 1 = 2, choice 16 0"]);
    assert_eq!(plan(&node.state, &of(28, &[2, 3]), NOW + 9), []);
    let longer = ["1 grows .2 from 1000 for 60", "1 grows .3 from 1005 for 60"];
    assert_eq!(node.reach(&of(60, &[2, 3])), longer);
    // Who leaves and comes back is new again.
    assert_eq!(node.reach(&of(60, &[2])), ["size 1 = 1, choice 16 0", "1 has all of .3"]);
    assert!(node.reach(&of(60, &[2, 3])).contains(&"1 grows .3 from 1000 for 60".to_owned()));
    // And nobody is, once that is not asked for any more.
    let end = ["size 1 = 2", "1 has all of .2", "1 has all of .3"];
    assert_eq!(node.reach(&of(0, &[2, 3])), end);
    assert!(node.kernel.shares.is_empty());
}

#[test]
fn who_was_there_before_shares_grew_has_all_of_its_share() {
    let mut node = holding(&[list("web", &[10], &[2, 3])]);
    let grows = |endpoints: &[u8]| [growing_for(28, list("web", &[10], endpoints))];
    assert_eq!(node.reach(&grows(&[2, 3])), ["size 1 = 2, choice 16 0"]);
    let more = ["1 grows .4 from 1000 for 28", "1[2] = .4", "size 1 = 3, choice 16 0"];
    assert_eq!(node.reach(&grows(&[2, 3, 4])), more);
    let gone = node.reach(&[]);
    assert!(gone.contains(&"1 has all of .4".to_owned()), "{gone:?}");
}

#[test]
fn a_list_that_is_made_anew_knows_how_old_its_endpoints_are() {
    let of =
        |addresses: &[u8], endpoints: &[u8]| [growing_for(28, list("web", addresses, endpoints))];
    let mut node = Node::default();
    node.reach(&of(&[10, 11], &[2]));
    // An address that leaves must not lead to the endpoint that comes.
    let steps = plan(&node.state, &of(&[10], &[2, 3]), NOW + 50);
    let told: Vec<String> = steps.iter().map(tell).collect();
    for step in ["2 grows .2 from 1000 for 28", "2 grows .3 from 1050 for 28"] {
        assert!(told.iter().any(|told| told == step), "{step}: {told:?}");
    }
}

#[test]
fn weights_are_told_where_connections_are_counted() {
    let of = |flags, growth, endpoints: &[u8]| {
        let heavy = weighing(list("web", &[10], endpoints), 2, 2);
        [EndpointList { choice: Choice { flags, affinity: 0 }, growth, ..heavy }]
    };
    let counted = frontend::LEAST | frontend::WEIGHED;
    let mut node = holding(&of(0, 0, &[2, 3]));
    let steps = node.reach(&of(counted, 0, &[2, 3]));
    let told = [
        "1 weighs .2 as 2, from 2147484648 for 0",
        "1 grows .3 from 2147484648 for 0",
        "size 1 = 3, choice 96 0",
    ];
    assert_eq!(steps, told);
    // Who was there is no newer for it.
    let grows = counted | frontend::GROWING;
    let steps = node.reach(&of(grows, 28, &[2, 3, 4]));
    assert!(steps.contains(&"1 weighs .2 as 2, from 2147484648 for 28".to_owned()), "{steps:?}");
    assert!(steps.contains(&"1 grows .4 from 1000 for 28".to_owned()), "{steps:?}");
    node.reach(&of(0, 0, &[2, 3]));
    assert!(node.kernel.shares.is_empty());
}

#[test]
fn a_service_loses_all_endpoints_and_gets_one_back() {
    let mut node = holding(&[list("web", &[10], &[2])]);
    assert_eq!(node.reach(&[list("web", &[10], &[])]), ["size 1 = 0"]);
    assert_eq!(node.reach(&[list("web", &[10], &[3])]), ["1[0] = .3", "size 1 = 1"]);
}

#[test]
fn a_service_that_goes_takes_its_addresses_first() {
    let steps = [".10:80 -> nowhere", "retire 1"];
    check(&[list("web", &[10], &[2])], &[], &steps);
}

#[test]
fn a_renamed_service_is_led_to_anew_before_the_old_one_goes() {
    let steps = ["2[0] = .2", "size 2 = 1", ".10:80 -> 2", "retire 1"];
    check(&[list("web", &[10], &[2])], &[list("shop", &[10], &[2])], &steps);
}

#[test]
fn services_share_endpoints_but_no_list() {
    let steps =
        ["1[0] = .2", "2[0] = .2", "size 1 = 1", "size 2 = 1", ".10:80 -> 1", ".11:80 -> 2"];
    check(&[], &[list("a", &[10], &[2]), list("b", &[11], &[2])], &steps);
}

#[test]
fn an_address_that_moves_never_leads_to_the_other_services_endpoints() {
    let have = [list("a", &[10], &[2]), list("b", &[11], &[3])];
    let want = [list("a", &[11], &[3]), list("b", &[10], &[2])];
    // In place, .10 would for a moment lead to .3.
    let steps = [
        "3[0] = .3",
        "4[0] = .2",
        "size 3 = 1",
        "size 4 = 1",
        ".11:80 -> 3",
        ".10:80 -> 4",
        "retire 1",
        "retire 2",
    ];
    check(&have, &want, &steps);
}

#[test]
fn a_successor_finds_lists_by_their_addresses() {
    let web = [list("a", &[10, 11], &[2, 3]), list("b", &[12], &[4])];
    let mut node = holding(&web);
    let before = node.kernel.clone();
    node.restart();
    // The sizes say which list is whose; the kernel holds them already.
    assert_eq!(node.reach(&web), ["size 1 = 2", "size 2 = 1"]);
    assert_eq!(node.kernel, before);
    assert_eq!(node.reach(&web), [""; 0]);
}

#[test]
fn a_successor_evens_out_what_its_predecessor_died_over() {
    let mut node = holding(&[list("web", &[10, 11], &[2, 3, 4])]);
    // Shrinking to one endpoint, it wrote one of two frontends.
    let shorter =
        Frontend { service: 1, generation: 0, endpoints: 1, flags: 0, port: 1, affinity: 0 };
    let first = *node.kernel.frontends.keys().next().expect("a frontend");
    node.kernel.frontends.insert(first, shorter);
    node.restart();
    let want = [list("web", &[10, 11], &[2])];
    assert_eq!(node.reach(&want), ["size 1 = 1"]);
    assert!(node.kernel.frontends.values().all(|record| *record == shorter));
}

#[test]
fn a_successor_removes_what_the_model_forgot_meanwhile() {
    let mut node = holding(&[list("a", &[10], &[2]), list("b", &[11], &[3])]);
    node.restart();
    let steps = ["size 2 = 1", ".10:80 -> nowhere", "retire 1"];
    assert_eq!(node.reach(&[list("b", &[11], &[3])]), steps);
}

/// Lists whose frontends are each led to once, as a model has them.
fn lists() -> impl Strategy<Value = Vec<EndpointList<V4>>> {
    let weight = prop::option::weighted(0.2, 2..5_u16);
    let of_one = (btree_set(2..9u8, 0..5), vec(weight, 7));
    vec(of_one, 0..4).prop_flat_map(|lists| {
        let owners = vec(prop::option::weighted(0.8, 0..lists.len().max(1)), 8);
        owners.prop_map(move |owners| {
            let lists = lists.iter().enumerate().map(|(i, (endpoints, weights))| {
                let frontends = (10..).zip(&owners).filter(|(_, owner)| **owner == Some(i));
                let frontends: Vec<u8> = frontends.map(|(last, _)| last).collect();
                let endpoints: Vec<u8> = endpoints.iter().copied().collect();
                let list = list(["a", "b", "c", "d"][i], &frontends, &endpoints);
                let weight = |one: &Endpoint<V4>| weights[usize::from(one.address[3] - 2)];
                let weighty = list.endpoints.iter().filter_map(|one| Some((*one, weight(one)?)));
                EndpointList { weights: weighty.collect(), ..list }
            });
            lists.filter(|list| !list.frontends.is_empty()).collect()
        })
    })
}

/// The endpoints of the list that `key` leads to.
fn of<'a>(
    lists: &'a [EndpointList<V4>],
    key: &FrontendKey<V4>,
) -> Option<&'a BTreeSet<Endpoint<V4>>> {
    lists.iter().find(|list| list.frontends.contains_key(key)).map(|list| &list.endpoints)
}

/// Asserts that every reader finds an endpoint that one of the `sets` of lists gives its frontend,
/// and none only if one of them gives it none.
fn assert_served(kernel: &Kernel, sets: &[&[EndpointList<V4>]]) {
    let keys = sets.iter().copied().flatten().flat_map(|list| list.frontends.keys());
    for key in keys.chain(kernel.frontends.keys()) {
        let allowed: Vec<_> = sets.iter().map(|lists| of(lists, key)).collect();
        let found = kernel.found(key);
        let may_be_none = allowed.iter().any(|set| set.is_none_or(BTreeSet::is_empty));
        assert!(may_be_none || !found.is_empty(), "{key:?} leads nowhere");
        for endpoint in found {
            let endpoint = endpoint.expect("a slot below the length");
            let known = allowed.iter().flatten().any(|set| set.contains(&endpoint));
            assert!(known, "{key:?} leads to {endpoint:?}");
        }
    }
}

/// Asserts that the kernel says what the lists say.
fn assert_reached(kernel: &Kernel, lists: &[EndpointList<V4>]) {
    let wanted: BTreeSet<_> =
        lists.iter().flat_map(|list| list.frontends.keys()).copied().collect();
    assert_eq!(kernel.frontends.keys().copied().collect::<BTreeSet<_>>(), wanted);
    for list in lists {
        for key in list.frontends.keys() {
            let found: Vec<_> = kernel.found(key).into_iter().flatten().collect();
            if let Some(layout) = list.layout() {
                assert_eq!(found, layout);
                continue;
            }
            assert_eq!(found.len(), list.endpoints.len(), "each once");
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), list.endpoints);
        }
    }
}

proptest! {
    #[test]
    fn every_reader_is_served_at_every_moment(models in vec(lists(), 1..5)) {
        let mut node = Node::default();
        let mut before: Vec<EndpointList<V4>> = Vec::new();
        for want in models {
            for step in plan(&node.state, &want, NOW) {
                node.apply(step, |kernel| assert_served(kernel, &[&before, &want]));
            }
            assert_reached(&node.kernel, &want);
            prop_assert!(plan(&node.state, &want, NOW).is_empty());
            before = want;
        }
    }

    /// However far an agent came, its successor serves every reader and arrives.
    #[test]
    fn a_successor_finishes_what_was_cut_off(
        had in lists(),
        wanted in lists(),
        now in lists(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut node = holding(&had);
        let mut writes = Vec::new();
        for step in plan(&node.state, &wanted, NOW) {
            writes.extend(node.state.writes(&step).expect("few endpoints"));
            node.state.note(step, Instant::now());
        }
        for write in &writes[..cut.index(writes.len() + 1)] {
            node.kernel.write(*write);
        }
        node.restart();
        for step in plan(&node.state, &now, NOW) {
            node.apply(step, |kernel| assert_served(kernel, &[&had, &wanted, &now]));
        }
        assert_reached(&node.kernel, &now);
        prop_assert!(plan(&node.state, &now, NOW).is_empty());
    }
}

/// As [`lists`], of Services with several ports and lists, of which some keep their clients or let only
/// some in.
fn services() -> impl Strategy<Value = Vec<EndpointList<V4>>> {
    let of_one = (any::<bool>(), btree_set((8..10u8, 0..3u8), 0..3), btree_set(2..9u8, 0..3));
    let of_one = (of_one, prop::sample::select(vec![0, 0, 7, 9]));
    (lists(), vec(of_one, 4)).prop_map(|(mut lists, of_each)| {
        for (list, ((keeps, ranges, lingering), growth)) in lists.iter_mut().zip(of_each) {
            *list = growing_for(growth, list.clone());
            let ListName::Service { service, port, local, .. } = &mut list.name else { continue };
            let (of, name, is_local) = match &*service.name {
                "a" => ("one", "http", false),
                "b" => ("one", "https", false),
                "c" => ("two", "http", false),
                _ => ("two", "http", true),
            };
            (service.name, *port, *local) = (of.to_owned(), name.to_owned(), is_local);
            list.choice.affinity = if keeps { 7 } else { 0 };
            list.source_ranges =
                ranges.into_iter().map(|(length, last)| (length, [10, 0, 0, last])).collect();
            let lingering = self::list("", &[], &lingering.into_iter().collect::<Vec<_>>());
            list.lingering = lingering.endpoints.difference(&list.endpoints).copied().collect();
        }
        lists.push(closed(lists.iter()));
        lists
    })
}

/// What there is of [`ListName::ClosedPorts`] for these lists.
fn closed<'a>(lists: impl Iterator<Item = &'a EndpointList<V4>>) -> EndpointList<V4> {
    let keys = lists.flat_map(|list| list.frontends.keys()).map(|key| any_port(key.address));
    let frontends = keys.map(|key| (key, 0)).collect();
    EndpointList { name: ListName::ClosedPorts, frontends, ..list("", &[], &[]) }
}

/// The lists by Service.
fn by_service(lists: &[EndpointList<V4>]) -> BTreeMap<ObjectName, Vec<&EndpointList<V4>>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for list in lists {
        if let Some((service, ..)) = list.port() {
            all.entry(service.clone()).or_default().push(list);
        }
    }
    all
}

/// The steps for those Services that differ.
fn plan_difference(
    state: &State<V4>,
    before: &[EndpointList<V4>],
    want: &[EndpointList<V4>],
) -> Option<Vec<Step<V4>>> {
    let (had, has) = (by_service(before), by_service(want));
    let names: BTreeSet<_> = had.keys().chain(has.keys()).cloned().collect();
    let services = names.into_iter().filter(|name| had.get(name) != has.get(name)).collect();
    let of = |all: &BTreeMap<ObjectName, Vec<&EndpointList<V4>>>| -> Vec<EndpointList<V4>> {
        let some = all.iter().filter(|(name, _)| BTreeSet::contains(&services, name));
        some.flat_map(|(_, lists)| lists.iter().copied().cloned()).collect()
    };
    let mut lists = of(&has);
    lists.push(closed(lists.iter()));
    let closed = closed(of(&had).iter()).frontends.into_keys().collect();
    plan_some(state, &Affected { services: &services, closed, lists }, NOW)
}

proptest! {
    /// Plans of what changed come where plans of everything do, after any number of them, and are as
    /// good for every reader on the way; and so in an agent that was restarted in between.
    #[test]
    fn plans_of_what_changed_come_to_the_same(
        sequence in vec((services(), prop::bool::weighted(0.2)), 1..6),
    ) {
        let mut node = Node::default();
        let mut before: Vec<EndpointList<V4>> = Vec::new();
        for (want, is_first) in sequence {
            let steps = if is_first {
                node.restart();
                plan(&node.state, &want, NOW)
            } else {
                plan_difference(&node.state, &before, &want).expect("no address is another's")
            };
            for step in steps {
                node.apply(step, |kernel| assert_served(kernel, &[&before, &want]));
            }
            assert_reached(&node.kernel, &want);
            prop_assert_eq!(plan(&node.state, &want, NOW), [], "the same as a plan of everything");
            let State { frontends, lists, .. } = node.state.clone();
            let rebuilt = State::of(frontends, lists);
            prop_assert_eq!(&node.state.names, &rebuilt.names);
            prop_assert_eq!(&node.state.spare, &rebuilt.spare);
            prop_assert!(node.state.next >= rebuilt.next);
            prop_assert_eq!(&node.kernel.shares, &node.state.shares);
            for (service, endpoint) in node.state.shares.keys() {
                let wanted = |list: &&EndpointList<V4>| node.state.names.get(&list.name) == Some(service);
                let list = want.iter().find(wanted).expect("a list with that number");
                prop_assert!(list.growth > 0 && list.endpoints.contains(endpoint));
            }
            before = want;
        }
    }
}

#[test]
fn what_touches_another_service_is_no_change_of_one() {
    let (a, b) = (list("a", &[10], &[2]), list("b", &[11], &[3]));
    let node = holding(&[a.clone(), b.clone()]);
    let taking = list("b", &[10, 11], &[3]);
    assert_eq!(
        plan_difference(&node.state, std::slice::from_ref(&b), std::slice::from_ref(&taking)),
        None
    );
    // Unless that changes, too.
    let without = list("a", &[12], &[2]);
    let steps = plan_difference(&node.state, &[a, b], &[without, taking]).expect("a plan");
    let told: Vec<_> = steps.iter().map(tell).collect();
    assert!(told.contains(&".10:80 -> 2".to_owned()), "{told:?}");
}

#[test]
fn one_change_among_many_services_is_planned_by_itself() {
    let mut many: Vec<_> =
        (10..250).map(|last| list(&format!("of-{last}"), &[last], &[2, 3])).collect();
    many.push(closed(many.iter()));
    let node = holding(&many);
    let mut next = many.clone();
    next[7] = list("of-17", &[17], &[2, 4]);
    let steps = plan_difference(&node.state, &many, &next).expect("a plan");
    assert_eq!(steps.iter().map(tell).collect::<Vec<_>>(), ["8[1] = .4"]);
}

#[test]
fn ten_thousand_services_are_planned_at_once() {
    let many = |endpoint: u8| -> Vec<EndpointList<V4>> {
        let service = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let mut list = list(&format!("service-{number}"), &[0], &[endpoint, endpoint + 1]);
            list.frontends = list
                .frontends
                .keys()
                .map(|key| (FrontendKey { address: [10, 96, high, low], ..*key }, 0))
                .collect();
            list
        };
        (0..10_000).map(service).collect()
    };
    let mut node = Node::default();
    let start = Instant::now();
    let first = plan(&node.state, &many(2), NOW);
    println!("planned 10,000 new Services in {:?}", start.elapsed());
    assert_eq!(first.len(), 10_000 * (2 + 1 + 1));
    for step in first {
        node.apply(step, |_| {});
    }
    let start = Instant::now();
    assert_eq!(plan(&node.state, &many(2), NOW).len(), 0);
    println!("found nothing to do in {:?}", start.elapsed());
    let mut changed = many(2);
    changed[17] = EndpointList { endpoints: many(4)[17].endpoints.clone(), ..changed[17].clone() };
    let start = Instant::now();
    assert_eq!(plan(&node.state, &changed, NOW).len(), 2);
    println!("planned one change in {:?}", start.elapsed());
}

#[test]
fn the_kernel_holds_what_was_planned_and_spare_slots_go() {
    crate::sandbox::sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = ServiceTables::<V4>::adopt(&mut dataplane, "4").expect("tables");
        let slots = |tables: &ServiceTables<V4>| tables.endpoints.entries().expect("slots").len();
        let read = |tables: &ServiceTables<V4>| Kernel {
            frontends: tables.frontends.entries().expect("frontends").into_iter().collect(),
            endpoints: tables.endpoints.entries().expect("slots").into_iter().collect(),
            ..Kernel::default()
        };
        let had = [list("a", &[10, 11], &[2, 3, 4]), list("b", &[12], &[5])];
        tables.reconcile(&had, Vec::new()).expect("room");
        assert_reached(&read(&tables), &had);

        let want = [list("a", &[10, 11], &[4])];
        tables.reconcile(&want, Vec::new()).expect("room");
        assert_reached(&read(&tables), &want);
        assert_eq!(slots(&tables), 4, "readers may still look at spare slots");
        assert!(tables.sweep(Instant::now()).expect("a sweep"), "some have to wait");
        assert!(!tables.sweep(Instant::now() + GRACE).expect("a sweep"));
        assert_eq!(slots(&tables), 1);
        assert_reached(&read(&tables), &want);
    });
}

#[test]
fn a_start_with_many_services_is_what_the_kernel_holds() {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = ServiceTables::<V4>::adopt(&mut dataplane, "4").expect("tables");
        // More than go into one call.
        let service = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let mut one = list(&format!("of-{number:04}"), &[1], &[2, 3, 4, 5, 6]);
            let place =
                |key: &FrontendKey<V4>| FrontendKey { address: [10, 97, high, low], ..*key };
            one.frontends = one.frontends.keys().map(|key| (place(key), 0)).collect();
            one
        };
        let many: Vec<_> = (0..1500).map(service).collect();
        tables.reconcile(&many, Vec::new()).expect("room");
        let kernel = Kernel {
            frontends: tables.frontends.entries().expect("frontends").into_iter().collect(),
            endpoints: tables.endpoints.entries().expect("slots").into_iter().collect(),
            ..Kernel::default()
        };
        assert_eq!(kernel.endpoints.len(), 7500);
        assert_reached(&kernel, &many);
        assert_eq!(plan(&kernel.adopt(), &many, NOW).len(), 1500, "names alone are not known yet");
    });
}

/// The list of a host port: a pod (last octet) at an address of the node (last octet).
fn host_port(pod: u8, port: u16, node: u8) -> EndpointList<V4> {
    let name = ListName::HostPort {
        pod: format!("shop/pod-{pod}"),
        port,
        protocol: Protocol::Tcp,
        address: None,
    };
    let plain = list("", &[node], &[pod]);
    let key = |key: &FrontendKey<V4>| (FrontendKey { port: U16::new(port), ..*key }, 0);
    EndpointList { name, frontends: plain.frontends.keys().map(key).collect(), ..plain }
}

#[test]
fn host_ports_come_and_go_beside_services() {
    sandbox(|bpffs| {
        let mut dataplane =
            crate::dataplane::Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = ServiceTables::<V4>::adopt(&mut dataplane, "4").expect("tables");
        let services = [list("web", &[1], &[2, 3]), list("db", &[4], &[5])];
        tables.reconcile(&services, Vec::new()).expect("room");
        let before = tables.state.clone();

        let opened = tables.reconcile_host_ports(vec![host_port(2, 8080, 9)]).expect("room");
        assert!(opened.outdates && opened.yielded.is_empty(), "flows may have begun before");
        assert_eq!(tables.frontends(), 3);
        tables.check(&host_port(2, 8080, 9)).expect("an open port");
        assert!(tables.check(&host_port(3, 8080, 9)).is_err(), "another pod");
        assert!(tables.check(&host_port(2, 8081, 9)).is_err(), "another port");

        // A complete model neither takes nor moves it, and nor does a successor that adopts it.
        let both = |tables: &mut ServiceTables<V4>| {
            tables.reconcile(&services, vec![host_port(2, 8080, 9)]).expect("room")
        };
        assert!(!both(&mut tables).outdates);

        // The port goes to another pod, and flows to the first are over.
        let moved = tables.reconcile_host_ports(vec![host_port(7, 8080, 9)]).expect("room");
        assert!(moved.outdates);
        tables.check(&host_port(7, 8080, 9)).expect("an open port");
        assert!(tables.reconcile_host_ports(Vec::new()).expect("tables").outdates);
        tables.sweep(Instant::now() + 2 * GRACE).expect("tables");
        let State { next, .. } = tables.state;
        assert_eq!(tables.state, State { next, ..before }, "Services are as they were");
    });
}

#[test]
fn a_change_of_a_service_that_has_to_do_with_a_host_port_takes_a_look_at_everything() {
    sandbox(|bpffs| {
        let mut dataplane =
            crate::dataplane::Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = ServiceTables::<V4>::adopt(&mut dataplane, "4").expect("tables");
        let port = host_port(7, 80, 1);
        tables.reconcile(&[list("web", &[2], &[3])], vec![port.clone()]).expect("room");
        let web = BTreeSet::from([ObjectName::new("shop", "web")]);
        let mut change = |frontends: &[u8]| {
            let lists = vec![list("web", frontends, &[3])];
            let affected = Affected { services: &web, closed: BTreeSet::new(), lists };
            tables.reconcile_some(&affected).expect("room").map(|outcome| outcome.outdates)
        };
        assert_eq!(change(&[2, 3]), Some(true));
        assert_eq!(change(&[1]), None, "the host port is in the way");
        assert_eq!(change(&[2]), Some(false));
        let yielded = tables.reconcile(&[list("web", &[1], &[3])], vec![port]).expect("room");
        assert_eq!(yielded.yielded.len(), 1);
        let affected = Affected { services: &web, closed: BTreeSet::new(), lists: Vec::new() };
        assert_eq!(tables.reconcile_some(&affected).expect("room"), None, "it may come back");
    });
}

#[test]
fn a_change_of_services_that_want_the_same_address_takes_a_look_at_everything() {
    sandbox(|bpffs| {
        let mut dataplane =
            crate::dataplane::Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = ServiceTables::<V4>::adopt(&mut dataplane, "4").expect("tables");
        let web = BTreeSet::from([ObjectName::new("shop", "web")]);
        let change = |tables: &mut ServiceTables<V4>, lists| {
            let affected = Affected { services: &web, closed: BTreeSet::new(), lists };
            tables.reconcile_some(&affected).expect("room").map(drop)
        };
        // What "db" wants of it, compilation has left to "web".
        let services = [list("web", &[1, 2], &[3]), list("db", &[3], &[4])];
        tables.reconcile(&services, Vec::new()).expect("room");
        assert_eq!(change(&mut tables, vec![list("web", &[1, 2, 3], &[3])]), None, "it is taken");
        assert_eq!(change(&mut tables, vec![list("web", &[1], &[3])]), Some(()));
        tables.reconcile(&services, Vec::new()).expect("room");
        tables.are_contested();
        assert_eq!(change(&mut tables, vec![list("web", &[1], &[3])]), None, "another may get it");
        tables.reconcile(&[list("web", &[1], &[3])], Vec::new()).expect("room");
        assert_eq!(change(&mut tables, vec![list("web", &[1, 2], &[3])]), Some(()));
    });
}

#[test]
fn a_host_port_yields_to_a_service_and_comes_back_after_it() {
    sandbox(|bpffs| {
        let mut dataplane =
            crate::dataplane::Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut tables = ServiceTables::<V4>::adopt(&mut dataplane, "4").expect("tables");
        let web = list("web", &[1], &[2]);
        let port = host_port(7, 80, 1);
        let at_once =
            tables.reconcile(std::slice::from_ref(&web), vec![port.clone()]).expect("room");
        assert_eq!(at_once.yielded, BTreeMap::from([(port.name.clone(), web.name.clone())]));
        let later = tables.reconcile_host_ports(vec![port.clone()]).expect("room");
        assert_eq!(later.yielded, at_once.yielded);
        assert_eq!(tables.frontends(), 1);
        tables.check(&port).expect("nothing that ought to be there is missing");

        let alone = tables.reconcile(&[], vec![port.clone()]).expect("room");
        assert!(alone.outdates && alone.yielded.is_empty());
        tables.check(&port).expect("an open port");
        let key = *port.frontends.keys().next().expect("one");
        let (number, _) = tables.state.frontends[&key];
        assert!(tables.serves(number, port.endpoints.first().expect("one")));
    });
}
