//! What Ingresses speak of, and so what has to be made again when one of them changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fairway_model::{Ingress, IngressPath, ObjectName, Options, Template};

use crate::route::Settings;

/// What an Ingress speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    /// A host's name (`*.example.com`; empty: any): its paths, other names of hosts, its certificate.
    Name(String),
    /// The certificate for names that nobody has one for.
    Unnamed,
    /// Where requests go that no rule is for.
    Fallback,
    /// A Service that it leads to.
    Service(ObjectName),
    /// A Secret that decides who may pass.
    Secret(ObjectName),
}

/// An Ingress with what its options come to.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) ingress: Arc<Ingress>,
    pub(super) settings: Arc<Settings>,
}

/// Who speaks of what, oldest first: of what several want, the first one has it.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<Subject, Vec<Arc<Owner>>>);

impl Index {
    /// Those who speak of it.
    pub(super) fn of(&self, subject: &Subject) -> &[Arc<Owner>] {
        self.0.get(subject).map_or(&[], Vec::as_slice)
    }

    /// Those who speak of any of these names, each once, oldest first.
    pub(super) fn of_names(&self, names: &BTreeSet<String>) -> Vec<&Owner> {
        let subjects = names.iter().map(|name| Subject::Name(name.clone()));
        let owners = subjects.filter_map(|subject| self.0.get(&subject)).flatten();
        let mut owners: Vec<_> = owners.map(|owner| &**owner).collect();
        owners.sort_by_key(|owner| age(&owner.ingress));
        owners.dedup_by(|one, other| std::ptr::eq(*one, *other));
        owners
    }

    /// All that anybody speaks of.
    pub(super) fn subjects(self) -> impl Iterator<Item = Subject> {
        self.0.into_keys()
    }

    /// Takes one in; answers what it speaks of. `twins`: all hosts have them.
    pub(super) fn insert(&mut self, owner: Owner, twins: bool) -> BTreeSet<Subject> {
        let owner = Arc::new(owner);
        let subjects = subjects(&owner.ingress, twins);
        for subject in &subjects {
            let owners = self.0.entry(subject.clone()).or_default();
            let at = owners.partition_point(|other| age(&other.ingress) < age(&owner.ingress));
            owners.insert(at, Arc::clone(&owner));
        }
        subjects
    }

    /// Takes one out; answers what it spoke of.
    pub(super) fn remove(&mut self, ingress: &Ingress, twins: bool) -> BTreeSet<Subject> {
        let subjects = subjects(ingress, twins);
        for subject in &subjects {
            if let Some(owners) = self.0.get_mut(subject) {
                let found = owners.binary_search_by_key(&age(ingress), |other| age(&other.ingress));
                _ = found.map(|at| owners.remove(at));
                if owners.is_empty() {
                    self.0.remove(subject);
                }
            }
        }
        subjects
    }
}

/// What decides who is first.
fn age(ingress: &Ingress) -> (u64, &ObjectName) {
    (ingress.created, &ingress.name)
}

/// What `ingress` speaks of.
fn subjects(ingress: &Ingress, twins: bool) -> BTreeSet<Subject> {
    let canary = ingress.options.canary.is_some();
    let mut subjects = BTreeSet::new();
    for rule in &ingress.rules {
        subjects.insert(Subject::Name(rule.host.clone()));
        if (twins || ingress.options.from_to_www) && !canary {
            subjects.extend(twin(&rule.host).map(Subject::Name));
        }
    }
    for tls in ingress.tls.iter().filter(|_| !canary) {
        subjects.extend(tls.hosts.iter().cloned().map(Subject::Name));
        if tls.hosts.is_empty() {
            subjects.insert(Subject::Unnamed);
        }
    }
    if !canary {
        subjects.extend(ingress.options.server_aliases.iter().cloned().map(Subject::Name));
        subjects.extend(ingress.default_backend.iter().map(|_| Subject::Fallback));
    }
    subjects.extend(services(ingress).map(Subject::Service));
    subjects.extend(secrets(&ingress.options).cloned().map(Subject::Secret));
    subjects
}

/// The Services that requests may go to by an Ingress.
fn services(ingress: &Ingress) -> impl Iterator<Item = ObjectName> + '_ {
    let paths = ingress.rules.iter().flat_map(|rule| &rule.paths).map(|path| &path.backend);
    let backends = paths.chain(&ingress.default_backend).chain(&ingress.options.default_backend);
    backends.map(|backend| ObjectName::new(&ingress.name.namespace, &backend.service))
}

/// Those that decide about clients: of users, and of CAs.
pub(super) fn secrets(options: &Options) -> impl Iterator<Item = &ObjectName> {
    let users = options.basic_auth.iter().map(|auth| &auth.secret);
    users.chain(options.client_tls.iter().map(|tls| &tls.secret))
}

/// The name with `www.` in front, or without that.
pub(super) fn twin(host: &str) -> Option<String> {
    if host.is_empty() || host.starts_with("*.") {
        return None;
    }
    Some(host.strip_prefix("www.").map_or_else(|| format!("www.{host}"), str::to_owned))
}

impl Owner {
    pub(super) fn options(&self) -> &Options {
        &self.ingress.options
    }

    /// The host that it has other names for, and these.
    pub(super) fn aliases(&self) -> Option<(&str, &[String])> {
        let first = self.ingress.rules.first().filter(|_| !self.is_canary())?;
        Some((&first.host, &self.options().server_aliases))
    }

    pub(super) fn is_canary(&self) -> bool {
        self.options().canary.is_some()
    }

    /// Whether its options make a path an expression. ingress-nginx takes a target that is the path itself for
    /// no rewrite.
    pub(super) fn rewrites(&self, path: &IngressPath) -> bool {
        let same = |target: &Template| *target == Template::text(&*path.path);
        let rewrite = self.settings.rewrite.as_ref();
        self.settings.use_regex || rewrite.is_some_and(|target| !same(target))
    }
}
