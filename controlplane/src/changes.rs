//! Which objects are not what they were, and what they were: what a model follows from needs a look only there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairway_model::ObjectName;

use crate::kubernetes::{Kind, Object, ObjectId, Objects};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    ids: BTreeSet<ObjectId>,
    before: Objects,
}

impl Changes {
    /// Puts an object among those of `objects`, or takes it away, and notes it if that makes a difference.
    pub(crate) fn put(&mut self, objects: &mut Objects, id: &ObjectId, next: Option<Object>) {
        let last = objects.get(id);
        if last == next {
            return;
        }
        match next {
            Some(object) => objects.insert(id.name.clone(), object),
            None => objects.remove(id),
        }
        if self.ids.insert(id.clone())
            && let Some(last) = last
        {
            self.before.insert(id.name.clone(), last);
        }
    }

    /// The names of those of a kind, in order.
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = &ObjectName> {
        of(&self.ids, kind)
    }

    /// Whether there are some of one of the kinds.
    pub(crate) fn any(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|kind| self.of(*kind).next().is_some())
    }

    /// What they were; those that are new are not among them.
    pub(crate) fn before(&self) -> &Objects {
        &self.before
    }
}

/// The names of those of a kind, in order.
pub(crate) fn of(ids: &BTreeSet<ObjectId>, kind: Kind) -> impl Iterator<Item = &ObjectName> {
    let first = ObjectId { kind, name: ObjectName::default() };
    ids.range(first..).take_while(move |id| id.kind == kind).map(|id| &id.name)
}

/// All that are not the same in both.
pub(crate) fn differing(one: &Objects, other: &Objects) -> BTreeSet<ObjectId> {
    let others = Kind::ALL.into_iter().filter(|kind| !MANY.contains(kind));
    let others = others.flat_map(|kind| {
        let names = one.names(kind).into_iter().chain(other.names(kind));
        names.map(move |name| ObjectId { kind, name })
    });
    let others = others.filter(|id| one.get(id) != other.get(id));
    let pods = names(Kind::Pod, &one.pods, &other.pods);
    let slices = names(Kind::EndpointSlice, &one.endpoint_slices, &other.endpoint_slices);
    let services = names(Kind::Service, &one.services, &other.services);
    others.chain(pods).chain(slices).chain(services).collect()
}

/// The kinds of which there are so many that their names are not copied to be compared.
const MANY: [Kind; 3] = [Kind::Pod, Kind::EndpointSlice, Kind::Service];

fn names<'a, T: Eq>(
    kind: Kind,
    one: &'a BTreeMap<ObjectName, Arc<T>>,
    other: &'a BTreeMap<ObjectName, Arc<T>>,
) -> impl Iterator<Item = ObjectId> {
    let differ = one.iter().filter(|(name, object)| other.get(*name) != Some(*object));
    let gone = other.keys().filter(|name| !one.contains_key(*name));
    let names = differ.map(|(name, _)| name).chain(gone);
    names.map(move |name| ObjectId { kind, name: name.clone() })
}
