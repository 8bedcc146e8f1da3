//! Data and comparisons that the tests share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use fl_model::{ModelSpec, init_parameters};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// A batch of noise for a network.
pub fn noise(spec: &ModelSpec, batch: usize, seed: u64) -> (Vec<f32>, Vec<u32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = (0..batch * spec.num_features()).map(|_| rng.random_range(-1.0..1.0)).collect();
    let y = (0..batch).map(|_| rng.random_range(0..spec.num_classes as u32)).collect();
    (x, y)
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
