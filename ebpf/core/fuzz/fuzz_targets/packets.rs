//! Any packets at any of the places where packets enter a node.
#![no_main]

#[allow(dead_code)] // shared with the tests of the core
#[path = "../../tests/packets/frame.rs"]
mod frame;
#[path = "../invariants.rs"]
mod invariants;
#[allow(dead_code)] // as above
#[path = "../../tests/packets/node.rs"]
mod node;
#[allow(dead_code)] // the tests write stories, too
#[path = "../story.rs"]
mod story;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::check(&story::read(input)));
