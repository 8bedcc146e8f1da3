//! The global model in memory: the file that `GET /global` sends, and how the next one is made.

use crate::{
    config::AggregationConfig, config::ModelConfig, federation::aggregate::Collector,
    federation::intake::lazy, federation::step::ServerState, federation::step::Totals,
    federation::step::next_parameters,
};
use anyhow::Context;
use bytes::Bytes;
use fl_datasets::{Dataset, Part};
use fl_model::{GlobalModel, ModelError, ModelSpec};
use fl_protocol::ModelLayout;
use fl_quant::{Scheme, Spec};
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// A round's model, ready to be sent.
#[derive(Debug, Clone)]
pub struct Global {
    /// Its round.
    pub round: u64,
    /// The safetensors file.
    pub bytes: Bytes,
    /// Names the content: quoted, as HTTP wants it.
    pub etag: String,
    /// The server's control variate as a file like the model's, if the strategy has one.
    pub control: Option<Bytes>,
    /// With lazy upload: the squared change below which an update need not be sent.
    pub lazy_below: Option<f32>,
    /// The quantized files that were asked for last.
    quantized: Arc<Mutex<VecDeque<(Compact, Bytes)>>>,
}

/// Quantized files of one model that are kept: workers of one federation ask for one.
const KEPT_COMPACT: usize = 2;

/// How a model is quantized for the download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compact {
    /// The quantizer.
    pub scheme: Scheme,
    /// Bits per code.
    pub bits: u8,
}

impl fmt::Display for Compact {
    /// As in an `ETag` and in a file's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.scheme, self.bits)
    }
}

impl Global {
    /// Names a file.
    pub fn new(round: u64, bytes: Bytes) -> Self {
        let digest = crate::store::checkpoint::hex(&Sha256::digest(&bytes)[..16]);
        Self {
            round,
            bytes,
            etag: format!("\"{digest}\""),
            control: None,
            lazy_below: None,
            quantized: Arc::default(),
        }
    }

    /// Adds what else the workers are told, by the settings and the strategy's state.
    ///
    /// # Errors
    /// If the file is no model.
    pub fn completed(mut self, config: &AggregationConfig, server: &ServerState) -> Result<Self, ModelError> {
        self.lazy_below = config.lazy.map(|factor| lazy::threshold(factor, &server.steps));
        if config.strategy.uses_control() {
            let mut model = GlobalModel::from_safetensors(&self.bytes)?;
            match server.vectors.first() {
                Some(control) => model.parameters.clone_from(control),
                None => model.parameters.fill(0.0),
            }
            self.control = Some(model.to_safetensors()?.into());
        }
        Ok(self)
    }

    /// The quantized file, made once for all who ask for it. Takes a while: call it off the async threads.
    ///
    /// It is made of the exact model every time, so that no round inherits an error from the one before.
    ///
    /// # Errors
    /// If the file is no model.
    pub fn quantized(&self, compact: Compact) -> Result<Bytes, ModelError> {
        // Whoever comes while it is being made waits for it here.
        let mut kept = self.quantized.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = kept.iter().find(|(known, _)| *known == compact) {
            return Ok(file.clone());
        }
        let spec = Spec { entropy: true, seed: self.round, ..Spec::new(compact.scheme, compact.bits) };
        let file = Bytes::from(GlobalModel::from_safetensors(&self.bytes)?.to_quantized(&spec)?);
        kept.truncate(KEPT_COMPACT - 1);
        kept.push_front((compact, file.clone()));
        Ok(file)
    }

    /// All parameters in canonical order.
    ///
    /// # Errors
    /// If the file is no model.
    pub fn parameters(&self) -> Result<Vec<f32>, ModelError> {
        GlobalModel::from_safetensors(&self.bytes).map(|model| model.parameters)
    }
}

/// What the settings ask for: network, test data, first model.
#[derive(Debug)]
pub struct Blueprint {
    /// The network.
    pub spec: ModelSpec,
    /// Its tensors.
    pub layout: ModelLayout,
    /// The test set, and the normalisation.
    pub dataset: Dataset,
}

impl Blueprint {
    /// Loads the data set and lays the network out.
    ///
    /// # Errors
    /// If data are missing, or the model does not fit.
    pub fn new(config: &ModelConfig) -> anyhow::Result<Self> {
        let mut dataset = fl_datasets::load(&config.dataset, config.data_dir.as_deref(), Part::Test)?;
        if let Some(labels) = &config.labels {
            dataset.set_labels(labels.clone())?;
        }
        let spec =
            ModelSpec::load(&config.model, &dataset.input_shape, dataset.num_classes, config.model_dim)?;
        Ok(Self { layout: spec.layout(), spec, dataset })
    }

    /// The model of round 0.
    ///
    /// # Errors
    /// If it cannot be serialized.
    pub fn initial(&self, seed: u64) -> Result<Global, ModelError> {
        let model = GlobalModel {
            round: 0,
            spec: self.spec.clone(),
            normalization: self.dataset.normalization.clone(),
            names: self.dataset.names.clone(),
            parameters: fl_model::init_parameters(&self.spec, seed),
        };
        Ok(Global::new(0, model.to_safetensors()?.into()))
    }

    /// Checks that a file is a model of this network.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, round: u64, bytes: Bytes) -> anyhow::Result<Global> {
        let model = GlobalModel::from_safetensors(&bytes).context("the checkpoint's model cannot be read")?;
        anyhow::ensure!(
            model.spec.layers == self.spec.layers && model.spec.input_shape == self.spec.input_shape,
            ModelError::BadFile(
                "STATE_DIR holds another network: use another folder, or the MODEL and DATASET it was made with".into()
            )
        );
        let (saved, given) = (&model.names.labels, &self.dataset.names.labels);
        anyhow::ensure!(
            saved.is_empty() || given.is_empty() || saved == given,
            ModelError::BadFile(format!(
                "STATE_DIR was trained with the labels {}, DATASET and LABELS give {}: use those it was made with, \
                 or another folder",
                saved.join(","),
                given.join(",")
            ))
        );
        Ok(Global::new(round, bytes))
    }
}

/// The model after `global`, from its round's updates. If the result is not finite the parameters stay
/// as they were: a round must not ruin the model.
///
/// # Errors
/// If `global` is no model.
pub fn next(
    global: &Global,
    config: &AggregationConfig,
    server: &mut ServerState,
    collected: &Collector,
    totals: &Totals,
) -> Result<Global, ModelError> {
    let mut model = GlobalModel::from_safetensors(&global.bytes)?;
    let mut next_server = server.clone();
    let before = model.parameters.clone();
    let (strategy, options) = (config.strategy, &config.server);
    next_parameters(strategy, options, &mut next_server, collected, totals, &mut model.parameters);
    let vectors = std::iter::once(&model.parameters).chain(&next_server.vectors);
    if vectors.flatten().all(|value| value.is_finite()) {
        if config.lazy.is_some() {
            lazy::push_step(&mut next_server.steps, &before, &model.parameters);
        }
        *server = next_server;
    } else {
        tracing::error!(round = global.round, "the average is not finite: the model stays as it was");
        model.parameters = before;
    }
    model.round = global.round + 1;
    Global::new(model.round, model.to_safetensors()?.into()).completed(config, server)
}
