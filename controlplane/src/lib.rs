//! Kubernetes objects to the model, and the model to the nodes.
//!
//! ```text
//! manifests (files ─► objects) ─┐                              ┌─► fairway_feed::server
//!                               ├─► allocate ─► convert ─► model ┤
//! an API server (objects) ──────┘   (remembered)  (pure)        └─► embedded in a node's agent
//! ```
//!
//! [`manifests::start`] is all that an embedding program calls; who has a Kubernetes client brings its
//! objects to [`live::Live`]. Invariants: nothing is published
//! before a first complete reading; what is wrong never changes what was right; an address or node
//! port that was published is remembered on disk before; a policy that cannot be read denies; nothing here talks
//! to a kernel.

pub mod explain;
pub mod facts;
pub mod flannel;
pub mod ingress;
pub mod kubernetes;
pub mod live;
pub mod load_balancer;
pub mod manifests;
pub mod notices;
pub mod problem;
pub mod publish;

mod allocate;
mod changes;
#[cfg(test)]
mod churn;
mod contradictions;
mod convert;
mod decode;
mod endpoints;
#[cfg(test)]
mod one_by_one;
mod pipeline;
mod policy;
mod rules;
mod service;
mod weights;
