//! Every dataplane decision, without I/O or clock.
