//! Replays the corpora of the fuzz targets, and inputs made from them, without a fuzzer.

#[path = "../fuzz/invariants.rs"]
mod invariants;

use std::fs;
use std::path::Path;

/// Inputs made from each corpus: a second or so of them.
const MUTATIONS: u32 = 3000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 15, "a corpus, and not {files:?}");
    files.into_iter().map(|file| fs::read(file).expect("an input")).collect()
}

/// The corpus as it is, and with changes.
fn replay(name: &str, words: &[&[u8]], check: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    let corpus = corpus(name);
    let checked = |input: &[u8]| {
        if let Err(panic) = std::panic::catch_unwind(|| check(input)) {
            eprintln!("{name}: \"{}\"", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|input| checked(input));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..MUTATIONS {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(3) {
            mutate(&mut input, &corpus, words, &mut random);
        }
        checked(&input);
    }
}

#[test]
fn what_passes_is_what_the_parser_sees() {
    let words: [&[u8]; 12] = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"3\r\nabc\r\n",
        b";a=b",
        b"HTTP/1.0\r\n",
    ];
    replay("requests", &words, invariants::requests);
}

#[test]
fn streams_are_the_same_in_whatever_pieces_they_come() {
    let words: [&[u8]; 10] = [
        b"\0\0\0\x04\x01\0\0\0\0",
        b"\0\0\x03\x01\x05\0\0\0\x09\x82\x86\x84",
        b"\0\0\x03\x01\x04\0\0\0\x0b\x83\x86\x84",
        b"\0\0\x01\0\x01\0\0\0\x0bx",
        b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
        b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01",
        b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\x05",
        b"\0\0\0\x09\x04\0\0\0\x01",
        b"\x40\x01a\x01b",
        b"\xbe",
    ];
    replay("streams", &words, invariants::streams);
}

#[test]
fn a_header_of_the_proxy_protocol_names_one_client() {
    let words: [&[u8]; 6] = [b"\r\n", b" ", b"TCP6", b"::1", b"UNKNOWN", b"\x21\x21\0\x24"];
    replay("proxy_header", &words, invariants::proxy_header);
}

#[test]
fn backends_get_the_path_that_was_decided_about() {
    let words: [&[u8]; 12] = [
        b"/", b"//", b"/.", b"/..", b"/../", b"%2f", b"%2e", b"%5c", b";", b"?", b"/admin", b"%00",
    ];
    let table = std::panic::AssertUnwindSafe(invariants::table());
    replay("path", &words, move |input| invariants::path(&table, input));
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    if input.is_empty() {
        input.push(b'/');
    }
    let (from, to) = (random.below(input.len()), random.below(input.len() + 1));
    let range = from.min(to)..from.max(to);
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
