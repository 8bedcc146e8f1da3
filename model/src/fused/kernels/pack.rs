//! Panels of a matrix, for the tiles of a product.

use super::{
    panel::{LANES, PANEL, padded},
    view::View,
};

/// Edge of the blocks that are transposed in registers.
const BLOCK: usize = 8;

/// Writes the panels of `b` one after the other; `out` has `b.rows` rows of `b.columns`, padded.
#[inline(always)]
pub(super) fn panels(b: View<'_>, out: &mut [f32]) {
    let View { data, rows, columns, row_stride, column_stride } = b;
    if rows == 0 || columns == 0 {
        return;
    }
    if column_stride == 1 {
        // Row by row: the reads are as long as the matrix is wide.
        for r in 0..rows {
            let row = &data[r * row_stride..][..columns];
            let (whole, rest) = row.as_chunks::<PANEL>();
            let (out, out_rest) = out.split_at_mut(whole.len() * PANEL * rows);
            for (panel, values) in out.chunks_exact_mut(PANEL * rows).zip(whole) {
                panel[r * PANEL..][..PANEL].copy_from_slice(values);
            }
            if !rest.is_empty() {
                let width = rest.len().next_multiple_of(LANES);
                let out = &mut out_rest[r * width..][..width];
                out[..rest.len()].copy_from_slice(rest);
                out[rest.len()..].fill(0.0);
            }
        }
        return;
    }
    for first in (0..columns).step_by(PANEL) {
        let width = padded(columns, first);
        let out = &mut out[first * rows..][..rows * width];
        let count = (columns - first).min(PANEL);
        let data = &data[first * column_stride..];
        if row_stride == 1 {
            turn_into(data, column_stride, count, rows, out, width);
        } else {
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                for (c, out) in out[..count].iter_mut().enumerate() {
                    *out = data[r * row_stride + c * column_stride];
                }
            }
        }
        if count < width {
            for out in out.chunks_exact_mut(width) {
                out[count..].fill(0.0);
            }
        }
    }
}

/// `out[c][r] = x[r][c]` for `c < columns`; a row of `out` has `stride` values, of which it fills as many as
/// `x` has rows of `row_len`.
#[inline(always)]
pub(super) fn turn(x: &[f32], row_len: usize, columns: usize, out: &mut [f32], stride: usize) {
    turn_into(x, row_len, x.len() / row_len, columns, out, stride);
}

/// `out[c][r] = x[r][c]` for `r < rows`, `c < columns`.
#[inline(always)]
pub(super) fn turn_into(
    x: &[f32],
    row_len: usize,
    rows: usize,
    columns: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (whole_rows, whole_columns) = (rows - rows % BLOCK, columns - columns % BLOCK);
    for r in (0..whole_rows).step_by(BLOCK) {
        for c in (0..whole_columns).step_by(BLOCK) {
            turn_block(&x[r * row_len + c..], row_len, &mut out[c * stride + r..], stride);
        }
    }
    for r in 0..rows {
        let first = if r < whole_rows { whole_columns } else { 0 };
        for c in first..columns {
            out[c * stride + r] = x[r * row_len + c];
        }
    }
}

/// Arrays of constant size: the compiler makes shuffles of them.
#[inline(always)]
fn turn_block(x: &[f32], row_len: usize, out: &mut [f32], stride: usize) {
    let mut block = [[0.0f32; BLOCK]; BLOCK];
    for (row, block) in block.iter_mut().enumerate() {
        block.copy_from_slice(&x[row * row_len..][..BLOCK]);
    }
    for column in 0..BLOCK {
        let turned: [f32; BLOCK] = std::array::from_fn(|row| block[row][column]);
        out[column * stride..][..BLOCK].copy_from_slice(&turned);
    }
}
