//! Why a query is answered as it is: it is asked as a client would, past the sockets.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fairway_cni_protocol::Resolved;
use fairway_controlplane::manifests::LocalPod;
use fairway_core::dns::kind;
use fairway_dns::forward::{Asked, Forwarder};
use fairway_dns::server::Service;
use fairway_dns::{Buffer, Client, Name, Transport, Verdict};
use tokio::sync::watch;

use super::{KernelNames, listener, records};

/// Knows who answers, and the pods that may ask.
pub(crate) struct Explainer {
    pods: watch::Receiver<Vec<LocalPod>>,
    names: KernelNames,
    answers: OnceLock<(Arc<Service>, Forwarder)>,
}

impl Explainer {
    pub(super) fn new(pods: watch::Receiver<Vec<LocalPod>>, names: KernelNames) -> Self {
        Self { pods, names, answers: OnceLock::new() }
    }

    /// Queries are answered from now on.
    pub(super) fn knows(&self, service: &Arc<Service>, forwarder: &Forwarder) {
        // There is one in an agent's life.
        let _ = self.answers.set((Arc::clone(service), forwarder.clone()));
    }

    /// What a client is told of a name: a pod, as `namespace/name`, or a process of the node.
    pub(crate) async fn explain(
        &self,
        name: &str,
        kind: &str,
        from: Option<&str>,
    ) -> Result<Resolved> {
        let (service, forwarder) =
            self.answers.get().context("no query is answered yet: the agent knows no cluster")?;
        let name: Name = name.parse().ok().with_context(|| format!("{name:?} is no name"))?;
        let kind = records::kind(kind).with_context(|| format!("{kind:?} is no type"))?;
        let client = self.client(from)?;
        let message = query(&name, kind);
        let zone = service.zone();
        let mut out = Buffer::new(0);
        let namespace = client.namespace.as_ref().map(ToString::to_string);
        let forward = match zone.answer(&message, &client, &mut out) {
            Verdict::Answer { bytes, .. } => {
                let is_pods = client.namespace.is_some() && matches!(kind, kind::A | kind::AAAA);
                let kernel =
                    if is_pods && self.names.has(&name) { "the kernel, from " } else { "" };
                let by = format!("{kernel}the cluster's zone, serial {}", zone.serial());
                return Ok(Resolved { by, namespace, ..read(bytes)? });
            }
            Verdict::Drop(reason) => bail!("it is not answered at all: {reason:?}"),
            Verdict::Forward(forward) => forward,
        };
        let asked = Asked { forward: &forward, message: &message, transport: client.transport };
        let (by, bytes) = match forwarder.recall(&asked, &zone, Instant::now(), &mut out) {
            Some(bytes) => ("upstreams, as remembered", bytes.to_vec()),
            None => ("upstreams", forwarder.resolve(&asked, &zone, &mut out).await.to_vec()),
        };
        let along = if forward.search { ", along the pod's search list" } else { "" };
        let tried = forward.names.iter().map(ToString::to_string).collect();
        Ok(Resolved { by: format!("{by}{along}"), tried, namespace, ..read(&bytes)? })
    }

    fn client(&self, from: Option<&str>) -> Result<Client> {
        let [node, _] = listener::local();
        let transport = Transport::Tcp;
        let Some(from) = from else {
            return Ok(Client { address: SocketAddr::new(node, 0), namespace: None, transport });
        };
        let pods = self.pods.borrow();
        let is_it = |pod: &&LocalPod| format!("{}/{}", pod.namespace, pod.name) == from;
        let pod = pods.iter().rev().find(is_it);
        let pod = pod.with_context(|| format!("no pod {from} on this node"))?;
        let address = pod.addresses.first().copied().unwrap_or(node);
        let namespace = Some(pod.namespace.as_str().into());
        Ok(Client { address: SocketAddr::new(address, 0), namespace, transport })
    }
}

/// A query for a name (RFC 1035, 4.1), with recursion desired.
fn query(name: &Name, kind: u16) -> Vec<u8> {
    const INTERNET: u16 = 1;
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(name.as_wire());
    message.extend(kind.to_be_bytes());
    message.extend(INTERNET.to_be_bytes());
    message
}

/// The outcome and the records of an answer.
fn read(bytes: &[u8]) -> Result<Resolved> {
    let (outcome, answer) = records::read(bytes).context("the answer cannot be read")?;
    Ok(Resolved { outcome, answer, ..Resolved::default() })
}

#[cfg(test)]
mod tests {
    use fairway_dns::{Zone, zone};
    use fairway_dns::{forward, server};
    use fairway_model::{Model, Object, ObjectName, Service as ModelService};
    use tokio::runtime::Handle;

    use super::*;

    fn explainer() -> Explainer {
        let service = ModelService {
            name: ObjectName::new("shop", "web"),
            cluster_ips: vec![[10, 96, 0, 7].into()],
            ..ModelService::default()
        };
        let model: Model = [Object::Service(service)].into_iter().collect();
        let forwarder = Forwarder::new(forward::Options::default(), Handle::current());
        let zone = Zone::new(zone::Options::default()).next(&model, 7);
        let clients = Box::new(|_: std::net::IpAddr| server::Access::Known);
        let options = server::Options::default();
        let service = Service::new(zone, forwarder.clone(), clients, 1, options);
        let pod = LocalPod {
            namespace: "shop".into(),
            name: "cart".into(),
            uid: String::new(),
            addresses: vec![[10, 244, 0, 5].into()],
        };
        let explainer = Explainer::new(watch::channel(vec![pod]).1, KernelNames::default());
        explainer.knows(&Arc::new(service), &forwarder);
        explainer
    }

    #[tokio::test]
    async fn a_name_of_the_cluster_is_answered_by_its_zone() {
        let known = explainer().explain("web.shop.svc.cluster.local", "a", None).await.unwrap();
        assert_eq!((&*known.outcome, &*known.by), ("NOERROR", "the cluster's zone, serial 7"));
        assert!(
            known.answer == ["web.shop.svc.cluster.local. 5 IN A 10.96.0.7"],
            "{:?}",
            known.answer
        );
        let none = explainer().explain("nope.shop.svc.cluster.local", "AAAA", None).await.unwrap();
        assert!(none.answer.is_empty() && none.outcome == "NXDOMAIN", "{none:?}");
    }

    #[tokio::test]
    async fn a_pods_search_list_is_followed_in_its_namespace() {
        let name = "example.com.shop.svc.cluster.local";
        let found = explainer().explain(name, "A", Some("shop/cart")).await.unwrap();
        assert_eq!(found.namespace.as_deref(), Some("shop"));
        assert!(found.by.contains("upstreams, along the pod's search list"), "{found:?}");
        assert!(found.tried.iter().any(|name| name.starts_with("example.com")), "{found:?}");
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused() {
        for (name, kind, from, said) in [
            ("a..b", "A", None, "is no name"),
            ("a.b", "NOPE", None, "is no type"),
            ("a.b", "A", Some("shop/none"), "no pod shop/none on this node"),
        ] {
            let error = explainer().explain(name, kind, from).await.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
