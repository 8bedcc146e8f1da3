//! Why a worker ends, what to do about it, and its exit code.

use crate::{
    ballast::BallastError,
    client::{CallError, ClientError},
};
use fl_datasets::DatasetError;
use fl_model::ModelError;
use fl_protocol::{ErrorCode, SettingError};
use std::{io, path::PathBuf};
use thiserror::Error;
use tokio::task::JoinError;

/// Why a worker cannot train the master's model.
#[derive(Debug, Error)]
pub enum SetupError {
    /// The model is larger than this node takes.
    #[error(
        "the master's model has {found} parameters, MODEL_DIM allows {allowed}: raise MODEL_DIM, or lower the master's"
    )]
    ModelTooLarge {
        /// Parameters of the model.
        found: usize,
        /// The limit.
        allowed: usize,
    },
    /// The local data are not what the model takes.
    #[error(
        "the master's model takes inputs of shape {model:?} and {model_classes} classes, {dataset} has {data:?} and {data_classes}: set DATASET as on the master"
    )]
    Data {
        /// Name of the local data set.
        dataset: String,
        /// The model's input shape.
        model: Vec<usize>,
        /// The data's input shape.
        data: Vec<usize>,
        /// The model's classes.
        model_classes: usize,
        /// The data's classes.
        data_classes: usize,
    },
    /// The model's normalisation does not fit the data.
    #[error("the master's model cannot be fed with these data: {0}")]
    Normalization(String),
    /// Labels or columns of the local data are not the model's.
    #[error(transparent)]
    Names(DatasetError),
    /// This worker's part holds no sample.
    #[error("this worker's part of the data is empty: lower NUM_PARTITIONS or take a larger data set")]
    NoData,
    /// The network cannot be built here.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Why a worker ends other than by a shutdown or the end of the training.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A setting that turned out bad.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A certificate or an address that cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The data are missing or damaged.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The model does not fit here.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The master's model cannot be read, or training failed.
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
    /// The task names what this worker does not know.
    #[error(
        "the master's task cannot be done: {reason}: master and worker are probably of different versions"
    )]
    BadTask {
        /// What it is.
        reason: String,
    },
    /// The port of `METRICS_ADDR` cannot be opened.
    #[error("METRICS_ADDR={addr}: the port cannot be opened: {error}")]
    Metrics {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The folder of `WORKER_STATE_DIR` cannot be used.
    #[error("WORKER_STATE_DIR={}: nothing can be written there: {error}", dir.display())]
    StateDir {
        /// The folder.
        dir: PathBuf,
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
        _ => "master and worker are probably of different versions",
    }
}

impl WorkerError {
    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting(_) | Self::Client(ClientError::Setting(_)) => 64,
            Self::Dataset(error) => error.exit_code(),
            Self::Setup(_) | Self::Client(ClientError::Certificate(_)) => 66,
            Self::GaveUp { .. } | Self::Refused { .. } | Self::BadTask { .. } => 69,
            Self::Model(_) | Self::Internal(_) => 70,
            Self::Ballast(_) => 71,
            Self::Metrics { .. } | Self::StateDir { .. } => 74,
        }
    }
}
