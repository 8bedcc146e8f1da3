//! Error feedback: what quantization lost in one round is added to the next (Seide et al. 2014,
//! Karimireddy et al. 2019).

use crate::{DecodeError, Stream};
use std::ops::Range;

/// With [`FeedbackRule::Everything`] the residual keeps at most this part of the energy of what was encoded.
///
/// A scheme that shrinks the error of every vector never reaches the bound. One that does not (stochastic
/// rounding at 1 or 2 bits) would let the residual grow without end; so bounded, its norm stays below
/// 20 times the largest delta's, because `r = 0.95 (r + delta)` has that fixed point.
const MAX_ENERGY: f64 = 0.9;

/// With [`FeedbackRule::SilencedTensors`] a tensor's residual is dropped once an update loses less than this
/// part of the tensor's energy: from then on its codes speak for themselves.
const AUDIBLE_LOSS: f64 = 0.1;

/// The tensors whose quantization error is added to the next update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedbackRule {
    /// None.
    #[default]
    Nothing,
    /// A tensor whose codes were all zero, and the same tensor in the following updates until most of it is
    /// sent.
    ///
    /// One quantization step for all tensors rounds a layer with small updates to zero in every round: without
    /// a memory that layer would never be trained.
    SilencedTensors,
    /// All.
    Everything,
}

/// The error-feedback residual of one worker, flat, in the model's order. Empty stands for zeros.
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

    /// Replaces the residual by what is lost between `x` (what was encoded: delta plus residual) and
    /// `streams` (one per tensor, in order, of these `lengths`), as far as `rule` keeps it.
    ///
    /// # Errors
    /// If the streams do not decode to as many elements as `x` has; the residual is then unchanged.
    pub fn settle(
        &mut self,
        rule: FeedbackRule,
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
        match rule {
            FeedbackRule::Nothing => self.residual.clear(),
            FeedbackRule::SilencedTensors => self.keep_silenced(x, &parsed),
            FeedbackRule::Everything => self.keep_everything(x, &parsed),
        }
        Ok(())
    }

    fn keep_everything(&mut self, x: &[f32], tensors: &[(usize, Stream<'_>)]) {
        self.residual.clear();
        self.residual.extend_from_slice(x);
        for (start, stream) in tensors {
            subtract_decoded(stream, &mut self.residual[*start..]);
        }
        let (lost, whole) = (energy(&self.residual), energy(x));
        if lost > MAX_ENERGY * whole {
            let factor = (MAX_ENERGY * whole / lost).sqrt() as f32;
            self.residual.iter_mut().for_each(|r| *r *= factor);
        }
    }

    fn keep_silenced(&mut self, x: &[f32], tensors: &[(usize, Stream<'_>)]) {
        let mut any_kept = false;
        for (start, stream) in tensors {
            let range = *start..start + stream.len();
            any_kept |= self.keep_if_silenced(x, range, stream);
        }
        if !any_kept {
            self.residual.clear();
        }
    }

    /// Sets the residual of one tensor; whether any of it is left. Decodes only a tensor that has a residual
    /// and was heard: in most rounds there is none.
    fn keep_if_silenced(&mut self, x: &[f32], range: Range<usize>, stream: &Stream<'_>) -> bool {
        let encoded = &x[range.clone()];
        let was_kept = self.residual.get(range.clone()).is_some_and(|kept| kept.iter().any(|r| *r != 0.0));
        let is_silent = stream.max_abs() == 0.0 && encoded.iter().any(|x| *x != 0.0);
        if !was_kept && !is_silent {
            return false;
        }
        self.residual.resize(x.len(), 0.0);
        let residual = &mut self.residual[range];
        residual.copy_from_slice(encoded);
        if !is_silent {
            subtract_decoded(stream, residual);
        }
        let is_kept = is_silent || energy(residual) > AUDIBLE_LOSS * energy(encoded);
        if !is_kept {
            residual.fill(0.0);
        }
        is_kept
    }
}

fn subtract_decoded(stream: &Stream<'_>, values: &mut [f32]) {
    stream.for_each_chunk(|offset, decoded| {
        for (value, decoded) in values[offset..].iter_mut().zip(decoded) {
            *value -= decoded;
        }
    });
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, Scheme, Spec, encode_update};
    use FeedbackRule::{Everything, Nothing, SilencedTensors};

    const LOUD: usize = 4000;
    const QUIET: usize = 300;

    /// A delta of two layers as training makes it: a direction of its own and noise in every round. The
    /// second layer's is two hundred times smaller.
    fn delta(round: u64) -> Vec<f32> {
        let unit = |i: usize, salt: u64| {
            let mut z =
                (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0
        };
        let value = |i| unit(i, 0) + 0.5 * unit(i, round + 1);
        (0..LOUD + QUIET).map(|i| if i < LOUD { value(i) } else { value(i) / 200.0 }).collect()
    }

    struct Course {
        /// Sum of the deltas, and of what the receiver decoded.
        wanted: Vec<f64>,
        sent: Vec<f64>,
        feedback: Feedback,
        bytes: usize,
    }

    /// 400 rounds of one worker at the defaults: MSQ_v2, 4 bits, entropy stage.
    fn course(rule: FeedbackRule) -> Course {
        let shapes = [vec![40, 100], vec![QUIET]];
        let mut course = Course {
            wanted: vec![0.0; LOUD + QUIET],
            sent: vec![0.0; LOUD + QUIET],
            feedback: Feedback::default(),
            bytes: 0,
        };
        let (mut encoder, mut streams) = (Encoder::default(), Vec::new());
        for round in 0..400 {
            let mut x = delta(round);
            course.wanted.iter_mut().zip(&x).for_each(|(sum, x)| *sum += f64::from(*x));
            course.feedback.add_to(&mut x);
            let spec = Spec { entropy: true, seed: round, ..Spec::new(Scheme::MsqV2, 4) };
            encode_update(&mut encoder, &x, &shapes, &spec, &mut streams).unwrap();
            course.feedback.settle(rule, &x, &streams, [LOUD, QUIET]).unwrap();
            let mut start = 0;
            for (stream, length) in streams.iter().zip([LOUD, QUIET]) {
                let sent = &mut course.sent[start..];
                Stream::parse(stream, length).unwrap().for_each_chunk(|at, values| {
                    sent[at..].iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v));
                });
                start += length;
                course.bytes += stream.len();
            }
        }
        course
    }

    /// `|sent - wanted| / |wanted|` of a layer.
    fn error(course: &Course, range: Range<usize>) -> f64 {
        let square = |f: &dyn Fn(usize) -> f64| range.clone().map(|i| f(i).powi(2)).sum::<f64>();
        (square(&|i| course.sent[i] - course.wanted[i]) / square(&|i| course.wanted[i])).sqrt()
    }

    #[test]
    fn a_quiet_layer_is_heard_in_the_end() {
        let without = course(Nothing);
        assert_eq!(error(&without, LOUD..LOUD + QUIET), 1.0, "the premise: nothing of it is ever sent");
        let with = course(SilencedTensors);
        let quiet = error(&with, LOUD..LOUD + QUIET);
        assert!(quiet < 0.1, "{quiet}");
        assert!(with.bytes as f64 <= 1.02 * without.bytes as f64, "{} of {}", with.bytes, without.bytes);
        // The part that was not sent is kept in the residual.
        let kept = &with.feedback.residual()[LOUD..];
        for ((sent, wanted), kept) in with.sent[LOUD..].iter().zip(&with.wanted[LOUD..]).zip(kept) {
            assert!((sent + f64::from(*kept) - wanted).abs() < 1e-5);
        }
        // The loud layer goes on as without a memory.
        assert!(with.feedback.residual()[..LOUD].iter().all(|r| *r == 0.0));
        assert!((error(&with, 0..LOUD) - error(&without, 0..LOUD)).abs() < 0.01);
    }

    #[test]
    fn a_layer_that_is_heard_again_forgets() {
        let shapes = [vec![100], vec![50]];
        let (mut feedback, mut encoder, mut streams) = (Feedback::default(), Encoder::default(), Vec::new());
        let mut settle = |quiet: f32, feedback: &mut Feedback| {
            let mut x: Vec<f32> = delta(1)[..150].to_vec();
            x[100..].iter_mut().for_each(|v| *v *= quiet);
            feedback.add_to(&mut x);
            let spec = Spec { entropy: true, ..Spec::new(Scheme::MsqV2, 4) };
            encode_update(&mut encoder, &x, &shapes, &spec, &mut streams).unwrap();
            feedback.settle(SilencedTensors, &x, &streams, [100, 50]).unwrap();
        };
        settle(1e-3, &mut feedback);
        assert!(feedback.residual()[100..].iter().any(|r| *r != 0.0));
        settle(1.0, &mut feedback);
        assert!(feedback.residual().is_empty(), "a full-size update of it was sent");
    }

    #[test]
    fn with_everything_kept_sent_and_residual_add_up_to_the_deltas() {
        for (scheme, bits, entropy) in [
            (Scheme::MsqV2, 4, true),
            (Scheme::MsqV2, 2, false),
            (Scheme::Sdq, 2, true),
            (Scheme::BetaQ, 4, false),
            (Scheme::Bin, 1, false),
            (Scheme::Laq8, 8, true),
        ] {
            let (mut feedback, mut encoder, mut streams) =
                (Feedback::default(), Encoder::default(), Vec::new());
            let (mut wanted, mut sent) = (vec![0.0f64; LOUD], vec![0.0f64; LOUD]);
            for round in 0..30 {
                let mut x = delta(round)[..LOUD].to_vec();
                wanted.iter_mut().zip(&x).for_each(|(sum, x)| *sum += f64::from(*x));
                feedback.add_to(&mut x);
                let spec = Spec { entropy, ..Spec::new(scheme, bits) };
                encode_update(&mut encoder, &x, &[vec![LOUD]], &spec, &mut streams).unwrap();
                feedback.settle(Everything, &x, &streams, [LOUD]).unwrap();
                Stream::parse(&streams[0], LOUD).unwrap().for_each_chunk(|at, values| {
                    sent[at..].iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v));
                });
            }
            for ((sent, kept), wanted) in sent.iter().zip(feedback.residual()).zip(&wanted) {
                assert!((sent + f64::from(*kept) - wanted).abs() < 1e-4, "{scheme} at {bits} bits");
            }
        }
    }

    #[test]
    fn streams_that_do_not_fit_change_nothing() {
        let mut feedback = Feedback::from_residual(vec![1.0; 4]);
        assert!(feedback.settle(Everything, &[0.0; 4], &[vec![1, 2, 3]], [4]).is_err());
        assert!(feedback.settle(Everything, &[0.0; 4], &[], []).is_err());
        assert_eq!(feedback, Feedback::from_residual(vec![1.0; 4]));
    }
}
