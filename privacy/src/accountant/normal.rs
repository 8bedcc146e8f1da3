//! Tails of the normal distribution, accurate far out.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `P(N < x)` for a standard normal N, with full relative accuracy in the lower tail.
pub fn below(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

/// `P(a < N < b)`, from the tail in which both are.
pub fn between(a: f64, b: f64) -> f64 {
    if a > 0.0 { below(-a) - below(-b) } else { below(b) - below(a) }
}

/// The density at `x`.
pub fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// Mills' ratio `P(N > x) / density(x)`; infinite below -38.
pub fn mills(x: f64) -> f64 {
    if x < 20.0 {
        return below(-x) / density(x);
    }
    // Continued fraction of Laplace (Abramowitz and Stegun 26.2.14), backwards; at 20 and above, 40 levels are exact.
    let mut tail = x;
    for level in (1..=40).rev() {
        tail = x + f64::from(level) / tail;
    }
    tail.recip()
}

/// A distance in standard deviations beyond which less than `tail` lies: `P(N > t) <= e^(-t^2/2) / 2`.
pub fn distance(tail: f64) -> f64 {
    (-2.0 * (2.0 * tail).ln()).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mpmath, 30 digits: `quad(npdf, [x, inf]) / npdf(x)`.
    #[test]
    fn the_ratio_is_accurate_everywhere() {
        for (x, expected) in [
            (0.0, 1.253_314_137_315_500_3),
            (1.0, 0.655_679_542_418_798_5),
            (10.0, 0.099_028_596_471_731_93),
            (20.0, 0.049_875_925_981_836_78),
            (100.0, 0.009_999_000_299_850_105),
        ] {
            assert!((mills(x) / expected - 1.0).abs() < 1e-12, "{x}: {} {expected}", mills(x));
        }
    }

    #[test]
    fn a_distance_has_the_tail() {
        for tail in [0.4, 1e-5, 1e-40] {
            assert!(below(-distance(tail)) <= tail);
        }
    }
}
