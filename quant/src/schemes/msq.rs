//! MSQ_v2 at a fixed width: the codebook of least squared error on this tensor.
//!
//! The blocks of a real delta differ by orders of magnitude, so values are first divided by a scale per
//! block; one Lloyd-Max codebook then serves the whole tensor. Errors are weighted with the square of the
//! block's scale, which minimises the error of the tensor and not that of the normalised values.

use super::{
    Dequantizer, QuantizerBuffers, Scales, TensorParams, inverse,
    lloyd_max::{Histogram, lloyd_max},
    mean_abs, nearest_codes,
    scale_table::{ScaleTable, byte_nearest, scale_table},
    sign_codes, spans,
};
use crate::{DecodeError, byte_reader::ByteReader, limits::BLOCK, simd::vectorized};
use half::f16;

/// Cells of the histogram: several per level even at 8 bits.
const CELLS: usize = 8192;

/// Most Lloyd-Max iterations.
const ITERATIONS: usize = 200;

pub fn quantize(x: &[f32], params: &TensorParams<'_>, buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    let table = scale_table(params.max_abs);
    side.extend_from_slice(&params.max_abs.to_le_bytes());
    if params.bits == 1 {
        return quantize_signs(x, params, &table, buffers, side);
    }
    let QuantizerBuffers { codes, scales, histograms, .. } = &mut *buffers;
    let spans = spans(x, params, BLOCK, codes, scales);
    let spans = Histogram::for_each(histograms, spans.len(), CELLS).zip(spans);
    params.threads.each(spans, |(histogram, mut span)| {
        histogram.reset(CELLS);
        vectorized(
            #[inline(always)]
            || {
                span.for_each_scaled_block(
                    &table,
                    #[inline(always)]
                    |_, scale, values, _| {
                        let factor = inverse(scale);
                        // Relative to the largest scale: squares of tiny scales must not underflow.
                        let ratio = f64::from(scale / params.max_abs.max(f32::MIN_POSITIVE));
                        let weight = ratio * ratio;
                        for v in values {
                            let u = v * factor;
                            histogram.add(histogram.cell(u), weight, f64::from(u));
                        }
                    },
                );
            },
        );
    });
    let histogram = Histogram::accumulate(histograms);
    let mut levels = vec![0.0; 1 << params.bits];
    lloyd_max(histogram, &mut levels, true, ITERATIONS);
    let levels: Vec<f32> = levels
        .iter()
        .map(|level| {
            let level = f16::from_f64(*level);
            side.extend_from_slice(&level.to_le_bytes());
            level.to_f32()
        })
        .collect();
    buffers.finder.prepare(&levels);
    nearest_codes(x, &table, params, buffers);
}

/// At 1 bit there is no level for zero: the sign times the mean magnitude of the block. The error is
/// smaller than the block itself, whatever the block, which error feedback needs.
fn quantize_signs(
    x: &[f32],
    params: &TensorParams<'_>,
    table: &ScaleTable,
    buffers: &mut QuantizerBuffers,
    side: &mut Vec<u8>,
) {
    for level in [-f16::ONE, f16::ONE] {
        side.extend_from_slice(&level.to_le_bytes());
    }
    let QuantizerBuffers { codes, scales, .. } = buffers;
    params.threads.each(spans(x, params, BLOCK, codes, scales), |span| {
        vectorized(
            #[inline(always)]
            || {
                let blocks = span.values.chunks(BLOCK).zip(span.codes.chunks_mut(BLOCK));
                for ((values, codes), scale) in blocks.zip(&mut *span.scales) {
                    *scale = byte_nearest(table, mean_abs(values));
                    sign_codes(values, codes);
                }
            },
        );
    });
}

pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    let table = scale_table(reader.f32()?);
    let (codebook, _) = reader.bytes(2 << bits)?.as_chunks::<2>();
    let levels: Vec<f32> = codebook.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();
    if levels.iter().any(|level| !level.is_finite()) {
        return Err(DecodeError::NonFinite);
    }
    Ok(Dequantizer { levels, scales: Scales::blocks(table), centre: 0.0 })
}
