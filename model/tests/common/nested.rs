//! Random networks of nested layers.

use super::{conv, linear};
use fl_model::{
    Layer, ModelSpec,
    spec::{GeluForm, Join, output_shape},
};
use fl_protocol::{Input, Task};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Draws nested networks of every kind of layer.
struct Drawer {
    rng: ChaCha8Rng,
    /// A normalisation of normalised values blows rounding errors up, so there is at most one on a way.
    normalised: bool,
    layers_left: usize,
}

impl Drawer {
    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn one_of(&mut self, of: &[usize]) -> usize {
        of[self.below(of.len())]
    }

    fn activation(&mut self) -> Layer {
        match self.below(8) {
            0 => Layer::Relu,
            1 => Layer::LeakyRelu { negative_slope: 0.1 },
            2 => Layer::Gelu { approximate: GeluForm::None },
            3 => Layer::Gelu { approximate: GeluForm::Tanh },
            4 => Layer::Silu,
            5 => Layer::Tanh,
            6 => Layer::Sigmoid,
            _ => Layer::Dropout { p: 0.3 },
        }
    }

    fn norm(&mut self, shape: &[usize]) -> Layer {
        let channels = if shape.len() == 3 { shape[0] } else { shape[shape.len() - 1] };
        let groups = if channels.is_multiple_of(2) { 2 } else { 1 };
        // Sequences have no group norm, images no layer norm.
        match (self.below(3), shape.len()) {
            (0, 1 | 3) => Layer::GroupNorm { groups, channels, eps: 1e-2 },
            (1, 1 | 2) => Layer::LayerNorm { features: channels, eps: 1e-2 },
            _ => Layer::BatchNorm { channels, eps: 1e-2, momentum: 0.1 },
        }
    }

    /// A layer for values of `shape` that nothing is inside of.
    fn plain(&mut self, shape: &[usize]) -> Layer {
        let values: usize = shape.iter().product();
        if !self.normalised && values >= 32 && self.below(5) == 0 {
            self.normalised = true;
            return self.norm(shape);
        }
        match *shape {
            [c, h, w] => self.on_image(c, h, w),
            [length, c] => self.on_sequence(length, c),
            _ if self.below(2) == 0 => linear(values, 2 + self.below(9)),
            _ => self.activation(),
        }
    }

    fn on_image(&mut self, channels: usize, height: usize, width: usize) -> Layer {
        let kernel = [1 + self.below(3.min(height)), 1 + self.below(3.min(width))];
        let half = [self.below(kernel[0] / 2 + 1), self.below(kernel[1] / 2 + 1)];
        let stride = [1 + self.below(2), 1 + self.below(2)];
        let pair = fl_model::spec::Pair;
        match self.below(7) {
            0..=2 => {
                let groups = if channels.is_multiple_of(2) { self.one_of(&[1, 2, channels]) } else { 1 };
                let dilation = [0, 1].map(|k| {
                    let size = [height, width][k];
                    if 2 * (kernel[k] - 1) < size { 1 + self.below(2) } else { 1 }
                });
                Layer::Conv2d {
                    in_channels: channels,
                    out_channels: groups * (1 + self.below(6)),
                    kernel: pair(kernel),
                    padding: pair([self.below(kernel[0]), self.below(kernel[1])]),
                    stride: pair(stride),
                    dilation: pair(dilation),
                    groups,
                    bias: self.below(3) > 0,
                }
            }
            3 => Layer::MaxPool2d { kernel: pair(kernel), stride: pair(stride), padding: pair(half) },
            4 => Layer::AvgPool2d { kernel: pair(kernel), stride: pair(stride), padding: pair(half) },
            5 => Layer::AdaptiveAvgPool2d { size: pair([1 + self.below(height + 1), 1 + self.below(width)]) },
            _ => self.activation(),
        }
    }

    fn on_sequence(&mut self, length: usize, channels: usize) -> Layer {
        let kernel = 1 + self.below(3.min(length));
        match self.below(10) {
            0 | 1 => {
                let groups = if channels.is_multiple_of(2) { self.one_of(&[1, 2]) } else { 1 };
                Layer::Conv1d {
                    in_channels: channels,
                    out_channels: groups * (1 + self.below(5)),
                    kernel,
                    padding: self.below(kernel),
                    stride: 1 + self.below(2),
                    dilation: 1,
                    groups,
                    bias: self.below(3) > 0,
                }
            }
            2 => linear(channels, 2 + self.below(7)),
            3 => Layer::Lstm {
                input_size: channels,
                hidden_size: 1 + self.below(6),
                num_layers: 1 + self.below(2),
            },
            4 => Layer::Gru {
                input_size: channels,
                hidden_size: 1 + self.below(6),
                num_layers: 1 + self.below(2),
            },
            5 => Layer::Attention {
                dim: channels,
                heads: if channels.is_multiple_of(2) { 2 } else { 1 },
                causal: self.below(2) == 0,
                bias: self.below(3) > 0,
            },
            6 => Layer::PositionalEmbedding { length: length + self.below(2), dim: channels },
            7 => match self.below(3) {
                0 => Layer::MaxPool1d {
                    kernel,
                    stride: 1 + self.below(2),
                    padding: self.below(kernel / 2 + 1),
                },
                1 => Layer::AvgPool1d {
                    kernel,
                    stride: 1 + self.below(2),
                    padding: self.below(kernel / 2 + 1),
                },
                _ => Layer::AdaptiveAvgPool1d { size: 1 + self.below(length + 1) },
            },
            _ => self.activation(),
        }
    }

    /// Some layers, and what they make of `shape`.
    fn list(&mut self, mut shape: Vec<usize>, most: usize, depth: usize) -> (Vec<Layer>, Vec<usize>) {
        let mut layers = Vec::new();
        for _ in 0..1 + self.below(most) {
            if self.layers_left == 0 {
                break;
            }
            self.layers_left -= 1;
            if depth > 0 && self.below(3) == 0 {
                let (layer, after) = self.container(shape, depth - 1);
                layers.push(layer);
                shape = after;
            } else {
                let layer = self.plain(&shape);
                shape = output_shape(&layer, &shape).unwrap();
                layers.push(layer);
            }
        }
        (layers, shape)
    }

    fn container(&mut self, shape: Vec<usize>, depth: usize) -> (Layer, Vec<usize>) {
        match self.below(4) {
            0 => {
                let (layers, after) = self.list(shape, 3, depth);
                (Layer::Sequential { layers }, after)
            }
            1 => {
                let (branches, after) =
                    (0..1 + self.below(3)).fold((Vec::new(), None), |(mut all, joined), _| {
                        let branch = if self.below(4) == 0 { Vec::new() } else { self.keeping(&shape) };
                        all.push(branch);
                        (all, Some(joined.map_or(shape.clone(), |sum: Vec<usize>| wider(&sum, &shape))))
                    });
                (Layer::Branches { branches, join: Join::Concat }, after.unwrap())
            }
            2 => {
                let branches = (0..1 + self.below(3)).map(|_| self.keeping(&shape)).collect();
                (Layer::Branches { branches, join: Join::Add }, shape)
            }
            _ => {
                let shortcut = if self.below(2) == 0 { Vec::new() } else { self.keeping(&shape) };
                (Layer::Residual { body: self.keeping(&shape), shortcut }, shape)
            }
        }
    }

    /// Layers that keep the shape.
    fn keeping(&mut self, shape: &[usize]) -> Vec<Layer> {
        let affine = match *shape {
            [c, ..] if shape.len() == 3 => conv(c, c, 3, 1, 1),
            _ => linear(shape[shape.len() - 1], shape[shape.len() - 1]),
        };
        let mut layers = vec![affine, self.activation()];
        if shape.len() == 2 && self.below(2) == 0 {
            let (size, heads) = (shape[1], if shape[1].is_multiple_of(2) { 2 } else { 1 });
            layers.push(match self.below(3) {
                0 => Layer::Lstm { input_size: size, hidden_size: size, num_layers: 1 },
                1 => Layer::Gru { input_size: size, hidden_size: size, num_layers: 1 },
                _ => Layer::Attention { dim: size, heads, causal: true, bias: true },
            });
        }
        layers
    }

    fn network(&mut self) -> ModelSpec {
        let mut layers = Vec::new();
        let (input, mut shape) = match self.below(4) {
            0 => {
                let shape = vec![1 + self.below(4), 4 + self.below(6), 4 + self.below(6)];
                (Input::Image { shape: shape.clone() }, shape)
            }
            1 => {
                let shape = vec![3 + self.below(6), 2 + self.below(5)];
                (Input::Vector { shape: shape.clone() }, shape)
            }
            2 => {
                let shape = vec![2 + self.below(12)];
                (Input::Vector { shape: shape.clone() }, shape)
            }
            _ => {
                let (length, vocab, dim) = (3 + self.below(6), 3 + self.below(8), 2 + self.below(6));
                layers.push(Layer::Embedding { vocab: vocab + self.below(2), dim });
                (Input::Tokens { shape: vec![length], vocab }, vec![length, dim])
            }
        };
        let (more, after) = self.list(shape.clone(), 5, 2);
        layers.extend(more);
        shape = after;
        let task = self.head(&input, &mut layers, &mut shape);
        ModelSpec { name: "nested".into(), input, task, layers }
    }

    fn head(&mut self, input: &Input, layers: &mut Vec<Layer>, shape: &mut [usize]) -> Task {
        if let Input::Tokens { shape: tokens, vocab } = input
            && shape.len() == 2
            && shape[0] == tokens[0]
        {
            layers.push(linear(shape[1], *vocab));
            return Task::LanguageModel;
        }
        let outputs = 2 + self.below(4);
        let features = match (shape.len(), self.below(3)) {
            (2, 0) => {
                layers.push(Layer::MeanTokens);
                shape[1]
            }
            (2, 1) => {
                layers.push(Layer::LastToken);
                shape[1]
            }
            (1, _) => shape[0],
            _ => {
                layers.push(Layer::Flatten);
                shape.iter().product()
            }
        };
        layers.push(linear(features, outputs));
        match self.below(4) {
            0 => Task::Regression { outputs },
            1 => Task::Multilabel { outputs },
            _ => Task::classes(outputs),
        }
    }
}

/// The shape of a concatenation.
fn wider(sum: &[usize], shape: &[usize]) -> Vec<usize> {
    let channels = if sum.len() == 3 { 0 } else { sum.len() - 1 };
    let mut wide = sum.to_vec();
    wide[channels] += shape[channels];
    wide
}

/// A random network: images, vectors, sequences or tokens, nested layers, any task.
pub fn nested_spec(seed: u64) -> ModelSpec {
    Drawer { rng: ChaCha8Rng::seed_from_u64(seed), normalised: false, layers_left: 12 }.network()
}

/// Random [`nested_spec`]s.
pub fn nested_specs() -> impl Strategy<Value = ModelSpec> {
    (0u64..1 << 32).prop_map(nested_spec)
}
