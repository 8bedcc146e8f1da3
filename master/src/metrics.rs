//! `GET /metrics`: the predecessor's names and what operators ask for beside them.

use crate::settings::MetricsConfig;
use fl_protocol::{ErrorCode, WorkerId, WorkerStatus};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder, core::Collector, exponential_buckets,
};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Every series of the master, in a registry of its own: two masters may live in one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
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
    /// Open connections.
    pub connections: IntGauge,
    /// Accuracy of the last evaluation.
    pub test_accuracy: Gauge,
    /// Loss of the last evaluation.
    pub test_loss: Gauge,
    /// Accepted updates.
    pub updates: IntCounter,
    /// Retries of accepted updates.
    pub duplicates: IntCounter,
    reused: IntCounter,
    bytes_saved: IntCounter,
    rejected: IntCounterVec,
    /// Bytes of models sent.
    pub bytes_down: IntCounter,
    /// Sizes of accepted updates.
    pub update_bytes: Histogram,
    /// Durations of rounds.
    pub round_seconds: Histogram,
    /// Times to check, decode and add an update.
    pub decode_seconds: Histogram,
    /// Times to make a round's model.
    pub aggregate_seconds: Histogram,
    /// Times to evaluate a model.
    pub evaluate_seconds: Histogram,
    journal_seconds: Histogram,
    journal_records: Histogram,
}

impl Metrics {
    /// Registers every series.
    ///
    /// # Errors
    /// If two series had one name.
    pub fn new(config: MetricsConfig) -> prometheus::Result<Self> {
        let r = Registry::new();
        let info = IntGauge::with_opts(
            Opts::new("fl_build_info", "Always 1; the label is the master's version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        info.set(1);
        register(&r, info)?;
        let rejected = IntCounterVec::new(
            Opts::new("fl_rejected_updates_total", "Refused updates, by error code."),
            &["reason"],
        )?;
        for code in ErrorCode::ALL {
            rejected.with_label_values(&[code.as_str()]);
        }
        let fast = exponential_buckets(1e-4, 3.0, 10)?;
        Ok(Self {
            worker_loss: per_worker(
                &r,
                "fl_worker_loss",
                "Mean training loss of a worker's last update, in nats.",
            )?,
            worker_num_samples: per_worker(
                &r,
                "fl_worker_num_samples",
                "Samples of a worker's last update.",
            )?,
            worker_last_update: per_worker(
                &r,
                "fl_worker_last_update",
                "When a worker's last update came, in seconds since 1970.",
            )?,
            global_round: gauge(&r, "fl_global_round", "Finished aggregations so far.")?,
            pending_updates: gauge(&r, "fl_pending_updates", "Updates accepted for the open round.")?,
            connections: gauge(&r, "fl_connections", "Open connections.")?,
            test_accuracy: register(
                &r,
                Gauge::new("fl_test_accuracy_ratio", "Accuracy on the test set, 0 to 1.")?,
            )?,
            test_loss: register(&r, Gauge::new("fl_test_loss", "Cross-entropy on the test set, in nats.")?)?,
            updates: counter(&r, "fl_updates_total", "Accepted updates.")?,
            duplicates: counter(
                &r,
                "fl_duplicate_updates_total",
                "Retries of updates that were accepted before.",
            )?,
            reused: counter(
                &r,
                "fl_reused_updates_total",
                "Uploads left out, so that the worker's last update counted again.",
            )?,
            bytes_saved: counter(&r, "fl_saved_upload_bytes_total", "Bytes that left out uploads saved.")?,
            rejected: register(&r, rejected)?,
            bytes_down: counter(&r, "fl_sent_model_bytes_total", "Bytes of models sent to workers.")?,
            // 1 kB to 268 MB: a small quantized update to the largest plain ones.
            update_bytes: histogram(
                &r,
                "fl_update_bytes",
                "Body sizes of accepted updates.",
                exponential_buckets(1024.0, 4.0, 10)?,
            )?,
            // 10 ms (a test on one machine) to 3 hours (slow edge boxes).
            round_seconds: histogram(
                &r,
                "fl_round_duration_seconds",
                "Durations of rounds, from open to close.",
                exponential_buckets(0.01, 4.0, 11)?,
            )?,
            // 0.1 ms to 2 s: 100,000 parameters take a few tenths of a millisecond.
            decode_seconds: histogram(
                &r,
                "fl_decode_seconds",
                "Times to check, decode and add one update.",
                fast.clone(),
            )?,
            aggregate_seconds: histogram(
                &r,
                "fl_aggregate_seconds",
                "Times to make the next model from the sum.",
                fast,
            )?,
            evaluate_seconds: histogram(
                &r,
                "fl_evaluate_seconds",
                "Times to evaluate a model on the test set.",
                exponential_buckets(1e-3, 4.0, 10)?,
            )?,
            // An fsync takes 0.1 ms on a good SSD and tens of milliseconds on a network disk.
            journal_seconds: histogram(
                &r,
                "fl_journal_commit_seconds",
                "Times to write and sync a group of updates.",
                exponential_buckets(1e-4, 3.0, 10)?,
            )?,
            journal_records: histogram(
                &r,
                "fl_journal_commit_records",
                "Updates that shared one sync.",
                exponential_buckets(1.0, 2.0, 11)?,
            )?,
            known_workers: Mutex::default(),
            registry: r,
            config,
        })
    }

    /// The page.
    ///
    /// # Errors
    /// If the encoder fails, which a registered series cannot make it.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Notes an accepted update.
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

    /// Notes a refused update.
    pub fn refused(&self, code: ErrorCode) {
        self.rejected.with_label_values(&[code.as_str()]).inc();
    }

    /// Notes a group commit of the journal.
    pub fn journal_commit(&self, took: Duration, records: usize) {
        self.journal_seconds.observe(took.as_secs_f64());
        self.journal_records.observe(records as f64);
    }

    /// Number of group commits so far.
    pub fn journal_commits(&self) -> u64 {
        self.journal_seconds.get_sample_count()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

fn per_worker(registry: &Registry, name: &str, help: &str) -> prometheus::Result<GaugeVec> {
    register(registry, GaugeVec::new(Opts::new(name, help), &["worker"])?)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: Vec<f64>,
) -> prometheus::Result<Histogram> {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
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
        let metrics = Metrics::new(MetricsConfig { per_worker: true, max_workers: 2 }).unwrap();
        for i in 0..5 {
            metrics.accepted(&format!("w{i}").parse().unwrap(), &status());
        }
        let page = metrics.render().unwrap();
        assert!(page.contains("fl_worker_loss{worker=\"w0\"} 0.5"), "{page}");
        assert!(page.contains("fl_worker_num_samples{worker=\"w1\"} 600"));
        assert!(!page.contains("w2"));
        assert!(page.contains("fl_updates_total 5"));
    }

    #[test]
    fn every_series_has_help() {
        let page =
            Metrics::new(MetricsConfig { per_worker: false, max_workers: 0 }).unwrap().render().unwrap();
        for line in page.lines().filter(|line| line.starts_with("# TYPE")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(page.contains(&format!("# HELP {name} ")), "{name}");
        }
    }
}
