//! controlplane.
fn main() {}
