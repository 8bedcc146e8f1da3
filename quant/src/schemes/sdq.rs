//! SDQ: uniform levels, with a step that follows the standard deviation.
//!
//! Mean and standard deviation of the tensor are the side information. Each block of [`SDQ_BLOCK`]
//! elements has its own step, because the blocks of a real delta differ in deviation: one byte, in eighths
//! of an octave relative to the step that is optimal for a Gaussian of the tensor's deviation (Max 1960,
//! table II). There is one more level below zero than above; the top bit of the byte mirrors the levels,
//! so that the longer side covers the block's largest value.

use super::{
    Dequantizer, QuantizerBuffers, Scales, TensorParams, max_abs,
    scale_table::{ScaleTable, byte_at_least, byte_nearest, scale_table},
    sign_codes, spans,
};
use crate::{DecodeError, byte_reader::ByteReader, simd::vectorized};

/// Elements that share a step.
pub const SDQ_BLOCK: usize = 32;

/// The step of the best uniform quantizer of a unit Gaussian, by width.
const GAUSSIAN_STEP: [f32; 8] = [1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308];

/// The step of a block whose largest magnitude is above so many deviations is searched finely.
const OUTLIER: f32 = 2.0;

/// The largest step of the table, relative to the Gaussian's: eight octaves above.
const LARGEST_STEP: f32 = 256.0;

/// The byte (without its top bit) of a block of zeros.
const ZERO_STEP: u8 = 127;

/// The bit of a block's byte that mirrors the levels.
const MIRRORED: u8 = 128;

/// A mean below this part of the deviation is written as 0: the zeros of a delta (4 to 41% of its
/// elements) then stay zeros, which gains more than centring does.
const SMALL_MEAN: f64 = 0.5;

/// Adding and subtracting it rounds a small f32 to the nearest integer.
const ROUND: f32 = 12_582_912.0;

pub fn quantize(x: &[f32], params: &TensorParams<'_>, buffers: &mut QuantizerBuffers, side: &mut Vec<u8>) {
    let (mean, deviation) = moments(x, params);
    side.extend_from_slice(&mean.to_le_bytes());
    side.extend_from_slice(&deviation.to_le_bytes());
    let table = step_table(deviation, params.bits);
    let QuantizerBuffers { codes, scales, .. } = buffers;
    params.threads.each(spans(x, params, SDQ_BLOCK, codes, scales), |span| {
        vectorized(
            #[inline(always)]
            || quantize_blocks(span.values, mean, &table, params.bits, span.codes, span.scales),
        );
    });
}

#[inline(always)]
fn quantize_blocks(
    values: &[f32],
    mean: f32,
    table: &ScaleTable,
    bits: u8,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let (blocks, rest) = values.as_chunks::<SDQ_BLOCK>();
    let (block_codes, rest_codes) = codes.as_chunks_mut::<SDQ_BLOCK>();
    for ((block, codes), scale) in blocks.iter().zip(block_codes).zip(&mut *scales) {
        let centred = block.map(|v| v - mean);
        *scale = quantize_block(&centred, table, bits, SDQ_BLOCK, codes);
    }
    if let (false, Some(scale)) = (rest.is_empty(), scales.last_mut()) {
        // Padded with zeros, which every step represents exactly.
        let mut block = [0.0; SDQ_BLOCK];
        for (b, v) in block.iter_mut().zip(rest) {
            *b = v - mean;
        }
        let mut codes = [0; SDQ_BLOCK];
        *scale = quantize_block(&block, table, bits, rest.len(), &mut codes);
        rest_codes.copy_from_slice(&codes[..rest.len()]);
    }
}

/// Writes the codes of a block of `count` values and padding. Returns the byte of its step.
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
fn moments(x: &[f32], params: &TensorParams<'_>) -> (f32, f32) {
    let TensorParams { span, threads, .. } = *params;
    let mut sums = vec![(0.0, 0.0); x.len().div_ceil(span)];
    threads.each(x.chunks(span).zip(&mut sums), |(values, sums)| {
        *sums = vectorized(
            #[inline(always)]
            || sums_of(values),
        );
    });
    let (sum, squares) = sums.iter().fold((0.0, 0.0), |total, part| (total.0 + part.0, total.1 + part.1));
    let n = x.len().max(1) as f64;
    let mean = sum / n;
    let variance = (squares / n - mean * mean).max(0.0);
    if mean.abs() < SMALL_MEAN * variance.sqrt() {
        (0.0, (squares / n).sqrt() as f32)
    } else {
        (mean as f32, variance.sqrt() as f32)
    }
}

/// Sum of the values and of their squares.
#[inline(always)]
fn sums_of(x: &[f32]) -> (f64, f64) {
    // Sixteen partial sums fill vector registers; f64 takes them over every 4096 values, so that long
    // tensors lose no precision.
    let (mut sum, mut squares) = (0.0f64, 0.0f64);
    for chunk in x.chunks(4096) {
        let mut sums = [0.0f32; 16];
        let mut square_sums = [0.0f32; 16];
        let (groups, rest) = chunk.as_chunks::<16>();
        // Two loops: the compiler does not vectorise one that adds to both sums.
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
    (sum, squares)
}

/// The step of each byte; negative ones mirror the levels.
fn step_table(deviation: f32, bits: u8) -> ScaleTable {
    let mut table = scale_table(deviation * GAUSSIAN_STEP[bits as usize - 1] * LARGEST_STEP);
    table[ZERO_STEP as usize] = 0.0;
    for s in 0..MIRRORED as usize {
        table[s + MIRRORED as usize] = -table[s];
    }
    table
}

/// The byte of the smallest step that is at least `step`, among the 127 that are not zero.
fn step_byte(table: &ScaleTable, step: f32) -> u8 {
    if step == 0.0 { ZERO_STEP } else { byte_at_least(table, step).min(ZERO_STEP - 1) }
}

/// Searches for the step of least squared error, from the one that just covers the largest magnitude
/// down to those that clip it.
#[inline(always)]
fn best_step(block: &[f32; SDQ_BLOCK], table: &ScaleTable, bits: u8) -> u8 {
    let largest = max_abs(block);
    // Inverts what `step_table` computed its first entry from.
    let deviation = table[0] / (GAUSSIAN_STEP[bits as usize - 1] * LARGEST_STEP);
    let outlier = OUTLIER * deviation;
    // The bits of floats as signed integers: any positive number is above every negative one.
    let positive = block.iter().fold(i32::MIN, |max, v| max.max(v.to_bits() as i32));
    let mirrored = if positive == largest.to_bits() as i32 { MIRRORED } else { 0 };
    let half = (1u32 << (bits - 1)) as f32;
    let first = step_byte(table, largest / (half + 0.5));
    if first == ZERO_STEP {
        return ZERO_STEP;
    }
    let (mut best, mut best_error) = (first | mirrored, f32::INFINITY);
    // With many levels clipping gains little. But outlier blocks can hold nearly all of the tensor's
    // energy: for them the step that represents the largest value best is worth more tries.
    let (tries, stride) = match bits {
        _ if largest > outlier => (5, 1),
        ..=3 => (6, 2),
        4..=5 => (2, 2),
        _ => (2, 1),
    };
    for s in (first..ZERO_STEP).step_by(stride).take(tries) {
        let byte = s | mirrored;
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
    // Pairwise: a serial sum would take longer than computing the squares.
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

/// At 1 bit the levels are plus and minus half a step, put at the mean magnitude. The error is then smaller
/// than the block itself, whatever the block, which error feedback needs.
#[inline(always)]
fn sign_step(block: &[f32; SDQ_BLOCK], table: &ScaleTable, count: usize) -> u8 {
    let mean = block.iter().map(|v| v.abs()).sum::<f32>() / count as f32;
    if mean == 0.0 { ZERO_STEP } else { byte_nearest(table, 2.0 * mean).min(ZERO_STEP - 1) }
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
        return sign_codes(block, codes);
    }
    let step = table[byte as usize];
    let factor = if step == 0.0 { 0.0 } else { 1.0 / step };
    let half = (1u32 << (bits - 1)) as f32;
    for (code, v) in codes.iter_mut().zip(block) {
        // The lowest bits of the f32 2^23 + code are the code.
        *code = (round_to_code(v * factor, half) + (half + 8_388_608.0)).to_bits() as u8;
    }
}

pub fn parse(bits: u8, reader: &mut ByteReader<'_>) -> Result<Dequantizer, DecodeError> {
    let centre = reader.f32()?;
    let table = step_table(reader.f32()?, bits);
    let scales = Scales::blocks_of(SDQ_BLOCK, table);
    let half = 0.5 * (1u32 << bits) as f32;
    let levels = match bits {
        1 => vec![-0.5, 0.5],
        _ => (0..1u32 << bits).map(|code| code as f32 - half).collect(),
    };
    Ok(Dequantizer { levels, scales, centre })
}
