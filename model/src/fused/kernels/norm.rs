//! Group, layer and batch normalisation of channels-last activations, each with an optional ReLU behind it.
//!
//! The backward passes find out from the input where the ReLU was closed, by the operations of the forward
//! pass; they need neither the output nor a mask, but the same weights as in the forward pass.

use super::columns::{Affine, Moments, Scratch, items_per_piece};
use crate::fused::parallel::Threads;

/// Most pieces that a batch normalisation is cut into.
const MAX_PIECES: usize = 64;

/// `weight`, `bias`, `eps` of a normalisation, and whether a ReLU follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f64,
    pub(crate) relu: bool,
}

/// Means and reciprocal standard deviations that a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saved {
    pub(crate) mean: Vec<f32>,
    pub(crate) scale: Vec<f32>,
}

impl Saved {
    fn resize(&mut self, len: usize) {
        self.mean.resize(len, 0.0);
        self.scale.resize(len, 0.0);
    }
}

/// Buffers of the normalisations: what each piece of work adds to the gradients of weight and bias.
#[derive(Debug, Default)]
pub(crate) struct Partial {
    sums: Vec<f64>,
}

fn reciprocal_deviation(variance: f64, eps: f64) -> f32 {
    (variance + eps).sqrt().recip() as f32
}

/// Sums rows of `[d_weight, d_bias]` in their order.
fn write_gradients(rows: &[f64], channels: usize, d_weight: &mut [f32], d_bias: &mut [f32]) {
    let mut total = vec![0.0f64; 2 * channels];
    for row in rows.chunks_exact(2 * channels) {
        total.iter_mut().zip(row).for_each(|(total, value)| *total += value);
    }
    let (weight, bias) = total.split_at(channels);
    d_weight.iter_mut().zip(weight).for_each(|(d, total)| *d = *total as f32);
    d_bias.iter_mut().zip(bias).for_each(|(d, total)| *d = *total as f32);
}

/// Group normalisation (Wu and He 2018) of `x [batch, pixels, channels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNorm {
    pub(crate) pixels: usize,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
}

impl GroupNorm {
    fn sample_len(self) -> usize {
        self.pixels * self.channels
    }

    /// Writes `y`, and mean and reciprocal standard deviation per sample and group to `saved`.
    pub(crate) fn forward(
        self,
        x: &[f32],
        settings: Settings<'_>,
        y: &mut [f32],
        saved: &mut Saved,
        threads: &Threads,
    ) {
        let Self { channels, groups, .. } = self;
        let len = self.sample_len();
        let batch = x.len() / len;
        saved.resize(batch * groups);
        let samples = items_per_piece(batch, len);
        let mut pieces: Vec<_> = y
            .chunks_mut(samples * len)
            .zip(x.chunks(samples * len))
            .zip(saved.mean.chunks_mut(samples * groups).zip(saved.scale.chunks_mut(samples * groups)))
            .collect();
        threads.each(&mut pieces, |_, ((y, x), (means, scales))| {
            let (mut scratch, mut moments) = (Scratch::default(), Moments::default());
            let mut values = Values::new(channels);
            let outputs = y.chunks_exact_mut(len).zip(x.chunks_exact(len));
            let kept = means.chunks_exact_mut(groups).zip(scales.chunks_exact_mut(groups));
            for ((y, x), (means, scales)) in outputs.zip(kept) {
                moments.of(x, channels, &mut scratch);
                self.group_moments(&moments, settings.eps, means, scales);
                values.expand(settings.weight, means, scales);
                values.affine(settings).forward(x, y, &mut scratch);
            }
        });
    }

    /// Joins the moments of each group's channels.
    fn group_moments(self, moments: &Moments, eps: f64, means: &mut [f32], scales: &mut [f32]) {
        let width = self.channels / self.groups;
        let n = self.pixels as f64;
        let channels = moments.mean.chunks_exact(width).zip(moments.squares.chunks_exact(width));
        for ((mean_out, scale), (mean, squares)) in means.iter_mut().zip(scales).zip(channels) {
            let group_mean = mean.iter().sum::<f64>() / width as f64;
            let between: f64 = mean.iter().map(|mean| (mean - group_mean).powi(2)).sum();
            let variance = (squares.iter().sum::<f64>() / n + between) / width as f64;
            *mean_out = group_mean as f32;
            *scale = reciprocal_deviation(variance, eps);
        }
    }

    /// Writes `dx`, `d_weight` and `d_bias`; without `dy`, `dx` holds it.
    pub(crate) fn backward(
        self,
        x: &[f32],
        settings: Settings<'_>,
        saved: &Saved,
        dy: Option<&[f32]>,
        dx: &mut [f32],
        (d_weight, d_bias): (&mut [f32], &mut [f32]),
        partial: &mut Partial,
        threads: &Threads,
    ) {
        let Self { channels, groups, .. } = self;
        let len = self.sample_len();
        let samples = items_per_piece(x.len() / len, len);
        let mut pieces: Vec<_> = dx.chunks_mut(samples * len).collect();
        partial.sums.clear();
        partial.sums.resize(pieces.len() * 2 * channels, 0.0);
        let mut pieces: Vec<_> = pieces.iter_mut().zip(partial.sums.chunks_exact_mut(2 * channels)).collect();
        threads.each(&mut pieces, |piece, (dx, totals)| {
            let mut scratch = Scratch::default();
            let mut values = Values::new(channels);
            let mut sums = vec![0.0f64; 2 * channels];
            for (k, dx) in dx.chunks_exact_mut(len).enumerate() {
                let sample = piece * samples + k;
                let x = &x[sample * len..][..len];
                let dy = dy.map(|dy| &dy[sample * len..][..len]);
                let means = &saved.mean[sample * groups..][..groups];
                let scales = &saved.scale[sample * groups..][..groups];
                values.expand(settings.weight, means, scales);
                let (sum, product) = sums.split_at_mut(channels);
                let affine = Affine {
                    mean: &values.mean,
                    scale: &values.scale,
                    bias: settings.bias,
                    relu: settings.relu,
                };
                affine.gradient_sums(x, dy.unwrap_or(dx), [&mut *sum, &mut *product], &mut scratch);
                let (d_weight, d_bias) = totals.split_at_mut(channels);
                self.slopes(settings.weight, scales, (sum, product), &mut values.slope, &mut values.offset);
                let width = channels / groups;
                for c in 0..channels {
                    d_weight[c] += product[c] * f64::from(scales[c / width]);
                    d_bias[c] += sum[c];
                }
                affine.gradient(x, dy, dx, [&values.slope, &values.offset], &mut scratch);
            }
        });
        write_gradients(&partial.sums, channels, d_weight, d_bias);
    }

    /// How the gradient of a group's values depends on the group's moments.
    fn slopes(
        self,
        weight: &[f32],
        scales: &[f32],
        (sum, product): (&[f64], &[f64]),
        slope: &mut [f32],
        offset: &mut [f32],
    ) {
        let width = self.channels / self.groups;
        let n = (self.pixels * width) as f64;
        for (group, &scale) in scales.iter().enumerate() {
            let of_group = group * width..(group + 1) * width;
            let scale = f64::from(scale);
            let (mut inner, mut inner_normed) = (0.0, 0.0);
            for c in of_group.clone() {
                inner += f64::from(weight[c]) * sum[c];
                inner_normed += f64::from(weight[c]) * product[c] * scale;
            }
            slope[of_group.clone()].fill((-scale * scale * inner_normed / n) as f32);
            offset[of_group].fill((-scale * inner / n) as f32);
        }
    }
}

/// Values per channel of one sample.
struct Values {
    mean: Vec<f32>,
    scale: Vec<f32>,
    slope: Vec<f32>,
    offset: Vec<f32>,
}

impl Values {
    fn new(channels: usize) -> Self {
        let zeros = || vec![0.0; channels];
        Self { mean: zeros(), scale: zeros(), slope: zeros(), offset: zeros() }
    }

    /// From values per group.
    fn expand(&mut self, weight: &[f32], means: &[f32], scales: &[f32]) {
        let width = self.mean.len() / means.len();
        for (c, weight) in weight.iter().enumerate() {
            self.mean[c] = means[c / width];
            self.scale[c] = scales[c / width] * weight;
        }
    }

    fn affine<'a>(&'a self, settings: Settings<'a>) -> Affine<'a> {
        Affine { mean: &self.mean, scale: &self.scale, bias: settings.bias, relu: settings.relu }
    }
}

/// Running moments of a batch normalisation.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    pub(crate) mean: &'a mut [f32],
    pub(crate) var: &'a mut [f32],
    /// Share of the batch.
    pub(crate) momentum: f64,
}

/// Rows of a piece of a batch normalisation: depends on the shape only.
fn rows_per_piece(rows: usize, channels: usize) -> usize {
    items_per_piece(rows, channels).max(rows.div_ceil(MAX_PIECES)).next_multiple_of(16)
}

/// Batch normalisation (Ioffe and Szegedy 2015) of `x [rows, channels]` by the moments of the batch, which
/// the running ones follow as in PyTorch: their variance is the unbiased one.
pub(crate) fn batch_forward(
    x: &[f32],
    settings: Settings<'_>,
    running: Running<'_>,
    y: &mut [f32],
    saved: &mut Saved,
    threads: &Threads,
) {
    let channels = settings.weight.len();
    let rows = x.len() / channels;
    let piece = rows_per_piece(rows, channels) * channels;
    let mut moments = vec![Moments::default(); x.len().div_ceil(piece)];
    threads.each(&mut moments, |k, moments| {
        let x = &x[k * piece..x.len().min((k + 1) * piece)];
        moments.of(x, channels, &mut Scratch::default());
    });
    let mut total = Moments::default();
    moments.iter().for_each(|moments| total.merge(moments));
    saved.resize(channels);
    let mut values = Values::new(channels);
    let momentum = running.momentum;
    for (c, squares) in total.squares.iter().enumerate() {
        let unbiased = squares / (rows.max(2) - 1) as f64;
        let follow = |old: f32, new: f64| ((1.0 - momentum) * f64::from(old) + momentum * new) as f32;
        running.mean[c] = follow(running.mean[c], total.mean[c]);
        running.var[c] = follow(running.var[c], unbiased);
        saved.mean[c] = total.mean[c] as f32;
        saved.scale[c] = reciprocal_deviation(squares / rows as f64, settings.eps);
    }
    values.expand(settings.weight, &saved.mean, &saved.scale);
    apply(x, values.affine(settings), y, piece, threads);
}

/// Batch normalisation by the running moments; a negative variance counts as 0.
pub(crate) fn batch_evaluate(
    x: &[f32],
    settings: Settings<'_>,
    (mean, var): (&[f32], &[f32]),
    y: &mut [f32],
    threads: &Threads,
) {
    let channels = settings.weight.len();
    let scales: Vec<f32> =
        var.iter().map(|var| reciprocal_deviation(f64::from(var.max(0.0)), settings.eps)).collect();
    let mut values = Values::new(channels);
    values.expand(settings.weight, mean, &scales);
    let piece = rows_per_piece(x.len() / channels, channels) * channels;
    apply(x, values.affine(settings), y, piece, threads);
}

fn apply(x: &[f32], affine: Affine<'_>, y: &mut [f32], piece: usize, threads: &Threads) {
    let mut pieces: Vec<_> = y.chunks_mut(piece).zip(x.chunks(piece)).collect();
    threads.each(&mut pieces, |_, (y, x)| affine.forward(x, y, &mut Scratch::default()));
}

/// Backward pass of [`batch_forward`]. Writes `dx`, `d_weight` and `d_bias`; without `dy`, `dx` holds it.
pub(crate) fn batch_backward(
    x: &[f32],
    settings: Settings<'_>,
    saved: &Saved,
    dy: Option<&[f32]>,
    dx: &mut [f32],
    (d_weight, d_bias): (&mut [f32], &mut [f32]),
    partial: &mut Partial,
    threads: &Threads,
) {
    let channels = settings.weight.len();
    let rows = x.len() / channels;
    let piece = rows_per_piece(rows, channels) * channels;
    let mut values = Values::new(channels);
    values.expand(settings.weight, &saved.mean, &saved.scale);
    partial.sums.clear();
    partial.sums.resize(x.len().div_ceil(piece) * 2 * channels, 0.0);
    let mut sums: Vec<_> = partial.sums.chunks_exact_mut(2 * channels).collect();
    let gradient = dy.unwrap_or(dx);
    let affine = values.affine(settings);
    threads.each(&mut sums, |k, sums| {
        let range = k * piece..x.len().min((k + 1) * piece);
        let (product, sum) = sums.split_at_mut(channels);
        affine.gradient_sums(
            &x[range.clone()],
            &gradient[range],
            [sum, &mut *product],
            &mut Scratch::default(),
        );
        product.iter_mut().zip(&saved.scale).for_each(|(product, scale)| *product *= f64::from(*scale));
    });
    write_gradients(&partial.sums, channels, d_weight, d_bias);
    let (mut slope, mut offset) = (vec![0.0; channels], vec![0.0; channels]);
    for c in 0..channels {
        let scale = f64::from(saved.scale[c]);
        let outer = -f64::from(settings.weight[c]) * scale / rows as f64;
        slope[c] = (outer * scale * f64::from(d_weight[c])) as f32;
        offset[c] = (outer * f64::from(d_bias[c])) as f32;
    }
    let mut pieces: Vec<_> = dx.chunks_mut(piece).collect();
    threads.each(&mut pieces, |k, dx| {
        let range = k * piece..k * piece + dx.len();
        let dy = dy.map(|dy| &dy[range.clone()]);
        affine.gradient(&x[range], dy, dx, [&slope, &offset], &mut Scratch::default());
    });
}

#[cfg(test)]
#[path = "norm_tests.rs"]
mod tests;
