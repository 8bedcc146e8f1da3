//! Uniform grids: the levels that StocQ and `laq8` share, and the two presets of the predecessor.

use super::{Levels, Request, Scales, Scratch, for_each_scaled_block, inverse};
use crate::{
    DecodeError,
    limits::BLOCK,
    reader::Reader,
    scale::scale_table,
    simd::{floor, to_integer},
};

/// Width of `laq8`.
pub const LAQ_BITS: u8 = 8;

/// The largest code that is used: one code is left out from 2 bits on, so that zero has one.
pub const fn top_code(bits: u8) -> u32 {
    if bits == 1 { 1 } else { (1 << bits) - 2 }
}

/// Levels from -1 to 1. The code above [`top_code`] is never written; it decodes beyond 1.
pub fn levels(bits: u8) -> Vec<f32> {
    let half = 0.5 * top_code(bits) as f32;
    (0..1u32 << bits).map(|code| (code as f32 - half) / half).collect()
}

/// `laq8`: the 8-bit uniform grid of LAQ (Sun et al. 2019, section 2.1), rounded to nearest.
#[inline(always)]
pub fn quantize_laq(x: &[f32], request: &Request, scratch: &mut Scratch, side: &mut Vec<u8>) {
    let table = scale_table(request.max_abs);
    side.extend_from_slice(&request.max_abs.to_le_bytes());
    let half = 0.5 * top_code(LAQ_BITS) as f32;
    for_each_scaled_block(
        x,
        &table,
        &mut scratch.scales,
        &mut scratch.codes,
        #[inline(always)]
        |scale, values, codes| {
            let factor = half * inverse(scale);
            for (v, code) in values.iter().zip(codes) {
                *code = to_integer(floor(v * factor + half + 0.5)) as u8;
            }
        },
    );
}

pub fn parse_laq(bits: u8, reader: &mut Reader<'_>) -> Result<Levels, DecodeError> {
    if bits != LAQ_BITS {
        return Err(DecodeError::Corrupt("laq8 has 8 bits"));
    }
    let table = scale_table(reader.f32()?);
    let scales = Scales::blocks(table, BLOCK);
    Ok(Levels { levels: levels(bits), scales, centre: 0.0 })
}

/// `bin`: the sign times the mean magnitude of the tensor (Seide et al. 2014 with one scale). It
/// shrinks the error of any vector, so that error feedback converges.
#[inline(always)]
pub fn quantize_bin(x: &[f32], scratch: &mut Scratch, side: &mut Vec<u8>) {
    let sum: f64 = x.iter().map(|v| f64::from(v.abs())).sum();
    let mean = if x.is_empty() { 0.0 } else { (sum / x.len() as f64) as f32 };
    side.extend_from_slice(&mean.to_le_bytes());
    for (v, code) in x.iter().zip(&mut scratch.codes) {
        *code = u8::from(*v >= 0.0);
    }
}

pub fn parse_bin(bits: u8, reader: &mut Reader<'_>) -> Result<Levels, DecodeError> {
    if bits != 1 {
        return Err(DecodeError::Corrupt("bin has 1 bit"));
    }
    Ok(Levels { levels: levels(1), scales: Scales::Whole(reader.f32()?), centre: 0.0 })
}
