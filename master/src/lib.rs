//! The federated-learning master: rounds, exact aggregation, durable state, HTTP.
//!
//! - [`Args`] are the raw settings, [`Config`] the checked ones.
//! - [`Master::start`] loads the state, opens the port and runs until [`Master::shutdown`].
//! - [`Core`] is the same federation without a server, for a simulator.
//! - [`federation`] is the logic without I/O, usable without a server.

pub mod assets;
mod cli;
pub mod config;
pub mod federation;
pub mod http;
mod metrics;
mod service;
pub mod store;

pub use cli::{Args, LogFormat};
pub use config::{Config, SettingError};
pub use federation::{Compact, Core, aggregate, intake, round};
pub use service::{Master, MasterEvent, check};
