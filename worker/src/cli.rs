//! The raw settings: every one is a flag and an environment variable of the same name.

use crate::config::{Coding, Config, Down, Own, SettingError};
use clap::{ArgAction, Parser};
use fl_app::{
    LogFormat, Secret,
    setting::{filled, parse, whole},
};
use fl_protocol::WorkerId;
use fl_quant::Scheme;
use std::path::PathBuf;

/// A worker of a federation: trains the global model on local data and sends back compressed updates.
///
/// The data never leave this machine. Steps, batch size, learning rate, quantizer and bits come from
/// the master unless they are set here.
#[derive(Debug, Clone, Parser)]
#[command(name = "fl-worker", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Address of the master, http or https
    #[arg(long, env = "MASTER_ADDR", default_value = "http://master-service:5000", value_name = "URL")]
    pub master_addr: String,
    /// Name of this worker, 1 to 64 of A-Z a-z 0-9 . _ - [default: the host's name]
    #[arg(long, env = "WORKER_ID")]
    pub worker_id: Option<String>,
    /// Seed of partition, batches and stochastic rounding, 0 to 2^64-1
    #[arg(long, env = "SEED", default_value_t = 42)]
    pub seed: u64,

    /// Data set: digits, fashion-mnist, mnist, idx:DIR, cifar10, csv:FILE, safetensors:FILE
    #[arg(long, env = "DATASET", default_value = "digits", help_heading = DATA)]
    pub dataset: String,
    /// Folder of the data files [default: the data set's usual place]
    #[arg(long, env = "DATA_DIR", help_heading = DATA)]
    pub data_dir: Option<String>,
    /// At most so many local samples, 1 to 1000000000
    #[arg(long, env = "DATASET_SIZE", default_value_t = 50_000, help_heading = DATA)]
    pub dataset_size: usize,
    /// How the samples are spread over workers: iid, dirichlet:ALPHA, shards:K
    #[arg(long, env = "PARTITION", default_value = "iid", help_heading = DATA)]
    pub partition: String,
    /// This worker's part, 0 to NUM_PARTITIONS-1 [default: samples drawn from WORKER_ID]
    #[arg(long, env = "PARTITION_ID", help_heading = DATA)]
    pub partition_id: Option<usize>,
    /// Parts of the data, 1 to 100000: disjoint and complete
    #[arg(long, env = "NUM_PARTITIONS", help_heading = DATA)]
    pub num_partitions: Option<usize>,

    /// SGD steps of a round, 1 to 1000000 [default: the master's, or 5]
    #[arg(long, env = "LOCAL_STEPS", help_heading = TRAINING)]
    pub local_steps: Option<u32>,
    /// Passes over the local data in a round instead of LOCAL_STEPS, 1 to 10000 [default: the master's]
    #[arg(long, env = "LOCAL_EPOCHS", help_heading = TRAINING)]
    pub local_epochs: Option<u32>,
    /// Samples of a step, 1 to 1000000 [default: the master's, or 64]
    #[arg(long, env = "BATCH_SIZE", help_heading = TRAINING)]
    pub batch_size: Option<u32>,
    /// Learning rate, above 0, at most 1000 [default: the master's, or 0.05]
    #[arg(long, env = "LR", help_heading = TRAINING)]
    pub lr: Option<f32>,
    /// How LR changes from round to round: constant, exp:F, step:N:F, cosine:N, warmup:N
    #[arg(long, env = "LR_SCHEDULE", default_value = "constant", help_heading = TRAINING)]
    pub lr_schedule: String,
    /// Momentum, 0 to below 1
    #[arg(long, env = "MOMENTUM", default_value_t = 0.0, help_heading = TRAINING)]
    pub momentum: f32,
    /// L2 penalty, 0 or more
    #[arg(long, env = "WEIGHT_DECAY", default_value_t = 0.0, help_heading = TRAINING)]
    pub weight_decay: f32,
    /// Weight of FedProx's proximal term, 0 to 1000 [default: the master's, or 0]
    #[arg(long, env = "MU", help_heading = TRAINING)]
    pub mu: Option<f32>,
    /// Largest Euclidean norm of a gradient, 0 = no limit
    #[arg(long, env = "CLIP_NORM", default_value_t = 0.0, help_heading = TRAINING)]
    pub clip_norm: f32,
    /// Parameters that the master's model must not exceed, 0 = any
    #[arg(long, env = "MODEL_DIM", default_value_t = 0, help_heading = TRAINING)]
    pub model_dim: usize,
    /// What trains: auto (the faster of the next two), fused (own kernels), flex (Burn on the CPU),
    /// ndarray, wgpu
    #[arg(long, env = "BACKEND", default_value = "auto", help_heading = TRAINING)]
    pub backend: String,
    /// Threads of the training, 1 to 256, 0 = one for dense networks, one per core for convolutions
    #[arg(long, env = "THREADS", default_value_t = 0, help_heading = TRAINING)]
    pub threads: usize,

    /// Quantizer: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none [default: the master's, or MSQ_v2]
    #[arg(long, env = "QUANTIZER", help_heading = UPDATES)]
    pub quantizer: Option<String>,
    /// Bits per code, 1 to 8, or auto = as few as reach TARGET_NMSE [default: the master's, or 4].
    /// With the entropy stage, MSQ_v2 takes b bits as a quality: the error of the best b-bit quantizer
    /// of a Gaussian, in as few bytes as it takes
    #[arg(long, env = "BITS", help_heading = UPDATES)]
    pub bits: Option<String>,
    /// Entropy-code the updates
    #[arg(long, env = "ENTROPY", default_value_t = true, action = ArgAction::Set, help_heading = UPDATES)]
    pub entropy: bool,
    /// Choose codes by error and size under a trellis (MSQ_v2 with ENTROPY): 1 to 5 % fewer bytes, slower
    #[arg(long, env = "RDO", default_value_t = false, action = ArgAction::Set, help_heading = UPDATES)]
    pub rdo: bool,
    /// Add what quantization lost of an update to the next one: true, false, auto = where it is worth its
    /// bytes (coarser than 4 bits, or without the entropy stage)
    #[arg(long, env = "ERROR_FEEDBACK", default_value = "auto", help_heading = UPDATES)]
    pub error_feedback: String,
    /// With BITS=auto: |sent - delta|^2 / |delta|^2 at most, 1e-9 to 0.9
    #[arg(long, env = "TARGET_NMSE", default_value_t = 0.0095, help_heading = UPDATES)]
    pub target_nmse: f64,
    /// With BITS=auto: bytes of an update at most instead of TARGET_NMSE, as far as 1 bit a parameter does
    /// (MSQ_v2: less), 0 = no such limit
    #[arg(long, env = "UPDATE_BYTES", default_value_t = 0, help_heading = UPDATES)]
    pub update_bytes: usize,

    /// Bits of the downloaded model's codes, 1 to 8, 0 = the exact model; the update is the difference to what
    /// was received
    #[arg(long, env = "DOWN_BITS", default_value_t = 0, help_heading = UPDATES)]
    pub down_bits: u8,
    /// Quantizer of the downloaded model: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16 [default: SDQ]
    #[arg(long, env = "DOWN_QUANTIZER", help_heading = UPDATES)]
    pub down_quantizer: Option<String>,

    /// Memory ballast in MB that stays resident, 0 = none
    #[arg(long, env = "MEM_MB", default_value_t = 500, help_heading = BALLAST)]
    pub mem_mb: usize,
    /// Bytes between two touched bytes of the ballast, 1 to 1073741824
    #[arg(long, env = "TOUCH_STRIDE_BYTES", default_value_t = 4096, help_heading = BALLAST)]
    pub touch_stride_bytes: usize,

    /// Bearer token of the master [default: none]
    #[arg(long, env = "FL_TOKEN", hide_env_values = true, help_heading = NETWORK)]
    pub fl_token: Option<Secret>,
    /// Authorities in PEM that sign the master's certificate [default: the system's]
    #[arg(long, env = "CA_CERT", help_heading = NETWORK)]
    pub ca_cert: Option<String>,
    /// Certificate and key of this worker in one PEM file, for mutual TLS [default: none]
    #[arg(long, env = "CLIENT_CERT", help_heading = NETWORK)]
    pub client_cert: Option<String>,
    /// Seconds without a master after which the worker ends with code 69, 0 = never
    #[arg(long, env = "GIVE_UP_S", default_value_t = 0.0, help_heading = NETWORK)]
    pub give_up_s: f64,
    /// Seconds that a shutdown waits for the update in flight, 0 to 3600
    #[arg(long, env = "DRAIN_S", default_value_t = 10.0, help_heading = NETWORK)]
    pub drain_s: f64,

    /// Address and port of /metrics and /healthz [default: none]
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR:PORT", help_heading = OBSERVE)]
    pub metrics_addr: Option<String>,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", default_value = "text", help_heading = OBSERVE)]
    pub log_format: LogFormat,
    /// What is logged, as in `info` or `fl_worker=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER", help_heading = OBSERVE)]
    pub rust_log: String,

    /// Check the settings, then exit
    #[arg(long)]
    pub check: bool,
    /// Ask URL/healthz for the health of a running worker, then exit with 0 or 69
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:9100")]
    pub health_check: Option<String>,
}

const DATA: &str = "Data";
const TRAINING: &str = "Training";
const UPDATES: &str = "Updates";
const BALLAST: &str = "Ballast";
const NETWORK: &str = "Network";
const OBSERVE: &str = "Observation";

const AFTER_HELP: &str = "Exit codes: 0 success, 64 a bad setting, 66 missing or damaged data or a model that \
does not fit, 69 the master is unreachable, 70 internal fault, 71 the system refuses memory, 74 input or output failed.";

impl Args {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn check(self) -> Result<Config, SettingError> {
        let config = Config {
            master_addr: self.master_addr.trim_end_matches('/').to_owned(),
            worker_id: worker_id(filled(self.worker_id))?,
            seed: self.seed,
            dataset: parse("DATASET", &self.dataset)?,
            data_dir: filled(self.data_dir).map(PathBuf::from),
            dataset_size: self.dataset_size,
            partition: parse("PARTITION", &self.partition)?,
            part: part(self.partition_id, self.num_partitions)?,
            own: Own {
                local_steps: self.local_steps,
                local_epochs: self.local_epochs,
                batch_size: self.batch_size,
                lr: self.lr,
                lr_schedule: parse("LR_SCHEDULE", &self.lr_schedule)?,
                mu: self.mu,
                quantizer: filled(self.quantizer).map(|name| parse("QUANTIZER", &name)).transpose()?,
                bits: filled(self.bits).map(|bits| parse("BITS", &bits)).transpose()?,
            },
            coding: Coding {
                entropy: self.entropy,
                rdo: self.rdo,
                error_feedback: parse("ERROR_FEEDBACK", &self.error_feedback)?,
                target_nmse: self.target_nmse,
                update_bytes: (self.update_bytes != 0).then_some(self.update_bytes),
            },
            down: down(self.down_bits, filled(self.down_quantizer))?,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            clip_norm: (self.clip_norm != 0.0).then_some(self.clip_norm),
            model_dim: (self.model_dim != 0).then_some(self.model_dim),
            backend: parse("BACKEND", &self.backend)?,
            threads: (self.threads != 0).then_some(self.threads),
            workers: 1,
            mem_mb: self.mem_mb,
            touch_stride_bytes: self.touch_stride_bytes,
            token: self.fl_token.filter(|token| !token.0.is_empty()),
            ca_cert: filled(self.ca_cert).map(PathBuf::from),
            client_cert: filled(self.client_cert).map(PathBuf::from),
            give_up_s: (self.give_up_s != 0.0).then_some(self.give_up_s),
            drain_s: self.drain_s,
            metrics_addr: filled(self.metrics_addr).map(|addr| parse("METRICS_ADDR", &addr)).transpose()?,
        };
        config.validate()?;
        Ok(config)
    }
}

fn worker_id(given: Option<String>) -> Result<WorkerId, SettingError> {
    let name = given
        .or_else(host_name)
        .ok_or_else(|| SettingError::new("WORKER_ID", "", "the host has no name to take instead: set one"))?;
    parse("WORKER_ID", &name)
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    filled(Some(name.trim().to_owned()))
}

fn down(bits: u8, quantizer: Option<String>) -> Result<Option<Down>, SettingError> {
    whole("DOWN_BITS", bits.into(), 0, 8)?;
    let scheme = quantizer.as_ref().map(|name| parse("DOWN_QUANTIZER", name)).transpose()?;
    match (bits, scheme) {
        (0, Some(scheme)) => Err(SettingError::new("DOWN_QUANTIZER", scheme, "set DOWN_BITS too")),
        (0, None) => Ok(None),
        (bits, scheme) => Ok(Some(Down { scheme: scheme.unwrap_or(Scheme::Sdq), bits })),
    }
}

fn part(id: Option<usize>, parts: Option<usize>) -> Result<Option<(usize, usize)>, SettingError> {
    match (id, parts) {
        (Some(id), Some(parts)) => Ok(Some((id, parts))),
        (None, None) => Ok(None),
        (Some(id), None) => Err(SettingError::new("PARTITION_ID", id, "set NUM_PARTITIONS too")),
        (None, Some(parts)) => Err(SettingError::new("NUM_PARTITIONS", parts, "set PARTITION_ID too")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_setting_has_its_variable_and_help() {
        let command = Args::command();
        command.clone().debug_assert();
        for arg in command.get_arguments() {
            let name = arg.get_id().as_str();
            if matches!(name, "check" | "health_check" | "help" | "version") {
                continue;
            }
            let variable = arg.get_env().unwrap_or_else(|| panic!("{name} has no variable"));
            assert_eq!(variable.to_str().unwrap(), name.to_uppercase());
            assert_eq!(arg.get_long().unwrap(), name.replace('_', "-"));
            assert!(arg.get_help().is_some(), "{name} has no help");
        }
    }

    fn refused(args: &[&str]) -> &'static str {
        let name =
            if args.iter().any(|arg| arg.starts_with("--worker-id")) { None } else { Some("--worker-id=w") };
        let all = std::iter::once("fl-worker").chain(name).chain(args.iter().copied());
        Args::parse_from(all).check().map_or_else(|error| error.name, |_| "fine")
    }

    #[test]
    fn a_bad_value_is_refused_by_name() {
        assert_eq!(refused(&[]), "fine");
        assert_eq!(refused(&["--worker-id=a/b"]), "WORKER_ID");
        assert_eq!(refused(&["--master-addr=master:5000"]), "MASTER_ADDR");
        assert_eq!(refused(&["--dataset=flowers"]), "DATASET");
        assert_eq!(refused(&["--partition=dirichlet:0"]), "PARTITION");
        assert_eq!(refused(&["--partition-id=1"]), "PARTITION_ID");
        assert_eq!(refused(&["--partition-id=2", "--num-partitions=2"]), "PARTITION_ID");
        assert_eq!(refused(&["--local-steps=0"]), "LOCAL_STEPS");
        assert_eq!(refused(&["--batch-size=0"]), "BATCH_SIZE");
        assert_eq!(refused(&["--lr=nan"]), "LR");
        assert_eq!(refused(&["--momentum=1"]), "MOMENTUM");
        assert_eq!(refused(&["--quantizer=zip"]), "QUANTIZER");
        assert_eq!(refused(&["--bits=9"]), "BITS");
        assert_eq!(refused(&["--down-bits=9"]), "DOWN_BITS");
        assert_eq!(refused(&["--down-quantizer=SDQ"]), "DOWN_QUANTIZER");
        assert_eq!(refused(&["--down-bits=8", "--down-quantizer=zip"]), "DOWN_QUANTIZER");
        assert_eq!(refused(&["--touch-stride-bytes=0"]), "TOUCH_STRIDE_BYTES");
        assert_eq!(refused(&["--backend=abacus"]), "BACKEND");
        assert_eq!(refused(&["--fl-token=a b"]), "FL_TOKEN");
    }
}
