//! A worker without a network.

use crate::{
    client_state::{ClientMemory, ClientState},
    engine::{Engine, MakeLearner},
    error::SetupError,
    plan::{Plan, StartingPoint},
    samples::{hold_out, own_samples},
    settings::Config,
    update::{LocalUpdate, Sent},
};
use fl_datasets::Dataset;
use fl_model::{Evaluation, GlobalModel, ModelError, PartsError};
use fl_protocol::ModelLayout;
use std::{ops::ControlFlow, sync::Arc};

/// An engine with its one client.
pub struct LocalClient {
    engine: Engine,
    state: ClientState,
    /// Share of the samples that is held out.
    local_test: f64,
}

impl LocalClient {
    /// Prepares the worker's part of the data and the network of `global`.
    ///
    /// # Errors
    /// If the model does not fit this worker's settings or data.
    pub fn new(config: &Config, data: Arc<Dataset>, global: &GlobalModel) -> Result<Self, SetupError> {
        Self::of(config, Engine::new(config, cut(data, global)?, global)?)
    }

    /// As [`LocalClient::new`], with a user's learner: see [`Engine::with_learner`].
    ///
    /// # Errors
    /// If the model does not fit the learner, the settings or the data.
    pub fn with_learner(
        config: &Config,
        data: Arc<Dataset>,
        global: &GlobalModel,
        make: &MakeLearner,
    ) -> Result<Self, SetupError> {
        Self::of(config, Engine::with_learner(config, cut(data, global)?, global, make)?)
    }

    fn of(config: &Config, engine: Engine) -> Result<Self, SetupError> {
        let state = ClientState::new(config, engine.data())?;
        Ok(Self { engine, state, local_test: 0.0 })
    }

    /// Whether `global` is of the network and the data that this client was made for.
    pub fn fits(&self, global: &GlobalModel) -> bool {
        self.engine.fits(global)
    }

    /// Samples of this worker.
    pub fn num_samples(&self) -> usize {
        self.state.indices.len()
    }

    /// Parameters of the network.
    pub fn num_parameters(&self) -> usize {
        self.engine.num_parameters()
    }

    /// The network's tensors.
    pub fn layout(&self) -> &ModelLayout {
        self.engine.layout()
    }

    /// What it carries from round to round.
    pub fn memory(&self) -> &ClientMemory {
        &self.state.memory
    }

    /// The same, to restore or to forget it.
    pub fn memory_mut(&mut self) -> &mut ClientMemory {
        &mut self.state.memory
    }

    /// See [`Engine::set_parts`].
    ///
    /// # Errors
    /// Patterns that do not fit the model.
    pub fn set_parts(&mut self, trainable: Option<&str>, local: Option<&str>) -> Result<(), PartsError> {
        self.engine.set_parts(trainable, local)
    }

    /// See [`Engine::load`].
    ///
    /// # Panics
    /// If there are not as many parameters as the network has.
    pub fn load(&mut self, parameters: &[f32]) {
        self.engine.load(&self.state.memory, parameters);
    }

    /// Holds this share of the samples out of the training, for evaluations.
    pub fn set_local_test(&mut self, config: &Config, share: f64) {
        if share != self.local_test {
            let own = own_samples(config, self.engine.data());
            (self.state.indices, self.state.held_out) =
                hold_out(own, share, self.state.seed, &self.state.worker_id);
            self.local_test = share;
        }
    }

    /// See [`Engine::evaluate`].
    ///
    /// # Errors
    /// If the data do not fit the network.
    pub fn evaluate(&mut self, parameters: &[f32]) -> Result<Option<Evaluation>, ModelError> {
        self.engine.evaluate(&self.state, parameters)
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

/// A text is cut into sequences of the network's length before samples are counted.
fn cut(data: Arc<Dataset>, global: &GlobalModel) -> Result<Arc<Dataset>, SetupError> {
    match global.network.spec() {
        Some(spec) => data.cut_for(&spec.input).map_err(SetupError::Names),
        None => Ok(data),
    }
}
