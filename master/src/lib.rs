//! The federated-learning master: rounds, exact aggregation, durable state, HTTP.
//!
//! - [`Args`] are the raw settings, [`Config`] the checked ones.
//! - [`Master::start`] loads the state, opens the port and runs until [`Master::shutdown`].
//! - [`Core`] is the same federation without a server, for a simulator.
//! - [`federation`] is the logic without I/O, usable without a server.

pub mod assets;
mod exit;
pub mod federation;
pub mod http;
mod master;
mod memory;
mod metrics;
mod service;
pub mod settings;
pub mod setup;
mod source;
pub mod store;

pub use exit::exit_of;
pub use federation::{Compact, Core, Global, Snapshot, aggregate, evaluation, intake, round};
pub use master::{Master, check, rollback_to};
pub use service::MasterEvent;
pub use settings::{Args, Config, SettingError};
pub use source::ModelSource;
