//! The operations of a training step, and the peak speed of a core.

use crate::{
    error::ModelError,
    fused,
    spec::{Layer, ModelSpec, Pair, visit_shapes},
};

impl ModelSpec {
    /// Floating-point operations of one training step per sample, counting the matrix products and
    /// convolutions as they are defined: forward, weight gradient, and input gradient in all but the
    /// first such layer. An algorithm that needs fewer is credited with these all the same.
    ///
    /// # Errors
    /// As [`ModelSpec::validate`].
    pub fn training_flops(&self) -> Result<f64, ModelError> {
        let mut flops = 0.0;
        visit_shapes(self, |layer, input, output| {
            let rows = |shape: &[usize]| shape[..shape.len() - 1].iter().product::<usize>() as f64;
            let outputs = output.iter().product::<usize>() as f64;
            let products = match *layer {
                Layer::Linear { in_features, .. } => outputs * in_features as f64,
                Layer::Conv2d { in_channels, kernel: Pair([h, w]), groups, .. } => {
                    outputs * (in_channels / groups * h * w) as f64
                }
                Layer::Conv1d { in_channels, kernel, groups, .. } => {
                    outputs * (in_channels / groups * kernel) as f64
                }
                Layer::Lstm { input_size, hidden_size, num_layers }
                | Layer::Gru { input_size, hidden_size, num_layers } => {
                    let gates = if matches!(layer, Layer::Lstm { .. }) { 4 } else { 3 };
                    let widths = input_size + hidden_size + 2 * hidden_size * (num_layers - 1);
                    rows(input) * (gates * hidden_size * widths) as f64
                }
                Layer::Attention { dim, causal, .. } => {
                    let scores = rows(input) * rows(input) * dim as f64 * 2.0;
                    rows(input) * (4 * dim * dim) as f64 + if causal { scores / 2.0 } else { scores }
                }
                _ => return,
            };
            let passes = if flops == 0.0 { 2.0 } else { 3.0 };
            flops += 2.0 * products * passes;
        })?;
        Ok(flops)
    }

    /// Values between the layers for one sample, and those that layers keep for their gradients, roughly: no more
    /// than a training step holds.
    pub(crate) fn activations(&self) -> usize {
        let mut values = self.num_features();
        // A network that does not fit gets no learner.
        let _ = visit_shapes(self, |layer, input, output| {
            let size = |shape: &[usize]| shape.iter().product::<usize>();
            let kept = match *layer {
                Layer::Lstm { num_layers, .. } | Layer::Gru { num_layers, .. } => {
                    6 * num_layers * size(output)
                }
                // Queries, keys, values, context, and the gradients of all.
                Layer::Attention { .. } => 9 * size(input),
                // In the pass of the layer before, or no pass at all.
                Layer::Relu | Layer::Flatten => 0,
                _ => size(output),
            };
            values = values.saturating_add(kept);
        });
        values
    }
}

/// Best speed of a matrix product on one core with operands in its caches, in GFLOP/s: what the
/// speed of a training step can be compared with. Takes about a tenth of a second.
pub fn measure_gemm_gflops() -> f64 {
    fused::measure_gemm_gflops()
}
