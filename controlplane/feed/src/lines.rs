//! Lines as they go over the network: as they are, or compressed.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use zstd::stream::raw::{Decoder, InBuffer, Operation as _, OutBuffer};

/// How hard to try: what zstd does unless told otherwise.
const LEVEL: i32 = 3;
/// The largest window a stream may ask its reader to hold, as a power of two.
const WINDOW: u32 = 23;

/// Whole lines, compressed once, when the first reader asks for that. Each is a Zstandard frame of its
/// own (RFC 8878), and frames follow each other as the lines do.
#[derive(Debug)]
pub(crate) struct Lines {
    plain: Bytes,
    /// Kept compressed alone: `plain` is empty and made anew for whoever wants it.
    large: bool,
    zstd: OnceLock<Bytes>,
}

impl Lines {
    /// These lines.
    pub(crate) fn new(plain: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { plain: plain.into(), large: false, zstd: OnceLock::new() })
    }

    /// So many of them that they are better not kept as they are.
    pub(crate) fn large(plain: Vec<u8>) -> Arc<Self> {
        let zstd = OnceLock::from(compress(&plain));
        Arc::new(Self { plain: Bytes::new(), large: true, zstd })
    }

    /// In bytes, as they are kept.
    pub(crate) fn len(&self) -> usize {
        match self.large {
            true => self.zstd().len(),
            false => self.plain.len(),
        }
    }

    /// As they are.
    pub(crate) fn plain(&self) -> Bytes {
        if !self.large {
            return self.plain.clone();
        }
        let mut plain = Vec::new();
        let taken = Unpacker::new().and_then(|mut unpacker| {
            unpacker.take(&self.zstd(), |part| {
                plain.extend_from_slice(part);
                Ok::<_, io::Error>(())
            })
        });
        taken.expect("this was compressed here");
        plain.into()
    }

    /// Compressed.
    pub(crate) fn zstd(&self) -> Bytes {
        self.zstd.get_or_init(|| compress(&self.plain)).clone()
    }
}

fn compress(plain: &[u8]) -> Bytes {
    zstd::bulk::compress(plain, LEVEL).expect("memory to memory").into()
}

/// Undoes what [`Lines`] did, piece by piece as it comes from the network.
pub(crate) struct Unpacker {
    decoder: Decoder<'static>,
    buffer: Vec<u8>,
}

impl Unpacker {
    pub(crate) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(WINDOW))?;
        // No more than this at a time, whatever a small piece claims to hold.
        Ok(Self { decoder, buffer: vec![0; 128 << 10] })
    }

    /// Hands on what `packed` brings, in pieces of a bounded size.
    pub(crate) fn take<E: From<io::Error>>(
        &mut self,
        packed: &[u8],
        mut hand_on: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut input = InBuffer::around(packed);
        loop {
            let mut output = OutBuffer::around(&mut self.buffer[..]);
            self.decoder.run(&mut input, &mut output)?;
            let made = output.pos();
            hand_on(&self.buffer[..made])?;
            // With room to spare there is nothing left inside.
            if input.pos() == packed.len() && made < self.buffer.len() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(packed: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let mut unpacker = Unpacker::new()?;
        for piece in packed.chunks(piece) {
            unpacker.take(piece, |part| {
                plain.extend_from_slice(part);
                Ok::<_, io::Error>(())
            })?;
        }
        Ok(plain)
    }

    #[test]
    fn frames_follow_each_other_in_pieces_of_any_size() {
        let texts = [vec![b'x'; 300_000], b"{\"ping\":{}}\n".to_vec(), Vec::new(), b"y\n".to_vec()];
        let packed: Vec<u8> =
            texts.iter().flat_map(|text| Lines::new(text.clone()).zstd().to_vec()).collect();
        for piece in [1, 7, packed.len()] {
            assert_eq!(unpack(&packed, piece).unwrap(), texts.concat(), "{piece}");
        }
        assert!(packed.len() < 1000);
        assert_eq!(Lines::large(texts[0].clone()).plain(), texts[0]);
    }

    #[test]
    fn noise_is_refused() {
        assert!(unpack(b"{\"reset\":{}}\n", 100).is_err());
    }
}
