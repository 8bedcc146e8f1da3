//! Which of Burn's backends computes.

use crate::error::ModelError;
use burn::tensor::Device;
use std::{fmt, str::FromStr};

/// A backend of Burn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Portable CPU backend; common networks take this crate's own training step on it.
    #[default]
    Flex,
    /// The older CPU backend (cargo feature `ndarray`).
    NdArray,
    /// GPU through WebGPU (cargo feature `wgpu`).
    Wgpu,
}

impl FromStr for Backend {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        match name {
            "flex" => Ok(Self::Flex),
            "ndarray" => Ok(Self::NdArray),
            "wgpu" => Ok(Self::Wgpu),
            _ => Err(ModelError::UnknownBackend(name.to_owned())),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
        })
    }
}

impl Backend {
    /// Checks that this binary contains the backend.
    ///
    /// # Errors
    /// [`ModelError::BackendNotBuilt`] with how to get it.
    pub fn check(self) -> Result<(), ModelError> {
        self.device().map(drop)
    }

    /// Burn's device, without gradients.
    pub(crate) fn device(self) -> Result<Device, ModelError> {
        match self {
            Self::Flex => Ok(Device::flex()),
            Self::NdArray => ndarray_device(),
            Self::Wgpu => wgpu_device(),
        }
    }
}

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "kept for comparison with the predecessor of flex until Burn drops it")]
fn ndarray_device() -> Result<Device, ModelError> {
    Ok(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
fn ndarray_device() -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt("ndarray"))
}

#[cfg(feature = "wgpu")]
fn wgpu_device() -> Result<Device, ModelError> {
    // Starting the device panics deep inside wgpu where there is no adapter at all.
    std::panic::catch_unwind(|| Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)).map_err(|_| {
        ModelError::BackendFailed(
            "no graphics adapter was found: install a driver (Debian: mesa-vulkan-drivers) or use flex"
                .into(),
        )
    })
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_device() -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt("wgpu"))
}
