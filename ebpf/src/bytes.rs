//! Checked access to a packet's bytes.
#![expect(unsafe_code, reason = "packet bytes are reached through raw pointers")]

use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

/// The furthest that is looked for a header. The verifier wants to see a bound; no packet that is
/// forwarded comes near it.
const MAX_OFFSET: u32 = 0x1ff;

/// The part of a packet that a program may touch.
///
/// Made anew for each access: helpers may move the packet, and the verifier forgets what it knew of
/// older pointers.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// Address of its first byte.
    pub(crate) start: usize,
    /// Address past its last one.
    pub(crate) end: usize,
}

impl Span {
    /// A copy of what lies at `at`.
    #[inline(always)]
    pub(crate) fn load<T: FromBytes + Unaligned>(self, at: u32) -> Option<T> {
        let value = self.at::<T>(at)?;
        // SAFETY: any bytes make a `T`, it needs no alignment, and `at` checked that they are within
        // the packet.
        Some(unsafe { value.read() })
    }

    /// Overwrites what lies at `at`.
    #[inline(always)]
    pub(crate) fn store<T: IntoBytes + Immutable + Unaligned>(
        self,
        at: u32,
        value: T,
    ) -> Option<()> {
        let place = self.at::<T>(at)?;
        // SAFETY: `at` checked that these bytes are within the packet; the kernel makes the headers
        // of a program that writes private before it runs.
        unsafe { place.write(value) };
        Some(())
    }

    #[inline(always)]
    fn at<T>(self, at: u32) -> Option<*mut T> {
        if at > MAX_OFFSET {
            return None;
        }
        let start = self.start + bounded(at);
        (start + size_of::<T>() <= self.end).then_some(start as *mut T)
    }
}

/// The same offset, its bound plain to see where it is used. The compiler may compare one copy of a
/// number and then use another, and the verifier of older kernels (6.1 is one) loses track of which
/// are copies once they have been on the stack.
#[inline(always)]
fn bounded(at: u32) -> usize {
    #[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "only the programs need it"))]
    let mut at = at as usize;
    #[cfg(target_arch = "bpf")]
    // SAFETY: nothing but the register changes, and its value not either: the caller has compared.
    unsafe {
        core::arch::asm!("{0} &= {1}", inout(reg) at, const MAX_OFFSET,
            options(pure, nomem, nostack, preserves_flags));
    }
    at
}

/// The same length, from 1 to `LONGEST` (a power of two), both bounds plain to see as in [`bounded`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it came as 32 bits")]
pub(crate) fn bounded_length<const LONGEST: usize>(length: u32) -> u32 {
    const { assert!(LONGEST.is_power_of_two()) };
    #[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "only the programs need it"))]
    let mut length = u64::from(length);
    #[cfg(target_arch = "bpf")]
    // SAFETY: as above; from 1 to `LONGEST` is what the caller has made sure of.
    unsafe {
        core::arch::asm!("{0} += -1", "{0} &= {1}", "{0} += 1", inout(reg) length,
            const LONGEST - 1, options(pure, nomem, nostack, preserves_flags));
    }
    length as u32
}
