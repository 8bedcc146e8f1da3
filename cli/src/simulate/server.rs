//! The master of a simulated federation: settings, test data and core, without HTTP and files.

use bytes::Bytes;
use fl_datasets::Dataset;
use fl_master::{Config, Core, Global, ModelSource, Snapshot, round::RoundState, setup};
use fl_model::{GlobalModel, ModelError};
use fl_protocol::{TaskAction, TaskBody};
use std::sync::Arc;

/// The server side of a simulation.
pub struct Server {
    /// The master's settings.
    pub config: Config,
    /// The data set whose test part the models are evaluated on.
    pub dataset: Dataset,
    /// The model and the sums of the open round.
    pub core: Core,
}

impl Server {
    /// Loads the test set and makes the first model.
    ///
    /// # Errors
    /// If data are missing, the model does not fit, or a round would not fit into `MAX_BUFFER_MB`.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let source = ModelSource::load(&config.model)?;
        config.check_memory(source.layout.parameters())?;
        let snapshot = Snapshot::initial(source.initial(config.seed)?);
        let settings = config.aggregation.clone();
        let core = Core::new(source.layout, settings, snapshot)?;
        Ok(Self { config, dataset: source.dataset, core })
    }

    /// The rounds before the first one, at time 0.
    pub fn rounds(&self) -> RoundState {
        RoundState::new(setup::rules(&self.config), 0, Vec::new(), 0.0)
    }

    /// The newest model.
    pub fn global(&self) -> Arc<Global> {
        self.core.global()
    }

    /// The newest model's parameters and network.
    ///
    /// # Errors
    /// Infallible for models that the core made.
    pub fn model(&self) -> Result<GlobalModel, ModelError> {
        GlobalModel::from_safetensors(&self.global().bytes)
    }

    /// The answer of `GET /task` for a worker that trains the newest model.
    pub fn task(&self) -> TaskBody {
        setup::task(&self.config, &self.global(), TaskAction::Train, None)
    }

    /// Adds an update to the open round; `None` if it is refused.
    pub fn add(&self, body: &Bytes) -> Option<fl_master::round::Contribution> {
        let added = self.core.add(body, body.len() as u64).ok()?;
        self.core.confirm(&added.meta, body);
        Some(added.contribution)
    }
}
