//! Layers as functions of tensors, with PyTorch's semantics. `x` has the samples as its first dimension.

use crate::{dropout::MaskSeed, spec::Pair};
use burn::tensor::{
    Tensor, TensorData,
    module::{self, linear as matmul_and_add},
    ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions},
};
use std::f64::consts::FRAC_1_SQRT_2;

/// `weight` is `[out, in]`.
pub(super) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    matmul_and_add(x, weight.transpose(), bias)
}

/// `shape` is padding, stride and dilation.
pub(super) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    [padding, stride, dilation]: [Pair; 3],
    groups: usize,
) -> Tensor<4> {
    let kernel: [usize; 4] = weight.dims();
    let axis = |k: usize| [kernel[2 + k], padding.0[k], stride.0[k], dilation.0[k]];
    let options = ConvOptions::new(stride.0, padding.0, dilation.0, groups);
    let (x, height) = whole_windows(x, 2, axis(0), groups);
    let (x, width) = whole_windows(x, 3, axis(1), groups);
    let y = module::conv2d(x, weight, bias, options);
    y.narrow(2, 0, height).narrow(3, 0, width)
}

/// Burn's gradient of the weights is wrong where there are groups and the last window does not end with the
/// padded input. Zeros behind the input make one window more, which is to be cut off: the second value is the
/// number of windows that count.
fn whole_windows<const D: usize>(
    x: Tensor<D>,
    dim: usize,
    [kernel, padding, stride, dilation]: [usize; 4],
    groups: usize,
) -> (Tensor<D>, usize) {
    let mut shape: [usize; D] = x.dims();
    let room = shape[dim] + 2 * padding - dilation * (kernel - 1) - 1;
    let windows = room / stride + 1;
    if groups == 1 || room.is_multiple_of(stride) {
        return (x, windows);
    }
    shape[dim] = stride - room % stride;
    let zeros = Tensor::zeros(shape, &x.device());
    (Tensor::cat(vec![x, zeros], dim), windows)
}

/// On `[samples, length, channels]`.
pub(super) fn conv1d(
    x: Tensor<3>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    [padding, stride, dilation]: [usize; 3],
    groups: usize,
) -> Tensor<3> {
    let kernel: [usize; 3] = weight.dims();
    let options = ConvOptions::new([stride], [padding], [dilation], groups);
    let (x, windows) = whole_windows(x.swap_dims(1, 2), 2, [kernel[2], padding, stride, dilation], groups);
    module::conv1d(x, weight, bias, options).narrow(2, 0, windows).swap_dims(1, 2)
}

pub(super) fn max_pool2d(x: Tensor<4>, kernel: Pair, stride: Pair, padding: Pair) -> Tensor<4> {
    module::max_pool2d(x, MaxPoolOptions::new(kernel.0).with_stride(stride.0).with_padding(padding.0))
}

pub(super) fn avg_pool2d(x: Tensor<4>, kernel: Pair, stride: Pair, padding: Pair) -> Tensor<4> {
    module::avg_pool2d(x, AvgPoolOptions::new(kernel.0).with_stride(stride.0).with_padding(padding.0))
}

pub(super) fn adaptive_avg_pool2d(x: Tensor<4>, size: Pair) -> Tensor<4> {
    module::adaptive_avg_pool2d(x, size.0)
}

/// A pooling along a sequence is one along the height of an image of width 1.
fn as_columns(x: Tensor<3>, pool: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Tensor<3> {
    pool(x.swap_dims(1, 2).unsqueeze_dim(3)).squeeze_dim::<3>(3).swap_dims(1, 2)
}

pub(super) fn max_pool1d(x: Tensor<3>, kernel: usize, stride: usize, padding: usize) -> Tensor<3> {
    as_columns(x, |x| max_pool2d(x, Pair([kernel, 1]), Pair([stride, 1]), Pair([padding, 0])))
}

pub(super) fn avg_pool1d(x: Tensor<3>, kernel: usize, stride: usize, padding: usize) -> Tensor<3> {
    as_columns(x, |x| avg_pool2d(x, Pair([kernel, 1]), Pair([stride, 1]), Pair([padding, 0])))
}

pub(super) fn adaptive_avg_pool1d(x: Tensor<3>, size: usize) -> Tensor<3> {
    as_columns(x, |x| adaptive_avg_pool2d(x, Pair([size, 1])))
}

/// `x * Phi(x)`. Burn's own `gelu` has an approximate gradient.
pub(super) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let phi = ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    x * phi
}

pub(super) fn dropout<const D: usize>(x: Tensor<D>, masks: MaskSeed, p: f32, layer: usize) -> Tensor<D> {
    let samples = x.dims().first().copied().unwrap_or(1).max(1);
    let mask = masks.mask(p, layer, x.shape().num_elements() / samples);
    let mask: Vec<f32> = (0..x.shape().num_elements()).map(|index| mask.at(index)).collect();
    let mask = Tensor::<D>::from_data(TensorData::new(mask, x.shape()), &x.device());
    x * mask
}

/// One value for each channel, ready to be combined with `x`.
fn along<const D: usize>(values: Tensor<1>, axis: usize) -> Tensor<D> {
    let mut shape = [1; D];
    shape[axis] = values.dims()[0];
    values.reshape(shape)
}

/// `(x - mean) / sqrt(variance + eps)` over the dimensions `over`, with the biased variance.
fn normalise<const D: usize>(x: Tensor<D>, over: &[usize], eps: f64) -> (Tensor<D>, [Tensor<D>; 2]) {
    let mean = x.clone().mean_dims(over);
    let centered = x - mean.clone();
    let variance = (centered.clone() * centered.clone()).mean_dims(over);
    (centered / (variance.clone() + eps).sqrt(), [mean, variance])
}

pub(super) fn layer_norm<const D: usize>(
    x: Tensor<D>,
    eps: f64,
    weight: Tensor<1>,
    bias: Tensor<1>,
) -> Tensor<D> {
    normalise(x, &[D - 1], eps).0 * along(weight, D - 1) + along(bias, D - 1)
}

/// Channels are dimension 1.
pub(super) fn group_norm<const D: usize>(
    x: Tensor<D>,
    groups: usize,
    eps: f64,
    weight: Tensor<1>,
    bias: Tensor<1>,
) -> Tensor<D> {
    let shape = x.dims();
    let size = shape[1..].iter().product::<usize>() / groups;
    let (y, _) = normalise(x.reshape([shape[0], groups, size]), &[2], eps);
    y.reshape(shape) * along(weight, 1) + along(bias, 1)
}

/// Mean and variance of each channel.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub(super) mean: Tensor<1>,
    pub(super) variance: Tensor<1>,
}

impl Moments {
    /// The running moments after a batch: its share is `momentum`. Means first.
    pub(super) fn moved(self, batch: Self, momentum: f64) -> Vec<f32> {
        let moved = |old: Tensor<1>, new: Tensor<1>| old * (1.0 - momentum) + new * momentum;
        let mut values = crate::burn::parameters::values(moved(self.mean, batch.mean));
        values.extend(crate::burn::parameters::values(moved(self.variance, batch.variance)));
        values
    }
}

/// A normalised batch. While training the moments are those of the batch, which are returned with the unbiased
/// variance; else they are the running ones, with a negative variance counted as 0.
///
/// The variance of a single value counts as 0, where PyTorch refuses the batch.
pub(super) fn batch_norm<const D: usize>(
    x: Tensor<D>,
    axis: usize,
    running: Moments,
    eps: f64,
    [weight, bias]: [Tensor<1>; 2],
    training: bool,
) -> (Tensor<D>, Option<Moments>) {
    let (y, moments) = if training {
        let others: Vec<usize> = (0..D).filter(|&dim| dim != axis).collect();
        let values = x.shape().num_elements() / x.dims()[axis];
        let channels = x.dims()[axis];
        let (y, [mean, variance]) = normalise(x, &others, eps);
        let unbiased = values as f64 / values.saturating_sub(1).max(1) as f64;
        let moments = Moments {
            mean: mean.detach().reshape([channels]),
            variance: variance.detach().reshape([channels]) * unbiased,
        };
        (y, Some(moments))
    } else {
        let deviation = (running.variance.clamp_min(0.0) + eps).sqrt();
        ((x - along(running.mean, axis)) / along(deviation, axis), None)
    };
    (y * along(weight, axis) + along(bias, axis), moments)
}
