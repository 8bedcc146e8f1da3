//! MSQ_v2 with the entropy stage: one uniform step for the whole update, as many levels as it takes.
//!
//! Under an entropy coder, the codebook of least squared error at a given rate is uniform, with the
//! centroid of each cell as its level (Gish and Pierce 1968). Reverse water-filling gives all tensors the
//! same error per element, hence one step; a tensor whose values are all below it costs next to nothing.

mod magnitudes;
mod offsets;
mod quantizer;
mod round;
mod step_search;
mod viterbi;
mod writer;

pub use quantizer::UniformUpdate;
pub use step_search::{Goal, StepSearch, UniformParams};

use crate::{
    DecodeError,
    byte_reader::ByteReader,
    entropy::{CodedIntegers, EntropyDecoder, MAX_MAGNITUDE, Quantization},
    simd::vectorized,
};
use offsets::Offsets;

/// The side information of a stream of uniform indices.
#[derive(Debug, Clone, Copy)]
pub struct SideInfo {
    step: f32,
    /// Largest magnitude among the indices.
    largest: u32,
    offsets: Offsets,
    quantization: Quantization,
}

impl SideInfo {
    /// Appends it; the entropy coder writes the rest.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.step.to_le_bytes());
        out.extend_from_slice(&self.largest.to_le_bytes());
        self.offsets.write(out);
        out.push(self.quantization.quantizers() as u8);
    }

    /// Reads and checks it.
    pub fn parse(reader: &mut ByteReader<'_>) -> Result<Self, DecodeError> {
        let step = reader.f32()?;
        let largest = u32::from_le_bytes(reader.array()?);
        let offsets = Offsets::parse(reader)?;
        let quantization = match reader.array()? {
            [1] => Quantization::Scalar,
            [2] => Quantization::Trellis,
            _ => return Err(DecodeError::Corrupt("its number of quantizers is not 1 or 2")),
        };
        if largest > MAX_MAGNITUDE {
            return Err(DecodeError::Corrupt("its largest index is out of range"));
        }
        Ok(Self { step, largest, offsets, quantization })
    }

    /// An upper bound of the magnitude of every value, 0 only if all are 0.
    ///
    /// # Errors
    /// If the bound is not finite: some index could then decode to infinity.
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
        self.largest as i32 * self.quantization.quantizers() as i32
    }

    /// Decodes a segment in order, a chunk at a time, and calls `f(offset, values)`.
    pub fn decode(
        &self,
        indices: &CodedIntegers<'_>,
        segment: usize,
        decoder: &mut EntropyDecoder,
        f: &mut dyn FnMut(usize, &[f32]),
    ) {
        let most = self.largest_level();
        indices.decode(segment, self.quantization, decoder, |offset, levels, values| {
            values.resize(levels.len(), 0.0);
            vectorized(
                #[inline(always)]
                || self.offsets.values(levels, most, self.step, values),
            );
            f(offset, values);
        });
    }
}
