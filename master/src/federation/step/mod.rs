//! From the collected updates to the next parameters.

use super::{
    Strategy,
    aggregate::{Collector, robust},
};

/// What a strategy carries from round to round, part of the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerState {
    /// The optimiser's vectors, each of the model's length; none before the first round.
    pub vectors: Vec<Vec<f32>>,
    /// Squared norms of the model's last steps, the newest first; only with lazy upload.
    pub steps: Vec<f32>,
}

/// The settings of the server's step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerOptions {
    /// Step size.
    pub lr: f64,
    /// Momentum of `fedavgm` and of the adaptive strategies' first moment, 0 to below 1.
    pub beta1: f64,
    /// Memory of the second moment of `fedyogi` and `fedadam`, 0 to below 1.
    pub beta2: f64,
    /// Adaptivity: added to the root of the second moment, which begins at its square.
    pub tau: f64,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { lr: 1.0, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

/// Sums over the updates of a round, taken in the order of the workers' names.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// How many.
    pub updates: usize,
    /// Their samples.
    pub samples: f64,
    /// Samples times normalised local steps.
    pub sample_steps: f64,
}

/// Turns the parameters of one round into those of the next.
///
/// Computed in f64 and rounded once, so that the result is the same on every machine.
pub fn next_parameters(
    strategy: Strategy,
    options: &ServerOptions,
    state: &mut ServerState,
    collected: &Collector,
    totals: &Totals,
    parameters: &mut [f32],
) {
    let lr = options.lr;
    let mut step = |i: usize, by: f64| parameters[i] = (f64::from(parameters[i]) + lr * by) as f32;
    let sum = collected.sum();
    let updates = totals.updates as f64;
    match strategy {
        Strategy::FedAvg => sum.for_each(|i, value| step(i, value / totals.samples)),
        Strategy::FedBuff { .. } => sum.for_each(|i, value| step(i, value / updates)),
        Strategy::FedNova => {
            let effective_steps = totals.sample_steps / totals.samples;
            sum.for_each(|i, value| step(i, effective_steps * (value / totals.samples)));
        }
        Strategy::FedAvgM | Strategy::FedAdagrad | Strategy::FedYogi | Strategy::FedAdam => {
            adapt(strategy, options, state, collected, totals.samples, step);
        }
        Strategy::Scaffold { workers } => {
            sum.for_each(|i, value| step(i, value / updates));
            let [control] = moments(state, sum.len(), [0.0]);
            collected.control().for_each(|i, value| {
                control[i] = (f64::from(control[i]) + value / workers as f64) as f32;
            });
        }
        Strategy::Median
        | Strategy::TrimmedMean { .. }
        | Strategy::Krum { .. }
        | Strategy::MultiKrum { .. } => {
            resist(strategy, collected, step);
        }
    }
}

/// The strategies that treat the average as a gradient. `m` is the momentum, `v` the second moment.
fn adapt(
    strategy: Strategy,
    options: &ServerOptions,
    state: &mut ServerState,
    collected: &Collector,
    samples: f64,
    mut step: impl FnMut(usize, f64),
) {
    let ServerOptions { beta1, beta2, tau, .. } = *options;
    let sum = collected.sum();
    if strategy == Strategy::FedAvgM {
        let [m] = moments(state, sum.len(), [0.0]);
        sum.for_each(|i, value| {
            let momentum = beta1 * f64::from(m[i]) + value / samples;
            m[i] = momentum as f32;
            step(i, momentum);
        });
        return;
    }
    let [m, v] = moments(state, sum.len(), [0.0, (tau * tau) as f32]);
    sum.for_each(|i, value| {
        let mean = value / samples;
        let momentum = beta1 * f64::from(m[i]) + (1.0 - beta1) * mean;
        let square = mean * mean;
        let before = f64::from(v[i]);
        let second = match strategy {
            Strategy::FedAdagrad => before + square,
            Strategy::FedYogi => before - (1.0 - beta2) * square * sign(before - square),
            _ => beta2 * before + (1.0 - beta2) * square,
        };
        (m[i], v[i]) = (momentum as f32, second as f32);
        step(i, momentum / (second.sqrt() + tau));
    });
}

/// -1, 0 or 1.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

/// The strategies that need every update.
fn resist(strategy: Strategy, collected: &Collector, step: impl FnMut(usize, f64)) {
    let kept = collected.kept();
    let updates: Vec<&[f32]> = kept.values().map(Vec::as_slice).collect();
    match strategy {
        Strategy::TrimmedMean { cut } => robust::trimmed_mean(&updates, cut, step),
        Strategy::Krum { hostile } => robust::mean_of(&updates, &robust::krum(&updates, hostile, 1), step),
        Strategy::MultiKrum { hostile, chosen } => {
            robust::mean_of(&updates, &robust::krum(&updates, hostile, chosen), step);
        }
        _ => robust::median(&updates, step),
    }
}

/// The state's vectors, which start with the given values.
fn moments<const N: usize>(state: &mut ServerState, len: usize, initial: [f32; N]) -> [&mut Vec<f32>; N] {
    if state.vectors.len() != N || state.vectors.iter().any(|vector| vector.len() != len) {
        state.vectors = initial.iter().map(|value| vec![*value; len]).collect();
    }
    let mut vectors = state.vectors.iter_mut();
    // As many were just made.
    std::array::from_fn(|_| vectors.next().unwrap_or_else(|| unreachable!("N vectors")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::aggregate::collector::Vector;
    use fl_quant::Piece;

    fn collect(strategy: Strategy, updates: &[(f64, [f32; 2])]) -> Collector {
        let collector = Collector::new(strategy, 2);
        for (k, (weight, x)) in updates.iter().enumerate() {
            let vector = Vector { weight: *weight, max_abs: 2.0, pieces: &|f| f(0, Piece::Values(x)) };
            collector.add(&format!("w{k}").parse().unwrap(), &vector, None).unwrap();
        }
        collector
    }

    #[test]
    fn fedavg_weighs_by_samples() {
        let collected = collect(Strategy::FedAvg, &[(1.0, [1.0, 0.0]), (3.0, [-1.0, 2.0])]);
        let totals = Totals { updates: 2, samples: 4.0, sample_steps: 4.0 };
        let mut parameters = [10.0, 20.0];
        let mut state = ServerState::default();
        let options = ServerOptions::default();
        next_parameters(Strategy::FedAvg, &options, &mut state, &collected, &totals, &mut parameters);
        assert_eq!(parameters, [9.5, 21.5]);
        let half = ServerOptions { lr: 0.5, ..options };
        next_parameters(Strategy::FedAvg, &half, &mut state, &collected, &totals, &mut parameters);
        assert_eq!(parameters, [9.25, 22.25]);
        assert_eq!(state, ServerState::default());
    }

    #[test]
    fn a_removed_update_leaves_no_trace() {
        for strategy in [Strategy::FedAvg, Strategy::Median] {
            let collected = collect(strategy, &[(1.0, [1.0, 0.0]), (1.0, [-1.0, 2.0])]);
            let vector = Vector { weight: 1.0, max_abs: 2.0, pieces: &|f| f(0, Piece::Values(&[-1.0, 2.0])) };
            collected.remove(&"w1".parse().unwrap(), &vector, None);
            let totals = Totals { updates: 1, samples: 1.0, sample_steps: 1.0 };
            let mut parameters = [0.0, 0.0];
            let (options, mut state) = (ServerOptions::default(), ServerState::default());
            next_parameters(strategy, &options, &mut state, &collected, &totals, &mut parameters);
            assert_eq!(parameters, [1.0, 0.0]);
        }
    }
}
