//! Convolution of one channels-last image, forward and backward, as matrix products without `im2col`;
//! where [`Winograd`] applies, with its fewer multiplications.
//!
//! A kernel row over a channels-last image is one contiguous run of `kernel * channels` values, so
//! the matrix that `im2col` would build is a list of offsets into the zero-padded image.

use super::{
    plan::Shape,
    winograd::{self, Winograd},
};
use crate::fused::gemm::{Columns, Rows, Store, nn, tn};

/// Pixels whose gradients stay in the first-level cache while all weights' gradients take them in.
const PIXELS: usize = 64;

/// The fixed geometry of a convolution.
#[derive(Debug)]
pub(super) struct Conv {
    input: Shape,
    output: Shape,
    kernel: usize,
    stride: usize,
    /// Zeros around the input in the forward pass.
    padding: usize,
    /// Start of each output pixel's window in the padded input.
    starts: Vec<usize>,
    /// Start of each kernel row within a window of the padded input.
    segments: Vec<usize>,
    /// The same for the input's gradient as a convolution of the spread output gradient.
    back_starts: Vec<usize>,
    back_segments: Vec<usize>,
    /// The forward pass and the input's gradient, where they pay.
    winograd: Option<(Winograd, Winograd)>,
}

/// Weights as the products want them; made once per step.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// `[kernel row, kernel column, in][out]`, or the transform of it.
    forward: Vec<f32>,
    /// `[kernel row, kernel column, out][in]`, the kernel turned by 180 degrees, or the transform of it.
    backward: Vec<f32>,
}

/// Zero-padded copies of one image, whose borders stay zero, or the buffers of [`Winograd`].
#[derive(Debug, Default)]
pub(super) struct ConvScratch {
    input: Vec<f32>,
    output_gradient: Vec<f32>,
    forward: winograd::Scratch,
    backward: winograd::Scratch,
}

fn offsets(height: usize, width: usize, step: usize, row_len: usize) -> Vec<usize> {
    (0..height * width).map(|p| (p / width) * step * row_len + (p % width) * step).collect()
}

impl Conv {
    pub(super) fn new(input: Shape, output: Shape, kernel: usize, padding: usize, stride: usize) -> Self {
        let padded_width = input.width + 2 * padding;
        let spread_width = input.width + kernel - 1;
        let scale = |offsets: Vec<usize>, channels: usize| -> Vec<usize> {
            offsets.into_iter().map(|offset| offset * channels).collect()
        };
        Self {
            starts: scale(offsets(output.height, output.width, stride, padded_width), input.channels),
            segments: scale(offsets(kernel, 1, 1, padded_width), input.channels),
            back_starts: scale(offsets(input.height, input.width, 1, spread_width), output.channels),
            back_segments: scale(offsets(kernel, 1, 1, spread_width), output.channels),
            winograd: Winograd::new(input, output, kernel, padding).zip(Winograd::new(
                output,
                input,
                kernel,
                kernel - 1 - padding.min(kernel - 1),
            )),
            input,
            output,
            kernel,
            stride,
            padding,
        }
    }

    fn weights(&self) -> usize {
        self.kernel * self.kernel * self.input.channels * self.output.channels
    }

    /// Length of the sums of the weights' gradient, which are not laid out as the weights are.
    pub(super) fn sums_len(&self) -> usize {
        self.winograd.as_ref().map_or(self.weights(), |(forward, _)| forward.spectrum_len())
    }

    pub(super) fn scratch(&self, with_gradient: bool) -> ConvScratch {
        if let Some((forward, backward)) = &self.winograd {
            let backward = if with_gradient { backward.scratch() } else { winograd::Scratch::default() };
            return ConvScratch { forward: forward.scratch(), backward, ..ConvScratch::default() };
        }
        let Shape { channels, height, width } = self.input;
        let padded = (height + 2 * self.padding) * (width + 2 * self.padding) * channels;
        let spread = (height + self.kernel - 1) * (width + self.kernel - 1) * self.output.channels;
        ConvScratch {
            input: vec![0.0; padded],
            output_gradient: vec![0.0; if with_gradient { spread } else { 0 }],
            ..ConvScratch::default()
        }
    }

    /// Rearranges PyTorch's `[out, in, row, column]` weights.
    pub(super) fn pack(&self, weights: &[f32], packed: &mut Packed, with_gradient: bool) {
        let (k, inputs, outputs) = (self.kernel, self.input.channels, self.output.channels);
        if let Some((forward, backward)) = &self.winograd {
            let at = |o: usize, i: usize, tap: usize| weights[(o * inputs + i) * k * k + tap];
            forward.pack(|o, i, row, column| at(o, i, row * k + column), &mut packed.forward);
            if with_gradient {
                // Of the input's gradient, the outputs are the inputs, and the kernel is turned.
                let turned = |i, o, row, column| at(o, i, k * k - 1 - (row * k + column));
                backward.pack(turned, &mut packed.backward);
            }
            return;
        }
        packed.forward.resize(self.weights(), 0.0);
        packed.backward.resize(if with_gradient { self.weights() } else { 0 }, 0.0);
        for (o, of_out) in weights.chunks_exact(inputs * k * k).enumerate() {
            for (i, of_in) in of_out.chunks_exact(k * k).enumerate() {
                for (tap, &weight) in of_in.iter().enumerate() {
                    packed.forward[(tap * inputs + i) * outputs + o] = weight;
                    if with_gradient {
                        packed.backward[((k * k - 1 - tap) * outputs + o) * inputs + i] = weight;
                    }
                }
            }
        }
    }

    /// Calls `f(position in PyTorch's layout, value)` for every element of a gradient's sums.
    pub(super) fn for_each_unpacked(&self, gradient: &[f32], mut f: impl FnMut(usize, f32)) {
        let (taps, inputs, outputs) = (self.kernel * self.kernel, self.input.channels, self.output.channels);
        if let Some((forward, _)) = &self.winograd {
            return forward
                .for_each_unpacked(gradient, |o, i, tap, value| f((o * inputs + i) * taps + tap, value));
        }
        for o in 0..outputs {
            for i in 0..inputs {
                for tap in 0..taps {
                    f((o * inputs + i) * taps + tap, gradient[(tap * inputs + i) * outputs + o]);
                }
            }
        }
    }

    fn pad(&self, x: &[f32], padded: &mut [f32]) {
        let Shape { channels, width, .. } = self.input;
        let row = (width + 2 * self.padding) * channels;
        for (y, line) in x.chunks_exact(width * channels).enumerate() {
            let at = (y + self.padding) * row + self.padding * channels;
            padded[at..at + line.len()].copy_from_slice(line);
        }
    }

    /// `y = conv(x) + bias`, then ReLU if asked.
    pub(super) fn forward(
        &self,
        x: &[f32],
        packed: &Packed,
        bias: &[f32],
        relu: bool,
        scratch: &mut ConvScratch,
        y: &mut [f32],
    ) {
        if let Some((forward, _)) = &self.winograd {
            return forward.forward(x, &packed.forward, bias, relu, &mut scratch.forward, y);
        }
        self.pad(x, &mut scratch.input);
        let outputs = self.output.channels;
        let rows = Rows {
            data: &scratch.input,
            starts: &self.starts,
            segments: &self.segments,
            segment_len: self.kernel * self.input.channels,
        };
        nn(rows, &packed.forward, outputs, y, outputs, outputs, Store::ColumnBias { bias, relu });
    }

    /// Adds the gradients of weights (as [`Conv::sums_len`] says) and bias.
    pub(super) fn backward_weights(
        &self,
        x: &[f32],
        dy: &[f32],
        scratch: &mut ConvScratch,
        weights: &mut [f32],
        bias: &mut [f32],
    ) {
        for dy in dy.chunks_exact(self.output.channels) {
            for (sum, value) in bias.iter_mut().zip(dy) {
                *sum += value;
            }
        }
        if let Some((forward, _)) = &self.winograd {
            return forward.backward_weights(x, dy, &mut scratch.forward, weights);
        }
        self.pad(x, &mut scratch.input);
        let outputs = self.output.channels;
        let width = self.kernel * self.input.channels;
        for (starts, dy) in self.starts.chunks(PIXELS).zip(dy.chunks(PIXELS * outputs)) {
            for (&segment, gradient) in self.segments.iter().zip(weights.chunks_exact_mut(width * outputs)) {
                let columns = Columns { data: &scratch.input, starts, offset: segment, width };
                tn(columns, dy, outputs, gradient, outputs, outputs, Store::Add);
            }
        }
    }

    /// The gradient of the input.
    pub(super) fn backward_input(
        &self,
        dy: &[f32],
        packed: &Packed,
        scratch: &mut ConvScratch,
        dx: &mut [f32],
    ) {
        if let Some((_, backward)) = &self.winograd {
            return backward.forward(dy, &packed.backward, &[], false, &mut scratch.backward, dx);
        }
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        // The output's gradient, its pixels `stride` apart, inside a border of what the kernel overhangs.
        let border = self.kernel - 1 - self.padding;
        let row = self.input.width + self.kernel - 1;
        for (pixel, dy) in dy.chunks_exact(outputs).enumerate() {
            let (y, x) = (pixel / self.output.width, pixel % self.output.width);
            let at = ((y * self.stride + border) * row + x * self.stride + border) * outputs;
            scratch.output_gradient[at..at + outputs].copy_from_slice(dy);
        }
        let rows = Rows {
            data: &scratch.output_gradient,
            starts: &self.back_starts,
            segments: &self.back_segments,
            segment_len: self.kernel * outputs,
        };
        nn(rows, &packed.backward, inputs, dx, inputs, inputs, Store::Set);
    }
}
