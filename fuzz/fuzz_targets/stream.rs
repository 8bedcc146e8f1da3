//! One stream as it lies in an update: whatever comes in, parsing neither panics nor lies, and what it
//! accepts decodes to finite values within the bound that it promises, piece by piece as chunk by chunk.
#![no_main]

use fl_quant::Stream;
use libfuzzer_sys::fuzz_target;

/// Where a stream's header has its checksum; the number of elements is the four bytes before.
const CHECKSUM: std::ops::Range<usize> = 12..16;
/// Most elements that are asked for: the search is to be quick and small.
const MAX_ELEMENTS: u32 = 1 << 16;

/// Makes the checksum right: behind it lies what is worth trying.
fn reseal(stream: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&stream[..CHECKSUM.start]);
    crc.update(&stream[CHECKSUM.end..]);
    stream[CHECKSUM].copy_from_slice(&crc.finalize().to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    // As it came: mostly a wrong checksum, and never more elements than the model has.
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
    if let Ok(stream) = Stream::parse(&bytes, count as usize) {
        check(&stream, count as usize);
    }
});

fn check(stream: &Stream<'_>, count: usize) {
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
    assert!(values.iter().zip(&pieces).all(|(a, b)| a == b), "both ways give the same values");
}
