//! Who has which address of one family.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_abi::Subject;
use fairway_model::{Member, ObjectName};

use super::blocks::{Block, Blocks, Prefix};
use super::identities::{Identities, Who};
use super::tracked::Tracked;
use super::{Family as FamilyTables, FamilyChanges, LocalPod};
use crate::Family;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Space<A> {
    /// Who claims an address; seldom more than one.
    claims: BTreeMap<A, Vec<Arc<Member>>>,
    /// Addresses under which a node sends through the tunnel, and the one that it is known by.
    aliases: BTreeMap<A, A>,
    /// Addresses that more than one claims.
    contested: BTreeSet<A>,
    /// Pods of this node that have it.
    owners: BTreeMap<A, LocalPod>,
    ranges: BTreeMap<Arc<str>, Block<A>>,
    blocks: Blocks<A>,
    subjects: Tracked<A, Subject>,
    identities: Tracked<A, u32>,
    prefixes: Tracked<Prefix<A>, u32>,
}

impl<A> Default for Space<A> {
    fn default() -> Self {
        Self {
            claims: BTreeMap::new(),
            aliases: BTreeMap::new(),
            contested: BTreeSet::new(),
            owners: BTreeMap::new(),
            ranges: BTreeMap::new(),
            blocks: Blocks::default(),
            subjects: Tracked::default(),
            identities: Tracked::default(),
            prefixes: Tracked::default(),
        }
    }
}

impl<A: Family> Space<A> {
    pub(super) fn tables(&self) -> FamilyTables<A> {
        FamilyTables {
            subjects: self.subjects.now().clone(),
            identities: self.identities.now().clone(),
            blocks: self.prefixes.now().clone(),
        }
    }

    /// How many addresses are restricted.
    pub(super) fn subjects(&self) -> usize {
        self.subjects.now().len()
    }

    pub(super) fn take_changes(&mut self) -> FamilyChanges<A> {
        FamilyChanges {
            subjects: self.subjects.take(),
            identities: self.identities.take(),
            blocks: self.prefixes.take(),
        }
    }

    pub(super) fn claim(&mut self, address: IpAddr, member: &Arc<Member>) {
        let Some(address) = A::of(address) else { return };
        let claims = self.claims.entry(address).or_default();
        claims.push(Arc::clone(member));
        if claims.len() > 1 {
            self.contested.insert(address);
        }
    }

    pub(super) fn unclaim(&mut self, address: IpAddr, name: &ObjectName) {
        let Some(address) = A::of(address) else { return };
        let Some(claims) = self.claims.get_mut(&address) else { return };
        claims.retain(|member| member.name != *name);
        if claims.len() < 2 {
            self.contested.remove(&address);
        }
        if claims.is_empty() {
            self.claims.remove(&address);
        }
    }

    /// From now on, who has the address `itself` is who has `alias`; or nobody is.
    pub(super) fn alias(&mut self, alias: IpAddr, itself: Option<IpAddr>) {
        let Some(alias) = A::of(alias) else { return };
        match itself.and_then(A::of) {
            Some(itself) => self.aliases.insert(alias, itself),
            None => self.aliases.remove(&alias),
        };
    }

    /// Aliases of any of these addresses.
    pub(super) fn aliases<'a>(
        &'a self,
        of: &'a BTreeSet<IpAddr>,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        self.aliases.iter().filter(|(_, real)| of.contains(&real.to_ip())).map(|(a, _)| a.to_ip())
    }

    pub(super) fn own(&mut self, address: IpAddr, pod: &LocalPod) {
        if let Some(address) = A::of(address) {
            self.owners.insert(address, pod.clone());
        }
    }

    pub(super) fn disown(&mut self, address: IpAddr) {
        if let Some(address) = A::of(address) {
            self.owners.remove(&address);
        }
    }

    /// All addresses that somebody claims.
    pub(super) fn claimed(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.claims.keys().map(|address| address.to_ip())
    }

    /// Addresses of members of any of these groups, at a cost of all addresses.
    pub(super) fn in_groups<'a>(
        &'a self,
        names: &'a HashSet<String>,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let has = |claims: &Vec<Arc<Member>>| claims.iter().any(|m| names.contains(&m.group));
        self.claims.iter().filter(move |(_, claims)| has(claims)).map(|(a, _)| a.to_ip())
    }

    pub(super) fn contested(&self) -> impl Iterator<Item = (IpAddr, Vec<ObjectName>)> + '_ {
        let contested = self.contested.iter().filter(|a| !self.owners.contains_key(*a));
        contested.map(|address| {
            let claims = self.claims.get(address).into_iter().flatten();
            let mut names: Vec<ObjectName> = claims.map(|member| member.name.clone()).collect();
            names.sort_unstable();
            (address.to_ip(), names)
        })
    }

    /// Takes in what ranges of these names are now, if they are any, and gives whoever is in others now another
    /// identity: at a cost of all ranges, and of those who get one. Addresses that are to be looked at are added to
    /// `touched`; what is returned held the ranges' numbers so far, and is to be released.
    pub(super) fn range(
        &mut self,
        some: Vec<(&str, Option<Block<A>>)>,
        identities: &mut Identities,
        touched: &mut BTreeSet<IpAddr>,
    ) -> Vec<Who> {
        let mut changed = false;
        for (name, block) in some {
            if self.ranges.get(name) == block.as_ref() {
                continue;
            }
            changed = true;
            match block {
                Some(block) => self.ranges.insert(name.into(), block),
                None => self.ranges.remove(name),
            };
        }
        if !changed {
            return Vec::new();
        }
        touched.extend(self.aliases.keys().map(|alias| alias.to_ip()));
        let blocks = Blocks::new(&self.ranges, identities);
        for (prefix, cover) in &blocks.prefixes {
            let identity = identities.take(0, *cover);
            if let Some(old) = self.prefixes.put(*prefix, identity) {
                identities.give_back(old);
            }
        }
        let gone = self.blocks.prefixes.keys().filter(|p| !blocks.prefixes.contains_key(*p));
        for prefix in gone {
            if let Some(old) = self.prefixes.remove(prefix) {
                identities.give_back(old);
            }
        }
        // Many have the same identity before, and so after.
        let mut moves: HashMap<(u32, Who), usize> = HashMap::new();
        let mut counted: Vec<(u32, u32, usize)> = Vec::new();
        let mut latest = None;
        self.identities.rewrite(blocks.since(&self.blocks), |old, cover| {
            let at = match latest {
                Some((one, other, at)) if (one, other) == (*old, *cover) => at,
                _ => *moves.entry((*old, *cover)).or_insert_with(|| {
                    let [group, _] = identities.made_of(*old);
                    counted.push((*old, identities.take(group, *cover), 0));
                    counted.len() - 1
                }),
            };
            latest = Some((*old, *cover, at));
            let (_, new, count) = &mut counted[at];
            *count += 1;
            *new
        });
        for (old, new, count) in counted {
            // One was taken.
            identities.take_again(new, count - 1);
            identities.give_back_some(old, count);
        }
        std::mem::replace(&mut self.blocks, blocks).covers
    }

    /// Gives an address the identity that it has now. `has` says whether it is a member's who claims it,
    /// given who has it on this node.
    pub(super) fn identify(
        &mut self,
        address: A,
        has: impl Fn(&Member, Option<&LocalPod>) -> bool,
        identities: &mut Identities,
    ) {
        let itself = self.aliases.get(&address).unwrap_or(&address);
        let claims = self.claims.get(itself).map_or(&[][..], Vec::as_slice);
        let owner = self.owners.get(itself);
        let mut members = claims.iter().filter(|_| owner.is_some() || claims.len() == 1);
        let member = members.find(|member| has(member, owner));
        let group = member.map_or(0, |member| identities.group(&member.group));
        let cover = self.blocks.cover(itself);
        let old = if group == 0 && cover == self.blocks.cover(&address) {
            self.identities.remove(&address)
        } else {
            let identity = identities.take(group, cover);
            self.identities.put(address, identity)
        };
        if let Some(old) = old {
            identities.give_back(old);
        }
    }

    /// Says what holds for an address of this node's; nothing if both directions are free.
    pub(super) fn restrict(&mut self, address: IpAddr, subject: Subject) {
        let Some(address) = A::of(address) else { return };
        if subject == Subject::default() {
            self.subjects.remove(&address);
        } else {
            self.subjects.put(address, subject);
        }
    }
}
