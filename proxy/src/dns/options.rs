//! What is said about DNS on the command line.

use clap::{Args, ValueEnum};
use fairway_model::ObjectName;

/// Whether and how the agent answers DNS queries.
#[derive(Args, Clone, Debug)]
// Beside the agent's, which have the same name.
#[group(id = "dns_options")]
pub struct Options {
    /// Whether to answer the DNS queries of this node in the place of the cluster's DNS server, which goes on
    /// if this agent does not [default: on with --manifests, off with --feed]
    #[arg(long, value_enum)]
    pub dns: Option<Switch>,

    /// Service of the cluster's DNS server
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/kube-dns", value_parser = object_name)]
    pub dns_service: ObjectName,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is
    On,
    /// It is not
    Off,
}

impl Options {
    /// The Service in whose place the agent answers, if it does; `alone`: without a control plane to follow, and so
    /// most likely without another DNS server.
    pub(crate) fn service(&self, alone: bool) -> Option<ObjectName> {
        let by_default = if alone { Switch::On } else { Switch::Off };
        (self.dns.unwrap_or(by_default) == Switch::On).then(|| self.dns_service.clone())
    }
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("must look like kube-system/kube-dns".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn an_agent_answers_if_it_is_alone_unless_told_otherwise() {
        let kube_dns = Some(ObjectName::new("kube-system", "kube-dns"));
        for (words, alone, follows) in [
            ("p", kube_dns.clone(), None),
            ("p --dns on", kube_dns.clone(), kube_dns),
            ("p --dns off", None, None),
        ] {
            let Line { options } = Line::try_parse_from(words.split(' ')).expect("good options");
            assert_eq!(
                (options.service(true), options.service(false)),
                (alone, follows),
                "{words}"
            );
        }
        for bad in ["p --dns-service kube-dns", "p --dns-service /x", "p --dns maybe"] {
            assert!(Line::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
