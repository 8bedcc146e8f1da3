//! Training and evaluation of a network, independent of the backend.

use crate::{
    error::ModelError,
    evaluation::{BatchEvaluation, Evaluation},
    optimizer::OptimizerConfig,
    spec::ModelSpec,
};
use fl_protocol::{Input, Inputs, ModelLayout, Targets, Task};
use std::ops::Range;

/// Most samples that an evaluation puts through the network at once.
pub(crate) const EVALUATION_BATCH: usize = 64;

/// Values between layers, of which a training step keeps most, that a batch may have before it goes through the
/// network in pieces: 256 MiB.
const TRAINING_VALUES: usize = 1 << 26;

/// Samples that [`evaluate`] asks for at a time.
const GATHERED: usize = 256;

/// Samples with their targets.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Numbers or tokens, one sample after the other.
    pub inputs: Inputs<'a>,
    /// Classes, next tokens or numbers, one sample after the other.
    pub targets: Targets<'a>,
}

impl<'a> Batch<'a> {
    /// A batch of as many samples as the inputs and targets of the network's task make.
    pub fn new(inputs: impl Into<Inputs<'a>>, targets: impl Into<Targets<'a>>) -> Self {
        Self { inputs: inputs.into(), targets: targets.into() }
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

    /// Starts from `parameters`: they also become FedProx's `w_global`, and momentum and drift are reset.
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

    /// From now on only these parts of the flat vector move, in ascending order; all at first. The gradient of
    /// the others may be zero.
    fn set_trainable(&mut self, trainable: &[Range<usize>]);

    /// One step of the optimizer. Returns the mean loss of the batch before the step.
    ///
    /// # Errors
    /// A batch that does not fit, a setting out of range, a loss that is not finite.
    fn step(&mut self, batch: Batch<'_>, optimizer: &OptimizerConfig) -> Result<f32, ModelError>;

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

/// Evaluates `samples` samples, some at a time: `piece(indices)` gathers those of `indices` and evaluates them.
///
/// # Errors
/// Those of `piece`.
pub fn evaluate(
    samples: usize,
    mut piece: impl FnMut(&[u32]) -> Result<BatchEvaluation, ModelError>,
) -> Result<Evaluation, ModelError> {
    let mut sums = BatchEvaluation::default();
    let all: Vec<u32> = (0..samples as u32).collect();
    for indices in all.chunks(GATHERED) {
        sums += piece(indices)?;
    }
    Ok(sums.into())
}

/// What the batches of a network are.
#[derive(Debug, Clone)]
pub(crate) struct BatchShape {
    /// What enters the network.
    pub(crate) input: Input,
    /// What it learns.
    pub(crate) task: Task,
    /// Values or tokens of one sample.
    pub(crate) features: usize,
    /// Classes or numbers of one sample.
    pub(crate) targets: usize,
    /// Classes are below this; numbers of one sample.
    pub(crate) classes: usize,
    /// Rows of outputs of one sample: positions of a language model, else one.
    pub(crate) rows: usize,
    /// Most samples that a training step puts through the network at once.
    pub(crate) most: usize,
}

impl BatchShape {
    pub(crate) fn of(spec: &ModelSpec) -> Self {
        let most = (TRAINING_VALUES / spec.activations().max(1)).max(1);
        Self { most, ..Self::new(spec.input.clone(), spec.task.clone()) }
    }

    /// Of a module that is not known: its batches stay whole.
    pub(crate) fn new(input: Input, task: Task) -> Self {
        let targets = task.targets_per_sample(&input);
        Self {
            features: input.len(),
            targets,
            classes: task.num_classes(&input),
            rows: if matches!(task, Task::LanguageModel) { targets } else { 1 },
            most: usize::MAX,
            input,
            task,
        }
    }

    /// Checks sizes, tokens and classes. Returns the number of samples.
    pub(crate) fn check(&self, batch: Batch<'_>) -> Result<usize, ModelError> {
        let (inputs, targets) = (batch.inputs.len(), batch.targets.len());
        let samples = targets / self.targets;
        let bad = |reason: String| Err(ModelError::BadBatch(reason));
        if samples == 0
            || samples * self.targets != targets
            || samples.checked_mul(self.features) != Some(inputs)
        {
            return bad(format!(
                "{inputs} values came with {targets} targets, each sample needs {} and {}",
                self.features, self.targets
            ));
        }
        match (batch.inputs, &self.input) {
            (Inputs::Numbers(_), Input::Vector { .. } | Input::Image { .. }) => {}
            (Inputs::Tokens(tokens), Input::Tokens { vocab, .. }) => {
                if let Some(token) = tokens.iter().find(|&&token| token as usize >= *vocab) {
                    return bad(format!("token {token} is out of range, the network knows {vocab}"));
                }
            }
            _ => return bad(format!("{:?} do not enter this network", self.input)),
        }
        match (batch.targets, self.task.has_classes()) {
            (Targets::Classes(classes), true) => {
                match classes.iter().find(|&&class| class as usize >= self.classes) {
                    Some(class) => bad(format!(
                        "label {class} is out of range, the network has {} classes",
                        self.classes
                    )),
                    None => Ok(samples),
                }
            }
            (Targets::Numbers(_), false) => Ok(samples),
            _ => bad(format!("the targets are not those of a {} task", self.task.name())),
        }
    }

    /// Cuts a checked batch into pieces of at most `most` samples.
    pub(crate) fn pieces<'a>(
        &self,
        batch: Batch<'a>,
        most: usize,
    ) -> impl Iterator<Item = Batch<'a>> + use<'a> {
        pieces(batch, [self.features, self.targets], most)
    }

    /// The batch in pieces, if its activations would take more memory than a step may.
    pub(crate) fn large<'a>(&self, batch: Batch<'a>) -> Option<LargeBatch<'a>> {
        let samples = batch.targets.len() / self.targets;
        let piece = samples.div_ceil(samples.div_ceil(self.most).max(1));
        let sizes = [self.features, self.targets];
        (samples > self.most).then_some(LargeBatch { batch, samples, piece, sizes })
    }
}

/// A checked batch that is larger than [`BatchShape::most`], cut into pieces of about the same size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LargeBatch<'a> {
    batch: Batch<'a>,
    samples: usize,
    piece: usize,
    /// Inputs and targets of a sample.
    sizes: [usize; 2],
}

impl<'a> LargeBatch<'a> {
    /// Writes the gradient of the mean loss to `out` and returns that loss, up to rounding as a pass over the whole
    /// batch gives them. `pass` gets a piece, the number of its first sample, and zeroed room for its gradient.
    ///
    /// # Errors
    /// Those of `pass`.
    pub(crate) fn gradient(
        self,
        out: &mut [f32],
        mut pass: impl FnMut(Batch<'a>, u64, &mut [f32]) -> Result<f32, ModelError>,
    ) -> Result<f32, ModelError> {
        out.fill(0.0);
        let mut part = vec![0.0; out.len()];
        let (mut loss, mut first) = (0.0f64, 0);
        for piece in pieces(self.batch, self.sizes, self.piece) {
            let own = piece.targets.len() / self.sizes[1];
            let share = own as f64 / self.samples as f64;
            part.fill(0.0);
            loss += share * f64::from(pass(piece, first, &mut part)?);
            out.iter_mut().zip(&part).for_each(|(sum, part)| *sum += share as f32 * part);
            first += own as u64;
        }
        Ok(loss as f32)
    }
}

/// Cuts a batch into pieces of at most `most` samples, of which each has as many inputs and targets as `sizes` say.
fn pieces<'a>(
    batch: Batch<'a>,
    [features, targets]: [usize; 2],
    most: usize,
) -> impl Iterator<Item = Batch<'a>> {
    let samples = batch.targets.len() / targets;
    (0..samples).step_by(most).map(move |first| {
        let last = samples.min(first + most);
        Batch {
            inputs: match batch.inputs {
                Inputs::Numbers(x) => Inputs::Numbers(&x[first * features..last * features]),
                Inputs::Tokens(x) => Inputs::Tokens(&x[first * features..last * features]),
            },
            targets: match batch.targets {
                Targets::Classes(y) => Targets::Classes(&y[first * targets..last * targets]),
                Targets::Numbers(y) => Targets::Numbers(&y[first * targets..last * targets]),
            },
        }
    })
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
