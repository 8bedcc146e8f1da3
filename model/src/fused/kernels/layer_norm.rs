//! Layer normalisation (Ba, Kiros and Hinton 2016) of rows of features.
//!
//! A row's sums are made in 64 lanes, whatever the width of a vector. Threads take rows; the gradients of
//! weight and bias are summed over pieces of rows that depend on the shape only.

use super::{
    columns::items_per_piece,
    norm::{Saved, Settings},
};
use crate::fused::{parallel::Threads, simd};
use pulp::{Simd, WithSimd};

/// Lanes of a sum: several of the widest vectors, so that none waits for the one before it.
const LANES: usize = 64;

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

/// Calls `$pass::<S, VECTORS>` with as many vectors as the lanes fill.
macro_rules! with_vectors {
    ($pass:ident($($argument:expr),*)) => {
        if const { S::F32_LANES == 16 } {
            $pass::<S, 4>($($argument),*)
        } else if const { S::F32_LANES == 8 } {
            $pass::<S, 8>($($argument),*)
        } else if const { S::F32_LANES == 4 } {
            $pass::<S, 16>($($argument),*)
        } else {
            $pass::<S, LANES>($($argument),*)
        }
    };
}

#[inline(always)]
fn lanes_of<S: Simd, const VECTORS: usize>(vectors: [S::f32s; VECTORS]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    let (places, _) = S::as_mut_simd_f32s(&mut lanes);
    places[..VECTORS].copy_from_slice(&vectors);
    lanes
}

#[inline(always)]
fn sum<S: Simd, const VECTORS: usize>(simd: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.split_at(x.len() - x.len() % LANES);
    let mut sums = [simd.splat_f32s(0.0); VECTORS];
    for block in S::as_simd_f32s(whole).0.chunks_exact(VECTORS) {
        for v in 0..VECTORS {
            sums[v] = simd.add_f32s(sums[v], block[v]);
        }
    }
    let mut lanes = lanes_of::<S, VECTORS>(sums);
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    total(lanes)
}

#[inline(always)]
fn squares<S: Simd, const VECTORS: usize>(simd: S, x: &[f32], mean: f32) -> f32 {
    let (whole, rest) = x.split_at(x.len() - x.len() % LANES);
    let mut sums = [simd.splat_f32s(0.0); VECTORS];
    let means = simd.splat_f32s(mean);
    for block in S::as_simd_f32s(whole).0.chunks_exact(VECTORS) {
        for v in 0..VECTORS {
            let d = simd.sub_f32s(block[v], means);
            sums[v] = simd.mul_add_f32s(d, d, sums[v]);
        }
    }
    let mut lanes = lanes_of::<S, VECTORS>(sums);
    for (lane, x) in lanes.iter_mut().zip(rest) {
        let d = x - mean;
        *lane = d.mul_add(d, *lane);
    }
    total(lanes)
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
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, y, means, scales, settings } = self;
        let Settings { weight, bias, eps, relu } = settings;
        let features = weight.len();
        let bias = &bias[..features];
        for row in 0..means.len() {
            let x = &x[row * features..][..features];
            let y = &mut y[row * features..][..features];
            let mean = with_vectors!(sum(simd, x)) / features as f32;
            let variance = f64::from(with_vectors!(squares(simd, x, mean))) / features as f64;
            let scale = (variance + eps).sqrt().recip() as f32;
            for c in 0..features {
                y[c] = ((x[c] - mean) * scale).mul_add(weight[c], bias[c]);
            }
            if relu {
                for y in y {
                    *y = if *y < 0.0 { 0.0 } else { *y };
                }
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
        let (x, dy) = (&x[range.clone()], dy.map(|dy| &dy[range]));
        let (means, scales) = (&saved.mean[first..], &saved.scale[first..]);
        simd::run(Backward { x, dy, dx, means, scales, settings, sums });
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
    /// Else `dx` holds it.
    dy: Option<&'a [f32]>,
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
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, dy, dx, means, scales, settings, sums } = self;
        let Settings { weight, bias, relu, .. } = settings;
        let features = weight.len();
        let bias = &bias[..features];
        let (d_weight, d_bias) = sums.split_at_mut(features);
        let d_bias = &mut d_bias[..features];
        for row in 0..x.len() / features {
            let x = &x[row * features..][..features];
            let dx = &mut dx[row * features..][..features];
            if let Some(dy) = dy {
                dx.copy_from_slice(&dy[row * features..][..features]);
            }
            let (mean, scale) = (means[row], scales[row]);
            if relu {
                for c in 0..features {
                    // The operations of the forward pass: the sign is the same too.
                    let open = ((x[c] - mean) * scale).mul_add(weight[c], bias[c]) > 0.0;
                    dx[c] = if open { dx[c] } else { 0.0 };
                }
            }
            let moments = (mean, scale);
            let [inner, normed] = with_vectors!(row_sums(simd, x, dx, weight, moments, d_weight, d_bias));
            let (inner, normed) = (inner / features as f32, normed / features as f32);
            for c in 0..features {
                let centred = dx[c].mul_add(weight[c], -inner);
                dx[c] = ((x[c] - mean) * scale).mul_add(-normed, centred) * scale;
            }
        }
    }
}

/// Adds a row to the gradients of weight and bias; gives the sums of `dy * weight`, and of that times the
/// normalised `x`.
#[inline(always)]
fn row_sums<S: Simd, const VECTORS: usize>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    (mean, scale): (f32, f32),
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) -> [f32; 2] {
    let whole = x.len() - x.len() % LANES;
    let zero = simd.splat_f32s(0.0);
    let (means, scales) = (simd.splat_f32s(mean), simd.splat_f32s(scale));
    let (mut inner, mut normed) = ([zero; VECTORS], [zero; VECTORS]);
    let d_weights = S::as_mut_simd_f32s(&mut d_weight[..whole]).0.chunks_exact_mut(VECTORS);
    let d_biases = S::as_mut_simd_f32s(&mut d_bias[..whole]).0.chunks_exact_mut(VECTORS);
    let given = S::as_simd_f32s(&x[..whole]).0.chunks_exact(VECTORS);
    let given = given.zip(S::as_simd_f32s(&dy[..whole]).0.chunks_exact(VECTORS));
    let given = given.zip(S::as_simd_f32s(&weight[..whole]).0.chunks_exact(VECTORS));
    for (((x, dy), weight), (d_weight, d_bias)) in given.zip(d_weights.zip(d_biases)) {
        for v in 0..VECTORS {
            let normal = simd.mul_f32s(simd.sub_f32s(x[v], means), scales);
            d_weight[v] = simd.mul_add_f32s(dy[v], normal, d_weight[v]);
            d_bias[v] = simd.add_f32s(d_bias[v], dy[v]);
            let d = simd.mul_f32s(dy[v], weight[v]);
            inner[v] = simd.add_f32s(inner[v], d);
            normed[v] = simd.mul_add_f32s(d, normal, normed[v]);
        }
    }
    let (mut inner, mut normed) = (lanes_of::<S, VECTORS>(inner), lanes_of::<S, VECTORS>(normed));
    let rest = x.len() - whole;
    let (x, dy, weight) = (&x[whole..][..rest], &dy[whole..][..rest], &weight[whole..][..rest]);
    let (d_weight, d_bias) = (&mut d_weight[whole..][..rest], &mut d_bias[whole..][..rest]);
    let (inner_rest, normed_rest) = (&mut inner[..rest], &mut normed[..rest]);
    for c in 0..rest {
        let normal = (x[c] - mean) * scale;
        d_weight[c] = dy[c].mul_add(normal, d_weight[c]);
        d_bias[c] += dy[c];
        let d = dy[c] * weight[c];
        inner_rest[c] += d;
        normed_rest[c] = d.mul_add(normal, normed_rest[c]);
    }
    [total(inner), total(normed)]
}
