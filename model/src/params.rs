//! The first parameters of a model.

use crate::spec::{ModelSpec, Start};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Draws the parameters of a new model, in canonical order.
///
/// PyTorch's defaults: weights and biases of dense and convolutional layers are uniform within
/// `1 / sqrt(fan_in)` (Kaiming-uniform with `a = sqrt(5)`; He et al. 2015), those of recurrent ones within
/// `1 / sqrt(hidden_size)`, embeddings are normal, normalisations start as the identity. One seed gives the
/// same parameters on every machine.
pub fn init_parameters(spec: &ModelSpec, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Vec::with_capacity(spec.num_parameters());
    for (_, tensor) in spec.tensors() {
        let len: usize = tensor.shape.iter().product();
        match tensor.start {
            Start::Uniform(bound) => {
                parameters.extend((0..len).map(|_| rng.random_range(-bound..=bound)));
            }
            Start::Normal(deviation) => {
                parameters.extend((0..len).map(|_| deviation * normal(&mut rng)));
            }
            Start::Constant(value) => parameters.extend(std::iter::repeat_n(value, len)),
        }
    }
    parameters
}

/// A standard normal variate (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    // Above 0, so that the logarithm is finite.
    let u = 1.0 - rng.random::<f64>();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    ((-2.0 * u.ln()).sqrt() * angle.cos()) as f32
}
