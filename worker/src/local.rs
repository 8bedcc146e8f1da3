//! A worker without a network: the global model goes in, an update container comes out.

use crate::config::{Config, Plan, Work};
use bytes::Bytes;
use fl_datasets::{Dataset, Purpose, seeded_rng};
use fl_model::{GlobalModel, Layer, ModelError, ModelSpec, Trainer};
use fl_protocol::{
    ModelLayout, Normalization, UpdateMeta, WorkerId,
    update::{self, Encoded},
};
use fl_quant::{Encoder, Feedback, encode_update};
use rand::{RngExt, rngs::ChaCha8Rng, seq::SliceRandom};
use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};
use thiserror::Error;

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

/// The local side of the federation: data, network, error-feedback residual.
pub struct LocalClient {
    worker_id: WorkerId,
    seed: u64,
    data: Arc<Dataset>,
    indices: Vec<u32>,
    spec: ModelSpec,
    layout: ModelLayout,
    shapes: Vec<Vec<usize>>,
    normalization: Normalization,
    trainer: Trainer,
    feedback: Feedback,
    encoder: Encoder,
    streams: Vec<Vec<u8>>,
    /// Local minus global parameters plus the residual: what the last update encoded.
    delta: Vec<f32>,
    batch: (Vec<f32>, Vec<u32>),
}

impl LocalClient {
    /// Prepares the worker's part of the data and the network of `global`.
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
        let indices = own_indices(config, &data);
        if indices.is_empty() {
            return Err(SetupError::NoData);
        }
        let convolutional = spec.layers.iter().any(|layer| matches!(layer, Layer::Conv2d { .. }));
        Ok(Self {
            worker_id: config.worker_id.clone(),
            seed: config.seed,
            indices,
            trainer: Trainer::new(spec, config.backend, config.training_threads(convolutional))?,
            feedback: Feedback::new(found),
            encoder: Encoder::default(),
            streams: Vec::new(),
            delta: vec![0.0; found],
            batch: (Vec::new(), Vec::new()),
            shapes: layout.shapes(),
            normalization: global.normalization.clone(),
            spec: spec.clone(),
            layout,
            data,
        })
    }

    /// Whether `global` is of the network that this client was made for.
    pub fn fits(&self, global: &GlobalModel) -> bool {
        self.spec == global.spec && self.normalization == global.normalization
    }

    /// Samples of this worker.
    pub fn num_samples(&self) -> usize {
        self.indices.len()
    }

    /// Parameters of the network.
    pub fn num_parameters(&self) -> usize {
        self.layout.parameters()
    }

    /// Trains from `global` for one round and encodes what changed.
    ///
    /// `before_step` is called before each step and may end the round early; then there is no update.
    /// The same `(seed, worker id, round)` and model give the same bytes.
    ///
    /// # Errors
    /// If the training diverges.
    pub fn train(
        &mut self,
        round: u64,
        global: &[f32],
        plan: &Plan,
        mut before_step: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Option<LocalUpdate>, ModelError> {
        let started = Instant::now();
        self.trainer.set_parameters(global);
        let mut batches = Batches::new(
            self.indices.clone(),
            plan,
            seeded_rng(self.seed, self.worker_id.as_str(), round, Purpose::Batches),
        );
        let (mut loss, mut steps) = (0.0f64, 0u32);
        while let Some(indices) = batches.next() {
            if before_step().is_break() {
                return Ok(None);
            }
            let (x, y) = &mut self.batch;
            self.data.train.gather(indices, &self.normalization, x, y);
            loss += f64::from(self.trainer.train_step(x, y, &plan.sgd)?);
            steps += 1;
        }
        let train_time = started.elapsed();
        let (body, encode_time) =
            self.encode(round, global, plan, loss / f64::from(steps), steps, train_time)?;
        Ok(Some(LocalUpdate {
            body: body.into(),
            loss: loss / f64::from(steps),
            num_samples: self.indices.len() as u64,
            steps,
            train_time,
            encode_time,
        }))
    }

    fn encode(
        &mut self,
        round: u64,
        global: &[f32],
        plan: &Plan,
        loss: f64,
        steps: u32,
        train_time: Duration,
    ) -> Result<(Vec<u8>, Duration), ModelError> {
        let started = Instant::now();
        self.trainer.parameters(&mut self.delta);
        for (local, global) in self.delta.iter_mut().zip(global) {
            *local -= global;
        }
        self.feedback.add_to(&mut self.delta);
        let mut spec = plan.encoding;
        spec.seed = seeded_rng(self.seed, self.worker_id.as_str(), round, Purpose::Rounding).random();
        // The only inputs that can fail are values that are not finite: training went astray.
        encode_update(&mut self.encoder, &self.delta, &self.shapes, &spec, &mut self.streams)
            .map_err(|_| ModelError::Diverged)?;
        let meta = UpdateMeta {
            worker_id: self.worker_id.clone(),
            round,
            num_samples: self.indices.len() as u64,
            loss: Some(loss),
            accuracy: None,
            compute_factor: Some(train_time.as_secs_f64()),
            local_steps: Some(steps),
        };
        let tensors: Vec<_> = self.streams.iter().map(|stream| Encoded::Stream(stream)).collect();
        let body = update::write(&meta, &self.layout, &tensors)
            .map_err(|error| ModelError::BadFile(error.to_string()))?;
        Ok((body, started.elapsed()))
    }

    /// The last update counts: what its encoding lost goes into the next one.
    ///
    /// An update that the master refuses leaves the residual as it was. Its delta was made for a model
    /// that is no more, and keeping the deltas of a worker that is always late would add up without end.
    pub fn settle(&mut self) {
        let lengths = self.layout.tensors().iter().map(|tensor| tensor.len);
        // The streams are this client's own and complete: they decode.
        let settled = self.feedback.settle(&self.delta, &self.streams, lengths);
        debug_assert!(settled.is_ok());
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

/// Draws batches without replacement, reshuffling after each pass.
struct Batches {
    order: Vec<u32>,
    rng: ChaCha8Rng,
    size: usize,
    next: usize,
    left: Work,
}

impl Batches {
    fn new(order: Vec<u32>, plan: &Plan, rng: ChaCha8Rng) -> Self {
        let next = order.len();
        Self { size: plan.batch_size.min(order.len()), order, rng, next, left: plan.work }
    }

    /// The next batch's indices. With steps every batch is full; with epochs the last one of a pass may
    /// be smaller, so that each sample is seen once.
    fn next(&mut self) -> Option<&[u32]> {
        match &mut self.left {
            Work::Steps(0) => return None,
            Work::Steps(left) => {
                *left -= 1;
                if self.next + self.size > self.order.len() {
                    self.shuffle();
                }
            }
            Work::Epochs(left) => {
                if self.next == self.order.len() {
                    if *left == 0 {
                        return None;
                    }
                    *left -= 1;
                    self.shuffle();
                }
            }
        }
        let start = self.next;
        self.next = (start + self.size).min(self.order.len());
        Some(&self.order[start..self.next])
    }

    fn shuffle(&mut self) {
        self.order.shuffle(&mut self.rng);
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_model::SgdConfig;
    use fl_quant::{Scheme, Spec};
    use rand::SeedableRng;

    fn batches(samples: u32, batch_size: usize, work: Work) -> Vec<Vec<u32>> {
        let plan = Plan { work, batch_size, sgd: SgdConfig::default(), encoding: Spec::new(Scheme::None, 8) };
        let mut batches = Batches::new((0..samples).collect(), &plan, ChaCha8Rng::seed_from_u64(1));
        let mut all = Vec::new();
        while let Some(batch) = batches.next() {
            all.push(batch.to_vec());
        }
        all
    }

    #[test]
    fn an_epoch_sees_every_sample_once() {
        let all = batches(10, 4, Work::Epochs(2));
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        let mut first = all[..3].concat();
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn steps_are_full_batches_however_few_the_samples() {
        assert!(batches(10, 4, Work::Steps(7)).iter().all(|batch| batch.len() == 4));
        let small = batches(3, 64, Work::Steps(5));
        assert_eq!(small.len(), 5);
        assert!(small.iter().all(|batch| batch.len() == 3));
    }
}
