//! Objects in, model out, with what must be remembered in between: who holds which number, and the
//! last form of each Service that got what it asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fairway_feed::disk;
use fairway_model::{Model, ObjectName};

use crate::allocate::Allocator;
use crate::contradictions;
use crate::convert::{Converted, KUBERNETES, convert, ranges_of_others};
use crate::kubernetes::{FieldError, LoadBalancerIngress, ObjectId, Objects, Service};
use crate::load_balancer::{Classes, Plan, Pools};
use crate::policy::Resolver;

/// See the module.
pub(crate) struct Pipeline {
    allocator: Allocator,
    /// `None` to remember nothing beyond this process.
    file: Option<PathBuf>,
    accepted: Services,
    resolver: Resolver,
    classes: Classes,
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
    /// What is to be written as Services' load balancers' addresses, where others hold Services.
    pub(crate) plan: Plan,
    /// Why the allocations could not be written; to be tried again.
    pub(crate) unsaved: Option<String>,
}

impl Pipeline {
    /// One whose allocations are remembered in `file`, or nowhere, and which has accepted these
    /// Services before.
    pub(crate) fn new(allocator: Allocator, file: Option<PathBuf>, accepted: Services) -> Self {
        let (resolver, classes) = (Resolver::default(), Classes::default());
        Self { allocator, file, accepted, resolver, classes }
    }

    /// Sets whose load balancer we are.
    pub(crate) fn balance(&mut self, classes: Classes) {
        self.classes = classes;
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
        let mut plan = self.plan(&objects);
        if !self.allocator.is_told() {
            give(&mut objects.services, std::mem::take(&mut plan.addresses));
        }
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
        let pools = Pools::new(&objects, &self.classes);
        let Converted { model, mut warnings } =
            convert(&objects, &self.allocator, &pools, &mut self.resolver);
        warnings.extend(plan.refused.iter().cloned());
        Outcome { model, refused, contradictions, warnings, plan, unsaved }
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

    /// The addresses that load balancers are to have. Where Services are others', they say what they have;
    /// those of manifests have what was given to them before, unless their manifest says it.
    fn plan(&self, objects: &Objects) -> Plan {
        Pools::new(objects, &self.classes).plan(&self.allocator.families(), |name, service| {
            let said = service.status.load_balancer.ingress.iter().filter_map(|at| at.ip);
            let said: Vec<_> = said.collect();
            if self.allocator.is_told() {
                return Some(said);
            }
            let external: BTreeSet<_> = service.external_ips().map(|(_, ip)| ip).collect();
            let held = self.allocator.external_addresses(name);
            said.is_empty().then(|| held.difference(&external).copied().collect())
        })
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

/// Makes the addresses those that Services say they have.
fn give(services: &mut Services, addresses: BTreeMap<ObjectName, Vec<IpAddr>>) {
    for (name, addresses) in addresses {
        let Some(service) = services.get_mut(&name).filter(|_| !addresses.is_empty()) else {
            continue;
        };
        let at = |ip| LoadBalancerIngress { ip: Some(ip), ..LoadBalancerIngress::default() };
        Arc::make_mut(service).status.load_balancer.ingress =
            addresses.into_iter().map(at).collect();
    }
}
