//! Model and data.

use clap::Args;
use fl_app::{
    SettingError,
    setting::{dataset, filled, parse, whole},
};
use fl_datasets::DatasetSpec;
use fl_model::{Backend, TensorPattern};
use fl_protocol::limits::MAX_PARAMETERS;
use std::{collections::HashSet, path::PathBuf};

/// `MODEL` of tensors without a network begins with it.
pub(crate) const TENSORS: &str = "safetensors:";

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and data")]
pub struct ModelArgs {
    /// Network: softmax, mlp, cnn, mcmahan_cnn, resnet20, vgg11, mobilenet_small, char_lstm, tiny_transformer,
    /// linear_regression, the path of a network in JSON, or safetensors:FILE for tensors without a network (F32, F16
    /// and BF16 are trained in f32, integers are carried along)
    #[arg(long, env, default_value = "mlp")]
    pub model: String,
    /// Parameter budget of the mlp preset, 1 to 268435456; its hidden width is the largest that fits
    #[arg(long, env, default_value_t = 100_000)]
    pub model_dim: usize,
    /// Safetensors file with the parameters of round 0: names and shapes of the network's tensors (PyTorch's
    /// state_dict), F32, F16 or BF16 [default: drawn from SEED]
    #[arg(long, env, value_name = "FILE")]
    pub initial_model: Option<String>,
    /// Regular expression: only tensors in whose name it is found are trained, the others stay as they are
    /// [default: all]
    #[arg(long, env, value_name = "REGEX")]
    pub trainable: Option<String>,
    /// Regular expression: tensors in whose name it is found are personal: workers keep and train their own values,
    /// which never travel [default: none]
    #[arg(long, env, value_name = "REGEX")]
    pub local_layers: Option<String>,
    /// Data set that gives input shape, task and test set: digits, shakespeare, fashion-mnist, mnist, idx:DIR, cifar10,
    /// images:DIR@WxH, csv:FILE, safetensors:FILE, text:FILE, bytes:FILE
    #[arg(long, env, default_value = "digits")]
    pub dataset: String,
    /// Folder of the data files [default: the data set's usual place]
    #[arg(long, env)]
    pub data_dir: Option<String>,
    /// Columns of a csv file to predict as numbers, separated by commas; with ?task=multilabel after them as labels
    /// that are 0 or 1 [default: the label column]
    #[arg(long, env)]
    pub target: Option<String>,
    /// Names of all classes, separated by commas, if the table here lacks some that workers have
    /// [default: the labels of the csv file, the names of the folders]
    #[arg(long, env)]
    pub labels: Option<String>,
    /// What evaluates the model: auto (the faster of the next two), fused (own kernels), flex (Burn on the
    /// CPU), ndarray, wgpu
    #[arg(long, env, default_value = "auto")]
    pub backend: String,
    /// Rounds between two evaluations on the test set, 0 = never
    #[arg(long, env, default_value_t = 1)]
    pub eval_every: u64,
}

impl ModelArgs {
    pub(super) fn resolve(self) -> Result<ModelConfig, SettingError> {
        Ok(ModelConfig {
            model: self.model,
            model_dim: self.model_dim,
            initial_model: filled(self.initial_model).map(PathBuf::from),
            trainable: filled(self.trainable).map(|text| parse("TRAINABLE", &text)).transpose()?,
            local_layers: filled(self.local_layers).map(|text| parse("LOCAL_LAYERS", &text)).transpose()?,
            dataset: dataset(&self.dataset, self.target)?,
            data_dir: filled(self.data_dir).map(PathBuf::from),
            labels: filled(self.labels).map(|text| labels(&text)).transpose()?,
            backend: parse("BACKEND", &self.backend)?,
            eval_every: self.eval_every,
        })
    }
}

/// Which network is trained, and on what it is evaluated.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// `MODEL`: a preset, the path of a network in JSON, or `safetensors:FILE`.
    pub model: String,
    /// `MODEL_DIM`: parameter budget of the `mlp` preset.
    pub model_dim: usize,
    /// `INITIAL_MODEL`: file of the parameters of round 0; none: drawn from `SEED`.
    pub initial_model: Option<PathBuf>,
    /// `TRAINABLE`: the tensors that are trained; none: all.
    pub trainable: Option<TensorPattern>,
    /// `LOCAL_LAYERS`: the tensors of which each worker has its own; none: none.
    pub local_layers: Option<TensorPattern>,
    /// `DATASET` and `TARGET`: gives input shape, task and the test set.
    pub dataset: DatasetSpec,
    /// `DATA_DIR`: where data files are looked for, if not in the data set's usual place.
    pub data_dir: Option<PathBuf>,
    /// `LABELS`: names of all classes, if not those of the data set.
    pub labels: Option<Vec<String>>,
    /// `BACKEND`: what evaluates the model.
    pub backend: Backend,
    /// `EVAL_EVERY`: rounds between two evaluations; 0 = never.
    pub eval_every: u64,
}

impl ModelConfig {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        whole("MODEL_DIM", self.model_dim as u64, 1, MAX_PARAMETERS as u64)?;
        if let Some(path) = self.initial_model.as_ref().filter(|_| self.model.starts_with(TENSORS)) {
            let reason = format!("MODEL={TENSORS}FILE gives the parameters already: leave it out");
            return Err(SettingError::new("INITIAL_MODEL", path.display(), reason));
        }
        let backend = self.backend;
        backend.check().map_err(|error| SettingError::new("BACKEND", backend, error.to_string()))
    }
}

fn labels(text: &str) -> Result<Vec<String>, SettingError> {
    let labels: Vec<String> = text.split(',').map(|label| label.trim().to_owned()).collect();
    let mut seen = HashSet::new();
    match labels.iter().any(|label| label.is_empty() || !seen.insert(label)) {
        true => Err(SettingError::new("LABELS", text, "give different names, separated by commas")),
        false => Ok(labels),
    }
}
