//! The endpoints of workers and observers.

pub(super) mod evaluation;
pub(super) mod events;
pub(super) mod global;
pub(super) mod openapi;
mod range;
pub(super) mod status;
pub(crate) mod task;
pub(super) mod update;
