//! The control plane's end of the feed, in this process: a model goes in at a moment that is known.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use fairway_feed::server;
use fairway_model::Model;
use fairway_netlink::NetNs;
use tokio::sync::{oneshot, watch};

use super::bed::Bed;
use crate::topology::NodePlan;

/// Serves a model on a node's loopback address until dropped.
pub(super) struct ControlPlane {
    /// Where it is.
    pub address: SocketAddr,
    models: watch::Sender<Option<Arc<Model>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Serves this model.
    pub(super) fn start(bed: &Bed, node: &NodePlan, model: Model) -> Result<Self> {
        let netns = NetNs::open(bed.host(node).netns)?;
        let listener = netns
            .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?
            .context("listen on the node's loopback address")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (models, receiver) = watch::channel(Some(Arc::new(model)));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the control plane's runtime")?;
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener);
            let Ok(listener) = listener else { return };
            let serving =
                server::serve(listener, server::Plain, receiver, server::Options::default());
            tokio::select! {
                () = serving => {}
                _ = stopped => {}
            }
        };
        let thread = thread::Builder::new()
            .name("control plane".to_owned())
            .spawn(move || runtime.block_on(serve))
            .context("start the control plane's thread")?;
        Ok(Self { address, models, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on this is the model.
    pub(super) fn publish(&self, model: Model) {
        self.models.send_replace(Some(Arc::new(model)));
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell; if it panicked, the agent's silence has told already.
            let _ = thread.join();
        }
    }
}
