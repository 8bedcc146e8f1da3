//! Buffers of a model's size that come and go with the rounds.
//!
//! glibc returns an allocation to the system at once if it has a mapping of its own. Which allocations have one
//! is adaptive: freeing a mapping of up to 32 MiB makes its size the new threshold. So a buffer of 20 MB is
//! returned the first time and kept by the heap of some thread from then on, of each thread in turn. Above 32 MiB
//! an allocation always has a mapping; capacity that is never touched takes no memory. So a large buffer asks for
//! that much.

/// From this size on, in bytes, it matters where a buffer lies.
const LARGE: usize = 4 << 20;
/// Capacity that has a mapping of its own whatever was freed before.
const MAPPED: usize = (32 << 20) + (1 << 16);

/// The capacity to ask for where `len` elements are needed.
pub(crate) fn capacity<T>(len: usize) -> usize {
    match len.saturating_mul(size_of::<T>()) {
        bytes if (LARGE..MAPPED).contains(&bytes) => MAPPED.div_ceil(size_of::<T>()),
        _ => len,
    }
}

/// `len` zeros; a large buffer takes memory as it is written to.
pub(crate) fn zeros(len: usize) -> Vec<u8> {
    let mut zeros = vec![0; capacity::<u8>(len)];
    zeros.truncate(len);
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_have_room_that_is_never_used() {
        assert_eq!(capacity::<u64>(1000), 1000);
        assert_eq!(capacity::<u64>(600_000), MAPPED / 8);
        assert_eq!(capacity::<u64>(6_000_000), 6_000_000);
        let buffer = zeros(LARGE);
        assert!(buffer.len() == LARGE && buffer.capacity() >= MAPPED && buffer.iter().all(|byte| *byte == 0));
        assert_eq!(zeros(7).capacity(), 7);
    }
}
