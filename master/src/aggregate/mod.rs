//! From client updates to the next model, with no I/O and no knowledge of HTTP.

pub mod exact_sum;
pub mod strategy;

pub use exact_sum::{ExactSum, SumOverflow};
pub use strategy::{ServerState, Strategy, UnknownStrategy};
