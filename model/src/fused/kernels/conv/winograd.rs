//! Convolution with 3 x 3 kernels and stride 1 with fewer multiplications, after Winograd (Lavin and Gray 2016,
//! "Fast Algorithms for Convolutional Neural Networks").
//!
//! Tiles of 6 x 6 inputs become their values at 36 points, where the convolution is one product over the
//! channels a point: 36 multiplications for 4 x 4 outputs instead of 144. The tiles of the whole batch are the
//! rows of those products. They are worked on in chunks: spectra, products and the way back stay in a cache.

use super::{
    Geometry,
    pass::{BLOCK, EDGE, Pass, TAPS},
    spectra::{Backward, FromWeights, Gradient, Samples, ToWeights},
    transform::POINTS,
};
use crate::fused::{
    kernels::{
        pack,
        product::{Store, View},
        tiles::{self, Job, LANES, PANEL, Right, Target, padded},
    },
    parallel::Threads,
    simd,
};
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Points in two dimensions.
pub(super) const SPECTRUM: usize = POINTS * POINTS;

/// Values between the planes of a spectrum beyond their size, so that the planes of one tile do not fall into
/// the same set of a cache.
const GAP: usize = 16;

/// Values of the spectra of a chunk: they stay in a second-level cache where that leaves enough tiles.
const CHUNK_VALUES: usize = 1 << 18;

/// Fewest and most tiles of a chunk, where there are as many.
const TILES: [usize; 2] = [64, 192];

/// Values of the spectra that are summed together for the gradient of the weights.
const GROUP_VALUES: usize = 1 << 19;

/// Both passes of a convolution.
#[derive(Debug)]
pub(super) struct Winograd {
    forward: Pass,
    backward: Pass,
    weights: Vec<f32>,
}

/// Buffers of any number of convolutions that run one after the other.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Spectra of the weights, or of their gradient.
    weights: Vec<f32>,
    chunks: Mutex<Vec<Chunk>>,
    samples: Vec<f32>,
    gradients: Vec<f32>,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
struct Chunk {
    source: Vec<f32>,
    target: Vec<f32>,
    product: tiles::Buffers,
}

/// Values of a plane of `tiles` rows of `channels`.
fn plane(tiles: usize, channels: usize) -> usize {
    tiles * channels + GAP
}

/// Panels of `columns`, each with its first column and its padded width.
fn panels(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..columns).step_by(PANEL).map(move |first| (first, padded(columns, first)))
}

/// Values of the spectra of the weights, `[panel][point][source channel][target channel]`.
fn weight_spectra(depth: usize, columns: usize) -> usize {
    panels(columns).map(|(_, width)| SPECTRUM * plane(depth, width)).sum()
}

/// The first `len` values of a buffer that grows.
fn first(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Pass {
    fn new(source: [usize; 3], target: [usize; 3], padding: [usize; 2], turned: bool) -> Self {
        let [down, across] = [target[0].div_ceil(EDGE), target[1].div_ceil(EDGE)];
        Self { source, target, padding, down, across, turned }
    }

    fn target_len(&self) -> usize {
        self.target.iter().product()
    }

    /// First line of the target, over all images, of a row of tiles.
    pub(super) fn line(&self, row: usize) -> usize {
        row / self.down * self.target[0] + row % self.down * EDGE
    }

    /// Rows of tiles of a chunk of a batch: depends on shapes alone.
    fn chunk_rows(&self, images: usize) -> usize {
        let rows = images * self.down;
        let tiles = CHUNK_VALUES / (SPECTRUM * (self.source[2] + self.target[2]));
        let most = tiles.clamp(TILES[0], TILES[1]).div_ceil(self.across);
        // An even number of chunks.
        rows.div_ceil(rows.div_ceil(2 * most) * 2).max(1)
    }

    /// The chunks of rows of tiles of a batch.
    fn chunks(&self, images: usize) -> impl Iterator<Item = Range<usize>> {
        let (rows, chunk) = (images * self.down, self.chunk_rows(images));
        (0..rows).step_by(chunk).map(move |first| first..(first + chunk).min(rows))
    }

    /// Spectra of `[out, in, 3, 3]`.
    fn transform_weights<'a>(
        &self,
        weights: &[f32],
        spectra: &'a mut Vec<f32>,
        threads: &Threads,
    ) -> &'a [f32] {
        let (depth, columns) = (self.source[2], self.target[2]);
        let spectra = first(spectra, weight_spectra(depth, columns));
        let mut rest = &mut *spectra;
        let mut items = Vec::new();
        for (first, width) in panels(columns) {
            let (panel, after) = std::mem::take(&mut rest).split_at_mut(SPECTRUM * plane(depth, width));
            rest = after;
            items.push((first, width, panel));
        }
        threads.each(&mut items, |_, (first, width, panel)| {
            let mut block = [0.0; BLOCK * TAPS * BLOCK];
            for row in (0..depth).step_by(BLOCK) {
                let rows = BLOCK.min(depth - row);
                for part in (0..(*width).min(columns - *first)).step_by(BLOCK) {
                    let column = *first + part;
                    let count = BLOCK.min(columns - column);
                    if self.turned {
                        for (row, block) in (row..row + rows).zip(block.chunks_exact_mut(TAPS * BLOCK)) {
                            let kernels = &weights[(row * columns + column) * TAPS..];
                            pack::turn_into(kernels, TAPS, count, TAPS, block, BLOCK);
                        }
                    } else {
                        let kernels = &weights[(column * depth + row) * TAPS..];
                        pack::turn_into(kernels, depth * TAPS, count, rows * TAPS, &mut block, BLOCK);
                    }
                    simd::run(FromWeights {
                        block: &block[..rows * TAPS * BLOCK],
                        turned: self.turned,
                        spectra: &mut panel[row * *width + part..],
                        width: *width,
                        plane: plane(depth, *width),
                    });
                }
            }
        });
        spectra
    }

    /// All of the target from the source, then bias and ReLU.
    fn run(
        &self,
        x: &[f32],
        spectra: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
        chunks: &Mutex<Vec<Chunk>>,
        threads: &Threads,
    ) {
        let ([_, width, columns], depth) = (self.target, self.source[2]);
        let images = y.len() / self.target_len();
        let mut rest = y;
        let mut items = Vec::new();
        for rows in self.chunks(images) {
            let len = (self.line(rows.end) - self.line(rows.start)) * width * columns;
            let (y, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            items.push((rows, y));
        }
        threads.each(&mut items, |_, (rows, y)| {
            let taken = chunks.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut chunk = taken.unwrap_or_default();
            let tiles = rows.len() * self.across;
            let (source_plane, target_plane) = (plane(tiles, depth), plane(tiles, columns));
            let source = first(&mut chunk.source, SPECTRUM * source_plane);
            let target = first(&mut chunk.target, SPECTRUM * target_plane);
            simd::run(Samples { pass: self, rows: rows.clone(), x, spectra: source, plane: source_plane });
            let points = source.chunks_exact(source_plane).zip(target.chunks_exact_mut(target_plane));
            for (point, (source, target)) in points.enumerate() {
                let mut panel = spectra;
                for (column, width) in panels(columns) {
                    let (weights, after) = panel.split_at(SPECTRUM * plane(depth, width));
                    panel = after;
                    simd::run(Job {
                        a: View::new(source, tiles, depth),
                        b: Right::Panels(&weights[point * plane(depth, width)..][..depth * width]),
                        columns: width.min(columns - column),
                        target: Target::Strided { c: &mut target[column..], ldc: columns },
                        transposed: false,
                        store: Store::Set,
                        buffers: &mut chunk.product,
                    });
                }
            }
            simd::run(Backward {
                pass: self,
                rows: rows.clone(),
                spectra: target,
                plane: target_plane,
                bias,
                relu,
                y,
            });
            chunks.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        });
    }
}

impl Winograd {
    /// Whether it computes this convolution.
    pub(super) fn applies(geometry: &Geometry) -> bool {
        let Geometry { kernel, stride, padding, dilation, groups, .. } = *geometry;
        (kernel, stride, dilation, groups) == ([3; 2], [1; 2], [1; 2], 1) && padding.iter().all(|&p| p <= 2)
    }

    pub(super) fn new(geometry: &Geometry) -> Self {
        let (input, output) = (geometry.input_shape(), geometry.output_shape());
        Self {
            forward: Pass::new(input, output, geometry.padding, false),
            backward: Pass::new(output, input, geometry.padding.map(|p| 2 - p), true),
            weights: Vec::new(),
        }
    }

    /// Keeps the weights: their spectra, four times as large, are made when they are needed.
    pub(super) fn pack(&mut self, weights: &[f32]) {
        self.weights.clear();
        self.weights.extend_from_slice(weights);
    }

    pub(super) fn forward(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
        buffers: &mut Buffers,
        threads: &Threads,
    ) {
        let spectra = self.forward.transform_weights(&self.weights, &mut buffers.weights, threads);
        self.forward.run(x, spectra, bias, relu, y, &buffers.chunks, threads);
    }

    pub(super) fn backward_input(
        &self,
        dy: &[f32],
        dx: &mut [f32],
        buffers: &mut Buffers,
        threads: &Threads,
    ) {
        let spectra = self.backward.transform_weights(&self.weights, &mut buffers.weights, threads);
        self.backward.run(dy, spectra, None, false, dx, &buffers.chunks, threads);
    }

    /// Writes the gradient of the weights.
    ///
    /// The products over the tiles are summed over the batch in its order.
    pub(super) fn backward_weights(
        &self,
        x: &[f32],
        dy: &[f32],
        dweight: &mut [f32],
        buffers: &mut Buffers,
        threads: &Threads,
    ) {
        let pass = &self.forward;
        let (inputs, outputs) = (pass.source[2], pass.target[2]);
        let padded_outputs = outputs.next_multiple_of(LANES);
        let images = dy.len() / pass.target_len();
        let sums = first(&mut buffers.weights, weight_spectra(inputs, outputs));
        let chunks: Vec<_> = pass.chunks(images).collect();
        let chunk_tiles = pass.chunk_rows(images) * pass.across;
        let lens = [inputs, padded_outputs].map(|channels| SPECTRUM * plane(chunk_tiles, channels));
        let together = (GROUP_VALUES / (lens[0] + lens[1])).clamp(2, chunks.len().max(2));
        if chunks.is_empty() {
            sums.fill(0.0);
        }
        for (group, chunks) in chunks.chunks(together).enumerate() {
            let samples = first(&mut buffers.samples, chunks.len() * lens[0]);
            let gradients = first(&mut buffers.gradients, chunks.len() * lens[1]);
            let both = samples.chunks_exact_mut(lens[0]).zip(gradients.chunks_exact_mut(lens[1]));
            let mut items: Vec<_> = chunks.iter().zip(both).collect();
            threads.each(&mut items, |_, (rows, (samples, gradients))| {
                let tiles = rows.len() * pass.across;
                let plane_x = plane(tiles, inputs);
                simd::run(Samples { pass, rows: (*rows).clone(), x, spectra: samples, plane: plane_x });
                let plane_y = plane(tiles, padded_outputs);
                simd::run(Gradient { pass, rows: (*rows).clone(), dy, spectra: gradients, plane: plane_y });
            });
            let (samples, gradients) = (&*samples, &*gradients);
            let mut items = Vec::with_capacity(SPECTRUM * outputs.div_ceil(PANEL));
            let mut rest = &mut *sums;
            for (column, width) in panels(outputs) {
                for point in 0..SPECTRUM {
                    let (sum, after) = std::mem::take(&mut rest).split_at_mut(plane(inputs, width));
                    rest = after;
                    items.push((column, width, point, sum));
                }
            }
            threads.each(&mut items, |_, (column, width, point, sum)| {
                let mut product = tiles::Buffers::default();
                let both = samples.chunks_exact(lens[0]).zip(gradients.chunks_exact(lens[1]));
                for (chunk, (rows, (samples, gradients))) in chunks.iter().zip(both).enumerate() {
                    let tiles = rows.len() * pass.across;
                    let samples = &samples[*point * plane(tiles, inputs)..][..tiles * inputs];
                    let gradients = &gradients[*point * plane(tiles, padded_outputs)..];
                    simd::run(Job {
                        a: View::new(samples, tiles, inputs).transposed(),
                        b: Right::Panels(&gradients[*column * tiles..][..tiles * *width]),
                        columns: *width,
                        target: Target::Strided { c: sum, ldc: *width },
                        transposed: false,
                        store: if (group, chunk) == (0, 0) { Store::Set } else { Store::Add },
                        buffers: &mut product,
                    });
                }
            });
        }
        let mut rest = &*sums;
        let mut items = Vec::new();
        for ((column, width), dweight) in panels(outputs).zip(dweight.chunks_mut(PANEL * inputs * TAPS)) {
            let (panel, after) = rest.split_at(SPECTRUM * plane(inputs, width));
            rest = after;
            items.push((width.min(outputs - column), width, panel, dweight));
        }
        threads.each(&mut items, |_, (count, width, panel, dweight)| {
            let mut block = [0.0; BLOCK * TAPS * BLOCK];
            for row in (0..inputs).step_by(BLOCK) {
                let rows = BLOCK.min(inputs - row);
                for part in (0..*count).step_by(BLOCK) {
                    simd::run(ToWeights {
                        spectra: &panel[row * *width + part..],
                        width: *width,
                        plane: plane(inputs, *width),
                        block: &mut block[..rows * TAPS * BLOCK],
                    });
                    let out = &mut dweight[(part * inputs + row) * TAPS..];
                    pack::turn_into(&block, BLOCK, rows * TAPS, BLOCK.min(*count - part), out, inputs * TAPS);
                }
            }
        });
    }
}
