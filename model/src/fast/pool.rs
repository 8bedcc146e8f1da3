//! Max pooling of one channels-last image.

use super::{plan::Shape, simd};

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
    let channels = input.channels;
    simd::run(
        #[inline(always)]
        || {
            let pixels = y.chunks_exact_mut(channels).zip(argmax.chunks_exact_mut(channels));
            for (pixel, (y, argmax)) in pixels.enumerate() {
                let corner = (pixel / output.width) * stride * input.width + (pixel % output.width) * stride;
                let corner = corner * channels;
                y.copy_from_slice(&x[corner..corner + channels]);
                for (channel, at) in argmax.iter_mut().enumerate() {
                    *at = (corner + channel) as u32;
                }
                for tap in 1..kernel * kernel {
                    let start = corner + ((tap / kernel) * input.width + tap % kernel) * channels;
                    let candidates = &x[start..start + channels];
                    for (channel, ((y, at), &value)) in
                        y.iter_mut().zip(argmax.iter_mut()).zip(candidates).enumerate()
                    {
                        let larger = value > *y;
                        *y = if larger { value } else { *y };
                        *at = if larger { (start + channel) as u32 } else { *at };
                    }
                }
            }
        },
    );
}

/// Gives each output's gradient to the input that it came from.
pub(super) fn backward(dy: &[f32], argmax: &[u32], dx: &mut [f32]) {
    dx.fill(0.0);
    for (&gradient, &at) in dy.iter().zip(argmax) {
        dx[at as usize] += gradient;
    }
}
