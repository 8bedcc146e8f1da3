//! Bounds that hold for every stream.

/// Most elements of one stream. Keeps arithmetic on counts far from overflow; decoders also check the
/// count against the length that the caller expects.
pub const MAX_ELEMENTS: usize = 1 << 28;

/// Widest code, in bits.
pub const MAX_BITS: u8 = 8;

/// Elements decoded at a time: 4 KiB of f32, so that a chunk is still in the first-level cache when the
/// caller consumes it.
pub const CHUNK: usize = 1024;

/// Elements that share one scale.
pub const BLOCK: usize = 64;
