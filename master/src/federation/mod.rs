//! The rules of a federation: who is in a round, what an update adds, what the next model is. No tokio, no
//! HTTP, no files: the service, the simulator and the recovery after a crash all call it.

pub mod aggregate;
mod core;
pub mod evaluation;
pub mod intake;
pub mod model;
pub mod round;
pub mod settings;
pub mod step;
mod strategy;

pub use core::{Added, CloseError, ClosedOutcome, Core, Snapshot};
pub use model::{Compact, Global};
pub use settings::{AggregationSettings, NormAction, ServerOptions};
pub use strategy::{STRATEGIES, Strategy, UnknownStrategy};
