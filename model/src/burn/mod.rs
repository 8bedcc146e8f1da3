//! Learning on Burn: modules and autodiff, on any of Burn's backends.
//!
//! [`network`] makes a module of a spec and defines what a layer computes; the fused engine is tested
//! against it. The rest does not depend on what the module is.

mod device;
mod network;
mod parameters;

pub(crate) use burn::tensor::Device;
pub(crate) use device::{ndarray, wgpu};

use crate::{
    dropout::MaskSeed,
    error::ModelError,
    evaluation::BatchEvaluation,
    fused::Threads,
    learner::{Batch, BatchShape, EVALUATION_BATCH, Learner, assert_length, finite},
    optimizer::{Optimizer, OptimizerConfig},
    spec::ModelSpec,
    tasks,
};
use burn::{
    module::Module,
    tensor::{Gradients, Int, Tensor, activation::log_softmax},
};
use fl_protocol::{Inputs, ModelLayout, Targets};
use std::ops::Range;
use network::Network;
use parameters::{Descend, Load, Read, values};

/// A Burn module with its optimizer.
pub(crate) struct BurnLearner {
    network: Network,
    /// With gradients.
    device: Device,
    layout: ModelLayout,
    batches: BatchShape,
    state: Optimizer,
    masks: MaskSeed,
}

impl BurnLearner {
    /// `device` is without gradients.
    pub(crate) fn new(spec: &ModelSpec, device: Device) -> Self {
        let device = device.autodiff();
        let mut learner = Self {
            network: Network::new(spec, &device),
            device,
            layout: spec.layout(),
            batches: BatchShape::of(spec),
            state: Optimizer::new(spec),
            masks: MaskSeed::default(),
        };
        learner.load(&vec![0.0; learner.layout.parameters()]);
        learner
    }

    fn put(&mut self, parameters: &[f32]) {
        let mut load = Load { rest: parameters, device: &self.device };
        self.network = self.network.clone().map(&mut load);
    }

    /// Mean loss of a batch and all gradients.
    fn backward(&self, batch: Batch<'_>) -> Result<(f32, Gradients), ModelError> {
        let (Inputs::Numbers(inputs), Targets::Classes(labels)) = (batch.inputs, batch.targets) else {
            return Err(ModelError::BadBatch("not yet".into()));
        };
        let samples = labels.len();
        let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
        let labels = Tensor::<1, Int>::from_data(labels.as_slice(), &self.device);
        let logits = self.network.logits(inputs, &self.device, Some(self.masks));
        let log_probabilities = log_softmax(logits, 1).gather(1, labels.reshape([samples, 1]));
        let loss = log_probabilities.mean().neg();
        let gradients = loss.backward();
        let loss = values(loss).first().copied().unwrap_or(f32::NAN);
        Ok((finite(loss)?, gradients))
    }
}

impl Learner for BurnLearner {
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
        self.masks = MaskSeed { seed, step: 0 };
    }

    fn set_drift(&mut self, drift: &[f32]) {
        assert_length(drift, &self.layout);
        self.state.set_drift(drift);
    }

    fn set_trainable(&mut self, trainable: &[Range<usize>]) {
        self.state.set_trainable(trainable);
    }

    fn step(&mut self, batch: Batch<'_>, optimizer: &OptimizerConfig) -> Result<f32, ModelError> {
        self.batches.check(batch)?;
        optimizer.validate()?;
        let (loss, gradients) = self.backward(batch)?;
        let whole = 0..self.layout.parameters();
        if self.state.plain(optimizer, &whole).is_some() {
            self.network = self.network.clone().map(&mut Descend { lr: optimizer.lr, gradients });
        } else {
            let mut gradient = vec![0.0; self.layout.parameters()];
            let mut parameters = gradient.clone();
            self.network.visit(&mut Read { rest: &mut gradient, gradients: Some(&gradients) });
            self.read(&mut parameters);
            self.state.begin_step(&parameters, optimizer);
            self.state.update(&mut parameters, &mut gradient, whole, optimizer, &Threads::none());
            self.put(&parameters);
        }
        self.masks.step += 1;
        Ok(loss)
    }

    fn gradients(&mut self, batch: Batch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        self.batches.check(batch)?;
        assert_length(out, &self.layout);
        let (loss, gradients) = self.backward(batch)?;
        self.network.visit(&mut Read { rest: out, gradients: Some(&gradients) });
        Ok(loss)
    }

    fn evaluate(&mut self, batch: Batch<'_>) -> Result<BatchEvaluation, ModelError> {
        self.batches.check(batch)?;
        let (network, device) = (self.network.valid(), self.device.clone().inner());
        let mut sums = BatchEvaluation::default();
        for piece in self.batches.pieces(batch, EVALUATION_BATCH) {
            let Inputs::Numbers(inputs) = piece.inputs else { continue };
            let logits = values(network.logits(inputs, &device, None));
            sums += tasks::evaluate(&self.batches.task, &logits, self.batches.classes, piece.targets);
            sums.samples += (piece.targets.len() / self.batches.targets) as u64;
        }
        Ok(sums)
    }
}
