//! Metrics that clients report, and what a master keeps of them.

use crate::WorkerId;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor},
};
use std::{collections::BTreeMap, fmt, str::FromStr};
use thiserror::Error;

/// Most metrics of one report.
pub const MAX_METRICS: usize = 32;

/// Longest name of a metric, in bytes.
pub const MAX_METRIC_NAME_BYTES: usize = 64;

/// Words of a name that say that less is better.
const LESS_IS_BETTER: [&str; 14] = [
    "loss",
    "error",
    "err",
    "mae",
    "mse",
    "rmse",
    "mape",
    "nll",
    "perplexity",
    "ppl",
    "wer",
    "cer",
    "distance",
    "divergence",
];

/// Why metrics are refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum MetricsError {
    /// A name that is none.
    #[error("a metric's name is 1 to {MAX_METRIC_NAME_BYTES} of the characters a-z 0-9 _ .")]
    BadName,
    /// More than [`MAX_METRICS`].
    #[error("at most {MAX_METRICS} metrics can be reported at a time")]
    TooMany,
    /// NaN or infinity.
    #[error("the metric `{0}` is not finite")]
    NonFinite(String),
}

/// Metrics of one client by name: at most [`MAX_METRICS`] finite values, names of 1 to [`MAX_METRIC_NAME_BYTES`] of
/// the characters `a-z 0-9 _ .`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Checks names, number and values.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new<N: Into<String>>(metrics: impl IntoIterator<Item = (N, f64)>) -> Result<Self, MetricsError> {
        let mut checked = Self::default();
        for (name, value) in metrics {
            checked.insert(name.into(), value)?;
        }
        Ok(checked)
    }

    fn insert(&mut self, name: String, value: f64) -> Result<(), MetricsError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.');
        if name.is_empty() || name.len() > MAX_METRIC_NAME_BYTES || !name.bytes().all(allowed) {
            return Err(MetricsError::BadName);
        }
        if !value.is_finite() {
            return Err(MetricsError::NonFinite(name));
        }
        if self.0.len() == MAX_METRICS && !self.0.contains_key(&name) {
            return Err(MetricsError::TooMany);
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of metrics.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

/// Stops at the first entry too many, so that a long list is not kept.
impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Checked;
        impl<'de> Visitor<'de> for Checked {
            type Value = Metrics;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of metrics: names and finite numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metrics, A::Error> {
                let mut metrics = Metrics::default();
                while let Some((name, value)) = map.next_entry::<String, f64>()? {
                    metrics.insert(name, value).map_err(A::Error::custom)?;
                }
                Ok(metrics)
            }
        }
        deserializer.deserialize_map(Checked)
    }
}

/// A JSON object, as the metadata of an update container has it.
impl FromStr for Metrics {
    type Err = serde_json::Error;

    fn from_str(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}

/// Whether a smaller value of the metric is the better one: one of the words of its name, which `_` and `.` separate,
/// is `loss`, `error`, `err`, `mae`, `mse`, `rmse`, `mape`, `nll`, `perplexity`, `ppl`, `wer`, `cer`, `distance` or
/// `divergence`. Of every other metric a larger value is taken to be the better one.
pub fn less_is_better(name: &str) -> bool {
    name.split(['_', '.']).any(|word| LESS_IS_BETTER.contains(&word))
}

/// One metric over the clients that reported it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean, weighted by the clients' samples.
    pub mean: f64,
    /// 10th percentile of the clients' values, each client counting once; between two values it is interpolated.
    pub p10: f64,
    /// Median of the clients' values.
    pub median: f64,
    /// Value of the worst client: the largest where [`less_is_better`], else the smallest.
    pub worst: f64,
    /// That client; of several the first by name.
    pub worst_client: WorkerId,
    /// Clients that reported it.
    pub clients: u64,
}

/// What clients found when they evaluated a model on data of their own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientEvaluation {
    /// Clients that evaluated it.
    pub clients: u64,
    /// Sum of the samples that they evaluated it on.
    pub num_samples: u64,
    /// Each metric's spread over the clients.
    pub metrics: BTreeMap<String, Spread>,
}

/// The newest evaluation by clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastClientEvaluation {
    /// Round of the evaluated model.
    pub round: u64,
    /// What was found.
    #[serde(flatten)]
    pub found: ClientEvaluation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_number_and_values_are_checked() {
        let one = |name: &str, value| Metrics::new([(name, value)]).map(|metrics| metrics.len());
        for good in ["accuracy", "top_5", "val.loss", "0", &"a".repeat(64)] {
            assert_eq!(one(good, 0.5), Ok(1), "{good}");
        }
        for bad in ["", "Accuracy", "a b", "a-b", "é", "a\n", &"a".repeat(65)] {
            assert_eq!(one(bad, 0.5), Err(MetricsError::BadName), "{bad}");
        }
        assert_eq!(one("a", f64::NAN), Err(MetricsError::NonFinite("a".into())));
        assert_eq!(one("a", f64::INFINITY), Err(MetricsError::NonFinite("a".into())));
        let many = |count: usize| Metrics::new((0..count).map(|i| (format!("m{i}"), 1.0)));
        assert_eq!(many(MAX_METRICS).unwrap().len(), MAX_METRICS);
        assert_eq!(many(MAX_METRICS + 1), Err(MetricsError::TooMany));
    }

    #[test]
    fn json_is_checked_as_it_is_read() {
        let read = |json: &str| json.parse::<Metrics>();
        assert_eq!(read(r#"{"loss": 1, "accuracy": 0.5}"#).unwrap().get("accuracy"), Some(0.5));
        for bad in [
            "",
            "[]",
            "1",
            r#"{"a": null}"#,
            r#"{"a": "1"}"#,
            r#"{"A": 1}"#,
            r#"{"a": NaN}"#,
            r#"{"a": 1e999}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let many: Vec<_> = (0..=MAX_METRICS).map(|i| format!("\"m{i}\": 1")).collect();
        assert!(read(&format!("{{{}}}", many.join(","))).unwrap_err().to_string().contains("at most 32"));
    }

    #[test]
    fn the_name_says_which_way_is_worse() {
        for name in ["loss", "val.loss", "absolute_error", "rmse", "test_err"] {
            assert!(less_is_better(name), "{name}");
        }
        for name in ["accuracy", "f1", "auc", "lossless", "terror"] {
            assert!(!less_is_better(name), "{name}");
        }
    }
}
