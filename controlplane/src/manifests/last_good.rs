//! The last good objects, in a file beside the allocations: a restart while a manifest is broken
//! must not take down what that manifest held before.
//!
//! A fallback and no more. Whether an object is there is for the folder alone to say, so the file
//! brings nothing back whose manifest is gone, and the loss of it only costs the fallback.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairway_feed::disk;
use fairway_model::ObjectName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store::Good;
use crate::decode::decode_unchecked;
use crate::ingress::Accepted;
use crate::kubernetes::{Kind, Object, ObjectId};
use crate::pipeline::Services;
use crate::problem::Problem;

/// The file, and what it holds.
pub(super) struct LastGoodFile {
    file: PathBuf,
    /// The folder of manifests; the file names what is in it from there.
    dir: PathBuf,
    saved: LastGood,
}

/// What is remembered.
#[derive(Default)]
pub(super) struct LastGood {
    /// The last good state of each object.
    pub(super) objects: BTreeMap<ObjectId, Good>,
    /// The last form of each Service that got what it asked for.
    pub(super) accepted: Services,
    /// The last form of each Ingress that is in force as it was, and not as it is.
    pub(super) ingresses: Accepted,
}

impl LastGood {
    /// The Ingresses as they were good.
    pub(super) fn good_ingresses(&self) -> Accepted {
        let good = self.objects.iter().filter_map(|(id, good)| match &good.object {
            Object::Ingress(ingress) => Some((id.name.clone(), Arc::clone(ingress))),
            _ => None,
        });
        let mut good: Accepted = good.collect();
        good.extend(self.ingresses.clone());
        good
    }
}

/// The file's contents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State<T> {
    version: u32,
    objects: Vec<Entry<T>>,
    accepted: Vec<Entry<T>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<T> {
    kind: Kind,
    namespace: String,
    name: String,
    /// From the folder of manifests; empty where it does not matter.
    file: String,
    object: T,
}

/// Changes when an older version could misread what a newer one writes.
const VERSION: u32 = 1;

impl LastGoodFile {
    /// Reads the file; a missing one holds nothing, and so does a damaged one, with a problem that
    /// says so.
    pub(super) fn load(file: PathBuf, dir: &Path) -> (Self, Option<Problem>) {
        let (saved, problem) = match read(&file, dir) {
            Ok(saved) => (saved, None),
            Err(reason) => {
                let message = format!(
                    "the last good objects are not remembered: {reason}; what is broken now is not \
                     in force until it is mended"
                );
                (LastGood::default(), Some(Problem::in_file(&file, message)))
            }
        };
        (Self { file, dir: dir.to_owned(), saved }, problem)
    }

    /// What the file holds.
    pub(super) fn remembered(&self) -> &LastGood {
        &self.saved
    }

    /// Makes the file hold this, if it does not yet. Blocks on the disk.
    pub(super) fn save(
        &mut self,
        objects: &BTreeMap<ObjectId, Good>,
        accepted: &Services,
        ingresses: Accepted,
    ) -> Result<(), Problem> {
        let kept = || objects.iter().filter(|(id, _)| is_kept(id.kind));
        let saved = &self.saved;
        if kept().eq(&saved.objects) && *accepted == saved.accepted && ingresses == saved.ingresses
        {
            return Ok(());
        }
        let objects = kept().map(|(id, good)| (id.clone(), good.clone())).collect();
        let next = LastGood { objects, accepted: accepted.clone(), ingresses };
        let written = disk::replace(&self.file, &next.to_bytes(&self.dir));
        written.map_err(|error| {
            let message = format!("the last good objects cannot be remembered: {error}");
            Problem::in_file(&self.file, message)
        })?;
        self.saved = next;
        Ok(())
    }
}

/// Secrets are to be in no file but their own, and of ConfigMaps each key counts for itself.
fn is_kept(kind: Kind) -> bool {
    !matches!(kind, Kind::Secret | Kind::ConfigMap)
}

impl LastGood {
    fn to_bytes(&self, dir: &Path) -> Vec<u8> {
        let objects = self.objects.iter().filter_map(|(id, good)| {
            // JSON has no other names for files than Unicode.
            let file = good.file.strip_prefix(dir).ok()?.to_str()?;
            Some(Entry::new(id.kind, &id.name, file, good.object.clone()))
        });
        let accepted = self.accepted.iter().map(|(name, service)| {
            Entry::new(Kind::Service, name, "", Object::Service(service.clone()))
        });
        let accepted = accepted.chain(self.ingresses.iter().map(|(name, ingress)| {
            Entry::new(Kind::Ingress, name, "", Object::Ingress(ingress.clone()))
        }));
        let state =
            State { version: VERSION, objects: objects.collect(), accepted: accepted.collect() };
        let mut bytes = serde_json::to_vec(&state).expect("objects are plain data");
        bytes.push(b'\n');
        bytes
    }
}

impl<T> Entry<T> {
    fn new(kind: Kind, name: &ObjectName, file: &str, object: T) -> Self {
        let ObjectName { namespace, name } = name.clone();
        Self { kind, namespace, name, file: file.to_owned(), object }
    }
}

impl Entry<Value> {
    fn decode(self) -> Result<(ObjectId, String, Object), String> {
        let id = ObjectId { kind: self.kind, name: ObjectName::new(self.namespace, self.name) };
        match decode_unchecked(id.kind, self.object) {
            Ok(object) => Ok((id, self.file, object)),
            Err(error) => Err(format!("it is damaged: {id}: {error}")),
        }
    }
}

fn read(file: &Path, dir: &Path) -> Result<LastGood, String> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(LastGood::default());
        }
        Err(error) => return Err(error.to_string()),
    };
    let state: State<Value> =
        serde_json::from_slice(&bytes).map_err(|error| format!("it is damaged: {error}"))?;
    if state.version != VERSION {
        let found = state.version;
        return Err(format!("it has version {found}, this program reads version {VERSION}"));
    }
    let mut last = LastGood::default();
    for entry in state.objects {
        let (id, file, object) = entry.decode()?;
        last.objects.insert(id, Good { object, file: dir.join(file) });
    }
    for entry in state.accepted {
        let (ObjectId { name, .. }, _, object) = entry.decode()?;
        match object {
            Object::Service(service) => drop(last.accepted.insert(name, service)),
            Object::Ingress(ingress) => drop(last.ingresses.insert(name, ingress)),
            _ => {}
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// With every field of each kind.
    fn policies() -> Vec<(Kind, Value)> {
        let expressions = json!([{"key": "b", "operator": "NotIn", "values": ["c"]}]);
        let labels = json!({"matchLabels": {"a": "b"}, "matchExpressions": expressions});
        let pods = json!({"namespaceSelector": labels, "podSelector": labels});
        let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}});
        let ports = json!([{"port": "x"}, {"port": 1, "endPort": 2, "protocol": "UDP"}]);
        let peers = json!([pods, block]);
        let namespaced = json!({"spec": {"podSelector": labels, "policyTypes": ["Egress"],
            "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers}, {}]}});
        let peers = json!([{"namespaces": {}}, {"pods": pods}, {"nodes": labels},
            {"networks": ["::/0"]}, {"clouds": [1]}]);
        let range = json!({"destinationPort": {"range": {"start": 1, "end": 2}}});
        let protocols = json!([{"tcp": range}, {"udp": {"destinationPort": {"number": 3}}},
            {"sctp": range}, {"destinationNamedPort": "x"}]);
        let cluster = json!({"spec": {"tier": "Baseline", "priority": 9, "subject": {"pods": pods},
            "ingress": [{"name": "x", "action": "Pass", "from": peers, "protocols": protocols}],
            "egress": [{"action": "Deny", "to": peers, "protocols": protocols}]}});
        let ports = json!([{"portNumber": {"protocol": "SCTP", "port": 1}}, {"namedPort": "x"},
            {"portRange": {"start": 1, "end": 2}}]);
        let admin = json!({"subject": {"namespaces": labels},
            "ingress": [{"name": "x", "action": "Allow", "from": peers, "ports": ports}],
            "egress": [{"action": "Deny", "to": peers, "ports": ports}]});
        let baseline = json!({"spec": admin.clone()});
        let mut admin = json!({"spec": admin});
        admin["spec"]["priority"] = 4.into();
        vec![
            (Kind::NetworkPolicy, json!({})),
            (Kind::NetworkPolicy, namespaced),
            (Kind::ClusterNetworkPolicy, cluster),
            (Kind::AdminNetworkPolicy, admin),
            (Kind::BaselineAdminNetworkPolicy, baseline),
        ]
    }

    #[test]
    fn objects_of_all_kinds_come_back_as_they_were() {
        let objects = [
            (Kind::Namespace, json!({})),
            (
                Kind::Namespace,
                json!({"metadata": {"annotations": {"fairway.dev/socket-balancing": "off"}}}),
            ),
            (Kind::Node, json!({})),
            (
                Kind::Node,
                json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "a"},
                        "deletionTimestamp": "now"},
                    "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["fd00::/64"],
                        "taints": [{"key": "x"}]},
                    "status": {"addresses": [{"type": "Hostname", "address": "n1"}]}}),
            ),
            (Kind::Pod, json!({})),
            (
                Kind::Pod,
                json!({"metadata": {"labels": {"a": "b"}, "deletionTimestamp": "now"},
                    "spec": {"nodeName": "n1", "containers": [{"readinessProbe": {"exec": {}},
                        "ports": [{"name": "x", "containerPort": 1, "protocol": "UDP"}]}]},
                    "status": {"phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "::2"}],
                        "conditions": [{"type": "Ready", "status": "True"}]}}),
            ),
            (Kind::Service, json!({})),
            (
                Kind::Service,
                json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"],
                    "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
                    "internalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false,
                    "trafficDistribution": "PreferSameNode",
                    "externalIPs": ["203.0.113.1"], "loadBalancerSourceRanges": ["10.0.0.0/8 "],
                    "sessionAffinity": "ClientIP", "healthCheckNodePort": 30001,
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
                    "ports": [{"name": "a", "port": 1, "targetPort": "x", "nodePort": 30000},
                        {"name": "b", "port": 2, "targetPort": 3}]},
                    "metadata": {"annotations": {"fairway.dev/balancing": "maglev"}},
                    "status": {"loadBalancer": {"ingress": [{"hostname": "x"},
                        {"ip": "203.0.113.2", "ipMode": "Proxy"}]}}}),
            ),
            (
                Kind::Endpoints,
                json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 1}]}]}),
            ),
            (
                Kind::EndpointSlice,
                json!({"addressType": "IPv6", "ports": [{}],
                    "endpoints": [{"addresses": ["::2"], "conditions": {"ready": false},
                        "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}}]}),
            ),
        ];
        let ingress = (
            Kind::Ingress,
            json!({"apiVersion": "networking.k8s.io/v1", "metadata": {"annotations": {"a": "b"}},
                "spec": {"ingressClassName": "c", "defaultBackend": {"resource": {"kind": "B"}},
                    "tls": [{"hosts": ["a.example"], "secretName": "s"}, {}],
                    "rules": [{"host": "a.example", "http": {"paths": [
                        {"path": "/", "pathType": "Exact",
                            "backend": {"service": {"name": "s", "port": {"number": 1}}}},
                        {"backend": {"serviceName": "s", "servicePort": "http"}}]}}, {}]}}),
        );
        let class = json!({"metadata": {"annotations": {"fairway.dev/gateway": "g"}},
            "spec": {"controller": "c"}});
        let objects = objects.into_iter().chain([ingress, (Kind::IngressClass, class)]);
        let ranges = json!({"spec": {"cidrs": ["10.97.0.0/16", "fd00:97::/112"]}});
        let objects = objects.chain([(Kind::ServiceCIDR, ranges)]).chain(policies());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good.json");
        for (kind, value) in objects {
            let object = decode_unchecked(kind, value).unwrap();
            let id = ObjectId { kind, name: ObjectName::new("shop", "web") };
            let good = Good { object: object.clone(), file: "/manifests/a/b.yaml".into() };
            let (mut accepted, mut ingresses) = (Services::new(), Accepted::new());
            match object {
                Object::Service(service) => drop(accepted.insert(id.name.clone(), service)),
                Object::Ingress(ingress) => drop(ingresses.insert(id.name.clone(), ingress)),
                _ => {}
            }
            let objects = BTreeMap::from([(id, good)]);
            let load = || LastGoodFile::load(path.clone(), Path::new("/manifests"));
            load().0.save(&objects, &accepted, ingresses.clone()).unwrap();
            let (again, problem) = load();
            assert_eq!(problem, None);
            assert_eq!((&again.saved.objects, &again.saved.accepted), (&objects, &accepted));
            assert_eq!(again.saved.ingresses, ingresses);
        }
    }

    #[test]
    fn secrets_are_in_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good.json");
        let (mut file, _) = LastGoodFile::load(path.clone(), Path::new("/manifests"));
        let secret = json!({"stringData": {"a": "hush"}});
        let object = decode_unchecked(Kind::Secret, secret).unwrap();
        let id = ObjectId { kind: Kind::Secret, name: ObjectName::new("shop", "web") };
        let good = Good { object, file: "/manifests/a.yaml".into() };
        file.save(&BTreeMap::from([(id, good)]), &Services::new(), Accepted::new()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(!text.contains("Secret") && !text.contains("hush"), "{text}");
    }
}
