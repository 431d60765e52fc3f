//! Whom an object is for.
//!
//! Pure. Nodes get what moves packets, each its own pods among it; gateways get what requests are routed by: of
//! Ingresses those that are theirs, and of secrets those alone that these name.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use fairway_model::{Gateway, Ingress, Key, Model, ObjectName, Options};

use crate::identity::GatewayName;

/// Whom the model goes to, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subscriber {
    /// What is for nodes, and the pods that are to run on this one.
    Node(String),
    /// What is for gateways, and what is for those that have this one's name in common.
    Gateway(GatewayName),
}

/// Who gets an object. Subscribers are of three audiences each, which have no object in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Audience {
    /// Nodes and gateways.
    All,
    /// All nodes.
    Nodes,
    /// One node.
    Node(String),
    /// All gateways.
    Gateways,
    /// The gateways of one name.
    Gateway(String),
}

impl Audience {
    /// Of what has a gateway's name, or none.
    fn of_gateway(name: Option<&str>) -> Self {
        name.map_or(Self::Gateways, |name| Self::Gateway(name.to_owned()))
    }

    /// Whether whoever is of the other one is of this one, too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self == other
            || match self {
                Self::All => true,
                Self::Nodes => matches!(other, Self::Node(_)),
                Self::Gateways => matches!(other, Self::Gateway(_)),
                Self::Node(_) | Self::Gateway(_) => false,
            }
    }
}

/// A node's name, or `gateway/` and a gateway's: no node is called so.
impl fmt::Display for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => f.write_str(name),
            Self::Gateway(name) => write!(f, "gateway/{name}"),
        }
    }
}

impl Subscriber {
    /// What it is of, in the order in which it is told.
    pub(crate) fn audiences(&self) -> [Audience; 3] {
        match self {
            Self::Node(name) => [Audience::All, Audience::Nodes, Audience::Node(name.clone())],
            Self::Gateway(name) => {
                [Audience::All, Audience::Gateways, Audience::Gateway(name.group.clone())]
            }
        }
    }
}

/// Who gets the object of this key, which is in `model`. Whatever is added to the model finds its place here.
pub(crate) fn audiences(model: &Model, named: &Named, key: &Key) -> Vec<Audience> {
    match key {
        Key::Service(_) | Key::Endpoints(_) => vec![Audience::All],
        Key::Node(_)
        | Key::ServiceRange(_)
        | Key::Selector(_)
        | Key::Group(_)
        | Key::Member(_)
        | Key::Policy(_)
        | Key::Pool(_) => vec![Audience::Nodes],
        // What others run is of no use to a node; whose addresses are whose, members tell.
        Key::Pod(name) => {
            let pod = model.pods.get(name);
            pod.map(|pod| Audience::Node(pod.node.clone())).into_iter().collect()
        }
        Key::Ingress(name) => model.ingresses.get(name).map(of_ingress).into_iter().collect(),
        Key::Gateway(name) => vec![of_gateway(name)],
        Key::Secret(name) => named.audiences(name),
        Key::TicketKey(_) => vec![Audience::Gateways],
    }
}

fn of_ingress(ingress: &Ingress) -> Audience {
    Audience::of_gateway(ingress.gateway.as_deref())
}

/// The object without a name is for all.
fn of_gateway(name: &str) -> Audience {
    Audience::of_gateway(Some(name).filter(|name| !name.is_empty()))
}

/// Which secrets what is told to gateways names, and to which gateways.
#[derive(Debug, Default)]
pub(crate) struct Named(HashMap<ObjectName, BTreeMap<Audience, usize>>);

impl Named {
    /// Takes a change in. Answers whose secrets were named before that may be for others now.
    pub(crate) fn follow(
        &mut self,
        before: &Model,
        next: &Model,
    ) -> BTreeMap<ObjectName, Vec<Audience>> {
        let mut was = BTreeMap::new();
        for changed in before.ingresses.diff(&next.ingresses) {
            for (ingress, comes) in [(changed.after, true), (changed.before, false)] {
                let Some(ingress) = ingress else { continue };
                let audience = of_ingress(ingress);
                of_an_ingress(ingress)
                    .for_each(|name| self.count(name, &audience, comes, &mut was));
            }
        }
        for changed in before.gateways.diff(&next.gateways) {
            for (gateway, comes) in [(changed.after, true), (changed.before, false)] {
                let Some(gateway) = gateway else { continue };
                let audience = of_gateway(&gateway.name);
                of_a_gateway(gateway).for_each(|name| self.count(name, &audience, comes, &mut was));
            }
        }
        was.retain(|name, was| *was != self.audiences(name));
        was
    }

    fn count(
        &mut self,
        name: &ObjectName,
        audience: &Audience,
        comes: bool,
        was: &mut BTreeMap<ObjectName, Vec<Audience>>,
    ) {
        if !was.contains_key(name) {
            was.insert(name.clone(), self.audiences(name));
        }
        let counts = self.0.entry(name.clone()).or_default();
        let count = counts.entry(audience.clone()).or_default();
        *count = if comes { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            counts.remove(audience);
        }
        if counts.is_empty() {
            self.0.remove(name);
        }
    }

    /// Who gets this secret.
    pub(crate) fn audiences(&self, name: &ObjectName) -> Vec<Audience> {
        let Some(counts) = self.0.get(name) else { return Vec::new() };
        match counts.contains_key(&Audience::Gateways) {
            true => vec![Audience::Gateways],
            false => counts.keys().cloned().collect(),
        }
    }
}

/// Whether an Ingress, or what is said of gateways, names a secret.
pub fn names_secrets(model: &Model) -> bool {
    model.ingresses.values().flat_map(of_an_ingress).next().is_some()
        || model.gateways.values().flat_map(of_a_gateway).next().is_some()
}

fn of_an_ingress(ingress: &Ingress) -> impl Iterator<Item = &ObjectName> {
    let certificates = ingress.tls.iter().filter_map(|tls| tls.secret.as_ref());
    certificates.chain(of_options(&ingress.options))
}

fn of_a_gateway(gateway: &Gateway) -> impl Iterator<Item = &ObjectName> {
    gateway.default_certificate.iter().chain(of_options(&gateway.options))
}

fn of_options(options: &Options) -> impl Iterator<Item = &ObjectName> {
    let users = options.basic_auth.iter().map(|auth| &auth.secret);
    let clients = options.client_tls.iter().map(|tls| &tls.secret);
    users.chain(clients).chain(&options.backend_tls.secret)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fairway_model::{
        BackendTls, BasicAuth, ClientTls, Endpoint, EndpointState, Endpoints, Hints, IngressTls,
        Node, Object, Pod, Secret, Sensitive, Service, TicketKey,
    };
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::history::History;
    use crate::replica::Replica;

    /// Stands in everything that only gateways may see.
    const SECRET: &str = "5ec2e7";

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn ingress(at: &str, gateway: Option<&str>, secrets: &[&str]) -> Object {
        let tls = |secret: &&str| IngressTls { hosts: Vec::new(), secret: Some(name(secret)) };
        Object::Ingress(Ingress {
            name: name(at),
            gateway: gateway.map(str::to_owned),
            tls: secrets.iter().map(tls).collect(),
            ..Ingress::default()
        })
    }

    fn secret(at: &str, version: u8) -> Object {
        let key = Some(Sensitive::new(format!("{SECRET}{version}")));
        Object::Secret(Secret { name: name(at), key, ..Secret::default() })
    }

    fn ticket_key(at: u8) -> Object {
        let key = Sensitive::new(SECRET.repeat(11)[..64].to_owned());
        Object::TicketKey(TicketKey { name: format!("{at:032x}"), since: 0, key })
    }

    fn endpoint(last: u8) -> Endpoint {
        Endpoint {
            address: [10, 0, 0, last].into(),
            port: 80,
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        }
    }

    fn gateway(group: &str) -> Subscriber {
        Subscriber::Gateway(format!("{group}/1").parse().unwrap())
    }

    /// A subscriber, and all that it was ever sent.
    struct Follower {
        subscriber: Subscriber,
        replica: Replica,
        heard: Vec<u8>,
    }

    impl Follower {
        fn new(subscriber: Subscriber) -> Self {
            let node = match &subscriber {
                Subscriber::Node(node) => node.clone(),
                Subscriber::Gateway(_) => String::new(),
            };
            Self { subscriber, replica: Replica::new(node, None), heard: Vec::new() }
        }

        /// Connects, and hears all there is to hear. The digests are checked on the way.
        fn catch_up(&mut self, history: &mut History) {
            self.replica.begin();
            let position = self.replica.position().cloned();
            let mut next = Some(history.start(&self.subscriber, position.as_ref()));
            while let Some(step) = next {
                let lines = step.lines();
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    self.replica.line(line).unwrap();
                }
                self.heard.extend(lines);
                next = history.after(&self.subscriber, step.revision);
            }
        }

        fn has(&self) -> &Model {
            self.replica.model().unwrap()
        }
    }

    /// What a subscriber is to have of a model, found in another way.
    fn part(model: &Model, subscriber: &Subscriber) -> Model {
        let objects = model.objects();
        match subscriber {
            Subscriber::Node(node) => objects
                .filter(|object| match object {
                    Object::Pod(pod) => pod.node == *node,
                    Object::Ingress(_)
                    | Object::Gateway(_)
                    | Object::Secret(_)
                    | Object::TicketKey(_) => false,
                    _ => true,
                })
                .collect(),
            Subscriber::Gateway(own) => {
                let routes: Model = objects
                    .filter(|object| match object {
                        Object::Service(_) | Object::Endpoints(_) | Object::TicketKey(_) => true,
                        Object::Ingress(ingress) => {
                            ingress.gateway.as_ref().is_none_or(|name| *name == own.group)
                        }
                        Object::Gateway(gateway) => {
                            gateway.name.is_empty() || gateway.name == own.group
                        }
                        _ => false,
                    })
                    .collect();
                let text = serde_json::to_string(&routes).unwrap();
                let is_named =
                    |secret: &&Secret| text.contains(&serde_json::to_string(&secret.name).unwrap());
                let secrets = model.secrets.values().filter(is_named).cloned();
                routes.objects().chain(secrets.map(Object::Secret)).collect()
            }
        }
    }

    /// Few names of each, so that secrets are shared, and change hands.
    fn object() -> impl Strategy<Value = Object> {
        let secrets = vec(prop::sample::select(vec!["s1", "s2", "s3"]), 0..3);
        let group = option::of(prop::sample::select(vec!["a", "b"]));
        prop_oneof![
            6 => ("i[123]", group, secrets)
                .prop_map(|(at, gateway, secrets)| ingress(&at, gateway, &secrets)),
            3 => ("[ab]?", option::of("s[123]")).prop_map(|(at, secret)| {
                let default_certificate = secret.map(|secret| name(&secret));
                Object::Gateway(Gateway { name: at, default_certificate, ..Gateway::default() })
            }),
            6 => ("s[123]", 0..2_u8).prop_map(|(at, version)| secret(&at, version)),
            1 => (0..2_u8).prop_map(ticket_key),
            1 => "[ab]".prop_map(|at| Object::Node(Node { name: at, ..Node::default() })),
            1 => "v[12]".prop_map(|at| {
                Object::Service(Service { name: name(&at), ..Service::default() })
            }),
            2 => ("v[12]", vec(0..9_u8, 0..9)).prop_map(|(at, mut list)| {
                list.sort_unstable();
                list.dedup();
                let ports = [(String::new(), list.into_iter().map(endpoint).collect())];
                Object::Endpoints(Endpoints { service: name(&at), ports: ports.into() })
            }),
            1 => ("p[12]", "[ab]").prop_map(|(at, node)| {
                Object::Pod(Pod { name: name(&at), node, ..Pod::default() })
            }),
        ]
    }

    proptest! {
        #[test]
        fn each_has_its_part_over_whatever_steps(
            steps in vec((vec(object(), 0..14), any::<[bool; 5]>()), 1..8)
        ) {
            let all = [gateway("a"), gateway("b"), gateway("c")].into_iter();
            let all = all.chain(["a", "c"].map(|node| Subscriber::Node(node.to_owned())));
            let mut all: Vec<_> = all.map(Follower::new).collect();
            let mut history = History::new("e".into(), Arc::default());
            for (objects, connected) in steps {
                let model: Model = objects.into_iter().collect();
                history.push(Arc::new(model.clone()));
                for (follower, _) in all.iter_mut().zip(connected).filter(|(_, is)| *is) {
                    follower.catch_up(&mut history);
                    prop_assert_eq!(follower.has(), &part(&model, &follower.subscriber));
                    // Who comes anew gets the same.
                    let mut late = Follower::new(follower.subscriber.clone());
                    late.catch_up(&mut history);
                    prop_assert_eq!(late.has(), follower.has());
                    prop_assert_eq!(late.replica.position(), follower.replica.position());
                    if matches!(follower.subscriber, Subscriber::Node(_)) {
                        let heard = [&late.heard[..], &follower.heard].concat();
                        let heard = String::from_utf8(heard).unwrap();
                        prop_assert!(!heard.contains(SECRET) && !heard.contains("s1"), "{}", heard);
                    }
                }
            }
        }
    }

    #[test]
    fn a_secret_goes_where_an_ingress_that_names_it_goes_and_nowhere_else() {
        let keys = |follower: &Follower| {
            let secrets = follower.has().secrets.keys().map(|name| name.name.clone());
            secrets.collect::<Vec<_>>().join(" ")
        };
        let of = |ingresses: &[Object], version| {
            let secrets = ["s1", "s2"].map(|at| secret(at, version));
            Arc::new(ingresses.iter().cloned().chain(secrets).collect::<Model>())
        };
        let mut history = History::new("e".into(), of(&[], 0));
        let mut all = [gateway("a"), gateway("b")].map(Follower::new);
        // No route, no secret; one, for one of them; the same for the other; for both; once more; none.
        for (ingresses, version, wanted) in [
            (vec![], 0, ["", ""]),
            (vec![ingress("i", Some("a"), &["s1"])], 0, ["s1", ""]),
            (vec![ingress("i", Some("b"), &["s1"])], 0, ["", "s1"]),
            (vec![ingress("i", None, &["s1"])], 0, ["s1", "s1"]),
            (vec![ingress("i", None, &["s1"])], 1, ["s1", "s1"]),
            (
                vec![ingress("i", Some("a"), &["s2"]), ingress("j", None, &["s1"])],
                1,
                ["s1 s2", "s1"],
            ),
            (vec![ingress("j", Some("a"), &["s2"])], 1, ["s2", ""]),
            (vec![], 1, ["", ""]),
        ] {
            history.push(of(&ingresses, version));
            for (follower, wanted) in all.iter_mut().zip(wanted) {
                follower.heard.clear();
                follower.catch_up(&mut history);
                assert_eq!(keys(follower), wanted, "{ingresses:?}");
                if wanted.is_empty() {
                    let heard = String::from_utf8_lossy(&follower.heard);
                    assert!(!heard.contains(SECRET), "{heard}");
                }
            }
        }
    }

    #[test]
    fn every_place_that_can_name_a_secret_is_looked_at() {
        let options = |of: &str| {
            let named = |kind: &str| name(&format!("{of}-{kind}"));
            Box::new(Options {
                basic_auth: Some(BasicAuth { secret: named("users"), realm: String::new() }),
                client_tls: Some(ClientTls { secret: named("clients"), ..ClientTls::default() }),
                backend_tls: BackendTls { secret: Some(named("backend")), ..BackendTls::default() },
                ..Options::default()
            })
        };
        let certificate = Some(name("web-tls"));
        let ingress = Ingress {
            name: name("web"),
            gateway: Some("edge".into()),
            tls: vec![IngressTls { hosts: Vec::new(), secret: certificate }],
            options: options("web"),
            ..Ingress::default()
        };
        let gateway = Gateway {
            default_certificate: Some(name("any-tls")),
            options: options("any"),
            ..Gateway::default()
        };
        let model: Model =
            [Object::Ingress(ingress), Object::Gateway(gateway)].into_iter().collect();
        let mut named = Named::default();
        let was = named.follow(&Model::default(), &model);
        assert!(was.values().all(Vec::is_empty));
        let edge = vec![Audience::Gateway("edge".into())];
        for (of, audiences) in [("web", edge), ("any", vec![Audience::Gateways])] {
            for kind in ["tls", "users", "clients", "backend"] {
                let secret = name(&format!("{of}-{kind}"));
                assert_eq!(named.audiences(&secret), audiences, "{secret}");
                assert!(was.contains_key(&secret));
            }
        }
        named.follow(&model, &Model::default());
        assert!(named.0.is_empty(), "{named:?}");
    }
}
