//! Whole updates: delta, streams, container, and what is carried to the next round.

use crate::{codec::floats, plan::Plan, value_error};
use fl_protocol::{Header, ModelLayout, update::declared_bytes};
use fl_quant::{Encoder, Feedback, FeedbackRule, Scheme, Spec, Stream, Target, Threads, encode_update};
use pyo3::{prelude::*, types::PyBytes};
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;

/// What a container's header has more of than that of empty streams: the digits of a stream's length and of its two
/// offsets.
const OFFSET_DIGITS: usize = 3 * 10;

/// The metadata's `compute_factor`, at most.
const TIME_BYTES: usize = 48;

/// Encodes the updates of one model, one after the other, and carries the quantization error between them.
#[pyclass(module = "fl_client._native")]
pub(crate) struct UpdateEncoder {
    layout: ModelLayout,
    shapes: Vec<Vec<usize>>,
    encoder: Encoder,
    streams: Vec<Vec<u8>>,
    /// Local minus global parameters; after `encode` plus the residual.
    delta: Vec<f32>,
    feedback: Feedback,
    rule: FeedbackRule,
    /// With lazy upload the round of the update that `encode` made.
    lazy_round: Option<u64>,
    /// The last accepted update as the master decodes it, and its round.
    last: Option<(u64, Vec<f32>)>,
}

#[pymethods]
impl UpdateEncoder {
    /// `tensors` are names and shapes in the model's order; the bytes do not depend on `threads`.
    #[new]
    fn new(tensors: Vec<(String, Vec<usize>)>, threads: usize) -> PyResult<Self> {
        let layout = ModelLayout::new(tensors);
        Ok(Self {
            shapes: layout.shapes(),
            delta: vec![0.0; layout.parameters()],
            encoder: Encoder::new(Threads::new(threads).map_err(value_error)?),
            layout,
            streams: Vec::new(),
            feedback: Feedback::default(),
            rule: FeedbackRule::Nothing,
            lazy_round: None,
            last: None,
        })
    }

    /// Sets the delta of tensor `index` from element `at` on: `local` minus what `model` has from byte `start` on.
    /// Called for a few thousand values at a time, so that copies stay in the cache.
    fn set(&mut self, index: usize, at: usize, local: &[u8], model: &[u8], start: usize) -> PyResult<()> {
        let local = floats(local)?;
        let tensor = self.layout.tensors().get(index).ok_or_else(|| value_error("no such tensor"))?;
        let wrong = || value_error(format!("`{}` has {} values", tensor.name, tensor.len));
        let end = at.checked_add(local.len()).filter(|end| *end <= tensor.len).ok_or_else(wrong)?;
        let bytes = start.checked_add(4 * local.len()).and_then(|end| model.get(start..end));
        let global = floats(bytes.ok_or_else(wrong)?)?;
        let out = &mut self.delta[tensor.offset + at..tensor.offset + end];
        for ((out, local), global) in out.iter_mut().zip(local).zip(global) {
            *out = local - global;
        }
        Ok(())
    }

    /// Sets the delta of tensor `index` to zero.
    fn set_zero(&mut self, index: usize) -> PyResult<()> {
        let tensor = self.layout.tensors().get(index).ok_or_else(|| value_error("no such tensor"))?;
        self.delta[tensor.offset..tensor.offset + tensor.len].fill(0.0);
        Ok(())
    }

    /// Encodes the delta plus the residual. Returns the container, and with lazy upload and little change the notice that
    /// may be posted in its place. `meta` is the container's metadata, `frozen` the tensors that are not trained.
    fn encode<'py>(
        &mut self,
        py: Python<'py>,
        plan: &Plan,
        seed: u64,
        round: u64,
        meta: HashMap<String, String>,
        frozen: Vec<usize>,
    ) -> PyResult<(Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>)> {
        let (body, notice) = py.detach(|| self.encode_parts(plan, seed, round, meta, &frozen))?;
        Ok((PyBytes::new(py, &body), notice.map(|notice| PyBytes::new(py, &notice))))
    }

    /// The tensor whose delta holds a value that is not finite; `encode` refuses those.
    fn non_finite(&self) -> Option<usize> {
        let position = self.delta.iter().position(|value| !value.is_finite())?;
        self.layout.tensors().iter().position(|tensor| position < tensor.offset + tensor.len)
    }

    /// The last update counts: `notice` tells that its notice was posted in its place.
    fn settle(&mut self, py: Python<'_>, notice: bool) -> PyResult<()> {
        py.detach(|| {
            if let (true, Some((_, before))) = (notice, &self.last) {
                let lost = self.delta.iter().zip(before).map(|(x, before)| x - before);
                self.feedback = Feedback::from_residual(lost.collect());
                return Ok(());
            }
            self.last = self.lazy_round.map(|round| {
                let mut values = vec![0.0; self.layout.parameters()];
                self.decode(|at, chunk| values[at..at + chunk.len()].copy_from_slice(chunk));
                (round, values)
            });
            let lengths = self.layout.tensors().iter().map(|tensor| tensor.len);
            self.feedback.settle(self.rule, &self.delta, &self.streams, lengths).map_err(value_error)
        })
    }

    /// Drops the residual: an update was refused for its norm.
    fn forget(&mut self) {
        self.feedback = Feedback::default();
    }

    /// The residual as little-endian f32, empty for zeros.
    fn residual<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes: Vec<u8> = self.feedback.residual().iter().flat_map(|value| value.to_le_bytes()).collect();
        PyBytes::new(py, &bytes)
    }

    /// Goes on with a residual that was set aside.
    fn restore(&mut self, residual: &[u8]) -> PyResult<()> {
        let residual: Vec<f32> = floats(residual)?.collect();
        let fits = residual.is_empty() || residual.len() == self.layout.parameters();
        if !fits || residual.iter().any(|value| !value.is_finite()) {
            return Err(value_error("the residual does not fit the model"));
        }
        self.feedback = Feedback::from_residual(residual);
        Ok(())
    }
}

impl UpdateEncoder {
    fn encode_parts(
        &mut self,
        plan: &Plan,
        seed: u64,
        round: u64,
        mut meta: HashMap<String, String>,
        frozen: &[usize],
    ) -> PyResult<(Vec<u8>, Option<Vec<u8>>)> {
        let spec = Spec { seed, ..self.spec(plan, &meta)? };
        self.feedback.add_to(&mut self.delta);
        for tensor in frozen.iter().filter_map(|index| self.layout.tensors().get(*index)) {
            // A residual of rounds in which the tensor was trained is dropped with it.
            self.delta[tensor.offset..tensor.offset + tensor.len].fill(0.0);
        }
        encode_update(&mut self.encoder, &self.delta, &self.shapes, &spec, &mut self.streams)
            .map_err(value_error)?;
        for &index in frozen {
            self.shorten(index)?;
        }
        self.rule = plan.rule;
        self.lazy_round = plan.lazy_below.map(|_| round);
        let streams: Vec<&[u8]> = self.streams.iter().map(Vec::as_slice).collect();
        let body = write(&self.layout, &streams, meta.clone())?;
        // The master reads it in this way: what it would refuse is not sent.
        Header::read(&body).map_err(value_error)?;
        let notice = match (plan.lazy_below, &self.last) {
            (Some(below), Some((last, before))) if self.change(before) <= f64::from(below) => {
                meta.insert("reuse".to_owned(), last.to_string());
                Some(write(&ModelLayout::default(), &[], meta)?)
            }
            _ => None,
        };
        Ok((body, notice))
    }

    /// The plan's encoding. A size is that of the container: what is not streams is taken off.
    fn spec(&self, plan: &Plan, meta: &HashMap<String, String>) -> PyResult<Spec> {
        let mut spec = plan.spec;
        if let Target::Bytes(bytes) = spec.target {
            let tensors = self.shapes.len();
            let mut timeless = meta.clone();
            timeless.remove("compute_factor");
            let frame = write(&self.layout, &vec![&[][..]; tensors], timeless)?.len();
            spec.target = Target::Bytes(bytes.saturating_sub(frame + TIME_BYTES + OFFSET_DIGITS * tensors));
        }
        Ok(spec)
    }

    /// Puts the shortest stream of zeros in place of a frozen tensor's: some quantizers spend bits on each zero.
    fn shorten(&mut self, index: usize) -> PyResult<()> {
        let (Some(shape), Some(stream)) = (self.shapes.get(index), self.streams.get_mut(index)) else {
            return Ok(());
        };
        let zeros = vec![0.0; shape.iter().product()];
        let spec = Spec { entropy: true, ..Spec::new(Scheme::MsqV2, 1) };
        let mut streams = Vec::new();
        encode_update(&mut self.encoder, &zeros, std::slice::from_ref(shape), &spec, &mut streams)
            .map_err(value_error)?;
        if let Some(shortest) = streams.pop() {
            *stream = shortest;
        }
        Ok(())
    }

    /// Squared distance between the update that was encoded last and `before`, both decoded.
    fn change(&self, before: &[f32]) -> f64 {
        let mut change = 0.0;
        self.decode(|at, values| {
            let before = &before[at..at + values.len()];
            change +=
                values.iter().zip(before).map(|(v, b)| (f64::from(*v) - f64::from(*b)).powi(2)).sum::<f64>();
        });
        change
    }

    /// What the master decodes of the streams: `f(offset, values)`. They are this encoder's own and complete.
    fn decode(&self, mut f: impl FnMut(usize, &[f32])) {
        for (tensor, bytes) in self.layout.tensors().iter().zip(&self.streams) {
            let Ok(stream) = Stream::parse(bytes, tensor.len) else { continue };
            stream.for_each_chunk(|offset, values| f(tensor.offset + offset, values));
        }
    }
}

/// Writes a container of streams (`docs/format.md`), or a notice if there are none. The metadata is the caller's, so that
/// a client of this version can send keys that `fl_protocol::UpdateMeta` does not know yet.
fn write(layout: &ModelLayout, streams: &[&[u8]], meta: HashMap<String, String>) -> PyResult<Vec<u8>> {
    let views = layout.tensors().iter().zip(streams).map(|(tensor, stream)| {
        TensorView::new(Dtype::U8, vec![stream.len()], stream)
            .map(|view| (tensor.name.clone(), view))
            .map_err(|error| value_error(format!("tensor `{}`: {error}", tensor.name)))
    });
    let body =
        safetensors::serialize(views.collect::<PyResult<Vec<_>>>()?, Some(meta)).map_err(value_error)?;
    let declared = declared_bytes(&body).unwrap_or(u64::MAX);
    if declared > fl_protocol::limits::MAX_CONTAINER_HEADER_BYTES as u64 {
        return Err(value_error(format!("names and metadata take {declared} bytes, 1 MiB is allowed")));
    }
    Ok(body)
}
