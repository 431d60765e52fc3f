//! Why a request goes where it goes, in words.

use super::{Decision, Forward, Named, Request, Route, Table, host_name, path, split_target};
use crate::message::Known;

impl Table {
    /// What [`Self::decide`] makes of `request`, and why: a line for each thing that matters.
    pub fn explain(&self, request: &Request<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(request.host.and_then(host_name).map(|name| self.explain_host(&name)));
        let (asked, _) = split_target(request.target);
        if let Ok(normal) = path::normal(asked) {
            let decoded = String::from_utf8_lossy(&normal.decoded);
            if decoded != asked {
                lines.push(format!("path {asked}: compared as {decoded}"));
            }
        }
        match self.decide(request) {
            Decision::Answer(answer) => {
                lines.extend(answer.route.map(|route| route.explain()));
                lines
                    .extend(answer.quirk.map(|quirk| format!("a habit of ingress-nginx: {quirk}")));
                let to = answer.headers.get(Known::Location).map(String::from_utf8_lossy);
                let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
                lines.push(format!(
                    "answered with {}{to}: {}",
                    answer.status.as_u16(),
                    answer.reason
                ));
            }
            Decision::Forward(forward) => forward.explain(&mut lines),
        }
        lines
    }

    fn explain_host(&self, name: &str) -> String {
        let of = |host: &str| match host {
            "" => format!("host {name}: no rule names it, so those for all hosts hold"),
            host if host == name => format!("host {name}: it has rules of its own"),
            host if host.starts_with("*.") => format!("host {name}: the rules of {host} hold"),
            host => format!("host {name}: it is another name of {host}"),
        };
        match self.named(name) {
            Some(Named::Host(host)) => of(&host.name),
            Some(Named::Twin(to)) => format!("host {name}: it is {to} with or without www."),
            None => self.unnamed(name).map_or_else(
                || format!("host {name}: nobody has rules for it"),
                |host| of(&host.name),
            ),
        }
    }
}

impl Route {
    fn explain(&self) -> String {
        match &self.ingress {
            Some(ingress) if self.nginx => {
                format!("rule {self} of Ingress {ingress}, which is read as ingress-nginx does")
            }
            Some(ingress) => format!("rule {self} of Ingress {ingress}"),
            None => "no rule: it is for the gateway's default backend".to_owned(),
        }
    }
}

impl Forward<'_> {
    fn explain(&self, lines: &mut Vec<String>) {
        lines.push(self.route.explain());
        if self.canary {
            lines.push("it is a canary that has taken the request".to_owned());
        }
        lines.extend(self.quirk.map(|quirk| format!("a habit of ingress-nginx: {quirk}")));
        lines.push(format!("the client is {}", self.client));
        if self.password.is_some() {
            lines.push("a name and a password are asked for".to_owned());
        }
        lines.extend(self.question.as_ref().map(|question| format!("{} is asked", question.url)));
        if self.satisfy_any && self.password.is_some() && self.question.is_some() {
            lines.push("one of them is enough".to_owned());
        }
        lines.extend(self.path_and_query.as_ref().map(|path| format!("the backend gets {path}")));
        let (service, port) = (&self.target.service, self.target.port);
        if self.route.target.is_none() {
            lines.push(
                "the rule's Service does not exist, and the Ingress has another one for that"
                    .to_owned(),
            );
        }
        lines.push(format!("forwarded to Service {service}, port {port}"));
    }
}
