//! What can go wrong with a model, each as a sentence that says what to do.

use thiserror::Error;

/// Why a model could not be built, read, written or trained.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum ModelError {
    /// The name is no preset and no path of a JSON file.
    #[error(
        "unknown model `{0}`: use softmax, mlp, cnn, mcmahan_cnn, or the path of a layer list ending in .json"
    )]
    UnknownModel(String),
    /// The layer list does not make a network.
    #[error("the model does not fit together: {0}")]
    BadSpec(String),
    /// A layer list that could not be read from disk or is not JSON.
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
    #[error("unknown backend `{0}`: use flex, ndarray or wgpu")]
    UnknownBackend(String),
    /// A backend that this binary was built without.
    #[error("this binary was built without the {0} backend: rebuild it with `--features {0}`, or use flex")]
    BackendNotBuilt(&'static str),
    /// A backend that could not be started.
    #[error("the backend does not start: {0}")]
    BackendFailed(String),
    /// Not a model file of this system, or a damaged one.
    #[error("this is not a usable model file: {0}")]
    BadFile(String),
    /// A batch that the network cannot take.
    #[error("the batch does not fit the model: {0}")]
    BadBatch(String),
    /// The loss or a parameter is no longer finite.
    #[error("training diverged (the loss is not finite): lower the learning rate or clip the gradient")]
    Diverged,
}
