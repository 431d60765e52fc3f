//! Replays the corpus of the fuzz target `packets`, and stories made from it, without a fuzzer.

#[path = "../../fuzz/invariants.rs"]
mod invariants;
#[path = "../../fuzz/replay.rs"]
mod replay;
mod seeds;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use crate::story::{Arrival, PARTIAL, PLACES, read};
use replay::{Random, corpus, mutated};

/// Stories made from the corpus: a few seconds of them.
const MUTATIONS: u32 = 2500;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/packets")
}

/// `UPDATE_CORPUS=1` writes them.
#[test]
fn every_seed_is_in_the_corpus() {
    for (name, story) in seeds::all() {
        let (file, input) = (folder().join(&name), write(&story));
        assert_eq!(read(&input), story, "{name} is read as it was written");
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            fs::write(&file, &input).expect("a corpus to write");
        }
        let found = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(found == input, "{name} is another seed now: run this test with UPDATE_CORPUS=1");
    }
}

#[test]
fn every_story_of_the_corpus_does_no_harm() {
    corpus(&folder()).iter().for_each(|(name, story)| check(name, story));
}

#[test]
fn mutations_of_the_corpus_do_no_harm() {
    let corpus = corpus(&folder());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..MUTATIONS {
        check(&format!("round {round}"), &mutated(&corpus, &mut random));
    }
}

/// The input that [`read`] makes this of.
fn write(story: &[Arrival]) -> Vec<u8> {
    let mut input = Vec::new();
    for Arrival { place, partial, bytes } in story {
        let place = (0..).zip(PLACES).find(|(_, known)| known == place).map_or(0, |(at, _)| at);
        input.push(place | if *partial { PARTIAL } else { 0 });
        input
            .extend(u16::try_from(bytes.len()).expect("a frame of less than 64 KiB").to_be_bytes());
        input.extend(bytes);
    }
    input
}

fn check(name: &str, story: &[Arrival]) {
    if let Err(panic) = catch_unwind(|| invariants::check(story)) {
        // As a file of the corpus: through `xxd -r -p`.
        let input: String = write(story).iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{name}: {input}");
        std::panic::resume_unwind(panic);
    }
}
