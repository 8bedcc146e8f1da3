//! The operations of a training step, and the peak speed of a core.

use crate::{
    error::ModelError,
    fused,
    spec::{Layer, ModelSpec},
};

impl ModelSpec {
    /// Floating-point operations of one training step per sample, counting the matrix products and
    /// convolutions as they are defined: forward, weight gradient, and input gradient in all but the
    /// first such layer. An algorithm that needs fewer is credited with these all the same.
    ///
    /// # Errors
    /// As [`ModelSpec::validate`].
    pub fn training_flops(&self) -> Result<f64, ModelError> {
        let shapes = self.shapes()?;
        let mut flops = 0.0;
        for (layer, output) in self.layers.iter().zip(&shapes[1..]) {
            let products = match *layer {
                Layer::Linear { in_features, out_features } => in_features as f64 * out_features as f64,
                Layer::Conv2d { in_channels, kernel, .. } => {
                    output.iter().product::<usize>() as f64 * (in_channels * kernel * kernel) as f64
                }
                _ => continue,
            };
            let passes = if flops == 0.0 { 2.0 } else { 3.0 };
            flops += 2.0 * products * passes;
        }
        Ok(flops)
    }
}

/// Best speed of a matrix product on one core with operands in its caches, in GFLOP/s: what the
/// speed of a training step can be compared with. Takes about a tenth of a second.
pub fn measure_gemm_gflops() -> f64 {
    fused::measure_gemm_gflops()
}
