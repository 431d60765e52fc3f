//! What Ingresses say about a name, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairway_model::{IngressPath, ObjectName};

use super::said::{Index, Owner, twin};
use super::{named, problem};
use crate::route::{Host, Named, Problem};

/// What Ingresses say about a name, oldest first.
#[derive(Debug, Default)]
pub(super) struct Draft<'a> {
    pub(super) rules: Vec<(&'a IngressPath, &'a Owner)>,
    pub(super) canaries: Vec<(&'a IngressPath, &'a Owner)>,
    /// Those with rules for it that are no canaries.
    pub(super) owners: Vec<&'a Owner>,
    /// Those who have it for another name of a host, and that host.
    aliases: Vec<(&'a Owner, &'a str)>,
    /// The first host that it is with or without `www.`.
    twin: Option<&'a str>,
    /// Those with a certificate for it; `None`: the gateway's own.
    certificates: Vec<(&'a Owner, Option<&'a ObjectName>)>,
}

impl<'a> Draft<'a> {
    /// Of each of `names`; `twins`: all hosts have them.
    pub(super) fn all(
        index: &'a Index,
        names: &'a BTreeSet<String>,
        twins: bool,
    ) -> BTreeMap<&'a str, Self> {
        let mut drafts: BTreeMap<&str, Self> =
            names.iter().map(|name| (name.as_str(), Self::default())).collect();
        for owner in index.of_names(names) {
            for rule in &owner.ingress.rules {
                if let Some(draft) = drafts.get_mut(rule.host.as_str()) {
                    draft.rule(&rule.paths, owner);
                }
                if (twins || owner.options().from_to_www)
                    && !owner.is_canary()
                    && let Some(draft) =
                        twin(&rule.host).and_then(|name| drafts.get_mut(name.as_str()))
                {
                    draft.twin.get_or_insert(&rule.host);
                }
            }
            if owner.is_canary() {
                continue;
            }
            if let Some((host, aliases)) = owner.aliases() {
                for alias in aliases {
                    if let Some(draft) = drafts.get_mut(alias.as_str()) {
                        draft.aliases.push((owner, host));
                    }
                }
            }
            for tls in &owner.ingress.tls {
                for host in &tls.hosts {
                    if let Some(draft) = drafts.get_mut(host.as_str()) {
                        draft.certificates.push((owner, tls.secret.as_ref()));
                    }
                }
            }
        }
        drafts
    }

    fn rule(&mut self, paths: &'a [IngressPath], owner: &'a Owner) {
        let paths = paths.iter().map(|path| (path, owner));
        if owner.is_canary() {
            // It has no host of its own.
            self.canaries.extend(paths);
            return;
        }
        self.rules.extend(paths);
        if self.owners.last().is_none_or(|last| !std::ptr::eq(*last, owner)) {
            self.owners.push(owner);
        }
    }

    /// What the name `name` leads to: the host of that name, or else one that has it for another name. `host` finds
    /// hosts.
    pub(super) fn named<'h>(
        &self,
        name: &str,
        host: impl Fn(&str) -> Option<&'h Arc<Host>>,
        problems: &mut Vec<Problem>,
    ) -> Option<Named> {
        let mut found = match self.owners.is_empty() {
            true => None,
            false => host(name),
        };
        for (owner, of) in &self.aliases {
            if found.is_some() {
                let text = format!("{name} is no alias of {}: it is a host", named(of));
                problems.push(problem(&owner.ingress, text));
            } else {
                found = host(of);
            }
        }
        let found = found.map(|host| Named::Host(Arc::clone(host)));
        found.or_else(|| Some(Named::Twin(self.twin?.to_owned())))
    }

    /// The name's certificate: the first one that somebody has. `None`: nobody says that it has any.
    pub(super) fn certificate(
        &self,
        name: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Option<ObjectName>> {
        let first = self.certificates.iter().find_map(|(_, secret)| *secret);
        for (owner, secret) in &self.certificates {
            if let (Some(first), Some(secret)) = (first, *secret)
                && first != secret
            {
                let text = format!(
                    "host {name} has its certificate from an older Ingress: {first}, not {secret}"
                );
                problems.push(problem(&owner.ingress, text));
            }
        }
        (!self.certificates.is_empty()).then(|| first.cloned())
    }
}
