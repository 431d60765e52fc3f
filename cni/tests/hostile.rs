//! Replays the corpus of the fuzz target `call`, and inputs made from it, without a fuzzer.

#[path = "../fuzz/invariants.rs"]
mod invariants;

use std::fs;
use std::path::Path;

/// Inputs made from the corpus: a second or two of them.
const MUTATIONS: u32 = 4000;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/call");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 20, "a corpus, and not {files:?}");
    files.into_iter().map(|file| fs::read(file).expect("an input")).collect()
}

#[test]
fn every_input_of_the_corpus_is_answered() {
    for input in corpus() {
        invariants::check(&input);
    }
}

#[test]
fn deep_and_long_inputs_are_answered() {
    for opening in ["[", r#"{"a":"#] {
        invariants::check(opening.repeat(100_000).as_bytes());
        let config = r#"{"cniVersion": "1.1.0", "name": "n", "prevResult": "#;
        invariants::check(format!("{config}{}", opening.repeat(100_000)).as_bytes());
    }
    let many = vec![r#"{"address": "10.1.0.2/32"}"#; 20_000].join(",");
    let config =
        format!(r#"{{"cniVersion": "1.1.0", "name": "n", "prevResult": {{"ips": [{many}]}}}}"#);
    invariants::check(config.as_bytes());
}

#[test]
fn mutations_of_the_corpus_are_answered() {
    let corpus = corpus();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..MUTATIONS {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &corpus, &mut random);
        }
        let checked = std::panic::catch_unwind(|| invariants::check(&input));
        if let Err(panic) = checked {
            eprintln!("round {round}: {}", String::from_utf8_lossy(&input));
            std::panic::resume_unwind(panic);
        }
    }
}

/// Values that mean something where they turn up.
const WORDS: [&str; 16] = [
    "null",
    "{}",
    "[]",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "\"\"",
    "\"::/0\"",
    "\"10.1.0.0/33\"",
    "\"255.255.255.255/0\"",
    "\"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\"",
    "\"\\u0000\"",
    "\"0.4.0\"",
    "true",
    "\"fd00:1::5/128\"",
];

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(b'{');
    }
    let (from, to) = (random.below(input.len()), random.below(input.len() + 1));
    let range = from.min(to)..from.max(to);
    match random.below(6) {
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
        // A word in place of a value, up to what ends it.
        _ => {
            let word = WORDS[random.below(WORDS.len())];
            let begin =
                input[..from].iter().rposition(|byte| *byte == b':').map_or(from, |at| at + 1);
            let ends = |byte: &u8| b",]}".contains(byte);
            let end = input[begin..].iter().position(ends).map_or(input.len(), |at| begin + at);
            input.splice(begin..end, word.bytes());
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
