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
    /// One byte per block.
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
pub fn quantize(scheme: Scheme, x: &[f32], request: &Request, scratch: &mut Scratch, side: &mut Vec<u8>) {
    scratch.codes.clear();
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
pub struct Levels<'a> {
    /// One level per code.
    pub levels: Vec<f32>,
    /// What multiplies them.
    pub scales: Scales<'a>,
    /// What is added in the end.
    pub centre: f32,
}

/// The scales of a tensor.
#[derive(Debug, Clone)]
pub enum Scales<'a> {
    /// One for all elements.
    Whole(f32),
    /// One byte per block of [`BLOCK`] elements names a scale of the table.
    Blocks {
        /// What the bytes name.
        table: Box<ScaleTable>,
        /// One byte per block.
        bytes: &'a [u8],
        /// Elements of a block.
        block: usize,
    },
}

impl<'a> Levels<'a> {
    /// Reads the side information of `count` codes.
    pub fn parse(
        scheme: Scheme,
        bits: u8,
        count: usize,
        reader: &mut Reader<'a>,
    ) -> Result<Self, DecodeError> {
        match scheme {
            Scheme::StocQ => stocq::parse(bits, count, reader),
            Scheme::MsqV2 => msq::parse(bits, count, reader),
            Scheme::Sdq => sdq::parse(bits, count, reader),
            Scheme::BetaQ => betaq::parse(bits, count, reader),
            Scheme::Bin => grid::parse_bin(bits, reader),
            Scheme::Laq8 => grid::parse_laq(bits, count, reader),
            Scheme::None | Scheme::F16 => Err(DecodeError::Corrupt("plain values have no codes")),
        }
    }

    /// An upper bound of the magnitude of every value, or the error if it is not finite.
    pub fn max_abs(&self) -> Result<f32, DecodeError> {
        let level = self.levels.iter().fold(0.0f32, |max, level| max.max(level.abs()));
        let scale = match &self.scales {
            Scales::Whole(scale) => scale.abs(),
            Scales::Blocks { table, bytes, .. } => {
                bytes.iter().fold(0.0f32, |max, &byte| max.max(table[byte as usize].abs()))
            }
        };
        let bound = level * scale + self.centre.abs();
        if bound.is_finite() { Ok(bound) } else { Err(DecodeError::NonFinite) }
    }

    /// Scales the levels of the elements that start at `offset`, a multiple of the block size.
    #[inline(always)]
    pub fn apply(&self, offset: usize, values: &mut [f32]) {
        match &self.scales {
            Scales::Whole(scale) => values.iter_mut().for_each(|v| *v *= scale),
            Scales::Blocks { table, bytes, block } => {
                for (values, &byte) in values.chunks_mut(*block).zip(&bytes[offset / block..]) {
                    let scale = table[byte as usize];
                    values.iter_mut().for_each(|v| *v *= scale);
                }
            }
        }
        if self.centre != 0.0 {
            values.iter_mut().for_each(|v| *v += self.centre);
        }
    }
}

/// Reads one scale byte per block.
fn parse_blocks<'a>(
    table: ScaleTable,
    count: usize,
    block: usize,
    reader: &mut Reader<'a>,
) -> Result<Scales<'a>, DecodeError> {
    let bytes = reader.bytes(count.div_ceil(block))?;
    Ok(Scales::Blocks { table: Box::new(table), bytes, block })
}

/// Normalises `x` by a scale per block that covers the block's largest magnitude and hands each block
/// to `each(scale, values, codes)`. A block of zeros has a scale of zero.
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
