//! The starting point of a round, and the plan by which it is trained and encoded: from the worker's own settings,
//! otherwise the task's, otherwise defaults.

use crate::settings::{Config, ErrorFeedback, UpdateSettings};
use fl_app::SettingError;
use fl_model::{Method, OptimizerConfig};
use fl_protocol::TaskBody;
use fl_quant::{Bits, FeedbackRule, Scheme, Spec, Target};

/// SGD steps of a round where neither worker nor master say how many.
const DEFAULT_STEPS: u32 = 5;
const DEFAULT_BATCH_SIZE: u32 = 64;
const DEFAULT_LR: f32 = 0.05;
const DEFAULT_ADAM_LR: f32 = 0.001;
const DEFAULT_BITS: u8 = 4;

/// The starting point of a round.
#[derive(Debug, Clone, Copy)]
pub struct StartingPoint<'a> {
    /// Number of the round.
    pub round: u64,
    /// The global model.
    pub parameters: &'a [f32],
    /// The server's control variate, if the round is one of SCAFFOLD.
    pub control: Option<&'a [f32]>,
}

/// Amount of local training in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Number of SGD steps.
    Steps(u32),
    /// Number of passes over the local data.
    Epochs(u32),
}

/// How one round is trained and encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Amount of training.
    pub work: Work,
    /// Samples of a step.
    pub batch_size: usize,
    /// How the steps are made.
    pub sgd: OptimizerConfig,
    /// How the update is encoded; its seed is set for each round. A target in bytes is that of the whole
    /// container.
    pub encoding: Spec,
    /// The tensors whose quantization error is added to the next update.
    pub feedback: FeedbackRule,
    /// Lazy upload: the squared change of the update below which its upload may be left out.
    pub lazy_below: Option<f32>,
    /// Reported as `compute_factor` instead of the measured seconds; for a clock that is not the wall's.
    pub compute_factor: Option<f64>,
}

impl Plan {
    /// The plan of `task` under these settings.
    ///
    /// # Errors
    /// A task that names what this worker does not know.
    pub fn new(settings: &Config, task: &TaskBody) -> Result<Self, String> {
        let training = &settings.training;
        let (steps, epochs) = (training.local_steps, training.local_epochs);
        let work = match (epochs, steps, task.local_epochs, task.local_steps) {
            (Some(epochs), ..) | (None, None, Some(epochs), _) => Work::Epochs(epochs.max(1)),
            (None, Some(steps), ..) | (None, None, None, Some(steps)) => Work::Steps(steps.max(1)),
            (None, None, None, None) => Work::Steps(DEFAULT_STEPS),
        };
        let own_rate = training.lr.map(|lr| training.lr_schedule.at(lr, task.round));
        let method = training.optimizer;
        let default_rate = if method == Method::Sgd { DEFAULT_LR } else { DEFAULT_ADAM_LR };
        let sgd = OptimizerConfig {
            method,
            lr: own_rate.or(task.lr).unwrap_or(default_rate),
            momentum: training.momentum,
            nesterov: training.nesterov,
            weight_decay: training.weight_decay,
            mu: training.mu.or(task.mu).unwrap_or(0.0),
            clip_norm: training.clip_norm,
            ..OptimizerConfig::default()
        };
        sgd.validate().map_err(|error| error.to_string())?;
        let encoding = encoding(&settings.updates, task)?;
        let batch_size = training.batch_size.or(task.batch_size).unwrap_or(DEFAULT_BATCH_SIZE);
        Ok(Self {
            work,
            batch_size: batch_size.max(1) as usize,
            sgd,
            encoding,
            feedback: feedback(settings.updates.error_feedback, &encoding, task.lazy_below.is_some()),
            lazy_below: task.lazy_below,
            compute_factor: None,
        })
    }

    /// Samples that a client with `own` samples trains on, those of all steps counted.
    pub fn samples(&self, own: usize) -> u64 {
        match self.work {
            Work::Steps(steps) => u64::from(steps) * self.batch_size.min(own) as u64,
            Work::Epochs(epochs) => u64::from(epochs) * own as u64,
        }
    }

    /// The effective number of plain SGD steps of `steps` steps, if it differs: `|a|_1` of FedNova, the distance
    /// that gradients of 1 would move the model, divided by the learning rate (Wang et al. 2020, section 4).
    pub fn local_norm(&self, steps: u32) -> Option<f64> {
        let OptimizerConfig { method, lr, momentum, nesterov, mu, .. } = self.sgd;
        // Adam's steps do not scale with the gradient: they are worth no number of SGD steps.
        if method != Method::Sgd || momentum == 0.0 && mu == 0.0 {
            return None;
        }
        let (lr, momentum, mu) = (f64::from(lr), f64::from(momentum), f64::from(mu));
        let (mut velocity, mut moved) = (0.0, 0.0);
        for _ in 0..steps {
            let direction = 1.0 - mu * moved;
            velocity = momentum * velocity + direction;
            moved += lr * if nesterov { direction + momentum * velocity } else { velocity };
        }
        Some(moved / lr).filter(|norm| *norm > 0.0)
    }
}

/// Refuses Adam where the master's strategy counts steps of SGD.
///
/// # Errors
/// The setting, and what to do.
pub(crate) fn check_optimizer(settings: &Config, task: &TaskBody) -> Result<(), SettingError> {
    let optimizer = settings.training.optimizer;
    if task.needs_sgd && optimizer != Method::Sgd {
        let reason =
            "the master's STRATEGY (scaffold or fednova) counts steps of sgd: use sgd, or another strategy";
        return Err(SettingError::new("OPTIMIZER", optimizer, reason));
    }
    Ok(())
}

fn feedback(setting: ErrorFeedback, encoding: &Spec, is_lazy: bool) -> FeedbackRule {
    // Its error averages out over rounds and workers; carried on, it would only add to the next one.
    let is_unbiased = encoding.scheme == Scheme::StocQ;
    match setting {
        ErrorFeedback::On => FeedbackRule::Everything,
        ErrorFeedback::Auto | ErrorFeedback::Off if is_unbiased => FeedbackRule::Nothing,
        // Held-back changes accumulate in the residual until they justify an upload.
        ErrorFeedback::Auto | ErrorFeedback::Off if is_lazy => FeedbackRule::Everything,
        ErrorFeedback::Auto if encoding.feedback_pays() => FeedbackRule::Everything,
        ErrorFeedback::Auto => FeedbackRule::SilencedTensors,
        ErrorFeedback::Off => FeedbackRule::Nothing,
    }
}

fn encoding(settings: &UpdateSettings, task: &TaskBody) -> Result<Spec, String> {
    let scheme = match (settings.quantizer, &task.quantizer) {
        (Some(scheme), _) => scheme,
        (None, Some(name)) => name.parse()?,
        (None, None) => Scheme::MsqV2,
    };
    let UpdateSettings { entropy, rdo, target_nmse, update_bytes, .. } = *settings;
    let proposed = (task.update_bytes, task.target_nmse, task.bits);
    let (bits, target) = match (settings.bits, proposed) {
        (Some(Bits::Auto), _) => (8, update_bytes.map_or(Target::Nmse(target_nmse), Target::Bytes)),
        (Some(Bits::Width(bits)), _) | (None, (None, None, Some(bits))) => (bits, Target::Width),
        (None, (Some(bytes), ..)) => (8, Target::Bytes(usize::try_from(bytes).unwrap_or(usize::MAX))),
        (None, (None, Some(nmse), _)) if (1e-9..=0.9).contains(&nmse) => (8, Target::Nmse(nmse)),
        (None, (None, Some(nmse), _)) => {
            return Err(format!("the task's target_nmse is {nmse}, not 1e-9 to 0.9"));
        }
        (None, (None, None, None)) => (DEFAULT_BITS, Target::Width),
    };
    if !(1..=8).contains(&bits) {
        return Err(format!("the task asks for {bits} bits, 1 to 8 are possible"));
    }
    Ok(Spec { entropy, rdo, target, ..Spec::new(scheme, bits) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Args;
    use clap::Parser;

    fn task() -> TaskBody {
        TaskBody {
            local_steps: Some(7),
            batch_size: Some(32),
            lr: Some(0.1),
            quantizer: Some("SDQ".into()),
            bits: Some(8),
            ..TaskBody::train(3)
        }
    }

    fn config(args: &[&str]) -> Config {
        Args::parse_from(["fl-worker", "--worker-id=w"].iter().chain(args)).check().unwrap()
    }

    fn plan(args: &[&str], task: &TaskBody) -> Plan {
        Plan::new(&config(args), task).unwrap()
    }

    #[test]
    fn the_task_fills_in_what_is_not_set_here() {
        let plan = plan(&[], &task());
        assert_eq!((plan.work, plan.batch_size, plan.sgd.lr), (Work::Steps(7), 32, 0.1));
        assert_eq!((plan.encoding.scheme, plan.encoding.bits), (Scheme::Sdq, 8));
    }

    #[test]
    fn own_settings_win() {
        let own = ["--local-epochs=2", "--lr=0.5", "--quantizer=StocQ", "--bits=2", "--entropy=false"];
        let plan = plan(&own, &task());
        assert_eq!((plan.work, plan.batch_size, plan.sgd.lr), (Work::Epochs(2), 32, 0.5));
        assert_eq!((plan.encoding.scheme, plan.encoding.bits), (Scheme::StocQ, 2));
    }

    #[test]
    fn an_error_or_a_size_can_be_proposed_instead_of_a_width() {
        let auto = TaskBody { target_nmse: Some(0.02), bits: None, ..task() };
        let sized = TaskBody { update_bytes: Some(9000), ..auto.clone() };
        let target = |args: &[&str], task: &TaskBody| plan(args, task).encoding.target;
        assert_eq!(target(&[], &auto), Target::Nmse(0.02));
        assert_eq!(target(&[], &sized), Target::Bytes(9000));
        assert_eq!(target(&["--bits=3"], &sized), Target::Width);
        assert_eq!(target(&["--bits=auto", "--update-bytes=500"], &sized), Target::Bytes(500));
        assert!(Plan::new(&config(&[]), &TaskBody { target_nmse: Some(f64::NAN), ..auto }).is_err());
    }

    #[test]
    fn the_own_rate_follows_its_own_schedule() {
        let own = ["--lr=0.8", "--lr-schedule=step:3:0.5"];
        assert_eq!(plan(&own, &task()).sgd.lr, 0.4, "the task is of round 3");
    }

    #[test]
    fn what_is_carried_over_depends_on_what_is_lost() {
        use FeedbackRule::{Everything, Nothing, SilencedTensors};
        let lazy = TaskBody { lazy_below: Some(1.0), ..TaskBody::train(0) };
        let rule = |args: &[&str], task: &TaskBody| plan(args, task).feedback;
        let alone = |args: &[&str]| rule(args, &TaskBody::train(0));
        assert_eq!(alone(&[]), SilencedTensors);
        assert_eq!(alone(&["--bits=2"]), Everything);
        assert_eq!(alone(&["--entropy=false"]), Everything);
        assert_eq!(alone(&["--error-feedback=true"]), Everything);
        assert_eq!(alone(&["--error-feedback=false"]), Nothing);
        assert_eq!(rule(&["--error-feedback=false"], &lazy), Everything);
        for args in [["--quantizer=StocQ", "--bits=2"], ["--quantizer=StocQ", "--entropy=false"]] {
            assert_eq!((alone(&args), rule(&args, &lazy)), (Nothing, Nothing), "StocQ is unbiased");
        }
        assert_eq!(alone(&["--quantizer=StocQ", "--error-feedback=true"]), Everything);
    }

    #[test]
    fn what_local_work_is_worth_is_that_of_fednova() {
        let norm = |args: &[&str]| plan(args, &task()).local_norm(5);
        assert_eq!(norm(&[]), None);
        // Wang et al. 2020, section 4: (1 - (1 - lr mu)^n) / (lr mu) for FedProx.
        let prox = norm(&["--lr=0.1", "--mu=1"]).unwrap();
        assert!((prox - (1.0 - 0.9f64.powi(5)) / 0.1).abs() < 1e-6);
        // (n - rho (1 - rho^n) / (1 - rho)) / (1 - rho) for momentum.
        let momentum = norm(&["--momentum=0.5"]).unwrap();
        assert!((momentum - 2.0 * (5.0 - (1.0 - 0.5f64.powi(5)))).abs() < 1e-6);
        // Nesterov's is one step ahead: momentum's n + 1 steps without the first.
        let nesterov = norm(&["--momentum=0.5", "--nesterov=true"]).unwrap();
        assert!((nesterov - (2.0 * (6.0 - (1.0 - 0.5f64.powi(6))) - 1.0)).abs() < 1e-6);
        assert_eq!(norm(&["--optimizer=adam", "--mu=1"]), None);
    }

    #[test]
    fn adam_has_its_own_default_rate() {
        let rate = |args: &[&str], task: &TaskBody| plan(args, task).sgd.lr;
        let unset = TaskBody { lr: None, ..task() };
        assert_eq!((rate(&[], &unset), rate(&["--optimizer=adamw"], &unset)), (0.05, 0.001));
        assert_eq!(rate(&["--optimizer=adam"], &task()), 0.1, "the master's wins over a default");
    }

    #[test]
    fn schedules_hold_for_every_optimizer() {
        for optimizer in ["sgd", "adam", "adamw"] {
            let optimizer = format!("--optimizer={optimizer}");
            let own = plan(&[&optimizer, "--lr=0.08", "--lr-schedule=exp:0.5"], &task());
            assert!((own.sgd.lr - 0.01).abs() < 1e-7, "round 3: {}", own.sgd.lr);
            assert_eq!(plan(&[&optimizer], &task()).sgd.lr, 0.1, "the master's comes with its own schedule");
        }
    }

    #[test]
    fn a_strategy_that_counts_steps_of_sgd_refuses_adam() {
        let task = TaskBody { needs_sgd: true, ..task() };
        assert!(check_optimizer(&config(&[]), &task).is_ok());
        let error = check_optimizer(&config(&["--optimizer=adam"]), &task).unwrap_err();
        assert_eq!((error.name, error.value.as_str()), ("OPTIMIZER", "adam"));
    }

    #[test]
    fn a_task_that_makes_no_sense_is_refused() {
        let refused = |task| Plan::new(&config(&[]), &task).is_err();
        assert!(refused(TaskBody { bits: Some(9), ..task() }));
        assert!(refused(TaskBody { quantizer: Some("zip".into()), ..task() }));
        assert!(refused(TaskBody { lr: Some(f32::NAN), ..task() }));
    }
}
