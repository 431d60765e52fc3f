//! What of the control plane needs a Kubernetes client, apart from the library that agents embed.
//!
//! ```text
//! API server ─► follow (a task a kind: list, watch, list again) ─► source ─► model
//!      ▲                                                             │ nodes
//!      ├──────────── status (what the leader writes on Nodes) ◄──────┤
//!      ├──────────── conditions (what objects contradict) ◄──────────┤
//!      └──────────── events (what is wrong with Ingresses) ◄─────────┘
//! ```
//!
//! Beside it, the cluster keeps the feed's CA (`ca`) and says which nodes agents are on (`vouch`).
//!
//! Objects are read one by one into the plain types of `fairway_controlplane`, whole ones are never kept.
//! Invariants: nothing is published before every kind has been listed once; a list takes effect as a whole or
//! not at all; silence, errors and half answers change nothing; what has to be written is written by one
//! replica, under the version that it has read, and only where it differs.

pub mod ca;
pub mod conditions;
pub mod connect;
pub mod events;
pub mod source;
pub mod status;
pub mod vouch;

mod follow;
mod lease;
mod ranges;
mod resource;
mod rest;
