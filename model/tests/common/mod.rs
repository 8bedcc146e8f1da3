//! Networks, data and comparisons that tests share.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod nested;

pub use nested::{nested_spec, nested_specs};

use fl_model::{Backend, Batch, Layer, Learner, ModelError, ModelSpec, OptimizerConfig, init_parameters};
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
