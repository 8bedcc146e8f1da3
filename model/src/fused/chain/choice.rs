//! Which networks are run as chains, one image at a time.

use super::{
    plan::{ImageOp, Plan},
    winograd::Winograd,
};
use crate::spec::ModelSpec;

/// How often a step goes over the weights of a convolution for each image.
const PASSES: f64 = 4.0;
/// Floating-point operations of flex in the time that a weight takes from memory.
const FLOPS_PER_LOAD: f64 = 20.0;
/// Weights in Winograd's form that stay in a cache from image to image.
const CACHED: usize = 1 << 22;

/// Whether the chain runs `spec` and loads its weights seldom enough, by an estimate in units of the floating-point
/// operations of Burn's flex, with which it was calibrated.
///
/// The chain does the arithmetic in a third of the time. But it works on one image at a time, so weights in
/// Winograd's form that no cache holds come from memory again for each image. Measured on one core of an
/// EPYC with 512 channels: 0.6 of flex's speed on 7 x 7 pixels, 1.3 on 14 x 14.
pub(crate) fn is_faster(spec: &ModelSpec) -> bool {
    let Ok(plan) = Plan::new(spec) else { return false };
    let (mut flex, mut fused) = (0.0, 0.0);
    for stage in &plan.image {
        let ImageOp::Conv { kernel, padding, .. } = stage.op else { continue };
        let weights = kernel * kernel * stage.input.channels * stage.output.channels;
        let flops = 6.0 * weights as f64 * stage.output.pixels() as f64;
        flex += flops;
        fused += flops / 3.0;
        let spectrum = Winograd::spectrum_len_of(stage.input, stage.output, kernel, padding).unwrap_or(0);
        if spectrum > CACHED {
            fused += PASSES * FLOPS_PER_LOAD * spectrum as f64;
        }
    }
    fused <= flex
}
