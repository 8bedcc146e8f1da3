//! The server side of a federation without a server: the same checks, sums, steps and rules, called
//! directly. `fl simulate` drives it, with a clock of its own.

use crate::{
    config::Config, federation::aggregate::Collector, federation::intake::Intake,
    federation::intake::Rejection, federation::intake::lazy::LastUpdates, federation::model,
    federation::model::Blueprint, federation::model::Compact, federation::model::Global,
    federation::round::Contribution, federation::round::RoundState, federation::step::ServerState,
    http::api::task, service::closing, service::closing::Batch, service::ingest::account,
    store::journal::RecordMeta,
};
use bytes::Bytes;
use fl_datasets::Dataset;
use fl_model::{GlobalModel, ModelError};
use fl_protocol::{HistoryRecord, TaskAction, TaskBody};
use std::collections::BTreeMap;

/// A federation's model and the open round's updates.
#[derive(Debug)]
pub struct Core {
    config: Config,
    blueprint: Blueprint,
    global: Global,
    server: ServerState,
    collector: Collector,
    lasts: LastUpdates,
}

impl Core {
    /// Loads the test set and makes the first model.
    ///
    /// # Errors
    /// If data are missing, the model does not fit, or a round would not fit into `MAX_BUFFER_MB`.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let blueprint = Blueprint::new(&config.model)?;
        config.check_memory(blueprint.layout.parameters())?;
        let (aggregation, server) = (&config.aggregation, ServerState::default());
        let global = blueprint.initial(config.seed)?.completed(aggregation, &server)?;
        let collector = Collector::new(aggregation.strategy, blueprint.layout.parameters());
        let lasts = aggregation.last_updates(BTreeMap::new());
        Ok(Self { config, blueprint, global, server, collector, lasts })
    }

    /// The rules of the rounds, before the first one, at time `now`.
    pub fn rounds(&self, now: f64) -> RoundState {
        RoundState::new(closing::rules(&self.config), 0, Vec::new(), now)
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The data set whose test part the models are evaluated on.
    pub fn dataset(&self) -> &Dataset {
        &self.blueprint.dataset
    }

    /// Parameters of the model.
    pub fn num_parameters(&self) -> usize {
        self.blueprint.layout.parameters()
    }

    /// The newest model.
    ///
    /// # Errors
    /// Never, but by a fault of ours: it was made here.
    pub fn model(&self) -> Result<GlobalModel, ModelError> {
        GlobalModel::from_safetensors(&self.global.bytes)
    }

    /// The newest model's file, as `GET /global` sends it.
    pub fn file(&self) -> &Bytes {
        &self.global.bytes
    }

    /// The quantized file of the newest model, as `GET /global?quantizer=..&bits=..` sends it.
    ///
    /// # Errors
    /// Never, but by a fault of ours.
    pub fn quantized(&self, compact: Compact) -> Result<Bytes, ModelError> {
        self.global.quantized(compact)
    }

    /// The server's control variate, if the strategy has one, as `GET /control` sends it.
    pub fn control(&self) -> Option<&Bytes> {
        self.global.control.as_ref()
    }

    /// What `GET /task` answers while the newest model is to be trained.
    pub fn task(&self) -> TaskBody {
        task::body(&self.config, &self.global, TaskAction::Train, None)
    }

    /// Takes an update container into the open round, as `POST /update` does. Any number of threads may
    /// do so at the same time.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn add(&self, body: &Bytes) -> Result<Contribution, Rejection> {
        self.intake().with_term(body, self.global.round, |term| {
            term.add_to(&self.collector)?;
            self.lasts.keep(&term.meta, body);
            let record = RecordMeta { wire_bytes: body.len() as u64, ..RecordMeta::default() };
            Ok(account(term, &record).0)
        })
    }

    /// Whether a notice can be taken: in this round it then is.
    pub fn takes_notice(&self, notice: &[u8]) -> bool {
        self.intake().with_term(notice, self.global.round, |_| Ok(())).is_ok()
    }

    fn intake(&self) -> Intake<'_> {
        let Config { aggregation, round, .. } = &self.config;
        Intake {
            layout: &self.blueprint.layout,
            config: aggregation,
            terms: round.min_clients,
            lasts: &self.lasts,
            accepted: None,
        }
    }

    /// Makes the next model from the round that `state` says is over at time `now`. `bytes_down` were
    /// sent to the workers in it.
    ///
    /// # Errors
    /// Never, but by a fault of ours.
    pub fn close(
        &mut self,
        state: &RoundState,
        now: f64,
        bytes_down: u64,
    ) -> Result<HistoryRecord, ModelError> {
        let batch = Batch::of(state, now);
        let aggregation = &self.config.aggregation;
        self.global =
            model::next(&self.global, aggregation, &mut self.server, &self.collector, &batch.totals)?;
        self.collector.reset();
        self.lasts.prune(self.global.round);
        Ok(batch.record(self.num_parameters(), bytes_down))
    }
}
