//! Max pooling of one channels-last image.

use super::plan::Shape;
use crate::fused::simd;
use pulp::{Simd, WithSimd};

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// Writes the maximum of every window, and where in `x` it is.
///
/// Of equal values the first in row order wins, as in PyTorch.
pub(super) fn forward(
    x: &[f32],
    (input, output): (Shape, Shape),
    (kernel, stride): (usize, usize),
    y: &mut [f32],
    argmax: &mut [u32],
) {
    simd::run(Forward { x, input, output, kernel, stride, y, argmax });
}

struct Forward<'a> {
    x: &'a [f32],
    input: Shape,
    output: Shape,
    kernel: usize,
    stride: usize,
    y: &'a mut [f32],
    argmax: &'a mut [u32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, input, output, kernel, stride, y, argmax } = self;
        let channels = input.channels;
        let lanes: [u32; MOST_LANES] = std::array::from_fn(|lane| lane as u32);
        let lanes = simd.partial_load_u32s(&lanes[..S::F32_LANES]);
        let pixels = y.chunks_exact_mut(channels).zip(argmax.chunks_exact_mut(channels));
        for (pixel, (y, argmax)) in pixels.enumerate() {
            let corner = (pixel / output.width) * stride * input.width + (pixel % output.width) * stride;
            let vectors = y.chunks_mut(S::F32_LANES).zip(argmax.chunks_mut(S::F32_LANES));
            for (vector, (y, argmax)) in vectors.enumerate() {
                let channel = vector * S::F32_LANES;
                let at = |tap: usize| {
                    let pixel = corner + (tap / kernel) * input.width + tap % kernel;
                    pixel * channels + channel
                };
                let mut best = simd.partial_load_f32s(&x[at(0)..][..y.len()]);
                let mut best_at = simd.splat_u32s(at(0) as u32);
                for tap in 1..kernel * kernel {
                    let value = simd.partial_load_f32s(&x[at(tap)..][..y.len()]);
                    let larger = simd.greater_than_f32s(value, best);
                    best = simd.select_f32s(larger, value, best);
                    best_at = simd.select_u32s(larger, simd.splat_u32s(at(tap) as u32), best_at);
                }
                simd.partial_store_f32s(y, best);
                simd.partial_store_u32s(argmax, simd.add_u32s(best_at, lanes));
            }
        }
    }
}

/// Gives each output's gradient to the input that it came from.
pub(super) fn backward(dy: &[f32], argmax: &[u32], dx: &mut [f32]) {
    dx.fill(0.0);
    for (&gradient, &at) in dy.iter().zip(argmax) {
        dx[at as usize] += gradient;
    }
}
