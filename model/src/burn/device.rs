//! The devices of Burn's backends.

use crate::{backend::Backend, error::ModelError};
use burn::tensor::Device;

/// The device of one of Burn's backends, without gradients.
///
/// # Errors
/// A backend that this binary does not contain, that does not start, or that is not Burn's.
pub(crate) fn device(backend: Backend) -> Result<Device, ModelError> {
    match backend {
        Backend::Flex => Ok(Device::flex()),
        Backend::NdArray => ndarray(),
        Backend::Wgpu => wgpu(),
        Backend::Auto | Backend::Fused => {
            Err(ModelError::BackendFailed(format!("{backend} is not one of Burn's backends")))
        }
    }
}

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "kept for comparison with the predecessor of flex until Burn drops it")]
fn ndarray() -> Result<Device, ModelError> {
    Ok(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
fn ndarray() -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt("ndarray"))
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device, ModelError> {
    // Starting the device panics deep inside wgpu where there is no adapter at all.
    std::panic::catch_unwind(|| Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)).map_err(|_| {
        ModelError::BackendFailed(
            "no graphics adapter was found: install a driver (Debian: mesa-vulkan-drivers) or use auto"
                .into(),
        )
    })
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt("wgpu"))
}
