//! Service DNS: names of the cluster answered from the model, and all others by those who know them.
//!
//! ```text
//! Model ─► Zone::next ─► Zone (a snapshot; what a change does not touch is shared)
//!                          │
//! bytes of a query ─► Zone::answer ─► Verdict: bytes of an answer │ whom else to ask │ nothing
//! ```
//!
//! Invariants: an answer is a function of the zone, the query, who asks, and a number at random; addresses of the
//! zone is answered without an allocation; no bytes make it panic, or take longer than their length.

pub mod answer;
pub mod forward;
mod metrics;
pub mod name;
pub mod server;
pub mod zone;

pub use answer::{Buffer, Client, Forward, Reason, Reply, Section, Transport, Verdict};
pub use name::Name;
pub use zone::{ClusterAddresses, Options, PodNames, Zone};
