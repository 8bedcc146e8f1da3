//! The update container: a safetensors file with one entry per model tensor.
//!
//! An entry is either the plain delta (F32, F16 or BF16, with the model's shape) or an fl-quant
//! stream (U8, one dimension). `__metadata__` carries its sender and its weight.
//!
//! [`Update::parse`] checks everything: names, shapes, finite values, streams. Its result can be added to
//! a sum without further checks.

mod header;
mod write;

pub use header::{Header, Kind, UpdateMeta, check_num_samples, declared_bytes, peek_meta};
pub use write::{Encoded, from_json, write, write_notice};

use crate::{
    layout::ModelLayout,
    limits::{MAX_DELTA_ABS, MAX_NUM_SAMPLES},
};
use fl_quant::{DecodeError, Piece, Stream};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorInfo};
use thiserror::Error;

/// Why a container was refused.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum UpdateError {
    /// Not a container, or a truncated one.
    #[error("the body is not an update container: {0}")]
    Malformed(String),
    /// The tensors are not the model's.
    #[error("{0}")]
    WrongTensors(String),
    /// NaN or infinity among the values or the metadata.
    #[error("{0} is not finite")]
    NonFinite(String),
    /// `num_samples` outside of its range.
    #[error("num_samples is {0}: it must be 1 to {MAX_NUM_SAMPLES}")]
    BadNumSamples(u64),
    /// A stream that cannot be decoded.
    #[error("tensor `{name}`: {error}")]
    BadStream {
        /// Name of the tensor.
        name: String,
        /// What is wrong with its stream.
        error: DecodeError,
    },
    /// A magnitude above [`MAX_DELTA_ABS`], which only a diverged training produces.
    #[error("tensor `{0}` holds a magnitude above {MAX_DELTA_ABS}")]
    TooLarge(String),
}

/// The delta of one tensor, still encoded.
#[derive(Debug, Clone)]
pub enum Payload<'a> {
    /// Little-endian f32.
    F32(&'a [u8]),
    /// Little-endian IEEE half precision.
    F16(&'a [u8]),
    /// Little-endian bfloat16.
    BF16(&'a [u8]),
    /// A checked fl-quant stream.
    Stream(Stream<'a>),
}

/// A container whose every byte has been checked against the model.
#[derive(Debug, Clone)]
pub struct Update<'a> {
    /// Its metadata.
    pub meta: UpdateMeta,
    /// The tensors, in the model's canonical order.
    pub payloads: Vec<Payload<'a>>,
    /// An upper bound of the magnitude of every decoded value; at most [`MAX_DELTA_ABS`].
    pub max_abs: f32,
    /// SCAFFOLD's change of the worker's control variate, tensor by tensor; empty if there is none.
    pub control: Vec<Payload<'a>>,
    /// The same bound for `control`.
    pub control_max_abs: f32,
    layout: &'a ModelLayout,
}

impl<'a> Update<'a> {
    /// Checks `body` against `layout`: [`Header::read`] and [`Header::update`] in one call.
    ///
    /// # Errors
    /// If header, names, shapes, values or streams are invalid or do not match the layout.
    pub fn parse(body: &'a [u8], layout: &'a ModelLayout) -> Result<Self, UpdateError> {
        Header::read(body)?.update(body, layout)
    }

    /// Decodes in flat order, a chunk at a time: `f(offset, values)`. Every value is finite and at
    /// most [`MAX_DELTA_ABS`] in magnitude.
    pub fn for_each_chunk(&self, mut f: impl FnMut(usize, &[f32])) {
        for (tensor, payload) in self.layout.tensors().iter().zip(&self.payloads) {
            decode(payload, tensor.offset, &mut f);
        }
    }

    /// The same for the change of the control variate; nothing if there is none.
    pub fn for_each_control_chunk(&self, mut f: impl FnMut(usize, &[f32])) {
        for (tensor, payload) in self.layout.tensors().iter().zip(&self.control) {
            decode(payload, tensor.offset, &mut f);
        }
    }

    /// Like [`Self::for_each_chunk`], but passes packed codes undecoded: `f(offset, piece)`.
    pub fn for_each_piece(&self, f: &mut dyn FnMut(usize, Piece<'_>)) {
        self.pieces(&self.payloads, f);
    }

    /// The pieces of the change of the control variate.
    pub fn for_each_control_piece(&self, f: &mut dyn FnMut(usize, Piece<'_>)) {
        self.pieces(&self.control, f);
    }

    fn pieces(&self, payloads: &[Payload<'_>], f: &mut dyn FnMut(usize, Piece<'_>)) {
        for (tensor, payload) in self.layout.tensors().iter().zip(payloads) {
            match payload {
                Payload::Stream(stream) => {
                    stream.for_each_piece(|offset, piece| f(tensor.offset + offset, piece));
                }
                plain => decode(plain, tensor.offset, |offset, values| f(offset, Piece::Values(values))),
            }
        }
    }

    /// Decodes into a flat vector of the model's length.
    pub fn to_flat(&self) -> Vec<f32> {
        let mut flat = vec![0.0; self.layout.parameters()];
        self.for_each_chunk(|offset, values| flat[offset..offset + values.len()].copy_from_slice(values));
        flat
    }
}

/// One payload per model tensor, and a bound of their magnitudes.
fn read_payloads<'a>(
    body: &'a [u8],
    header: &Header,
    layout: &ModelLayout,
    prefix: &str,
) -> Result<(Vec<Payload<'a>>, f32), UpdateError> {
    let mut payloads = Vec::with_capacity(layout.tensors().len());
    let mut max_abs = 0.0f32;
    for tensor in layout.tensors() {
        let name = format!("{prefix}{}", tensor.name);
        let (info, bytes) = header
            .tensor(body, &name)
            .ok_or_else(|| UpdateError::WrongTensors(format!("tensor `{name}` is missing")))?;
        let (payload, magnitude) = read_payload(bytes, info, &name, &tensor.shape)?;
        max_abs = max_abs.max(magnitude);
        payloads.push(payload);
    }
    Ok((payloads, max_abs))
}

fn read_payload<'a>(
    bytes: &'a [u8],
    info: &TensorInfo,
    name: &str,
    shape: &[usize],
) -> Result<(Payload<'a>, f32), UpdateError> {
    if info.dtype == Dtype::U8 {
        let expected = shape.iter().product();
        let bad = |error| match error {
            DecodeError::NonFinite => UpdateError::NonFinite(format!("a value of tensor `{name}`")),
            error => UpdateError::BadStream { name: name.to_owned(), error },
        };
        let stream = Stream::parse(bytes, expected).map_err(bad)?;
        let max_abs = stream.max_abs();
        check_max_abs(max_abs, name)?;
        return Ok((Payload::Stream(stream), max_abs));
    }
    if info.shape != shape {
        return Err(UpdateError::WrongTensors(format!(
            "tensor `{name}` has shape {:?}, the model's has {shape:?}",
            info.shape
        )));
    }
    let (payload, max_abs) = match info.dtype {
        Dtype::F32 => (Payload::F32(bytes), max_abs(bytes, f32::from_le_bytes)),
        Dtype::F16 => (Payload::F16(bytes), max_abs(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => (Payload::BF16(bytes), max_abs(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        other => {
            return Err(UpdateError::WrongTensors(format!(
                "tensor `{name}` has type {other:?}: use F32, F16, BF16, or U8 for a stream"
            )));
        }
    };
    check_max_abs(max_abs, name)?;
    Ok((payload, max_abs))
}

/// Checks the largest magnitude of a tensor, infinite if it holds a value that is not finite.
fn check_max_abs(max_abs: f32, name: &str) -> Result<(), UpdateError> {
    if !max_abs.is_finite() {
        return Err(UpdateError::NonFinite(format!("a value of tensor `{name}`")));
    }
    if max_abs > MAX_DELTA_ABS {
        return Err(UpdateError::TooLarge(name.to_owned()));
    }
    Ok(())
}

/// Checks a flat delta that came as JSON.
pub fn check_flat_delta(delta: &[f32], layout: &ModelLayout) -> Result<(), UpdateError> {
    if delta.len() != layout.parameters() {
        return Err(UpdateError::WrongTensors(format!(
            "the delta has {} values, the model {} parameters",
            delta.len(),
            layout.parameters()
        )));
    }
    check_max_abs(max_abs(bytemuck::cast_slice(delta), f32::from_ne_bytes), "delta")
}

/// Largest magnitude; infinite if any value is NaN or infinite.
fn max_abs<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> f32 {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().fold(0.0f32, |max, &b| {
        let magnitude = read(b).abs();
        if magnitude.is_nan() { f32::INFINITY } else { max.max(magnitude) }
    })
}

/// Decodes a tensor that begins at `start` in the flat order.
fn decode(payload: &Payload<'_>, start: usize, mut f: impl FnMut(usize, &[f32])) {
    match payload {
        Payload::F32(bytes) => decode_plain(bytes, f32::from_le_bytes, start, &mut f),
        Payload::F16(bytes) => decode_plain(bytes, |b| f16::from_le_bytes(b).to_f32(), start, &mut f),
        Payload::BF16(bytes) => decode_plain(bytes, |b| bf16::from_le_bytes(b).to_f32(), start, &mut f),
        Payload::Stream(stream) => stream.for_each_chunk(|offset, values| f(start + offset, values)),
    }
}

fn decode_plain<const N: usize>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> f32,
    offset: usize,
    f: &mut impl FnMut(usize, &[f32]),
) {
    const CHUNK: usize = 1024;
    let mut buffer = [0.0f32; CHUNK];
    let (values, _) = bytes.as_chunks::<N>();
    for (index, chunk) in values.chunks(CHUNK).enumerate() {
        for (out, &b) in buffer.iter_mut().zip(chunk) {
            *out = read(b);
        }
        f(offset + index * CHUNK, &buffer[..chunk.len()]);
    }
}
