//! Backends: who there is, and connections to them.
//!
//! What is known of an endpoint is shared by all workers and all routes; connections are a worker's own.

use http::{Method, Uri};

use crate::message::Fields;

pub(crate) mod balance;
pub(crate) mod pool;
pub(crate) mod tls;
pub(crate) mod wire;

/// The head of a request as an endpoint gets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    /// Path and query.
    pub(crate) target: &'a str,
    pub(crate) fields: &'a Fields,
    /// Over HTTP/2: scheme, authority and target.
    pub(crate) uri: Option<&'a Uri>,
}
