//! Which networks are run as chains, one image at a time.

use super::{
    plan::{ImageOp, Plan},
    winograd::Winograd,
};
use crate::spec::ModelSpec;

/// Values of weights in Winograd's form that stay in a second-level cache from image to image.
const CACHED: usize = 1 << 19;
/// Values of other kernels of more than one tap that do.
const CACHED_DIRECT: usize = 1 << 17;
/// Time of the chain where weights come from memory again for each image, and that of the graph, which loads
/// them once for many images; 1 is that of the chain with weights from a cache.
const FROM_MEMORY: f64 = 1.7;
const GRAPH: f64 = 1.2;

/// Whether the chain runs `spec`, and in less time than the graph by an estimate from the shapes.
///
/// The chain keeps what an image needs in the caches, but works on one image at a time. Measured on one core of an
/// EPYC: the chain takes 0.55 to 0.95 of the graph's time while its weights are few, 1.2 to 1.8 with 128 channels on
/// 4 x 4 pixels or with 7 x 7 kernels on 64 channels.
pub(crate) fn is_faster(spec: &ModelSpec) -> bool {
    let Ok(plan) = Plan::new(spec) else { return false };
    let (mut chain, mut graph) = (0.0, 0.0);
    for stage in &plan.image {
        let ImageOp::Conv { kernel, padding, .. } = stage.op else { continue };
        let weights = kernel * kernel * stage.input.channels * stage.output.channels;
        let products = weights as f64 * stage.output.pixels() as f64;
        let cached = match Winograd::spectrum_len_of(stage.input, stage.output, kernel, padding) {
            Some(spectrum) => spectrum <= CACHED,
            None => kernel == 1 || weights <= CACHED_DIRECT,
        };
        chain += if cached { products } else { FROM_MEMORY * products };
        graph += GRAPH * products;
    }
    chain <= graph
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Layer,
        common::{classifier, conv, linear},
    };

    fn chain(size: usize, channels: [usize; 2], kernel: usize) -> bool {
        let [inputs, outputs] = channels;
        let layers = vec![
            conv(3, inputs, 1, 0, 1),
            conv(inputs, outputs, kernel, kernel / 2, 1),
            Layer::Flatten,
            linear(outputs * size * size, 10),
        ];
        is_faster(&classifier("two", &[3, size, size], 10, layers))
    }

    #[test]
    fn layers_as_measured() {
        for (size, channels, kernel) in
            [(32, [32, 32], 3), (16, [64, 64], 3), (14, [32, 64], 5), (8, [256, 640], 1)]
        {
            assert!(chain(size, channels, kernel), "{size}: {channels:?}, {kernel}");
        }
        for (size, channels, kernel) in [(4, [128, 200], 3), (8, [64, 64], 7), (14, [512, 512], 3)] {
            assert!(!chain(size, channels, kernel), "{size}: {channels:?}, {kernel}");
        }
    }
}
