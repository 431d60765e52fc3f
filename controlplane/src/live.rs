//! Objects of an API server as they come and go, and the model of them.
//!
//! Who holds which ClusterIP and node port is for the API server to say, so nothing is allocated and
//! nothing is remembered beyond the process. What is broken is treated as in a folder of manifests: it is
//! named, its last good state stays in force, and a policy that never was good denies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use fairway_model::{Model, ObjectName};
use ipnet::IpNet;
use serde_json::Value;

use crate::allocate::{Allocator, Ranges};
use crate::decode::{Broken, InForce, NEVER_GOOD, decode, identify, settle};
use crate::ingress::{Ingresses, Settings};
use crate::kubernetes::{
    CONTRADICTION, Condition, FieldError, Kind, Node, Object, ObjectId, Objects,
};
use crate::load_balancer::Classes;
use crate::notices::{Notice, Notices, Recoveries};
use crate::pipeline::Pipeline;
use crate::problem::{Problem, Severity};
use crate::publish::{Emptiness, Gateway, Statuses, statuses};

/// An object as it was read: well or not, it says which one it is.
#[derive(Debug)]
pub struct Read {
    id: ObjectId,
    object: Result<Object, Broken>,
}

impl Read {
    /// Which object it is.
    pub fn id(&self) -> &ObjectId {
        &self.id
    }

    /// The object itself.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn into_object(self) -> Result<Object, FieldError> {
        self.object.map_err(|broken| {
            let first = broken.errors.into_iter().next();
            first.unwrap_or_else(|| FieldError::new("", "cannot be read"))
        })
    }
}

/// Which object this is.
///
/// # Errors
/// What is wrong with its name.
pub fn identify_value(kind: Kind, value: &Value) -> Result<ObjectId, FieldError> {
    let text = |field: &str| value.get("metadata")?.get(field)?.as_str();
    identify(kind, text).map_err(|(field, message)| FieldError::new(field, message))
}

/// Reads an object of an API server and keeps of it what matters here.
///
/// # Errors
/// It does not say which one it is.
pub fn read(kind: Kind, mut value: Value) -> Result<Read, FieldError> {
    let id = identify_value(kind, &value)?;
    drop_nulls(&mut value);
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let object = decode(kind, value).map(Object::compact);
    Ok(Read { id, object })
}

/// Keys without a value say nothing, as in manifests.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|_, value| !value.is_null());
            entries.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// What the condition [`CONTRADICTION`] of an object is to say, and does not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsaid {
    /// Of this life of the object, where that is known.
    pub uid: Option<String>,
    /// What of it an older object has; `None` if that is over.
    pub message: Option<String>,
    /// Whether the condition becomes another one, and not only another message.
    pub turns: bool,
}

/// What owners are to be told, and of what that was put together.
#[derive(Default)]
struct Told {
    notices: Arc<Notices>,
    forbidden: BTreeSet<ObjectId>,
    is_old: bool,
}

/// The longest message of a condition, in bytes.
const LONGEST_MESSAGE: usize = 1024;

/// See the module.
pub struct Live {
    /// Last good states, and what stands in for objects that have none.
    objects: Objects,
    stand_ins: BTreeSet<ObjectId>,
    /// What cannot be read at the moment, and why.
    broken: BTreeMap<ObjectId, Vec<FieldError>>,
    /// Objects that are not what they were when the model was last made.
    changed: BTreeSet<ObjectId>,
    /// What the objects of the last model do without.
    contradictions: Vec<(ObjectId, FieldError)>,
    pipeline: Pipeline,
    gateway: Option<Gateway>,
    statuses: Statuses,
    /// They are those of an older model.
    statuses_are_old: bool,
    empty: Emptiness,
    look_again: Option<Instant>,
    /// What is wrong with Ingresses of the last model.
    found: Arc<Vec<Notice>>,
    /// What their owners are to be told of it, as it was last put together.
    told: Told,
    recoveries: Recoveries,
}

impl Live {
    /// One that has no objects yet. ClusterIPs are told by Services, and the ranges they come from by the
    /// ServiceCIDR `kubernetes`; `service_cidrs` counts where the cluster has none, and may be empty.
    ///
    /// # Errors
    /// The ranges make no sense.
    pub fn new(service_cidrs: Vec<IpNet>) -> Result<Self, String> {
        let allocator = Allocator::told(Ranges::told(service_cidrs)?);
        let mut pipeline = Pipeline::new(allocator, None, BTreeMap::new());
        pipeline.ingresses = Ingresses::one_by_one(Settings::default());
        Ok(Self {
            objects: Objects::default(),
            stand_ins: BTreeSet::new(),
            broken: BTreeMap::new(),
            changed: BTreeSet::new(),
            contradictions: Vec::new(),
            pipeline,
            gateway: None,
            statuses: Statuses::new(),
            statuses_are_old: false,
            empty: Emptiness::default(),
            look_again: None,
            found: Arc::default(),
            told: Told::default(),
            recoveries: Recoveries::default(),
        })
    }

    /// Sets whose load balancer we are, and where Ingresses can be reached, if that is to be written.
    pub fn publish(&mut self, classes: Classes, gateway: Option<Gateway>) {
        self.pipeline.balance(classes);
        self.gateway = gateway;
    }

    /// Sets which Ingresses are ours.
    pub fn adopt(&mut self, settings: Settings) {
        self.pipeline.ingresses = Ingresses::one_by_one(settings);
    }

    /// The Secrets and ConfigMaps that objects of the last model name. Each is to be told of by its name, by
    /// [`Self::put_named`], and no other.
    pub fn wanted(&self) -> &BTreeSet<ObjectId> {
        self.pipeline.ingresses.wanted()
    }

    /// Of a Secret or ConfigMap that is [wanted](Self::wanted): its state, or that it is not there or cannot
    /// be had.
    pub fn put_named(&mut self, id: &ObjectId, read: Option<Read>) {
        match read {
            Some(read) => self.put(read),
            None => self.remove(id),
        }
        self.pipeline.ingresses.hear(id.clone());
    }

    /// Finds out what the [statuses](Self::statuses) of the last model are to say, at the time `now`; and when that is
    /// to be done again although nothing has changed, if it is.
    pub fn look(&mut self, now: Instant) -> Option<Instant> {
        if self.statuses_are_old || self.look_again.is_some_and(|at| at <= now) {
            let ingresses = &self.pipeline.ingresses;
            let serves = |name: &ObjectName| ingresses.serves(name);
            let (plan, gateway) = (self.pipeline.plan(), self.gateway.as_ref());
            let time = (&mut self.empty, now);
            self.statuses = statuses(&self.objects, plan, gateway, time, serves);
            self.statuses_are_old = false;
            self.look_again = self.empty.ends(now);
        }
        self.look_again
    }

    /// What statuses are to say and did not say when it was last [looked](Self::look).
    pub fn statuses(&self) -> &Statuses {
        &self.statuses
    }

    /// The object is there, in that state.
    pub fn put(&mut self, read: Read) {
        let Read { id, object } = read;
        self.changed.insert(id.clone());
        let last = match self.stand_ins.remove(&id) {
            true => None,
            false => self.objects.get(&id),
        };
        match settle(&object, last) {
            InForce::Good(object) => self.objects.insert(id.name.clone(), object),
            InForce::StandIn(object) => {
                self.objects.insert(id.name.clone(), object);
                self.stand_ins.insert(id.clone());
            }
            InForce::Nothing => self.objects.remove(&id),
        }
        match object {
            Ok(_) => self.broken.remove(&id),
            Err(Broken { errors, .. }) => self.broken.insert(id, errors),
        };
    }

    /// The object is gone.
    pub fn remove(&mut self, id: &ObjectId) {
        self.changed.insert(id.clone());
        self.objects.remove(id);
        self.stand_ins.remove(id);
        self.broken.remove(id);
    }

    /// These are all objects of the kind.
    pub fn replace(&mut self, kind: Kind, all: Vec<Read>) {
        let present: BTreeSet<&ObjectName> = all.iter().map(|read| &read.id.name).collect();
        let mut gone = self.objects.names(kind);
        gone.extend(self.broken.keys().filter(|id| id.kind == kind).map(|id| id.name.clone()));
        gone.retain(|name| !present.contains(name));
        for name in gone {
            self.remove(&ObjectId { kind, name });
        }
        for read in all {
            self.put(read);
        }
    }

    /// The nodes by name, as they last were good.
    pub fn nodes(&self) -> &BTreeMap<String, Arc<Node>> {
        &self.objects.nodes
    }

    /// What the objects make, and all that is wrong with them.
    pub fn model(&mut self) -> (Model, Vec<Problem>) {
        let broken = &self.broken;
        let service = |name: &ObjectName| ObjectId { kind: Kind::Service, name: name.clone() };
        let changed = std::mem::take(&mut self.changed);
        let exists = |name: &ObjectName| broken.contains_key(&service(name));
        let outcome = self.pipeline.run(&self.objects, &changed, exists);
        let gateway = self.gateway.as_ref();
        self.statuses_are_old |=
            outcome.more || gateway.is_some_and(|gateway| gateway.pods.is_some());
        let mut problems = Vec::new();
        for (id, errors) in &self.broken {
            problems.extend(errors.iter().map(|error| of_object(id, error, Severity::Error)));
            if self.stand_ins.contains(id) && id.kind.is_policy() {
                problems.push(of_object(id, &FieldError::new("", NEVER_GOOD), Severity::Error));
            }
        }
        for (name, errors) in &outcome.refused {
            let id = service(name);
            problems.extend(errors.iter().map(|error| of_object(&id, error, Severity::Error)));
        }
        let contradictions = outcome.contradictions.iter();
        problems.extend(contradictions.map(|(id, error)| of_object(id, error, Severity::Error)));
        let warnings = outcome.warnings.iter();
        problems.extend(warnings.map(|(id, error)| of_object(id, error, Severity::Warning)));
        problems.sort();
        self.contradictions = outcome.contradictions;
        self.found = outcome.notices;
        self.told.is_old |= outcome.more;
        (outcome.model, problems)
    }

    /// What owners of Ingresses are to be told of the last model, where these Secrets may not be read.
    pub fn notices(&mut self, forbidden: &BTreeSet<ObjectId>) -> Arc<Notices> {
        if self.told.is_old || self.told.forbidden != *forbidden {
            let ingresses = &self.pipeline.ingresses;
            let notices = ingresses.notices_of(&self.broken, forbidden);
            let all = notices.into_iter().chain(self.found.iter().cloned());
            let notices = self.recoveries.complete(all, |name| ingresses.uid(name));
            let (notices, forbidden) = (Arc::new(notices), forbidden.clone());
            self.told = Told { notices, forbidden, is_old: false };
        }
        Arc::clone(&self.told.notices)
    }

    /// Which Services and nodes do not say themselves what they contradicted in the last model, or say so
    /// although it is over.
    pub fn unsaid(&self) -> BTreeMap<ObjectId, Unsaid> {
        let mut messages = BTreeMap::<&ObjectId, String>::new();
        for (id, error) in &self.contradictions {
            let message = messages.entry(id).or_default();
            if !message.is_empty() {
                message.push_str("; ");
            }
            message.push_str(&error.to_string());
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        }
        let Objects { services, nodes, .. } = &self.objects;
        // Those that say something, which are few, and those that are to.
        let services_saying =
            services.iter().filter(|(_, of)| says(&of.status.conditions).is_some());
        let services_saying =
            services_saying.map(|(name, _)| ObjectId { kind: Kind::Service, name: name.clone() });
        let nodes_saying = nodes.iter().filter(|(_, of)| says(&of.status.conditions).is_some());
        let nodes_saying = nodes_saying
            .map(|(name, _)| ObjectId { kind: Kind::Node, name: ObjectName::new("", name) });
        let all =
            services_saying.chain(nodes_saying).chain(messages.keys().map(|id| (*id).clone()));
        let all: BTreeSet<ObjectId> = all.collect();
        let unsaid = all.into_iter().filter_map(|id| {
            let (uid, conditions) = match id.kind {
                Kind::Service => {
                    let of = services.get(&id.name)?;
                    (Some(&of.metadata.uid), &of.status.conditions)
                }
                Kind::Node => (None, &nodes.get(&id.name.name)?.status.conditions),
                _ => return None,
            };
            let said = says(conditions);
            let message = messages.get(&id);
            let is_said = match (message, said) {
                (None, said) => said.is_none(),
                (Some(message), said) => {
                    said.is_some_and(|of| of.message.as_ref() == Some(message))
                }
            };
            let turns = message.is_some() != said.is_some();
            let uid = uid.filter(|uid| !uid.is_empty()).cloned();
            (!is_said).then(|| (id, Unsaid { uid, message: message.cloned(), turns }))
        });
        unsaid.collect()
    }
}

/// What an object says of what it contradicts, if it does.
fn says(conditions: &[Condition]) -> Option<&Condition> {
    let said = conditions.iter().find(|condition| condition.r#type == CONTRADICTION);
    said.filter(|condition| condition.status == "True")
}

fn of_object(id: &ObjectId, error: &FieldError, severity: Severity) -> Problem {
    Problem {
        object: Some(id.to_string()),
        field: Some(error.field.clone()).filter(|field| !field.is_empty()),
        severity,
        ..Problem::general(error.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Read {
        let kind = Kind::of(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap());
        super::read(kind.unwrap(), value).unwrap()
    }

    fn service(name: &str, spec: Value) -> Read {
        let metadata = json!({"name": name, "namespace": "shop", "managedFields": [{"a": 1}]});
        read(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
    }

    fn texts(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn numbers_are_those_that_services_have_been_given() {
        let mut live = Live::new(Vec::new()).unwrap();
        let port = json!({"port": 80, "nodePort": 8080});
        live.put(service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.1.2.3", "ports": [port]}),
        ));
        live.put(service("new", json!({"ports": [{"port": 80}]})));
        let (model, problems) = live.model();
        assert_eq!(texts(&problems), [""; 0]);
        assert_eq!(model.services.len(), 1, "one waits for its address");
        let web = model.services.values().next().unwrap();
        assert_eq!(web.cluster_ips, ["10.1.2.3".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(web.ports[0].node_port, Some(8080));
        assert_eq!(model.service_ranges.len(), 0, "nobody said where they come from");

        live.put(service("new", json!({"clusterIP": "10.1.2.4", "ports": [{"port": 80}]})));
        live.put(read(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.1.0.0/16"]}})));
        let (model, problems) = live.model();
        assert_eq!((model.services.len(), texts(&problems)), (2, vec![]));
        let range = model.service_ranges.values().next().unwrap();
        assert_eq!(range.cidrs, ["10.1.0.0/16".parse::<IpNet>().unwrap()]);

        // Two of one address.
        live.put(service("other", json!({"clusterIP": "10.1.2.4", "ports": [{"port": 81}]})));
        let (model, problems) = live.model();
        let expected = "Service shop/other: spec.clusterIP: 10.1.2.4 is already taken by shop/new";
        assert_eq!((model.services.len(), texts(&problems)), (2, vec![expected.to_owned()]));
    }

    /// A Service that came into being in that second.
    fn born(second: u8, name: &str, spec: Value) -> Read {
        let created = format!("2026-01-01T00:00:0{second}Z");
        let metadata = json!({"name": name, "namespace": "shop", "creationTimestamp": created});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
        read(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec,
            "status": status}))
    }

    #[test]
    fn of_services_that_claim_the_same_the_older_has_it_in_whatever_order_they_come() {
        let port = |number: u16, node_port: u16| json!({"port": number, "nodePort": node_port});
        let kind =
            |ip: &str, of: Value| json!({"type": "LoadBalancer", "clusterIP": ip, "ports": [of]});
        let mut with_ip = kind("10.1.0.3", port(443, 30003));
        with_ip["externalIPs"] = json!(["203.0.113.1"]);
        let mut younger = with_ip.clone();
        younger["clusterIP"] = "10.1.0.4".into();
        let all = [
            born(2, "b", kind("10.1.0.1", port(80, 30001))),
            born(1, "c", kind("10.1.0.2", port(80, 30001))),
            born(3, "d", with_ip),
            born(4, "a", younger),
            born(5, "e", json!({"clusterIP": "10.1.0.2", "ports": [{"port": 1}]})),
        ];
        let expected = [
            "Service shop/a: spec.externalIPs[0]: 203.0.113.1 TCP 443 is already taken by shop/d",
            "Service shop/a: spec.ports[0].nodePort: 30003 is already taken by shop/d",
            "Service shop/a: status.loadBalancer.ingress[0].ip: 203.0.113.9 TCP 443 is already \
             taken by shop/d",
            "Service shop/b: spec.ports[0].nodePort: 30001 is already taken by shop/c",
            "Service shop/b: status.loadBalancer.ingress[0].ip: 203.0.113.9 TCP 80 is already \
             taken by shop/c",
            "Service shop/e: spec.clusterIP: 10.1.0.2 is already taken by shop/c",
        ];
        let mut models = Vec::new();
        for reverse in [false, true] {
            let mut live = Live::new(Vec::new()).unwrap();
            let mut order: Vec<_> = all.iter().collect();
            if reverse {
                order.reverse();
            }
            // One by one, as a watch brings them.
            let mut last = None;
            for read in order {
                live.put(Read {
                    id: read.id.clone(),
                    object: Ok(read.object.as_ref().unwrap().clone()),
                });
                last = Some(live.model());
            }
            let (model, problems) = last.unwrap();
            assert_eq!(texts(&problems), expected);
            assert_eq!(model.validate(), Ok(()));
            models.push(model);
        }
        assert_eq!(models[0], models[1]);
        // What nobody contests is in force: four are reached, by their own addresses at least.
        let names: Vec<_> = models[0].services.keys().map(|name| &*name.name).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        let a = models[0].services.values().next().unwrap();
        assert_eq!(a.cluster_ips, ["10.1.0.4".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((a.ports[0].node_port, &a.external_ips[..]), (None, &[][..]));
    }

    #[test]
    fn nobody_takes_an_address_from_a_load_balancer_by_naming_it() {
        let port = json!([{"port": 443}]);
        let mut live = Live::new(Vec::new()).unwrap();
        let grabs = json!({"clusterIP": "10.1.0.1", "externalIPs": ["203.0.113.9"], "ports": port});
        live.put(born(1, "grab", grabs));
        let mut balanced = json!({"type": "LoadBalancer", "clusterIP": "10.1.0.2", "ports": port});
        live.put(born(2, "web", balanced.clone()));
        let (model, problems) = live.model();
        let taken = "Service shop/grab: spec.externalIPs[0]: 203.0.113.9 TCP 443 is already taken \
                     by shop/web";
        assert_eq!(texts(&problems), [taken]);
        let ips = |model: &Model, name: &str| {
            let service = &model.services[&ObjectName::new("shop", name)];
            (service.external_ips.len(), service.load_balancer_ips.len())
        };
        assert_eq!((ips(&model, "grab"), ips(&model, "web")), ((0, 0), (0, 1)));
        // Once it is free, whoever named it has it.
        balanced["type"] = "NodePort".into();
        live.put(born(2, "web", balanced));
        let (model, problems) = live.model();
        assert_eq!((texts(&problems), ips(&model, "grab")), (vec![], (1, 0)));
    }

    #[test]
    fn objects_are_told_what_they_contradict_until_they_say_so_themselves() {
        let id = |kind, namespace, name| ObjectId { kind, name: ObjectName::new(namespace, name) };
        let node = |name: &str, conditions: Value| {
            read(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDR": "10.244.1.0/24"}, "status": {"conditions": conditions}}))
        };
        let says = |status: &str, message: &str| {
            json!([{"type": "Ready", "status": "True"},
                {"type": CONTRADICTION, "status": status, "message": message}])
        };
        let external = json!({"clusterIP": "10.1.0.1", "externalIPs": ["203.0.113.1"], "ports": [{"port": 1}]});
        let mut other = external.clone();
        other["clusterIP"] = "10.1.0.2".into();
        let mut live = Live::new(Vec::new()).unwrap();
        live.put(born(1, "old", external));
        live.put(born(2, "new", other));
        live.put(node("a", json!([])));
        live.put(node("b", json!([])));
        live.model();
        let message = "spec.podCIDR: 10.244.1.0/24 overlaps with 10.244.1.0/24, which node a has";
        let of_node = |message: Option<&str>, turns| Unsaid {
            uid: None,
            message: message.map(str::to_owned),
            turns,
        };
        let of_service = "spec.externalIPs[0]: 203.0.113.1 TCP 1 is already taken by shop/old";
        let node_b = (id(Kind::Node, "", "b"), of_node(Some(message), true));
        let service = (id(Kind::Service, "shop", "new"), of_node(Some(of_service), true));
        assert_eq!(live.unsaid(), [node_b, service.clone()].into());

        // Once it is said, nothing is left to say; another message is said anew.
        live.put(node("b", says("True", message)));
        live.model();
        assert_eq!(live.unsaid(), [service].into());
        live.remove(&id(Kind::Service, "shop", "old"));
        live.put(node("b", says("True", "something else")));
        live.model();
        let node_b = id(Kind::Node, "", "b");
        assert_eq!(live.unsaid(), [(node_b.clone(), of_node(Some(message), false))].into());
        // When it is over, that is said, and once.
        live.remove(&id(Kind::Node, "", "a"));
        live.model();
        assert_eq!(live.unsaid(), [(node_b, of_node(None, true))].into());
        live.put(node("b", says("False", "")));
        live.model();
        assert_eq!(live.unsaid(), BTreeMap::new());
    }

    #[test]
    fn after_a_start_only_the_annotation_is_missing_that_cannot_be_read() {
        let object = |kind: &str, annotations: Value, spec: Value| {
            let metadata = json!({"name": "web", "namespace": "shop", "annotations": annotations});
            read(json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}))
        };
        let spec = json!({"clusterIP": "10.1.0.1", "ports": [{"port": 80}]});
        let wrong = || json!({"fairway.dev/balancing": "mag-lev", "fairway.dev/slow-start": "30s"});
        let mut live = Live::new(Vec::new()).unwrap();
        live.put(object("Service", wrong(), spec.clone()));
        let (model, problems) = live.model();
        let balancing = |model: &Model| model.services.values().next().unwrap().balancing;
        let slow_start = |model: &Model| model.services.values().next().unwrap().slow_start;
        assert_eq!((balancing(&model), problems.len()), (Default::default(), 1), "{problems:?}");
        assert_eq!(slow_start(&model), Some(30));
        // What was good stays as it was, as ever.
        live.put(object("Service", json!({"fairway.dev/balancing": "maglev"}), spec.clone()));
        let good = live.model().0;
        live.put(object("Service", wrong(), spec.clone()));
        let (model, problems) = live.model();
        assert_eq!((&model, problems.len()), (&good, 1));
        assert_ne!(balancing(&model), Default::default());

        // Those of others are no reason to do without ours.
        let mut other = Live::new(Vec::new()).unwrap();
        let mut both = json!({"fairway.dev/balancing": "mag-lev", "fairway.dev/slow-start": 30});
        both["fairway.dev/forwarding"] = "dsr".into();
        other.put(object("Service", both, spec.clone()));
        let (model, problems) = other.model();
        let service = model.services.values().next().unwrap();
        let forwarding = Some(fairway_model::Forwarding::Dsr);
        assert_eq!((service.slow_start, service.forwarding), (None, forwarding), "{problems:?}");

        // Pods and namespaces are who policies mean.
        let wrong = || json!({"fairway.dev/socket-balancing": "maybe"});
        live.put(object("Pod", wrong(), json!({"nodeName": "n1"})));
        live.put(object("Namespace", wrong(), json!({})));
        let (model, problems) = live.model();
        assert_eq!((model.pods.len(), problems.len()), (1, 3), "{problems:?}");
        assert!(live.objects.namespaces.contains_key("web"));

        // Nothing else may be wrong; and whom a load balancer lets in is no matter of taste.
        let mut live = Live::new(Vec::new()).unwrap();
        let name = "service.beta.kubernetes.io/load-balancer-source-ranges";
        let mut balanced = spec;
        balanced["type"] = "LoadBalancer".into();
        live.put(object("Service", json!({name: "10.0.0.0/99"}), balanced));
        assert_eq!(live.model().0.services.len(), 0);
        live.put(object(
            "Service",
            json!({"fairway.dev/balancing": "x"}),
            json!({"clusterIP": "10.1.0.1"}),
        ));
        assert_eq!(live.model().0.services.len(), 0);
    }

    #[test]
    fn what_breaks_stays_as_it_was_and_what_never_was_good_denies() {
        let policy = |rule: Value| {
            let metadata = json!({"name": "p", "namespace": "shop", "creationTimestamp": null});
            read(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": metadata, "spec": {"podSelector": {}, "ingress": [rule]}}))
        };
        let mut live = Live::new(Vec::new()).unwrap();
        live.put(policy(json!({"from": null, "wrong": 1})));
        let (denying, problems) = live.model();
        assert_eq!((denying.policies.len(), problems.len()), (1, 2), "{problems:?}");
        live.put(policy(json!({})));
        let (good, problems) = live.model();
        assert_eq!(problems, []);
        assert_ne!(good, denying);
        live.put(policy(json!({"wrong": 1})));
        let (kept, problems) = live.model();
        assert_eq!((problems.len(), kept), (1, good));
        // Listed anew, and gone.
        live.replace(Kind::NetworkPolicy, Vec::new());
        assert_eq!(live.model(), (Model::default(), Vec::new()));
    }
}
