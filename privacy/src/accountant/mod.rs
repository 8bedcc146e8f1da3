//! Accounting of rounds.

mod gaussian;
mod ledger;
mod moment;
mod normal;
pub mod plan;
pub mod pld;
pub mod rdp;

pub use ledger::Ledger;

use crate::error::{PrivacyError, in_range};
use serde::{Deserialize, Serialize};

/// Smallest noise multiplier.
pub const MIN_SIGMA: f64 = 0.01;
/// Largest noise multiplier.
pub const MAX_SIGMA: f64 = 1e6;
/// Smallest sampling rate.
pub const MIN_RATE: f64 = 1e-9;
/// Most rounds in one account.
pub const MAX_ROUNDS: u64 = 1_000_000_000;
/// Smallest delta.
pub const MIN_DELTA: f64 = 1e-30;
/// Most different mechanisms in one computation: each costs a transform.
pub(crate) const MAX_MECHANISMS: usize = 256;

/// One round: the Poisson-subsampled Gaussian mechanism.
///
/// Mironov, Talwar, Zhang: "Renyi differential privacy of the sampled Gaussian mechanism" (2019), definition 3.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawMechanism")]
pub struct Mechanism {
    noise_multiplier: f64,
    sampling_rate: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMechanism {
    noise_multiplier: f64,
    sampling_rate: f64,
}

impl TryFrom<RawMechanism> for Mechanism {
    type Error = PrivacyError;

    fn try_from(raw: RawMechanism) -> Result<Self, PrivacyError> {
        Self::new(raw.noise_multiplier, raw.sampling_rate)
    }
}

impl Mechanism {
    /// `noise_multiplier`: standard deviation of the noise on the sum, in units of the clipping norm.
    /// `sampling_rate`: probability that a client takes part in a round; 1 for "all take part".
    ///
    /// # Errors
    /// A number outside 0.01 to 1e6, or outside 1e-9 to 1.
    pub fn new(noise_multiplier: f64, sampling_rate: f64) -> Result<Self, PrivacyError> {
        let sigma = noise_multiplier;
        let good = (MIN_SIGMA..=MAX_SIGMA).contains(&sigma);
        in_range("the noise multiplier", sigma, good, "0.01 to 1000000")?;
        let good = (MIN_RATE..=1.0).contains(&sampling_rate);
        in_range("the sampling rate", sampling_rate, good, "a probability from 1e-9 to 1")?;
        Ok(Self { noise_multiplier, sampling_rate })
    }

    /// Standard deviation of the noise in units of the clipping norm.
    pub fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// Probability that a client takes part in a round.
    pub fn sampling_rate(&self) -> f64 {
        self.sampling_rate
    }
}

/// A number of rounds with the same mechanism.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounds {
    mechanism: Mechanism,
    count: u64,
}

impl Rounds {
    /// `count` rounds.
    ///
    /// # Errors
    /// More than [`MAX_ROUNDS`].
    pub fn new(mechanism: Mechanism, count: u64) -> Result<Self, PrivacyError> {
        in_range("the number of rounds", count as f64, count <= MAX_ROUNDS, "at most 1000000000")?;
        Ok(Self { mechanism, count })
    }

    /// The mechanism of each of the rounds.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// How many rounds there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}

pub(crate) fn checked_delta(delta: f64) -> Result<f64, PrivacyError> {
    in_range("delta", delta, (MIN_DELTA..1.0).contains(&delta), "a probability from 1e-30 to below 1")
}

/// Adds up rounds of equal mechanisms; those without subsampling become one, because the composition of Gaussian
/// mechanisms is a Gaussian mechanism: `1 / sigma^2` adds up (Dong, Roth, Su 2019, corollary 3.3).
pub(crate) fn merged(rounds: &[Rounds]) -> Result<Vec<Rounds>, PrivacyError> {
    let mut merged: Vec<Rounds> = Vec::new();
    let mut full_precision = 0.0;
    let mut total = 0u64;
    for group in rounds.iter().filter(|group| group.count > 0) {
        total = total.saturating_add(group.count);
        let Mechanism { noise_multiplier, sampling_rate } = group.mechanism;
        if sampling_rate == 1.0 {
            full_precision += group.count as f64 / (noise_multiplier * noise_multiplier);
        } else if let Some(same) = merged.iter_mut().find(|known| known.mechanism == group.mechanism) {
            same.count += group.count;
        } else if merged.len() < MAX_MECHANISMS {
            merged.push(*group);
        } else {
            let (what, limit) = ("mechanisms", MAX_MECHANISMS);
            return Err(PrivacyError::TooMany { what, found: limit + 1, limit });
        }
    }
    in_range("the number of rounds", total as f64, total <= MAX_ROUNDS, "at most 1000000000 in all")?;
    if full_precision > 0.0 {
        let mechanism = Mechanism { noise_multiplier: full_precision.sqrt().recip(), sampling_rate: 1.0 };
        merged.push(Rounds { mechanism, count: 1 });
    }
    Ok(merged)
}
