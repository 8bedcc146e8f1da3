//! Networks, data and comparisons that tests share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use fl_model::{Backend, Batch, Layer, Learner, ModelError, ModelSpec, OptimizerConfig, init_parameters};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Inputs and labels of a batch.
pub struct Samples {
    x: Vec<f32>,
    y: Vec<u32>,
}

impl Samples {
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.x, &self.y)
    }
}

/// A batch of noise for a network.
pub fn noise(spec: &ModelSpec, batch: usize, seed: u64) -> Samples {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = (0..batch * spec.num_features()).map(|_| rng.random_range(-1.0..1.0)).collect();
    let y = (0..batch).map(|_| rng.random_range(0..spec.num_classes as u32)).collect();
    Samples { x, y }
}

/// Parameters that leave no layer at a special point (group norms start as the identity).
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
pub fn step(learner: &mut dyn Learner, samples: &Samples, config: &OptimizerConfig) -> Result<f32, ModelError> {
    learner.step(samples.batch(), config)
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
            0 | 1 => Layer::Conv2d { in_channels: c, out_channels: out, kernel, padding, stride },
            2 => Layer::MaxPool2d { kernel, stride },
            3 if steady => Layer::GroupNorm { groups, channels: c },
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
    layers.extend([
        Layer::Flatten,
        Layer::Linear { in_features: features, out_features: 11 },
        Layer::Relu,
        Layer::Linear { in_features: 11, out_features: 4 },
    ]);
    ModelSpec { name: "drawn".into(), input_shape: vec![channels, size, size], num_classes: 4, layers }
}

/// Random layer lists.
pub fn layer_lists() -> impl Strategy<Value = ModelSpec> {
    let draws = prop::collection::vec((0u8..6, 1usize..20, 1usize..6, 0usize..4, 1usize..4), 0..6);
    (1usize..4, 5usize..14, draws).prop_map(|(channels, size, draws)| layer_list(channels, size, &draws))
}

/// Convolutions of whole vectors of channels, which take Winograd's algorithm in the fused engine.
fn wide_convolutions(size: usize, draws: &[(usize, usize, usize, bool)]) -> ModelSpec {
    let mut layers =
        vec![Layer::Conv2d { in_channels: 1, out_channels: 16, kernel: 3, padding: 1, stride: 1 }];
    let (mut channels, mut side) = (16, size);
    for &(vectors, kernel, padding, pool) in draws {
        let padding = padding.min(kernel - 1);
        if side + 2 * padding < kernel {
            break;
        }
        let out_channels = 16 * vectors;
        layers.push(Layer::Conv2d { in_channels: channels, out_channels, kernel, padding, stride: 1 });
        layers.push(Layer::Relu);
        (channels, side) = (out_channels, side + 2 * padding + 1 - kernel);
        if pool && side > 1 {
            layers.push(Layer::MaxPool2d { kernel: 2, stride: 2 });
            side /= 2;
        }
    }
    layers.extend([Layer::Flatten, Layer::Linear { in_features: channels * side * side, out_features: 5 }]);
    ModelSpec { name: "wide".into(), input_shape: vec![1, size, size], num_classes: 5, layers }
}

/// Random [`wide_convolutions`].
pub fn wide_convolution_lists() -> impl Strategy<Value = ModelSpec> {
    let layer = (1usize..4, prop::sample::select(vec![3usize, 5]), 0usize..5, any::<bool>());
    (3usize..15, prop::collection::vec(layer, 1..4)).prop_map(|(size, draws)| wide_convolutions(size, &draws))
}
