//! Dropout of channels-last activations with masks that are counted channels first.

use crate::{
    dropout::Mask,
    fused::{parallel::Threads, simd},
};
use pulp::{Simd, WithSimd};

/// What one value takes, in multiply-adds: for cutting work over threads.
const COST: usize = 16;

/// Values of a row where the mask counts them in the order in which they lie.
const ROW: usize = 64;

/// `y = x` times the mask. Samples have `pixels` rows of `channels` values, and the mask goes over a sample
/// channel by channel; with one pixel a sample, that is the order in which values lie.
pub(crate) fn apply(mask: Mask, pixels: usize, channels: usize, x: &[f32], y: &mut [f32], threads: &Threads) {
    let row = if pixels == 1 { ROW } else { channels };
    let rows = |first: usize, y: &mut [f32]| {
        let x = &x[first * row..][..y.len()];
        simd::run(Apply { mask, pixels, channels, row, first, x, y });
    };
    if y.len().is_multiple_of(row) && !y.is_empty() {
        threads.rows(y, row, row * COST, rows);
    } else {
        rows(0, y);
    }
}

struct Apply<'a> {
    mask: Mask,
    pixels: usize,
    channels: usize,
    row: usize,
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { mask, pixels, channels, row, first, x, y } = self;
        for (k, (y, x)) in y.chunks_mut(row).zip(x.chunks(row)).enumerate() {
            let at = first + k;
            let start = match pixels {
                1 => at * row,
                _ => at / pixels * pixels * channels + at % pixels,
            };
            // No division and no branch: the compiler makes vectors of it.
            for (c, (y, x)) in y.iter_mut().zip(x).enumerate() {
                *y = *x * mask.at(start + c * pixels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::vector::tests::noise, *};
    use crate::dropout::MaskSeed;

    #[test]
    fn every_value_has_the_factor_of_its_place_channels_first() {
        let mask = MaskSeed { seed: 3, step: 1, first: 0 }.mask(0.4, 2, 1);
        for (samples, pixels, channels) in [(2, 1, 5), (64, 1, 700), (3, 35, 7), (5, 900, 33), (2, 9, 1)] {
            let x = noise(samples * pixels * channels, 1);
            for threads in [1, 2] {
                let threads = Threads::new(threads).unwrap();
                let mut y = vec![0.0; x.len()];
                threads.enter(|| apply(mask, pixels, channels, &x, &mut y, &threads));
                for (at, (y, x)) in y.iter().zip(&x).enumerate() {
                    let (row, channel) = (at / channels, at % channels);
                    let index = (row / pixels * channels + channel) * pixels + row % pixels;
                    assert_eq!(*y, x * mask.at(index), "{samples} {pixels} {channels}: {at}");
                }
            }
        }
    }
}
