//! Which addresses Services of type LoadBalancer get, out of pools as users know them from MetalLB.
//!
//! A plan is made of all Services at once: who holds addresses keeps them while it may; then come those that
//! ask for certain ones; then the others, each the oldest first, and those of one age in the order of their
//! names. So the same objects and the same addresses held always make the same plan, and no Service moves
//! because of another that came later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::{Announcement, ObjectName, Pool, Protocol, TrafficPolicy};

use crate::kubernetes::policy::LabelSelector;
use crate::kubernetes::pool::{AddressRange, IPAddressPool, L2AdvertisementSpec};
use crate::kubernetes::{
    FieldError, IpFamily, IpFamilyPolicy, Kind, Labels, ObjectId, Objects, Service, ServiceType,
};
use crate::policy::Requirements;

/// Where a Service asks for certain addresses, beside `spec.loadBalancerIP`.
const WANTED: &str = "metadata.annotations.metallb.io/loadBalancerIPs";
/// Where it asks for a pool.
const POOL: &str = "metadata.annotations.metallb.io/address-pool";

/// Whose load balancer we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Of Services that ask for this `spec.loadBalancerClass`...
    pub own: String,
    /// ...and of those that ask for none.
    pub unset: bool,
}

impl Default for Classes {
    fn default() -> Self {
        Self { own: "fairway.dev/load-balancer".to_owned(), unset: true }
    }
}

impl Classes {
    fn has(&self, service: &Service) -> bool {
        let class = service.spec.load_balancer_class.as_deref();
        service.spec.r#type == ServiceType::LoadBalancer
            && service.is_ours()
            && class.map_or(self.unset, |class| class == self.own)
    }
}

/// The addresses that Services are to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Those of each Service that is ours; empty if there are none for it. A Service that is not of the type
    /// any more, and still says that it has an address of a pool, is to say nothing.
    pub addresses: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// What Services ask for and do not get.
    pub(crate) refused: Vec<(ObjectId, FieldError)>,
}

/// Whether a Service makes a difference for which addresses load balancers get.
pub(crate) fn matters(service: &Service) -> bool {
    service.spec.r#type == ServiceType::LoadBalancer
        || !service.spec.external_ips.is_empty()
        || !service.status.load_balancer.ingress.is_empty()
}

/// The pools, and whose addresses are to be of them.
pub(crate) struct Pools<'a> {
    objects: &'a Objects,
    classes: &'a Classes,
    /// By name.
    pools: Vec<Known<'a>>,
}

/// A pool and its name, which says all: there are no two of one name.
struct Known<'a> {
    id: &'a ObjectName,
    object: &'a IPAddressPool,
}

impl<'a> Pools<'a> {
    pub(crate) fn new(objects: &'a Objects, classes: &'a Classes) -> Self {
        let mut by_name = BTreeMap::new();
        for (id, object) in &objects.address_pools {
            by_name.entry(&id.name).or_insert(Known { id, object });
        }
        Self { objects, classes, pools: by_name.into_values().collect() }
    }

    /// Plans addresses of these Services, in a cluster with these families. `held` are those that a Service of ours has now;
    /// `None` if it has them from elsewhere. Without a pool nobody gets any, and nobody loses any.
    pub(crate) fn plan(
        &self,
        services: &BTreeMap<ObjectName, Arc<Service>>,
        cluster: &[IpFamily],
        held: impl Fn(&ObjectName, &Service) -> Option<Vec<IpAddr>>,
    ) -> Plan {
        let mut plan = Plan::default();
        if self.pools.is_empty() {
            return plan;
        }
        let mut uses = Uses { nodes: node_addresses(self.objects), ..Uses::default() };
        let mut holding = Vec::new();
        let mut elsewhere = Vec::new();
        for (name, service) in services {
            elsewhere.extend(service.external_ips().map(|(_, ip)| (ip, name, service)));
            let ours = self.classes.has(service);
            if let Some(has) = ours.then(|| held(name, service)).flatten() {
                match Asked::of(service, cluster) {
                    Ok(asked) => holding.push((name, &**service, asked, has)),
                    Err(error) => {
                        // It keeps what it has until it can be understood.
                        has.iter().for_each(|ip| uses.take(*ip, name, service, None));
                        plan.refuse(name, error);
                    }
                }
                continue;
            }
            let given = service.status.load_balancer.ingress.iter().filter_map(|at| at.ip);
            if service.spec.r#type == ServiceType::LoadBalancer {
                elsewhere.extend(given.map(|ip| (ip, name, service)));
            } else if given.clone().any(|ip| self.pools.iter().any(|pool| pool.has(ip))) {
                plan.addresses.insert(name.clone(), Vec::new());
            }
        }
        // Those of one age stay in the order of their names.
        holding.sort_by_key(|(_, service, _, _)| service.metadata.creation_timestamp);
        let mut open = Vec::new();
        for (name, service, asked, mut has) in holding {
            has.sort_by_key(|ip| asked.families.iter().position(|one| *one == IpFamily::of(*ip)));
            if self.keeps(name, service, &asked, &has, &uses) {
                has.iter().for_each(|ip| uses.take(*ip, name, service, asked.key.as_ref()));
                if has.len() < asked.families.len() && asked.wanted.is_empty() {
                    open.push((name, service, asked, has.clone()));
                }
                plan.addresses.insert(name.clone(), has);
            } else {
                open.push((name, service, asked, Vec::new()));
            }
        }
        // Only now: who names an address that another one holds does not take it away. Who holds it itself has
        // said already with whom it shares it.
        for (ip, name, service) in elsewhere {
            if !uses.has(ip, name) {
                uses.take(ip, name, service, None);
            }
        }
        // They stay in the order of their age otherwise.
        open.sort_by_key(|(_, _, asked, _)| asked.wanted.is_empty());
        for (name, service, asked, has) in open {
            let found = match (has.first(), asked.wanted.is_empty()) {
                (Some(one), _) => Ok(self.complete(name, service, &asked, *one, &uses)),
                (None, true) => self.choose(name, service, &asked, &uses),
                (None, false) => self.as_wanted(name, service, &asked, &uses),
            };
            let addresses = found.unwrap_or_else(|error| {
                plan.refuse(name, error);
                Vec::new()
            });
            addresses.iter().for_each(|ip| uses.take(*ip, name, service, asked.key.as_ref()));
            plan.addresses.insert(name.clone(), addresses);
        }
        plan
    }

    /// Whether it may keep these.
    fn keeps(
        &self,
        name: &ObjectName,
        service: &Service,
        asked: &Asked,
        has: &[IpAddr],
        uses: &Uses,
    ) -> bool {
        let fits = |pool: &&Known| asked.pool.is_none_or(|wanted| wanted == pool.id.name);
        let pool = self.around(has).filter(fits);
        let sorted = |ips: &[IpAddr]| ips.iter().copied().collect::<BTreeSet<_>>();
        pool.is_some_and(|pool| pool.is_for(name, service, self.objects))
            && (asked.wanted.is_empty() || sorted(&asked.wanted) == sorted(has))
            && asked.fits(has)
            && has.iter().all(|ip| uses.admit(*ip, name, service, asked.key.as_ref()).is_ok())
    }

    /// The addresses that it asks for.
    fn as_wanted(
        &self,
        name: &ObjectName,
        service: &Service,
        asked: &Asked,
        uses: &Uses,
    ) -> Result<Vec<IpAddr>, FieldError> {
        let refuse = |message: String| Err(FieldError::new(asked.field, message));
        let list = || {
            let texts = asked.wanted.iter().map(IpAddr::to_string);
            texts.collect::<Vec<_>>().join(", ")
        };
        let Some(pool) = self.around(&asked.wanted) else {
            return refuse(format!("no pool has {}", list()));
        };
        let pool_name = &pool.id.name;
        if asked.pool.is_some_and(|wanted| wanted != pool_name) {
            return refuse(format!("{} is in pool {pool_name}, another is asked for", list()));
        }
        if !pool.is_for(name, service, self.objects) {
            return refuse(format!("{} is in pool {pool_name}, which is for others", list()));
        }
        if !asked.fits(&asked.wanted) {
            return refuse(format!("{} are not what spec.ipFamilies asks for", list()));
        }
        for ip in &asked.wanted {
            uses.admit(*ip, name, service, asked.key.as_ref())
                .map_err(|message| FieldError::new(asked.field, message))?;
        }
        Ok(asked.wanted.clone())
    }

    /// Free addresses: of the pool that it names, or else of pools that are for such Services, or else of
    /// those that are for all.
    fn choose(
        &self,
        name: &ObjectName,
        service: &Service,
        asked: &Asked,
        uses: &Uses,
    ) -> Result<Vec<IpAddr>, FieldError> {
        let named = |pool: &&Known| asked.pool.is_some_and(|wanted| wanted == pool.id.name);
        let automatic =
            |pool: &&Known| asked.pool.is_none() && pool.object.spec.auto_assign != Some(false);
        let mut pools: Vec<_> =
            self.pools.iter().filter(|pool| named(pool) || automatic(pool)).collect();
        if let (Some(wanted), true) = (asked.pool, pools.is_empty()) {
            return Err(FieldError::new(POOL, format!("there is no pool \"{wanted}\"")));
        }
        pools.retain(|pool| pool.is_for(name, service, self.objects));
        if pools.is_empty() {
            let (field, message) = match asked.pool {
                Some(wanted) => (POOL, format!("pool {wanted} is for others")),
                None => ("spec.type", "no pool of addresses is for it".to_owned()),
            };
            return Err(FieldError::new(field, message));
        }
        pools.sort_by_key(|pool| pool.rank());
        let mut second = None;
        for pool in &pools {
            let find = |family: &IpFamily| pool.free(*family, name, service, asked, uses);
            let found: Vec<_> = asked.families.iter().filter_map(find).collect();
            if found.len() == asked.families.len() {
                return Ok(found);
            }
            // The family that comes first, of whatever pool, before the other one.
            let rank = |found: &Vec<IpAddr>| {
                found.first().map(|ip| asked.families.first() != Some(&IpFamily::of(*ip)))
            };
            if asked.prefers && rank(&found).is_some() {
                let better = second.as_ref().is_none_or(|best| rank(&found) < rank(best));
                second = if better { Some(found) } else { second };
            }
        }
        second.ok_or_else(|| {
            let names: Vec<_> = pools.iter().map(|pool| pool.id.name.as_str()).collect();
            let families: Vec<_> = asked.families.iter().map(ToString::to_string).collect();
            let (families, names) = (families.join(" and "), names.join(", "));
            FieldError::new("spec.type", format!("no {families} address is free in pool {names}"))
        })
    }

    /// What it has, and of the same pool one of the family that is missing, if there is one.
    fn complete(
        &self,
        name: &ObjectName,
        service: &Service,
        asked: &Asked,
        has: IpAddr,
        uses: &Uses,
    ) -> Vec<IpAddr> {
        let pool = self.around(&[has]);
        let of = |family: &IpFamily| match *family == IpFamily::of(has) {
            true => Some(has),
            false => pool?.free(*family, name, service, asked, uses),
        };
        asked.families.iter().filter_map(of).collect()
    }

    /// The pool that has all of these.
    fn around(&self, addresses: &[IpAddr]) -> Option<&Known<'a>> {
        let mut pools = self.pools.iter();
        pools.find(|pool| !addresses.is_empty() && addresses.iter().all(|ip| pool.has(*ip)))
    }

    /// The name of the pool by which nodes announce these addresses of a Service.
    pub(crate) fn announced_by(&self, service: &Service, addresses: &[IpAddr]) -> Option<String> {
        let pool = self.around(addresses).filter(|_| self.classes.has(service))?;
        Some(pool.id.name.clone())
    }

    /// What nodes are told of the pools.
    pub(crate) fn model(&self) -> impl Iterator<Item = Pool> {
        self.pools.iter().map(|pool| Pool {
            name: pool.id.name.clone(),
            size: pool.size(),
            announcements: pool.announcements(self.objects).collect(),
        })
    }

    /// What is likely not meant so.
    pub(crate) fn warnings(&self) -> Vec<(ObjectId, FieldError)> {
        let mut warnings = Vec::new();
        let of = |id: &ObjectName| ObjectId { kind: Kind::IPAddressPool, name: id.clone() };
        let nodes = match self.pools.is_empty() {
            true => BTreeMap::new(),
            false => node_addresses(self.objects),
        };
        let mut before: Vec<&Known> = Vec::new();
        for pool in &self.pools {
            for (index, range) in pool.object.spec.addresses.iter().enumerate() {
                let also = |other: &&&Known| {
                    other.object.spec.addresses.iter().any(|its| its.overlaps(range))
                };
                if let Some(other) = before.iter().find(also) {
                    let message = format!("has addresses that pool {} has, too", other.id);
                    let error = FieldError::new(format!("spec.addresses[{index}]"), message);
                    warnings.push((of(pool.id), error));
                }
            }
            for (ip, node) in nodes.iter().filter(|(ip, _)| pool.has(**ip)) {
                let message = format!("{ip} is an address of node {node}, and given to nobody");
                warnings.push((of(pool.id), FieldError::new("spec.addresses", message)));
            }
            if pool.announcements(self.objects).next().is_none() {
                let message = "no L2Advertisement is about it: nobody announces its addresses";
                warnings.push((of(pool.id), FieldError::new("spec", message)));
            }
            before.push(pool);
        }
        for id in self.objects.address_pools.keys() {
            if let Some(other) = before.iter().find(|pool| pool.id.name == id.name && pool.id != id)
            {
                let message = format!("not in force: pool {} has the same name", other.id);
                warnings.push((of(id), FieldError::new("metadata.name", message)));
            }
        }
        warnings
    }
}

impl Plan {
    fn refuse(&mut self, name: &ObjectName, error: FieldError) {
        self.refused.push((ObjectId { kind: Kind::Service, name: name.clone() }, error));
    }
}

impl Known<'_> {
    fn ranges(&self) -> impl Iterator<Item = &AddressRange> {
        self.object.spec.addresses.iter()
    }

    fn is_left_out(&self, address: IpAddr) -> bool {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => return false,
        };
        self.object.spec.avoid_buggy_ips && [0, 255].contains(&last)
    }

    fn has(&self, address: IpAddr) -> bool {
        !self.is_left_out(address) && self.ranges().any(|range| range.contains(address))
    }

    /// Whether Services like this one get addresses of it.
    fn is_for(&self, name: &ObjectName, service: &Service, objects: &Objects) -> bool {
        let Some(only) = &self.object.spec.service_allocation else { return true };
        let none = Labels::new();
        let namespace = objects.namespaces.get(&name.namespace);
        let labels = namespace.map_or(&none, |namespace| &namespace.metadata.labels);
        let everywhere = only.namespaces.is_empty() && only.namespace_selectors.is_empty();
        let there = everywhere
            || only.namespaces.contains(&name.namespace)
            || only.namespace_selectors.iter().any(|one| matches(one, labels));
        let mut selectors = only.service_selectors.iter();
        let such = only.service_selectors.is_empty()
            || selectors.any(|one| matches(one, &service.metadata.labels));
        there && such
    }

    /// Pools for certain Services come first, by priority; 0 is none.
    fn rank(&self) -> (bool, u32) {
        let only = self.object.spec.service_allocation.as_ref();
        (only.is_none(), only.map_or(0, |only| only.priority).wrapping_sub(1))
    }

    /// The first address that it may have.
    fn free(
        &self,
        family: IpFamily,
        name: &ObjectName,
        service: &Service,
        asked: &Asked,
        uses: &Uses,
    ) -> Option<IpAddr> {
        let ranges = self.ranges().filter(|range| range.family() == family);
        ranges.flat_map(AddressRange::addresses).find(|ip| {
            !self.is_left_out(*ip) && uses.admit(*ip, name, service, asked.key.as_ref()).is_ok()
        })
    }

    fn size(&self) -> u64 {
        let of = |range: &AddressRange| match range.addresses().next() {
            Some(IpAddr::V4(first)) if self.object.spec.avoid_buggy_ips => {
                // Computed: to look at each of them takes long where there are millions.
                let first = u64::from(first.to_bits());
                let end = first + range.size();
                let below = |end: u64, octet: u64| (end + 255 - octet) / 256;
                let ending = |octet: u64| below(end, octet) - below(first, octet);
                range.size() - ending(0) - ending(255)
            }
            _ => range.size(),
        };
        self.ranges().map(of).fold(0, u64::saturating_add)
    }

    fn announcements(&self, objects: &Objects) -> impl Iterator<Item = Announcement> {
        let labels = &self.object.metadata.labels;
        let about = move |spec: &L2AdvertisementSpec| {
            let selectors = &spec.ip_address_pool_selectors;
            let all = spec.ip_address_pools.is_empty() && selectors.is_empty();
            all || spec.ip_address_pools.contains(&self.id.name)
                || selectors.iter().any(|one| matches(one, labels))
        };
        let all = objects.l2_advertisements.values().map(|advertisement| &advertisement.spec);
        all.filter(move |spec| about(spec)).map(|spec| {
            let selected =
                |labels: &Labels| spec.node_selectors.iter().any(|one| matches(one, labels));
            let nodes = objects.nodes.iter().filter(|(_, node)| selected(&node.metadata.labels));
            let nodes = nodes.map(|(name, _)| name.clone());
            let some = !spec.node_selectors.is_empty();
            Announcement {
                nodes: some.then(|| nodes.collect()),
                interfaces: spec.interfaces.clone(),
            }
        })
    }
}

fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    Requirements::from(selector).hold(labels)
}

/// What a Service asks for.
struct Asked<'a> {
    /// In order.
    families: Vec<IpFamily>,
    /// One of them will do.
    prefers: bool,
    wanted: Vec<IpAddr>,
    /// That asks for them.
    field: &'static str,
    pool: Option<&'a str>,
    key: Option<Key>,
}

/// Services with the same one may share an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    said: String,
    /// The pods behind it, where only nodes that have some take connections.
    behind: Option<Labels>,
}

impl<'a> Asked<'a> {
    fn of(service: &'a Service, cluster: &[IpFamily]) -> Result<Self, FieldError> {
        let said = &service.metadata.annotations;
        let either = |newer: &'a Option<String>, older: &'a Option<String>| {
            newer.as_deref().or(older.as_deref()).map(str::trim).filter(|text| !text.is_empty())
        };
        let texts = either(&said.load_balancer_ips, &said.old_load_balancer_ips);
        let (wanted, field) = match (texts, service.spec.load_balancer_ip) {
            (Some(_), Some(_)) => {
                let message = "spec.loadBalancerIP asks for an address, too";
                return Err(FieldError::new(WANTED, message));
            }
            (Some(texts), None) => {
                let parse = |text: &str| {
                    let wrong = |_| FieldError::new(WANTED, format!("\"{text}\" is no IP address"));
                    text.trim().parse::<IpAddr>().map_err(wrong)
                };
                (texts.split(',').map(parse).collect::<Result<Vec<_>, _>>()?, WANTED)
            }
            (None, one) => (one.into_iter().collect(), "spec.loadBalancerIP"),
        };
        let shared = either(&said.allow_shared_ip, &said.old_allow_shared_ip);
        let local = service.spec.external_traffic_policy == TrafficPolicy::Local;
        let key = shared.map(|said| Key {
            said: said.to_owned(),
            behind: local.then(|| service.spec.selector.clone()),
        });
        Ok(Self {
            families: service.families(cluster)?,
            prefers: service.spec.ip_family_policy == Some(IpFamilyPolicy::PreferDualStack),
            wanted,
            field,
            pool: either(&said.address_pool, &said.old_address_pool),
            key,
        })
    }

    /// Whether these are of the families that it wants, one of each.
    fn fits(&self, addresses: &[IpAddr]) -> bool {
        let families: Vec<_> = addresses.iter().copied().map(IpFamily::of).collect();
        let distinct: BTreeSet<_> = families.iter().collect();
        distinct.len() == families.len()
            && families.iter().all(|family| self.families.contains(family))
            && (families.len() == self.families.len() || self.prefers)
    }
}

/// Addresses of nodes, whatever their type, and whose they are.
fn node_addresses(objects: &Objects) -> BTreeMap<IpAddr, String> {
    let all = objects.nodes.iter().flat_map(|(name, node)| {
        let addresses = node.status.addresses.iter();
        addresses.filter_map(move |at| Some((at.address.parse().ok()?, name.clone())))
    });
    all.collect()
}

/// Who uses which address.
#[derive(Default)]
struct Uses {
    services: BTreeMap<IpAddr, Vec<User>>,
    /// What no Service may have.
    nodes: BTreeMap<IpAddr, String>,
}

struct User {
    name: ObjectName,
    key: Option<Key>,
    ports: BTreeSet<(Protocol, u16)>,
}

impl Uses {
    fn take(&mut self, address: IpAddr, name: &ObjectName, service: &Service, key: Option<&Key>) {
        let users = self.services.entry(address).or_default();
        users.retain(|user| user.name != *name);
        users.push(User { name: name.clone(), key: key.cloned(), ports: ports(service).collect() });
    }

    /// Whether it is among those that use the address.
    fn has(&self, address: IpAddr, name: &ObjectName) -> bool {
        self.services.get(&address).is_some_and(|users| users.iter().any(|user| user.name == *name))
    }

    /// Whether it may use the address, too, or why not.
    fn admit(
        &self,
        address: IpAddr,
        name: &ObjectName,
        service: &Service,
        key: Option<&Key>,
    ) -> Result<(), String> {
        if let Some(node) = self.nodes.get(&address) {
            return Err(format!("{address} is an address of node {node}"));
        }
        let users = self.services.get(&address).into_iter().flatten();
        for user in users.filter(|user| user.name != *name) {
            let holder = &user.name;
            if key.is_none() || key != user.key.as_ref() {
                return Err(format!("{address} is already taken by {holder}"));
            }
            if let Some((protocol, port)) = ports(service).find(|port| user.ports.contains(port)) {
                return Err(format!("{address} {protocol} {port} is already taken by {holder}"));
            }
        }
        Ok(())
    }
}

fn ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> {
    service.spec.ports.iter().map(|port| (port.protocol, port.port.get()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::decode::decode;

    /// A cluster of both families, and what Services hold.
    #[derive(Default)]
    struct World {
        objects: Objects,
        held: BTreeMap<ObjectName, Vec<IpAddr>>,
    }

    impl World {
        fn with(mut self, kind: Kind, name: &str, mut object: Value) -> Self {
            object["metadata"]["name"] = name.into();
            let name = ObjectName::new(if kind == Kind::Node { "" } else { "shop" }, name);
            self.objects.insert(name, decode(kind, object).unwrap());
            self
        }

        fn pool(self, name: &str, spec: Value) -> Self {
            self.with(Kind::IPAddressPool, name, json!({"spec": spec}))
        }

        fn service(self, name: &str, annotations: Value, mut spec: Value) -> Self {
            spec["type"] = "LoadBalancer".into();
            if spec.get("ports").is_none() {
                spec["ports"] = json!([{"port": 80}]);
            }
            let metadata = json!({"annotations": annotations});
            self.with(Kind::Service, name, json!({"metadata": metadata, "spec": spec}))
        }

        fn holding(mut self, name: &str, address: &str) -> Self {
            let name = ObjectName::new("shop", name);
            self.held.entry(name).or_default().push(address.parse().unwrap());
            self
        }

        /// A line a Service and a refusal, in order of names.
        fn plan(&self) -> Vec<String> {
            let classes = Classes::default();
            let pools = Pools::new(&self.objects, &classes);
            let cluster = [IpFamily::V4, IpFamily::V6];
            let held = |name: &ObjectName, _: &Service| {
                Some(self.held.get(name).cloned().unwrap_or_default())
            };
            let Plan { addresses, refused } = pools.plan(&self.objects.services, &cluster, held);
            let given = addresses.iter().map(|(name, ips)| {
                let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
                format!("{} {}", name.name, ips.join(" "))
            });
            let refused = refused.iter().map(|(id, error)| format!("{}! {error}", id.name.name));
            let mut lines: Vec<_> = given.chain(refused).map(|line| line.trim().into()).collect();
            lines.sort();
            lines
        }
    }

    fn world() -> World {
        World::default().pool("main", json!({"addresses": ["192.0.2.10-192.0.2.12"]}))
    }

    #[test]
    fn without_a_pool_nothing_is_given_and_nothing_taken() {
        let world = World::default().service("web", json!({}), json!({}));
        assert_eq!(world.holding("web", "192.0.2.1").plan(), [""; 0]);
    }

    #[test]
    fn who_has_an_address_keeps_it_while_it_may() {
        let of = |name: &str| json!({"metallb.io/address-pool": name});
        let two = world().pool("other", json!({"addresses": ["198.51.100.0/31"]}));
        let two = two.service("b", json!({}), json!({})).service("a", json!({}), json!({}));
        let two = two.holding("b", "192.0.2.10");
        assert_eq!(two.plan(), ["a 192.0.2.11", "b 192.0.2.10"]);
        let two = two.service("a", json!({}), json!({"loadBalancerIP": "192.0.2.10"}));
        let taken = "a! spec.loadBalancerIP: 192.0.2.10 is already taken by shop/b";
        assert_eq!(two.plan(), ["a", taken, "b 192.0.2.10"]);
        // It asks for another pool, and makes room.
        let two = two.service("b", of("other"), json!({}));
        assert_eq!(two.plan(), ["a 192.0.2.10", "b 198.51.100.0"]);
        // Both say they have it: one of them is believed.
        let both = world().service("a", json!({}), json!({})).service("b", json!({}), json!({}));
        let both = both.holding("a", "192.0.2.11").holding("b", "192.0.2.11");
        assert_eq!(both.plan(), ["a 192.0.2.11", "b 192.0.2.10"]);
        // Not of any pool any more.
        let moved = world().service("a", json!({}), json!({})).holding("a", "203.0.113.1");
        assert_eq!(moved.plan(), ["a 192.0.2.10"]);
    }

    #[test]
    fn addresses_of_nodes_are_given_to_nobody_and_named() {
        let addresses = json!([
            {"type": "Hostname", "address": "n1"},
            {"type": "InternalIP", "address": "192.0.2.10"},
        ]);
        let node = json!({"status": {"addresses": addresses}});
        let world = world().with(Kind::Node, "n1", node);
        let world = world.service("a", json!({}), json!({})).holding("a", "192.0.2.10");
        assert_eq!(world.plan(), ["a 192.0.2.11"], "also who had it before the node did");
        let world = world.service("a", json!({}), json!({"loadBalancerIP": "192.0.2.10"}));
        let refused = "a! spec.loadBalancerIP: 192.0.2.10 is an address of node n1";
        assert_eq!(world.plan(), ["a", refused]);
        let classes = Classes::default();
        let warnings = Pools::new(&world.objects, &classes).warnings();
        let named = |(_, error): &(ObjectId, FieldError)| error.to_string().contains("node n1");
        assert_eq!(warnings.iter().filter(|one| named(one)).count(), 1);
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_by_name() {
        let asks = |annotations: Value, spec: Value| {
            let other = json!({"addresses": ["198.51.100.1/32"], "autoAssign": false,
                "serviceAllocation": {"namespaces": ["ops"]}});
            let world = world().pool("ops", other).service("a", annotations, spec);
            world.plan().join("; ")
        };
        for (annotations, spec, expected) in [
            (json!({}), json!({"loadBalancerIP": "192.0.2.12"}), "a 192.0.2.12"),
            (
                json!({"metallb.universe.tf/loadBalancerIPs": "192.0.2.12"}),
                json!({}),
                "a 192.0.2.12",
            ),
            (
                json!({"metallb.io/loadBalancerIPs": "192.0.2.12"}),
                json!({"loadBalancerIP": "192.0.2.12"}),
                "a! metadata.annotations.metallb.io/loadBalancerIPs: spec.loadBalancerIP asks for an \
                 address, too",
            ),
            (
                json!({"metallb.io/loadBalancerIPs": "192.0.2"}),
                json!({}),
                "a! metadata.annotations.metallb.io/loadBalancerIPs: \"192.0.2\" is no IP address",
            ),
            (
                json!({}),
                json!({"loadBalancerIP": "203.0.113.1"}),
                "a; a! spec.loadBalancerIP: no pool has 203.0.113.1",
            ),
            (
                json!({}),
                json!({"loadBalancerIP": "198.51.100.1"}),
                "a; a! spec.loadBalancerIP: 198.51.100.1 is in pool ops, which is for others",
            ),
            (
                json!({"metallb.io/address-pool": "ops"}),
                json!({}),
                "a; a! metadata.annotations.metallb.io/address-pool: pool ops is for others",
            ),
            (
                json!({"metallb.io/address-pool": "none"}),
                json!({}),
                "a; a! metadata.annotations.metallb.io/address-pool: there is no pool \"none\"",
            ),
            (
                json!({"metallb.io/address-pool": "ops"}),
                json!({"loadBalancerIP": "192.0.2.12"}),
                "a; a! spec.loadBalancerIP: 192.0.2.12 is in pool main, another is asked for",
            ),
            (json!({}), json!({"loadBalancerClass": "other.example/lb"}), ""),
            (json!({}), json!({"loadBalancerClass": "fairway.dev/load-balancer"}), "a 192.0.2.10"),
        ] {
            assert_eq!(asks(annotations, spec), expected);
        }
    }

    #[test]
    fn addresses_are_shared_by_who_says_the_same() {
        let key = json!({"metallb.io/allow-shared-ip": "dns"});
        let udp = json!({"ports": [{"port": 80, "protocol": "UDP"}]});
        let two =
            world().service("a", key.clone(), json!({})).service("b", key.clone(), udp.clone());
        assert_eq!(two.plan(), ["a 192.0.2.10", "b 192.0.2.10"]);
        // The same port, nothing said, or other pods behind it.
        let port = two.service("b", key.clone(), json!({}));
        assert_eq!(port.plan(), ["a 192.0.2.10", "b 192.0.2.11"]);
        let other = port.service("b", json!({}), udp.clone());
        assert_eq!(other.plan(), ["a 192.0.2.10", "b 192.0.2.11"]);
        let mut local = udp;
        local["externalTrafficPolicy"] = "Local".into();
        local["selector"] = json!({"app": "b"});
        let local = other.service("b", key, local);
        assert_eq!(local.plan(), ["a 192.0.2.10", "b 192.0.2.11"]);
    }

    #[test]
    fn pools_are_for_whom_they_say_and_left_when_they_are_full() {
        let only = |more: Value| {
            let mut spec =
                json!({"addresses": ["198.51.100.255-198.51.101.1"], "avoidBuggyIPs": true});
            spec["serviceAllocation"] = more;
            spec
        };
        let mut world =
            world().pool("first", only(json!({"priority": 1, "namespaces": ["shop"]}))).pool(
                "later",
                json!({"addresses": ["203.0.113.1/32"], "serviceAllocation":
                {"priority": 2, "serviceSelectors": [{"matchLabels": {"x": "y"}}]}}),
            );
        for name in ["a", "b", "c", "d", "e"] {
            world = world.service(name, json!({}), json!({}));
        }
        let full = "e! spec.type: no IPv4 address is free in pool first, main";
        assert_eq!(
            world.plan(),
            ["a 198.51.101.1", "b 192.0.2.10", "c 192.0.2.11", "d 192.0.2.12", "e", full]
        );
    }

    #[test]
    fn both_families() {
        let dual = json!({"addresses": ["192.0.2.10/32", "2001:db8::/126"]});
        let world = |policy: &str| {
            let spec = json!({"ipFamilyPolicy": policy, "ipFamilies": ["IPv6", "IPv4"]});
            World::default()
                .pool("main", dual.clone())
                .service("a", json!({}), spec.clone())
                .service("b", json!({}), spec)
        };
        let none = "b! spec.type: no IPv6 and IPv4 address is free in pool main";
        assert_eq!(world("RequireDualStack").plan(), ["a 2001:db8:: 192.0.2.10", "b", none]);
        let prefers = world("PreferDualStack");
        assert_eq!(prefers.plan(), ["a 2001:db8:: 192.0.2.10", "b 2001:db8::1"]);
        // One that has one of them gets the other when it can.
        let prefers = prefers.holding("b", "2001:db8::1");
        assert_eq!(prefers.plan(), ["a 2001:db8:: 192.0.2.10", "b 2001:db8::1"]);
        let late = World { objects: prefers.objects.clone(), held: BTreeMap::new() };
        let late = late.holding("a", "2001:db8::").holding("b", "2001:db8::1");
        assert_eq!(late.plan(), ["a 2001:db8:: 192.0.2.10", "b 2001:db8::1"]);
    }

    #[test]
    fn external_addresses_and_those_of_others_are_taken() {
        let world = world().with(
            Kind::Service,
            "x",
            json!({"spec":
            {"ports": [{"port": 80}], "externalIPs": ["192.0.2.10"]}}),
        );
        let world = world.with(
            Kind::Service,
            "theirs",
            json!({"spec": {"type": "LoadBalancer",
            "loadBalancerClass": "other.example/lb", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.11"}]}}}),
        );
        let world = world.with(
            Kind::Service,
            "was",
            json!({"spec": {"ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.12"}]}}}),
        );
        assert_eq!(world.service("a", json!({}), json!({})).plan(), ["a 192.0.2.12", "was"]);
    }

    #[test]
    fn an_external_address_takes_nothing_from_who_holds_it() {
        for port in [80, 443] {
            let spec = json!({"ports": [{"port": port}], "externalIPs": ["192.0.2.10"]});
            let world = world().service("a", json!({}), json!({}));
            let world = world.with(Kind::Service, "x", json!({"spec": spec}));
            // Nobody new gets it.
            assert_eq!(world.plan(), ["a 192.0.2.11"]);
            let world = world.holding("a", "192.0.2.10");
            assert_eq!(world.plan(), ["a 192.0.2.10"]);
            // Nor does a load balancer that has it as an external one, too.
            let external = json!({"ports": [{"port": port}], "externalIPs": ["192.0.2.10"]});
            let world = world.service("b", json!({}), external);
            assert_eq!(world.plan(), ["a 192.0.2.10", "b 192.0.2.11"]);
        }
        // What a Service holds is still shared if it is an external address of its own.
        let key = json!({"metallb.io/allow-shared-ip": "dns"});
        let external = json!({"externalIPs": ["192.0.2.10"]});
        let udp = json!({"ports": [{"port": 80, "protocol": "UDP"}]});
        let two = world().service("a", key.clone(), external).service("b", key, udp);
        let two = two.holding("a", "192.0.2.10");
        assert_eq!(two.plan(), ["a 192.0.2.10", "b 192.0.2.10"]);
    }

    #[test]
    fn addresses_of_others_take_nothing_from_who_holds_them() {
        let theirs = json!({"spec": {"type": "LoadBalancer",
            "loadBalancerClass": "other.example/lb", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}}});
        let world = world().service("a", json!({}), json!({}));
        let world = world.with(Kind::Service, "theirs", theirs);
        assert_eq!(world.plan(), ["a 192.0.2.11"]);
        assert_eq!(world.holding("a", "192.0.2.10").plan(), ["a 192.0.2.10"]);
    }

    #[test]
    fn the_older_one_comes_first() {
        let (first, second) = ("2026-11-20T10:00:00Z", "2026-11-20T10:00:01Z");
        for (a, b, older, younger) in [
            (second, first, "b", "a"),
            (first, second, "a", "b"),
            // Who does not say when it came into being is the youngest.
            ("", first, "b", "a"),
            (first, first, "a", "b"),
            ("", "", "a", "b"),
        ] {
            let aged = |created: &str| {
                json!({"metadata": {"creationTimestamp": created},
                    "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})
            };
            let world = world().with(Kind::Service, "a", aged(a));
            let world = world.with(Kind::Service, "b", aged(b));
            let expected = |older_has: &str, younger_has: &str| {
                let mut lines =
                    [format!("{older} {older_has}"), format!("{younger} {younger_has}")];
                lines.sort();
                lines
            };
            assert_eq!(world.plan(), expected("192.0.2.10", "192.0.2.11"));
            let both = world.holding("a", "192.0.2.11").holding("b", "192.0.2.11");
            assert_eq!(both.plan(), expected("192.0.2.11", "192.0.2.10"));
        }
    }

    #[test]
    fn the_size_of_a_pool_is_that_of_what_it_gives() {
        let size = |range: &str, avoid: bool| {
            let spec = json!({"addresses": [range], "avoidBuggyIPs": avoid});
            let world = World::default().pool("main", spec);
            let classes = Classes::default();
            let pools = Pools::new(&world.objects, &classes);
            let pool = &pools.pools[0];
            // Not of large ones.
            let few = pool.ranges().all(|range| range.size() < 10_000);
            let all = pool.ranges().flat_map(AddressRange::addresses);
            let counted = few.then(|| all.filter(|ip| pool.has(*ip)).count() as u64);
            (pool.size(), counted)
        };
        for range in [
            "192.0.2.10-192.0.2.12",
            "192.0.2.0/32",
            "192.0.2.1/32",
            "192.0.2.254/32",
            "192.0.2.255/32",
            "192.0.2.255-192.0.3.0",
            "192.0.2.0-192.0.3.0",
            "192.0.2.1-192.0.2.254",
            "192.0.2.0/24",
            "192.0.2.3-192.0.5.7",
            "10.1.0.0/20",
            "255.255.254.255-255.255.255.255",
            "2001:db8::/120",
        ] {
            for avoid in [false, true] {
                let (computed, counted) = size(range, avoid);
                assert_eq!(Some(computed), counted, "{range} {avoid}");
            }
        }
        assert_eq!(size("0.0.0.0/0", true), ((1 << 32) - (1 << 25), None));
        assert_eq!(size("2001:db8::/64", true), (u64::MAX, None));
    }

    #[test]
    fn announcements_say_by_whom() {
        let labelled = |x: &str| json!({"metadata": {"labels": {"x": x}}});
        let advertised = |spec: Value| {
            let world = world()
                .with(Kind::Node, "n1", labelled("a"))
                .with(Kind::Node, "n2", labelled("b"))
                .with(Kind::L2Advertisement, "l2", json!({"spec": spec}));
            let classes = Classes::default();
            let pools = Pools::new(&world.objects, &classes);
            let warned = pools.warnings().len();
            (pools.model().next().unwrap().announcements, warned)
        };
        let all = Announcement { nodes: None, interfaces: Vec::new() };
        assert_eq!(advertised(json!({})), (vec![all.clone()], 0));
        assert_eq!(advertised(json!({"ipAddressPools": ["other"]})), (vec![], 1));
        let some = json!({"ipAddressPools": ["main"], "interfaces": ["eth1"],
            "nodeSelectors": [{"matchLabels": {"x": "b"}}]});
        let some = advertised(some);
        let interfaces = vec!["eth1".to_owned()];
        assert_eq!(
            some,
            (vec![Announcement { nodes: Some(vec!["n2".to_owned()]), interfaces }], 0)
        );
    }
}
