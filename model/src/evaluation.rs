//! What a model is worth on a data set.

use crate::{
    error::ModelError,
    learner::{Batch, Learner},
};

/// Samples that [`evaluate`] asks for at a time.
const GATHERED: usize = 256;

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

/// Evaluates `samples` samples, gathered batch by batch: `gather(indices, inputs, labels)` fills in the
/// normalised features and the labels of `indices`.
///
/// # Errors
/// Batches that do not fit the network.
pub fn evaluate(
    learner: &mut dyn Learner,
    samples: usize,
    mut gather: impl FnMut(&[u32], &mut Vec<f32>, &mut Vec<u32>),
) -> Result<Evaluation, ModelError> {
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    let mut sums = BatchEvaluation::default();
    let all: Vec<u32> = (0..samples as u32).collect();
    for indices in all.chunks(GATHERED) {
        gather(indices, &mut inputs, &mut labels);
        sums += learner.evaluate(Batch::new(&inputs, &labels))?;
    }
    Ok(sums.into())
}
