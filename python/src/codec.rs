//! One tensor to bytes and back.

use crate::{plan::Plan, value_error};
use fl_quant::{Encoder, Spec, Stream, encode_update};
use pyo3::{
    prelude::*,
    types::{PyByteArray, PyBytes},
};
use std::cell::RefCell;

thread_local! {
    /// Its buffers are kept from call to call.
    static ENCODER: RefCell<Encoder> = RefCell::default();
}

/// Position of the number of elements in a stream (`docs/format.md`).
const COUNT_AT: usize = 8;

/// The little-endian f32 of `bytes`.
///
/// # Errors
/// If they are not a whole number of values.
pub(crate) fn floats(bytes: &[u8]) -> PyResult<impl ExactSizeIterator<Item = f32> + '_> {
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(value_error(format!("{} bytes are no whole number of f32", bytes.len())));
    }
    Ok(values.iter().map(|value| f32::from_le_bytes(*value)))
}

/// Compresses one tensor of `shape`, row-major, as `plan` says.
#[pyfunction]
pub(crate) fn compress<'py>(
    py: Python<'py>,
    values: &[u8],
    shape: Vec<usize>,
    plan: &Plan,
    seed: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let spec = Spec { seed, ..plan.spec };
    let stream = py.detach(|| {
        // `bytes` objects begin at a multiple of 8, so this borrows; the copy is for other platforms' byte order.
        let copied;
        let values = match bytemuck::try_cast_slice::<u8, f32>(values) {
            Ok(values) if cfg!(target_endian = "little") => values,
            _ => {
                copied = floats(values)?.collect::<Vec<f32>>();
                &copied
            }
        };
        let mut streams = Vec::new();
        ENCODER
            .with_borrow_mut(|encoder| encode_update(encoder, values, &[shape], &spec, &mut streams))
            .map_err(value_error)?;
        Ok::<_, PyErr>(streams.pop().unwrap_or_default())
    })?;
    Ok(PyBytes::new(py, &stream))
}

/// Restores a tensor of `len` values from a stream, as f32.
#[pyfunction]
pub(crate) fn decompress<'py>(
    py: Python<'py>,
    stream: &[u8],
    len: usize,
) -> PyResult<Bound<'py, PyByteArray>> {
    let values = py.detach(|| fl_quant::decompress(stream, len)).map_err(value_error)?;
    PyByteArray::new_with(py, 4 * values.len(), |bytes| {
        for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&values) {
            *bytes = value.to_le_bytes();
        }
        Ok(())
    })
}

/// The number of values that a valid stream holds.
#[pyfunction]
pub(crate) fn stream_len(stream: &[u8]) -> PyResult<usize> {
    let count = stream
        .get(COUNT_AT..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map(|count| u32::from_le_bytes(*count) as usize)
        .ok_or_else(|| value_error("truncated stream: it is shorter than its header"))?;
    Stream::parse(stream, count).map(|stream| stream.len()).map_err(value_error)
}
