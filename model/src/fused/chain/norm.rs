//! Group normalisation of one channels-last image (Wu and He 2018).

use super::plan::Shape;
use crate::spec::EPSILON;

/// Mean and reciprocal standard deviation of one group.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    mean: f32,
    scale: f32,
}

/// Calls `f(index in the image, channel)` on the values of a group.
fn for_each(shape: Shape, groups: usize, group: usize, mut f: impl FnMut(usize, usize)) {
    let width = shape.channels / groups;
    for pixel in 0..shape.pixels() {
        for channel in group * width..(group + 1) * width {
            f(pixel * shape.channels + channel, channel);
        }
    }
}

/// `y = (x - mean) / sqrt(var + epsilon) * weight + bias`, moments per group.
pub(super) fn forward(
    x: &[f32],
    shape: Shape,
    (weight, bias): (&[f32], &[f32]),
    y: &mut [f32],
    moments: &mut [Moments],
) {
    let groups = moments.len();
    let n = (shape.len() / groups) as f64;
    for (group, moments) in moments.iter_mut().enumerate() {
        let mut sum = 0.0f64;
        for_each(shape, groups, group, |at, _| sum += f64::from(x[at]));
        let mean = sum / n;
        let mut squares = 0.0f64;
        for_each(shape, groups, group, |at, _| squares += (f64::from(x[at]) - mean).powi(2));
        let scale = (squares / n + EPSILON).sqrt().recip();
        *moments = Moments { mean: mean as f32, scale: scale as f32 };
        let Moments { mean, scale } = *moments;
        for_each(shape, groups, group, |at, channel| {
            y[at] = (x[at] - mean) * scale * weight[channel] + bias[channel];
        });
    }
}

/// Adds the gradients of weight and bias; writes the input's over `gradient`, which holds the output's.
pub(super) fn backward(
    x: &[f32],
    shape: Shape,
    weight: &[f32],
    moments: &[Moments],
    gradient: &mut [f32],
    (d_weight, d_bias): (&mut [f32], &mut [f32]),
) {
    let groups = moments.len();
    let n = (shape.len() / groups) as f64;
    for (group, &Moments { mean, scale }) in moments.iter().enumerate() {
        let (mut sum, mut sum_normed) = (0.0f64, 0.0f64);
        for_each(shape, groups, group, |at, channel| {
            let normed = (x[at] - mean) * scale;
            d_weight[channel] += gradient[at] * normed;
            d_bias[channel] += gradient[at];
            let inner = f64::from(gradient[at] * weight[channel]);
            sum += inner;
            sum_normed += inner * f64::from(normed);
        });
        let (mean_inner, mean_normed) = ((sum / n) as f32, (sum_normed / n) as f32);
        for_each(shape, groups, group, |at, channel| {
            let normed = (x[at] - mean) * scale;
            gradient[at] = scale * (gradient[at] * weight[channel] - mean_inner - normed * mean_normed);
        });
    }
}
