//! Every setting is a flag and an environment variable of the same name: as given in [`Args`], checked in
//! [`Config`]. A file a group; what must hold between groups is checked here.

mod ballast;
mod data;
mod master;
mod observe;
mod state;
mod training;
mod updates;

pub use ballast::{BallastArgs, BallastSettings};
pub use data::{DataArgs, DataSettings, Share};
pub use master::{MasterArgs, MasterSettings};
pub use observe::{ObserveArgs, ObserveSettings};
pub use state::{StateArgs, StateSettings};
pub(crate) use training::cores;
pub use training::{TrainingArgs, TrainingSettings};
pub use updates::{Download, ErrorFeedback, UpdateArgs, UpdateSettings};

use clap::Parser;
use fl_app::{
    SettingError,
    setting::{filled, parse},
};
use fl_protocol::WorkerId;

/// A worker of a federation: trains the global model on local data and sends back compressed updates.
///
/// The data never leave this machine. Steps, batch size, learning rate, quantizer and bits come from
/// the master unless they are set here.
#[derive(Debug, Clone, Parser)]
#[command(name = "fl-worker", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Name of this worker, 1 to 64 of A-Z a-z 0-9 . _ - [default: the host's name]
    #[arg(long, env = "WORKER_ID")]
    pub worker_id: Option<String>,
    /// Seed of partition, batches and stochastic rounding, 0 to 2^64-1
    #[arg(long, env = "SEED", default_value_t = 42)]
    pub seed: u64,
    /// Check the settings, then exit
    #[arg(long)]
    pub check: bool,
    /// Ask URL/healthz for the health of a running worker, then exit with 0 or 69
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:9100")]
    pub health_check: Option<String>,

    /// The master and the way to it.
    #[command(flatten)]
    pub master: MasterArgs,
    /// The local data.
    #[command(flatten)]
    pub data: DataArgs,
    /// Local training.
    #[command(flatten)]
    pub training: TrainingArgs,
    /// How updates and models are encoded.
    #[command(flatten)]
    pub updates: UpdateArgs,
    /// What survives a restart.
    #[command(flatten)]
    pub state: StateArgs,
    /// The memory ballast.
    #[command(flatten)]
    pub ballast: BallastArgs,
    /// Logs and metrics.
    #[command(flatten)]
    pub observe: ObserveArgs,
}

const AFTER_HELP: &str = "Exit codes: 0 success, 64 a bad setting, 66 a file that is missing, damaged or does not \
fit (data, labels, model, certificate), 69 the master cannot be reached or refuses this worker, 70 internal fault, 71 \
the system refuses memory, 74 the system refuses a read, a write or a port.";

/// The checked settings of a worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// `WORKER_ID`.
    pub worker_id: WorkerId,
    /// `SEED`.
    pub seed: u64,
    /// The master and the way to it.
    pub master: MasterSettings,
    /// The local data.
    pub data: DataSettings,
    /// Local training.
    pub training: TrainingSettings,
    /// How updates and models are encoded.
    pub updates: UpdateSettings,
    /// What survives a restart.
    pub state: StateSettings,
    /// The memory ballast.
    pub ballast: BallastSettings,
    /// Metrics.
    pub observe: ObserveSettings,
    /// Workers of this process, which share its cores: 1, but for `fl run`.
    pub workers: usize,
}

impl Args {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn check(self) -> Result<Config, SettingError> {
        Ok(Config {
            worker_id: worker_id(filled(self.worker_id))?,
            seed: self.seed,
            master: self.master.check()?,
            data: self.data.check()?,
            training: self.training.check()?,
            updates: self.updates.check()?,
            state: self.state.check(),
            ballast: self.ballast.check()?,
            observe: self.observe.check()?,
            workers: 1,
        })
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
        assert_eq!(refused(&["--num-partitions=1"]), "NUM_PARTITIONS");
        assert_eq!(refused(&["--partition-id=2", "--num-partitions=2"]), "PARTITION_ID");
        assert_eq!(refused(&["--local-steps=0"]), "LOCAL_STEPS");
        assert_eq!(refused(&["--batch-size=0"]), "BATCH_SIZE");
        assert_eq!(refused(&["--lr=nan"]), "LR");
        assert_eq!(refused(&["--lr-schedule=exp:0.9"]), "LR_SCHEDULE");
        assert_eq!(refused(&["--momentum=1"]), "MOMENTUM");
        assert_eq!(refused(&["--optimizer=lion"]), "OPTIMIZER");
        assert_eq!(refused(&["--optimizer=adam", "--momentum=0.9"]), "MOMENTUM");
        assert_eq!(refused(&["--nesterov=true"]), "NESTEROV");
        assert_eq!(refused(&["--nesterov=true", "--momentum=0.9"]), "fine");
        assert_eq!(refused(&["--local-layers=("]), "LOCAL_LAYERS");
        assert_eq!(refused(&["--quantizer=zip"]), "QUANTIZER");
        assert_eq!(refused(&["--bits=9"]), "BITS");
        assert_eq!(refused(&["--update-bytes=500"]), "UPDATE_BYTES");
        assert_eq!(refused(&["--down-bits=9"]), "DOWN_BITS");
        assert_eq!(refused(&["--down-quantizer=SDQ"]), "DOWN_QUANTIZER");
        assert_eq!(refused(&["--down-bits=8", "--down-quantizer=zip"]), "DOWN_QUANTIZER");
        assert_eq!(refused(&["--error-feedback=maybe"]), "ERROR_FEEDBACK");
        assert_eq!(refused(&["--touch-stride-bytes=0"]), "TOUCH_STRIDE_BYTES");
        assert_eq!(refused(&["--backend=abacus"]), "BACKEND");
        assert_eq!(refused(&["--fl-token=a b"]), "FL_TOKEN");
        assert_eq!(refused(&["--metrics-addr=9100"]), "METRICS_ADDR");
    }
}
