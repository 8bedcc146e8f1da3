//! Gradients of the weights and of the bias as sums over pixels.
//!
//! The sums are cut into fixed pieces of the batch where the weights are few, and into panels of outputs and
//! rows of the kernel: what a value adds up, and in which order, depends on the shapes alone.

use super::{
    Geometry,
    plan::AxisClass,
    tile::{self, Outer, PANEL, panel_width},
};
use crate::fused::parallel::Threads;

/// Weights up to which each piece of the batch has sums of its own.
const FEW_WEIGHTS: usize = 1 << 15;

/// Pieces of the batch at most.
const PIECES: usize = 8;

/// Pixels that a tile sums at a time: what they read stays in a second-level cache.
const PIXELS: usize = 256;

/// Columns of a kernel's row that lie side by side in the input, for pixels that see all of them.
#[derive(Debug)]
struct Run {
    /// First value of the run from the pixel's first input, and in the kernel's row; values.
    left: usize,
    row: usize,
    len: usize,
}

/// Pixels that see the same columns of the kernel.
#[derive(Debug)]
struct Class {
    runs: Vec<Run>,
    /// Of one image: starts in the input and in the output.
    pairs: Vec<[u32; 2]>,
}

/// The sums over pixels of one geometry.
#[derive(Debug)]
pub(super) struct WeightGradient {
    /// By rows of the kernel.
    rows: Vec<Vec<Class>>,
    groups: usize,
    inputs: usize,
    outputs: usize,
    taps_down: usize,
    taps_across: usize,
    input_len: usize,
    output_len: usize,
}

impl WeightGradient {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let [down, across] = geometry.axes();
        let [_, width, channels] = geometry.input_shape();
        let [_, out_width, out_channels] = geometry.output_shape();
        let inputs = channels / geometry.groups;
        let across_classes = across.forward();
        let rows = (0..down.kernel)
            .map(|tap| {
                let valid = |y: usize| {
                    let at = (y * down.stride + tap * down.dilation).checked_sub(down.padding)?;
                    (at < down.input).then_some((y, at))
                };
                let lines: Vec<_> = (0..down.output).filter_map(valid).collect();
                let class = |class: &AxisClass| Class {
                    runs: runs(class, channels, inputs),
                    pairs: lines
                        .iter()
                        .flat_map(|&(y, at)| {
                            class.positions.iter().map(move |&(x, from)| {
                                [((at * width + from) * channels) as u32, ((y * out_width + x) * out_channels) as u32]
                            })
                        })
                        .collect(),
                };
                across_classes.iter().map(class).filter(|class| !class.pairs.is_empty()).collect()
            })
            .collect();
        Self {
            rows,
            groups: geometry.groups,
            inputs,
            outputs: out_channels / geometry.groups,
            taps_down: down.kernel,
            taps_across: across.kernel,
            input_len: geometry.input_shape().iter().product(),
            output_len: geometry.output_shape().iter().product(),
        }
    }

    /// Writes the gradient, `[out, in / groups, kernel rows, kernel columns]`.
    pub(super) fn run(&self, x: &[f32], dy: &[f32], dweight: &mut [f32], sums: &mut Vec<f32>, threads: &Threads) {
        let batch = dy.len() / self.output_len;
        let depth = self.taps_across * self.inputs;
        let count = self.outputs.div_ceil(PANEL);
        let whole: usize = (0..count).map(|panel| depth * panel_width(self.outputs, panel).1).sum();
        let piece_len = whole * self.taps_down * self.groups;
        let pieces = if dweight.len() <= FEW_WEIGHTS { PIECES.min(batch).max(1) } else { 1 };
        let images = batch.div_ceil(pieces).max(1);
        sums.clear();
        sums.resize(piece_len * pieces, 0.0);
        let mut items = Vec::new();
        let mut rest = &mut sums[..];
        for piece in 0..pieces {
            let range = (piece * images).min(batch)..((piece + 1) * images).min(batch);
            for group in 0..self.groups {
                for panel in 0..count {
                    for tap in 0..self.taps_down {
                        let len = depth * panel_width(self.outputs, panel).1;
                        let (sum, after) = std::mem::take(&mut rest).split_at_mut(len);
                        rest = after;
                        items.push((range.clone(), group, panel, tap, sum));
                    }
                }
            }
        }
        threads.each(&mut items, |_, (range, group, panel, tap, sum)| {
            let x = &x[range.start * self.input_len..range.end * self.input_len];
            let dy = &dy[range.start * self.output_len..range.end * self.output_len];
            self.sum(x, dy, *group, *panel, &self.rows[*tap], sum);
        });
        self.unpack(sums, piece_len, dweight, threads);
    }

    fn sum(&self, x: &[f32], dy: &[f32], group: usize, panel: usize, classes: &[Class], sum: &mut [f32]) {
        let width = panel_width(self.outputs, panel);
        let batch = dy.len() / self.output_len;
        let (from_x, from_dy) = (group * self.inputs, group * self.outputs + panel * PANEL);
        for class in classes {
            let images = (PIXELS / class.pairs.len()).max(1);
            for first in (0..batch).step_by(images) {
                let images = images.min(batch - first);
                for pairs in class.pairs.chunks(2 * PIXELS) {
                    for run in &class.runs {
                        tile::outer(Outer {
                            left: &x[first * self.input_len + from_x + run.left..],
                            right: &dy[first * self.output_len + from_dy..],
                            pairs,
                            repeats: (images, self.input_len, self.output_len),
                            rows: run.len,
                            width,
                            out: &mut sum[run.row * width.1..],
                        });
                    }
                }
            }
        }
    }

    /// Adds the pieces up and turns them into PyTorch's layout.
    fn unpack(&self, sums: &[f32], piece_len: usize, dweight: &mut [f32], threads: &Threads) {
        let taps = self.taps_down * self.taps_across;
        let kernels = self.inputs * taps;
        let mut items = Vec::new();
        let mut at = 0;
        for group in dweight.chunks_mut(self.outputs * kernels) {
            for (panel, block) in group.chunks_mut(PANEL * kernels).enumerate() {
                let ld = panel_width(self.outputs, panel).1;
                items.push((at, ld, block));
                at += self.taps_down * self.taps_across * self.inputs * ld;
            }
        }
        threads.each(&mut items, |_, (at, ld, block)| {
            for (part, block) in block.chunks_mut(16 * kernels).enumerate() {
                for i in 0..self.inputs {
                    for tap in 0..taps {
                        let from = *at + (tap * self.inputs + i) * *ld + part * 16;
                        let mut values = [0.0f32; 16];
                        for piece in sums.chunks_exact(piece_len) {
                            for (value, term) in values.iter_mut().zip(&piece[from..from + 16]) {
                                *value += term;
                            }
                        }
                        for (kernel, value) in block.chunks_exact_mut(kernels).zip(values) {
                            kernel[i * taps + tap] = value;
                        }
                    }
                }
            }
        });
    }
}

/// Neighbouring taps are one run where their inputs lie side by side.
fn runs(class: &AxisClass, channels: usize, inputs: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(tap, at) in &class.taps {
        let (left, row) = (at * channels, tap * inputs);
        match runs.last_mut() {
            Some(last) if (last.left + last.len, last.row + last.len) == (left, row) => last.len += inputs,
            _ => runs.push(Run { left, row, len: inputs }),
        }
    }
    runs
}

/// Rows of `dy` that are summed in one chain.
const BIAS_ROWS: usize = 256;

/// Writes the sums of the columns of `dy`.
pub(super) fn bias(dy: &[f32], dbias: &mut [f32], threads: &Threads) {
    let channels = dbias.len();
    let blocks = dy.chunks(BIAS_ROWS * channels);
    let mut partial: Vec<_> = blocks.map(|block| (block, Vec::new())).collect();
    threads.each(&mut partial, |_, (block, sums)| {
        sums.resize(channels, 0.0f32);
        // A multiple of the channels that fills vectors.
        let width = channels * (64 / channels).max(1);
        let mut wide = vec![0.0f32; width];
        let mut lines = block.chunks_exact(width);
        for line in &mut lines {
            for (sum, value) in wide.iter_mut().zip(line) {
                *sum += value;
            }
        }
        for line in wide.chunks_exact(channels).chain(lines.remainder().chunks_exact(channels)) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum += value;
            }
        }
    });
    let mut totals = vec![0.0f64; channels];
    for (_, sums) in &partial {
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += f64::from(*sum);
        }
    }
    for (value, total) in dbias.iter_mut().zip(totals) {
        *value = total as f32;
    }
}
