//! cni.
fn main() {}
