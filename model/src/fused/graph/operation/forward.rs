//! The forward passes.

use super::{
    BatchNorm, Context, Operation, Scratch, attention_weights, drop_some, recurrent_weights, settings,
};
use crate::fused::kernels::{
    activation, embedding, joining, layer_norm,
    norm::{self, Running},
};
use std::ops::Range;

impl Operation {
    /// Computes `y`, of which every value is written.
    pub(in crate::fused::graph) fn forward(
        &mut self,
        context: &Context<'_>,
        tensors: &[Range<usize>],
        xs: &[&[f32]],
        y: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let &Context { parameters, threads, masks, training, .. } = context;
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
            Self::MaxPool { pool, taken } => {
                taken.resize(y.len(), 0);
                pool.forward(x, y, taken, threads);
            }
            Self::AveragePool(pool) => pool.forward(x, y, threads),
            Self::LayerNorm { eps, relu, saved } => {
                layer_norm::forward(x, settings(parameters, tensors, *eps, *relu), y, saved, threads);
            }
            Self::GroupNorm { norm, eps, relu, saved } => {
                norm.forward(x, settings(parameters, tensors, *eps, *relu), y, saved, threads);
            }
            Self::BatchNorm(norm) => norm.forward(context, tensors, x, y),
            Self::Activation(kind) => activation::forward(*kind, x, y, threads),
            Self::Dropout { p, layer, dim } => match masks {
                None => joining::copy(x, y, threads),
                Some(seed) => drop_some(x, y, *dim, seed.mask(*p, *layer, dim.len()), threads),
            },
            Self::Add { relu } => joining::sum(xs, *relu, y, threads),
            Self::Concat { channels } => joining::concat(xs, channels, y, threads),
            Self::ToChannelsLast(dim) => joining::permute(x, y, dim.channels, dim.pixels(), threads),
            Self::ToChannelsFirst(dim) => joining::permute(x, y, dim.pixels(), dim.channels, threads),
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
