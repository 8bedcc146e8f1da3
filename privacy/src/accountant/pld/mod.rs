//! Privacy loss distributions, composed by FFT.
//!
//! The loss of an output is the logarithm of the ratio of its probabilities with and without the client. Its
//! distribution determines every (epsilon, delta), and losses of rounds add up: the distribution of many rounds is a
//! convolution (Sommer, Meiser, Mohammadi 2019; Koskela, Jaelkoe, Honkela 2020). Both directions, a client added and
//! a client removed, are computed, and the worse counts. Without subsampling the result is exact and closed.

mod compose;
mod loss;
mod tuning;

use super::{Rounds, checked_delta, gaussian, merged, rdp};
use crate::{PrivacyError, error::in_range};
use compose::Composed;
use tuning::Plan;

/// Which neighbour the outputs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Outputs of the data with the client, against those without: `ln A(1 + tilt)` generates the moments.
    Remove,
    /// Outputs of the data without the client, against those with: `ln A(-tilt)`.
    Add,
}

/// Epsilon of all rounds together at `delta`: an upper bound, typically 1e-4 above the exact value, and never above the
/// bound of [`rdp::epsilon()`].
///
/// # Errors
/// A delta outside `1e-30..1`, too many rounds or different mechanisms.
pub fn epsilon(rounds: &[Rounds], delta: f64) -> Result<f64, PrivacyError> {
    checked_delta(delta)?;
    let rounds = merged(rounds)?;
    match only_gaussian(&rounds) {
        Some(None) => Ok(0.0),
        Some(Some(sigma)) => Ok(gaussian::epsilon(sigma, delta)),
        None => {
            let composed = both(|direction| {
                let plan = Plan::for_delta(&rounds, direction, delta)?;
                Composed::new(&rounds, direction, &plan)?.epsilon(delta)
            });
            or_bound(composed, rdp::epsilon(&rounds, delta)?.epsilon)
        }
    }
}

/// Delta of all rounds together at `epsilon`: an upper bound.
///
/// # Errors
/// As [`epsilon()`]; an epsilon that is negative or not finite.
pub fn delta(rounds: &[Rounds], epsilon: f64) -> Result<f64, PrivacyError> {
    in_range("epsilon", epsilon, epsilon >= 0.0 && epsilon.is_finite(), "a number of at least 0")?;
    let rounds = merged(rounds)?;
    match only_gaussian(&rounds) {
        Some(None) => Ok(0.0),
        Some(Some(sigma)) => Ok(gaussian::delta(sigma, epsilon)),
        None => {
            let composed = both(|direction| {
                let plan = Plan::for_epsilon(&rounds, direction, epsilon)?;
                Ok(Composed::new(&rounds, direction, &plan)?.delta(epsilon))
            });
            or_bound(composed, rdp::delta(&rounds, epsilon)?)
        }
    }
}

/// The lower of two upper bounds. Where losses are so large that no grid holds them (an epsilon of millions), that by
/// Renyi divergences is all there is.
fn or_bound(composed: Result<f64, PrivacyError>, bound: f64) -> Result<f64, PrivacyError> {
    match composed {
        Ok(composed) => Ok(composed.min(bound)),
        Err(PrivacyError::NotComputable(_)) if bound.is_finite() => Ok(bound),
        Err(error) => Err(error),
    }
}

fn both(of: impl Fn(Direction) -> Result<f64, PrivacyError>) -> Result<f64, PrivacyError> {
    Ok(of(Direction::Remove)?.max(of(Direction::Add)?))
}

/// The noise multiplier if all rounds are one Gaussian mechanism, `Some(None)` if there are no rounds.
fn only_gaussian(rounds: &[Rounds]) -> Option<Option<f64>> {
    match rounds {
        [] => Some(None),
        [one] if one.mechanism.sampling_rate == 1.0 => Some(Some(one.mechanism.noise_multiplier)),
        _ => None,
    }
}
