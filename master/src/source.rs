//! Where the first model comes from.

use crate::settings::ModelConfig;
use anyhow::Context;
use bytes::Bytes;
use fl_datasets::{Dataset, Part};
use fl_model::{GlobalModel, ModelError, ModelSpec, ModelView};
use fl_protocol::{Input, ModelLayout};

/// The network that the settings name, and the data set that it is evaluated on.
#[derive(Debug)]
pub struct ModelSource {
    /// The network.
    pub spec: ModelSpec,
    /// Its tensors.
    pub layout: ModelLayout,
    /// The test set, and the normalisation.
    pub dataset: Dataset,
}

impl ModelSource {
    /// Loads the data set and lays the network out.
    ///
    /// # Errors
    /// If data are missing, or the model does not fit.
    pub fn load(config: &ModelConfig) -> anyhow::Result<Self> {
        let mut dataset = fl_datasets::load(&config.dataset, config.data_dir.as_deref(), Part::Test)?;
        if let Some(labels) = &config.labels {
            dataset.set_labels(labels.clone())?;
        }
        let spec = ModelSpec::load(&config.model, &dataset.input, &dataset.task, config.model_dim)?;
        if let (Input::Tokens { .. }, Input::Tokens { shape, .. }) = (&dataset.input, &spec.input)
            && dataset.input_shape() != shape.as_slice()
        {
            dataset = dataset.with_sequence_length(shape.first().copied().unwrap_or(0))?;
        }
        Ok(Self { layout: spec.layout(), spec, dataset })
    }

    /// The file of the model of round 0.
    ///
    /// # Errors
    /// If it cannot be serialized.
    pub fn initial(&self, seed: u64) -> Result<Bytes, ModelError> {
        let model = GlobalModel {
            round: 0,
            spec: self.spec.clone(),
            normalization: self.dataset.normalization.clone(),
            names: self.dataset.names.clone(),
            parameters: fl_model::init_parameters(&self.spec, seed),
        };
        Ok(model.to_safetensors()?.into())
    }

    /// Checks that a file is a model of this network.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, file: &[u8]) -> anyhow::Result<()> {
        let model = ModelView::read(file).context("the checkpoint's model cannot be read")?.model;
        anyhow::ensure!(
            model.spec.layers == self.spec.layers && model.spec.input == self.spec.input,
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
                serde_json::json!(saved),
                serde_json::json!(given)
            ))
        );
        Ok(())
    }
}
