//! The first sixteen bytes of every stream.

use crate::{
    DecodeError, Scheme,
    limits::{MAX_BITS, MAX_ELEMENTS},
};

/// First bytes of every stream; the format version follows.
pub const MAGIC: [u8; 3] = *b"FLQ";

/// The newest version that this crate reads and writes. Each stream is written with the oldest version
/// that has its coding.
pub const VERSION: u8 = 3;

/// Size of the header.
pub const HEADER_BYTES: usize = 16;

/// How the codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Packed at a fixed width (plain values for `none` and `f16`).
    Packed,
    /// The scheme's scale bytes and codes, entropy-coded.
    Entropy,
    /// Indices of a uniform quantizer with one step, entropy-coded.
    Uniform,
    /// [`Self::Entropy`] with codes in segments.
    EntropySegments,
    /// [`Self::Uniform`] with indices in segments.
    UniformSegments,
}

impl Coding {
    const ALL: [Self; 5] =
        [Self::Packed, Self::Entropy, Self::Uniform, Self::EntropySegments, Self::UniformSegments];

    /// The version that introduced it.
    const fn version(self) -> u8 {
        match self {
            Self::Packed => 1,
            Self::Entropy | Self::Uniform => 2,
            Self::EntropySegments | Self::UniformSegments => 3,
        }
    }
}

/// The form of a written stream; [`crate::Spec`] is the caller's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The scheme.
    pub scheme: Scheme,
    /// Bits per code.
    pub bits: u8,
    /// How the codes are stored.
    pub coding: Coding,
    /// Number of elements.
    pub count: usize,
}

/// The byte of a scheme on the wire.
const fn scheme_byte(scheme: Scheme) -> u8 {
    match scheme {
        Scheme::None => 0,
        Scheme::F16 => 1,
        Scheme::StocQ => 2,
        Scheme::MsqV2 => 3,
        Scheme::Sdq => 4,
        Scheme::BetaQ => 5,
        Scheme::Bin => 6,
        Scheme::Laq8 => 7,
    }
}

impl Header {
    /// Starts a stream in an empty buffer. Call [`seal`] when the content is complete.
    pub fn write(&self, out: &mut Vec<u8>) {
        debug_assert!(out.is_empty());
        out.resize(HEADER_BYTES, 0);
        self.rewrite(out);
    }

    /// Replaces the header of a stream that is not yet sealed.
    pub fn rewrite(&self, out: &mut [u8]) {
        let [c0, c1, c2, c3] = (self.count as u32).to_le_bytes();
        let [m0, m1, m2] = MAGIC;
        let (version, scheme, coding) = (self.coding.version(), scheme_byte(self.scheme), self.coding as u8);
        out[..HEADER_BYTES - 4]
            .copy_from_slice(&[m0, m1, m2, version, scheme, self.bits, coding, 0, c0, c1, c2, c3]);
    }

    /// Reads the header and verifies the checksum of the whole stream. Returns the header and the content.
    pub fn read(bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let Some((header, content)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(DecodeError::Truncated { needed: HEADER_BYTES, found: bytes.len() });
        };
        let [m0, m1, m2, version, scheme, bits, coding, reserved, c0, c1, c2, c3, crc @ ..] = *header;
        if [m0, m1, m2] != MAGIC {
            return Err(DecodeError::Corrupt("it does not start with FLQ"));
        }
        if !(1..=VERSION).contains(&version) {
            return Err(DecodeError::Unsupported("its version is not 1, 2 or 3"));
        }
        let scheme = Scheme::ALL
            .into_iter()
            .find(|known| scheme_byte(*known) == scheme)
            .ok_or(DecodeError::Unsupported("its scheme is unknown"))?;
        let coding = Coding::ALL
            .into_iter()
            .find(|known| *known as u8 == coding)
            .ok_or(DecodeError::Unsupported("its coding is unknown"))?;
        if version != coding.version() {
            return Err(DecodeError::Corrupt("its version does not have its coding"));
        }
        if reserved != 0 {
            return Err(DecodeError::Unsupported("its reserved byte is not zero"));
        }
        if !(1..=MAX_BITS).contains(&bits) {
            return Err(DecodeError::Corrupt("its width is not 1 to 8 bits"));
        }
        let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        if count > MAX_ELEMENTS {
            return Err(DecodeError::Corrupt("it declares more elements than any stream may hold"));
        }
        if checksum(bytes) != u32::from_le_bytes(crc) {
            return Err(DecodeError::Corrupt("its checksum does not fit its bytes"));
        }
        Ok((Self { scheme, bits, coding, count }, content))
    }
}

/// Writes the checksum into a finished stream.
pub fn seal(stream: &mut [u8]) {
    let crc = checksum(stream).to_le_bytes();
    stream[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc);
}

/// CRC-32 of the header without the checksum field, followed by the content.
fn checksum(stream: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&stream[..HEADER_BYTES - 4]);
    crc.update(&stream[HEADER_BYTES..]);
    crc.finalize()
}
