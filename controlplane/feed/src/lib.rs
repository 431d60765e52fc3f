//! The feed from the control plane to the nodes.
//!
//! The server holds one [`Model`] and the last few steps that led to it; a client holds a copy and
//! the last good state on disk. Everything goes over one HTTP/2 connection a node, as JSON, a
//! document a line:
//!
//! ```text
//! GET /v1/feed?node=n1                  {"reset":{"epoch":"5f0c..."}}     a complete model follows
//!                                       {"put":{"kind":"service",...}}
//!                                       {"sync":{"revision":7,...}}       now, and only now, take it
//!                                       {"put":...} {"delete":...}        what changed since
//!                                       {"sync":{"revision":8,...}}
//!                                       {"ping":{}}                       still here, nothing to say
//! GET /v1/feed?node=n1&epoch=E&revision=R   {"resume":...} and what changed since R, or a reset
//! PUT /v1/nodes/n1/facts                what the node says of itself: its keys
//! POST /v1/ack                          what the node has put in force
//! POST /v1/join, /v1/renew              a certificate for a token; another before it expires
//! GET /v1/nodes                         the same, for all nodes
//! GET /v1/model                         the model as one document
//! GET /healthz, /readyz                 alive; a first model is there
//! ```
//!
//! Invariants: revisions only grow within an epoch (one life of a server); a client takes whole
//! batches or nothing; what is wrong in any way costs the connection, never the state; an empty
//! model is never inferred from silence; a reader that is slow costs the server no memory, it gets
//! a fresh snapshot when its place in the history is gone; of pods a client keeps its node's own; what
//! a certificate does not entitle its holder to is refused, whoever it says it is.

use std::sync::Arc;

use fairway_model::Model;
use tokio::sync::watch;

pub mod authority;
pub mod client;
pub mod disk;
pub mod identity;
pub mod server;
pub mod tls;

mod digest;
mod history;
mod replica;
mod routes;
mod snapshot;
mod wire;

pub use wire::{Facts, NodeFacts};

/// The current model, `None` until the first complete one: whoever holds the receiver may act on
/// any model it yields.
pub type ModelReceiver = watch::Receiver<Option<Arc<Model>>>;
