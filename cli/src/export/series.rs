//! Records of rounds as series of numbers.

use serde_json::{Map, Value};
use std::collections::HashSet;

/// Fields that say when, not what.
const NOT_A_SERIES: [&str; 3] = ["round", "started_ts", "finished_ts"];

/// One value of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its name: the field, after those that it lies in, with slashes between them.
    pub series: String,
    /// Round.
    pub step: i64,
    /// When the round ended, in seconds since 1970.
    pub time: f64,
    /// Always finite.
    pub value: f64,
}

/// Gives each value once: that of a test comes some time after its round.
#[derive(Debug, Default)]
pub struct Fresh {
    given: HashSet<(String, i64)>,
}

impl Fresh {
    /// The points that were not given before, by rounds.
    pub fn take(&mut self, rounds: &[Map<String, Value>]) -> Vec<Point> {
        let mut points: Vec<Point> = rounds.iter().flat_map(of_round).collect();
        points.retain(|point| self.given.insert((point.series.clone(), point.step)));
        points
    }
}

/// All numbers of a round; nothing without its number.
fn of_round(record: &Map<String, Value>) -> Vec<Point> {
    let Some(step) = record.get("round").and_then(Value::as_i64) else { return Vec::new() };
    let time = record.get("finished_ts").and_then(Value::as_f64).unwrap_or(0.0);
    let mut points = Vec::new();
    for (key, value) in record.iter().filter(|(key, _)| !NOT_A_SERIES.contains(&key.as_str())) {
        collect(key, value, &mut |series, value| points.push(Point { series, step, time, value }));
    }
    points
}

fn collect(name: &str, value: &Value, give: &mut impl FnMut(String, f64)) {
    match value {
        Value::Number(number) => {
            if let Some(number) = number.as_f64().filter(|number| number.is_finite()) {
                give(name.to_owned(), number);
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                collect(&format!("{name}/{key}"), value, give);
            }
        }
        _ => {}
    }
}

/// When the first round began, in seconds since 1970; 0 if there is none.
pub fn begin(rounds: &[Map<String, Value>]) -> f64 {
    rounds.first().and_then(|record| record.get("started_ts")?.as_f64()).unwrap_or(0.0)
}

/// When the last round ended, in seconds since 1970; 0 if there is none.
pub fn end(rounds: &[Map<String, Value>]) -> f64 {
    rounds.last().and_then(|record| record.get("finished_ts")?.as_f64()).unwrap_or(0.0)
}

/// Settings as pairs of texts; those that are not set are left out.
pub fn parameters(about: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    about.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_become_points_once_and_late_values_follow() {
        let mut record = json!({
            "round": 3, "started_ts": 1.0, "finished_ts": 2.5, "train_loss": 0.5, "test_loss": null, "name": "x",
            "client_metrics": {"accuracy": {"mean": 0.75, "worst_client": "edge1"}},
        });
        let mut fresh = Fresh::default();
        let point = |series: &str, value| Point { series: series.to_owned(), step: 3, time: 2.5, value };
        let rounds = |record: &Value| vec![record.as_object().unwrap().clone()];
        let mut first = fresh.take(&rounds(&record));
        first.sort_by(|a, b| a.series.cmp(&b.series));
        assert_eq!(first, [point("client_metrics/accuracy/mean", 0.75), point("train_loss", 0.5)]);
        record["test_loss"] = json!(0.25);
        assert_eq!(fresh.take(&rounds(&record)), [point("test_loss", 0.25)]);
        assert_eq!(begin(&rounds(&record)), 1.0);
        assert_eq!(end(&rounds(&record)), 2.5);
    }

    #[test]
    fn settings_that_are_not_set_are_left_out() {
        let about = json!({"lr": 0.5, "mu": null, "model": "mlp"});
        let pairs = parameters(about.as_object().unwrap());
        assert_eq!(pairs, [("lr".to_owned(), "0.5".to_owned()), ("model".to_owned(), "mlp".to_owned())]);
    }
}
