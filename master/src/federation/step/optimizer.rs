//! The last stage of the server's step: from the mean to the direction in which the parameters move, and what
//! a strategy remembers for that from round to round.

use crate::federation::{ServerOptions, Strategy};
use std::ops::Range;

/// How the second moment follows the squared mean (Reddi et al. 2021, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdaptiveRule {
    /// Their sum.
    Adagrad,
    /// An additive step towards it.
    Yogi,
    /// Their moving average.
    Adam,
}

/// State of the server's optimizer. Vectors have the model's length.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OptimizerState {
    /// Nothing.
    #[default]
    Stateless,
    /// `fedavgm`.
    Momentum {
        /// The moving sum of the means.
        momentum: Vec<f32>,
    },
    /// `fedadagrad`, `fedyogi` and `fedadam`.
    Adaptive {
        /// Which of them.
        rule: AdaptiveRule,
        /// The moving average of the means.
        first_moment: Vec<f32>,
        /// What the rule makes of their squares.
        second_moment: Vec<f32>,
    },
    /// `scaffold:N`.
    ControlVariate {
        /// The mean of all workers' control variates.
        control: Vec<f32>,
    },
    /// `fednova`.
    NormalizedSteps {
        /// Local steps that the last round was worth.
        effective_steps: f32,
    },
    /// What a checkpoint of an older version holds, which does not say what its vectors are.
    Unnamed {
        /// In the order in which that version kept them.
        vectors: Vec<Vec<f32>>,
    },
}

impl OptimizerState {
    /// The initial state of `strategy`.
    pub fn new(strategy: Strategy, options: &ServerOptions, parameters: usize) -> Self {
        let zeros = || vec![0.0; parameters];
        let adaptive = |rule| Self::Adaptive {
            rule,
            first_moment: zeros(),
            second_moment: vec![(options.tau * options.tau) as f32; parameters],
        };
        match strategy {
            Strategy::FedAvgM => Self::Momentum { momentum: zeros() },
            Strategy::FedAdagrad => adaptive(AdaptiveRule::Adagrad),
            Strategy::FedYogi => adaptive(AdaptiveRule::Yogi),
            Strategy::FedAdam => adaptive(AdaptiveRule::Adam),
            Strategy::Scaffold { .. } => Self::ControlVariate { control: zeros() },
            Strategy::FedNova => Self::NormalizedSteps { effective_steps: 1.0 },
            _ => Self::Stateless,
        }
    }

    /// The vectors of an older version as the state of `strategy`; anything else as it is. What they were made by
    /// is known from the settings alone, as it was to that version.
    #[must_use]
    pub fn named_for(self, strategy: Strategy) -> Self {
        let Self::Unnamed { mut vectors } = self else { return self };
        let adaptive = |rule, mut vectors: Vec<Vec<f32>>| {
            let second_moment = vectors.pop().unwrap_or_default();
            Self::Adaptive { rule, first_moment: vectors.pop().unwrap_or_default(), second_moment }
        };
        match (strategy, vectors.len()) {
            (Strategy::FedAvgM, 1) => Self::Momentum { momentum: vectors.remove(0) },
            (Strategy::Scaffold { .. }, 1) => Self::ControlVariate { control: vectors.remove(0) },
            (Strategy::FedAdagrad, 2) => adaptive(AdaptiveRule::Adagrad, vectors),
            (Strategy::FedYogi, 2) => adaptive(AdaptiveRule::Yogi, vectors),
            (Strategy::FedAdam, 2) => adaptive(AdaptiveRule::Adam, vectors),
            _ => Self::Unnamed { vectors },
        }
    }

    /// The strategy that it belongs to, without numbers.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stateless => "fedavg",
            Self::Momentum { .. } => "fedavgm",
            Self::Adaptive { rule: AdaptiveRule::Adagrad, .. } => "fedadagrad",
            Self::Adaptive { rule: AdaptiveRule::Yogi, .. } => "fedyogi",
            Self::Adaptive { rule: AdaptiveRule::Adam, .. } => "fedadam",
            Self::ControlVariate { .. } => "scaffold",
            Self::NormalizedSteps { .. } => "fednova",
            Self::Unnamed { .. } => "another strategy",
        }
    }

    /// Whether `strategy` can continue with this state.
    pub fn fits(&self, strategy: Strategy, parameters: usize) -> bool {
        let expected = match strategy {
            Strategy::FedAvgM => "fedavgm",
            Strategy::FedAdagrad => "fedadagrad",
            Strategy::FedYogi => "fedyogi",
            Strategy::FedAdam => "fedadam",
            Strategy::Scaffold { .. } => "scaffold",
            Strategy::FedNova => "fednova",
            _ => "fedavg",
        };
        let lengths = match self {
            Self::Stateless | Self::NormalizedSteps { .. } | Self::Unnamed { .. } => [parameters; 2],
            Self::Momentum { momentum: vector } | Self::ControlVariate { control: vector } => {
                [vector.len(); 2]
            }
            Self::Adaptive { first_moment, second_moment, .. } => [first_moment.len(), second_moment.len()],
        };
        self.name() == expected && lengths == [parameters; 2]
    }

    /// Whether `strategy` keeps vectors of the model's length.
    pub fn has_vectors(strategy: Strategy) -> bool {
        matches!(
            strategy,
            Strategy::FedAvgM
                | Strategy::FedAdagrad
                | Strategy::FedYogi
                | Strategy::FedAdam
                | Strategy::Scaffold { .. }
        )
    }

    /// A copy of some elements.
    pub fn part(&self, range: Range<usize>) -> Self {
        let part = |vector: &[f32]| vector.get(range.clone()).unwrap_or_default().to_vec();
        match self {
            Self::Momentum { momentum } => Self::Momentum { momentum: part(momentum) },
            Self::Adaptive { rule, first_moment, second_moment } => Self::Adaptive {
                rule: *rule,
                first_moment: part(first_moment),
                second_moment: part(second_moment),
            },
            Self::ControlVariate { control } => Self::ControlVariate { control: part(control) },
            Self::NormalizedSteps { effective_steps } => {
                Self::NormalizedSteps { effective_steps: *effective_steps }
            }
            Self::Stateless | Self::Unnamed { .. } => Self::Stateless,
        }
    }

    /// Whether all of its numbers are finite.
    pub fn is_finite(&self) -> bool {
        let finite = |vector: &[f32]| vector.iter().all(|value| value.is_finite());
        match self {
            Self::Stateless | Self::Unnamed { .. } => true,
            Self::Momentum { momentum: vector } | Self::ControlVariate { control: vector } => finite(vector),
            Self::Adaptive { first_moment, second_moment, .. } => {
                finite(first_moment) && finite(second_moment)
            }
            Self::NormalizedSteps { effective_steps } => effective_steps.is_finite(),
        }
    }

    /// Turns the mean of the elements from `offset` on into their direction.
    pub fn direction(&mut self, options: &ServerOptions, offset: usize, mean: &mut [f64]) {
        let ServerOptions { beta1, beta2, tau, .. } = *options;
        match self {
            Self::Stateless
            | Self::ControlVariate { .. }
            | Self::NormalizedSteps { .. }
            | Self::Unnamed { .. } => {}
            Self::Momentum { momentum } => {
                for (value, m) in mean.iter_mut().zip(&mut momentum[offset..]) {
                    *value += beta1 * f64::from(*m);
                    *m = *value as f32;
                }
            }
            Self::Adaptive { rule, first_moment, second_moment } => {
                let moments = first_moment[offset..].iter_mut().zip(&mut second_moment[offset..]);
                for (value, (m, v)) in mean.iter_mut().zip(moments) {
                    let momentum = beta1 * f64::from(*m) + (1.0 - beta1) * *value;
                    let second = rule.next(f64::from(*v), *value * *value, beta2);
                    (*m, *v) = (momentum as f32, second as f32);
                    *value = momentum / (second.sqrt() + tau);
                }
            }
        }
    }
}

impl AdaptiveRule {
    #[inline]
    fn next(self, before: f64, square: f64, beta2: f64) -> f64 {
        match self {
            Self::Adagrad => before + square,
            Self::Yogi => before - (1.0 - beta2) * square * sign(before - square),
            Self::Adam => beta2 * before + (1.0 - beta2) * square,
        }
    }
}

/// -1, 0 or 1.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}
