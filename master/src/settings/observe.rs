//! What the master shows of itself.

use clap::{ArgAction, Args, builder::BoolishValueParser};
use fl_app::{LogFormat, SettingError, setting::whole};

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Observation")]
pub struct ObserveArgs {
    /// Metrics of single workers
    #[arg(long, env, default_value = "true", action = ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub metrics_per_worker: bool,
    /// Workers that have metrics of their own, 0 to 100000
    #[arg(long, env, default_value_t = 200)]
    pub metrics_max_workers: usize,
    /// How log lines look
    #[arg(long, env, default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, as in `info` or `fl_master=debug`
    #[arg(long, env, default_value = "info", value_name = "FILTER")]
    pub rust_log: String,
}

impl ObserveArgs {
    pub(super) fn resolve(self) -> MetricsConfig {
        MetricsConfig { per_worker: self.metrics_per_worker, max_workers: self.metrics_max_workers }
    }
}

/// What `/metrics` shows.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    /// `METRICS_PER_WORKER`: series per worker.
    pub per_worker: bool,
    /// `METRICS_MAX_WORKERS`: workers that have series of their own.
    pub max_workers: usize,
}

impl MetricsConfig {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        whole("METRICS_MAX_WORKERS", self.max_workers as u64, 0, 100_000)
    }
}
