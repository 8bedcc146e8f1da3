//! The raw settings: every one is a flag and an environment variable of the same name.

use crate::{
    config::AggregationConfig, config::Config, config::Limits, config::MetricsConfig, config::ModelConfig,
    config::NormAction, config::RoundConfig, config::Secret, config::SettingError, config::StoreConfig,
    config::TaskHints, config::TlsConfig, federation::ServerOptions, federation::Strategy,
};
use clap::{ArgAction, Parser, builder::BoolishValueParser};
use fl_app::{
    LogFormat,
    setting::{filled, parse},
};
use std::{net::SocketAddr, path::PathBuf};

/// The master of a federation: holds the global model, collects the workers' updates and averages
/// them.
#[derive(Debug, Clone, Parser)]
#[command(name = "fl-master", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Address and port to listen on
    #[arg(long, env = "BIND", default_value = "0.0.0.0:5000", value_name = "ADDR:PORT")]
    pub bind: SocketAddr,
    /// Seed of the initial model and of client sampling, 0 to 2^64-1
    #[arg(long, env = "SEED", default_value_t = 42)]
    pub seed: u64,

    /// Network: softmax, mlp, cnn, mcmahan_cnn, or the path of a layer list in JSON
    #[arg(long, env = "MODEL", default_value = "mlp", help_heading = MODEL)]
    pub model: String,
    /// Parameter budget of the mlp preset, 1 to 268435456; its hidden width is the largest that fits
    #[arg(long, env = "MODEL_DIM", default_value_t = 100_000, help_heading = MODEL)]
    pub model_dim: usize,
    /// Data set that gives input shape, classes and test set: digits, fashion-mnist, mnist, idx:DIR,
    /// cifar10, csv:FILE, safetensors:FILE
    #[arg(long, env = "DATASET", default_value = "digits", help_heading = MODEL)]
    pub dataset: String,
    /// Folder of the data files [default: the data set's usual place]
    #[arg(long, env = "DATA_DIR", help_heading = MODEL)]
    pub data_dir: Option<String>,
    /// Names of all classes, separated by commas, if the table here lacks some that workers have
    /// [default: the labels of the csv file]
    #[arg(long, env = "LABELS", help_heading = MODEL)]
    pub labels: Option<String>,
    /// What evaluates the model: auto (the faster of the next two), fused (own kernels), flex (Burn on the
    /// CPU), ndarray, wgpu
    #[arg(long, env = "BACKEND", default_value = "auto", help_heading = MODEL)]
    pub backend: String,
    /// Rounds between two evaluations on the test set, 0 = never
    #[arg(long, env = "EVAL_EVERY", default_value_t = 1, help_heading = MODEL)]
    pub eval_every: u64,

    /// Updates that close a round, 1 to 1000000 [default: fedbuff's K, CLIENTS_PER_ROUND, or 2]
    #[arg(long, env = "AGG_MIN_CLIENTS", help_heading = ROUNDS)]
    pub agg_min_clients: Option<usize>,
    /// Rounds until the training is over, 0 = no end
    #[arg(long, env = "ROUNDS", default_value_t = 0, help_heading = ROUNDS)]
    pub rounds: u64,
    /// Seconds from a round's first sign of life to its close with fewer updates, 0.01 to 1e7, 0 = none
    #[arg(long, env = "ROUND_DEADLINE_S", default_value_t = 0.0, help_heading = ROUNDS)]
    pub round_deadline_s: f64,
    /// Updates that the close at the deadline needs, 1 to AGG_MIN_CLIENTS
    #[arg(long, env = "ROUND_MIN_AT_DEADLINE", default_value_t = 1, help_heading = ROUNDS)]
    pub round_min_at_deadline: usize,
    /// Workers that are asked to train in a round, 0 = everyone
    #[arg(long, env = "CLIENTS_PER_ROUND", default_value_t = 0, help_heading = ROUNDS)]
    pub clients_per_round: usize,
    /// Ask that many times more workers than CLIENTS_PER_ROUND, 1 to 100
    #[arg(long, env = "OVERSELECT", default_value_t = 1.0, help_heading = ROUNDS)]
    pub overselect: f64,
    /// Seconds after which the place of a sampled worker that stays silent goes to another, 1 to 1e7
    #[arg(long, env = "TASK_TIMEOUT_S", default_value_t = 120.0, help_heading = ROUNDS)]
    pub task_timeout_s: f64,

    /// How updates become the next model: fedavg, fedavgm, fedadagrad, fedyogi, fedadam, fednova,
    /// scaffold:N (N workers in all), fedbuff:K (asynchronous, K updates make a model), median,
    /// trimmed_mean:F, krum:F, multikrum:F:M (F hostile updates are borne)
    #[arg(long, env = "STRATEGY", default_value = "fedavg", help_heading = AGGREGATION)]
    pub strategy: String,
    /// Step size of the server, 1e-6 to 1000 [default: 1, or 0.01 with fedadagrad, fedyogi, fedadam]
    #[arg(long, env = "SERVER_LR", help_heading = AGGREGATION)]
    pub server_lr: Option<f64>,
    /// Server momentum of fedavgm, fedadagrad, fedyogi, fedadam, 0 to below 1
    #[arg(long, env = "SERVER_BETA1", default_value_t = 0.9, help_heading = AGGREGATION)]
    pub server_beta1: f64,
    /// Memory of the second moment of fedyogi and fedadam, 0 to below 1
    #[arg(long, env = "SERVER_BETA2", default_value_t = 0.99, help_heading = AGGREGATION)]
    pub server_beta2: f64,
    /// Adaptivity of fedadagrad, fedyogi, fedadam: the smaller, the more alike are all steps, 1e-9 to 1
    #[arg(long, env = "SERVER_TAU", default_value_t = 1e-3, help_heading = AGGREGATION)]
    pub server_tau: f64,
    /// Rounds that an update may be late with fedbuff, or may count again with LAZY, 0 to 1000000
    #[arg(long, env = "MAX_STALENESS", default_value_t = 100, help_heading = AGGREGATION)]
    pub max_staleness: u64,
    /// Memory for the updates of a round in MB; median, trimmed_mean, krum and multikrum keep 4 bytes for
    /// each parameter and update, LAZY the last update of every worker
    #[arg(long, env = "MAX_BUFFER_MB", default_value_t = 512, help_heading = AGGREGATION)]
    pub max_buffer_mb: usize,
    /// Lazy upload: workers leave out an update whose squared change is at most LAZY times the mean squared
    /// step of the last ten models, and their last one counts again. 0.8 is the rule of LAQ; above 1 the
    /// training begins to swing. 1e-6 to 1e6, 0 = off
    #[arg(long, env = "LAZY", default_value_t = 0.0, help_heading = AGGREGATION)]
    pub lazy: f64,
    /// Samples that one update counts for at most, 1 to 100000000, 0 = no limit: nobody outweighs all others by a
    /// claim
    #[arg(long, env = "MAX_WEIGHT", default_value_t = 0, help_heading = AGGREGATION)]
    pub max_weight: u64,
    /// Largest Euclidean norm of an update as it is applied, and of the change of SCAFFOLD's control variate, 1e-9 to
    /// 1e9, 0 = no limit
    #[arg(long, env = "MAX_UPDATE_NORM", default_value_t = 0.0, help_heading = AGGREGATION)]
    pub max_update_norm: f64,
    /// What happens to an update beyond MAX_UPDATE_NORM
    #[arg(long, env = "NORM_ACTION", default_value = "reject", help_heading = AGGREGATION)]
    pub norm_action: NormAction,
    /// Threads that check, decode and add updates, 1 to 256, 0 = one per core (at most 8)
    #[arg(long, env = "DECODE_THREADS", default_value_t = 0, help_heading = AGGREGATION)]
    pub decode_threads: usize,

    /// Proposed SGD steps of a round, 1 to 1000000
    #[arg(long, env = "LOCAL_STEPS", help_heading = TASK)]
    pub local_steps: Option<u32>,
    /// Proposed passes over the local data in a round, 1 to 10000
    #[arg(long, env = "LOCAL_EPOCHS", help_heading = TASK)]
    pub local_epochs: Option<u32>,
    /// Proposed samples of a step, 1 to 1000000
    #[arg(long, env = "BATCH_SIZE", help_heading = TASK)]
    pub batch_size: Option<u32>,
    /// Proposed learning rate, 1e-9 to 1000
    #[arg(long, env = "LR", help_heading = TASK)]
    pub lr: Option<f32>,
    /// How the proposed LR changes from round to round: constant, exp:F, step:N:F, cosine:N, warmup:N
    #[arg(long, env = "LR_SCHEDULE", default_value = "constant", help_heading = TASK)]
    pub lr_schedule: String,
    /// Proposed weight of FedProx's proximal term, 0 to 1000
    #[arg(long, env = "MU", help_heading = TASK)]
    pub mu: Option<f32>,
    /// Proposed quantizer: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none
    #[arg(long, env = "QUANTIZER", help_heading = TASK)]
    pub quantizer: Option<String>,
    /// Proposed bits per code, 1 to 8, or auto = as few as reach TARGET_NMSE
    #[arg(long, env = "BITS", help_heading = TASK)]
    pub bits: Option<String>,
    /// With BITS=auto: proposed |sent - delta|^2 / |delta|^2 at most, 1e-9 to 0.9
    #[arg(long, env = "TARGET_NMSE", default_value_t = 0.0095, help_heading = TASK)]
    pub target_nmse: f64,
    /// Instead of BITS: what all updates of a round may take together, in Mbit, 0.001 to 1e6, 0 = no limit;
    /// each worker makes the best of its share
    #[arg(long, env = "UPLINK_MBIT", default_value_t = 0.0, help_heading = TASK)]
    pub uplink_mbit: f64,

    /// Folder of checkpoints and journals
    #[arg(long, env = "STATE_DIR", default_value = "./fl-state", help_heading = STATE)]
    pub state_dir: PathBuf,
    /// Keep state on disk: an update survives a crash once it is acknowledged
    #[arg(long, env = "DURABLE", default_value = "true", action = ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = STATE)]
    pub durable: bool,
    /// Checkpoints that are kept, 1 to 10000
    #[arg(long, env = "KEEP_ROUNDS", default_value_t = 5, help_heading = STATE)]
    pub keep_rounds: usize,

    /// Bearer token that every call but the health probes needs [default: none]
    #[arg(long, env = "FL_TOKEN", hide_env_values = true, help_heading = SECURITY)]
    pub fl_token: Option<Secret>,
    /// Certificate chain in PEM: turns TLS on
    #[arg(long, env = "TLS_CERT", help_heading = SECURITY)]
    pub tls_cert: Option<String>,
    /// Private key in PEM
    #[arg(long, env = "TLS_KEY", help_heading = SECURITY)]
    pub tls_key: Option<String>,
    /// Authorities in PEM whose client certificates are accepted: turns mutual TLS on
    #[arg(long, env = "TLS_CLIENT_CA", help_heading = SECURITY)]
    pub tls_client_ca: Option<String>,

    /// Open connections, 1 to 1000000
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 768, help_heading = LIMITS)]
    pub max_connections: usize,
    /// Seconds that a connection may be idle or send a request's head, 0.1 to 3600
    #[arg(long, env = "HEADER_TIMEOUT_S", default_value_t = 60.0, help_heading = LIMITS)]
    pub header_timeout_s: f64,
    /// Seconds that a body may take beyond its time at 16 kB/s, 0.1 to 3600
    #[arg(long, env = "BODY_TIMEOUT_S", default_value_t = 15.0, help_heading = LIMITS)]
    pub body_timeout_s: f64,
    /// Memory of the bodies being received, in MB; one body of the largest size always fits
    #[arg(long, env = "MAX_INFLIGHT_MB", default_value_t = 16, help_heading = LIMITS)]
    pub max_inflight_mb: usize,
    /// Updates that wait for a decoding thread, 1 to 100000
    #[arg(long, env = "MAX_QUEUE", default_value_t = 256, help_heading = LIMITS)]
    pub max_queue: usize,
    /// Refused updates per second and worker before it is answered 429, 0 = no limit
    #[arg(long, env = "REFUSED_PER_S", default_value_t = 20.0, help_heading = LIMITS)]
    pub refused_per_s: f64,
    /// Seconds that a shutdown waits for what is in flight, 0 to 3600
    #[arg(long, env = "DRAIN_S", default_value_t = 10.0, help_heading = LIMITS)]
    pub drain_s: f64,

    /// Metrics of single workers
    #[arg(long, env = "METRICS_PER_WORKER", default_value = "true", action = ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL", help_heading = OBSERVE)]
    pub metrics_per_worker: bool,
    /// Workers that have metrics of their own, 0 to 100000
    #[arg(long, env = "METRICS_MAX_WORKERS", default_value_t = 200, help_heading = OBSERVE)]
    pub metrics_max_workers: usize,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", default_value = "text", help_heading = OBSERVE)]
    pub log_format: LogFormat,
    /// What is logged, as in `info` or `fl_master=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER", help_heading = OBSERVE)]
    pub rust_log: String,

    /// Check settings and state, then exit
    #[arg(long)]
    pub check: bool,
    /// Go back to the model of this round, then exit; everything newer is moved into a folder `archive-...` of
    /// STATE_DIR
    #[arg(long, value_name = "ROUND", conflicts_with = "check")]
    pub rollback_to: Option<u64>,
    /// Ask URL/readyz for the health of a running master, then exit with 0 or 69
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:5000")]
    pub health_check: Option<String>,
}

const MODEL: &str = "Model and data";
const ROUNDS: &str = "Rounds";
const AGGREGATION: &str = "Aggregation";
const TASK: &str = "Proposals to workers (their own settings win)";
const STATE: &str = "State";
const SECURITY: &str = "Security";
const LIMITS: &str = "Limits";
const OBSERVE: &str = "Observation";

const AFTER_HELP: &str = "Exit codes: 0 success, 64 a bad setting, 66 missing or damaged data, model or \
state, 69 unreachable (--health-check), 70 internal fault, 74 input or output failed.";

impl Args {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn check(self) -> Result<Config, SettingError> {
        let clients_per_round = (self.clients_per_round > 0).then_some(self.clients_per_round);
        let strategy = parse::<Strategy>("STRATEGY", &self.strategy)?;
        let buffer = match strategy {
            Strategy::FedBuff { buffer } => Some(buffer),
            _ => None,
        };
        let config = Config {
            bind: self.bind,
            seed: self.seed,
            model: ModelConfig {
                model: self.model,
                model_dim: self.model_dim,
                dataset: parse("DATASET", &self.dataset)?,
                data_dir: filled(self.data_dir).map(PathBuf::from),
                labels: filled(self.labels).map(|text| labels(&text)).transpose()?,
                backend: parse("BACKEND", &self.backend)?,
                eval_every: self.eval_every,
            },
            round: RoundConfig {
                min_clients: self.agg_min_clients.or(buffer).or(clients_per_round).unwrap_or(2),
                rounds: self.rounds,
                deadline_s: (self.round_deadline_s != 0.0).then_some(self.round_deadline_s),
                min_at_deadline: self.round_min_at_deadline,
                clients_per_round,
                overselect: self.overselect,
                task_timeout_s: self.task_timeout_s,
            },
            aggregation: AggregationConfig {
                strategy,
                server: ServerOptions {
                    lr: self.server_lr.unwrap_or(strategy.default_server_lr()),
                    beta1: self.server_beta1,
                    beta2: self.server_beta2,
                    tau: self.server_tau,
                },
                max_staleness: self.max_staleness,
                max_buffer_mb: self.max_buffer_mb,
                lazy: (self.lazy != 0.0).then_some(self.lazy),
                max_update_norm: (self.max_update_norm != 0.0).then_some(self.max_update_norm),
                norm_action: self.norm_action,
                max_weight: (self.max_weight != 0).then_some(self.max_weight),
            },
            task: TaskHints {
                local_steps: self.local_steps,
                local_epochs: self.local_epochs,
                batch_size: self.batch_size,
                lr: self.lr,
                lr_schedule: parse("LR_SCHEDULE", &self.lr_schedule)?,
                mu: self.mu,
                quantizer: filled(self.quantizer),
                bits: filled(self.bits).map(|bits| parse("BITS", &bits)).transpose()?,
                target_nmse: self.target_nmse,
                uplink_mbit: (self.uplink_mbit != 0.0).then_some(self.uplink_mbit),
            },
            store: StoreConfig {
                durable: self.durable,
                state_dir: self.state_dir,
                keep_rounds: self.keep_rounds,
            },
            token: self.fl_token.filter(|token| !token.0.is_empty()),
            tls: tls(filled(self.tls_cert), filled(self.tls_key), filled(self.tls_client_ca))?,
            limits: Limits {
                max_connections: self.max_connections,
                header_timeout_s: self.header_timeout_s,
                body_timeout_s: self.body_timeout_s,
                max_inflight_mb: self.max_inflight_mb,
                max_queue: self.max_queue,
                decode_threads: self.decode_threads,
                refused_per_s: self.refused_per_s,
                drain_s: self.drain_s,
            },
            metrics: MetricsConfig {
                per_worker: self.metrics_per_worker,
                max_workers: self.metrics_max_workers,
            },
        };
        config.validate()?;
        Ok(config)
    }
}

fn tls(
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
) -> Result<Option<TlsConfig>, SettingError> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsConfig {
            cert: cert.into(),
            key: key.into(),
            client_ca: client_ca.map(PathBuf::from),
        })),
        (Some(cert), None) => Err(SettingError::new("TLS_CERT", cert, "set TLS_KEY too")),
        (None, Some(key)) => Err(SettingError::new("TLS_KEY", key, "set TLS_CERT too")),
        (None, None) => match client_ca {
            Some(ca) => Err(SettingError::new("TLS_CLIENT_CA", ca, "set TLS_CERT and TLS_KEY too")),
            None => Ok(None),
        },
    }
}

fn labels(text: &str) -> Result<Vec<String>, SettingError> {
    let labels: Vec<String> = text.split(',').map(|label| label.trim().to_owned()).collect();
    let mut seen = std::collections::HashSet::new();
    match labels.iter().any(|label| label.is_empty() || !seen.insert(label)) {
        true => Err(SettingError::new("LABELS", text, "give different names, separated by commas")),
        false => Ok(labels),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_is_well_formed_and_every_setting_has_its_variable() {
        let command = Args::command();
        command.clone().debug_assert();
        for arg in command.get_arguments() {
            let name = arg.get_id().as_str();
            if matches!(name, "check" | "rollback_to" | "health_check" | "help" | "version") {
                continue;
            }
            let variable = arg.get_env().unwrap_or_else(|| panic!("{name} has no variable"));
            assert_eq!(variable.to_str().unwrap(), name.to_uppercase());
            assert_eq!(arg.get_long().unwrap(), name.replace('_', "-"));
            assert!(arg.get_help().is_some(), "{name} has no help");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_config() {
        let config = Args::parse_from(["fl-master"]).check().unwrap();
        let expected = Config {
            store: StoreConfig { state_dir: "./fl-state".into(), ..Config::default().store },
            ..Config::default()
        };
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
    }

    #[test]
    fn half_of_a_tls_pair_is_refused() {
        let args = Args::parse_from(["fl-master", "--tls-cert", "a.pem"]);
        assert_eq!(args.check().unwrap_err().name, "TLS_CERT");
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_setting() {
        let error = Args::parse_from(["fl-master", "--strategy", "luck"]).check().unwrap_err();
        assert_eq!(error.name, "STRATEGY");
        assert!(error.to_string().contains("luck"));
    }
}
