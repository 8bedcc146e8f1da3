//! Sixteen symbols for any integer: zero, sign and magnitude class; the rest of a magnitude follows in
//! plain bits.
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
//! Odd symbols are positive. Symbol 15 is never written and reads as zero.

use super::rans::{Reader, Recorder};

/// Largest magnitude that can be coded.
pub const MAX_MAGNITUDE: u32 = 1 << 20;

/// Symbols of the magnitude classes: the first magnitude of each, and the number of plain bits.
const CLASSES: [(u32, u32); 6] = [(1, 0), (2, 0), (3, 0), (4, 1), (6, 2), (10, 3)];

/// Magnitudes up to this have a class of their own.
pub const DIRECT: u32 = 3;

/// First magnitude of the open class.
const ESCAPE: u32 = 18;

/// Plain bits that give the length of what the open class holds.
const LENGTH_BITS: u32 = 5;

/// Most plain bits that go into the coder at a time.
const PIECE: u32 = 14;

/// The class of each magnitude below [`ESCAPE`], counted from 1.
static CLASS_OF: [u8; ESCAPE as usize] = {
    let mut class_of = [0; ESCAPE as usize];
    let mut magnitude = 1;
    while magnitude < ESCAPE {
        let mut class = CLASSES.len();
        while CLASSES[class - 1].0 > magnitude {
            class -= 1;
        }
        class_of[magnitude as usize] = class as u8;
        magnitude += 1;
    }
    class_of
};

/// The symbol of a value; `negative` is its sign as it is coded.
#[inline(always)]
pub fn symbol(magnitude: u32, negative: bool) -> usize {
    if magnitude == 0 {
        return 0;
    }
    let class = CLASS_OF.get(magnitude as usize).map_or(CLASSES.len() + 1, |class| usize::from(*class));
    2 * class - 1 + usize::from(negative)
}

/// Plain bits that follow the symbol of `magnitude`.
pub fn plain_bits(magnitude: u32) -> u32 {
    match CLASS_OF.get(magnitude as usize) {
        Some(0) => 0,
        Some(class) => CLASSES[usize::from(*class) - 1].1,
        None => LENGTH_BITS + (magnitude - ESCAPE + 1).ilog2(),
    }
}

/// Writes what the symbol of `magnitude` leaves open.
#[inline(always)]
pub fn write_rest(magnitude: u32, lane: usize, recorder: &mut Recorder) {
    if magnitude > DIRECT {
        write_open(magnitude, lane, recorder);
    }
}

#[cold]
#[inline(never)]
fn write_open(magnitude: u32, lane: usize, recorder: &mut Recorder) {
    match CLASS_OF.get(magnitude as usize) {
        Some(class) => {
            let (first, bits) = CLASSES[usize::from(*class) - 1];
            recorder.push_raw(lane, magnitude - first, bits);
        }
        None => {
            let rest = magnitude - ESCAPE + 1;
            let mut bits = rest.ilog2();
            recorder.push_raw(lane, bits, LENGTH_BITS);
            while bits > 0 {
                let piece = bits.min(PIECE);
                bits -= piece;
                recorder.push_raw(lane, rest >> bits & ((1 << piece) - 1), piece);
            }
        }
    }
}

/// The magnitude that `symbol` stands for, and its sign as coded; reads plain bits where they follow.
#[inline(always)]
pub fn read(symbol: usize, lane: usize, reader: &mut Reader<'_>) -> (u32, bool) {
    let negative = symbol != 0 && symbol.is_multiple_of(2);
    let class = symbol.div_ceil(2) as u32;
    if class <= DIRECT { (class, negative) } else { (read_open(class as usize, lane, reader), negative) }
}

#[cold]
#[inline(never)]
fn read_open(class: usize, lane: usize, reader: &mut Reader<'_>) -> u32 {
    match CLASSES.get(class - 1) {
        Some((first, bits)) => first + reader.raw(lane, *bits),
        None if class == CLASSES.len() + 1 => {
            let mut bits = reader.raw(lane, LENGTH_BITS).min(MAX_MAGNITUDE.ilog2());
            let mut rest = 1;
            while bits > 0 {
                let piece = bits.min(PIECE);
                bits -= piece;
                rest = rest << piece | reader.raw(lane, piece);
            }
            (rest + ESCAPE - 1).min(MAX_MAGNITUDE)
        }
        None => 0,
    }
}
