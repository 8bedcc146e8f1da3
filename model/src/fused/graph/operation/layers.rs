//! Which operations compute a layer.

use super::{BatchNorm, Operation, Step};
use crate::{
    error::ModelError,
    fused::{
        graph::dim::Dim,
        kernels::{
            activation::Activation,
            attention::{self, Attention},
            conv::{Conv, Geometry},
            depthwise,
            linear::Linear,
            norm::{GroupNorm, Saved},
            pool::{AveragePool, MaxPool},
            recurrent::{Cell, Recurrent},
            window::Axis,
        },
    },
    spec::{GeluForm, Layer, Pair},
};
use std::ops::Range;

/// The operations of a layer that holds no others; `number` counts all layers.
///
/// # Errors
/// [`ModelError::NotFused`].
pub(in crate::fused::graph) fn operations(
    layer: &Layer,
    number: usize,
    input: Dim,
    output: Dim,
    tensors: &[Range<usize>],
) -> Result<Vec<Step>, ModelError> {
    let operation = match *layer {
        Layer::Linear { in_features, out_features, bias } => {
            let layer = Linear { inputs: in_features, outputs: out_features };
            Operation::Linear { layer, bias, relu: false }
        }
        Layer::Conv2d { kernel, stride, padding, dilation, groups, .. }
            if groups > 1 && groups == input.channels && groups == output.channels =>
        {
            let [mut height, mut width] = axes(input, kernel, stride, padding);
            [height.dilation, width.dilation] = dilation.0;
            let geometry = depthwise::Geometry { channels: groups, height, width };
            Operation::Depthwise { geometry, packed: Vec::new(), relu: false }
        }
        Layer::Conv2d { kernel, stride, padding, dilation, groups, .. } => {
            let geometry = Geometry {
                height: input.height,
                width: input.width,
                inputs: input.channels,
                outputs: output.channels,
                kernel: kernel.0,
                stride: stride.0,
                padding: padding.0,
                dilation: dilation.0,
                groups,
            };
            convolution(geometry)?
        }
        Layer::Conv1d { kernel, stride, padding, dilation, groups, .. } => {
            let geometry = Geometry {
                height: 1,
                width: input.width,
                inputs: input.channels,
                outputs: output.channels,
                kernel: [1, kernel],
                stride: [1, stride],
                padding: [0, padding],
                dilation: [1, dilation],
                groups,
            };
            convolution(geometry)?
        }
        Layer::GroupNorm { groups, eps, .. } => {
            let norm = GroupNorm { pixels: input.pixels(), channels: input.channels, groups };
            Operation::GroupNorm { norm, eps, relu: false, saved: Saved::default() }
        }
        Layer::LayerNorm { eps, .. } => Operation::LayerNorm { eps, relu: false, saved: Saved::default() },
        Layer::BatchNorm { eps, momentum, .. } => Operation::BatchNorm(BatchNorm {
            eps,
            momentum,
            relu: false,
            saved: Saved::default(),
            running: Default::default(),
        }),
        Layer::Embedding { dim, .. } => Operation::Embedding { dim },
        Layer::PositionalEmbedding { .. } => Operation::Positions { len: input.len() },
        Layer::LastToken => Operation::LastToken(input),
        Layer::Lstm { input_size, hidden_size, .. } => {
            return Ok(stacked(Cell::Lstm, input_size, hidden_size, output, tensors));
        }
        Layer::Gru { input_size, hidden_size, .. } => {
            return Ok(stacked(Cell::Gru, input_size, hidden_size, output, tensors));
        }
        Layer::Attention { dim, heads, causal, bias } => {
            let layer = Box::new(Attention::new(attention::Shape { dim, heads, causal }));
            Operation::Attention { layer, length: input.pixels(), bias }
        }
        Layer::MaxPool2d { kernel, stride, padding } => {
            max_pool(axes(input, kernel, stride, padding), input)?
        }
        Layer::MaxPool1d { kernel, stride, padding } => {
            max_pool(line(input, kernel, stride, padding), input)?
        }
        Layer::AvgPool2d { kernel, stride, padding } => {
            average_pool(axes(input, kernel, stride, padding), input)
        }
        Layer::AvgPool1d { kernel, stride, padding } => {
            average_pool(line(input, kernel, stride, padding), input)
        }
        Layer::AdaptiveAvgPool2d { .. } | Layer::AdaptiveAvgPool1d { .. } | Layer::MeanTokens => {
            let sizes = [input, output].map(|dim| [dim.height, dim.width]);
            Operation::AveragePool(Box::new(AveragePool::adaptive(sizes[0], sizes[1], input.channels)))
        }
        Layer::Relu => Operation::Activation(Activation::Relu),
        Layer::LeakyRelu { negative_slope: slope } => Operation::Activation(Activation::LeakyRelu { slope }),
        Layer::Gelu { approximate: GeluForm::None } => Operation::Activation(Activation::Gelu),
        Layer::Gelu { approximate: GeluForm::Tanh } => Operation::Activation(Activation::GeluTanh),
        Layer::Silu => Operation::Activation(Activation::Silu),
        Layer::Tanh => Operation::Activation(Activation::Tanh),
        Layer::Sigmoid => Operation::Activation(Activation::Sigmoid),
        Layer::Dropout { p } => Operation::Dropout { p, layer: number, dim: input },
        _ => return Err(ModelError::NotFused(format!("{layer:?}"))),
    };
    Ok(vec![Step { operation, output, tensors: tensors.to_vec() }])
}

/// The layers of a stack, of four tensors each.
fn stacked(cell: Cell, input: usize, hidden: usize, output: Dim, tensors: &[Range<usize>]) -> Vec<Step> {
    let layer = |(k, tensors): (usize, &[Range<usize>])| {
        let input = if k == 0 { input } else { hidden };
        let layer = Box::new(Recurrent::new(cell, input, hidden));
        let operation = Operation::Recurrent { layer, length: output.pixels() };
        Step { operation, output, tensors: tensors.to_vec() }
    };
    tensors.chunks(4).enumerate().map(layer).collect()
}

fn convolution(geometry: Geometry) -> Result<Operation, ModelError> {
    Conv::new(geometry)
        .map(|conv| Operation::Conv { conv: Box::new(conv), relu: false })
        .ok_or_else(|| ModelError::NotFused(format!("{geometry:?}")))
}

/// Windows over an image, without dilation.
fn axes(input: Dim, kernel: Pair, stride: Pair, padding: Pair) -> [Axis; 2] {
    let axis = |k: usize, input| Axis {
        input,
        kernel: kernel.0[k],
        stride: stride.0[k],
        padding: padding.0[k],
        dilation: 1,
    };
    [axis(0, input.height), axis(1, input.width)]
}

/// Windows over a sequence, without dilation.
fn line(input: Dim, kernel: usize, stride: usize, padding: usize) -> [Axis; 2] {
    axes(input, Pair([1, kernel]), Pair([1, stride]), Pair([0, padding]))
}

fn max_pool([height, width]: [Axis; 2], input: Dim) -> Result<Operation, ModelError> {
    MaxPool::new(height, width, input.channels)
        .map(|pool| Operation::MaxPool { pool: Box::new(pool), taken: Vec::new() })
        .ok_or_else(|| ModelError::NotFused(format!("max pooling of {height:?}, {width:?}")))
}

fn average_pool([height, width]: [Axis; 2], input: Dim) -> Operation {
    Operation::AveragePool(Box::new(AveragePool::sliding(height, width, input.channels)))
}
