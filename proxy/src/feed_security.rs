//! How the agent knows the control plane, and the control plane the agent: the options that say so, and
//! what follows from them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use fairway_feed::client::{self, Follower};
use fairway_feed::identity::Pin;
use fairway_feed::tls::{Client, Files, JoinToken, PodIdentity};
use fairway_model::Sensitive;

/// What goes with `--feed`.
#[derive(Args, Clone, Debug, Default)]
// Beside the agent's, which have the same name.
#[group(id = "feed_security")]
pub struct Options {
    /// CA that the control plane's certificate comes from, as PEM
    #[arg(long, value_name = "FILE", requires_all = ["feed_certificate", "feed_key"])]
    pub feed_ca: Option<PathBuf>,

    /// This node's certificate for the feed, as PEM; read again for each connection
    #[arg(long, value_name = "FILE", requires = "feed_ca")]
    pub feed_certificate: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE", requires = "feed_ca")]
    pub feed_key: Option<PathBuf>,

    /// What this node gets its first certificate with (fairway-controlplane token create); not needed
    /// any more once it has one
    #[arg(
        long,
        value_name = "TOKEN",
        env = "FAIRWAY_JOIN_TOKEN",
        hide_env_values = true,
        requires = "join_ca_pin",
        conflicts_with = "feed_ca"
    )]
    pub join_token: Option<Sensitive>,

    /// Hash of the control plane's CA's public key, which is printed along with the token
    #[arg(long, value_name = "sha256:HEX", env = "FAIRWAY_JOIN_CA_PIN")]
    pub join_ca_pin: Option<Pin>,

    /// In a pod: folder with a token of its ServiceAccount for the audience fairway-feed (token), which this
    /// node gets its certificates with, and the control plane's CA (ca.crt); read again each time
    #[arg(long, value_name = "DIR", conflicts_with_all = ["feed_ca", "join_token"])]
    pub join_service_account: Option<PathBuf>,

    /// Follow a control plane over http:// that is not on this machine
    #[arg(long)]
    pub feed_insecure: bool,
}

impl Options {
    /// Starts following; what this node joined with is kept in `folder`. Within a Tokio runtime.
    pub(crate) fn follow(&self, following: client::Options, folder: &Path) -> Result<Follower> {
        let secure = |endpoint: &String| endpoint.starts_with("https:");
        let follower = if following.endpoints.iter().all(secure) {
            let client = self.client(&following.node, folder)?;
            client::follow_over(following, client)
        } else if following.endpoints.iter().any(secure) {
            bail!("--feed: either all over https:// or all over http://");
        } else {
            self.check_plain(&following.endpoints)?;
            client::follow(following)
        };
        follower.context("--feed")
    }

    fn client(&self, node: &str, folder: &Path) -> Result<Client> {
        let given = self.feed_ca.as_ref().zip(self.feed_certificate.as_ref());
        if let Some(((ca, certificate), key)) = given.zip(self.feed_key.as_ref()) {
            let (ca, certificate, key) = (ca.clone(), certificate.clone(), key.clone());
            return Ok(Client::files(Files { ca, certificate, key }));
        }
        if let Some(given) = &self.join_service_account {
            let pod = PodIdentity { token: given.join("token"), ca: given.join("ca.crt") };
            return Ok(Client::joining_as_pod(folder, node, pod));
        }
        let token = self.join_token.clone().zip(self.join_ca_pin);
        let token = token.map(|(token, pin)| JoinToken { token: token.reveal().to_owned(), pin });
        if token.is_none() && !Client::has_joined(folder) {
            bail!(
                "--feed over https:// needs --feed-ca, --feed-certificate and --feed-key, or, the first \
                 time, --join-token and --join-ca-pin (on the control plane: fairway-controlplane token \
                 create --node {node}), or in a pod --join-service-account"
            );
        }
        Ok(Client::joining(folder, node, token))
    }

    fn check_plain(&self, endpoints: &[String]) -> Result<()> {
        let far = endpoints.iter().find(|endpoint| !is_here(endpoint));
        match far {
            Some(far) if !self.feed_insecure => bail!(
                "--feed {far} is neither encrypted nor on this machine: use https://, or say \
                 --feed-insecure"
            ),
            _ => Ok(()),
        }
    }
}

/// Whether the URL is of this machine.
fn is_here(url: &str) -> bool {
    let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};
    use tokio::sync::watch;

    use super::*;

    #[derive(Debug, Parser)]
    struct Agent {
        #[command(flatten)]
        security: Options,
    }

    #[test]
    fn a_token_is_taken_and_not_shown() {
        let pin = format!("--join-ca-pin=sha256:{}", "0".repeat(64));
        let words = ["agent", "--join-token", "3f1c0a.5ec2e7", &pin];
        let matches = Agent::command().try_get_matches_from(words).unwrap();
        let Agent { security } = Agent::from_arg_matches(&matches).unwrap();
        assert_eq!(security.join_token.as_ref().unwrap().reveal(), "3f1c0a.5ec2e7");
        let shown = format!("{security:?}");
        assert!(shown.contains("join_token: Some(") && !shown.contains("5ec2e7"), "{shown}");
    }

    #[test]
    fn this_machine() {
        for url in ["http://127.0.0.1:1", "http://[::1]:1/", "http://localhost:1"] {
            assert!(is_here(url), "{url}");
        }
        for url in ["http://192.0.2.1:1", "http://[2001:db8::1]:1", "http://localhost.example:1"] {
            assert!(!is_here(url), "{url}");
        }
    }

    #[tokio::test]
    async fn what_is_not_enough_is_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let follow = |options: &Options, endpoints: &[&str]| {
            let following = client::Options {
                endpoints: endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect(),
                node: "n1".to_owned(),
                snapshot: folder.path().join("snapshot"),
                facts: watch::channel(Default::default()).1,
            };
            options.follow(following, &folder.path().join("feed"))
        };
        let (nothing, insecure) =
            (Options::default(), Options { feed_insecure: true, ..Options::default() });
        let pod = Options { join_service_account: Some("/mounted".into()), ..Options::default() };
        for (options, endpoints, reason) in [
            (&nothing, &["https://192.0.2.1:1"][..], "the first time, --join-token"),
            (&nothing, &["http://192.0.2.1:1"], "neither encrypted nor on this machine"),
            (&insecure, &["http://192.0.2.1:1", "https://192.0.2.2:1"], "either all over https://"),
        ] {
            let error = follow(options, endpoints).unwrap_err().to_string();
            assert!(error.contains(reason), "{endpoints:?}: {error}");
        }
        follow(&insecure, &["http://192.0.2.1:1"]).unwrap();
        follow(&nothing, &["http://127.0.0.1:1"]).unwrap();
        // What is mounted may come later.
        follow(&pod, &["https://192.0.2.1:1"]).unwrap();
    }
}
