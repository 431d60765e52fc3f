//! Between two models, where both who people are and what is said of them changes.
//!
//! An address becomes somebody else in one write, and a pod gets other rules in another. A peer that the old
//! rules allow as one, and the new ones as another, must be both in between.

use std::collections::BTreeSet;

use fairway_model::{Difference, Group, Member, Model};

/// The models to go through: in the first, people are who they were and who they will be, and the rules are
/// the old ones; in the second, those are new. `None`: only one of the two changes.
pub(super) fn between(before: &Model, next: &Model) -> Option<[Model; 2]> {
    let who = before.members.diff(&next.members).next().is_some()
        || before.groups.diff(&next.groups).next().is_some()
        || before.selectors.diff(&next.selectors).next().is_some();
    let what = before.policies.diff(&next.policies).next().is_some()
        || before.pods.diff(&next.pods).next().is_some();
    if !who || !what {
        return None;
    }
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
    Some([first, then])
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
