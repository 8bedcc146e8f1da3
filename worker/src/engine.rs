//! Trains clients: the global model goes in, an update container comes out. Without a network.
//!
//! An [`Engine`] trains and holds nothing of a client; a [`ClientState`] is what one client carries from
//! round to round. A worker has one of each, a simulator an engine per thread for all its clients.

use crate::{
    client_state::{ClientMemory, ClientState},
    error::SetupError,
    plan::{Plan, StartingPoint},
    samples::Batches,
    settings::Config,
    update::{LocalUpdate, Sent, UpdateEncoder},
};
use fl_datasets::{Dataset, Purpose, Samples, seeded_rng};
use fl_model::{
    Batch, Evaluation, GlobalModel, Layer, Learner, ModelError, ModelSpec, Network, Parts, PartsError,
    TensorPattern, spec::describe,
};
use fl_protocol::{DataNames, Metrics, ModelLayout, Normalization, TensorLayout, UpdateMeta};
use rand::RngExt;
use std::{ops::ControlFlow, sync::Arc, time::Instant};

/// Makes a user's learner for the model that the master serves: see [`run_with`](crate::run_with).
pub type MakeLearner = Arc<dyn Fn(&GlobalModel) -> Result<Box<dyn Learner>, ModelError> + Send + Sync>;

/// Trains clients, one after the other: network, buffers, shared data.
pub struct Engine {
    data: Arc<Dataset>,
    network: Network,
    normalization: Normalization,
    names: DataNames,
    /// The model's class for each class of the data; none if they are the same.
    classes: Option<Vec<u32>>,
    learner: Box<dyn Learner>,
    updates: UpdateEncoder,
    /// `TRAINABLE`; none: all tensors are trained.
    trainable: Option<TensorPattern>,
    /// `LOCAL_LAYERS`; none: no tensor is personal.
    local: Option<TensorPattern>,
    parts: Parts,
    /// SCAFFOLD's correction of every gradient.
    drift: Vec<f32>,
    batch: Samples,
}

impl Engine {
    /// Prepares the network of `global`, whose parameters it does not look at.
    ///
    /// # Errors
    /// If the model does not fit this worker's settings or data.
    pub fn new(config: &Config, data: Arc<Dataset>, global: &GlobalModel) -> Result<Self, SetupError> {
        let spec = global.network.known()?;
        check_size(config, global)?;
        let classes = Self::check_data(spec, &data, global)?;
        let convolutional = spec.has_layer(|layer| matches!(layer, Layer::Conv2d { .. }));
        let threads = config.training.threads_for(convolutional, config.workers);
        let learner = spec.learner(config.training.backend, threads)?;
        Self::of(learner, data, global, global.normalization.clone(), classes, threads)
    }

    /// Prepares a user's learner for `global`. Where the master does not know the network, the data have their own
    /// normalisation.
    ///
    /// # Errors
    /// If the learner cannot be made, or does not have the tensors of `global`.
    pub fn with_learner(
        config: &Config,
        data: Arc<Dataset>,
        global: &GlobalModel,
        make: &MakeLearner,
    ) -> Result<Self, SetupError> {
        check_size(config, global)?;
        let (classes, normalization) = match &global.network {
            Network::Spec(spec) => (Self::check_data(spec, &data, global)?, global.normalization.clone()),
            Network::Tensors(_) => (None, data.normalization.clone()),
        };
        let learner = make(global)?;
        check_layout(&global.network.layout(), learner.layout())?;
        let threads = config.training.threads_for(false, config.workers);
        Self::of(learner, data, global, normalization, classes, threads)
    }

    fn of(
        learner: Box<dyn Learner>,
        data: Arc<Dataset>,
        global: &GlobalModel,
        normalization: Normalization,
        classes: Option<Vec<u32>>,
        threads: usize,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            learner,
            updates: UpdateEncoder::new(global.network.layout().into_owned(), threads)?,
            trainable: None,
            local: None,
            parts: Parts::default(),
            drift: Vec::new(),
            batch: Samples::new(),
            normalization,
            names: global.names.clone(),
            classes,
            network: global.network.clone(),
            data,
        })
    }

    /// The model's class for each class of the data, if they differ.
    fn check_data(
        spec: &ModelSpec,
        data: &Dataset,
        global: &GlobalModel,
    ) -> Result<Option<Vec<u32>>, SetupError> {
        let misfit = || SetupError::Data {
            dataset: data.name.clone(),
            model: describe(&spec.input, &spec.task),
            data: describe(&data.input, &data.task),
        };
        if !spec.accepts(&data.input, &data.task) {
            return Err(misfit());
        }
        let classes = data.class_map(&global.names).map_err(SetupError::Names)?;
        if classes.is_none() && data.num_classes() > spec.num_classes() {
            return Err(misfit());
        }
        data.train
            .check_normalization(&global.normalization)
            .map_err(|error| SetupError::Normalization(error.to_string()))?;
        Ok(classes)
    }

    /// The network, for other uses between two rounds.
    pub fn learner(&mut self) -> &mut dyn Learner {
        &mut *self.learner
    }

    /// Whether `global` is of the network and the data that this engine was made for.
    pub fn fits(&self, global: &GlobalModel) -> bool {
        self.network == global.network
            && self.names == global.names
            && (self.network.spec().is_none() || self.normalization == global.normalization)
    }

    /// Parameters of the network.
    pub fn num_parameters(&self) -> usize {
        self.updates.layout().parameters()
    }

    pub(crate) fn layout(&self) -> &ModelLayout {
        self.updates.layout()
    }

    /// The shared data.
    pub(crate) fn data(&self) -> &Dataset {
        &self.data
    }

    /// From now on only tensors in whose name `trainable` is found are trained (none: all), and those in whose name
    /// `local` is found (none: no one) are personal. The update of both is exactly zero.
    ///
    /// # Errors
    /// If one is no regular expression or finds no tensor, or nothing would travel.
    pub fn set_parts(&mut self, trainable: Option<&str>, local: Option<&str>) -> Result<(), PartsError> {
        let is = |own: &Option<TensorPattern>, given: Option<&str>| {
            own.as_ref().map(TensorPattern::as_str) == given
        };
        if is(&self.trainable, trainable) && is(&self.local, local) {
            return Ok(());
        }
        let parse = |setting, text: Option<&str>| {
            let refused = |text: &str, reason| PartsError { setting, pattern: text.to_owned(), reason };
            text.map(|text| text.parse::<TensorPattern>().map_err(|reason| refused(text, reason))).transpose()
        };
        let (trainable, local) = (parse("TRAINABLE", trainable)?, parse("LOCAL_LAYERS", local)?);
        let parts = Parts::new(trainable.as_ref(), local.as_ref(), self.layout())?;
        self.learner.set_trainable(&parts.trained);
        self.updates.set_parts(&parts, local.as_ref());
        (self.trainable, self.local, self.parts) = (trainable, local, parts);
        Ok(())
    }

    /// Loads the model as a client has it: `parameters`, with the client's own tensors over them. Not between
    /// [`Engine::train`] and [`Engine::settle`].
    ///
    /// # Panics
    /// If there are not as many parameters as the network has.
    pub fn load(&mut self, memory: &ClientMemory, parameters: &[f32]) {
        match &memory.personal {
            Some(personal) if self.local.is_some() => {
                let (layout, room) = self.updates.room();
                room.copy_from_slice(parameters);
                personal.put_over(layout, &self.parts.local, room);
                self.learner.load(room);
            }
            _ => self.learner.load(parameters),
        }
    }

    /// Evaluates parameters on the samples that `client` holds out; `None` if there are none.
    ///
    /// # Errors
    /// If the data do not fit the network.
    pub fn evaluate(
        &mut self,
        client: &ClientState,
        parameters: &[f32],
    ) -> Result<Option<Evaluation>, ModelError> {
        if client.held_out.is_empty() {
            return Ok(None);
        }
        self.load(&client.memory, parameters);
        let held_out = &client.held_out;
        let Self { learner, data, normalization, classes, batch, .. } = self;
        let mut chosen = Vec::new();
        let found = fl_model::evaluate(held_out.len(), |places| {
            chosen.clear();
            chosen.extend(places.iter().map(|place| held_out[*place as usize]));
            data.train.gather(&chosen, normalization, batch);
            if let Some(classes) = classes {
                batch.renumber(classes);
            }
            learner.evaluate(Batch::new(batch.inputs(), batch.targets()))
        })?;
        Ok(Some(found))
    }

    /// Trains `client` from `from` for one round and encodes what changed. With the server's control
    /// variate it trains by SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II).
    ///
    /// `before_step` is called before each step and may end the round early; then there is no update.
    /// The same `(seed, worker id, round)`, model and memory give the same bytes, but for the
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
        self.load(&client.memory, from.parameters);
        let rng_of = |purpose| seeded_rng(client.seed, client.worker_id.as_str(), from.round, purpose);
        self.learner.begin_round(rng_of(Purpose::Masks).random());
        if let Some(control) = from.control {
            self.set_drift(control, &client.memory.control_variate);
        }
        let mut batches = Batches::new(client.indices.clone(), plan, rng_of(Purpose::Batches));
        let (mut loss, mut steps) = (0.0f64, 0u32);
        while let Some(indices) = batches.next() {
            if before_step().is_break() {
                return Ok(None);
            }
            self.data.train.gather(indices, &self.normalization, &mut self.batch);
            if let Some(classes) = &self.classes {
                self.batch.renumber(classes);
            }
            let batch = Batch::new(self.batch.inputs(), self.batch.targets());
            loss += f64::from(self.learner.step(batch, &plan.sgd)?);
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
            metrics: Metrics::default(),
        };
        let started = Instant::now();
        let learner = &mut self.learner;
        let trained = |local: &mut [f32]| learner.read(local);
        let (body, notice) = self.updates.encode(client, from, plan, &meta, trained)?;
        Ok(Some(LocalUpdate {
            body,
            notice,
            loss: loss / f64::from(steps),
            num_samples: meta.num_samples,
            steps,
            train_time,
            encode_time: started.elapsed(),
        }))
    }

    /// `c - c_i` goes into every gradient.
    fn set_drift(&mut self, control: &[f32], own: &[f32]) {
        self.drift.clear();
        self.drift.extend_from_slice(control);
        for (drift, own) in self.drift.iter_mut().zip(own) {
            *drift -= own;
        }
        for part in &self.parts.local {
            self.drift[part.clone()].fill(0.0);
        }
        self.learner.set_drift(&self.drift);
    }

    /// Called when the last update, which was `client`'s, was accepted: the residual takes the encoding error
    /// as far as the plan's rule keeps it, and the control variate moves by the change that the master decodes,
    /// so that the master's stays the clients' mean. After a notice was `sent`, the whole difference to the
    /// previous update is carried into the next residual.
    ///
    /// With `LOCAL_LAYERS` the client's own tensors become those that the training gave.
    ///
    /// An update that the master refuses changes nothing. Its delta was made for an outdated model, and the
    /// deltas of a worker that is always late would accumulate without bound.
    pub fn settle(&self, client: &mut ClientState, sent: Sent) {
        self.updates.settle(&mut client.memory, sent);
    }
}

fn check_size(config: &Config, global: &GlobalModel) -> Result<(), SetupError> {
    let found = global.network.layout().parameters();
    match config.training.model_dim.filter(|allowed| found > *allowed) {
        Some(allowed) => Err(SetupError::ModelTooLarge { found, allowed }),
        None => Ok(()),
    }
}

/// Names the first tensor that differs.
fn check_layout(model: &ModelLayout, own: &ModelLayout) -> Result<(), SetupError> {
    let (a, b) = (model.tensors(), own.tensors());
    let describe = |tensor: Option<&TensorLayout>| match tensor {
        Some(tensor) => format!("`{}` {:?}", tensor.name, tensor.shape),
        None => "no further tensor".to_owned(),
    };
    match (0..a.len().max(b.len())).find(|&index| a.get(index) != b.get(index)) {
        Some(index) => {
            Err(SetupError::OtherTensors { model: describe(a.get(index)), own: describe(b.get(index)) })
        }
        None => Ok(()),
    }
}
