//! Reading a stream: everything is checked first, then decoding cannot fail.

use crate::{
    DecodeError, Scheme,
    bits::{Lookup, packed_len},
    header::{HEADER_BYTES, Header},
    limits::CHUNK,
    reader::Reader,
    schemes::Levels,
};
use half::f16;

/// A stream whose every byte has been checked: decoding cannot fail any more.
///
/// Checking allocates a few kilobytes for the levels, whatever the stream declares.
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
    Packed { levels: Levels<'a>, codes: &'a [u8] },
}

impl<'a> Stream<'a> {
    /// Checks `bytes` as a stream of exactly `expected` elements.
    ///
    /// # Errors
    /// If the stream is damaged, cut short, of an unknown version or scheme, of another length than
    /// `expected`, or if it would decode to a value that is not finite.
    pub fn parse(bytes: &'a [u8], expected: usize) -> Result<Self, DecodeError> {
        let (header, content) = Header::read(bytes)?;
        if header.count != expected {
            return Err(DecodeError::WrongLength { expected, found: header.count });
        }
        let mut reader = Reader::new(content, HEADER_BYTES);
        let (body, max_abs) = match header.scheme {
            Scheme::None => plain(&mut reader, expected, f32::from_le_bytes, Body::F32)?,
            Scheme::F16 => plain(&mut reader, expected, |b| f16::from_le_bytes(b).to_f32(), Body::F16)?,
            scheme => {
                let levels = Levels::parse(scheme, header.bits, expected, &mut reader)?;
                let max_abs = levels.max_abs()?;
                let codes = reader.bytes(packed_len(expected, header.bits))?;
                (Body::Packed { levels, codes }, max_abs)
            }
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

    /// The scheme that wrote it. Very short tensors are written as `none` whatever was asked for.
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

    /// Decodes in order, a chunk at a time: `f(offset, values)`.
    ///
    /// `f` is compiled together with the decoder for the widest vectors that the machine has, so a
    /// simple loop in it (adding into an accumulator) runs at that width.
    #[inline(always)]
    pub fn for_each_chunk(&self, mut f: impl FnMut(usize, &[f32])) {
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || match &self.body {
                Body::F32(bytes) => decode_plain(bytes, f32::from_le_bytes, &mut f),
                Body::F16(bytes) => decode_plain(bytes, |b| f16::from_le_bytes(b).to_f32(), &mut f),
                Body::Packed { levels, codes } => decode_packed(&self.header, levels, codes, &mut f),
            },
        );
    }

    /// Decodes into a slice of the stream's length; a longer rest is left alone.
    pub fn decode_into(&self, out: &mut [f32]) {
        self.for_each_chunk(|offset, values| {
            if let Some(out) = out.get_mut(offset..offset + values.len()) {
                out.copy_from_slice(values);
            }
        });
    }
}

fn plain<'a, const N: usize>(
    reader: &mut Reader<'a>,
    count: usize,
    read: impl Fn([u8; N]) -> f32,
    body: impl Fn(&'a [u8]) -> Body<'a>,
) -> Result<(Body<'a>, f32), DecodeError> {
    let bytes = reader.bytes(count * N)?;
    let (values, _) = bytes.as_chunks::<N>();
    // Infinity and NaN are larger than any finite value when compared as integers.
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

#[inline(always)]
fn decode_packed(header: &Header, levels: &Levels<'_>, codes: &[u8], f: &mut impl FnMut(usize, &[f32])) {
    let lookup = Lookup::new(&levels.levels, header.bits, header.count);
    let mut buffer = [0.0; CHUNK];
    // A chunk is a whole number of bytes at every width.
    let chunk_bytes = packed_len(CHUNK, header.bits);
    for (index, packed) in codes.chunks(chunk_bytes).enumerate() {
        let offset = index * CHUNK;
        let values = &mut buffer[..CHUNK.min(header.count - offset)];
        lookup.expand(packed, values);
        levels.apply(offset, values);
        f(offset, values);
    }
}
