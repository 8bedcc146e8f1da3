//! `bin`: the sign times the mean magnitude of the tensor (Seide et al. 2014 with one scale).
//!
//! The error is smaller than the vector itself, whatever the vector, so error feedback converges.

use super::{Dequantizer, QuantizerBuffers, Scales, TensorParams, sign_codes, symmetric_grid};
use crate::{DecodeError, byte_reader::ByteReader, simd::vectorized};

/// The only width.
const BITS: u8 = 1;

pub fn quantize(x: &[f32], params: &TensorParams<'_>, buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    let TensorParams { span, threads, .. } = *params;
    let mut sums = vec![0.0; x.len().div_ceil(span)];
    let spans = x.chunks(span).zip(buffers.codes.chunks_mut(span)).zip(&mut sums);
    threads.each(spans, |((values, codes), sum)| {
        // In f64: a tensor has many more values than a block.
        *sum = values.iter().map(|v| f64::from(v.abs())).sum::<f64>();
        vectorized(
            #[inline(always)]
            || sign_codes(values, codes),
        );
    });
    let mean = if x.is_empty() { 0.0 } else { (sums.iter().sum::<f64>() / x.len() as f64) as f32 };
    side.extend_from_slice(&mean.to_le_bytes());
}

pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    if bits != BITS {
        return Err(DecodeError::Corrupt("bin has 1 bit"));
    }
    let scales = Scales::Whole(reader.f32()?);
    Ok(Dequantizer { levels: symmetric_grid::levels(BITS), scales, centre: 0.0 })
}
