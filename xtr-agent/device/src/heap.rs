//! What becomes of memory that was freed?

/// Gives memory that was freed back to the system: the allocator keeps what lies between memory in use, for
/// later. Takes as long as the system needs to take that much in.
#[expect(unsafe_code, reason = "no crate at hand wraps this function")]
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, from any thread, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
