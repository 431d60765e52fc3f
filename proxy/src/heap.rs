//! The agent's memory, as far as the allocator keeps more than is in use.
#![expect(unsafe_code, reason = "the allocator's call is C's")]

/// Gives back to the kernel what was freed. The allocator keeps it, which after a start or a complete model
/// is several times what the agent needs from then on.
pub(crate) fn give_back() {
    // Other allocators have no such call, or need none.
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
