//! Softmax of the rows of attention scores and its gradient, in place.
//!
//! Sums run over 16 fixed lanes, so they do not depend on the width of a vector.

use super::math;
use pulp::{Simd, WithSimd};

/// Lanes of the sums.
const LANES: usize = 16;

#[inline(always)]
fn pairwise(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut len = LANES / 2;
    while len > 0 {
        for lane in 0..len {
            lanes[lane] = f(lanes[lane], lanes[lane + len]);
        }
        len /= 2;
    }
    lanes[0]
}

/// A NaN may get lost here: it reaches its row by the exponentials.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
pub(super) fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = larger(*lane, *value);
    }
    pairwise(lanes, larger)
}

#[inline(always)]
pub(super) fn sum(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += value;
    }
    pairwise(lanes, |a, b| a + b)
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in (&mut a).zip(&mut b) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a.remainder().iter().zip(b.remainder())) {
        *lane = a.mul_add(*b, *lane);
    }
    pairwise(lanes, |a, b| a + b)
}

/// Scores become probabilities: each row of `stride` values by the softmax of `scale` times the
/// values that it sees; zeros after them.
pub(super) struct Softmax<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) scale: f32,
    /// Keys that the first row sees; the next one sees one more where `causal`.
    pub(super) visible: usize,
    pub(super) causal: bool,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (index, row) in self.scores.chunks_exact_mut(self.stride).enumerate() {
            let visible = if self.causal { self.visible + index } else { self.visible };
            let (row, hidden) = row.split_at_mut(visible);
            hidden.fill(0.0);
            let scale = simd.splat_f32s(self.scale);
            let shift = simd.splat_f32s(-largest(row) * self.scale);
            let (full, rest) = S::as_mut_simd_f32s(row);
            for value in full {
                *value = math::exp(simd, simd.mul_add_f32s(*value, scale, shift));
            }
            if !rest.is_empty() {
                let value = simd.mul_add_f32s(simd.partial_load_f32s(rest), scale, shift);
                simd.partial_store_f32s(rest, math::exp(simd, value));
            }
            let factor = 1.0 / sum(row);
            for value in row {
                *value *= factor;
            }
        }
    }
}

/// Gradients of probabilities become those of scores: `scale p (dp - sum(p dp))`.
pub(super) struct Gradient<'a> {
    pub(super) probabilities: &'a [f32],
    pub(super) gradients: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) scale: f32,
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.gradients.chunks_exact_mut(self.stride);
        for (d, p) in rows.zip(self.probabilities.chunks_exact(self.stride)) {
            let mean = dot(d, p);
            for (d, p) in d.iter_mut().zip(p) {
                *d = (*d - mean) * *p * self.scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::{
        kernels::vector::tests::{assert_same_bits, noise},
        simd,
    };

    #[test]
    fn rows_are_the_same_to_the_bit_without_vectors_and_sum_to_one() {
        for (rows, stride) in [(1, 1), (5, 5), (9, 40), (3, 131)] {
            let pass = |scalar: bool| -> Vec<f32> {
                let (mut p, mut d) = (noise(rows * stride, 1), noise(rows * stride, 2));
                let visible = stride - rows + 1;
                let softmax = Softmax { scores: &mut p, stride, scale: 3.0, visible, causal: true };
                if scalar {
                    Simd::vectorize(pulp::Scalar, softmax)
                } else {
                    simd::run(softmax)
                }
                for (row, p) in p.chunks(stride).enumerate() {
                    assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    assert!(p[visible + row..].iter().all(|p| *p == 0.0));
                }
                let gradient = Gradient { probabilities: &p, gradients: &mut d, stride, scale: 0.5 };
                if scalar {
                    Simd::vectorize(pulp::Scalar, gradient)
                } else {
                    simd::run(gradient)
                }
                [p, d].concat()
            };
            assert_same_bits(&pass(false), &pass(true), &format!("{rows} rows of {stride}"));
        }
    }
}
