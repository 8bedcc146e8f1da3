//! From values to streams: finds the step that reaches the goal.

use super::{Side, offsets::Centroids, round::round, trellis::Viterbi};
use crate::{
    Scheme,
    entropy::{Coder, Grid, Indices, MAX_MAGNITUDE, Machine, Signs},
    header::{Coding, Header, seal},
    simd::vectorized,
};

/// What the step is chosen for.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// Squared error, at most, relative to the squared norm of the update; the fewest bytes.
    Nmse(f64),
    /// Bytes of all streams, at most; the least error.
    Bytes(usize),
}

/// The step of the trellis, relative to the scalar one of the same error.
const TRELLIS_STEP: f64 = 0.62;

/// A pass whose error lies between this part of the goal and the goal is good enough.
const CLOSE: f64 = 0.975;

/// The part of the goal that the first pass aims at.
const FIRST_AIM: f64 = 0.99;

/// Most passes in search of the step.
const PASSES: usize = 12;

/// Memory that the encoder reuses.
#[derive(Debug, Default)]
pub struct Search {
    magnitudes: Magnitudes,
    indices: Vec<i32>,
    signs: Signs,
    viterbi: Viterbi,
    coder: Coder,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Goes into the headers; decodes to nothing.
    pub bits: u8,
    /// Choose indices under the trellis by error and rate.
    pub rdo: bool,
    /// What the step is chosen for.
    pub goal: Goal,
    /// Largest magnitude among the values.
    pub largest: f32,
}

impl Request {
    /// The smallest step: with any other the largest value would be out of reach.
    fn finest(&self) -> f64 {
        f64::from(self.largest) / f64::from(MAX_MAGNITUDE - 1)
    }
}

/// Writes one stream per tensor.
pub fn encode(
    search: &mut Search,
    x: &[f32],
    shapes: &[Vec<usize>],
    request: &Request,
    outs: &mut [Vec<u8>],
) {
    search.magnitudes.measure(x);
    search.indices.clear();
    search.indices.resize(x.len(), 0);
    match request.goal {
        Goal::Nmse(nmse) => {
            let sides = search.step_for_error(x, shapes, request, nmse);
            search.write(shapes, &sides, request, outs);
        }
        Goal::Bytes(bytes) => search.step_for_bytes(x, shapes, request, bytes, outs),
    }
}

impl Search {
    /// Leaves the indices of the largest step whose error is within the goal, or of the finest.
    fn step_for_error(
        &mut self,
        x: &[f32],
        shapes: &[Vec<usize>],
        request: &Request,
        nmse: f64,
    ) -> Vec<Side> {
        let goal = nmse * self.magnitudes.energy;
        // A little below the goal: the guess may be off by a percent.
        let guess = self.magnitudes.step_for(FIRST_AIM * goal);
        let finest = request.finest();
        let mut step = (if request.rdo { guess * TRELLIS_STEP } else { guess }).max(finest);
        // The largest step known to be good, the smallest known to be too large, with their errors.
        let mut good: Option<(f64, f64)> = None;
        let mut bad: Option<(f64, f64)> = None;
        for pass in 0.. {
            let (sides, error) = self.quantize(x, shapes, step as f32, request.rdo);
            let close = error >= CLOSE * goal || pass >= PASSES;
            if error <= goal && close || step <= finest {
                return sides;
            }
            if error <= goal {
                good = Some((step, error))
            } else {
                bad = Some((step, error))
            }
            let aim = 0.5 * (1.0 + CLOSE) * goal;
            step = match (good, bad) {
                (Some(low), Some(high)) if pass < PASSES / 2 => interpolate(low, high, aim),
                (Some((low, _)), Some(_)) if pass >= PASSES => low,
                (Some((low, _)), Some((high, _))) => (low * high).sqrt(),
                // The error grows with about the 1.5th power of the step.
                _ if error > 0.0 => step * (aim / error).powf(0.67).clamp(0.25, 4.0),
                _ => step * 4.0,
            };
            step = step.max(finest);
        }
        unreachable!("the loop has no end of its own")
    }

    /// Quantizes everything with one step. Returns the streams' side information and the error.
    fn quantize(&mut self, x: &[f32], shapes: &[Vec<usize>], step: f32, rdo: bool) -> (Vec<Side>, f64) {
        let Self { indices, signs, viterbi, coder, .. } = self;
        let mut sides = Vec::with_capacity(shapes.len());
        let mut total = 0.0;
        let mut start = 0;
        for shape in shapes {
            let count = shape.iter().product::<usize>();
            let range = start..start + count;
            start = range.end;
            let (x, indices) = (&x[range.clone()], &mut indices[range]);
            let mut grid = Grid::new(shape, count);
            let (kind, guess) = if rdo { (Indices::Trellis, 2.0 * step) } else { (Indices::Scalar, step) };
            vectorized(
                #[inline(always)]
                || {
                    let (mut centroids, mut largest) = round(x, guess, indices);
                    if rdo {
                        // The trellis codes on the way: it needs the grid as it will be.
                        grid.find_stride(indices, signs);
                        if step > 0.0 {
                            viterbi.quantize(x, step, &grid, coder, indices);
                        }
                        (centroids, largest) = trellis_cells(x, step, &grid, indices);
                    }
                    let offsets = centroids.offsets();
                    // Without a step everything is zero.
                    total += if step > 0.0 {
                        centroids.error(&offsets) * f64::from(step) * f64::from(step)
                    } else {
                        energy(x)
                    };
                    sides.push(Side { step, largest, offsets, indices: kind, grid });
                },
            );
        }
        (sides, total)
    }

    /// Codes the indices and writes the streams. Returns their size.
    fn write(
        &mut self,
        shapes: &[Vec<usize>],
        sides: &[Side],
        request: &Request,
        outs: &mut [Vec<u8>],
    ) -> usize {
        let Self { indices, signs, coder, .. } = self;
        let mut start = 0;
        let mut bytes = 0;
        for ((shape, side), out) in shapes.iter().zip(sides).zip(outs) {
            let count = shape.iter().product::<usize>();
            let indices = &indices[start..start + count];
            start += count;
            let mut side = *side;
            if side.indices == Indices::Scalar {
                vectorized(
                    #[inline(always)]
                    || side.grid.find_stride(indices, signs),
                );
            }
            out.clear();
            let coding = Coding::Uniform;
            Header { scheme: Scheme::MsqV2, bits: request.bits, coding, count }.write(out);
            side.write(out);
            coder.write(side.grid, side.indices, indices, out);
            seal(out);
            bytes += out.len();
        }
        bytes
    }

    /// Writes the streams of the least error that fit the goal, or the smallest there are.
    fn step_for_bytes(
        &mut self,
        x: &[f32],
        shapes: &[Vec<usize>],
        request: &Request,
        goal: usize,
        outs: &mut [Vec<u8>],
    ) {
        let finest = request.finest();
        let mut step = self.magnitudes.step_for(0.01 * self.magnitudes.energy).max(finest);
        let (mut fits, mut too_small): (Option<f64>, Option<f64>) = (None, None);
        for pass in 0..2 * PASSES {
            let (sides, _) = self.quantize(x, shapes, step as f32, request.rdo);
            let bytes = self.write(shapes, &sides, request, outs);
            let close = bytes as f64 >= CLOSE * goal as f64 || pass >= PASSES;
            // Nothing but zeros is left: no step gives less.
            let least = self.indices.iter().all(|index| *index == 0);
            if (bytes <= goal && (close || step <= finest)) || least {
                return;
            }
            if bytes <= goal {
                fits = Some(step)
            } else {
                too_small = Some(step)
            }
            // Half the size takes a good deal more than twice the step.
            let factor = (bytes as f64 / goal.max(1) as f64).clamp(0.25, 8.0);
            step = match (too_small, fits) {
                (Some(_), Some(high)) if pass >= PASSES => high,
                (Some(low), Some(high)) => (low * high).sqrt(),
                _ => step * factor * factor.sqrt(),
            };
            step = step.max(finest);
        }
    }
}

/// Between two steps with their errors, where the error should be `aim`; errors follow a power law.
fn interpolate(low: (f64, f64), high: (f64, f64), aim: f64) -> f64 {
    let part = (aim / low.1).ln() / (high.1 / low.1).ln();
    let part = if part.is_finite() { part.clamp(0.05, 0.95) } else { 0.5 };
    low.0 * (high.0 / low.0).powf(part)
}

/// The cells of indices under the trellis: their centroids, and the largest index's magnitude.
#[inline(always)]
fn trellis_cells(x: &[f32], step: f32, grid: &Grid, values: &[i32]) -> (Centroids, u32) {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let (mut centroids, mut largest) = (Centroids::default(), 0);
    for (x, values) in x.chunks(grid.cols).zip(values.chunks(grid.cols)) {
        let mut machine = Machine::default();
        for (x, value) in x.iter().zip(values) {
            let level = Indices::Trellis.level(machine.quantizer(), *value);
            machine.advance(*value);
            largest = largest.max(value.unsigned_abs());
            centroids.add((x * inverse).abs(), level.unsigned_abs());
        }
    }
    (centroids, largest)
}

/// Sum of squares.
#[inline(always)]
fn energy(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (groups, rest) = x.as_chunks::<16>();
    for group in groups {
        for (sum, v) in sums.iter_mut().zip(group) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}

/// Distribution of the magnitudes, in sixteenths of an octave.
#[derive(Debug, Default)]
struct Magnitudes {
    number: Vec<u32>,
    /// Values that each counted one stands for.
    weight: f64,
    energy: f64,
}

/// Bits of an f32 below those that make a bin: exponent and four bits of mantissa are left.
const BIN_SHIFT: u32 = 19;

/// Most values of which the distribution is taken.
const MAX_SAMPLE: usize = 1 << 18;

impl Magnitudes {
    /// Takes the energy of all values and the distribution of some: what follows from it is a guess.
    fn measure(&mut self, x: &[f32]) {
        self.number.clear();
        self.number.resize(1 << (31 - BIN_SHIFT), 0);
        // Odd, so that no column of a matrix is met again and again.
        let stride = (x.len() / MAX_SAMPLE) | 1;
        for v in x.iter().step_by(stride) {
            self.number[((v.to_bits() & 0x7fff_ffff) >> BIN_SHIFT) as usize] += 1;
        }
        self.weight = stride as f64;
        self.energy = vectorized(
            #[inline(always)]
            || energy(x),
        );
    }

    /// The scalar step whose error is about `goal`.
    fn step_for(&self, goal: f64) -> f64 {
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
