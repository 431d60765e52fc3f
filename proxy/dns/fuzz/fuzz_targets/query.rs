//! Any bytes as a query.
#![no_main]

use std::sync::LazyLock;

use fairway_dns::Zone;

#[path = "../invariants.rs"]
mod invariants;

static ZONE: LazyLock<Zone> = LazyLock::new(invariants::zone);

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::query(&ZONE, input));
