//! Devices of the backends of Burn that a binary may lack.

use crate::error::ModelError;
use burn::tensor::Device;

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "kept for comparison with the predecessor of flex until Burn drops it")]
pub(crate) fn ndarray() -> Result<Device, ModelError> {
    Ok(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
pub(crate) fn ndarray() -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt("ndarray"))
}

#[cfg(feature = "wgpu")]
pub(crate) fn wgpu() -> Result<Device, ModelError> {
    // Starting the device panics deep inside wgpu where there is no adapter at all.
    std::panic::catch_unwind(|| Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)).map_err(|_| {
        ModelError::BackendFailed(
            "no graphics adapter was found: install a driver (Debian: mesa-vulkan-drivers) or use auto"
                .into(),
        )
    })
}

#[cfg(not(feature = "wgpu"))]
pub(crate) fn wgpu() -> Result<Device, ModelError> {
    Err(ModelError::BackendNotBuilt("wgpu"))
}
