//! The table of a model: Ingresses of many owners merged by host.
//!
//! Of what several want, the oldest has it; of equals, the first by name. What cannot be served is left out
//! alone: a path of one owner never costs another one's. What cannot be protected is not served; nor is what
//! cannot be read, which else would reach the same Services by a shorter path of somebody who protects nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map, hash_map};
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use fairway_model::{
    Affinity, Backend, BackendPort, BasicAuth, ClientTls, Difference, Gateway, Hsts, Ingress,
    IngressPath, Key, Model, ObjectName, Options, PathType, Protocol, Service, Template,
};
use http::{HeaderValue, StatusCode};
use regex::bytes::Regex;

use super::access::Certified;
use super::canary::{Branch, Rule};
use super::password::{Password, Users};
use super::paths::{Paths, expression};
use super::tls::Certificates;
use super::{Host, Named, Problem, Public, Route, Settings, Table, Target, Trust, path};

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
            users: HashMap::new(),
            problems: Vec::new(),
        };
        let table = compiler.table(gateway);
        (table, compiler.problems)
    }

    /// For clients that connect to these ports.
    pub fn at(mut self, public: Public) -> Self {
        self.trust.public = public;
        self
    }

    /// Whether the tables of two models may differ; if not, the first one's is good for both.
    pub fn differs(before: &Model, after: &Model) -> bool {
        let ports = |difference: Difference<'_, Service>| {
            let ports = |service: &Arc<Service>| service.ports.clone();
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
    /// By Secret.
    users: HashMap<ObjectName, Result<Arc<Users>, String>>,
    problems: Vec<Problem>,
}

/// What Ingresses say about a host, oldest first.
#[derive(Default)]
struct Draft<'a> {
    rules: Vec<(&'a IngressPath, Owner<'a>)>,
    canaries: Vec<(&'a IngressPath, Owner<'a>)>,
    /// Those with rules for it that are no canaries.
    owners: Vec<Owner<'a>>,
}

/// An Ingress with what its options come to.
#[derive(Clone, Copy)]
struct Owner<'a> {
    ingress: &'a Ingress,
    settings: &'a Arc<Settings>,
}

impl<'a> Compiler<'a> {
    fn table(&mut self, gateway: &str) -> Table {
        let mut ingresses: Vec<_> = self
            .model
            .ingresses
            .values()
            .filter(|ingress| ingress.gateway.as_deref().is_none_or(|name| name == gateway))
            .collect();
        ingresses.sort_by_key(|ingress| (ingress.created, &ingress.name));

        // Most say nothing, and share what that comes to.
        let silent = self.settings(&Options::default(), Key::Gateway(self.gateway.name.clone()));
        let settings: Vec<_> = ingresses
            .iter()
            .map(|ingress| {
                let mut settings = match *ingress.options == Options::default() {
                    true => Arc::clone(&silent),
                    false => self.settings(&ingress.options, Key::Ingress(ingress.name.clone())),
                };
                if ingress.denied {
                    Arc::make_mut(&mut settings).denied = true;
                }
                settings
            })
            .collect();
        let owners: Vec<_> = ingresses
            .iter()
            .zip(&settings)
            .map(|(ingress, settings)| Owner { ingress, settings })
            .collect();

        let mut drafts: BTreeMap<&str, Draft<'_>> = BTreeMap::new();
        for owner in &owners {
            for rule in &owner.ingress.rules {
                let paths = rule.paths.iter().map(|path| (path, *owner));
                if owner.is_canary() {
                    // It has no host of its own.
                    drafts.entry(&rule.host).or_default().canaries.extend(paths);
                    continue;
                }
                let draft = drafts.entry(&rule.host).or_default();
                draft.rules.extend(paths);
                if draft.owners.last().is_none_or(|last| !last.is(owner)) {
                    draft.owners.push(*owner);
                }
            }
        }

        let (fallback, certified) = self.last_resort(&owners, &silent);
        let mut table = Table {
            fallback,
            certified,
            min_tls: self.gateway.options.min_tls,
            ciphers: self.gateway.options.ciphers.clone(),
            certificates: self.certificates(&owners),
            trust: Trust {
                nets: self.gateway.trusted.clone(),
                forwarded: self.gateway.forwarded_headers,
                proxy: self.gateway.proxy_protocol,
                public: Public::default(),
            },
            hsts: hsts(self.gateway.hsts.as_ref()),
            redirect_status: self
                .gateway
                .redirect_status
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(StatusCode::PERMANENT_REDIRECT),
            ..Table::default()
        };
        let mut hosts = BTreeMap::new();
        for (name, draft) in &drafts {
            let host = self.host(name, draft);
            if !draft.owners.is_empty() {
                hosts.insert(*name, Arc::new(host));
            }
        }
        for (name, host) in &hosts {
            table.name(name, host);
        }
        self.other_names(&mut table, &owners, &hosts);
        table.expressions = std::mem::take(&mut self.expressions);
        self.problems.sort_by(|a, b| (&a.object, &a.text).cmp(&(&b.object, &b.text)));
        self.problems.dedup();
        table
    }

    /// What `options`, which are those of `object`, come to.
    fn settings(&mut self, options: &Options, object: Key) -> Arc<Settings> {
        let auth = options.basic_auth.as_ref().or(self.gateway.options.basic_auth.as_ref());
        let password = auth.map(|auth| self.password(auth)).transpose();
        let problems = &mut self.problems;
        let mut problem = |text| problems.push(Problem { object: object.clone(), text });
        Settings::new(options, self.gateway, password, &mut problem)
    }

    fn password(&mut self, auth: &BasicAuth) -> Result<Password, String> {
        let secret = &auth.secret;
        let users = match self.users.entry(secret.clone()) {
            hash_map::Entry::Occupied(known) => known.get().clone(),
            hash_map::Entry::Vacant(entry) => {
                let text = self.model.secrets.get(secret).and_then(|secret| secret.users.as_ref());
                let users = match text {
                    Some(text) => {
                        let object = Key::Secret(secret.clone());
                        let problems = &mut self.problems;
                        let mut problem =
                            |text| problems.push(Problem { object: object.clone(), text });
                        Ok(Arc::new(Users::new(text.reveal(), &mut problem)))
                    }
                    None => {
                        Err(format!("there are no users in Secret {secret}: 503 for all paths"))
                    }
                };
                entry.insert(users).clone()
            }
        };
        Ok(Password::new(users?, &auth.realm))
    }

    /// The certificates of names: that of the oldest Ingress that has one.
    fn certificates(&mut self, owners: &[Owner<'_>]) -> Certificates {
        let mut certificates = Certificates {
            default: self.gateway.default_certificate.clone(),
            ..Certificates::default()
        };
        for Owner { ingress, .. } in owners.iter().filter(|owner| !owner.is_canary()) {
            for tls in &ingress.tls {
                if tls.hosts.is_empty() && certificates.unnamed.is_none() {
                    certificates.unnamed.clone_from(&tls.secret);
                }
                for host in &tls.hosts {
                    let (names, name) = match host.strip_prefix("*.") {
                        Some(rest) => (&mut certificates.wildcards, rest),
                        None => (&mut certificates.exact, host.as_str()),
                    };
                    let known = names.entry(name.to_owned()).or_default();
                    match (&known, &tls.secret) {
                        (Some(other), Some(secret)) if other != secret => {
                            let text = format!(
                                "host {host} has its certificate from an older Ingress: {other}, not {secret}"
                            );
                            self.problems.push(problem(ingress, text));
                        }
                        (None, secret) => known.clone_from(secret),
                        _ => {}
                    }
                }
            }
        }
        certificates
    }

    fn host<'s>(&mut self, name: &str, draft: &Draft<'s>) -> Host {
        let routes = self.routes(name, draft);
        let first = |has: &dyn Fn(&Owner<'s>) -> bool| draft.owners.iter().find(|owner| has(owner));
        let fallback = first(&|owner| owner.ingress.default_backend.is_some()).copied();
        let certified = first(&|owner| owner.options().client_tls.is_some()).copied();
        let passthrough = self.passthrough(name, &routes, draft);
        Host {
            name: name.to_owned(),
            paths: Paths::new(routes),
            fallback: fallback.and_then(|owner| self.fallback(owner, name)),
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
        let of_root = |owner: &Owner<'_>| {
            root.is_some_and(|root| root.ingress.as_ref() == Some(&owner.ingress.name))
        };
        let wanted = || draft.owners.iter().filter(|owner| owner.options().passthrough);
        for owner in wanted().filter(|owner| !of_root(owner)) {
            let text = match root.and_then(|root| root.ingress.as_ref()) {
                Some(other) => format!(
                    "host {}: its TLS is not passed on, as {other} has its path /",
                    named(name)
                ),
                None => format!("host {}: TLS has no path to be passed on to", named(name)),
            };
            self.problems.push(problem(owner.ingress, text));
        }
        let passes = wanted().any(of_root);
        root.filter(|root| passes && !root.settings.denied).and_then(|root| root.target.clone())
    }

    /// What is asked of clients' certificates: what `owner` says, or else the gateway.
    fn certified(&mut self, owner: Option<Owner<'_>>) -> Option<Certified> {
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
            let mut route = self.route(host, path, *owner, expression);
            match taken.entry((route.path.clone(), route.kind)) {
                btree_map::Entry::Occupied(other) => {
                    let (path, host, other) = (&route.path, named(host), other.get());
                    let text = format!("path {path} of host {host}: {other} has it already");
                    self.problems.push(problem(owner.ingress, text));
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
                route.canary = self.branch(&route, canary, *of).map(Box::new);
            }
            for (place, (canary, of)) in branches {
                used.insert(place);
                let text = format!(
                    "path {} of host {}: another canary has it already",
                    canary.path,
                    named(host)
                );
                self.problems.push(problem(of.ingress, text));
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
                self.problems.push(problem(of.ingress, text));
            }
        }
        routes
    }

    /// The route of a path. If that cannot be read, it is denied, with whatever begins as it does.
    fn route(
        &mut self,
        host: &str,
        rule: &IngressPath,
        owner: Owner<'_>,
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
                self.problems.push(problem(owner.ingress, why));
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

    fn expression(&mut self, text: &str) -> Option<Regex> {
        match self.expressions.entry(text.to_owned()) {
            hash_map::Entry::Occupied(known) => known.get().clone(),
            hash_map::Entry::Vacant(entry) => {
                let before = self.before.and_then(|table| table.expressions.get(text));
                let made = match before {
                    Some(made) => made.clone(),
                    None => expression(text).ok(),
                };
                entry.insert(made).clone()
            }
        }
    }

    /// What takes a part of the requests for `main`. Apart from how endpoints are chosen, what holds for those
    /// holds for these.
    fn branch(&mut self, main: &Route, rule: &IngressPath, owner: Owner<'_>) -> Option<Branch> {
        let options = owner.options();
        let problems = &mut self.problems;
        let mut bad = |text| problems.push(problem(owner.ingress, text));
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
    fn fallback(&mut self, owner: Owner<'_>, host: &str) -> Option<Arc<Route>> {
        let backend = owner.ingress.default_backend.as_ref()?;
        Some(Arc::new(self.catch_all(host, backend, owner)))
    }

    /// For requests that no rule is for, and what is asked of these clients. An Ingress with rules speaks of its own
    /// hosts with ingress-nginx, and of all others only where nobody without rules does.
    fn last_resort(
        &mut self,
        owners: &[Owner<'_>],
        silent: &Arc<Settings>,
    ) -> (Option<Arc<Route>>, Option<Certified>) {
        let has =
            |owner: &&Owner<'_>| owner.ingress.default_backend.is_some() && !owner.is_canary();
        let bare = owners.iter().filter(has).find(|owner| owner.ingress.rules.is_empty());
        let owner = bare.or_else(|| owners.iter().filter(has).find(|owner| !owner.ingress.nginx));
        let certified = self.certified(owner.copied());
        if let Some(owner) = owner {
            return (self.fallback(*owner, ""), certified);
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
    fn catch_all(&mut self, host: &str, backend: &Backend, owner: Owner<'_>) -> Route {
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

    /// Aliases of hosts, then their names with and without `www.`, as far as nobody has these for a host.
    fn other_names<'s>(
        &mut self,
        table: &mut Table,
        owners: &[Owner<'s>],
        hosts: &'s BTreeMap<&str, Arc<Host>>,
    ) {
        let owners = || owners.iter().filter(|owner| !owner.is_canary());
        let ruled = |owner: &Owner<'s>| {
            let rules = owner.ingress.rules.iter();
            rules.filter_map(move |rule| hosts.get(rule.host.as_str()))
        };
        for owner in owners() {
            for alias in &owner.options().server_aliases {
                let Some(host) = ruled(owner).next() else { continue };
                if table.has(alias) {
                    let text =
                        format!("{alias} is no alias of {}: it is a host", named(&host.name));
                    self.problems.push(problem(owner.ingress, text));
                } else {
                    table.name(alias, host);
                }
            }
        }
        let everybody = self.gateway.options.from_to_www;
        for owner in owners().filter(|owner| everybody || owner.options().from_to_www) {
            for host in ruled(owner) {
                let twin = match host.name.strip_prefix("www.") {
                    Some(rest) => rest.to_owned(),
                    None => format!("www.{}", host.name),
                };
                let whole = !host.name.is_empty() && !host.name.starts_with("*.");
                if whole && !table.has(&twin) {
                    table.hosts.insert(twin, Named::Twin(host.name.clone()));
                }
            }
        }
    }
}

impl Table {
    fn name(&mut self, name: &str, host: &Arc<Host>) {
        let host = Arc::clone(host);
        match name.strip_prefix("*.") {
            Some(rest) => _ = self.wildcards.insert(rest.to_owned(), host),
            None if name.is_empty() => self.any = Some(host),
            None => _ = self.hosts.insert(name.to_owned(), Named::Host(host)),
        }
    }

    fn has(&self, name: &str) -> bool {
        match name.strip_prefix("*.") {
            Some(rest) => self.wildcards.contains_key(rest),
            None => self.hosts.contains_key(name),
        }
    }
}

impl<'a> Owner<'a> {
    fn options(self) -> &'a Options {
        &self.ingress.options
    }

    fn is_canary(self) -> bool {
        self.options().canary.is_some()
    }

    fn is(&self, other: &Self) -> bool {
        self.ingress.name == other.ingress.name
    }

    /// Whether its options make a path an expression. ingress-nginx takes a target that is the path itself for
    /// no rewrite.
    fn rewrites(self, path: &IngressPath) -> bool {
        let same = |target: &Template| *target == Template::text(&*path.path);
        let rewrite = self.settings.rewrite.as_ref();
        self.settings.use_regex || rewrite.is_some_and(|target| !same(target))
    }
}

/// `Strict-Transport-Security`, if it is sent.
fn hsts(said: Option<&Hsts>) -> Option<HeaderValue> {
    let year = Hsts { max_age: Some(31_536_000), subdomains: true, preload: false };
    let Hsts { max_age, subdomains, preload } = said.unwrap_or(&year);
    let mut text = format!("max-age={}", max_age.as_ref()?);
    if *subdomains {
        text.push_str("; includeSubDomains");
    }
    if *preload {
        text.push_str("; preload");
    }
    HeaderValue::try_from(text).ok()
}

fn problem(ingress: &Ingress, text: impl Display) -> Problem {
    Problem { object: Key::Ingress(ingress.name.clone()), text: text.to_string() }
}

/// A host, as a person would say it.
fn named(host: &str) -> &str {
    if host.is_empty() { "*" } else { host }
}
