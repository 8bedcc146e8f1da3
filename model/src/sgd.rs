//! Stochastic gradient descent: its settings and its update of a flat vector.

use crate::error::ModelError;

/// Settings of one SGD step. The default is plain SGD at 0.05.
///
/// With `g` the mean gradient of the batch, scaled down to `clip_norm` if it is longer:
/// `d = g + weight_decay * w + mu * (w - w_global)`, `v = momentum * v + d`, `w = w - lr * v`.
/// That is PyTorch's SGD with FedProx's proximal term (Li et al. 2020, eq. 2). With a drift
/// set, it is added to `g` after the clipping (SCAFFOLD; Karimireddy et al. 2020, eq. 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Learning rate; above 0.
    pub lr: f32,
    /// Momentum, 0 to below 1; 0 is off.
    pub momentum: f32,
    /// L2 penalty; 0 is off.
    pub weight_decay: f32,
    /// Weight of FedProx's proximal term; 0 is off.
    pub mu: f32,
    /// Largest Euclidean norm of the whole gradient.
    pub clip_norm: Option<f32>,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { lr: 0.05, momentum: 0.0, weight_decay: 0.0, mu: 0.0, clip_norm: None }
    }
}

impl SgdConfig {
    /// Checks that every setting lies in its range.
    ///
    /// # Errors
    /// The setting that does not.
    pub fn validate(&self) -> Result<(), ModelError> {
        let at_least_zero = |v: f32| v.is_finite() && v >= 0.0;
        let wrong = if !at_least_zero(self.lr) || self.lr == 0.0 {
            "lr must be above 0"
        } else if !(0.0..1.0).contains(&self.momentum) {
            "momentum must be 0 to below 1"
        } else if !at_least_zero(self.weight_decay) {
            "weight_decay must be at least 0"
        } else if !at_least_zero(self.mu) {
            "mu must be at least 0"
        } else if self.clip_norm.is_some_and(|norm| !at_least_zero(norm) || norm == 0.0) {
            "clip_norm must be above 0"
        } else {
            return Ok(());
        };
        Err(ModelError::BadBatch(format!("{wrong} (settings: {self:?})")))
    }
}

/// What SGD remembers between steps.
#[derive(Debug, Default)]
pub(crate) struct SgdState {
    /// The parameters that the last `set_parameters` gave: `w_global`.
    anchor: Vec<f32>,
    /// `v`; empty until momentum is first used.
    velocity: Vec<f32>,
    /// Added to every gradient; empty if there is none.
    drift: Vec<f32>,
}

impl SgdState {
    /// Starts anew from the global model.
    pub(crate) fn reset(&mut self, parameters: &[f32]) {
        self.anchor.clear();
        self.anchor.extend_from_slice(parameters);
        self.velocity.clear();
        self.drift.clear();
    }

    /// Adds `drift` to every gradient from now on, until the next reset.
    pub(crate) fn set_drift(&mut self, drift: &[f32]) {
        self.drift.clear();
        self.drift.extend_from_slice(drift);
    }

    /// Whether a step is `w = w - lr * g` and nothing else.
    pub(crate) fn is_plain(&self, config: &SgdConfig) -> bool {
        self.drift.is_empty() && *config == SgdConfig { lr: config.lr, ..SgdConfig::default() }
    }

    /// Moves `parameters` by one step along `gradient`, which it may scale.
    pub(crate) fn step(&mut self, parameters: &mut [f32], gradient: &mut [f32], config: &SgdConfig) {
        if let Some(max_norm) = config.clip_norm {
            clip(gradient, max_norm);
        }
        for (g, drift) in gradient.iter_mut().zip(&self.drift) {
            *g += drift;
        }
        let SgdConfig { lr, momentum, weight_decay, mu, .. } = *config;
        if momentum == 0.0 && weight_decay == 0.0 && mu == 0.0 {
            for (w, g) in parameters.iter_mut().zip(gradient) {
                *w -= lr * *g;
            }
            return;
        }
        for ((w, g), w_global) in parameters.iter().zip(gradient.iter_mut()).zip(&self.anchor) {
            *g += weight_decay * w + mu * (w - w_global);
        }
        if momentum > 0.0 {
            self.velocity.resize(parameters.len(), 0.0);
            for (g, v) in gradient.iter_mut().zip(&mut self.velocity) {
                *v = momentum * *v + *g;
                *g = *v;
            }
        }
        for (w, g) in parameters.iter_mut().zip(gradient) {
            *w -= lr * *g;
        }
    }
}

/// Scales `gradient` down to a norm of `max_norm` if it is longer.
fn clip(gradient: &mut [f32], max_norm: f32) {
    let norm = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
    if norm > f64::from(max_norm) {
        let scale = (f64::from(max_norm) / norm) as f32;
        gradient.iter_mut().for_each(|g| *g *= scale);
    }
}
