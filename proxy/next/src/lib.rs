//! The eBPF programs of another version: those of the feature `next` of `fairway-abi`, whose flow keys and
//! records, and whose records of sockets, are wider by one field each. Tests go up to it and down again.

/// The object, at the alignment its parser wants.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FAIRWAY_EBPF_OBJECT"));
