//! MSQ_v2 at a fixed width: the codebook of least squared error on this tensor.
//!
//! Real deltas differ by orders of magnitude between their blocks, so the values are first divided by
//! a scale per block; one Lloyd-Max codebook then serves the whole tensor. Errors are weighted with
//! the square of the block's scale: what is minimised is the error of the tensor, not of the
//! normalised values.

use super::{Levels, Request, Scales, Scratch, for_each_scaled_block, inverse};
use crate::{
    DecodeError,
    limits::BLOCK,
    lloyd::lloyd_max,
    reader::Reader,
    scale::{byte_nearest, scale_table},
};
use half::f16;

/// Cells of the histogram: several per level even at 8 bits.
const CELLS: usize = 8192;

/// Most Lloyd-Max iterations.
const ITERATIONS: usize = 200;

#[inline(always)]
pub fn quantize(x: &[f32], request: &Request, scratch: &mut Scratch, side: &mut Vec<u8>) {
    let table = scale_table(request.max_abs);
    side.extend_from_slice(&request.max_abs.to_le_bytes());
    if request.bits == 1 {
        return quantize_signs(x, &table, scratch, side);
    }
    let Scratch { codes, scales, histogram, finder } = scratch;
    histogram.reset(CELLS);
    for_each_scaled_block(
        x,
        &table,
        scales,
        codes,
        #[inline(always)]
        |scale, values, _| {
            let factor = inverse(scale);
            // Relative to the largest scale: squares of tiny scales must not underflow.
            let ratio = f64::from(scale / request.max_abs.max(f32::MIN_POSITIVE));
            let weight = ratio * ratio;
            for v in values {
                let u = v * factor;
                histogram.add(histogram.cell(u), weight, f64::from(u));
            }
        },
    );
    histogram.accumulate();
    let mut levels = vec![0.0; 1 << request.bits];
    lloyd_max(histogram, &mut levels, true, ITERATIONS);
    let levels: Vec<f32> = levels
        .iter()
        .map(|level| {
            let level = f16::from_f64(*level);
            side.extend_from_slice(&level.to_le_bytes());
            level.to_f32()
        })
        .collect();
    finder.prepare(&levels);
    for ((values, codes), &byte) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales.iter()) {
        let factor = inverse(table[byte as usize]);
        for (v, code) in values.iter().zip(codes) {
            *code = finder.code(v * factor);
        }
    }
}

/// At 1 bit there is no room for a zero: the sign times the mean magnitude of the block, which
/// shrinks the error of any block.
#[inline(always)]
fn quantize_signs(x: &[f32], table: &crate::scale::ScaleTable, scratch: &mut Scratch, side: &mut Vec<u8>) {
    for level in [-f16::ONE, f16::ONE] {
        side.extend_from_slice(&level.to_le_bytes());
    }
    for (values, codes) in x.chunks(BLOCK).zip(scratch.codes.chunks_mut(BLOCK)) {
        let mean = values.iter().map(|v| v.abs()).sum::<f32>() / values.len() as f32;
        scratch.scales.push(byte_nearest(table, mean));
        for (v, code) in values.iter().zip(codes) {
            *code = u8::from(*v >= 0.0);
        }
    }
}

pub fn parse(bits: u8, reader: &mut Reader<'_>) -> Result<Levels, DecodeError> {
    let table = scale_table(reader.f32()?);
    let (codebook, _) = reader.bytes(2 << bits)?.as_chunks::<2>();
    let levels: Vec<f32> = codebook.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();
    if levels.iter().any(|level| !level.is_finite()) {
        return Err(DecodeError::NonFinite);
    }
    Ok(Levels { levels, scales: Scales::blocks(table, BLOCK), centre: 0.0 })
}
