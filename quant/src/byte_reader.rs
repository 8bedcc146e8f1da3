//! Reads fields from the front of a slice; every read is bounds-checked.

use crate::DecodeError;

/// The unread rest of a stream.
#[derive(Debug, Clone, Copy)]
pub struct ByteReader<'a> {
    rest: &'a [u8],
    consumed: usize,
}

impl<'a> ByteReader<'a> {
    /// Reads from `rest`, which starts `consumed` bytes into the stream: error messages count from there.
    pub fn new(rest: &'a [u8], consumed: usize) -> Self {
        Self { rest, consumed }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(DecodeError::Truncated {
                needed: self.consumed.saturating_add(count),
                found: self.consumed + self.rest.len(),
            });
        };
        self.rest = rest;
        self.consumed += count;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// The next little-endian f32, which must be finite.
    pub fn f32(&mut self) -> Result<f32, DecodeError> {
        let value = f32::from_le_bytes(self.array()?);
        if value.is_finite() { Ok(value) } else { Err(DecodeError::NonFinite) }
    }

    /// Everything unread.
    pub fn rest(&mut self) -> &'a [u8] {
        self.consumed += self.rest.len();
        std::mem::take(&mut self.rest)
    }

    /// Fails unless everything has been read.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Corrupt("bytes follow its end")) }
    }
}
