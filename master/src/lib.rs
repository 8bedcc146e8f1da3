//! The federated-learning master: rounds, exact aggregation, durable state, HTTP.
//!
//! - [`Args`] are the raw settings, [`Config`] the checked ones.
//! - [`Master::start`] loads the state, opens the port and runs until [`Master::shutdown`].
//! - [`Core`] is the same federation without a server, for a simulator.
//! - [`round`] and [`aggregate`] are the logic without I/O, usable without a server.

mod actor;
pub mod aggregate;
pub mod assets;
mod cli;
mod clock;
mod close;
pub mod config;
mod core;
mod evaluate;
mod events;
mod exit;
mod global;
pub mod http;
mod ingest;
mod master;
mod metrics;
mod pool;
mod recover;
pub mod round;
mod state;
pub mod store;
pub mod update;

pub use crate::core::Core;
pub use cli::Args;
pub use config::{Config, SettingError};
pub use events::MasterEvent;
pub use exit::exit_of;
pub use global::Compact;
pub use master::{Master, check};
