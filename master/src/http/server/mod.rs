//! Connections: accepting, TLS, bounds on what clients may take.

pub mod accept;
pub mod body;
mod buffers;
pub mod limiter;
pub mod tls;
