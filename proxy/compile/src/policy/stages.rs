//! Between two models, where both who people are and what is said of them changes.
//!
//! An address becomes somebody else in one write, and a pod gets other rules in another. A peer that the old
//! rules allow as one, and the new ones as another, must be both in between.

use std::collections::BTreeSet;
use std::sync::Arc;

use fairway_model::{Action, Difference, Group, Member, Model, ObjectName};

/// So many pods at most change one after the other where many change at once.
const FEW: usize = 256;

/// The models to go through; the last one is for the pods that will be here. What changes about one pod takes none:
/// as a peer it is held against rules that stay, and its own rules are about peers that do.
///
/// Where rules only accept, people are who they were and who they will be in a first model, and the rules are the old
/// ones; in a second, those are new. A rule that denies or passes on may make of both together what it makes of
/// neither: then pods change one by one, as their objects do.
pub(super) fn between(before: &Model, next: &Model) -> Vec<Model> {
    let who = before.members.diff(&next.members).next().is_some()
        || before.groups.diff(&next.groups).next().is_some()
        || before.selectors.diff(&next.selectors).next().is_some();
    let says = before.policies.diff(&next.policies).next().is_some();
    let what = says || before.pods.diff(&next.pods).next().is_some();
    if !who || !what {
        return Vec::new();
    }
    if !says && let Some(names) = names(before, next) {
        if names.len() < 2 {
            return Vec::new();
        }
        if names.len() <= FEW && !only_accepts(before) {
            return one_by_one(before, next, &names);
        }
    }
    both_at_once(before, next).into()
}

/// Whose objects differ, if nothing else does that makes somebody of anybody.
fn names(before: &Model, next: &Model) -> Option<BTreeSet<ObjectName>> {
    let mut groups = before.groups.diff(&next.groups);
    let mut selectors = before.selectors.diff(&next.selectors);
    if groups.any(|d| d.before.is_some() && d.after.is_some())
        || selectors.any(|d| d.before.is_some() && d.after.is_some())
    {
        return None;
    }
    let members = before.members.diff(&next.members).map(|d| d.name().clone());
    Some(members.chain(before.pods.diff(&next.pods).map(|d| d.name().clone())).collect())
}

fn only_accepts(model: &Model) -> bool {
    let mut rules = model
        .policies
        .values()
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    rules.all(|rule| rule.action == Action::Accept)
}

/// All but the last of these are as they will be, one more in each model.
fn one_by_one(before: &Model, next: &Model, names: &BTreeSet<ObjectName>) -> Vec<Model> {
    let mut now = before.clone();
    for selector in before.selectors.diff(&next.selectors).filter_map(|d| d.after) {
        now.selectors.insert(selector.clone());
    }
    for group in before.groups.diff(&next.groups).filter_map(|d| d.after) {
        now.groups.insert(group.clone());
    }
    let mut models = Vec::new();
    for name in names.iter().take(names.len() - 1) {
        match next.members.get_shared(name) {
            Some(member) => now.members.insert(Arc::clone(member)),
            None => drop(now.members.remove(name)),
        }
        match next.pods.get_shared(name) {
            Some(pod) => now.pods.insert(Arc::clone(pod)),
            None => drop(now.pods.remove(name)),
        }
        models.push(now.clone());
    }
    models
}

fn both_at_once(before: &Model, next: &Model) -> [Model; 2] {
    let mut first = before.clone();
    for selector in before.selectors.diff(&next.selectors).filter_map(|d| d.after) {
        first.selectors.insert(selector.clone());
    }
    for group in before.groups.diff(&next.groups).filter_map(|d| d.after) {
        first.groups.insert(group.clone());
    }
    for Difference { before: old, after } in before.members.diff(&next.members) {
        let Some(after) = after else { continue };
        let was = old.and_then(|old| before.groups.get(&old.group));
        let is = next.groups.get(&after.group);
        let member = match was.zip(is).filter(|(was, is)| was.name != is.name) {
            Some((was, is)) => {
                let both = both(was, is);
                let group = both.name.clone();
                first.groups.insert(both);
                Member { group, ..Member::clone(after) }
            }
            None => Member::clone(after),
        };
        first.members.insert(member);
    }
    let mut then = first.clone();
    then.policies = next.policies.clone();
    then.pods = next.pods.clone();
    [first, then]
}

fn both(was: &Group, is: &Group) -> Group {
    fn sorted<T: Ord + Clone>(one: &[T], other: &[T]) -> Vec<T> {
        let all: BTreeSet<&T> = one.iter().chain(other).collect();
        all.into_iter().cloned().collect()
    }
    Group {
        // No name that the control plane gives has a space.
        name: format!("{} {}", was.name, is.name),
        selectors: sorted(&was.selectors, &is.selectors),
        ports: sorted(&was.ports, &is.ports),
    }
}
