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
    #[serde(with = "exact")]
    pub lr: f64,
    /// `SERVER_BETA1` (0.9): momentum of `fedavgm` and of the adaptive strategies' first moment, 0 to below 1.
    #[serde(with = "exact")]
    pub beta1: f64,
    /// `SERVER_BETA2` (0.99): decay of the second moment of `fedyogi` and `fedadam`, 0 to below 1.
    #[serde(with = "exact")]
    pub beta2: f64,
    /// `SERVER_TAU` (0.001): adaptivity, added to the root of the second moment, whose initial value is its
    /// square.
    #[serde(with = "exact")]
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
    /// `LAZY` (0 = off): workers may leave an upload out whose squared change is at most this multiple of the
    /// mean squared step of the last ten models.
    #[serde(with = "exact_option", default)]
    pub lazy: Option<f64>,
    /// `MAX_UPDATE_NORM` (0 = no limit): largest Euclidean norm of an update, and of the change of a control
    /// variate.
    #[serde(with = "exact_option", default)]
    pub max_update_norm: Option<f64>,
    /// `NORM_ACTION` (reject): what happens beyond it.
    pub norm_action: NormAction,
    /// `MAX_WEIGHT` (0 = no limit): samples that one update counts for at most.
    #[serde(default)]
    pub max_weight: Option<u64>,
}

impl AggregationSettings {
    /// These settings with the limits on updates of `other`. `MAX_WEIGHT` is none of them: it says what an
    /// update counts for, and an accepted one counts for that after a restart too.
    #[must_use]
    pub fn with_limits_of(&self, other: &Self) -> Self {
        let Self { max_update_norm, norm_action, .. } = *other;
        Self { max_update_norm, norm_action, ..self.clone() }
    }
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

/// A number as text. A JSON parser may read a number as its neighbour, and a replay then makes another model;
/// the text that Rust prints reads back to the same bits.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// [`exact`] for a number that may be absent.
mod exact_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|value| value.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{
        prelude::{any, prop, prop_assert, prop_assert_eq},
        proptest,
        strategy::Strategy as _,
    };

    proptest! {
        /// To the bit: the settings of a round are part of what its model is made of.
        #[test]
        fn settings_read_back_from_json(
            lr in any::<f64>().prop_filter("a setting is finite", |lr| lr.is_finite()),
            norm in prop::option::of(1e-9f64..1e9),
            max_weight in prop::option::of(1u64..100),
        ) {
            let settings = AggregationSettings {
                strategy: Strategy::MultiKrum { hostile: 2, chosen: 3 },
                server: ServerOptions { lr, ..ServerOptions::default() },
                lazy: Some(0.8),
                max_update_norm: norm,
                norm_action: NormAction::Clip,
                max_weight,
                ..AggregationSettings::default()
            };
            let json = serde_json::to_string(&settings).unwrap();
            prop_assert!(json.contains(r#""strategy":"multikrum:2:3""#), "{}", json);
            let read: AggregationSettings = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read.server.lr.to_bits(), lr.to_bits());
            prop_assert_eq!(read.max_update_norm.map(f64::to_bits), norm.map(f64::to_bits));
            prop_assert_eq!(read, settings);
        }
    }

    #[test]
    fn limits_change_without_what_an_update_counts_for() {
        let begun_with = AggregationSettings { max_weight: Some(30), ..AggregationSettings::default() };
        let today = AggregationSettings {
            max_weight: Some(10),
            max_update_norm: Some(1.0),
            norm_action: NormAction::Clip,
            strategy: Strategy::FedAvgM,
            ..AggregationSettings::default()
        };
        let limited = begun_with.with_limits_of(&today);
        assert_eq!((limited.max_update_norm, limited.norm_action), (Some(1.0), NormAction::Clip));
        assert_eq!((limited.max_weight, limited.strategy), (Some(30), Strategy::FedAvg));
    }
}
