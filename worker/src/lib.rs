//! The federated-learning worker: pull, train, compress, push.
//!
//! - [`Args`] are the raw settings, [`Config`] the checked ones.
//! - [`LocalClient`] is a worker without a network: global model in, update container out.
//! - [`Engine`] and [`ClientState`] are its two halves: what trains, and what one client carries on.
//! - [`run`] is the loop around it over HTTP.
//!
//! `fl run` starts several of them in one process over one shared data set.

mod backoff;
mod ballast;
mod batches;
mod cli;
mod client;
mod config;
mod error;
mod local;
mod metrics;
mod prefetch;
mod run;

pub use backoff::Backoff;
pub use ballast::Ballast;
pub use cli::Args;
pub use client::{CallError, MasterClient, ServedModel};
pub use config::{Config, Down, ErrorFeedback, Own, Plan, SettingError, Work};
pub use error::{WorkerError, exit_of};
pub use local::{
    Carried, ClientState, Engine, LastUpdate, LocalClient, LocalUpdate, Sent, SetupError, StartingPoint,
};
pub use run::{RoundReport, Summary, run};
