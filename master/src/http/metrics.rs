//! What the HTTP side counts.

use crate::metrics::Series;
use fl_protocol::ErrorCode;
use prometheus::{IntCounter, IntCounterVec, IntGauge};

/// Series of the HTTP side.
#[derive(Debug)]
pub struct HttpMetrics {
    /// Open connections.
    pub connections: IntGauge,
    bytes_down: IntCounter,
    rejected: IntCounterVec,
}

impl HttpMetrics {
    /// Registers the series.
    ///
    /// # Errors
    /// If one of the names is taken.
    pub fn new(series: &Series) -> prometheus::Result<Self> {
        let rejected =
            series.counters("fl_rejected_updates_total", "Refused updates, by error code.", "reason")?;
        for code in ErrorCode::ALL {
            rejected.with_label_values(&[code.as_str()]);
        }
        Ok(Self {
            connections: series.gauge("fl_connections", "Open connections.")?,
            bytes_down: series.counter("fl_sent_model_bytes_total", "Bytes of models sent to workers.")?,
            rejected,
        })
    }

    /// Counts a refused update.
    pub fn refused(&self, code: ErrorCode) {
        self.rejected.with_label_values(&[code.as_str()]).inc();
    }

    /// Counts a model that was sent.
    pub fn sent_model(&self, bytes: usize) {
        self.bytes_down.inc_by(bytes as u64);
    }
}
