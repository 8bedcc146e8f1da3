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
