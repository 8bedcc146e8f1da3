//! `bin`: the sign times the mean magnitude of the tensor (Seide et al. 2014 with one scale).
//!
//! The error is smaller than the vector itself, whatever the vector, so error feedback converges.

use super::{Dequantizer, QuantizerBuffers, Scales, sign_codes, symmetric_grid};
use crate::{DecodeError, byte_reader::ByteReader};

/// The only width.
const BITS: u8 = 1;

#[inline(always)]
pub fn quantize(x: &[f32], buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    // In f64: a tensor has many more values than a block.
    let sum: f64 = x.iter().map(|v| f64::from(v.abs())).sum();
    let mean = if x.is_empty() { 0.0 } else { (sum / x.len() as f64) as f32 };
    side.extend_from_slice(&mean.to_le_bytes());
    sign_codes(x, &mut buffers.codes);
}

pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    if bits != BITS {
        return Err(DecodeError::Corrupt("bin has 1 bit"));
    }
    let scales = Scales::Whole(reader.f32()?);
    Ok(Dequantizer { levels: symmetric_grid::levels(BITS), scales, centre: 0.0 })
}
