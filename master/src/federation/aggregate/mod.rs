//! The updates of the open round, as their strategy needs them: their exact sum, or each by itself.

pub mod collector;
mod packed;
pub mod robust;
mod sum;

pub use collector::Collector;
pub use sum::{ExactSum, SumOverflow};
