//! Decoding: [`Stream::parse`] validates a stream, after which decoding is infallible.

use crate::{
    DecodeError, Scheme,
    bit_packing::{LevelLookup, packed_len},
    byte_reader::ByteReader,
    entropy::{EntropyDecoder, Quantization, RowLayout},
    header::{Coding, HEADER_BYTES, Header},
    limits::CHUNK,
    packed::{Codes, Piece},
    schemes::Dequantizer,
    simd::vectorized,
    uniform,
};
use half::f16;
use std::cell::RefCell;

/// A validated stream: decoding it cannot fail.
///
/// Parsing allocates a few kilobytes for the levels and at most one byte per 32 elements; decoding at most
/// twice the size of the values plus 100 kilobytes.
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
    Uniform { side: uniform::SideInfo, payload: &'a [u8] },
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
                Coding::Entropy => {
                    let levels = Dequantizer::parse(scheme, header.bits, &mut reader)?;
                    let scales = coded_scales(&mut reader, levels.scales.bytes(expected))?;
                    let max_abs = levels.max_abs(&scales)?;
                    let layout = RowLayout::parse(expected, &mut reader)?;
                    (Body::Entropy(EntropyCodes { levels, scales, layout, payload: reader.rest() }), max_abs)
                }
                Coding::Uniform if scheme == Scheme::MsqV2 => {
                    let side = uniform::SideInfo::parse(expected, &mut reader)?;
                    (Body::Uniform { side, payload: reader.rest() }, side.max_abs()?)
                }
                Coding::Uniform => return Err(DecodeError::Corrupt("its scheme does not have its coding")),
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
        let count = self.header.count;
        match &self.body {
            // `f` as `&mut dyn FnMut`: the entropy decoder is compiled once, in this crate.
            Body::Entropy(coded) => with_decoder(|decoder| coded.decode(count, decoder, &mut f)),
            Body::Uniform { side, payload } => {
                with_decoder(|decoder| side.decode(payload, count, decoder, &mut f));
            }
            body => vectorized(
                #[inline(always)]
                || match body {
                    Body::F32(bytes) => decode_plain(bytes, f32::from_le_bytes, &mut f),
                    Body::F16(bytes) => decode_plain(bytes, |b| f16::from_le_bytes(b).to_f32(), &mut f),
                    Body::Packed { levels, scales, codes } => {
                        decode_packed(&self.header, levels, scales, codes, &mut f);
                    }
                    Body::Entropy(_) | Body::Uniform { .. } => {}
                },
            ),
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
    f: &mut impl FnMut(usize, &[f32]),
) {
    let mut buffer = [0.0; CHUNK];
    let (values, _) = bytes.as_chunks::<N>();
    for (index, chunk) in values.chunks(CHUNK).enumerate() {
        for (out, &b) in buffer.iter_mut().zip(chunk) {
            *out = read(b);
        }
        f(index * CHUNK, &buffer[..chunk.len()]);
    }
}

/// Reads entropy-coded scale bytes: length in bytes, row layout, differences from byte to byte.
fn coded_scales(reader: &mut ByteReader<'_>, count: usize) -> Result<Vec<u8>, DecodeError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let length = u32::from_le_bytes(reader.array()?) as usize;
    let mut content = ByteReader::new(reader.bytes(length)?, 0);
    let layout = RowLayout::parse(count, &mut content)?;
    let mut scales = Vec::with_capacity(count);
    let mut scale = 0u8;
    with_decoder(|decoder| {
        decoder.for_each_chunk(&layout, Quantization::Scalar, content.rest(), count, |_, differences, _| {
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
    layout: RowLayout,
    payload: &'a [u8],
}

impl EntropyCodes<'_> {
    fn decode(&self, count: usize, decoder: &mut EntropyDecoder, f: &mut dyn FnMut(usize, &[f32])) {
        let Self { levels, scales, layout, payload } = self;
        let zero = levels.zero_code() as i32;
        let last = levels.levels.len() as i32 - 1;
        decoder.for_each_chunk(layout, Quantization::Scalar, payload, count, |offset, indices, values| {
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
    f: &mut impl FnMut(usize, &[f32]),
) {
    let lookup = LevelLookup::new(&levels.levels, header.bits, header.count);
    let mut buffer = [0.0; CHUNK];
    // A chunk is a whole number of bytes at every width.
    let chunk_bytes = packed_len(CHUNK, header.bits);
    for (index, packed) in codes.chunks(chunk_bytes).enumerate() {
        let offset = index * CHUNK;
        let values = &mut buffer[..CHUNK.min(header.count - offset)];
        lookup.expand(packed, values);
        levels.apply(scales, offset, values);
        f(offset, values);
    }
}
