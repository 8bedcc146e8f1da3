//! Settings that `fl run` and `fl simulate` share.

use clap::{ArgAction, Args, Parser};
use fl_app::SettingError;
use fl_app::setting;
use fl_datasets::{Dataset, DatasetSpec, Part, Partition};
use fl_model::{Method, ModelSpec};
use fl_quant::{Bits, Scheme};
use fl_worker::ErrorFeedback;
use serde::Serialize;
use std::path::PathBuf;

/// Flags that `fl run` and `fl simulate` share.
#[derive(Debug, Clone, Args, Serialize)]
pub struct FederationArgs {
    /// Rounds to train.
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: u64,

    /// Data set: digits and shakespeare (bundled), fashion-mnist, mnist, cifar10, idx:DIR, images:DIR@WxH, csv:FILE,
    /// safetensors:FILE, text:FILE, bytes:FILE [default: digits, or shakespeare for a preset that reads text].
    #[arg(long)]
    #[serde(serialize_with = "option_as_text")]
    pub dataset: Option<DatasetSpec>,

    /// Columns of a csv file to predict as numbers, separated by commas; with ?task=multilabel after them as labels
    /// that are 0 or 1 [default: the label column].
    #[arg(long, value_name = "COLUMNS")]
    pub target: Option<String>,

    /// Folder with the data set's files, if they are not where the system's package puts them.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Network: softmax, mlp, cnn, mcmahan_cnn, resnet20, vgg11, mobilenet_small, char_lstm, tiny_transformer,
    /// linear_regression, or a JSON file with a network.
    #[arg(long, default_value = "mlp", value_name = "NAME|FILE")]
    pub model: String,

    /// Parameter budget of `mlp`: its hidden layer is the widest that fits.
    #[arg(long, default_value_t = 100_000, value_name = "PARAMETERS")]
    pub model_dim: usize,

    /// Safetensors file with the parameters of round 0: names and shapes of the network's tensors (PyTorch's
    /// state_dict), F32, F16 or BF16 [default: drawn from --seed].
    #[arg(long, value_name = "FILE")]
    pub initial_model: Option<PathBuf>,

    /// Regular expression: only tensors in whose name it is found are trained [default: all].
    #[arg(long, value_name = "REGEX")]
    pub trainable: Option<String>,

    /// Regular expression: tensors in whose name it is found are personal: each worker keeps and trains its own
    /// values, which never travel [default: none].
    #[arg(long, value_name = "REGEX")]
    pub local_layers: Option<String>,

    /// How the training data is spread: iid, dirichlet:ALPHA (label skew), shards:K (K label runs each, or
    /// stretches of a text).
    #[arg(long, default_value = "dirichlet:0.5")]
    #[serde(serialize_with = "as_text")]
    pub partition: Partition,

    /// Quantizer of the updates: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none.
    #[arg(long, default_value = "MSQ_v2")]
    pub quantizer: Scheme,

    /// Bits per code, 1 to 8 (with the entropy stage: the quality of that many bits), or auto.
    #[arg(long, default_value = "4", conflicts_with = "uplink_mbit")]
    pub bits: Bits,

    /// Instead of --bits: Mbit that all updates of a round may take; each client encodes with the least error
    /// within its share.
    #[arg(long, value_name = "MBIT", value_parser = mbit)]
    pub uplink_mbit: Option<f64>,

    /// Lazy upload: a client leaves out an update whose squared change is at most LAZY times the mean squared
    /// step of the last ten models, and its last one counts again. 0.8 is LAQ's rule, above 1 the training
    /// begins to oscillate, 0 = off.
    #[arg(long, default_value_t = 0.0, value_name = "FACTOR")]
    pub lazy: f64,

    /// Bits of the codes in which clients download the model, 1 to 8, 0 = the exact model.
    #[arg(long, default_value_t = 0, value_name = "BITS")]
    pub down_bits: u8,

    /// Quantizer of the downloaded model [default: SDQ].
    #[arg(long)]
    pub down_quantizer: Option<Scheme>,

    /// Entropy-code the updates.
    #[arg(long, default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub entropy: bool,

    /// Choose codes by error and size under a trellis (MSQ_v2 with --entropy).
    #[arg(long, default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    pub rdo: bool,

    /// Error feedback, adding an update's quantization error to the next one: true, false, or auto (below 4
    /// bits, or without the entropy stage).
    #[arg(long, default_value_t = ErrorFeedback::Auto, value_name = "WHEN")]
    #[serde(serialize_with = "as_text")]
    pub error_feedback: ErrorFeedback,

    /// With --bits auto: the normalised squared error to reach.
    #[arg(long, default_value_t = 0.0095, value_name = "NMSE")]
    pub target_nmse: f64,

    /// SGD steps of one worker in one round.
    #[arg(long, default_value_t = 10, conflicts_with = "local_epochs", value_name = "N")]
    pub local_steps: u32,

    /// Passes of one worker over its data in one round, instead of --local-steps.
    #[arg(long, value_name = "N")]
    pub local_epochs: Option<u32>,

    /// Samples per SGD step.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub batch_size: u32,

    /// Rule of the workers' steps: sgd, adam (weight decay in the gradient), adamw (apart from it) [default: sgd, or
    /// adam for a preset that reads text].
    #[arg(long)]
    #[serde(serialize_with = "option_as_text")]
    pub optimizer: Option<Method>,

    /// Learning rate of the workers [default: 0.05, or 0.001 with adam and adamw, 0.003 if a preset that reads
    /// text brought adam].
    #[arg(long)]
    pub lr: Option<f32>,

    /// Schedule of the learning rate over rounds: constant, exp:F, step:N:F, cosine:N, warmup:N.
    #[arg(long, default_value = "constant", value_name = "SCHEDULE")]
    pub lr_schedule: String,

    /// Momentum of the workers' SGD, 0 to below 1.
    #[arg(long, default_value_t = 0.0)]
    pub momentum: f32,

    /// Nesterov's momentum instead of the plain one.
    #[arg(long, default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    pub nesterov: bool,

    /// L2 penalty of the workers' SGD; with adamw the decay of the weights.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f32,

    /// Largest norm of a gradient, 0 = no limit.
    #[arg(long, default_value_t = 0.0)]
    pub clip_norm: f32,

    /// Weight of FedProx's proximal term, 0 = off.
    #[arg(long, default_value_t = 0.0)]
    pub mu: f32,

    /// Seed of everything random: initial weights, partition, batches, stochastic rounding.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// How the master combines updates: fedavg, fedavgm, fedadagrad, fedyogi, fedadam, fednova, scaffold,
    /// fedbuff:K, median, trimmed_mean:F, krum:F, multikrum:F:M; `fl-master --help` explains them.
    #[arg(long, default_value = "fedavg")]
    pub strategy: String,

    /// Step size of the server [default: 1, or 0.01 with fedadagrad, fedyogi, fedadam].
    #[arg(long)]
    pub server_lr: Option<f64>,

    /// Server momentum of fedavgm, fedadagrad, fedyogi, fedadam, 0 to below 1.
    #[arg(long, default_value_t = 0.9)]
    pub server_beta1: f64,

    /// Decay of the second moment of fedyogi and fedadam, 0 to below 1.
    #[arg(long, default_value_t = 0.99)]
    pub server_beta2: f64,

    /// Adaptivity of fedadagrad, fedyogi, fedadam.
    #[arg(long, default_value_t = 1e-3)]
    pub server_tau: f64,

    /// Rounds between two evaluations of the model by the clients, each on data that it holds out of its training; the
    /// last model is evaluated too. 0 = never, and nothing is held out.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub evaluate_every: u64,

    /// Share of each client's data that is held out for its evaluations.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub local_test: f64,

    /// Backend of the training: auto (the faster of the next two), fused (own kernels), flex (Burn on the
    /// CPU), or ndarray and wgpu if compiled in.
    #[arg(long, default_value = "auto")]
    pub backend: String,

    /// Folder for global.safetensors, history.csv, history.json, run.json and report.html.
    #[arg(long, default_value = "fl-out", value_name = "DIR")]
    pub out: PathBuf,
}

fn mbit(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|mbit| (0.001..=1e6).contains(mbit));
    value.ok_or_else(|| format!("`{text}` is not 0.001 to 1e6"))
}

/// Serializes a setting as it is typed on the command line.
pub fn as_text<T: ToString, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

/// As [`as_text`], for a value that may be missing.
pub fn option_as_text<T: ToString, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_str(&value.to_string()),
        None => serializer.serialize_none(),
    }
}

impl FederationArgs {
    /// Loads the training data.
    ///
    /// # Errors
    /// A bad setting, or data that are missing or damaged.
    pub fn load(&self) -> anyhow::Result<Dataset> {
        let spec = setting::dataset(&self.dataset().to_string(), self.target.clone())?;
        Ok(fl_datasets::load(&spec, self.data_dir.as_deref(), Part::Train)?)
    }

    /// The master's settings for a federation of `clients`, of which `per_round` close a round. `extra`
    /// are further flags.
    pub fn master(
        &self,
        clients: usize,
        per_round: usize,
        extra: Vec<String>,
    ) -> anyhow::Result<fl_master::Config> {
        if self.model.starts_with("safetensors:") {
            let reason = "the clients here need a network: name a preset or a network in JSON, or start fl-master with \
                          this MODEL and clients of your own";
            return Err(SettingError::new("--model", &self.model, reason).into());
        }
        let mut args = vec![
            "fl-master".to_owned(),
            "--bind=127.0.0.1:0".to_owned(),
            // All workers come from this machine.
            "--max-connections-per-ip=0".to_owned(),
            format!("--model={}", self.model),
            format!("--model-dim={}", self.model_dim),
            format!("--seed={}", self.seed),
            format!("--rounds={}", self.rounds),
            format!("--dataset={}", self.dataset()),
            format!("--server-beta1={}", self.server_beta1),
            format!("--server-beta2={}", self.server_beta2),
            format!("--server-tau={}", self.server_tau),
            format!("--lazy={}", self.lazy),
            format!("--evaluate-every={}", self.evaluate_every),
        ];
        if self.method() != Method::Sgd && matches!(self.strategy.as_str(), "scaffold" | "fednova") {
            let reason = format!("{} counts steps of sgd: use sgd, or another strategy", self.strategy);
            return Err(SettingError::new("--optimizer", self.method(), reason).into());
        }
        args.extend(self.initial_model.iter().map(|path| format!("--initial-model={}", path.display())));
        args.extend(self.trainable.iter().map(|pattern| format!("--trainable={pattern}")));
        args.extend(self.local_layers.iter().map(|pattern| format!("--local-layers={pattern}")));
        args.extend(self.uplink_mbit.map(|mbit| format!("--uplink-mbit={mbit}")));
        args.push(match self.strategy.as_str() {
            "scaffold" => format!("--strategy=scaffold:{clients}"),
            strategy => format!("--strategy={strategy}"),
        });
        if !self.strategy.starts_with("fedbuff") {
            args.push(format!("--agg-min-clients={per_round}"));
        }
        args.extend(self.server_lr.map(|lr| format!("--server-lr={lr}")));
        args.extend(self.target.iter().map(|target| format!("--target={target}")));
        args.extend(self.data_dir.iter().map(|dir| format!("--data-dir={}", dir.display())));
        args.extend(extra);
        Ok(fl_master::Args::try_parse_from(args)?.check()?)
    }

    /// The settings of worker `index` of `clients`.
    pub fn worker(&self, index: usize, clients: usize, master: &str) -> anyhow::Result<fl_worker::Config> {
        let mut args = vec![
            "fl-worker".to_owned(),
            format!("--master-addr={master}"),
            format!("--worker-id={}", worker_id(index)),
            format!("--seed={}", self.seed),
            format!("--dataset={}", self.dataset()),
            format!("--partition={}", self.partition),
            format!("--partition-id={index}"),
            format!("--num-partitions={clients}"),
            format!("--quantizer={}", self.quantizer),
            format!("--entropy={}", self.entropy),
            format!("--rdo={}", self.rdo),
            format!("--error-feedback={}", self.error_feedback),
            format!("--target-nmse={}", self.target_nmse),
            format!("--batch-size={}", self.batch_size),
            format!("--lr={}", self.rate()),
            format!("--lr-schedule={}", self.lr_schedule),
            format!("--momentum={}", self.momentum),
            format!("--optimizer={}", self.method()),
            format!("--nesterov={}", self.nesterov),
            format!("--weight-decay={}", self.weight_decay),
            format!("--clip-norm={}", self.clip_norm),
            format!("--mu={}", self.mu),
            format!("--backend={}", self.backend),
            format!("--down-bits={}", self.down_bits),
            "--dataset-size=1000000000".to_owned(),
            "--mem-mb=0".to_owned(),
            format!("--local-test={}", self.held_out()),
            "--threads=1".to_owned(),
        ];
        args.extend(self.target.iter().map(|target| format!("--target={target}")));
        args.extend(self.down_quantizer.map(|scheme| format!("--down-quantizer={scheme}")));
        // The master proposes a size in bytes, from --uplink-mbit.
        if self.uplink_mbit.is_none() {
            args.push(format!("--bits={}", self.bits));
        }
        args.push(match self.local_epochs {
            Some(epochs) => format!("--local-epochs={epochs}"),
            None => format!("--local-steps={}", self.local_steps),
        });
        Ok(fl_worker::Args::try_parse_from(args)?.check()?)
    }

    /// Puts in defaults that depend on other flags, so that reports name them.
    pub fn fill(&mut self) {
        self.dataset = Some(self.dataset());
        self.lr = Some(self.rate());
        self.optimizer = Some(self.method());
    }

    /// Share of each client's data that is held out.
    pub fn held_out(&self) -> f64 {
        if self.evaluate_every > 0 { self.local_test } else { 0.0 }
    }

    /// The learning rate.
    pub fn rate(&self) -> f32 {
        self.lr.unwrap_or(match (self.optimizer, self.method()) {
            (_, Method::Sgd) => 0.05,
            (None, _) => 0.003,
            (Some(_), _) => 0.001,
        })
    }

    /// The data set.
    pub fn dataset(&self) -> DatasetSpec {
        let text = ModelSpec::reads_text(&self.model);
        self.dataset.clone().unwrap_or(if text { DatasetSpec::Shakespeare } else { DatasetSpec::Digits })
    }

    /// The rule of the workers' steps.
    pub fn method(&self) -> Method {
        let strategy = self.strategy.as_str();
        // These count steps of sgd.
        let plain = strategy.starts_with("scaffold") || strategy.starts_with("fednova");
        let text = ModelSpec::reads_text(&self.model);
        self.optimizer.unwrap_or(if text && !plain { Method::Adam } else { Method::Sgd })
    }

    /// Title of the run in reports.
    pub fn name(&self) -> String {
        let mut name = format!("{} {} {}", self.strategy, self.dataset(), self.model);
        if self.mu > 0.0 {
            name += &format!(" mu={}", self.mu);
        }
        name += &format!(" {}", self.quantizer);
        if self.lazy > 0.0 {
            name += &format!(" lazy={}", self.lazy);
        }
        if self.down_bits > 0 {
            name += &format!(" down={}", self.down_bits);
        }
        name
    }

    /// Describes for people how updates are encoded.
    pub fn coding(&self) -> String {
        match self.uplink_mbit {
            Some(mbit) => format!("{} within {mbit} Mbit a round", self.quantizer),
            None => format!("{} at {} bits", self.quantizer, self.bits),
        }
    }
}

/// The name of worker `index`, the same over HTTP and simulated, so that both draw the same random numbers.
pub fn worker_id(index: usize) -> String {
    format!("worker-{index}")
}
