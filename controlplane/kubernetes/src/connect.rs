//! Where the API server is and how to be let in.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Where a pod finds what lets it in.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A name that every API server's certificate is for.
const API_SERVER: &str = "kubernetes.default.svc";

/// How to get to the API server.
#[derive(Clone, Debug, Default)]
pub struct Connect {
    /// A file as kubectl reads it; a pod's own service account if there is none.
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts; the current one if there is none.
    pub context: Option<String>,
    /// The server, instead of the one that would be taken: a cluster's own address for it is a Service's,
    /// which leads nowhere before there is a network.
    pub server: Option<String>,
}

impl Connect {
    /// A client. It is not connected yet, and need not succeed at once. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// What was given, or what is there, cannot be used.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut config = self.config().await?;
        if let Some(server) = &self.server {
            config.cluster_url =
                server.parse().with_context(|| format!("{server:?} is no URL of an API server"))?;
        }
        // Who asks knows better when to ask again.
        config.default_retry = false;
        Client::try_from(config).context("cannot make a client of the API server")
    }

    async fn config(&self) -> anyhow::Result<Config> {
        if self.kubeconfig.is_some() || self.context.is_some() {
            let options =
                KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
            return match &self.kubeconfig {
                Some(file) => {
                    let about = || format!("kubeconfig {}: cannot be used", file.display());
                    let read = Kubeconfig::read_from(file).with_context(about)?;
                    Config::from_custom_kubeconfig(read, &options).await.with_context(about)
                }
                None => {
                    Config::from_kubeconfig(&options).await.context("kubeconfig: cannot be used")
                }
            };
        }
        match &self.server {
            Some(_) if Path::new(SERVICE_ACCOUNT).is_dir() => {
                let mut config = Config::incluster_dns().context("in-cluster configuration")?;
                config.tls_server_name = Some(API_SERVER.to_owned());
                Ok(config)
            }
            // A proxy that lets in whoever reaches it.
            Some(server) => {
                let url = server.parse();
                Ok(Config::new(
                    url.with_context(|| format!("{server:?} is no URL of an API server"))?,
                ))
            }
            None => Config::incluster().context(
                "this is no pod of a cluster with a service account; say where the API server is: \
                 --kubeconfig PATH or --api-server URL",
            ),
        }
    }
}
