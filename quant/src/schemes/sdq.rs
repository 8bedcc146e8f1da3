//! SDQ: uniform levels, with a step that follows the standard deviation.
//!
//! Mean and standard deviation of the tensor are the side information. Each block of [`SDQ_BLOCK`]
//! then names its own step by one byte, in eighths of an octave around the step that is optimal for a
//! Gaussian of that deviation (Max 1960, table II), because the blocks of a real delta do not share
//! one deviation. There is one more level on one side of zero than on the other; the top bit of the
//! byte turns the grid around so that the longer side faces the block's largest value.

use super::{Levels, Request, Scales, Scratch};
use crate::{
    DecodeError,
    reader::Reader,
    scale::{ScaleTable, byte_at_least, scale_table},
};

/// Elements that share a step.
pub const SDQ_BLOCK: usize = 32;

/// The step of the best uniform quantizer of a unit Gaussian, by width.
const GAUSSIAN_STEP: [f32; 8] = [1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308];

/// A block whose largest magnitude is above so many deviations is searched finely.
const OUTLIER: f32 = 2.0;

/// Octaves that a step can be above the Gaussian's.
const OCTAVES_ABOVE: f32 = 256.0;

/// The byte (without its top bit) of a block of zeros.
const ZERO_STEP: u8 = 127;

/// The bit of a block's byte that turns the grid around.
const TURNED: u8 = 128;

/// A mean of less than this part of the deviation is left out: the zeros of a delta (4 to 41% of its
/// elements) then stay zeros, which is worth more than centring.
const SMALL_MEAN: f64 = 0.5;

/// Adding and subtracting it rounds a small f32 to the nearest integer.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
pub fn quantize(x: &[f32], request: &Request, scratch: &mut Scratch, side: &mut Vec<u8>) {
    let (mean, deviation) = moments(x);
    side.extend_from_slice(&mean.to_le_bytes());
    side.extend_from_slice(&deviation.to_le_bytes());
    let table = step_table(deviation, request.bits);
    let (blocks, rest) = x.as_chunks::<SDQ_BLOCK>();
    let (block_codes, rest_codes) = scratch.codes.as_chunks_mut::<SDQ_BLOCK>();
    for (block, codes) in blocks.iter().zip(block_codes) {
        let centred = block.map(|v| v - mean);
        scratch.scales.push(quantize_block(&centred, &table, request.bits, SDQ_BLOCK, codes));
    }
    if !rest.is_empty() {
        // Filled up with zeros, which every step keeps.
        let mut block = [0.0; SDQ_BLOCK];
        for (b, v) in block.iter_mut().zip(rest) {
            *b = v - mean;
        }
        let mut codes = [0; SDQ_BLOCK];
        scratch.scales.push(quantize_block(&block, &table, request.bits, rest.len(), &mut codes));
        rest_codes.copy_from_slice(&codes[..rest.len()]);
    }
}

/// Writes the codes of a block, `count` of whose values count. Returns the byte of its step.
#[inline(always)]
fn quantize_block(
    block: &[f32; SDQ_BLOCK],
    table: &ScaleTable,
    bits: u8,
    count: usize,
    codes: &mut [u8; SDQ_BLOCK],
) -> u8 {
    let byte = match bits {
        1 => sign_step(block, table, count),
        bits => best_step(block, table, bits),
    };
    write_codes(block, table, byte, bits, codes);
    byte
}

/// Mean (zero if it is small) and standard deviation around it, both as they go on the wire.
#[inline(always)]
fn moments(x: &[f32]) -> (f32, f32) {
    // Sixteen sums side by side, which the compiler keeps in vector registers; f64 at the end of each
    // stretch so that long tensors lose nothing.
    let (mut sum, mut squares) = (0.0f64, 0.0f64);
    for stretch in x.chunks(4096) {
        let mut sums = [0.0f32; 16];
        let mut square_sums = [0.0f32; 16];
        let (groups, rest) = stretch.as_chunks::<16>();
        // One loop after the other: what is done to both sums at once is not vectorised.
        for group in groups {
            for (sum, v) in sums.iter_mut().zip(group) {
                *sum += v;
            }
        }
        for group in groups {
            for (sum, v) in square_sums.iter_mut().zip(group) {
                *sum += v * v;
            }
        }
        for (i, v) in rest.iter().enumerate() {
            sums[i] += v;
            square_sums[i] += v * v;
        }
        sum += sums.iter().map(|v| f64::from(*v)).sum::<f64>();
        squares += square_sums.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    let n = x.len().max(1) as f64;
    let mean = sum / n;
    let variance = (squares / n - mean * mean).max(0.0);
    if mean.abs() < SMALL_MEAN * variance.sqrt() {
        (0.0, (squares / n).sqrt() as f32)
    } else {
        (mean as f32, variance.sqrt() as f32)
    }
}

/// The steps that a block's byte can name; negative ones turn the grid around.
fn step_table(deviation: f32, bits: u8) -> ScaleTable {
    let mut table = scale_table(deviation * GAUSSIAN_STEP[bits as usize - 1] * OCTAVES_ABOVE);
    table[ZERO_STEP as usize] = 0.0;
    for s in 0..TURNED as usize {
        table[s + TURNED as usize] = -table[s];
    }
    table
}

/// The byte whose step comes nearest above `step`, among the 127 that are not zero.
fn step_byte(table: &ScaleTable, step: f32) -> u8 {
    if step == 0.0 { ZERO_STEP } else { byte_at_least(table, step).min(ZERO_STEP - 1) }
}

/// Searches the step of least squared error, from the one that just covers the largest magnitude
/// down to those that clip it.
#[inline(always)]
fn best_step(block: &[f32; SDQ_BLOCK], table: &ScaleTable, bits: u8) -> u8 {
    let largest = super::max_abs(block);
    // The table begins at the Gaussian's step, some octaves up.
    let deviation = table[0] / (GAUSSIAN_STEP[bits as usize - 1] * OCTAVES_ABOVE);
    let outlier = OUTLIER * deviation;
    // Among f32 as integers the largest is the largest positive number, if there is one.
    let positive = block.iter().fold(i32::MIN, |max, v| max.max(v.to_bits() as i32));
    let turned = if positive == largest.to_bits() as i32 { TURNED } else { 0 };
    let half = (1u32 << (bits - 1)) as f32;
    let first = step_byte(table, largest / (half + 0.5));
    if first == ZERO_STEP {
        return ZERO_STEP;
    }
    let (mut best, mut best_error) = (first | turned, f32::INFINITY);
    // With many levels there is little to win by clipping. But where a few blocks have nearly all of the
    // energy, it is worth finding the step that meets their largest value.
    let (tries, stride) = match bits {
        _ if largest > outlier => (5, 1),
        ..=3 => (6, 2),
        4..=5 => (2, 2),
        _ => (2, 1),
    };
    for s in (first..ZERO_STEP).step_by(stride).take(tries) {
        let byte = s | turned;
        let error = block_error(block, table[byte as usize], half);
        if error < best_error {
            (best, best_error) = (byte, error);
        }
    }
    best
}

/// Squared error of the block with one step.
#[inline(always)]
fn block_error(block: &[f32; SDQ_BLOCK], step: f32, half: f32) -> f32 {
    let factor = 1.0 / step;
    let mut squares = [0.0f32; SDQ_BLOCK];
    for (square, v) in squares.iter_mut().zip(block) {
        let error = round_to_code(v * factor, half) * step - v;
        *square = error * error;
    }
    // Pairwise: additions in a row would take longer than all that came before.
    let mut width = SDQ_BLOCK / 2;
    while width > 0 {
        let (low, high) = squares.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        width /= 2;
    }
    squares[0]
}

/// The nearest integer in [-half, half - 1].
#[inline(always)]
fn round_to_code(position: f32, half: f32) -> f32 {
    let rounded = (position + ROUND) - ROUND;
    let rounded = if rounded < half - 1.0 { rounded } else { half - 1.0 };
    if rounded > -half { rounded } else { -half }
}

/// At 1 bit the levels are plus and minus half a step: the mean magnitude shrinks the error of any
/// block.
#[inline(always)]
fn sign_step(block: &[f32; SDQ_BLOCK], table: &ScaleTable, count: usize) -> u8 {
    let mean = block.iter().map(|v| v.abs()).sum::<f32>() / count as f32;
    if mean == 0.0 { ZERO_STEP } else { crate::scale::byte_nearest(table, 2.0 * mean).min(ZERO_STEP - 1) }
}

#[inline(always)]
fn write_codes(
    block: &[f32; SDQ_BLOCK],
    table: &ScaleTable,
    byte: u8,
    bits: u8,
    codes: &mut [u8; SDQ_BLOCK],
) {
    if bits == 1 {
        for (code, v) in codes.iter_mut().zip(block) {
            *code = u8::from(*v >= 0.0);
        }
        return;
    }
    let step = table[byte as usize];
    let factor = if step == 0.0 { 0.0 } else { 1.0 / step };
    let half = (1u32 << (bits - 1)) as f32;
    for (code, v) in codes.iter_mut().zip(block) {
        // 2^23 + code keeps the code in the lowest bits of the f32.
        *code = (round_to_code(v * factor, half) + (half + 8_388_608.0)).to_bits() as u8;
    }
}

pub fn parse(bits: u8, reader: &mut Reader<'_>) -> Result<Levels, DecodeError> {
    let centre = reader.f32()?;
    let table = step_table(reader.f32()?, bits);
    let scales: Scales = Scales::blocks(table, SDQ_BLOCK);
    let half = 0.5 * (1u32 << bits) as f32;
    let levels = match bits {
        1 => vec![-0.5, 0.5],
        _ => (0..1u32 << bits).map(|code| code as f32 - half).collect(),
    };
    Ok(Levels { levels, scales, centre })
}
