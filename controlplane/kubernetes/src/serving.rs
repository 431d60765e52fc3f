//! How the model reaches the nodes: the feed's server, its certificates and tokens, and a look at what it
//! serves; all with the options that say so.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use fairway_controlplane::facts::Amended;
use fairway_feed::authority::{Authority, Vouch};
use fairway_feed::client::{self, Connector, ask};
use fairway_feed::identity::Role;
use fairway_feed::tickets::TicketKeys;
use fairway_feed::{disk, server, tls};
use fairway_kubernetes::ca::ClusterCa;
use fairway_kubernetes::vouch::Pods;
use http::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How the feed is served.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Whether nodes must come over TLS with a certificate [default: unless --listen is a loopback address and
    /// pods do not join by it]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) tls: Option<Tls>,
    /// CA that nodes' certificates come from, as PEM; with --tls-certificate and --tls-key, instead of the
    /// CA of one's own that is made in the state folder
    #[arg(long, value_name = "FILE", requires_all = ["tls_certificate", "tls_key"])]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The control plane's certificate and those between it and the CA, as PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Over how many seconds nodes are sent to other servers when this one is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) drain: u64,
}

/// See [`Options::tls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tls {
    /// TLS 1.3, and who shows no certificate may do no more than join
    On,
    /// None: whoever reaches the address may read everything, gateways' secrets too, and pose as any node
    Off,
}

/// What is about the feed and needs no manifests.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What nodes join with
    #[command(subcommand)]
    Token(TokenCommand),
    /// Certificates for those who do not join by themselves
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Print what a control plane serves, as JSON
    Dump(Dump),
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print the options that an agent joins with. It is good for one node, once
    Create(TokenCreate),
}

/// See [`TokenCommand::Create`].
#[derive(Args, Debug)]
pub(crate) struct TokenCreate {
    /// The only node that may use it, as often as it likes [default: whichever is first]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// For how long it is good: a number of s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// State folder of the control plane that is to take it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway-controlplane")]
    pub(crate) state_dir: PathBuf,
}

/// What can be done with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// Make a certificate with the built-in CA, and write it with its key and the CA's into a folder
    Create(CertificateCreate),
}

/// See [`CertificateCommand::Create`].
#[derive(Args, Debug)]
pub(crate) struct CertificateCreate {
    /// Whose: operator/NAME may read everything, node/NAME is that node, gateway/GROUP or
    /// gateway/GROUP/REPLICA a gateway, controlplane another server
    #[arg(value_name = "ROLE")]
    pub(crate) role: Role,
    /// Folder for ca.crt, tls.crt and tls.key
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// State folder of the control plane whose CA it is
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway-controlplane")]
    pub(crate) state_dir: PathBuf,
}

/// See [`Command::Dump`].
#[derive(Args, Debug)]
pub(crate) struct Dump {
    /// The control plane
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9443")]
    pub(crate) feed: String,
    /// CA of its certificate, as PEM
    #[arg(long, value_name = "FILE", requires_all = ["feed_certificate", "feed_key"])]
    pub(crate) feed_ca: Option<PathBuf>,
    /// An operator's certificate, as PEM (fairway-controlplane certificate create operator/NAME)
    #[arg(long, value_name = "FILE", requires = "feed_ca")]
    pub(crate) feed_certificate: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "feed_ca")]
    pub(crate) feed_key: Option<PathBuf>,
    /// What to print
    #[arg(value_enum, default_value_t = What::Model)]
    pub(crate) what: What,
}

/// What [`Dump`] prints.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum What {
    /// All objects, as nodes and gateways get them; of secrets, what there is and not what it is
    Model,
    /// How far each node is, and until when its certificate is good
    Nodes,
}

/// What a cluster does for the feed.
pub(crate) struct Cluster {
    /// Keeps its CA.
    pub(crate) ca: ClusterCa,
    /// Says which nodes agents are on, and which gateways pods are.
    pub(crate) pods: Arc<Pods>,
}

/// Where a control plane with this state folder has its CA.
fn ca_folder(state_dir: &Path) -> PathBuf {
    state_dir.join("ca")
}

/// Serves the feed until `stop`, and then for as long as it takes to send the nodes away. The CA is the cluster's,
/// or one of the state folder's own.
pub(crate) async fn serve(
    listener: TcpListener,
    model: Amended,
    (state_dir, cluster): (&Path, Option<Cluster>),
    options: &Options,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    allow_many_sockets();
    let address = listener.local_addr().context("cannot tell the address listened on")?;
    let (drain, drained) = watch::channel(false);
    let vouch = cluster.as_ref().map(|cluster| Arc::clone(&cluster.pods) as Arc<dyn Vouch>);
    let random = TicketKeys::random().context("cannot make keys of tickets")?;
    let server_options = |authority: Option<Arc<Authority>>| server::Options {
        facts: model.facts.clone(),
        // Replicas that have one CA have the same keys, others keys of their own.
        tickets: Some(authority.as_deref().map_or(random.clone(), TicketKeys::of)),
        authority,
        vouch: vouch.clone(),
        drain: drained.clone(),
        drain_time: Duration::from_secs(options.drain),
        ..server::Options::default()
    };
    let receiver = model.model.clone();
    let serving: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match transport(
        options,
        address,
        cluster.is_some(),
    ) {
        Transport::Plain if cluster.is_some() => {
            bail!(
                "--tls off: pods' tokens are taken over TLS alone (--agent-service-account, \
                 --gateway-service-account)"
            )
        }
        Transport::Plain => {
            if !address.ip().is_loopback() {
                tracing::warn!(
                    %address,
                    "without TLS: whoever reaches it may pose as any node, and read gateways' secrets"
                );
            }
            Box::pin(server::serve(listener, server::Plain, receiver, server_options(None)))
        }
        Transport::Files(files) => {
            let acceptor = tls::Server::files(files).context("cannot serve TLS")?;
            Box::pin(server::serve(listener, acceptor, receiver, server_options(None)))
        }
        Transport::Authority => {
            let folder = ca_folder(state_dir);
            // A copy of the cluster's is kept there, for `certificate create`.
            let authority = match &cluster {
                Some(Cluster { ca, .. }) => Authority::given(&folder, &ca.certificate, &ca.key),
                None => Authority::open(&folder),
            };
            let authority =
                authority.with_context(|| format!("cannot use the CA in {}", folder.display()))?;
            let authority = Arc::new(authority);
            tracing::info!(ca_pin = %authority.pin(), "serving TLS with the built-in CA");
            let acceptor =
                tls::Server::authority(Arc::clone(&authority)).context("cannot serve TLS")?;
            Box::pin(server::serve(listener, acceptor, receiver, server_options(Some(authority))))
        }
    };
    tokio::pin!(stop);
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return Ok(()),
        () = stop => {}
    }
    drain.send_replace(true);
    serving.await;
    Ok(())
}

/// A socket for each node: of what the process may raise by itself, all. What it starts with is a thousand
/// under most service managers.
fn allow_many_sockets() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, limit = ?limit.current, "cannot raise the number of open files");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Transport {
    Plain,
    Files(tls::Files),
    Authority,
}

fn transport(options: &Options, address: SocketAddr, pods_join: bool) -> Transport {
    let files =
        options.tls_ca.clone().zip(options.tls_certificate.clone()).zip(options.tls_key.clone());
    match (options.tls, files) {
        (Some(Tls::Off), _) => Transport::Plain,
        (_, Some(((ca, certificate), key))) => {
            Transport::Files(tls::Files { ca, certificate, key })
        }
        (Some(Tls::On), None) => Transport::Authority,
        (None, None) if address.ip().is_loopback() && !pods_join => Transport::Plain,
        (None, None) => Transport::Authority,
    }
}

/// Does what the command says.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let text = match command {
        Command::Token(TokenCommand::Create(args)) => token(&args)?,
        Command::Certificate(CertificateCommand::Create(args)) => certificate(&args)?,
        Command::Dump(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("cannot start the runtime")?.block_on(dump(&args))?
        }
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to the standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn authority(state_dir: &Path) -> anyhow::Result<Authority> {
    let folder = ca_folder(state_dir);
    Authority::open(&folder).with_context(|| format!("cannot use the CA in {}", folder.display()))
}

/// Lets whoever owns the state folder have all that is about the CA: the control plane runs as somebody else than
/// the administrator who makes a token.
fn hand_over(state_dir: &Path) -> anyhow::Result<()> {
    let about = || format!("cannot give {} to the control plane's user", state_dir.display());
    let owner = std::fs::metadata(state_dir).with_context(about)?;
    let mut left = vec![ca_folder(state_dir)];
    while let Some(path) = left.pop() {
        let found = std::fs::symlink_metadata(&path).with_context(about)?;
        if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
            lchown(&path, Some(owner.uid()), Some(owner.gid())).with_context(about)?;
        }
        if found.is_dir() {
            for entry in std::fs::read_dir(&path).with_context(about)? {
                left.push(entry.with_context(about)?.path());
            }
        }
    }
    Ok(())
}

fn token(args: &TokenCreate) -> anyhow::Result<String> {
    let authority = authority(&args.state_dir)?;
    let folder = ca_folder(&args.state_dir);
    let token = Authority::token(&folder, args.node.as_deref(), args.ttl, SystemTime::now())?;
    hand_over(&args.state_dir)?;
    Ok(format!("--join-token {token} --join-ca-pin {}\n", authority.pin()))
}

fn certificate(args: &CertificateCreate) -> anyhow::Result<String> {
    let authority = authority(&args.state_dir)?;
    // It may have been made just now.
    hand_over(&args.state_dir)?;
    let (certificate, key) = authority.certificate_for(&args.role)?;
    let write = |name: &str, contents: &str, secret: bool| {
        let path = args.out.join(name);
        let written = match secret {
            true => disk::replace_secret(&path, contents.as_bytes()),
            false => disk::replace(&path, contents.as_bytes()),
        };
        written.with_context(|| format!("cannot write {}", path.display()))
    };
    write("ca.crt", authority.certificate(), false)?;
    write("tls.key", &key, true)?;
    write("tls.crt", &certificate, false)?;
    Ok(String::new())
}

async fn dump(args: &Dump) -> anyhow::Result<String> {
    let files = args.feed_ca.clone().zip(args.feed_certificate.clone()).zip(args.feed_key.clone());
    match files {
        Some(((ca, certificate), key)) => {
            let connector = tls::Client::files(tls::Files { ca, certificate, key });
            dump_over(&connector, args).await
        }
        None if args.feed.starts_with("https:") => {
            bail!("over TLS this needs --feed-ca, --feed-certificate and --feed-key of an operator")
        }
        None => dump_over(&client::Plain, args).await,
    }
}

async fn dump_over(connector: &impl Connector, args: &Dump) -> anyhow::Result<String> {
    let path = match args.what {
        What::Model => "/v1/model",
        What::Nodes => "/v1/nodes",
    };
    let asked = ask(connector, &args.feed, Method::GET, path, Bytes::new()).await;
    let (status, body) = asked.with_context(|| format!("cannot ask {}", args.feed))?;
    let text = String::from_utf8_lossy(&body);
    if !status.is_success() {
        bail!("{} answers {status}: {}", args.feed, text.trim());
    }
    let value: serde_json::Value = serde_json::from_str(&text).context("the answer is no JSON")?;
    Ok(serde_json::to_string_pretty(&value).context("cannot encode the answer")? + "\n")
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of s, m, h or d, as in 30m");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is not between a second and a year")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use clap::{CommandFactory as _, FromArgMatches as _, Parser};
    use fairway_feed::tls::JoinToken;
    use fairway_model::{Model, Node, Object, ObjectName, Secret, Sensitive};

    use super::*;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Options {
        let words = ["serve"].iter().chain(words);
        let matches = Serve::command().get_matches_from(words);
        Serve::from_arg_matches(&matches).unwrap().options
    }

    #[test]
    fn tls_is_left_out_on_loopback_or_on_demand_alone() {
        let (here, there) = ("127.0.0.1:9443".parse().unwrap(), "0.0.0.0:9443".parse().unwrap());
        let files = ["--tls-ca=a", "--tls-certificate=b", "--tls-key=c"];
        let given = Transport::Files(tls::Files {
            ca: "a".into(),
            certificate: "b".into(),
            key: "c".into(),
        });
        for (words, address, wanted) in [
            (&[][..], here, Transport::Plain),
            (&[], there, Transport::Authority),
            (&["--tls=off"], there, Transport::Plain),
            (&["--tls=on"], here, Transport::Authority),
            (&files, there, given),
        ] {
            let found = transport(&options(words), address, false);
            assert_eq!(found, wanted, "{words:?} {address}");
        }
        assert_eq!(transport(&options(&[]), here, true), Transport::Authority);
    }

    #[test]
    fn times() {
        for (text, seconds) in [("1s", 1), ("30m", 1800), ("1h", 3600), ("365d", 31_536_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "s", "1", "0s", "366d", "-1s", "1w", "1\u{e9}", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    /// An administrator who is root makes a token for a control plane that is not.
    #[test]
    fn a_token_belongs_to_whom_the_state_belongs() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this needs root");
            eprintln!("not tested without root: who owns a token");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().to_owned();
        lchown(&state_dir, Some(65534), Some(65533)).unwrap();
        let (node, ttl) = (None, Duration::from_secs(60));
        token(&TokenCreate { node, ttl, state_dir: state_dir.clone() }).unwrap();
        let tokens = std::fs::read_dir(state_dir.join("ca/tokens")).unwrap();
        let files = ["ca", "ca/ca.key", "ca/ca.crt", "ca/tokens"].map(|name| state_dir.join(name));
        for file in tokens.map(|token| token.unwrap().path()).chain(files) {
            let found = std::fs::metadata(&file).unwrap();
            assert_eq!((found.uid(), found.gid()), (65534, 65533), "{}", file.display());
        }
    }

    /// What an administrator does: a token, an operator's certificate, a look.
    #[tokio::test]
    async fn a_node_joins_and_an_operator_looks() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let printed = token(&TokenCreate {
            node: Some("n1".into()),
            ttl: Duration::from_secs(60),
            state_dir: state_dir.clone(),
        });
        let printed = printed.unwrap();
        let words: Vec<_> = printed.split_whitespace().collect();
        let ["--join-token", token, "--join-ca-pin", pin] = words[..] else { panic!("{printed}") };
        let token = JoinToken { token: token.to_owned(), pin: pin.parse().unwrap() };

        let out = folder.path().join("ops");
        let role = Role::Operator("ops".into());
        certificate(&CertificateCreate { role, out: out.clone(), state_dir: state_dir.clone() })
            .unwrap();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let feed = format!("https://{}", listener.local_addr().unwrap());
        let node = Object::Node(Node { name: "n1".into(), ..Node::default() });
        let secret = Object::Secret(Secret {
            name: ObjectName::new("shop", "web-tls"),
            key: Some(Sensitive::new("5ec2e7")),
            ..Secret::default()
        });
        let model: Model = [node, secret].into_iter().collect();
        let models = watch::Sender::new(Some(Arc::new(model)));
        let amended = crate::facts::amend(models.subscribe(), state_dir.join("facts.json"));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn({
            let options = options(&["--tls=on", "--drain=0"]);
            let state_dir = state_dir.clone();
            async move {
                let stopped = async { drop(stopped.await) };
                serve(listener, amended, (&state_dir, None), &options, stopped).await
            }
        });

        let joined = tls::Client::joining(&folder.path().join("n1"), "n1", Some(token));
        let facts = "/v1/nodes/n1/facts";
        let (status, _) =
            ask(&joined, &feed, Method::PUT, facts, Bytes::from_static(b"{}")).await.unwrap();
        assert_eq!(status, 200);

        let look = Dump {
            feed,
            feed_ca: Some(out.join("ca.crt")),
            feed_certificate: Some(out.join("tls.crt")),
            feed_key: Some(out.join("tls.key")),
            what: What::Model,
        };
        let dumped = dump(&look).await.unwrap();
        for shown in [r#""name": "n1""#, r#""name": "web-tls""#, r#""key": "set""#] {
            assert!(dumped.contains(shown), "{dumped}");
        }
        assert!(!dumped.contains("5ec2e7"), "{dumped}");
        let bare = Dump { feed_ca: None, feed_certificate: None, feed_key: None, ..look };
        assert!(dump(&bare).await.unwrap_err().to_string().contains("needs --feed-ca"));
        drop(stop);
        served.await.unwrap().unwrap();
    }
}
