//! `laq8`: the 8-bit uniform grid of LAQ (Sun et al. 2019, section 2.1), rounded to nearest.

use super::{
    Dequantizer, QuantizerBuffers, TensorParams, inverse, scale_table::scale_table, spans, symmetric_grid,
};
use crate::{
    DecodeError,
    byte_reader::ByteReader,
    limits::BLOCK,
    simd::{floor_to_integer, vectorized},
};

/// The only width.
const BITS: u8 = 8;

pub fn quantize(x: &[f32], params: &TensorParams<'_>, buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    let table = scale_table(params.max_abs);
    side.extend_from_slice(&params.max_abs.to_le_bytes());
    let half = symmetric_grid::half_width(BITS);
    let QuantizerBuffers { codes, scales, .. } = buffers;
    params.threads.each(spans(x, params, BLOCK, codes, scales), |mut span| {
        vectorized(
            #[inline(always)]
            || {
                span.for_each_scaled_block(
                    &table,
                    #[inline(always)]
                    |_, scale, values, codes| {
                        let factor = half * inverse(scale);
                        for (v, code) in values.iter().zip(codes) {
                            // Between 0.5 and 254.5, but for a rounding error: no clamp is needed.
                            *code = floor_to_integer(v * factor + half + 0.5) as u8;
                        }
                    },
                );
            },
        );
    });
}

pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    if bits != BITS {
        return Err(DecodeError::Corrupt("laq8 has 8 bits"));
    }
    symmetric_grid::parse(bits, reader)
}
