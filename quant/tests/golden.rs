//! Golden streams: every build must decode the files of earlier builds to the same bits.
//!
//! `assets/NAME.flq` is a stream, `assets/NAME.f32` the values it decodes to. Files are never regenerated:
//! with `FL_WRITE_GOLDEN=1` the test writes only those that do not exist yet.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_quant::{Encoder, Scheme, Spec, Stream, Target, encode_update};
use std::{fs, path::PathBuf};

/// Not a multiple of any block, so that the last block and the last byte are short.
const COUNT: usize = 197;

/// Rows and columns of the version 2 cases: four lanes, a last group of two rows, a short last block.
const MATRIX: [usize; 2] = [6, 701];

/// Heavy-tailed values with exact zeros, from a linear congruential generator.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..count)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let unit = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if i % 7 == 0 || (64..96).contains(&i) { 0.0 } else { 0.01 * unit * unit * unit }
        })
        .collect()
}

/// Values with a period of 28 columns in their signs and sizes.
fn matrix() -> Vec<f32> {
    let mut values = values(MATRIX.iter().product());
    for (i, value) in values.iter_mut().enumerate() {
        let place = (i % MATRIX[1]) % 28;
        let sign = if (place / 5 + i / MATRIX[1]).is_multiple_of(2) { 1.0 } else { -1.0 };
        *value = sign * value.abs() / (1 + place) as f32;
    }
    values
}

/// Rows and columns of the version 3 cases: two segments of different length, the second ends in a short group.
const SEGMENTED: [usize; 2] = [11, 390];

struct Case {
    name: String,
    spec: Spec,
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut vector = |name: String, spec| {
        cases.push(Case { name, spec, shape: vec![COUNT], values: values(COUNT) });
    };
    for scheme in [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ] {
        for bits in 1..=8 {
            vector(format!("v1_{scheme}_{bits}"), Spec::new(scheme, bits));
        }
    }
    for scheme in [Scheme::Bin, Scheme::Laq8, Scheme::F16, Scheme::None] {
        vector(format!("v1_{scheme}"), Spec::new(scheme, 8));
    }
    for bits in [2, 4, 8] {
        let spec = Spec { entropy: true, ..Spec::new(Scheme::MsqV2, bits) };
        vector(format!("v2_vector_{bits}"), spec);
        vector(format!("v2_vector_trellis_{bits}"), Spec { rdo: true, ..spec });
    }
    let mut matrix_case = |name: &str, spec| {
        cases.push(Case { name: format!("v2_{name}"), spec, shape: MATRIX.to_vec(), values: matrix() });
    };
    for scheme in [Scheme::StocQ, Scheme::Sdq, Scheme::BetaQ] {
        matrix_case(&format!("{scheme}_4"), Spec { entropy: true, ..Spec::new(scheme, 4) });
    }
    matrix_case("bin", Spec { entropy: true, ..Spec::new(Scheme::Bin, 1) });
    matrix_case("laq8", Spec { entropy: true, ..Spec::new(Scheme::Laq8, 8) });
    for nmse in [0.1, 0.0095, 1e-5] {
        let spec = Spec { target: Target::Nmse(nmse), ..Spec::new(Scheme::MsqV2, 8) };
        matrix_case(&format!("uniform_{nmse}"), spec);
        matrix_case(&format!("trellis_{nmse}"), Spec { rdo: true, ..spec });
    }
    let entropy = |scheme, rdo| Spec { entropy: true, rdo, ..Spec::new(scheme, 3) };
    for (name, spec) in [
        ("uniform", entropy(Scheme::MsqV2, false)),
        ("trellis", entropy(Scheme::MsqV2, true)),
        ("SDQ_3", entropy(Scheme::Sdq, false)),
    ] {
        let values = values(SEGMENTED.iter().product());
        cases.push(Case { name: format!("v3_{name}"), spec, shape: SEGMENTED.to_vec(), values });
    }
    cases
}

#[test]
fn golden_streams_decode_to_the_same_bits() {
    let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets");
    for Case { name, spec, shape, values } in cases() {
        let stream_file = assets.join(format!("{name}.flq"));
        let values_file = assets.join(format!("{name}.f32"));
        if std::env::var_os("FL_WRITE_GOLDEN").is_some() && !stream_file.exists() {
            let bytes = encoded(&name, &spec, shape, &values);
            fs::write(&stream_file, &bytes).unwrap();
            fs::write(&values_file, decoded(&bytes, values.len())).unwrap();
        }
        let stream = fs::read(&stream_file).unwrap();
        assert_eq!(decoded(&stream, values.len()), fs::read(&values_file).unwrap(), "{name}");
    }
}

fn encoded(name: &str, spec: &Spec, shape: Vec<usize>, values: &[f32]) -> Vec<u8> {
    // Short segments for the version 3 cases alone: the others are below the default.
    let segment = if name.starts_with("v3") { 4096 } else { 1 << 20 };
    let (mut encoder, mut outs) = (Encoder::default().with_segments(segment), Vec::new());
    encode_update(&mut encoder, values, &[shape], spec, &mut outs).unwrap();
    outs.swap_remove(0)
}

#[test]
fn every_golden_file_has_a_case() {
    let mut files: Vec<String> = fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: Vec<String> = cases()
        .iter()
        .flat_map(|case| ["flq", "f32"].map(|extension| format!("{}.{extension}", case.name)))
        .collect();
    files.sort();
    expected.sort();
    assert_eq!(files, expected);
}

fn decoded(bytes: &[u8], count: usize) -> Vec<u8> {
    let stream = Stream::parse(bytes, count).unwrap();
    let mut values = vec![0.0f32; count];
    stream.decode_into(&mut values);
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
