//! The feed's CA as a cluster keeps it: certificate and key in a Secret, for all replicas, and the certificate
//! alone in a ConfigMap, for agents.
//!
//! Both objects are there before, and empty: who may create Secrets in a namespace may create ones that let him in as
//! somebody else, so the control plane may not. The first replica fills the Secret; whoever comes too late with its own
//! reads that one. What is in the ConfigMap is what is in the Secret, and looked after from time to time. A CA is never
//! replaced by itself: to have another one, empty the Secret and restart all replicas.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_feed::authority::Authority;
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::follow::jitter;
use crate::rest::{self, Error};

/// The Secret's name, and the ConfigMap's.
pub const NAME: &str = "fairway-ca";
/// Of both, what has the certificate...
const CERTIFICATE: &str = "ca.crt";
/// ...and of the Secret, what has the key.
const KEY: &str = "ca.key";

/// Where it is kept, and how long things may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of both.
    pub namespace: String,
    /// For an answer.
    pub answer: Duration,
    /// After a first error; it doubles.
    pub first_pause: Duration,
    /// The longest pause after an error.
    pub longest_pause: Duration,
    /// Between two looks at the ConfigMap.
    pub look: Duration,
}

impl Options {
    /// A look a minute.
    pub fn new(namespace: String) -> Self {
        Self {
            namespace,
            answer: Duration::from_secs(5),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(15),
            look: Duration::from_secs(60),
        }
    }

    fn path(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}/{NAME}", self.namespace)
    }

    /// That somebody has to make an object.
    fn missing(&self, kind: &str) -> Error {
        let namespace = &self.namespace;
        Error::Nonsense(format!("{kind} {namespace}/{NAME} is not there: make it, without data"))
    }
}

/// The cluster's CA, both as PEM. While this is there, the ConfigMap is looked after.
pub struct ClusterCa {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    _task: JoinSet<()>,
}

impl ClusterCa {
    /// Reads the cluster's CA, or makes it, however long that takes. Must be called within a Tokio runtime.
    pub async fn obtain(client: Client, options: Options) -> Self {
        let mut pause = options.first_pause;
        let (certificate, key) = loop {
            match obtain(&client, &options).await {
                Ok(pair) => break pair,
                Err(error) => {
                    tracing::warn!(%error, "the feed's CA is not there yet; trying again")
                }
            }
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(options.longest_pause);
        };
        let mut task = JoinSet::new();
        task.spawn(look_after(client, options, certificate.clone()));
        Self { certificate, key, _task: task }
    }
}

async fn obtain(client: &Client, options: &Options) -> Result<(String, String), Error> {
    let mut secret = match read(client, options).await? {
        Kept::Pair(pair) => return Ok(pair),
        Kept::Empty(secret) => secret,
        Kept::Nothing => return Err(options.missing("Secret")),
    };
    let made = Authority::generate().map_err(|error| Error::Nonsense(error.to_string()))?;
    // With its version: whoever comes too late changes nothing.
    secret["data"] = json!({CERTIFICATE: STANDARD.encode(&made.0), KEY: STANDARD.encode(&made.1)});
    let (uri, content) = (options.path("secrets"), ("application/json", &secret));
    match rest::write(client, Method::PUT, &uri, content, options.answer).await {
        Ok(_) => {
            tracing::info!(namespace = options.namespace, secret = NAME, "made the feed's CA");
            Ok(made)
        }
        // Another replica was faster.
        Err(error) if error.code() == Some(409) => match read(client, options).await? {
            Kept::Pair(pair) => Ok(pair),
            _ => Err(Error::Nonsense(format!("Secret {NAME} comes and goes"))),
        },
        Err(error) => Err(error),
    }
}

/// What the Secret has.
enum Kept {
    /// It is not there.
    Nothing,
    /// It is there, and nothing is in it yet.
    Empty(Value),
    /// Certificate and key.
    Pair((String, String)),
}

async fn read(client: &Client, options: &Options) -> Result<Kept, Error> {
    let Some(secret) = get(client, &options.path("secrets"), options.answer).await? else {
        return Ok(Kept::Nothing);
    };
    if secret["data"].as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(Kept::Empty(secret));
    }
    let field = |name: &str| {
        let text = secret["data"][name].as_str().and_then(|text| STANDARD.decode(text).ok());
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
        let wrong = || {
            let Options { namespace, .. } = options;
            format!("Secret {namespace}/{NAME} has no {name}: empty it for a new CA")
        };
        text.ok_or_else(|| Error::Nonsense(wrong()))
    };
    Ok(Kept::Pair((field(CERTIFICATE)?, field(KEY)?)))
}

async fn look_after(client: Client, options: Options, own: String) {
    let (mut pause, mut told) = (options.first_pause, false);
    loop {
        let waits = match publish(&client, &options, &own).await {
            Ok(is_own) => {
                if !is_own && !told {
                    let secret = format!("{}/{NAME}", options.namespace);
                    tracing::error!(
                        secret,
                        "the cluster has another CA for the feed than the one in use: restart this \
                         control plane"
                    );
                }
                told = !is_own;
                pause = options.first_pause;
                options.look
            }
            Err(error) => {
                // Somebody else wrote it, most likely the same.
                if error.code() != Some(409) {
                    tracing::warn!(%error, "agents may not find the feed's CA; trying again");
                }
                pause = (pause * 2).min(options.longest_pause);
                pause
            }
        };
        sleep(jitter(waits)).await;
    }
}

/// Has the ConfigMap say what the Secret says; answers whether that is the CA in use.
async fn publish(client: &Client, options: &Options, own: &str) -> Result<bool, Error> {
    match read(client, options).await? {
        Kept::Pair((certificate, _)) if certificate == own => {}
        Kept::Pair(_) => return Ok(false),
        // As soon as another replica starts, it is another one.
        Kept::Empty(_) => return Ok(false),
        Kept::Nothing => return Err(options.missing("Secret")),
    }
    let path = options.path("configmaps");
    let Some(mut map) = get(client, &path, options.answer).await? else {
        return Err(options.missing("ConfigMap"));
    };
    if map["data"][CERTIFICATE] != own {
        // As above.
        map["data"] = json!({CERTIFICATE: own});
        let content = ("application/json", &map);
        rest::write(client, Method::PUT, &path, content, options.answer).await?;
    }
    Ok(true)
}

/// The object, if it is there.
async fn get(client: &Client, path: &str, limit: Duration) -> Result<Option<Value>, Error> {
    match rest::get(client, path, limit).await {
        Ok(text) => rest::decode(&text).map(Some),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}
