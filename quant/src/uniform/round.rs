//! Rounding to the nearest index, and the statistics of the error.

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

/// The centroids of the cells and the magnitude of the largest index if each value is rounded to its nearest
/// index.
#[inline(always)]
pub fn measure(x: &[f32], step: f32) -> (Centroids, u32) {
    let inverse = inverse(step);
    let mut centroids = Centroids::default();
    let mut largest = [0; WIDTH];
    for x in x.chunks(CHUNK) {
        let mut sums = [ClassSums::default(); COUNT + 1];
        let (groups, rest) = x.as_chunks::<WIDTH>();
        for x in groups {
            measure_group(x, inverse, &mut sums, &mut largest);
        }
        if !rest.is_empty() {
            // Padded with zeros, which add nothing to the sums of error.
            let mut x = [0.0; WIDTH];
            x[..rest.len()].copy_from_slice(rest);
            measure_group(&x, inverse, &mut sums, &mut largest);
        }
        for (class, sums) in sums.iter().enumerate() {
            let total = |sums: &[f32; WIDTH]| sums.iter().map(|sum| f64::from(*sum)).sum();
            let number = sums.number.iter().map(|number| u64::from(*number)).sum();
            centroids.add_sums(class, total(&sums.excess), total(&sums.squares), number);
        }
    }
    (centroids, largest.into_iter().fold(0, u32::max))
}

/// Rounds each value to its nearest index.
#[inline(always)]
pub fn round(x: &[f32], step: f32, indices: &mut [i32]) {
    let inverse = inverse(step);
    for (x, index) in x.iter().zip(indices) {
        let magnitude = to_integer(nearest((x * inverse).abs())) as i32;
        // -1 for negative values, else 0.
        let negative = (x.to_bits() as i32) >> 31;
        *index = (magnitude ^ negative) - negative;
    }
}

fn inverse(step: f32) -> f32 {
    if step > 0.0 { 1.0 / step } else { 0.0 }
}

/// The whole number nearest to a magnitude in steps, at most the largest that can be coded.
#[inline(always)]
fn nearest(position: f32) -> f32 {
    let nearest = position + 0.5;
    floor(if nearest < MAX_MAGNITUDE as f32 { nearest } else { MAX_MAGNITUDE as f32 })
}

#[inline(always)]
fn measure_group(
    x: &[f32; WIDTH],
    inverse: f32,
    sums: &mut [ClassSums; COUNT + 1],
    largest: &mut [u32; WIDTH],
) {
    let mut excess = [0.0; WIDTH];
    let mut magnitudes = [0; WIDTH];
    for i in 0..WIDTH {
        let position = (x[i] * inverse).abs();
        let nearest = nearest(position);
        magnitudes[i] = to_integer(nearest);
        excess[i] = position - nearest;
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
