//! The operations, each on the kernels that compute it.

mod backward;
mod forward;
mod layers;

pub(super) use layers::operations;

use super::dim::Dim;
use crate::{
    dropout::{Mask, MaskSeed},
    fused::{
        kernels::{
            activation::{self, Activation},
            attention::{self, Attention},
            conv::{self, Conv},
            depthwise, dropping,
            linear::Linear,
            norm::{self, GroupNorm, Saved, Settings},
            pool::{AveragePool, MaxPool, Tap},
            product,
            recurrent::{self, Recurrent},
        },
        parallel::Threads,
    },
};
use std::ops::Range;

/// What every operation of a pass sees.
pub(super) struct Context<'a> {
    /// The whole flat vector.
    pub(super) parameters: &'a [f32],
    pub(super) threads: &'a Threads,
    /// Seeds of dropout; none in an evaluation.
    pub(super) masks: Option<MaskSeed>,
    pub(super) training: bool,
    /// The network's input, if it is tokens.
    pub(super) tokens: &'a [u32],
}

/// The gradient of an operation's own parameters.
pub(super) struct OwnGradient<'a> {
    /// Room for it.
    pub(super) values: &'a mut [f32],
    /// Whether the parameters are trained. If not, what is written is of no meaning, and products that give
    /// nothing else are left out.
    pub(super) wanted: bool,
}

/// Buffers that all operations share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    product: product::Scratch,
    conv: conv::Scratch,
    norm: norm::Partial,
    depthwise: Vec<f32>,
    layer_norm: Vec<f32>,
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
    Linear {
        layer: Linear,
        bias: bool,
        relu: bool,
    },
    /// Convolution, then ReLU if fused.
    Conv {
        conv: Box<Conv>,
        relu: bool,
    },
    /// Convolution of each channel by itself, then ReLU if fused.
    Depthwise {
        geometry: depthwise::Geometry,
        packed: Vec<f32>,
        relu: bool,
    },
    /// Layer normalisation, then ReLU if fused.
    LayerNorm {
        eps: f64,
        relu: bool,
        saved: Saved,
    },
    /// Group normalisation, then ReLU if fused.
    GroupNorm {
        norm: GroupNorm,
        eps: f64,
        relu: bool,
        saved: Saved,
    },
    /// Batch normalisation, then ReLU if fused.
    BatchNorm(BatchNorm),
    Activation(Activation),
    /// A vector for each token of the network's input.
    Embedding {
        dim: usize,
    },
    /// Adds a vector to each position; a sample has `len` values.
    Positions {
        len: usize,
    },
    /// One LSTM or GRU layer over sequences of `length`.
    Recurrent {
        layer: Box<Recurrent>,
        length: usize,
    },
    /// Self-attention over sequences of `length`.
    Attention {
        layer: Box<Attention>,
        length: usize,
        bias: bool,
    },
    /// Maximum over windows; which value of its window each one is.
    MaxPool {
        pool: Box<MaxPool>,
        taken: Vec<Tap>,
    },
    /// Mean over windows, over tokens or over all pixels.
    AveragePool(Box<AveragePool>),
    /// The last row of each sample.
    LastToken(Dim),
    /// Dropout layer `layer`, counted over all layers.
    Dropout {
        p: f32,
        layer: usize,
        dim: Dim,
    },
    /// The sum of all inputs, then ReLU if fused.
    Add {
        relu: bool,
    },
    /// The inputs' channels one after the other.
    Concat {
        channels: Vec<usize>,
    },
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

impl Operation {
    /// Applies a ReLU with the operation, if it can.
    pub(super) fn fuse_relu(&mut self) -> bool {
        match self {
            Self::Linear { relu, .. }
            | Self::Conv { relu, .. }
            | Self::Depthwise { relu, .. }
            | Self::LayerNorm { relu, .. }
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

    /// What the backward pass reads; `trained` says whether it gives the gradient of the parameters.
    pub(super) fn keeps(&self, trained: bool) -> Keeps {
        let (input, output) = match self {
            Self::Linear { relu, .. } | Self::Conv { relu, .. } | Self::Depthwise { relu, .. } => {
                (trained, *relu)
            }
            // The number of rows comes from the input.
            Self::Recurrent { .. } => (true, true),
            Self::Attention { .. } => (true, false),
            // Where the ReLU is closed follows from the input.
            Self::LayerNorm { .. } | Self::GroupNorm { .. } | Self::BatchNorm(_) => (true, false),
            Self::Activation(kind) => (!kind.keeps_output(), kind.keeps_output()),
            Self::Add { relu } => (false, *relu),
            Self::MaxPool { .. } | Self::AveragePool(_) => (false, false),
            Self::Embedding { .. } | Self::Positions { .. } | Self::LastToken(_) => (false, false),
            Self::Dropout { .. }
            | Self::Concat { .. }
            | Self::ToChannelsLast(_)
            | Self::ToChannelsFirst(_) => (false, false),
        };
        Keeps { input, output }
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
    let [weight_ih, weight_hh, bias_ih, bias_hh] =
        [0, 1, 2, 3].map(|k: usize| &parameters[tensors[k].clone()]);
    recurrent::Weights { weight_ih, weight_hh, bias_ih, bias_hh }
}

fn attention_weights<'a>(
    parameters: &'a [f32],
    tensors: &[Range<usize>],
    bias: bool,
) -> attention::Weights<'a> {
    let tensor = |k: usize| &parameters[tensors[k].clone()];
    match bias {
        true => attention::Weights {
            in_weight: tensor(0),
            in_bias: Some(tensor(1)),
            out_weight: tensor(2),
            out_bias: Some(tensor(3)),
        },
        false => {
            attention::Weights { in_weight: tensor(0), in_bias: None, out_weight: tensor(1), out_bias: None }
        }
    }
}

/// Zeroes the gradient where the ReLU's output is zero.
fn mask(dy: &mut [f32], y: &[f32], threads: &Threads) {
    activation::backward_in_place(Activation::Relu, y, dy, threads);
}

/// Dropout of values of shape `dim`.
fn drop_some(x: &[f32], y: &mut [f32], dim: Dim, mask: Mask, threads: &Threads) {
    // The mask goes over images channel by channel, over sequences and vectors as they lie.
    let pixels = if dim.height == 1 { 1 } else { dim.pixels() };
    dropping::apply(mask, pixels, dim.channels, x, y, threads);
}
