//! The checked configuration, and what a round is to be trained with.

pub use fl_app::SettingError;
use fl_app::{
    Secret,
    setting::{number, whole},
};
use fl_datasets::{DatasetSpec, Partition};
use fl_model::{Backend, SgdConfig};
use fl_protocol::{LrSchedule, TaskBody, WorkerId};
use fl_quant::{Bits, Scheme, Spec, Target};
use std::{fmt, net::SocketAddr, num::NonZeroUsize, path::PathBuf, str::FromStr};

/// What the worker's own settings say about a round; what is none comes from the master's task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Own {
    /// `LOCAL_STEPS`.
    pub local_steps: Option<u32>,
    /// `LOCAL_EPOCHS`.
    pub local_epochs: Option<u32>,
    /// `BATCH_SIZE`.
    pub batch_size: Option<u32>,
    /// `LR`.
    pub lr: Option<f32>,
    /// `LR_SCHEDULE`: of `LR` alone; the master's rate comes with its own schedule.
    pub lr_schedule: LrSchedule,
    /// `MU`.
    pub mu: Option<f32>,
    /// `QUANTIZER`.
    pub quantizer: Option<Scheme>,
    /// `BITS`.
    pub bits: Option<Bits>,
}

/// Whether what quantization lost of an update goes into the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorFeedback {
    /// Where it is worth its bytes: see [`Spec::feedback_pays`].
    Auto,
    /// Always.
    On,
    /// Never, but for what lazy upload holds back.
    Off,
}

impl FromStr for ErrorFeedback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::On),
            "false" => Ok(Self::Off),
            _ => Err("give auto, true or false".to_owned()),
        }
    }
}

impl fmt::Display for ErrorFeedback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "true",
            Self::Off => "false",
        })
    }
}

/// How updates are encoded, beyond what a task says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coding {
    /// `ENTROPY` (true): the lossless stage.
    pub entropy: bool,
    /// `RDO` (false): the trellis of MSQ_v2.
    pub rdo: bool,
    /// `ERROR_FEEDBACK` (auto).
    pub error_feedback: ErrorFeedback,
    /// `TARGET_NMSE` (0.0095): the error that `BITS=auto` aims at.
    pub target_nmse: f64,
    /// `UPDATE_BYTES` (0 = none): the size of an update that `BITS=auto` keeps to instead.
    pub update_bytes: Option<usize>,
}

/// How the model is quantized for its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Down {
    /// `DOWN_QUANTIZER` (SDQ).
    pub scheme: Scheme,
    /// `DOWN_BITS` (0 = the exact model).
    pub bits: u8,
}

/// Everything that a worker can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `MASTER_ADDR` (http://master-service:5000), without a slash at the end.
    pub master_addr: String,
    /// `WORKER_ID` (the host's name).
    pub worker_id: WorkerId,
    /// `SEED` (42).
    pub seed: u64,
    /// `DATASET` (digits).
    pub dataset: DatasetSpec,
    /// `DATA_DIR` (none).
    pub data_dir: Option<PathBuf>,
    /// `DATASET_SIZE` (50000): at most so many local samples.
    pub dataset_size: usize,
    /// `PARTITION` (iid).
    pub partition: Partition,
    /// `PARTITION_ID` and `NUM_PARTITIONS` (none): an exact, disjoint part.
    pub part: Option<(usize, usize)>,
    /// What wins over the master's task.
    pub own: Own,
    /// How updates are encoded.
    pub coding: Coding,
    /// A quantized download, if one is wanted.
    pub down: Option<Down>,
    /// `MOMENTUM` (0).
    pub momentum: f32,
    /// `WEIGHT_DECAY` (0).
    pub weight_decay: f32,
    /// `CLIP_NORM` (0 = none).
    pub clip_norm: Option<f32>,
    /// `MODEL_DIM` (0 = any): largest model that this node takes, in parameters.
    pub model_dim: Option<usize>,
    /// `BACKEND` (auto).
    pub backend: Backend,
    /// `THREADS` (0 = by the model).
    pub threads: Option<usize>,
    /// Workers of this process, which share its cores: 1, but for `fl run`.
    pub workers: usize,
    /// `MEM_MB` (500): resident ballast.
    pub mem_mb: usize,
    /// `TOUCH_STRIDE_BYTES` (4096).
    pub touch_stride_bytes: usize,
    /// `FL_TOKEN` (none).
    pub token: Option<Secret>,
    /// `CA_CERT` (the system's).
    pub ca_cert: Option<PathBuf>,
    /// `CLIENT_CERT` (none).
    pub client_cert: Option<PathBuf>,
    /// `GIVE_UP_S` (0 = never).
    pub give_up_s: Option<f64>,
    /// `DRAIN_S` (10).
    pub drain_s: f64,
    /// `METRICS_ADDR` (none).
    pub metrics_addr: Option<SocketAddr>,
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// How much is trained in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// So many SGD steps.
    Steps(u32),
    /// So many passes over the local data.
    Epochs(u32),
}

/// What one round is trained and encoded with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// How much.
    pub work: Work,
    /// Samples of a step.
    pub batch_size: usize,
    /// How the steps are made.
    pub sgd: SgdConfig,
    /// How the update is encoded; its seed is set for each round. A target in bytes is that of the whole
    /// container.
    pub encoding: Spec,
    /// Whether what is lost of the update goes into the next one.
    pub feedback: bool,
    /// Lazy upload: the squared change of the update below which its upload may be left out.
    pub lazy_below: Option<f32>,
    /// Reported as `compute_factor` instead of the measured seconds; for a clock that is not the wall's.
    pub compute_factor: Option<f64>,
}

impl Plan {
    /// Samples that a client with `own` samples trains on, those of all steps counted.
    pub fn samples(&self, own: usize) -> u64 {
        match self.work {
            Work::Steps(steps) => u64::from(steps) * self.batch_size.min(own) as u64,
            Work::Epochs(epochs) => u64::from(epochs) * own as u64,
        }
    }

    /// What `steps` steps are worth in plain SGD steps, if not as many: `|a|_1` of FedNova, how far
    /// gradients of 1 would move the model, by the learning rate (Wang et al. 2020, section 4).
    pub fn local_norm(&self, steps: u32) -> Option<f64> {
        let SgdConfig { lr, momentum, mu, .. } = self.sgd;
        if momentum == 0.0 && mu == 0.0 {
            return None;
        }
        let (lr, momentum, mu) = (f64::from(lr), f64::from(momentum), f64::from(mu));
        let (mut velocity, mut moved) = (0.0, 0.0);
        for _ in 0..steps {
            velocity = momentum * velocity + 1.0 - mu * moved;
            moved += lr * velocity;
        }
        Some(moved / lr).filter(|norm| *norm > 0.0)
    }
}

impl Config {
    /// The plan of a round: the worker's own settings, then the task's, then the defaults.
    ///
    /// # Errors
    /// A task that names what this worker does not know.
    pub fn plan(&self, task: &TaskBody) -> Result<Plan, String> {
        let own = &self.own;
        let work = match (own.local_epochs, own.local_steps, task.local_epochs, task.local_steps) {
            (Some(epochs), ..) | (None, None, Some(epochs), _) => Work::Epochs(epochs.max(1)),
            (None, Some(steps), ..) | (None, None, None, Some(steps)) => Work::Steps(steps.max(1)),
            (None, None, None, None) => Work::Steps(5),
        };
        let sgd = SgdConfig {
            lr: own.lr.map(|lr| own.lr_schedule.at(lr, task.round)).or(task.lr).unwrap_or(0.05),
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            mu: own.mu.or(task.mu).unwrap_or(0.0),
            clip_norm: self.clip_norm,
        };
        sgd.validate().map_err(|error| error.to_string())?;
        let encoding = self.encoding(task)?;
        let feedback = match self.coding.error_feedback {
            ErrorFeedback::Auto => encoding.feedback_pays(),
            ErrorFeedback::On => true,
            ErrorFeedback::Off => false,
        };
        Ok(Plan {
            work,
            batch_size: own.batch_size.or(task.batch_size).unwrap_or(64).max(1) as usize,
            sgd,
            encoding,
            // What is held back must not be lost.
            feedback: feedback || task.lazy_below.is_some(),
            lazy_below: task.lazy_below,
            compute_factor: None,
        })
    }

    fn encoding(&self, task: &TaskBody) -> Result<Spec, String> {
        let scheme = match (self.own.quantizer, &task.quantizer) {
            (Some(scheme), _) => scheme,
            (None, Some(name)) => name.parse()?,
            (None, None) => Scheme::MsqV2,
        };
        let Coding { entropy, rdo, target_nmse, update_bytes, .. } = self.coding;
        let proposed = (task.update_bytes, task.target_nmse, task.bits);
        let (bits, target) = match (self.own.bits, proposed) {
            (Some(Bits::Auto), _) => (8, update_bytes.map_or(Target::Nmse(target_nmse), Target::Bytes)),
            (Some(Bits::Width(bits)), _) | (None, (None, None, Some(bits))) => (bits, Target::Width),
            (None, (Some(bytes), ..)) => (8, Target::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX))),
            (None, (None, Some(nmse), _)) if (1e-9..=0.9).contains(&nmse) => (8, Target::Nmse(nmse)),
            (None, (None, Some(nmse), _)) => {
                return Err(format!("the task's target_nmse is {nmse}, not 1e-9 to 0.9"));
            }
            (None, (None, None, None)) => (4, Target::Width),
        };
        if !(1..=8).contains(&bits) {
            return Err(format!("the task asks for {bits} bits, 1 to 8 are possible"));
        }
        Ok(Spec { entropy, rdo, target, ..Spec::new(scheme, bits) })
    }

    /// Threads for a network: small dense ones lose more to coordination than they win, convolutions
    /// take this worker's share of the cores, at most 8.
    pub fn training_threads(&self, has_convolutions: bool) -> usize {
        match self.threads {
            Some(threads) => threads,
            None if has_convolutions => (cores() / self.workers.max(1)).clamp(1, 8),
            None => 1,
        }
    }

    /// Checks every value's range and what must hold between settings.
    ///
    /// # Errors
    /// The first setting whose value is refused.
    pub fn validate(&self) -> Result<(), SettingError> {
        if !["http://", "https://"].iter().any(|scheme| self.master_addr.starts_with(scheme)) {
            let reason = "give an address that starts with http:// or https://";
            return Err(SettingError::new("MASTER_ADDR", &self.master_addr, reason));
        }
        whole("DATASET_SIZE", self.dataset_size as u64, 1, 1_000_000_000)?;
        if let Some((id, parts)) = self.part {
            whole("NUM_PARTITIONS", parts as u64, 1, 100_000)?;
            whole("PARTITION_ID", id as u64, 0, parts as u64 - 1)?;
        }
        let some = |name, value: Option<u32>, max| value.map_or(Ok(()), |v| whole(name, v.into(), 1, max));
        some("LOCAL_STEPS", self.own.local_steps, 1_000_000)?;
        some("LOCAL_EPOCHS", self.own.local_epochs, 10_000)?;
        some("BATCH_SIZE", self.own.batch_size, 1_000_000)?;
        number("TARGET_NMSE", self.coding.target_nmse, 1e-9, 0.9)?;
        if let Some(bytes) = self.coding.update_bytes {
            whole("UPDATE_BYTES", bytes as u64, 1, 1 << 32)?;
            if self.own.bits != Some(Bits::Auto) {
                return Err(SettingError::new("UPDATE_BYTES", bytes, "set BITS=auto too"));
            }
        }
        number("LR", self.own.lr.unwrap_or(1.0), 1e-9, 1000.0)?;
        if self.own.lr.is_none() && self.own.lr_schedule != LrSchedule::Constant {
            return Err(SettingError::new("LR_SCHEDULE", self.own.lr_schedule, "set LR too"));
        }
        number("MU", self.own.mu.unwrap_or(0.0), 0.0, 1000.0)?;
        number("MOMENTUM", self.momentum, 0.0, 0.999_999)?;
        number("WEIGHT_DECAY", self.weight_decay, 0.0, 1000.0)?;
        number("CLIP_NORM", self.clip_norm.unwrap_or(1.0), 1e-9, 1e9)?;
        whole("THREADS", self.threads.unwrap_or(1) as u64, 1, 256)?;
        whole("MEM_MB", self.mem_mb as u64, 0, 1 << 24)?;
        whole("TOUCH_STRIDE_BYTES", self.touch_stride_bytes as u64, 1, 1 << 30)?;
        number("GIVE_UP_S", self.give_up_s.unwrap_or(1.0), 0.01, 1e9)?;
        number("DRAIN_S", self.drain_s, 0.0, 3600.0)?;
        if self.token.as_ref().is_some_and(|token| !token.0.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(SettingError::new("FL_TOKEN", "(secret)", "use printable ASCII without spaces"));
        }
        self.backend.check().map_err(|error| SettingError::new("BACKEND", self.backend, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Args;
    use clap::Parser;
    use fl_protocol::TaskAction;

    fn task() -> TaskBody {
        TaskBody {
            action: TaskAction::Train,
            round: 3,
            etag: String::new(),
            local_steps: Some(7),
            local_epochs: None,
            batch_size: Some(32),
            lr: Some(0.1),
            mu: None,
            quantizer: Some("SDQ".into()),
            bits: Some(8),
            target_nmse: None,
            update_bytes: None,
            lazy_below: None,
            control: false,
            deadline_s: None,
        }
    }

    fn config(args: &[&str]) -> Config {
        Args::parse_from(["fl-worker", "--worker-id=w"].iter().chain(args)).check().unwrap()
    }

    #[test]
    fn the_task_fills_in_what_is_not_set_here() {
        let plan = config(&[]).plan(&task()).unwrap();
        assert_eq!((plan.work, plan.batch_size, plan.sgd.lr), (Work::Steps(7), 32, 0.1));
        assert_eq!((plan.encoding.scheme, plan.encoding.bits), (Scheme::Sdq, 8));
    }

    #[test]
    fn workers_of_one_process_share_its_cores() {
        let mut config = config(&[]);
        assert_eq!(config.training_threads(false), 1);
        assert_eq!(config.training_threads(true), cores().min(8));
        config.workers = cores();
        assert_eq!(config.training_threads(true), 1);
        config.workers = 10 * cores();
        assert_eq!(config.training_threads(true), 1);
        config.threads = Some(3);
        assert_eq!((config.training_threads(true), config.training_threads(false)), (3, 3));
    }

    #[test]
    fn own_settings_win() {
        let own =
            config(&["--local-epochs=2", "--lr=0.5", "--quantizer=StocQ", "--bits=2", "--entropy=false"]);
        let plan = own.plan(&task()).unwrap();
        assert_eq!((plan.work, plan.batch_size, plan.sgd.lr), (Work::Epochs(2), 32, 0.5));
        assert_eq!((plan.encoding.scheme, plan.encoding.bits), (Scheme::StocQ, 2));
    }

    #[test]
    fn an_error_or_a_size_can_be_proposed_instead_of_a_width() {
        let auto = TaskBody { target_nmse: Some(0.02), bits: None, ..task() };
        let sized = TaskBody { update_bytes: Some(9000), ..auto.clone() };
        let target = |args: &[&str], task: &TaskBody| config(args).plan(task).unwrap().encoding.target;
        assert_eq!(target(&[], &auto), Target::Nmse(0.02));
        assert_eq!(target(&[], &sized), Target::Bytes(9000));
        assert_eq!(target(&["--bits=3"], &sized), Target::Width);
        assert_eq!(target(&["--bits=auto", "--update-bytes=500"], &sized), Target::Bytes(500));
        let alone = Args::parse_from(["fl-worker", "--worker-id=w", "--update-bytes=500"]).check();
        assert_eq!(alone.unwrap_err().name, "UPDATE_BYTES");
        assert!(config(&[]).plan(&TaskBody { target_nmse: Some(f64::NAN), ..auto }).is_err());
    }

    #[test]
    fn the_own_rate_follows_its_own_schedule() {
        let own = config(&["--lr=0.8", "--lr-schedule=step:3:0.5"]);
        assert_eq!(own.plan(&task()).unwrap().sgd.lr, 0.4, "the task is of round 3");
        let bad = Args::parse_from(["fl-worker", "--worker-id=w", "--lr-schedule=exp:0.9"]).check();
        assert_eq!(bad.unwrap_err().name, "LR_SCHEDULE");
    }

    #[test]
    fn what_local_work_is_worth_is_that_of_fednova() {
        let plan = |args: &[&str]| config(args).plan(&task()).unwrap();
        assert_eq!(plan(&[]).local_norm(5), None);
        // Wang et al. 2020, section 4: (1 - (1 - lr mu)^n) / (lr mu) for FedProx.
        let prox = plan(&["--lr=0.1", "--mu=1"]).local_norm(5).unwrap();
        assert!((prox - (1.0 - 0.9f64.powi(5)) / 0.1).abs() < 1e-6);
        // (n - rho (1 - rho^n) / (1 - rho)) / (1 - rho) for momentum.
        let momentum = plan(&["--momentum=0.5"]).local_norm(5).unwrap();
        assert!((momentum - 2.0 * (5.0 - (1.0 - 0.5f64.powi(5)))).abs() < 1e-6);
    }

    #[test]
    fn a_task_that_makes_no_sense_is_refused() {
        assert!(config(&[]).plan(&TaskBody { bits: Some(9), ..task() }).is_err());
        assert!(config(&[]).plan(&TaskBody { quantizer: Some("zip".into()), ..task() }).is_err());
        assert!(config(&[]).plan(&TaskBody { lr: Some(f32::NAN), ..task() }).is_err());
    }
}
