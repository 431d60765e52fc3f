//! A host, of what Ingresses say about it.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use fairway_model::{
    Affinity, Backend, BackendPort, ClientTls, Gateway, Ingress, IngressPath, Key, Model,
    ObjectName, PathType, Protocol,
};
use http::HeaderValue;
use regex::bytes::Regex;

use super::draft::Draft;
use super::said::Owner;
use super::{named, problem};
use crate::route::access::Certified;
use crate::route::canary::{Branch, Rule};
use crate::route::paths::{Paths, expression};
use crate::route::{Host, Problem, Route, Settings, Target, path};
use crate::shared::Made;

/// Makes hosts and routes, and notes what of them cannot be served.
pub(super) struct Maker<'a> {
    pub(super) model: &'a Model,
    pub(super) gateway: &'a Gateway,
    /// By their text.
    pub(super) expressions: &'a mut Made<String, Regex>,
    pub(super) problems: Vec<Problem>,
}

impl Maker<'_> {
    pub(super) fn host(&mut self, name: &str, draft: &Draft<'_>) -> Host {
        let routes = self.routes(name, draft);
        let first =
            |has: &dyn Fn(&Owner) -> bool| draft.owners.iter().copied().find(|owner| has(owner));
        let fallback = first(&|owner| owner.ingress.default_backend.is_some());
        let certified = first(&|owner| owner.options().client_tls.is_some());
        let passthrough = self.passthrough(name, &routes, draft);
        let fallback = fallback.and_then(|owner| self.fallback(owner, name));
        Host {
            name: name.to_owned(),
            identities: identities(routes.iter().chain(&fallback)),
            paths: Paths::new(routes),
            fallback,
            app_root: draft.owners.iter().find_map(|owner| owner.settings.app_root.clone()),
            tls: passthrough.is_some()
                || draft
                    .owners
                    .iter()
                    .any(|owner| owner.ingress.tls.iter().any(|tls| tls.hosts.is_empty())),
            certified: self.certified(certified),
            min_tls: draft
                .owners
                .iter()
                .find_map(|owner| owner.options().min_tls)
                .or(self.gateway.options.min_tls),
            ciphers: first(&|owner| !owner.options().ciphers.is_empty())
                .map_or(&self.gateway.options.ciphers, |owner| &owner.options().ciphers)
                .clone(),
            passthrough,
        }
    }

    /// Who gets the TLS of a host as it is: whoever has its path `/`, and only if he wants it so, as what the others
    /// say of their paths would not hold any more.
    fn passthrough(
        &mut self,
        name: &str,
        routes: &[Arc<Route>],
        draft: &Draft<'_>,
    ) -> Option<Target> {
        let root = routes.iter().find(|route| route.path == "/").or(routes.first());
        let of_root = |owner: &&Owner| {
            root.is_some_and(|root| root.ingress.as_ref() == Some(&owner.ingress.name))
        };
        let wanted = || draft.owners.iter().copied().filter(|owner| owner.options().passthrough);
        for owner in wanted().filter(|owner| !of_root(owner)) {
            let text = match root.and_then(|root| root.ingress.as_ref()) {
                Some(other) => format!(
                    "host {}: its TLS is not passed on, as {other} has its path /",
                    named(name)
                ),
                None => format!("host {}: TLS has no path to be passed on to", named(name)),
            };
            self.problems.push(problem(&owner.ingress, text));
        }
        let passes = wanted().any(|owner| of_root(&owner));
        root.filter(|root| passes && !root.settings.denied).and_then(|root| root.target.clone())
    }

    /// What is asked of clients' certificates: what `owner` says, or else the gateway.
    fn certified(&mut self, owner: Option<&Owner>) -> Option<Certified> {
        let own = owner.and_then(|owner| {
            let tls = owner.options().client_tls.as_ref()?;
            Some(self.certified_as(Key::Ingress(owner.ingress.name.clone()), tls))
        });
        own.or_else(|| {
            let gateway = self.gateway;
            let tls = gateway.options.client_tls.as_ref()?;
            Some(self.certified_as(Key::Gateway(gateway.name.clone()), tls))
        })
    }

    fn certified_as(&mut self, object: Key, tls: &ClientTls) -> Certified {
        let mut bad = |text| self.problems.push(Problem { object: object.clone(), text });
        let ca = self.model.secrets.get(&tls.secret).and_then(|secret| secret.ca.as_ref());
        let needs = !matches!(
            tls.verify,
            fairway_model::VerifyClient::Off | fairway_model::VerifyClient::OptionalNoCa
        );
        let denied = needs && ca.is_none();
        if denied {
            bad(format!("there is no ca.crt in Secret {}: 503 for the whole host", tls.secret));
        }
        let common_name = tls.common_name.as_ref().map(|pattern| {
            // ingress-nginx looks for it in the whole name, and so it is written with this in front.
            let bare = pattern.strip_prefix("CN=").unwrap_or(pattern);
            let made = regex::bytes::RegexBuilder::new(&format!("^(?:{bare})"))
                .unicode(false)
                .size_limit(1 << 20)
                .build();
            if made.is_err() {
                bad(format!("{pattern:?} is no regular expression: no client's certificate fits"));
            }
            made.ok()
        });
        let error_page = tls.error_page.as_ref().and_then(|page| {
            // It is needed before there is a route that could fill places in it.
            let value = HeaderValue::try_from(page).ok().filter(|_| !page.contains('$'));
            if value.is_none() {
                bad(format!("{page:?} is no address to send clients to, which get a 400 instead"));
            }
            value
        });
        Certified { tls: tls.clone(), common_name, denied, error_page }
    }

    fn routes(&mut self, host: &str, draft: &Draft<'_>) -> Vec<Arc<Route>> {
        // With ingress-nginx, one Ingress makes all paths of the host expressions.
        let infected =
            draft.rules.iter().any(|(path, owner)| owner.ingress.nginx && owner.rewrites(path));
        let mut taken: BTreeMap<(String, PathType), &ObjectName> = BTreeMap::new();
        let mut used = BTreeSet::new();
        let mut routes = Vec::new();
        for (path, owner) in &draft.rules {
            let expression = owner.rewrites(path) || infected && owner.ingress.nginx;
            let mut route = self.route(host, path, owner, expression);
            match taken.entry((route.path.clone(), route.kind)) {
                btree_map::Entry::Occupied(other) => {
                    let (path, host, other) = (&route.path, named(host), other.get());
                    let text = format!("path {path} of host {host}: {other} has it already");
                    self.problems.push(problem(&owner.ingress, text));
                    continue;
                }
                btree_map::Entry::Vacant(entry) => _ = entry.insert(&owner.ingress.name),
            }
            let mut branches =
                draft.canaries.iter().enumerate().filter(|(_, (canary, _))| {
                    (&canary.path, canary.kind) == (&path.path, path.kind)
                });
            if let Some((place, (canary, of))) = branches.next() {
                used.insert(place);
                route.canary = self.branch(&route, canary, of).map(Box::new);
            }
            for (place, (canary, of)) in branches {
                used.insert(place);
                let text = format!(
                    "path {} of host {}: another canary has it already",
                    canary.path,
                    named(host)
                );
                self.problems.push(problem(&of.ingress, text));
            }
            routes.push(Arc::new(route));
        }
        for (place, (canary, of)) in draft.canaries.iter().enumerate() {
            if !used.contains(&place) {
                let text = format!(
                    "path {} of host {}: nobody else has it, so there is nothing to take a part of",
                    canary.path,
                    named(host)
                );
                self.problems.push(problem(&of.ingress, text));
            }
        }
        routes
    }

    /// The route of a path. If that cannot be read, it is denied, with whatever begins as it does.
    fn route(
        &mut self,
        host: &str,
        rule: &IngressPath,
        owner: &Owner,
        is_expression: bool,
    ) -> Route {
        let text = if rule.path.is_empty() { "/" } else { &rule.path };
        let read = if is_expression {
            let found = self.expression(text).map(|made| (text.to_owned(), Some(made)));
            found.ok_or_else(|| {
                "it is no regular expression, or one that looks ahead or back, or is too large"
                    .to_owned()
            })
        } else {
            let normal = path::normal(text).map_err(|error| error.to_string());
            let text = normal.and_then(|path| {
                String::from_utf8(path.decoded.into_owned()).map_err(|error| error.to_string())
            });
            text.map(|path| (path, None))
        };
        let mut route = Route {
            kind: rule.kind,
            nginx: owner.ingress.nginx,
            rewrites: owner.rewrites(rule) && owner.settings.rewrite.is_some(),
            ..self.catch_all(host, &rule.backend, owner)
        };
        match read {
            Ok((path, expression)) => (route.path, route.expression) = (path, expression),
            Err(why) => {
                let why = format!("path {text} of host {}: {why}: 503", named(host));
                self.problems.push(problem(&owner.ingress, why));
                Arc::make_mut(&mut route.settings).denied = true;
                if is_expression {
                    // It keeps its place among the others, and fits all that begins with its literal part.
                    (route.path, route.expression) = (text.to_owned(), self.expression(""));
                } else {
                    route.path = path::beginning(text);
                    route.kind = PathType::ImplementationSpecific;
                }
            }
        }
        route
    }

    fn expression(&mut self, text: &str) -> Option<Arc<Regex>> {
        self.expressions.get(text.to_owned(), |text| expression(text)).ok()
    }

    /// What takes a part of the requests for `main`. Apart from how endpoints are chosen, what holds for those
    /// holds for these.
    fn branch(&mut self, main: &Route, rule: &IngressPath, owner: &Owner) -> Option<Branch> {
        let options = owner.options();
        let problems = &mut self.problems;
        let mut bad = |text| problems.push(problem(&owner.ingress, text));
        let canary = Rule::new(options.canary.as_ref()?, &mut bad);
        // Clients are kept as the main one keeps them, unless its own rules say otherwise.
        let legacy = |affinity: &Affinity| affinity.canary_legacy;
        let own_way = options.affinity.as_ref().is_some_and(legacy);
        let choice = &owner.settings.choice;
        let affinity = if own_way { &owner.settings.affinity } else { &main.settings.affinity };
        let settings = if (choice, affinity) == (&main.settings.choice, &main.settings.affinity) {
            Arc::clone(&main.settings)
        } else {
            let (choice, affinity) = (choice.clone(), affinity.clone());
            Arc::new(Settings { choice, affinity, ..Settings::clone(&main.settings) })
        };
        let sticky = !own_way && !main.settings.affinity.as_ref().is_some_and(legacy);
        let own = self.catch_all(&main.host, &rule.backend, owner);
        let route = Route {
            path: main.path.clone(),
            kind: main.kind,
            settings,
            limits_key: main.limits_key,
            expression: main.expression.clone(),
            nginx: main.nginx,
            rewrites: main.rewrites,
            spare: main.spare.clone(),
            error_target: main.error_target.clone(),
            ..own
        };
        Some(Branch { route: Arc::new(route), rule: canary, sticky })
    }

    /// To the default backend of an Ingress, if it has one.
    fn fallback(&mut self, owner: &Owner, host: &str) -> Option<Arc<Route>> {
        let backend = owner.ingress.default_backend.as_ref()?;
        Some(Arc::new(self.catch_all(host, backend, owner)))
    }

    /// For requests that no rule is for, and what is asked of these clients, by who have a default backend. An Ingress
    /// with rules speaks of its own hosts with ingress-nginx, and of all others only where nobody without rules does.
    pub(super) fn last_resort(
        &mut self,
        owners: &[Arc<Owner>],
        silent: &Arc<Settings>,
    ) -> (Option<Arc<Route>>, Option<Certified>) {
        let bare = owners.iter().find(|owner| owner.ingress.rules.is_empty());
        let owner = bare.or_else(|| owners.iter().find(|owner| !owner.ingress.nginx));
        let owner = owner.map(|owner| &**owner);
        let certified = self.certified(owner);
        if let Some(owner) = owner {
            return (self.fallback(owner, ""), certified);
        }
        let Some((service, port)) = self.gateway.default_backend.as_ref() else {
            return (None, certified);
        };
        let backend = Backend { service: service.name.clone(), port: port.clone() };
        let target = self.find(service, port);
        if target.is_none() {
            self.problems.push(Problem {
                object: Key::Gateway(self.gateway.name.clone()),
                text: format!("there is no Service {service} with a TCP port {port}: 503"),
            });
        }
        let route = Arc::new(Route {
            ingress: None,
            host: String::new(),
            path: "/".to_owned(),
            kind: PathType::Prefix,
            backend,
            target,
            spare: None,
            error_target: None,
            settings: Arc::clone(silent),
            limits_key: 0,
            expression: None,
            nginx: false,
            rewrites: false,
            canary: None,
        });
        (Some(route), certified)
    }

    /// To `backend`, for all paths of `host`.
    fn catch_all(&mut self, host: &str, backend: &Backend, owner: &Owner) -> Route {
        let Owner { ingress, settings } = owner;
        let spare = ingress.options.default_backend.as_ref();
        let spare = spare.and_then(|backend| self.target(ingress, backend));
        let default = self.gateway.default_backend.as_ref();
        let error_target =
            spare.clone().or_else(|| default.and_then(|(service, port)| self.find(service, port)));
        let mut hasher = DefaultHasher::new();
        ingress.name.hash(&mut hasher);
        Route {
            ingress: Some(ingress.name.clone()),
            host: host.to_owned(),
            path: "/".to_owned(),
            kind: PathType::Prefix,
            backend: backend.clone(),
            target: self.target(ingress, backend),
            spare,
            error_target,
            settings: Arc::clone(settings),
            limits_key: hasher.finish(),
            expression: None,
            nginx: ingress.nginx,
            rewrites: false,
            canary: None,
        }
    }

    /// The port of a Service that `backend` of `ingress` means; told about if there is none.
    fn target(&mut self, ingress: &Ingress, backend: &Backend) -> Option<Target> {
        let service = ObjectName::new(&ingress.name.namespace, &backend.service);
        let target = self.find(&service, &backend.port);
        if target.is_none() {
            let port = &backend.port;
            let text = format!("there is no Service {service} with a TCP port {port}: 503");
            self.problems.push(problem(ingress, text));
        }
        target
    }

    fn find(&self, service: &ObjectName, port: &BackendPort) -> Option<Target> {
        let known = self.model.services.get(service)?;
        let port = known.ports.iter().find(|known| {
            known.protocol == Protocol::Tcp
                && match port {
                    BackendPort::Number(number) => known.port == *number,
                    BackendPort::Name(name) => known.name == *name,
                }
        })?;
        Some(Target { service: service.clone(), port_name: port.name.clone(), port: port.port })
    }
}

/// Those of routes and of their canaries, sorted.
fn identities<'r>(routes: impl Iterator<Item = &'r Arc<Route>>) -> Box<[u64]> {
    let all = routes.flat_map(|route| [Some(route), route.canary()]).flatten();
    let mut identities: Vec<_> = all.map(|route| route.identity()).collect();
    identities.sort_unstable();
    identities.dedup();
    identities.into()
}
