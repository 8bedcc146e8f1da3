//! What a running federation counts.

use crate::{metrics::Series, settings::MetricsConfig};
use fl_model::Evaluation;
use fl_protocol::{ClientEvaluation, Task, WorkerId, WorkerStatus};
use prometheus::{Gauge, GaugeVec, Histogram, IntCounter, IntGauge, exponential_buckets};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Series of one federation.
#[derive(Debug)]
pub struct JobMetrics {
    config: MetricsConfig,
    /// Workers that have series: new ones beyond the cap get none.
    known_workers: Mutex<HashSet<WorkerId>>,
    worker_loss: GaugeVec,
    worker_num_samples: GaugeVec,
    worker_last_update: GaugeVec,
    /// The current round.
    pub global_round: IntGauge,
    /// Updates accepted for the open round.
    pub pending_updates: IntGauge,
    /// Accuracy of the last evaluation; a series only where the task has one.
    test_accuracy: GaugeVec,
    test_loss: Gauge,
    /// The same for a regression.
    test_absolute_error: GaugeVec,
    /// Evaluations by workers that were taken in.
    pub client_evaluations: IntCounter,
    client_metric: GaugeVec,
    updates: IntCounter,
    /// Retries of accepted updates.
    pub duplicates: IntCounter,
    reused: IntCounter,
    bytes_saved: IntCounter,
    update_bytes: Histogram,
    /// Durations of rounds.
    pub round_seconds: Histogram,
    /// Times to check, decode and add an update.
    pub decode_seconds: Histogram,
    /// Times to make a round's model.
    pub aggregate_seconds: Histogram,
    evaluate_seconds: Histogram,
    journal_seconds: Histogram,
    journal_records: Histogram,
}

impl JobMetrics {
    /// Registers the series.
    ///
    /// # Errors
    /// If one of the names is taken.
    pub fn new(series: &Series, config: MetricsConfig) -> prometheus::Result<Self> {
        let fast = exponential_buckets(1e-4, 3.0, 10)?;
        Ok(Self {
            worker_loss: series.gauges(
                "fl_worker_loss",
                "Mean training loss of a worker's last update, in nats.",
                "worker",
            )?,
            worker_num_samples: series.gauges(
                "fl_worker_num_samples",
                "Samples of a worker's last update.",
                "worker",
            )?,
            worker_last_update: series.gauges(
                "fl_worker_last_update",
                "When a worker's last update came, in seconds since 1970.",
                "worker",
            )?,
            global_round: series.gauge("fl_global_round", "Finished aggregations so far.")?,
            pending_updates: series.gauge("fl_pending_updates", "Updates accepted for the open round.")?,
            test_accuracy: series.gauges_of(
                "fl_test_accuracy_ratio",
                "Accuracy on the test set, 0 to 1; absent for a regression.",
                &[],
            )?,
            test_loss: series.add(Gauge::new(
                "fl_test_loss",
                "Loss on the test set: cross-entropy in nats, or the squared error of a regression.",
            )?)?,
            test_absolute_error: series.gauges_of(
                "fl_test_absolute_error",
                "Mean absolute error of a regression on the test set.",
                &[],
            )?,
            client_evaluations: series
                .counter("fl_client_evaluations_total", "Evaluations by workers on data of their own.")?,
            client_metric: series.gauges_of(
                "fl_client_metric",
                "Newest evaluation by workers: mean (weighted by samples), p10, median and worst of each metric.",
                &["metric", "statistic"],
            )?,
            updates: series.counter("fl_updates_total", "Accepted updates.")?,
            duplicates: series
                .counter("fl_duplicate_updates_total", "Retries of updates that were accepted before.")?,
            reused: series.counter(
                "fl_reused_updates_total",
                "Uploads left out, so that the worker's last update counted again.",
            )?,
            bytes_saved: series
                .counter("fl_saved_upload_bytes_total", "Bytes that left out uploads saved.")?,
            // 1 kB to 268 MB: a small quantized update to the largest plain ones.
            update_bytes: series.histogram(
                "fl_update_bytes",
                "Body sizes of accepted updates.",
                exponential_buckets(1024.0, 4.0, 10)?,
            )?,
            // 10 ms (a test on one machine) to 3 hours (slow edge boxes).
            round_seconds: series.histogram(
                "fl_round_duration_seconds",
                "Durations of rounds, from open to close.",
                exponential_buckets(0.01, 4.0, 11)?,
            )?,
            // 0.1 ms to 2 s: 100,000 parameters take a few tenths of a millisecond.
            decode_seconds: series.histogram(
                "fl_decode_seconds",
                "Times to check, decode and add one update.",
                fast.clone(),
            )?,
            aggregate_seconds: series.histogram(
                "fl_aggregate_seconds",
                "Times to make the next model from the sum.",
                fast.clone(),
            )?,
            evaluate_seconds: series.histogram(
                "fl_evaluate_seconds",
                "Times to evaluate a model on the test set.",
                exponential_buckets(1e-3, 4.0, 10)?,
            )?,
            // An fsync takes 0.1 ms on a good SSD and tens of milliseconds on a network disk.
            journal_seconds: series.histogram(
                "fl_journal_commit_seconds",
                "Times to write and sync a group of updates.",
                fast,
            )?,
            journal_records: series.histogram(
                "fl_journal_commit_records",
                "Updates that shared one sync.",
                exponential_buckets(1.0, 2.0, 11)?,
            )?,
            known_workers: Mutex::default(),
            config,
        })
    }

    /// Shows the series of what will be evaluated by `task` from the start.
    pub fn expect(&self, task: &Task) {
        match task {
            Task::Regression { .. } => &self.test_absolute_error,
            _ => &self.test_accuracy,
        }
        .with_label_values::<&str>(&[]);
    }

    /// Notes an evaluation on the test set.
    pub fn evaluated(&self, evaluation: &Evaluation, took: Duration) {
        let set = |gauge: &GaugeVec, value: Option<f64>| {
            if let Some(value) = value {
                gauge.with_label_values::<&str>(&[]).set(value);
            }
        };
        set(&self.test_accuracy, evaluation.accuracy);
        set(&self.test_absolute_error, evaluation.absolute_error);
        self.test_loss.set(evaluation.loss);
        self.evaluate_seconds.observe(took.as_secs_f64());
    }

    /// Notes the newest evaluation by workers.
    pub fn evaluated_by_workers(&self, found: &ClientEvaluation) {
        // Names come from outside: those of earlier models must not stay.
        self.client_metric.reset();
        for (name, spread) in &found.metrics {
            let values = [
                ("mean", spread.mean),
                ("p10", spread.p10),
                ("median", spread.median),
                ("worst", spread.worst),
            ];
            for (statistic, value) in values {
                self.client_metric.with_label_values(&[name.as_str(), statistic]).set(value);
            }
        }
    }

    /// Counts an accepted update.
    pub fn accepted(&self, worker: &WorkerId, status: &WorkerStatus) {
        self.updates.inc();
        self.update_bytes.observe(status.bytes as f64);
        if !self.config.per_worker || !self.has_series(worker) {
            return;
        }
        let label = &[worker.as_str()];
        if let Some(loss) = status.loss {
            self.worker_loss.with_label_values(label).set(loss);
        }
        self.worker_num_samples.with_label_values(label).set(status.num_samples as f64);
        self.worker_last_update.with_label_values(label).set(status.last_update_ts);
    }

    /// Notes an upload that was left out and what that saved.
    pub fn reused(&self, bytes_saved: u64) {
        self.reused.inc();
        self.bytes_saved.inc_by(bytes_saved);
    }

    fn has_series(&self, worker: &WorkerId) -> bool {
        let mut known = self.known_workers.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(worker) || (known.len() < self.config.max_workers && known.insert(worker.clone()))
    }

    /// Notes a group commit of the journal.
    pub fn journal_commit(&self, took: Duration, records: usize) {
        self.journal_seconds.observe(took.as_secs_f64());
        self.journal_records.observe(records as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> WorkerStatus {
        WorkerStatus {
            ip: "::1".into(),
            round: 3,
            num_samples: 600,
            loss: Some(0.5),
            compute_factor: None,
            last_update_ts: 10.0,
            bytes: 5000,
        }
    }

    #[test]
    fn workers_beyond_the_cap_have_no_series() {
        let series = Series::new().unwrap();
        let metrics = JobMetrics::new(&series, MetricsConfig { per_worker: true, max_workers: 2 }).unwrap();
        for i in 0..5 {
            metrics.accepted(&format!("w{i}").parse().unwrap(), &status());
        }
        let page = series.render().unwrap();
        assert!(page.contains("fl_worker_loss{worker=\"w0\"} 0.5"), "{page}");
        assert!(page.contains("fl_worker_num_samples{worker=\"w1\"} 600"));
        assert!(!page.contains("w2"));
        assert!(page.contains("fl_updates_total 5"));
    }

    #[test]
    fn every_series_has_help() {
        let series = Series::new().unwrap();
        JobMetrics::new(&series, MetricsConfig { per_worker: false, max_workers: 0 }).unwrap();
        let page = series.render().unwrap();
        for line in page.lines().filter(|line| line.starts_with("# TYPE")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(page.contains(&format!("# HELP {name} ")), "{name}");
        }
    }
}
