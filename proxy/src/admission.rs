//! Which pods may start: those that the state in force on this node speaks of.
//!
//! A pod that the node has not heard of has no policy yet, so its ADD waits, and is refused when its
//! time is up: no pod ever sends before what restricts it is there. State from the disk counts like
//! any other. Attachments that name no pod are of containers that no policy can select; they never
//! wait. Nor does anything where no control plane tells of pods, on a node that runs alone.

use std::time::{Duration, Instant};

use fairway_cni_protocol::{Endpoint, KnownAddresses, Refusal, Response};
use fairway_model::{Model, ObjectName};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::pods::describe;
use crate::status::Status;

/// The addresses that this life of a pod had before the node was started, and those that others had.
pub(crate) fn known_addresses(former: &[Endpoint], uid: &str) -> KnownAddresses {
    let is_own = |pod: &&Endpoint| !uid.is_empty() && pod.pod_uid == uid;
    let (own, others): (Vec<&Endpoint>, Vec<&Endpoint>) = former.iter().partition(is_own);
    let addresses = |pods: Vec<&Endpoint>| {
        pods.into_iter().flat_map(|pod| pod.addresses.iter().copied()).collect()
    };
    KnownAddresses { own: addresses(own), others: addresses(others) }
}

/// Whether a pod that was there may come again: the node is still to run this life of it.
pub(crate) fn may_come(model: &Model, node: &str, pod: &Endpoint) -> bool {
    let name = ObjectName::new(pod.pod_namespace.clone(), pod.pod_name.clone());
    let found = model.pods.get(&name);
    found.is_some_and(|found| found.node == node && found.uid == pod.pod_uid)
}

/// ADDs whose pod the node has not heard of.
pub(crate) struct Waiting {
    node: String,
    patience: Duration,
    queue: Vec<Add>,
}

/// An ADD that is not answered yet.
pub(crate) struct Add {
    pub(crate) endpoint: Endpoint,
    answer: oneshot::Sender<Response>,
    since: Instant,
}

impl Add {
    /// One that was asked for now.
    pub(crate) fn new(endpoint: Endpoint, answer: oneshot::Sender<Response>) -> Self {
        Self { endpoint, answer, since: Instant::now() }
    }

    /// Whether the plugin has gone.
    pub(crate) fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    /// Answers the plugin. One that did not wait has undone what it did, or its DEL will come.
    pub(crate) fn answer(self, response: Response, status: &Status) {
        status.added(self.since.elapsed(), matches!(response, Response::Error(_)));
        let _ = self.answer.send(response);
    }

    fn refuse(self, status: &Status, reason: impl FnOnce(&str) -> String) {
        let message = reason(&describe(&self.endpoint));
        warn!("refused an ADD: {message}");
        self.answer(Response::Error(Refusal { try_again: true, message }), status);
    }
}

impl Waiting {
    /// None yet, for pods of `node`, each to wait for as long as `patience`.
    pub(crate) fn new(node: String, patience: Duration) -> Self {
        Self { node, patience, queue: Vec::new() }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Lets an ADD wait. An earlier one of the same attachment gives way to it.
    pub(crate) fn push(&mut self, add: Add, status: &Status) {
        self.cancel(&add.endpoint.container_id, &add.endpoint.interface, "another ADD", status);
        self.queue.push(add);
    }

    /// Refuses an ADD that waits, because of what came after it.
    pub(crate) fn cancel(
        &mut self,
        container_id: &str,
        interface: &str,
        because: &str,
        status: &Status,
    ) {
        for add in std::mem::take(&mut self.queue) {
            let endpoint = &add.endpoint;
            if endpoint.container_id == container_id && endpoint.interface == interface {
                add.refuse(status, |pod| format!("{because} of pod {pod} ended the wait for it"));
            } else {
                self.queue.push(add);
            }
        }
    }

    /// Takes out those whose pod is now known.
    pub(crate) fn admitted(&mut self, model: &Model) -> Vec<Add> {
        let (admitted, queue) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|add| known(model, &self.node, &add.endpoint).is_ok());
        self.queue = queue;
        admitted
    }

    /// Forgets those whose plugin has gone, and refuses those that have waited for too long.
    pub(crate) fn expire(&mut self, now: Instant, model: &Model, status: &Status) {
        for add in std::mem::take(&mut self.queue) {
            if add.is_given_up() {
                info!(pod = describe(&add.endpoint), "an ADD that waited for its pod was given up");
            } else if now.duration_since(add.since) < self.patience {
                self.queue.push(add);
            } else {
                let but = known(model, &self.node, &add.endpoint).err().unwrap_or_default();
                let uid = Some(add.endpoint.pod_uid.clone()).filter(|uid| !uid.is_empty());
                let uid = uid.map_or_else(String::new, |uid| format!(" (uid {uid})"));
                let patience = self.patience;
                add.refuse(status, |pod| {
                    format!(
                        "the control plane has not told this node of pod {pod}{uid} within \
                         {patience:?}{but}"
                    )
                });
            }
        }
    }
}

/// Whether the endpoint's pod is on this node, or it names none. The error is what the model has
/// instead, to be added to a sentence; empty if that is nothing.
pub(crate) fn known(model: &Model, node: &str, endpoint: &Endpoint) -> Result<(), String> {
    if endpoint.pod_name.is_empty() {
        return Ok(());
    }
    let name = ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name);
    let pod = model.pods.get(&name).ok_or_else(String::new)?;
    // Not every runtime says the uid, nor every manifest.
    let uids = [&pod.uid, &endpoint.pod_uid];
    if uids[0] != uids[1] && !uids.iter().any(|uid| uid.is_empty()) {
        return Err(format!("; the pod of that name that it knows has uid {}", pod.uid));
    }
    if pod.node != node {
        return Err(format!("; it has that pod on node {}", pod.node));
    }
    Ok(())
}

/// Whether the pod's sockets are to be left alone; `None` where the model does not have the pod.
pub(crate) fn sockets_exempt(model: &Model, node: &str, endpoint: &Endpoint) -> Option<bool> {
    known(model, node, endpoint).ok()?;
    let name = ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name);
    model.pods.get(&name).map(|pod| pod.sockets_exempt)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use fairway_cni_protocol::Bandwidth;
    use fairway_model::{Object, Pod};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn endpoint(name: &str, uid: &str) -> Endpoint {
        Endpoint {
            container_id: format!("container-{name}-{uid}"),
            interface: "eth0".to_owned(),
            pod_namespace: if name.is_empty() { "" } else { "shop" }.to_owned(),
            pod_name: name.to_owned(),
            pod_uid: uid.to_owned(),
            host_interface: "fw0".to_owned(),
            host_ifindex: 7,
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec![],
            host_ports: vec![],
            bandwidth: Bandwidth::default(),
            netns_cookie: None,
            netns: String::new(),
        }
    }

    /// A model with this pod of namespace "shop".
    fn model(name: &str, uid: &str, node: &str) -> Model {
        let name = ObjectName::new("shop", name);
        let pod = Pod { name, uid: uid.to_owned(), node: node.to_owned(), ..Pod::default() };
        [Object::Pod(pod)].into_iter().collect()
    }

    #[test]
    fn a_pod_is_told_its_own_addresses_and_those_of_its_neighbours() {
        let at = |name: &str, last| Endpoint {
            addresses: vec![[10, 0, 0, last].into()],
            ..endpoint(name, &format!("uid-{name}"))
        };
        let former = [at("a", 2), at("b", 3)];
        let known = |uid: &str| {
            let known = known_addresses(&former, uid);
            let text = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
            (text(&known.own).join(" "), text(&known.others).join(" "))
        };
        assert_eq!(known("uid-a"), ("10.0.0.2".to_owned(), "10.0.0.3".to_owned()));
        // Another life of it, and one that is not known at all.
        for uid in ["uid-c", ""] {
            assert_eq!(known(uid), (String::new(), "10.0.0.2 10.0.0.3".to_owned()));
        }
        let mut model = model("a", "uid-a", "n1");
        assert!(may_come(&model, "n1", &former[0]) && !may_come(&model, "n2", &former[0]));
        assert!(!may_come(&model, "n1", &former[1]));
        let name = ObjectName::new("shop", "a");
        model.pods.insert(Pod { name, uid: "later".into(), node: "n1".into(), ..Pod::default() });
        assert!(!may_come(&model, "n1", &former[0]));
    }

    fn wait(
        waiting: &mut Waiting,
        endpoint: Endpoint,
        since: Instant,
    ) -> oneshot::Receiver<Response> {
        let (answer, answered) = oneshot::channel();
        waiting.push(Add { endpoint, answer, since }, &Status::new());
        answered
    }

    #[track_caller]
    fn refused(answered: &mut oneshot::Receiver<Response>, expected: &str) {
        let Ok(Response::Error(refusal)) = answered.try_recv() else {
            panic!("expected {expected:?}");
        };
        assert!(refusal.try_again);
        assert_eq!(refusal.message, expected);
    }

    #[test]
    fn a_pod_is_known_by_namespace_name_uid_and_node() {
        let model = model("cart", "u1", "n1");
        let check = |name: &str, uid: &str, expected: Result<(), &str>| {
            let found = known(&model, "n1", &endpoint(name, uid));
            assert_eq!(found, expected.map_err(str::to_owned), "{name} {uid}");
        };
        check("cart", "u1", Ok(()));
        check("cart", "", Ok(()));
        check("", "", Ok(()));
        check("web", "u1", Err(""));
        check("cart", "u2", Err("; the pod of that name that it knows has uid u1"));
        let elsewhere = known(&model, "n2", &endpoint("cart", "u1"));
        assert_eq!(elsewhere.unwrap_err(), "; it has that pod on node n1");
        let by_hand = super::tests::model("cart", "", "n1");
        assert_eq!(known(&by_hand, "n1", &endpoint("cart", "u1")), Ok(()));
    }

    #[test]
    fn only_the_model_that_has_a_pod_says_whether_its_sockets_are_left_alone() {
        let mut model = model("cart", "u1", "n1");
        let exempt =
            |model: &Model, name: &str, uid| sockets_exempt(model, "n1", &endpoint(name, uid));
        assert_eq!(exempt(&model, "cart", "u1"), Some(false));
        let pods: Vec<Pod> = model.pods.values().cloned().collect();
        pods.into_iter().for_each(|pod| {
            model.pods.insert(Pod { sockets_exempt: true, ..pod });
        });
        assert_eq!(exempt(&model, "cart", "u1"), Some(true));
        for (name, uid) in [("cart", "u0"), ("web", "u1"), ("", "")] {
            assert_eq!(exempt(&model, name, uid), None, "{name} {uid}");
        }
    }

    #[test]
    fn an_add_waits_for_the_model_that_has_its_pod() {
        let mut waiting = Waiting::new("n1".to_owned(), PATIENCE);
        let now = Instant::now();
        let mut cart = wait(&mut waiting, endpoint("cart", "u1"), now);
        let mut web = wait(&mut waiting, endpoint("web", "u2"), now);
        assert!(waiting.admitted(&model("cart", "u0", "n1")).is_empty());
        let admitted = waiting.admitted(&model("cart", "u1", "n1"));
        let names: Vec<_> = admitted.iter().map(|add| add.endpoint.pod_name.as_str()).collect();
        assert_eq!((names, waiting.len()), (vec!["cart"], 1));
        assert!(cart.try_recv().is_err() && web.try_recv().is_err(), "nobody was answered yet");
    }

    #[test]
    fn an_add_waits_for_so_long_and_is_told_what_is_missing() {
        let mut waiting = Waiting::new("n1".to_owned(), PATIENCE);
        let start = Instant::now();
        let mut cart = wait(&mut waiting, endpoint("cart", "u1"), start);
        let mut web = wait(&mut waiting, endpoint("web", ""), start);
        let model = model("cart", "u0", "n1");
        waiting.expire(start + PATIENCE / 2, &model, &Status::new());
        assert_eq!(waiting.len(), 2);
        waiting.expire(start + PATIENCE, &model, &Status::new());
        assert_eq!(waiting.len(), 0);
        refused(
            &mut cart,
            "the control plane has not told this node of pod shop/cart (uid u1) within 10s; the pod \
             of that name that it knows has uid u0",
        );
        refused(&mut web, "the control plane has not told this node of pod shop/web within 10s");
    }

    #[test]
    fn an_add_whose_plugin_has_gone_is_forgotten() {
        let mut waiting = Waiting::new("n1".to_owned(), PATIENCE);
        let start = Instant::now();
        drop(wait(&mut waiting, endpoint("cart", "u1"), start));
        waiting.expire(start, &Model::default(), &Status::new());
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn del_or_another_add_ends_the_wait() {
        let mut waiting = Waiting::new("n1".to_owned(), PATIENCE);
        let now = Instant::now();
        let mut first = wait(&mut waiting, endpoint("cart", "u1"), now);
        let mut second = wait(&mut waiting, endpoint("cart", "u1"), now);
        refused(&mut first, "another ADD of pod shop/cart ended the wait for it");
        waiting.cancel("container-web-u1", "eth0", "a DEL", &Status::new());
        assert!(second.try_recv().is_err());
        waiting.cancel("container-cart-u1", "eth0", "a DEL", &Status::new());
        refused(&mut second, "a DEL of pod shop/cart ended the wait for it");
        assert_eq!(waiting.len(), 0);
    }
}
