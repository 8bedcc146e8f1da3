//! The JSON bodies of the API. The documentation of every field names its unit.

use crate::{
    metrics::{ClientEvaluation, LastClientEvaluation, Metrics, Spread},
    worker_id::WorkerId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How raw features become network inputs: `(raw - mean) / std`, elementwise.
///
/// `mean` and `std` hold one value for all features, one per channel (the input's first dimension),
/// or one per feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Subtracted from the raw value.
    pub mean: Vec<f32>,
    /// Divides the difference; never zero.
    pub std: Vec<f32>,
}

/// Names of a data set's classes and input columns; empty where they have only numbers.
///
/// The model file carries them, so that all workers number their classes alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataNames {
    /// Name of class 0, 1, 2 ...
    pub labels: Vec<String>,
    /// Name of input column 0, 1, 2 ...
    pub features: Vec<String>,
}

/// `GET /global` with `Accept: application/json`: the predecessor's format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalJson {
    /// Round of the model.
    pub round: u64,
    /// All parameters in canonical order.
    pub weights: Vec<f32>,
}

/// `POST /update` as `application/json`: the predecessor's format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateJson {
    /// Name of the worker.
    pub worker_id: WorkerId,
    /// Round of the model that was trained from.
    pub round: u64,
    /// Samples that the worker trains on: its weight in the average.
    pub num_samples: u64,
    /// Mean training loss, if known.
    #[serde(default)]
    pub loss: Option<f64>,
    /// `w_local - w_global`, all parameters in canonical order.
    pub delta: Vec<f32>,
    /// Seconds of local training, or another measure of speed; displayed, not used.
    #[serde(default)]
    pub compute_factor: Option<f64>,
    /// What the worker found of its training; displayed, not used.
    #[serde(default, skip_serializing_if = "Metrics::is_empty")]
    pub metrics: Metrics,
}

/// `POST /evaluation`: what a worker found when it evaluated a model on data of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationJson {
    /// Name of the worker.
    pub worker_id: WorkerId,
    /// Round of the evaluated model.
    pub round: u64,
    /// Samples that it was evaluated on: the weight in the mean.
    pub num_samples: u64,
    /// What was found; at least one metric.
    pub metrics: Metrics,
}

/// The answer to an accepted `POST /evaluation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationAck {
    /// Always `"ok"`.
    pub status: String,
    /// The master's round.
    pub global_round: u64,
    /// True if this worker's evaluation of this model had been accepted before; it counts once.
    pub duplicate: bool,
}

/// The answer to an accepted `POST /update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateAck {
    /// Always `"ok"`.
    pub status: String,
    /// True if the update is part of a published model: it closed its round, or is a retry of an update
    /// whose round is over.
    pub aggregated: bool,
    /// The master's round after this update.
    pub global_round: u64,
    /// True if the same `(worker_id, round)` had been accepted before; it counts once.
    pub duplicate: bool,
}

/// What a worker is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskAction {
    /// Train from the global model of `round`.
    Train,
    /// Evaluate the global model of `round` on data of the worker's own, and report with `POST /evaluation`.
    Evaluate,
    /// Nothing to do now: ask again.
    Wait,
    /// The training is over: exit with success.
    Stop,
}

/// The answer of `GET /task`. A worker's own explicit setting wins over the task's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskBody {
    /// What to do.
    pub action: TaskAction,
    /// Round to train for, or of the model to evaluate.
    pub round: u64,
    /// `ETag` of that round's model.
    pub etag: String,
    /// SGD steps of one round, unless `local_epochs` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u32>,
    /// Passes over the local data in one round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_epochs: Option<u32>,
    /// Samples per step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Learning rate of this round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f32>,
    /// Weight of FedProx's proximal term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mu: Option<f32>,
    /// Name of the quantizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<String>,
    /// Bits per code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Instead of `bits`: the fewest bytes with at most this `|sent - delta|^2 / |delta|^2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_nmse: Option<f64>,
    /// Instead of both: the least error in an update of at most this many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_bytes: Option<u64>,
    /// An upload may be left out if its squared distance to the last accepted one, both decoded, is at most this
    /// (LAQ's terms for the encoding errors are omitted): see [`crate::UpdateMeta::reuse`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy_below: Option<f32>,
    /// Whether to train with control variates (SCAFFOLD): they are at `GET /control`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub control: bool,
    /// Whether the strategy counts plain SGD steps (SCAFFOLD, FedNova), which Adam does not make.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_sgd: bool,
    /// A regular expression: only tensors in whose name it is found are trained, the update of the others is zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable: Option<String>,
    /// A regular expression: tensors in whose name it is found are personal. A worker keeps its own values of them,
    /// and their update is zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_layers: Option<String>,
    /// Seconds left until the round closes without this worker, if it has a deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<f64>,
    /// Rounds between two evaluations on the workers' own data, if there are any: a worker then holds a part of its
    /// data out of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<u64>,
    /// `CLIENT_CONFIG`: an object for the client's own use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
}

impl TaskBody {
    /// The task to train for `round` without proposals: workers use their own settings.
    pub const fn train(round: u64) -> Self {
        Self {
            action: TaskAction::Train,
            round,
            etag: String::new(),
            local_steps: None,
            local_epochs: None,
            batch_size: None,
            lr: None,
            mu: None,
            quantizer: None,
            bits: None,
            target_nmse: None,
            update_bytes: None,
            lazy_below: None,
            control: false,
            needs_sgd: false,
            trainable: None,
            local_layers: None,
            deadline_s: None,
            evaluate_every: None,
            config: None,
        }
    }
}

/// What the master knows about one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Address of the last update's sender.
    pub ip: String,
    /// Round of the last update.
    pub round: u64,
    /// Its samples.
    pub num_samples: u64,
    /// Its mean training loss.
    pub loss: Option<f64>,
    /// Its `compute_factor`.
    pub compute_factor: Option<f64>,
    /// When it arrived, in seconds since 1970.
    pub last_update_ts: f64,
    /// Its size on the wire, in bytes.
    pub bytes: u64,
}

/// The last evaluation of the global model on the test set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LastEvaluation {
    /// Round of the evaluated model.
    pub round: u64,
    /// Share of samples, tokens or labels that are right, 0 to 1; absent for a regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean loss: cross-entropy in nats, or the squared error of a regression.
    pub loss: f64,
    /// Mean absolute error of a regression; absent for other tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_error: Option<f64>,
    /// Samples of the test set.
    pub samples: u64,
}

/// What an open round waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// Updates that close the round.
    pub needed: u64,
    /// Updates that have arrived.
    pub accepted: u64,
    /// When the round opened, in seconds since 1970.
    pub since_ts: f64,
    /// The reason as a sentence for people.
    pub reason: String,
    /// Recently active workers whose update is missing, the most recent first.
    pub missing: Vec<MissingWorker>,
}

/// A worker whose update the open round lacks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MissingWorker {
    /// Its name.
    pub worker: String,
    /// Time of its last request, in seconds since 1970.
    pub last_seen_ts: f64,
}

/// The answer of `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusBody {
    /// The current round: finished aggregations so far.
    pub global_round: u64,
    /// Rounds with updates that are not aggregated yet: 0 or 1 in synchronous operation.
    pub num_pending_rounds: u64,
    /// Updates accepted for the open round.
    pub pending_updates: u64,
    /// Updates that close the open round.
    pub min_clients: u64,
    /// What the open round waits for, if it has waited for some time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Last update of every worker, by id.
    pub workers: BTreeMap<String, WorkerStatus>,
    /// Name of the model preset, or of its file.
    pub model: String,
    /// Number of parameters.
    pub num_parameters: u64,
    /// Name of the data set that shapes and evaluates the model.
    pub dataset: String,
    /// Name of the server's strategy.
    pub strategy: String,
    /// Last evaluation, if there was one.
    pub last_evaluation: Option<LastEvaluation>,
    /// The newest evaluation by the workers on data of their own, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_evaluation: Option<LastClientEvaluation>,
    /// Updates refused since the start, by error code.
    pub rejected_updates: BTreeMap<String, u64>,
    /// Uploads left out in the finished rounds of `GET /history` (lazy upload).
    #[serde(default)]
    pub reused_updates: u64,
    /// Bytes that this saved.
    #[serde(default)]
    pub bytes_saved: u64,
    /// Seconds since the start of the process.
    pub uptime_s: f64,
    /// True once the last round is done.
    pub finished: bool,
    /// Version of the master.
    pub version: String,
}

/// A finished round: one element of `GET /history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Number of the model that this round made: the first round makes 1.
    pub round: u64,
    /// When it opened, in seconds since 1970.
    pub started_ts: f64,
    /// When it closed, in seconds since 1970.
    pub finished_ts: f64,
    /// From open to close, in seconds.
    pub duration_s: f64,
    /// Workers whose updates are in it.
    pub participants: u64,
    /// Sum of their samples.
    pub num_samples: u64,
    /// Mean training loss, weighted by samples; of those that reported one.
    pub train_loss: Option<f64>,
    /// Accuracy on the test set, 0 to 1, once evaluated; a regression has none.
    pub test_accuracy: Option<f64>,
    /// Mean loss on the test set, once evaluated: cross-entropy in nats, or the squared error of a regression.
    pub test_loss: Option<f64>,
    /// Mean absolute error of a regression on the test set, once evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_absolute_error: Option<f64>,
    /// What the workers found when they evaluated this round's model on data of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<ClientEvaluation>,
    /// The metrics of the round's updates, over the workers that sent them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub update_metrics: BTreeMap<String, Spread>,
    /// Bytes of the accepted update bodies.
    pub bytes_up: u64,
    /// Workers that left their upload out, so that their last update counted again (lazy upload).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reused: u64,
    /// Bytes that this saved: those of the reused bodies minus those of the notices.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_saved: u64,
    /// Bytes of the model bodies sent while the round was open.
    pub bytes_down: u64,
    /// `8 * bytes_up / (participants * parameters)`.
    pub bits_per_param: f64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
