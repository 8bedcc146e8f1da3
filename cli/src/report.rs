//! What a run leaves in its folder: its summary, its history, and a report to look at.

pub mod page;

use anyhow::Context;
use fl_protocol::{HistoryRecord, Spread};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// The result of a finished run: the last JSON line of `fl run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// Accuracy of the last model on the test set, 0 to 1.
    pub accuracy: Option<f64>,
    /// Mean loss of the last model on the test set: cross-entropy in nats, or the squared error of a regression.
    #[serde(deserialize_with = "unknown_is_nan")]
    pub loss: f64,
    /// Mean absolute error of the last model on the test set; of a regression alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_error: Option<f64>,
    /// Accuracy of the last model that the clients evaluated on data of their own, over the clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_accuracy: Option<Spread>,
    /// The same for the mean absolute error of a regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_absolute_error: Option<Spread>,
    /// Rounds done.
    pub rounds: u64,
    /// Seconds from the start of the master to the last evaluation.
    pub wall_s: f64,
    /// Median duration of a round, in milliseconds.
    pub round_ms_median: f64,
    /// Mean size of one update body, in bytes.
    pub bytes_up_per_update: f64,
    /// Mean bits per parameter of one update body.
    pub bits_per_param: f64,
    /// Uploads that lazy upload left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reused: u64,
    /// Bytes that the uploads left out would have taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_saved: u64,
    /// Parameters of the model.
    pub params: u64,
    /// Path of the model file.
    pub global: String,
    /// Peak resident memory of a simulation, in MB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_mb: Option<f64>,
    /// Duration of a simulation by its virtual clock, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_s: Option<f64>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// JSON has no NaN: it is written as null.
fn unknown_is_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|value| value.unwrap_or(f64::NAN))
}

impl Summary {
    /// Summarises `history`; the last record's evaluation is the result.
    pub fn new(history: &[HistoryRecord], params: u64, wall_s: f64, global: String) -> Self {
        let last = history.last();
        let evaluation = history.iter().rev().find_map(|record| record.evaluation.as_ref());
        let found = |name: &str| evaluation.and_then(|evaluation| evaluation.metrics.get(name).cloned());
        let updates: u64 = history.iter().map(|r| r.participants).sum();
        let bytes: u64 = history.iter().map(|r| r.bytes_up).sum();
        let per_update = bytes as f64 / updates.max(1) as f64;
        Self {
            accuracy: last.and_then(|r| r.test_accuracy),
            loss: last.and_then(|r| r.test_loss).unwrap_or(f64::NAN),
            absolute_error: last.and_then(|r| r.test_absolute_error),
            client_accuracy: found("accuracy"),
            client_absolute_error: found("absolute_error"),
            rounds: last.map_or(0, |r| r.round),
            wall_s,
            round_ms_median: 1e3 * median(history.iter().map(|r| r.duration_s).collect()),
            bytes_up_per_update: per_update,
            bits_per_param: 8.0 * per_update / params.max(1) as f64,
            reused: history.iter().map(|r| r.reused).sum(),
            bytes_saved: history.iter().map(|r| r.bytes_saved).sum(),
            params,
            global,
            peak_rss_mb: None,
            virtual_s: None,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// One run of a report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Name in tables and legends.
    pub name: String,
    /// Its result.
    pub summary: Summary,
    /// Its settings by their flags' names.
    pub settings: serde_json::Value,
    /// Its rounds, in order.
    pub history: Vec<HistoryRecord>,
}

/// Writes `history.csv`, `history.json`, `run.json` and `report.html` into `out`.
pub fn write_all(out: &Path, run: &Run) -> anyhow::Result<()> {
    write(&out.join("history.csv"), &history_csv(&run.history))?;
    write(&out.join("history.json"), &serde_json::to_string_pretty(&run.history)?)?;
    write(&out.join("run.json"), &serde_json::to_string_pretty(run)?)?;
    write(&out.join("report.html"), &page::of_run(run)?)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

const COLUMNS: [&str; 15] = [
    "round",
    "started_ts",
    "finished_ts",
    "duration_s",
    "participants",
    "num_samples",
    "train_loss",
    "test_accuracy",
    "test_loss",
    "bytes_up",
    "bytes_down",
    "bits_per_param",
    "reused",
    "bytes_saved",
    "test_absolute_error",
];

fn history_csv(history: &[HistoryRecord]) -> String {
    let mut csv = COLUMNS.join(",") + "\n";
    for record in history {
        csv += &cells(record).join(",");
        csv.push('\n');
    }
    csv
}

/// The cells of a record in the order of [`COLUMNS`]; an unknown value is empty.
fn cells(r: &HistoryRecord) -> [String; 15] {
    let optional = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    [
        r.round.to_string(),
        r.started_ts.to_string(),
        r.finished_ts.to_string(),
        r.duration_s.to_string(),
        r.participants.to_string(),
        r.num_samples.to_string(),
        optional(r.train_loss),
        optional(r.test_accuracy),
        optional(r.test_loss),
        r.bytes_up.to_string(),
        r.bytes_down.to_string(),
        r.bits_per_param.to_string(),
        r.reused.to_string(),
        r.bytes_saved.to_string(),
        optional(r.test_absolute_error),
    ]
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn run(name: &str) -> Run {
        let record = |round| HistoryRecord {
            round,
            started_ts: 0.0,
            finished_ts: 1.0,
            duration_s: round as f64,
            participants: 2,
            num_samples: 10,
            train_loss: Some(1.5),
            test_accuracy: Some(0.5),
            test_loss: None,
            test_absolute_error: None,
            evaluation: None,
            update_metrics: Default::default(),
            bytes_up: 100,
            reused: 0,
            bytes_saved: 0,
            bytes_down: 0,
            bits_per_param: 4.0,
        };
        let history = vec![record(1), record(2), record(3)];
        let summary = Summary::new(&history, 100, 3.0, "global.safetensors".into());
        Run { name: name.into(), summary, settings: serde_json::json!({"bits": 4, "seed": 42}), history }
    }

    #[test]
    fn the_summary_counts_bytes_per_update_and_takes_the_median_round() {
        let summary = run("a").summary;
        assert_eq!(summary.bytes_up_per_update, 50.0);
        assert_eq!(summary.bits_per_param, 4.0);
        assert_eq!(summary.round_ms_median, 2000.0);
    }

    #[test]
    fn the_csv_has_a_row_per_round_and_empty_cells_for_the_unknown() {
        let csv = history_csv(&run("a").history);
        let lines: Vec<_> = csv.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].split(',').count(), COLUMNS.len());
        assert!(lines[1].contains(",0.5,,100,"));
    }
}
