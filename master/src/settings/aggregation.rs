//! How updates become the next model. What is checked and used is the federation's own
//! [`AggregationSettings`]: the journal of a round records them, and their defaults stand there.

use crate::federation::{AggregationSettings, NormAction, ServerOptions, Strategy};
use clap::Args;
use fl_app::{
    SettingError,
    setting::{number, parse, whole},
};
use fl_protocol::limits::MAX_NUM_SAMPLES;

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Aggregation")]
pub struct AggregationArgs {
    /// How updates become the next model: fedavg, fedavgm, fedadagrad, fedyogi, fedadam, fednova,
    /// scaffold:N (N workers in all), fedbuff:K (asynchronous, K updates make a model), median,
    /// trimmed_mean:F, krum:F, multikrum:F:M (F hostile updates are tolerated)
    #[arg(long, env, default_value_t = AggregationSettings::default().strategy.to_string())]
    pub strategy: String,
    /// Step size of the server, 1e-6 to 1000 [default: 1, or 0.01 with fedadagrad, fedyogi, fedadam]
    #[arg(long, env)]
    pub server_lr: Option<f64>,
    /// Server momentum of fedavgm, fedadagrad, fedyogi, fedadam, 0 to below 1
    #[arg(long, env, default_value_t = AggregationSettings::default().server.beta1)]
    pub server_beta1: f64,
    /// Memory of the second moment of fedyogi and fedadam, 0 to below 1
    #[arg(long, env, default_value_t = AggregationSettings::default().server.beta2)]
    pub server_beta2: f64,
    /// Adaptivity of fedadagrad, fedyogi, fedadam: the smaller, the more alike are all steps, 1e-9 to 1
    #[arg(long, env, default_value_t = AggregationSettings::default().server.tau)]
    pub server_tau: f64,
    /// Rounds that an update may be late with fedbuff, or may count again with LAZY, 0 to 1000000
    #[arg(long, env, default_value_t = AggregationSettings::default().max_staleness)]
    pub max_staleness: u64,
    /// Memory for the updates of a round in MB; median, trimmed_mean, krum and multikrum keep 4 bytes for
    /// each parameter and update, LAZY the last update of every worker
    #[arg(long, env, default_value_t = AggregationSettings::default().max_buffer_mb)]
    pub max_buffer_mb: usize,
    /// Lazy upload: workers leave out an update whose squared change is at most LAZY times the mean squared
    /// step of the last ten models, and their last one counts again. 0.8 is the rule of LAQ; above 1 the
    /// training begins to swing. 1e-6 to 1e6, 0 = off
    #[arg(long, env, default_value_t = 0.0)]
    pub lazy: f64,
    /// Samples that one update counts for at most, 1 to 100000000, 0 = no limit: bounds the weight that a claim can
    /// give
    #[arg(long, env, default_value_t = 0)]
    pub max_weight: u64,
    /// Largest Euclidean norm of an update as it is applied, and of the change of SCAFFOLD's control variate, 1e-9 to
    /// 1e9, 0 = no limit
    #[arg(long, env, default_value_t = 0.0)]
    pub max_update_norm: f64,
    /// What happens to an update beyond MAX_UPDATE_NORM
    #[arg(long, env, value_enum, default_value_t = AggregationSettings::default().norm_action)]
    pub norm_action: NormAction,
}

impl AggregationArgs {
    pub(super) fn resolve(self) -> Result<AggregationSettings, SettingError> {
        let strategy = parse::<Strategy>("STRATEGY", &self.strategy)?;
        Ok(AggregationSettings {
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
        })
    }
}

/// Checks every value's range, and what must hold between values of this group.
pub(super) fn check(settings: &AggregationSettings) -> Result<(), SettingError> {
    let AggregationSettings { strategy, server, .. } = settings;
    number("SERVER_LR", server.lr, 1e-6, 1000.0)?;
    number("SERVER_BETA1", server.beta1, 0.0, 0.999_999)?;
    number("SERVER_BETA2", server.beta2, 0.0, 0.999_999)?;
    number("SERVER_TAU", server.tau, 1e-9, 1.0)?;
    whole("MAX_STALENESS", settings.max_staleness, 0, 1_000_000)?;
    whole("MAX_BUFFER_MB", settings.max_buffer_mb as u64, 1, 1 << 24)?;
    if let Some(lazy) = settings.lazy {
        number("LAZY", lazy, 1e-6, 1e6)?;
        if strategy.is_asynchronous() || strategy.uses_control() {
            let reason = format!("STRATEGY={strategy} has no use for an update that came before: set LAZY=0");
            return Err(SettingError::new("LAZY", lazy, reason));
        }
    }
    if let Some(norm) = settings.max_update_norm {
        number("MAX_UPDATE_NORM", norm, 1e-9, 1e9)?;
    }
    if let Some(weight) = settings.max_weight {
        whole("MAX_WEIGHT", weight, 1, MAX_NUM_SAMPLES)?;
    }
    Ok(())
}
