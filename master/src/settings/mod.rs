//! The settings of the master, a file a group: what can be typed, and what is checked and used.
//!
//! Every setting is a flag and an environment variable of the same name. [`Args`] are the raw values;
//! [`Args::check`] makes the [`Config`] of them. A default stands at its flag and nowhere else. What must hold
//! between groups is checked here, what concerns one group in its file.

mod aggregation;
mod evaluation;
mod limits;
mod model;
mod observe;
mod rounds;
mod security;
mod state;
mod task;
#[cfg(test)]
mod tests;

pub use crate::federation::{AggregationSettings as AggregationConfig, NormAction};
pub use aggregation::AggregationArgs;
pub use evaluation::EvaluationConfig;
pub use fl_app::{Secret, SettingError};
pub use limits::{LimitArgs, Limits};
pub(crate) use model::TENSORS;
pub use model::{ModelArgs, ModelConfig};
pub use observe::{MetricsConfig, ObserveArgs};
pub use rounds::{RoundArgs, RoundConfig};
pub use security::{SecurityArgs, TlsConfig};
pub use state::StoreConfig;
pub use task::{TaskArgs, TaskHints};

use crate::federation::Strategy;
use clap::{CommandFactory, FromArgMatches, Parser, builder::Resettable};
use fl_protocol::limits::MAX_WAIT_S;
use std::net::SocketAddr;

/// The master of a federation: holds the global model, collects the workers' updates and averages
/// them.
#[derive(Debug, Clone, Parser)]
#[command(name = "fl-master", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Address and port to listen on
    #[arg(long, env, default_value = "0.0.0.0:5000", value_name = "ADDR:PORT")]
    pub bind: SocketAddr,
    /// Seed of the initial model and of client sampling, 0 to 2^64-1
    #[arg(long, env, default_value_t = 42)]
    pub seed: u64,
    /// Check settings and state, then exit
    #[arg(long)]
    pub check: bool,
    /// Go back to the model of this round, then exit; everything newer is moved into a folder `archive-...` of
    /// STATE_DIR
    #[arg(long, value_name = "ROUND", conflicts_with_all = ["check", "health_check"])]
    pub rollback_to: Option<u64>,
    /// Ask URL/readyz for the health of a running master, then exit with 0 or 69
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:5000")]
    pub health_check: Option<String>,

    // The groups come last, because the heading of one applies to every flag after it.
    /// Model and data.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rounds.
    #[command(flatten)]
    pub round: RoundArgs,
    /// Aggregation.
    #[command(flatten)]
    pub aggregation: AggregationArgs,
    /// Proposals to workers.
    #[command(flatten)]
    pub task: TaskArgs,
    /// Evaluation by workers.
    #[command(flatten)]
    pub evaluation: EvaluationConfig,
    /// State on disk.
    #[command(flatten)]
    pub store: StoreConfig,
    /// Token and TLS.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Bounds on clients.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Metrics and logs.
    #[command(flatten)]
    pub observe: ObserveArgs,
}

const AFTER_HELP: &str = "Exit codes: 0 success, 64 a bad setting, 66 missing or damaged data, model or \
state, 69 unreachable (--health-check), 70 internal fault, 74 input or output failed.";

impl Args {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn check(self) -> Result<Config, SettingError> {
        let aggregation = self.aggregation.resolve()?;
        let (token, tls) = self.security.resolve()?;
        let config = Config {
            bind: self.bind,
            seed: self.seed,
            model: self.model.resolve()?,
            round: self.round.resolve(aggregation.strategy),
            aggregation,
            task: self.task.resolve()?,
            evaluation: self.evaluation,
            store: self.store,
            token,
            tls,
            limits: self.limits.resolve(),
            metrics: self.observe.resolve(),
        };
        config.validate()?;
        Ok(config)
    }
}

/// All settings of a master, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `BIND`: address and port.
    pub bind: SocketAddr,
    /// `SEED`: of the initial model and of client sampling.
    pub seed: u64,
    /// The network and its test set.
    pub model: ModelConfig,
    /// The rounds.
    pub round: RoundConfig,
    /// The aggregation.
    pub aggregation: AggregationConfig,
    /// Proposals to the workers.
    pub task: TaskHints,
    /// Evaluation by workers.
    pub evaluation: EvaluationConfig,
    /// The state on disk.
    pub store: StoreConfig,
    /// `FL_TOKEN`: bearer token that every call but the health probes needs.
    pub token: Option<Secret>,
    /// TLS, if certificate and key are given.
    pub tls: Option<TlsConfig>,
    /// Bounds on clients.
    pub limits: Limits,
    /// The metrics page.
    pub metrics: MetricsConfig,
}

impl Default for Config {
    /// What a master without any setting runs with. The environment is not looked at.
    fn default() -> Self {
        let command = Args::command().mut_args(|arg| arg.env(Resettable::Reset));
        let args = command
            .try_get_matches_from(["fl-master"])
            .and_then(|matches| Args::from_arg_matches(&matches))
            .expect("no flag is required");
        args.check().expect("the defaults are valid")
    }
}

impl Config {
    /// Checks every value's range and what must hold between settings.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn validate(&self) -> Result<(), SettingError> {
        self.model.check()?;
        self.round.check()?;
        aggregation::check(&self.aggregation)?;
        self.check_strategy()?;
        self.store.check()?;
        if let Some(token) = &self.token {
            token.check_token("FL_TOKEN")?;
        }
        self.limits.check()?;
        self.metrics.check()?;
        self.evaluation.check()?;
        self.task.check()
    }

    /// Checks that the rounds give the strategy what it needs.
    fn check_strategy(&self) -> Result<(), SettingError> {
        let (round, strategy) = (&self.round, self.aggregation.strategy);
        let refuse = |reason: String| Err(SettingError::new("STRATEGY", strategy, reason));
        if let Strategy::FedBuff { buffer } = strategy {
            if round.min_clients != buffer {
                return refuse(format!("{buffer} updates make a model: leave AGG_MIN_CLIENTS out"));
            }
            if round.clients_per_round.is_some() || round.deadline_s.is_some() {
                return refuse(
                    "leave CLIENTS_PER_ROUND and ROUND_DEADLINE_S out: everyone trains all the time".into(),
                );
            }
        }
        let (least, fewest) = (strategy.least_updates(), round.fewest());
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
