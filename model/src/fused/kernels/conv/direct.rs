//! Convolution as matrix products whose left rows are gathered from the image, without `im2col`.

use super::{
    plan::Plan,
    tile::{self, Begin, Gather, PANEL, panel_width},
};
use crate::fused::parallel::Threads;

/// Weights as panels `[group][panel][tap and source channel][target channel]`.
#[derive(Debug, Default)]
pub(super) struct Packed(Vec<f32>);

/// Place of the panels of a matrix of `depth` rows and `columns` per group.
pub(super) fn panels(groups: usize, depth: usize, columns: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let count = columns.div_ceil(PANEL);
    (0..groups).flat_map(move |group| {
        (0..count).scan(0, move |at, panel| {
            let len = depth * panel_width(columns, panel).1;
            *at += len;
            Some((group, panel, len))
        })
    })
}

impl Packed {
    /// Packs for the forward pass weights `[out, in / groups, taps]`.
    pub(super) fn pack_forward(
        &mut self,
        weights: &[f32],
        [groups, outputs, inputs, taps]: [usize; 4],
        threads: &Threads,
    ) {
        self.each_panel(groups, taps * inputs, outputs, threads, |group, first, (width, ld), panel| {
            let block = &weights[(group * outputs + first) * inputs * taps..][..width * inputs * taps];
            // Sixteen outputs at a time: their lines of the panel stay in the cache.
            for (part, block) in block.chunks(16 * inputs * taps).enumerate() {
                for i in 0..inputs {
                    for tap in 0..taps {
                        let row = &mut panel[(tap * inputs + i) * ld + part * 16..];
                        for (value, kernel) in row.iter_mut().zip(block.chunks_exact(inputs * taps)) {
                            *value = kernel[i * taps + tap];
                        }
                    }
                }
            }
        });
    }

    /// Packs the turned kernels for the gradient of the input.
    pub(super) fn pack_backward(
        &mut self,
        weights: &[f32],
        [groups, outputs, inputs, taps]: [usize; 4],
        threads: &Threads,
    ) {
        self.each_panel(groups, taps * outputs, inputs, threads, |group, first, (width, ld), panel| {
            for o in 0..outputs {
                let kernels = &weights[((group * outputs + o) * inputs + first) * taps..][..width * taps];
                for tap in 0..taps {
                    let row = &mut panel[((taps - 1 - tap) * outputs + o) * ld..][..width];
                    for (value, kernel) in row.iter_mut().zip(kernels.chunks_exact(taps)) {
                        *value = kernel[tap];
                    }
                }
            }
        });
    }

    /// Calls `f(group, first column, width, panel)`.
    fn each_panel(
        &mut self,
        groups: usize,
        depth: usize,
        columns: usize,
        threads: &Threads,
        f: impl Fn(usize, usize, (usize, usize), &mut [f32]) + Sync,
    ) {
        let len = panels(groups, depth, columns).map(|(.., len)| len).sum();
        // The padding between rows is written once, here.
        self.0.resize(len, 0.0);
        let mut rest = &mut self.0[..];
        let mut items = Vec::new();
        for (group, panel, len) in panels(groups, depth, columns) {
            let (data, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            items.push((group, panel, data));
        }
        threads.each(&mut items, |_, (group, panel, data)| {
            f(*group, *panel * PANEL, panel_width(columns, *panel), data);
        });
    }
}

/// Runs `plan` from `source` to all of `target`.
pub(super) fn run(
    plan: &Plan,
    packed: &Packed,
    source: &[f32],
    bias: Option<&[f32]>,
    relu: bool,
    target: &mut [f32],
    threads: &Threads,
) {
    let (source_len, target_len) = (plan.source_len * plan.images, plan.target_len * plan.images);
    let groups = plan.groups;
    let mut items: Vec<_> = source.chunks(source_len).zip(target.chunks_mut(target_len)).collect();
    threads.each(&mut items, |_, (source, target)| {
        let images = target.len() / plan.target_len;
        let mut at = 0;
        for (group, panel, len) in panels(groups, plan.depth, plan.target_channels) {
            let weights = &packed.0[at..at + len];
            at += len;
            let width = panel_width(plan.target_channels, panel);
            let first = group * plan.target_channels + panel * PANEL;
            let begin = bias.map_or(Begin::Zero, |bias| Begin::Bias(&bias[first..first + width.0]));
            for class in &plan.classes {
                let rows = images * class.pixels;
                tile::gather(Gather {
                    data: &source[group * plan.source_channels..],
                    starts: &class.starts[..rows],
                    segments: &class.segments,
                    panel: weights,
                    width,
                    out: &mut target[first..],
                    targets: &class.targets[..rows],
                    begin,
                    relu,
                });
            }
        }
    });
}
