//! Where the first model comes from.

use crate::settings::{ModelConfig, SettingError, TENSORS};
use anyhow::Context;
use bytes::Bytes;
use fl_datasets::{Dataset, Part};
use fl_model::{GlobalModel, ModelError, ModelSpec, ModelView, Network, Parts, read_parameters};
use fl_protocol::{Input, ModelLayout, limits::MAX_PARAMETERS};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The network that the settings name, and the data set that it is evaluated on.
#[derive(Debug)]
pub struct ModelSource {
    /// The network, or at least its tensors.
    pub network: Network,
    /// The first model, if a file gives it.
    start: Option<GlobalModel>,
    /// `INITIAL_MODEL`, read when a model of round 0 is made.
    initial: Option<PathBuf>,
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
        let source = match config.model.strip_prefix(TENSORS) {
            Some(path) => {
                Self::of_tensors(config, path).with_context(|| format!("MODEL={}", config.model))?
            }
            None => Self::of_spec(config)?,
        };
        Parts::new(config.trainable.as_ref(), config.local_layers.as_ref(), &source.layout)
            .map_err(|refused| SettingError::new(refused.setting, refused.pattern, refused.reason))?;
        Ok(source)
    }

    fn of_spec(config: &ModelConfig) -> anyhow::Result<Self> {
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
        Ok(Self {
            layout: spec.layout(),
            network: spec.into(),
            start: None,
            initial: config.initial_model.clone(),
            dataset,
        })
    }

    /// The tensors of a file. What they compute only the workers know: nothing is evaluated here, and the data set
    /// is of no meaning.
    fn of_tensors(config: &ModelConfig, path: &str) -> anyhow::Result<Self> {
        let model = GlobalModel::from_any_safetensors(&read(Path::new(path))?)?;
        let mut dataset = fl_datasets::load(&config.dataset, config.data_dir.as_deref(), Part::Test)?;
        dataset.names = Default::default();
        Ok(Self {
            layout: model.network.layout().into_owned(),
            network: model.network.clone(),
            start: Some(model),
            initial: None,
            dataset,
        })
    }

    /// The file of the model of round 0.
    ///
    /// # Errors
    /// If it cannot be serialized, or `INITIAL_MODEL` cannot be read or is of another network.
    pub fn initial(&self, seed: u64) -> anyhow::Result<Bytes> {
        let model = match &self.network {
            Network::Spec(spec) => GlobalModel {
                round: 0,
                network: spec.clone().into(),
                normalization: self.dataset.normalization.clone(),
                names: self.dataset.names.clone(),
                parameters: match &self.initial {
                    Some(path) => self.parameters_of(path)?,
                    None => fl_model::init_parameters(spec, seed),
                },
                buffers: fl_model::Buffers::default(),
            },
            Network::Tensors(layout) => {
                self.start.clone().unwrap_or_else(|| GlobalModel::of_tensors(0, layout.clone(), Vec::new()))
            }
        };
        Ok(model.to_safetensors()?.into())
    }

    fn parameters_of(&self, path: &Path) -> anyhow::Result<Vec<f32>> {
        let place = || format!("INITIAL_MODEL={}", path.display());
        let file = read(path).with_context(place)?;
        read_parameters(&file, &self.layout).with_context(place)
    }

    /// Checks that a file is a model of this network.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, file: &[u8]) -> anyhow::Result<()> {
        let model = ModelView::read(file).context("the checkpoint's model cannot be read")?.model;
        let same = match (&model.network, &self.network) {
            (Network::Spec(saved), Network::Spec(given)) => {
                saved.layers == given.layers && saved.input == given.input
            }
            (saved, given) => saved == given,
        };
        anyhow::ensure!(
            same,
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

/// The bytes of a model's file.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bad = |reason: String| ModelError::BadSpecFile { path: path.display().to_string(), reason };
    let size = fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
    if size > 8 * MAX_PARAMETERS as u64 {
        return Err(bad(format!("it has {size} bytes, more than a model can need")).into());
    }
    Ok(fs::read(path).map_err(|error| bad(error.to_string()))?)
}
