//! Depthwise convolution of channels-last images: each channel with a kernel of its own.
//!
//! Vectors go over channels; several pixels of a row share each load of a weight. The inner pixels of a
//! row have the same taps, so they need no tests of bounds; those at the borders have fewer.

use super::{
    columns::items_per_piece,
    vector::{load, relu, store},
    window::{Axis, Run, runs},
};
use crate::fused::{parallel::Threads, simd};
use pulp::{Simd, WithSimd};

/// Most pieces whose gradients of the weights are summed apart.
const MAX_PIECES: usize = 32;

/// A depthwise convolution of images `[height, width, channels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) channels: usize,
    pub(crate) height: Axis,
    pub(crate) width: Axis,
}

impl Geometry {
    /// Values of an input image.
    pub(crate) fn input_len(&self) -> usize {
        self.height.input * self.width.input * self.channels
    }

    /// Values of an output image.
    pub(crate) fn output_len(&self) -> usize {
        self.height.output() * self.width.output() * self.channels
    }

    fn taps(&self) -> usize {
        self.height.kernel * self.width.kernel
    }

    /// From PyTorch's `[channels, 1, kh, kw]` to `[kh * kw, channels]`.
    pub(crate) fn pack(&self, weight: &[f32], packed: &mut Vec<f32>) {
        let taps = self.taps();
        packed.clear();
        for tap in 0..taps {
            packed.extend(weight.iter().skip(tap).step_by(taps));
        }
    }

    /// Writes the outputs of a batch, from packed weights.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
        threads: &Threads,
    ) {
        let rows: Vec<Vec<(usize, usize)>> =
            (0..self.height.output()).map(|o| self.height.taps(o).collect()).collect();
        let outputs = self.width.output();
        let runs = runs(outputs, 1, self.width.stride, |o| self.width.taps(o).collect());
        let plan = Plan {
            channels: self.channels,
            kernel_width: self.width.kernel,
            image_len: self.input_len(),
            row_len: self.width.input * self.channels,
            step: 1,
            input_step: self.width.stride,
            rows,
            runs,
        };
        plan.run(x, packed, bias, relu, y, outputs, threads);
    }

    /// Writes the gradient of the inputs.
    pub(crate) fn backward_input(&self, dy: &[f32], packed: &[f32], dx: &mut [f32], threads: &Threads) {
        let rows: Vec<Vec<(usize, usize)>> =
            (0..self.height.input).map(|i| self.height.windows(i).collect()).collect();
        let inputs = self.width.input;
        let runs = runs(inputs, self.width.stride, 1, |i| self.width.windows(i).collect());
        let plan = Plan {
            channels: self.channels,
            kernel_width: self.width.kernel,
            image_len: self.output_len(),
            row_len: self.width.output() * self.channels,
            step: self.width.stride,
            input_step: 1,
            rows,
            runs,
        };
        plan.run(dy, packed, None, false, dx, inputs, threads);
    }

    /// Writes the gradients of the weights, in PyTorch's layout, and of the bias if there is one.
    pub(crate) fn backward_weight(
        &self,
        x: &[f32],
        dy: &[f32],
        d_weight: &mut [f32],
        d_bias: Option<&mut [f32]>,
        partial: &mut Vec<f32>,
        threads: &Threads,
    ) {
        let (taps, channels) = (self.taps(), self.channels);
        let batch = x.len() / self.input_len();
        let samples = items_per_piece(batch, self.input_len()).max(batch.div_ceil(MAX_PIECES));
        // One row more than taps: the bias.
        let len = (taps + 1) * channels;
        partial.clear();
        partial.resize(batch.div_ceil(samples) * len, 0.0);
        let runs = runs(self.width.output(), 1, self.width.stride, |o| self.width.taps(o).collect());
        let mut pieces: Vec<&mut [f32]> = partial.chunks_exact_mut(len).collect();
        threads.each(&mut pieces, |piece, out| {
            let first = piece * samples;
            let count = samples.min(batch - first);
            let x = &x[first * self.input_len()..][..count * self.input_len()];
            let dy = &dy[first * self.output_len()..][..count * self.output_len()];
            simd::run(Weights { geometry: self, runs: &runs, x, dy, out });
        });
        let mut total = vec![0.0f64; len];
        for piece in partial.chunks_exact(len) {
            total.iter_mut().zip(piece).for_each(|(total, value)| *total += f64::from(*value));
        }
        for (tap, total) in total[..taps * channels].chunks_exact(channels).enumerate() {
            let column = d_weight.iter_mut().skip(tap).step_by(taps);
            column.zip(total).for_each(|(d, total)| *d = *total as f32);
        }
        if let Some(d_bias) = d_bias {
            d_bias.iter_mut().zip(&total[taps * channels..]).for_each(|(d, total)| *d = *total as f32);
        }
    }
}

/// Every output is the sum over its taps of an input times a weight.
struct Plan {
    channels: usize,
    kernel_width: usize,
    /// Values of an image that is read, and of one of its rows.
    image_len: usize,
    row_len: usize,
    /// Distances of the pixels of a run that are written and of those that are read.
    step: usize,
    input_step: usize,
    /// Taps of each row that is written.
    rows: Vec<Vec<(usize, usize)>>,
    runs: Vec<Run>,
}

impl Plan {
    fn run(
        &self,
        x: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
        pixels: usize,
        threads: &Threads,
    ) {
        let row_len = pixels * self.channels;
        threads.rows(y, row_len, row_len * self.kernel_width * 2, |first, y| {
            simd::run(Rows { plan: self, x, packed, bias, relu, y, first, out_len: row_len });
        });
    }
}

/// Rows `first..` of the batch.
struct Rows<'a> {
    plan: &'a Plan,
    x: &'a [f32],
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
    relu: bool,
    y: &'a mut [f32],
    first: usize,
    out_len: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { plan, x, packed, bias, relu, y, first, out_len } = self;
        let mut taps: Vec<(usize, usize)> = Vec::new();
        for (index, y) in y.chunks_exact_mut(out_len).enumerate() {
            let (sample, row) = ((first + index) / plan.rows.len(), (first + index) % plan.rows.len());
            let x = &x[sample * plan.image_len..][..plan.image_len];
            for run in &plan.runs {
                taps.clear();
                for &(ky, at) in &plan.rows[row] {
                    taps.extend(run.taps.iter().map(|&(kx, first)| {
                        (
                            (ky * plan.kernel_width + kx) * plan.channels,
                            at * plan.row_len + first * plan.channels,
                        )
                    }));
                }
                let mut tile =
                    Tile { plan, x, packed, bias, relu, taps: &taps, y: &mut *y, at: run.first, done: 0 };
                while tile.done < run.count {
                    match run.count - tile.done {
                        8.. => tile.pixels::<S, 8>(simd),
                        6.. => tile.pixels::<S, 6>(simd),
                        4.. => tile.pixels::<S, 4>(simd),
                        2.. => tile.pixels::<S, 2>(simd),
                        _ => tile.pixels::<S, 1>(simd),
                    }
                }
            }
        }
    }
}

/// Pixels of a run.
struct Tile<'a> {
    plan: &'a Plan,
    x: &'a [f32],
    packed: &'a [f32],
    bias: Option<&'a [f32]>,
    relu: bool,
    /// Where weights and inputs of the taps begin.
    taps: &'a [(usize, usize)],
    y: &'a mut [f32],
    at: usize,
    done: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn pixels<S: Simd, const PIXELS: usize>(&mut self, simd: S) {
        let channels = self.plan.channels;
        let whole = channels - channels % S::F32_LANES;
        for channel in (0..whole).step_by(S::F32_LANES) {
            self.strip::<S, PIXELS, false>(simd, channel, S::F32_LANES);
        }
        if whole < channels {
            self.strip::<S, PIXELS, true>(simd, whole, channels - whole);
        }
        self.done += PIXELS;
    }

    #[inline(always)]
    fn strip<S: Simd, const PIXELS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        channel: usize,
        width: usize,
    ) {
        let plan = self.plan;
        let one = |values: &[f32], start: usize| {
            let [value] = load::<S, 1, TAIL>(simd, &values[start..][..width]);
            value
        };
        let start = match self.bias {
            Some(bias) => one(bias, channel),
            None => simd.splat_f32s(0.0),
        };
        let mut acc = [start; PIXELS];
        let step = plan.input_step * plan.channels;
        let from = self.done * step + channel;
        for &(weight, input) in self.taps {
            let w = one(self.packed, weight + channel);
            let x = &self.x[input + from..];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = simd.mul_add_f32s(w, one(x, t * step), *acc);
            }
        }
        for (t, acc) in acc.into_iter().enumerate() {
            let pixel = self.at + (self.done + t) * plan.step;
            let value = if self.relu { relu(simd, acc) } else { acc };
            store::<S, 1, TAIL>(simd, &mut self.y[pixel * plan.channels + channel..][..width], [value]);
        }
    }
}

/// Adds the gradients of `[taps, channels]` weights and of the bias over some images.
struct Weights<'a, 'b> {
    geometry: &'a Geometry,
    runs: &'a [Run],
    x: &'a [f32],
    dy: &'a [f32],
    out: &'b mut [f32],
}

impl WithSimd for Weights<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { geometry, runs, x, dy, out } = self;
        let channels = geometry.channels;
        let row_len = geometry.width.input * channels;
        let out_len = geometry.width.output() * channels;
        let (out, bias) = out.split_at_mut(geometry.taps() * channels);
        let images = x.chunks_exact(geometry.input_len()).zip(dy.chunks_exact(geometry.output_len()));
        let mut taps: Vec<(usize, usize)> = Vec::new();
        for (x, dy) in images {
            for (o, dy) in dy.chunks_exact(out_len).enumerate() {
                for run in runs {
                    taps.clear();
                    for (ky, at) in geometry.height.taps(o) {
                        taps.extend(run.taps.iter().map(|&(kx, first)| {
                            ((ky * geometry.width.kernel + kx) * channels, at * row_len + first * channels)
                        }));
                    }
                    let dy = &dy[run.first * channels..][..run.count * channels];
                    let pass = Pass { x, dy, channels, step: geometry.width.stride * channels };
                    let mut taps = &taps[..];
                    while !taps.is_empty() {
                        let now = match taps.len() {
                            9.. => pass.all::<S, 9>(simd, taps, out),
                            6.. => pass.all::<S, 6>(simd, taps, out),
                            4.. => pass.all::<S, 4>(simd, taps, out),
                            2.. => pass.all::<S, 2>(simd, taps, out),
                            _ => pass.all::<S, 1>(simd, taps, out),
                        };
                        taps = &taps[now..];
                    }
                }
                for pixel in dy.chunks_exact(channels) {
                    bias.iter_mut().zip(pixel).for_each(|(bias, dy)| *bias += dy);
                }
            }
        }
    }
}

struct Pass<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    channels: usize,
    step: usize,
}

impl Pass<'_> {
    /// The first `TAPS` taps, over all channels.
    #[inline(always)]
    fn all<S: Simd, const TAPS: usize>(&self, simd: S, taps: &[(usize, usize)], out: &mut [f32]) -> usize {
        let whole = self.channels - self.channels % S::F32_LANES;
        for channel in (0..whole).step_by(S::F32_LANES) {
            self.strip::<S, TAPS, false>(simd, taps, channel, S::F32_LANES, out);
        }
        if whole < self.channels {
            self.strip::<S, TAPS, true>(simd, taps, whole, self.channels - whole, out);
        }
        TAPS
    }

    #[inline(always)]
    fn strip<S: Simd, const TAPS: usize, const TAIL: bool>(
        &self,
        simd: S,
        taps: &[(usize, usize)],
        channel: usize,
        width: usize,
        out: &mut [f32],
    ) {
        let one = |values: &[f32], start: usize| {
            let [value] = load::<S, 1, TAIL>(simd, &values[start..][..width]);
            value
        };
        let mut acc: [S::f32s; TAPS] = std::array::from_fn(|k| one(out, taps[k].0 + channel));
        let x: [&[f32]; TAPS] = std::array::from_fn(|k| &self.x[taps[k].1 + channel..]);
        for (pixel, dy) in self.dy.chunks_exact(self.channels).enumerate() {
            let dy = one(dy, channel);
            for (acc, x) in acc.iter_mut().zip(x) {
                *acc = simd.mul_add_f32s(dy, one(x, pixel * self.step), *acc);
            }
        }
        for (k, acc) in acc.into_iter().enumerate() {
            store::<S, 1, TAIL>(simd, &mut out[taps[k].0 + channel..][..width], [acc]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::vector::tests::*, *};

    /// Calls `f(output, input, weight)` on the indices of every product.
    fn products(g: &Geometry, batch: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
        let (h, w) = (g.height, g.width);
        for b in 0..batch {
            for oy in 0..h.output() {
                for ox in 0..w.output() {
                    for (ky, iy) in h.taps(oy) {
                        for (kx, ix) in w.taps(ox) {
                            for c in 0..g.channels {
                                let y = ((b * h.output() + oy) * w.output() + ox) * g.channels + c;
                                let x = ((b * h.input + iy) * w.input + ix) * g.channels + c;
                                f(y, x, (c * h.kernel + ky) * w.kernel + kx, c);
                            }
                        }
                    }
                }
            }
        }
    }

    fn axis(input: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Axis {
        Axis { input, kernel, stride, padding, dilation }
    }

    #[test]
    fn all_passes_are_those_of_f64_and_the_same_on_two_threads() {
        let two = Threads::new(2).unwrap();
        let shapes = [
            (3, 32, axis(16, 3, 1, 1, 1), axis(16, 3, 1, 1, 1)),
            (2, 63, axis(9, 3, 2, 1, 1), axis(11, 3, 2, 1, 1)),
            (2, 17, axis(7, 5, 1, 2, 1), axis(10, 3, 3, 0, 2)),
            (35, 3, axis(1, 1, 1, 0, 1), axis(40, 7, 2, 6, 2)),
            (1, 1, axis(5, 2, 3, 1, 1), axis(4, 4, 1, 3, 1)),
            (40, 16, axis(8, 3, 2, 1, 1), axis(8, 3, 2, 1, 1)),
        ];
        for (batch, channels, height, width) in shapes {
            let g = Geometry { channels, height, width };
            let what = format!("{g:?}");
            let x = noise(batch * g.input_len(), 1);
            let dy = noise(batch * g.output_len(), 2);
            let weight = noise(channels * g.taps(), 3);
            let bias = noise(channels, 4);
            let mut packed = Vec::new();
            g.pack(&weight, &mut packed);
            let mut y = vec![0.0f64; dy.len()];
            let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; weight.len()]);
            let mut db = vec![0.0f64; channels];
            y.iter_mut().zip(bias.iter().cycle()).for_each(|(y, bias)| *y = f64::from(*bias));
            dy.iter().enumerate().for_each(|(i, dy)| db[i % channels] += f64::from(*dy));
            products(&g, batch, |o, i, k, _| {
                y[o] += f64::from(x[i]) * f64::from(weight[k]);
                dx[i] += f64::from(dy[o]) * f64::from(weight[k]);
                dw[k] += f64::from(dy[o]) * f64::from(x[i]);
            });
            let run = |threads: &Threads| {
                let (mut got_y, mut got_dx) = (vec![9.0; dy.len()], vec![9.0; x.len()]);
                let (mut got_dw, mut got_db) = (vec![9.0; weight.len()], vec![9.0; channels]);
                threads.enter(|| {
                    g.forward(&x, &packed, Some(&bias), false, &mut got_y, threads);
                    g.backward_input(&dy, &packed, &mut got_dx, threads);
                    g.backward_weight(&x, &dy, &mut got_dw, Some(&mut got_db), &mut Vec::new(), threads);
                });
                [got_y, got_dx, got_dw, got_db]
            };
            let got = run(&two);
            for ((got, other), expected) in got.iter().zip(run(&Threads::none())).zip([&y, &dx, &dw, &db]) {
                assert_close(got, expected, 1e-5, &what);
                assert_same_bits(got, &other, &what);
            }
            let mut rectified = vec![0.0; y.len()];
            g.forward(&x, &packed, None, true, &mut rectified, &Threads::none());
            let expected: Vec<f64> =
                y.iter().zip(bias.iter().cycle()).map(|(y, bias)| (y - f64::from(*bias)).max(0.0)).collect();
            assert_close(&rectified, &expected, 1e-5, &what);
        }
    }
}
