//! The fixed-width schemes: how each picks codes and what it writes as side information.
//!
//! All schemes share one decoder, [`Dequantizer`]: `value = level[code] * scale[block] + centre`. A scheme
//! is a way to choose levels, scales and centre for a tensor.

mod beta_density;
mod betaq;
mod bin;
mod dequantizer;
mod laq8;
mod lloyd_max;
mod msq;
mod scale_table;
mod sdq;
mod stocq;
mod symmetric_grid;

pub use dequantizer::{Dequantizer, Scales};

use crate::{Scheme, limits::BLOCK, simd::vectorized, threads::Threads};
use lloyd_max::{Histogram, LevelFinder};
use scale_table::{ScaleTable, byte_at_least};

/// Buffers that quantization reuses from tensor to tensor.
#[derive(Debug, Default)]
pub struct QuantizerBuffers {
    /// One code per element, not yet packed.
    pub codes: Vec<u8>,
    /// One byte per block; written after the side information.
    pub scales: Vec<u8>,
    /// One per span; the first becomes that of the tensor.
    histograms: Vec<Histogram>,
    finder: LevelFinder,
}

/// A scheme's input about a tensor besides its values.
#[derive(Debug, Clone, Copy)]
pub struct TensorParams<'t> {
    /// Bits per code.
    pub bits: u8,
    /// Largest magnitude among the values.
    pub max_abs: f32,
    /// Seed of this tensor's random numbers.
    pub seed: u64,
    /// Elements of a span: whole blocks, or the whole tensor. Sums depend on it.
    pub span: usize,
    /// What the spans are spread over.
    pub threads: &'t Threads,
}

/// Quantizes `x`: side information is appended to `side`; codes and scale bytes go to `buffers`.
pub fn quantize(
    scheme: Scheme,
    x: &[f32],
    params: &TensorParams<'_>,
    buffers: &mut QuantizerBuffers,
    side: &mut Vec<u8>,
) {
    // Not cleared: every scheme writes every code and scale.
    buffers.codes.resize(x.len(), 0);
    buffers.scales.resize(scale_bytes(scheme, x.len()), 0);
    match scheme {
        Scheme::StocQ => stocq::quantize(x, params, buffers, side),
        Scheme::MsqV2 => msq::quantize(x, params, buffers, side),
        Scheme::Sdq => sdq::quantize(x, params, buffers, side),
        Scheme::BetaQ => betaq::quantize(x, params, buffers, side),
        Scheme::Bin => bin::quantize(x, params, buffers, side),
        Scheme::Laq8 => laq8::quantize(x, params, buffers, side),
        Scheme::None | Scheme::F16 => unreachable!("plain values have no codes"),
    }
}

/// Number of scale bytes of `count` elements.
fn scale_bytes(scheme: Scheme, count: usize) -> usize {
    match scheme {
        Scheme::Bin => 0,
        Scheme::Sdq => count.div_ceil(sdq::SDQ_BLOCK),
        _ => count.div_ceil(BLOCK),
    }
}

/// A span of a tensor: its values, and where its codes and scale bytes go.
struct Span<'s> {
    /// Number of elements before it.
    start: usize,
    values: &'s [f32],
    codes: &'s mut [u8],
    /// One byte per block.
    scales: &'s mut [u8],
}

/// The spans of a tensor with blocks of `block` elements.
fn spans<'s>(
    x: &'s [f32],
    params: &TensorParams<'_>,
    block: usize,
    codes: &'s mut [u8],
    scales: &'s mut [u8],
) -> impl ExactSizeIterator<Item = Span<'s>> + Send {
    let span = params.span;
    let values = x.chunks(span).zip(codes.chunks_mut(span)).zip(scales.chunks_mut(span.div_ceil(block)));
    values.enumerate().map(move |(index, ((values, codes), scales))| Span {
        start: index * span,
        values,
        codes,
        scales,
    })
}

impl Span<'_> {
    /// Chooses for each block the smallest scale that covers its largest magnitude, and calls
    /// `each(offset, scale, values, codes)`; offsets count from the tensor's start. A block of zeros has a
    /// scale of zero.
    #[inline(always)]
    fn for_each_scaled_block(&mut self, table: &ScaleTable, each: impl FnMut(usize, f32, &[f32], &mut [u8])) {
        for_each_scaled_block(self.start, self.values, table, self.codes, self.scales, each);
    }
}

/// As arguments, the slices are known not to overlap.
#[inline(always)]
fn for_each_scaled_block(
    start: usize,
    values: &[f32],
    table: &ScaleTable,
    codes: &mut [u8],
    scales: &mut [u8],
    mut each: impl FnMut(usize, f32, &[f32], &mut [u8]),
) {
    let mut offset = start;
    for ((values, codes), scale) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
        let byte = byte_at_least(table, max_abs(values));
        *scale = byte;
        each(offset, table[byte as usize], values, codes);
        offset += BLOCK;
    }
}

/// Rounds each value, divided by its block's scale, to the nearest level of the finder.
fn nearest_codes(x: &[f32], table: &ScaleTable, params: &TensorParams<'_>, buffers: &mut QuantizerBuffers) {
    let QuantizerBuffers { codes, scales, finder, .. } = buffers;
    let finder = &*finder;
    params.threads.each(spans(x, params, BLOCK, codes, scales), |span| {
        vectorized(
            #[inline(always)]
            || nearest_in_blocks(span.values, table, span.scales, finder, span.codes),
        );
    });
}

#[inline(always)]
fn nearest_in_blocks(
    values: &[f32],
    table: &ScaleTable,
    scales: &[u8],
    finder: &LevelFinder,
    codes: &mut [u8],
) {
    for ((values, codes), &byte) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
        let factor = inverse(table[byte as usize]);
        for (v, code) in values.iter().zip(codes) {
            *code = finder.code(v * factor);
        }
    }
}

/// Largest magnitude. Infinities and NaN count as larger than any finite value.
#[inline(always)]
pub fn max_abs(values: &[f32]) -> f32 {
    // The bits of non-negative floats are ordered as the floats are, and an integer maximum vectorises
    // without floating-point flags.
    let max = values.iter().fold(0u32, |max, v| max.max(v.to_bits() & 0x7fff_ffff));
    f32::from_bits(max)
}

/// Mean magnitude; 0 for no values.
#[inline(always)]
fn mean_abs(values: &[f32]) -> f32 {
    values.iter().map(|v| v.abs()).sum::<f32>() / values.len().max(1) as f32
}

/// The 1-bit code: 1 for values that are not negative.
#[inline(always)]
fn sign_codes(values: &[f32], codes: &mut [u8]) {
    for (v, code) in values.iter().zip(codes) {
        *code = u8::from(*v >= 0.0);
    }
}

/// `1 / scale`, or 0 for a scale of zero, which maps every value of the block to level zero.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}
