//! Objects, their versions, and what becomes of what is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::service::Numbers;

/// A kind: its group and version, its plural, its name, and whether it lives in namespaces.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    /// Whether it comes by a definition; items of such lists say their kind.
    pub(super) defined: bool,
}

pub(super) static RESOURCES: [Resource; 25] = [
    builtin("v1", "namespaces", "Namespace", false),
    builtin("v1", "nodes", "Node", false),
    builtin("v1", "pods", "Pod", true),
    builtin("v1", "services", "Service", true),
    builtin("v1", "endpoints", "Endpoints", true),
    builtin("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
    builtin("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", true),
    builtin("networking.k8s.io/v1", "servicecidrs", "ServiceCIDR", false),
    builtin("networking.k8s.io/v1", "ingresses", "Ingress", true),
    builtin("networking.k8s.io/v1", "ingressclasses", "IngressClass", false),
    builtin("coordination.k8s.io/v1", "leases", "Lease", true),
    builtin("events.k8s.io/v1", "events", "Event", true),
    builtin("v1", "replicationcontrollers", "ReplicationController", true),
    builtin("apps/v1", "replicasets", "ReplicaSet", true),
    builtin("apps/v1", "deployments", "Deployment", true),
    builtin("apps/v1", "daemonsets", "DaemonSet", true),
    builtin("apps/v1", "statefulsets", "StatefulSet", true),
    builtin("v1", "secrets", "Secret", true),
    builtin("v1", "configmaps", "ConfigMap", true),
    builtin("authentication.k8s.io/v1", "tokenreviews", "TokenReview", false),
    defined("policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies", "ClusterNetworkPolicy"),
    defined("policy.networking.k8s.io/v1alpha1", "adminnetworkpolicies", "AdminNetworkPolicy"),
    defined(
        "policy.networking.k8s.io/v1alpha1",
        "baselineadminnetworkpolicies",
        "BaselineAdminNetworkPolicy",
    ),
    Resource {
        namespaced: true,
        ..defined("metallb.io/v1beta1", "ipaddresspools", "IPAddressPool")
    },
    Resource {
        namespaced: true,
        ..defined("metallb.io/v1beta1", "l2advertisements", "L2Advertisement")
    },
];

const fn builtin(
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Resource {
    Resource { version, plural, kind, namespaced, defined: false }
}

const fn defined(version: &'static str, plural: &'static str, kind: &'static str) -> Resource {
    Resource { version, plural, kind, namespaced: false, defined: true }
}

/// More versions than any history here has.
const EPOCH: u64 = 100_000;

/// Plural, namespace and name.
type Key = (&'static str, String, String);

/// One change.
#[derive(Clone)]
pub(super) struct Happened {
    pub(super) version: u64,
    pub(super) plural: &'static str,
    pub(super) event: &'static str,
    pub(super) object: Arc<Value>,
}

/// All objects of a list at one version, the rest of which is still to be asked for.
pub(super) type Snapshot = Arc<Vec<Arc<Value>>>;

/// See the module.
pub(super) struct Store {
    pub(super) version: u64,
    /// Versions up to this are forgotten.
    pub(super) compacted: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Happened>,
    pub(super) snapshots: HashMap<(u64, &'static str), Snapshot>,
    /// How many objects were made.
    made: u32,
    /// What Services have been given.
    numbers: Numbers,
}

/// A code, a reason and a text.
pub(super) type Refusal = (u16, &'static str, String);

impl Store {
    pub(super) fn new() -> Self {
        Self {
            version: 99 * EPOCH,
            compacted: 0,
            objects: BTreeMap::new(),
            history: Vec::new(),
            snapshots: HashMap::new(),
            made: 0,
            numbers: Numbers::default(),
        }
    }

    pub(super) fn put(&mut self, mut object: Value) -> Result<Arc<Value>, Refusal> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let resource = RESOURCES.iter().find(|resource| resource.kind == kind);
        let resource = resource.unwrap_or_else(|| panic!("a {kind:?} is nothing known here"));
        if resource.namespaced && object["metadata"].get("namespace").is_none() {
            object["metadata"]["namespace"] = "default".into();
        }
        let key = key_of(resource, &object);
        match self.objects.get(&key).map(Arc::clone) {
            Some(old) => {
                keep_metadata(&old, &mut object);
                self.replace(resource, key, object)
            }
            None => self.create(resource, key, object),
        }
    }

    fn create(
        &mut self,
        resource: &Resource,
        key: Key,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        self.made += 1;
        let number = self.made;
        object["apiVersion"] = resource.version.into();
        object["kind"] = resource.kind.into();
        let metadata = &mut object["metadata"];
        if metadata.get("uid").is_none() {
            metadata["uid"] = format!("00000000-0000-4000-8000-{number:012}").into();
        }
        if metadata.get("creationTimestamp").is_none() {
            metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        metadata["managedFields"] = json!([{"manager": "test", "operation": "Update",
            "fieldsV1": {"f:metadata": {"f:labels": {}}}}]);
        self.admit(resource, &key, &mut object)?;
        Ok(self.write(resource, key, object, "ADDED"))
    }

    /// Puts it in the place of the object of that key; of what does not differ, nothing is to be heard.
    fn replace(
        &mut self,
        resource: &Resource,
        key: Key,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        self.admit(resource, &key, &mut object)?;
        match self.objects.get(&key) {
            Some(old) if **old == object => Ok(Arc::clone(old)),
            _ => Ok(self.write(resource, key, object, "MODIFIED")),
        }
    }

    /// Completes what is to be written, or refuses it.
    fn admit(&mut self, resource: &Resource, key: &Key, object: &mut Value) -> Result<(), Refusal> {
        match resource.kind {
            "Service" => {
                let ranges = self.service_ranges();
                let old = self.objects.get(key);
                self.numbers.give(object, old.map(|old| &**old), &ranges)?;
            }
            "Namespace" => {
                object["metadata"]["labels"]["kubernetes.io/metadata.name"] = key.2.clone().into();
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes it the object of that key, under a new version.
    fn write(
        &mut self,
        resource: &Resource,
        key: Key,
        mut object: Value,
        event: &'static str,
    ) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(object);
        let (version, plural) = (self.version, resource.plural);
        self.history.push(Happened {
            version,
            plural: static_plural(plural),
            event,
            object: Arc::clone(&object),
        });
        self.objects.insert(key, Arc::clone(&object));
        object
    }

    /// Where ClusterIPs come from, the first family first; a custom where nobody says so.
    fn service_ranges(&self) -> Vec<IpNet> {
        let key = ("servicecidrs", String::new(), "kubernetes".to_owned());
        let object = self.objects.get(&key);
        let cidrs = object.and_then(|object| object["spec"]["cidrs"].as_array());
        let cidrs = cidrs.into_iter().flatten().filter_map(|cidr| cidr.as_str()?.parse().ok());
        let cidrs: Vec<IpNet> = cidrs.collect();
        if cidrs.is_empty() {
            return vec![IpNet::new_assert([10, 96, 0, 0].into(), 16)];
        }
        cidrs
    }

    pub(super) fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let Some(resource) = RESOURCES.iter().find(|resource| resource.kind == kind) else {
            return;
        };
        let key = (resource.plural, namespace.to_owned(), name.to_owned());
        if let Some(object) = self.objects.remove(&key) {
            if resource.kind == "Service" {
                self.numbers.take_back(&object);
            }
            self.version += 1;
            let mut object = Value::clone(&object);
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            let (version, plural) = (self.version, resource.plural);
            let object = Arc::new(object);
            self.history.push(Happened { version, plural, event: "DELETED", object });
        }
    }

    pub(super) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let resource = RESOURCES.iter().find(|resource| resource.kind == kind)?;
        self.get(resource, namespace, name)
    }

    pub(super) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Value>> {
        let key = (static_plural(resource.plural), namespace.to_owned(), name.to_owned());
        self.objects.get(&key).cloned()
    }

    pub(super) fn objects(&self) -> Vec<Arc<Value>> {
        self.objects.values().map(Arc::clone).collect()
    }

    pub(super) fn all(&self, resource: &Resource, namespace: &str) -> Vec<Arc<Value>> {
        let of_it = self.objects.iter().filter(|((plural, within, _), _)| {
            *plural == resource.plural && (namespace.is_empty() || within == namespace)
        });
        of_it.map(|(_, object)| Arc::clone(object)).collect()
    }

    /// What happened to a kind after a version.
    pub(super) fn since(&self, plural: &str, version: u64) -> Vec<Happened> {
        let begin = self.history.partition_point(|happened| happened.version <= version);
        let rest = self.history[begin..].iter();
        rest.filter(|happened| happened.plural == plural).cloned().collect()
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
        self.snapshots.clear();
    }

    pub(super) fn restore(&mut self) {
        // Lower than any version of the history that ends.
        self.version = (self.version / EPOCH - 1) * EPOCH;
        self.compacted = 0;
        self.history.clear();
        self.snapshots.clear();
        for object in self.objects.values_mut() {
            let version = self.version.to_string();
            Arc::make_mut(object)["metadata"]["resourceVersion"] = version.into();
        }
    }

    /// Creates what a client sends.
    pub(super) fn post(
        &mut self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        if resource.namespaced {
            object["metadata"]["namespace"] = namespace.into();
        }
        let key = key_of(resource, &object);
        if self.objects.contains_key(&key) {
            return Err((409, "AlreadyExists", format!("{:?} already exists", key.2)));
        }
        self.create(resource, key, object)
    }

    /// Replaces an object by what a client sends.
    pub(super) fn update(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.get(resource, namespace, name);
        let old = old.ok_or_else(|| (404, "NotFound", format!("{name:?} not found")))?;
        let version = &object["metadata"]["resourceVersion"];
        if version.as_str().is_none_or(str::is_empty) {
            let text = "metadata.resourceVersion: must be specified for an update";
            return Err((422, "Invalid", text.to_owned()));
        }
        check_version(&object, &old)?;
        keep_metadata(&old, &mut object);
        let key = key_of(resource, &object);
        self.replace(resource, key, object)
    }

    /// Changes an object as a client's patch says; of a status only that.
    pub(super) fn patch(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        of_status: bool,
        (strategic, patch): (bool, &Value),
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.get(resource, namespace, name);
        let old = old.ok_or_else(|| (404, "NotFound", format!("{name:?} not found")))?;
        check_version(patch, &old)?;
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != old["metadata"]["uid"] {
            return Err((409, "Conflict", "the UID in the precondition does not match".to_owned()));
        }
        let mut object = Value::clone(&old);
        match of_status {
            true => merge(&mut object["status"], &patch["status"], strategic),
            false => {
                let mut patch = patch.clone();
                if let Some(patch) = patch.as_object_mut() {
                    patch.remove("status");
                }
                merge(&mut object, &patch, strategic);
            }
        }
        keep_metadata(&old, &mut object);
        if resource.kind == "Node" {
            check_node(&old, &object)?;
        }
        let key = key_of(resource, &object);
        self.replace(resource, key, object)
    }

    /// Writes the object again as it is: whoever read it before comes too late.
    pub(super) fn touch(&mut self, resource: &Resource, namespace: &str, name: &str) {
        if let Some(old) = self.get(resource, namespace, name) {
            let key = key_of(resource, &old);
            self.write(resource, key, Value::clone(&old), "MODIFIED");
        }
    }
}

fn static_plural(plural: &str) -> &'static str {
    let known = RESOURCES.iter().find(|resource| resource.plural == plural);
    known.map_or("", |resource| resource.plural)
}

fn key_of(resource: &Resource, object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let namespace = if resource.namespaced { text("namespace") } else { String::new() };
    (static_plural(resource.plural), namespace, text("name"))
}

fn keep_metadata(old: &Value, object: &mut Value) {
    for field in
        ["uid", "creationTimestamp", "managedFields", "resourceVersion", "name", "namespace"]
    {
        if let Some(value) = old["metadata"].get(field) {
            object["metadata"][field] = value.clone();
        }
    }
    object["apiVersion"] = old["apiVersion"].clone();
    object["kind"] = old["kind"].clone();
}

fn check_version(wanted: &Value, old: &Value) -> Result<(), Refusal> {
    let (wanted, found) =
        (&wanted["metadata"]["resourceVersion"], &old["metadata"]["resourceVersion"]);
    match wanted.is_null() || wanted == found {
        true => Ok(()),
        false => {
            let text = "Operation cannot be fulfilled: the object has been modified; please apply \
                        your changes to the latest version and try again";
            Err((409, "Conflict", text.to_owned()))
        }
    }
}

fn check_node(old: &Value, new: &Value) -> Result<(), Refusal> {
    let range = |node: &Value| node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned();
    let (old, found) = (range(old), range(new));
    if !old.is_empty() && old != found {
        let text = "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid";
        return Err((422, "Invalid", text.to_owned()));
    }
    let first = new["spec"]["podCIDRs"][0].as_str().unwrap_or_default();
    match first == found {
        true => Ok(()),
        false => Err((422, "Invalid", "spec.podCIDRs[0]: must be podCIDR".to_owned())),
    }
}

/// RFC 7386; of a strategic patch, lists of conditions are merged by type.
fn merge(into: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (key, value) in fields {
        match value {
            Value::Null => {
                if let Some(into) = into.as_object_mut() {
                    into.remove(key);
                }
            }
            Value::Array(items) if strategic && key == "conditions" => {
                if !into[key].is_array() {
                    into[key] = json!([]);
                }
                for item in items {
                    let list = into[key].as_array_mut();
                    let list = list.unwrap_or_else(|| unreachable!("made one just now"));
                    match list.iter_mut().find(|old| old["type"] == item["type"]) {
                        Some(old) => merge(old, item, strategic),
                        None => list.push(item.clone()),
                    }
                }
            }
            value => merge(&mut into[key], value, strategic),
        }
    }
}
