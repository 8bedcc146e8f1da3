//! Limits on the master's resources that clients may use.

use clap::Args;
use fl_app::{
    SettingError,
    setting::{number, whole},
};

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Open connections, 1 to 1000000
    #[arg(long, env, default_value_t = 768)]
    pub max_connections: usize,
    /// Open connections of one address, 1 to 1000000, 0 = no limit [default: half of MAX_CONNECTIONS]
    #[arg(long, env)]
    pub max_connections_per_ip: Option<usize>,
    /// Seconds that a connection may be idle or send a request's head, 0.1 to 3600
    #[arg(long, env, default_value_t = 60.0)]
    pub header_timeout_s: f64,
    /// Seconds that a body may take beyond its time at 16 kB/s, 0.1 to 3600
    #[arg(long, env, default_value_t = 15.0)]
    pub body_timeout_s: f64,
    /// Seconds that a client may take for a response beyond its time at 16 kB/s, 0.1 to 3600
    #[arg(long, env, default_value_t = 15.0)]
    pub write_timeout_s: f64,
    /// Memory of the bodies being received, in MB; more for models above 8 million parameters
    #[arg(long, env, default_value_t = 16)]
    pub max_inflight_mb: usize,
    /// Updates that wait for a decoding thread, 1 to 100000
    #[arg(long, env, default_value_t = 256)]
    pub max_queue: usize,
    /// Threads that check, decode and add updates, 1 to 256, 0 = one per core (at most 8)
    #[arg(long, env, default_value_t = 0, help_heading = "Aggregation")]
    pub decode_threads: usize,
    /// Refused updates per second and worker before it is answered 429, 0 = no limit
    #[arg(long, env, default_value_t = 20.0)]
    pub refused_per_s: f64,
    /// Seconds that a shutdown waits for what is in flight, 0 to 3600
    #[arg(long, env, default_value_t = 10.0)]
    pub drain_s: f64,
}

impl LimitArgs {
    pub(super) fn resolve(self) -> Limits {
        // Many workers may share one address behind NAT, and one address must not take every place.
        let per_ip = self.max_connections_per_ip.unwrap_or((self.max_connections / 2).max(1));
        Limits {
            max_connections: self.max_connections,
            max_connections_per_ip: (per_ip != 0).then_some(per_ip),
            header_timeout_s: self.header_timeout_s,
            body_timeout_s: self.body_timeout_s,
            write_timeout_s: self.write_timeout_s,
            max_inflight_mb: self.max_inflight_mb,
            max_queue: self.max_queue,
            decode_threads: self.decode_threads,
            refused_per_s: self.refused_per_s,
            drain_s: self.drain_s,
        }
    }
}

/// Bounds on what clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `MAX_CONNECTIONS`: open connections.
    pub max_connections: usize,
    /// `MAX_CONNECTIONS_PER_IP`: open connections of one address; `None` = no limit.
    pub max_connections_per_ip: Option<usize>,
    /// `HEADER_TIMEOUT_S`: seconds for a request's head, idle time included.
    pub header_timeout_s: f64,
    /// `BODY_TIMEOUT_S`: seconds that a body may take beyond its time at 16 kB/s.
    pub body_timeout_s: f64,
    /// `WRITE_TIMEOUT_S`: seconds that a client may take for a response beyond its time at 16 kB/s.
    pub write_timeout_s: f64,
    /// `MAX_INFLIGHT_MB`: memory of the bodies being received, in MB. One body of the largest size always
    /// fits.
    pub max_inflight_mb: usize,
    /// `MAX_QUEUE`: updates that wait for a decoding thread.
    pub max_queue: usize,
    /// `DECODE_THREADS`: threads that check, decode and add; 0 = one per core, at most 8.
    pub decode_threads: usize,
    /// `REFUSED_PER_S`: refused updates per second and worker before 429; 0 = no limit.
    pub refused_per_s: f64,
    /// `DRAIN_S`: seconds that a shutdown waits for what is in flight.
    pub drain_s: f64,
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        whole("MAX_CONNECTIONS", self.max_connections as u64, 1, 1_000_000)?;
        if let Some(per_ip) = self.max_connections_per_ip {
            whole("MAX_CONNECTIONS_PER_IP", per_ip as u64, 1, 1_000_000)?;
        }
        number("HEADER_TIMEOUT_S", self.header_timeout_s, 0.1, 3600.0)?;
        number("BODY_TIMEOUT_S", self.body_timeout_s, 0.1, 3600.0)?;
        number("WRITE_TIMEOUT_S", self.write_timeout_s, 0.1, 3600.0)?;
        whole("MAX_INFLIGHT_MB", self.max_inflight_mb as u64, 1, 1 << 20)?;
        whole("MAX_QUEUE", self.max_queue as u64, 1, 100_000)?;
        whole("DECODE_THREADS", self.decode_threads as u64, 0, 256)?;
        number("REFUSED_PER_S", self.refused_per_s, 0.0, 1e6)?;
        number("DRAIN_S", self.drain_s, 0.0, 3600.0)
    }
}
