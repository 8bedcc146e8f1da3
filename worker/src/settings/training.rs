//! Local training.

use clap::{ArgAction, Args};
use fl_app::{
    SettingError,
    setting::{filled, number, parse, whole},
};
use fl_model::{Backend, Method, TensorPattern};
use fl_protocol::LrSchedule;
use std::num::NonZeroUsize;

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub struct TrainingArgs {
    /// SGD steps of a round, 1 to 1000000 [default: the master's, or 5]
    #[arg(long, env = "LOCAL_STEPS")]
    pub local_steps: Option<u32>,
    /// Passes over the local data in a round instead of LOCAL_STEPS, 1 to 10000 [default: the master's]
    #[arg(long, env = "LOCAL_EPOCHS")]
    pub local_epochs: Option<u32>,
    /// Samples of a step, 1 to 1000000 [default: the master's, or 64]
    #[arg(long, env = "BATCH_SIZE")]
    pub batch_size: Option<u32>,
    /// Rule of a step: sgd, adam (weight decay in the gradient), adamw (apart from it)
    #[arg(long, env = "OPTIMIZER", default_value = "sgd")]
    pub optimizer: String,
    /// Learning rate, above 0, at most 1000 [default: the master's, or 0.05, or 0.001 with adam and adamw]
    #[arg(long, env = "LR")]
    pub lr: Option<f32>,
    /// How LR changes from round to round: constant, exp:F, step:N:F, cosine:N, warmup:N
    #[arg(long, env = "LR_SCHEDULE", default_value = "constant")]
    pub lr_schedule: String,
    /// Momentum of sgd, 0 to below 1
    #[arg(long, env = "MOMENTUM", default_value_t = 0.0)]
    pub momentum: f32,
    /// Nesterov's momentum instead of the plain one, true or false
    #[arg(long, env = "NESTEROV", default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    pub nesterov: bool,
    /// L2 penalty (adamw: decay of the weights), 0 or more
    #[arg(long, env = "WEIGHT_DECAY", default_value_t = 0.0)]
    pub weight_decay: f32,
    /// Weight of FedProx's proximal term, 0 to 1000 [default: the master's, or 0]
    #[arg(long, env = "MU")]
    pub mu: Option<f32>,
    /// Largest Euclidean norm of a gradient, 0 = no limit
    #[arg(long, env = "CLIP_NORM", default_value_t = 0.0)]
    pub clip_norm: f32,
    /// Regular expression: tensors in whose name it is found are personal: this worker keeps and trains its own
    /// values, which never travel [default: the master's]
    #[arg(long, env = "LOCAL_LAYERS", value_name = "REGEX")]
    pub local_layers: Option<String>,
    /// Parameters that the master's model must not exceed, 0 = any
    #[arg(long, env = "MODEL_DIM", default_value_t = 0)]
    pub model_dim: usize,
    /// What trains: auto (the faster of the next two), fused (own kernels), flex (Burn on the CPU),
    /// ndarray, wgpu
    #[arg(long, env = "BACKEND", default_value = "auto")]
    pub backend: String,
    /// Threads of the training, 1 to 256, 0 = one for dense networks, one per core for convolutions
    #[arg(long, env = "THREADS", default_value_t = 0)]
    pub threads: usize,
}

/// Checked. What is none comes from the master's task.
#[derive(Debug, Clone)]
pub struct TrainingSettings {
    /// `LOCAL_STEPS`.
    pub local_steps: Option<u32>,
    /// `LOCAL_EPOCHS`.
    pub local_epochs: Option<u32>,
    /// `BATCH_SIZE`.
    pub batch_size: Option<u32>,
    /// `OPTIMIZER`.
    pub optimizer: Method,
    /// `LR`.
    pub lr: Option<f32>,
    /// `LR_SCHEDULE`: of `LR` alone; the master's rate comes with its own schedule.
    pub lr_schedule: LrSchedule,
    /// `MOMENTUM`.
    pub momentum: f32,
    /// `NESTEROV`.
    pub nesterov: bool,
    /// `WEIGHT_DECAY`.
    pub weight_decay: f32,
    /// `MU`.
    pub mu: Option<f32>,
    /// `CLIP_NORM`; none: no limit.
    pub clip_norm: Option<f32>,
    /// `LOCAL_LAYERS`: the personal tensors.
    pub local_layers: Option<TensorPattern>,
    /// `MODEL_DIM`: largest model that this node takes, in parameters; none: any.
    pub model_dim: Option<usize>,
    /// `BACKEND`.
    pub backend: Backend,
    /// `THREADS`; none: by the model.
    pub threads: Option<usize>,
}

impl TrainingArgs {
    pub(super) fn check(self) -> Result<TrainingSettings, SettingError> {
        let some = |name, value: Option<u32>, max| value.map_or(Ok(()), |v| whole(name, v.into(), 1, max));
        some("LOCAL_STEPS", self.local_steps, 1_000_000)?;
        some("LOCAL_EPOCHS", self.local_epochs, 10_000)?;
        some("BATCH_SIZE", self.batch_size, 1_000_000)?;
        self.lr.map_or(Ok(()), |lr| number("LR", lr, 1e-9, 1000.0))?;
        let lr_schedule = parse("LR_SCHEDULE", &self.lr_schedule)?;
        if self.lr.is_none() && lr_schedule != LrSchedule::Constant {
            return Err(SettingError::new("LR_SCHEDULE", lr_schedule, "set LR too"));
        }
        self.mu.map_or(Ok(()), |mu| number("MU", mu, 0.0, 1000.0))?;
        number("MOMENTUM", self.momentum, 0.0, 0.999_999)?;
        let optimizer: Method = parse("OPTIMIZER", &self.optimizer)?;
        if self.nesterov && self.momentum == 0.0 {
            return Err(SettingError::new("NESTEROV", true, "set MOMENTUM too"));
        }
        if optimizer != Method::Sgd && self.momentum != 0.0 {
            return Err(SettingError::new(
                "MOMENTUM",
                self.momentum,
                format!("{optimizer} has its own: leave it out"),
            ));
        }
        number("WEIGHT_DECAY", self.weight_decay, 0.0, 1000.0)?;
        let clip_norm = (self.clip_norm != 0.0).then_some(self.clip_norm);
        clip_norm.map_or(Ok(()), |norm| number("CLIP_NORM", norm, 1e-9, 1e9))?;
        whole("THREADS", self.threads as u64, 0, 256)?;
        let backend: Backend = parse("BACKEND", &self.backend)?;
        backend.check().map_err(|error| SettingError::new("BACKEND", backend, error.to_string()))?;
        Ok(TrainingSettings {
            local_steps: self.local_steps,
            local_epochs: self.local_epochs,
            batch_size: self.batch_size,
            optimizer,
            lr: self.lr,
            lr_schedule,
            momentum: self.momentum,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
            mu: self.mu,
            clip_norm,
            local_layers: filled(self.local_layers).map(|text| parse("LOCAL_LAYERS", &text)).transpose()?,
            model_dim: (self.model_dim != 0).then_some(self.model_dim),
            backend,
            threads: (self.threads != 0).then_some(self.threads),
        })
    }
}

impl TrainingSettings {
    /// Threads for a network in one of `workers` workers of a process: small dense ones lose more to
    /// coordination than they win, convolutions take this worker's share of the cores, at most 8.
    pub(crate) fn threads_for(&self, has_convolutions: bool, workers: usize) -> usize {
        match self.threads {
            Some(threads) => threads,
            None if has_convolutions => (cores() / workers.max(1)).clamp(1, 8),
            None => 1,
        }
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Args;
    use clap::Parser;

    #[test]
    fn workers_of_one_process_share_its_cores() {
        let mut training = Args::parse_from(["fl-worker", "--worker-id=w"]).check().unwrap().training;
        assert_eq!(training.threads_for(false, 1), 1);
        assert_eq!(training.threads_for(true, 1), cores().min(8));
        assert_eq!(training.threads_for(true, cores()), 1);
        assert_eq!(training.threads_for(true, 10 * cores()), 1);
        training.threads = Some(3);
        assert_eq!((training.threads_for(true, 1), training.threads_for(false, 1)), (3, 3));
    }
}
