//! Tables of models, each made from the one before.
//!
//! ```text
//! model ─► what differs ─► Ingresses ─► what they speak of ─► hosts, certificates ... ─► Table
//!                └─► Services, Secrets ─► Ingresses that name them
//! ```
//!
//! What an Ingress speaks of is made again when that changes, or a Service or Secret that it names; all else is shared
//! with the table before. Only what the gateway says of all makes all again. A table is a function of the model alone
//! all the same: objects that change one by one make what all of them at once make.
//!
//! Of what several want, the oldest has it; of equals, the first by name. What cannot be served is left out
//! alone: a path of one owner never costs another one's. What cannot be protected is not served; nor is what
//! cannot be read, which else would reach the same Services by a shorter path of somebody who protects nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use fairway_model::{
    BasicAuth, Difference, Gateway, Hsts, Ingress, Key, Model, ObjectName, Options, Service,
    VerifyClient,
};
use http::{HeaderValue, StatusCode};
use regex::bytes::Regex;

use super::password::{Password, Users};
use super::tls::Certificates;
use super::{Host, Named, Problem, Public, Settings, Table, Trust};
use crate::shared::Made;

use draft::Draft;
use host::Maker;
use problems::{News, Problems};
use said::{Index, Owner, Subject, secrets};

mod draft;
mod host;
mod problems;
mod said;
#[cfg(test)]
pub(super) mod tests;

/// Makes one table after the other.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The name that the gateways have in common that serve it.
    name: String,
    public: Public,
    model: Arc<Model>,
    gateway: Arc<Gateway>,
    /// Most Ingresses say nothing, and share what that comes to.
    silent: Arc<Settings>,
    index: Index,
    /// By Secret, with what of them is wrong.
    users: HashMap<ObjectName, (Arc<Users>, Vec<Problem>)>,
    expressions: Made<String, Regex>,
    problems: Problems<Source>,
    table: Arc<Table>,
}

/// What is different from the table before.
#[derive(Debug)]
pub(crate) struct Update {
    /// How many hosts were made.
    pub(crate) hosts: usize,
    pub(crate) problems: News,
    /// Services of Ingresses that are different, as they were and as they are; all, if the gateway is.
    pub(crate) services: Vec<ObjectName>,
    /// Secrets that decide about clients, of the same; and all Secrets that are different.
    pub(crate) secrets: BTreeSet<ObjectName>,
}

/// What problems are found in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Subject(Subject),
    /// What it says of itself.
    Object(Key),
}

/// Ingresses, as they were and as they are.
type Changed = BTreeMap<ObjectName, [Option<Arc<Ingress>>; 2]>;

impl Table {
    /// What the gateways named `gateway` serve of `model`, and what of it they cannot.
    pub fn compile(model: &Model, gateway: &str) -> (Self, Vec<Problem>) {
        let mut compiler = Compiler::new(gateway, Public::default());
        let update = compiler.update(&Arc::new(model.clone()));
        (Arc::unwrap_or_clone(compiler.table), update.problems.new)
    }

    /// For clients that connect to these ports.
    pub fn at(mut self, public: Public) -> Self {
        self.trust.public = public;
        self
    }
}

impl Compiler {
    /// For gateways named `name`, whose clients connect to these ports. Serves nothing yet.
    pub(crate) fn new(name: &str, public: Public) -> Self {
        let gateway = Arc::<Gateway>::default();
        let silent = Settings::new(&Options::default(), &gateway, Ok(None), &mut |_| {});
        let table = Arc::new(Table::of(&gateway, public));
        Self {
            name: name.to_owned(),
            public,
            model: Arc::default(),
            gateway,
            silent,
            index: Index::default(),
            users: HashMap::new(),
            expressions: Made::default(),
            problems: Problems::default(),
            table,
        }
    }

    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// What holds for the gateway as a whole.
    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// How much of the model cannot be served as it stands.
    pub(crate) fn problems(&self) -> usize {
        self.problems.len()
    }

    /// Whether an Ingress leads to a Service.
    pub(crate) fn leads_to(&self, service: &ObjectName) -> bool {
        !self.index.of(&Subject::Service(service.clone())).is_empty()
    }

    /// Whether clients' certificates are checked by what is in a Secret.
    pub(crate) fn checks_by(&self, secret: &ObjectName) -> bool {
        let checks = |options: &Options| {
            let client = options.client_tls.as_ref();
            client.is_some_and(|tls| tls.secret == *secret && tls.verify != VerifyClient::Off)
        };
        let subject = Subject::Secret(secret.clone());
        let mut owners = self.index.of(&subject).iter();
        owners.any(|owner| checks(owner.options())) || checks(&self.gateway.options)
    }

    /// Makes the table of `model`, from what differs from the last one.
    pub(crate) fn update(&mut self, model: &Arc<Model>) -> Update {
        let before = std::mem::replace(&mut self.model, Arc::clone(model));
        let mut changed = Changed::new();
        let mut touch = |index: &Index, subject: Subject| {
            for owner in index.of(&subject) {
                let ingress = || Some(Arc::clone(&owner.ingress));
                changed.insert(owner.ingress.name.clone(), [ingress(), ingress()]);
            }
        };
        let mut different = BTreeSet::new();
        for difference in before.secrets.diff(&model.secrets) {
            let secret = difference.name();
            self.users.remove(secret);
            touch(&self.index, Subject::Secret(secret.clone()));
            different.insert(secret.clone());
        }
        let mut services = Vec::new();
        for difference in before.services.diff(&model.services).filter(ports_differ) {
            touch(&self.index, Subject::Service(difference.name().clone()));
            services.push(difference.name().clone());
        }
        for Difference { before, after } in before.ingresses.diff(&model.ingresses) {
            let ours =
                |one: Option<&Arc<Ingress>>| one.filter(|ingress| self.serves(ingress)).cloned();
            if let Some(ingress) = before.or(after) {
                changed.insert(ingress.name.clone(), [ours(before), ours(after)]);
            }
        }

        let mut dirty = BTreeSet::new();
        let mut table = Table::clone(&self.table);
        let gateway = model.gateways.get_shared(&*self.name);
        let gateway = gateway.or_else(|| model.gateways.get_shared("")).cloned();
        let gateway = gateway.unwrap_or_default();
        let default_backend = gateway.default_backend.as_ref();
        if gateway != self.gateway
            || secrets(&gateway.options).any(|own| different.contains(own))
            || default_backend.is_some_and(|(own, _)| services.contains(own))
        {
            (table, dirty) = self.begin(gateway);
            let all = model.ingresses.shared().filter(|ingress| self.serves(ingress));
            changed = all.map(|one| (one.name.clone(), [None, Some(Arc::clone(one))])).collect();
        }
        for (name, [before, after]) in changed {
            self.replace(name, before.as_deref(), after, &mut dirty);
        }
        let mut hosts = 0;
        if !dirty.is_empty() {
            hosts = self.make(&mut table, &dirty);
            self.table = Arc::new(table);
        }
        let (mut services, mut secrets) = (Vec::new(), different);
        for subject in dirty {
            match subject {
                Subject::Service(name) => services.push(name),
                Subject::Secret(name) => _ = secrets.insert(name),
                Subject::Name(_) | Subject::Unnamed | Subject::Fallback => {}
            }
        }
        Update { hosts, problems: self.problems.news(), services, secrets }
    }

    fn serves(&self, ingress: &Ingress) -> bool {
        ingress.gateway.as_deref().is_none_or(|name| name == self.name)
    }

    /// Forgets all Ingresses, for a gateway that says other things of them: a table without any, and what they spoke of.
    fn begin(&mut self, gateway: Arc<Gateway>) -> (Table, BTreeSet<Subject>) {
        self.problems.clear();
        let before = std::mem::replace(&mut self.gateway, Arc::clone(&gateway));
        self.silent = self.settings(&Options::default(), Key::Gateway(gateway.name.clone()));
        let mut dirty: BTreeSet<_> = std::mem::take(&mut self.index).subjects().collect();
        dirty.insert(Subject::Fallback);
        let own = secrets(&before.options).chain(secrets(&gateway.options));
        dirty.extend(own.cloned().map(Subject::Secret));
        (Table::of(&gateway, self.public), dirty)
    }

    /// Takes one Ingress in the place of another one; what either speaks of is `dirty` then.
    fn replace(
        &mut self,
        name: ObjectName,
        before: Option<&Ingress>,
        after: Option<Arc<Ingress>>,
        dirty: &mut BTreeSet<Subject>,
    ) {
        let twins = self.gateway.options.from_to_www;
        if let Some(ingress) = before {
            dirty.extend(self.index.remove(ingress, twins));
        }
        let key = Key::Ingress(name);
        let Some(ingress) = after else {
            self.problems.set(Source::Object(key), Vec::new());
            return;
        };
        let mut settings = match *ingress.options == Options::default() {
            true => {
                self.problems.set(Source::Object(key), Vec::new());
                Arc::clone(&self.silent)
            }
            false => self.settings(&ingress.options, key),
        };
        if ingress.denied {
            Arc::make_mut(&mut settings).denied = true;
        }
        dirty.extend(self.index.insert(Owner { ingress, settings }, twins));
    }

    /// What `options`, which are those of `object`, come to.
    fn settings(&mut self, options: &Options, object: Key) -> Arc<Settings> {
        let mut problems = Vec::new();
        let gateway = Arc::clone(&self.gateway);
        let auth = options.basic_auth.as_ref().or(gateway.options.basic_auth.as_ref());
        let password = auth.map(|auth| self.password(auth, &mut problems)).transpose();
        let mut problem = |text| problems.push(Problem { object: object.clone(), text });
        let settings = Settings::new(options, &gateway, password, &mut problem);
        self.problems.set(Source::Object(object), problems);
        settings
    }

    fn password(
        &mut self,
        auth: &BasicAuth,
        problems: &mut Vec<Problem>,
    ) -> Result<Password, String> {
        let secret = &auth.secret;
        if !self.users.contains_key(secret) {
            let known = self.model.secrets.get(secret);
            let text = known.and_then(|secret| secret.users.as_ref()).ok_or_else(|| {
                format!("there are no users in Secret {secret}: 503 for all paths")
            })?;
            let object = Key::Secret(secret.clone());
            let mut wrong = Vec::new();
            let mut problem = |text| wrong.push(Problem { object: object.clone(), text });
            let users = Arc::new(Users::new(text.reveal(), &mut problem));
            self.users.insert(secret.clone(), (users, wrong));
        }
        let (users, wrong) = &self.users[secret];
        problems.extend_from_slice(wrong);
        Ok(Password::new(Arc::clone(users), &auth.realm))
    }

    /// Makes what is `dirty` of a table; answers how many hosts that were.
    fn make(&mut self, table: &mut Table, dirty: &BTreeSet<Subject>) -> usize {
        let Self { index, problems, model, gateway, .. } = self;
        let mut maker =
            Maker { model, gateway, expressions: &mut self.expressions, problems: Vec::new() };
        let names = names(index, dirty);
        let drafts = Draft::all(index, &names, gateway.options.from_to_www);
        let mut hosts = BTreeMap::new();
        let mut wrong = BTreeMap::new();
        for (name, draft) in &drafts {
            let host = maker.host(name, draft);
            if !draft.owners.is_empty() {
                hosts.insert(*name, Arc::new(host));
            }
            wrong.insert(*name, std::mem::take(&mut maker.problems));
        }
        for (name, draft) in &drafts {
            let mut problems_of_it = wrong.remove(name).unwrap_or_default();
            let host = |name: &str| hosts.get(name).or_else(|| table.host(name));
            let named = draft.named(name, host, &mut problems_of_it);
            table.name(name, named);
            table.certificates.set(name, draft.certificate(name, &mut problems_of_it));
            problems.set(Source::Subject(Subject::Name((*name).to_owned())), problems_of_it);
        }
        if dirty.contains(&Subject::Unnamed) {
            let tls = index.of(&Subject::Unnamed).iter().flat_map(|owner| &owner.ingress.tls);
            let mut secrets = tls.filter(|tls| tls.hosts.is_empty()).map(|tls| &tls.secret);
            table.certificates.unnamed = secrets.find_map(Clone::clone);
        }
        if dirty.contains(&Subject::Fallback) {
            let owners = index.of(&Subject::Fallback);
            (table.fallback, table.certified) = maker.last_resort(owners, &self.silent);
            problems.set(Source::Subject(Subject::Fallback), maker.problems);
        }
        hosts.len()
    }
}

/// The names that are `dirty`, and with a host the other names that lead to it.
fn names(index: &Index, dirty: &BTreeSet<Subject>) -> BTreeSet<String> {
    let mut names: BTreeSet<_> = dirty
        .iter()
        .filter_map(|subject| match subject {
            Subject::Name(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    let mut others = BTreeSet::new();
    for owner in index.of_names(&names) {
        if let Some((host, aliases)) = owner.aliases()
            && names.contains(host)
        {
            others.extend(aliases.iter().cloned());
        }
    }
    names.append(&mut others);
    names
}

impl Table {
    /// Without Ingresses, what `gateway` says.
    fn of(gateway: &Gateway, public: Public) -> Self {
        let redirect_status =
            gateway.redirect_status.and_then(|status| StatusCode::from_u16(status).ok());
        Self {
            min_tls: gateway.options.min_tls,
            ciphers: gateway.options.ciphers.clone(),
            certificates: Certificates {
                default: gateway.default_certificate.clone(),
                ..Certificates::default()
            },
            trust: Trust {
                nets: gateway.trusted.clone(),
                forwarded: gateway.forwarded_headers,
                proxy: gateway.proxy_protocol,
                public,
            },
            hsts: hsts(gateway.hsts.as_ref()),
            redirect_status: redirect_status.unwrap_or(StatusCode::PERMANENT_REDIRECT),
            ..Self::default()
        }
    }

    /// The host that has a name, which may be one with `*.` in front, or empty.
    pub(super) fn host(&self, name: &str) -> Option<&Arc<Host>> {
        match name.strip_prefix("*.") {
            Some(rest) => self.wildcards.get(rest),
            None if name.is_empty() => self.any.as_ref(),
            None => match self.hosts.get(name)? {
                Named::Host(host) => Some(host),
                Named::Twin(_) => None,
            },
        }
    }

    /// Such a name leads there from now on.
    fn name(&mut self, name: &str, named: Option<Named>) {
        let wildcard = name.strip_prefix("*.");
        match (wildcard, named) {
            (Some(rest), Some(Named::Host(host))) => self.wildcards.insert(rest.to_owned(), host),
            (Some(rest), _) => _ = self.wildcards.remove(rest),
            (None, Some(Named::Host(host))) if name.is_empty() => self.any = Some(host),
            (None, _) if name.is_empty() => self.any = None,
            (None, Some(named)) => self.hosts.insert(name.to_owned(), named),
            (None, None) => _ = self.hosts.remove(name),
        }
    }
}

impl Certificates {
    /// A name has that one from now on; see [`Self::exact`] for what is in it.
    fn set(&mut self, name: &str, secret: Option<Option<ObjectName>>) {
        let (names, name) = match name.strip_prefix("*.") {
            Some(rest) => (&mut self.wildcards, rest),
            None => (&mut self.exact, name),
        };
        match secret {
            Some(secret) => names.insert(name.to_owned(), secret),
            None => _ = names.remove(name),
        }
    }
}

fn ports_differ(difference: &Difference<'_, Service>) -> bool {
    let ports = |service: Option<&Arc<Service>>| service.map(|service| service.ports.clone());
    ports(difference.before) != ports(difference.after)
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
