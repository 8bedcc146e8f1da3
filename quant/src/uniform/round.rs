//! Rounding to the nearest index, and the statistics of the error, in one pass.

use super::offsets::{COUNT, Centroids};
use crate::{
    entropy::MAX_MAGNITUDE,
    simd::{floor, to_integer},
};

/// Values per iteration: a vector register, or a few.
const WIDTH: usize = 16;

/// Values that are summed in f32 before an f64 takes the sums over.
const CHUNK: usize = 1024;

/// Error sums of one class of levels, per vector lane.
#[derive(Clone, Copy, Default)]
struct ClassSums {
    excess: [f32; WIDTH],
    squares: [f32; WIDTH],
    number: [u32; WIDTH],
}

/// Rounds each value to its nearest index. Returns the centroids of the cells and the magnitude of the
/// largest index.
#[inline(always)]
pub fn round(x: &[f32], step: f32, indices: &mut [i32]) -> (Centroids, u32) {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let mut centroids = Centroids::default();
    let mut largest = [0; WIDTH];
    for (x, indices) in x.chunks(CHUNK).zip(indices.chunks_mut(CHUNK)) {
        let mut sums = [ClassSums::default(); COUNT + 1];
        let (groups, rest) = x.as_chunks::<WIDTH>();
        let (group_indices, rest_indices) = indices.as_chunks_mut::<WIDTH>();
        for (x, indices) in groups.iter().zip(group_indices) {
            group(x, inverse, indices, &mut sums, &mut largest);
        }
        if !rest.is_empty() {
            // Padded with zeros, which add nothing to the sums of error.
            let mut x = [0.0; WIDTH];
            let mut last = [0; WIDTH];
            x[..rest.len()].copy_from_slice(rest);
            group(&x, inverse, &mut last, &mut sums, &mut largest);
            rest_indices.copy_from_slice(&last[..rest.len()]);
        }
        for (class, sums) in sums.iter().enumerate() {
            let total = |sums: &[f32; WIDTH]| sums.iter().map(|sum| f64::from(*sum)).sum();
            let number = sums.number.iter().map(|number| u64::from(*number)).sum();
            centroids.add_sums(class, total(&sums.excess), total(&sums.squares), number);
        }
    }
    (centroids, largest.into_iter().fold(0, u32::max))
}

/// Rounds one group of values.
#[inline(always)]
fn group(
    x: &[f32; WIDTH],
    inverse: f32,
    indices: &mut [i32; WIDTH],
    sums: &mut [ClassSums; COUNT + 1],
    largest: &mut [u32; WIDTH],
) {
    let mut excess = [0.0; WIDTH];
    let mut magnitudes = [0; WIDTH];
    for i in 0..WIDTH {
        let position = (x[i] * inverse).abs();
        let nearest = position + 0.5;
        let nearest = if nearest < MAX_MAGNITUDE as f32 { nearest } else { MAX_MAGNITUDE as f32 };
        let nearest = floor(nearest);
        magnitudes[i] = to_integer(nearest);
        excess[i] = position - nearest;
        let magnitude = magnitudes[i] as i32;
        // -1 for negative values, else 0.
        let negative = (x[i].to_bits() as i32) >> 31;
        indices[i] = (magnitude ^ negative) - negative;
    }
    for i in 0..WIDTH {
        largest[i] = largest[i].max(magnitudes[i]);
    }
    for (class, sums) in sums.iter_mut().enumerate() {
        for i in 0..WIDTH {
            let inside = magnitudes[i].min(COUNT as u32) == class as u32;
            let excess = if inside { excess[i] } else { 0.0 };
            sums.excess[i] += excess;
            sums.squares[i] += excess * excess;
            sums.number[i] += u32::from(inside);
        }
    }
}
