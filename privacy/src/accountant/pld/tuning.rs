//! Where the composed loss is computed: tilt, window and grid. Nothing here affects whether the result is a bound,
//! only how tight it is.

use super::{
    Direction,
    loss::{Losses, MAX_LOSSES},
};
use crate::{
    PrivacyError,
    accountant::{MIN_DELTA, Rounds, moment::log_moment},
};

/// Most grid points of the transform: 16 bytes each, three times.
const MAX_POINTS: usize = 1 << 21;
/// Part of delta that tails cut off may take.
const TAIL_SHARE: f64 = 1e-6;
/// Part of the tilted mass that may be outside the window at each end.
const WRAPPED_SHARE: f64 = 1e-9;
/// Aim for the error of epsilon, relative below 1 and above 10.
const TOLERANCE: f64 = 1e-4;

/// Tilt, window and grid of one composition.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The distribution is multiplied by `e^(tilt loss)`, so that the losses near epsilon become the likely ones and
    /// the rounding of the transform is relative to delta and not to 1.
    pub tilt: f64,
    /// Loss around which the tilted distribution lies.
    pub center: f64,
    /// Smallest loss of the window.
    pub low: f64,
    /// Distance of two grid points.
    pub step: f64,
    /// Grid points, a power of two.
    pub points: usize,
    /// Probability that may be cut off from one round at each end.
    pub tail: f64,
}

/// Logarithm of the moment generating function of all rounds' loss.
struct Cumulant<'a>(&'a [Rounds], Direction);

impl Cumulant<'_> {
    fn at(&self, tilt: f64) -> f64 {
        let order = match self.1 {
            Direction::Remove => 1.0 + tilt,
            Direction::Add => -tilt,
        };
        self.0.iter().map(|group| group.count as f64 * log_moment(&group.mechanism, order)).sum()
    }

    /// First derivative: mean of the tilted loss.
    fn slope(&self, tilt: f64) -> f64 {
        let h = 1e-3 * tilt;
        (self.at(tilt + h) - self.at(tilt - h)) / (2.0 * h)
    }

    /// The largest tilt at which `fits` holds, by doubling and bisection; `fits` holds for small tilts.
    fn largest_tilt(&self, fits: impl Fn(f64) -> bool) -> f64 {
        let mut low = 1e-3;
        // Not a whole number: sums over whole orders take as many terms.
        let mut high = 1.37;
        while high < 1e9 && fits(high) {
            low = high;
            high *= 2.0;
        }
        for _ in 0..16 {
            let middle = f64::sqrt(low * high);
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    }
}

impl Plan {
    /// For finding epsilon at `delta`: the tilt is that of the Chernoff bound which gives this delta.
    pub fn for_delta(rounds: &[Rounds], direction: Direction, delta: f64) -> Result<Self, PrivacyError> {
        let cumulant = Cumulant(rounds, direction);
        let tilt = cumulant.largest_tilt(|tilt| cumulant.at(tilt) - tilt * cumulant.slope(tilt) > delta.ln());
        Self::new(&cumulant, tilt, cumulant.slope(tilt), delta)
    }

    /// For finding delta at `epsilon`: the tilt whose mean is epsilon.
    pub fn for_epsilon(rounds: &[Rounds], direction: Direction, epsilon: f64) -> Result<Self, PrivacyError> {
        let cumulant = Cumulant(rounds, direction);
        // Beyond the smallest delta there is nothing to resolve.
        let tilt = cumulant.largest_tilt(|tilt| {
            let slope = cumulant.slope(tilt);
            slope < epsilon && cumulant.at(tilt) - tilt * slope > MIN_DELTA.ln()
        });
        let chernoff = (cumulant.at(tilt) - tilt * epsilon).clamp(MIN_DELTA.ln(), 0.0).exp();
        Self::new(&cumulant, tilt, epsilon, chernoff)
    }

    fn new(cumulant: &Cumulant, tilt: f64, center: f64, delta: f64) -> Result<Self, PrivacyError> {
        let at_tilt = cumulant.at(tilt);
        // Chernoff: outside `low..high` there is less than a share of the tilted mass, which the circular transform
        // would move to the other end and there scale up, and above `high` less than a share of delta.
        let (mut high, mut tilted_high, mut low) = (f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY);
        for quarter in -24..=12 {
            let more = tilt * (f64::from(quarter) / 4.0).exp2();
            let above = cumulant.at(tilt + more);
            high = high.min((above - (TAIL_SHARE * delta).ln()) / (tilt + more));
            tilted_high = tilted_high.min((above - at_tilt - WRAPPED_SHARE.ln()) / more);
            low = low.max((WRAPPED_SHARE.ln() + at_tilt - cumulant.at(tilt - more)) / more);
        }
        let high = high.max(tilted_high);
        if !(high - low).is_finite() {
            return Err(PrivacyError::NotComputable("the losses are too large"));
        }
        // The window holds the center, with room for a solution below and above.
        let spread = (high - low).max(1e-12);
        let (low, high) = (low.min(center - 0.1 * spread), high.max(center + 0.1 * spread));
        let total: f64 = cumulant.0.iter().map(|group| group.count as f64).sum();
        // Splitting a loss onto two grid points adds at most `step^2 / 4` to its variance, `step^2 / 6` on average;
        // that moves epsilon by about half of `tilt + 1` times the sum.
        let aim = TOLERANCE * center.abs().clamp(1e-6, 1.0).max(0.1 * center.abs());
        let tail = TAIL_SHARE * delta / total;
        let span = |group: &Rounds| Losses::span(&group.mechanism, cumulant.1, tail);
        let coarsest = cumulant.0.iter().map(span).fold(0.0, f64::max) / (0.99 * MAX_LOSSES);
        let finest = (12.0 * aim / (total * (1.0 + tilt))).sqrt().max(coarsest);
        let wanted = ((high - low) / finest).clamp(4096.0, MAX_POINTS as f64);
        let points = (wanted.ceil() as usize).next_power_of_two().min(MAX_POINTS);
        let step = ((high - low) / points as f64).max(coarsest);
        Ok(Self { tilt, center, low, step, points, tail })
    }
}
