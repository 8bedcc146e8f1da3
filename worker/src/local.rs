//! A worker without a network: the global model goes in, an update container comes out.
//!
//! An [`Engine`] trains and holds nothing of a client; a [`ClientState`] is what one client carries from
//! round to round. A worker has one of each, a simulator an engine per thread for all its clients.

use crate::{
    batches::Batches,
    config::{Config, Plan},
};
use bytes::Bytes;
use fl_datasets::{Dataset, Purpose, seeded_rng};
use fl_model::{Batch, GlobalModel, Layer, Learner, ModelError, ModelSpec};
use fl_protocol::{
    ModelLayout, Normalization, UpdateMeta, WorkerId,
    update::{self, Encoded},
};
use fl_quant::{Encoder, Feedback, Spec, Stream, Target, encode_update};
use rand::{RngExt, seq::SliceRandom};
use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};
use thiserror::Error;

/// What a container's header has more of than that of empty streams: the digits of a stream's length and of
/// its two offsets.
const OFFSET_DIGITS: usize = 3 * 10;
/// The metadata's `compute_factor`, at most.
const TIME_BYTES: usize = 48;

/// Why a worker cannot train the master's model.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum SetupError {
    /// The model is larger than this node takes.
    #[error(
        "the master's model has {found} parameters, MODEL_DIM allows {allowed}: raise MODEL_DIM, or lower the master's"
    )]
    ModelTooLarge {
        /// Parameters of the model.
        found: usize,
        /// The limit.
        allowed: usize,
    },
    /// The local data are not what the model takes.
    #[error(
        "the master's model takes inputs of shape {model:?} and {model_classes} classes, {dataset} has {data:?} and {data_classes}: set DATASET as on the master"
    )]
    Data {
        /// Name of the local data set.
        dataset: String,
        /// The model's input shape.
        model: Vec<usize>,
        /// The data's input shape.
        data: Vec<usize>,
        /// The model's classes.
        model_classes: usize,
        /// The data's classes.
        data_classes: usize,
    },
    /// The model's normalisation does not fit the data.
    #[error("the master's model cannot be fed with these data: {0}")]
    Normalization(String),
    /// This worker's part holds no sample.
    #[error("this worker's part of the data is empty: lower NUM_PARTITIONS or take a larger data set")]
    NoData,
    /// The network cannot be built here.
    #[error(transparent)]
    Model(#[from] ModelError),
}

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

/// What a client carries from round to round.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// What quantization lost of earlier updates.
    pub feedback: Feedback,
    /// SCAFFOLD's control variate `c_i`; empty stands for zero.
    pub control: Vec<f32>,
    /// With lazy upload the update that the master has of this client.
    pub last: Option<LastUpdate>,
}

/// The last update that a client sent, for lazy upload.
#[derive(Debug, Clone, PartialEq)]
pub struct LastUpdate {
    /// The round that it was made for.
    pub round: u64,
    /// What the master decodes.
    pub values: Vec<f32>,
}

/// What of a [`LocalUpdate`] the master has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The container.
    Update,
    /// The notice.
    Notice,
}

/// One client: its name, its samples, and what it carries on.
#[derive(Debug, Clone)]
pub struct ClientState {
    /// Its name.
    pub worker_id: WorkerId,
    /// Seed of its batches and of its stochastic rounding.
    pub seed: u64,
    /// Its training samples.
    pub indices: Vec<u32>,
    /// What it carries from round to round.
    pub carried: Carried,
}

impl ClientState {
    /// A client that has not trained yet, with the part of the data that the settings give it.
    ///
    /// # Errors
    /// If that part is empty.
    pub fn new(config: &Config, data: &Dataset) -> Result<Self, SetupError> {
        let indices = own_indices(config, data);
        if indices.is_empty() {
            return Err(SetupError::NoData);
        }
        let (worker_id, seed) = (config.worker_id.clone(), config.seed);
        Ok(Self { worker_id, seed, indices, carried: Carried::default() })
    }
}

/// Trains clients, one after the other: network, buffers, shared data.
pub struct Engine {
    data: Arc<Dataset>,
    spec: ModelSpec,
    layout: ModelLayout,
    shapes: Vec<Vec<usize>>,
    normalization: Normalization,
    learner: Box<dyn Learner>,
    encoder: Encoder,
    streams: Vec<Vec<u8>>,
    /// Local minus global parameters plus the residual: what the last update encoded.
    delta: Vec<f32>,
    /// The change of the control variate, and its streams; empty without one.
    control: Vec<f32>,
    control_streams: Vec<Vec<u8>>,
    /// With lazy upload the round of the last update.
    lazy_round: Option<u64>,
    /// Whether what is lost of the last update goes into the next one.
    feedback: bool,
    batch: (Vec<f32>, Vec<u32>),
}

impl Engine {
    /// Prepares the network of `global`.
    ///
    /// # Errors
    /// If the model does not fit this worker's settings or data.
    pub fn new(config: &Config, data: Arc<Dataset>, global: &GlobalModel) -> Result<Self, SetupError> {
        let spec = &global.spec;
        let layout = spec.layout();
        let found = layout.parameters();
        if let Some(allowed) = config.model_dim.filter(|allowed| found > *allowed) {
            return Err(SetupError::ModelTooLarge { found, allowed });
        }
        if data.input_shape != spec.input_shape || data.num_classes > spec.num_classes {
            return Err(SetupError::Data {
                dataset: data.name.clone(),
                model: spec.input_shape.clone(),
                data: data.input_shape.clone(),
                model_classes: spec.num_classes,
                data_classes: data.num_classes,
            });
        }
        data.train
            .check_normalization(&global.normalization)
            .map_err(|error| SetupError::Normalization(error.to_string()))?;
        let convolutional = spec.layers.iter().any(|layer| matches!(layer, Layer::Conv2d { .. }));
        Ok(Self {
            learner: spec.learner(config.backend, config.training_threads(convolutional))?,
            encoder: Encoder::default(),
            streams: Vec::new(),
            delta: vec![0.0; found],
            control: Vec::new(),
            control_streams: Vec::new(),
            lazy_round: None,
            feedback: false,
            batch: (Vec::new(), Vec::new()),
            shapes: layout.shapes(),
            normalization: global.normalization.clone(),
            spec: spec.clone(),
            layout,
            data,
        })
    }

    /// The network, for other uses between two rounds.
    pub fn learner(&mut self) -> &mut dyn Learner {
        &mut *self.learner
    }

    /// Trains `client` from `global` for one round and encodes what changed. With the server's control
    /// variate `control` it trains by SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II).
    ///
    /// `before_step` is called before each step and may end the round early; then there is no update.
    /// The same `(seed, worker id, round)`, model and carried state give the same bytes, but for the
    /// time that the training took.
    ///
    /// # Errors
    /// If the training diverges.
    pub fn train(
        &mut self,
        client: &ClientState,
        from: &StartingPoint<'_>,
        plan: &Plan,
        mut before_step: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Option<LocalUpdate>, ModelError> {
        let started = Instant::now();
        self.learner.load(from.parameters);
        let rng_of = |purpose| seeded_rng(client.seed, client.worker_id.as_str(), from.round, purpose);
        self.learner.begin_round(rng_of(Purpose::Masks).random());
        if let Some(control) = from.control {
            self.set_drift(control, &client.carried.control);
        }
        let mut batches = Batches::new(client.indices.clone(), plan, rng_of(Purpose::Batches));
        let (mut loss, mut steps) = (0.0f64, 0u32);
        while let Some(indices) = batches.next() {
            if before_step().is_break() {
                return Ok(None);
            }
            let (x, y) = &mut self.batch;
            self.data.train.gather(indices, &self.normalization, x, y);
            loss += f64::from(self.learner.step(Batch::new(x, y), &plan.sgd)?);
            steps += 1;
        }
        let train_time = started.elapsed();
        let meta = UpdateMeta {
            worker_id: client.worker_id.clone(),
            round: from.round,
            num_samples: client.indices.len() as u64,
            loss: Some(loss / f64::from(steps)),
            accuracy: None,
            compute_factor: plan.compute_factor.or(Some(train_time.as_secs_f64())),
            local_steps: Some(steps),
            local_norm: plan.local_norm(steps),
            reuse: None,
        };
        let started = Instant::now();
        let body = self.encode(client, from, plan, &meta)?;
        self.lazy_round = plan.lazy_below.map(|_| from.round);
        self.feedback = plan.feedback;
        let notice =
            plan.lazy_below.and_then(|below| self.notice(client, meta.clone(), below)).transpose()?;
        Ok(Some(LocalUpdate {
            body: body.into(),
            notice: notice.map(Bytes::from),
            loss: loss / f64::from(steps),
            num_samples: meta.num_samples,
            steps,
            train_time,
            encode_time: started.elapsed(),
        }))
    }

    /// `c - c_i` goes into every gradient.
    fn set_drift(&mut self, control: &[f32], own: &[f32]) {
        self.control.clear();
        self.control.extend_from_slice(control);
        for (drift, own) in self.control.iter_mut().zip(own) {
            *drift -= own;
        }
        self.learner.set_drift(&self.control);
    }

    fn encode(
        &mut self,
        client: &ClientState,
        from: &StartingPoint<'_>,
        plan: &Plan,
        meta: &UpdateMeta,
    ) -> Result<Vec<u8>, ModelError> {
        self.learner.read(&mut self.delta);
        for (local, global) in self.delta.iter_mut().zip(from.parameters) {
            *local -= global;
        }
        let mut spec = self.encoding(plan, meta, from.control.is_some())?;
        let mut rng = seeded_rng(client.seed, client.worker_id.as_str(), from.round, Purpose::Rounding);
        spec.seed = rng.random();
        self.control_streams.clear();
        if let Some(control) = from.control {
            let length = meta.local_steps.unwrap_or(1) as f32 * plan.sgd.lr;
            self.control.clear();
            self.control.extend(self.delta.iter().zip(control).map(|(delta, c)| -c - delta / length));
            let spec = Spec { seed: rng.random(), ..spec };
            encode_update(&mut self.encoder, &self.control, &self.shapes, &spec, &mut self.control_streams)
                .map_err(|_| ModelError::Diverged)?;
        }
        client.carried.feedback.add_to(&mut self.delta);
        // The only inputs that can fail are values that are not finite: training went astray.
        encode_update(&mut self.encoder, &self.delta, &self.shapes, &spec, &mut self.streams)
            .map_err(|_| ModelError::Diverged)?;
        let streams = self.streams.iter().chain(&self.control_streams);
        let tensors: Vec<_> = streams.map(|stream| Encoded::Stream(stream)).collect();
        update::write(meta, &self.layout, &tensors).map_err(|error| ModelError::BadFile(error.to_string()))
    }

    /// The plan's encoding. A size is that of the container: what is not streams is taken off.
    fn encoding(&self, plan: &Plan, meta: &UpdateMeta, has_control: bool) -> Result<Spec, ModelError> {
        let mut spec = plan.encoding;
        if let Target::Bytes(bytes) = spec.target {
            let vectors = if has_control { 2 } else { 1 };
            let tensors = vectors * self.layout.tensors().len();
            // A measured time is longer or shorter in print: the codes must not depend on it.
            let timeless = UpdateMeta { compute_factor: None, ..meta.clone() };
            let frame = update::write(&timeless, &self.layout, &vec![Encoded::Stream(&[]); tensors])
                .map_err(|error| ModelError::BadFile(error.to_string()))?;
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
        meta: UpdateMeta,
        below: f32,
    ) -> Option<Result<Vec<u8>, ModelError>> {
        let last = client.carried.last.as_ref()?;
        let mut change = 0.0;
        self.decode(&self.streams, |at, values| {
            let before = &last.values[at..at + values.len()];
            change +=
                values.iter().zip(before).map(|(v, b)| (f64::from(*v) - f64::from(*b)).powi(2)).sum::<f64>();
        });
        (change <= f64::from(below)).then(|| {
            let meta = UpdateMeta { reuse: Some(last.round), ..meta };
            update::write_notice(&meta).map_err(|error| ModelError::BadFile(error.to_string()))
        })
    }

    /// What the master decodes of `streams`: `f(offset, values)`. They are this engine's own and complete.
    fn decode(&self, streams: &[Vec<u8>], mut f: impl FnMut(usize, &[f32])) {
        for (tensor, bytes) in self.layout.tensors().iter().zip(streams) {
            let Ok(stream) = Stream::parse(bytes, tensor.len) else { continue };
            stream.for_each_chunk(|offset, values| f(tensor.offset + offset, values));
        }
    }

    /// The last update, which was `client`'s, counts: what its encoding lost goes into the next one, and
    /// the control variate moves by what the master decodes, so that the master's stays their mean. Where
    /// a notice was `sent`, all that the update differs from the earlier one is lost, and goes into the next.
    ///
    /// An update that the master refuses leaves both as they were. Its delta was made for a model that is
    /// no more, and keeping the deltas of a worker that is always late would add up without end.
    pub fn settle(&self, client: &mut ClientState, sent: Sent) {
        let tensors = self.layout.tensors();
        let Carried { feedback, control, last } = &mut client.carried;
        if let (Sent::Notice, Some(last)) = (sent, last.as_ref()) {
            let lost = self.delta.iter().zip(&last.values).map(|(x, before)| x - before);
            *feedback = Feedback::from_residual(lost.collect());
            return;
        }
        *last = self.lazy_round.map(|round| {
            let mut values = vec![0.0; self.layout.parameters()];
            self.decode(&self.streams, |at, chunk| values[at..at + chunk.len()].copy_from_slice(chunk));
            LastUpdate { round, values }
        });
        if self.feedback {
            let lengths = tensors.iter().map(|tensor| tensor.len);
            // The streams are this engine's own and complete: they decode.
            let settled = feedback.settle(&self.delta, &self.streams, lengths);
            debug_assert!(settled.is_ok());
        } else {
            *feedback = Feedback::default();
        }
        if self.control_streams.is_empty() {
            return;
        }
        control.resize(self.layout.parameters(), 0.0);
        self.decode(&self.control_streams, |at, values| {
            control[at..].iter_mut().zip(values).for_each(|(own, value)| *own += value);
        });
    }
}

/// What a round starts from.
#[derive(Debug, Clone, Copy)]
pub struct StartingPoint<'a> {
    /// Its number.
    pub round: u64,
    /// The global model.
    pub parameters: &'a [f32],
    /// The server's control variate, if the round is one of SCAFFOLD.
    pub control: Option<&'a [f32]>,
}

/// The local side of the federation: an engine with its one client.
pub struct LocalClient {
    engine: Engine,
    state: ClientState,
}

impl LocalClient {
    /// Prepares the worker's part of the data and the network of `global`.
    ///
    /// # Errors
    /// If the model does not fit this worker's settings or data.
    pub fn new(config: &Config, data: Arc<Dataset>, global: &GlobalModel) -> Result<Self, SetupError> {
        let engine = Engine::new(config, data, global)?;
        let state = ClientState::new(config, &engine.data)?;
        Ok(Self { engine, state })
    }

    /// Whether `global` is of the network that this client was made for.
    pub fn fits(&self, global: &GlobalModel) -> bool {
        self.engine.spec == global.spec && self.engine.normalization == global.normalization
    }

    /// Samples of this worker.
    pub fn num_samples(&self) -> usize {
        self.state.indices.len()
    }

    /// Parameters of the network.
    pub fn num_parameters(&self) -> usize {
        self.engine.layout.parameters()
    }

    /// See [`Engine::train`].
    ///
    /// # Errors
    /// If the training diverges.
    pub fn train(
        &mut self,
        from: &StartingPoint<'_>,
        plan: &Plan,
        before_step: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Option<LocalUpdate>, ModelError> {
        self.engine.train(&self.state, from, plan, before_step)
    }

    /// See [`Engine::settle`].
    pub fn settle(&mut self, sent: Sent) {
        self.engine.settle(&mut self.state, sent);
    }
}

/// The samples of this worker: an exact part if it is told which, else drawn from its id.
fn own_indices(config: &Config, data: &Dataset) -> Vec<u32> {
    let labels = data.train.labels();
    let Some((id, parts)) = config.part else {
        let limit = config.dataset_size;
        return config.partition.draw(
            labels,
            data.num_classes,
            config.worker_id.as_str(),
            config.seed,
            limit,
        );
    };
    let mut split = config.partition.split(labels, data.num_classes, parts, config.seed);
    let mut own = split.swap_remove(id);
    if own.len() > config.dataset_size {
        // Parts are sorted: their beginning would be biased where the file is sorted by class.
        own.shuffle(&mut seeded_rng(config.seed, config.worker_id.as_str(), 0, Purpose::Partition));
        own.truncate(config.dataset_size);
    }
    own
}
