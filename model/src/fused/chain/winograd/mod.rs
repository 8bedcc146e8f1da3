//! Convolution of one channels-last image with fewer multiplications, after Winograd (Lavin and
//! Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//!
//! A tile of 6 x 6 inputs becomes its 36 values at interpolation points, where a convolution is a
//! product per point: 36 multiplications instead of 144 for the 4 x 4 outputs of a 3 x 3 kernel, or
//! of 100 for the 2 x 2 outputs of a 5 x 5 kernel. Over the channels the products are matrix products.
//!
//! The points are 0, 2/3, -2/3, 3/2, -3/2 and infinity: their rounding error is less than half of
//! that of the usual 0, 1, -1, 2, -2, because the powers of a point and its reciprocal stay small.

mod tiles;

use super::plan::Shape;
use crate::fused::kernels::conv::transform::{POINTS, filter_matrix};
use crate::fused::{
    gemm::{Columns, Rows, Store, nn, tn},
    simd,
};
use tiles::{GradientTransform, InputTransform, OutputTransform};

/// Points in two dimensions.
const SPECTRUM: usize = POINTS * POINTS;

/// Channels come in multiples of the widest vector.
const LANES: usize = 16;

/// Floats between two planes of a spectrum beyond their size, so that the planes of one tile do not
/// fall into the same set of a cache.
const GAP: usize = 16;

/// Tiles transformed at a time: their spectra and the weights' fit a second-level cache.
const TILES: usize = 28;

/// The fixed geometry of a convolution with stride 1.
#[derive(Debug)]
pub(super) struct Winograd {
    input: Shape,
    output: Shape,
    kernel: usize,
    padding: usize,
    /// Edge of a tile of outputs.
    edge: usize,
    tiles_down: usize,
    tiles_across: usize,
    /// Width of the zero-padded input, in pixels.
    padded_width: usize,
    /// Starts of the tiles in a plane of the input's spectrum.
    starts: Vec<usize>,
}

/// Buffers for one image.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The zero-padded input; the borders stay zero.
    padded: Vec<f32>,
    /// `[point][tile][channel]` of inputs and of outputs, or of the outputs' gradient.
    input: Vec<f32>,
    output: Vec<f32>,
}

/// Not with strides, other kernels, or channels that do not fill vectors.
fn applies(input: Shape, output: Shape, kernel: usize, padding: usize) -> bool {
    let channels_fit = [input, output].iter().all(|shape| shape.channels % LANES == 0);
    let same_stride = output.height + kernel == input.height + 2 * padding + 1
        && output.width + kernel == input.width + 2 * padding + 1;
    matches!(kernel, 3 | 5) && padding < kernel && channels_fit && same_stride
}

impl Winograd {
    /// `None` where it does not apply or does not pay.
    pub(super) fn new(input: Shape, output: Shape, kernel: usize, padding: usize) -> Option<Self> {
        if !applies(input, output, kernel, padding) {
            return None;
        }
        let edge = POINTS + 1 - kernel;
        let (tiles_down, tiles_across) = (output.height.div_ceil(edge), output.width.div_ceil(edge));
        Some(Self {
            padded_width: tiles_across * edge + kernel - 1,
            starts: (0..TILES).map(|tile| tile * input.channels).collect(),
            input,
            output,
            kernel,
            padding,
            edge,
            tiles_down,
            tiles_across,
        })
    }

    /// Length of the transformed weights, and of the sums of their gradients.
    pub(super) fn spectrum_len(&self) -> usize {
        SPECTRUM * self.input.channels * self.output.channels
    }

    /// The same before there is a [`Winograd`]; `None` where there will be none.
    pub(super) fn spectrum_len_of(
        input: Shape,
        output: Shape,
        kernel: usize,
        padding: usize,
    ) -> Option<usize> {
        applies(input, output, kernel, padding).then(|| SPECTRUM * input.channels * output.channels)
    }

    pub(super) fn scratch(&self) -> Scratch {
        let padded_height = self.tiles_down * self.edge + self.kernel - 1;
        let plane = |channels: usize| SPECTRUM * (TILES * channels + GAP);
        Scratch {
            padded: vec![0.0; padded_height * self.padded_width * self.input.channels],
            input: vec![0.0; plane(self.input.channels)],
            output: vec![0.0; plane(self.output.channels)],
        }
    }

    /// Transforms weights to `[point][in][out]`; `tap(out, in, row, column)` gives one.
    pub(super) fn pack(&self, tap: impl Fn(usize, usize, usize, usize) -> f32, packed: &mut Vec<f32>) {
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        packed.resize(self.spectrum_len(), 0.0);
        let g = filter_matrix(self.kernel);
        for i in 0..inputs {
            for o in 0..outputs {
                let mut rows = [[0.0f32; POINTS]; 5];
                for (row, values) in rows[..self.kernel].iter_mut().enumerate() {
                    for column in 0..self.kernel {
                        let weight = tap(o, i, row, column);
                        for (value, g) in values.iter_mut().zip(&g) {
                            *value += g[column] * weight;
                        }
                    }
                }
                for (p, g) in g.iter().enumerate() {
                    for q in 0..POINTS {
                        let value = (0..self.kernel).map(|row| g[row] * rows[row][q]).sum();
                        packed[((p * POINTS + q) * inputs + i) * outputs + o] = value;
                    }
                }
            }
        }
    }

    /// Calls `f(out, in, row * kernel + column, value)` for every weight's gradient.
    pub(super) fn for_each_unpacked(&self, sums: &[f32], mut f: impl FnMut(usize, usize, usize, f32)) {
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        let g = filter_matrix(self.kernel);
        for i in 0..inputs {
            for o in 0..outputs {
                let mut rows = [[0.0f32; 5]; POINTS];
                for (p, row) in rows.iter_mut().enumerate() {
                    for (q, g) in g.iter().enumerate() {
                        let value = sums[((p * POINTS + q) * inputs + i) * outputs + o];
                        for (sum, g) in row.iter_mut().zip(g) {
                            *sum += g * value;
                        }
                    }
                }
                for place in 0..self.kernel * self.kernel {
                    let (row, column) = (place / self.kernel, place % self.kernel);
                    let value = g.iter().zip(&rows).map(|(g, sums)| g[row] * sums[column]).sum();
                    f(o, i, place, value);
                }
            }
        }
    }

    /// `y = conv(x) + bias`, then ReLU if asked. No bias: an empty one.
    pub(super) fn forward(
        &self,
        x: &[f32],
        packed: &[f32],
        bias: &[f32],
        relu: bool,
        scratch: &mut Scratch,
        y: &mut [f32],
    ) {
        self.pad(x, &mut scratch.padded);
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        for (first, tiles) in self.groups() {
            self.transform_input(first, tiles, scratch);
            let spectra = scratch
                .input
                .chunks_exact(TILES * inputs + GAP)
                .zip(scratch.output.chunks_exact_mut(TILES * outputs + GAP))
                .zip(packed.chunks_exact(inputs * outputs));
            for ((v, m), u) in spectra {
                let starts = &self.starts[..tiles];
                let rows = Rows { data: v, starts, segments: &[0], segment_len: inputs };
                nn(rows, u, outputs, m, outputs, outputs, Store::Set);
            }
            let back = OutputTransform { geometry: self, first, tiles, m: &scratch.output, bias, relu, y };
            simd::run(back);
        }
    }

    /// Adds the gradient of the transformed weights to `sums`.
    pub(super) fn backward_weights(&self, x: &[f32], dy: &[f32], scratch: &mut Scratch, sums: &mut [f32]) {
        self.pad(x, &mut scratch.padded);
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        for (first, tiles) in self.groups() {
            self.transform_input(first, tiles, scratch);
            simd::run(GradientTransform { geometry: self, first, tiles, dy, m: &mut scratch.output });
            let spectra = scratch
                .input
                .chunks_exact(TILES * inputs + GAP)
                .zip(scratch.output.chunks_exact(TILES * outputs + GAP))
                .zip(sums.chunks_exact_mut(inputs * outputs));
            for ((v, m), sum) in spectra {
                let columns = Columns { data: v, starts: &self.starts[..tiles], offset: 0, width: inputs };
                tn(columns, m, outputs, sum, outputs, outputs, Store::Add);
            }
        }
    }

    /// First tile and number of tiles of each group.
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> {
        let tiles = self.tiles_down * self.tiles_across;
        (0..tiles).step_by(TILES).map(move |first| (first, TILES.min(tiles - first)))
    }

    fn pad(&self, x: &[f32], padded: &mut [f32]) {
        let Shape { channels, width, .. } = self.input;
        let row = self.padded_width * channels;
        for (y, line) in x.chunks_exact(width * channels).enumerate() {
            let at = (y + self.padding) * row + self.padding * channels;
            padded[at..at + line.len()].copy_from_slice(line);
        }
    }

    fn transform_input(&self, first: usize, tiles: usize, scratch: &mut Scratch) {
        let Scratch { padded, input, .. } = scratch;
        simd::run(InputTransform { geometry: self, first, tiles, padded, v: input });
    }

    /// Row and column of a tile's first output.
    fn corner(&self, tile: usize) -> (usize, usize) {
        (tile / self.tiles_across * self.edge, tile % self.tiles_across * self.edge)
    }
}
