//! What every stream must do: decode to what its width promises, and refuse everything else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_quant::{Encoder, Feedback, Scheme, Spec, Stream, encode_update};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, StandardNormal};

/// Like a real delta: heavy tails, and a third of it exactly zero.
fn delta(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || {
        let normal: f32 = StandardNormal.sample(&mut rng);
        if rng.random_bool(0.3) { 0.0 } else { 1e-3 * normal * normal.abs() }
    };
    (0..len).map(|_| value()).collect()
}

fn encode(x: &[f32], spec: &Spec) -> Vec<u8> {
    let mut streams = Vec::new();
    encode_update(&mut Encoder::default(), x, &[vec![x.len()]], spec, &mut streams).unwrap();
    streams.swap_remove(0)
}

fn decode(bytes: &[u8], len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    Stream::parse(bytes, len)
        .unwrap()
        .for_each_chunk(|offset, values| out[offset..offset + values.len()].copy_from_slice(values));
    out
}

fn nmse(x: &[f32], y: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    x.iter().zip(y).map(|(x, y)| square(x - y)).sum::<f64>() / x.iter().map(|x| square(*x)).sum::<f64>()
}

fn specs() -> Vec<Spec> {
    let widths = |scheme| (1..=8).map(move |bits| Spec::new(scheme, bits));
    [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ]
        .into_iter()
        .flat_map(widths)
        .chain([Scheme::Bin, Scheme::Laq8, Scheme::F16, Scheme::None].map(|scheme| Spec::new(scheme, 8)))
        .collect()
}

#[test]
fn the_error_falls_with_the_width() {
    let x = delta(20_000, 1);
    for scheme in [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ] {
        let errors: Vec<f64> =
            (1..=8).map(|bits| nmse(&x, &decode(&encode(&x, &Spec::new(scheme, bits)), x.len()))).collect();
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{scheme}: {errors:?}");
        // Two shape parameters cannot follow such tails: BetaQ promises no bound here.
        if scheme == Scheme::BetaQ {
            continue;
        }
        assert!(errors[3] < 0.05, "{scheme} at 4 bits: {}", errors[3]);
        // Heavier tails than the recorded deltas have: StocQ's grid spans each block's largest value.
        assert!(errors[7] < 3e-4, "{scheme} at 8 bits: {}", errors[7]);
    }
    assert_eq!(decode(&encode(&x, &Spec::new(Scheme::None, 8)), x.len()), x);
}

#[test]
fn stochastic_rounding_is_unbiased_and_reproducible() {
    const DRAWS: usize = 1000;
    let x = delta(256, 2);
    for bits in 1..=8 {
        let draw = |seed| decode(&encode(&x, &Spec { seed, ..Spec::new(Scheme::StocQ, bits) }), x.len());
        assert_eq!(draw(7), draw(7));
        let (mut sum, mut squares) = (vec![0.0f64; x.len()], vec![0.0f64; x.len()]);
        for seed in 0..DRAWS as u64 {
            for ((sum, square), v) in sum.iter_mut().zip(&mut squares).zip(draw(seed)) {
                *sum += f64::from(v);
                *square += f64::from(v) * f64::from(v);
            }
        }
        // Pooled over the elements: one whose chance to move is small may not move in all the draws,
        // and its own variance then looks like zero.
        let (mut deviation, mut expected) = (0.0, 0.0);
        for ((x, sum), square) in x.iter().zip(sum).zip(squares) {
            let mean = sum / DRAWS as f64;
            deviation += (mean - f64::from(*x)).powi(2);
            expected += (square / DRAWS as f64 - mean * mean).max(0.0) / DRAWS as f64;
        }
        assert!(deviation < 1.5 * expected + 1e-18, "{bits} bits: {deviation:e} instead of {expected:e}");
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_is_refused() {
    let x = delta(300, 3);
    for spec in specs() {
        let stream = encode(&x, &spec);
        for len in 0..stream.len() {
            assert!(Stream::parse(&stream[..len], x.len()).is_err(), "{spec:?} cut to {len}");
        }
        assert!(Stream::parse(&stream, x.len() + 1).is_err());
        assert!(Stream::parse(&[&stream[..], &[0]].concat(), x.len()).is_err());
    }
}

#[test]
fn mutated_streams_are_refused_or_decode_to_finite_values() {
    let x = delta(300, 4);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for spec in specs() {
        let stream = encode(&x, &spec);
        for round in 0..2000 {
            let mut bytes = stream.clone();
            for _ in 0..rng.random_range(1..4) {
                let place = rng.random_range(0..bytes.len());
                bytes[place] = rng.random();
            }
            if round % 2 == 0 {
                // Past the checksum, so that what lies behind it is tried too.
                reseal(&mut bytes);
            }
            if let Ok(stream) = Stream::parse(&bytes, x.len()) {
                let bound = stream.max_abs();
                assert!(bound.is_finite());
                stream.for_each_chunk(|_, values| assert!(values.iter().all(|v| v.abs() <= bound)));
            }
        }
    }
}

fn reseal(stream: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&stream[..12]);
    crc.update(&stream[16..]);
    stream[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
}

#[test]
fn the_residual_stays_bounded_over_500_rounds() {
    for spec in [
        Spec::new(Scheme::Bin, 1),
        Spec::new(Scheme::StocQ, 1),
        Spec::new(Scheme::MsqV2, 1),
        Spec::new(Scheme::Sdq, 2),
        Spec::new(Scheme::BetaQ, 4),
    ] {
        let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let (mut feedback, mut encoder, mut streams) = (Feedback::new(2000), Encoder::default(), Vec::new());
        let mut largest = 0.0f64;
        for round in 0..500 {
            let mut x = delta(2000, round);
            largest = largest.max(norm(&x));
            feedback.add_to(&mut x);
            let spec = Spec { seed: round, ..spec };
            encode_update(&mut encoder, &x, &[vec![2000]], &spec, &mut streams).unwrap();
            feedback.settle(&x, &streams, [2000]).unwrap();
            assert!(norm(feedback.residual()) <= 21.0 * largest, "{spec:?} in round {round}");
        }
    }
}

proptest! {
    #[test]
    fn any_finite_input_survives(
        x in prop::collection::vec(prop_oneof![Just(0.0f32), -1e-3f32..1e-3, -1e30f32..1e30, Just(f32::MIN_POSITIVE)], 0..300),
        bits in 1u8..=8,
        seed: u64,
    ) {
        for scheme in Scheme::ALL {
            let stream = encode(&x, &Spec { seed, ..Spec::new(scheme, bits) });
            prop_assert!(decode(&stream, x.len()).iter().all(|v| v.is_finite()));
        }
    }
}
