//! Error feedback: what quantization lost in one round is added to the next (Seide et al. 2014,
//! Karimireddy et al. 2019).

use crate::{DecodeError, Stream};

/// The residual keeps at most this part of the energy of what was encoded.
///
/// A scheme that shrinks the error of every vector never reaches it. One that does not (stochastic
/// rounding at 1 or 2 bits) would let the residual grow without end; so bounded, its norm stays below
/// 20 times the largest delta's, because `r = 0.95 (r + delta)` has that fixed point.
const MAX_ENERGY: f64 = 0.9;

/// The error-feedback residual of one worker, flat, in the model's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Feedback {
    residual: Vec<f32>,
}

impl Feedback {
    /// No residual yet, for a model of `parameters` parameters.
    pub fn new(parameters: usize) -> Self {
        Self { residual: vec![0.0; parameters] }
    }

    /// Goes on with a residual that was set aside.
    pub fn from_residual(residual: Vec<f32>) -> Self {
        Self { residual }
    }

    /// The residual as it is.
    pub fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// Adds the residual to a delta before it is encoded.
    pub fn add_to(&self, delta: &mut [f32]) {
        for (x, r) in delta.iter_mut().zip(&self.residual) {
            *x += r;
        }
    }

    /// Takes over what is lost between `x` (what was encoded) and `streams` (one per tensor, in order).
    ///
    /// # Errors
    /// If the streams do not decode to as many elements as `x` has; the residual is then unchanged.
    pub fn settle(
        &mut self,
        x: &[f32],
        streams: &[Vec<u8>],
        lengths: impl IntoIterator<Item = usize>,
    ) -> Result<(), DecodeError> {
        let mut parsed = Vec::with_capacity(streams.len());
        let mut total = 0;
        for (bytes, length) in streams.iter().zip(lengths) {
            parsed.push((total, Stream::parse(bytes, length)?));
            total += length;
        }
        if total != x.len() {
            return Err(DecodeError::WrongLength { expected: x.len(), found: total });
        }
        self.residual.clear();
        self.residual.extend_from_slice(x);
        for (start, stream) in &parsed {
            stream.for_each_chunk(|offset, values| {
                let residual = &mut self.residual[start + offset..];
                for (r, v) in residual.iter_mut().zip(values) {
                    *r -= v;
                }
            });
        }
        self.bound(x);
        Ok(())
    }

    fn bound(&mut self, x: &[f32]) {
        let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let (lost, whole) = (energy(&self.residual), energy(x));
        if lost > MAX_ENERGY * whole {
            let factor = (MAX_ENERGY * whole / lost).sqrt() as f32;
            self.residual.iter_mut().for_each(|r| *r *= factor);
        }
    }
}
