//! The first parameters of a model.

use crate::spec::{Layer, ModelSpec};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Draws the parameters of a new model, in canonical order.
///
/// PyTorch's defaults: weights and biases of `linear` and `conv2d` are uniform within
/// `1 / sqrt(fan_in)` (Kaiming-uniform with `a = sqrt(5)`; He et al. 2015), `group_norm` starts as the
/// identity. One seed gives the same parameters on every machine.
pub fn init_parameters(spec: &ModelSpec, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Vec::with_capacity(spec.num_parameters());
    for layer in &spec.layers {
        let fan_in = match *layer {
            Layer::Conv2d { in_channels, kernel, .. } => in_channels * kernel * kernel,
            Layer::Linear { in_features, .. } => in_features,
            Layer::GroupNorm { channels, .. } => {
                parameters.extend(std::iter::repeat_n(1.0, channels));
                parameters.extend(std::iter::repeat_n(0.0, channels));
                continue;
            }
            _ => continue,
        };
        let bound = 1.0 / (fan_in as f32).sqrt();
        for (_, shape) in layer.parameters() {
            let len: usize = shape.iter().product();
            parameters.extend((0..len).map(|_| rng.random_range(-bound..=bound)));
        }
    }
    parameters
}
