//! Backends: who there is, and connections to them.
//!
//! What is known of an endpoint is shared by all workers and all routes; connections are a worker's own.

pub(crate) mod balance;
pub(crate) mod pool;
pub(crate) mod tls;
pub(crate) mod wire;
