//! Streams of an attacker are refused, or decode to finite values within bounded memory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{encode, fresh_seed, reseal, specs};
use fl_quant::{Scheme, Spec, Stream};
use peak_alloc::PeakAlloc;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use std::sync::Mutex;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Held by a test that measures memory.
static TURN: Mutex<()> = Mutex::new(());

/// Memory of decoding that does not depend on the tensor's size: models, a span of waves, a chunk of values.
const FIXED: usize = 100_000;

/// A periodic delta with zeros.
fn delta(count: usize) -> Vec<f32> {
    let wave = |i: usize| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(5) * 1e-2;
    (0..count).map(|i| if i % 3 == 0 { 0.0 } else { wave(i) }).collect()
}

/// Parses and decodes. Returns whether the stream was valid.
fn try_decode(bytes: &[u8], count: usize) -> bool {
    let Ok(stream) = Stream::parse(bytes, count) else { return false };
    let bound = stream.max_abs();
    assert!(bound.is_finite());
    stream.for_each_chunk(|_, values| assert!(values.iter().all(|v| v.abs() <= bound)));
    true
}

/// `FL_MUTATIONS` sets how many are tried for each spec.
#[test]
fn mutated_streams_are_refused_or_decode_to_finite_values() {
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let mutations = std::env::var("FL_MUTATIONS").map_or(800, |number| number.parse().unwrap());
    let x = delta(300);
    let mut rng = ChaCha8Rng::seed_from_u64(fresh_seed());
    let mut decoded = 0u64;
    for spec in specs() {
        let decoded_before = decoded;
        let stream = encode(&x, &[4, 75], &spec);
        let mut bytes = stream.clone();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        for round in 0..mutations {
            bytes.copy_from_slice(&stream);
            for _ in 0..rng.random_range(1..4) {
                let place = rng.random_range(0..bytes.len());
                bytes[place] = rng.random();
            }
            if round % 2 == 0 {
                reseal(&mut bytes);
            }
            decoded += u64::from(try_decode(&bytes, x.len()));
        }
        let peak = MEMORY.peak_usage() - before;
        assert!(peak < 2 * 4 * x.len() + FIXED, "{spec:?}: {peak} bytes");
        // Or the checks behind the checksum would not have been reached.
        assert!(decoded > decoded_before || mutations < 100, "{spec:?}: no mutated stream was valid");
    }
    println!("{decoded} of {} mutated streams were valid", mutations * specs().len());
}

/// The row layout of a stream determines the size of the decoder's buffers: the worst valid ones.
#[test]
fn no_layout_makes_a_decoder_take_more_than_its_share() {
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let (rows, cols) = (126, 784);
    let x = delta(rows * cols);
    let spec = Spec { entropy: true, ..Spec::new(Scheme::MsqV2, 4) };
    let stream = encode(&x, &[rows, cols], &spec);
    for (cols, stride, lanes) in [
        (784u16, 784u16, 4u8),
        (32_767, 32_767, 4),
        (49_392, 49_392, 2),
        (65_535, 65_535, 2),
        (65_535, 0, 1),
        (1, 0, 4),
    ] {
        let mut bytes = stream.clone();
        bytes[28..30].copy_from_slice(&cols.to_le_bytes());
        bytes[30..32].copy_from_slice(&stride.to_le_bytes());
        bytes[32] = lanes;
        reseal(&mut bytes);
        // On a thread of its own, which starts without decoder buffers.
        let (bytes, count) = (&bytes, x.len());
        let peak = std::thread::scope(|scope| {
            let decode = move || {
                MEMORY.reset_peak_usage();
                let before = MEMORY.current_usage();
                assert!(try_decode(bytes, count), "{cols} columns, stride {stride}, {lanes} lanes");
                MEMORY.peak_usage() - before
            };
            scope.spawn(decode).join().unwrap()
        });
        println!("{cols} columns, stride {stride}, {lanes} lanes: {peak} bytes for {} of values", 4 * count);
        assert!(peak < 2 * 4 * count + FIXED, "{cols} columns, stride {stride}, {lanes} lanes: {peak} bytes");
    }
}
