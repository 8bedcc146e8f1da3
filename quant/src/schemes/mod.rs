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

use crate::{Scheme, limits::BLOCK};
use lloyd_max::{Histogram, LevelFinder};
use scale_table::{ScaleTable, byte_at_least};

/// Buffers that quantization reuses from tensor to tensor.
#[derive(Debug, Default)]
pub struct QuantizerBuffers {
    /// One code per element, not yet packed.
    pub codes: Vec<u8>,
    /// One byte per block; written after the side information.
    pub scales: Vec<u8>,
    histogram: Histogram,
    finder: LevelFinder,
}

/// A scheme's input about a tensor besides its values.
#[derive(Debug, Clone, Copy)]
pub struct TensorParams {
    /// Bits per code.
    pub bits: u8,
    /// Largest magnitude among the values.
    pub max_abs: f32,
    /// Seed of this tensor's random numbers.
    pub seed: u64,
}

/// Quantizes `x`: side information is appended to `side`; codes and scale bytes go to `buffers`.
#[inline(always)]
pub fn quantize(
    scheme: Scheme,
    x: &[f32],
    params: &TensorParams,
    buffers: &mut QuantizerBuffers,
    side: &mut Vec<u8>,
) {
    // Not cleared: every scheme writes every code.
    buffers.codes.resize(x.len(), 0);
    buffers.scales.clear();
    match scheme {
        Scheme::StocQ => stocq::quantize(x, params, buffers, side),
        Scheme::MsqV2 => msq::quantize(x, params, buffers, side),
        Scheme::Sdq => sdq::quantize(x, params, buffers, side),
        Scheme::BetaQ => betaq::quantize(x, params, buffers, side),
        Scheme::Bin => bin::quantize(x, buffers, side),
        Scheme::Laq8 => laq8::quantize(x, params, buffers, side),
        Scheme::None | Scheme::F16 => unreachable!("plain values have no codes"),
    }
}

/// Chooses for each block the smallest scale that covers its largest magnitude, and calls
/// `each(scale, values, codes)`. A block of zeros has a scale of zero.
#[inline(always)]
fn for_each_scaled_block(
    x: &[f32],
    table: &ScaleTable,
    scales: &mut Vec<u8>,
    codes: &mut [u8],
    mut each: impl FnMut(f32, &[f32], &mut [u8]),
) {
    for (values, codes) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
        let byte = byte_at_least(table, max_abs(values));
        scales.push(byte);
        each(table[byte as usize], values, codes);
    }
}

/// Rounds each value, divided by its block's scale, to the nearest level of `finder`.
#[inline(always)]
fn nearest_codes(x: &[f32], table: &ScaleTable, scales: &[u8], finder: &LevelFinder, codes: &mut [u8]) {
    for ((values, codes), &byte) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
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
