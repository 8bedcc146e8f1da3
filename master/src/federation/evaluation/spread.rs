//! A metric over several clients.

use fl_protocol::{Spread, WorkerId, metrics::MAX_METRICS, metrics::less_is_better};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// What one client reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Reported {
    /// Its weight in the mean.
    pub num_samples: u64,
    /// Names and values.
    pub values: Vec<(Arc<str>, f64)>,
}

/// One client's value of one metric.
struct Value<'a> {
    worker: &'a WorkerId,
    num_samples: u64,
    value: f64,
}

/// The spread of each metric over the clients that reported it, in the order of the clients' names. Of more than
/// [`MAX_METRICS`] names those that most clients reported are kept.
pub fn spreads<'a>(
    reports: impl IntoIterator<Item = (&'a WorkerId, &'a Reported)>,
) -> BTreeMap<String, Spread> {
    let mut by_name: HashMap<&'a str, Vec<Value<'a>>> = HashMap::new();
    for (worker, report) in reports {
        for (name, value) in &report.values {
            let value = Value { worker, num_samples: report.num_samples, value: *value };
            by_name.entry(name).or_default().push(value);
        }
    }
    let mut names: Vec<_> = by_name.into_iter().collect();
    names.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.0.cmp(b.0)));
    names.truncate(MAX_METRICS);
    names.into_iter().filter_map(|(name, values)| Some((name.to_owned(), spread(name, values)?))).collect()
}

/// `None` without values.
fn spread(name: &str, mut values: Vec<Value<'_>>) -> Option<Spread> {
    let weight: f64 = values.iter().map(|v| v.num_samples as f64).sum();
    // Divided before they are added: the values may be as large as a number can be.
    let mean = values.iter().map(|v| v.num_samples as f64 / weight * v.value).sum();
    // The first by name of those that are equal.
    let worst = values.iter().reduce(|worst, v| {
        let is_worse = if less_is_better(name) { v.value > worst.value } else { v.value < worst.value };
        if is_worse { v } else { worst }
    })?;
    let (worst, worst_client) = (worst.value, worst.worker.clone());
    values.sort_by(|a, b| a.value.total_cmp(&b.value));
    let clients = values.len() as u64;
    Some(Spread {
        mean,
        p10: quantile(&values, 0.1),
        median: quantile(&values, 0.5),
        worst,
        worst_client,
        clients,
    })
}

/// A quantile of sorted values, interpolated linearly between two of them.
fn quantile(values: &[Value<'_>], share: f64) -> f64 {
    let place = share * values.len().saturating_sub(1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let at = |index: usize| values.get(index).or(values.last()).map_or(f64::NAN, |v| v.value);
    at(below) * (1.0 - part) + at(below + 1) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker, its samples, and its metrics.
    type Report<'a> = (&'a str, u64, &'a [(&'a str, f64)]);

    fn of(reports: &[Report<'_>]) -> BTreeMap<String, Spread> {
        let reports: BTreeMap<WorkerId, Reported> = reports
            .iter()
            .map(|(worker, num_samples, values)| {
                let values = values.iter().map(|(name, value)| ((*name).into(), *value)).collect();
                (worker.parse().unwrap(), Reported { num_samples: *num_samples, values })
            })
            .collect();
        spreads(&reports)
    }

    #[test]
    fn the_mean_weighs_samples_and_the_spread_counts_clients() {
        let found = of(&[
            ("a", 10, &[("accuracy", 0.5), ("loss", 1.0)]),
            ("b", 30, &[("accuracy", 0.9), ("loss", 0.2)]),
            ("c", 10, &[("accuracy", 0.5)]),
        ]);
        let accuracy = &found["accuracy"];
        assert!((accuracy.mean - 0.74).abs() < 1e-12);
        assert_eq!((accuracy.p10, accuracy.median, accuracy.worst, accuracy.clients), (0.5, 0.5, 0.5, 3));
        assert_eq!(accuracy.worst_client.as_str(), "a", "the first of two");
        let loss = &found["loss"];
        assert_eq!((loss.worst, loss.worst_client.as_str(), loss.clients), (1.0, "a", 2));
        assert!((loss.mean - 0.4).abs() < 1e-12 && (loss.median - 0.6).abs() < 1e-12);
        assert!((loss.p10 - 0.28).abs() < 1e-12, "as numpy.percentile interpolates");
    }

    #[test]
    fn extreme_values_stay_finite() {
        let found =
            of(&[("a", 1, &[("x", f64::MAX)]), ("b", 1, &[("x", f64::MAX)]), ("c", 1, &[("x", f64::MIN)])]);
        let x = &found["x"];
        assert!([x.mean, x.p10, x.median, x.worst].iter().all(|value| value.is_finite()), "{x:?}");
    }

    #[test]
    fn names_that_most_clients_report_are_kept() {
        let names: Vec<String> = (0..2 * MAX_METRICS).map(|i| format!("m{i:02}")).collect();
        let half = |from: usize| -> Vec<(&str, f64)> {
            names.iter().skip(from).take(MAX_METRICS).map(|name| (name.as_str(), 1.0)).collect()
        };
        let (low, high) = (half(0), half(MAX_METRICS));
        let found = of(&[("a", 1, &low), ("b", 1, &high), ("c", 1, &high)]);
        assert_eq!(found.len(), MAX_METRICS);
        assert!(found.contains_key("m32") && !found.contains_key("m00"));
    }
}
