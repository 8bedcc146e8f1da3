//! The fixed-width schemes: what each writes as side information and how it picks codes.
//!
//! All share one decoder: `value = scale(block) * level[code] + centre`. A scheme is a way to choose
//! the three.

mod beta;
mod betaq;
mod grid;
mod msq;
mod sdq;
mod stocq;

use crate::{
    DecodeError, Scheme,
    limits::BLOCK,
    lloyd::{Finder, Histogram},
    reader::Reader,
    scale::ScaleTable,
};

/// Memory that the schemes reuse from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    /// One code per element, not yet packed.
    pub codes: Vec<u8>,
    /// One byte per block; they follow the side information.
    pub scales: Vec<u8>,
    histogram: Histogram,
    finder: Finder,
}

/// What a scheme needs to know of a tensor besides its values.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Bits per code.
    pub bits: u8,
    /// Largest magnitude among the values.
    pub max_abs: f32,
    /// Seed of this tensor's random numbers.
    pub seed: u64,
}

/// Quantizes `x`: side information to `side`, codes to `scratch.codes`.
#[inline(always)]
pub fn quantize(scheme: Scheme, x: &[f32], request: &Request, scratch: &mut Scratch, side: &mut Vec<u8>) {
    // Every code is written: what an earlier tensor has left need not be cleared.
    scratch.codes.resize(x.len(), 0);
    scratch.scales.clear();
    match scheme {
        Scheme::StocQ => stocq::quantize(x, request, scratch, side),
        Scheme::MsqV2 => msq::quantize(x, request, scratch, side),
        Scheme::Sdq => sdq::quantize(x, request, scratch, side),
        Scheme::BetaQ => betaq::quantize(x, request, scratch, side),
        Scheme::Bin => grid::quantize_bin(x, scratch, side),
        Scheme::Laq8 => grid::quantize_laq(x, request, scratch, side),
        Scheme::None | Scheme::F16 => unreachable!("plain values have no codes"),
    }
}

/// How codes become values.
#[derive(Debug, Clone)]
pub struct Levels {
    /// One level per code.
    pub levels: Vec<f32>,
    /// What multiplies them.
    pub scales: Scales,
    /// What is added in the end.
    pub centre: f32,
}

/// The scales of a tensor.
#[derive(Debug, Clone)]
pub enum Scales {
    /// One for all elements.
    Whole(f32),
    /// One byte per block names a scale of the table.
    Blocks {
        /// What the bytes name.
        table: Box<ScaleTable>,
        /// Elements of a block.
        block: usize,
    },
}

impl Scales {
    /// Scales per block of `block` elements.
    fn blocks(table: ScaleTable, block: usize) -> Self {
        Self::Blocks { table: Box::new(table), block }
    }

    /// Scale bytes of `count` elements.
    pub fn bytes(&self, count: usize) -> usize {
        match self {
            Self::Whole(_) => 0,
            Self::Blocks { block, .. } => count.div_ceil(*block),
        }
    }
}

impl Levels {
    /// Reads the side information up to the scale bytes.
    pub fn parse(scheme: Scheme, bits: u8, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match scheme {
            Scheme::StocQ => stocq::parse(bits, reader),
            Scheme::MsqV2 => msq::parse(bits, reader),
            Scheme::Sdq => sdq::parse(bits, reader),
            Scheme::BetaQ => betaq::parse(bits, reader),
            Scheme::Bin => grid::parse_bin(bits, reader),
            Scheme::Laq8 => grid::parse_laq(bits, reader),
            Scheme::None | Scheme::F16 => Err(DecodeError::Corrupt("plain values have no codes")),
        }
    }

    /// The code of the level that is nearest to zero, the first of equals. The entropy coder counts
    /// codes from there.
    pub fn zero_code(&self) -> usize {
        let levels = self.levels.iter().enumerate();
        levels
            .fold(
                (0, f32::INFINITY),
                |(best, least), (code, level)| {
                    if level.abs() < least { (code, level.abs()) } else { (best, least) }
                },
            )
            .0
    }

    /// An upper bound of the magnitude of every value, or the error if it is not finite.
    pub fn max_abs(&self, scales: &[u8]) -> Result<f32, DecodeError> {
        let level = self.levels.iter().fold(0.0f32, |max, level| max.max(level.abs()));
        let scale = match &self.scales {
            Scales::Whole(scale) => scale.abs(),
            Scales::Blocks { table, .. } => {
                scales.iter().fold(0.0f32, |max, &byte| max.max(table[byte as usize].abs()))
            }
        };
        let bound = level * scale + self.centre.abs();
        if bound.is_finite() { Ok(bound) } else { Err(DecodeError::NonFinite) }
    }

    /// Turns the levels of the elements that start at `offset` into values.
    #[inline(always)]
    pub fn apply(&self, scales: &[u8], offset: usize, values: &mut [f32]) {
        match &self.scales {
            Scales::Whole(scale) => values.iter_mut().for_each(|v| *v *= scale),
            Scales::Blocks { table, block } => {
                let (head, values) =
                    values.split_at_mut(values.len().min(offset.next_multiple_of(*block) - offset));
                let mut scales = scales[offset / block..].iter().map(|byte| table[*byte as usize]);
                if !head.is_empty() {
                    let scale = scales.next().unwrap_or(0.0);
                    head.iter_mut().for_each(|v| *v *= scale);
                }
                for (values, scale) in values.chunks_mut(*block).zip(scales) {
                    values.iter_mut().for_each(|v| *v *= scale);
                }
            }
        }
        if self.centre != 0.0 {
            values.iter_mut().for_each(|v| *v += self.centre);
        }
    }
}

/// Normalises `x` by a scale per block that covers the block's largest magnitude and hands each block
/// to `each(scale, values, codes)`. A block of zeros has a scale of zero.
#[inline(always)]
fn for_each_scaled_block(
    x: &[f32],
    table: &ScaleTable,
    scales: &mut Vec<u8>,
    codes: &mut [u8],
    mut each: impl FnMut(f32, &[f32], &mut [u8]),
) {
    for (values, codes) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
        let byte = crate::scale::byte_at_least(table, max_abs(values));
        scales.push(byte);
        each(table[byte as usize], values, codes);
    }
}

/// Largest magnitude. The values are finite: the encoder has checked.
#[inline(always)]
pub fn max_abs(values: &[f32]) -> f32 {
    // Finite magnitudes are ordered as their bits are, and integers vectorise without a flag.
    let max = values.iter().fold(0u32, |max, v| max.max(v.to_bits() & 0x7fff_ffff));
    f32::from_bits(max)
}

/// `1 / scale`, or 0 for a scale of zero, so that every value of such a block falls on level zero.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}
