//! Transposition of a matrix.

use super::simd;
use pulp::{Simd, WithSimd};

/// Edge of the blocks that are turned in registers.
const BLOCK: usize = 8;

/// `out[j][i] = x[i][j]` for `i < rows` and as many `j` as `out` has rows.
///
/// A row of `x` has `row_len` values, one of `out` has `stride`.
pub(super) fn transpose(x: &[f32], row_len: usize, rows: usize, out: &mut [f32], stride: usize) {
    simd::run(Transpose { x, row_len, rows, out, stride });
}

struct Transpose<'a> {
    x: &'a [f32],
    row_len: usize,
    rows: usize,
    out: &'a mut [f32],
    stride: usize,
}

impl WithSimd for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, row_len, rows, out, stride } = self;
        let whole = rows - rows % BLOCK;
        for (strip, out) in out.chunks_mut(BLOCK * stride).enumerate() {
            let column = strip * BLOCK;
            let columns = out.len().div_ceil(stride);
            let first_single = if columns == BLOCK { whole } else { 0 };
            for row in (0..first_single).step_by(BLOCK) {
                turn(&x[row * row_len + column..], row_len, &mut out[row..], stride);
            }
            for row in first_single..rows {
                let x = &x[row * row_len + column..][..columns];
                for (out, x) in out[row..].iter_mut().step_by(stride).zip(x) {
                    *out = *x;
                }
            }
        }
    }
}

/// Turns one block. Arrays of constant size: the compiler makes shuffles of them.
#[inline(always)]
fn turn(x: &[f32], row_len: usize, out: &mut [f32], stride: usize) {
    let mut block = [[0.0f32; BLOCK]; BLOCK];
    for (row, block) in block.iter_mut().enumerate() {
        block.copy_from_slice(&x[row * row_len..][..BLOCK]);
    }
    for column in 0..BLOCK {
        let turned: [f32; BLOCK] = std::array::from_fn(|row| block[row][column]);
        out[column * stride..][..BLOCK].copy_from_slice(&turned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_turned() {
        for (rows, columns) in [(1usize, 1), (8, 8), (16, 8), (7, 9), (64, 50), (3, 64)] {
            let stride = rows.next_multiple_of(16);
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let mut out = vec![0.0; columns * stride];
            transpose(&x, columns, rows, &mut out, stride);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(out[column * stride + row], x[row * columns + column]);
                }
            }
        }
    }
}
