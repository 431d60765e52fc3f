//! What is tried in labs: nodes, pods and clients in network namespaces, with every component as its own process.
//!
//! A lab waits more than it computes, so all of these are one program, whose tests run beside each other. What
//! measures time has programs of its own.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod admission;
mod backends;
mod bad_input;
mod bootstrap;
mod demo;
mod dns;
mod dual_stack;
mod errors;
mod flannel;
mod forwarding;
mod host_ports;
mod ingress;
mod inspect;
mod lifetimes;
mod load_balancer;
mod masquerade;
mod outages;
mod policy;
mod sctp;
mod services;
mod udp_sockets;
mod wireguard;
mod workloads;
mod xdp;
