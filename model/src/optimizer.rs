//! Optimizers: their settings and their updates of a flat vector.

use crate::{error::ModelError, parallel::Threads, spec::ModelSpec};
use std::{fmt, ops::Range, str::FromStr};

/// Values that one thread updates at a time.
const CHUNK: usize = 1 << 15;

/// The rule by which a gradient moves a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Stochastic gradient descent, with momentum or without.
    #[default]
    Sgd,
    /// Adam (Kingma and Ba 2015); weight decay is part of the gradient.
    Adam,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    AdamW,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 3] = [Self::Sgd, Self::Adam, Self::AdamW];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Adam => "adam",
            Self::AdamW => "adamw",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| format!("unknown optimizer `{name}`: use sgd, adam or adamw"))
    }
}

/// Settings of one step. The default is plain SGD at 0.05.
///
/// With `g` the mean gradient of the batch, scaled down to `clip_norm` if it is longer, and
/// `d = g + weight_decay * w + mu * (w - w_global)`:
/// - SGD: `v = momentum * v + d`, `w = w - lr * v` (Nesterov: `w = w - lr * (d + momentum * v)`), as PyTorch's;
/// - Adam: `m`, `s` the running means of `d` and `d^2`, `w = w - lr * m' / (sqrt(s') + epsilon)` with both
///   corrected for their start at zero; AdamW leaves the decay out of `d` and scales `w` by `1 - lr *
///   weight_decay` instead.
///
/// `mu` is the weight of FedProx's proximal term (Li et al. 2020, eq. 2). With a drift set, it is added to `g`
/// after the clipping (SCAFFOLD; Karimireddy et al. 2020, eq. 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerConfig {
    /// The rule.
    pub method: Method,
    /// Learning rate; above 0.
    pub lr: f32,
    /// Momentum of SGD, 0 to below 1; 0 is off.
    pub momentum: f32,
    /// Whether SGD's momentum is Nesterov's.
    pub nesterov: bool,
    /// Decay of Adam's running means, 0 to below 1.
    pub betas: [f32; 2],
    /// Added to the denominator of Adam.
    pub epsilon: f32,
    /// L2 penalty; 0 is off.
    pub weight_decay: f32,
    /// Weight of FedProx's proximal term; 0 is off.
    pub mu: f32,
    /// Largest Euclidean norm of the whole gradient.
    pub clip_norm: Option<f32>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            method: Method::Sgd,
            lr: 0.05,
            momentum: 0.0,
            nesterov: false,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            mu: 0.0,
            clip_norm: None,
        }
    }
}

impl OptimizerConfig {
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
        } else if self.nesterov && self.momentum == 0.0 {
            "nesterov needs a momentum above 0"
        } else if !self.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            "betas must be 0 to below 1"
        } else if !at_least_zero(self.epsilon) {
            "epsilon must be at least 0"
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

/// State of the optimizer between steps.
#[derive(Debug, Default)]
pub(crate) struct Optimizer {
    /// What no gradient moves: running moments.
    fixed: Vec<Range<usize>>,
    /// The parts that a gradient moves; empty: all but what is fixed.
    moved: Vec<Range<usize>>,
    parameters: usize,
    /// `w_global`; empty until a proximal term is first used.
    anchor: Vec<f32>,
    /// `v`, or Adam's `m`; empty until first used.
    first: Vec<f32>,
    /// Adam's `s`; empty until first used.
    second: Vec<f32>,
    /// Added to every gradient; empty if there is none.
    drift: Vec<f32>,
    /// Steps since the last reset.
    steps: i32,
}

impl Optimizer {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        Self::with_fixed(spec.num_parameters(), spec.buffers())
    }

    /// For `parameters` parameters of which gradients move all but `fixed`.
    pub(crate) fn with_fixed(parameters: usize, fixed: Vec<Range<usize>>) -> Self {
        let mut optimizer = Self { fixed, parameters, ..Self::default() };
        optimizer.set_trainable(std::slice::from_ref(&(0..parameters)));
        optimizer
    }

    /// From now on only `trainable` moves, in ascending order.
    pub(crate) fn set_trainable(&mut self, trainable: &[Range<usize>]) {
        self.moved.clear();
        for range in trainable {
            let mut start = range.start;
            for fixed in self.fixed.iter().filter(|fixed| fixed.start < range.end && range.start < fixed.end)
            {
                if start < fixed.start {
                    self.moved.push(start..fixed.start);
                }
                start = fixed.end;
            }
            if start < range.end {
                self.moved.push(start..range.end);
            }
        }
    }

    /// Forgets all steps. The next one starts from the global model.
    pub(crate) fn reset(&mut self) {
        self.anchor.clear();
        self.first.clear();
        self.second.clear();
        self.drift.clear();
        self.steps = 0;
    }

    /// Adds `drift` to every gradient from now on, until the next reset.
    pub(crate) fn set_drift(&mut self, drift: &[f32]) {
        self.drift.clear();
        self.drift.extend_from_slice(drift);
    }

    /// Whether the gradient must be known as a whole before a parameter moves.
    pub(crate) fn needs_whole_gradient(&self, config: &OptimizerConfig) -> bool {
        config.clip_norm.is_some()
    }

    /// The learning rate if a step of `range` is `w = w - lr * g` and nothing else.
    pub(crate) fn plain(&self, config: &OptimizerConfig, range: &Range<usize>) -> Option<f32> {
        let plain = OptimizerConfig { lr: config.lr, ..OptimizerConfig::default() };
        let moves = self.moved.iter().any(|moved| moved.start <= range.start && range.end <= moved.end);
        (moves && self.drift.is_empty() && *config == plain).then_some(config.lr)
    }

    /// Begins a step from `parameters`; [`Optimizer::update`] follows for each of their parts.
    pub(crate) fn begin_step(&mut self, parameters: &[f32], config: &OptimizerConfig) {
        if config.mu > 0.0 && self.anchor.is_empty() {
            // Nothing has moved since the reset, unless earlier steps had no proximal term.
            self.anchor.extend_from_slice(parameters);
        }
        self.steps = self.steps.saturating_add(1);
    }

    /// Moves `parameters[range]` along `gradient`, which is that of the range and may be changed.
    pub(crate) fn update(
        &mut self,
        parameters: &mut [f32],
        gradient: &mut [f32],
        range: Range<usize>,
        config: &OptimizerConfig,
        threads: &Threads,
    ) {
        let scale = config.clip_norm.map_or(1.0, |most| self.clip_scale(gradient, &range, most));
        let adam = config.method != Method::Sgd;
        if adam || config.momentum > 0.0 {
            self.first.resize(self.parameters, 0.0);
        }
        if adam {
            self.second.resize(self.parameters, 0.0);
        }
        let rule = Rule { config: *config, scale, steps: self.steps };
        for moved in &self.moved {
            let (start, end) = (moved.start.max(range.start), moved.end.min(range.end));
            if start >= end {
                continue;
            }
            let slice = start..end;
            let gradient = &mut gradient[start - range.start..end - range.start];
            let mut chunks = Chunks {
                first: part_mut(&mut self.first, &slice),
                second: part_mut(&mut self.second, &slice),
                anchor: self.anchor.get(slice.clone()).unwrap_or(&[]),
                drift: self.drift.get(slice.clone()).unwrap_or(&[]),
            };
            let mut pieces = Vec::new();
            for (w, g) in parameters[slice].chunks_mut(CHUNK).zip(gradient.chunks_mut(CHUNK)) {
                let state = chunks.split(w.len());
                pieces.push((w, g, state));
            }
            threads.each(&mut pieces, |_, (w, g, state)| rule.apply(w, g, state));
        }
    }

    /// The factor that brings the norm of the moved parts of `gradient` down to `most`.
    fn clip_scale(&self, gradient: &[f32], range: &Range<usize>, most: f32) -> f32 {
        let mut squares = 0.0f64;
        for moved in &self.moved {
            let (start, end) = (moved.start.max(range.start), moved.end.min(range.end));
            if start < end {
                let part = &gradient[start - range.start..end - range.start];
                squares += part.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
            }
        }
        let norm = squares.sqrt();
        if norm > f64::from(most) { (f64::from(most) / norm) as f32 } else { 1.0 }
    }
}

/// A part of a vector, or of one that is empty because it is not used.
fn part_mut<'a>(values: &'a mut [f32], range: &Range<usize>) -> &'a mut [f32] {
    values.get_mut(range.clone()).unwrap_or(&mut [])
}

/// State beside a run of parameters; a slice that is empty is not used.
struct Chunks<'a> {
    first: &'a mut [f32],
    second: &'a mut [f32],
    anchor: &'a [f32],
    drift: &'a [f32],
}

impl<'a> Chunks<'a> {
    /// Takes the state of the next `len` parameters off.
    fn split(&mut self, len: usize) -> Chunks<'a> {
        fn take<'a>(values: &mut &'a [f32], len: usize) -> &'a [f32] {
            let (head, tail) = values.split_at(len.min(values.len()));
            *values = tail;
            head
        }
        fn take_mut<'a>(values: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
            let all = std::mem::take(values);
            let (head, tail) = all.split_at_mut(len.min(all.len()));
            *values = tail;
            head
        }
        Chunks {
            first: take_mut(&mut self.first, len),
            second: take_mut(&mut self.second, len),
            anchor: take(&mut self.anchor, len),
            drift: take(&mut self.drift, len),
        }
    }
}

/// One step on some of the parameters.
struct Rule {
    config: OptimizerConfig,
    /// Of the gradient, from clipping.
    scale: f32,
    steps: i32,
}

impl Rule {
    fn apply(&self, parameters: &mut [f32], gradient: &mut [f32], state: &mut Chunks<'_>) {
        let OptimizerConfig { method, lr, momentum, nesterov, weight_decay, mu, .. } = self.config;
        if self.scale != 1.0 {
            gradient.iter_mut().for_each(|g| *g *= self.scale);
        }
        for (g, drift) in gradient.iter_mut().zip(state.drift) {
            *g += drift;
        }
        let penalty = if method == Method::AdamW { 0.0 } else { weight_decay };
        if penalty != 0.0 || mu != 0.0 {
            match state.anchor.is_empty() {
                true => parameters.iter().zip(gradient.iter_mut()).for_each(|(w, g)| *g += penalty * w),
                false => {
                    for ((w, g), w_global) in parameters.iter().zip(gradient.iter_mut()).zip(state.anchor) {
                        *g += penalty * w + mu * (w - w_global);
                    }
                }
            }
        }
        if method != Method::Sgd {
            return self.adam(parameters, gradient, state);
        }
        if momentum > 0.0 {
            for (g, v) in gradient.iter_mut().zip(state.first.iter_mut()) {
                *v = momentum * *v + *g;
                *g = if nesterov { *g + momentum * *v } else { *v };
            }
        }
        for (w, g) in parameters.iter_mut().zip(gradient) {
            *w -= lr * *g;
        }
    }

    fn adam(&self, parameters: &mut [f32], gradient: &[f32], state: &mut Chunks<'_>) {
        let OptimizerConfig { method, lr, betas: [beta1, beta2], epsilon, weight_decay, .. } = self.config;
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(self.steps);
        let rate = (f64::from(lr) / correction(beta1)) as f32;
        let root = correction(beta2).sqrt().recip() as f32;
        let keep = if method == Method::AdamW { 1.0 - lr * weight_decay } else { 1.0 };
        let moments = state.first.iter_mut().zip(state.second.iter_mut());
        for ((w, g), (m, s)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *s = beta2 * *s + (1.0 - beta2) * g * g;
            *w = keep * *w - rate * *m / (s.sqrt() * root + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(config: OptimizerConfig, steps: usize) -> Vec<f32> {
        let mut optimizer = Optimizer::with_fixed(3, std::iter::once(1..2).collect());
        let mut w = vec![1.0f32, 5.0, -2.0];
        for _ in 0..steps {
            // The gradient of |w|^2 / 2.
            let mut g = w.clone();
            optimizer.begin_step(&w, &config);
            optimizer.update(&mut w, &mut g, 0..3, &config, &Threads::none());
        }
        w
    }

    #[test]
    fn what_is_fixed_does_not_move() {
        for method in Method::ALL {
            let w = run(OptimizerConfig { method, ..Default::default() }, 3);
            assert_eq!(w[1], 5.0);
            assert!(w[0] < 1.0 && w[2] > -2.0);
        }
    }

    /// Values of torch.optim with the same settings after 3 steps from 1 along the gradient `w`.
    #[test]
    fn steps_are_those_of_pytorch() {
        let base = OptimizerConfig { lr: 0.1, weight_decay: 0.01, ..Default::default() };
        let cases = [
            (OptimizerConfig { momentum: 0.9, ..base }, 0.481_324_5),
            (OptimizerConfig { momentum: 0.9, nesterov: true, ..base }, 0.321_859_7),
            (OptimizerConfig { method: Method::Adam, ..base }, 0.701_586_25),
            (OptimizerConfig { method: Method::AdamW, ..base }, 0.698_911_25),
        ];
        for (config, expected) in cases {
            let w = run(config, 3)[0];
            assert!((w - expected).abs() < 1e-5, "{config:?}: {w}");
        }
    }

    #[test]
    fn only_trainable_parts_move() {
        let mut optimizer = Optimizer::with_fixed(6, std::iter::once(2..3).collect());
        optimizer.set_trainable(&[1..4, 5..6]);
        let (mut w, mut g) = (vec![0.0f32; 6], vec![1.0f32; 6]);
        let config = OptimizerConfig { lr: 1.0, clip_norm: Some(100.0), ..Default::default() };
        optimizer.begin_step(&w, &config);
        optimizer.update(&mut w, &mut g, 0..6, &config, &Threads::none());
        assert_eq!(w, [0.0, -1.0, 0.0, -1.0, 0.0, -1.0]);
        assert_eq!(optimizer.plain(&OptimizerConfig::default(), &(1..2)), Some(0.05));
        assert_eq!(optimizer.plain(&OptimizerConfig::default(), &(0..2)), None);
    }
}
