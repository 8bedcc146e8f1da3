//! Access to packed codes before dequantization: an aggregator can compute once per level of a block
//! instead of once per element.

use crate::{
    bit_packing::LevelLookup,
    limits::CHUNK,
    schemes::{Dequantizer, Scales},
};

/// A run of consecutive elements of a stream: decoded values, or packed codes.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Decoded values, as from [`crate::Stream::for_each_chunk`].
    Values(&'a [f32]),
    /// Packed 4-bit codes. A block has at most sixteen different values, so per-value work can be done per
    /// level instead of per element.
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

/// Packed 4-bit codes, two per byte, the first in the lower half. The codes of a block share a scale; an
/// element is `levels[code] * scale + centre`, each operation rounded to f32.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a> {
    levels: &'a [f32; 16],
    dequantizer: &'a Dequantizer,
    scales: &'a [u8],
    codes: &'a [u8],
    len: usize,
}

impl<'a> Codes<'a> {
    /// Largest block, in elements.
    pub const MAX_BLOCK: usize = CHUNK;

    /// The only width: the default one, at which a block has far fewer levels than elements.
    pub(crate) const BITS: u8 = 4;

    /// All elements of a stream; `None` unless it has sixteen levels and blocks of whole bytes.
    pub(crate) fn new(
        dequantizer: &'a Dequantizer,
        scales: &'a [u8],
        codes: &'a [u8],
        len: usize,
    ) -> Option<Self> {
        let levels = dequantizer.levels.as_array()?;
        // Blocks must not share a byte.
        let fits = dequantizer.block().is_multiple_of(2) && dequantizer.block() <= Self::MAX_BLOCK;
        fits.then_some(Self { levels, dequantizer, scales, codes, len })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One level per code.
    pub fn levels(&self) -> &'a [f32; 16] {
        self.levels
    }

    /// Added to every product of level and scale.
    pub fn centre(&self) -> f32 {
        self.dequantizer.centre
    }

    /// Elements of a block; the last block may be shorter.
    pub fn block(&self) -> usize {
        self.dequantizer.block()
    }

    /// Splits after the first `blocks` blocks.
    #[must_use]
    pub fn split(self, blocks: usize) -> (Self, Self) {
        let len = self.len.min(blocks * self.block());
        let (codes, tail_codes) = self.codes.split_at(len.div_ceil(2));
        let (scales, tail_scales) = self.scales.split_at(self.scales.len().min(blocks));
        let head = Self { scales, codes, len, ..self };
        (head, Self { scales: tail_scales, codes: tail_codes, len: self.len - len, ..self })
    }

    /// Calls `f(scale, codes)` for every block in order. If the last block has an odd length, the upper half
    /// of its last byte is padding.
    #[inline(always)]
    pub fn for_each_block(&self, mut f: impl FnMut(f32, &'a [u8])) {
        let blocks = self.codes.chunks(self.block() / 2);
        match &self.dequantizer.scales {
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
        LevelLookup::new(self.levels, Self::BITS, self.len).expand(self.codes, out);
        self.dequantizer.apply(self.scales, 0, out);
    }
}

impl Dequantizer {
    /// Elements that share a scale. With one scale for the whole tensor, a chunk that fits the cache.
    fn block(&self) -> usize {
        match self.scales {
            Scales::Whole(_) => CHUNK,
            Scales::Blocks { block, .. } => block,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, Spec, Stream, compress};

    /// 70 blocks, the last one of odd length.
    const COUNT: usize = 64 * 69 + 13;

    fn values() -> Vec<f32> {
        (0..COUNT).map(|i| ((i * 7919 % 1009) as f32 / 504.0 - 0.7).powi(3)).collect()
    }

    #[test]
    fn only_packed_codes_of_four_bits_come_as_codes() {
        for scheme in Scheme::ALL {
            for (bits, entropy) in [(3, false), (4, false), (5, false), (4, true)] {
                let spec = Spec { entropy, ..Spec::new(scheme, bits) };
                let bytes = compress(&values(), &[COUNT], &spec).unwrap();
                let mut pieces = [0, 0];
                Stream::parse(&bytes, COUNT).unwrap().for_each_piece(|_, piece| match piece {
                    Piece::Values(_) => pieces[0] += 1,
                    Piece::Codes(_) => pieces[1] += 1,
                });
                let has_codes = matches!(scheme, Scheme::StocQ | Scheme::MsqV2 | Scheme::Sdq | Scheme::BetaQ);
                let expected =
                    if has_codes && bits == 4 && !entropy { [0, 1] } else { [COUNT.div_ceil(CHUNK), 0] };
                assert_eq!(pieces, expected, "{scheme} at {bits} bits, entropy {entropy}");
            }
        }
    }

    #[test]
    fn blocks_and_parts_hold_the_decoded_values() {
        for scheme in [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ] {
            let bytes = compress(&values(), &[COUNT], &Spec::new(scheme, 4)).unwrap();
            let stream = Stream::parse(&bytes, COUNT).unwrap();
            let mut expected = vec![0.0; COUNT];
            stream.decode_into(&mut expected);
            let mut seen = 0;
            stream.for_each_piece(|_, piece| {
                let Piece::Codes(codes) = piece else { panic!("{scheme} has packed codes of 4 bits") };
                let mut blocks = Vec::new();
                codes.for_each_block(|scale, bytes| {
                    for code in bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]) {
                        let value = codes.levels()[code as usize] * scale;
                        blocks.push(if codes.centre() == 0.0 { value } else { value + codes.centre() });
                    }
                });
                assert_eq!(blocks.len(), COUNT.next_multiple_of(2));
                assert_eq!(blocks[..COUNT], expected);
                for split in [0, 1, 69, 200] {
                    let (head, tail) = codes.split(split);
                    assert_eq!(head.len(), COUNT.min(split * codes.block()), "{scheme}");
                    let mut parts = vec![0.0; COUNT];
                    let (first, second) = parts.split_at_mut(head.len());
                    head.decode_into(first);
                    tail.decode_into(second);
                    assert_eq!(parts, expected, "{scheme}, split after {split} blocks");
                }
                seen += codes.len();
            });
            assert_eq!(seen, COUNT);
        }
    }
}
