//! The updates of the open round, as their strategy needs them: their exact sum, or each by itself.

mod collector;
mod fixed_point;
mod packed;
pub mod robust;
mod sum;

pub use collector::{Collected, Collector, Pieces, Vector};
pub use sum::{ExactSum, SumOverflow};
