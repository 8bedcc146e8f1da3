//! From the collected updates to the next parameters, in stages: sum -> mean -> server optimizer.
//!
//! Each stage works on some elements at a time, so that no stage needs a vector of the model's length. Noise
//! for differential privacy belongs between mean and optimizer, in [`next_parameters`]: what follows is then a
//! function of the noisy mean alone.

pub mod mean;
pub mod optimizer;
mod state;

use super::{AggregationSettings, Strategy, aggregate::Collector};
pub use mean::{Totals, UpdateWeight};
pub use optimizer::OptimizerState;
pub use state::{ServerState, UnknownState};

/// Turns the parameters of one round into those of the next. `updates` weighs the collected updates, in the
/// order of the workers' names. A state of another strategy is reset, with a line in the log.
///
/// Computed in f64 and rounded once, so that the result is the same on every machine.
pub fn next_parameters(
    settings: &AggregationSettings,
    state: &mut ServerState,
    collector: &Collector,
    updates: &[UpdateWeight],
    parameters: &mut [f32],
) {
    let AggregationSettings { strategy, server: options, .. } = settings;
    state.prepare(*strategy, options, parameters.len());
    let totals = Totals::new(settings, updates);
    mean::for_each_block(*strategy, collector, &totals, |offset, values| {
        state.optimizer.direction(options, offset, values);
        for (parameter, direction) in parameters[offset..].iter_mut().zip(values) {
            *parameter = (f64::from(*parameter) + options.lr * *direction) as f32;
        }
    });
    match &mut state.optimizer {
        OptimizerState::ControlVariate { control } => move_control(*strategy, control, collector),
        OptimizerState::NormalizedSteps { effective_steps } => {
            *effective_steps = totals.effective_steps as f32;
        }
        _ => {}
    }
}

/// The server's control variate stays the mean of all workers' (Karimireddy et al. 2020, algorithm 1, line 17).
fn move_control(strategy: Strategy, control: &mut [f32], collector: &Collector) {
    let Strategy::Scaffold { workers } = strategy else { return };
    collector.control().for_each(|i, change| {
        control[i] = (f64::from(control[i]) + change / workers as f64) as f32;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::{ServerOptions, aggregate::Vector};
    use fl_quant::Piece;

    fn settings(strategy: &str) -> AggregationSettings {
        let strategy: Strategy = strategy.parse().unwrap();
        let server = ServerOptions { lr: strategy.default_server_lr(), ..ServerOptions::default() };
        AggregationSettings { strategy, server, ..AggregationSettings::default() }
    }

    fn collect(strategy: Strategy, updates: &[(f64, [f32; 2])]) -> Collector {
        let collector = Collector::new(strategy, 2);
        for (k, (weight, x)) in updates.iter().enumerate() {
            let vector = Vector { weight: *weight, max_abs: 9.0, pieces: &|f| f(0, Piece::Values(x)) };
            let control = strategy.uses_control().then_some(&vector);
            collector.add(&format!("w{k}").parse().unwrap(), &vector, control).unwrap();
        }
        collector
    }

    fn weights(samples: &[u64]) -> Vec<UpdateWeight> {
        let weight =
            |num_samples: &u64| UpdateWeight { num_samples: *num_samples, local_norm: 1.0, norm: 1.0 };
        samples.iter().map(weight).collect()
    }

    /// The parameters after one round of one update (1, -1).
    fn one_round(settings: &AggregationSettings, state: &mut ServerState) -> [f32; 2] {
        let collected = collect(settings.strategy, &[(1.0, [1.0, -1.0])]);
        let mut parameters = [0.0; 2];
        next_parameters(settings, state, &collected, &weights(&[1]), &mut parameters);
        parameters
    }

    #[test]
    fn fedavg_weighs_by_samples() {
        let collected = collect(Strategy::FedAvg, &[(1.0, [1.0, 0.0]), (3.0, [-1.0, 2.0])]);
        let (mut parameters, mut state, weights) = ([10.0, 20.0], ServerState::default(), weights(&[1, 3]));
        let mut settings = settings("fedavg");
        next_parameters(&settings, &mut state, &collected, &weights, &mut parameters);
        assert_eq!(parameters, [9.5, 21.5]);
        settings.server.lr = 0.5;
        next_parameters(&settings, &mut state, &collected, &weights, &mut parameters);
        assert_eq!(parameters, [9.25, 22.25]);
        assert_eq!(state, ServerState::default());
    }

    #[test]
    fn a_removed_update_leaves_no_trace() {
        for strategy in ["fedavg", "median"] {
            let settings = settings(strategy);
            let collected = collect(settings.strategy, &[(1.0, [1.0, 0.0]), (1.0, [-1.0, 2.0])]);
            let vector = Vector { weight: 1.0, max_abs: 9.0, pieces: &|f| f(0, Piece::Values(&[-1.0, 2.0])) };
            collected.remove(&"w1".parse().unwrap(), &vector, None);
            let mut parameters = [0.0; 2];
            let state = &mut ServerState::default();
            next_parameters(&settings, state, &collected, &weights(&[1]), &mut parameters);
            assert_eq!(parameters, [1.0, 0.0], "{strategy}");
        }
    }

    /// A momentum and a control variate are both one vector: neither may pass for the other.
    #[test]
    fn a_changed_strategy_begins_with_a_state_of_its_own() {
        let names = ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam", "scaffold:2", "fednova"];
        for before in names {
            for after in names.iter().filter(|name| **name != before) {
                let (mut used, mut fresh) = (ServerState::default(), ServerState::default());
                one_round(&settings(before), &mut used);
                let after_settings = settings(after);
                let moved = one_round(&after_settings, &mut used);
                assert_eq!(moved, one_round(&after_settings, &mut fresh), "{after} after {before}");
                assert_eq!(used, fresh, "{after} after {before}");
            }
        }
    }

    #[test]
    fn a_state_of_the_same_strategy_goes_on() {
        for strategy in ["fedavgm", "fedadagrad", "fedyogi", "fedadam", "scaffold:2"] {
            let settings = settings(strategy);
            let (mut used, mut fresh) = (ServerState::default(), ServerState::default());
            one_round(&settings, &mut used);
            one_round(&settings, &mut used);
            one_round(&settings, &mut fresh);
            assert_ne!(used, fresh, "{strategy}");
        }
    }
}
