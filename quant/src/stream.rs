//! Decoding: [`Stream::parse`] validates a stream, after which decoding is infallible.

use crate::{
    DecodeError, Scheme,
    bit_packing::{LevelLookup, packed_len},
    byte_reader::ByteReader,
    entropy::{CodedIntegers, EntropyDecoder, Quantization},
    header::{Coding, HEADER_BYTES, Header},
    limits::CHUNK,
    packed::{Codes, Piece},
    schemes::Dequantizer,
    simd::vectorized,
    threads::Threads,
    uniform,
};
use half::f16;
use std::{cell::RefCell, ops::Range};

/// Elements that a thread decodes of packed codes or plain values at a time.
const PART: usize = 1 << 18;

/// A validated stream: decoding it cannot fail.
///
/// Parsing allocates a few kilobytes for the levels and at most one byte per 12 elements; decoding at most
/// twice the size of the values plus 100 kilobytes, for each thread that decodes.
#[derive(Debug, Clone)]
pub struct Stream<'a> {
    header: Header,
    body: Body<'a>,
    max_abs: f32,
}

#[derive(Debug, Clone)]
enum Body<'a> {
    F32(&'a [u8]),
    F16(&'a [u8]),
    Packed { levels: Dequantizer, scales: &'a [u8], codes: &'a [u8] },
    Entropy(EntropyCodes<'a>),
    Uniform { side: uniform::SideInfo, indices: CodedIntegers<'a> },
}

thread_local! {
    /// Buffers of the entropy decoder: decoding allocates nothing once they have grown.
    static DECODER: RefCell<EntropyDecoder> = RefCell::default();
}

/// Lends the thread's decoder. A nested call (decoding from within a decoder's callback) gets a new one.
fn with_decoder<R>(work: impl FnOnce(&mut EntropyDecoder) -> R) -> R {
    let mut decoder = DECODER.take();
    let result = work(&mut decoder);
    DECODER.set(decoder);
    result
}

impl<'a> Stream<'a> {
    /// Validates `bytes` as a stream of exactly `expected` elements.
    ///
    /// # Errors
    /// If the stream is damaged, truncated, of an unknown version or scheme, of another length than
    /// `expected`, or if it could decode to a value that is not finite.
    pub fn parse(bytes: &'a [u8], expected: usize) -> Result<Self, DecodeError> {
        let (header, content) = Header::read(bytes)?;
        if header.count != expected {
            return Err(DecodeError::WrongLength { expected, found: header.count });
        }
        let mut reader = ByteReader::new(content, HEADER_BYTES);
        let (body, max_abs) = match header.scheme {
            Scheme::None => plain(&mut reader, expected, f32::from_le_bytes, Body::F32)?,
            Scheme::F16 => plain(&mut reader, expected, |b| f16::from_le_bytes(b).to_f32(), Body::F16)?,
            scheme => match header.coding {
                Coding::Packed => {
                    let levels = Dequantizer::parse(scheme, header.bits, &mut reader)?;
                    let scales = reader.bytes(levels.scales.bytes(expected))?;
                    let max_abs = levels.max_abs(scales)?;
                    let codes = reader.bytes(packed_len(expected, header.bits))?;
                    (Body::Packed { levels, scales, codes }, max_abs)
                }
                Coding::Entropy | Coding::EntropySegments => {
                    let levels = Dequantizer::parse(scheme, header.bits, &mut reader)?;
                    let scales = coded_scales(&mut reader, levels.scales.bytes(expected))?;
                    let max_abs = levels.max_abs(&scales)?;
                    let codes = match header.coding {
                        Coding::Entropy => CodedIntegers::parse_whole(expected, &mut reader)?,
                        _ => CodedIntegers::parse_segments(expected, &mut reader)?,
                    };
                    (Body::Entropy(EntropyCodes { levels, scales, codes }), max_abs)
                }
                Coding::Uniform | Coding::UniformSegments if scheme == Scheme::MsqV2 => {
                    let side = uniform::SideInfo::parse(&mut reader)?;
                    let indices = match header.coding {
                        Coding::Uniform => CodedIntegers::parse_whole(expected, &mut reader)?,
                        _ => CodedIntegers::parse_segments(expected, &mut reader)?,
                    };
                    let max_abs = side.max_abs()?;
                    (Body::Uniform { side, indices }, max_abs)
                }
                Coding::Uniform | Coding::UniformSegments => {
                    return Err(DecodeError::Corrupt("its scheme does not have its coding"));
                }
            },
        };
        reader.finish()?;
        Ok(Self { header, body, max_abs })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.header.count
    }

    /// True for a stream without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scheme that was written. Encoders write very short tensors as `none`, whatever was asked for.
    pub fn scheme(&self) -> Scheme {
        self.header.scheme
    }

    /// Bits per code.
    pub fn bits(&self) -> u8 {
        self.header.bits
    }

    /// An upper bound of the magnitude of every decoded value; finite.
    pub fn max_abs(&self) -> f32 {
        self.max_abs
    }

    /// Decodes in order, a chunk at a time, and calls `f(offset, values)`.
    ///
    /// `f` is inlined into a decoder that is compiled for the widest vectors of the machine, so a simple loop
    /// in it (adding to an accumulator) is vectorised too.
    #[inline(always)]
    pub fn for_each_chunk(&self, mut f: impl FnMut(usize, &[f32])) {
        self.decode_range(0..self.parts(), &mut f);
    }

    /// Decodes some parts: see [`Self::for_each_chunk`].
    #[inline(always)]
    fn decode_range(&self, parts: Range<usize>, f: &mut impl FnMut(usize, &[f32])) {
        match &self.body {
            // `f` as `&mut dyn FnMut`: the entropy decoder is compiled once, in this crate.
            Body::Entropy(coded) => {
                with_decoder(|decoder| parts.for_each(|segment| coded.decode(segment, decoder, f)));
            }
            Body::Uniform { side, indices } => {
                with_decoder(|decoder| {
                    parts.for_each(|segment| side.decode(indices, segment, decoder, f));
                });
            }
            body => {
                let range = self.part(parts.start).start..self.part(parts.end - 1).end;
                vectorized(
                    #[inline(always)]
                    || match body {
                        Body::F32(bytes) => decode_plain(bytes, f32::from_le_bytes, &range, f),
                        Body::F16(bytes) => {
                            decode_plain(bytes, |b| f16::from_le_bytes(b).to_f32(), &range, f)
                        }
                        Body::Packed { levels, scales, codes } => {
                            decode_packed(&self.header, levels, scales, codes, &range, f);
                        }
                        Body::Entropy(_) | Body::Uniform { .. } => {}
                    },
                );
            }
        }
    }

    /// Number of parts that can be decoded by themselves; at least 1.
    fn parts(&self) -> usize {
        match &self.body {
            Body::Entropy(EntropyCodes { codes: integers, .. }) | Body::Uniform { indices: integers, .. } => {
                integers.segments()
            }
            _ => self.len().div_ceil(PART).max(1),
        }
    }

    /// The elements of a part.
    fn part(&self, part: usize) -> Range<usize> {
        match &self.body {
            Body::Entropy(EntropyCodes { codes: integers, .. }) | Body::Uniform { indices: integers, .. } => {
                integers.range(part)
            }
            _ => part * PART..self.len().min((part + 1) * PART),
        }
    }

    /// Like [`Self::for_each_chunk`], but a stream of packed 4-bit codes comes as one piece of codes.
    pub fn for_each_piece(&self, mut f: impl FnMut(usize, Piece<'_>)) {
        if let Body::Packed { levels, scales, codes } = &self.body
            && self.header.bits == Codes::BITS
            && let Some(codes) = Codes::new(levels, scales, codes, self.header.count)
        {
            return f(0, Piece::Codes(codes));
        }
        self.for_each_chunk(|offset, values| f(offset, Piece::Values(values)));
    }

    /// Decodes into a slice of the stream's length. Elements of `out` beyond it are left unchanged.
    pub fn decode_into(&self, out: &mut [f32]) {
        self.for_each_chunk(|offset, values| {
            if let Some(out) = out.get_mut(offset..offset + values.len()) {
                out.copy_from_slice(values);
            }
        });
    }
}

/// Decodes the streams of an update, in order, into the values of all tensors, with several threads.
///
/// Elements of `out` beyond the last stream are left unchanged, values beyond the end of `out` are dropped.
///
/// ```
/// use fl_quant::{Spec, Stream, Threads, compress, decode_update};
///
/// let bytes = compress(&[0.5; 300], &[300], &Spec::default())?;
/// let stream = Stream::parse(&bytes, 300).expect("written above");
/// let mut values = vec![0.0; 600];
/// decode_update(&Threads::new(2).expect("two threads"), &[stream.clone(), stream], &mut values);
/// assert_eq!(values[..300], values[300..]);
/// # Ok::<(), fl_quant::EncodeError>(())
/// ```
pub fn decode_update(threads: &Threads, streams: &[Stream<'_>], out: &mut [f32]) {
    let parts = parts_of(streams);
    let mut items = Vec::with_capacity(parts.len());
    let mut rest = out;
    for part in &parts {
        let (place, tail) = rest.split_at_mut(part.len.min(rest.len()));
        rest = tail;
        items.push((part, place));
    }
    threads.each(items.into_iter(), |(part, place)| {
        part.decode(&mut |offset, values| {
            let at = offset - part.start;
            if let Some(place) = place.get_mut(at..at + values.len()) {
                place.copy_from_slice(values);
            }
        });
    });
}

/// A part of a stream that can be decoded by itself.
pub(crate) struct StreamPart<'s> {
    stream: &'s Stream<'s>,
    index: usize,
    /// Offset of the stream in the update.
    tensor: usize,
    /// Offset of the part in the update.
    start: usize,
    len: usize,
}

impl StreamPart<'_> {
    /// Decodes a chunk at a time and calls `f(offset, values)`; offsets count from the update's start.
    pub(crate) fn decode(&self, f: &mut dyn FnMut(usize, &[f32])) {
        let parts = self.index..self.index + 1;
        self.stream.decode_range(parts, &mut |offset, values| f(self.tensor + offset, values));
    }
}

/// The parts of an update's streams, in order.
pub(crate) fn parts_of<'s>(streams: &'s [Stream<'s>]) -> Vec<StreamPart<'s>> {
    let mut parts = Vec::with_capacity(streams.len());
    let mut tensor = 0;
    for stream in streams {
        parts.extend((0..stream.parts()).map(|index| {
            let range = stream.part(index);
            StreamPart { stream, index, tensor, start: tensor + range.start, len: range.len() }
        }));
        tensor += stream.len();
    }
    parts
}

fn plain<'a, const N: usize>(
    reader: &mut ByteReader<'a>,
    count: usize,
    read: impl Fn([u8; N]) -> f32,
    body: impl Fn(&'a [u8]) -> Body<'a>,
) -> Result<(Body<'a>, f32), DecodeError> {
    let bytes = reader.bytes(count * N)?;
    let (values, _) = bytes.as_chunks::<N>();
    // The bits of infinities and NaN are above those of all finite magnitudes.
    let bits = values.iter().fold(0, |max: u32, &b| max.max(read(b).to_bits() & 0x7fff_ffff));
    let max_abs = f32::from_bits(bits);
    if max_abs.is_finite() { Ok((body(bytes), max_abs)) } else { Err(DecodeError::NonFinite) }
}

#[inline(always)]
fn decode_plain<const N: usize>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> f32,
    range: &Range<usize>,
    f: &mut impl FnMut(usize, &[f32]),
) {
    let mut buffer = [0.0; CHUNK];
    let (values, _) = bytes.as_chunks::<N>();
    for (index, chunk) in values[range.clone()].chunks(CHUNK).enumerate() {
        for (out, &b) in buffer.iter_mut().zip(chunk) {
            *out = read(b);
        }
        f(range.start + index * CHUNK, &buffer[..chunk.len()]);
    }
}

/// Reads entropy-coded scale bytes: length in bytes, row layout, differences from byte to byte.
fn coded_scales(reader: &mut ByteReader<'_>, count: usize) -> Result<Vec<u8>, DecodeError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let length = u32::from_le_bytes(reader.array()?) as usize;
    let mut content = ByteReader::new(reader.bytes(length)?, 0);
    let differences = CodedIntegers::parse_whole(count, &mut content)?;
    let mut scales = Vec::with_capacity(count);
    let mut scale = 0u8;
    with_decoder(|decoder| {
        differences.decode(0, Quantization::Scalar, decoder, |_, differences, _| {
            scales.extend(differences.iter().map(|difference| {
                scale = scale.wrapping_add(*difference as u8);
                scale
            }));
        });
    });
    Ok(scales)
}

/// Entropy-coded codes: differences to the code of the level nearest to zero.
#[derive(Debug, Clone)]
struct EntropyCodes<'a> {
    levels: Dequantizer,
    scales: Vec<u8>,
    codes: CodedIntegers<'a>,
}

impl EntropyCodes<'_> {
    fn decode(&self, segment: usize, decoder: &mut EntropyDecoder, f: &mut dyn FnMut(usize, &[f32])) {
        let Self { levels, scales, codes } = self;
        let zero = levels.zero_code() as i32;
        let last = levels.levels.len() as i32 - 1;
        codes.decode(segment, Quantization::Scalar, decoder, |offset, indices, values| {
            values.resize(indices.len(), 0.0);
            vectorized(
                #[inline(always)]
                || {
                    for (value, index) in values.iter_mut().zip(indices) {
                        *value = levels.levels[(index + zero).clamp(0, last) as usize];
                    }
                    levels.apply(scales, offset, values);
                },
            );
            f(offset, values);
        });
    }
}

#[inline(always)]
fn decode_packed(
    header: &Header,
    levels: &Dequantizer,
    scales: &[u8],
    codes: &[u8],
    range: &Range<usize>,
    f: &mut impl FnMut(usize, &[f32]),
) {
    let lookup = LevelLookup::new(&levels.levels, header.bits, header.count);
    let mut buffer = [0.0; CHUNK];
    // A chunk is a whole number of bytes at every width.
    let chunk_bytes = packed_len(CHUNK, header.bits);
    let codes = &codes[packed_len(range.start, header.bits)..packed_len(range.end, header.bits)];
    for (index, packed) in codes.chunks(chunk_bytes).enumerate() {
        let offset = range.start + index * CHUNK;
        let values = &mut buffer[..CHUNK.min(range.end - offset)];
        lookup.expand(packed, values);
        levels.apply(scales, offset, values);
        f(offset, values);
    }
}
