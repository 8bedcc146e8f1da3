//! Layer normalisation (Ba, Kiros and Hinton 2016) of rows of features.
//!
//! A row's sums are made in 16 lanes, whatever the width of a vector. Threads take rows; the gradients of
//! weight and bias are summed over pieces of rows that depend on the shape only.

use super::{
    columns::items_per_piece,
    norm::{Saved, Settings},
};
use crate::fused::{parallel::Threads, simd};
use pulp::{Simd, WithSimd};

/// Lanes of a sum.
const LANES: usize = 16;

/// Most pieces that the rows are cut into.
const MAX_PIECES: usize = 64;

/// Rows of a piece.
fn rows_per_piece(rows: usize, features: usize) -> usize {
    items_per_piece(rows, features).max(rows.div_ceil(MAX_PIECES))
}

/// Adds the lanes up, halves onto each other.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Writes `y` of `x [rows, features]`, and each row's mean and reciprocal standard deviation to `saved`.
pub(crate) fn forward(
    x: &[f32],
    settings: Settings<'_>,
    y: &mut [f32],
    saved: &mut Saved,
    threads: &Threads,
) {
    let features = settings.weight.len();
    let rows = x.len() / features;
    saved.mean.resize(rows, 0.0);
    saved.scale.resize(rows, 0.0);
    let piece = rows_per_piece(rows, features);
    let mut pieces: Vec<_> = y
        .chunks_mut(piece * features)
        .zip(x.chunks(piece * features))
        .zip(saved.mean.chunks_mut(piece).zip(saved.scale.chunks_mut(piece)))
        .collect();
    threads.each(&mut pieces, |_, ((y, x), (means, scales))| {
        simd::run(Forward { x, y, means, scales, settings });
    });
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    means: &'a mut [f32],
    scales: &'a mut [f32],
    settings: Settings<'a>,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, y, means, scales, settings } = self;
        let Settings { weight, bias, eps, relu } = settings;
        let features = weight.len();
        let whole = features - features % LANES;
        for row in 0..means.len() {
            let x = &x[row * features..][..features];
            let y = &mut y[row * features..][..features];
            let mut lanes = [0.0f32; LANES];
            let mut c = 0;
            while c < whole {
                let x = &x[c..][..LANES];
                for l in 0..LANES {
                    lanes[l] += x[l];
                }
                c += LANES;
            }
            for c in whole..features {
                lanes[c - whole] += x[c];
            }
            let mean = total(lanes) / features as f32;
            let mut lanes = [0.0f32; LANES];
            let mut c = 0;
            while c < whole {
                let x = &x[c..][..LANES];
                for l in 0..LANES {
                    let d = x[l] - mean;
                    lanes[l] = d.mul_add(d, lanes[l]);
                }
                c += LANES;
            }
            for c in whole..features {
                let d = x[c] - mean;
                lanes[c - whole] = d.mul_add(d, lanes[c - whole]);
            }
            let variance = f64::from(total(lanes)) / features as f64;
            let scale = (variance + eps).sqrt().recip() as f32;
            for c in 0..features {
                let value = ((x[c] - mean) * scale).mul_add(weight[c], bias[c]);
                y[c] = if relu && value < 0.0 { 0.0 } else { value };
            }
            means[row] = mean;
            scales[row] = scale;
        }
    }
}

/// Writes `dx`, `d_weight` and `d_bias`; without `dy`, `dx` holds it. `partial` is a buffer.
pub(crate) fn backward(
    x: &[f32],
    settings: Settings<'_>,
    saved: &Saved,
    dy: Option<&[f32]>,
    dx: &mut [f32],
    (d_weight, d_bias): (&mut [f32], &mut [f32]),
    partial: &mut Vec<f32>,
    threads: &Threads,
) {
    let features = settings.weight.len();
    let piece = rows_per_piece(x.len() / features, features);
    let mut pieces: Vec<_> = dx.chunks_mut(piece * features).collect();
    partial.clear();
    partial.resize(pieces.len() * 2 * features, 0.0);
    let mut pieces: Vec<_> = pieces.iter_mut().zip(partial.chunks_exact_mut(2 * features)).collect();
    threads.each(&mut pieces, |k, (dx, sums)| {
        let range = k * piece * features..k * piece * features + dx.len();
        let first = k * piece;
        let x = &x[range.clone()];
        if let Some(dy) = dy {
            dx.copy_from_slice(&dy[range]);
        }
        let (means, scales) = (&saved.mean[first..], &saved.scale[first..]);
        simd::run(Backward { x, dx, means, scales, settings, sums });
    });
    d_weight.fill(0.0);
    d_bias.fill(0.0);
    for sums in partial.chunks_exact(2 * features) {
        let (weight, bias) = sums.split_at(features);
        d_weight.iter_mut().zip(weight).for_each(|(d, value)| *d += value);
        d_bias.iter_mut().zip(bias).for_each(|(d, value)| *d += value);
    }
}

struct Backward<'a> {
    x: &'a [f32],
    /// Holds `dy`.
    dx: &'a mut [f32],
    means: &'a [f32],
    scales: &'a [f32],
    settings: Settings<'a>,
    /// Of the gradients of weight and bias.
    sums: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, dx, means, scales, settings, sums } = self;
        let Settings { weight, bias, relu, .. } = settings;
        let features = weight.len();
        let whole = features - features % LANES;
        let (d_weight, d_bias) = sums.split_at_mut(features);
        for row in 0..x.len() / features {
            let x = &x[row * features..][..features];
            let dx = &mut dx[row * features..][..features];
            let (d_weight, d_bias) = (&mut d_weight[..features], &mut d_bias[..features]);
            let (mean, scale) = (means[row], scales[row]);
            if relu {
                for c in 0..features {
                    // The operations of the forward pass: the sign is the same too.
                    let open = ((x[c] - mean) * scale).mul_add(weight[c], bias[c]) > 0.0;
                    dx[c] = if open { dx[c] } else { 0.0 };
                }
            }
            for c in 0..features {
                d_weight[c] = dx[c].mul_add((x[c] - mean) * scale, d_weight[c]);
                d_bias[c] += dx[c];
            }
            let (mut inner, mut normed) = ([0.0f32; LANES], [0.0f32; LANES]);
            let mut c = 0;
            while c < whole {
                let (x, dx, weight) = (&x[c..][..LANES], &dx[c..][..LANES], &weight[c..][..LANES]);
                for l in 0..LANES {
                    let d = dx[l] * weight[l];
                    inner[l] += d;
                    normed[l] = d.mul_add((x[l] - mean) * scale, normed[l]);
                }
                c += LANES;
            }
            for c in whole..features {
                let d = dx[c] * weight[c];
                inner[c - whole] += d;
                normed[c - whole] = d.mul_add((x[c] - mean) * scale, normed[c - whole]);
            }
            let inner = total(inner) / features as f32;
            let normed = total(normed) / features as f32;
            for c in 0..features {
                let centred = dx[c].mul_add(weight[c], -inner);
                dx[c] = ((x[c] - mean) * scale).mul_add(-normed, centred) * scale;
            }
        }
    }
}
