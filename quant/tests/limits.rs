//! Every bound of the format: a stream at the bound is valid, one beyond it is refused for that reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{delta, encode, reseal};
use fl_quant::{DecodeError, EncodeError, Encoder, Scheme, Spec, Stream, compress, encode_update};

const SHAPE: [usize; 2] = [5, 60];
const COUNT: usize = 300;

/// The stream with `bytes` at `offset` and a valid checksum.
fn patched(stream: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    stream[offset..offset + bytes.len()].copy_from_slice(bytes);
    reseal(&mut stream);
    stream
}

fn packed(scheme: Scheme) -> Vec<u8> {
    encode(&delta(COUNT, 1), &SHAPE, &Spec::new(scheme, 4))
}

fn uniform() -> Vec<u8> {
    encode(&delta(COUNT, 1), &SHAPE, &Spec::default())
}

#[track_caller]
fn valid(stream: &[u8], offset: usize, bytes: &[u8]) {
    Stream::parse(&patched(stream, offset, bytes), COUNT).unwrap();
}

#[track_caller]
fn refused(stream: &[u8], offset: usize, bytes: &[u8], reason: &str) {
    let error = Stream::parse(&patched(stream, offset, bytes), COUNT).unwrap_err().to_string();
    assert!(error.contains(reason), "refused as `{error}`");
}

#[test]
fn header_fields() {
    let stream = packed(Scheme::StocQ);
    refused(&stream, 0, b"flq", "does not start with FLQ");
    refused(&stream, 3, &[0], "version");
    refused(&stream, 3, &[4], "version is not 1, 2 or 3");
    refused(&stream, 3, &[2], "version does not have its coding");
    refused(&stream, 4, &[8], "scheme is unknown");
    refused(&stream, 5, &[0], "1 to 8 bits");
    refused(&stream, 5, &[9], "1 to 8 bits");
    refused(&stream, 6, &[5], "coding is unknown");
    refused(&stream, 7, &[1], "reserved byte");
    refused(&stream, 3, &[2, 2, 4, 2], "scheme does not have its coding");
    refused(&packed(Scheme::Laq8), 5, &[7], "laq8 has 8 bits");
    refused(&packed(Scheme::Bin), 5, &[2], "bin has 1 bit");
    let mut damaged = stream.clone();
    damaged[20] ^= 1;
    assert!(Stream::parse(&damaged, COUNT).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn element_counts() {
    let stream = packed(Scheme::StocQ);
    let max = 1u32 << 28;
    let error =
        |count: u32| Stream::parse(&patched(&stream, 8, &count.to_le_bytes()), count as usize).unwrap_err();
    // At the bound the content is missing; beyond it the count itself is wrong.
    assert!(matches!(error(max), DecodeError::Truncated { .. }));
    assert!(matches!(error(max + 1), DecodeError::Corrupt(reason) if reason.contains("more elements")));
    assert_eq!(
        Stream::parse(&stream, COUNT + 1).unwrap_err(),
        DecodeError::WrongLength { expected: COUNT + 1, found: COUNT }
    );

    let spec = Spec::default();
    let too_large = Err(EncodeError::TooLarge { max: max as usize });
    assert_eq!(compress(&[], &[max as usize + 1], &spec), too_large);
    assert_eq!(compress(&[], &[usize::MAX, 2], &spec), too_large);
    // At the bound it is the length of the input that is wrong.
    assert_eq!(
        compress(&[], &[max as usize], &spec),
        Err(EncodeError::Shape { shape: max as usize, found: 0 })
    );
}

#[test]
fn widths() {
    for scheme in Scheme::ALL {
        assert!(compress(&[1.0], &[1], &Spec::new(scheme, 1)).is_ok());
        assert!(compress(&[1.0], &[1], &Spec::new(scheme, 8)).is_ok());
        for bits in [0, 9, 255] {
            let error = compress(&[1.0], &[1], &Spec::new(scheme, bits)).unwrap_err();
            assert_eq!(error, EncodeError::Bits { scheme: scheme.name(), bits });
        }
    }
}

#[test]
fn values_that_are_not_finite() {
    let mut streams = Vec::new();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for scheme in Scheme::ALL {
            let x = [0.0, 1.0, bad, bad];
            let shapes = [vec![1], vec![3]];
            let result =
                encode_update(&mut Encoder::default(), &x, &shapes, &Spec::new(scheme, 4), &mut streams);
            assert_eq!(result, Err(EncodeError::NonFinite(2)), "{scheme}, {bad}");
        }
        let not_finite = DecodeError::NonFinite.to_string();
        let bytes = bad.to_le_bytes();
        refused(&packed(Scheme::None), 16 + 4 * 7, &bytes, &not_finite);
        refused(&packed(Scheme::F16), 16 + 2 * 7, &half::f16::from_f32(bad).to_le_bytes(), &not_finite);
        for scheme in [Scheme::StocQ, Scheme::Laq8, Scheme::Bin, Scheme::MsqV2, Scheme::BetaQ, Scheme::Sdq] {
            refused(&packed(scheme), 16, &bytes, &not_finite);
        }
        refused(&packed(Scheme::Sdq), 20, &bytes, &not_finite);
        refused(&packed(Scheme::MsqV2), 20, &half::f16::from_f32(bad).to_le_bytes(), &not_finite);
        refused(&uniform(), 16, &bytes, &not_finite);
    }
}

/// Side information that is finite, but whose product with a level is not.
#[test]
fn values_that_would_overflow() {
    let not_finite = DecodeError::NonFinite.to_string();
    let (fits, overflows) = (1e35f32.to_le_bytes(), f32::MAX.to_le_bytes());
    // The grid's unused top code decodes to more than 1, levels of SDQ go up to 8.
    valid(&packed(Scheme::StocQ), 16, &fits);
    refused(&packed(Scheme::StocQ), 16, &overflows, &not_finite);
    valid(&packed(Scheme::Sdq), 20, &fits);
    refused(&packed(Scheme::Sdq), 20, &overflows, &not_finite);
    valid(&uniform(), 16, &fits);
    refused(&uniform(), 16, &overflows, &not_finite);
}

#[test]
fn shapes_of_the_beta_density() {
    let stream = packed(Scheme::BetaQ);
    for offset in [20, 24] {
        for (bound, beyond) in [(0.0625f32, 0.0625f32.next_down()), (1024.0, 1024.0f32.next_up())] {
            valid(&stream, offset, &bound.to_le_bytes());
            refused(&stream, offset, &beyond.to_le_bytes(), "Beta shape is out of range");
        }
    }
}

#[test]
fn uniform_side_information() {
    let stream = uniform();
    valid(&stream, 20, &(1u32 << 20).to_le_bytes());
    refused(&stream, 20, &((1u32 << 20) + 1).to_le_bytes(), "largest index is out of range");
    valid(&stream, 27, &[2]);
    refused(&stream, 27, &[0], "number of quantizers");
    refused(&stream, 27, &[3], "number of quantizers");
}

#[test]
fn row_layouts() {
    const REASON: &str = "row layout is out of range";
    let stream = uniform();
    let layout = |cols: u16, stride: u16, lanes: u8, shift: u8| {
        let ([c0, c1], [s0, s1]) = (cols.to_le_bytes(), stride.to_le_bytes());
        [c0, c1, s0, s1, lanes, shift]
    };
    // 300 elements: 5 rows of 60, so that four lanes are possible.
    for (cols, stride, lanes, shift) in
        [(1, 0, 4, 6), (300, 300, 1, 6), (60, 0, 4, 5), (60, 60, 4, 8), (60, 2, 1, 6)]
    {
        valid(&stream, 28, &layout(cols, stride, lanes, shift));
    }
    for (cols, stride, lanes, shift) in [
        (0, 0, 1, 6),
        (301, 0, 1, 6),
        (60, 1, 1, 6),
        (60, 61, 1, 6),
        (60, 0, 0, 6),
        (60, 0, 5, 6),
        // Two rows have no third lane.
        (150, 0, 3, 6),
        (60, 0, 4, 4),
        (60, 0, 4, 9),
    ] {
        refused(&stream, 28, &layout(cols, stride, lanes, shift), REASON);
    }
}

/// Magnitudes at both ends of what the schemes can quantize.
#[test]
fn tensors_out_of_range_are_written_as_they_are() {
    for (magnitude, quantizable) in
        [(1e-15f32, true), (1e-15f32.next_down(), false), (1e15f32.next_down(), true), (1e15, false)]
    {
        let x: Vec<f32> = delta(COUNT, 2).iter().map(|v| v * 1e-6 * magnitude).chain([magnitude]).collect();
        for spec in [Spec::new(Scheme::StocQ, 4), Spec::default()] {
            let bytes = encode(&x, &[x.len()], &spec);
            let stream = Stream::parse(&bytes, x.len()).unwrap();
            assert_eq!(stream.scheme() == spec.scheme, quantizable, "{magnitude:e}, {spec:?}");
            assert_eq!(stream.scheme() == Scheme::None, !quantizable, "{magnitude:e}, {spec:?}");
        }
    }
}
