//! Any network: a list of operations on the whole batch, forward and backward.
//!
//! [`build`] makes the operations of a spec, [`plan`] the buffers that they share, [`operation`] runs one of
//! them on the kernels. A step goes forward, computes loss and gradient of the output in place, and goes back;
//! each layer's parameters are moved as soon as their gradient is known, unless something needs the whole
//! gradient at once.
//!
//! Results do not depend on the number of threads.

mod build;
mod dim;
mod operation;
mod plan;
#[cfg(test)]
mod tests;

use super::{
    kernels::{joining, loss},
    parallel::Threads,
};
use crate::{
    dropout::MaskSeed,
    error::ModelError,
    evaluation::BatchEvaluation,
    learner::{Batch, BatchShape, LargeBatch, Learner, assert_length, finite},
    optimizer::{Optimizer, OptimizerConfig},
    spec::ModelSpec,
    tasks,
};
use build::Graph;
use fl_protocol::{Inputs, ModelLayout};
use operation::{Context, OwnGradient, Scratch};
use plan::{Plan, Slot};
use std::ops::Range;

/// Values between operations that an evaluation holds at once, at most, unless one sample has more.
const EVALUATION_VALUES: usize = 1 << 22;

/// What becomes of a gradient.
enum Descent<'a> {
    /// The parameters move, layer by layer.
    Step(&'a mut Optimizer, &'a OptimizerConfig),
    /// Into a vector of its own.
    Gradient(&'a mut [f32]),
}

/// Any network.
pub(crate) struct GraphLearner {
    graph: Graph,
    training: Plan,
    evaluation: Plan,
    buffers: Vec<Vec<f32>>,
    parameters: Vec<f32>,
    optimizer: Optimizer,
    /// The gradient of one layer, or of all if something needs the whole at once.
    gradient: Vec<f32>,
    scratch: Scratch,
    layout: ModelLayout,
    batches: BatchShape,
    /// Which operations have parameters that are trained.
    trained: Vec<bool>,
    threads: Threads,
    masks: MaskSeed,
}

impl GraphLearner {
    /// # Errors
    /// A network that does not fit together; threads that cannot be started.
    pub(crate) fn new(spec: &ModelSpec, threads: usize) -> Result<Self, ModelError> {
        let graph = Graph::new(spec)?;
        let layout = spec.layout();
        let trained: Vec<bool> = graph.nodes.iter().map(|node| !node.tensors.is_empty()).collect();
        Ok(Self {
            training: Plan::training(&graph, &trained),
            trained,
            evaluation: Plan::evaluation(&graph),
            graph,
            buffers: Vec::new(),
            parameters: vec![0.0; layout.parameters()],
            optimizer: Optimizer::new(spec),
            gradient: Vec::new(),
            scratch: Scratch::default(),
            batches: BatchShape::of(spec),
            layout,
            threads: Threads::new(threads)?,
            masks: MaskSeed::default(),
        })
    }

    /// Whether every layer has its operation.
    pub(crate) fn runs(spec: &ModelSpec) -> bool {
        Graph::new(spec).is_ok()
    }

    /// Sizes the buffers for `samples` samples.
    ///
    /// # Errors
    /// If no memory can hold them.
    fn reserve(&mut self, samples: usize, training: bool) -> Result<(), ModelError> {
        let plan = if training { &self.training } else { &self.evaluation };
        self.buffers.resize_with(self.buffers.len().max(plan.slots.len()), Vec::new);
        for (buffer, size) in self.buffers.iter_mut().zip(&plan.slots) {
            let len = size.checked_mul(samples).filter(|len| *len <= isize::MAX as usize / 4);
            let grown = len.is_some_and(|len| {
                len <= buffer.len() || {
                    // The old values are of no use: nothing is copied.
                    buffer.clear();
                    let reserved = buffer.try_reserve_exact(len).is_ok();
                    if reserved {
                        buffer.resize(len, 0.0);
                    }
                    reserved
                }
            });
            if !grown {
                return Err(ModelError::BadBatch(format!(
                    "no memory can hold the activations of {samples} samples: lower the batch size"
                )));
            }
        }
        Ok(())
    }

    /// Runs the operations forward. The result is in the buffer of the output.
    fn forward(&mut self, inputs: Inputs<'_>, samples: usize, training: bool, threads: &Threads) {
        let Self { graph, buffers, parameters, scratch, .. } = self;
        let plan = if training { &self.training } else { &self.evaluation };
        let context = Context {
            parameters,
            threads,
            masks: training.then_some(self.masks),
            training,
            tokens: tokens(inputs),
        };
        for node in &mut graph.nodes {
            let Some(slot) = plan.values[node.output] else { continue };
            let mut y = std::mem::take(&mut buffers[slot]);
            let xs: Vec<&[f32]> = node
                .inputs
                .iter()
                .map(|&input| value(plan, buffers, &graph.sizes, inputs, input, samples))
                .collect();
            let len = graph.sizes[node.output] * samples;
            node.operation.forward(&context, &node.tensors, &xs, &mut y[..len], scratch);
            buffers[slot] = y;
        }
    }

    /// Runs the operations backward from the gradient of the output, which is in its buffer.
    fn backward(&mut self, inputs: Inputs<'_>, samples: usize, descent: &mut Descent<'_>, threads: &Threads) {
        let Self { graph, buffers, parameters, scratch, training: plan, gradient, trained, .. } = self;
        for step in &plan.backward {
            let node = &mut graph.nodes[step.node];
            let sizes = &graph.sizes;
            let mut dy = std::mem::take(&mut buffers[step.output]);
            let mut dxs: Vec<Option<Vec<f32>>> = step
                .inputs
                .iter()
                .map(|slot| slot.map(|slot| std::mem::take(&mut buffers[slot.slot])))
                .collect();
            let range = node.range();
            let trained = trained[step.node];
            let plain = match descent {
                Descent::Step(optimizer, config) if node.operation.descends() => {
                    optimizer.plain(config, &range)
                }
                _ => None,
            };
            {
                let xs: Vec<&[f32]> = node
                    .inputs
                    .iter()
                    .map(|&input| value(plan, buffers, sizes, inputs, input, samples))
                    .collect();
                let y = value(plan, buffers, sizes, inputs, node.output, samples);
                let mut dxs: Vec<Option<&mut [f32]>> = dxs
                    .iter_mut()
                    .zip(&node.inputs)
                    .map(|(dx, &input)| dx.as_mut().map(|dx| &mut dx[..sizes[input] * samples]))
                    .collect();
                let dy = &mut dy[..sizes[node.output] * samples];
                if let Some(lr) = plain {
                    let x = xs.first().copied().unwrap_or(&[]);
                    let dx = dxs.first_mut().and_then(Option::take);
                    let own = &mut parameters[range.clone()];
                    node.operation.descend(own, lr, x, y, dy, dx, scratch, threads);
                } else {
                    let context = Context {
                        parameters,
                        threads,
                        masks: Some(self.masks),
                        training: true,
                        tokens: tokens(inputs),
                    };
                    let gradient = match descent {
                        Descent::Gradient(all) => &mut all[range.clone()],
                        Descent::Step(..) => {
                            gradient.resize(gradient.len().max(range.len()), 0.0);
                            &mut gradient[..range.len()]
                        }
                    };
                    let gradient = OwnGradient { values: gradient, wanted: trained };
                    node.operation.backward(&context, &node.tensors, &xs, y, dy, &mut dxs, gradient, scratch);
                }
            }
            if let Descent::Step(optimizer, config) = descent
                && plain.is_none()
                && !range.is_empty()
            {
                if trained {
                    optimizer.update(parameters, &mut gradient[..range.len()], range, config, threads);
                }
                node.operation.move_buffers(&node.tensors, parameters);
            }
            buffers[step.output] = dy;
            for (dx, slot) in dxs.into_iter().zip(&step.inputs) {
                if let (Some(dx), Some(slot)) = (dx, slot) {
                    buffers[slot.slot] = dx;
                }
            }
            for (slot, &input) in step.inputs.iter().zip(&node.inputs) {
                if let Some(plan::GradientSlot { slot, add_to: Some(sum) }) = slot {
                    add(buffers, *slot, *sum, sizes[input] * samples, threads);
                }
            }
        }
    }

    /// Loss of a batch; the gradient goes where `descent` says.
    fn run(&mut self, batch: Batch<'_>, descent: &mut Descent<'_>) -> Result<f32, ModelError> {
        let samples = batch.targets.len() / self.batches.targets;
        self.reserve(samples, true)?;
        let threads = std::mem::replace(&mut self.threads, Threads::none());
        let loss = threads.enter(|| {
            self.forward(batch.inputs, samples, true, &threads);
            let loss = self.loss(batch, samples, &threads);
            if loss.is_finite() {
                self.backward(batch.inputs, samples, descent, &threads);
            }
            loss
        });
        self.threads = threads;
        finite(loss)
    }

    /// [`Self::run`] for a large batch. With `moving` each piece moves the buffers (running moments): it is normalised
    /// by itself.
    fn run_pieces(
        &mut self,
        large: LargeBatch<'_>,
        out: &mut [f32],
        moving: bool,
    ) -> Result<f32, ModelError> {
        let outcome = large.gradient(out, |piece, first, gradient| {
            self.masks.first = first;
            let loss = self.run(piece, &mut Descent::Gradient(gradient))?;
            if moving {
                self.move_buffers();
            }
            Ok(loss)
        });
        self.masks.first = 0;
        outcome
    }

    fn move_buffers(&mut self) {
        for node in &mut self.graph.nodes {
            node.operation.move_buffers(&node.tensors, &mut self.parameters);
        }
    }

    /// Mean loss; its gradient goes to where the backward pass begins.
    fn loss(&mut self, batch: Batch<'_>, samples: usize, threads: &Threads) -> f32 {
        let Some(slot) = self.training.values[self.graph.output] else { return f32::NAN };
        let gradient = self.training.backward.first().map_or(slot, |step| step.output);
        let len = self.graph.sizes[self.graph.output] * samples;
        if gradient != slot {
            let output = std::mem::take(&mut self.buffers[slot]);
            self.buffers[gradient][..len].copy_from_slice(&output[..len]);
            self.buffers[slot] = output;
        }
        let output = &mut self.buffers[gradient][..len];
        loss::loss_and_gradient(&self.batches.task, output, self.batches.classes, batch.targets, threads)
    }
}

fn tokens(inputs: Inputs<'_>) -> &[u32] {
    match inputs {
        Inputs::Tokens(tokens) => tokens,
        Inputs::Numbers(_) => &[],
    }
}

/// The values of `id`; those of the network's input are the batch's own. Empty if nothing keeps them.
fn value<'a>(
    plan: &Plan,
    buffers: &'a [Vec<f32>],
    sizes: &[usize],
    inputs: Inputs<'a>,
    id: dim::ValueId,
    samples: usize,
) -> &'a [f32] {
    match (plan.values[id], inputs) {
        (Some(slot), _) => buffers[slot].get(..sizes[id] * samples).unwrap_or(&[]),
        (None, Inputs::Numbers(values)) => values,
        (None, Inputs::Tokens(_)) => &[],
    }
}

/// Adds buffer `from` to buffer `to`.
fn add(buffers: &mut [Vec<f32>], from: Slot, to: Slot, len: usize, threads: &Threads) {
    let mut sum = std::mem::take(&mut buffers[to]);
    joining::add(&buffers[from][..len], &mut sum[..len], threads);
    buffers[to] = sum;
}

impl Learner for GraphLearner {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn load(&mut self, parameters: &[f32]) {
        assert_length(parameters, &self.layout);
        self.parameters.copy_from_slice(parameters);
        self.optimizer.reset();
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
        self.optimizer.set_drift(drift);
    }

    fn set_trainable(&mut self, trainable: &[Range<usize>]) {
        let reaches = |node: &build::Node| {
            let own = node.range();
            !own.is_empty() && trainable.iter().any(|range| range.start < own.end && own.start < range.end)
        };
        let trained: Vec<bool> = self.graph.nodes.iter().map(reaches).collect();
        self.training = Plan::training(&self.graph, &trained);
        self.trained = trained;
        self.optimizer.set_trainable(trainable);
    }

    fn step(&mut self, batch: Batch<'_>, config: &OptimizerConfig) -> Result<f32, ModelError> {
        self.batches.check(batch)?;
        config.validate()?;
        let large = self.batches.large(batch);
        let mut optimizer = std::mem::take(&mut self.optimizer);
        optimizer.begin_step(&self.parameters, config);
        let outcome = if large.is_some() || optimizer.needs_whole_gradient(config) {
            let mut gradient = std::mem::take(&mut self.gradient);
            gradient.clear();
            gradient.resize(self.parameters.len(), 0.0);
            let loss = match large {
                Some(large) => self.run_pieces(large, &mut gradient, true),
                None => self.run(batch, &mut Descent::Gradient(&mut gradient)),
            };
            if loss.is_ok() {
                let whole = 0..gradient.len();
                optimizer.update(&mut self.parameters, &mut gradient, whole, config, &self.threads);
                self.move_buffers();
            }
            self.gradient = gradient;
            loss
        } else {
            self.run(batch, &mut Descent::Step(&mut optimizer, config))
        };
        self.optimizer = optimizer;
        self.masks.step += 1;
        outcome
    }

    fn gradients(&mut self, batch: Batch<'_>, out: &mut [f32]) -> Result<f32, ModelError> {
        self.batches.check(batch)?;
        assert_length(out, &self.layout);
        out.fill(0.0);
        match self.batches.large(batch) {
            Some(large) => self.run_pieces(large, out, false),
            None => self.run(batch, &mut Descent::Gradient(out)),
        }
    }

    fn evaluate(&mut self, batch: Batch<'_>) -> Result<BatchEvaluation, ModelError> {
        self.batches.check(batch)?;
        let values: usize = self.evaluation.slots.iter().sum();
        let most = (EVALUATION_VALUES / values.max(1)).clamp(1, 256);
        let mut sums = BatchEvaluation::default();
        for piece in self.batches.pieces(batch, most) {
            let samples = piece.targets.len() / self.batches.targets;
            self.reserve(samples, false)?;
            let threads = std::mem::replace(&mut self.threads, Threads::none());
            threads.enter(|| self.forward(piece.inputs, samples, false, &threads));
            self.threads = threads;
            let len = self.graph.sizes[self.graph.output] * samples;
            let output =
                self.evaluation.values[self.graph.output].map_or(&[][..], |slot| &self.buffers[slot][..len]);
            sums += tasks::evaluate(&self.batches.task, output, self.batches.classes, piece.targets);
            sums.samples += samples as u64;
        }
        Ok(sums)
    }
}
