//! Data sets, and the ways to divide them among the workers of a federation.
//!
//! [`load`] reads a [`DatasetSpec`] into a [`Dataset`]: two [`Split`]s, training and test data, whose
//! division is fixed. Pixels stay bytes in memory; [`Split::gather`] normalises a batch for the network.
//! A [`Partition`] selects the training samples of each worker.
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
pub mod limits;
mod names;
mod partition;
mod seed;
mod spec;
mod split;
mod tensors;

pub use error::DatasetError;
pub use partition::Partition;
pub use seed::{Purpose, seeded_rng};
pub use spec::{DatasetSpec, Part};
pub use split::{Features, Split};

pub use fl_protocol::{DataNames, Normalization};
use std::path::Path;

/// A data set in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The [`DatasetSpec`] it was loaded from, as text.
    pub name: String,
    /// Names of its classes and columns; only tables have them.
    pub names: DataNames,
    /// Dimensions of one sample: `[channels, height, width]` for images, `[features]` for tables.
    pub input_shape: Vec<usize>,
    /// Number of classes; every label is below it.
    pub num_classes: usize,
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
/// system's own places; relative paths in `idx:`, `csv:` and `safetensors:` are tried below it too.
///
/// # Errors
/// If files are missing, damaged, or beyond [`limits`].
pub fn load(spec: &DatasetSpec, data_dir: Option<&Path>, part: Part) -> Result<Dataset, DatasetError> {
    match spec {
        DatasetSpec::Digits => digits::load(part),
        DatasetSpec::FashionMnist => idx::load_known(&idx::FASHION_MNIST, data_dir, part),
        DatasetSpec::Mnist => idx::load_known(&idx::MNIST, data_dir, part),
        DatasetSpec::Idx(dir) => idx::load_dir(&spec.to_string(), &spec::resolve(dir, data_dir), part),
        DatasetSpec::Cifar10 => cifar::load(data_dir, part),
        DatasetSpec::Csv(file) => csv::load(&spec.to_string(), &spec::resolve(file, data_dir), part),
        DatasetSpec::Safetensors(file) => {
            tensors::load(&spec.to_string(), &spec::resolve(file, data_dir), part)
        }
    }
}
