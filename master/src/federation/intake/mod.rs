//! What an update contributes: the checks that need the settings, and the term of the sum.

pub mod lazy;

use crate::{
    config::AggregationConfig, config::NormAction, federation::Strategy, federation::aggregate::Collector,
    federation::aggregate::ExactSum, federation::aggregate::collector::Vector,
    federation::intake::lazy::LastUpdates,
};
use fl_protocol::{ErrorCode, ModelLayout, Update, UpdateError, UpdateMeta, update};
use fl_quant::DecodeError;

/// Why an update is refused: a code and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub msg: String,
}

impl Rejection {
    /// Puts code and sentence together.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into() }
    }
}

impl From<UpdateError> for Rejection {
    fn from(error: UpdateError) -> Self {
        let code = match &error {
            UpdateError::Malformed(_) => ErrorCode::Malformed,
            UpdateError::WrongTensors(_) => ErrorCode::WrongTensors,
            UpdateError::NonFinite(_) => ErrorCode::NonFinite,
            UpdateError::BadNumSamples(_) => ErrorCode::BadNumSamples,
            UpdateError::BadStream { error: DecodeError::Unsupported(_), .. } => ErrorCode::UnknownQuantizer,
            UpdateError::BadStream { error: DecodeError::WrongLength { .. }, .. } => ErrorCode::WrongTensors,
            UpdateError::BadStream { .. } => ErrorCode::BadStream,
            UpdateError::TooLarge(_) => ErrorCode::NormTooLarge,
        };
        Self::new(code, error.to_string())
    }
}

/// What updates are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Intake<'a> {
    /// The model's tensors.
    pub layout: &'a ModelLayout,
    /// The settings.
    pub config: &'a AggregationConfig,
    /// How many updates the sum must have room for.
    pub terms: usize,
    /// What notices refer to.
    pub lasts: &'a LastUpdates,
    /// Of an update that was accepted before: what its norm was clipped by then. It is not judged again.
    pub accepted: Option<f64>,
}

impl Intake<'_> {
    /// Calls `f` with the term that `body` stands for in the open round `round`: its own, or that of the
    /// worker's last update if it is a notice.
    ///
    /// # Errors
    /// What is wrong with it, or what `f` says.
    pub fn with_term<T>(
        &self,
        body: &[u8],
        round: u64,
        f: impl FnOnce(&Term<'_>) -> Result<T, Rejection>,
    ) -> Result<T, Rejection> {
        let term = |body| Term::new(body, self, round);
        if update::peek_meta(body)?.reuse.is_none() {
            return f(&term(body)?);
        }
        let notice = update::parse_notice(body)?;
        let last = self.lasts.reused(&notice).ok_or_else(|| {
            Rejection::new(ErrorCode::NoLastUpdate, "that update is not kept here: send this round's instead")
        })?;
        let mut term = term(&last)?;
        term.reused_bytes = Some(last.len() as u64);
        // The weight is that of the update which counts; what is told of the round is new.
        term.meta = UpdateMeta {
            num_samples: term.meta.num_samples,
            local_steps: term.meta.local_steps,
            local_norm: term.meta.local_norm,
            ..notice
        };
        f(&term)
    }
}

/// A checked update as a term of the sum. The same body and settings always give the same term.
#[derive(Debug)]
pub struct Term<'a> {
    /// Who and what.
    pub meta: UpdateMeta,
    /// `|a_k|_1` of FedNova: the local steps, or what the worker says they are worth.
    pub local_norm: f64,
    /// What its norm is clipped by.
    pub clip: f64,
    /// Size of the worker's last update, if that counts again.
    pub reused_bytes: Option<u64>,
    update: Update<'a>,
    weight: f64,
    control_weight: f64,
}

impl<'a> Term<'a> {
    /// Checks a body from its first byte to its last. `round` is the open round.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(body: &'a [u8], intake: &Intake<'a>, round: u64) -> Result<Self, Rejection> {
        let config = intake.config;
        let update = Update::parse(body, intake.layout)?;
        let meta = update.meta.clone();
        let strategy = config.strategy;
        check_control(&update, strategy)?;
        let local_norm = local_norm(&meta, strategy)?;
        let weight = match strategy.keeps_updates() {
            true => 1.0,
            false => strategy.weight(meta.num_samples, local_norm, round.saturating_sub(meta.round)),
        };
        let share = ExactSum::share(intake.terms);
        let largest = weight * f64::from(update.max_abs.max(update.control_max_abs));
        if intake.accepted.is_none() && !strategy.keeps_updates() && largest > share {
            return Err(Rejection::new(
                ErrorCode::NormTooLarge,
                format!(
                    "num_samples times the largest magnitude is beyond {share:.0}, an update's share of the sum"
                ),
            ));
        }
        let clip = match (intake.accepted, config.max_update_norm) {
            (Some(clip), _) => clip,
            (None, Some(limit)) => clip_factor(&update, limit, config.norm_action)?,
            (None, None) => 1.0,
        };
        Ok(Self {
            meta,
            local_norm,
            clip,
            reused_bytes: None,
            update,
            weight: weight * clip,
            control_weight: weight,
        })
    }

    /// Calls `f` with what the collector takes: the update, and the change of the control variate.
    fn vectors<T>(&self, f: impl FnOnce(&Vector<'_>, Option<&Vector<'_>>) -> T) -> T {
        let update = Vector {
            weight: self.weight,
            max_abs: self.update.max_abs,
            pieces: &|f| self.update.for_each_piece(f),
        };
        let control = Vector {
            weight: self.control_weight,
            max_abs: self.update.control_max_abs,
            pieces: &|f| self.update.for_each_control_piece(f),
        };
        f(&update, (!self.update.control.is_empty()).then_some(&control))
    }

    /// Adds it.
    ///
    /// # Errors
    /// If the sum has no room for it; it is unchanged then.
    pub fn add_to(&self, collector: &Collector) -> Result<(), Rejection> {
        self.vectors(|update, control| collector.add(&self.meta.worker_id, update, control))
            .map_err(|error| Rejection::new(ErrorCode::NormTooLarge, error.to_string()))
    }

    /// Takes it out again.
    pub fn take_from(&self, collector: &Collector) {
        self.vectors(|update, control| collector.remove(&self.meta.worker_id, update, control));
    }
}

/// Control variates come exactly when the strategy needs them.
fn check_control(update: &Update<'_>, strategy: Strategy) -> Result<(), Rejection> {
    match (strategy.uses_control(), update.control.is_empty()) {
        (true, true) => Err(Rejection::new(
            ErrorCode::WrongTensors,
            format!(
                "{strategy} needs the change of the control variate, tensors `control.NAME`: take both models of `GET /task`"
            ),
        )),
        (false, false) => {
            Err(Rejection::new(ErrorCode::WrongTensors, format!("{strategy} takes no control variates")))
        }
        _ => Ok(()),
    }
}

/// Most plain SGD steps that local work may claim to be worth.
const MAX_LOCAL_NORM: f64 = 1e7;

fn local_norm(meta: &UpdateMeta, strategy: Strategy) -> Result<f64, Rejection> {
    let claimed = meta.local_norm.or(meta.local_steps.map(f64::from));
    match claimed {
        Some(norm) if norm > 0.0 && norm <= MAX_LOCAL_NORM => Ok(norm),
        None if strategy != Strategy::FedNova => Ok(1.0),
        _ => Err(Rejection::new(
            ErrorCode::Malformed,
            format!(
                "its metadata needs `local_steps` (and `local_norm`, if any) above 0, at most {MAX_LOCAL_NORM:.0}"
            ),
        )),
    }
}

/// The factor that brings the norm within the limit.
fn clip_factor(update: &Update<'_>, limit: f64, action: NormAction) -> Result<f64, Rejection> {
    let mut squares = 0.0;
    update.for_each_chunk(|_, values| squares += values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>());
    let norm = squares.sqrt();
    match action {
        _ if norm <= limit => Ok(1.0),
        NormAction::Clip => Ok(limit / norm),
        NormAction::Reject => Err(Rejection::new(
            ErrorCode::NormTooLarge,
            format!("the update's norm is {norm:.4}, at most {limit} is accepted"),
        )),
    }
}
