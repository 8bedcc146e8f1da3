//! Encoding: searches for the step that reaches the goal, then writes the streams.

use super::{
    magnitudes::Magnitudes,
    quantizer::{Quantized, Quantizer, UniformUpdate},
    writer::Writer,
};
use crate::entropy::{IntegerCoder, MAX_MAGNITUDE};

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
    quantizer: Quantizer,
    writer: Writer,
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
    /// Writes one stream per tensor. There is a coder for each thread.
    pub fn encode(
        &mut self,
        update: &UniformUpdate<'_>,
        params: &UniformParams,
        coders: &mut [IntegerCoder],
        outs: &mut [Vec<u8>],
    ) {
        self.magnitudes.measure(update.x, update.span, update.threads);
        match params.goal {
            Goal::Nmse(nmse) => {
                let quantized = self.step_for_error(update, params, coders, nmse);
                self.writer.write(update, &self.quantizer, &quantized, params.bits, coders, outs);
            }
            Goal::Bytes(bytes) => self.step_for_bytes(update, params, coders, bytes, outs),
        }
    }

    /// Quantizes with the largest step whose error is within the goal, or with the finest step.
    fn step_for_error(
        &mut self,
        update: &UniformUpdate<'_>,
        params: &UniformParams,
        coders: &mut [IntegerCoder],
        nmse: f64,
    ) -> Quantized {
        let goal = nmse * self.magnitudes.energy;
        // A little below the goal: the guess may be off by a percent.
        let guess = self.magnitudes.step_for(FIRST_AIM * goal);
        let finest = params.finest();
        let mut step = (if params.rdo { guess * TRELLIS_STEP } else { guess }).max(finest);
        // The largest step within the goal and the smallest beyond it so far, with their errors.
        let mut good: Option<(f64, f64)> = None;
        let mut bad: Option<(f64, f64)> = None;
        for pass in 0.. {
            let quantized = self.quantizer.quantize(update, step as f32, params.rdo, coders);
            let error = quantized.error;
            let close = error >= CLOSE * goal || pass >= PASSES;
            if error <= goal && close || step <= finest {
                return quantized;
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

    /// Writes the streams of least error within `goal` bytes, or the smallest possible ones.
    fn step_for_bytes(
        &mut self,
        update: &UniformUpdate<'_>,
        params: &UniformParams,
        coders: &mut [IntegerCoder],
        goal: usize,
        outs: &mut [Vec<u8>],
    ) {
        let finest = params.finest();
        let mut step = self.magnitudes.step_for(0.01 * self.magnitudes.energy).max(finest);
        let (mut fits, mut too_small): (Option<f64>, Option<f64>) = (None, None);
        for pass in 0..2 * PASSES {
            let quantized = self.quantizer.quantize(update, step as f32, params.rdo, coders);
            let bytes = self.writer.write(update, &self.quantizer, &quantized, params.bits, coders, outs);
            let close = bytes as f64 >= CLOSE * goal as f64 || pass >= PASSES;
            // All indices are zero: no step gives fewer bytes.
            let least = quantized.sides.iter().all(|side| side.largest == 0);
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
