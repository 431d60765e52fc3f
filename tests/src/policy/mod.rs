//! What policies mean, said a second time: a plain model of the specification over manifests, and its classic cases.
//!
//! Nothing here knows the types and tables of what it is held against.

pub mod cases;
pub mod oracle;
