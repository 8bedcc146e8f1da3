//! The update container: a safetensors file with one entry per model tensor.
//!
//! An entry is either the plain delta (F32, F16 or BF16, with the model's shape) or an fl-quant
//! stream (U8, one dimension). `__metadata__` carries who sent it and what it weighs.
//!
//! [`Update::parse`] checks everything: names, shapes, finite values, streams. What it returns can be
//! added to a sum without a further check.

use crate::{
    layout::ModelLayout,
    limits::{MAX_CONTAINER_HEADER_BYTES, MAX_DELTA_ABS, MAX_NUM_SAMPLES},
    worker_id::WorkerId,
};
use fl_quant::{DecodeError, Piece, Stream};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::HashMap, str::FromStr};
use thiserror::Error;

/// Who sent an update and what it weighs.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateMeta {
    /// Name of the worker.
    pub worker_id: WorkerId,
    /// Round of the model that was trained from.
    pub round: u64,
    /// Weight in the average; at least 1.
    pub num_samples: u64,
    /// Mean training loss over the local steps.
    pub loss: Option<f64>,
    /// Training accuracy, 0 to 1.
    pub accuracy: Option<f64>,
    /// Seconds of local training, or another measure of speed.
    pub compute_factor: Option<f64>,
    /// SGD steps that were made.
    pub local_steps: Option<u32>,
    /// How far these steps go, in plain SGD steps: `|a_k|_1` of FedNova (Wang et al. 2020, section 4).
    /// Left out where it equals `local_steps`.
    pub local_norm: Option<f64>,
    /// Lazy upload: the round of this worker's last accepted update, which is to count once more. The
    /// container then is a notice, without tensors.
    pub reuse: Option<u64>,
}

/// Why a container was refused.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum UpdateError {
    /// Not a container at all, or one that is cut short.
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
    /// A value that no healthy training produces.
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
    /// Checks `body` against `layout`.
    ///
    /// Allocates in proportion to the number of tensors, never by what the body declares.
    pub fn parse(body: &'a [u8], layout: &'a ModelLayout) -> Result<Self, UpdateError> {
        let meta = read_meta(body)?;
        let file =
            SafeTensors::deserialize(body).map_err(|error| UpdateError::Malformed(error.to_string()))?;
        let known = |name: &str| {
            let name = name.strip_prefix(CONTROL_PREFIX).unwrap_or(name);
            layout.tensors().iter().any(|tensor| tensor.name == name)
        };
        if let Some(name) = file.names().iter().find(|name| !known(name)) {
            return Err(UpdateError::WrongTensors(format!("the model has no tensor `{}`", shorten(name))));
        }
        let (payloads, max_abs) = read_payloads(body, &file, layout, "")?;
        let has_control = file.names().iter().any(|name| name.starts_with(CONTROL_PREFIX));
        let (control, control_max_abs) = match has_control {
            true => read_payloads(body, &file, layout, CONTROL_PREFIX)?,
            false => (Vec::new(), 0.0),
        };
        Ok(Self { meta, payloads, max_abs, control, control_max_abs, layout })
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

    /// [`Self::for_each_chunk`] for whoever can use packed codes as they are: `f(offset, piece)`.
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

/// One tensor of a container that is being written.
#[derive(Debug, Clone)]
pub enum Encoded<'a> {
    /// The plain delta.
    F32(&'a [f32]),
    /// An fl-quant stream.
    Stream(&'a [u8]),
}

/// Before the name of a model tensor: the change of SCAFFOLD's control variate.
const CONTROL_PREFIX: &str = "control.";

/// Writes a container. `tensors` are in the order of `layout`; twice as many carry the change of the
/// worker's control variate in their second half.
///
/// # Errors
/// If the lengths do not fit the layout; a caller that encodes by the layout never sees it.
pub fn write(
    meta: &UpdateMeta,
    layout: &ModelLayout,
    tensors: &[Encoded<'_>],
) -> Result<Vec<u8>, UpdateError> {
    let own = layout.tensors().len();
    if tensors.len() != own && tensors.len() != 2 * own {
        return Err(UpdateError::WrongTensors(format!(
            "{} tensors given, the model has {}",
            tensors.len(),
            layout.tensors().len()
        )));
    }
    let named = layout.tensors().iter().chain(layout.tensors()).zip(tensors).enumerate();
    let views = named.map(|(index, (tensor, encoded))| {
        let prefix = if index < own { "" } else { CONTROL_PREFIX };
        let (dtype, shape, data): (_, _, &[u8]) = match encoded {
            Encoded::F32(values) => (Dtype::F32, tensor.shape.clone(), bytemuck::cast_slice(values)),
            Encoded::Stream(bytes) => (Dtype::U8, vec![bytes.len()], bytes),
        };
        TensorView::new(dtype, shape, data)
            .map(|view| (format!("{prefix}{}", tensor.name), view))
            .map_err(|error| UpdateError::WrongTensors(format!("tensor `{}`: {error}", tensor.name)))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, Some(meta_to_map(meta)))
        .map_err(|error| UpdateError::Malformed(error.to_string()))
}

fn meta_to_map(meta: &UpdateMeta) -> HashMap<String, String> {
    let mut map = HashMap::from([
        ("worker_id".to_owned(), meta.worker_id.to_string()),
        ("round".to_owned(), meta.round.to_string()),
        ("num_samples".to_owned(), meta.num_samples.to_string()),
    ]);
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    };
    put("loss", meta.loss.map(|v| v.to_string()));
    put("accuracy", meta.accuracy.map(|v| v.to_string()));
    put("compute_factor", meta.compute_factor.map(|v| v.to_string()));
    put("local_steps", meta.local_steps.map(|v| v.to_string()));
    put("local_norm", meta.local_norm.map(|v| v.to_string()));
    put("reuse", meta.reuse.map(|v| v.to_string()));
    map
}

fn read_meta(body: &[u8]) -> Result<UpdateMeta, UpdateError> {
    // The safetensors crate allows headers of 100 MB; ours name a few dozen tensors.
    let declared = body
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .ok_or_else(|| UpdateError::Malformed("it is shorter than a header".to_owned()))?;
    if declared > MAX_CONTAINER_HEADER_BYTES as u64 {
        return Err(UpdateError::Malformed(format!(
            "its header declares {declared} bytes, at most {MAX_CONTAINER_HEADER_BYTES} are allowed"
        )));
    }
    let (_, header) =
        SafeTensors::read_metadata(body).map_err(|error| UpdateError::Malformed(error.to_string()))?;
    let map = header
        .metadata()
        .as_ref()
        .ok_or_else(|| UpdateError::Malformed("it has no __metadata__".to_owned()))?;
    let num_samples: u64 = required(map, "num_samples")?;
    check_num_samples(num_samples)?;
    let meta = UpdateMeta {
        worker_id: required(map, "worker_id")?,
        round: required(map, "round")?,
        num_samples,
        loss: optional(map, "loss")?,
        accuracy: optional(map, "accuracy")?,
        compute_factor: optional(map, "compute_factor")?,
        local_steps: optional(map, "local_steps")?,
        local_norm: optional(map, "local_norm")?,
        reuse: optional(map, "reuse")?,
    };
    for (key, value) in [
        ("loss", meta.loss),
        ("accuracy", meta.accuracy),
        ("compute_factor", meta.compute_factor),
        ("local_norm", meta.local_norm),
    ] {
        if value.is_some_and(|v| !v.is_finite()) {
            return Err(UpdateError::NonFinite(format!("`{key}`")));
        }
    }
    Ok(meta)
}

/// Checks a claimed number of samples.
pub fn check_num_samples(num_samples: u64) -> Result<(), UpdateError> {
    if num_samples == 0 || num_samples > MAX_NUM_SAMPLES {
        return Err(UpdateError::BadNumSamples(num_samples));
    }
    Ok(())
}

fn required<T: FromStr>(map: &HashMap<String, String>, key: &str) -> Result<T, UpdateError> {
    optional(map, key)?.ok_or_else(|| UpdateError::Malformed(format!("its metadata lacks `{key}`")))
}

fn optional<T: FromStr>(map: &HashMap<String, String>, key: &str) -> Result<Option<T>, UpdateError> {
    map.get(key)
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| UpdateError::Malformed(format!("its metadata `{key}` cannot be read")))
        })
        .transpose()
}

/// The part of `body` that `view` points into: the parser's views do not outlive it, the body does.
fn slice_of<'a>(body: &'a [u8], view: &[u8]) -> &'a [u8] {
    let start = view.as_ptr() as usize - body.as_ptr() as usize;
    &body[start..start + view.len()]
}

/// One payload per model tensor, and a bound of their magnitudes.
fn read_payloads<'a>(
    body: &'a [u8],
    file: &SafeTensors<'_>,
    layout: &ModelLayout,
    prefix: &str,
) -> Result<(Vec<Payload<'a>>, f32), UpdateError> {
    let mut payloads = Vec::with_capacity(layout.tensors().len());
    let mut max_abs = 0.0f32;
    for tensor in layout.tensors() {
        let name = format!("{prefix}{}", tensor.name);
        let view = file
            .tensor(&name)
            .map_err(|_| UpdateError::WrongTensors(format!("tensor `{name}` is missing")))?;
        let bytes = slice_of(body, view.data());
        let (payload, magnitude) = read_payload(bytes, &view, &name, &tensor.shape)?;
        max_abs = max_abs.max(magnitude);
        payloads.push(payload);
    }
    Ok((payloads, max_abs))
}

fn read_payload<'a>(
    bytes: &'a [u8],
    view: &TensorView<'_>,
    name: &str,
    shape: &[usize],
) -> Result<(Payload<'a>, f32), UpdateError> {
    if view.dtype() == Dtype::U8 {
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
    if view.shape() != shape {
        return Err(UpdateError::WrongTensors(format!(
            "tensor `{name}` has shape {:?}, the model's has {shape:?}",
            view.shape()
        )));
    }
    let (payload, max_abs) = match view.dtype() {
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

/// Writes a notice: a container whose `meta.reuse` says which update is to count once more.
///
/// # Errors
/// Never, but by a fault of ours.
pub fn write_notice(meta: &UpdateMeta) -> Result<Vec<u8>, UpdateError> {
    safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), Some(meta_to_map(meta)))
        .map_err(|error| UpdateError::Malformed(error.to_string()))
}

/// Checks a notice and gives its metadata.
///
/// # Errors
/// If it carries tensors, or does not say what is to be reused.
pub fn parse_notice(body: &[u8]) -> Result<UpdateMeta, UpdateError> {
    let meta = read_meta(body)?;
    let file = SafeTensors::deserialize(body).map_err(|error| UpdateError::Malformed(error.to_string()))?;
    match (meta.reuse, file.is_empty()) {
        (Some(_), true) => Ok(meta),
        (Some(_), false) => Err(UpdateError::WrongTensors(
            "a container with `reuse` in its metadata is a notice: it carries no tensors".to_owned(),
        )),
        (None, _) => Err(UpdateError::Malformed("its metadata lacks `reuse`".to_owned())),
    }
}

/// The metadata of a container, read without looking at its tensors.
///
/// For routing: which worker, which round. [`Update::parse`] is what accepts an update.
pub fn peek_meta(body: &[u8]) -> Result<UpdateMeta, UpdateError> {
    read_meta(body)
}

/// The delta of a JSON update as a container, so that both formats take one path from there on.
pub fn from_json(update: &crate::UpdateJson, layout: &ModelLayout) -> Result<Vec<u8>, UpdateError> {
    check_num_samples(update.num_samples)?;
    check_flat_delta(&update.delta, layout)?;
    let meta = UpdateMeta {
        worker_id: update.worker_id.clone(),
        round: update.round,
        num_samples: update.num_samples,
        loss: update.loss,
        accuracy: None,
        compute_factor: update.compute_factor,
        local_steps: None,
        local_norm: None,
        reuse: None,
    };
    let tensors: Vec<_> = layout
        .tensors()
        .iter()
        .map(|tensor| Encoded::F32(&update.delta[tensor.offset..tensor.offset + tensor.len]))
        .collect();
    write(&meta, layout, &tensors)
}

/// A foreign name, cut to a length that fits a log line.
fn shorten(name: &str) -> &str {
    &name[..name.floor_char_boundary(64)]
}
