//! Networks, local training and evaluation, and parameters to and from safetensors.
//!
//! Burn is the framework: its modules and its autodiff define what a [`ModelSpec`] computes, and run
//! it on every [`Backend`]. On the CPU backend a network takes the fused step of `fast` instead,
//! which computes the same numbers (tests compare the gradients) with no copy between the flat vector
//! and the layers, and no allocation after the first step.
//!
//! ```
//! use fl_model::{Backend, ModelSpec, SgdConfig, Trainer, init_parameters};
//!
//! let spec = ModelSpec::preset("mlp", &[1, 8, 8], 10, 100_000)?;
//! let mut trainer = Trainer::new(&spec, Backend::Flex, 1)?;
//! trainer.set_parameters(&init_parameters(&spec, 42));
//! let (x, y) = (vec![0.5; 2 * 64], vec![3, 7]);
//! let before = trainer.train_step(&x, &y, &SgdConfig::default())?;
//! let after = trainer.train_step(&x, &y, &SgdConfig::default())?;
//! assert!(after < before);
//! # Ok::<(), fl_model::ModelError>(())
//! ```

mod backend;
mod cost;
mod dropout;
mod error;
mod fast;
mod global;
mod loss;
mod params;
mod reference;
mod sgd;
pub mod spec;
mod trainer;

pub use backend::Backend;
pub use cost::measure_gemm_gflops;
pub use error::ModelError;
pub use global::GlobalModel;
pub use params::init_parameters;
pub use sgd::SgdConfig;
pub use spec::{Layer, ModelSpec, PRESETS};
pub use trainer::{BatchEvaluation, Evaluation, Trainer, evaluate};
