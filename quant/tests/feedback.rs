//! Error feedback over many rounds: nothing is lost, nothing grows without bound.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{decode, delta, fresh_seed, specs};
use fl_quant::{Encoder, Feedback, FeedbackRule, Scheme, Spec, Target, encode_update};

/// Three tensors: a matrix, one of a few blocks, one shorter than a block.
const SHAPES: [&[usize]; 3] = [&[20, 50], &[150], &[7]];
const LENGTHS: [usize; 3] = [1000, 150, 7];
const COUNT: usize = 1157;

/// One worker's rounds, with sums in f64 of what it wanted to send and of what was decoded.
struct Worker {
    feedback: Feedback,
    encoder: Encoder,
    streams: Vec<Vec<u8>>,
    deltas: Vec<f64>,
    sent: Vec<f64>,
}

impl Worker {
    fn new() -> Self {
        let (deltas, sent) = (vec![0.0; COUNT], vec![0.0; COUNT]);
        Self {
            feedback: Feedback::new(COUNT),
            encoder: Encoder::default(),
            streams: Vec::new(),
            deltas,
            sent,
        }
    }

    fn round(&mut self, delta: &[f32], spec: &Spec) {
        let shapes = SHAPES.map(<[usize]>::to_vec);
        let mut x = delta.to_vec();
        self.deltas.iter_mut().zip(&x).for_each(|(sum, v)| *sum += f64::from(*v));
        self.feedback.add_to(&mut x);
        encode_update(&mut self.encoder, &x, &shapes, spec, &mut self.streams).unwrap();
        let decoded: Vec<f32> =
            self.streams.iter().zip(LENGTHS).flat_map(|(stream, len)| decode(stream, len)).collect();
        self.sent.iter_mut().zip(decoded).for_each(|(sum, v)| *sum += f64::from(v));
        self.feedback.settle(FeedbackRule::Everything, &x, &self.streams, LENGTHS).unwrap();
    }
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// What was sent so far and the residual are together what should have been sent, but for rounding in f32.
///
/// StocQ of few bits is left out: its error is larger than the update, so the residual has to be
/// bounded (see the next test), and what is cut off is lost.
#[test]
fn sent_and_residual_add_up_to_the_deltas() {
    const ROUNDS: u64 = 25;
    let seed = fresh_seed();
    let contraction = |spec: &Spec| spec.scheme != Scheme::StocQ || spec.bits >= 5;
    let targets = [Target::Nmse(0.05), Target::Bytes(400)];
    let by_target = targets.map(|target| Spec { target, ..Spec::new(Scheme::MsqV2, 8) });
    for spec in specs().into_iter().filter(contraction).chain(by_target) {
        let mut worker = Worker::new();
        for round in 0..ROUNDS {
            let seed = seed.wrapping_add(round);
            worker.round(&delta(COUNT, seed), &Spec { seed, ..spec });
        }
        let Worker { feedback, deltas, sent, .. } = worker;
        let residual = feedback.residual().iter().map(|r| f64::from(*r));
        let missing = norm(deltas.iter().zip(&sent).zip(residual).map(|((d, s), r)| s + r - d));
        assert!(missing < 1e-5 * norm(deltas), "{spec:?}: {missing:e} is missing");
    }
}

#[test]
fn the_residual_stays_bounded_over_500_rounds() {
    for spec in [
        Spec::new(Scheme::Bin, 1),
        Spec::new(Scheme::StocQ, 1),
        Spec::new(Scheme::MsqV2, 1),
        Spec::new(Scheme::Sdq, 2),
        Spec::new(Scheme::BetaQ, 4),
        Spec { entropy: true, rdo: true, ..Spec::new(Scheme::MsqV2, 2) },
        Spec { target: Target::Bytes(300), ..Spec::new(Scheme::MsqV2, 8) },
    ] {
        let norm_of = |v: &[f32]| norm(v.iter().map(|v| f64::from(*v)));
        let (mut worker, mut largest) = (Worker::new(), 0.0f64);
        for round in 0..500 {
            let x = delta(COUNT, round);
            largest = largest.max(norm_of(&x));
            worker.round(&x, &Spec { seed: round, ..spec });
            let residual = norm_of(worker.feedback.residual());
            assert!(residual <= 21.0 * largest, "{spec:?} in round {round}: {residual}");
        }
    }
}
