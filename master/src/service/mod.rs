//! A running master: the task that owns the round, the way of an update, threads, recovery.

pub(crate) mod actor;
mod clock;
pub(crate) mod closing;
mod evaluate;
pub(crate) mod events;
pub(crate) mod ingest;
mod master;
pub(crate) mod pool;
mod recover;
pub(crate) mod state;

pub use events::MasterEvent;
pub use master::{Master, check};
