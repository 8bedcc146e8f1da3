//! Moments of the likelihood ratio of one round, from which both accountants begin.

use super::Mechanism;
use std::f64::consts::PI;

/// Panels of the coarse pass of the quadrature at most.
const MAX_PANELS: usize = 200_000;
/// The integrand is ignored where it is below this logarithm, relative to its maximum.
const NEGLIGIBLE: f64 = -60.0;

/// `ln A(order)`, where `A(order) = E[((1 - q) + q e^((2z - 1) / 2 sigma^2))^order]` and z is N(0, sigma^2).
///
/// Equation (4) of Mironov, Talwar, Zhang (2019), for any real order. Orders above 1 are divergences of the data with
/// the client from those without; `A(-order)` belongs to the other direction.
pub fn log_moment(mechanism: &Mechanism, order: f64) -> f64 {
    let Mechanism { noise_multiplier: sigma, sampling_rate: q } = *mechanism;
    if order == 0.0 || order == 1.0 {
        return 0.0;
    }
    if q == 1.0 {
        // E[e^(order u)] of a normal u with mean -1 / 2 sigma^2 and variance 1 / sigma^2.
        return order * (order - 1.0) / (2.0 * sigma * sigma);
    }
    if order > 0.0 && order.fract() == 0.0 && order <= 1e7 {
        return integer(sigma, q, order);
    }
    quadrature(sigma, q, order)
}

/// `sum_k C(a, k) (1 - q)^(a - k) q^k e^((k^2 - k) / 2 sigma^2)`, section 3.3 of Mironov, Talwar, Zhang (2019).
///
/// The binomial weights add up to 1, which is subtracted term by term: moments barely above 1 keep all their digits.
fn integer(sigma: f64, q: f64, order: f64) -> f64 {
    let (log_q, log_rest) = (q.ln(), (-q).ln_1p());
    let mut sum = LogSum::default();
    let mut log_binomial = order.ln();
    for k in 2..=order as u64 {
        let k = k as f64;
        log_binomial += ((order - k + 1.0) / k).ln();
        let weight = log_binomial + k * log_q + (order - k) * log_rest;
        sum.add(weight + log_expm1(k * (k - 1.0) / (2.0 * sigma * sigma)));
    }
    log_1p_exp(sum.log())
}

/// The same by the trapezoidal rule, for orders for which the sum is an alternating series.
///
/// With `x = q (e^u - 1)`, whose expectation is 0, `A - 1` is the expectation of `(1 + x)^a - 1 - a x`, which never
/// changes sign (Bernoulli's inequality): no cancellation, whatever q is. The rule converges exponentially, because
/// the integrand is analytic within `pi sigma^2` of the real axis and falls off like a Gaussian (Trefethen, Weideman
/// 2014, theorem 5.1).
fn quadrature(sigma: f64, q: f64, order: f64) -> f64 {
    let variance = sigma * sigma;
    let log_density = |z: f64| -0.5 * z * z / variance - 0.5 * (2.0 * PI * variance).ln();
    let log_integrand = |z: f64| log_bernoulli(q, (2.0 * z - 1.0) / (2.0 * variance), order) + log_density(z);
    // Mass is around 0, around 2 (small x: its square), and up to the order.
    let low = leftmost_peak(sigma, q, order) - 14.0 * sigma;
    let high = order.max(2.0) + 14.0 * sigma;
    let coarse = (0.5 * sigma).max((high - low) / MAX_PANELS as f64);
    let panels = ((high - low) / coarse).ceil() as usize;
    let at = |panel: usize| low + coarse * panel as f64;
    let heights: Vec<f64> = (0..=panels).map(|panel| log_integrand(at(panel))).collect();
    let top = heights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // A whole number of steps in a panel, so that the steps lie on one grid.
    let steps = (coarse / (0.4 * variance).min(0.5 * sigma)).ceil().clamp(1.0, 1000.0) as usize;
    let step = coarse / steps as f64;
    let mut sum = 0.0;
    for panel in 0..panels {
        let from = panel.saturating_sub(2);
        let near = &heights[from..(panel + 4).min(panels + 1)];
        if near.iter().all(|&height| height < top + NEGLIGIBLE) {
            continue;
        }
        for index in 0..steps {
            sum += (log_integrand(at(panel) + step * index as f64) - top).exp();
        }
    }
    let log_excess = top + (sum * step).ln();
    if (0.0..1.0).contains(&order) { (-log_excess.exp()).max(-1.0).ln_1p() } else { log_1p_exp(log_excess) }
}

/// A bound from below for the maxima of the integrand: the Gaussian's slope is steeper left of it.
fn leftmost_peak(sigma: f64, q: f64, order: f64) -> f64 {
    let mut bound = order.min(0.0);
    while bound < -sigma {
        let u = (bound - 1.0) / (2.0 * sigma * sigma);
        let client = (q.ln() + u - loss(q, u)).exp();
        if -order * client > -0.5 * bound {
            break;
        }
        bound *= 0.5;
    }
    bound
}

/// `ln |(1 + x)^order - 1 - order x|` with `x = q (e^u - 1)`.
fn log_bernoulli(q: f64, u: f64, order: f64) -> f64 {
    let log_ratio = loss(q, u);
    // Beyond this, e^u or a power overflows; the 1 does not count there.
    if order * log_ratio > 300.0 || u > 300.0 {
        let (power, linear) = (order * log_ratio, log_ratio + order.abs().ln());
        return match order {
            _ if order < 0.0 => power.max(linear),
            _ => power.max(linear) + (-(power.min(linear) - power.max(linear)).exp()).ln_1p(),
        };
    }
    let x = q * u.exp_m1();
    if (order * x).abs() < 1e-2 && x.abs() < 1e-2 {
        // Binomial series from the square on.
        let mut term = 0.5 * order * (order - 1.0) * x * x;
        let mut sum = term;
        for k in 3..12 {
            term *= (order - f64::from(k) + 1.0) / f64::from(k) * x;
            sum += term;
        }
        return sum.abs().ln();
    }
    ((order * log_ratio).exp_m1() - order * x).abs().ln()
}

/// `ln((1 - q) + q e^u)`: the privacy loss of the output with `u = (2z - 1) / 2 sigma^2`.
pub fn loss(q: f64, u: f64) -> f64 {
    if q == 1.0 {
        u
    } else if u > 30.0 {
        u + q.ln() + ((1.0 - q) / q * (-u).exp()).ln_1p()
    } else {
        (q * u.exp_m1()).ln_1p()
    }
}

fn log_expm1(x: f64) -> f64 {
    if x > 40.0 { x } else { x.exp_m1().ln() }
}

fn log_1p_exp(x: f64) -> f64 {
    if x > 40.0 { x } else { x.exp().ln_1p() }
}

/// A sum of positive numbers given by their logarithms.
struct LogSum {
    top: f64,
    sum: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        Self { top: f64::NEG_INFINITY, sum: 0.0 }
    }
}

impl LogSum {
    fn add(&mut self, log: f64) {
        if log == f64::NEG_INFINITY {
            return;
        }
        if log > self.top {
            self.sum = self.sum * (self.top - log).exp() + 1.0;
            self.top = log;
        } else {
            self.sum += (log - self.top).exp();
        }
    }

    fn log(&self) -> f64 {
        self.top + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mpmath, 30 digits: `log(quad(((1-q) + q e^((2z-1)/(2 s^2)))^a npdf(z, 0, s)))`.
    #[test]
    fn moments_have_all_their_digits() {
        for (sigma, q, order, expected) in [
            (2.5, 0.01, 1.5, 6.500_708_971_880_397_1e-6),
            (0.3, 0.5, 1.1, 0.291_178_189_695_595_7),
            (0.3, 0.001, 9.7, 401.828_107_127_206_6),
            (20.0, 1e-6, 3.3, 9.499_369_294_929_67e-15),
            (1.0, 0.999, 2.5, 1.873_057_231_301_836_7),
            (0.05, 1e-4, 1.7, 222.342_421_367_640_5),
            (1000.0, 0.5, 10.9, 1.348_878_507_083_512_8e-5),
            (0.8, 0.01, 33.0, 673.029_383_862_392_9),
            (2.0, 1e-9, 40.0, 2.215_398_276_338_851_3e-16),
            (1.1, 0.02, -7.3, 0.012_210_025_048_685_883),
            (1.1, 0.3, 0.4, -0.009_524_214_559_842_951),
            (0.5, 1e-3, -40.5, 0.010_059_984_720_508_526),
        ] {
            let found = log_moment(&Mechanism::new(sigma, q).unwrap(), order);
            assert!((found / expected - 1.0).abs() < 1e-10, "{sigma} {q} {order}: {found} {expected}");
        }
    }

    #[test]
    fn the_quadrature_agrees_with_the_sum() {
        for sigma in [0.05, 0.3, 1.0, 7.0, 1e4] {
            for q in [1e-9, 1e-3, 0.3, 0.999] {
                for order in [2.0, 3.0, 17.0] {
                    let (sum, quadrature) = (integer(sigma, q, order), quadrature(sigma, q, order));
                    assert!((quadrature / sum - 1.0).abs() < 1e-9, "{sigma} {q} {order}: {quadrature} {sum}");
                }
            }
        }
    }
}
