//! The backward passes.

use super::{
    Context, Operation, OwnGradient, Scratch, attention_weights, drop_some, mask, recurrent_weights,
    settings, split,
};
use crate::fused::kernels::{activation, attention, embedding, joining, layer_norm, norm, recurrent};
use crate::fused::parallel::Threads;
use std::ops::Range;

impl Operation {
    /// From the gradient of the output, which may be changed, writes those of the inputs that are asked for
    /// and that of the layer's parameters.
    #[expect(clippy::too_many_arguments, reason = "a pass has that many tensors")]
    pub(in crate::fused::graph) fn backward(
        &mut self,
        context: &Context<'_>,
        tensors: &[Range<usize>],
        xs: &[&[f32]],
        y: &[f32],
        dy: &mut [f32],
        dxs: &mut [Option<&mut [f32]>],
        OwnGradient { values: gradient, wanted }: OwnGradient<'_>,
        scratch: &mut Scratch,
    ) {
        let &Context { parameters, threads, masks, .. } = context;
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
                if wanted {
                    let (dw, db) = gradient.split_at_mut(tensors[0].len());
                    layer.backward_weight(dy, x, dw, bias.then_some(db), scratch, threads);
                }
            }
            Self::Conv { conv, relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                if wanted {
                    let (dw, db) = gradient.split_at_mut(tensors[0].len());
                    let db = (tensors.len() > 1).then_some(db);
                    conv.backward_weights(x, dy, dw, db, &mut scratch.conv, threads);
                }
                if let Some(dx) = dx {
                    conv.backward_input(dy, dx, &mut scratch.conv, threads);
                }
            }
            Self::Depthwise { geometry, packed, relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                if wanted {
                    let (dw, db) = gradient.split_at_mut(tensors[0].len());
                    let db = (tensors.len() > 1).then_some(db);
                    geometry.backward_weight(x, dy, dw, db, &mut scratch.depthwise, threads);
                }
                if let Some(dx) = dx {
                    geometry.backward_input(dy, packed, dx, threads);
                }
            }
            Self::Embedding { dim } => {
                if wanted {
                    embedding::backward(context.tokens, dy, *dim, gradient, threads);
                }
            }
            Self::Positions { len } => {
                if wanted {
                    embedding::positions_gradient(dy, *len, gradient);
                }
                if let Some(dx) = dx {
                    joining::copy(dy, dx, threads);
                }
            }
            Self::Recurrent { layer, length } => {
                let weights = recurrent_weights(parameters, tensors);
                let [weight_ih, weight_hh, bias_ih, bias_hh] = split(gradient, tensors);
                let gradients = recurrent::Gradients { weight_ih, weight_hh, bias_ih, bias_hh };
                let gradients = wanted.then_some(gradients);
                layer.backward(x, y, dy, *length, weights, dx.as_deref_mut(), gradients, threads);
            }
            Self::Attention { layer, length, bias } => {
                let weights = attention_weights(parameters, tensors, *bias);
                let gradients = if *bias {
                    let [in_weight, in_bias, out_weight, out_bias] = split(gradient, tensors);
                    attention::Gradients {
                        in_weight,
                        in_bias: Some(in_bias),
                        out_weight,
                        out_bias: Some(out_bias),
                    }
                } else {
                    let [in_weight, out_weight] = split(gradient, tensors);
                    attention::Gradients { in_weight, in_bias: None, out_weight, out_bias: None }
                };
                let gradients = wanted.then_some(gradients);
                layer.backward(x, dy, *length, weights, dx.as_deref_mut(), gradients, threads);
            }
            Self::LastToken(dim) => {
                let Some(dx) = dx else { return };
                dx.fill(0.0);
                for (dx, dy) in dx.chunks_exact_mut(dim.len()).zip(dy.chunks_exact(dim.channels)) {
                    dx[dim.len() - dim.channels..].copy_from_slice(dy);
                }
            }
            Self::MaxPool { pool, taken } => {
                let Some(dx) = dx else { return };
                pool.backward(dy, taken, dx, threads);
            }
            Self::AveragePool(pool) => {
                let Some(dx) = dx else { return };
                pool.backward(dy, dx, threads);
            }
            Self::LayerNorm { eps, relu, saved } => {
                let parts = gradient.split_at_mut(tensors[0].len());
                let settings = settings(parameters, tensors, *eps, *relu);
                let partial = &mut scratch.layer_norm;
                match dx {
                    Some(dx) => {
                        layer_norm::backward(x, settings, saved, Some(dy), dx, parts, partial, threads)
                    }
                    None => layer_norm::backward(x, settings, saved, None, dy, parts, partial, threads),
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
                        x,
                        settings,
                        saved,
                        Some(dy),
                        dx,
                        parts,
                        &mut scratch.norm,
                        threads,
                    ),
                    None => {
                        norm::batch_backward(x, settings, saved, None, dy, parts, &mut scratch.norm, threads)
                    }
                }
            }
            Self::Activation(kind) => {
                let Some(dx) = dx else { return };
                activation::backward(*kind, if kind.keeps_output() { y } else { x }, dy, dx, threads);
            }
            Self::Dropout { p, layer, dim } => {
                let Some(dx) = dx else { return };
                match masks {
                    None => joining::copy(dy, dx, threads),
                    Some(seed) => drop_some(dy, dx, *dim, seed.mask(*p, *layer, dim.len()), threads),
                }
            }
            Self::Add { relu } => {
                if *relu {
                    mask(dy, y, threads);
                }
                dxs.iter_mut().flatten().for_each(|dx| joining::copy(dy, dx, threads));
            }
            Self::Concat { channels } => {
                let width: usize = channels.iter().sum();
                let mut at = 0;
                for (dx, own) in dxs.iter_mut().zip(channels.iter()) {
                    if let Some(dx) = dx {
                        joining::columns(dy, width, at, *own, dx, threads);
                    }
                    at += own;
                }
            }
            Self::ToChannelsLast(dim) => {
                let Some(dx) = dx else { return };
                joining::permute(dy, dx, dim.pixels(), dim.channels, threads);
            }
            Self::ToChannelsFirst(dim) => {
                let Some(dx) = dx else { return };
                joining::permute(dy, dx, dim.channels, dim.pixels(), threads);
            }
        }
    }

    /// Whether [`Operation::descend`] does this operation.
    pub(in crate::fused::graph) fn descends(&self) -> bool {
        matches!(self, Self::Linear { .. })
    }

    /// [`Operation::backward`] and a step of plain gradient descent at once: `own` are the parameters of this
    /// operation.
    #[expect(clippy::too_many_arguments, reason = "a pass has that many tensors")]
    pub(in crate::fused::graph) fn descend(
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
}
