//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use fairway_feed::client::{self, Follower, GatewayOptions, Plain, Sealed, SealingKey};
use fairway_feed::identity::GatewayName;
use fairway_feed::tls::{Client, Files, PodIdentity};

use crate::gateway;
use crate::record::LogFormat;
use crate::route::Public;

/// Fairway's gateway: takes HTTP from outside of the cluster to the Services that Ingresses name.
///
/// It follows the control plane's feed, or reads a folder of manifests by itself. What changes is in force at
/// once: nothing is reloaded, and no connection ends because of it.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  fairway-ingress run --manifests ./manifests --http [::]:8080 --https [::]:8443
      One machine alone: Ingresses, Services, EndpointSlices and Secrets from a folder.
  fairway-ingress run --feed https://192.0.2.10:9443 --gateway edge/pod-1 --join-service-account /var/run/secrets/fairway
      A pod of a cluster whose control plane serves the feed.
  fairway-ingress routes
      What the gateway on this machine serves.
  fairway-ingress certs -o json
      Its certificates, and until when they are good.
  fairway-ingress explain https://shop.example/cart?item=7
      Why a request goes where it goes; nothing is sent.
  fairway-ingress tls check shop.example
      Which certificate a name gets, and what is asked of clients.

Logs go to standard error; FAIRWAY_LOG sets what is logged (\"debug\", \"fairway_ingress=trace\"). The access log
goes to standard output."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Serve
    Run(Box<Run>),
    /// Show what a running gateway serves: hosts, paths, and how many endpoints are behind them
    Routes(Ask),
    /// Show the certificates of a running gateway
    Certs(Ask),
    /// Tell what becomes of a request at a running gateway, and why
    Explain(Explain),
    /// Look at a running gateway's TLS
    #[command(subcommand)]
    Tls(Tls),
}

/// What can be asked about TLS.
#[derive(Clone, Debug, Subcommand)]
pub enum Tls {
    /// Tell what a client gets that asks for this name in its handshake, and why
    Check {
        /// The name
        name: String,

        /// Whom to ask.
        #[command(flatten)]
        ask: Ask,
    },
}

/// A request that is thought of.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Its address, as http://HOST/PATH or https://HOST/PATH
    pub url: String,

    /// Its method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: String,

    /// Whom to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// Whom to ask.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// The gateway's --admin
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9113")]
    pub admin: SocketAddr,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What serving takes.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("source").required(true).args(["manifests", "feed"])))]
pub struct Run {
    /// Folder of Kubernetes manifests to read and watch
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Control plane to follow, as https://HOST:PORT; with several servers any of them, once each. Over
    /// http:// nothing is encrypted, private keys included, and anybody on the way can be the control plane
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub feed: Vec<String>,

    /// Name of this gateway: the one that its replicas have in common, and one of its own behind a slash if there
    /// are several
    #[arg(
        long,
        value_name = "GROUP[/REPLICA]",
        env = "FAIRWAY_GATEWAY",
        default_value = "fairway"
    )]
    pub gateway: GatewayName,

    /// CA that the control plane's certificate comes from, as PEM
    #[arg(long, value_name = "FILE", requires_all = ["feed_certificate", "feed_key"])]
    pub feed_ca: Option<PathBuf>,

    /// This gateway's certificate for the feed, as PEM (fairway-controlplane certificate create
    /// gateway/NAME); read again for each connection
    #[arg(long, value_name = "FILE", requires = "feed_ca")]
    pub feed_certificate: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE", requires = "feed_ca")]
    pub feed_key: Option<PathBuf>,

    /// In a pod: folder with a token of its ServiceAccount for the audience fairway-feed (token), which this
    /// gateway gets its certificates with, and the control plane's CA (ca.crt); read again each time
    #[arg(long, value_name = "DIR", conflicts_with = "feed_ca")]
    pub join_service_account: Option<PathBuf>,

    /// Follow a control plane over http:// that is not on this machine
    #[arg(long)]
    pub feed_insecure: bool,

    /// Folder for what has to survive a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway-ingress")]
    pub state_dir: PathBuf,

    /// File with 32 random bytes or more that Secrets are sealed with on the disk, so that hosts with TLS are
    /// served after a start without the control plane [default: the service manager's credential
    /// "fairway-sealing-key", else Secrets are kept in memory alone]
    #[arg(long, value_name = "FILE")]
    pub sealing_key: Option<PathBuf>,

    /// Where to take HTTP
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:80")]
    pub http: SocketAddr,

    /// Where to take HTTP over TLS
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:443")]
    pub https: SocketAddr,

    /// Port of HTTP that clients connect to, where somebody in front maps it to that of --http: for X-Forwarded-Port
    /// and redirects [default: the one that was connected to]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub public_http: Option<u16>,

    /// The same of HTTP over TLS, and of who has had TLS ended in front and says so by a PROXY header
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub public_https: Option<u16>,

    /// Address of /healthz, /readyz and /metrics, and of what the other commands ask for
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9113")]
    pub admin: SocketAddr,

    /// Threads that serve [default: one for each processor]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: Option<u16>,

    /// Connections that each of them has at a time, for HTTP and for TLS; more wait
    #[arg(long, value_name = "NUMBER", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,

    /// How requests are logged
    #[arg(long, value_enum, default_value_t = LogFormat::Nginx)]
    pub access_log: LogFormat,

    /// Namespace of this gateway's pod, for its metrics; they have its REPLICA for the pod's name
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "")]
    pub pod_namespace: String,

    /// Unix socket at which this gateway takes over listeners of one that runs, and the next one from it, so that
    /// no client notices; give both the same [default: "handover" in --state-dir]
    #[arg(long, value_name = "FILE")]
    pub handover: Option<PathBuf>,

    /// When told to stop: for how many seconds to be served all the same while /readyz fails, so that
    /// load balancers hear of it
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub drain_wait: u64,

    /// Then: for how many seconds what is under way may go on
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub drain_timeout: u64,
}

impl Run {
    /// What the gateway itself is told.
    pub fn gateway(&self) -> gateway::Options {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        gateway::Options {
            name: self.gateway.group.clone(),
            http: self.http,
            https: self.https,
            public: Public { http: self.public_http, https: self.public_https },
            admin: self.admin,
            workers: self.workers.map_or(processors, usize::from),
            connections: usize::try_from(self.connections).unwrap_or(usize::MAX),
            log: self.access_log,
            handover: Some(
                self.handover.clone().unwrap_or_else(|| self.state_dir.join("handover")),
            ),
            pod: (self.pod_namespace.clone(), self.gateway.replica.clone().unwrap_or_default()),
        }
    }

    /// For how long to be served although it is told to stop, and then what is under way.
    pub fn drain(&self) -> (Duration, Duration) {
        (Duration::from_secs(self.drain_wait), Duration::from_secs(self.drain_timeout))
    }

    /// Starts to follow the feed. Within a Tokio runtime.
    ///
    /// # Errors
    /// When what is given is not enough, or contradicts itself.
    pub fn follow(&self) -> Result<Follower> {
        let following = GatewayOptions {
            endpoints: self.feed.clone(),
            gateway: self.gateway.clone(),
            snapshot: self.state_dir.join("snapshot"),
            secrets: self.sealed()?,
        };
        let secure = |endpoint: &String| endpoint.starts_with("https:");
        let follower = if self.feed.iter().all(secure) {
            client::follow_as_gateway(following, self.client()?)
        } else if self.feed.iter().any(secure) {
            bail!("--feed: either all over https:// or all over http://");
        } else {
            if let Some(far) = self.feed.iter().find(|endpoint| !is_here(endpoint))
                && !self.feed_insecure
            {
                bail!(
                    "--feed {far} is neither encrypted nor on this machine: use https://, or say \
                     --feed-insecure"
                );
            }
            client::follow_as_gateway(following, Plain)
        };
        follower.context("--feed")
    }

    fn client(&self) -> Result<Client> {
        let given = self.feed_ca.as_ref().zip(self.feed_certificate.as_ref());
        if let Some(((ca, certificate), key)) = given.zip(self.feed_key.as_ref()) {
            let (ca, certificate, key) = (ca.clone(), certificate.clone(), key.clone());
            return Ok(Client::files(Files { ca, certificate, key }));
        }
        let Some(given) = &self.join_service_account else {
            bail!(
                "--feed over https:// needs --feed-ca, --feed-certificate and --feed-key, or in a pod \
                 --join-service-account"
            );
        };
        let pod = PodIdentity { token: given.join("token"), ca: given.join("ca.crt") };
        let folder = self.state_dir.join("feed");
        Ok(Client::joining_as_gateway(&folder, self.gateway.clone(), pod))
    }

    fn sealed(&self) -> Result<Option<Sealed>> {
        const CREDENTIAL: &str = "fairway-sealing-key";
        let key = match &self.sealing_key {
            Some(file) => Some(SealingKey::from_file(file).context("--sealing-key")?),
            None => SealingKey::from_credential(CREDENTIAL).context(CREDENTIAL)?,
        };
        Ok(key.map(|key| Sealed { file: self.state_dir.join("secrets"), key }))
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
    use clap::CommandFactory as _;

    use super::*;

    fn run(arguments: &str) -> Result<Run, String> {
        let words = ["fairway-ingress", "run"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.verb {
            Verb::Run(run) => Ok(*run),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn what_is_typed_makes_sense() {
        Cli::command().debug_assert();
        assert!(run("").is_err());
        assert!(run("--feed http://a:1 --manifests /m").is_err());
        assert!(run("--manifests /m --gateway a/b/c").is_err());
        let typed = run("--manifests /m --gateway edge/one --workers 3").unwrap().gateway();
        assert_eq!((&*typed.name, typed.workers), ("edge", 3));
        assert_eq!(typed.http.to_string(), "[::]:80");
        assert!(run("--manifests /m --public-https 0").is_err());
        let typed = run("--manifests /m --public-https 8443").unwrap().gateway();
        assert_eq!((typed.public.http, typed.public.https), (None, Some(8443)));
    }

    #[tokio::test]
    async fn what_is_not_enough_is_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().display();
        for (typed, reason) in [
            ("--feed https://192.0.2.1:1", "needs --feed-ca"),
            ("--feed http://192.0.2.1:1", "neither encrypted nor on this machine"),
            ("--feed http://127.0.0.1:1,https://192.0.2.1:1", "either all over https://"),
        ] {
            let typed = run(&format!("--state-dir {folder} {typed}")).unwrap();
            let error = typed.follow().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        for good in ["--feed http://127.0.0.1:1", "--feed http://192.0.2.1:1 --feed-insecure"] {
            run(&format!("--state-dir {folder} {good}")).unwrap().follow().unwrap();
        }
    }
}
