//! Objects in, model out, with what must be remembered in between: who holds which number, and the
//! last form of each Service that got what it asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use fairway_feed::disk;
use fairway_model::{Model, ObjectName};

use crate::allocate::Allocator;
use crate::contradictions;
use crate::convert::{Converted, KUBERNETES, convert, ranges_of_others};
use crate::kubernetes::{FieldError, ObjectId, Objects, Service};
use crate::policy::Resolver;

/// See the module.
pub(crate) struct Pipeline {
    allocator: Allocator,
    /// `None` to remember nothing beyond this process.
    file: Option<PathBuf>,
    accepted: Services,
    resolver: Resolver,
}

/// Services by name.
pub(crate) type Services = BTreeMap<ObjectName, Arc<Service>>;

/// What came of a set of objects.
pub(crate) struct Outcome {
    pub(crate) model: Model,
    /// Services that did not get what they ask for. Their last accepted form is in the model, if
    /// there was one.
    pub(crate) refused: BTreeMap<ObjectName, Vec<FieldError>>,
    /// What objects say that contradicts older ones; they are in force without.
    pub(crate) contradictions: Vec<(ObjectId, FieldError)>,
    /// What objects ask for and do not get; they are in force without.
    pub(crate) warnings: Vec<(ObjectId, FieldError)>,
    /// Why the allocations could not be written; to be tried again.
    pub(crate) unsaved: Option<String>,
}

impl Pipeline {
    /// One whose allocations are remembered in `file`, or nowhere, and which has accepted these
    /// Services before.
    pub(crate) fn new(allocator: Allocator, file: Option<PathBuf>, accepted: Services) -> Self {
        Self { allocator, file, accepted, resolver: Resolver::default() }
    }

    /// Whether nobody holds anything.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.allocator.holds_nothing()
    }

    /// The last form of each Service that got what it asked for.
    pub(crate) fn accepted(&self) -> &Services {
        &self.accepted
    }

    /// The model of `objects`. `exists` says of a Service that is not among them whether it may
    /// still be there, unreadable, and must keep what it holds. Blocks on the disk when allocations
    /// change: what is published must survive a crash.
    pub(crate) fn run(
        &mut self,
        mut objects: Objects,
        exists: impl Fn(&ObjectName) -> bool,
    ) -> Outcome {
        let mut contradictions = contradictions::settle(&mut objects);
        let (services, names): (Services, Services) =
            objects.services.into_iter().partition(|(_, service)| service.may_hold_numbers());
        objects.services = services;
        if let Some(told) = objects.service_cidrs.get(KUBERNETES) {
            self.allocator.follow(&told.spec.cidrs);
        }
        self.allocator.accept(ranges_of_others(&objects).flat_map(|(_, cidrs)| cidrs).collect());
        let services = &objects.services;
        let (mut refused, mut unsaved) = (BTreeMap::new(), None);
        if self.allocator.is_told() {
            contradictions.extend(self.allocator.take_note(services));
        } else {
            let stays = |name: &ObjectName| {
                services.contains_key(name) || (exists(name) && !names.contains_key(name))
            };
            (refused, unsaved) = self.give_out(services, stays);
        }
        for name in refused.keys() {
            match self.accepted.get(name) {
                Some(before) => objects.services.insert(name.clone(), Arc::clone(before)),
                None => objects.services.remove(name),
            };
        }
        self.accepted.clone_from(&objects.services);
        let Converted { model, warnings } = convert(&objects, &self.allocator, &mut self.resolver);
        Outcome { model, refused, contradictions, warnings, unsaved }
    }

    /// A round of the allocator that is remembered; or, where it cannot be, one that changes nothing, with
    /// the reason.
    fn give_out(
        &mut self,
        services: &Services,
        stays: impl Fn(&ObjectName) -> bool + Copy,
    ) -> (BTreeMap<ObjectName, Vec<FieldError>>, Option<String>) {
        let mut next = self.allocator.clone();
        let refused = next.round(services, stays);
        let Err(reason) = self.save(&next) else {
            self.allocator = next;
            return (refused, None);
        };
        let mut frozen = self.allocator.clone();
        frozen.freeze(reason.clone());
        (frozen.round(services, stays), Some(reason))
    }

    fn save(&self, next: &Allocator) -> Result<(), String> {
        match &self.file {
            Some(file) if !next.holds_the_same(&self.allocator) => {
                disk::replace(file, &next.to_file()).map_err(|error| {
                    let file = file.display();
                    format!("addresses and node ports cannot be remembered in {file}: {error}")
                })
            }
            _ => Ok(()),
        }
    }
}
