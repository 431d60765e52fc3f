//! The same rules for everybody: each lets in another range at another port, and the last one the client.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use fairway_model::{
    Group, Member, Model, ObjectName, Policy, PolicyName, PortMatch, Protocol, Rule, Selection,
    Selector,
};
use ipnet::{IpNet, Ipv4Net};

use crate::topology::NodePlan;

/// The server's port.
pub(super) const TARGET_PORT: u16 = 8080;
/// How many ranges overlap where memory is measured.
pub(super) const RANGES: u32 = 1000;
/// Where ranges that nobody has begin.
const STRANGERS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// Where addresses of pods of other nodes begin.
const PEERS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// So many pods no rule tells apart, where memory is measured.
const ALIKE: u32 = 500;

/// What a server's policy says before it lets the client in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Rules of one range and one port each.
    pub rules: u32,
    /// Ranges of one rule.
    pub ranges: u32,
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rules, self.ranges) {
            (0, 0) => f.write_str("none"),
            (rules, 0) => write!(f, "{rules} rules"),
            (_, ranges) => write!(f, "{ranges} CIDRs"),
        }
    }
}

impl Rules {
    /// No policy.
    pub(super) const NONE: Self = Self { rules: 0, ranges: 0 };

    pub(super) const fn many(rules: u32) -> Self {
        Self { rules, ranges: 0 }
    }

    pub(super) const fn of_ranges(ranges: u32) -> Self {
        Self { rules: 0, ranges }
    }

    pub(super) const fn total(self) -> u32 {
        self.rules + self.ranges
    }

    /// All ranges and their ports, but for the client's.
    fn pairs(self) -> impl Iterator<Item = (Ipv4Net, u16)> {
        (0..self.total()).map(move |number| {
            let port =
                if self.rules > 0 { 10_000 + number % 50_000 } else { u32::from(TARGET_PORT) };
            // A port is never more than 59,999.
            (stranger(number), u16::try_from(port).unwrap_or(TARGET_PORT))
        })
    }

    /// Has the model say so of this pod.
    pub(super) fn restrict(self, model: &mut Model, node: &NodePlan, pod: &str) -> Result<()> {
        let ours = super::pod_range(node)?;
        let mut block = |range: Ipv4Net| {
            let name = format!("block-{range}");
            let means = Selection::Block { cidr: range.into(), except: Vec::new() };
            model.selectors.insert(Selector { name: name.clone(), means });
            name
        };
        let rule = |peers, port| Rule {
            peers: Some(peers),
            ports: Some(vec![PortMatch::Range(Protocol::Tcp, port, port)]),
            ..Rule::default()
        };
        let mut rules = Vec::new();
        if self.ranges > 0 {
            rules.push(rule(self.pairs().map(|(range, _)| block(range)).collect(), TARGET_PORT));
        } else {
            rules.extend(self.pairs().map(|(range, port)| rule(vec![block(range)], port)));
        }
        rules.push(rule(vec![block(ours)], TARGET_PORT));
        enforce(model, &[pod], rules);
        let name = ObjectName::new("bench", pod);
        model.pods.get(&name).context("a pod that is not in the model").map(drop)
    }

    pub(super) fn nftables(self, server: Ipv4Addr, ours: Ipv4Net) -> String {
        let mut elements = String::new();
        for (range, port) in self.pairs() {
            // Writing to a string cannot fail.
            let _ = write!(elements, "{range} . {port}, ");
        }
        format!(
            "add table ip bench\n\
             add set ip bench allowed {{ type ipv4_addr . inet_service ; flags interval ; }}\n\
             add element ip bench allowed {{ {elements}{ours} . {TARGET_PORT} }}\n\
             add chain ip bench forward {{ type filter hook forward priority 0 ; }}\n\
             add rule ip bench forward ct state established,related accept\n\
             add rule ip bench forward ip daddr {server} ip saddr . tcp dport @allowed accept\n\
             add rule ip bench forward ip daddr {server} drop\n"
        )
    }

    pub(super) fn iptables(self, server: Ipv4Addr, ours: Ipv4Net) -> String {
        let mut rules = String::new();
        for (range, port) in self.pairs().chain([(ours, TARGET_PORT)]) {
            let _ = writeln!(rules, "-A POLICY -s {range} -p tcp -m tcp --dport {port} -j ACCEPT");
        }
        Self::iptables_with(server, &rules)
    }

    /// The input of `ipset restore`.
    pub(super) fn ipset(self, ours: Ipv4Net) -> String {
        let most = self.total() + 16;
        let mut text = format!("create allowed hash:net,port maxelem {most}\n");
        for (range, port) in self.pairs().chain([(ours, TARGET_PORT)]) {
            let _ = writeln!(text, "add allowed {range},tcp:{port}");
        }
        text
    }

    pub(super) fn iptables_of_set(server: Ipv4Addr) -> String {
        let rule = "-A POLICY -m set --match-set allowed src,dst -j ACCEPT\n";
        Self::iptables_with(server, rule)
    }

    fn iptables_with(server: Ipv4Addr, rules: &str) -> String {
        format!(
            "*filter\n\
             :POLICY - [0:0]\n\
             -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -d {server}/32 -j POLICY\n\
             {rules}\
             -A POLICY -j DROP\n\
             COMMIT\n"
        )
    }
}

/// A range of 16 addresses that nobody has.
fn stranger(number: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(STRANGERS.to_bits() + number * 16), 28)
}

/// Restricts these pods by one policy.
fn enforce(model: &mut Model, pods: &[&str], rules: Vec<Rule>) {
    let name =
        PolicyName { namespace: "bench".into(), name: "bench".into(), ..PolicyName::default() };
    let policy = Policy { name: name.clone(), ingress: Some(rules), ..Policy::default() };
    model.policies.insert(policy);
    for pod in pods {
        let known = model.pods.get(&ObjectName::new("bench", *pod)).cloned();
        if let Some(mut pod) = known {
            pod.policies = vec![name.clone()];
            model.pods.insert(pod);
        }
    }
}

/// Lets so many pods of other nodes in, at another port each turn.
pub(super) fn let_in(model: &mut Model, pods: &[&str], peers: u32, turn: u32) {
    let group = join(model, 0);
    for number in 0..peers {
        model.members.insert(member(number, &group));
    }
    // A port is never more than 50,999.
    let port = u16::try_from(1000 + turn % 50_000).unwrap_or(TARGET_PORT);
    let ports = Some(vec![PortMatch::Range(Protocol::Tcp, port, port)]);
    let rule = Rule { peers: Some(vec![selector(0)]), ports, ..Rule::default() };
    enforce(model, pods, vec![rule]);
}

/// Has one policy speak of so many pods, and of ranges that overlap.
pub(super) fn much(model: &mut Model, pod: &str, peers: u32) {
    let mut wanted = Vec::new();
    for number in 0..peers.div_ceil(ALIKE) {
        let group = join(model, number);
        wanted.push(selector(number));
        let last = peers.min((number + 1) * ALIKE);
        for peer in number * ALIKE..last {
            model.members.insert(member(peer, &group));
        }
    }
    for number in 0..RANGES {
        // From a quarter of a million to 256 addresses, one within the other.
        let bits = 14 + number % 11;
        let begin = PEERS.to_bits() + ((number / 11) << (32 - bits));
        let bits = u8::try_from(bits).unwrap_or(24);
        let cidr = IpNet::from(Ipv4Net::new_assert(Ipv4Addr::from_bits(begin), bits));
        let name = format!("block-{cidr}");
        let means = Selection::Block { cidr, except: Vec::new() };
        model.selectors.insert(Selector { name: name.clone(), means });
        wanted.push(name);
    }
    enforce(model, &[pod], vec![Rule { peers: Some(wanted), ..Rule::default() }]);
}

fn selector(number: u32) -> String {
    format!("selector-{number}")
}

/// Makes a selector and the group of those whom it alone matches; the group's name.
fn join(model: &mut Model, number: u32) -> String {
    let name = selector(number);
    let means = Selection::Members(format!("pods number={number}"));
    model.selectors.insert(Selector { name: name.clone(), means });
    let group = format!("group-{number}");
    let selectors = vec![name];
    model.groups.insert(Group { name: group.clone(), selectors, ports: Vec::new() });
    group
}

fn member(number: u32, group: &str) -> Member {
    Member {
        name: ObjectName::new("others", format!("pod-{number:06}")),
        addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(PEERS.to_bits() + number))],
        group: group.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_the_same_rules() {
        let (server, ours) = (Ipv4Addr::new(10, 0, 0, 2), "10.0.0.0/24".parse().unwrap());
        let rules = Rules::many(2);
        let iptables = rules.iptables(server, ours);
        assert!(
            iptables.contains("-A POLICY -s 100.64.0.16/28 -p tcp -m tcp --dport 10001 -j ACCEPT")
        );
        assert!(iptables.contains("-A POLICY -s 10.0.0.0/24 -p tcp -m tcp --dport 8080 -j ACCEPT"));
        let nftables = rules.nftables(server, ours);
        assert!(
            nftables
                .contains("{ 100.64.0.0/28 . 10000, 100.64.0.16/28 . 10001, 10.0.0.0/24 . 8080 }")
        );
        let ipset = Rules::of_ranges(1).ipset(ours);
        assert!(
            ipset
                .contains("add allowed 100.64.0.0/28,tcp:8080\nadd allowed 10.0.0.0/24,tcp:8080\n")
        );
    }

    #[test]
    fn what_is_said_is_a_model() {
        let mut model = Model::default();
        let_in(&mut model, &[], 10, 3);
        model.validate().unwrap();
        let mut model = Model::default();
        much(&mut model, "none", 1200);
        model.validate().unwrap();
        assert_eq!((model.members.len(), model.groups.len()), (1200, 3));
        assert_eq!(model.selectors.len(), 3 + 1000);
    }
}
