//! Why a data set could not be loaded.

use std::{
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// A data set that could not be loaded. Every message is one sentence that says what to do.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// A file was not found.
    #[error("the data set {dataset} was not found ({looked_in}): {hint}")]
    Missing {
        /// Name of the data set.
        dataset: String,
        /// The places that were searched.
        looked_in: String,
        /// How to get it.
        hint: String,
    },
    /// A file whose content contradicts its format.
    #[error("{} is damaged: {what}; replace the file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A well-formed file that cannot be trained on.
    #[error("{} cannot be used: {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to fix it.
        what: String,
    },
    /// A file beyond the limits.
    #[error("{} is too large: {what}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Which limit, and by how much.
        what: String,
    },
    /// An image that no decoder takes.
    #[error("the image {} cannot be decoded: {what}; save it again as PNG or JPEG, or remove it", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Images of several sizes.
    #[error(
        "{} has {found} pixels, {} has {expected}: give all images one size, or let them be resized, as in \
         DATASET=images:{}@{expected}", path.display(), first.display(), dir.display()
    )]
    ImageSize {
        /// The first image that differs.
        path: PathBuf,
        /// Its width and height.
        found: String,
        /// The image that it is compared with.
        first: PathBuf,
        /// Its width and height.
        expected: String,
        /// The folder of all images.
        dir: PathBuf,
    },
    /// A text without a single sequence in one of its parts.
    #[error(
        "{dataset} holds {whole} {unit}, at least {needed} are needed for sequences of {length}: take a longer text, \
         or a network with shorter sequences"
    )]
    TooShort {
        /// Name of the data set.
        dataset: String,
        /// What it is counted in.
        unit: &'static str,
        /// Length of the text.
        whole: usize,
        /// Length at which every part that was asked for holds a sequence.
        needed: usize,
        /// Length of a sequence.
        length: usize,
    },
    /// A length that no sequence can have.
    #[error(
        "sequences of {length} tokens cannot be cut: use a length from 1 to {}",
        crate::limits::MAX_SAMPLE_FEATURES
    )]
    SequenceLength {
        /// The length.
        length: usize,
    },
    /// Data that cannot be cut into sequences.
    #[error("{dataset} is no text: set DATASET to text:FILE or bytes:FILE for this model")]
    NoText {
        /// Name of the data set.
        dataset: String,
    },
    /// Names of classes for data without classes.
    #[error("{dataset} has no classes to name, its task is {task}: leave LABELS empty")]
    NoClasses {
        /// Name of the data set.
        dataset: String,
        /// The task, as a spec file names it.
        task: &'static str,
    },
    /// The system failed to read a file.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data have labels that the model lacks.
    #[error(
        "{dataset} has the labels {unknown}, the model has {known}: leave those rows out, or give the master \
         all labels, as in LABELS={all}"
    )]
    UnknownLabels {
        /// Name of the data set.
        dataset: String,
        /// Its labels that the model lacks.
        unknown: String,
        /// The model's labels.
        known: String,
        /// The union of both, separated by commas: a value for `LABELS`.
        all: String,
    },
    /// The columns' names or order differ from the model's.
    #[error(
        "column {column} of {dataset} is `{found}`, the model's is `{expected}` (the label column not counted): \
         use the same columns in the same order as the master's table"
    )]
    Columns {
        /// Name of the data set.
        dataset: String,
        /// The first column that differs, from 1.
        column: usize,
        /// Its name.
        found: String,
        /// The model's name.
        expected: String,
    },
    /// The text has characters that the model lacks.
    #[error(
        "{dataset} has the characters {unknown}, which the model does not know: leave them out, put a line with them \
         into the master's text before the training begins, or use bytes:FILE everywhere"
    )]
    UnknownCharacters {
        /// Name of the data set.
        dataset: String,
        /// Its characters that the model lacks.
        unknown: String,
    },
    /// One of model and data is of characters, the other of bytes.
    #[error(
        "{dataset} is read as {data}, the model is of {model}: use text:FILE everywhere, or bytes:FILE everywhere"
    )]
    Alphabet {
        /// Name of the data set.
        dataset: String,
        /// Its tokens.
        data: &'static str,
        /// The model's tokens.
        model: &'static str,
    },
    /// The targets' names or order differ from the model's.
    #[error(
        "{dataset} has the targets {found}, the model has {expected}: set TARGET={expected}, as on the master"
    )]
    Outputs {
        /// Name of the data set.
        dataset: String,
        /// Its target columns.
        found: String,
        /// The model's.
        expected: String,
    },
    /// A normalisation that does not fit the samples.
    #[error(
        "the normalisation has {mean} means and {std} deviations, which does not fit samples of {features} values"
    )]
    Normalization {
        /// Number of means.
        mean: usize,
        /// Number of standard deviations.
        std: usize,
        /// Values of a sample.
        features: usize,
    },
}

impl DatasetError {
    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn unusable(path: &Path, what: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn image(path: &Path, what: impl Into<String>) -> Self {
        Self::Image { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn too_large(path: &Path, what: impl Into<String>) -> Self {
        Self::TooLarge { path: path.to_owned(), what: what.into() }
    }

    /// Maps an error of reading: truncated or corrupt content is `Damaged`, anything else `Io`.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::damaged(path, "it ends too early"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Self::damaged(path, format!("its compressed content is corrupt ({source})"))
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}
