//! Why a worker ends, what to do about it, and its exit code.

use crate::{ballast::BallastError, client::CallError, config::SettingError, local::SetupError};
use fl_datasets::DatasetError;
use fl_model::ModelError;
use fl_protocol::ErrorCode;
use std::io;
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
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting(_) => 64,
            Self::Dataset(error) => error.exit_code(),
            Self::Setup(_) => 66,
            Self::GaveUp { .. } | Self::Refused { .. } => 69,
            Self::Model(_) | Self::Internal(_) => 70,
            Self::Ballast(_) => 71,
            Self::Metrics { .. } => 74,
        }
    }
}
