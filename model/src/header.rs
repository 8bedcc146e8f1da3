//! What every reader of a safetensors file checks first.

use crate::error::ModelError;
use fl_protocol::limits::MAX_CONTAINER_HEADER_BYTES;

/// Refuses a header that is larger than a model's can be, before anything is allocated for it.
pub(crate) fn check_header_size(bytes: &[u8]) -> Result<(), ModelError> {
    match bytes.first_chunk::<8>().map(|size| u64::from_le_bytes(*size)) {
        None => Err(ModelError::BadFile("it is shorter than a header".into())),
        Some(size) if size > MAX_CONTAINER_HEADER_BYTES as u64 => Err(ModelError::BadFile(format!(
            "its header declares {size} bytes, at most {MAX_CONTAINER_HEADER_BYTES} are allowed"
        ))),
        Some(_) => Ok(()),
    }
}
