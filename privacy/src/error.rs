//! The crate's error.

use thiserror::Error;

/// Parameters that cannot be accounted for.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum PrivacyError {
    /// A number outside its range.
    #[error("{name} is {value}: give {allowed}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The range in words.
        allowed: &'static str,
    },
    /// More different mechanisms, or more runs of rounds, than are computed at once.
    #[error("{found} different {what}, at most {limit} are supported")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// One round was charged twice with different mechanisms.
    #[error("round {0} is already charged, with another noise multiplier or sampling rate")]
    Conflict(u64),
    /// No noise multiplier or no number of rounds reaches the target.
    #[error("epsilon {target} cannot be reached: {reason}")]
    Unreachable {
        /// The epsilon asked for.
        target: f64,
        /// Which limit is in the way.
        reason: &'static str,
    },
    /// The losses are too large for f64 or the numbers too extreme for the grid.
    #[error("epsilon cannot be computed for these parameters: {0}")]
    NotComputable(&'static str),
}

pub(crate) fn in_range(
    name: &'static str,
    value: f64,
    good: bool,
    allowed: &'static str,
) -> Result<f64, PrivacyError> {
    if good { Ok(value) } else { Err(PrivacyError::OutOfRange { name, value, allowed }) }
}
