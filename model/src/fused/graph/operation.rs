//! The operations, each on the kernels that compute it.

use super::build::Dim;
use crate::{
    dropout::MaskSeed,
    error::ModelError,
    fused::{
        kernels::{
            activation::{self, Activation},
            attention::{self, Attention},
            conv::{self, Conv, Geometry},
            depthwise, embedding,
            linear::Linear,
            norm::{self, GroupNorm, Running, Saved, Settings},
            product,
            recurrent::{self, Cell, Recurrent},
            window::Axis,
        },
        parallel::Threads,
    },
    spec::{GeluForm, Layer},
};
use std::ops::Range;

/// What every operation of a pass sees.
pub(super) struct Context<'a> {
    /// Samples of the batch.
    pub(super) samples: usize,
    /// The whole flat vector.
    pub(super) parameters: &'a [f32],
    pub(super) threads: &'a Threads,
    /// Seeds of dropout; none in an evaluation.
    pub(super) masks: Option<MaskSeed>,
    pub(super) training: bool,
    /// The network's input, if it is tokens.
    pub(super) tokens: &'a [u32],
}

/// Buffers that all operations share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    product: product::Scratch,
    conv: conv::Scratch,
    norm: norm::Partial,
    depthwise: Vec<f32>,
}

/// Which values the backward pass of an operation reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeps {
    pub(super) input: bool,
    pub(super) output: bool,
}

/// What a node computes.
#[derive(Debug)]
pub(super) enum Operation {
    /// `y = x W^T + b` over the last dimension, then ReLU if fused.
    Linear { layer: Linear, bias: bool, relu: bool },
    /// Convolution, then ReLU if fused.
    Conv { conv: Box<Conv>, relu: bool },
    /// Convolution of each channel by itself, then ReLU if fused.
    Depthwise { geometry: depthwise::Geometry, packed: Vec<f32>, relu: bool },
    /// Group or layer normalisation, then ReLU if fused.
    GroupNorm { norm: GroupNorm, eps: f64, relu: bool, saved: Saved },
    /// Batch normalisation, then ReLU if fused.
    BatchNorm(BatchNorm),
    Activation(Activation),
    /// A vector for each token of the network's input.
    Embedding { dim: usize },
    /// Adds a vector to each position; a sample has `len` values.
    Positions { len: usize },
    /// One LSTM or GRU layer over sequences of `length`.
    Recurrent { layer: Box<Recurrent>, length: usize },
    /// Self-attention over sequences of `length`.
    Attention { layer: Box<Attention>, length: usize, bias: bool },
    /// The last row of each sample.
    LastToken(Dim),
    /// Dropout layer `layer`, counted over all layers.
    Dropout { p: f32, layer: usize, dim: Dim },
    /// The sum of all inputs, then ReLU if fused.
    Add { relu: bool },
    /// The inputs' channels one after the other.
    Concat { channels: Vec<usize>, pixels: usize },
    /// From PyTorch's order to channels last.
    ToChannelsLast(Dim),
    /// From channels last to PyTorch's order.
    ToChannelsFirst(Dim),
}

/// A batch normalisation with the running moments as the last training pass left them.
#[derive(Debug)]
pub(super) struct BatchNorm {
    eps: f64,
    momentum: f64,
    relu: bool,
    saved: Saved,
    running: [Vec<f32>; 2],
}

/// One operation of a layer.
pub(super) struct Step {
    pub(super) operation: Operation,
    pub(super) output: Dim,
    pub(super) tensors: Vec<Range<usize>>,
}

/// The operations of a layer that holds no others; `number` counts all layers.
///
/// # Errors
/// [`ModelError::NotFused`].
pub(super) fn operations(
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
            let axis = |k: usize, input: usize| Axis {
                input,
                kernel: kernel.0[k],
                stride: stride.0[k],
                padding: padding.0[k],
                dilation: dilation.0[k],
            };
            let (height, width) = (axis(0, input.height), axis(1, input.width));
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
        Layer::LayerNorm { eps, .. } => {
            let norm = GroupNorm { pixels: 1, channels: input.channels, groups: 1 };
            Operation::GroupNorm { norm, eps, relu: false, saved: Saved::default() }
        }
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

impl Operation {
    /// Applies a ReLU with the operation, if it can.
    pub(super) fn fuse_relu(&mut self) -> bool {
        match self {
            Self::Linear { relu, .. }
            | Self::Conv { relu, .. }
            | Self::Depthwise { relu, .. }
            | Self::GroupNorm { relu, .. }
            | Self::BatchNorm(BatchNorm { relu, .. })
            | Self::Add { relu }
                if !*relu =>
            {
                *relu = true;
                true
            }
            _ => false,
        }
    }

    pub(super) fn keeps(&self) -> Keeps {
        let (input, output) = match self {
            Self::Linear { relu, .. } | Self::Conv { relu, .. } | Self::Depthwise { relu, .. } => (true, *relu),
            Self::Recurrent { .. } => (true, true),
            Self::Attention { .. } => (true, false),
            // Where the ReLU is closed follows from the input.
            Self::GroupNorm { .. } | Self::BatchNorm(_) => (true, false),
            Self::Activation(kind) => (!kind.keeps_output(), kind.keeps_output()),
            Self::Add { relu } => (false, *relu),
            Self::Embedding { .. } | Self::Positions { .. } | Self::LastToken(_) => (false, false),
            Self::Dropout { .. } | Self::Concat { .. } | Self::ToChannelsLast(_) | Self::ToChannelsFirst(_) => {
                (false, false)
            }
        };
        Keeps { input, output }
    }

    /// Computes `y`, of which every value is written.
    pub(super) fn forward(
        &mut self,
        context: &Context<'_>,
        tensors: &[Range<usize>],
        xs: &[&[f32]],
        y: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let &Context { parameters, threads, masks, samples, training, .. } = context;
        let x = xs.first().copied().unwrap_or(&[]);
        match self {
            Self::Linear { layer, bias, relu } => {
                let weights = &parameters[tensors[0].clone()];
                let bias = bias.then(|| &parameters[tensors[1].clone()]);
                layer.forward(x, weights, bias, *relu, y, &mut scratch.product, threads);
            }
            Self::Conv { conv, relu } => {
                conv.pack(&parameters[tensors[0].clone()], training, threads);
                let bias = tensors.get(1).map(|bias| &parameters[bias.clone()]);
                conv.forward(x, bias, *relu, y, &mut scratch.conv, threads);
            }
            Self::Depthwise { geometry, packed, relu } => {
                geometry.pack(&parameters[tensors[0].clone()], packed);
                let bias = tensors.get(1).map(|bias| &parameters[bias.clone()]);
                geometry.forward(x, packed, bias, *relu, y, threads);
            }
            Self::Embedding { dim } => {
                embedding::forward(context.tokens, &parameters[tensors[0].clone()], *dim, y, threads);
            }
            Self::Positions { len } => {
                embedding::add_positions(x, &parameters[tensors[0].clone()], *len, y, threads);
            }
            Self::Recurrent { layer, length } => {
                layer.forward(x, *length, recurrent_weights(parameters, tensors), y, threads);
            }
            Self::Attention { layer, length, bias } => {
                layer.forward(x, *length, attention_weights(parameters, tensors, *bias), y, threads);
            }
            Self::LastToken(dim) => {
                for (x, y) in x.chunks_exact(dim.len()).zip(y.chunks_exact_mut(dim.channels)) {
                    y.copy_from_slice(&x[dim.len() - dim.channels..]);
                }
            }
            Self::GroupNorm { norm, eps, relu, saved } => {
                norm.forward(x, settings(parameters, tensors, *eps, *relu), y, saved, threads);
            }
            Self::BatchNorm(norm) => norm.forward(context, tensors, x, y),
            Self::Activation(kind) => activation::forward(*kind, x, y, threads),
            Self::Dropout { p, layer, dim } => match masks {
                None => y.copy_from_slice(x),
                Some(seed) => drop_some(x, y, *dim, seed.mask(*p, *layer)),
            },
            Self::Add { relu } => {
                y.copy_from_slice(x);
                for x in &xs[1..] {
                    y.iter_mut().zip(*x).for_each(|(y, x)| *y += x);
                }
                if *relu {
                    y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
                }
            }
            Self::Concat { channels, .. } => {
                let width: usize = channels.iter().sum();
                let mut at = 0;
                for (x, own) in xs.iter().zip(channels.iter()) {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(*own)) {
                        y[at..at + own].copy_from_slice(x);
                    }
                    at += own;
                }
            }
            Self::ToChannelsLast(dim) => permute(x, y, samples, dim.channels, dim.pixels()),
            Self::ToChannelsFirst(dim) => permute(x, y, samples, dim.pixels(), dim.channels),
        }
    }

    /// From the gradient of the output, which may be changed, writes those of the inputs that are asked for
    /// and that of the layer's parameters.
    #[expect(clippy::too_many_arguments, reason = "a pass has that many tensors")]
    pub(super) fn backward(
        &mut self,
        context: &Context<'_>,
        tensors: &[Range<usize>],
        xs: &[&[f32]],
        y: &[f32],
        dy: &mut [f32],
        dxs: &mut [Option<&mut [f32]>],
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let &Context { parameters, threads, masks, samples, .. } = context;
        let x = xs.first().copied().unwrap_or(&[]);
        let [dx, ..] = dxs else { return };
        match self {
            Self::Linear { layer, bias, relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                let scratch = &mut scratch.product;
                if let Some(dx) = dx {
                    layer.backward_input(dy, &parameters[tensors[0].clone()], dx, scratch, threads);
                }
                let (dw, db) = gradient.split_at_mut(tensors[0].len());
                layer.backward_weight(dy, x, dw, bias.then_some(db), scratch, threads);
            }
            Self::Conv { conv, relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                let (dw, db) = gradient.split_at_mut(tensors[0].len());
                let db = (tensors.len() > 1).then_some(db);
                conv.backward_weights(x, dy, dw, db, &mut scratch.conv, threads);
                if let Some(dx) = dx {
                    conv.backward_input(dy, dx, &mut scratch.conv, threads);
                }
            }
            Self::Depthwise { geometry, packed, relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                let (dw, db) = gradient.split_at_mut(tensors[0].len());
                let db = (tensors.len() > 1).then_some(db);
                geometry.backward_weight(x, dy, dw, db, &mut scratch.depthwise, threads);
                if let Some(dx) = dx {
                    geometry.backward_input(dy, packed, dx, threads);
                }
            }
            Self::Embedding { dim } => embedding::backward(context.tokens, dy, *dim, gradient, threads),
            Self::Positions { len } => {
                embedding::positions_gradient(dy, *len, gradient);
                if let Some(dx) = dx {
                    dx.copy_from_slice(dy);
                }
            }
            Self::Recurrent { layer, length } => {
                let weights = recurrent_weights(parameters, tensors);
                let [weight_ih, weight_hh, bias_ih, bias_hh] = split(gradient, tensors);
                let gradients = recurrent::Gradients { weight_ih, weight_hh, bias_ih, bias_hh };
                layer.backward(x, y, dy, *length, weights, dx.as_deref_mut(), gradients, threads);
            }
            Self::Attention { layer, length, bias } => {
                let weights = attention_weights(parameters, tensors, *bias);
                let gradients = if *bias {
                    let [in_weight, in_bias, out_weight, out_bias] = split(gradient, tensors);
                    attention::Gradients { in_weight, in_bias: Some(in_bias), out_weight, out_bias: Some(out_bias) }
                } else {
                    let [in_weight, out_weight] = split(gradient, tensors);
                    attention::Gradients { in_weight, in_bias: None, out_weight, out_bias: None }
                };
                match dx {
                    Some(dx) => layer.backward(x, dy, *length, weights, dx, gradients, threads),
                    None => layer.backward(x, dy, *length, weights, &mut vec![0.0; x.len()], gradients, threads),
                }
            }
            Self::LastToken(dim) => {
                let Some(dx) = dx else { return };
                dx.fill(0.0);
                for (dx, dy) in dx.chunks_exact_mut(dim.len()).zip(dy.chunks_exact(dim.channels)) {
                    dx[dim.len() - dim.channels..].copy_from_slice(dy);
                }
            }
            Self::GroupNorm { norm, eps, relu, saved } => {
                let parts = gradient.split_at_mut(tensors[0].len());
                let settings = settings(parameters, tensors, *eps, *relu);
                match dx {
                    Some(dx) => {
                        norm.backward(x, settings, saved, Some(dy), dx, parts, &mut scratch.norm, threads);
                    }
                    None => norm.backward(x, settings, saved, None, dy, parts, &mut scratch.norm, threads),
                }
            }
            Self::BatchNorm(norm) => {
                let (parts, moments) = gradient.split_at_mut(tensors[2].start - tensors[0].start);
                moments.fill(0.0);
                let parts = parts.split_at_mut(tensors[0].len());
                let settings = settings(parameters, tensors, norm.eps, norm.relu);
                let saved = &norm.saved;
                match dx {
                    Some(dx) => norm::batch_backward(
                        x, settings, saved, Some(dy), dx, parts, &mut scratch.norm, threads,
                    ),
                    None => norm::batch_backward(x, settings, saved, None, dy, parts, &mut scratch.norm, threads),
                }
            }
            Self::Activation(kind) => {
                let Some(dx) = dx else { return };
                activation::backward(*kind, if kind.keeps_output() { y } else { x }, dy, dx, threads);
            }
            Self::Dropout { p, layer, dim } => {
                let Some(dx) = dx else { return };
                match masks {
                    None => dx.copy_from_slice(dy),
                    Some(seed) => drop_some(dy, dx, *dim, seed.mask(*p, *layer)),
                }
            }
            Self::Add { relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                dxs.iter_mut().flatten().for_each(|dx| dx.copy_from_slice(dy));
            }
            Self::Concat { channels, .. } => {
                let width: usize = channels.iter().sum();
                let mut at = 0;
                for (dx, own) in dxs.iter_mut().zip(channels.iter()) {
                    if let Some(dx) = dx {
                        for (dy, dx) in dy.chunks_exact(width).zip(dx.chunks_exact_mut(*own)) {
                            dx.copy_from_slice(&dy[at..at + own]);
                        }
                    }
                    at += own;
                }
            }
            Self::ToChannelsLast(dim) => {
                let Some(dx) = dx else { return };
                permute(dy, dx, samples, dim.pixels(), dim.channels);
            }
            Self::ToChannelsFirst(dim) => {
                let Some(dx) = dx else { return };
                permute(dy, dx, samples, dim.channels, dim.pixels());
            }
        }
    }

    /// Whether [`Operation::descend`] does this operation.
    pub(super) fn descends(&self) -> bool {
        matches!(self, Self::Linear { .. })
    }

    /// [`Operation::backward`] and a step of plain gradient descent at once: `own` are the parameters of this
    /// operation.
    #[expect(clippy::too_many_arguments, reason = "a pass has that many tensors")]
    pub(super) fn descend(
        &self,
        own: &mut [f32],
        lr: f32,
        first_input: &[f32],
        y: &[f32],
        dy: &mut [f32],
        dx: Option<&mut [f32]>,
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        let Self::Linear { layer, bias, relu } = self else { return };
        if *relu {
            mask(dy, y, threads);
        }
        let scratch = &mut scratch.product;
        let (weights, own_bias) = own.split_at_mut(layer.inputs * layer.outputs);
        if let Some(dx) = dx {
            layer.backward_input(dy, weights, dx, scratch, threads);
        }
        layer.descend(dy, first_input, weights, bias.then_some(own_bias), lr, scratch, threads);
    }

    /// Moves what the forward pass of a training step moves and no gradient does.
    pub(super) fn move_buffers(&self, tensors: &[Range<usize>], parameters: &mut [f32]) {
        if let Self::BatchNorm(norm) = self {
            for (range, running) in tensors[2..].iter().zip(&norm.running) {
                parameters[range.clone()].copy_from_slice(running);
            }
        }
    }
}

impl BatchNorm {
    fn forward(&mut self, context: &Context<'_>, tensors: &[Range<usize>], x: &[f32], y: &mut [f32]) {
        let &Context { parameters, threads, training, .. } = context;
        let settings = settings(parameters, tensors, self.eps, self.relu);
        let [mean, var] = [2, 3].map(|k: usize| &parameters[tensors[k].clone()]);
        if !training {
            return norm::batch_evaluate(x, settings, (mean, var), y, threads);
        }
        for (own, current) in self.running.iter_mut().zip([mean, var]) {
            own.clear();
            own.extend_from_slice(current);
        }
        let [mean, var] = &mut self.running;
        let running = Running { mean, var, momentum: self.momentum };
        norm::batch_forward(x, settings, running, y, &mut self.saved, threads);
    }
}

fn settings<'a>(parameters: &'a [f32], tensors: &[Range<usize>], eps: f64, relu: bool) -> Settings<'a> {
    Settings { weight: &parameters[tensors[0].clone()], bias: &parameters[tensors[1].clone()], eps, relu }
}

/// Cuts a layer's gradient into those of its tensors.
fn split<'a, const N: usize>(gradient: &'a mut [f32], tensors: &[Range<usize>]) -> [&'a mut [f32]; N] {
    let mut rest = gradient;
    std::array::from_fn(|k| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(tensors[k].len());
        rest = tail;
        part
    })
}

fn recurrent_weights<'a>(parameters: &'a [f32], tensors: &[Range<usize>]) -> recurrent::Weights<'a> {
    let [weight_ih, weight_hh, bias_ih, bias_hh] = [0, 1, 2, 3].map(|k: usize| &parameters[tensors[k].clone()]);
    recurrent::Weights { weight_ih, weight_hh, bias_ih, bias_hh }
}

fn attention_weights<'a>(parameters: &'a [f32], tensors: &[Range<usize>], bias: bool) -> attention::Weights<'a> {
    let tensor = |k: usize| &parameters[tensors[k].clone()];
    match bias {
        true => attention::Weights {
            in_weight: tensor(0),
            in_bias: Some(tensor(1)),
            out_weight: tensor(2),
            out_bias: Some(tensor(3)),
        },
        false => attention::Weights { in_weight: tensor(0), in_bias: None, out_weight: tensor(1), out_bias: None },
    }
}

/// Zeroes the gradient where the ReLU's output is zero.
fn mask(dy: &mut [f32], y: &[f32], threads: &Threads) {
    activation::backward_in_place(Activation::Relu, y, dy, threads);
}

fn drop_some(x: &[f32], y: &mut [f32], dim: Dim, mask: crate::dropout::Mask) {
    for (at, (y, x)) in y.iter_mut().zip(x).enumerate() {
        let (row, channel) = (at / dim.channels, at % dim.channels);
        let index = match dim.height {
            1 => at,
            _ => (row / dim.pixels() * dim.channels + channel) * dim.pixels() + row % dim.pixels(),
        };
        *y = x * mask.at(index);
    }
}

/// Transposes each sample's `rows x columns` matrix.
fn permute(x: &[f32], y: &mut [f32], samples: usize, rows: usize, columns: usize) {
    for (x, y) in x.chunks_exact(rows * columns).zip(y.chunks_exact_mut(rows * columns)).take(samples) {
        for (r, row) in x.chunks_exact(columns).enumerate() {
            for (c, value) in row.iter().enumerate() {
                y[c * rows + r] = *value;
            }
        }
    }
}
