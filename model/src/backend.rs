//! The backends that can compute a network.

#[cfg(feature = "flex")]
use crate::burn;
use crate::{error::ModelError, fused, learner::Learner, spec::ModelSpec};
use std::{fmt, str::FromStr};

/// A backend, by the name of the code that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// [`Backend::Fused`] where it has an operation for every layer, else [`Backend::Flex`].
    #[default]
    Auto,
    /// This crate's own kernels, on the CPU.
    Fused,
    /// Burn's CPU backend (cargo feature `flex`, on by default).
    Flex,
    /// Burn's older CPU backend (cargo feature `ndarray`).
    NdArray,
    /// A GPU through Burn and WebGPU (cargo feature `wgpu`).
    Wgpu,
}

impl Backend {
    /// All backends.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Fused, Self::Flex, Self::NdArray, Self::Wgpu];

    /// The name in settings; for Burn's backends also that of the cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fused => "fused",
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
        }
    }

    /// Checks that this binary contains the backend and that it starts.
    ///
    /// # Errors
    /// [`ModelError::BackendNotBuilt`] with how to get it; [`ModelError::BackendFailed`].
    pub fn check(self) -> Result<(), ModelError> {
        match self {
            Self::Auto | Self::Fused => Ok(()),
            burn => check_burn(burn),
        }
    }

    /// The backend that runs `spec`: never [`Backend::Auto`]. The choice depends on the spec alone, so
    /// that workers with any number of threads compute the same.
    pub fn for_spec(self, spec: &ModelSpec) -> Self {
        match self {
            Self::Auto if fused::runs(spec) => Self::Fused,
            Self::Auto => Self::Flex,
            named => named,
        }
    }
}

impl FromStr for Backend {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| ModelError::UnknownBackend(name.to_owned()))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ModelSpec {
    /// Builds the network on a backend. `threads` bounds the threads of the fused engine (0 counts as
    /// 1); the others decide for themselves.
    ///
    /// The parameters are zero until [`Learner::load`].
    ///
    /// # Errors
    /// A spec that does not fit together; a backend that this binary does not contain, that does not
    /// start, or that does not run this network.
    pub fn learner(&self, backend: Backend, threads: usize) -> Result<Box<dyn Learner>, ModelError> {
        self.validate()?;
        match backend.for_spec(self) {
            Backend::Fused => fused::learner(self, threads),
            burn => burn_learner(self, burn),
        }
    }
}

#[cfg(feature = "flex")]
fn device(backend: Backend) -> Result<burn::Device, ModelError> {
    match backend {
        Backend::Flex => Ok(burn::Device::flex()),
        Backend::NdArray => burn::ndarray(),
        Backend::Wgpu => burn::wgpu(),
        Backend::Auto | Backend::Fused => {
            Err(ModelError::BackendFailed(format!("{backend} is not one of Burn's backends")))
        }
    }
}

#[cfg(feature = "flex")]
fn check_burn(backend: Backend) -> Result<(), ModelError> {
    device(backend).map(drop)
}

#[cfg(feature = "flex")]
fn burn_learner(spec: &ModelSpec, backend: Backend) -> Result<Box<dyn Learner>, ModelError> {
    Ok(burn::learner(spec, device(backend)?))
}

#[cfg(not(feature = "flex"))]
fn check_burn(backend: Backend) -> Result<(), ModelError> {
    Err(ModelError::BackendNotBuilt(backend.name()))
}

#[cfg(not(feature = "flex"))]
fn burn_learner(_: &ModelSpec, backend: Backend) -> Result<Box<dyn Learner>, ModelError> {
    Err(ModelError::BackendNotBuilt(backend.name()))
}
