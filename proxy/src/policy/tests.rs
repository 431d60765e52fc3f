use std::collections::BTreeMap;

use fairway_abi::ruling;
use fairway_compile::policy::Tables;
use fairway_core::memory::Memory;
use fairway_core::policy::ask;
use fairway_model::{
    Group, Member, Object, Pod, Policy, PolicyName, PortMatch, Protocol, Rule, Selection, Selector,
};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use zerocopy::network_endian::U16;

use super::*;

const NODE: &str = "n1";

/// The kernel's tables, in memory.
#[derive(Clone, Default)]
struct Kernel(Tables);

impl Kernel {
    fn write(&mut self, write: Write) {
        match write {
            Write::Counters(rules) => {
                self.0.rules.extend(rules.into_iter().map(|rule| (rule, RuleName::default())));
            }
            Write::Rulings(rulings) => self.0.rulings.extend(rulings),
            Write::V4(write) => {
                let family = &mut self.0.v4;
                match write {
                    FamilyWrite::Identities(all) => family.identities.extend(all),
                    FamilyWrite::Block(prefix, identity) => {
                        family.blocks.insert(prefix, identity);
                    }
                    FamilyWrite::NoBlock(prefix) => {
                        family.blocks.remove(&prefix);
                    }
                    FamilyWrite::NoIdentity(address) => {
                        family.identities.remove(&address);
                    }
                    FamilyWrite::Subject(address, subject) => {
                        family.subjects.insert(address, subject);
                    }
                    FamilyWrite::NoSubject(address) => {
                        family.subjects.remove(&address);
                    }
                }
            }
            Write::V6(write) => panic!("no IPv6 here: {write:?}"),
        }
    }

    /// One write for each entry: batches may end anywhere.
    fn split(write: Write) -> Vec<Write> {
        match write {
            Write::Rulings(all) => all.into_iter().map(|one| Write::Rulings(vec![one])).collect(),
            Write::V4(FamilyWrite::Identities(all)) => {
                let one = |one| Write::V4(FamilyWrite::Identities(vec![one]));
                all.into_iter().map(one).collect()
            }
            write => vec![write],
        }
    }

    fn discard(&mut self, changes: &Changes) {
        self.0.rulings.retain(|key, _| !changes.rulings.gone.contains(key));
        self.0.rules.retain(|rule, _| !changes.rules.gone.contains(rule));
    }

    /// Who may talk to whom on a port: what each end of each pair is told, from the client on. Both ends do
    /// not change in the same moment.
    fn truth(&self) -> BTreeMap<(bool, V4, V4), bool> {
        let v4 = &self.0.v4;
        let blocks = v4.blocks.iter();
        let mut memory = Memory::<V4> {
            config: fairway_abi::Config {
                flags: fairway_abi::config::POLICED | fairway_abi::config::POLICED_TO_NODE,
                ..Default::default()
            },
            identities: v4.identities.iter().map(|(a, identity)| (*a, *identity)).collect(),
            blocks: blocks.map(|((a, length), i)| (*a, u32::from(*length), *i)).collect(),
            rulings: self.0.rulings.iter().map(|(key, ruling)| (*key, *ruling)).collect(),
            ..Memory::default()
        };
        let mut truth = BTreeMap::new();
        for ingress in [false, true] {
            let half = |subject: &Subject| match ingress {
                true => Subject { egress: 0, ..*subject },
                false => Subject { ingress: 0, ..*subject },
            };
            memory.subjects = v4.subjects.iter().map(|(a, subject)| (*a, half(subject))).collect();
            let all = || (0..ADDRESSES).map(|last| [10, 0, 0, last]);
            for (client, endpoint) in
                all().flat_map(|client| all().map(move |other| (client, other)))
            {
                let port = Some(U16::new(80));
                let told = ask(&memory, &client, &endpoint, 6, port).is_ok();
                truth.insert((ingress, client, endpoint), told);
            }
        }
        truth
    }
}

const ADDRESSES: u8 = 8;

/// All ranges that there may be. A name always means the same, as those that the control plane gives.
const RANGES: [(&str, &str, &[&str]); 8] = [
    ("b0", "10.0.0.0/29", &[]),
    ("b1", "10.0.0.0/29", &["10.0.0.2/31", "10.0.0.4/31"]),
    ("b2", "10.0.0.2/31", &[]),
    ("b3", "10.0.0.0/30", &["10.0.0.3/32"]),
    ("b4", "10.0.0.4/30", &["10.0.0.4/30"]),
    ("b5", "10.0.0.3/32", &[]),
    ("b6", "0.0.0.0/0", &["10.0.0.0/30"]),
    ("b7", "10.0.0.4/30", &["10.0.0.6/31"]),
];

fn range() -> impl Strategy<Value = Vec<Object>> {
    proptest::sample::select(RANGES.to_vec()).prop_map(|(name, cidr, except)| {
        let except = except.iter().map(|except| except.parse().unwrap()).collect();
        let means = Selection::Block { cidr: cidr.parse().unwrap(), except };
        vec![Object::Selector(Selector { name: name.into(), means })]
    })
}

fn name() -> impl Strategy<Value = ObjectName> {
    (0..ADDRESSES).prop_map(|number| ObjectName::new("ns", format!("p{number}")))
}

/// A pod has one address, which says which one it is.
fn address(name: &ObjectName) -> IpAddr {
    let last: u8 = name.name.trim_start_matches('p').parse().unwrap();
    [10, 0, 0, last].into()
}

/// With its group.
fn member() -> impl Strategy<Value = Vec<Object>> {
    (name(), btree_set("m[0-2]", 0..3)).prop_map(|(name, selectors)| {
        let selectors: Vec<String> = selectors.into_iter().collect();
        let group = format!("g{}", selectors.concat());
        vec![
            Object::Group(Group { name: group.clone(), selectors, ports: vec![] }),
            Object::Member(Member { addresses: vec![address(&name)], name, group }),
        ]
    })
}

fn peer() -> impl Strategy<Value = String> + Clone {
    prop_oneof!["b[0-7]", "m[0-2]"]
}

fn policy_name() -> impl Strategy<Value = PolicyName> {
    "[a-c]".prop_map(|name| PolicyName { namespace: "ns".into(), name, ..PolicyName::default() })
}

fn policy() -> impl Strategy<Value = Object> {
    let peers = option::of(vec(peer(), 0..3));
    let ports = option::of(proptest::sample::select(vec![80, 81]));
    let rule = (peers, ports).prop_map(|(peers, port)| {
        let ports = port.map(|port| vec![PortMatch::Range(Protocol::Tcp, port, port)]);
        Rule { peers, ports, ..Rule::default() }
    });
    let rules = || option::of(vec(rule.clone(), 0..3));
    (policy_name(), rules(), rules()).prop_map(|(name, ingress, egress)| {
        Object::Policy(Policy { name, ingress, egress, ..Policy::default() })
    })
}

fn pod() -> impl Strategy<Value = Object> {
    (name(), btree_set(policy_name(), 0..3)).prop_map(|(name, policies)| {
        let policies = policies.into_iter().collect();
        Object::Pod(Pod { name, node: NODE.into(), policies, ..Pod::default() })
    })
}

fn who() -> impl Strategy<Value = Model> {
    let objects = (vec(range(), 0..6), vec(member(), 0..8));
    objects.prop_map(|(one, two)| one.into_iter().chain(two).flatten().collect())
}

fn what() -> impl Strategy<Value = Model> {
    let objects = (vec(policy(), 0..4), vec(pod(), 0..8));
    objects.prop_map(|(one, two)| one.into_iter().chain(two).collect())
}

fn join(who: &Model, what: &Model) -> Model {
    Model { policies: what.policies.clone(), pods: what.pods.clone(), ..who.clone() }
}

fn local(model: &Model) -> Vec<LocalPod> {
    let pods = model.pods.values().map(|pod| LocalPod {
        name: pod.name.clone(),
        uid: String::new(),
        addresses: vec![address(&pod.name)],
    });
    pods.collect()
}

/// Brings a kernel from one model to another, and hands out each moment.
fn go(kernel: &mut Kernel, changes: Vec<Changes>, mut moment: impl FnMut(&Kernel)) {
    for changes in changes {
        for write in plan(&changes).into_iter().flat_map(Kernel::split) {
            kernel.write(write);
            moment(kernel);
        }
        kernel.discard(&changes);
        moment(kernel);
    }
}

fn check(before: &Model, after: &Model) {
    let mut numbers = Numbers::default();
    let mut kernel = Kernel::default();
    go(&mut kernel, numbers.update(before, NODE, &local(before)), |_| {});
    let old = kernel.truth();
    let changes = numbers.update(after, NODE, &local(after));
    let mut moments = Vec::new();
    go(&mut kernel, changes, |kernel| moments.push(kernel.truth()));
    let new = kernel.truth();
    for (number, now) in moments.iter().enumerate() {
        for (pair, allowed) in now {
            let (old, new) = (old[pair], new[pair]);
            assert!(old != new || old == *allowed, "{pair:?} is {allowed} at {number}");
        }
    }
    let (found, wanted) = (&kernel.0, numbers.tables());
    assert_eq!((&found.v4, &found.rulings), (&wanted.v4, &wanted.rulings));
    assert!(found.rules.keys().eq(wanted.rules.keys()));
}

proptest! {
    #[test]
    fn nobody_sees_a_change_of_what_stays(
        one in who(), other in who(), what in what(), next in what(),
    ) {
        // With the same pods here, one of the two changes.
        check(&join(&one, &what), &join(&other, &what));
        let moved = Model { policies: next.policies, ..join(&one, &what) };
        check(&join(&one, &what), &moved);
    }

    #[test]
    fn who_is_allowed_before_and_after_is_in_between(
        one in who(), other in who(), what in what(), next in what(),
    ) {
        let before = join(&one, &what);
        let after = Model { policies: next.policies, ..join(&other, &what) };
        let mut numbers = Numbers::default();
        let mut kernel = Kernel::default();
        go(&mut kernel, numbers.update(&before, NODE, &local(&before)), |_| {});
        let old = kernel.truth();
        let changes = numbers.update(&after, NODE, &local(&after));
        let mut denied = Vec::new();
        go(&mut kernel, changes, |kernel| {
            denied.push(kernel.truth().into_iter().filter(|(_, allowed)| !allowed).collect::<Vec<_>>());
        });
        let new = kernel.truth();
        for (pair, _) in denied.into_iter().flatten() {
            prop_assert!(!(old[&pair] && new[&pair]), "{:?} was denied", pair);
        }
    }

    #[test]
    fn a_successor_changes_nothing_while_it_takes_over(one in who(), what in what()) {
        let model = join(&one, &what);
        let mut kernel = Kernel::default();
        go(&mut kernel, Numbers::default().update(&model, NODE, &local(&model)), |_| {});
        let truth = kernel.truth();
        let highest = highest(&kernel.0);
        let mut numbers = Numbers::beyond(highest + 1);
        numbers.update(&model, NODE, &local(&model));
        let changes = succession(&kernel.0, &numbers.tables());
        go(&mut kernel, vec![changes], |kernel| assert_eq!(kernel.truth(), truth));
        let (found, wanted) = (&kernel.0, numbers.tables());
        assert_eq!((&found.v4, &found.rulings), (&wanted.v4, &wanted.rulings));
        assert!(found.rulings.keys().all(|key| key.set.get() > highest));
    }
}

#[test]
fn what_is_left_half_done_is_done_from_what_is_there() {
    let name = PolicyName { name: "deny".into(), ..PolicyName::default() };
    let pod = ObjectName::new("ns", "p1");
    let model: Model = [
        Object::Policy(Policy { name: name.clone(), ingress: Some(vec![]), ..Policy::default() }),
        Object::Pod(Pod { name: pod, node: NODE.into(), policies: vec![name], ..Pod::default() }),
    ]
    .into_iter()
    .collect();
    let mut numbers = Numbers::default();
    let steps: Vec<Write> =
        numbers.update(&model, NODE, &local(&model)).iter().flat_map(plan).collect();
    assert!(matches!(steps.last(), Some(Write::V4(FamilyWrite::Subject(..)))), "{steps:?}");
    for done in 0..=steps.len() {
        let mut kernel = Kernel::default();
        steps[..done].iter().cloned().for_each(|write| kernel.write(write));
        let rest = difference(&kernel.0, &numbers.tables());
        // The kernel does not know rules' names, so that those are told again.
        assert_eq!(plan(&rest).len(), steps.len() - done + usize::from(done > 0));
        go(&mut kernel, vec![rest], |_| {});
        let denied = kernel.0.rulings.values().all(|found| found.verdict & ruling::DENIED != 0);
        assert!(denied && !kernel.truth()[&(true, [10, 0, 0, 2], [10, 0, 0, 1])]);
    }
}

/// The pod with this number, restricted by a policy that lets nobody in but those whom "b" means.
fn denied(number: u8) -> (Model, Vec<LocalPod>) {
    let name = PolicyName { name: "deny".into(), ..PolicyName::default() };
    let pod = ObjectName::new("ns", format!("p{number}"));
    let cidr = "10.0.0.0/30".parse().unwrap();
    let rule = Rule { peers: Some(vec!["b".into()]), ..Rule::default() };
    let model: Model = [
        Object::Selector(Selector {
            name: "b".into(),
            means: Selection::Block { cidr, except: vec![] },
        }),
        Object::Policy(Policy {
            name: name.clone(),
            ingress: Some(vec![rule]),
            ..Policy::default()
        }),
        Object::Pod(Pod { name: pod, node: NODE.into(), policies: vec![name], ..Pod::default() }),
    ]
    .into_iter()
    .collect();
    let local = local(&model);
    (model, local)
}

#[test]
fn a_restarted_agent_takes_over_what_is_in_the_kernel() {
    crate::sandbox::sandbox(|bpffs| {
        let state = tempfile::tempdir().expect("a folder");
        let agent = || {
            let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
            let config = NamedConfig::adopt(&mut dataplane, state.path()).expect("a table");
            let policies = PolicyTables::adopt(&mut dataplane).expect("tables");
            (dataplane, config, policies)
        };
        let (_dataplane, mut config, mut policies) = agent();
        let (model, local) = denied(1);
        let mut new = Vec::new();
        let open = |addresses: &BTreeSet<IpAddr>| new.extend(addresses.iter().copied());
        assert!(policies.reconcile(&model, NODE, &local, &mut config, open).expect("room"));
        assert_eq!(new, [IpAddr::from([10, 0, 0, 1])]);
        let now = Instant::now();
        assert_eq!(policies.tell_flows(&mut config, now).expect("written"), None);
        let due = policies.tell_flows(&mut config, now + PACE / 2).expect("written");
        assert_eq!((due, config.policy_revision()), (Some(now + PACE), 1), "it is too early");
        let first = policies.read().expect("tables");
        let wanted = policies.numbers.tables();
        assert_eq!((&first.v4, &first.rulings), (&wanted.v4, &wanted.rulings));
        assert!(first.rules.keys().eq(wanted.rules.keys()));
        assert_eq!(config.policy_revision(), 1);
        assert!(!policies.reconcile(&model, NODE, &local, &mut config, |_| {}).expect("room"));
        assert_eq!(policies.counts().expect("counters").len(), wanted.rules.len());

        // Another agent, and another pod.
        let (_dataplane, mut config, mut policies) = agent();
        assert_eq!(config.policy_revision(), 1);
        let (model, local) = denied(2);
        policies.reconcile(&model, NODE, &local, &mut config, |_| {}).expect("room");
        assert_eq!(policies.tell_flows(&mut config, now).expect("written"), None);
        assert_eq!(config.policy_revision(), 2);
        assert_eq!(policies.tell_flows(&mut config, now + PACE).expect("written"), None);
        assert_eq!(config.policy_revision(), 3);
        let second = policies.read().expect("tables");
        assert!(second.rulings.len() > first.rulings.len(), "readers may be on their way");
        policies.sweep(Instant::now() + GRACE).expect("swept");
        let (second, wanted) = (policies.read().expect("tables"), policies.numbers.tables());
        assert_eq!((&second.v4, &second.rulings), (&wanted.v4, &wanted.rulings));
        assert!(second.rules.keys().eq(wanted.rules.keys()));
        assert!(second.v4.subjects.keys().eq([&[10, 0, 0, 2]]));
        assert!(second.rulings.keys().all(|key| !first.rulings.contains_key(key)));

        // A third one, and the pod has left the model, but not the node.
        let (_dataplane, mut config, mut policies) = agent();
        let gone = Model::default();
        for _ in 0..2 {
            policies.reconcile(&gone, NODE, &local, &mut config, |_| {}).expect("room");
            policies.sweep(Instant::now() + GRACE).expect("swept");
            let third = policies.read().expect("tables");
            assert_eq!(third.v4.subjects, second.v4.subjects);
            assert!(!third.rulings.is_empty());
            policies.state = State::Uncertain;
        }
        assert!(config.policy_revision() > 0);
        policies.reconcile(&gone, NODE, &[], &mut config, |_| {}).expect("room");
        policies.sweep(Instant::now() + GRACE).expect("swept");
        assert_eq!(policies.read().expect("tables"), Tables::default());
    });
}

/// Pods that are restricted by a policy each, which lets so many ranges in, each at another port.
fn with_ranges(pods: &[(u8, usize)]) -> (Model, Vec<LocalPod>) {
    let mut model = Model::default();
    for (number, ranges) in pods {
        let named = format!("by-p{number}");
        let name = PolicyName { namespace: "ns".into(), name: named, ..PolicyName::default() };
        let mut rules = Vec::new();
        for (last, port) in (0..=u8::MAX).zip(1..).take(*ranges) {
            let block = format!("b{number}-{last}");
            let cidr = ipnet::IpNet::new([192, 0, *number, last].into(), 32).unwrap();
            let means = Selection::Block { cidr, except: vec![] };
            model.selectors.insert(Selector { name: block.clone(), means });
            let ports = Some(vec![PortMatch::Range(Protocol::Tcp, port, port)]);
            rules.push(Rule { peers: Some(vec![block]), ports, ..Rule::default() });
        }
        let ingress = Some(rules);
        model.policies.insert(Policy { name: name.clone(), ingress, ..Policy::default() });
        let pod = ObjectName::new("ns", format!("p{number}"));
        let policies = vec![name];
        model.pods.insert(Pod { name: pod, node: NODE.into(), policies, ..Pod::default() });
    }
    let local = local(&model);
    (model, local)
}

#[test]
fn a_full_table_leaves_in_force_what_is_and_heals_with_room() {
    crate::sandbox::sandbox(|bpffs| {
        let state = tempfile::tempdir().expect("a folder");
        let room = ["rulings=64".parse().expect("a capacity")];
        let mut dataplane = Dataplane::load_sized(bpffs, &room).expect("programs that load");
        let mut config = NamedConfig::adopt(&mut dataplane, state.path()).expect("a table");
        let mut policies = PolicyTables::adopt(&mut dataplane).expect("tables");
        let mut go = |policies: &mut PolicyTables, pods: &[(u8, usize)]| {
            let (model, local) = with_ranges(pods);
            let result = policies.reconcile(&model, NODE, &local, &mut config, |_| {});
            let now = policies.read().expect("tables");
            let kernel = Kernel(Tables { v6: FamilyTables::default(), ..now });
            (result, kernel)
        };
        // Two entries a range, and one for everybody else.
        let (result, before) = go(&mut policies, &[(1, 10)]);
        assert!(result.expect("room"));
        assert_eq!(before.0.rulings.len(), 21);

        // A second pod, whose policy wants more than there is; and again, as it is tried until there is room.
        for pods in [&[(1, 10), (2, 100)][..], &[(1, 10), (2, 100)], &[(1, 12), (2, 90), (3, 1)]] {
            let (result, now) = go(&mut policies, pods);
            let error = format!("{:#}", result.expect_err("no room"));
            for part in ["NetworkPolicy ns/by-p2", "table rulings", "full", "--capacity rulings="] {
                assert!(error.contains(part), "{part}: {error}");
            }
            assert_eq!(now.0.v4.subjects, before.0.v4.subjects, "nobody is said to be in force");
            assert_eq!(now.0.v4.identities, before.0.v4.identities);
            assert_eq!(now.truth(), before.truth());
            for (key, ruling) in &before.0.rulings {
                assert_eq!(now.0.rulings.get(key), Some(ruling), "{key:?}");
            }
            assert_eq!(now.0.rulings.len(), 64, "as far as there was room");
        }

        // The policy takes less now.
        let (result, now) = go(&mut policies, &[(1, 10), (2, 5)]);
        assert!(result.expect("room"));
        assert_eq!(now.0.v4.subjects.len(), 2);
        policies.sweep(Instant::now() + GRACE).expect("swept");
        let (found, wanted) = (policies.read().expect("tables"), policies.numbers.tables());
        assert_eq!((&found.v4, &found.rulings), (&wanted.v4, &wanted.rulings));
        assert!(found.rules.keys().eq(wanted.rules.keys()));
        assert_eq!(found.rulings.len(), 21 + 11);
    });
}
