//! Errors of decoding (bad streams) and of encoding (bad arguments).

use thiserror::Error;

/// A stream that cannot be decoded. Streams are untrusted input: any bytes give one of these or decode.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Not an fl-quant stream, or an inconsistent one.
    #[error("corrupt stream: {0}")]
    Corrupt(&'static str),
    /// The stream ends before its content does.
    #[error("truncated stream: {needed} bytes needed, {found} found")]
    Truncated {
        /// Bytes that the header asks for.
        needed: usize,
        /// Bytes present.
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

/// Values, shapes or settings that cannot be encoded.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum EncodeError {
    /// The input holds a NaN or an infinity.
    #[error("element {0} of the input is not finite")]
    NonFinite(usize),
    /// The width is not 1 to 8 bits.
    #[error("{scheme} takes 1 to 8 bits, not {bits}")]
    Bits {
        /// Name of the scheme.
        scheme: &'static str,
        /// The requested width.
        bits: u8,
    },
    /// The shapes do not hold as many elements as the input.
    #[error("the shape holds {shape} elements, the input {found}")]
    Shape {
        /// Elements by the shapes.
        shape: usize,
        /// Elements of the input.
        found: usize,
    },
    /// A tensor has more elements than a stream may hold.
    #[error("a tensor holds more than {max} elements: split it")]
    TooLarge {
        /// Elements that a stream may hold.
        max: usize,
    },
}
