//! Replays the corpus of the fuzz target, and inputs made from it, without a fuzzer.

#[path = "../fuzz/invariants.rs"]
mod invariants;

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

/// Inputs made from the corpus: a second or so of them.
const MUTATIONS: u32 = 4000;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/query");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 60, "a corpus, and not {files:?}");
    files.into_iter().map(|file| fs::read(file).expect("an input")).collect()
}

#[test]
fn every_query_of_the_corpus_is_answered_forwarded_or_dropped() {
    let zone = invariants::zone();
    corpus().iter().for_each(|input| invariants::query(&zone, input));
}

#[test]
fn so_are_all_beginnings_of_them() {
    let zone = invariants::zone();
    for input in corpus().iter().filter(|input| input.len() < 300) {
        (0..input.len()).for_each(|length| invariants::query(&zone, &input[..length]));
    }
}

#[test]
fn so_are_mutations_of_them() {
    let zone = std::panic::AssertUnwindSafe(invariants::zone());
    let corpus = corpus();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..MUTATIONS {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &corpus, &mut random);
        }
        if let Err(panic) = std::panic::catch_unwind(|| invariants::query(&zone, &input)) {
            eprintln!("round {round}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    }
}

proptest! {
    #[test]
    fn so_are_any_labels_in_the_zone(
        labels in vec(prop_oneof![
            4 => prop::sample::select(vec!["web", "pets", "db", "inside", "round", "pet-0", "10-244-1-3", "_http",
                "_tcp", "svc", "pod", "shop", "dns", "ns", "dns-version", "cluster", "local", "example", "com"])
                .prop_map(|label| label.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 1..64),
        ], 0..9),
        in_zone in any::<bool>(),
        own in any::<bool>(),
        kind in prop::sample::select(vec![1_u16, 2, 5, 6, 12, 16, 28, 33, 64, 255]),
        class in prop::sample::select(vec![1_u16, 1, 1, 1, 3, 255]),
    ) {
        let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in &labels {
            message.push(u8::try_from(label.len()).expect("below 64"));
            message.extend(label);
        }
        if own {
            message.extend(b"\x04shop\x03svc");
        }
        if in_zone {
            message.extend(b"\x07cluster\x05local");
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(class.to_be_bytes());
        invariants::query(&invariants::zone(), &message);
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(0);
    }
    let (from, to) = (random.below(input.len()), random.below(input.len() + 1));
    let range = from.min(to)..from.max(to);
    let words: [&[u8]; 8] = [
        b"\0",
        b"\xc0\x0c",
        b"\x3f",
        b"\x03svc",
        b"\x07cluster\x05local\0",
        b"\0\x29",
        b"*",
        b"\0\xff",
    ];
    match random.below(7) {
        0 => input[from] = random.next().to_le_bytes()[0],
        1 => drop(input.drain(range)),
        2 => {
            let copy = input[range].to_vec();
            input.splice(to..to, copy);
        }
        3 => {
            let other = &corpus[random.below(corpus.len())];
            let piece = &other[random.below(other.len().max(1)).min(other.len())..];
            input.splice(range, piece.iter().copied());
        }
        4 => input.truncate(from),
        _ => {
            let word = words[random.below(words.len())];
            input.splice(to..to, word.iter().copied());
        }
    }
}

/// xorshift64: the same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).expect("a length")).expect("a length")
    }
}
