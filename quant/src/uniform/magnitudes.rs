//! A histogram of magnitudes, from which the first step of a search is estimated.

use crate::{simd::vectorized, threads::Threads};

/// Sum of squares.
#[inline(always)]
pub fn energy(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (groups, rest) = x.as_chunks::<16>();
    for group in groups {
        for (sum, v) in sums.iter_mut().zip(group) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}

/// Histogram of magnitudes, in bins of a sixteenth of an octave.
#[derive(Debug, Default)]
pub struct Magnitudes {
    number: Vec<u32>,
    /// Values per sample.
    weight: f64,
    /// Squared norm of the values.
    pub energy: f64,
}

/// Shifts an f32's bits to a bin: exponent and four bits of the mantissa remain.
const BIN_SHIFT: u32 = 19;

/// Most values that are sampled.
const MAX_SAMPLE: usize = 1 << 18;

impl Magnitudes {
    /// Computes the energy of all values, summed over spans of `span`, and the histogram of a sample.
    pub fn measure(&mut self, x: &[f32], span: usize, threads: &Threads) {
        // Odd, so that the sample does not fall on the same columns of a matrix again and again.
        let stride = (x.len() / MAX_SAMPLE) | 1;
        let mut parts = Vec::new();
        // The numbers of the threads' spans are added as integers: their order does not matter.
        parts.resize_with(threads.count(), || vec![0u32; 1 << (31 - BIN_SHIFT)]);
        let mut energies = vec![0.0; x.len().div_ceil(span)];
        threads.run(
            &mut parts,
            x.chunks(span).zip(&mut energies).enumerate(),
            |number, (index, (x, sum))| {
                let before = index * span;
                for v in x.iter().skip(before.next_multiple_of(stride) - before).step_by(stride) {
                    number[((v.to_bits() & 0x7fff_ffff) >> BIN_SHIFT) as usize] += 1;
                }
                *sum = vectorized(
                    #[inline(always)]
                    || energy(x),
                );
            },
        );
        self.weight = stride as f64;
        self.energy = energies.iter().sum();
        self.number = parts.swap_remove(0);
        for part in parts {
            self.number.iter_mut().zip(part).for_each(|(number, part)| *number += part);
        }
    }

    /// Estimates the scalar step whose squared error is `goal`.
    pub fn step_for(&self, goal: f64) -> f64 {
        let highest = self.number.iter().rposition(|number| *number > 0).unwrap_or(0);
        let (mut low, mut high) = (bin_start(0), 4.0 * bin_start(highest + 1));
        if self.energy == 0.0 || high <= 0.0 {
            return 0.0;
        }
        low = low.max(high * 1e-12);
        for _ in 0..50 {
            let step = (low * high).sqrt();
            if self.error(step) > goal { high = step } else { low = step }
        }
        low
    }

    fn error(&self, step: f64) -> f64 {
        let threshold = 0.5 * step;
        let mut error = 0.0;
        for (bin, number) in self.number.iter().enumerate().filter(|(_, number)| **number > 0) {
            let (start, end) = (bin_start(bin), bin_start(bin + 1));
            let square = if end <= threshold { start * end } else { step * step / 12.0 };
            error += f64::from(*number) * square;
        }
        self.weight * error
    }
}

fn bin_start(bin: usize) -> f64 {
    f64::from(f32::from_bits((bin as u32) << BIN_SHIFT).min(f32::MAX))
}
