//! The stages on vectors. The whole batch goes through each layer at once.
//!
//! Activations are kept transposed, `[features][batch]`, so that PyTorch's `[out, in]` weights are
//! used, and updated, where they lie. A linear layer also keeps its input row by row for the
//! gradient of its weights.

use super::{
    Descent,
    plan::{DenseOp, DenseStage},
};
use crate::dropout::{Mask, MaskSeed};
use crate::fused::{
    gemm::{Columns, Rows, Store, nn, tn},
    parallel::Threads,
    transpose::transpose,
};

/// Columns of an activation are padded to a multiple of this, the widest vector.
const LANES: usize = 16;

/// The vector stages with the activations of one batch.
#[derive(Debug)]
pub(super) struct DenseNet {
    stages: Vec<DenseStage>,
    /// Samples in use, and the padded length of a row of activations.
    batch: usize,
    pub(super) stride: usize,
    /// Transposed activations: the input, then each stage's output.
    activations: Vec<Vec<f32>>,
    /// Row-major inputs of the linear stages. The network's own input is not copied.
    inputs: Vec<Vec<f32>>,
    /// Gradients of a stage's output and input, transposed.
    gradients: [Vec<f32>; 2],
    /// Starts of the rows of each stage's weights.
    weight_rows: Vec<Vec<usize>>,
    /// Starts of the rows of an activation.
    activation_rows: Vec<usize>,
    /// Whether image stages come before these.
    behind_images: bool,
    /// Whether those stages need the gradient of their output.
    needs_input_gradient: bool,
}

impl DenseNet {
    pub(super) fn new(stages: Vec<DenseStage>, behind_images: bool, needs_input_gradient: bool) -> Self {
        let rows = |stage: &DenseStage| match stage.op {
            DenseOp::Linear(_) => row_starts(stage.outputs, stage.inputs).collect(),
            _ => Vec::new(),
        };
        Self {
            batch: 0,
            stride: 0,
            activations: vec![Vec::new(); stages.len() + 1],
            inputs: vec![Vec::new(); stages.len()],
            gradients: Default::default(),
            weight_rows: stages.iter().map(rows).collect(),
            activation_rows: Vec::new(),
            stages,
            behind_images,
            needs_input_gradient,
        }
    }

    fn widest_output(&self) -> usize {
        self.stages.iter().map(|stage| stage.outputs).max().unwrap_or(0)
    }

    /// Whether the activations of `batch` samples have sizes that can be counted in bytes; `features` is
    /// the width of the input.
    pub(super) fn can_hold(&self, batch: usize, features: usize) -> bool {
        let widest = self.widest_output().max(features);
        batch.checked_next_multiple_of(LANES).is_some_and(|stride| fits(stride, widest))
    }

    /// Resizes the buffers for `batch` samples; `features` is the width of the input.
    pub(super) fn prepare(&mut self, batch: usize, features: usize) {
        if batch == self.batch {
            return;
        }
        self.batch = batch;
        self.stride = batch.next_multiple_of(LANES);
        // The gradient of the network's own input is never computed.
        let widest = self.widest_output().max(if self.needs_input_gradient { features } else { 0 });
        self.activations[0].clear();
        self.activations[0].resize(features * self.stride, 0.0);
        for (index, stage) in self.stages.iter().enumerate() {
            self.activations[index + 1].clear();
            self.activations[index + 1].resize(stage.outputs * self.stride, 0.0);
            let copied = matches!(stage.op, DenseOp::Linear(_)) && (index > 0 || self.behind_images);
            self.inputs[index].resize(if copied { batch * stage.inputs } else { 0 }, 0.0);
        }
        for gradient in &mut self.gradients {
            gradient.clear();
            gradient.resize(widest * self.stride, 0.0);
        }
        self.activation_rows.clear();
        self.activation_rows.extend(row_starts(widest, self.stride));
    }

    /// The transposed input, to be filled by the image stages.
    pub(super) fn input_mut(&mut self) -> &mut [f32] {
        &mut self.activations[0]
    }

    /// The gradient of the transposed input.
    pub(super) fn input_gradient(&self) -> &[f32] {
        &self.gradients[0]
    }

    /// Transposed logits, `[classes][stride]`.
    pub(super) fn logits(&self) -> &[f32] {
        self.activations.last().map_or(&[], Vec::as_slice)
    }

    /// Takes row-major input.
    pub(super) fn set_input(&mut self, x: &[f32], threads: &Threads) {
        let features = x.len() / self.batch;
        let stride = self.stride;
        threads.rows(&mut self.activations[0], stride, self.batch * 8, |first, out| {
            transpose(&x[first..], features, self.batch, out, stride);
        });
    }

    /// Runs the stages forward from the input that was set.
    pub(super) fn forward(
        &mut self,
        parameters: &[f32],
        masks: Option<MaskSeed>,
        training: bool,
        threads: &Threads,
    ) {
        let (batch, stride) = (self.batch, self.stride);
        for (index, stage) in self.stages.iter().enumerate() {
            let (before, after) = self.activations.split_at_mut(index + 1);
            let (x, y) = (before[index].as_slice(), after[0].as_mut_slice());
            match &stage.op {
                DenseOp::Linear(params) => {
                    if training && !self.inputs[index].is_empty() {
                        transpose(x, stride, stage.inputs, &mut self.inputs[index], stage.inputs);
                    }
                    let (weights, bias) =
                        (&parameters[params.weight.clone()], &parameters[params.bias.clone()]);
                    let starts = &self.weight_rows[index];
                    threads.rows(y, stride, stride * stage.inputs, |first, y| {
                        let rows = Rows {
                            data: weights,
                            starts: &starts[first..first + y.len() / stride],
                            segments: &[0],
                            segment_len: stage.inputs,
                        };
                        let store = Store::RowBias { bias: &bias[first..], relu: stage.relu };
                        nn(rows, x, stride, y, stride, stride, store);
                    });
                    continue;
                }
                DenseOp::Dropout { p, layer } => {
                    y.copy_from_slice(x);
                    if let Some(seed) = masks {
                        drop_some(y, stride, batch, seed.mask(*p, *layer, stage.outputs));
                    }
                }
                DenseOp::Pass => y.copy_from_slice(x),
            }
            if stage.relu {
                y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
            }
        }
    }

    /// The mean cross-entropy of the batch, and its gradient for [`DenseNet::backward`].
    pub(super) fn loss(&mut self, labels: &[u32]) -> f32 {
        let stride = self.stride;
        let logits = self.activations.last().map_or(&[][..], Vec::as_slice);
        let gradient = &mut self.gradients[0][..logits.len()];
        gradient.fill(0.0);
        let scale = 1.0 / self.batch as f32;
        let mut loss = 0.0f64;
        for (sample, &label) in labels.iter().enumerate() {
            let column = || logits[sample..].iter().step_by(stride);
            let max = column().fold(f32::NEG_INFINITY, |max, value| if *value <= max { max } else { *value });
            let mut sum = 0.0f32;
            for (out, value) in gradient[sample..].iter_mut().step_by(stride).zip(column()) {
                *out = (*value - max).exp();
                sum += *out;
            }
            loss += f64::from(sum.ln() + max - logits[label as usize * stride + sample]);
            let factor = scale / sum;
            gradient[sample..].iter_mut().step_by(stride).for_each(|out| *out *= factor);
            gradient[label as usize * stride + sample] -= scale;
        }
        (loss / self.batch as f64) as f32
    }

    /// Runs the stages backward. `x` is the row-major input if it was set by [`DenseNet::set_input`].
    pub(super) fn backward(
        &mut self,
        parameters: &mut [f32],
        x: &[f32],
        descent: &mut Descent<'_>,
        masks: Option<MaskSeed>,
        threads: &Threads,
    ) {
        let first = self.stages.iter().position(|stage| matches!(stage.op, DenseOp::Linear(_)));
        let last_needed = if self.needs_input_gradient { 0 } else { first.unwrap_or(0) };
        for index in (last_needed..self.stages.len()).rev() {
            let stage = &self.stages[index];
            let [dy, dx] = &mut self.gradients;
            let dy = &mut dy[..stage.outputs * self.stride];
            if stage.relu {
                for (dy, y) in dy.iter_mut().zip(&self.activations[index + 1]) {
                    *dy = if *y > 0.0 { *dy } else { 0.0 };
                }
            }
            match &stage.op {
                DenseOp::Pass => {}
                DenseOp::Dropout { p, layer } => {
                    if let Some(seed) = masks {
                        drop_some(dy, self.stride, self.batch, seed.mask(*p, *layer, stage.outputs));
                    }
                }
                DenseOp::Linear(params) => {
                    let inner = index > last_needed || self.needs_input_gradient;
                    if inner {
                        let dx = &mut dx[..stage.inputs * self.stride];
                        let weights = &parameters[params.weight.clone()];
                        input_gradient(weights, &self.weight_rows[index], dy, self.stride, dx, threads);
                    }
                    let x = if self.inputs[index].is_empty() { x } else { &self.inputs[index] };
                    let rows = &self.activation_rows[..stage.outputs];
                    let rule = descent.rule();
                    let weights = descent.target(parameters, params.weight.clone());
                    weight_gradient(x, dy, rows, self.batch, weights, rule.store, threads);
                    let bias = descent.target(parameters, params.bias.clone());
                    for (bias, dy) in bias.iter_mut().zip(dy.chunks_exact(self.stride)) {
                        rule.apply(bias, sum(dy));
                    }
                    if inner {
                        self.gradients.swap(0, 1);
                    }
                }
            }
        }
    }
}

/// Starts of the rows of a matrix. They are of full width: a batch of a million samples of 5,000 values
/// lies beyond what 32 bits count.
fn row_starts(rows: usize, row_len: usize) -> impl Iterator<Item = usize> {
    (0..rows).map(move |row| row * row_len)
}

/// Whether a matrix of floats is no larger than an allocation may be.
fn fits(rows: usize, columns: usize) -> bool {
    let bytes = rows.checked_mul(columns).and_then(|len| len.checked_mul(size_of::<f32>()));
    bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok())
}

/// `dx = W^T dy`, all transposed.
fn input_gradient(
    weights: &[f32],
    starts: &[usize],
    dy: &[f32],
    stride: usize,
    dx: &mut [f32],
    threads: &Threads,
) {
    threads.rows(dx, stride, stride * starts.len(), |first, dx| {
        let columns = Columns { data: weights, starts, offset: first, width: dx.len() / stride };
        tn(columns, dy, stride, dx, stride, stride, Store::Set);
    });
}

/// `dW = dy x`, stored as `store` says.
fn weight_gradient(
    x: &[f32],
    dy: &[f32],
    starts: &[usize],
    batch: usize,
    weights: &mut [f32],
    store: Store<'_>,
    threads: &Threads,
) {
    let inputs = weights.len() / starts.len();
    threads.rows(weights, inputs, inputs * batch, |first, weights| {
        let rows = Rows {
            data: dy,
            starts: &starts[first..first + weights.len() / inputs],
            segments: &[0],
            segment_len: batch,
        };
        nn(rows, x, inputs, weights, inputs, inputs, store);
    });
}

/// Sum of a row of an activation, whose length is a multiple of [`LANES`].
fn sum(row: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    for values in row.as_chunks::<LANES>().0 {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().sum()
}

/// Multiplies a transposed activation by the batch's mask, which is laid out sample by sample.
fn drop_some(values: &mut [f32], stride: usize, batch: usize, mask: Mask) {
    let features = values.len() / stride;
    for (feature, row) in values.chunks_exact_mut(stride).enumerate() {
        for (sample, value) in row[..batch].iter_mut().enumerate() {
            *value *= mask.at(sample * features + feature);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_batch_of_a_million_do_not_wrap() {
        let stride = 1_000_000usize.next_multiple_of(LANES);
        let starts: Vec<_> = row_starts(5_000, stride).collect();
        assert!(starts.iter().zip(&starts[1..]).all(|(row, next)| next - row == stride));
        assert!(starts[4_999] > u32::MAX as usize);
    }

    #[test]
    fn a_batch_that_no_memory_can_hold_is_known_before_it_is_allocated() {
        let stage = DenseStage { op: DenseOp::Pass, relu: true, inputs: 4, outputs: 1 << 24 };
        let net = DenseNet::new(vec![stage], false, false);
        assert!(net.can_hold(1_000_000, 4));
        assert!(!net.can_hold(1 << 40, 4), "2^64 values");
        assert!(!net.can_hold(usize::MAX, 4));
    }
}
