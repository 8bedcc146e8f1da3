//! What an update contributes: the checks that need the settings, and the term of the sum.

use crate::{
    aggregate::ExactSum,
    config::{AggregationConfig, NormAction},
};
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

/// A checked update as a term of the sum. The same body and settings always give the same term.
#[derive(Debug)]
pub struct Term<'a> {
    /// Who and what.
    pub meta: UpdateMeta,
    update: Update<'a>,
    weight: f64,
}

impl<'a> Term<'a> {
    /// Checks a body from its first byte to its last. `terms` is how many of its size the sum must
    /// have room for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        body: &'a [u8],
        layout: &'a ModelLayout,
        config: &AggregationConfig,
        terms: usize,
    ) -> Result<Self, Rejection> {
        let update = Update::parse(body, layout)?;
        let meta = update.meta.clone();
        let weight = meta.num_samples as f64;
        let share = ExactSum::share(terms);
        if weight * f64::from(update.max_abs) > share {
            return Err(Rejection::new(
                ErrorCode::NormTooLarge,
                format!(
                    "num_samples times the largest magnitude is beyond {share:.0}, an update's share of the sum"
                ),
            ));
        }
        let scale = match config.max_update_norm {
            Some(limit) => clip(&update, limit, config.norm_action)?,
            None => 1.0,
        };
        Ok(Self { meta, update, weight: weight * scale })
    }

    /// Adds it.
    ///
    /// # Errors
    /// If the sum has no room for it; it is unchanged then.
    pub fn add_to(&self, sum: &ExactSum) -> Result<(), Rejection> {
        sum.add(self.weight, self.update.max_abs, |f| self.update.for_each_chunk(f))
            .map_err(|error| Rejection::new(ErrorCode::NormTooLarge, error.to_string()))
    }

    /// Takes it out again.
    pub fn take_from(&self, sum: &ExactSum) {
        sum.subtract(self.weight, self.update.max_abs, |f| self.update.for_each_chunk(f));
    }
}

/// The factor that brings the norm within the limit.
fn clip(update: &Update<'_>, limit: f64, action: NormAction) -> Result<f64, Rejection> {
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
