//! The node agent.
//!
//! It follows the desired state ([`fairway_model`]), compiles this node's part of it
//! ([`fairway_compile`]) and keeps the kernel at it: tables, program attachments, routes and the
//! overlay device. The CNI plugin registers pods with it over a unix socket.
//!
//! ```text
//! feed or manifests ──► agent ──► reconciler (one thread) ──► services, routes, pods ─► tables
//! CNI plugin ─► socket ─────────►      │                  └─► attachments ─► programs and links
//! ticks ────────────────────────►      └─► status ─► http
//! ```
//!
//! Beside the agent, [`inspect`] shows what is in the kernel, whether or not an agent runs.
//!
//! Invariants: only the reconciler's thread changes the kernel, apart from flows that a person ends by
//! hand; nothing is programmed before a first complete model; additions come before the removals they
//! replace; what is in the kernel stays in force when the agent ends, however it ends.

pub mod agent;
pub mod check;
pub mod cleanup;
pub mod dataplane;
pub mod dns;
pub mod feed_security;
pub mod flannel;
pub mod inspect;
pub mod install;
pub mod kube_proxy;
pub mod list;
mod loads;
pub mod options;
pub mod selftest;
pub mod uninstall;

mod about;
mod admission;
mod adoption;
mod announce;
mod attachments;
mod clock;
mod cni_conf;
mod flows;
mod health_checks;
mod heap;
mod http;
mod masquerade;
mod names;
mod node;
mod pacing;
mod pods;
mod policy;
mod probe;
mod reconciler;
mod routes;
#[cfg(test)]
#[path = "../tests/support/sandbox.rs"]
mod sandbox;
mod services;
mod socket;
mod sockets;
mod status;
mod traces;
mod wireguard;
