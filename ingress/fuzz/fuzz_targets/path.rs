//! Any text as the target of a request.
#![no_main]

use std::sync::LazyLock;

use fairway_ingress::route::Table;

#[path = "../invariants.rs"]
#[expect(dead_code, reason = "each target has its own")]
mod invariants;

static TABLE: LazyLock<Table> = LazyLock::new(invariants::table);

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::path(&TABLE, input));
