//! Packed codes as they lie in a stream, for those who need not turn each into a number of its own.

use crate::{
    bits::Lookup,
    limits::CHUNK,
    schemes::{Levels, Scales},
};

/// Elements of a stream: decoded, or still as codes.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Values, as [`crate::Stream::for_each_chunk`] gives them.
    Values(&'a [f32]),
    /// Codes of 4 bits. What is done with a value can be done once for each of the sixteen that a block
    /// may hold, instead of once for each element.
    Codes(Codes<'a>),
}

impl Piece<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Codes(codes) => codes.len(),
        }
    }

    /// True for no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decodes into a slice of the same length.
    pub fn decode_into(&self, out: &mut [f32]) {
        match self {
            Self::Values(values) => out.copy_from_slice(values),
            Self::Codes(codes) => codes.decode_into(out),
        }
    }
}

/// Codes of 4 bits, two in a byte, the first in its lower half. They come in blocks that share a scale;
/// an element is `levels[code] * scale + centre`, each operation rounded to f32.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a> {
    levels: &'a [f32; 16],
    source: &'a Levels,
    scales: &'a [u8],
    codes: &'a [u8],
    len: usize,
}

impl<'a> Codes<'a> {
    /// Most elements of a block.
    pub const MAX_BLOCK: usize = CHUNK;

    /// Bits of the codes that come this way: the usual width, at which a block has far fewer levels than
    /// elements.
    pub(crate) const BITS: u8 = 4;

    /// All elements of a stream, if it has sixteen levels.
    pub(crate) fn new(source: &'a Levels, scales: &'a [u8], codes: &'a [u8], len: usize) -> Option<Self> {
        let levels = source.levels.as_array()?;
        // A block must end with a byte.
        let fits = source.block().is_multiple_of(2) && source.block() <= Self::MAX_BLOCK;
        fits.then_some(Self { levels, source, scales, codes, len })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One level per code.
    pub fn levels(&self) -> &'a [f32; 16] {
        self.levels
    }

    /// What is added to every element in the end.
    pub fn centre(&self) -> f32 {
        self.source.centre
    }

    /// Elements of a block; the last one may be shorter.
    pub fn block(&self) -> usize {
        self.source.block()
    }

    /// The first `blocks` blocks, and what follows them.
    #[must_use]
    pub fn split(self, blocks: usize) -> (Self, Self) {
        let len = self.len.min(blocks * self.block());
        let (codes, later_codes) = self.codes.split_at(len.div_ceil(2));
        let (scales, later_scales) = self.scales.split_at(self.scales.len().min(blocks));
        let now = Self { scales, codes, len, ..self };
        (now, Self { scales: later_scales, codes: later_codes, len: self.len - len, ..self })
    }

    /// Every block in order: `f(scale, codes)`. Of the last byte of a last block of odd length, the upper
    /// half stands for nothing.
    #[inline(always)]
    pub fn for_each_block(&self, mut f: impl FnMut(f32, &'a [u8])) {
        let blocks = self.codes.chunks(self.block() / 2);
        match &self.source.scales {
            Scales::Whole(scale) => blocks.for_each(|codes| f(*scale, codes)),
            Scales::Blocks { table, .. } => {
                for (codes, byte) in blocks.zip(self.scales) {
                    f(table[*byte as usize], codes);
                }
            }
        }
    }

    /// Decodes into a slice of the same length.
    pub fn decode_into(&self, out: &mut [f32]) {
        Lookup::new(self.levels, Self::BITS, self.len).expand(self.codes, out);
        self.source.apply(self.scales, 0, out);
    }
}

impl Levels {
    /// Elements that share a scale; of one scale for all, so many that a block stays in the cache.
    fn block(&self) -> usize {
        match self.scales {
            Scales::Whole(_) => CHUNK,
            Scales::Blocks { block, .. } => block,
        }
    }
}
