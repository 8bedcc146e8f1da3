//! Evenly spaced levels from -1 to 1, which StocQ, `laq8` and `bin` share.

use super::{Dequantizer, Scales, scale_table::scale_table};
use crate::{DecodeError, byte_reader::ByteReader};

/// The largest code in use. From 2 bits on the grid has an odd number of levels, so that zero is one of
/// them, and one code is left over.
pub const fn top_code(bits: u8) -> u32 {
    if bits == 1 { 1 } else { (1 << bits) - 2 }
}

/// Half the largest code: a grid position of so much is the value zero.
#[inline(always)]
pub const fn half_width(bits: u8) -> f32 {
    0.5 * top_code(bits) as f32
}

/// One level per code. The code above [`top_code`] is never written; it decodes to a value beyond 1.
pub fn levels(bits: u8) -> Vec<f32> {
    let half = half_width(bits);
    (0..1u32 << bits).map(|code| (code as f32 - half) / half).collect()
}

/// Reads the side information of a grid whose blocks have their own scales: the base of the scales.
pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    let table = scale_table(reader.f32()?);
    Ok(Dequantizer { levels: levels(bits), scales: Scales::blocks(table), centre: 0.0 })
}
