//! Any packets at any of the places where packets enter a node.
#![no_main]

#[expect(dead_code, reason = "shared with the tests of the core")]
#[path = "../../tests/packets/frame.rs"]
mod frame;
#[path = "../invariants.rs"]
mod invariants;
#[expect(dead_code, reason = "shared with the tests of the core")]
#[path = "../../tests/packets/node.rs"]
mod node;
#[path = "../story.rs"]
mod story;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::check(&story::read(input)));
