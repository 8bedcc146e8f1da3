//! How updates are checked and become the next model, as the journal of a round records it: a replay under
//! changed settings makes the same model.

use super::Strategy;
use serde::{Deserialize, Serialize};

/// What happens to an update whose norm is above `MAX_UPDATE_NORM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NormAction {
    /// Answer 422.
    Reject,
    /// Scale it down to the limit.
    Clip,
}

/// The server's step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ServerOptions {
    /// `SERVER_LR` (1, or 0.01 with an adaptive strategy): step size.
    pub lr: f64,
    /// `SERVER_BETA1` (0.9): momentum of `fedavgm` and of the adaptive strategies' first moment, 0 to below 1.
    pub beta1: f64,
    /// `SERVER_BETA2` (0.99): decay of the second moment of `fedyogi` and `fedadam`, 0 to below 1.
    pub beta2: f64,
    /// `SERVER_TAU` (0.001): adaptivity, added to the root of the second moment, whose initial value is its
    /// square.
    pub tau: f64,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { lr: 1.0, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

/// How updates become the next model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AggregationSettings {
    /// `STRATEGY` (fedavg).
    pub strategy: Strategy,
    /// The server's step.
    pub server: ServerOptions,
    /// `MAX_STALENESS` (100): rounds that an update may be late with `fedbuff`, or may count again with
    /// `LAZY`.
    pub max_staleness: u64,
    /// `MAX_BUFFER_MB` (512): memory for the updates of a round, if the strategy needs each by itself; for
    /// the workers' last updates with `LAZY`.
    pub max_buffer_mb: usize,
    /// `LAZY` (0 = off): workers may leave an upload out whose squared change is at most so many times the
    /// mean squared step of the last ten models.
    pub lazy: Option<f64>,
    /// `MAX_UPDATE_NORM` (0 = no limit): largest Euclidean norm of an update, and of the change of a control
    /// variate.
    pub max_update_norm: Option<f64>,
    /// `NORM_ACTION` (reject): what happens beyond it.
    pub norm_action: NormAction,
    /// `MAX_WEIGHT` (0 = no limit): samples that one update counts for at most.
    #[serde(default)]
    pub max_weight: Option<u64>,
}

impl Default for AggregationSettings {
    fn default() -> Self {
        Self {
            strategy: Strategy::FedAvg,
            server: ServerOptions::default(),
            max_staleness: 100,
            max_buffer_mb: 512,
            lazy: None,
            max_update_norm: None,
            norm_action: NormAction::Reject,
            max_weight: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back_from_json() {
        let settings = AggregationSettings {
            strategy: Strategy::MultiKrum { hostile: 2, chosen: 3 },
            server: ServerOptions { lr: 0.1 + 0.2, ..ServerOptions::default() },
            lazy: Some(0.8),
            norm_action: NormAction::Clip,
            ..AggregationSettings::default()
        };
        let json = serde_json::to_string(&settings).unwrap();
        assert!(json.contains(r#""strategy":"multikrum:2:3""#), "{json}");
        assert_eq!(serde_json::from_str::<AggregationSettings>(&json).unwrap(), settings);
    }
}
