//! Logs and metrics.

use clap::Args;
use fl_app::{
    LogFormat, SettingError,
    setting::{filled, parse},
};
use std::net::SocketAddr;

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Observation")]
pub struct ObserveArgs {
    /// Address and port of /metrics, /healthz and /readyz [default: none]
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR:PORT")]
    pub metrics_addr: Option<String>,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, as in `info` or `fl_worker=debug` (a line for every round)
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    pub rust_log: String,
}

/// Checked. The log is set up before the other settings are looked at.
#[derive(Debug, Clone)]
pub struct ObserveSettings {
    /// `METRICS_ADDR`.
    pub metrics_addr: Option<SocketAddr>,
}

impl ObserveArgs {
    pub(super) fn check(self) -> Result<ObserveSettings, SettingError> {
        let metrics_addr = filled(self.metrics_addr).map(|addr| parse("METRICS_ADDR", &addr)).transpose()?;
        Ok(ObserveSettings { metrics_addr })
    }
}
