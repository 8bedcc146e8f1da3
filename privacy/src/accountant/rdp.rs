//! Renyi differential privacy.
//!
//! Mironov, Talwar, Zhang: "Renyi differential privacy of the sampled Gaussian mechanism" (2019).

use super::{Mechanism, Rounds, checked_delta, merged, moment::log_moment};
use crate::PrivacyError;

/// Epsilon, and the order that gave it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// The privacy loss that holds but for a probability of delta.
    pub epsilon: f64,
    /// The Renyi order with the least epsilon.
    pub order: f64,
}

/// Renyi divergence of one round at an order above 1: the larger of both directions.
///
/// Theorem 4 and corollary 7: adding the client is never worse than removing it, so `ln A(order) / (order - 1)`.
///
/// # Errors
/// An order that is not above 1 and at most 1e7.
pub fn divergence(mechanism: &Mechanism, order: f64) -> Result<f64, PrivacyError> {
    let good = order > 1.0 && order <= 1e7;
    crate::error::in_range("the order", order, good, "above 1, at most 10000000")?;
    Ok(log_moment(mechanism, order) / (order - 1.0))
}

/// Orders of which the best is taken. Up to 63 they are those of TF-Privacy and dp-accounting, so that results can be
/// compared; smaller ones serve huge epsilons, larger ones (in steps of 2^(1/4)) tiny ones.
pub fn orders() -> Vec<f64> {
    let mut orders = vec![1.01, 1.02, 1.05];
    orders.extend((1..100).map(|tenth| 1.0 + f64::from(tenth) / 10.0));
    orders.extend((11..64).map(f64::from));
    orders.extend((24..=64).map(|quarter| (f64::from(quarter) / 4.0).exp2().round()));
    orders
}

/// Epsilon of all rounds together.
///
/// Divergences add up (Mironov 2017, proposition 1).
///
/// # Errors
/// A delta outside `1e-30..1`, too many rounds or different mechanisms.
pub fn epsilon(rounds: &[Rounds], delta: f64) -> Result<Bound, PrivacyError> {
    checked_delta(delta)?;
    let orders = orders();
    let divergences = total(&merged(rounds)?, &orders);
    Ok(best(&orders, &divergences, delta))
}

/// Delta of all rounds together at an epsilon.
///
/// # Errors
/// An epsilon that is negative or not finite, too many rounds or different mechanisms.
pub fn delta(rounds: &[Rounds], epsilon: f64) -> Result<f64, PrivacyError> {
    let good = epsilon >= 0.0 && epsilon.is_finite();
    crate::error::in_range("epsilon", epsilon, good, "a number of at least 0")?;
    let orders = orders();
    let divergences = total(&merged(rounds)?, &orders);
    let log_delta = orders.iter().zip(&divergences).map(|(&a, &r)| {
        // The conversion below solved for delta, and Bretagnolle-Huber: delta <= sqrt(1 - e^-KL).
        let power = (a - 1.0) * (r - epsilon + (-1.0 / a).ln_1p()) - a.ln();
        power.min(0.5 * (-(-r).exp_m1()).ln())
    });
    Ok(log_delta.fold(0.0, f64::min).exp())
}

/// Divergences of all rounds at each order.
pub(crate) fn total(rounds: &[Rounds], orders: &[f64]) -> Vec<f64> {
    let at = |order: f64| -> f64 {
        rounds
            .iter()
            .map(|group| group.count as f64 * log_moment(&group.mechanism, order) / (order - 1.0))
            .sum()
    };
    orders.iter().map(|&order| at(order)).collect()
}

/// Converts to (epsilon, delta) at the best order.
///
/// Canonne, Kamath, Steinke: "The discrete Gaussian for differential privacy" (2020), proposition 12; equation 20 of
/// Balle et al.: "Hypothesis testing interpretations and Renyi differential privacy" (2020).
pub(crate) fn best(orders: &[f64], divergences: &[f64], delta: f64) -> Bound {
    let mut best = Bound { epsilon: f64::INFINITY, order: f64::INFINITY };
    for (&order, &divergence) in orders.iter().zip(divergences) {
        // delta^2 >= 1 - e^-KL gives epsilon 0 (Bretagnolle, Huber 1978), and KL is at most any divergence.
        let epsilon = if delta * delta + (-divergence).exp_m1() >= 0.0 {
            0.0
        } else {
            (divergence + (-1.0 / order).ln_1p() - (delta * order).ln() / (order - 1.0)).max(0.0)
        };
        if epsilon < best.epsilon {
            best = Bound { epsilon, order };
        }
    }
    best
}
