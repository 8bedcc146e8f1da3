//! Lloyd-Max levels of a Beta density. Encoder and decoder must compute the same bits.
//!
//! Logarithm and exponential are therefore spelled out in additions, multiplications and divisions of
//! f64, whose results IEEE 754 fixes; library functions differ between platforms.

use super::lloyd_max::{Histogram, lloyd_max};

/// Cells of [0, 1] on which the density is evaluated.
const CELLS: usize = 1024;

/// Most Lloyd-Max iterations.
const ITERATIONS: usize = 60;

/// Valid shape parameters in a stream.
pub const SHAPES: std::ops::RangeInclusive<f32> = 0.0625..=1024.0;

/// The 2^bits levels in [-1, 1] for Beta(`alpha`, `beta`) stretched from [0, 1] to [-1, 1].
pub fn levels(alpha: f32, beta: f32, bits: u8) -> Vec<f32> {
    let (a, b) = (f64::from(alpha) - 1.0, f64::from(beta) - 1.0);
    let log_density = |cell: usize| {
        let t = (cell as f64 + 0.5) / CELLS as f64;
        a * ln(t) + b * ln(1.0 - t)
    };
    let largest = (0..CELLS).map(log_density).fold(f64::NEG_INFINITY, f64::max);
    let mut histogram = Histogram::default();
    histogram.reset(CELLS);
    for cell in 0..CELLS {
        let u = (cell as f64 + 0.5) / (CELLS / 2) as f64 - 1.0;
        histogram.add(cell, exp(log_density(cell) - largest), u);
    }
    Histogram::accumulate(std::slice::from_mut(&mut histogram));
    let mut levels = vec![0.0; 1 << bits];
    lloyd_max(&histogram, &mut levels, bits > 1, ITERATIONS);
    // A narrow density leaves cells without mass, whose levels do not move; others may have passed them.
    levels.sort_by(f64::total_cmp);
    levels.iter().map(|level| *level as f32).collect()
}

/// Natural logarithm of a normal, positive number.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    let mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    // ln(m) = 2 artanh((m - 1) / (m + 1)); the argument is at most a third.
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let series = (0..20).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 1));
    2.0 * z * series + exponent as f64 * std::f64::consts::LN_2
}

/// e^x for x <= 0; zero below -700.
fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    // Halve the argument until the series is short, then square back.
    let small = x / 1024.0;
    let mut result = (1..=12).rev().fold(1.0, |sum, k| 1.0 + sum * small / f64::from(k));
    for _ in 0..10 {
        result *= result;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_exponential_are_right() {
        for i in 1..1000 {
            let x = f64::from(i) / 1000.0;
            assert!((ln(x) - x.ln()).abs() < 1e-12);
            let y = -f64::from(i) / 2.0;
            assert!((exp(y) / y.exp() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn levels_ascend_and_hold_zero() {
        for (alpha, beta) in [(0.0625, 0.0625), (0.7, 3.0), (5.0, 5.0), (1024.0, 1024.0)] {
            for bits in 1..=8 {
                let levels = levels(alpha, beta, bits);
                assert!(levels.windows(2).all(|pair| pair[0] <= pair[1]), "{alpha} {beta} {bits}");
                assert!(bits == 1 || levels.contains(&0.0));
            }
        }
    }
}
