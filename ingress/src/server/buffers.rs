//! Buffers that a worker's connections take turns with: a connection that waits has none.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes of each.
pub(crate) const LENGTH: usize = 8 << 10;
/// Those that are kept while nobody has them.
const MOST: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty one. What was cut off from it may still be in use: then reserving room takes other memory.
pub(crate) fn take() -> BytesMut {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(LENGTH))
}

/// Gives one back that is not needed, with nothing in it that is.
pub(crate) fn give(mut buffer: BytesMut) {
    buffer.clear();
    // Not one that has grown, or none at all.
    if (1..=LENGTH).contains(&buffer.capacity()) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MOST {
                spare.push(buffer);
            }
        });
    }
}
