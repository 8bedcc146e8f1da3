//! The checks of an update that need the settings.

use super::lazy::UpdateCache;
use crate::federation::{AggregationSettings, NormAction, Strategy};
use fl_protocol::{ErrorCode, ModelLayout, Update, UpdateError, UpdateMeta};
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

/// What the norms of an accepted update were clipped by; 1 where they were not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// Factor of the update.
    pub update: f64,
    /// Factor of the change of the control variate.
    pub control: f64,
}

impl Clip {
    /// Nothing was clipped.
    pub const NONE: Self = Self { update: 1.0, control: 1.0 };
}

/// The limits and references for the updates of a round.
#[derive(Debug, Clone, Copy)]
pub struct UpdateChecks<'a> {
    /// The model's tensors.
    pub layout: &'a ModelLayout,
    /// The settings of the round.
    pub settings: &'a AggregationSettings,
    /// The updates that notices refer to.
    pub cache: &'a UpdateCache,
    /// FedNova: local steps that the last round was worth, see [`super::super::step::ServerState`].
    pub effective_steps: Option<f64>,
    /// Of an update that was accepted before: what it was clipped by then. Its norm is not judged again.
    pub accepted: Option<Clip>,
}

/// Control variates come exactly when the strategy needs them.
pub(super) fn check_control(update: &Update<'_>, strategy: Strategy) -> Result<(), Rejection> {
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

/// `|a_k|_1` of FedNova: what the local steps are worth in plain SGD steps. At least one: otherwise a claim
/// would scale its update up without end.
pub(super) fn local_norm(meta: &UpdateMeta, strategy: Strategy) -> Result<f64, Rejection> {
    let claimed = meta.local_norm.or(meta.local_steps.map(f64::from));
    match claimed {
        Some(norm) if norm > 0.0 && norm <= MAX_LOCAL_NORM => Ok(norm.max(1.0)),
        None if strategy != Strategy::FedNova => Ok(1.0),
        _ => Err(Rejection::new(
            ErrorCode::Malformed,
            format!(
                "its metadata needs `local_steps` (and `local_norm`, if any) above 0, at most {MAX_LOCAL_NORM:.0}"
            ),
        )),
    }
}

/// What a vector of this norm has to be scaled by; `what` names it in the refusal.
pub(super) fn clip_factor(norm: f64, settings: &AggregationSettings, what: &str) -> Result<f64, Rejection> {
    match (settings.max_update_norm, settings.norm_action) {
        (Some(limit), NormAction::Clip) if norm > limit => Ok(limit / norm),
        (Some(limit), NormAction::Reject) if norm > limit => Err(Rejection::new(
            ErrorCode::NormTooLarge,
            format!("the {what} norm is {norm:.4}, at most {limit} is accepted"),
        )),
        _ => Ok(1.0),
    }
}
