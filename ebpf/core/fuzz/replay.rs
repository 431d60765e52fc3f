//! The corpus of the fuzz target `packets`, and stories made from it, for those who have no fuzzer.

use std::fs;
use std::path::Path;

use crate::story::{Arrival, Place, read};

/// Every story in the corpus, by the name of its file.
pub(crate) fn corpus(folder: &Path) -> Vec<(String, Vec<Arrival>)> {
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 20, "a corpus, and not {files:?}");
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    files
        .into_iter()
        .map(|file| (name(&file).unwrap_or_default(), read(&fs::read(&file).expect("an input"))))
        .collect()
}

/// A story out of one in the corpus, with a few changes.
pub(crate) fn mutated(corpus: &[(String, Vec<Arrival>)], random: &mut Random) -> Vec<Arrival> {
    let mut story = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..=random.below(6) {
        let other = &corpus[random.below(corpus.len())].1;
        mutate(&mut story, other, random);
    }
    story
}

fn mutate(story: &mut Vec<Arrival>, other: &[Arrival], random: &mut Random) {
    let Some(last) = story.len().checked_sub(1) else { return };
    let at = random.below(last + 1);
    match random.below(9) {
        0 => story.swap(at, last),
        1 => story.insert(at, story[last].clone()),
        2 if !other.is_empty() => {
            story.insert(at, other[random.below(other.len())].clone());
        }
        3 => {
            let places =
                [Place::Pod, Place::Uplink, Place::Overlay, Place::Host, Place::HostTunnel];
            story[at].place = places[random.below(places.len())];
        }
        4 => story[at].partial = !story[at].partial,
        _ => mutate_bytes(&mut story[at].bytes, random),
    }
}

fn mutate_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    /// Of which many fields think something of their own.
    const WORDS: [u16; 10] = [0, 1, 5, 20, 40, 0x1fff, 0x2000, 0x7fff, 0x8000, 0xffff];
    const ETHERNET: usize = 14;
    if bytes.len() <= ETHERNET {
        return bytes.resize(ETHERNET + random.below(64), 0);
    }
    // Mostly in the headers.
    let end = if random.below(3) == 0 { bytes.len() } else { bytes.len().min(80) };
    let at = ETHERNET + random.below(end - ETHERNET);
    match random.below(5) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next().to_le_bytes()[0],
        2 => {
            let word = WORDS[random.below(WORDS.len())].to_be_bytes();
            bytes[at] = word[0];
            if let Some(next) = bytes.get_mut(at + 1) {
                *next = word[1];
            }
        }
        3 => bytes.truncate(at),
        _ => {
            let copy = bytes[at..].to_vec();
            bytes.splice(at..at, copy.into_iter().take(40));
        }
    }
}

/// xorshift64: the same stories in every run.
pub(crate) struct Random(pub(crate) u64);

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
