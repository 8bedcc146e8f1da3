//! The loss of many rounds: powers and products of Fourier transforms.

use super::{Direction, loss::Losses, tuning::Plan};
use crate::{PrivacyError, accountant::Rounds};
use rustfft::{FftPlanner, num_complex::Complex64};

/// Probabilities of composed losses in a window, tilted.
///
/// Sums outside the window reappear inside (the transform is circular): this only adds to delta. What is lost are sums
/// above the window, which `lost` bounds (Chernoff), and infinite losses, which it includes.
pub struct Composed {
    plan: Plan,
    /// Of `center + step * (first + i)`, tilted around the center.
    mass: Vec<f64>,
    first: i64,
    /// Logarithm of the factor that undoes the tilt at the center.
    log_scale: f64,
    lost: f64,
}

impl Composed {
    /// Composes all rounds.
    ///
    /// # Errors
    /// A grid that would be too large even with the coarsest useful step.
    pub fn new(rounds: &[Rounds], direction: Direction, plan: &Plan) -> Result<Self, PrivacyError> {
        let Plan { tilt, step, points, tail, .. } = *plan;
        let transform = FftPlanner::new().plan_fft_forward(points);
        let mut product = vec![Complex64::new(1.0, 0.0); points];
        let mut buffer = vec![Complex64::default(); points];
        let mut scratch = vec![Complex64::default(); transform.get_inplace_scratch_len()];
        let mut log_scale = 0.0;
        let mut infinite = 0.0;
        // Upper tails by Chernoff at a few larger tilts.
        let larger = [1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 9.0].map(|factor| factor * tilt);
        let mut moments = [0.0; 8];
        for group in rounds {
            let count = group.count as f64;
            let losses = Losses::new(&group.mechanism, direction, step, tail)?;
            infinite += count * losses.infinite;
            for (moment, &tilt) in moments.iter_mut().zip(&larger) {
                *moment += count * log_moment(&losses, step, tilt);
            }
            let log_moment = log_moment(&losses, step, tilt);
            log_scale += count * log_moment;
            buffer.fill(Complex64::default());
            for (index, &mass) in (losses.first..).zip(&losses.mass) {
                if mass > 0.0 {
                    let tilted = (mass.ln() + tilt * step * index as f64 - log_moment).exp();
                    buffer[index.rem_euclid(points as i64) as usize].re += tilted;
                }
            }
            transform.process_with_scratch(&mut buffer, &mut scratch);
            // The distribution is real: the upper half of the spectrum mirrors the lower.
            for (product, value) in product[..=points / 2].iter_mut().zip(&buffer) {
                let log_radius = 0.5 * count * value.norm_sqr().ln();
                *product *= if log_radius < -700.0 {
                    Complex64::default()
                } else {
                    Complex64::from_polar(log_radius.exp(), count * value.arg())
                };
            }
        }
        for index in 1..points / 2 {
            product[points - index] = product[index].conj();
        }
        drop((buffer, scratch));
        let inverse = FftPlanner::new().plan_fft_inverse(points);
        inverse.process(&mut product);
        let first = (plan.low / step).floor() as i64;
        let at = |i: usize| (first + i as i64).rem_euclid(points as i64) as usize;
        // Negative values are rounding.
        let mass: Vec<f64> = (0..points).map(|i| product[at(i)].re.max(0.0) / points as f64).collect();
        let top = step * (first + points as i64) as f64;
        let chernoff = larger.iter().zip(moments).map(|(tilt, moment)| moment - tilt * top);
        let lost = chernoff.fold(0.0, f64::min).exp() + infinite;
        if !log_scale.is_finite() || mass.iter().any(|mass| !mass.is_finite()) {
            return Err(PrivacyError::NotComputable("the losses are too large"));
        }
        Ok(Self { plan: *plan, mass, first, log_scale, lost })
    }

    /// Smallest epsilon at `delta`.
    ///
    /// # Errors
    /// Delta is not above what was cut off.
    pub fn epsilon(&self, delta: f64) -> Result<f64, PrivacyError> {
        if self.lost >= delta {
            return Err(PrivacyError::NotComputable("the tails of the loss are too heavy for this delta"));
        }
        let mut sums = Sums::default();
        for index in (0..self.mass.len()).rev() {
            // At epsilon = loss, losses above contribute; the sums hold exactly these.
            let offset = self.offset(index);
            if self.lost + sums.delta(offset) >= delta {
                return Ok((self.plan.center + sums.solve(delta - self.lost)).max(0.0));
            }
            if self.plan.center + offset <= 0.0 {
                // At epsilon 0, delta is already below what is wanted.
                return Ok(0.0);
            }
            sums.add(offset, self.scaled(index, offset));
        }
        // Even at the lower end of the window delta is below: a bound, not a tight one.
        Ok((self.plan.center + self.offset(0)).max(0.0))
    }

    /// Delta at `epsilon`, at most 1.
    pub fn delta(&self, epsilon: f64) -> f64 {
        let mut sums = Sums::default();
        let wanted = epsilon - self.plan.center;
        for index in (0..self.mass.len()).rev() {
            let offset = self.offset(index);
            if offset <= wanted {
                break;
            }
            sums.add(offset, self.scaled(index, offset));
        }
        (self.lost + sums.delta(wanted)).min(1.0)
    }

    /// Loss of a point relative to the center.
    fn offset(&self, index: usize) -> f64 {
        self.plan.step * (self.first + index as i64) as f64 - self.plan.center
    }

    /// Probability of a point, without the tilt.
    fn scaled(&self, index: usize, offset: f64) -> f64 {
        let mass = self.mass[index];
        if mass == 0.0 {
            return 0.0;
        }
        (mass.ln() + self.log_scale - self.plan.tilt * (offset + self.plan.center)).exp()
    }
}

/// `sum p` and `sum p e^-loss` over losses above an epsilon: `delta = sum p - e^epsilon sum p e^-loss`.
#[derive(Default)]
struct Sums {
    mass: f64,
    other: f64,
}

impl Sums {
    fn add(&mut self, offset: f64, mass: f64) {
        self.mass += mass;
        self.other += mass * (-offset).exp();
    }

    fn delta(&self, offset: f64) -> f64 {
        if self.other == 0.0 { self.mass } else { (self.mass - offset.exp() * self.other).max(0.0) }
    }

    /// The epsilon at which these sums give `delta`; minus infinity if they are less.
    fn solve(&self, delta: f64) -> f64 {
        if self.mass <= delta { f64::NEG_INFINITY } else { ((self.mass - delta) / self.other).ln() }
    }
}

/// `ln E[e^(tilt loss)]` over the finite losses.
fn log_moment(losses: &Losses, step: f64, tilt: f64) -> f64 {
    let exponent = |index: i64, mass: f64| mass.ln() + tilt * step * index as f64;
    let positive = || (losses.first..).zip(&losses.mass).filter(|(_, mass)| **mass > 0.0);
    let top = positive().map(|(index, &mass)| exponent(index, mass)).fold(f64::NEG_INFINITY, f64::max);
    top + positive().map(|(index, &mass)| (exponent(index, mass) - top).exp()).sum::<f64>().ln()
}
