//! Map keys and values shared by the eBPF programs and user space.
