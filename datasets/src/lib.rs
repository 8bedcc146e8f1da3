//! Data sets, and the ways to divide them among the workers of a federation.
//!
//! [`load`] reads a [`DatasetSpec`] into a [`Dataset`]: two [`Split`]s, training and test data, whose
//! division is fixed. Pixels and characters stay bytes in memory; [`Split::gather`] fills [`Samples`] with a batch
//! for the network. A [`Partition`] selects the training samples of each worker.
//!
//! Files come from outside: sizes are checked against [`limits`] and against the file's length before
//! anything is allocated, and every failure is a [`DatasetError`] that says what to do.
//!
//! This crate knows neither Burn nor an async runtime.

mod cifar;
mod csv;
mod digits;
mod error;
mod idx;
mod images;
pub mod limits;
mod names;
mod partition;
mod samples;
mod seed;
mod spec;
mod split;
mod strata;
mod tensors;
mod text;

pub use error::DatasetError;
pub use partition::Partition;
pub use samples::Samples;
pub use seed::{Purpose, seeded_rng};
pub use spec::{DatasetSpec, ImageSize, Part, Target, TargetKind};
pub use split::{Features, Split};
pub use strata::Strata;
pub use text::{DEFAULT_SEQUENCE_LENGTH, Tokens};

pub use fl_protocol::{DataNames, Input, Normalization, Task};
use std::path::Path;

/// A data set in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The [`DatasetSpec`] it was loaded from, as text.
    pub name: String,
    /// Names of its classes (the columns to predict, the characters of a text) and of its input columns.
    pub names: DataNames,
    /// What one sample is: `[channels, height, width]` for images, `[features]` for tables, `[length]` for texts.
    pub input: Input,
    /// What is learnt; every label or token is below [`Dataset::num_classes`]. Names of classes are in `names`.
    pub task: Task,
    /// How raw values become network inputs, unless the global model brings its own.
    pub normalization: Normalization,
    /// Training samples; empty if not requested.
    pub train: Split,
    /// Test samples; empty if not requested.
    pub test: Split,
}

/// Loads `part` of a data set.
///
/// `data_dir` is where to look for the files of `fashion-mnist`, `mnist` and `cifar10` before the
/// system's own places; relative paths, as in `csv:FILE`, are tried below it too.
///
/// # Errors
/// If files are missing, damaged, or beyond [`limits`].
pub fn load(spec: &DatasetSpec, data_dir: Option<&Path>, part: Part) -> Result<Dataset, DatasetError> {
    let name = spec.to_string();
    match spec {
        DatasetSpec::Digits => digits::load(part),
        DatasetSpec::Shakespeare => text::load_shakespeare(part),
        DatasetSpec::FashionMnist => idx::load_known(&idx::FASHION_MNIST, data_dir, part),
        DatasetSpec::Mnist => idx::load_known(&idx::MNIST, data_dir, part),
        DatasetSpec::Cifar10 => cifar::load(data_dir, part),
        DatasetSpec::Idx(dir) => idx::load_dir(&name, &spec::resolve(dir, data_dir), part),
        DatasetSpec::Images { dir, size } => images::load(&name, &spec::resolve(dir, data_dir), *size, part),
        DatasetSpec::Csv { file, target } => {
            csv::load(&name, &spec::resolve(file, data_dir), target.as_ref(), part)
        }
        DatasetSpec::Safetensors(file) => tensors::load(&name, &spec::resolve(file, data_dir), part),
        DatasetSpec::Text(file) => text::load_text(&name, &spec::resolve(file, data_dir), part),
        DatasetSpec::Bytes(file) => text::load_bytes(&name, &spec::resolve(file, data_dir), part),
    }
}

impl Dataset {
    /// Dimensions of one sample.
    pub fn input_shape(&self) -> &[usize] {
        self.input.shape()
    }

    /// Number of classes, of tokens in a text's vocabulary, or of numbers to predict.
    pub fn num_classes(&self) -> usize {
        self.task.num_classes(&self.input)
    }
}
