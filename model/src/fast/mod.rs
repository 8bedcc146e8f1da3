//! The fused training step: forward, loss, backward and update in one pass over flat memory.
//!
//! Convolutions and pooling work on one image at a time, depth first, in [`image`]; dense layers on
//! the whole batch, in [`dense`]; both on the matrix products of [`gemm`]. The parameters live in one
//! flat vector in PyTorch's layout; plain SGD updates dense weights within the product that computes
//! their gradient. Buffers are kept from step to step.
//!
//! Results do not depend on the number of threads: matrices are cut by rows, and a batch of images
//! into blocks whose number depends only on the batch, with gradients summed block after block.

mod conv;
mod dense;
mod gemm;
mod image;
mod norm;
mod parallel;
mod plan;
mod pool;
mod simd;
mod transpose;
mod winograd;

use crate::{
    error::ModelError,
    loss::evaluate_logits,
    sgd::{SgdConfig, SgdState},
    spec::ModelSpec,
};
use dense::DenseNet;
use gemm::Store;
use image::{Block, DropoutStep, ImageNet};
use parallel::Threads;
use plan::Plan;
use std::{
    ops::Range,
    time::{Duration, Instant},
};

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

/// The fused trainer.
pub(crate) struct FastTrainer {
    parameters: Vec<f32>,
    /// Empty until a setting needs the whole gradient at once.
    gradient: Vec<f32>,
    state: SgdState,
    image: Option<ImageNet>,
    image_parameters: usize,
    blocks: Vec<Block>,
    dense: DenseNet,
    /// Row-major logits of an evaluated batch.
    logits: Vec<f32>,
    classes: usize,
    features: usize,
    threads: Threads,
    seed: u64,
    step: u64,
}

impl FastTrainer {
    /// `None` if the network has a layer in a place that only plain Burn computes.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub(crate) fn new(spec: &ModelSpec, threads: usize) -> Result<Option<Self>, ModelError> {
        let Some(plan) = Plan::new(spec) else { return Ok(None) };
        let image = ImageNet::new(plan.image);
        Ok(Some(Self {
            parameters: vec![0.0; plan.parameters],
            gradient: Vec::new(),
            state: SgdState::default(),
            dense: DenseNet::new(plan.dense, image.is_some(), plan.image_parameters > 0),
            image,
            image_parameters: plan.image_parameters,
            blocks: Vec::new(),
            logits: Vec::new(),
            classes: spec.num_classes,
            features: spec.num_features(),
            threads: Threads::new(threads)?,
            seed: 0,
            step: 0,
        }))
    }

    pub(crate) fn set_dropout_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    pub(crate) fn set_parameters(&mut self, parameters: &[f32]) {
        self.parameters.copy_from_slice(parameters);
        self.state.reset(parameters);
        self.step = 0;
    }

    pub(crate) fn set_drift(&mut self, drift: &[f32]) {
        self.state.set_drift(drift);
    }

    pub(crate) fn parameters(&self, out: &mut [f32]) {
        out.copy_from_slice(&self.parameters);
    }

    /// Mean loss of the batch; its gradient goes to `out`.
    pub(crate) fn gradients(&mut self, x: &[f32], y: &[u32], out: &mut [f32]) -> f32 {
        self.run(x, y, &mut Descent::Gradient(out))
    }

    pub(crate) fn train_step(&mut self, x: &[f32], y: &[u32], config: &SgdConfig) -> f32 {
        let loss = if self.state.is_plain(config) {
            self.run(x, y, &mut Descent::Step { lr: config.lr })
        } else {
            let mut gradient = std::mem::take(&mut self.gradient);
            gradient.resize(self.parameters.len(), 0.0);
            let loss = self.run(x, y, &mut Descent::Gradient(&mut gradient));
            self.state.step(&mut self.parameters, &mut gradient, config);
            self.gradient = gradient;
            loss
        };
        self.step += 1;
        loss
    }

    /// Sum of the cross-entropies and number of hits.
    pub(crate) fn evaluate(&mut self, x: &[f32], y: &[u32]) -> (f64, u64) {
        let threads = std::mem::replace(&mut self.threads, Threads::none());
        threads.enter(|| self.forward(x, y.len(), None, false, &threads));
        self.threads = threads;
        let stride = self.dense.stride;
        self.logits.clear();
        for sample in 0..y.len() {
            self.logits.extend(self.dense.logits()[sample..].iter().step_by(stride));
        }
        evaluate_logits(&self.logits, y, self.classes)
    }

    /// One pass over a batch.
    fn run(&mut self, x: &[f32], y: &[u32], descent: &mut Descent<'_>) -> f32 {
        let dropout = Some((self.seed, self.step));
        let threads = std::mem::replace(&mut self.threads, Threads::none());
        let loss = threads.enter(|| {
            self.forward(x, y.len(), dropout, true, &threads);
            let loss = self.dense.loss(y);
            self.dense.backward(&mut self.parameters, x, descent, dropout, &threads);
            self.image_backward(x, y.len(), descent, dropout, &threads);
            loss
        });
        self.threads = threads;
        loss
    }

    fn forward(&mut self, x: &[f32], batch: usize, dropout: DropoutStep, training: bool, threads: &Threads) {
        let Some(net) = &mut self.image else {
            self.dense.prepare(batch, self.features);
            self.dense.set_input(x, threads);
            return self.dense.forward(&self.parameters, dropout, training, threads);
        };
        net.pack(&self.parameters, training);
        let output = net.output();
        self.dense.prepare(batch, output.len());
        let (per_block, blocks) = blocks_of(batch);
        self.blocks.resize_with(self.blocks.len().max(blocks), Block::default);
        let (parameters, features) = (&self.parameters, self.features);
        let net = &*net;
        threads.each(&mut self.blocks[..blocks], |index, block| {
            let first = index * per_block;
            let images = per_block.min(batch - first);
            net.prepare(block, images, training);
            let x = &x[first * features..(first + images) * features];
            net.forward(block, x, parameters, first, dropout);
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
        self.dense.forward(&self.parameters, dropout, training, threads);
    }

    fn image_backward(
        &mut self,
        x: &[f32],
        batch: usize,
        descent: &mut Descent<'_>,
        dropout: DropoutStep,
        threads: &Threads,
    ) {
        let (Some(net), 1..) = (&self.image, self.image_parameters) else { return };
        let (per_block, blocks) = blocks_of(batch);
        let (parameters, features, stride, output) =
            (&self.parameters, self.features, self.dense.stride, net.output());
        let gradient = self.dense.input_gradient();
        threads.each(&mut self.blocks[..blocks], |index, block| {
            let first = index * per_block;
            let x = &x[first * features..batch.min(first + per_block) * features];
            net.backward(block, x, parameters, first, dropout, |image, out| {
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

/// Images per block and blocks of a batch: a function of the batch alone.
fn blocks_of(batch: usize) -> (usize, usize) {
    let per_block = batch.div_ceil(BLOCKS).max(BLOCKS);
    (per_block, batch.div_ceil(per_block))
}

/// Best of many products of one tile row's width with operands in the first two cache levels.
pub(crate) fn measure_gemm_gflops() -> f64 {
    const ROWS: usize = 120;
    const COLUMNS: usize = 64;
    const DEPTH: usize = 256;
    let (l, r, mut c) = (vec![0.5; ROWS * DEPTH], vec![0.5; DEPTH * COLUMNS], vec![0.0; ROWS * COLUMNS]);
    let starts: Vec<u32> = (0..ROWS).map(|row| (row * DEPTH) as u32).collect();
    let rows = gemm::Rows { data: &l, starts: &starts, segments: &[0], segment_len: DEPTH };
    let mut best = f64::INFINITY;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(100) {
        let start = Instant::now();
        for _ in 0..4 {
            gemm::nn(rows, std::hint::black_box(&r), COLUMNS, &mut c, COLUMNS, COLUMNS, Store::Set);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    (4 * 2 * ROWS * COLUMNS * DEPTH) as f64 / best / 1e9
}
