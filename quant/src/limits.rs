//! Bounds that hold for every stream, whoever wrote it.

/// Most elements that one stream may hold. The caller's `expected` length is checked as well; this
/// bound keeps the arithmetic on counts far from overflow.
pub const MAX_ELEMENTS: usize = 1 << 28;

/// Widest code, in bits.
pub const MAX_BITS: u8 = 8;

/// Elements that are decoded at a time: 4 KiB of f32, so that a chunk stays in the first-level cache
/// between the decoder and whoever consumes it.
pub const CHUNK: usize = 1024;

/// Elements that share one scale.
pub const BLOCK: usize = 64;
