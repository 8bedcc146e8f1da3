//! Convolution of one channels-last image with fewer multiplications, after Winograd (Lavin and
//! Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//!
//! A tile of 6 x 6 inputs becomes its 36 values at interpolation points, where a convolution is a
//! product per point: 36 multiplications instead of 144 for the 4 x 4 outputs of a 3 x 3 kernel, or
//! of 100 for the 2 x 2 outputs of a 5 x 5 kernel. Over the channels the products are matrix products.
//!
//! The points are 0, 2/3, -2/3, 3/2, -3/2 and infinity: their rounding error is less than half of
//! that of the usual 0, 1, -1, 2, -2, because the powers of a point and its reciprocal stay small.

use super::{
    gemm::{Columns, Rows, Store, nn, tn},
    plan::Shape,
    simd,
};
use pulp::{Simd, WithSimd};

/// Points in one dimension, and in two.
const POINTS: usize = 6;
const SPECTRUM: usize = POINTS * POINTS;

/// The points `A` and `B = 1 / A`, beside their negatives, 0 and infinity.
const A: f32 = 2.0 / 3.0;
const B: f32 = 3.0 / 2.0;

/// Channels come in multiples of the widest vector.
const LANES: usize = 16;

/// Floats between two planes of a spectrum beyond their size, so that the planes of one tile do not
/// fall into the same set of a cache.
const GAP: usize = 16;

/// Tiles at work: their spectra and the weights' fit a second-level cache.
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
    starts: Vec<u32>,
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

impl Winograd {
    /// `None` where it does not apply or does not pay: strides, other kernels, channels that do not
    /// fill vectors.
    pub(super) fn new(input: Shape, output: Shape, kernel: usize, padding: usize) -> Option<Self> {
        let channels_fit = [input, output].iter().all(|shape| shape.channels % LANES == 0);
        let same_stride = output.height + kernel == input.height + 2 * padding + 1
            && output.width + kernel == input.width + 2 * padding + 1;
        if !matches!(kernel, 3 | 5) || padding >= kernel || !channels_fit || !same_stride {
            return None;
        }
        let edge = POINTS + 1 - kernel;
        let (tiles_down, tiles_across) = (output.height.div_ceil(edge), output.width.div_ceil(edge));
        Some(Self {
            padded_width: tiles_across * edge + kernel - 1,
            starts: (0..TILES).map(|tile| (tile * input.channels) as u32).collect(),
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
                for row in 0..self.kernel {
                    for column in 0..self.kernel {
                        let value = (0..POINTS).map(|p| g[p][row] * rows[p][column]).sum();
                        f(o, i, row * self.kernel + column, value);
                    }
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

/// From a kernel's row to its values at the points.
fn filter_matrix(kernel: usize) -> [[f32; 5]; POINTS] {
    let row = |point: f32, scale: f32| std::array::from_fn(|power| point.powi(power as i32) / scale);
    let (of_a, of_b) = (2.0 * A * A * (A * A - B * B), 2.0 * B * B * (B * B - A * A));
    let mut infinity = [0.0; 5];
    infinity[kernel - 1] = 1.0;
    [[1.0, 0.0, 0.0, 0.0, 0.0], row(A, of_a), row(-A, of_a), row(B, of_b), row(-B, of_b), infinity]
}

#[inline(always)]
fn load<S: Simd>(_: S, values: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&values[at..at + S::F32_LANES]).0[0]
}

#[inline(always)]
fn put<S: Simd>(_: S, values: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut values[at..at + S::F32_LANES]).0[0] = value;
}

/// Six inputs to their values at the points.
#[inline(always)]
fn at_points<S: Simd>(simd: S, d: [S::f32s; POINTS]) -> [S::f32s; POINTS] {
    let splat = |value: f32| simd.splat_f32s(value);
    let fma = |x, y, z| simd.mul_add_f32s(x, y, z);
    let middle = splat(-(A * A + B * B));
    let even_a = fma(splat(-B * B), d[2], d[4]);
    let odd_a = fma(splat(-B), d[1], simd.mul_f32s(splat(A), d[3]));
    let even_b = fma(splat(-A * A), d[2], d[4]);
    let odd_b = fma(splat(-A), d[1], simd.mul_f32s(splat(B), d[3]));
    [
        fma(middle, d[2], simd.add_f32s(d[0], d[4])),
        simd.add_f32s(even_a, odd_a),
        simd.sub_f32s(even_a, odd_a),
        simd.add_f32s(even_b, odd_b),
        simd.sub_f32s(even_b, odd_b),
        fma(middle, d[3], simd.add_f32s(d[1], d[5])),
    ]
}

/// Values of a product at the points to `EDGE` outputs.
#[inline(always)]
fn from_points<S: Simd, const EDGE: usize>(simd: S, m: [S::f32s; POINTS]) -> [S::f32s; EDGE] {
    let splat = |value: f32| simd.splat_f32s(value);
    let (sum_a, difference_a) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (sum_b, difference_b) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    std::array::from_fn(|power| {
        let (of_a, of_b) = (splat(A.powi(power as i32)), splat(B.powi(power as i32)));
        let (a, b) = if power % 2 == 0 { (sum_a, sum_b) } else { (difference_a, difference_b) };
        let of_a_and_b = simd.mul_add_f32s(of_a, a, simd.mul_f32s(of_b, b));
        if power == 0 {
            simd.add_f32s(m[0], of_a_and_b)
        } else if power == EDGE - 1 {
            simd.add_f32s(m[5], of_a_and_b)
        } else {
            of_a_and_b
        }
    })
}

/// Gradients of `EDGE` outputs to those of the product at the points: [`from_points`] transposed.
#[inline(always)]
fn gradient_at_points<S: Simd, const EDGE: usize>(simd: S, dy: [S::f32s; EDGE]) -> [S::f32s; POINTS] {
    let of = |point: f32| {
        let (mut even, mut odd) = (dy[0], simd.mul_f32s(simd.splat_f32s(point), dy[1]));
        for (power, dy) in dy.iter().enumerate().skip(2) {
            let side = if power % 2 == 0 { &mut even } else { &mut odd };
            *side = simd.mul_add_f32s(simd.splat_f32s(point.powi(power as i32)), *dy, *side);
        }
        [simd.add_f32s(even, odd), simd.sub_f32s(even, odd)]
    };
    let ([a, minus_a], [b, minus_b]) = (of(A), of(B));
    [dy[0], a, minus_a, b, minus_b, dy[EDGE - 1]]
}

struct InputTransform<'a> {
    geometry: &'a Winograd,
    first: usize,
    tiles: usize,
    padded: &'a [f32],
    v: &'a mut [f32],
}

impl WithSimd for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { geometry, first, tiles, padded, v } = self;
        let channels = geometry.input.channels;
        let (row, plane) = (geometry.padded_width * channels, TILES * channels + GAP);
        for tile in 0..tiles {
            let (y, x) = geometry.corner(first + tile);
            for channel in (0..channels).step_by(S::F32_LANES) {
                let at = y * row + x * channels + channel;
                let lines: [[S::f32s; POINTS]; POINTS] = std::array::from_fn(|i| {
                    let line = std::array::from_fn(|j| load(simd, padded, at + i * row + j * channels));
                    at_points(simd, line)
                });
                let at = tile * channels + channel;
                for q in 0..POINTS {
                    let column = at_points(simd, std::array::from_fn(|i| lines[i][q]));
                    for (p, value) in column.into_iter().enumerate() {
                        put(simd, v, (p * POINTS + q) * plane + at, value);
                    }
                }
            }
        }
    }
}

struct OutputTransform<'a> {
    geometry: &'a Winograd,
    first: usize,
    tiles: usize,
    m: &'a [f32],
    bias: &'a [f32],
    relu: bool,
    y: &'a mut [f32],
}

impl WithSimd for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.geometry.edge {
            2 => self.run::<S, 2>(simd),
            _ => self.run::<S, 4>(simd),
        }
    }
}

impl OutputTransform<'_> {
    #[inline(always)]
    fn run<S: Simd, const EDGE: usize>(self, simd: S) {
        let Self { geometry, first, tiles, m, bias, relu, y } = self;
        let Shape { channels, height, width } = geometry.output;
        let plane = TILES * channels + GAP;
        let zero = simd.splat_f32s(0.0);
        for tile in 0..tiles {
            let (top, left) = geometry.corner(first + tile);
            let (rows, columns) = (EDGE.min(height - top), EDGE.min(width - left));
            for channel in (0..channels).step_by(S::F32_LANES) {
                let at = tile * channels + channel;
                let lines: [[S::f32s; EDGE]; POINTS] = std::array::from_fn(|p| {
                    from_points(simd, std::array::from_fn(|q| load(simd, m, (p * POINTS + q) * plane + at)))
                });
                let bias = if bias.is_empty() { zero } else { load(simd, bias, channel) };
                for j in 0..EDGE {
                    if j >= columns {
                        break;
                    }
                    let column: [S::f32s; EDGE] = from_points(simd, std::array::from_fn(|p| lines[p][j]));
                    for (i, value) in column.into_iter().enumerate().take(rows) {
                        let sum = simd.add_f32s(value, bias);
                        // In this order a NaN stays one.
                        let value = if relu { simd.max_f32s(zero, sum) } else { sum };
                        put(simd, y, ((top + i) * width + left + j) * channels + channel, value);
                    }
                }
            }
        }
    }
}

struct GradientTransform<'a> {
    geometry: &'a Winograd,
    first: usize,
    tiles: usize,
    dy: &'a [f32],
    m: &'a mut [f32],
}

impl WithSimd for GradientTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.geometry.edge {
            2 => self.run::<S, 2>(simd),
            _ => self.run::<S, 4>(simd),
        }
    }
}

impl GradientTransform<'_> {
    #[inline(always)]
    fn run<S: Simd, const EDGE: usize>(self, simd: S) {
        let Self { geometry, first, tiles, dy, m } = self;
        let Shape { channels, height, width } = geometry.output;
        let plane = TILES * channels + GAP;
        for tile in 0..tiles {
            let (top, left) = geometry.corner(first + tile);
            let (rows, columns) = (EDGE.min(height - top), EDGE.min(width - left));
            for channel in (0..channels).step_by(S::F32_LANES) {
                let lines: [[S::f32s; POINTS]; EDGE] = std::array::from_fn(|i| {
                    // Beyond the image's edge there is no output.
                    let line = std::array::from_fn(|j| match i < rows && j < columns {
                        true => load(simd, dy, ((top + i) * width + left + j) * channels + channel),
                        false => simd.splat_f32s(0.0),
                    });
                    gradient_at_points::<S, EDGE>(simd, line)
                });
                let at = tile * channels + channel;
                for q in 0..POINTS {
                    let column = gradient_at_points::<S, EDGE>(simd, std::array::from_fn(|i| lines[i][q]));
                    for (p, value) in column.into_iter().enumerate() {
                        put(simd, m, (p * POINTS + q) * plane + at, value);
                    }
                }
            }
        }
    }
}
