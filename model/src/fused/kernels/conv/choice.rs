//! Which way a convolution is computed.

use super::{
    Geometry,
    pass::EDGE,
    winograd::{SPECTRUM, Winograd},
};
use crate::fused::kernels::tiles::LANES;

/// Multiply-adds in the time that a value of a spectrum takes to and fro. Measured on one core of an EPYC with
/// AVX-512, as the next one.
const PER_VALUE: usize = 24;

/// Tiles of an image whose products take as long as its share of the weights' transforms, in a batch of 64.
const WEIGHTS: usize = 1;

/// Most values of the spectra of weights: 128 MiB.
const MOST_WEIGHTS: usize = 1 << 25;

/// Most tiles side by side: they are worked on together.
const MOST_ACROSS: usize = 256;

/// An estimate from shapes alone: the choice is part of the result, to the last bit.
pub(super) fn winograd_is_faster(geometry: &Geometry) -> bool {
    let [height, width, _] = geometry.output_shape();
    let across = width.div_ceil(EDGE);
    let weights = geometry.inputs.saturating_mul(geometry.outputs).saturating_mul(SPECTRUM);
    if !Winograd::applies(geometry) || weights > MOST_WEIGHTS || across > MOST_ACROSS {
        return false;
    }
    let [inputs, outputs] =
        [geometry.inputs, geometry.outputs].map(|channels| channels.next_multiple_of(LANES));
    // Products with padding are left out.
    let [down, right] = geometry.axes().map(|axis| {
        let taps = axis.forward().into_iter().map(|class| class.taps.len() * class.positions.len());
        taps.sum::<usize>()
    });
    let tiles = height.div_ceil(EDGE) * across;
    let direct = (down * right) as f64 * (geometry.inputs * outputs) as f64;
    let product = (tiles + WEIGHTS) as f64 * (geometry.inputs * outputs) as f64;
    let transforms = (tiles * PER_VALUE * (inputs + outputs)) as f64;
    SPECTRUM as f64 * (product + transforms) < direct
}

#[cfg(test)]
mod tests {
    use super::{super::tests::square, *};

    #[test]
    fn layers_as_measured() {
        let faster = |size, inputs, outputs| winograd_is_faster(&square(size, inputs, outputs, 3));
        for (size, inputs, outputs) in
            [(16, 64, 128), (8, 256, 256), (4, 512, 512), (16, 32, 32), (8, 64, 64)]
        {
            assert!(faster(size, inputs, outputs), "{size}: {inputs} to {outputs}");
        }
        for (size, inputs, outputs) in [(32, 3, 64), (2, 512, 512), (3, 256, 256), (8, 16, 16), (4, 16, 32)] {
            assert!(!faster(size, inputs, outputs), "{size}: {inputs} to {outputs}");
        }
        assert!(!faster(16, 2048, 2048));
        assert!(!winograd_is_faster(&Geometry { stride: [2, 2], ..square(16, 64, 64, 3) }));
        assert!(!winograd_is_faster(&Geometry { groups: 2, ..square(16, 64, 64, 3) }));
        assert!(!winograd_is_faster(&Geometry { dilation: [2, 1], ..square(16, 64, 64, 3) }));
    }
}
