//! Planning: the least noise, or the most rounds, for a budget.

use super::{MAX_ROUNDS, MAX_SIGMA, MIN_SIGMA, Mechanism, Rounds, checked_delta, merged, pld, rdp};
use crate::{PrivacyError, error::in_range};
use serde::{Deserialize, Serialize};

/// Relative width at which the search for the noise stops.
const PRECISION: f64 = 1e-6;
/// Evaluations at most; the search halves its interval at least every third time.
const MAX_STEPS: usize = 120;

/// How epsilon is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accountant {
    /// Renyi differential privacy: fast, the larger epsilon.
    Rdp,
    /// Privacy loss distributions: tight.
    Pld,
}

impl Accountant {
    /// Epsilon of all rounds together.
    ///
    /// # Errors
    /// Those of [`rdp::epsilon()`] and [`pld::epsilon()`].
    pub fn epsilon(self, rounds: &[Rounds], delta: f64) -> Result<f64, PrivacyError> {
        match self {
            Self::Rdp => Ok(rdp::epsilon(rounds, delta)?.epsilon),
            Self::Pld => pld::epsilon(rounds, delta),
        }
    }
}

/// The least noise multiplier with which `count` rounds stay within `epsilon`, up to a millionth above it.
///
/// # Errors
/// A parameter outside its range, or a budget that no noise multiplier from 0.01 to 1e6 fits.
pub fn least_noise(
    accountant: Accountant,
    epsilon: f64,
    sampling_rate: f64,
    count: u64,
    delta: f64,
) -> Result<f64, PrivacyError> {
    checked_budget(epsilon, delta)?;
    in_range("the number of rounds", count as f64, count > 0, "1 to 1000000000")?;
    let excess = |log_sigma: f64| -> Result<f64, PrivacyError> {
        let mechanism = Mechanism::new(log_sigma.exp().clamp(MIN_SIGMA, MAX_SIGMA), sampling_rate)?;
        let found = accountant.epsilon(&[Rounds::new(mechanism, count)?], delta)?;
        Ok(log_excess(found, epsilon))
    };
    let reason = "not even a noise multiplier of 1000000 is enough";
    // From a noise multiplier of 1, in growing steps, to one that is too small and one that is enough.
    let (mut few, mut enough) = (0.0, 0.0);
    let mut at = excess(0.0)?;
    let (mut at_few, mut at_enough) = (at, at);
    let mut stride = 0.5;
    while at > 0.0 {
        (few, at_few) = (enough, at);
        if enough >= MAX_SIGMA.ln() {
            return Err(PrivacyError::Unreachable { target: epsilon, reason });
        }
        enough = (enough + stride).min(MAX_SIGMA.ln());
        at = excess(enough)?;
        at_enough = at;
        stride *= 2.0;
    }
    while at_few <= 0.0 {
        (enough, at_enough) = (few, at_few);
        if few <= MIN_SIGMA.ln() {
            return Ok(MIN_SIGMA);
        }
        few = (few - stride).max(MIN_SIGMA.ln());
        at_few = match excess(few) {
            Ok(at) => at,
            // So little noise that epsilon is beyond what can be computed: far too much for any budget.
            Err(PrivacyError::NotComputable(_)) => f64::INFINITY,
            Err(error) => return Err(error),
        };
    }
    let mut bracket = Bracket { over: (few, at_few), within: (enough, at_enough), kept: 0 };
    for _ in 0..MAX_STEPS {
        if (bracket.within.0 - bracket.over.0).abs() <= PRECISION {
            break;
        }
        let next = bracket.next(0.4 * PRECISION);
        let at = match excess(next) {
            Err(PrivacyError::NotComputable(_)) => f64::INFINITY,
            other => other?,
        };
        bracket.narrow(next, at);
    }
    Ok(bracket.within.0.exp().clamp(MIN_SIGMA, MAX_SIGMA))
}

/// The most further rounds with which `spent` and they stay within `epsilon`; `None` if even [`MAX_ROUNDS`] in all do.
///
/// # Errors
/// A parameter outside its range, or a budget that `spent` alone exceeds.
pub fn most_rounds(
    accountant: Accountant,
    epsilon: f64,
    mechanism: &Mechanism,
    spent: &[Rounds],
    delta: f64,
) -> Result<Option<u64>, PrivacyError> {
    checked_budget(epsilon, delta)?;
    let spent_count: u64 = merged_count(spent)?;
    let excess = |count: u64| -> Result<f64, PrivacyError> {
        let mut rounds = spent.to_vec();
        rounds.push(Rounds::new(*mechanism, count)?);
        match accountant.epsilon(&rounds, delta) {
            Ok(found) => Ok(log_excess(found, epsilon)),
            Err(PrivacyError::NotComputable(_)) => Ok(f64::INFINITY),
            Err(error) => Err(error),
        }
    };
    if excess(0)? > 0.0 {
        return Err(PrivacyError::Unreachable { target: epsilon, reason: "the rounds so far cost more" });
    }
    let most = MAX_ROUNDS - spent_count;
    let (mut within, mut at_within) = (0, f64::NEG_INFINITY);
    let mut over = 1;
    let at_over = loop {
        let at = excess(over.min(most))?;
        if at > 0.0 {
            break at;
        }
        if over >= most {
            return Ok(None);
        }
        (within, at_within) = (over, at);
        over = over.saturating_mul(4);
    };
    let mut over = over.min(most);
    if within == 0 {
        return Ok(Some(0));
    }
    let log = |count: u64| (count as f64).ln();
    let mut bracket = Bracket { over: (log(over), at_over), within: (log(within), at_within), kept: 0 };
    while over - within > 1 {
        let guess = bracket.next(0.0).exp().round() as u64;
        let count = guess.clamp(within + 1, over - 1);
        let at = excess(count)?;
        bracket.narrow(log(count), at);
        if at > 0.0 { over = count } else { within = count }
    }
    Ok(Some(within))
}

fn merged_count(rounds: &[Rounds]) -> Result<u64, PrivacyError> {
    merged(rounds)?;
    Ok(rounds.iter().map(Rounds::count).sum())
}

fn checked_budget(epsilon: f64, delta: f64) -> Result<(), PrivacyError> {
    checked_delta(delta)?;
    let good = (1e-6..=1e6).contains(&epsilon);
    in_range("epsilon", epsilon, good, "a number from 1e-6 to 1000000")?;
    Ok(())
}

/// Positive if `found` is over the budget; logarithms of both quantities are close to proportional.
fn log_excess(found: f64, budget: f64) -> f64 {
    (found / budget).max(1e-12).ln()
}

/// An argument over the budget and one within it, each with its excess.
struct Bracket {
    over: (f64, f64),
    within: (f64, f64),
    /// How often in a row the same end was kept: positive for `over`.
    kept: i32,
}

impl Bracket {
    /// The next argument: where the line through both ends is zero, or the middle if that made no progress.
    /// It keeps `margin` away from the ends, so that the last step crosses the solution.
    fn next(&self, margin: f64) -> f64 {
        let ((a, at_a), (b, at_b)) = (self.over, self.within);
        let middle = 0.5 * (a + b);
        let crossing = a + (b - a) * at_a / (at_a - at_b);
        if self.kept.abs() >= 2 || !crossing.is_finite() {
            return middle;
        }
        let (low, high) = (a.min(b) + margin, a.max(b) - margin);
        if low < high { crossing.clamp(low, high) } else { middle }
    }

    fn narrow(&mut self, argument: f64, excess: f64) {
        if excess > 0.0 {
            self.over = (argument, excess);
            self.kept = if self.kept < 0 { self.kept - 1 } else { -1 };
        } else {
            self.within = (argument, excess);
            self.kept = if self.kept > 0 { self.kept + 1 } else { 1 };
        }
        if self.kept.abs() > 2 {
            self.kept = 0;
        }
    }
}
