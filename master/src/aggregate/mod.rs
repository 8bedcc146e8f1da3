//! From client updates to the next model, with no I/O and no knowledge of HTTP.

mod codes;
pub mod collector;
pub mod exact_sum;
pub mod lazy;
pub mod robust;
pub mod server;
pub mod strategy;

pub use collector::Collector;
pub use exact_sum::{ExactSum, SumOverflow};
pub use lazy::{LastUpdate, LastUpdates};
pub use server::{ServerOptions, ServerState, Totals, next_parameters};
pub use strategy::{STRATEGIES, Strategy, UnknownStrategy};
