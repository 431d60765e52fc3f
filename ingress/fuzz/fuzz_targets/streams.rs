//! Any bytes as a connection over HTTP/2, behind its preface.
#![no_main]

#[path = "../invariants.rs"]
#[expect(dead_code, reason = "each target has its own")]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::streams(input));
