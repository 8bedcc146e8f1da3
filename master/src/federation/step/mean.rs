//! The first stage of the server's step: from the collected updates to their mean, some elements at a time.

use crate::federation::{
    AggregationSettings, Strategy,
    aggregate::{Collected, robust},
};

/// The weight of an update: the input of the mean besides the collected updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateWeight {
    /// Samples that it counts for.
    pub num_samples: u64,
    /// `|a_k|_1` of FedNova: plain SGD steps that its local steps are worth; at least 1.
    pub local_norm: f64,
    /// Euclidean norm of the update as it was added; 0 unless the strategy is FedNova.
    pub norm: f64,
}

/// Sums over the updates of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Number of updates.
    pub updates: usize,
    /// Their samples.
    pub samples: f64,
    /// `tau_eff` of FedNova: local steps that the round is worth, as far as norms support the claims.
    pub effective_steps: f64,
    /// The same, reduced so that every update's term respects `MAX_UPDATE_NORM`.
    pub applied_steps: f64,
}

impl Totals {
    /// Adds up `updates`, which are in the order of the workers' names.
    pub fn new(settings: &AggregationSettings, updates: &[UpdateWeight]) -> Self {
        let samples = updates.iter().map(|update| update.num_samples as f64).sum();
        let mut totals = Self { updates: updates.len(), samples, effective_steps: 1.0, applied_steps: 1.0 };
        if settings.strategy == Strategy::FedNova {
            totals.effective_steps = effective_steps(updates, samples, settings.max_update_norm);
            totals.applied_steps = updates
                .iter()
                .filter(|update| update.norm > 0.0)
                .filter_map(|update| Some(settings.max_update_norm? * update.local_norm / update.norm))
                .fold(totals.effective_steps, f64::min);
        }
        totals
    }
}

/// A claim of local steps counts up to this multiple of the steps that the update's norm supports. An honest
/// claim is below it, because the norm per step falls with the number of steps.
const SUPPORT: f64 = 2.0;

/// The mean of the local steps weighted by samples (Wang et al. 2020, eq. 7).
///
/// The paper leaves the length of the server's step free; a claim must not be, because it scales everyone's
/// updates. So it counts only as far as the update's own norm supports it, at the median norm per step of the
/// round: who claims many steps moves the model by no more than its share.
fn effective_steps(updates: &[UpdateWeight], samples: f64, max_norm: Option<f64>) -> f64 {
    let mut rates: Vec<f64> = updates.iter().map(|update| update.norm / update.local_norm).collect();
    rates.sort_unstable_by(f64::total_cmp);
    // Of two updates the larger one: an update of zeros supports nothing.
    let rate = rates.get(rates.len() / 2).copied().unwrap_or(0.0);
    let believed = |update: &UpdateWeight| {
        if rate == 0.0 {
            return update.local_norm;
        }
        let norm = (SUPPORT * update.norm).min(max_norm.unwrap_or(f64::INFINITY));
        update.local_norm.min(norm / rate)
    };
    let sample_steps: f64 = updates.iter().map(|update| update.num_samples as f64 * believed(update)).sum();
    sample_steps / samples
}

/// The mean of the updates: `f(offset, mean)` in order. The strategies that need each update have a mean of
/// their own kind.
pub fn for_each_block(
    strategy: Strategy,
    collected: Collected<'_>,
    totals: &Totals,
    mut f: impl FnMut(usize, &mut [f64]),
) {
    let (count, factor) = match strategy {
        Strategy::FedBuff { .. } | Strategy::Scaffold { .. } => (totals.updates as f64, 1.0),
        Strategy::FedNova => (totals.samples, totals.applied_steps),
        _ => (totals.samples, 1.0),
    };
    let of_sum = |offset, values: &mut [f64]| {
        values.iter_mut().for_each(|value| *value = factor * (*value / count));
        f(offset, values);
    };
    match collected {
        Collected::Sum(sum) => sum.for_each_block(of_sum),
        Collected::LastOfSum(sum) => sum.drain(of_sum),
        Collected::Individual(updates) => {
            let updates: Vec<&[f32]> = updates.values().map(Vec::as_slice).collect();
            robust_mean(strategy, &updates, f);
        }
    }
}

fn robust_mean(strategy: Strategy, updates: &[&[f32]], f: impl FnMut(usize, &mut [f64])) {
    match strategy {
        Strategy::TrimmedMean { cut } => robust::trimmed_mean(updates, cut, f),
        Strategy::Krum { hostile } => robust::mean_of(updates, &robust::krum(updates, hostile, 1), f),
        Strategy::MultiKrum { hostile, chosen } => {
            robust::mean_of(updates, &robust::krum(updates, hostile, chosen), f);
        }
        _ => robust::median(updates, f),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(num_samples: u64, local_norm: f64, norm: f64) -> UpdateWeight {
        UpdateWeight { num_samples, local_norm, norm }
    }

    fn totals(max_update_norm: Option<f64>, updates: &[UpdateWeight]) -> Totals {
        let settings = AggregationSettings {
            strategy: Strategy::FedNova,
            max_update_norm,
            ..AggregationSettings::default()
        };
        Totals::new(&settings, updates)
    }

    #[test]
    fn honest_steps_are_the_weighted_mean() {
        // The norm grows with the root of the steps.
        let updates: Vec<_> = [4.0, 16.0, 9.0].map(|steps: f64| update(10, steps, steps.sqrt())).into();
        let expected = (40.0 + 160.0 + 90.0) / 30.0;
        assert_eq!(totals(None, &updates).effective_steps, expected);
        assert_eq!(totals(Some(100.0), &updates).applied_steps, expected);
    }

    #[test]
    fn a_claim_without_a_norm_to_support_it_counts_for_nothing() {
        for samples in [1, 10, 100_000_000] {
            let both = totals(Some(10.0), &[update(10, 10.0, 0.01), update(samples, 1e7, 0.0)]);
            assert!(both.applied_steps <= 10.0, "{both:?}");
        }
    }

    /// Whatever one client claims, the length of everyone's terms together grows by no more than its share of
    /// the limit.
    #[test]
    fn no_claim_moves_the_model_by_more_than_its_share() {
        let limit = 10.0;
        let honest = [update(10, 10.0, 0.01); 4];
        let step = |updates: &[UpdateWeight], totals: &Totals| -> f64 {
            let terms = updates.iter().take(4).map(|u| u.num_samples as f64 * u.norm / u.local_norm);
            totals.applied_steps * terms.sum::<f64>() / totals.samples
        };
        let alone = step(&honest, &totals(Some(limit), &honest));
        for local_norm in [1.0, 10.0, 1e4, 1e7] {
            for norm in [0.0, 1e-9, 0.01, 1.0, limit] {
                for samples in [1, 10, 1000] {
                    let mut updates = honest.to_vec();
                    updates.push(update(samples, local_norm, norm));
                    let totals = totals(Some(limit), &updates);
                    let share = samples as f64 / totals.samples * limit;
                    let own = totals.applied_steps * norm / local_norm;
                    assert!(own <= limit * (1.0 + 1e-9), "{local_norm} {norm} {samples}: {own}");
                    let others = step(&updates, &totals);
                    assert!(others <= alone + share, "{local_norm} {norm} {samples}: {others} > {share}");
                }
            }
        }
    }

    #[test]
    fn no_updates_and_updates_of_zeros_are_no_special_case() {
        assert!(totals(None, &[]).effective_steps.is_nan());
        assert_eq!(totals(Some(1.0), &[update(5, 3.0, 0.0)]).applied_steps, 3.0);
    }
}
