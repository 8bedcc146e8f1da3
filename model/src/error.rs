//! Errors of models, each a sentence that says what to do.

use thiserror::Error;

/// Why a model could not be built, read, written or trained.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum ModelError {
    /// A name that is no preset, nor looks like the path of a file.
    #[error("unknown model `{name}`: use {known}, or the path of a network in JSON (./{name}.json)")]
    UnknownModel {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The layer list does not make a network.
    #[error("the model does not fit together: {0}")]
    BadSpec(String),
    /// A layer list that is missing, cannot be read, is not JSON, or is for other data.
    #[error("cannot read the model file {path}: {reason}")]
    BadSpecFile {
        /// Where it should be.
        path: String,
        /// Why it was refused.
        reason: String,
    },
    /// The budget leaves no room for a single hidden unit.
    #[error(
        "MODEL_DIM={model_dim} is too small for an mlp on this data: one hidden unit takes {smallest} parameters"
    )]
    BudgetTooSmall {
        /// The budget asked for.
        model_dim: usize,
        /// The smallest possible model.
        smallest: usize,
    },
    /// The name of a backend that does not exist.
    #[error("unknown backend `{0}`: use auto, fused, flex, ndarray or wgpu")]
    UnknownBackend(String),
    /// A backend that this binary was built without.
    #[error("this binary was built without the {0} backend: rebuild it with `--features {0}`, or use auto")]
    BackendNotBuilt(&'static str),
    /// A backend that could not be started.
    #[error("the backend does not start: {0}")]
    BackendFailed(String),
    /// A network that the fused engine does not run.
    #[error("the fused engine does not run this network ({0}): use BACKEND=auto or flex")]
    NotFused(String),
    /// Not a model file of this system, or a damaged one.
    #[error("this is not a usable model file: {0}")]
    BadFile(String),
    /// A model of which only the tensors are known.
    #[error(
        "the model has tensors without a network, which only a worker of its own can train or evaluate (examples/own-module)"
    )]
    NoNetwork,
    /// A batch that the network cannot take.
    #[error("the batch does not fit the model: {0}")]
    BadBatch(String),
    /// The loss or a parameter is no longer finite.
    #[error("training diverged (the loss is not finite): lower the learning rate or clip the gradient")]
    Diverged,
}
