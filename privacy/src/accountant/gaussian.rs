//! The Gaussian mechanism without subsampling: exact, in closed form.

use super::normal::{density, mills};

/// Smallest delta at `epsilon` of a Gaussian mechanism with noise multiplier `sigma`.
///
/// Balle, Wang: "Improving the Gaussian mechanism for differential privacy" (2018), theorem 8, with the second
/// term's exponential absorbed by Mills' ratio, so that nothing overflows: both terms have the factor `density(a)`.
pub fn delta(sigma: f64, epsilon: f64) -> f64 {
    let mean = sigma.recip();
    let a = 0.5 * mean - epsilon / mean;
    if a > 30.0 {
        return 1.0;
    }
    (density(a) * (mills(-a) - mills(mean - a))).clamp(0.0, 1.0)
}

/// Smallest epsilon at `delta`, by bisection; 0 if even that needs less.
pub fn epsilon(sigma: f64, wanted: f64) -> f64 {
    if delta(sigma, 0.0) <= wanted {
        return 0.0;
    }
    let mut low = 0.0;
    let mut high = 1e-6 / sigma;
    while delta(sigma, high) > wanted {
        low = high;
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if delta(sigma, middle) > wanted { low = middle } else { high = middle }
    }
    high
}
