//! Networks, local training and evaluation, and parameters to and from safetensors.
//!
//! A [`ModelSpec`] says what a network is, a [`Learner`] trains and evaluates it. There are two: the
//! fused engine, this crate's own kernels for the CPU, and Burn, whose modules and autodiff define what a
//! spec computes and run it on any of Burn's backends. Tests compare the gradients of both. A
//! [`Backend`] names the choice.
//!
//! ```
//! use fl_model::{Backend, Batch, ModelSpec, OptimizerConfig, init_parameters};
//!
//! let spec = ModelSpec::classifier("mlp", &[1, 8, 8], 10, 100_000)?;
//! let mut learner = spec.learner(Backend::Auto, 1)?;
//! learner.load(&init_parameters(&spec, 42));
//! let (inputs, labels) = (vec![0.5f32; 2 * 64], vec![3u32, 7]);
//! let batch = Batch::new(&inputs, &labels);
//! let before = learner.step(batch, &OptimizerConfig::default())?;
//! let after = learner.step(batch, &OptimizerConfig::default())?;
//! assert!(after < before);
//! # Ok::<(), fl_model::ModelError>(())
//! ```

mod backend;
mod buffers;
#[cfg(feature = "flex")]
pub mod burn;
mod cost;
mod dropout;
mod error;
mod evaluation;
mod fused;
mod global;
mod header;
mod import;
mod learner;
mod network;
mod optimizer;
mod parallel;
mod params;
mod pattern;
pub mod spec;
mod tasks;

pub use backend::Backend;
pub use buffers::Buffers;
pub use cost::measure_gemm_gflops;
pub use error::ModelError;
pub use evaluation::{BatchEvaluation, Evaluation};
pub use global::{GlobalModel, ModelView};
pub use import::read_parameters;
pub use learner::{Batch, Learner, evaluate};
pub use network::Network;
pub use optimizer::{Method, OptimizerConfig};
pub use params::init_parameters;
pub use pattern::{Parts, PartsError, TensorPattern, complement};
pub use spec::{Layer, ModelSpec, PRESETS};

// The tests beside the code and those of `tests/` share their networks, data and comparisons.
#[cfg(test)]
extern crate self as fl_model;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
