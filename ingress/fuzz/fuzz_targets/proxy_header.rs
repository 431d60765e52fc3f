//! Any bytes as the beginning of a connection that somebody passes on.
#![no_main]

#[path = "../invariants.rs"]
#[expect(dead_code, reason = "each target has its own")]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::proxy_header(input));
