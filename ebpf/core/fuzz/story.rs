//! What an input says: packets, one after the other, and where each enters a node.
//!
//! ```text
//! place (1 byte)   length of the frame (2 bytes, network order)   frame from its Ethernet header on
//! ```
//!
//! The lower half of the first byte is the place; its highest bit says that a device is to finish the
//! checksum. Every input says something: a frame that ends too early is as long as it is.

/// Where packets enter a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Pod,
    Uplink,
    Overlay,
    Host,
    HostTunnel,
}

/// By the number that stands for each.
pub(crate) const PLACES: [Place; 5] =
    [Place::Pod, Place::Uplink, Place::Overlay, Place::Host, Place::HostTunnel];

/// A packet that enters a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) place: Place,
    pub(crate) partial: bool,
    pub(crate) bytes: Vec<u8>,
}

/// So many are enough to say anything, and few enough to check in a moment.
const LONGEST: usize = 256;

/// Says that a device is to finish the checksum.
pub(crate) const PARTIAL: u8 = 0x80;

/// Reads an input.
pub(crate) fn read(mut input: &[u8]) -> Vec<Arrival> {
    let mut story = Vec::new();
    while let [head, high, low, rest @ ..] = input
        && story.len() < LONGEST
    {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, next) = rest.split_at(length);
        let place = PLACES[usize::from(head & 0x0f) % PLACES.len()];
        story.push(Arrival { place, partial: head & PARTIAL != 0, bytes: bytes.to_vec() });
        input = next;
    }
    story
}
