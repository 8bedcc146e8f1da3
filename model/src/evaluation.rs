//! What a model is worth on a data set.

/// Sums over the samples of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchEvaluation {
    /// Sum of the cross-entropies, in nats.
    pub loss_sum: f64,
    /// Correctly classified samples.
    pub correct: u64,
    /// Samples.
    pub samples: u64,
}

impl std::ops::AddAssign for BatchEvaluation {
    fn add_assign(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.samples += other.samples;
    }
}

/// Means over the samples of a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Share of correctly classified samples, 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Samples.
    pub samples: u64,
}

impl From<BatchEvaluation> for Evaluation {
    fn from(sums: BatchEvaluation) -> Self {
        let samples = sums.samples.max(1) as f64;
        Self { accuracy: sums.correct as f64 / samples, loss: sums.loss_sum / samples, samples: sums.samples }
    }
}
