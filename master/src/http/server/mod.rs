//! Connections: accepting, TLS, bounds on what clients may take.

pub mod accept;
pub mod body;
mod buffers;
mod connections;
mod lane;
pub mod limiter;
mod linger;
mod stall;
pub mod tls;

#[cfg(test)]
pub(in crate::http) use connections::Connections;
pub(in crate::http) use connections::Place;

use crate::config::Limits;
use std::time::Duration;

/// `MAX_CONNECTIONS_PER_IP`: connections of one address; 0 = no limit.
fn max_connections_per_ip(limits: &Limits) -> usize {
    limits.max_connections.div_ceil(2)
}

/// `WRITE_TIMEOUT_S`: how long an answer may wait for its reader without progress.
fn write_timeout(_limits: &Limits) -> Duration {
    Duration::from_secs(15)
}
