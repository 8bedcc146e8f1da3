//! `fl_client._native`: what the Python package `fl_client` does not do in Python.
//!
//! - [`codec`]: one tensor to bytes and back,
//! - [`plan`]: how an update is encoded, from a client's own arguments and the master's task,
//! - [`updates`]: whole updates, error feedback, lazy upload.
//!
//! Values come in as `bytes` of little-endian f32 and go out as `bytes` or `bytearray`. Long work runs without the
//! interpreter's lock. Errors are `ValueError`s, which the package turns into its own.

mod codec;
mod plan;
mod updates;

use fl_protocol::{ErrorCode, WorkerId, limits};
use pyo3::{exceptions::PyValueError, prelude::*};

fn value_error(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The name of a worker as the master takes it.
#[pyfunction]
fn check_worker_id(name: &str) -> PyResult<()> {
    name.parse::<WorkerId>().map(|_| ()).map_err(value_error)
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_NUM_SAMPLES", limits::MAX_NUM_SAMPLES)?;
    module.add("MAX_PARAMETERS", limits::MAX_PARAMETERS)?;
    module.add("MAX_HEADER_BYTES", limits::MAX_CONTAINER_HEADER_BYTES)?;
    module.add("ERROR_CODES", ErrorCode::ALL.map(ErrorCode::as_str).to_vec())?;
    module.add("QUANTIZERS", fl_quant::Scheme::ALL.map(fl_quant::Scheme::name).to_vec())?;
    module.add_function(wrap_pyfunction!(check_worker_id, module)?)?;
    module.add_function(wrap_pyfunction!(codec::compress, module)?)?;
    module.add_function(wrap_pyfunction!(codec::decompress, module)?)?;
    module.add_function(wrap_pyfunction!(codec::stream_len, module)?)?;
    module.add_class::<plan::Plan>()?;
    module.add_class::<updates::UpdateEncoder>()?;
    Ok(())
}
