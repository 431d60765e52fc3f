use fairway_model::{
    Action, Group, NamedPort, Node, Object, Policy, PolicyKind, PortMatch, Protocol, Rule,
    Selector, Tier,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::{option, sample};

use super::*;
use fairway_abi::ruling;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

const NODE: &str = "n1";

/// What is decided, and by what.
type Verdict = (bool, bool, Option<(PolicyName, Option<usize>)>);

/// The rules as a person would read them, one after the other.
mod plain {
    use super::*;

    /// Who has an address, and the selectors that mean him.
    fn who(
        model: &Model,
        local: &[LocalPod],
        address: IpAddr,
    ) -> (BTreeSet<String>, Vec<NamedPort>) {
        // Through the tunnel, a node sends under the first address of its pods' range.
        let through = model
            .nodes
            .values()
            .find(|node| node.pod_cidrs.iter().any(|cidr| cidr.network() == address));
        let itself = through.and_then(|node| {
            node.addresses.iter().find(|itself| itself.is_ipv4() == address.is_ipv4())
        });
        let address = itself.copied().unwrap_or(address);
        let mut selectors = BTreeSet::new();
        for selector in model.selectors.values() {
            if let Selection::Block { cidr, except } = &selector.means
                && cidr.contains(&address)
                && !except.iter().any(|except| except.contains(&address))
            {
                selectors.insert(selector.name.clone());
            }
        }
        let claims = || model.members.values().filter(|m| m.addresses.contains(&address));
        let member = match local.iter().find(|pod| pod.addresses.contains(&address)) {
            Some(owner) => claims().find(|member| member.name == owner.name),
            None => claims()
                .next()
                .filter(|_| claims().count() == 1)
                .filter(|member| model.pods.get(&member.name).is_none_or(|pod| pod.node != NODE)),
        };
        let group = member.and_then(|member| model.groups.get(&member.group));
        selectors.extend(group.iter().flat_map(|group| group.selectors.iter().cloned()));
        (selectors, group.map(|group| group.ports.clone()).unwrap_or_default())
    }

    fn is_about(rule: &Rule, selectors: &BTreeSet<String>) -> bool {
        rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| selectors.contains(peer)))
    }

    fn has_port(rule: &Rule, protocol: Option<Protocol>, port: u16, named: &[NamedPort]) -> bool {
        let Some(ports) = &rule.ports else { return true };
        ports.iter().any(|ports| match ports {
            PortMatch::All(of) => Some(*of) == protocol,
            PortMatch::Range(of, first, last) => {
                Some(*of) == protocol && (*first..=*last).contains(&port)
            }
            PortMatch::Named(of, name) => named.iter().any(|known| {
                known.name == *name
                    && of.is_none_or(|of| of == known.protocol)
                    && Some(known.protocol) == protocol
                    && known.port == port
            }),
        })
    }

    pub(super) fn verdict(
        model: &Model,
        local: &[LocalPod],
        pod: &Pod,
        ingress: bool,
        other: IpAddr,
        (protocol, port): (Option<Protocol>, u16),
    ) -> Verdict {
        let (selectors, named) = who(model, local, other);
        let named = if ingress { pod.ports.clone() } else { named };
        let missing = |name: &PolicyName| Policy {
            name: name.clone(),
            ingress: Some(vec![]),
            egress: Some(vec![]),
            ..Policy::default()
        };
        let policies: Vec<Policy> = pod
            .policies
            .iter()
            .map(|name| model.policies.get(name).cloned().unwrap_or_else(|| missing(name)))
            .collect();
        for tier in [Tier::Admin, Tier::Namespace, Tier::Baseline] {
            let mut of_tier: Vec<&Policy> = policies.iter().filter(|p| p.tier == tier).collect();
            of_tier.sort_by_key(|policy| {
                (if tier == Tier::Namespace { 0 } else { policy.priority }, policy.name.clone())
            });
            let mut restricts = None;
            'tier: for policy in of_tier {
                let rules = if ingress { &policy.ingress } else { &policy.egress };
                let Some(rules) = rules else { continue };
                restricts = restricts.or(Some(policy));
                for (index, rule) in rules.iter().enumerate() {
                    if !is_about(rule, &selectors) || !has_port(rule, protocol, port, &named) {
                        continue;
                    }
                    let by = Some((policy.name.clone(), Some(index)));
                    match rule.action {
                        Action::Accept => return (true, false, by),
                        Action::Deny => return (false, false, by),
                        Action::Pass => break 'tier,
                    }
                }
            }
            if tier == Tier::Namespace
                && let Some(policy) = restricts
            {
                return (false, true, Some((policy.name.clone(), None)));
            }
        }
        (true, false, None)
    }
}

/// The tables as the kernel reads them.
mod kernel {
    use super::*;

    fn identity<A: crate::Family>(family: &super::Family<A>, address: A) -> u32 {
        family.identities.get(&address).copied().unwrap_or_else(|| {
            let covering = family.blocks.iter().filter(|((network, length), _)| {
                super::super::blocks::covers((*network, *length), address)
            });
            covering.max_by_key(|((_, length), _)| *length).map_or(0, |(_, identity)| *identity)
        })
    }

    pub(super) fn identity_of(tables: &Tables, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => identity(&tables.v4, address.octets()),
            IpAddr::V6(address) => identity(&tables.v6, address.octets()),
        }
    }

    pub(super) fn set(tables: &Tables, address: IpAddr, ingress: bool) -> u32 {
        let subject = match address {
            IpAddr::V4(address) => tables.v4.subjects.get(&address.octets()),
            IpAddr::V6(address) => tables.v6.subjects.get(&address.octets()),
        };
        subject.map_or(0, |subject| if ingress { subject.ingress } else { subject.egress })
    }

    pub(super) fn verdict(
        tables: &Tables,
        pod: IpAddr,
        ingress: bool,
        other: IpAddr,
        (protocol, port): (Option<Protocol>, u16),
    ) -> Verdict {
        let set = set(tables, pod, ingress);
        if set == 0 {
            return (true, false, None);
        }
        let key = |identity: u32, protocol, length, port| RulingKey {
            set: U32::new(set),
            identity: U32::new(identity),
            protocol,
            length,
            port: U16::new(port),
        };
        let mut identity = identity_of(tables, other);
        if !tables.rulings.contains_key(&key(identity, 0, 0, 0)) {
            identity = 0;
        }
        let first = tables.rulings[&key(identity, 0, 0, 0)];
        let mut verdict = first.verdict;
        if let Some(protocol) = protocol {
            let lengths = (0..=16_u8).rev().filter(|length| first.lengths & (1 << length) != 0);
            for length in lengths {
                let mask = u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0);
                let found =
                    tables.rulings.get(&key(identity, protocol.number(), length, port & mask));
                if let Some(found) = found {
                    verdict = found.verdict;
                    break;
                }
            }
        }
        let rule = verdict & ruling::RULE;
        let by = (rule != 0).then(|| {
            let name = &tables.rules[&rule];
            assert_eq!(name.ingress, ingress);
            (name.policy.clone(), name.index)
        });
        (verdict & ruling::DENIED == 0, verdict & ruling::NAMESPACED != 0, by)
    }
}

/// Addresses that are somebody's, or could be.
fn pool() -> Vec<IpAddr> {
    let v4 = (0..12_u8).map(|last| IpAddr::from([10, 0, 0, last]));
    let v6 = (0..6_u16).map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]));
    v4.chain(v6).chain([IpAddr::from([192, 0, 2, 1])]).collect()
}

/// Ports on either side of every border that [`port`] makes.
const PORTS: [u16; 14] = [0, 1, 79, 80, 81, 82, 442, 443, 444, 1023, 1024, 32_767, 32_768, 65_535];

fn questions() -> Vec<(Option<Protocol>, u16)> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let ports = protocols.into_iter().flat_map(|of| PORTS.map(|port| (Some(of), port)));
    ports.chain([(None, 0)]).collect()
}

fn address() -> impl Strategy<Value = IpAddr> {
    sample::select(pool())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn port() -> impl Strategy<Value = u16> {
    sample::select(vec![0, 1, 80, 81, 443, 1023, 1024, 32_768, 65_535])
}

fn named_port() -> impl Strategy<Value = NamedPort> {
    ("[hd]", protocol(), sample::select(vec![80, 443]))
        .prop_map(|(name, protocol, port)| NamedPort { name, protocol, port })
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    btree_set(named_port(), 0..3).prop_map(|ports| ports.into_iter().collect())
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    (address(), 0..9_u8).prop_map(|(address, short)| {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let length = if short == 8 { 0 } else { width - short };
        ipnet::IpNet::new(address, length).unwrap().trunc()
    })
}

fn range() -> impl Strategy<Value = Selector> {
    ("b[0-5]", net(), vec(net(), 0..3)).prop_map(|(name, cidr, except)| {
        let except = except.into_iter().filter(|except| cidr.contains(except)).collect();
        Selector { name, means: Selection::Block { cidr, except } }
    })
}

fn peer() -> impl Strategy<Value = String> {
    prop_oneof!["b[0-5]", "m[0-3]"]
}

fn ports() -> impl Strategy<Value = PortMatch> {
    prop_oneof![
        protocol().prop_map(PortMatch::All),
        (protocol(), port(), port()).prop_map(|(of, one, other)| PortMatch::Range(
            of,
            one.min(other),
            one.max(other)
        )),
        (option::of(protocol()), "[hd]").prop_map(|(of, name)| PortMatch::Named(of, name)),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let action = sample::select(vec![Action::Accept, Action::Deny, Action::Pass]);
    (action, option::of(vec(peer(), 0..3)), option::of(vec(ports(), 0..3)))
        .prop_map(|(action, peers, ports)| Rule { name: String::new(), action, peers, ports })
}

fn policy_name() -> impl Strategy<Value = PolicyName> {
    "[a-e]".prop_map(|name| PolicyName {
        kind: PolicyKind::NetworkPolicy,
        namespace: "ns".into(),
        name,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let tier = sample::select(vec![Tier::Admin, Tier::Namespace, Tier::Baseline]);
    let rules = || option::of(vec(rule(), 0..4));
    (policy_name(), tier, 0..3_u16, rules(), rules()).prop_map(
        |(name, tier, priority, mut ingress, mut egress)| {
            for rule in ingress.iter_mut().chain(&mut egress).flatten() {
                if tier == Tier::Namespace {
                    rule.action = Action::Accept;
                }
            }
            Policy { name, tier, priority, ingress, egress }
        },
    )
}

fn pod_name() -> impl Strategy<Value = ObjectName> {
    "p[0-7]".prop_map(|name| ObjectName::new("ns", name))
}

fn pod() -> impl Strategy<Value = Pod> {
    (pod_name(), "u[12]", "n[12]", btree_set(policy_name(), 0..5), named_ports()).prop_map(
        |(name, uid, node, policies, ports)| Pod {
            name,
            uid,
            node,
            policies: policies.into_iter().collect(),
            ports,
            ..Pod::default()
        },
    )
}

fn member() -> impl Strategy<Value = Member> {
    (pod_name(), btree_set(address(), 0..3), "g[0-3]").prop_map(|(name, addresses, group)| Member {
        name,
        addresses: addresses.into_iter().collect(),
        group,
    })
}

fn group() -> impl Strategy<Value = Group> {
    ("g[0-3]", btree_set("m[0-3]", 0..3), named_ports()).prop_map(|(name, selectors, ports)| {
        Group { name, selectors: selectors.into_iter().collect(), ports }
    })
}

/// Another node, which sends to pods here through a tunnel.
fn node() -> impl Strategy<Value = Node> {
    let cidrs = ["10.0.0.8/30", "fd00::4/126"].map(|cidr| cidr.parse().expect("a range"));
    btree_set(address(), 0..3).prop_map(move |addresses| Node {
        name: "n2".to_owned(),
        addresses: addresses.into_iter().collect(),
        pod_cidrs: cidrs.to_vec(),
        ..Node::default()
    })
}

/// A model, and what of it is on the node.
fn world() -> impl Strategy<Value = (Model, Vec<LocalPod>)> {
    let pods = vec((pod(), option::of(btree_set(address(), 1..3))), 0..8);
    let rest = (vec(range(), 0..6), vec(group(), 0..4), vec(member(), 0..10), vec(policy(), 0..6));
    (pods, rest, option::of(node())).prop_map(
        |(pods, (ranges, groups, members, policies), node)| {
            let mut model: Model = ranges
                .into_iter()
                .map(Object::Selector)
                .chain(node.map(Object::Node))
                .chain(groups.into_iter().map(Object::Group))
                .chain(members.into_iter().map(Object::Member))
                .chain(policies.into_iter().map(Object::Policy))
                .collect();
            let mut local: Vec<LocalPod> = Vec::new();
            let mut taken = BTreeSet::new();
            for (pod, addresses) in pods {
                if model.pods.contains_key(&pod.name) {
                    continue;
                }
                if let Some(addresses) = addresses.filter(|_| pod.node == NODE) {
                    let free = addresses.into_iter().filter(|a| taken.insert(*a));
                    let addresses: Vec<_> = free.collect();
                    if !addresses.is_empty() {
                        local.push(LocalPod {
                            name: pod.name.clone(),
                            uid: pod.uid.clone(),
                            addresses,
                        });
                    }
                }
                model.pods.insert(pod);
            }
            (model, local)
        },
    )
}

/// The tables, with numbers in the order in which they appear in them.
fn renumbered(tables: &Tables) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut sets: Vec<u32> = vec![0];
    let mut identities: Vec<u32> = vec![0];
    fn number(known: &mut Vec<u32>, number: u32) -> usize {
        known.iter().position(|known| *known == number).unwrap_or_else(|| {
            known.push(number);
            known.len() - 1
        })
    }
    fn family<A: crate::Family>(
        family: &super::Family<A>,
        sets: &mut Vec<u32>,
        identities: &mut Vec<u32>,
    ) -> impl PartialEq + std::fmt::Debug + use<A> {
        let subjects = family.subjects.iter();
        let subjects: Vec<_> =
            subjects.map(|(a, s)| (*a, number(sets, s.ingress), number(sets, s.egress))).collect();
        let addresses = family.identities.iter();
        let addresses: Vec<_> = addresses.map(|(a, i)| (*a, number(identities, *i))).collect();
        let blocks = family.blocks.iter();
        let blocks: Vec<_> = blocks.map(|(p, i)| (*p, number(identities, *i))).collect();
        (subjects, addresses, blocks)
    }
    let v4 = family(&tables.v4, &mut sets, &mut identities);
    let v6 = family(&tables.v6, &mut sets, &mut identities);
    let rulings: BTreeMap<_, _> = tables
        .rulings
        .iter()
        .map(|(key, ruling)| {
            let set = number(&mut sets, key.set.get());
            let identity = number(&mut identities, key.identity.get());
            let rule = ruling.verdict & ruling::RULE;
            let name = (rule != 0).then(|| tables.rules[&rule].clone());
            let key = (set, identity, key.protocol, key.length, key.port.get());
            (key, (name, ruling.verdict & !ruling::RULE, ruling.lengths))
        })
        .collect();
    let rules: BTreeSet<RuleName> = tables.rules.values().cloned().collect();
    (v4, v6, rulings, rules)
}

fn take_in<K: Ord + Clone, V: Clone>(table: &mut BTreeMap<K, V>, delta: &Delta<K, V>) {
    for key in &delta.gone {
        assert!(table.remove(key).is_some(), "what goes was there");
    }
    table.extend(delta.put.clone());
}

proptest! {
    #[test]
    fn tables_say_what_the_rules_say((model, local) in world()) {
        let tables = compile(&model, NODE, &local, &mut Numbers::default());
        for pod in &local {
            let known = &model.pods[&pod.name];
            for (address, other) in pod.addresses.iter().flat_map(|a| pool().into_iter().map(move |o| (*a, o))) {
                for ingress in [true, false] {
                    // Where nothing is ever denied, no rule is asked.
                    if kernel::set(&tables, address, ingress) == 0 {
                        for question in questions() {
                            let wanted = plain::verdict(&model, &local, known, ingress, other, question);
                            prop_assert!(wanted.0);
                        }
                        continue;
                    }
                    for question in questions() {
                        let wanted = plain::verdict(&model, &local, known, ingress, other, question);
                        let found = kernel::verdict(&tables, address, ingress, other, question);
                        prop_assert_eq!(
                            wanted, found, "{} {} {} {:?}", address, ingress, other, question
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_follows_is_as_if_it_came_alone(worlds in vec(world(), 2..5)) {
        let mut numbers = Numbers::default();
        let mut tables = Tables::default();
        for (model, local) in worlds {
            for changes in numbers.update(&model, NODE, &local) {
                for key in changes.rulings.put.keys() {
                    prop_assert!(!tables.rulings.contains_key(key), "a ruling changed: {:?}", key);
                }
                take_in(&mut tables.rulings, &changes.rulings);
                take_in(&mut tables.rules, &changes.rules);
                take_in(&mut tables.v4.subjects, &changes.v4.subjects);
                take_in(&mut tables.v4.identities, &changes.v4.identities);
                take_in(&mut tables.v4.blocks, &changes.v4.blocks);
                take_in(&mut tables.v6.subjects, &changes.v6.subjects);
                take_in(&mut tables.v6.identities, &changes.v6.identities);
                take_in(&mut tables.v6.blocks, &changes.v6.blocks);
            }
            prop_assert_eq!(&tables, &numbers.tables());
            let fresh = compile(&model, NODE, &local, &mut Numbers::default());
            prop_assert_eq!(renumbered(&tables), renumbered(&fresh));
            prop_assert!(numbers.update(&model, NODE, &local).is_empty());
        }
        numbers.update(&Model::default(), NODE, &[]);
        prop_assert_eq!(numbers.tables(), Tables::default());
        prop_assert_eq!(numbers.identities(), 0);
    }

    #[test]
    fn one_step_at_a_time_leads_there((model, local) in world(), (other, remote) in world()) {
        let mut numbers = Numbers::default();
        numbers.update(&model, NODE, &local);
        let mut now = model.clone();
        for change in model.diff(&other) {
            now.apply(change);
            // No pod of the node leaves the model before it leaves the node.
            let local: Vec<LocalPod> = remote
                .iter()
                .filter(|pod| {
                    now.pods.get(&pod.name).is_some_and(|p| p.node == NODE && p.uid == pod.uid)
                })
                .cloned()
                .collect();
            numbers.update(&now, NODE, &local);
            let fresh = compile(&now, NODE, &local, &mut Numbers::default());
            prop_assert_eq!(renumbered(&numbers.tables()), renumbered(&fresh));
        }
    }
}

/// A pod of the node that one policy restricts, and a member that a selector means.
fn shop(ingress: Vec<Rule>) -> (Model, LocalPod) {
    let name =
        PolicyName { namespace: "shop".into(), name: "deny".into(), ..PolicyName::default() };
    let web = ObjectName::new("shop", "web");
    let cart = ObjectName::new("shop", "cart");
    let address = IpAddr::from([10, 0, 0, 1]);
    let model = [
        Object::Policy(Policy { name: name.clone(), ingress: Some(ingress), ..Policy::default() }),
        Object::Pod(Pod {
            name: web.clone(),
            uid: "1".into(),
            node: NODE.into(),
            policies: vec![name],
            ..Pod::default()
        }),
        Object::Group(Group {
            name: "carts".into(),
            selectors: vec!["cart".into()],
            ports: vec![],
        }),
        Object::Member(Member {
            name: cart,
            addresses: vec![[10, 0, 0, 2].into()],
            group: "carts".into(),
        }),
    ];
    let local = LocalPod { name: web, uid: "1".into(), addresses: vec![address] };
    (model.into_iter().collect(), local)
}

fn accept(peers: Option<&str>, ports: Option<Vec<PortMatch>>) -> Rule {
    Rule { peers: peers.map(|peer| vec![peer.to_owned()]), ports, ..Rule::default() }
}

#[test]
fn there_are_no_more_rulings_than_are_needed() {
    #[track_caller]
    fn check(rules: Vec<Rule>, expected: &[(u32, u8, u8, u16)]) {
        let (model, local) = shop(rules);
        let tables = compile(&model, NODE, &[local], &mut Numbers::default());
        let found: Vec<_> = tables
            .rulings
            .keys()
            .map(|key| (key.identity.get(), key.protocol, key.length, key.port.get()))
            .collect();
        assert_eq!(found, expected);
    }
    let tcp = |first, last| Some(vec![PortMatch::Range(Protocol::Tcp, first, last)]);
    check(vec![], &[(0, 0, 0, 0)]);
    check(vec![accept(Some("cart"), None)], &[(0, 0, 0, 0), (1, 0, 0, 0)]);
    check(vec![accept(Some("cart"), tcp(80, 81))], &[(0, 0, 0, 0), (1, 0, 0, 0), (1, 6, 15, 80)]);
    // The rule about everybody has said it.
    check(
        vec![accept(None, tcp(80, 80)), accept(Some("cart"), tcp(80, 80))],
        &[(0, 0, 0, 0), (0, 6, 16, 80)],
    );
    check(
        vec![accept(None, Some(vec![PortMatch::All(Protocol::Udp)]))],
        &[(0, 0, 0, 0), (0, 17, 0, 0)],
    );
    check(vec![accept(None, tcp(1, 65_535))], &[(0, 0, 0, 0), (0, 6, 0, 0), (0, 6, 16, 0)]);
}

#[test]
fn a_pod_that_has_left_the_model_stays_restricted_while_it_runs() {
    let (model, local) = shop(vec![]);
    let mut numbers = Numbers::default();
    let before = compile(&model, NODE, std::slice::from_ref(&local), &mut numbers);
    assert_eq!(before.v4.subjects.len(), 1);
    let mut gone = model.clone();
    gone.pods.remove(&local.name);
    assert_eq!(compile(&gone, NODE, std::slice::from_ref(&local), &mut numbers), before);
    // Another life of it, elsewhere.
    gone.pods.insert(Pod {
        name: local.name.clone(),
        uid: "2".into(),
        node: "n2".into(),
        ..Pod::default()
    });
    assert_eq!(compile(&gone, NODE, std::slice::from_ref(&local), &mut numbers), before);
    assert_eq!(compile(&gone, NODE, &[], &mut numbers).v4.subjects.len(), 0);
}

#[test]
fn an_address_is_its_pods_only_while_that_has_it() {
    let (mut model, web) = shop(vec![accept(Some("cart"), None)]);
    let cart = ObjectName::new("shop", "cart");
    let address = [10, 0, 0, 2];
    let here = LocalPod { name: cart.clone(), uid: String::new(), addresses: vec![address.into()] };
    model.pods.insert(Pod { name: cart, node: NODE.into(), ..Pod::default() });
    let mut numbers = Numbers::default();
    let mut has = |other: Option<LocalPod>| {
        let local: Vec<LocalPod> = std::iter::once(web.clone()).chain(other).collect();
        compile(&model, NODE, &local, &mut numbers).v4.identities.contains_key(&address)
    };
    assert!(!has(None), "it is not here yet");
    assert!(has(Some(here.clone())));
    let other = ObjectName::new("shop", "other");
    assert!(!has(Some(LocalPod { name: other, ..here.clone() })), "another pod has it");
    assert!(!has(Some(LocalPod { name: ObjectName::default(), ..here.clone() })), "nobody's");
    assert!(has(Some(here)));
    assert!(!has(None), "it is gone");
}

#[test]
fn who_means_a_node_means_what_it_sends_through_the_tunnel() {
    let range = Selector {
        name: "range".to_owned(),
        means: Selection::Block { cidr: "192.0.2.0/24".parse().unwrap(), except: vec![] },
    };
    let (mut model, web) = shop(vec![accept(Some("range"), None)]);
    model.selectors.insert(range);
    let node = |last| Node {
        name: "n2".to_owned(),
        addresses: vec![IpAddr::from([192, 0, last, 7])],
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        ..Node::default()
    };
    let mut numbers = Numbers::default();
    let local = [web];
    model.nodes.insert(node(2));
    let tables = compile(&model, NODE, &local, &mut numbers);
    assert_eq!(
        tables.v4.identities.get(&[10, 1, 0, 0]),
        tables.v4.blocks.get(&([192, 0, 2, 0], 24))
    );
    assert_eq!(tables.v4.identities.len(), 1);
    // It has another address now, of which nobody speaks.
    model.nodes.insert(node(3));
    assert_eq!(compile(&model, NODE, &local, &mut numbers).v4.identities.len(), 0);
}

#[test]
fn an_address_that_two_claim_is_nobodys() {
    let (mut model, web) = shop(vec![accept(Some("cart"), None)]);
    let local = [web];
    let address = IpAddr::from([10, 0, 0, 2]);
    let other = ObjectName::new("shop", "other");
    model.members.insert(Member {
        name: other.clone(),
        addresses: vec![address],
        group: "carts".into(),
    });
    let mut numbers = Numbers::default();
    assert_eq!(compile(&model, NODE, &local, &mut numbers).v4.identities.len(), 0);
    let claims = vec![ObjectName::new("shop", "cart"), other.clone()];
    assert_eq!(numbers.contested(), BTreeMap::from([(address, claims)]));
    model.members.remove(&other);
    assert_eq!(compile(&model, NODE, &local, &mut numbers).v4.identities.len(), 1);
    assert_eq!(numbers.contested(), BTreeMap::new());
}

#[test]
fn only_those_are_somebody_of_whom_a_pods_rules_speak_here() {
    let (mut model, web) = shop(vec![accept(Some("cart"), None)]);
    let cidr = "192.0.2.0/24".parse().unwrap();
    let means = Selection::Block { cidr, except: vec![] };
    model.selectors.insert(Selector { name: "b".into(), means });
    let mut numbers = Numbers::default();
    let mut entries = |model: &Model, local: &[LocalPod]| {
        let tables = compile(model, NODE, local, &mut numbers);
        (tables.v4.identities.len(), tables.v4.blocks.len())
    };
    let web = [web];
    assert_eq!(entries(&model, &web), (1, 0));
    assert_eq!(entries(&model, &[]), (0, 0));
    let (other, _) = shop(vec![accept(Some("b"), None)]);
    model.policies = other.policies;
    assert_eq!(entries(&model, &web), (0, 1));
}

#[test]
fn numbers_begin_beyond_those_of_a_predecessor() {
    let (model, local) = shop(vec![accept(Some("cart"), None)]);
    let tables = compile(&model, NODE, &[local], &mut Numbers::beyond(1000));
    assert!(tables.rulings.keys().all(|key| key.set.get() >= 1000));
    assert!(tables.v4.identities.values().all(|identity| *identity >= 1000));
}

#[test]
fn a_peer_who_is_allowed_before_and_after_is_allowed_in_between() {
    let (model, local) = shop(vec![accept(Some("cart"), None)]);
    let (mut next, _) = shop(vec![accept(Some("basket"), None)]);
    next.groups.insert(Group {
        name: "baskets".into(),
        selectors: vec!["basket".into()],
        ports: vec![],
    });
    let cart = ObjectName::new("shop", "cart");
    let address = [10, 0, 0, 2];
    let group = "baskets".into();
    next.members.insert(Member { name: cart, addresses: vec![address.into()], group });
    let mut numbers = Numbers::default();
    let mut tables = compile(&model, NODE, std::slice::from_ref(&local), &mut numbers);
    let steps = numbers.update(&next, NODE, std::slice::from_ref(&local));
    assert!(steps.len() > 1);
    for changes in steps {
        tables.rulings.extend(changes.rulings.put);
        tables.rules.extend(changes.rules.put);
        tables.v4.identities.extend(changes.v4.identities.put);
        let allowed = |tables: &Tables| {
            kernel::verdict(tables, local.addresses[0], true, address.into(), (None, 0)).0
        };
        assert!(allowed(&tables));
        tables.v4.subjects.extend(changes.v4.subjects.put);
        assert!(allowed(&tables));
        tables.rulings.retain(|key, _| !changes.rulings.gone.contains(key));
        assert!(allowed(&tables));
    }
}
