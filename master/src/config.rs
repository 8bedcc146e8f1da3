//! The checked configuration: what [`crate::Args`] become once every value has been looked at.
//!
//! One small struct per concern; each field's doc names its setting, unit and default.

use crate::federation::Strategy;
pub use crate::federation::{AggregationSettings as AggregationConfig, NormAction};
use fl_app::setting::{number, whole};
pub use fl_app::{Secret, SettingError};
use fl_datasets::DatasetSpec;
use fl_model::Backend;
use fl_protocol::{
    LrSchedule,
    limits::{MAX_NUM_SAMPLES, MAX_PARAMETERS, MAX_WAIT_S},
};
use fl_quant::Bits;
use std::{net::SocketAddr, path::PathBuf};

/// What network is trained and what it is evaluated on.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// `MODEL` (mlp): a preset, or the path of a layer list in JSON.
    pub model: String,
    /// `MODEL_DIM` (100000): parameter budget of the `mlp` preset.
    pub model_dim: usize,
    /// `DATASET` (digits): gives input shape, classes and the test set.
    pub dataset: DatasetSpec,
    /// `DATA_DIR` (none): where data files are looked for.
    pub data_dir: Option<PathBuf>,
    /// `LABELS` (those of the data set): names of all classes.
    pub labels: Option<Vec<String>>,
    /// `BACKEND` (auto): what evaluates the model.
    pub backend: Backend,
    /// `EVAL_EVERY` (1): rounds between two evaluations; 0 = never.
    pub eval_every: u64,
}

/// When a round is over and who takes part in it.
#[derive(Debug, Clone)]
pub struct RoundConfig {
    /// `AGG_MIN_CLIENTS` (2, or `CLIENTS_PER_ROUND` if that is set): updates that close a round.
    pub min_clients: usize,
    /// `ROUNDS` (0): rounds until the training is over; 0 = no end.
    pub rounds: u64,
    /// `ROUND_DEADLINE_S` (0 = none): seconds from a round's first sign of life to its early close.
    pub deadline_s: Option<f64>,
    /// `ROUND_MIN_AT_DEADLINE` (1): updates that the early close needs.
    pub min_at_deadline: usize,
    /// `CLIENTS_PER_ROUND` (0 = everyone who asks): workers that `GET /task` asks to train.
    pub clients_per_round: Option<usize>,
    /// `OVERSELECT` (1): that many times more workers are asked, so that a few may vanish.
    pub overselect: f64,
    /// `TASK_TIMEOUT_S` (120): seconds after which a silent worker's place goes to another.
    pub task_timeout_s: f64,
}

impl RoundConfig {
    /// Workers that are asked to train in one round, if they are sampled at all.
    pub fn sample(&self) -> Option<usize> {
        self.clients_per_round.map(|clients| (clients as f64 * self.overselect).ceil() as usize)
    }
}

/// What `GET /task` proposes to the workers; their own settings win.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskHints {
    /// `LOCAL_STEPS` (none): SGD steps of a round.
    pub local_steps: Option<u32>,
    /// `LOCAL_EPOCHS` (none): passes over the local data in a round.
    pub local_epochs: Option<u32>,
    /// `BATCH_SIZE` (none): samples of a step.
    pub batch_size: Option<u32>,
    /// `LR` (none): learning rate.
    pub lr: Option<f32>,
    /// `LR_SCHEDULE` (constant): how `LR` changes from round to round.
    pub lr_schedule: LrSchedule,
    /// `MU` (none): weight of FedProx's proximal term.
    pub mu: Option<f32>,
    /// `QUANTIZER` (none).
    pub quantizer: Option<String>,
    /// `BITS` (none): bits per code, or as few as reach `target_nmse`.
    pub bits: Option<Bits>,
    /// `TARGET_NMSE` (0.0095): the error that `BITS=auto` aims at.
    pub target_nmse: f64,
    /// `UPLINK_MBIT` (0 = none): what all updates of a round may take together, in megabits.
    pub uplink_mbit: Option<f64>,
}

impl Default for TaskHints {
    fn default() -> Self {
        Self {
            local_steps: None,
            local_epochs: None,
            batch_size: None,
            lr: None,
            lr_schedule: LrSchedule::Constant,
            mu: None,
            quantizer: None,
            bits: None,
            target_nmse: 0.0095,
            uplink_mbit: None,
        }
    }
}

impl TaskHints {
    /// Bytes of one of `updates` updates that share the uplink.
    pub fn update_bytes(&self, updates: usize) -> Option<u64> {
        self.uplink_mbit.map(|mbit| (mbit * 1e6 / 8.0 / updates.max(1) as f64) as u64)
    }
}

/// Where the state lives.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `DURABLE` (true): an update is on disk before it is acknowledged. False keeps everything in
    /// memory: for benchmarks and throw-away runs.
    pub durable: bool,
    /// `STATE_DIR` (./fl-state).
    pub state_dir: PathBuf,
    /// `KEEP_ROUNDS` (5): checkpoints that stay on disk; the newest is one of them.
    pub keep_rounds: usize,
}

/// Files of the TLS side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// `TLS_CERT`: certificate chain, PEM.
    pub cert: PathBuf,
    /// `TLS_KEY`: private key, PEM.
    pub key: PathBuf,
    /// `TLS_CLIENT_CA`: authorities whose client certificates are accepted, PEM.
    pub client_ca: Option<PathBuf>,
}

/// Bounds on what clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `MAX_CONNECTIONS` (768).
    pub max_connections: usize,
    /// `HEADER_TIMEOUT_S` (60): seconds for a request's head, idle time included.
    pub header_timeout_s: f64,
    /// `BODY_TIMEOUT_S` (15): seconds that a body may take beyond 16 kB/s.
    pub body_timeout_s: f64,
    /// `MAX_INFLIGHT_MB` (16): memory of the bodies that are being received, in MB. One body of the
    /// largest size always fits.
    pub max_inflight_mb: usize,
    /// `MAX_QUEUE` (256): updates that wait for a decoding thread.
    pub max_queue: usize,
    /// `DECODE_THREADS` (0 = one per core): threads that check, decode and add.
    pub decode_threads: usize,
    /// `REFUSED_PER_S` (20): refused updates per second and worker before 429; 0 = no limit.
    pub refused_per_s: f64,
    /// `DRAIN_S` (10): seconds that a shutdown waits for what is in flight.
    pub drain_s: f64,
}

/// What `/metrics` shows.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    /// `METRICS_PER_WORKER` (true): series per worker.
    pub per_worker: bool,
    /// `METRICS_MAX_WORKERS` (200): workers that have series of their own.
    pub max_workers: usize,
}

/// Everything that a master can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `BIND` (0.0.0.0:5000).
    pub bind: SocketAddr,
    /// `SEED` (42): of the initial model and of client sampling.
    pub seed: u64,
    /// The network and its test set.
    pub model: ModelConfig,
    /// The rounds.
    pub round: RoundConfig,
    /// The aggregation.
    pub aggregation: AggregationConfig,
    /// Proposals to the workers.
    pub task: TaskHints,
    /// The state on disk.
    pub store: StoreConfig,
    /// `FL_TOKEN` (none): bearer token that every call but the probes needs.
    pub token: Option<Secret>,
    /// TLS, if certificate and key are given.
    pub tls: Option<TlsConfig>,
    /// Bounds on clients.
    pub limits: Limits,
    /// The metrics page.
    pub metrics: MetricsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([0, 0, 0, 0], 5000)),
            seed: 42,
            model: ModelConfig {
                model: "mlp".to_owned(),
                model_dim: 100_000,
                dataset: DatasetSpec::Digits,
                data_dir: None,
                labels: None,
                backend: Backend::Auto,
                eval_every: 1,
            },
            round: RoundConfig {
                min_clients: 2,
                rounds: 0,
                deadline_s: None,
                min_at_deadline: 1,
                clients_per_round: None,
                overselect: 1.0,
                task_timeout_s: 120.0,
            },
            aggregation: AggregationConfig::default(),
            task: TaskHints::default(),
            store: StoreConfig { durable: true, state_dir: PathBuf::from("fl-state"), keep_rounds: 5 },
            token: None,
            tls: None,
            limits: Limits {
                max_connections: 768,
                header_timeout_s: 60.0,
                body_timeout_s: 15.0,
                max_inflight_mb: 16,
                max_queue: 256,
                decode_threads: 0,
                refused_per_s: 20.0,
                drain_s: 10.0,
            },
            metrics: MetricsConfig { per_worker: true, max_workers: 200 },
        }
    }
}

impl Config {
    /// Checks every value's range and what must hold between settings.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn validate(&self) -> Result<(), SettingError> {
        whole("MODEL_DIM", self.model.model_dim as u64, 1, MAX_PARAMETERS as u64)?;
        let backend = self.model.backend;
        backend.check().map_err(|error| SettingError::new("BACKEND", backend, error.to_string()))?;
        self.validate_round()?;
        self.validate_aggregation()?;
        if let Some(lazy) = self.aggregation.lazy {
            number("LAZY", lazy, 1e-6, 1e6)?;
            let strategy = self.aggregation.strategy;
            if strategy.is_asynchronous() || strategy.uses_control() {
                let reason =
                    format!("STRATEGY={strategy} has no use for an update that came before: set LAZY=0");
                return Err(SettingError::new("LAZY", lazy, reason));
            }
        }
        if let Some(weight) = self.aggregation.max_weight {
            whole("MAX_WEIGHT", weight, 1, MAX_NUM_SAMPLES)?;
        }
        if let Some(norm) = self.aggregation.max_update_norm {
            number("MAX_UPDATE_NORM", norm, 1e-9, 1e9)?;
        }
        whole("DECODE_THREADS", self.limits.decode_threads as u64, 0, 256)?;
        whole("KEEP_ROUNDS", self.store.keep_rounds as u64, 1, 10_000)?;
        if self.store.durable && self.store.state_dir.as_os_str().is_empty() {
            return Err(SettingError::new("STATE_DIR", "", "give a folder, or set DURABLE=false"));
        }
        if let Some(token) = &self.token
            && (token.0.is_empty() || !token.0.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(SettingError::new("FL_TOKEN", "(secret)", "use printable ASCII without spaces"));
        }
        self.validate_limits()?;
        self.validate_task()
    }

    fn validate_aggregation(&self) -> Result<(), SettingError> {
        let AggregationConfig { strategy, server, max_staleness, max_buffer_mb, .. } = &self.aggregation;
        number("SERVER_LR", server.lr, 1e-6, 1000.0)?;
        number("SERVER_BETA1", server.beta1, 0.0, 0.999_999)?;
        number("SERVER_BETA2", server.beta2, 0.0, 0.999_999)?;
        number("SERVER_TAU", server.tau, 1e-9, 1.0)?;
        whole("MAX_STALENESS", *max_staleness, 0, 1_000_000)?;
        whole("MAX_BUFFER_MB", *max_buffer_mb as u64, 1, 1 << 24)?;
        let refuse = |reason: String| Err(SettingError::new("STRATEGY", strategy, reason));
        let round = &self.round;
        if let Strategy::FedBuff { buffer } = strategy {
            if round.min_clients != *buffer {
                return refuse(format!("{buffer} updates make a model: leave AGG_MIN_CLIENTS out"));
            }
            if round.clients_per_round.is_some() || round.deadline_s.is_some() {
                return refuse(
                    "leave CLIENTS_PER_ROUND and ROUND_DEADLINE_S out: everyone trains all the time".into(),
                );
            }
        }
        let least = strategy.least_updates();
        let fewest = if round.deadline_s.is_some() { round.min_at_deadline } else { round.min_clients };
        if fewest < least {
            return refuse(format!("it needs {least} updates a round, the settings promise only {fewest}"));
        }
        Ok(())
    }

    /// Checks that the updates of a round fit into `MAX_BUFFER_MB`, if they are kept.
    ///
    /// # Errors
    /// If they do not.
    pub fn check_memory(&self, parameters: usize) -> Result<(), SettingError> {
        let AggregationConfig { strategy, max_buffer_mb, .. } = self.aggregation;
        let bytes = strategy.buffer_bytes(self.round.min_clients, parameters);
        if bytes > max_buffer_mb as u64 * 1_000_000 {
            let (clients, mb) = (self.round.min_clients, bytes.div_ceil(1_000_000));
            let reason = format!(
                "{strategy} keeps {clients} updates of {parameters} parameters a round, that takes {mb} MB"
            );
            return Err(SettingError::new("MAX_BUFFER_MB", max_buffer_mb, reason));
        }
        Ok(())
    }

    fn validate_round(&self) -> Result<(), SettingError> {
        let round = &self.round;
        whole("AGG_MIN_CLIENTS", round.min_clients as u64, 1, 1_000_000)?;
        whole("ROUND_MIN_AT_DEADLINE", round.min_at_deadline as u64, 1, 1_000_000)?;
        if let Some(deadline) = round.deadline_s {
            number("ROUND_DEADLINE_S", deadline, 0.01, 1e7)?;
            if round.min_at_deadline > round.min_clients {
                return Err(SettingError::new(
                    "ROUND_MIN_AT_DEADLINE",
                    round.min_at_deadline,
                    format!("it cannot be above AGG_MIN_CLIENTS ({})", round.min_clients),
                ));
            }
        }
        number("OVERSELECT", round.overselect, 1.0, 100.0)?;
        number("TASK_TIMEOUT_S", round.task_timeout_s, 1.0, 1e7)?;
        if let Some(clients) = round.clients_per_round {
            whole("CLIENTS_PER_ROUND", clients as u64, 1, 1_000_000)?;
        }
        match round.sample() {
            Some(sample) if sample < round.min_clients => Err(SettingError::new(
                "AGG_MIN_CLIENTS",
                round.min_clients,
                format!(
                    "CLIENTS_PER_ROUND times OVERSELECT asks only {sample} workers: no round could close"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn validate_limits(&self) -> Result<(), SettingError> {
        let limits = &self.limits;
        whole("MAX_CONNECTIONS", limits.max_connections as u64, 1, 1_000_000)?;
        number("HEADER_TIMEOUT_S", limits.header_timeout_s, 0.1, 3600.0)?;
        number("BODY_TIMEOUT_S", limits.body_timeout_s, 0.1, 3600.0)?;
        whole("MAX_INFLIGHT_MB", limits.max_inflight_mb as u64, 1, 1 << 20)?;
        whole("MAX_QUEUE", limits.max_queue as u64, 1, 100_000)?;
        number("REFUSED_PER_S", limits.refused_per_s, 0.0, 1e6)?;
        number("DRAIN_S", limits.drain_s, 0.0, 3600.0)?;
        whole("METRICS_MAX_WORKERS", self.metrics.max_workers as u64, 0, 100_000)
    }

    fn validate_task(&self) -> Result<(), SettingError> {
        let task = &self.task;
        let some = |name, value: Option<u32>, max| value.map_or(Ok(()), |v| whole(name, v.into(), 1, max));
        some("LOCAL_STEPS", task.local_steps, 1_000_000)?;
        some("LOCAL_EPOCHS", task.local_epochs, 10_000)?;
        some("BATCH_SIZE", task.batch_size, 1_000_000)?;
        if let Some(Bits::Width(bits)) = task.bits {
            whole("BITS", bits.into(), 1, 8)?;
        }
        number("TARGET_NMSE", task.target_nmse, 1e-9, 0.9)?;
        if let Some(mbit) = task.uplink_mbit {
            number("UPLINK_MBIT", mbit, 0.001, 1e6)?;
            if let Some(bits @ Bits::Width(_)) = task.bits {
                return Err(SettingError::new("BITS", bits, "UPLINK_MBIT chooses the bits: leave BITS out"));
            }
        }
        if let Some(lr) = task.lr {
            number("LR", lr.into(), 1e-9, 1000.0)?;
        }
        if let Some(mu) = task.mu {
            number("MU", mu.into(), 0.0, 1000.0)?;
        }
        if let Some(name) = &task.quantizer {
            name.parse::<fl_quant::Scheme>()
                .map_err(|reason| SettingError::new("QUANTIZER", name, reason))?;
        }
        Ok(())
    }

    /// Threads that decode and add.
    pub fn decode_threads(&self) -> usize {
        match self.limits.decode_threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            n => n,
        }
    }
}

/// Longest `wait` of a long-poll, in seconds.
pub const MAX_WAIT: f64 = MAX_WAIT_S as f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(change: impl FnOnce(&mut Config)) -> &'static str {
        let mut config = Config::default();
        change(&mut config);
        config.validate().map_or_else(|error| error.name, |()| "fine")
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(name_of(|_| ()), "fine");
    }

    #[test]
    fn a_bad_value_is_refused_by_name() {
        assert_eq!(name_of(|c| c.round.min_clients = 0), "AGG_MIN_CLIENTS");
        assert_eq!(name_of(|c| c.model.model_dim = 0), "MODEL_DIM");
        assert_eq!(name_of(|c| c.aggregation.server.lr = f64::NAN), "SERVER_LR");
        assert_eq!(name_of(|c| c.token = Some(Secret("a b".into()))), "FL_TOKEN");
        assert_eq!(name_of(|c| c.task.bits = Some(Bits::Width(9))), "BITS");
        assert_eq!(name_of(|c| c.task.quantizer = Some("zip".into())), "QUANTIZER");
        assert_eq!(name_of(|c| c.store.state_dir = PathBuf::new()), "STATE_DIR");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let sample = |c: &mut Config| {
            c.round.clients_per_round = Some(5);
            c.round.min_clients = 7;
        };
        assert_eq!(name_of(sample), "AGG_MIN_CLIENTS");
        let oversample = |c: &mut Config| {
            sample(c);
            c.round.overselect = 1.5;
        };
        assert_eq!(name_of(oversample), "fine");
        let deadline = |c: &mut Config| {
            c.round.deadline_s = Some(1.0);
            c.round.min_at_deadline = 3;
        };
        assert_eq!(name_of(deadline), "ROUND_MIN_AT_DEADLINE");
    }

    #[test]
    fn a_strategy_that_the_rounds_cannot_serve_is_refused() {
        let with = |strategy: &str, clients: usize| {
            name_of(|c| {
                c.aggregation.strategy = strategy.parse().unwrap();
                c.round.min_clients = clients;
            })
        };
        assert_eq!([with("krum:2", 6), with("krum:2", 7)], ["STRATEGY", "fine"]);
        assert_eq!([with("multikrum:2:6", 7), with("multikrum:2:6", 8)], ["STRATEGY", "fine"]);
        assert_eq!([with("trimmed_mean:2", 4), with("trimmed_mean:2", 5)], ["STRATEGY", "fine"]);
        assert_eq!([with("fedbuff:3", 2), with("fedbuff:3", 3)], ["STRATEGY", "fine"]);
        let lazy = |strategy: &str| {
            name_of(|c| {
                c.aggregation.strategy = strategy.parse().unwrap();
                c.aggregation.lazy = Some(0.8);
            })
        };
        assert_eq!(
            ["fedavg", "median", "scaffold:3", "fedbuff:2"].map(lazy),
            ["fine", "fine", "LAZY", "LAZY"]
        );
        let mut config = Config::default();
        config.aggregation.strategy = Strategy::Median;
        config.round.min_clients = 10;
        assert!(config.check_memory(12_800_000).is_ok(), "512 MB fit");
        assert_eq!(config.check_memory(12_800_001).unwrap_err().name, "MAX_BUFFER_MB");
    }
}
