//! The feed from the control plane to the nodes.
//!
//! The server holds one [`Model`] and the last few steps that led to it; a client holds a copy and
//! the last good state on disk. Everything goes over one HTTP/2 connection a node, as JSON, a
//! document a line:
//!
//! ```text
//! POST /v1/feed?version=2&node=n1       {"reset":{"epoch":"5f0c..."}}     a complete model follows
//!                                       {"put":{"kind":"service",...}}
//!                                       {"sync":{"revision":7,...}}       now, and only now, take it
//!                                       {"put":...} {"edit":...} {"delete":...}   what changed since
//!                                       {"sync":{"revision":8,...}}
//!                                       {"ping":{}}                       still here, nothing to say
//! ```
//!
//! and in the other direction what is in force. The protocol is documented in `docs/feed.md`.
//!
//! Invariants: revisions only grow within an epoch (one life of a server); a client takes whole
//! batches or nothing; what is wrong in any way costs the connection, never the state; an empty
//! model is never inferred from silence; a reader that is slow costs the server no memory, it gets
//! a fresh snapshot when its place in the history is gone; of pods a node is sent its own alone, and of secrets none; what
//! goes to several is encoded and compressed once; what a certificate does not entitle its holder to is refused, whoever it
//! says it is.

use std::sync::Arc;

use fairway_model::Model;
use tokio::sync::watch;

pub mod authority;
pub mod client;
pub mod disk;
pub mod identity;
pub mod server;
pub mod tickets;
pub mod tls;

mod derive;
mod digest;
mod history;
mod lines;
mod metrics;
mod redact;
mod replica;
mod routes;
mod scope;
mod sealed;
mod snapshot;
mod wire;

pub use scope::names_secrets;
pub use wire::{Facts, MAX_LINE, NodeFacts};

/// The current model, `None` until the first complete one: whoever holds the receiver may act on
/// any model it yields.
pub type ModelReceiver = watch::Receiver<Option<Arc<Model>>>;
