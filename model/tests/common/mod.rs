//! Networks, data and comparisons that tests share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use fl_model::{
    Backend, Batch, Layer, Learner, ModelError, ModelSpec, OptimizerConfig, init_parameters,
    spec::{GeluForm, Join, output_shape},
};
use fl_protocol::{Input, Inputs, Targets, Task};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Inputs and targets of a batch.
pub struct Samples {
    pub numbers: Vec<f32>,
    pub tokens: Option<Vec<u32>>,
    pub classes: Vec<u32>,
    pub wanted: Option<Vec<f32>>,
}

impl Samples {
    pub fn batch(&self) -> Batch<'_> {
        let inputs = match &self.tokens {
            Some(tokens) => Inputs::Tokens(tokens),
            None => Inputs::Numbers(&self.numbers),
        };
        let targets = match &self.wanted {
            Some(wanted) => Targets::Numbers(wanted),
            None => Targets::Classes(&self.classes),
        };
        Batch { inputs, targets }
    }
}

/// A batch of noise for a network.
pub fn noise(spec: &ModelSpec, batch: usize, seed: u64) -> Samples {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let inputs = batch * spec.num_features();
    let targets = batch * spec.task.targets_per_sample(&spec.input);
    let mut whole = |count: usize, below: usize| -> Vec<u32> {
        (0..count).map(|_| rng.random_range(0..below as u32)).collect()
    };
    let (mut samples, mut classes) = (Vec::new(), Vec::new());
    let mut tokens = None;
    match &spec.input {
        Input::Tokens { vocab, .. } => tokens = Some(whole(inputs, *vocab)),
        _ => {
            samples = whole(inputs, 1 << 24).into_iter().map(|n| n as f32 / (1 << 23) as f32 - 1.0).collect()
        }
    }
    let mut wanted = None;
    match spec.task {
        Task::Regression { .. } => {
            wanted = Some(whole(targets, 1 << 10).into_iter().map(|n| n as f32 / 512.0 - 1.0).collect());
        }
        Task::Multilabel { .. } => wanted = Some(whole(targets, 2).into_iter().map(|n| n as f32).collect()),
        _ => classes = whole(targets, spec.num_classes()),
    }
    Samples { numbers: samples, tokens, classes, wanted }
}

/// Parameters that leave no layer at a special point (normalisations start as the identity).
pub fn parameters(spec: &ModelSpec, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    init_parameters(spec, seed).into_iter().map(|w| w + rng.random_range(-0.02..0.02)).collect()
}

/// Euclidean norm.
pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// `|a - b| / |b|` in Euclidean norm.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(b).max(1e-30)
}

/// A learner of the fused engine or of a backend of Burn.
pub fn learner(spec: &ModelSpec, backend: Backend) -> Box<dyn Learner> {
    spec.learner(backend, 2).unwrap()
}

/// As [`learner`]; none if the fused engine does not run the network.
pub fn learner_if_able(spec: &ModelSpec, backend: Backend) -> Option<Box<dyn Learner>> {
    match spec.learner(backend, 2) {
        Ok(learner) => Some(learner),
        Err(ModelError::NotFused(_)) => None,
        Err(error) => panic!("{}: {error}", spec.name),
    }
}

/// The parameters as they are now.
pub fn read(learner: &dyn Learner) -> Vec<f32> {
    let mut out = vec![0.0; learner.layout().parameters()];
    learner.read(&mut out);
    out
}

/// Loss and gradient.
pub fn gradients(learner: &mut dyn Learner, samples: &Samples) -> (f32, Vec<f32>) {
    let mut out = vec![0.0; learner.layout().parameters()];
    let loss = learner.gradients(samples.batch(), &mut out).unwrap();
    (loss, out)
}

/// One step, or why there is none.
pub fn step(
    learner: &mut dyn Learner,
    samples: &Samples,
    config: &OptimizerConfig,
) -> Result<f32, ModelError> {
    learner.step(samples.batch(), config)
}

/// The largest error of any tensor's gradient against `expected`, relative to the tensor's norm.
pub fn worst_error(spec: &ModelSpec, gradient: &[f32], expected: &[f32]) -> f64 {
    let mut worst = 0.0f64;
    for tensor in spec.layout().tensors() {
        let range = tensor.offset..tensor.offset + tensor.len;
        // A normalisation undoes what some parameters do: their gradient is 0 but for rounding, and
        // has no meaningful relative error.
        let share = norm(&expected[range.clone()]) / norm(expected);
        let error =
            relative_error(&gradient[range.clone()], &expected[range.clone()]) * (share / 0.02).min(1.0);
        let stray = norm(&gradient[range]) / norm(expected);
        worst = worst.max(if share == 0.0 { stray } else { error });
    }
    worst
}

pub fn conv(inputs: usize, outputs: usize, kernel: usize, padding: usize, stride: usize) -> Layer {
    Layer::Conv2d {
        in_channels: inputs,
        out_channels: outputs,
        kernel: kernel.into(),
        padding: padding.into(),
        stride: stride.into(),
        dilation: 1.into(),
        groups: 1,
        bias: true,
    }
}

pub fn linear(in_features: usize, out_features: usize) -> Layer {
    Layer::Linear { in_features, out_features, bias: true }
}

pub fn max_pool(kernel: usize, stride: usize) -> Layer {
    Layer::MaxPool2d { kernel: kernel.into(), stride: stride.into(), padding: 0.into() }
}

pub fn group_norm(groups: usize, channels: usize) -> Layer {
    Layer::GroupNorm { groups, channels, eps: 1e-5 }
}

/// A network that classifies numbers of `shape`.
pub fn classifier(name: &str, shape: &[usize], classes: usize, layers: Vec<Layer>) -> ModelSpec {
    ModelSpec { name: name.into(), input: Input::numbers(shape), task: Task::classes(classes), layers }
}

/// Layers that fit behind one another, drawn by number.
fn layer_list(channels: usize, size: usize, draws: &[(u8, usize, usize, usize, usize)]) -> ModelSpec {
    let mut shape = [channels, size, size];
    let mut layers = Vec::new();
    for &(kind, out, kernel, padding, stride) in draws {
        let [c, h, _] = shape;
        let kernel = kernel.min(h);
        let padding = padding.min(kernel - 1);
        let groups = if c % 2 == 0 { 2 } else { 1 };
        // A normalisation of few values, or of normalised ones, blows rounding errors up.
        let steady =
            c * h * h / groups >= 16 && !layers.iter().any(|layer| matches!(layer, Layer::GroupNorm { .. }));
        layers.push(match kind % 6 {
            0 | 1 => conv(c, out, kernel, padding, stride),
            2 => max_pool(kernel, stride),
            3 if steady => group_norm(groups, c),
            4 => Layer::Dropout { p: 0.3 },
            _ => Layer::Relu,
        });
        shape = match kind % 6 {
            0 | 1 => [out, (h + 2 * padding - kernel) / stride + 1, (h + 2 * padding - kernel) / stride + 1],
            2 => [c, (h - kernel) / stride + 1, (h - kernel) / stride + 1],
            _ => shape,
        };
    }
    let features = shape.iter().product();
    layers.extend([Layer::Flatten, linear(features, 11), Layer::Relu, linear(11, 4)]);
    classifier("drawn", &[channels, size, size], 4, layers)
}

/// Random flat layer lists of convolutions, poolings, norms and dropouts.
pub fn layer_lists() -> impl Strategy<Value = ModelSpec> {
    let draws = prop::collection::vec((0u8..6, 1usize..20, 1usize..6, 0usize..4, 1usize..4), 0..6);
    (1usize..4, 5usize..14, draws).prop_map(|(channels, size, draws)| layer_list(channels, size, &draws))
}

/// Convolutions of whole vectors of channels, which take Winograd's algorithm in the fused engine.
fn wide_convolutions(size: usize, draws: &[(usize, usize, usize, bool)]) -> ModelSpec {
    let mut layers = vec![conv(1, 16, 3, 1, 1)];
    let (mut channels, mut side) = (16, size);
    for &(vectors, kernel, padding, pool) in draws {
        let padding = padding.min(kernel - 1);
        if side + 2 * padding < kernel {
            break;
        }
        let out_channels = 16 * vectors;
        layers.push(conv(channels, out_channels, kernel, padding, 1));
        layers.push(Layer::Relu);
        (channels, side) = (out_channels, side + 2 * padding + 1 - kernel);
        if pool && side > 1 {
            layers.push(max_pool(2, 2));
            side /= 2;
        }
    }
    layers.extend([Layer::Flatten, linear(channels * side * side, 5)]);
    classifier("wide", &[1, size, size], 5, layers)
}

/// Random [`wide_convolutions`].
pub fn wide_convolution_lists() -> impl Strategy<Value = ModelSpec> {
    let layer = (1usize..4, prop::sample::select(vec![3usize, 5]), 0usize..5, any::<bool>());
    (3usize..15, prop::collection::vec(layer, 1..4)).prop_map(|(size, draws)| wide_convolutions(size, &draws))
}

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
