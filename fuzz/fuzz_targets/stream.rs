//! One stream of an update. Parsing arbitrary bytes must not panic; a stream that it accepts must decode
//! to finite values within its bound, and chunks, pieces and `decompress` must agree.
#![no_main]

use fl_quant::{Stream, decompress};
use libfuzzer_sys::fuzz_target;

/// Position of the checksum in the header; the number of elements is the four bytes before it.
const CHECKSUM: std::ops::Range<usize> = 12..16;
/// Most elements of a stream: keeps an iteration fast.
const MAX_ELEMENTS: u32 = 1 << 16;

/// Recomputes the checksum, so that the checks behind it are reached.
fn reseal(stream: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&stream[..CHECKSUM.start]);
    crc.update(&stream[CHECKSUM.end..]);
    stream[CHECKSUM].copy_from_slice(&crc.finalize().to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    // The unchanged input: its checksum is mostly wrong.
    let _ = Stream::parse(data, 320).map(|stream| check(&stream, 320));
    if data.len() < CHECKSUM.end {
        return;
    }
    let mut bytes = data.to_vec();
    reseal(&mut bytes);
    let count = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if count > MAX_ELEMENTS {
        assert!(Stream::parse(&bytes, 320).is_err(), "a stream of another length is refused");
        return;
    }
    let restored = decompress(&bytes, count as usize);
    match Stream::parse(&bytes, count as usize) {
        Ok(stream) => assert_eq!(restored.as_ref(), Ok(&check(&stream, count as usize))),
        Err(error) => assert_eq!(restored, Err(error)),
    }
});

/// Decodes a valid stream in both ways. Returns its values.
fn check(stream: &Stream<'_>, count: usize) -> Vec<f32> {
    assert_eq!(stream.len(), count);
    assert!(stream.max_abs().is_finite());
    let mut values = Vec::with_capacity(count);
    stream.for_each_chunk(|offset, chunk| {
        assert_eq!(offset, values.len(), "chunks follow one another");
        values.extend_from_slice(chunk);
    });
    assert_eq!(values.len(), count);
    for value in &values {
        assert!(value.abs() <= stream.max_abs(), "{value} is beyond {}", stream.max_abs());
    }
    let mut pieces = vec![f32::NAN; count];
    let mut next = 0;
    stream.for_each_piece(|offset, piece| {
        assert_eq!(offset, next, "pieces follow one another");
        next += piece.len();
        piece.decode_into(&mut pieces[offset..next]);
    });
    assert_eq!(next, count);
    assert_eq!(values, pieces, "pieces and chunks hold the same values");
    values
}
