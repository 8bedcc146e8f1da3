//! What can go wrong, told apart by whose fault it is.

use thiserror::Error;

/// A stream that cannot be decoded. Streams come from the network: every case is expected.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Not an fl-quant stream, or one whose bytes contradict each other.
    #[error("corrupt stream: {0}")]
    Corrupt(&'static str),
    /// The stream ends before its content does.
    #[error("truncated stream: {needed} bytes needed, {found} found")]
    Truncated {
        /// Bytes that the header asks for.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// A version or scheme that this build does not know.
    #[error("unsupported stream: {0}")]
    Unsupported(&'static str),
    /// The stream declares another number of elements than the caller expects.
    #[error("the stream holds {found} elements, {expected} expected")]
    WrongLength {
        /// Elements that the caller expects.
        expected: usize,
        /// Elements that the stream declares.
        found: usize,
    },
    /// Side information that decodes to NaN or infinity.
    #[error("the stream decodes to a value that is not finite")]
    NonFinite,
}

/// A vector or a request that cannot be encoded.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum EncodeError {
    /// The input holds a NaN or an infinity.
    #[error("element {0} of the input is not finite")]
    NonFinite(usize),
    /// The width is outside of what the scheme offers.
    #[error("{scheme} takes 1 to 8 bits, not {bits}")]
    Bits {
        /// Name of the scheme.
        scheme: &'static str,
        /// The width that was asked for.
        bits: u8,
    },
    /// The shape does not multiply to the number of elements.
    #[error("the shape holds {shape} elements, the input {found}")]
    Shape {
        /// Product of the shape's dimensions.
        shape: usize,
        /// Elements of the input.
        found: usize,
    },
    /// A tensor of more elements than a stream may hold.
    #[error("a tensor holds more than {max} elements: split it")]
    TooLarge {
        /// Elements that a stream may hold.
        max: usize,
    },
}
