//! What the server carries from round to round, and how a checkpoint writes it: vectors with names.

use super::optimizer::{AdaptiveRule, OptimizerState};
use crate::federation::Strategy;
use std::{collections::BTreeMap, slice};
use thiserror::Error;

/// What a strategy carries from round to round; part of the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerState {
    /// What the server's optimizer remembers.
    pub optimizer: OptimizerState,
    /// Squared norms of the model's last steps, the newest first; only with lazy upload.
    pub squared_steps: Vec<f32>,
}

/// Vectors that are no server's state.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("the server's state holds {0}, which this version does not know")]
pub struct UnknownState(String);

const SQUARED_STEPS: &str = "squared_steps";

impl ServerState {
    /// The server's control variate, if there is one.
    pub fn control(&self) -> Option<&[f32]> {
        match &self.optimizer {
            OptimizerState::ControlVariate { control } => Some(control),
            _ => None,
        }
    }

    /// FedNova: local steps that the last round was worth.
    pub fn effective_steps(&self) -> Option<f64> {
        match self.optimizer {
            OptimizerState::NormalizedSteps { effective_steps } => Some(f64::from(effective_steps)),
            _ => None,
        }
    }

    /// The state with the names that the vectors of an older version have under `strategy`.
    #[must_use]
    pub fn named_for(self, strategy: Strategy) -> Self {
        Self { optimizer: self.optimizer.named_for(strategy), ..self }
    }

    /// Takes the state of a changed strategy in place of the one before.
    pub(super) fn replace(&mut self, optimizer: OptimizerState, strategy: Strategy) {
        if self.optimizer != OptimizerState::Stateless {
            let before = self.optimizer.name();
            tracing::warn!(%strategy, before, "the strategy has changed: its state on the server is reset");
        }
        self.optimizer = optimizer;
    }

    /// Everything by name.
    pub fn to_vectors(&self) -> Vec<(&'static str, &[f32])> {
        let mut vectors: Vec<(&'static str, &[f32])> = match &self.optimizer {
            OptimizerState::Stateless | OptimizerState::Unnamed { .. } => Vec::new(),
            OptimizerState::Momentum { momentum } => vec![("fedavgm.momentum", momentum)],
            OptimizerState::Adaptive { rule, first_moment, second_moment } => {
                let [first, second] = rule.names();
                vec![(first, first_moment), (second, second_moment)]
            }
            OptimizerState::ControlVariate { control } => vec![("scaffold.control", control)],
            OptimizerState::NormalizedSteps { effective_steps } => {
                vec![("fednova.effective_steps", slice::from_ref(effective_steps))]
            }
        };
        if !self.squared_steps.is_empty() {
            vectors.push((SQUARED_STEPS, &self.squared_steps));
        }
        vectors
    }

    /// Reads [`Self::to_vectors`] back.
    ///
    /// # Errors
    /// If a name is unknown, or its companion is missing.
    pub fn from_vectors(vectors: impl IntoIterator<Item = (String, Vec<f32>)>) -> Result<Self, UnknownState> {
        let mut vectors: BTreeMap<String, Vec<f32>> = vectors.into_iter().collect();
        let squared_steps = vectors.remove(SQUARED_STEPS).unwrap_or_default();
        let optimizer = read_optimizer(&mut vectors);
        match vectors.into_keys().next() {
            Some(name) => Err(UnknownState(format!("`{name}`"))),
            None => Ok(Self { optimizer, squared_steps }),
        }
    }
}

/// Takes the vectors of one optimizer out.
fn read_optimizer(vectors: &mut BTreeMap<String, Vec<f32>>) -> OptimizerState {
    if let Some(momentum) = vectors.remove("fedavgm.momentum") {
        return OptimizerState::Momentum { momentum };
    }
    if let Some(control) = vectors.remove("scaffold.control") {
        return OptimizerState::ControlVariate { control };
    }
    if let Some(&[effective_steps]) = vectors.get("fednova.effective_steps").map(Vec::as_slice) {
        vectors.remove("fednova.effective_steps");
        return OptimizerState::NormalizedSteps { effective_steps };
    }
    for rule in [AdaptiveRule::Adagrad, AdaptiveRule::Yogi, AdaptiveRule::Adam] {
        let [first, second] = rule.names();
        if vectors.contains_key(first)
            && let Some(second_moment) = vectors.remove(second)
        {
            let first_moment = vectors.remove(first).unwrap_or_default();
            return OptimizerState::Adaptive { rule, first_moment, second_moment };
        }
    }
    OptimizerState::Stateless
}

impl AdaptiveRule {
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Adagrad => ["fedadagrad.first_moment", "fedadagrad.second_moment"],
            Self::Yogi => ["fedyogi.first_moment", "fedyogi.second_moment"],
            Self::Adam => ["fedadam.first_moment", "fedadam.second_moment"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::{ServerOptions, strategy::STRATEGIES};

    fn strategies() -> impl Iterator<Item = Strategy> {
        let sample = |name: &str| name.replace(['N', 'K'], "4").replace('F', "2").replace('M', "3");
        STRATEGIES.split(", ").map(move |name| sample(name).parse().unwrap())
    }

    #[test]
    fn every_state_reads_back_by_name() {
        for strategy in strategies() {
            let state = ServerState {
                optimizer: OptimizerState::new(strategy, &ServerOptions::default(), 3),
                squared_steps: vec![0.5, 0.25],
            };
            let vectors = state.to_vectors();
            let owned = vectors.iter().rev().map(|(name, vector)| ((*name).to_owned(), vector.to_vec()));
            assert_eq!(ServerState::from_vectors(owned), Ok(state.clone()), "{strategy}");
        }
        assert_eq!(ServerState::from_vectors([]), Ok(ServerState::default()));
        for name in ["fedadam.second_moment", "fedavgm", "fednova.effective_steps"] {
            let error = ServerState::from_vectors([(name.to_owned(), vec![1.0; 2])]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn vectors_without_names_are_those_of_the_strategy_that_is_set() {
        for strategy in strategies() {
            let state = OptimizerState::new(strategy, &ServerOptions::default(), 3);
            let vectors: Vec<Vec<f32>> = match &state {
                OptimizerState::NormalizedSteps { .. } => continue,
                named => {
                    let state = ServerState { optimizer: named.clone(), ..ServerState::default() };
                    state.to_vectors().into_iter().map(|(_, vector)| vector.to_vec()).collect()
                }
            };
            let unnamed = OptimizerState::Unnamed { vectors: vectors.clone() };
            let expected = if vectors.is_empty() { unnamed.clone() } else { state };
            assert_eq!(unnamed.named_for(strategy), expected, "{strategy}");
        }
    }

    #[test]
    fn a_state_fits_its_own_strategy_and_length_only() {
        let options = ServerOptions::default();
        for owner in strategies() {
            let state = OptimizerState::new(owner, &options, 3);
            for strategy in strategies() {
                let same = state == OptimizerState::new(strategy, &options, 3);
                assert_eq!(state.fits(strategy, 3), same, "{strategy} with the state of {owner}");
            }
            let has_vectors =
                !matches!(state, OptimizerState::Stateless | OptimizerState::NormalizedSteps { .. });
            assert_eq!(state.fits(owner, 4), !has_vectors, "{owner}");
        }
    }
}
