//! Why a worker ends, what to do about it, and its exit code.

use crate::{
    ballast::BallastError,
    client::{CallError, ClientError},
};
use fl_app::{Exit, SettingError, exit};
use fl_datasets::DatasetError;
use fl_model::ModelError;
use fl_protocol::ErrorCode;
use std::{error::Error, io, path::PathBuf};
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
    #[error("the master's model is for {model}, {dataset} has {data}: set DATASET as on the master")]
    Data {
        /// Name of the local data set.
        dataset: String,
        /// What the model takes and learns.
        model: String,
        /// What the data are.
        data: String,
    },
    /// The model's normalisation does not fit the data.
    #[error("the master's model cannot be fed with these data: {0}")]
    Normalization(String),
    /// Labels or columns of the local data are not the model's.
    #[error(transparent)]
    Names(DatasetError),
    /// The user's learner has other tensors than the master's model.
    #[error(
        "the master's model has {model}, this worker's module {own}: start the master with a file that this module wrote"
    )]
    OtherTensors {
        /// The first tensor that differs, as the master has it.
        model: String,
        /// As the worker has it.
        own: String,
    },
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
    /// The master refuses this worker permanently.
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
    /// The network's thread cannot be started.
    #[error("the runtime does not start: {0}")]
    Runtime(io::Error),
    /// An internal error.
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
    pub fn exit(&self) -> Exit {
        match self {
            Self::Setting(_) => Exit::Usage,
            Self::Client(error) => client_exit(error),
            Self::Dataset(error) => exit::of(error, &[]),
            Self::Setup(_) => Exit::NoInput,
            Self::GaveUp { .. } | Self::Refused { .. } | Self::BadTask { .. } => Exit::Unreachable,
            Self::Model(error) => exit::of(error, &[]),
            Self::Runtime(_) | Self::Internal(_) => Exit::Internal,
            Self::Ballast(_) => Exit::Memory,
            Self::Metrics { .. } | Self::StateDir { .. } => Exit::Io,
        }
    }
}

fn client_exit(error: &ClientError) -> Exit {
    match error {
        ClientError::Setting(_) => Exit::Usage,
        ClientError::Certificate(_) => Exit::NoInput,
    }
}

/// The exit code of an error of this crate, `None` for any other.
pub fn exit_of(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(error) = cause.downcast_ref::<WorkerError>() {
        Some(error.exit())
    } else if let Some(error) = cause.downcast_ref::<ClientError>() {
        Some(client_exit(error))
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
