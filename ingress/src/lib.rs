//! The gateway: what Ingresses say becomes a table of routes, and requests go where it says.
//!
//! ```text
//! feed or manifests ─► Model ─► Gateway::apply ─► snapshot: routes, certificates, endpoints
//!                                                     │ swapped in whole; nothing is reloaded
//! clients ─► listener ─► TLS ─► HTTP/1, HTTP/2 ─► proxy: route, endpoint, answer ─► backends
//!            each worker a thread with listeners and connections of its own
//! ```
//!
//! Invariants: a request sees one snapshot; a connection belongs to none; what decides about a request
//! ([`route`]) does no I/O; what is not said in one way only is refused before it is parsed; nothing of a
//! request is sent again once an answer has begun; two requests share a connection to a backend only if all
//! that was checked when it was made is the same for both.

pub mod admin;
pub mod gateway;
pub mod hostile;
pub mod inspect;
pub mod message;
pub mod options;
pub mod record;
pub mod route;
pub mod tls;

mod answer;
mod body;
mod buffer;
mod compress;
mod dashboards;
mod fetch;
mod few;
mod handover;
mod headers;
mod listeners;
mod metrics;
mod names;
mod ports;
mod proxy;
mod series;
mod server;
mod shared;
mod state;
mod tunnel;
mod upstream;
mod verdicts;
mod websocket;
mod worker;
