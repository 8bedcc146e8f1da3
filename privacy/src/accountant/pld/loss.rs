//! The privacy loss of one round, on a grid.

use super::Direction;
use crate::{
    PrivacyError,
    accountant::{
        Mechanism,
        moment::loss,
        normal::{below, between, density, distance},
    },
};

/// Nodes and weights of the Gauss-Legendre rule with five points on [0, 1].
const RULE: [(f64, f64); 5] = [
    (0.046_910_077_030_668_004, 0.118_463_442_528_094_54),
    (0.230_765_344_947_158_45, 0.239_314_335_249_683_23),
    (0.5, 0.284_444_444_444_444_44),
    (0.769_234_655_052_841_5, 0.239_314_335_249_683_23),
    (0.953_089_922_969_332, 0.118_463_442_528_094_54),
];
/// Most grid points of one round's loss.
pub const MAX_LOSSES: f64 = 4e6;
/// Pieces into which a cell is cut for the rule, before differences of distribution functions take over.
const MAX_PIECES: f64 = 8.0;

/// Probabilities of the losses `step * (first + i)`.
///
/// It dominates the true distribution: every delta is at least as large. A loss between two grid points is split onto
/// both such that the probability under the other neighbour is kept as well (Doroshenko, Ghazi, Kamath, Kumar,
/// Manurangsi: "Connect the dots" 2022, algorithm 1, in the form of moments instead of deltas). A loss below the grid
/// becomes its first point, one above it infinite.
#[derive(Debug)]
pub struct Losses {
    pub first: i64,
    pub mass: Vec<f64>,
    pub infinite: f64,
}

impl Losses {
    /// Difference of the greatest and the least loss on a grid.
    pub fn span(mechanism: &Mechanism, direction: Direction, tail: f64) -> f64 {
        let (least, greatest) = Round::new(mechanism, direction).losses(tail);
        greatest - least
    }

    /// Discretises one round; at most `tail` of the probability is off the grid at each end.
    ///
    /// # Errors
    /// The losses need more than [`MAX_LOSSES`] grid points.
    pub fn new(
        mechanism: &Mechanism,
        direction: Direction,
        step: f64,
        tail: f64,
    ) -> Result<Self, PrivacyError> {
        let round = Round::new(mechanism, direction);
        let (least, greatest) = round.losses(tail);
        let (low, high) = ((least / step).floor(), (greatest / step).ceil());
        if !(high - low <= MAX_LOSSES && low.abs() < 1e15 && high.abs() < 1e15) {
            return Err(PrivacyError::NotComputable(
                "the loss of one round spans too many steps of the grid",
            ));
        }
        let (first, cells) = (low as i64, (high - low) as usize);
        let mut mass = vec![0.0; cells + 1];
        let mut left = round.output(low * step);
        mass[0] = round.probability(round.least, left);
        for cell in 0..cells {
            let base = (first + cell as i64) as f64 * step;
            let right = round.output(base + step);
            let (probability, up) = round.cell(left, right, base, step);
            mass[cell] += probability - up;
            mass[cell + 1] += up;
            left = right;
        }
        Ok(Self { first, mass, infinite: round.probability(left, round.greatest) })
    }
}

/// One round seen from one direction: its loss increases along the output from `least` to `greatest`.
struct Round {
    sigma: f64,
    q: f64,
    direction: Direction,
    least: f64,
    greatest: f64,
}

impl Round {
    fn new(mechanism: &Mechanism, direction: Direction) -> Self {
        let Mechanism { noise_multiplier: sigma, sampling_rate: q } = *mechanism;
        let (least, greatest) = match direction {
            Direction::Remove => (f64::NEG_INFINITY, f64::INFINITY),
            Direction::Add => (f64::INFINITY, f64::NEG_INFINITY),
        };
        Self { sigma, q, direction, least, greatest }
    }

    /// Least and greatest loss; beyond each there is at most `tail` of the probability.
    fn losses(&self, tail: f64) -> (f64, f64) {
        let reach = distance(tail) * self.sigma;
        // Of a mixture's tails, one belongs to the client's component around 1.
        let (from, to) = match self.direction {
            Direction::Remove => (-reach, 1.0 + reach),
            Direction::Add => (reach, -reach),
        };
        (self.loss(from), self.loss(to))
    }

    /// Loss of the output z.
    fn loss(&self, z: f64) -> f64 {
        let ratio = loss(self.q, (2.0 * z - 1.0) / (2.0 * self.sigma * self.sigma));
        match self.direction {
            Direction::Remove => ratio,
            Direction::Add => -ratio,
        }
    }

    /// Output with a loss; infinite for a loss that none has.
    fn output(&self, loss: f64) -> f64 {
        let ratio = match self.direction {
            Direction::Remove => loss,
            Direction::Add => -loss,
        };
        let u = if self.q == 1.0 {
            ratio
        } else if ratio > 30.0 {
            ratio - self.q.ln() + (-(1.0 - self.q) * (-ratio).exp()).ln_1p()
        } else {
            let x = ratio.exp_m1() / self.q;
            if x <= -1.0 {
                return f64::NEG_INFINITY;
            }
            x.ln_1p()
        };
        self.sigma * self.sigma * u + 0.5
    }

    /// Probability of an output between two, in either order.
    fn probability(&self, one: f64, other: f64) -> f64 {
        let (a, b) = (one.min(other) / self.sigma, one.max(other) / self.sigma);
        match self.direction {
            Direction::Remove => (1.0 - self.q) * interval(a, b) + self.q * self.shifted(a, b),
            Direction::Add => interval(a, b),
        }
    }

    /// The same for the other neighbour.
    fn other_probability(&self, one: f64, other: f64) -> f64 {
        let (a, b) = (one.min(other) / self.sigma, one.max(other) / self.sigma);
        match self.direction {
            Direction::Remove => interval(a, b),
            Direction::Add => (1.0 - self.q) * interval(a, b) + self.q * self.shifted(a, b),
        }
    }

    fn shifted(&self, a: f64, b: f64) -> f64 {
        interval(a - self.sigma.recip(), b - self.sigma.recip())
    }

    fn probability_density(&self, z: f64) -> f64 {
        let plain = density(z / self.sigma) / self.sigma;
        match self.direction {
            Direction::Remove => {
                (1.0 - self.q) * plain + self.q * density((z - 1.0) / self.sigma) / self.sigma
            }
            Direction::Add => plain,
        }
    }

    /// Probability of a cell, and the part of it for the upper grid point: `(1 - e^(base - loss)) / (1 - e^-step)`.
    fn cell(&self, left: f64, right: f64, base: f64, step: f64) -> (f64, f64) {
        let width = right - left;
        let full = -(-step).exp_m1();
        let pieces = (width.abs() / (0.25 * self.sigma.min(self.sigma * self.sigma))).ceil();
        if pieces > MAX_PIECES || !pieces.is_finite() {
            // Wide cells are where little depends on the output; both probabilities are differences there.
            let probability = self.probability(left, right);
            let up = (probability - base.exp() * self.other_probability(left, right)) / full;
            return (probability, up.clamp(0.0, probability));
        }
        let (mut probability, mut up) = (0.0, 0.0);
        let piece = width / pieces.max(1.0);
        for index in 0..pieces as usize {
            for (node, weight) in RULE {
                let z = left + piece * (index as f64 + node);
                let mass = self.probability_density(z) * weight * piece.abs();
                probability += mass;
                up += mass * (-(base - self.loss(z)).exp_m1() / full).clamp(0.0, 1.0);
            }
        }
        (probability, up)
    }
}

/// `P(a < N < b)`, infinite ends included.
fn interval(a: f64, b: f64) -> f64 {
    if a == f64::NEG_INFINITY {
        below(b)
    } else if b == f64::INFINITY {
        below(-a)
    } else {
        between(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_probabilities_are_kept() {
        for direction in [Direction::Remove, Direction::Add] {
            for (sigma, q) in [(1.0, 0.01), (0.3, 0.5), (20.0, 1e-4), (0.8, 1.0), (1.3, 0.999_999)] {
                let mechanism = Mechanism::new(sigma, q).unwrap();
                let step = 1e-3 * (q / sigma).min(1.0);
                let losses = Losses::new(&mechanism, direction, step, 1e-14).unwrap();
                let total: f64 = losses.mass.iter().sum::<f64>() + losses.infinite;
                assert!((total - 1.0).abs() < 1e-11, "{direction:?} {sigma} {q}: {total}");
                // E[e^-loss] is the probability under the other neighbour.
                let other: f64 = (losses.first..)
                    .zip(&losses.mass)
                    .map(|(index, mass)| mass * (-(index as f64) * step).exp())
                    .sum();
                // The cut below the grid takes more from the other neighbour if that is the one with the client.
                let cut = if direction == Direction::Add { 1e-5 } else { 1e-11 };
                assert!(other < 1.0 + 1e-11 && other > 1.0 - cut, "{direction:?} {sigma} {q}: {other}");
            }
        }
    }

    #[test]
    fn a_grid_that_is_too_fine_is_refused() {
        let mechanism = Mechanism::new(0.01, 0.5).unwrap();
        assert!(Losses::new(&mechanism, Direction::Remove, 1e-6, 1e-10).is_err());
    }
}
