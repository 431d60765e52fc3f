//! The gateway: what Ingresses say becomes a table of routes, and requests go where it says.

pub mod route;
