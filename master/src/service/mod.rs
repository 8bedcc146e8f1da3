//! A running master: the task that owns the round, the way of an update, threads, recovery.

pub(crate) mod actor;
mod clock;
pub(crate) mod closing;
#[cfg(test)]
mod crash_tests;
mod evaluate;
mod evaluations;
pub(crate) mod events;
pub(crate) mod handle;
pub(crate) mod host;
pub(crate) mod ingest;
pub(crate) mod job;
pub(crate) mod metrics;
pub(crate) mod pool;
pub(crate) mod recover;
mod reports;
mod view;

pub use events::MasterEvent;
pub(crate) use host::Peer;
