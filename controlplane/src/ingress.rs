//! Ingresses to what gateways serve.
//!
//! ```text
//! Ingress, IngressClass ─► ours? ─► rules, annotations ─► model::Ingress
//!                                        │ names
//! Secret, ConfigMap ─────────────────────┴─────────────► model::Secret, model::Gateway
//! ```
//!
//! Each Ingress is made on its own, and again only when it changes; whose path counts where two want the
//! same is for gateways to find out, by age and name. An annotation that cannot be read is left out, unless
//! it keeps somebody out: then the Ingress stays as it last was, or its paths are denied. Of Secrets only
//! those are looked at that an Ingress of ours or the gateway's settings name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairway_model::{Backend, BackendPort, Gateway, Model, ObjectName, Protocol, Secret};

use crate::kubernetes::data::{self, ConfigMap};
use crate::kubernetes::ingress::IngressClass;
use crate::kubernetes::{self, FieldError, Kind, ObjectId, Objects};
use crate::notices::{Notice, Reason};
use annotations::Said;
use secrets::Role;

pub(crate) mod annotations;
pub(crate) mod gateway;
pub(crate) mod notices;
mod rules;
mod secrets;
mod stand_in;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use stand_in::stand_in;

/// What ingress-nginx's annotations begin with.
pub(crate) const PREFIX: &str = "nginx.ingress.kubernetes.io/";
/// What the same annotations may begin with, where they are not for ingress-nginx.
pub(crate) const OWN_PREFIX: &str = "ingress.fairway.dev/";
/// The controller of classes that are ours in any case.
pub const CONTROLLER: &str = "fairway.dev/ingress";
/// The controller of ingress-nginx's classes.
pub const NGINX: &str = "k8s.io/ingress-nginx";
/// The annotation of an Ingress by which paths are compared as ingress-nginx does it, or not.
const NGINX_PATHS: &str = "fairway.dev/nginx-paths";

/// Which Ingresses are ours, and where the rest of what gateways do is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Controllers whose classes are ours beside [`CONTROLLER`]'s.
    pub controllers: Vec<String>,
    /// Whether Ingresses without any class are ours.
    pub without_class: bool,
    /// The ConfigMap with the gateways' settings.
    pub gateway: Option<ObjectName>,
    /// The ConfigMap with TCP ports.
    pub tcp_services: Option<ObjectName>,
    /// The ConfigMap with UDP ports.
    pub udp_services: Option<ObjectName>,
}

impl Settings {
    /// Those of a folder of manifests, which nobody else reads.
    pub fn of_folder() -> Self {
        Self {
            controllers: vec![NGINX.to_owned()],
            without_class: true,
            gateway: Some(ObjectName::new("kube-system", "fairway-gateway")),
            tcp_services: Some(ObjectName::new("ingress-nginx", "tcp-services")),
            udp_services: Some(ObjectName::new("ingress-nginx", "udp-services")),
        }
    }

    /// How we serve it, if we do.
    fn adopts(&self, ingress: &kubernetes::Ingress, classes: &Classes) -> Option<Adopted> {
        let nginx = || self.controllers.iter().any(|controller| controller == NGINX);
        let Some(name) = ingress.class() else {
            let usual = classes.values().find(|class| class.is_default());
            return match usual {
                _ if !self.without_class => None,
                Some(class) => self.adopts_class(class),
                None => Some(Adopted::default()),
            };
        };
        match (classes.get(name), name.as_str()) {
            (Some(class), _) => self.adopts_class(class),
            // Classes that many name and nobody made.
            (None, "fairway") => Some(Adopted::default()),
            (None, "nginx") if nginx() => {
                Some(Adopted { nginx: true, others: true, gateway: None })
            }
            (None, _) => None,
        }
    }

    fn adopts_class(&self, class: &IngressClass) -> Option<Adopted> {
        let controller = &class.spec.controller;
        let ours = controller == CONTROLLER || self.controllers.contains(controller);
        let adopted = || Adopted {
            nginx: controller == NGINX,
            others: controller != CONTROLLER,
            gateway: class.gateway().cloned(),
        };
        ours.then(adopted)
    }
}

/// Ingresses by name.
pub(crate) type Accepted = BTreeMap<ObjectName, Arc<kubernetes::Ingress>>;

type Classes = BTreeMap<String, Arc<IngressClass>>;

/// How an Ingress of ours is served, by its class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Adopted {
    nginx: bool,
    /// By another controller's class.
    others: bool,
    gateway: Option<String>,
}

/// Makes what gateways serve, and remembers what was good.
pub(crate) struct Ingresses {
    settings: Settings,
    entries: BTreeMap<ObjectName, Entry>,
    made: fairway_model::Objects<fairway_model::Ingress>,
    /// Ingresses as they were good before the first model.
    remembered: Accepted,
    held: BTreeMap<ObjectName, Held>,
    /// Who is let in by all Ingresses, as the settings last said it well.
    clients: Option<gateway::Clients>,
    /// Objects by name that something was heard of; `None` where all there are are known.
    heard: Option<BTreeSet<ObjectId>>,
    /// Something was heard since the last model.
    news: bool,
    wanted: BTreeSet<ObjectId>,
    /// What is wrong with certificates is said by somebody else.
    pub(crate) certificates_apart: bool,
}

/// An Ingress of ours as it was last made, and of what.
struct Entry {
    source: Arc<kubernetes::Ingress>,
    /// What is in force of it.
    good: Option<Arc<kubernetes::Ingress>>,
    adopted: Adopted,
    /// The first port of the Service that its annotation names.
    port: Option<BackendPort>,
    /// What its annotation names.
    headers: Option<Arc<ConfigMap>>,
    /// What else it names, if only as it was when it was last good.
    secrets: Vec<(ObjectName, Role, String)>,
    custom_headers: Option<ObjectName>,
    errors: Vec<FieldError>,
    warnings: Vec<FieldError>,
}

/// A Secret as it was last taken, and of what.
struct Held {
    source: Option<Arc<data::Secret>>,
    roles: BTreeSet<Role>,
    made: Secret,
    wrong: BTreeMap<Role, String>,
}

/// What is wrong.
#[derive(Default)]
pub(crate) struct Found {
    /// Last good states stay in force.
    pub(crate) errors: Vec<(ObjectId, FieldError)>,
    pub(crate) warnings: Vec<(ObjectId, FieldError)>,
    /// What owners of Ingresses are to be told of that, and of what leads nowhere; only of an API server's.
    pub(crate) notices: Arc<Vec<Notice>>,
}

impl Default for Ingresses {
    fn default() -> Self {
        Self {
            settings: Settings::of_folder(),
            entries: BTreeMap::new(),
            made: fairway_model::Objects::default(),
            remembered: Accepted::new(),
            held: BTreeMap::new(),
            clients: None,
            heard: None,
            news: true,
            wanted: BTreeSet::new(),
            certificates_apart: false,
        }
    }
}

impl Ingresses {
    /// Those of an API server, where Secrets and ConfigMaps are read only when they are [`wanted`].
    ///
    /// [`wanted`]: Self::wanted
    pub(crate) fn one_by_one(settings: Settings) -> Self {
        Self { settings, heard: Some(BTreeSet::new()), ..Self::default() }
    }

    /// Takes these for what Ingresses said when they were good, as long as it has made no model.
    pub(crate) fn remember(&mut self, good: Accepted) {
        self.remembered = good;
    }

    /// The Ingresses that are in force as they were, and not as they are.
    pub(crate) fn accepted(&self) -> Accepted {
        let broken = self.entries.iter().filter(|(_, entry)| !entry.errors.is_empty());
        let good = broken.filter_map(|(name, entry)| Some((name.clone(), entry.good.clone()?)));
        good.collect()
    }

    /// The Secrets and ConfigMaps that were named when the last model was made.
    pub(crate) fn wanted(&self) -> &BTreeSet<ObjectId> {
        &self.wanted
    }

    /// Whether it is there is known now.
    pub(crate) fn hear(&mut self, id: ObjectId) {
        if let Some(heard) = &mut self.heard {
            self.news |= heard.insert(id);
        }
    }

    /// Whether something else may come of the same objects than the last time.
    pub(crate) fn is_concerned(&self) -> bool {
        self.news
    }

    /// Adds to the model what gateways serve of these objects.
    pub(crate) fn convert(&mut self, objects: &Objects, model: &mut Model) -> Found {
        let mut found = Found::default();
        self.news = false;
        self.take_ingresses(objects);
        let mut named = BTreeMap::<ObjectName, Vec<(ObjectId, Role, String)>>::new();
        self.wanted.clear();
        for (name, entry) in &self.entries {
            let id = ObjectId { kind: Kind::Ingress, name: name.clone() };
            let of_it = |error: &FieldError| (id.clone(), error.clone());
            found.errors.extend(entry.errors.iter().map(of_it));
            found.warnings.extend(entry.warnings.iter().map(of_it));
            for (secret, role, field) in &entry.secrets {
                named.entry(secret.clone()).or_default().push((id.clone(), *role, field.clone()));
            }
            self.wanted.extend(entry.custom_headers.iter().map(config_map));
        }
        model.ingresses = self.made.clone();
        let (gateway, closed) = self.gateway(objects, &mut found);
        if closed {
            let made = self.made.values();
            for ingress in made.filter(|of| gateway::has_own_clients(&of.options)) {
                let mut ingress = ingress.clone();
                gateway::close(&mut ingress.options);
                model.ingresses.insert(ingress);
            }
        }
        if let Some(gateway) = gateway {
            if let (Some(secret), Some(map)) =
                (&gateway.default_certificate, &self.settings.gateway)
            {
                let field = "data.default-ssl-certificate".to_owned();
                let use_of = (config_map(map), Role::Tls, field);
                named.entry(secret.clone()).or_default().push(use_of);
            }
            model.gateways.insert(gateway);
        }
        self.take_secrets(objects, named, model, &mut found);
        // What nobody names any more is not followed any more, and may be named again.
        if let Some(heard) = &mut self.heard {
            heard.retain(|id| self.wanted.contains(id));
            found.notices = Arc::new(notices::all(self, objects, &found));
        }
        found
    }

    /// What owners are to be told of problems that whoever brings the objects has: with Ingresses that cannot be read,
    /// and with Secrets that they name and that may not be.
    pub(crate) fn notices_of(
        &self,
        broken: &BTreeMap<ObjectId, Vec<FieldError>>,
        forbidden: &BTreeSet<ObjectId>,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (name, entry) in &self.entries {
            let errors = broken.get(&ObjectId { kind: Kind::Ingress, name: name.clone() });
            for error in errors.into_iter().flatten() {
                let mut error = error.clone();
                if !entry.source.unreadable {
                    error.message += "; it stays as it last was";
                }
                notices.push(notices::notice(name, &entry.source, Reason::Refused, &error));
            }
            for (secret, _, field) in entry.secrets.iter().filter(|_| !forbidden.is_empty()) {
                if forbidden.contains(&ObjectId { kind: Kind::Secret, name: secret.clone() }) {
                    let message = format!(
                        "the control plane may not read Secret {secret}: the namespace has to allow it (list and watch)"
                    );
                    let error = FieldError::new(field, message);
                    notices.push(notices::notice(
                        name,
                        &entry.source,
                        Reason::SecretUnusable,
                        &error,
                    ));
                }
            }
        }
        notices
    }

    /// Whether that Ingress is served, and whether by a class that is our own.
    pub(crate) fn serves(&self, name: &ObjectName) -> Option<bool> {
        self.entries.get(name).map(|entry| !entry.adopted.others)
    }

    /// The uid of an Ingress of ours, as far as it is known.
    pub(crate) fn uid(&self, name: &ObjectName) -> Option<String> {
        self.entries.get(name).map(|entry| entry.source.metadata.uid.clone())
    }

    fn take_ingresses(&mut self, objects: &Objects) {
        let mut before = std::mem::take(&mut self.entries);
        for (name, source) in &objects.ingresses {
            let Some(adopted) = self.settings.adopts(source, &objects.ingress_classes) else {
                continue;
            };
            let (port, headers) = looked_up(objects, name, source);
            let last = before.remove(name);
            let is_same = |last: &Entry| {
                Arc::ptr_eq(&last.source, source)
                    && last.adopted == adopted
                    && last.port == port
                    && same(last.headers.as_ref(), headers.as_ref())
                    && (last.custom_headers.is_none() || headers.is_some())
            };
            let entry = match last {
                Some(last) if is_same(&last) => last,
                last => self.take_ingress(objects, (name, source), adopted, last),
            };
            self.entries.insert(name.clone(), entry);
        }
        self.remembered.clear();
        for name in before.into_keys() {
            self.made.remove(&name);
        }
    }

    /// Makes an Ingress, or leaves what was made of it before if it cannot be served as it is.
    fn take_ingress(
        &mut self,
        objects: &Objects,
        (name, source): (&ObjectName, &Arc<kubernetes::Ingress>),
        adopted: Adopted,
        last: Option<Entry>,
    ) -> Entry {
        let (port, headers) = looked_up(objects, name, source);
        let mut said = annotations::read(&name.namespace, &source.metadata.annotations);
        self.complete(&mut said, port.clone(), headers.as_deref());
        let (mut made, mut errors) = rules::convert(name, source, &mut said);
        made.gateway.clone_from(&adopted.gateway);
        made.nginx = match source.metadata.annotations.get(NGINX_PATHS).map(String::as_str) {
            Some("true") => true,
            Some("false") => false,
            other => {
                if let Some(other) = other {
                    let field = format!("metadata.annotations.{NGINX_PATHS}");
                    let message = format!("\"{other:.300}\" is neither \"true\" nor \"false\"");
                    said.warnings.push(FieldError::new(field, message));
                }
                adopted.nginx
            }
        };
        if source.unreadable {
            // Whoever read it has said what is wrong with it.
            errors.clear();
        }
        errors.append(&mut said.errors);
        let (mut secrets, mut good) = (said.secrets, Some(Arc::clone(source)));
        if errors.is_empty() && !source.unreadable {
            self.made.insert(made);
        } else {
            let last = last.filter(|last| last.good.is_some()).or_else(|| {
                let before = self.remembered.remove(name)?;
                let entry = self.take_ingress(objects, (name, &before), adopted.clone(), None);
                entry.good.is_some().then_some(entry)
            });
            if last.is_none() {
                let message = "it was never good, and is not served until it is";
                errors.push(FieldError::new("", message));
                self.made.remove(name);
                secrets.retain(|(_, role, _)| matches!(role, Role::Tls | Role::ClientCa));
                if let Some(denied) = rules::denied(made, &errors) {
                    self.made.insert(denied);
                }
            }
            good = last.as_ref().and_then(|last| last.good.clone());
            secrets = last.map_or(secrets, |last| last.secrets);
        }
        let custom_headers = said.custom_headers.map(|(name, _)| name);
        let (source, warnings) = (Arc::clone(source), said.warnings);
        Entry { source, good, adopted, port, headers, secrets, custom_headers, errors, warnings }
    }

    /// Fills in what other objects say.
    fn complete(&self, said: &mut Said, port: Option<BackendPort>, headers: Option<&ConfigMap>) {
        if let Some((service, field)) = said.default_backend.take() {
            match port {
                Some(port) => said.options.default_backend = Some(Backend { service, port }),
                None => {
                    let message =
                        format!("not honoured: there is no Service {service} with a port");
                    said.warnings.push(FieldError::new(field, message));
                }
            }
        }
        let Some((name, field)) = &said.custom_headers else { return };
        let Some(map) = headers else {
            if self.knows(&config_map(name)) {
                let message = format!("not honoured: there is no ConfigMap {name}");
                said.warnings.push(FieldError::new(field, message));
            }
            return;
        };
        for (header, value) in &map.data {
            match rules::header(header, value) {
                Ok(header) => said.options.response_headers.push(header),
                Err(message) => {
                    let message =
                        format!("{header:.100} of ConfigMap {name} is not sent: {message}");
                    said.warnings.push(FieldError::new(field, message));
                }
            }
        }
    }

    /// Whether it is known if the object is there.
    fn knows(&self, id: &ObjectId) -> bool {
        self.heard.as_ref().is_none_or(|heard| heard.contains(id))
    }

    /// What ConfigMaps say, if there are any; and whether everybody is kept out of all Ingresses.
    fn gateway(&mut self, objects: &Objects, found: &mut Found) -> (Option<Gateway>, bool) {
        let (mut gateway, mut closed) = (None, false);
        let Found { errors: wrong, warnings: unheeded, .. } = found;
        let mut warn = |map: &ObjectName, warnings: Vec<FieldError>| {
            unheeded.extend(warnings.into_iter().map(|warning| (config_map(map), warning)));
        };
        let Settings { gateway: own, tcp_services, udp_services, .. } = &self.settings;
        self.wanted.extend([own, tcp_services, udp_services].into_iter().flatten().map(config_map));
        let get = |name: &Option<ObjectName>| {
            let name = name.as_ref()?;
            Some((name.clone(), objects.config_maps.get(name)?))
        };
        if let Some((name, map)) = get(own) {
            let made = gateway::settings(map, &mut self.clients);
            (gateway, closed) = (Some(made.gateway), made.closed);
            warn(&name, made.warnings);
            wrong.extend(made.errors.into_iter().map(|error| (config_map(&name), error)));
        } else if let Some(name) = own {
            let known = self.knows(&config_map(name));
            if let Some((made, error)) = gateway::without(self.clients.as_ref(), known) {
                (gateway, closed) = (Some(made), self.clients.is_none());
                wrong.push((config_map(name), error));
            }
        }
        for (name, protocol) in [(tcp_services, Protocol::Tcp), (udp_services, Protocol::Udp)] {
            let Some((name, map)) = get(name) else { continue };
            let (streams, warnings) = gateway::streams(map, protocol);
            gateway.get_or_insert_default().streams.extend(streams);
            warn(&name, warnings);
        }
        (gateway, closed)
    }

    fn take_secrets(
        &mut self,
        objects: &Objects,
        named: BTreeMap<ObjectName, Vec<(ObjectId, Role, String)>>,
        model: &mut Model,
        found: &mut Found,
    ) {
        self.held.retain(|name, _| named.contains_key(name));
        for (name, uses) in named {
            let id = ObjectId { kind: Kind::Secret, name: name.clone() };
            let known = self.knows(&id);
            self.wanted.insert(id);
            let roles: BTreeSet<_> = uses.iter().map(|(_, role, _)| *role).collect();
            let source = objects.secrets.get(&name);
            let last = self.held.remove(&name);
            let held = match last {
                Some(last) if last.roles == roles && same(last.source.as_ref(), source) => last,
                last => Held::take(&name, source, roles, last.as_ref()),
            };
            for (object, role, field) in uses {
                if self.certificates_apart && role == Role::Tls && object.kind == Kind::Ingress {
                    continue;
                }
                if let Some(message) = held.wrong.get(&role).filter(|_| known) {
                    let error = FieldError::new(field, message.clone());
                    match held.source.is_some() {
                        true => found.errors.push((object, error)),
                        false => found.warnings.push((object, error)),
                    }
                }
            }
            if held.made != (Secret { name: name.clone(), ..Secret::default() }) {
                model.secrets.insert(held.made.clone());
            }
            self.held.insert(name, held);
        }
    }
}

impl Held {
    /// Takes what roles want of the Secret; what it is not good for stays as it was.
    fn take(
        name: &ObjectName,
        source: Option<&Arc<data::Secret>>,
        roles: BTreeSet<Role>,
        last: Option<&Self>,
    ) -> Self {
        let mut made = Secret { name: name.clone(), ..Secret::default() };
        let mut wrong = BTreeMap::new();
        for role in &roles {
            let taken = match source {
                Some(source) => role
                    .take(source, &mut made)
                    .map_err(|message| format!("Secret {name}: {message}")),
                None => Err(format!("there is no Secret {name}")),
            };
            if let Err(message) = taken {
                let had = last.filter(|last| last.roles.contains(role));
                let had = had
                    .filter(|last| last.made != Secret { name: name.clone(), ..Secret::default() });
                if let Some(last) = had {
                    role.keep(&last.made, &mut made);
                }
                let stays = if had.is_some() { "; what it had before stays in force" } else { "" };
                wrong.insert(*role, format!("{message}{stays}"));
            }
        }
        Self { source: source.cloned(), roles, made, wrong }
    }
}

fn config_map(name: &ObjectName) -> ObjectId {
    ObjectId { kind: Kind::ConfigMap, name: name.clone() }
}

/// Whether both are the very same object, or neither is there.
fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// What else an Ingress is made of: the first port of the Service and the headers that its annotations name.
fn looked_up(
    objects: &Objects,
    name: &ObjectName,
    source: &kubernetes::Ingress,
) -> (Option<BackendPort>, Option<Arc<ConfigMap>>) {
    let service = annotations::value(source, "default-backend");
    let port = service.and_then(|service| {
        let service = objects.services.get(&ObjectName::new(&name.namespace, service.trim()))?;
        Some(BackendPort::Number(service.spec.ports.first()?.port.get()))
    });
    let headers = annotations::value(source, "custom-headers").and_then(|map| {
        let name = values::object(map.trim(), &name.namespace).ok()?;
        objects.config_maps.get(&name).cloned()
    });
    (port, headers)
}
