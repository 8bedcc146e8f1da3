//! A running master: the task that owns the round, the way of an update, threads, recovery.

pub(crate) mod actor;
mod clock;
pub(crate) mod closing;
#[cfg(test)]
mod crash_tests;
mod evaluate;
pub(crate) mod events;
pub(crate) mod handle;
pub(crate) mod host;
pub(crate) mod ingest;
pub(crate) mod job;
pub(crate) mod pool;
pub(crate) mod recover;
mod view;

/// Names that handlers use.
pub(crate) mod state {
    pub(crate) use super::{host::Peer, job::Job as Shared};
}

pub use events::MasterEvent;
