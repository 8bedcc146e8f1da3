//! Local training and evaluation behind one door.

use crate::{
    backend::Backend, error::ModelError, fast::FastTrainer, loss::evaluate_logits, reference::BurnTrainer,
    sgd::SgdConfig, spec::ModelSpec,
};

/// Largest batch that evaluation hands to the network at once; larger ones are cut.
const EVALUATION_BATCH: usize = 64;

/// Sums over the samples of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchEvaluation {
    /// Sum of the cross-entropies, in nats.
    pub loss_sum: f64,
    /// Samples that are classified right.
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

/// What a model is worth on a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Share of the samples that are classified right, 0 to 1.
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

/// Trains and evaluates one network.
///
/// Batches are row-major, one sample after the other, each in the order of the spec's input shape
/// (channels outermost). The same calls give bit-identical parameters in every process on a machine,
/// whatever the number of threads.
pub struct Trainer {
    features: usize,
    classes: usize,
    parameters: usize,
    engine: Engine,
}

enum Engine {
    Burn(Box<BurnTrainer>),
    Fast(Box<FastTrainer>),
}

impl Trainer {
    /// Builds the network on a backend. `threads` bounds the threads of the CPU's fused path; 0 counts
    /// as 1.
    ///
    /// The parameters are zero until [`Trainer::set_parameters`].
    ///
    /// # Errors
    /// A spec that does not fit together; a backend that this binary does not contain.
    pub fn new(spec: &ModelSpec, backend: Backend, threads: usize) -> Result<Self, ModelError> {
        spec.validate()?;
        if backend == Backend::Flex
            && let Some(trainer) = FastTrainer::new(spec, threads)?
        {
            return Ok(Self::with(spec, Engine::Fast(Box::new(trainer))));
        }
        Self::reference(spec, backend)
    }

    /// The same on plain Burn, with none of this crate's kernels: the reference for tests and for
    /// measurements.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn reference(spec: &ModelSpec, backend: Backend) -> Result<Self, ModelError> {
        spec.validate()?;
        let mut trainer = BurnTrainer::new(spec, backend)?;
        trainer.set_parameters(&vec![0.0; spec.num_parameters()]);
        Ok(Self::with(spec, Engine::Burn(Box::new(trainer))))
    }

    fn with(spec: &ModelSpec, engine: Engine) -> Self {
        Self {
            features: spec.num_features(),
            classes: spec.num_classes,
            parameters: spec.num_parameters(),
            engine,
        }
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.parameters
    }

    /// Starts from `parameters`: they also become FedProx's `w_global`, and momentum starts anew.
    ///
    /// # Panics
    /// If there are not [`Trainer::num_parameters`] of them.
    pub fn set_parameters(&mut self, parameters: &[f32]) {
        assert_eq!(parameters.len(), self.parameters, "as many values as the network has parameters");
        match &mut self.engine {
            Engine::Burn(trainer) => trainer.set_parameters(parameters),
            Engine::Fast(trainer) => trainer.set_parameters(parameters),
        }
    }

    /// Adds `drift` to every gradient until the next [`Trainer::set_parameters`]: SCAFFOLD's correction
    /// `c - c_i` of the drift of local training (Karimireddy et al. 2020, eq. 3).
    ///
    /// # Panics
    /// If there are not [`Trainer::num_parameters`] values.
    pub fn set_drift(&mut self, drift: &[f32]) {
        assert_eq!(drift.len(), self.parameters, "as many values as the network has parameters");
        match &mut self.engine {
            Engine::Burn(trainer) => trainer.set_drift(drift),
            Engine::Fast(trainer) => trainer.set_drift(drift),
        }
    }

    /// Copies the parameters out.
    ///
    /// # Panics
    /// If `out` does not hold [`Trainer::num_parameters`] values.
    pub fn parameters(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.parameters, "as many values as the network has parameters");
        match &self.engine {
            Engine::Burn(trainer) => trainer.parameters(out),
            Engine::Fast(trainer) => trainer.parameters(out),
        }
    }

    /// Seeds the masks of dropout layers, if the network has any.
    pub fn set_dropout_seed(&mut self, seed: u64) {
        match &mut self.engine {
            Engine::Burn(trainer) => trainer.set_dropout_seed(seed),
            Engine::Fast(trainer) => trainer.set_dropout_seed(seed),
        }
    }

    /// One step of SGD on a batch. Gives the mean loss before the step.
    ///
    /// # Errors
    /// A batch that does not fit, a setting out of range, a loss that is not finite.
    pub fn train_step(&mut self, x: &[f32], y: &[u32], config: &SgdConfig) -> Result<f32, ModelError> {
        self.check_batch(x, y)?;
        config.validate()?;
        finite(match &mut self.engine {
            Engine::Burn(trainer) => trainer.train_step(x, y, config),
            Engine::Fast(trainer) => trainer.train_step(x, y, config),
        })
    }

    /// The gradient of the batch's mean loss, in canonical order, and that loss. Changes nothing.
    ///
    /// # Errors
    /// As [`Trainer::train_step`].
    ///
    /// # Panics
    /// If `out` does not hold [`Trainer::num_parameters`] values.
    pub fn gradients(&mut self, x: &[f32], y: &[u32], out: &mut [f32]) -> Result<f32, ModelError> {
        self.check_batch(x, y)?;
        assert_eq!(out.len(), self.parameters, "as many values as the network has parameters");
        finite(match &mut self.engine {
            Engine::Burn(trainer) => trainer.gradients(x, y, out),
            Engine::Fast(trainer) => trainer.gradients(x, y, out),
        })
    }

    /// Loss and hits on a batch of any size, without dropout.
    ///
    /// # Errors
    /// A batch that does not fit.
    pub fn evaluate(&mut self, x: &[f32], y: &[u32]) -> Result<BatchEvaluation, ModelError> {
        self.check_batch(x, y)?;
        let mut sums = BatchEvaluation::default();
        for (x, y) in x.chunks(EVALUATION_BATCH * self.features).zip(y.chunks(EVALUATION_BATCH)) {
            let (loss_sum, correct) = match &mut self.engine {
                Engine::Burn(trainer) => evaluate_logits(&trainer.logits(x), y, self.classes),
                Engine::Fast(trainer) => trainer.evaluate(x, y),
            };
            sums += BatchEvaluation { loss_sum, correct, samples: y.len() as u64 };
        }
        Ok(sums)
    }

    fn check_batch(&self, x: &[f32], y: &[u32]) -> Result<(), ModelError> {
        if y.is_empty() || x.len() != y.len() * self.features {
            return Err(ModelError::BadBatch(format!(
                "{} values came with {} labels, each sample needs {}",
                x.len(),
                y.len(),
                self.features
            )));
        }
        match y.iter().find(|&&label| label as usize >= self.classes) {
            Some(label) => Err(ModelError::BadBatch(format!(
                "label {label} is out of range, the network has {} classes",
                self.classes
            ))),
            None => Ok(()),
        }
    }
}

/// Samples that [`evaluate`] asks for at a time.
const GATHERED: usize = 256;

/// Evaluates `samples` samples, gathered batch by batch: `gather(indices, x, y)` fills `x` with the
/// normalised features and `y` with the labels of `indices`.
///
/// # Errors
/// Batches that do not fit the network.
pub fn evaluate(
    trainer: &mut Trainer,
    samples: usize,
    mut gather: impl FnMut(&[u32], &mut Vec<f32>, &mut Vec<u32>),
) -> Result<Evaluation, ModelError> {
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let mut sums = BatchEvaluation::default();
    let all: Vec<u32> = (0..samples as u32).collect();
    for indices in all.chunks(GATHERED) {
        gather(indices, &mut x, &mut y);
        sums += trainer.evaluate(&x, &y)?;
    }
    Ok(sums.into())
}

fn finite(loss: f32) -> Result<f32, ModelError> {
    if loss.is_finite() { Ok(loss) } else { Err(ModelError::Diverged) }
}
