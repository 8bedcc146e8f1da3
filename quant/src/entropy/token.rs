//! Maps any integer to one of sixteen symbols (zero, or sign and magnitude class) and plain bits for the
//! rest of the magnitude.
//!
//! | symbols | magnitude | plain bits |
//! | --- | --- | --- |
//! | 0 | 0 | |
//! | 1, 2 | 1 | |
//! | 3, 4 | 2 | |
//! | 5, 6 | 3 | |
//! | 7, 8 | 4 to 5 | 1 |
//! | 9, 10 | 6 to 9 | 2 |
//! | 11, 12 | 10 to 17 | 3 |
//! | 13, 14 | 18 and more | 5 for the length of magnitude - 17, then all but its first bit |
//!
//! Odd symbols are positive. Symbol 15 is never written; it decodes to zero.

use super::rans::{RansDecoder, RansEncoder};
use bytemuck::cast;
use wide::i16x8;

/// Largest magnitude that can be coded.
pub const MAX_MAGNITUDE: u32 = 1 << 20;

/// First magnitude and number of plain bits of each closed class.
const CLASSES: [(u32, u32); 6] = [(1, 0), (2, 0), (3, 0), (4, 1), (6, 2), (10, 3)];

/// Largest magnitude that is a class by itself, without plain bits.
pub const DIRECT: u32 = 3;

/// First magnitude of the open-ended class.
const ESCAPE: u32 = 18;

/// Plain bits that give the length of the rest in the open-ended class.
const LENGTH_BITS: u32 = 5;

/// Most plain bits that rANS codes at a time.
const PIECE: u32 = 14;

/// The class of each magnitude up to [`ESCAPE`], counted from 1; 0 for 0.
static CLASS_OF: [u8; ESCAPE as usize + 1] = {
    let mut class_of = [0; ESCAPE as usize + 1];
    let mut magnitude = 1;
    while magnitude < ESCAPE {
        let mut class = CLASSES.len();
        while CLASSES[class - 1].0 > magnitude {
            class -= 1;
        }
        class_of[magnitude as usize] = class as u8;
        magnitude += 1;
    }
    class_of[ESCAPE as usize] = CLASSES.len() as u8 + 1;
    class_of
};

/// The symbol of a magnitude; `negative` is its sign after prediction.
#[inline(always)]
pub fn symbol(magnitude: u32, negative: bool) -> usize {
    let class = usize::from(CLASS_OF[magnitude.min(ESCAPE) as usize]);
    // Branch-free: the class is unpredictable.
    (2 * class + usize::from(negative)).saturating_sub(1) & usize::from(class == 0).wrapping_sub(1)
}

/// The symbols of four values in the upper half, as fields of 16 bits, and whether any has plain bits.
/// `flips` is -1 where the predicted sign is negative.
#[inline(always)]
pub fn symbols(values: i16x8, flips: i16x8) -> (u64, bool) {
    let magnitudes = values.abs();
    let mut classes = i16x8::default();
    for (first, _) in CLASSES {
        // A comparison gives -1 for true.
        classes -= magnitudes.simd_gt(i16x8::splat(first as i16 - 1));
    }
    classes -= magnitudes.simd_gt(i16x8::splat(ESCAPE as i16 - 1));
    let negative = values.is_negative() ^ flips;
    let symbols = classes + classes - i16x8::splat(1) - negative;
    let [_, symbols]: [u64; 2] = cast(symbols & classes.simd_gt(i16x8::splat(0)));
    let [_, open]: [u64; 2] = cast(magnitudes.simd_gt(i16x8::splat(DIRECT as i16)));
    (symbols, open != 0)
}

/// Plain bits that follow the symbol of `magnitude`.
pub fn plain_bits(magnitude: u32) -> u32 {
    match CLASSES.get(class_index(magnitude)) {
        Some((_, bits)) => *bits,
        None => LENGTH_BITS + (magnitude - ESCAPE + 1).ilog2(),
    }
}

/// Records the plain bits of `magnitude`, if it has any.
#[inline(always)]
pub fn write_plain_bits(magnitude: u32, lane: usize, encoder: &mut RansEncoder) {
    if magnitude > DIRECT {
        write_rest(magnitude, lane, encoder);
    }
}

/// Index into [`CLASSES`] of a magnitude above zero; the length of [`CLASSES`] for the open-ended class.
fn class_index(magnitude: u32) -> usize {
    usize::from(CLASS_OF[magnitude.min(ESCAPE) as usize]).wrapping_sub(1)
}

#[inline(never)]
fn write_rest(magnitude: u32, lane: usize, encoder: &mut RansEncoder) {
    match CLASSES.get(class_index(magnitude)) {
        Some((first, bits)) => encoder.push_raw(lane, magnitude - first, *bits),
        None => {
            let rest = magnitude - ESCAPE + 1;
            let mut bits = rest.ilog2();
            encoder.push_raw(lane, bits, LENGTH_BITS);
            while bits > 0 {
                let piece = bits.min(PIECE);
                bits -= piece;
                encoder.push_raw(lane, rest >> bits & ((1 << piece) - 1), piece);
            }
        }
    }
}

/// Symbols above this have plain bits.
const LAST_DIRECT: usize = 2 * DIRECT as usize;

/// Whether a symbol has no plain bits.
#[inline(always)]
pub fn is_direct(symbol: usize) -> bool {
    symbol <= LAST_DIRECT
}

/// The integer of a direct symbol, before sign prediction is undone.
#[inline(always)]
pub fn direct(symbol: usize) -> i16 {
    const DIRECTS: [i16; 8] = [0, 1, -1, 2, -2, 3, -3, 0];
    DIRECTS[symbol % DIRECTS.len()]
}

/// Whether a symbol belongs to a closed class: at most three plain bits.
#[inline(always)]
pub fn is_short(symbol: usize) -> bool {
    symbol <= 2 * CLASSES.len()
}

/// Reads the plain bits of a short symbol. Returns its integer, before sign prediction is undone.
#[inline(always)]
pub fn read_short(symbol: usize, lane: usize, decoder: &mut RansDecoder<'_>) -> i16 {
    /// First magnitude and plain bits by symbol.
    const SHORT: [(i16, u8); 16] = {
        let mut short = [(0, 0); 16];
        let mut symbol = 1;
        while symbol <= 2 * CLASSES.len() {
            let (first, bits) = CLASSES[(symbol - 1) / 2];
            short[symbol] = (first as i16, bits as u8);
            symbol += 1;
        }
        short
    };
    let (first, bits) = SHORT[symbol % SHORT.len()];
    let magnitude = first + decoder.raw(lane, u32::from(bits)) as i16;
    // Even symbols are negative: -1 for those, 0 for the others.
    let negative = (symbol as i16 & 1) - 1;
    (magnitude ^ negative) - negative
}

/// Reads the plain bits of any other symbol. Returns its integer, before sign prediction is undone.
#[cold]
#[inline(never)]
pub fn read_long(symbol: usize, lane: usize, decoder: &mut RansDecoder<'_>) -> i32 {
    if symbol > 2 * (CLASSES.len() + 1) {
        return 0;
    }
    let mut bits = decoder.raw(lane, LENGTH_BITS).min(MAX_MAGNITUDE.ilog2());
    let mut rest = 1;
    while bits > 0 {
        let piece = bits.min(PIECE);
        bits -= piece;
        rest = rest << piece | decoder.raw(lane, piece);
    }
    let magnitude = (rest + ESCAPE - 1).min(MAX_MAGNITUDE) as i32;
    if symbol.is_multiple_of(2) { -magnitude } else { magnitude }
}
