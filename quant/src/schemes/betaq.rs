//! BetaQ: the Lloyd-Max levels of a Beta density that is fitted to the tensor by moments.
//!
//! Values are divided by the largest magnitude of their block, mapped to [0, 1] and described by the
//! two shape parameters alone: the decoder computes the levels from them.

use super::{Levels, Request, Scales, Scratch, beta, for_each_scaled_block, inverse};
use crate::{
    DecodeError,
    limits::BLOCK,
    lloyd::Histogram,
    reader::Reader,
    scale::{byte_nearest, scale_table},
};

/// Cells of the histogram that shapes are compared on.
const CELLS: usize = 4096;

/// What the moments' shape parameters are multiplied with: a smaller sum is a flatter density.
const FLATTEN: [f32; 7] = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.031_25, 0.015_625];

#[inline(always)]
pub fn quantize(x: &[f32], request: &Request, scratch: &mut Scratch, side: &mut Vec<u8>) {
    let table = scale_table(request.max_abs);
    let Scratch { codes, scales, finder, histogram } = scratch;
    histogram.reset(CELLS);
    // Moments of the normalised values, weighted as the error is.
    let (mut weight, mut first, mut second) = (0.0f64, 0.0f64, 0.0f64);
    for_each_scaled_block(
        x,
        &table,
        scales,
        codes,
        #[inline(always)]
        |scale, values, _| {
            let ratio = f64::from(scale / request.max_abs.max(f32::MIN_POSITIVE));
            let factor = inverse(scale);
            let (sum, squares) = values.iter().fold((0.0f32, 0.0f32), |(sum, squares), v| {
                let u = v * factor;
                histogram.add(histogram.cell(u), ratio * ratio, f64::from(u));
                (sum + u, squares + u * u)
            });
            weight += ratio * ratio * values.len() as f64;
            first += ratio * ratio * f64::from(sum);
            second += ratio * ratio * f64::from(squares);
        },
    );
    histogram.accumulate();
    let (alpha, beta, levels) = best_shape(fit(weight, first, second), histogram, request.bits);
    if request.bits == 1 {
        shrink(x, &table, &levels, scales);
    }
    for value in [request.max_abs, alpha, beta] {
        side.extend_from_slice(&value.to_le_bytes());
    }
    finder.prepare(&levels);
    for ((values, codes), &byte) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales.iter()) {
        let factor = inverse(table[byte as usize]);
        for (v, code) in values.iter().zip(codes) {
            *code = finder.code(v * factor);
        }
    }
}

/// The moments' shape, or a flatter one of the same mean if its levels suit the values better.
///
/// Every block reaches one end of [-1, 1], and real deltas have heavier tails than any Beta density of
/// their variance: the levels of such a narrow density would leave the ends without any.
fn best_shape((alpha, beta): (f32, f32), histogram: &Histogram, bits: u8) -> (f32, f32, Vec<f32>) {
    let bound = |shape: f32| shape.clamp(*beta::SHAPES.start(), *beta::SHAPES.end());
    let mut best = (f64::INFINITY, (alpha, beta, Vec::new()));
    for flatten in FLATTEN {
        let (alpha, beta) = (bound(alpha * flatten), bound(beta * flatten));
        let levels = beta::levels(alpha, beta, bits);
        let error = histogram.error(&levels);
        if error < best.0 {
            best = (error, (alpha, beta, levels));
        }
    }
    best.1
}

/// At 1 bit: scales such that the two levels stand at the block's mean magnitude, which shrinks the
/// error of any block.
fn shrink(x: &[f32], table: &crate::scale::ScaleTable, levels: &[f32], scales: &mut [u8]) {
    let spread = 0.5 * (levels[1] - levels[0]);
    for (values, byte) in x.chunks(BLOCK).zip(scales) {
        let mean = values.iter().map(|v| v.abs()).sum::<f32>() / values.len() as f32;
        *byte = byte_nearest(table, (mean / spread.max(0.01)).min(table[0]));
    }
}

/// Shape parameters by the method of moments, from sums over u in [-1, 1].
fn fit(weight: f64, first: f64, second: f64) -> (f32, f32) {
    if weight <= 0.0 {
        return (1.0, 1.0);
    }
    // Moments of t = (u + 1) / 2.
    let mean = (0.5 + 0.5 * first / weight).clamp(0.01, 0.99);
    let variance = (0.25 * (second / weight - (first / weight) * (first / weight))).max(1e-6);
    let sum = mean * (1.0 - mean) / variance - 1.0;
    let bound = |shape: f64| (shape as f32).clamp(*beta::SHAPES.start(), *beta::SHAPES.end());
    (bound(mean * sum), bound((1.0 - mean) * sum))
}

pub fn parse(bits: u8, reader: &mut Reader<'_>) -> Result<Levels, DecodeError> {
    let table = scale_table(reader.f32()?);
    let (alpha, beta) = (reader.f32()?, reader.f32()?);
    if !beta::SHAPES.contains(&alpha) || !beta::SHAPES.contains(&beta) {
        return Err(DecodeError::Corrupt("its Beta shape is out of range"));
    }
    let scales = Scales::blocks(table, BLOCK);
    Ok(Levels { levels: beta::levels(alpha, beta, bits), scales, centre: 0.0 })
}
