//! From the collected updates to the next parameters, in stages: sum -> mean -> server optimizer.
//!
//! Each stage works on some elements at a time, so that no stage needs a vector of the model's length, and the
//! strategy's vectors change where they are. Noise for differential privacy belongs between mean and optimizer, in
//! [`next_parameters`]: what follows is then a function of the noisy mean alone.

pub mod mean;
pub mod optimizer;
mod state;

use super::{AggregationSettings, Strategy, aggregate::Collector};
pub use mean::{Totals, UpdateWeight};
pub use optimizer::OptimizerState;
pub use state::{ServerState, UnknownState};
use thiserror::Error;

/// A number of the result is not finite.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the average is not finite")]
pub struct NotFinite;

/// Little-endian f32, as they lie in a model file.
pub type FileValues = [[u8; 4]];

/// Makes the parameters of the next round, `after`, from those of this one. `updates` weighs the collected updates,
/// in the order of the workers' names. A state of another strategy is reset, with a line in the log.
///
/// Computed in f64 and rounded once, so that the result is the same on every machine. The collected updates are
/// read for the last time: [`Collector::reset`] must follow.
///
/// # Errors
/// If the result is not finite. The state is as it was then, and `after` has no meaning.
pub fn next_parameters(
    settings: &AggregationSettings,
    state: &mut ServerState,
    collector: &mut Collector,
    updates: &[UpdateWeight],
    before: &FileValues,
    after: &mut FileValues,
) -> Result<(), NotFinite> {
    let AggregationSettings { strategy, server: options, .. } = settings;
    let totals = Totals::new(settings, updates);
    let fits = state.optimizer.fits(*strategy, before.len());
    // What changes in place cannot be taken back.
    if OptimizerState::has_vectors(*strategy) {
        rehearse(settings, fits.then_some(&state.optimizer), collector, &totals, before)?;
    }
    let mut fresh = (!fits).then(|| OptimizerState::new(*strategy, options, before.len()));
    let optimizer = fresh.as_mut().unwrap_or(&mut state.optimizer);
    let mut finite = true;
    mean::for_each_block(*strategy, collector.last_of_collected(), &totals, |offset, values| {
        optimizer.direction(options, offset, values);
        let parameters = before[offset..].iter().zip(&mut after[offset..]);
        for ((before, after), direction) in parameters.zip(values) {
            let moved = moved(*before, options.lr, *direction);
            finite &= moved.is_finite();
            *after = moved.to_le_bytes();
        }
    });
    let effective_steps = totals.effective_steps as f32;
    if !finite || (*strategy == Strategy::FedNova && !effective_steps.is_finite()) {
        return Err(NotFinite);
    }
    match optimizer {
        OptimizerState::ControlVariate { control } => {
            for_each_control(*strategy, collector, |i, change| {
                control[i] = moved_control(control[i], change);
            });
        }
        OptimizerState::NormalizedSteps { effective_steps: steps } => *steps = effective_steps,
        _ => {}
    }
    if let Some(fresh) = fresh {
        state.replace(fresh, *strategy);
    }
    Ok(())
}

/// Goes through the step of a strategy with vectors, without a change. `optimizer` is `None` where it would begin
/// anew.
fn rehearse(
    settings: &AggregationSettings,
    optimizer: Option<&OptimizerState>,
    collector: &Collector,
    totals: &Totals,
    before: &FileValues,
) -> Result<(), NotFinite> {
    let AggregationSettings { strategy, server: options, .. } = settings;
    let part = |offset: usize, len: usize| match optimizer {
        Some(optimizer) => optimizer.part(offset..offset + len),
        None => OptimizerState::new(*strategy, options, len),
    };
    let mut finite = true;
    mean::for_each_block(*strategy, collector.collected(), totals, |offset, values| {
        let mut part = part(offset, values.len());
        part.direction(options, 0, values);
        let parameters = before[offset..].iter().zip(values);
        finite &= part.is_finite()
            && parameters.fold(true, |finite, (before, direction)| {
                finite & moved(*before, options.lr, *direction).is_finite()
            });
    });
    let control = match optimizer {
        Some(OptimizerState::ControlVariate { control }) => control.as_slice(),
        _ => &[],
    };
    for_each_control(*strategy, collector, |i, change| {
        finite &= moved_control(control.get(i).copied().unwrap_or(0.0), change).is_finite();
    });
    if finite { Ok(()) } else { Err(NotFinite) }
}

#[inline(always)]
fn moved(before: [u8; 4], lr: f64, direction: f64) -> f32 {
    (f64::from(f32::from_le_bytes(before)) + lr * direction) as f32
}

/// The server's control variate stays the mean of all workers' (Karimireddy et al. 2020, algorithm 1, line 17).
fn moved_control(control: f32, change: f64) -> f32 {
    (f64::from(control) + change) as f32
}

/// The change of each element of the server's control variate.
fn for_each_control(strategy: Strategy, collector: &Collector, mut f: impl FnMut(usize, f64)) {
    let Strategy::Scaffold { workers } = strategy else { return };
    collector.control().for_each(|i, change| f(i, change / workers as f64));
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

    /// [`super::next_parameters`] in place.
    fn next_parameters(
        settings: &AggregationSettings,
        state: &mut ServerState,
        collector: &mut Collector,
        updates: &[UpdateWeight],
        parameters: &mut [f32; 2],
    ) -> Result<(), NotFinite> {
        let (before, mut after) = (parameters.map(f32::to_le_bytes), [[0; 4]; 2]);
        super::next_parameters(settings, state, collector, updates, &before, &mut after)?;
        *parameters = after.map(f32::from_le_bytes);
        Ok(())
    }

    /// The parameters after one round of one update (1, -1).
    fn one_round(settings: &AggregationSettings, state: &mut ServerState) -> [f32; 2] {
        let mut collected = collect(settings.strategy, &[(1.0, [1.0, -1.0])]);
        let mut parameters = [0.0; 2];
        next_parameters(settings, state, &mut collected, &weights(&[1]), &mut parameters).unwrap();
        parameters
    }

    /// Vectors change in place: a round whose result is not finite must not leave a trace in them.
    #[test]
    fn a_result_that_is_not_finite_changes_no_state() {
        for strategy in ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam", "scaffold:2", "fednova"] {
            let mut settings = settings(strategy);
            let mut state = ServerState::default();
            one_round(&settings, &mut state);
            let before = state.clone();
            settings.server.lr = 1e300;
            let mut collected = collect(settings.strategy, &[(1.0, [0.0, 1.0])]);
            let mut parameters = [1.0; 2];
            let result =
                next_parameters(&settings, &mut state, &mut collected, &weights(&[1]), &mut parameters);
            assert_eq!((result, &state), (Err(NotFinite), &before), "{strategy}");
            // A state that is to begin anew is still that of the strategy before.
            let mut other =
                ServerState { optimizer: OptimizerState::Unnamed { vectors: Vec::new() }, ..state };
            let unchanged = other.clone();
            let mut collected = collect(settings.strategy, &[(1.0, [0.0, 1.0])]);
            let result =
                next_parameters(&settings, &mut other, &mut collected, &weights(&[1]), &mut parameters);
            assert_eq!((result, other), (Err(NotFinite), unchanged), "{strategy}");
        }
    }

    #[test]
    fn fedavg_weighs_by_samples() {
        let mut collected = collect(Strategy::FedAvg, &[(1.0, [1.0, 0.0]), (3.0, [-1.0, 2.0])]);
        let (mut parameters, mut state, weights) = ([10.0, 20.0], ServerState::default(), weights(&[1, 3]));
        let mut settings = settings("fedavg");
        next_parameters(&settings, &mut state, &mut collected, &weights, &mut parameters).unwrap();
        assert_eq!(parameters, [9.5, 21.5]);
        settings.server.lr = 0.5;
        next_parameters(&settings, &mut state, &mut collected, &weights, &mut parameters).unwrap();
        assert_eq!(parameters, [9.25, 22.25]);
        assert_eq!(state, ServerState::default());
    }

    #[test]
    fn a_removed_update_leaves_no_trace() {
        for strategy in ["fedavg", "median"] {
            let settings = settings(strategy);
            let mut collected = collect(settings.strategy, &[(1.0, [1.0, 0.0]), (1.0, [-1.0, 2.0])]);
            let vector = Vector { weight: 1.0, max_abs: 9.0, pieces: &|f| f(0, Piece::Values(&[-1.0, 2.0])) };
            collected.remove(&"w1".parse().unwrap(), &vector, None);
            let mut parameters = [0.0; 2];
            let state = &mut ServerState::default();
            next_parameters(&settings, state, &mut collected, &weights(&[1]), &mut parameters).unwrap();
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
