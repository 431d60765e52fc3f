//! Objects in, model out, with what must be remembered in between: who holds which number, and the
//! last form of each Service that got what it asked for.
//!
//! ```text
//! objects, those that may have changed ─► contradictions ─► allocate ─► convert ─► model
//!                                         └── Changes: what they were ──┘
//! ```
//!
//! What a step found is kept, so that a change costs what depends on it. The model does not depend on that: a
//! pipeline that is given all of the objects at once makes the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fairway_feed::disk;
use fairway_model::{Model, ObjectName};
use ipnet::IpNet;

use crate::allocate::Allocator;
use crate::changes::{self, Changes};
use crate::contradictions::Contradictions;
use crate::convert::{Converted, Converter, Given, KUBERNETES, ranges_of_others};
use crate::ingress::{Found, Ingresses};
use crate::kubernetes::{
    FieldError, Kind, LoadBalancerIngress, Object, ObjectId, Objects, Service,
};
use crate::load_balancer::{Classes, Plan, Pools, matters};
use crate::notices::Notice;

/// See the module.
pub(crate) struct Pipeline {
    /// What is in force, without what contradicts older objects.
    objects: Objects,
    contradictions: Contradictions,
    allocator: Allocator,
    /// `None` to remember nothing beyond this process.
    file: Option<PathBuf>,
    /// Services that were accepted before the first model.
    remembered: Services,
    converter: Converter,
    classes: Classes,
    plan: Plan,
    /// Services that are but other names of something, which hold nothing, and of what.
    aliases: BTreeMap<ObjectName, Box<str>>,
    /// The next model is the first, or the first for which it is known whose load balancer we are.
    anew: bool,
    pub(crate) ingresses: Ingresses,
    /// What came of them the last time: objects that gateways alone get, and what is wrong.
    served: (Model, Found),
}

/// Services by name.
pub(crate) type Services = BTreeMap<ObjectName, Arc<Service>>;

/// What came of a set of objects.
pub(crate) struct Outcome {
    pub(crate) model: Model,
    /// Services that did not get what they ask for. Their last accepted form is in the model, if
    /// there was one.
    pub(crate) refused: BTreeMap<ObjectName, Vec<FieldError>>,
    /// What objects say that contradicts older ones; they are in force without. And what of Ingresses
    /// cannot be served; they are in force as they last were good.
    pub(crate) contradictions: Vec<(ObjectId, FieldError)>,
    /// What objects ask for and do not get; they are in force without.
    pub(crate) warnings: Vec<(ObjectId, FieldError)>,
    /// What owners of Ingresses are to be told, in a cluster.
    pub(crate) notices: Arc<Vec<Notice>>,
    /// Whether more may have changed than nodes, pods, endpoints, and policies about them.
    pub(crate) more: bool,
    /// Why the allocations could not be written; to be tried again.
    pub(crate) unsaved: Option<String>,
}

/// The kinds of objects of which many change all the time.
const LIVELY: [Kind; 8] = [
    Kind::Node,
    Kind::Pod,
    Kind::Endpoints,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::AdminNetworkPolicy,
    Kind::BaselineAdminNetworkPolicy,
];

/// The kinds of objects that Ingresses are, or name.
const OF_INGRESSES: [Kind; 5] =
    [Kind::Ingress, Kind::IngressClass, Kind::Secret, Kind::ConfigMap, Kind::Service];

impl Pipeline {
    /// One whose allocations are remembered in `file`, or nowhere, and which has accepted these
    /// Services before.
    pub(crate) fn new(allocator: Allocator, file: Option<PathBuf>, accepted: Services) -> Self {
        Self {
            objects: Objects::default(),
            contradictions: Contradictions::default(),
            allocator,
            file,
            remembered: accepted,
            converter: Converter::default(),
            classes: Classes::default(),
            plan: Plan::default(),
            aliases: BTreeMap::new(),
            anew: true,
            ingresses: Ingresses::default(),
            served: Default::default(),
        }
    }

    /// One that remembers what this one would have on the disk, and nothing else.
    #[cfg(test)]
    pub(crate) fn restarted(&self) -> Self {
        Self::new(self.allocator.clone(), None, self.accepted().clone())
    }

    /// Sets whose load balancer we are.
    pub(crate) fn balance(&mut self, classes: Classes) {
        self.classes = classes;
        self.anew = true;
    }

    /// Whether nobody else holds anything.
    pub(crate) fn holds_nothing_but(&self, of: Option<&ObjectName>) -> bool {
        self.allocator.holds_nothing_but(of)
    }

    /// The ranges that addresses are given out from.
    pub(crate) fn service_cidrs(&self) -> &[IpNet] {
        self.allocator.service_cidrs()
    }

    /// The last form of each Service that got what it asked for.
    pub(crate) fn accepted(&self) -> &Services {
        &self.objects.services
    }

    /// What is to be written as Services' load balancers' addresses, where others hold Services.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// As [`run`](Self::run), where any object may be another one than before.
    pub(crate) fn run_all(
        &mut self,
        objects: &Objects,
        exists: impl Fn(&ObjectName) -> bool,
    ) -> Outcome {
        let mut maybe = changes::differing(objects, &self.objects);
        // They may say today what was settled before.
        maybe.extend(self.contradictions.losers());
        let aliases = self.aliases.keys().cloned();
        maybe.extend(aliases.map(|name| ObjectId { kind: Kind::Service, name }));
        self.run(objects, &maybe, exists)
    }

    /// The model of `objects`, of which those that are not what they were the last time are in `maybe`.
    /// `exists` says of a Service that is not among them whether it may still be there, unreadable, and
    /// must keep what it holds. Blocks on the disk when allocations change: what is published must
    /// survive a crash.
    pub(crate) fn run(
        &mut self,
        objects: &Objects,
        maybe: &BTreeSet<ObjectId>,
        exists: impl Fn(&ObjectName) -> bool,
    ) -> Outcome {
        let mut changes = Changes::default();
        self.contradictions.settle(objects, maybe, &mut self.objects, &mut changes);
        for id in maybe {
            if !matches!(id.kind, Kind::Node | Kind::Pod | Kind::Service) {
                changes.put(&mut self.objects, id, objects.get(id));
            }
        }
        let mut anew = std::mem::take(&mut self.anew);
        if anew || changes.any(&[Kind::Node, Kind::ServiceCIDR]) {
            let before = self.allocator.ranges().clone();
            if let Some(told) = self.objects.service_cidrs.get(KUBERNETES) {
                self.allocator.follow(&told.spec.cidrs);
            }
            let others = ranges_of_others(&self.objects).flat_map(|(_, cidrs)| cidrs);
            self.allocator.accept(others.collect());
            anew |= *self.allocator.ranges() != before;
        }
        let (mut refused, mut unsaved) = (BTreeMap::new(), None);
        let allocated = if self.allocator.is_told() {
            for name in changes::of(maybe, Kind::Service) {
                put_service(&mut self.objects, &mut changes, name, objects.services.get(name));
            }
            if anew || self.concerns_plan(&changes) {
                self.plan = self.planned(&self.objects.services);
            }
            self.allocator.take_note(&self.objects.services, &changes, anew)
        } else {
            let before = self.allocator.clone();
            let services;
            (services, refused, unsaved) = self.accept(&objects.services, exists);
            let names: BTreeSet<_> =
                services.keys().chain(self.objects.services.keys()).cloned().collect();
            for name in &names {
                put_service(&mut self.objects, &mut changes, name, services.get(name));
            }
            self.remembered.clear();
            self.allocator.differing(&before)
        };
        let renamed = self.rename(objects, maybe);
        let pools = Pools::new(&self.objects, &self.classes);
        let given = Given {
            changes: &changes,
            allocator: &self.allocator,
            allocated: &allocated,
            pools: &pools,
            aliases: &self.aliases,
            renamed: &renamed,
            anew,
        };
        let Converted { mut model, mut warnings } = self.converter.convert(&self.objects, &given);
        if anew || self.ingresses.is_concerned() || changes.any(&OF_INGRESSES) {
            let mut served = Model::default();
            let found = self.ingresses.convert(&self.objects, &mut served);
            self.served = (served, found);
        }
        let (served, found) = &self.served;
        model.ingresses.clone_from(&served.ingresses);
        model.gateways.clone_from(&served.gateways);
        model.secrets.clone_from(&served.secrets);
        warnings.extend(found.warnings.iter().cloned());
        warnings.extend(self.plan.refused.iter().cloned());
        let contradictions = self.contradictions.errors().cloned();
        let contradictions = contradictions.chain(self.allocator.contradictions());
        let contradictions = contradictions.chain(found.errors.iter().cloned()).collect();
        let more = anew || maybe.iter().any(|id| !LIVELY.contains(&id.kind));
        let notices = Arc::clone(&found.notices);
        Outcome { model, refused, contradictions, warnings, notices, more, unsaved }
    }

    /// Learns what those that may have changed are other names of; answers whose names are of something else now.
    fn rename(&mut self, objects: &Objects, maybe: &BTreeSet<ObjectId>) -> BTreeSet<ObjectName> {
        let mut renamed = BTreeSet::new();
        for name in changes::of(maybe, Kind::Service) {
            let alias = objects.services.get(name).and_then(|service| service.alias());
            if self.aliases.get(name).map(|alias| &**alias) != alias {
                renamed.insert(name.clone());
            }
            match alias {
                Some(alias) => drop(self.aliases.insert(name.clone(), alias.into())),
                None => drop(self.aliases.remove(name)),
            }
        }
        renamed
    }

    /// Where we give numbers out: the Services that are in force, those that did not get what they ask for, and
    /// why what they got cannot be remembered.
    fn accept(
        &mut self,
        all: &Services,
        exists: impl Fn(&ObjectName) -> bool,
    ) -> (Services, BTreeMap<ObjectName, Vec<FieldError>>, Option<String>) {
        let mut services = all.clone();
        services.retain(|_, service| service.may_hold_numbers());
        self.plan = self.planned(&services);
        give(&mut services, std::mem::take(&mut self.plan.addresses));
        let stays = |name: &ObjectName| {
            services.contains_key(name) || (exists(name) && !all.contains_key(name))
        };
        let (refused, unsaved) = self.give_out(&services, stays);
        for name in refused.keys() {
            let before = self.objects.services.get(name).or_else(|| self.remembered.get(name));
            match before.cloned() {
                Some(before) => services.insert(name.clone(), before),
                None => services.remove(name),
            };
        }
        (services, refused, unsaved)
    }

    /// Whether load balancers may get other addresses than before.
    fn concerns_plan(&self, changes: &Changes) -> bool {
        let before = changes.before();
        let concerns = |name: &ObjectName| {
            let both = [before.services.get(name), self.objects.services.get(name)];
            both.into_iter().flatten().any(|service| matters(service))
        };
        changes.any(&[Kind::IPAddressPool, Kind::Namespace, Kind::Node])
            || changes.of(Kind::Service).any(concerns)
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
    fn planned(&self, services: &Services) -> Plan {
        let families = self.allocator.families();
        Pools::new(&self.objects, &self.classes).plan(services, &families, |name, service| {
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

/// Puts a Service among the objects in force, or takes it away, as one that cannot have any numbers.
fn put_service(
    objects: &mut Objects,
    changes: &mut Changes,
    name: &ObjectName,
    service: Option<&Arc<Service>>,
) {
    let id = ObjectId { kind: Kind::Service, name: name.clone() };
    let service = service.filter(|service| service.may_hold_numbers());
    changes.put(objects, &id, service.cloned().map(Object::Service));
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
