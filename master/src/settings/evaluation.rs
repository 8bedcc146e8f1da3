//! Which models the workers evaluate on data of their own.

use clap::Args;
use fl_app::{SettingError, setting::number};

/// The flags of this group. What is typed and what is used are the same here.
#[derive(Debug, Clone, Copy, PartialEq, Args)]
#[command(next_help_heading = "Evaluation by workers")]
pub struct EvaluationConfig {
    /// Rounds between two evaluations of the model by the workers, each on data that it holds out of its training
    /// (LOCAL_TEST); the last model is evaluated too. 0 = never
    #[arg(long, env, default_value_t = 0)]
    pub evaluate_every: u64,
    /// Share of the workers that evaluate a model, drawn anew for each, above 0, at most 1
    #[arg(long, env, default_value_t = 1.0)]
    pub evaluate_fraction: f64,
}

impl EvaluationConfig {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        number("EVALUATE_FRACTION", self.evaluate_fraction, 1e-6, 1.0)
    }
}
