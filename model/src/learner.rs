//! What trains and evaluates a network, whatever computes it.

use crate::{
    error::ModelError,
    evaluation::{BatchEvaluation, Evaluation},
    sgd::SgdConfig,
    spec::ModelSpec,
};
use fl_protocol::ModelLayout;

/// Most samples that an evaluation puts through the network at once.
const EVALUATION_BATCH: usize = 64;

/// Samples that [`evaluate`] asks for at a time.
const GATHERED: usize = 256;

/// Samples with their labels.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Features, row-major: one sample after the other, each in the order of the spec's input shape
    /// (channels outermost).
    pub inputs: &'a [f32],
    /// The class of each sample.
    pub labels: &'a [u32],
}

impl<'a> Batch<'a> {
    /// A batch of `labels.len()` samples.
    pub fn new(inputs: &'a [f32], labels: &'a [u32]) -> Self {
        Self { inputs, labels }
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.labels.len()
    }
}

/// One network with its parameters and the state of its optimizer, on one backend.
///
/// Parameters are one flat vector in the order of [`Learner::layout`], which is that of the model file.
/// A round is [`Learner::load`], [`Learner::begin_round`], then [`Learner::step`] for each batch. The
/// same calls give bit-identical parameters in every process on a machine, whatever the number of
/// threads.
pub trait Learner: Send + Sync {
    /// Names, shapes and flat order of the parameters.
    fn layout(&self) -> &ModelLayout;

    /// Starts from `parameters`: they also become FedProx's `w_global`, momentum starts anew, and a
    /// drift is forgotten.
    ///
    /// # Panics
    /// If there are not as many as the layout has.
    fn load(&mut self, parameters: &[f32]);

    /// Copies the parameters out.
    ///
    /// # Panics
    /// If `out` does not have as many places as the layout has parameters.
    fn read(&self, out: &mut [f32]);

    /// Seeds what is random in the steps that follow: the masks of dropout layers.
    fn begin_round(&mut self, seed: u64);

    /// Adds `drift` to every gradient until the next [`Learner::load`]: SCAFFOLD's correction
    /// `c - c_i` (Karimireddy et al. 2020, eq. 3).
    ///
    /// # Panics
    /// If there are not as many values as the layout has parameters.
    fn set_drift(&mut self, drift: &[f32]);

    /// One step of the optimizer. Returns the mean loss of the batch before the step.
    ///
    /// # Errors
    /// A batch that does not fit, a setting out of range, a loss that is not finite.
    fn step(&mut self, batch: Batch<'_>, optimizer: &SgdConfig) -> Result<f32, ModelError>;

    /// Writes the gradient of the mean loss to `out` and returns that loss. Changes nothing.
    ///
    /// # Errors
    /// As [`Learner::step`].
    ///
    /// # Panics
    /// If `out` does not have as many places as the layout has parameters.
    fn gradients(&mut self, batch: Batch<'_>, out: &mut [f32]) -> Result<f32, ModelError>;

    /// Loss and hits on a batch of any size, without dropout.
    ///
    /// # Errors
    /// A batch that does not fit.
    fn evaluate(&mut self, batch: Batch<'_>) -> Result<BatchEvaluation, ModelError>;
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

/// What the batches of a network hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchShape {
    /// Values of one sample.
    pub(crate) features: usize,
    /// Labels are below this.
    pub(crate) classes: usize,
}

impl BatchShape {
    pub(crate) fn of(spec: &ModelSpec) -> Self {
        Self { features: spec.num_features(), classes: spec.num_classes }
    }

    /// Checks sizes and labels.
    pub(crate) fn check(self, batch: Batch<'_>) -> Result<(), ModelError> {
        let Batch { inputs, labels } = batch;
        if labels.is_empty() || labels.len().checked_mul(self.features) != Some(inputs.len()) {
            return Err(ModelError::BadBatch(format!(
                "{} values came with {} labels, each sample needs {}",
                inputs.len(),
                labels.len(),
                self.features
            )));
        }
        match labels.iter().find(|&&label| label as usize >= self.classes) {
            Some(label) => Err(ModelError::BadBatch(format!(
                "label {label} is out of range, the network has {} classes",
                self.classes
            ))),
            None => Ok(()),
        }
    }

    /// Cuts a checked batch into pieces for an evaluation.
    pub(crate) fn pieces(self, batch: Batch<'_>) -> impl Iterator<Item = Batch<'_>> {
        let inputs = batch.inputs.chunks(EVALUATION_BATCH * self.features);
        inputs.zip(batch.labels.chunks(EVALUATION_BATCH)).map(|(inputs, labels)| Batch { inputs, labels })
    }
}

/// The loss of a step, unless training went astray.
pub(crate) fn finite(loss: f32) -> Result<f32, ModelError> {
    if loss.is_finite() { Ok(loss) } else { Err(ModelError::Diverged) }
}

/// Panics unless a flat vector is as long as the layout says.
#[track_caller]
pub(crate) fn assert_length(values: &[f32], layout: &ModelLayout) {
    assert_eq!(values.len(), layout.parameters(), "as many values as the network has parameters");
}
