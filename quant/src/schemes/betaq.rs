//! BetaQ: the Lloyd-Max levels of a Beta density that is fitted to the tensor by moments.
//!
//! Values are divided by the largest magnitude of their block and mapped to [0, 1]. The codebook is
//! described by the two shape parameters of the density: the decoder computes the levels from them.

use super::{
    Dequantizer, QuantizerBuffers, Scales, TensorParams, beta_density, inverse,
    lloyd_max::Histogram,
    mean_abs, nearest_codes,
    scale_table::{ScaleTable, byte_nearest, scale_table},
    spans,
};
use crate::{DecodeError, byte_reader::ByteReader, limits::BLOCK, simd::vectorized};

/// Cells of the histogram on which candidate shapes are compared.
const CELLS: usize = 4096;

/// Factors on the fitted shape parameters; a smaller one gives a flatter density of the same mean.
const FLATTEN: [f32; 7] = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.031_25, 0.015_625];

/// Weighted sums of a span's normalised values, and of their squares.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    weight: f64,
    first: f64,
    second: f64,
}

pub fn quantize(x: &[f32], params: &TensorParams<'_>, buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    let table = scale_table(params.max_abs);
    let QuantizerBuffers { codes, scales, histograms, .. } = &mut *buffers;
    let spans = spans(x, params, BLOCK, codes, scales);
    // Moments of the normalised values, weighted as the error is.
    let mut moments = vec![Moments::default(); spans.len()];
    let spans = Histogram::for_each(histograms, spans.len(), CELLS).zip(spans).zip(&mut moments);
    params.threads.each(spans, |((histogram, mut span), moments)| {
        histogram.reset(CELLS);
        let Moments { mut weight, mut first, mut second } = Moments::default();
        vectorized(
            #[inline(always)]
            || {
                span.for_each_scaled_block(
                    &table,
                    #[inline(always)]
                    |_, scale, values, _| {
                        let ratio = f64::from(scale / params.max_abs.max(f32::MIN_POSITIVE));
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
            },
        );
        *moments = Moments { weight, first, second };
    });
    let total = moments.iter().fold(Moments::default(), |sum, part| Moments {
        weight: sum.weight + part.weight,
        first: sum.first + part.first,
        second: sum.second + part.second,
    });
    let histogram = Histogram::accumulate(histograms);
    let (alpha, beta, levels) = best_shape(fit(&total), histogram, params.bits);
    if params.bits == 1 {
        scales_by_mean(x, params, &table, &levels, buffers);
    }
    for value in [params.max_abs, alpha, beta] {
        side.extend_from_slice(&value.to_le_bytes());
    }
    buffers.finder.prepare(&levels);
    nearest_codes(x, &table, params, buffers);
}

/// The fitted shape, or a flatter one of the same mean if the error with its levels is smaller.
///
/// Every block reaches one end of [-1, 1], and real deltas have heavier tails than a Beta density of
/// their variance, whose levels would not reach the ends.
fn best_shape((alpha, beta): (f32, f32), histogram: &Histogram, bits: u8) -> (f32, f32, Vec<f32>) {
    let bound = |shape: f32| shape.clamp(*beta_density::SHAPES.start(), *beta_density::SHAPES.end());
    let mut best = (f64::INFINITY, (alpha, beta, Vec::new()));
    for flatten in FLATTEN {
        let (alpha, beta) = (bound(alpha * flatten), bound(beta * flatten));
        let levels = beta_density::levels(alpha, beta, bits);
        let error = histogram.error(&levels);
        if error < best.0 {
            best = (error, (alpha, beta, levels));
        }
    }
    best.1
}

/// At 1 bit: scales that put the two levels at the block's mean magnitude. The error is then smaller than
/// the block itself, whatever the block, which error feedback needs.
fn scales_by_mean(
    x: &[f32],
    params: &TensorParams<'_>,
    table: &ScaleTable,
    levels: &[f32],
    buffers: &mut QuantizerBuffers,
) {
    let spread = 0.5 * (levels[1] - levels[0]);
    let QuantizerBuffers { codes, scales, .. } = buffers;
    params.threads.each(spans(x, params, BLOCK, codes, scales), |span| {
        vectorized(
            #[inline(always)]
            || {
                for (values, scale) in span.values.chunks(BLOCK).zip(&mut *span.scales) {
                    *scale = byte_nearest(table, (mean_abs(values) / spread.max(0.01)).min(table[0]));
                }
            },
        );
    });
}

/// Shape parameters by the method of moments, from weighted sums over u in [-1, 1].
fn fit(&Moments { weight, first, second }: &Moments) -> (f32, f32) {
    if weight <= 0.0 {
        return (1.0, 1.0);
    }
    // Moments of t = (u + 1) / 2.
    let mean = (0.5 + 0.5 * first / weight).clamp(0.01, 0.99);
    let variance = (0.25 * (second / weight - (first / weight) * (first / weight))).max(1e-6);
    let sum = mean * (1.0 - mean) / variance - 1.0;
    let bound = |shape: f64| (shape as f32).clamp(*beta_density::SHAPES.start(), *beta_density::SHAPES.end());
    (bound(mean * sum), bound((1.0 - mean) * sum))
}

pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    let table = scale_table(reader.f32()?);
    let (alpha, beta) = (reader.f32()?, reader.f32()?);
    if !beta_density::SHAPES.contains(&alpha) || !beta_density::SHAPES.contains(&beta) {
        return Err(DecodeError::Corrupt("its Beta shape is out of range"));
    }
    let levels = beta_density::levels(alpha, beta, bits);
    Ok(Dequantizer { levels, scales: Scales::blocks(table), centre: 0.0 })
}
