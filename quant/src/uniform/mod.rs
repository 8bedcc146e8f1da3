//! MSQ_v2 with the entropy stage: one uniform step for the whole update, as many levels as it takes.
//!
//! Under an entropy coder the codebook of least squared error at a given size in bytes is uniform, with
//! the centroid of each cell as its level (Gish and Pierce 1968). One step for all tensors is what
//! reverse water-filling asks for: every tensor gets the same error per element, and one whose values
//! all lie below that error costs next to nothing.

mod offsets;
mod round;
mod search;
mod trellis;

pub use search::{Goal, Request, Search, encode};

use crate::{
    DecodeError,
    entropy::{Grid, Indices, MAX_MAGNITUDE, Scratch},
    reader::Reader,
    simd::vectorized,
};
use offsets::Offsets;

/// The side information of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    step: f32,
    /// Largest magnitude among the indices.
    largest: u32,
    offsets: Offsets,
    indices: Indices,
    grid: Grid,
}

impl Side {
    /// Appends what stands before the grid.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.step.to_le_bytes());
        out.extend_from_slice(&self.largest.to_le_bytes());
        self.offsets.write(out);
        out.push(self.indices.quantizers() as u8);
    }

    /// Reads the side information of `count` elements and checks it.
    pub fn parse(count: usize, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let step = reader.f32()?;
        let largest = u32::from_le_bytes(reader.array()?);
        let offsets = Offsets::parse(reader)?;
        let indices = match reader.array()? {
            [1] => Indices::Scalar,
            [2] => Indices::Trellis,
            _ => return Err(DecodeError::Corrupt("its number of quantizers is not 1 or 2")),
        };
        if largest > MAX_MAGNITUDE {
            return Err(DecodeError::Corrupt("its largest index is out of range"));
        }
        Ok(Self { step, largest, offsets, indices, grid: Grid::parse(count, reader)? })
    }

    /// An upper bound of the magnitude of every value, 0 only if all are 0; the error if it is not finite.
    pub fn max_abs(&self) -> Result<f32, DecodeError> {
        let level = self.largest_level();
        let bound = (level as f32 + Offsets::LARGEST) * self.step.abs();
        match bound.is_finite() {
            // Level 0 has no offset.
            true if level == 0 => Ok(0.0),
            true => Ok(bound),
            false => Err(DecodeError::NonFinite),
        }
    }

    fn largest_level(&self) -> i32 {
        self.largest as i32 * self.indices.quantizers() as i32
    }

    /// Decodes in order: `f(offset, values)`.
    pub fn decode(
        &self,
        payload: &[u8],
        count: usize,
        scratch: &mut Scratch,
        f: &mut dyn FnMut(usize, &[f32]),
    ) {
        let most = self.largest_level();
        scratch.for_each_chunk(&self.grid, self.indices, payload, count, |offset, levels, values| {
            values.resize(levels.len(), 0.0);
            vectorized(
                #[inline(always)]
                || self.offsets.values(levels, most, self.step, values),
            );
            f(offset, values);
        });
    }
}
