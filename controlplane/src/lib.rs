//! Kubernetes objects to the model, and the model to the nodes.
//!
//! ```text
//! manifests (files ─► objects) ─┐                              ┌─► fairway_feed::server
//!                               ├─► allocate ─► convert ─► model ┤
//! an API server (objects) ──────┘   (remembered)  (pure)        └─► embedded in a node's agent
//! ```
//!
//! [`manifests::start`] is all that an embedding program calls. Invariants: nothing is published
//! before a first complete reading; what is wrong never changes what was right; an address or node
//! port that was published is remembered on disk before; a policy that cannot be read denies; nothing here talks
//! to a kernel.

pub mod explain;
pub mod facts;
pub mod kubernetes;
pub mod manifests;

mod allocate;
#[cfg(test)]
mod churn;
mod convert;
mod endpoints;
mod flannel;
mod pipeline;
mod policy;
mod problem;
mod rules;
mod service;
mod weights;
