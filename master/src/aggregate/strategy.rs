//! What the server does with the average of the updates.

use super::ExactSum;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A server strategy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// The average of the updates, weighted by samples (McMahan et al. 2017, algorithm 1).
    FedAvg,
}

/// A name that is no strategy's.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("unknown strategy: use fedavg")]
pub struct UnknownStrategy;

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(s: &str) -> Result<Self, UnknownStrategy> {
        match s {
            "fedavg" => Ok(Self::FedAvg),
            _ => Err(UnknownStrategy),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FedAvg => "fedavg",
        })
    }
}

/// What a strategy carries from round to round, part of the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerState {
    /// The optimiser's vectors, each of the model's length.
    pub vectors: Vec<Vec<f32>>,
}

impl Strategy {
    /// Turns the parameters of one round into those of the next: `sum` is `sum_k n_k * delta_k`,
    /// `total_weight` the sum of the n_k.
    ///
    /// Computed in f64 and rounded once, so that the result is the same on every machine.
    pub fn apply(
        self,
        _state: &mut ServerState,
        sum: &ExactSum,
        total_weight: f64,
        server_lr: f64,
        parameters: &mut [f32],
    ) {
        match self {
            Self::FedAvg => sum.for_each(|i, value| {
                parameters[i] = (f64::from(parameters[i]) + server_lr * (value / total_weight)) as f32;
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fedavg_weighs_by_samples() {
        let sum = ExactSum::new(2);
        for (n, x) in [(1.0, [1.0f32, 0.0]), (3.0, [-1.0, 2.0])] {
            sum.add(n, 2.0, |f| f(0, &x)).unwrap();
        }
        let mut parameters = [10.0, 20.0];
        Strategy::FedAvg.apply(&mut ServerState::default(), &sum, 4.0, 1.0, &mut parameters);
        assert_eq!(parameters, [9.5, 21.5]);
        Strategy::FedAvg.apply(&mut ServerState::default(), &sum, 4.0, 0.5, &mut parameters);
        assert_eq!(parameters, [9.25, 22.25]);
    }

    #[test]
    fn names_read_back() {
        assert_eq!(Strategy::FedAvg.to_string().parse(), Ok(Strategy::FedAvg));
        assert_eq!("best".parse::<Strategy>(), Err(UnknownStrategy));
    }
}
