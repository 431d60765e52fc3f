//! From rules in order to one answer for each protocol and port, and from answers to prefixes of ports.

use std::collections::{BTreeMap, BTreeSet};

use fairway_abi::{Ruling, RulingKey, ruling};
use fairway_model::{Action, NamedPort, PortMatch, Tier};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

/// A rule of a set, with its number.
#[derive(Clone, Debug)]
pub(super) struct NumberedRule {
    pub(super) number: u32,
    pub(super) tier: Tier,
    pub(super) action: Action,
    /// As in [`fairway_model::Rule::ports`].
    pub(super) ports: Option<Vec<PortMatch>>,
}

/// What a set makes of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    /// Where no prefix says otherwise.
    first: u32,
    /// By protocol, length and port.
    prefixes: BTreeMap<(u8, u8, u16), u32>,
}

impl Answers {
    /// As entries of the table.
    pub(super) fn rulings(
        &self,
        set: u32,
        identity: u32,
    ) -> impl Iterator<Item = (RulingKey, Ruling)> + '_ {
        let (set, identity) = (U32::new(set), U32::new(identity));
        let key = move |protocol, length, port| {
            let port = U16::new(port);
            RulingKey { set, identity, protocol, length, port }
        };
        let lengths = self.prefixes.keys().fold(0, |bits, (_, length, _)| bits | 1 << length);
        let first = (key(0, 0, 0), Ruling { verdict: self.first, lengths });
        let rest = self.prefixes.iter().map(move |((protocol, length, port), verdict)| {
            (key(*protocol, *length, *port), Ruling { verdict: *verdict, lengths: 0 })
        });
        std::iter::once(first).chain(rest)
    }
}

/// What rules, in the order in which they are asked, make of somebody whom all of them are about.
/// `isolation` is the number to be named where policies of tier [`Tier::Namespace`] restrict the pod and none
/// of them allows; without it, there is no such policy. `named` are the destination's ports.
pub(super) fn flatten<'a>(
    rules: impl Iterator<Item = &'a NumberedRule> + Clone,
    isolation: Option<u32>,
    named: &[NamedPort],
) -> Answers {
    let matches: Vec<Match> = rules.map(|rule| Match::new(rule, named)).collect();
    let protocols: BTreeSet<u8> =
        matches.iter().flat_map(|rule| rule.ports.iter().flatten()).map(|(p, ..)| *p).collect();
    // What is true of a protocol that no rule names is true of all of those.
    let first = painted(&matches, None, isolation)[0].2;
    let mut prefixes = BTreeMap::new();
    for protocol in protocols {
        let pieces = painted(&matches, Some(protocol), isolation);
        let node = Node::new(&pieces, 0, 0);
        node.choose(first, 0, 0, &mut |length, port, verdict| {
            prefixes.insert((protocol, length, port), verdict);
        });
    }
    Answers { first, prefixes }
}

/// A rule whose names of ports are resolved.
struct Match {
    number: u32,
    tier: Tier,
    action: Action,
    /// Protocols and their ports, both ends included; `None`: everything.
    ports: Option<Vec<(u8, u32, u32)>>,
}

impl Match {
    fn new(rule: &NumberedRule, named: &[NamedPort]) -> Self {
        let resolve = |ports: &PortMatch| -> Vec<(u8, u32, u32)> {
            match ports {
                PortMatch::All(protocol) => vec![(protocol.number(), 0, LAST)],
                PortMatch::Range(protocol, first, last) => {
                    vec![(protocol.number(), (*first).into(), (*last).into())]
                }
                PortMatch::Named(protocol, name) => named
                    .iter()
                    .filter(|port| port.name == *name)
                    .filter(|port| protocol.is_none_or(|protocol| protocol == port.protocol))
                    .map(|port| (port.protocol.number(), port.port.into(), port.port.into()))
                    .collect(),
            }
        };
        let ports = rule.ports.as_ref().map(|ports| ports.iter().flat_map(resolve).collect());
        Self { number: rule.number, tier: rule.tier, action: rule.action, ports }
    }

    /// Its ports of a protocol; `None`: of one that no rule names.
    fn of(&self, protocol: Option<u8>) -> impl Iterator<Item = (u32, u32)> + '_ {
        let all = self.ports.is_none().then_some((0, LAST));
        let some = self.ports.iter().flatten();
        let some = some.filter(move |(of, ..)| Some(*of) == protocol);
        all.into_iter().chain(some.map(|(_, first, last)| (*first, *last)))
    }
}

const LAST: u32 = u16::MAX as u32;

/// Ports for which the same is true, both ends included.
type Piece = (u32, u32, u32);

/// What is true of a protocol's ports, in order.
fn painted(rules: &[Match], protocol: Option<u8>, isolation: Option<u32>) -> Vec<Piece> {
    let mut open = Span::all();
    let mut pieces: Vec<Piece> = Vec::new();
    for tier in [Tier::Admin, Tier::Namespace, Tier::Baseline] {
        let mut passed = Vec::new();
        for rule in rules.iter().filter(|rule| rule.tier == tier) {
            if open.is_empty() {
                break;
            }
            for (first, last) in rule.of(protocol) {
                let taken = open.take(first, last);
                match rule.action {
                    Action::Pass => passed.extend(taken),
                    Action::Accept => pieces.extend(taken.map(|(a, b)| (a, b, rule.number))),
                    Action::Deny => {
                        let denied = rule.number | ruling::DENIED;
                        pieces.extend(taken.map(|(a, b)| (a, b, denied)));
                    }
                }
            }
        }
        passed.into_iter().for_each(|(first, last)| open.put(first, last));
        if tier == Tier::Namespace
            && let Some(number) = isolation
        {
            let denied = number | ruling::DENIED | ruling::NAMESPACED;
            pieces.extend(open.take(0, LAST).map(|(first, last)| (first, last, denied)));
        }
    }
    pieces.extend(open.take(0, LAST).map(|(first, last)| (first, last, 0)));
    pieces.sort_unstable();
    pieces
}

/// Ports that nothing was decided about yet: the first and the last of each piece.
struct Span(BTreeMap<u32, u32>);

impl Span {
    fn all() -> Self {
        Self(BTreeMap::from([(0, LAST)]))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put(&mut self, first: u32, last: u32) {
        self.0.insert(first, last);
    }

    /// Takes out what it has of these.
    fn take(&mut self, first: u32, last: u32) -> std::vec::IntoIter<(u32, u32)> {
        let before = self.0.range(..first).next_back().filter(|(_, end)| **end >= first);
        let begin = before.map_or(first, |(start, _)| *start);
        let met: Vec<(u32, u32)> = self.0.range(begin..=last).map(|(a, b)| (*a, *b)).collect();
        let mut taken = Vec::with_capacity(met.len());
        for (start, end) in met {
            self.0.remove(&start);
            if start < first {
                self.0.insert(start, first - 1);
            }
            if end > last {
                self.0.insert(last + 1, end);
            }
            taken.push((start.max(first), end.min(last)));
        }
        taken.into_iter()
    }
}

/// A prefix of ports, with the verdicts that make the fewest entries below it (Draves et al.,
/// "Constructing Optimal IP Routing Tables", INFOCOM 1999).
struct Node {
    /// Sorted.
    best: Vec<u32>,
    halves: Option<Box<[Node; 2]>>,
}

impl Node {
    /// Of the ports from `start` on that share `length` bits; `pieces` are all that reach into them.
    fn new(pieces: &[Piece], start: u32, length: u8) -> Self {
        if let [(.., verdict)] = pieces {
            return Self { best: vec![*verdict], halves: None };
        }
        let middle = start + half(length);
        let left = pieces.partition_point(|(first, ..)| *first < middle);
        let right = pieces.partition_point(|(_, last, _)| *last < middle);
        let halves = [
            Self::new(&pieces[..left], start, length + 1),
            Self::new(&pieces[right..], middle, length + 1),
        ];
        let [one, other] = [&halves[0].best, &halves[1].best];
        let both: Vec<u32> =
            one.iter().filter(|verdict| other.binary_search(verdict).is_ok()).copied().collect();
        let best = if both.is_empty() {
            let any: BTreeSet<u32> = one.iter().chain(other).copied().collect();
            any.into_iter().collect()
        } else {
            both
        };
        Self { best, halves: Some(Box::new(halves)) }
    }

    /// Hands out the entries, where a shorter prefix says `above`.
    fn choose(&self, above: u32, start: u16, length: u8, put: &mut impl FnMut(u8, u16, u32)) {
        let mut here = above;
        if self.best.binary_search(&above).is_err() {
            here = self.best[0];
            put(length, start, here);
        }
        if let Some(halves) = &self.halves {
            let middle = start | u16::try_from(half(length)).unwrap_or(0);
            halves[0].choose(here, start, length + 1, put);
            halves[1].choose(here, middle, length + 1, put);
        }
    }
}

/// How many ports are in a half of a prefix.
fn half(length: u8) -> u32 {
    1 << (15 - u32::from(length))
}
