//! How updates become the next model.

use crate::federation::{Strategy, intake::lazy::Bounds, step::ServerOptions};
use clap::{Args, ValueEnum};
use fl_app::{
    SettingError,
    setting::{number, parse, whole},
};

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Aggregation")]
pub struct AggregationArgs {
    /// How updates become the next model: fedavg, fedavgm, fedadagrad, fedyogi, fedadam, fednova,
    /// scaffold:N (N workers in all), fedbuff:K (asynchronous, K updates make a model), median,
    /// trimmed_mean:F, krum:F, multikrum:F:M (F hostile updates are borne)
    #[arg(long, env, default_value = "fedavg")]
    pub strategy: String,
    /// Step size of the server, 1e-6 to 1000 [default: 1, or 0.01 with fedadagrad, fedyogi, fedadam]
    #[arg(long, env)]
    pub server_lr: Option<f64>,
    /// Server momentum of fedavgm, fedadagrad, fedyogi, fedadam, 0 to below 1
    #[arg(long, env, default_value_t = ServerOptions::default().beta1)]
    pub server_beta1: f64,
    /// Memory of the second moment of fedyogi and fedadam, 0 to below 1
    #[arg(long, env, default_value_t = ServerOptions::default().beta2)]
    pub server_beta2: f64,
    /// Adaptivity of fedadagrad, fedyogi, fedadam: the smaller, the more alike are all steps, 1e-9 to 1
    #[arg(long, env, default_value_t = ServerOptions::default().tau)]
    pub server_tau: f64,
    /// Rounds that an update may be late with fedbuff, or may count again with LAZY, 0 to 1000000
    #[arg(long, env, default_value_t = 100)]
    pub max_staleness: u64,
    /// Memory for the updates of a round in MB; median, trimmed_mean, krum and multikrum keep 4 bytes for
    /// each parameter and update, LAZY the last update of every worker
    #[arg(long, env, default_value_t = 512)]
    pub max_buffer_mb: usize,
    /// Lazy upload: workers leave out an update whose squared change is at most LAZY times the mean squared
    /// step of the last ten models, and their last one counts again. 0.8 is the rule of LAQ; above 1 the
    /// training begins to swing. 1e-6 to 1e6, 0 = off
    #[arg(long, env, default_value_t = 0.0)]
    pub lazy: f64,
    /// Largest Euclidean norm of an update, 1e-9 to 1e9, 0 = no limit
    #[arg(long, env, default_value_t = 0.0)]
    pub max_update_norm: f64,
    /// What happens to an update beyond MAX_UPDATE_NORM
    #[arg(long, env, default_value = "reject")]
    pub norm_action: NormAction,
    /// Threads that check, decode and add updates, 1 to 256, 0 = one per core (at most 8)
    #[arg(long, env, default_value_t = 0)]
    pub decode_threads: usize,
}

impl AggregationArgs {
    pub(super) fn resolve(self) -> Result<AggregationConfig, SettingError> {
        let strategy = parse::<Strategy>("STRATEGY", &self.strategy)?;
        Ok(AggregationConfig {
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
            threads: self.decode_threads,
        })
    }
}

/// What happens to an update whose norm is above `MAX_UPDATE_NORM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NormAction {
    /// Answer 422.
    Reject,
    /// Scale it down to the limit.
    Clip,
}

/// How updates become the next model.
#[derive(Debug, Clone)]
pub struct AggregationConfig {
    /// `STRATEGY`.
    pub strategy: Strategy,
    /// `SERVER_LR`, `SERVER_BETA1`, `SERVER_BETA2` and `SERVER_TAU`: the server's step.
    pub server: ServerOptions,
    /// `MAX_STALENESS`: rounds that an update may be late with `fedbuff`, or may count again with `LAZY`.
    pub max_staleness: u64,
    /// `MAX_BUFFER_MB`: memory for the updates of a round, if the strategy keeps them; for the workers' last
    /// updates with `LAZY`.
    pub max_buffer_mb: usize,
    /// `LAZY`: workers may leave an upload out whose squared change is at most so many times the mean squared
    /// step of the last ten models; `None` = off.
    pub lazy: Option<f64>,
    /// `MAX_UPDATE_NORM`: largest Euclidean norm of an update; `None` = no limit.
    pub max_update_norm: Option<f64>,
    /// `NORM_ACTION`: what happens beyond it.
    pub norm_action: NormAction,
    /// `DECODE_THREADS`: threads that check, decode and add; 0 = one per core, at most 8.
    pub threads: usize,
}

impl AggregationConfig {
    /// Bounds of the workers' last updates; `None` if they are not kept.
    pub fn lazy_bounds(&self) -> Option<Bounds> {
        self.lazy.map(|_| Bounds {
            max_age: self.max_staleness,
            max_bytes: self.max_buffer_mb.saturating_mul(1_000_000),
        })
    }

    pub(super) fn check(&self) -> Result<(), SettingError> {
        let Self { strategy, server, .. } = self;
        number("SERVER_LR", server.lr, 1e-6, 1000.0)?;
        number("SERVER_BETA1", server.beta1, 0.0, 0.999_999)?;
        number("SERVER_BETA2", server.beta2, 0.0, 0.999_999)?;
        number("SERVER_TAU", server.tau, 1e-9, 1.0)?;
        whole("MAX_STALENESS", self.max_staleness, 0, 1_000_000)?;
        whole("MAX_BUFFER_MB", self.max_buffer_mb as u64, 1, 1 << 24)?;
        if let Some(lazy) = self.lazy {
            number("LAZY", lazy, 1e-6, 1e6)?;
            if strategy.is_asynchronous() || strategy.uses_control() {
                let reason =
                    format!("STRATEGY={strategy} has no use for an update that came before: set LAZY=0");
                return Err(SettingError::new("LAZY", lazy, reason));
            }
        }
        if let Some(norm) = self.max_update_norm {
            number("MAX_UPDATE_NORM", norm, 1e-9, 1e9)?;
        }
        whole("DECODE_THREADS", self.threads as u64, 0, 256)
    }
}
