//! Time as seconds since 1970 that never runs backwards within a process.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A clock that is set once.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    start_ts: f64,
}

impl Clock {
    /// Sets the clock by the system's.
    pub fn start() -> Self {
        let start_ts = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        Self { start: Instant::now(), start_ts }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> f64 {
        self.start_ts + self.uptime_s()
    }

    /// Seconds since the start.
    pub fn uptime_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
