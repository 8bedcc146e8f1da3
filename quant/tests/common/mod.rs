//! What several tests need.

#![allow(dead_code, reason = "each test file uses a part of it")]

use fl_quant::{Encoder, Scheme, Spec, Stream, encode_update};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, StandardNormal};
use std::hash::{BuildHasher, RandomState};

/// Every scheme and width, packed and entropy-coded, and the trellis.
pub fn specs() -> Vec<Spec> {
    let widths = |scheme| (1..=8).map(move |bits| Spec::new(scheme, bits));
    let fixed: Vec<Spec> = [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ]
        .into_iter()
        .flat_map(widths)
        .chain([Scheme::Bin, Scheme::Laq8, Scheme::F16, Scheme::None].map(|scheme| Spec::new(scheme, 8)))
        .collect();
    let entropy = fixed.iter().map(|spec| Spec { entropy: true, ..*spec });
    let trellis = (1..=8).map(|bits| Spec { entropy: true, rdo: true, ..Spec::new(Scheme::MsqV2, bits) });
    fixed.iter().copied().chain(entropy).chain(trellis).collect()
}

/// A seed that differs from run to run, or that of `FL_SEED`; printed, so that a failure can be repeated.
pub fn fresh_seed() -> u64 {
    let seed = match std::env::var("FL_SEED") {
        Ok(seed) => seed.parse().expect("FL_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("FL_SEED={seed}");
    seed
}

/// Like a real delta: heavy tails, and a third of it exactly zero.
pub fn delta(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || {
        let normal: f32 = StandardNormal.sample(&mut rng);
        if rng.random_bool(0.3) { 0.0 } else { 1e-3 * normal * normal.abs() }
    };
    (0..len).map(|_| value()).collect()
}

/// Encodes one tensor.
pub fn encode(x: &[f32], shape: &[usize], spec: &Spec) -> Vec<u8> {
    let mut streams = Vec::new();
    encode_update(&mut Encoder::default(), x, &[shape.to_vec()], spec, &mut streams).expect("valid input");
    streams.swap_remove(0)
}

/// Decodes one tensor chunk by chunk.
pub fn decode(bytes: &[u8], len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    Stream::parse(bytes, len)
        .expect("a stream as it was encoded")
        .for_each_chunk(|offset, values| out[offset..offset + values.len()].copy_from_slice(values));
    out
}

/// Recomputes the checksum of a changed stream, so that the other checks are reached.
pub fn reseal(stream: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&stream[..12]);
    crc.update(&stream[16..]);
    stream[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
}
