//! The decoder that all fixed-width schemes share: `value = level[code] * scale[block] + centre`.

use super::{betaq, bin, laq8, msq, scale_table::ScaleTable, sdq, stocq};
use crate::{DecodeError, Scheme, byte_reader::ByteReader, limits::BLOCK};

/// Turns the codes of one tensor into values.
#[derive(Debug, Clone)]
pub struct Dequantizer {
    /// One level per code.
    pub levels: Vec<f32>,
    /// Factors of the levels.
    pub scales: Scales,
    /// Offset added to every product.
    pub centre: f32,
}

/// The scales of a tensor.
#[derive(Debug, Clone)]
pub enum Scales {
    /// One for all elements.
    Whole(f32),
    /// One byte per block, an index into the table.
    Blocks {
        /// Scale of each byte.
        table: Box<ScaleTable>,
        /// Elements of a block.
        block: usize,
    },
}

impl Scales {
    /// A scale for each block of the usual size.
    pub(super) fn blocks(table: ScaleTable) -> Self {
        Self::blocks_of(BLOCK, table)
    }

    /// A scale for each block of `block` elements.
    pub(super) fn blocks_of(block: usize, table: ScaleTable) -> Self {
        Self::Blocks { table: Box::new(table), block }
    }

    /// Number of scale bytes of `count` elements.
    pub fn bytes(&self, count: usize) -> usize {
        match self {
            Self::Whole(_) => 0,
            Self::Blocks { block, .. } => count.div_ceil(*block),
        }
    }
}

impl Dequantizer {
    /// Reads the side information up to the scale bytes.
    pub fn parse(scheme: Scheme, bits: u8, reader: &mut ByteReader<'_>) -> Result<Self, DecodeError> {
        match scheme {
            Scheme::StocQ => stocq::parse(bits, reader),
            Scheme::MsqV2 => msq::parse(bits, reader),
            Scheme::Sdq => sdq::parse(bits, reader),
            Scheme::BetaQ => betaq::parse(bits, reader),
            Scheme::Bin => bin::parse(bits, reader),
            Scheme::Laq8 => laq8::parse(bits, reader),
            Scheme::None | Scheme::F16 => Err(DecodeError::Corrupt("plain values have no codes")),
        }
    }

    /// The code of the level nearest to zero, the first of equals. The entropy coder codes the difference
    /// to it.
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

    /// An upper bound of the magnitude of every value.
    ///
    /// # Errors
    /// If the bound is not finite: some code could then decode to infinity.
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

    /// Turns levels into values, in place. `values` are the levels of the elements from `offset` on.
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
