//! Placeholder of the stream: f32 only.

use crate::{DecodeError, EncodeError, Scheme, Spec};

/// Reusable scratch memory of the encoder.
#[derive(Debug, Default)]
pub struct Encoder;

/// Encodes a whole update: `x` is the flat vector, `shapes` the tensors' shapes in order. One stream
/// per tensor is appended to `outs`.
pub fn encode_update(
    _encoder: &mut Encoder,
    x: &[f32],
    shapes: &[Vec<usize>],
    _spec: &Spec,
    outs: &mut Vec<Vec<u8>>,
) -> Result<(), EncodeError> {
    let mut rest = x;
    for shape in shapes {
        let (head, tail) = rest.split_at(shape.iter().product());
        outs.push(bytemuck::cast_slice(head).to_vec());
        rest = tail;
    }
    Ok(())
}

/// A stream whose every byte has been checked: decoding cannot fail any more.
#[derive(Debug, Clone)]
pub struct Stream<'a>(&'a [u8]);

impl<'a> Stream<'a> {
    /// Checks `bytes` as a stream of exactly `expected` elements.
    pub fn parse(bytes: &'a [u8], expected: usize) -> Result<Self, DecodeError> {
        if bytes.len() != expected * 4 {
            return Err(DecodeError::Truncated { needed: expected * 4, found: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// True for a stream without elements.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The scheme that wrote it.
    pub fn scheme(&self) -> Scheme {
        Scheme::None
    }

    /// An upper bound of the magnitude of every decoded value; finite.
    pub fn max_abs(&self) -> f32 {
        1.0
    }

    /// Decodes in order, a chunk at a time: `f(offset, values)`.
    pub fn for_each_chunk(&self, mut f: impl FnMut(usize, &[f32])) {
        let values: Vec<f32> =
            self.0.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        f(0, &values);
    }
}
