//! Loss and metrics of a model on a data set.

use std::ops::Add;

/// Sums over the samples of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchEvaluation {
    /// Sum of the losses of all terms: nats of cross-entropy, or squares.
    pub loss_sum: f64,
    /// Terms that are right: samples, tokens, or (sample, label) pairs. `None` where numbers are near or far, not
    /// right or wrong.
    pub correct: Option<u64>,
    /// Sum of the absolute differences of a regression; `None` for other tasks.
    pub absolute_sum: Option<f64>,
    /// Terms: samples, tokens, or (sample, output) pairs.
    pub terms: u64,
    /// Samples.
    pub samples: u64,
}

impl std::ops::AddAssign for BatchEvaluation {
    fn add_assign(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.correct = sum(self.correct, other.correct);
        self.absolute_sum = sum(self.absolute_sum, other.absolute_sum);
        self.terms += other.terms;
        self.samples += other.samples;
    }
}

/// The sum of those that are known.
fn sum<T: Add<Output = T>>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// Means over a data set: the loss, and the metrics that its task has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Share of right terms, 0 to 1; `None` for a regression.
    pub accuracy: Option<f64>,
    /// Mean loss of a term.
    pub loss: f64,
    /// Mean absolute difference of a regression; `None` for other tasks.
    pub absolute_error: Option<f64>,
    /// Samples.
    pub samples: u64,
}

impl From<BatchEvaluation> for Evaluation {
    fn from(sums: BatchEvaluation) -> Self {
        let terms = sums.terms.max(1) as f64;
        Self {
            accuracy: sums.correct.map(|correct| correct as f64 / terms),
            loss: sums.loss_sum / terms,
            absolute_error: sums.absolute_sum.map(|sum| sum / terms),
            samples: sums.samples,
        }
    }
}
