//! StocQ: unbiased stochastic rounding (QSGD, Alistarh et al. 2017, section 3) on LAQ's uniform grid.
//!
//! The grid spans plus and minus the largest magnitude of each block, so no value is clipped. From 2
//! bits on it has an odd number of levels, so that a zero stays a zero; at 1 bit there are the two ends.

use super::{QuantizerBuffers, TensorParams, inverse, scale_table::scale_table, spans, symmetric_grid};
use crate::{
    limits::BLOCK,
    simd::{floor_to_integer, vectorized},
};

/// The side information and the levels are those of the symmetric grid.
pub use super::symmetric_grid::parse;

pub fn quantize(x: &[f32], params: &TensorParams<'_>, buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    let table = scale_table(params.max_abs);
    side.extend_from_slice(&params.max_abs.to_le_bytes());
    // Codes run from 0 to `top`; the value zero is at `half`.
    let top = symmetric_grid::top_code(params.bits);
    let half = symmetric_grid::half_width(params.bits);
    let random = Random::new(params.seed);
    let QuantizerBuffers { codes, scales, .. } = buffers;
    params.threads.each(spans(x, params, BLOCK, codes, scales), |mut span| {
        vectorized(
            #[inline(always)]
            || {
                span.for_each_scaled_block(
                    &table,
                    #[inline(always)]
                    |offset, scale, values, codes| {
                        let factor = half * inverse(scale);
                        for (i, (v, code)) in (0u32..).zip(values.iter().zip(codes)) {
                            let position = v * factor + half + random.unit(offset as u32 + i);
                            // Rounding errors of f32 can carry a block's extremes past the last code, or
                            // below the first: a code of -1 would wrap around to the other end.
                            let position = if position < top as f32 { position } else { top as f32 };
                            let position = if position > 0.0 { position } else { 0.0 };
                            *code = floor_to_integer(position) as u8;
                        }
                    },
                );
            },
        );
    });
}

/// Random numbers by index: a hash of seed and position, so that blocks can be computed in any order and
/// in parallel.
#[derive(Clone, Copy)]
struct Random {
    first: u32,
    second: u32,
}

impl Random {
    fn new(seed: u64) -> Self {
        // SplitMix64 (Steele et al. 2014): adjacent seeds must not give correlated numbers.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        Self { first: z as u32, second: (z >> 32) as u32 }
    }

    /// Uniform in [0, 1) with 24 bits.
    #[inline(always)]
    fn unit(self, index: u32) -> f32 {
        let mut h = index ^ self.first;
        h = (h ^ h >> 16).wrapping_mul(0x7feb_352d);
        h = (h ^ h >> 15).wrapping_add(self.second).wrapping_mul(0x846c_a68b);
        h ^= h >> 16;
        (h >> 8) as i32 as f32 * (1.0 / (1 << 24) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_uniform_and_differ_by_seed() {
        for seed in 0..20 {
            let random = Random::new(seed);
            let other = Random::new(seed + 1);
            let n = 20_000;
            let mean = (0..n).map(|i| f64::from(random.unit(i))).sum::<f64>() / f64::from(n);
            assert!((mean - 0.5).abs() < 4.0 * (1.0 / 12.0f64 / f64::from(n)).sqrt());
            let product = |i| f64::from(random.unit(i) - 0.5) * f64::from(other.unit(i) - 0.5);
            let covariance = (0..n).map(product).sum::<f64>() / f64::from(n);
            assert!(covariance.abs() < 4.0 / 12.0 / f64::from(n).sqrt());
        }
    }
}
