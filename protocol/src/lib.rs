//! The HTTP contract between the master and its workers.
//!
//! This crate knows neither Burn nor an async runtime: a client of any kind can use it.
//!
//! - [`types`]: the JSON bodies of every endpoint,
//! - [`error`]: the closed set of error codes and the body that carries them,
//! - [`layout`]: names, shapes and flat order of a model's tensors,
//! - [`metrics`]: what clients report of a model, and its spread over clients,
//! - [`samples`]: what a sample is and what is learnt from it,
//! - [`update`]: the update container that a worker posts,
//! - [`limits`]: bounds on all input from outside.

pub mod error;
pub mod layout;
pub mod limits;
pub mod metrics;
pub mod samples;
mod schedule;
pub mod types;
pub mod update;
pub mod worker_id;

pub use error::{ErrorBody, ErrorCode};
pub use layout::{ModelLayout, TensorLayout};
pub use metrics::{ClientEvaluation, LastClientEvaluation, Metrics, Spread};
pub use samples::{Input, Inputs, Targets, Task};
pub use schedule::LrSchedule;
pub use types::{
    DataNames, EvaluationAck, EvaluationJson, GlobalJson, HistoryRecord, LastEvaluation, MissingWorker,
    Normalization, StatusBody, TaskAction, TaskBody, UpdateAck, UpdateJson, Waiting, WorkerStatus,
};
pub use update::{Header, Kind, Update, UpdateError, UpdateMeta};
pub use worker_id::WorkerId;

/// Headers that the API adds to HTTP's own.
pub mod headers {
    /// The round of the model in the body of `GET /global`.
    pub const FL_ROUND: &str = "fl-round";
}
