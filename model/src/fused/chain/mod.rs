//! Chains of small layers: forward, loss, backward and update of a training step in one pass over flat memory.
//!
//! Convolutions and pooling work on one image at a time, depth first, in [`image`]; dense layers on
//! the whole batch, in [`dense`]; both on the matrix products of [`gemm`]. The parameters live in one
//! flat vector in PyTorch's layout; plain SGD updates dense weights within the product that computes
//! their gradient. Buffers are kept from step to step.
//!
//! Results do not depend on the number of threads: matrices are cut by rows, and a batch of images
//! into blocks whose number depends only on the batch, with gradients summed block after block.

pub(super) mod choice;
mod conv;
mod dense;
mod image;
mod norm;
mod plan;
mod pool;
mod winograd;

use super::{gemm, parallel};
use crate::{
    dropout::MaskSeed,
    error::ModelError,
    evaluation::BatchEvaluation,
    learner::{Batch, BatchShape, EVALUATION_BATCH, LargeBatch, Learner, assert_length, finite},
    optimizer::{Optimizer, OptimizerConfig},
    spec::ModelSpec,
    tasks,
};
use dense::DenseNet;
use fl_protocol::{Inputs, ModelLayout, Targets};
use gemm::Store;
use image::{Block, ImageNet};
use parallel::Threads;
use plan::Plan;
use std::ops::Range;

/// Most blocks of a batch of images, and fewest images in a block.
const BLOCKS: usize = 8;

/// Where gradients go.
enum Descent<'a> {
    /// Straight into the parameters: `w = w - lr g`.
    Step { lr: f32 },
    /// Into a vector of their own.
    Gradient(&'a mut [f32]),
}

impl Descent<'_> {
    /// The part of the parameters, or of the gradient, that a layer writes.
    fn target<'a>(&'a mut self, parameters: &'a mut [f32], range: Range<usize>) -> &'a mut [f32] {
        match self {
            Self::Step { .. } => &mut parameters[range],
            Self::Gradient(gradient) => &mut gradient[range],
        }
    }

    /// How a product that is a gradient is stored there.
    fn rule(&self) -> Rule {
        match self {
            Self::Step { lr } => Rule { store: Store::Descend { lr: *lr }, lr: Some(*lr) },
            Self::Gradient(_) => Rule { store: Store::Set, lr: None },
        }
    }
}

/// How gradients are stored: one matrix at a time, or one value.
#[derive(Clone, Copy)]
struct Rule {
    store: Store<'static>,
    lr: Option<f32>,
}

impl Rule {
    fn apply(self, target: &mut f32, gradient: f32) {
        match self.lr {
            Some(lr) => *target -= lr * gradient,
            None => *target = gradient,
        }
    }
}

/// A network whose layers follow one another, one image at a time.
pub(crate) struct ChainLearner {
    parameters: Vec<f32>,
    /// Empty until a setting needs the whole gradient at once.
    gradient: Vec<f32>,
    state: Optimizer,
    image: Option<ImageNet>,
    image_parameters: usize,
    blocks: Vec<Block>,
    dense: DenseNet,
    /// Values of a sample that enters the dense stages.
    dense_features: usize,
    /// Row-major logits of an evaluated batch.
    logits: Vec<f32>,
    layout: ModelLayout,
    batches: BatchShape,
    threads: Threads,
    masks: MaskSeed,
}

impl ChainLearner {
    /// # Errors
    /// A network that the engine does not run; threads that cannot be started.
    pub(crate) fn new(spec: &ModelSpec, threads: usize) -> Result<Self, ModelError> {
        let plan = Plan::new(spec)?;
        let image = ImageNet::new(plan.image);
        let batches = BatchShape::of(spec);
        Ok(Self {
            parameters: vec![0.0; plan.parameters],
            gradient: Vec::new(),
            state: Optimizer::new(spec),
            dense: DenseNet::new(plan.dense, image.is_some(), plan.image_parameters > 0),
            dense_features: image.as_ref().map_or(batches.features, |net| net.output().len()),
            image,
            image_parameters: plan.image_parameters,
            blocks: Vec::new(),
            logits: Vec::new(),
            layout: spec.layout(),
            batches,
            threads: Threads::new(threads)?,
            masks: MaskSeed::default(),
        })
    }

    fn check(&self, batch: Batch<'_>) -> Result<(), ModelError> {
        let samples = self.batches.check(batch)?.min(self.batches.most);
        if self.dense.can_hold(samples, self.dense_features) {
            return Ok(());
        }
        Err(ModelError::BadBatch(format!(
            "no memory can hold the activations of {samples} samples: lower the batch size"
        )))
    }

    /// One pass over a batch.
    fn run(&mut self, batch: Batch<'_>, descent: &mut Descent<'_>) -> Result<f32, ModelError> {
        let (x, y) = numbers_and_classes(batch);
        let masks = Some(self.masks);
        let threads = std::mem::replace(&mut self.threads, Threads::none());
        let loss = threads.enter(|| {
            self.forward(x, y.len(), masks, true, &threads);
            let loss = self.dense.loss(y);
            self.dense.backward(&mut self.parameters, x, descent, masks, &threads);
            self.image_backward(x, y.len(), descent, masks, &threads);
            loss
        });
        self.threads = threads;
        finite(loss)
    }

    /// [`Self::run`] for a large batch.
    fn run_pieces(&mut self, large: LargeBatch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        let outcome = large.gradient(out, |piece, first, gradient| {
            self.masks.first = first;
            self.run(piece, &mut Descent::Gradient(gradient))
        });
        self.masks.first = 0;
        outcome
    }

    fn forward(
        &mut self,
        x: &[f32],
        batch: usize,
        masks: Option<MaskSeed>,
        training: bool,
        threads: &Threads,
    ) {
        let Some(net) = &mut self.image else {
            self.dense.prepare(batch, self.dense_features);
            self.dense.set_input(x, threads);
            return self.dense.forward(&self.parameters, masks, training, threads);
        };
        net.pack(&self.parameters, training);
        let output = net.output();
        self.dense.prepare(batch, self.dense_features);
        let (per_block, blocks) = blocks_of(batch);
        self.blocks.resize_with(self.blocks.len().max(blocks), Block::default);
        let (parameters, features) = (&self.parameters, self.batches.features);
        let net = &*net;
        threads.each(&mut self.blocks[..blocks], |index, block| {
            let first = index * per_block;
            let images = per_block.min(batch - first);
            net.prepare(block, images, training);
            let x = &x[first * features..(first + images) * features];
            net.forward(block, x, parameters, first, masks);
        });
        let stride = self.dense.stride;
        let input = self.dense.input_mut();
        for (index, block) in self.blocks[..blocks].iter().enumerate() {
            for (image, values) in net.results(block).enumerate() {
                // PyTorch flattens with the channels outermost.
                let sample = index * per_block + image;
                for (pixel, values) in values.chunks_exact(output.channels).enumerate() {
                    for (channel, value) in values.iter().enumerate() {
                        input[(channel * output.pixels() + pixel) * stride + sample] = *value;
                    }
                }
            }
        }
        self.dense.forward(&self.parameters, masks, training, threads);
    }

    fn image_backward(
        &mut self,
        x: &[f32],
        batch: usize,
        descent: &mut Descent<'_>,
        masks: Option<MaskSeed>,
        threads: &Threads,
    ) {
        let (Some(net), 1..) = (&self.image, self.image_parameters) else { return };
        let (per_block, blocks) = blocks_of(batch);
        let (parameters, features, stride, output) =
            (&self.parameters, self.batches.features, self.dense.stride, net.output());
        let gradient = self.dense.input_gradient();
        threads.each(&mut self.blocks[..blocks], |index, block| {
            let first = index * per_block;
            let x = &x[first * features..batch.min(first + per_block) * features];
            net.backward(block, x, parameters, first, masks, |image, out| {
                for (pixel, out) in out.chunks_exact_mut(output.channels).enumerate() {
                    for (channel, out) in out.iter_mut().enumerate() {
                        *out = gradient[(channel * output.pixels() + pixel) * stride + first + image];
                    }
                }
            });
        });
        let [total, others @ ..] = &mut self.blocks[..blocks] else { return };
        for block in others {
            total.sums.iter_mut().zip(&block.sums).for_each(|(total, sum)| *total += sum);
        }
        let rule = descent.rule();
        let target = descent.target(&mut self.parameters, 0..self.image_parameters);
        net.for_each_gradient(&total.sums, |at, value| rule.apply(&mut target[at], value));
    }
}

impl Learner for ChainLearner {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn load(&mut self, parameters: &[f32]) {
        assert_length(parameters, &self.layout);
        self.parameters.copy_from_slice(parameters);
        self.state.reset();
        self.masks.step = 0;
    }

    fn read(&self, out: &mut [f32]) {
        assert_length(out, &self.layout);
        out.copy_from_slice(&self.parameters);
    }

    fn begin_round(&mut self, seed: u64) {
        self.masks = MaskSeed { seed, step: 0, first: 0 };
    }

    fn set_drift(&mut self, drift: &[f32]) {
        assert_length(drift, &self.layout);
        self.state.set_drift(drift);
    }

    fn set_trainable(&mut self, trainable: &[Range<usize>]) {
        self.state.set_trainable(trainable);
    }

    fn step(&mut self, batch: Batch<'_>, optimizer: &OptimizerConfig) -> Result<f32, ModelError> {
        self.check(batch)?;
        optimizer.validate()?;
        self.state.begin_step(&self.parameters, optimizer);
        let whole = 0..self.parameters.len();
        let large = self.batches.large(batch);
        let loss = if large.is_none() && self.state.plain(optimizer, &whole).is_some() {
            self.run(batch, &mut Descent::Step { lr: optimizer.lr })?
        } else {
            let mut gradient = std::mem::take(&mut self.gradient);
            gradient.resize(self.parameters.len(), 0.0);
            let loss = match large {
                Some(large) => self.run_pieces(large, &mut gradient)?,
                None => self.run(batch, &mut Descent::Gradient(&mut gradient))?,
            };
            self.state.update(&mut self.parameters, &mut gradient, whole, optimizer, &self.threads);
            self.gradient = gradient;
            loss
        };
        self.masks.step += 1;
        Ok(loss)
    }

    fn gradients(&mut self, batch: Batch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        self.check(batch)?;
        assert_length(out, &self.layout);
        match self.batches.large(batch) {
            Some(large) => self.run_pieces(large, out),
            None => self.run(batch, &mut Descent::Gradient(out)),
        }
    }

    fn evaluate(&mut self, batch: Batch<'_>) -> Result<BatchEvaluation, ModelError> {
        self.batches.check(batch)?;
        let mut sums = BatchEvaluation::default();
        for piece in self.batches.pieces(batch, EVALUATION_BATCH) {
            let (inputs, labels) = numbers_and_classes(piece);
            let threads = std::mem::replace(&mut self.threads, Threads::none());
            threads.enter(|| self.forward(inputs, labels.len(), None, false, &threads));
            self.threads = threads;
            let stride = self.dense.stride;
            self.logits.clear();
            for sample in 0..labels.len() {
                self.logits.extend(self.dense.logits()[sample..].iter().step_by(stride));
            }
            sums += tasks::evaluate(&self.batches.task, &self.logits, self.batches.classes, piece.targets);
            sums.samples += labels.len() as u64;
        }
        Ok(sums)
    }
}

/// A checked batch of a chain: its network takes numbers and gives classes.
fn numbers_and_classes(batch: Batch<'_>) -> (&[f32], &[u32]) {
    match (batch.inputs, batch.targets) {
        (Inputs::Numbers(x), Targets::Classes(y)) => (x, y),
        _ => (&[], &[]),
    }
}

/// Images per block and blocks of a batch: a function of the batch alone.
fn blocks_of(batch: usize) -> (usize, usize) {
    let per_block = batch.div_ceil(BLOCKS).max(BLOCKS);
    (per_block, batch.div_ceil(per_block))
}
