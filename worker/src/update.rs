//! From trained parameters to an update container, and what the client remembers once it counts.

use crate::{
    client_state::{ClientMemory, ClientState, LastUpdate, Personal},
    plan::{Plan, StartingPoint},
};
use bytes::Bytes;
use fl_datasets::{Purpose, seeded_rng};
use fl_model::{ModelError, Parts, TensorPattern};
use fl_protocol::{
    ModelLayout, UpdateMeta,
    update::{self, Encoded},
};
use fl_quant::{Encoder, Feedback, FeedbackRule, Scheme, Spec, Stream, Target, Threads, encode_update};
use rand::RngExt;
use std::{ops::Range, time::Duration};

/// What a container's header has more of than that of empty streams: the digits of a stream's length and of
/// its two offsets.
const OFFSET_DIGITS: usize = 3 * 10;
/// The metadata's `compute_factor`, at most.
const TIME_BYTES: usize = 48;

/// What one round of local training gave.
#[derive(Debug, Clone)]
pub struct LocalUpdate {
    /// The update container, ready to be posted.
    pub body: Bytes,
    /// Lazy upload: what may be posted instead, so that the last update counts once more.
    pub notice: Option<Bytes>,
    /// Mean training loss over the steps.
    pub loss: f64,
    /// Samples of the local data: the update's weight.
    pub num_samples: u64,
    /// SGD steps that were made.
    pub steps: u32,
    /// Time of the training.
    pub train_time: Duration,
    /// Time of the encoding.
    pub encode_time: Duration,
}

/// What of a [`LocalUpdate`] the master has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The container.
    Update,
    /// The notice.
    Notice,
}

/// Encodes updates of one model, one after the other, and knows of the last one what was lost.
pub(crate) struct UpdateEncoder {
    layout: ModelLayout,
    shapes: Vec<Vec<usize>>,
    encoder: Encoder,
    streams: Vec<Vec<u8>>,
    /// Local minus global parameters plus the residual: what the last update encoded.
    delta: Vec<f32>,
    /// Parts of the flat vector whose delta is zero: they are not trained, or personal.
    silent: Vec<Range<usize>>,
    /// The personal tensors, and their values after the last training.
    local: Vec<Range<usize>>,
    personal: Option<Personal>,
    /// Index and shortest stream of each tensor in those parts.
    zeros: Vec<(usize, Vec<u8>)>,
    /// The change of the control variate, and its streams; empty without one.
    control: Vec<f32>,
    control_streams: Vec<Vec<u8>>,
    /// With lazy upload the round of the last update.
    lazy_round: Option<u64>,
    /// The tensors whose quantization error is added to the next update.
    rule: FeedbackRule,
}

impl UpdateEncoder {
    /// Encodes on `threads` threads; the bytes do not depend on their number.
    ///
    /// # Errors
    /// If the system does not start so many.
    pub(crate) fn new(layout: ModelLayout, threads: usize) -> Result<Self, ModelError> {
        let threads = Threads::new(threads)
            .map_err(|error| ModelError::BackendFailed(format!("{error}: set THREADS below {threads}")))?;
        Ok(Self {
            shapes: layout.shapes(),
            delta: vec![0.0; layout.parameters()],
            layout,
            silent: Vec::new(),
            local: Vec::new(),
            personal: None,
            zeros: Vec::new(),
            encoder: Encoder::new(threads),
            streams: Vec::new(),
            control: Vec::new(),
            control_streams: Vec::new(),
            lazy_round: None,
            rule: FeedbackRule::Nothing,
        })
    }

    /// Sets the parts that do not travel. `local` is the pattern of the personal tensors.
    pub(crate) fn set_parts(&mut self, parts: &Parts, local: Option<&TensorPattern>) {
        self.zeros.clear();
        for (index, tensor) in self.layout.tensors().iter().enumerate() {
            if !parts.silent.iter().any(|part| part.contains(&tensor.offset)) {
                continue;
            }
            let mut streams = Vec::new();
            let (zeros, spec) =
                (vec![0.0; tensor.len], Spec { entropy: true, ..Spec::new(Scheme::MsqV2, 1) });
            let encoded = encode_update(
                &mut self.encoder,
                &zeros,
                std::slice::from_ref(&tensor.shape),
                &spec,
                &mut streams,
            );
            // Infallible: zeros of a model's shape. Without it the tensor would be sent in the update's encoding.
            debug_assert!(encoded.is_ok());
            self.zeros.extend(streams.pop().map(|stream| (index, stream)));
        }
        self.silent.clone_from(&parts.silent);
        self.local.clone_from(&parts.local);
        self.personal = local.map(|local| Personal { pattern: local.to_string(), values: Vec::new() });
    }

    /// The layout, and room for a model, whose content the next update overwrites.
    pub(crate) fn room(&mut self) -> (&ModelLayout, &mut [f32]) {
        (&self.layout, &mut self.delta)
    }

    pub(crate) fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// Encodes how far `trained` (which fills in the local parameters) is from where the round started;
    /// with lazy upload and little change, the notice that may stand for it comes second.
    ///
    /// # Errors
    /// [`ModelError::Diverged`] if a value is not finite.
    pub(crate) fn encode(
        &mut self,
        client: &ClientState,
        from: &StartingPoint<'_>,
        plan: &Plan,
        meta: &UpdateMeta,
        trained: impl FnOnce(&mut [f32]),
    ) -> Result<(Bytes, Option<Bytes>), ModelError> {
        trained(&mut self.delta);
        if let Some(personal) = &mut self.personal {
            personal.values.clear();
            for part in &self.local {
                personal.values.extend_from_slice(&self.delta[part.clone()]);
            }
            // The encoder refuses those that travel.
            if !personal.values.iter().all(|value| value.is_finite()) {
                return Err(ModelError::Diverged);
            }
        }
        for (local, global) in self.delta.iter_mut().zip(from.parameters) {
            *local -= global;
        }
        clear(&mut self.delta, &self.silent);
        let mut spec = self.spec(plan, meta, from.control.is_some())?;
        let mut rng = seeded_rng(client.seed, client.worker_id.as_str(), from.round, Purpose::Rounding);
        spec.seed = rng.random();
        self.control_streams.clear();
        if let Some(control) = from.control {
            let spec = Spec { seed: rng.random(), ..spec };
            self.encode_control(control, plan, meta, &spec)?;
        }
        client.memory.feedback.add_to(&mut self.delta);
        // A residual of rounds in which they travelled is dropped.
        clear(&mut self.delta, &self.silent);
        // Only values that are not finite can fail: training went astray.
        encode_update(&mut self.encoder, &self.delta, &self.shapes, &spec, &mut self.streams)
            .map_err(|_| ModelError::Diverged)?;
        shorten(&mut self.streams, &self.zeros);
        let streams = self.streams.iter().chain(&self.control_streams);
        let tensors: Vec<_> = streams.map(|stream| Encoded::Stream(stream)).collect();
        let body = update::write(meta, &self.layout, &tensors).map_err(container_error)?;
        self.lazy_round = plan.lazy_below.map(|_| from.round);
        self.rule = plan.feedback;
        let notice = match plan.lazy_below {
            Some(below) => self.notice(client, meta, below)?,
            None => None,
        };
        Ok((body.into(), notice))
    }

    /// The change of the client's control variate: `c_i+ - c_i = -c - delta / (a lr)` (Karimireddy et al.
    /// 2020, algorithm 1, option II), where `a` is what the steps are worth in plain SGD steps: with momentum
    /// a gradient moves the model by more than one of them.
    fn encode_control(
        &mut self,
        control: &[f32],
        plan: &Plan,
        meta: &UpdateMeta,
        spec: &Spec,
    ) -> Result<(), ModelError> {
        let steps = meta.local_norm.unwrap_or_else(|| f64::from(meta.local_steps.unwrap_or(1)));
        let length = (steps * f64::from(plan.sgd.lr)) as f32;
        self.control.clear();
        self.control.extend(self.delta.iter().zip(control).map(|(delta, c)| -c - delta / length));
        clear(&mut self.control, &self.silent);
        encode_update(&mut self.encoder, &self.control, &self.shapes, spec, &mut self.control_streams)
            .map_err(|_| ModelError::Diverged)?;
        shorten(&mut self.control_streams, &self.zeros);
        Ok(())
    }

    /// The plan's encoding. A size is that of the container: what is not streams is taken off.
    fn spec(&self, plan: &Plan, meta: &UpdateMeta, has_control: bool) -> Result<Spec, ModelError> {
        let mut spec = plan.encoding;
        if let Target::Bytes(bytes) = spec.target {
            let vectors = if has_control { 2 } else { 1 };
            let tensors = vectors * self.layout.tensors().len();
            // A measured time is longer or shorter in print: the codes must not depend on it.
            let timeless = UpdateMeta { compute_factor: None, ..meta.clone() };
            let frame = update::write(&timeless, &self.layout, &vec![Encoded::Stream(&[]); tensors])
                .map_err(container_error)?;
            let frame = frame.len() + TIME_BYTES + OFFSET_DIGITS * tensors;
            spec.target = Target::Bytes(bytes.saturating_sub(frame) / vectors);
        }
        Ok(spec)
    }

    /// The notice in place of the update that has just been encoded, if that differs little enough from the
    /// last one which the master has.
    fn notice(
        &self,
        client: &ClientState,
        meta: &UpdateMeta,
        below: f32,
    ) -> Result<Option<Bytes>, ModelError> {
        let Some(last) = &client.memory.last_update else { return Ok(None) };
        let mut change = 0.0;
        self.decode(&self.streams, |at, values| {
            let before = &last.values[at..at + values.len()];
            change +=
                values.iter().zip(before).map(|(v, b)| (f64::from(*v) - f64::from(*b)).powi(2)).sum::<f64>();
        });
        if change > f64::from(below) {
            return Ok(None);
        }
        let meta = UpdateMeta { reuse: Some(last.round), ..meta.clone() };
        update::write_notice(&meta).map(|notice| Some(notice.into())).map_err(container_error)
    }

    /// What the master decodes of `streams`: `f(offset, values)`. They are this encoder's own and complete.
    fn decode(&self, streams: &[Vec<u8>], mut f: impl FnMut(usize, &[f32])) {
        for (tensor, bytes) in self.layout.tensors().iter().zip(streams) {
            let Ok(stream) = Stream::parse(bytes, tensor.len) else { continue };
            stream.for_each_chunk(|offset, values| f(tensor.offset + offset, values));
        }
    }

    /// The last update, which was made with `memory`, counts: see [`crate::Engine::settle`].
    pub(crate) fn settle(&self, memory: &mut ClientMemory, sent: Sent) {
        let ClientMemory { feedback, control_variate, last_update, personal } = memory;
        // Without `LOCAL_LAYERS` the values of earlier rounds stay: the setting may come back.
        if self.personal.is_some() {
            personal.clone_from(&self.personal);
        }
        if let (Sent::Notice, Some(last)) = (sent, last_update.as_ref()) {
            // Frees the old residual first: two models of memory are not needed at once.
            *feedback = Feedback::default();
            let lost = self.delta.iter().zip(&last.values).map(|(x, before)| x - before);
            *feedback = Feedback::from_residual(lost.collect());
            return;
        }
        let before = last_update.take();
        *last_update = self.lazy_round.map(|round| {
            let mut values = before.map(|last| last.values).unwrap_or_default();
            values.resize(self.layout.parameters(), 0.0);
            self.decode(&self.streams, |at, chunk| values[at..at + chunk.len()].copy_from_slice(chunk));
            LastUpdate { round, values }
        });
        let lengths = self.layout.tensors().iter().map(|tensor| tensor.len);
        // The streams are this encoder's own and complete: they decode.
        let settled = feedback.settle(self.rule, &self.delta, &self.streams, lengths);
        debug_assert!(settled.is_ok());
        if self.control_streams.is_empty() {
            return;
        }
        control_variate.resize(self.layout.parameters(), 0.0);
        self.decode(&self.control_streams, |at, values| {
            control_variate[at..].iter_mut().zip(values).for_each(|(own, value)| *own += value);
        });
    }
}

/// Puts the shortest streams in place of those of tensors that are zero: some quantizers spend bits on each zero.
fn shorten(streams: &mut [Vec<u8>], zeros: &[(usize, Vec<u8>)]) {
    for (index, stream) in zeros {
        if let Some(place) = streams.get_mut(*index) {
            place.clone_from(stream);
        }
    }
}

fn clear(values: &mut [f32], parts: &[Range<usize>]) {
    for part in parts {
        values[part.clone()].fill(0.0);
    }
}

fn container_error(error: impl ToString) -> ModelError {
    ModelError::BadFile(error.to_string())
}
