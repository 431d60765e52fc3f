//! Which objects are not what they were, and what they were: what a model follows from needs a look only there.

use std::collections::BTreeSet;

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

/// All that are in one of both.
pub(crate) fn ids(one: &Objects, other: &Objects) -> BTreeSet<ObjectId> {
    let names = |kind: Kind| one.names(kind).into_iter().chain(other.names(kind));
    let all = Kind::ALL.into_iter().map(|kind| (kind, names(kind)));
    all.flat_map(|(kind, names)| names.map(move |name| ObjectId { kind, name })).collect()
}
