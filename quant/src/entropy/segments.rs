//! Coded integers of a tensor: one row layout and payload, or a list of segments with one each, which are
//! coded and decoded side by side. See `docs/format.md`, codings 3 and 4.

use super::{
    coder::{EntropyCoder, sample_len},
    decoder::EntropyDecoder,
    layout::{RowLayout, SignSample},
    trellis::Quantization,
};
use crate::{DecodeError, byte_reader::ByteReader, simd::vectorized};
use std::ops::Range;

/// Fewest integers of a segment: bounds how often a stream makes a decoder reset its models.
const MIN_SEGMENT: usize = 1024;

/// Codes the integers of one tensor or segment at a time; its buffers are reused.
#[derive(Debug, Default)]
pub struct IntegerCoder {
    /// For the caller's integers.
    pub integers: Vec<i32>,
    /// For the search of a stride.
    pub signs: SignSample,
    /// The coder behind it.
    pub coder: EntropyCoder,
}

impl IntegerCoder {
    /// Sets the layout's stride by the signs of `integers`.
    pub fn find_stride(&mut self, layout: &mut RowLayout, integers: &[i32]) {
        vectorized(
            #[inline(always)]
            || layout.find_stride(integers, &mut self.signs),
        );
    }

    /// Appends row layout and payload. Without a `shift`, the first rows are coded on trial to choose one.
    pub fn write(
        &mut self,
        mut layout: RowLayout,
        shift: Option<u8>,
        quantization: Quantization,
        integers: &[i32],
        out: &mut Vec<u8>,
    ) {
        match shift {
            Some(shift) => layout.shift = shift,
            None => {
                let sample = &integers[..sample_len(&layout, integers.len())];
                self.coder.find_shift(&mut layout, quantization, sample);
            }
        }
        layout.write(out);
        self.coder.encode(&layout, quantization, integers, out);
    }
}

/// Appends segments of `length` integers each: their length, the size of each segment in bytes, the segments.
pub fn append_segments(length: usize, segments: &[Vec<u8>], out: &mut Vec<u8>) {
    out.extend_from_slice(&(length as u32).to_le_bytes());
    for segment in segments {
        out.extend_from_slice(&(segment.len() as u32).to_le_bytes());
    }
    for segment in segments {
        out.extend_from_slice(segment);
    }
}

/// Row layout and payload of consecutive integers.
#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    layout: RowLayout,
    payload: &'a [u8],
}

/// The coded integers of a tensor; decoding them cannot fail.
#[derive(Debug, Clone)]
pub struct CodedIntegers<'a> {
    count: usize,
    /// Integers of a segment; the last one may be shorter.
    length: usize,
    segments: Vec<Segment<'a>>,
}

impl<'a> CodedIntegers<'a> {
    /// Reads one row layout and payload of `count` integers, to the end.
    pub fn parse_whole(count: usize, reader: &mut ByteReader<'a>) -> Result<Self, DecodeError> {
        let layout = RowLayout::parse(count, reader)?;
        let segments = vec![Segment { layout, payload: reader.rest() }];
        Ok(Self { count, length: count.max(1), segments })
    }

    /// Reads the segments of `count` integers. They must fill the rest exactly.
    pub fn parse_segments(count: usize, reader: &mut ByteReader<'a>) -> Result<Self, DecodeError> {
        let length = u32::from_le_bytes(reader.array()?) as usize;
        if !(MIN_SEGMENT..count).contains(&length) {
            return Err(DecodeError::Corrupt("the length of its segments is out of range"));
        }
        let number = count.div_ceil(length);
        // At most 2^28 / 2^10 segments: the product is small. The list is there before anything is allocated.
        let (sizes, _) = reader.bytes(4 * number)?.as_chunks::<4>();
        let mut segments = Vec::with_capacity(number);
        for (index, size) in sizes.iter().enumerate() {
            let mut content = ByteReader::new(reader.bytes(u32::from_le_bytes(*size) as usize)?, 0);
            let in_segment = length.min(count - index * length);
            let layout = RowLayout::parse(in_segment, &mut content)?;
            segments.push(Segment { layout, payload: content.rest() });
        }
        Ok(Self { count, length, segments })
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The integers of a segment.
    pub fn range(&self, segment: usize) -> Range<usize> {
        let start = segment * self.length;
        start..self.count.min(start + self.length)
    }

    /// Decodes a segment chunk by chunk and calls `f(offset, integers, values)`: see
    /// [`EntropyDecoder::for_each_chunk`]. Offsets count from the tensor's start.
    pub fn decode(
        &self,
        segment: usize,
        quantization: Quantization,
        decoder: &mut EntropyDecoder,
        mut f: impl FnMut(usize, &[i32], &mut Vec<f32>),
    ) {
        let range = self.range(segment);
        let Segment { layout, payload } = &self.segments[segment];
        decoder.for_each_chunk(layout, quantization, payload, range.len(), |offset, integers, values| {
            f(range.start + offset, integers, values);
        });
    }
}
