//! Learning on Burn: modules and autodiff, on any of Burn's backends.
//!
//! `network` makes a module of a spec and defines what a layer computes; the fused engine is tested
//! against it. The rest does not depend on what the module is.

mod device;
mod module;
mod network;
mod parameters;

pub use burn::tensor::Device;
pub(crate) use device::{ndarray, wgpu};
pub use module::{BurnNetwork, NetworkInput, TrainingPass};

use crate::{
    dropout::MaskSeed,
    error::ModelError,
    evaluation::BatchEvaluation,
    global::GlobalModel,
    learner::{Batch, BatchShape, EVALUATION_BATCH, LargeBatch, Learner, assert_length, finite},
    optimizer::{Optimizer, OptimizerConfig},
    parallel::Threads,
    spec::ModelSpec,
    tasks,
};
use burn::tensor::Gradients;
use fl_protocol::{Input, ModelLayout, Task};
use module::loss;
use network::SpecNetwork;
use parameters::{Descend, Load, LoadSome, Read, Survey, values};
use std::ops::Range;

/// A Burn module with its optimizer.
///
/// ```
/// use burn::{module::Module, nn::{Linear, LinearConfig}, tensor::{Device, Tensor}};
/// use fl_model::{Batch, Learner, OptimizerConfig, burn::{BurnLearner, BurnNetwork, NetworkInput}};
/// use fl_protocol::{Input, Task};
///
/// #[derive(Module, Debug)]
/// struct Skip { inner: Linear, head: Linear }
///
/// impl BurnNetwork for Skip {
///     fn forward(&self, input: NetworkInput) -> Tensor<2> {
///         let x = input.vectors();
///         self.head.forward(x.clone() + self.inner.forward(x).tanh())
///     }
/// }
///
/// let device = Device::flex();
/// let module =
///     Skip { inner: LinearConfig::new(4, 4).init(&device), head: LinearConfig::new(4, 3).init(&device) };
/// let input = Input::Vector { shape: vec![4] };
/// let mut learner = BurnLearner::new(module, input, Task::classes(3), device);
/// assert_eq!(learner.layout().tensors()[0].name, "inner.weight");
/// let (x, y) = (vec![0.5f32; 8], vec![1u32, 2]);
/// let before = learner.step(Batch::new(&x, &y), &OptimizerConfig::default())?;
/// assert!(learner.step(Batch::new(&x, &y), &OptimizerConfig::default())? < before);
/// # Ok::<(), fl_model::ModelError>(())
/// ```
#[derive(Debug)]
pub struct BurnLearner<M> {
    network: M,
    /// With gradients.
    device: Device,
    layout: ModelLayout,
    /// Where in the flat vector the tensors are that no gradient moves.
    buffers: Vec<Range<usize>>,
    batches: BatchShape,
    state: Optimizer,
    masks: MaskSeed,
}

impl<M: BurnNetwork> BurnLearner<M> {
    /// Trains `module`, which starts with the parameters that it has, on `device`.
    pub fn new(module: M, input: Input, task: Task, device: Device) -> Self {
        let device = device.autodiff();
        let network = module.fork(&device).train();
        let mut survey = Survey::default();
        network.visit(&mut survey);
        let layout = ModelLayout::new(survey.tensors);
        let mut learner = Self {
            network,
            device,
            state: Optimizer::with_fixed(layout.parameters(), survey.buffers.clone()),
            layout,
            buffers: survey.buffers,
            batches: BatchShape::new(input, task),
            masks: MaskSeed::default(),
        };
        let start = learner.flat();
        learner.load(&start);
        learner
    }

    /// The module as it is now, without gradients.
    pub fn module(&self) -> M {
        self.network.valid()
    }

    /// The parameters as the file of a first model: `MODEL=safetensors:FILE` of the master.
    ///
    /// # Errors
    /// Parameters that are not finite.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ModelError> {
        GlobalModel::of_tensors(0, self.layout.clone(), self.flat()).to_safetensors()
    }

    fn flat(&self) -> Vec<f32> {
        let mut parameters = vec![0.0; self.layout.parameters()];
        self.read(&mut parameters);
        parameters
    }

    fn put(&mut self, parameters: &[f32]) {
        self.settle_buffers();
        let mut load = Load { rest: parameters, device: &self.device };
        self.network = self.network.clone().map(&mut load);
    }

    fn put_buffers(&mut self, moved: &[(usize, Vec<f32>)]) {
        if !moved.is_empty() {
            let mut load = LoadSome { at: 0, moved, device: &self.device };
            self.network = self.network.clone().map(&mut load);
        }
    }

    /// Burn's running states apply an update when they are next used, which would undo what is loaded meanwhile; a
    /// change to validation applies it at once.
    fn settle_buffers(&self) {
        if !self.buffers.is_empty() {
            drop(self.network.valid());
        }
    }

    /// The buffers' values, with the places where they begin.
    fn buffer_values(&self) -> Vec<(usize, Vec<f32>)> {
        if self.buffers.is_empty() {
            return Vec::new();
        }
        let all = self.flat();
        self.buffers.iter().map(|range| (range.start, all[range.clone()].to_vec())).collect()
    }

    /// Mean loss of a batch, all gradients, and what the pass makes of buffers.
    fn backward(
        &self,
        batch: Batch<'_>,
        samples: usize,
    ) -> Result<(f32, Gradients, TrainingPass), ModelError> {
        let input = NetworkInput::new(&self.batches.input, batch.inputs, samples, &self.device);
        let mut pass = TrainingPass::new(self.masks);
        let outputs = self.network.forward_training(input, &mut pass);
        self.check_outputs(outputs.dims(), samples)?;
        self.settle_buffers();
        let loss = loss::mean(&self.batches.task, outputs, batch, &self.device);
        let gradients = loss.backward();
        let loss = values(loss).first().copied().unwrap_or(f32::NAN);
        Ok((finite(loss)?, gradients, pass))
    }

    /// Mean loss of a batch; its gradient goes to `out`, and buffers move.
    fn gradient_of(&mut self, batch: Batch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        let (loss, gradients, pass) = self.backward(batch, batch.targets.len() / self.batches.targets)?;
        self.network.visit(&mut Read { rest: out, gradients: Some(&gradients) });
        self.put_buffers(&pass.into_moved());
        Ok(loss)
    }

    /// The same for a large batch, of which each piece is normalised by itself.
    fn run_pieces(&mut self, large: LargeBatch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        let outcome = large.gradient(out, |piece, first, gradient| {
            self.masks.first = first;
            self.gradient_of(piece, gradient)
        });
        self.masks.first = 0;
        outcome
    }

    /// A user's module may give another shape than the task needs.
    fn check_outputs(&self, [rows, columns]: [usize; 2], samples: usize) -> Result<(), ModelError> {
        let wanted = [samples * self.batches.rows, self.batches.classes];
        if [rows, columns] == wanted {
            return Ok(());
        }
        Err(ModelError::BadBatch(format!(
            "the module gives {:?} outputs, a {} task needs {wanted:?}",
            [rows, columns],
            self.batches.task.name()
        )))
    }
}

/// Builds the learner of a spec. `device` is without gradients.
pub(crate) fn learner(spec: &ModelSpec, device: Device) -> Box<dyn Learner> {
    let network = SpecNetwork::new(spec, &device.clone().autodiff());
    let mut learner = BurnLearner::new(network, spec.input.clone(), spec.task.clone(), device);
    learner.layout = spec.layout();
    learner.batches = BatchShape::of(spec);
    Box::new(learner)
}

impl<M: BurnNetwork> Learner for BurnLearner<M> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn load(&mut self, parameters: &[f32]) {
        assert_length(parameters, &self.layout);
        self.state.reset();
        self.masks.step = 0;
        self.put(parameters);
    }

    fn read(&self, out: &mut [f32]) {
        assert_length(out, &self.layout);
        self.network.visit(&mut Read { rest: out, gradients: None });
    }

    fn begin_round(&mut self, seed: u64) {
        self.masks = MaskSeed { seed, step: 0, first: 0 };
        // For a module's own random choices.
        self.device.seed(seed);
    }

    fn set_drift(&mut self, drift: &[f32]) {
        assert_length(drift, &self.layout);
        self.state.set_drift(drift);
    }

    fn set_trainable(&mut self, trainable: &[Range<usize>]) {
        self.state.set_trainable(trainable);
    }

    fn step(&mut self, batch: Batch<'_>, optimizer: &OptimizerConfig) -> Result<f32, ModelError> {
        let samples = self.batches.check(batch)?;
        optimizer.validate()?;
        let whole = 0..self.layout.parameters();
        let large = self.batches.large(batch);
        let loss = if large.is_none() && self.state.plain(optimizer, &whole).is_some() {
            let (loss, gradients, pass) = self.backward(batch, samples)?;
            self.put_buffers(&pass.into_moved());
            self.network = self.network.clone().map(&mut Descend { lr: optimizer.lr, gradients });
            loss
        } else {
            let mut gradient = vec![0.0; self.layout.parameters()];
            let loss = match large {
                Some(large) => self.run_pieces(large, &mut gradient)?,
                None => self.gradient_of(batch, &mut gradient)?,
            };
            let mut parameters = self.flat();
            self.state.begin_step(&parameters, optimizer);
            self.state.update(&mut parameters, &mut gradient, whole, optimizer, &Threads::none());
            self.put(&parameters);
            loss
        };
        self.masks.step += 1;
        Ok(loss)
    }

    fn gradients(&mut self, batch: Batch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        self.batches.check(batch)?;
        assert_length(out, &self.layout);
        let before = self.buffer_values();
        let outcome = match self.batches.large(batch) {
            Some(large) => self.run_pieces(large, out),
            None => self.gradient_of(batch, out),
        };
        self.put_buffers(&before);
        outcome
    }

    fn evaluate(&mut self, batch: Batch<'_>) -> Result<BatchEvaluation, ModelError> {
        self.batches.check(batch)?;
        let (network, device) = (self.network.valid(), self.device.clone().inner());
        let mut sums = BatchEvaluation::default();
        for piece in self.batches.pieces(batch, EVALUATION_BATCH) {
            let samples = piece.targets.len() / self.batches.targets;
            let input = NetworkInput::new(&self.batches.input, piece.inputs, samples, &device);
            let outputs = network.forward(input);
            self.check_outputs(outputs.dims(), samples)?;
            sums +=
                tasks::evaluate(&self.batches.task, &values(outputs), self.batches.classes, piece.targets);
            sums.samples += samples as u64;
        }
        Ok(sums)
    }
}
