//! Large tensors: the same bytes for every number of threads, segments that come back, and hostile tables.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{decode, delta, reseal};
use fl_quant::{Encoder, Scheme, Spec, Stream, Target, Threads, decode_update, encode_update};
use proptest::prelude::*;

/// Shortest segments that an encoder makes.
const SHORT: usize = 4096;

/// Position of the segments' length in a stream of coding 4.
const SEGMENTS: usize = 28;

fn encode(threads: usize, segment: usize, x: &[f32], shapes: &[Vec<usize>], spec: &Spec) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(Threads::new(threads).unwrap()).with_segments(segment);
    let mut streams = Vec::new();
    encode_update(&mut encoder, x, shapes, spec, &mut streams).unwrap();
    streams
}

fn uniform(rdo: bool) -> Spec {
    Spec { rdo, entropy: true, ..Spec::new(Scheme::MsqV2, 4) }
}

fn nmse(x: &[f32], y: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    x.iter().zip(y).map(|(x, y)| square(x - y)).sum::<f64>() / x.iter().map(|x| square(*x)).sum::<f64>()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_bytes_do_not_depend_on_the_threads(
        sizes in prop::collection::vec((1usize..40, 0usize..700), 1..5),
        bits in 1u8..=8,
        scheme in prop::sample::select(Scheme::ALL.to_vec()),
        entropy: bool,
        rdo: bool,
        target in prop::sample::select(vec![Target::Width, Target::Nmse(0.02), Target::Bytes(3000)]),
        seed: u64,
    ) {
        let shapes: Vec<_> = sizes.iter().map(|(rows, cols)| vec![*rows, *cols]).collect();
        let x = delta(shapes.iter().map(|shape| shape[0] * shape[1]).sum(), seed);
        let spec = Spec { seed, entropy, rdo, target, ..Spec::new(scheme, bits) };
        let one = encode(1, SHORT, &x, &shapes, &spec);
        for threads in [2, 3, 5] {
            prop_assert!(one == encode(threads, SHORT, &x, &shapes, &spec), "{spec:?}, {threads} threads");
        }
        let streams = one.iter().zip(&shapes).map(|(bytes, shape)| Stream::parse(bytes, shape[0] * shape[1]));
        let streams: Vec<_> = streams.map(Result::unwrap).collect();
        let expected: Vec<f32> =
            one.iter().zip(&shapes).flat_map(|(bytes, shape)| decode(bytes, shape[0] * shape[1])).collect();
        for threads in [1, 3] {
            let mut values = vec![f32::NAN; x.len()];
            decode_update(&Threads::new(threads).unwrap(), &streams, &mut values);
            prop_assert!(values == expected, "{spec:?}, {threads} threads");
        }
    }
}

/// The default length of a segment; one tensor of just below it, and one that is cut.
#[test]
fn large_tensors_come_back_and_small_ones_keep_their_version() {
    let shapes = [vec![1300, 1024], vec![(1 << 20) - 1]];
    let lengths = shapes.each_ref().map(|shape| shape.iter().product::<usize>());
    let x = delta(lengths.iter().sum(), 5);
    for scheme in [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ, Scheme::Laq8, Scheme::Bin] {
        for entropy in [false, true] {
            let spec = Spec { entropy, ..Spec::new(scheme, 8) };
            let streams = encode(2, 1 << 20, &x, &shapes, &spec);
            let coded = streams[0][6] != 0;
            assert!(!coded || entropy);
            assert_eq!(streams[0][3], if coded { 3 } else { 1 }, "{scheme}, entropy {entropy}");
            assert!(streams[1][3] <= 2);
            let mut values = decode(&streams[0], lengths[0]);
            values.extend(decode(&streams[1], lengths[1]));
            let bound = if scheme == Scheme::Bin { 0.9 } else { 1e-3 };
            assert!(nmse(&x, &values) < bound, "{scheme}, entropy {entropy}: {}", nmse(&x, &values));
        }
    }
}

/// Segments lose what the models have learned, and nothing else.
#[test]
fn segments_decode_to_the_values_of_the_whole() {
    let (rows, cols) = (61, 300);
    let x = delta(rows * cols, 6);
    for scheme in [Scheme::StocQ, Scheme::Sdq, Scheme::BetaQ] {
        let spec = Spec { entropy: true, ..Spec::new(scheme, 3) };
        let whole = encode(1, 1 << 20, &x, &[vec![rows, cols]], &spec);
        let cut = encode(1, SHORT, &x, &[vec![rows, cols]], &spec);
        assert_eq!((whole[0][6], cut[0][6]), (1, 3), "{scheme}");
        assert!(nmse(&x, &decode(&cut[0], x.len())) < 1.01 * nmse(&x, &decode(&whole[0], x.len())));
    }
}

#[test]
fn a_stream_of_segments_that_is_cut_anywhere_is_refused() {
    let x = delta(5000, 3);
    for spec in [uniform(false), uniform(true), Spec { entropy: true, ..Spec::new(Scheme::Sdq, 2) }] {
        let stream = &encode(1, SHORT, &x, &[vec![5, 1000]], &spec)[0];
        assert_eq!(stream[3], 3);
        for len in 0..stream.len() {
            let mut part = stream[..len].to_vec();
            if len >= 16 {
                reseal(&mut part);
            }
            // Behind the table, a cut is found out by the lengths: they must fill the stream exactly.
            assert!(Stream::parse(&part, x.len()).is_err(), "{spec:?} cut to {len}");
        }
        let mut longer = stream.clone();
        longer.push(0);
        reseal(&mut longer);
        assert!(Stream::parse(&longer, x.len()).is_err());
    }
}

#[test]
fn hostile_tables_of_segments_are_refused() {
    let x = delta(9000, 4);
    let stream = &encode(1, SHORT, &x, &[vec![9, 1000]], &uniform(false))[0];
    let word = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap());
    let length = word(SEGMENTS);
    assert!((1024..9000).contains(&length));
    let refused = |at: usize, value: u32| {
        let mut bytes = stream.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes);
        Stream::parse(&bytes, x.len()).unwrap_err().to_string()
    };
    for bad in [0, 1, 1023, 9000, 9001, 1 << 28, u32::MAX] {
        assert!(refused(SEGMENTS, bad).contains("length of its segments"), "{bad}");
    }
    // Other numbers of segments: their list runs into the first one.
    for bad in [1024, 1025, 8999] {
        refused(SEGMENTS, bad);
    }
    for place in 0..9000u32.div_ceil(length) as usize {
        let at = SEGMENTS + 4 + 4 * place;
        for bad in [0, 5, word(at) - 1, word(at) + 1, u32::MAX] {
            refused(at, bad);
        }
    }
    // A row layout that would do for the whole tensor, but not for its segment.
    let first = SEGMENTS + 4 + 4 * 9000usize.div_ceil(length as usize);
    let mut bytes = stream.clone();
    bytes[first..first + 2].copy_from_slice(&8999u16.to_le_bytes());
    reseal(&mut bytes);
    assert!(Stream::parse(&bytes, x.len()).unwrap_err().to_string().contains("row layout"));
    // Version and coding belong together.
    for (version, coding) in [(2, 4), (3, 2), (3, 0), (1, 4), (3, 5), (4, 4)] {
        let mut bytes = stream.clone();
        (bytes[3], bytes[6]) = (version, coding);
        reseal(&mut bytes);
        assert!(Stream::parse(&bytes, x.len()).is_err());
    }
}

/// Bytes of a stream are changed at random: it is refused, or decodes within its bound on every number of threads.
#[test]
fn mutated_segments_are_refused_or_decode_to_finite_values() {
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
    let x = delta(5000, 7);
    let mut rng = ChaCha8Rng::seed_from_u64(common::fresh_seed());
    let threads = Threads::new(2).unwrap();
    for spec in [uniform(false), uniform(true), Spec { entropy: true, ..Spec::new(Scheme::BetaQ, 2) }] {
        let stream = &encode(1, SHORT, &x, &[vec![5, 1000]], &spec)[0];
        assert_eq!(stream[3], 3);
        let mut valid = 0;
        for _ in 0..500 {
            let mut bytes = stream.clone();
            for _ in 0..rng.random_range(1..4) {
                let place = rng.random_range(0..bytes.len());
                bytes[place] = rng.random();
            }
            reseal(&mut bytes);
            let Ok(parsed) = Stream::parse(&bytes, x.len()) else { continue };
            valid += 1;
            let mut values = vec![f32::NAN; x.len()];
            decode_update(&threads, std::slice::from_ref(&parsed), &mut values);
            assert!(values.iter().all(|v| v.abs() <= parsed.max_abs()));
            assert_eq!(values, decode(&bytes, x.len()));
        }
        assert!(valid > 0, "{spec:?}");
    }
}
