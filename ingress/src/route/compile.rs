//! The table of a model: Ingresses of many owners merged by host.
//!
//! Of what several want, the oldest has it; of equals, the first by name. What cannot be served is left out
//! alone: a path of one owner never costs another one's.

use std::collections::{BTreeMap, HashMap, btree_map, hash_map};
use std::sync::Arc;

use fairway_model::{
    Backend, BackendPort, Gateway, Ingress, IngressPath, Key, Model, ObjectName, Options, PathType,
    Protocol, Template,
};
use regex::bytes::Regex;

use super::paths::{Paths, expression};
use super::{Host, Named, Problem, Route, Settings, Table, Target, path};

impl Table {
    /// What the gateways named `gateway` serve of `model`, and what of it they cannot. `before` is an earlier
    /// table, from which is taken what takes long to make.
    pub fn compile(model: &Model, gateway: &str, before: Option<&Self>) -> (Self, Vec<Problem>) {
        let plain = Gateway::default();
        let own = model.gateways.get(gateway).or_else(|| model.gateways.get(""));
        let mut compiler = Compiler {
            model,
            gateway: own.unwrap_or(&plain),
            before,
            expressions: HashMap::new(),
            problems: Vec::new(),
        };
        let table = compiler.table(gateway);
        (table, compiler.problems)
    }

    /// Whether the tables of two models may differ; if not, the first one's is good for both.
    pub fn differs(before: &Model, after: &Model) -> bool {
        let ports = |difference: fairway_model::Difference<'_, fairway_model::Service>| {
            let ports = |service: &Arc<fairway_model::Service>| service.ports.clone();
            difference.before.map(ports) != difference.after.map(ports)
        };
        before.ingresses.diff(&after.ingresses).next().is_some()
            || before.gateways.diff(&after.gateways).next().is_some()
            || before.secrets.diff(&after.secrets).next().is_some()
            || before.services.diff(&after.services).any(ports)
    }
}

struct Compiler<'a> {
    model: &'a Model,
    gateway: &'a Gateway,
    before: Option<&'a Table>,
    expressions: HashMap<String, Option<Regex>>,
    problems: Vec<Problem>,
}

/// What Ingresses say about a host, oldest first.
#[derive(Default)]
struct Draft<'a> {
    rules: Vec<(&'a IngressPath, Owner<'a>)>,
    fallback: Option<Arc<Route>>,
}

/// An Ingress with what its options come to.
#[derive(Clone, Copy)]
struct Owner<'a> {
    ingress: &'a Ingress,
    settings: &'a Arc<Settings>,
}

impl<'a> Compiler<'a> {
    fn table(&mut self, gateway: &str) -> Table {
        let model = self.model;
        let mut ingresses: Vec<_> = model
            .ingresses
            .values()
            .filter(|ingress| ingress.gateway.as_deref().is_none_or(|name| name == gateway))
            .collect();
        ingresses.sort_by_key(|ingress| (ingress.created, &ingress.name));

        // Most say nothing, and share what that comes to.
        let silent = Settings::new(&Options::default(), self.gateway);
        let settings: Vec<_> = ingresses
            .iter()
            .map(|ingress| {
                if *ingress.options == Options::default() {
                    return Arc::clone(&silent);
                }
                Settings::new(&ingress.options, self.gateway)
            })
            .collect();
        let owners: Vec<_> = ingresses
            .iter()
            .zip(&settings)
            .map(|(ingress, settings)| Owner { ingress, settings })
            .collect();

        let mut drafts: HashMap<&str, Draft<'_>> = HashMap::new();
        for owner in &owners {
            for rule in &owner.ingress.rules {
                let draft = drafts.entry(&rule.host).or_default();
                draft.rules.extend(rule.paths.iter().map(|path| (path, *owner)));
                if draft.fallback.is_none() {
                    draft.fallback = self.fallback(*owner, &rule.host);
                }
            }
        }

        let mut table = Table { fallback: self.last_resort(&owners, &silent), ..Table::default() };
        for (name, draft) in drafts {
            let host = Arc::new(self.host(name, draft));
            match name.strip_prefix("*.") {
                Some(rest) => _ = table.wildcards.insert(rest.to_owned(), host),
                None if name.is_empty() => table.any = Some(host),
                None => _ = table.hosts.insert(name.to_owned(), Named::Host(host)),
            }
        }
        table.expressions = std::mem::take(&mut self.expressions);
        self.problems.sort_by(|a, b| (&a.object, &a.text).cmp(&(&b.object, &b.text)));
        table
    }

    fn host(&mut self, name: &str, draft: Draft<'_>) -> Host {
        // With ingress-nginx, one Ingress makes all paths of the host expressions.
        let infected = draft
            .rules
            .iter()
            .any(|(path, owner)| owner.ingress.nginx && is_expression(path, *owner));
        let mut taken: BTreeMap<(String, PathType), &ObjectName> = BTreeMap::new();
        let mut routes = Vec::new();
        for (path, owner) in draft.rules {
            let expression = is_expression(path, owner) || infected && owner.ingress.nginx;
            let Some(route) = self.route(name, path, owner, expression) else { continue };
            match taken.entry((route.path.clone(), route.kind)) {
                btree_map::Entry::Occupied(other) => {
                    let text = format!(
                        "path {} of host {}: {} has it already",
                        route.path,
                        named(name),
                        other.get()
                    );
                    self.problems.push(problem(owner.ingress, text));
                }
                btree_map::Entry::Vacant(entry) => {
                    entry.insert(&owner.ingress.name);
                    routes.push(Arc::new(route));
                }
            }
        }
        Host { paths: Paths::new(routes), fallback: draft.fallback }
    }

    /// The route of a path, unless it is none.
    fn route(
        &mut self,
        host: &str,
        rule: &IngressPath,
        owner: Owner<'_>,
        is_expression: bool,
    ) -> Option<Route> {
        let Owner { ingress, settings } = owner;
        let text = if rule.path.is_empty() { "/" } else { &rule.path };
        let mut bad = |why: &dyn std::fmt::Display| {
            let text = format!("path {text} of host {} is left out: {why}", named(host));
            self.problems.push(problem(ingress, text));
        };
        let (path, expression) = if is_expression {
            match self.expressions.entry(text.to_owned()) {
                hash_map::Entry::Occupied(known) => (text.to_owned(), known.get().clone()),
                hash_map::Entry::Vacant(entry) => {
                    let before = self.before.and_then(|table| table.expressions.get(text));
                    let made = match before {
                        Some(made) => made.clone(),
                        None => expression(text).ok(),
                    };
                    (text.to_owned(), entry.insert(made).clone())
                }
            }
        } else {
            match path::normal(text) {
                Ok(path) => match String::from_utf8(path.decoded.into_owned()) {
                    Ok(path) => (path, None),
                    Err(error) => {
                        bad(&error);
                        return None;
                    }
                },
                Err(error) => {
                    bad(&error);
                    return None;
                }
            }
        };
        if is_expression && expression.is_none() {
            bad(&"it is no regular expression, or one that looks ahead, back or is too large");
            return None;
        }
        Some(Route {
            ingress: Some(ingress.name.clone()),
            host: host.to_owned(),
            path,
            kind: rule.kind,
            backend: rule.backend.clone(),
            target: self.target(ingress, &rule.backend),
            settings: Arc::clone(settings),
            expression,
            nginx: ingress.nginx,
        })
    }

    /// To the default backend of an Ingress, if it has one.
    fn fallback(&mut self, owner: Owner<'_>, host: &str) -> Option<Arc<Route>> {
        let backend = owner.ingress.default_backend.as_ref()?;
        let target = self.target(owner.ingress, backend);
        Some(Arc::new(Route {
            ingress: Some(owner.ingress.name.clone()),
            target,
            ..catch_all(host, backend.clone(), Arc::clone(owner.settings))
        }))
    }

    /// For requests that no rule is for. An Ingress with rules speaks of its own hosts with ingress-nginx,
    /// and of all others only where nobody without rules does.
    fn last_resort(&mut self, owners: &[Owner<'_>], silent: &Arc<Settings>) -> Option<Arc<Route>> {
        let has = |owner: &&Owner<'_>| owner.ingress.default_backend.is_some();
        let bare = owners.iter().filter(has).find(|owner| owner.ingress.rules.is_empty());
        let owner = bare.or_else(|| owners.iter().filter(has).find(|owner| !owner.ingress.nginx));
        if let Some(owner) = owner {
            return self.fallback(*owner, "");
        }
        let (service, port) = self.gateway.default_backend.as_ref()?;
        let backend = Backend { service: service.name.clone(), port: port.clone() };
        let target = self.find(service, port);
        if target.is_none() {
            self.problems.push(Problem {
                object: Key::Gateway(self.gateway.name.clone()),
                text: format!("there is no Service {service} with a TCP port {port}"),
            });
        }
        Some(Arc::new(Route { target, ..catch_all("", backend, Arc::clone(silent)) }))
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

/// Whether the options of an Ingress make its paths expressions. Those of ingress-nginx take a target that is
/// the path itself for no rewrite.
fn is_expression(path: &IngressPath, owner: Owner<'_>) -> bool {
    let same = |target: &Template| *target == Template::text(&*path.path);
    owner.settings.use_regex || owner.settings.rewrite.as_ref().is_some_and(|target| !same(target))
}

/// Of no Ingress, for all paths.
fn catch_all(host: &str, backend: Backend, settings: Arc<Settings>) -> Route {
    Route {
        ingress: None,
        host: host.to_owned(),
        path: "/".to_owned(),
        kind: PathType::Prefix,
        backend,
        target: None,
        settings,
        expression: None,
        nginx: false,
    }
}

fn problem(ingress: &Ingress, text: String) -> Problem {
    Problem { object: Key::Ingress(ingress.name.clone()), text }
}

/// A host, as a person would say it.
fn named(host: &str) -> &str {
    if host.is_empty() { "*" } else { host }
}
