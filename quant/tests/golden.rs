//! Streams written once must decode to the same bits for ever.
//!
//! `assets/NAME.flq` is a stream, `assets/NAME.f32` what it decodes to. They are never regenerated:
//! with `FL_WRITE_GOLDEN=1` the test writes only those that do not exist yet.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_quant::{Encoder, Scheme, Spec, Stream, encode_update};
use std::{fs, path::PathBuf};

/// Not a multiple of any block, so that the last block and the last byte are short.
const COUNT: usize = 197;

/// Heavy-tailed values with exact zeros, from integers alone.
fn values() -> Vec<f32> {
    let mut state = 1u32;
    (0..COUNT)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let unit = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if i % 7 == 0 || (64..96).contains(&i) { 0.0 } else { 0.01 * unit * unit * unit }
        })
        .collect()
}

fn cases() -> Vec<(String, Spec)> {
    let mut cases = Vec::new();
    for scheme in [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ] {
        for bits in 1..=8 {
            cases.push((format!("v1_{scheme}_{bits}"), Spec::new(scheme, bits)));
        }
    }
    for scheme in [Scheme::Bin, Scheme::Laq8, Scheme::F16, Scheme::None] {
        cases.push((format!("v1_{scheme}"), Spec::new(scheme, 8)));
    }
    cases
}

#[test]
fn golden_streams_decode_to_the_same_bits() {
    let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets");
    for (name, spec) in cases() {
        let stream_file = assets.join(format!("{name}.flq"));
        let values_file = assets.join(format!("{name}.f32"));
        if std::env::var_os("FL_WRITE_GOLDEN").is_some() && !stream_file.exists() {
            let mut outs = Vec::new();
            encode_update(&mut Encoder::default(), &values(), &[vec![COUNT]], &spec, &mut outs).unwrap();
            fs::write(&stream_file, &outs[0]).unwrap();
            fs::write(&values_file, decoded(&outs[0])).unwrap();
        }
        let stream = fs::read(&stream_file).unwrap();
        assert_eq!(decoded(&stream), fs::read(&values_file).unwrap(), "{name}");
    }
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    let stream = Stream::parse(bytes, COUNT).unwrap();
    let mut values = vec![0.0f32; COUNT];
    stream.decode_into(&mut values);
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
