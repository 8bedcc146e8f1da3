//! Why a worker ends, what to do about it, and its exit code.

use crate::{ballast::BallastError, client::CallError, config::SettingError, local::SetupError};
use fl_app::{Exit, exit};
use fl_datasets::DatasetError;
use fl_model::ModelError;
use fl_protocol::ErrorCode;
use std::{error::Error, io};
use thiserror::Error;
use tokio::task::JoinError;

/// Why a worker ends other than by a shutdown or the end of the training.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A setting that turned out bad.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The data are missing or damaged.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The model does not fit here.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Training failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The system refuses the ballast.
    #[error(transparent)]
    Ballast(#[from] BallastError),
    /// `GIVE_UP_S` is over.
    #[error("no master at {addr} for {seconds:.0} s ({last}): check MASTER_ADDR and that the master runs")]
    GaveUp {
        /// The address.
        addr: String,
        /// How long it was tried.
        seconds: f64,
        /// The last failure.
        last: CallError,
    },
    /// The master refuses this worker for good.
    #[error("{error}: {}", advice(error))]
    Refused {
        /// Its answer.
        error: CallError,
    },
    /// The port of `METRICS_ADDR` cannot be opened.
    #[error("METRICS_ADDR={addr}: the port cannot be opened: {error}")]
    Metrics {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The network's thread cannot be started.
    #[error("the runtime does not start: {0}")]
    Runtime(io::Error),
    /// A fault of this program.
    #[error("the training thread failed: {0}")]
    Internal(#[from] JoinError),
}

fn advice(error: &CallError) -> &'static str {
    match error {
        CallError::Refused { code: Some(ErrorCode::Unauthorized), .. } => {
            "set FL_TOKEN to the master's token"
        }
        CallError::Refused { code: Some(ErrorCode::NormTooLarge), .. } => {
            "lower LR, or raise the master's MAX_UPDATE_NORM"
        }
        _ => "master and worker are probably of different versions",
    }
}

impl WorkerError {
    /// The exit code of a program that ends with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Setting(_) => Exit::Usage,
            Self::Dataset(error) => exit::of(error, &[]),
            Self::Setup(_) => Exit::NoInput,
            Self::GaveUp { .. } | Self::Refused { .. } => Exit::Unreachable,
            Self::Model(error) => exit::of(error, &[]),
            Self::Runtime(_) | Self::Internal(_) => Exit::Internal,
            Self::Ballast(_) => Exit::Memory,
            Self::Metrics { .. } => Exit::Io,
        }
    }
}

/// The exit code of an error of this crate, `None` for any other.
pub fn exit_of(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(error) = cause.downcast_ref::<WorkerError>() {
        Some(error.exit())
    } else if cause.is::<SetupError>() {
        Some(Exit::NoInput)
    } else if cause.is::<BallastError>() {
        Some(Exit::Memory)
    } else if cause.is::<CallError>() {
        Some(Exit::Unreachable)
    } else {
        None
    }
}
