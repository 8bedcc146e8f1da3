//! Encoding: searches for the step that reaches the goal, then writes the streams.

use super::{
    SideInfo,
    magnitudes::{Magnitudes, energy},
    offsets::Centroids,
    round::round,
    viterbi::Viterbi,
};
use crate::{
    Scheme,
    entropy::{EntropyCoder, MAX_MAGNITUDE, Quantization, RowLayout, SignSample, TrellisState},
    header::{Coding, Header, seal},
    simd::vectorized,
};

/// The target of the search.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// Largest squared error relative to the squared norm of the update, in the fewest bytes.
    Nmse(f64),
    /// Largest size of all streams together, with the least error.
    Bytes(usize),
}

/// Step of the trellis quantizer relative to the scalar step of the same error.
const TRELLIS_STEP: f64 = 0.62;

/// The search ends at an error (or size) between this part of the goal and the goal.
const CLOSE: f64 = 0.975;

/// The first pass aims at this part of the goal.
const FIRST_AIM: f64 = 0.99;

/// Passes after which the best step so far is taken.
const PASSES: usize = 12;

/// Searches and encodes; its buffers are reused from update to update.
#[derive(Debug, Default)]
pub struct StepSearch {
    magnitudes: Magnitudes,
    indices: Vec<i32>,
    signs: SignSample,
    viterbi: Viterbi,
    coder: EntropyCoder,
}

/// Parameters of an encoding.
#[derive(Debug, Clone, Copy)]
pub struct UniformParams {
    /// Written to the headers; decoders ignore it.
    pub bits: u8,
    /// Choose indices by error and rate under the trellis.
    pub rdo: bool,
    /// The target.
    pub goal: Goal,
    /// Largest magnitude among the values.
    pub largest: f32,
}

impl UniformParams {
    /// The smallest step at which the index of the largest value is valid.
    fn finest(&self) -> f64 {
        f64::from(self.largest) / f64::from(MAX_MAGNITUDE - 1)
    }
}

impl StepSearch {
    /// Writes one stream per tensor.
    pub fn encode(&mut self, x: &[f32], shapes: &[Vec<usize>], params: &UniformParams, outs: &mut [Vec<u8>]) {
        self.magnitudes.measure(x);
        self.indices.clear();
        self.indices.resize(x.len(), 0);
        match params.goal {
            Goal::Nmse(nmse) => {
                let sides = self.step_for_error(x, shapes, params, nmse);
                self.write(shapes, &sides, params, outs);
            }
            Goal::Bytes(bytes) => self.step_for_bytes(x, shapes, params, bytes, outs),
        }
    }

    /// Quantizes with the largest step whose error is within the goal, or with the finest step. The indices
    /// stay in `self.indices`.
    fn step_for_error(
        &mut self,
        x: &[f32],
        shapes: &[Vec<usize>],
        params: &UniformParams,
        nmse: f64,
    ) -> Vec<SideInfo> {
        let goal = nmse * self.magnitudes.energy;
        // A little below the goal: the guess may be off by a percent.
        let guess = self.magnitudes.step_for(FIRST_AIM * goal);
        let finest = params.finest();
        let mut step = (if params.rdo { guess * TRELLIS_STEP } else { guess }).max(finest);
        // The largest step within the goal and the smallest beyond it so far, with their errors.
        let mut good: Option<(f64, f64)> = None;
        let mut bad: Option<(f64, f64)> = None;
        for pass in 0.. {
            let (sides, error) = self.quantize(x, shapes, step as f32, params.rdo);
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
                // The error grows with about the power 1.5 of the step.
                _ if error > 0.0 => step * (aim / error).powf(0.67).clamp(0.25, 4.0),
                _ => step * 4.0,
            };
            step = step.max(finest);
        }
        unreachable!("the loop ends by returning")
    }

    /// Quantizes all tensors with one step. Returns their side information and the total squared error.
    fn quantize(&mut self, x: &[f32], shapes: &[Vec<usize>], step: f32, rdo: bool) -> (Vec<SideInfo>, f64) {
        let Self { indices, signs, viterbi, coder, .. } = self;
        let mut sides = Vec::with_capacity(shapes.len());
        let mut total = 0.0;
        let mut start = 0;
        for shape in shapes {
            let count = shape.iter().product::<usize>();
            let range = start..start + count;
            start = range.end;
            let (x, indices) = (&x[range.clone()], &mut indices[range]);
            let mut layout = RowLayout::new(shape, count);
            let (quantization, guess) =
                if rdo { (Quantization::Trellis, 2.0 * step) } else { (Quantization::Scalar, step) };
            vectorized(
                #[inline(always)]
                || {
                    let (mut centroids, mut largest) = round(x, guess, indices);
                    if rdo {
                        // The Viterbi search codes as it goes, so it needs the final layout.
                        layout.find_stride(indices, signs);
                        if step > 0.0 {
                            viterbi.quantize(x, step, &layout, coder, indices);
                        }
                        (centroids, largest) = trellis_centroids(x, step, &layout, indices);
                    }
                    let offsets = centroids.offsets();
                    // A step of zero decodes to zeros.
                    total += if step > 0.0 {
                        centroids.error(&offsets) * f64::from(step) * f64::from(step)
                    } else {
                        energy(x)
                    };
                    sides.push(SideInfo { step, largest, offsets, quantization, layout });
                },
            );
        }
        (sides, total)
    }

    /// Entropy-codes the indices and writes the streams. Returns their total size.
    fn write(
        &mut self,
        shapes: &[Vec<usize>],
        sides: &[SideInfo],
        params: &UniformParams,
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
            if side.quantization == Quantization::Scalar {
                vectorized(
                    #[inline(always)]
                    || side.layout.find_stride(indices, signs),
                );
            }
            out.clear();
            let coding = Coding::Uniform;
            Header { scheme: Scheme::MsqV2, bits: params.bits, coding, count }.write(out);
            side.write(out);
            coder.write(side.layout, side.quantization, indices, out);
            seal(out);
            bytes += out.len();
        }
        bytes
    }

    /// Writes the streams of least error within `goal` bytes, or the smallest possible ones.
    fn step_for_bytes(
        &mut self,
        x: &[f32],
        shapes: &[Vec<usize>],
        params: &UniformParams,
        goal: usize,
        outs: &mut [Vec<u8>],
    ) {
        let finest = params.finest();
        let mut step = self.magnitudes.step_for(0.01 * self.magnitudes.energy).max(finest);
        let (mut fits, mut too_small): (Option<f64>, Option<f64>) = (None, None);
        for pass in 0..2 * PASSES {
            let (sides, _) = self.quantize(x, shapes, step as f32, params.rdo);
            let bytes = self.write(shapes, &sides, params, outs);
            let close = bytes as f64 >= CLOSE * goal as f64 || pass >= PASSES;
            // All indices are zero: no step gives fewer bytes.
            let least = self.indices.iter().all(|index| *index == 0);
            if (bytes <= goal && (close || step <= finest)) || least {
                return;
            }
            if bytes <= goal {
                fits = Some(step)
            } else {
                too_small = Some(step)
            }
            // Halving the size takes about 2.8 times the step.
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

/// Interpolates between two (step, error) pairs the step of error `aim`, assuming a power law.
fn interpolate(low: (f64, f64), high: (f64, f64), aim: f64) -> f64 {
    let part = (aim / low.1).ln() / (high.1 / low.1).ln();
    let part = if part.is_finite() { part.clamp(0.05, 0.95) } else { 0.5 };
    low.0 * (high.0 / low.0).powf(part)
}

/// Centroids of the cells under the trellis, and the magnitude of the largest index.
#[inline(always)]
fn trellis_centroids(x: &[f32], step: f32, layout: &RowLayout, values: &[i32]) -> (Centroids, u32) {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let (mut centroids, mut largest) = (Centroids::default(), 0);
    for (x, values) in x.chunks(layout.cols).zip(values.chunks(layout.cols)) {
        let mut state = TrellisState::default();
        for (x, value) in x.iter().zip(values) {
            let level = Quantization::Trellis.level(state.quantizer(), *value);
            state.advance(*value);
            largest = largest.max(value.unsigned_abs());
            centroids.add((x * inverse).abs(), level.unsigned_abs());
        }
    }
    (centroids, largest)
}
