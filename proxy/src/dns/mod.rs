//! The cluster's DNS server, as far as this node is concerned.

mod options;

pub use options::{Options, Switch};
