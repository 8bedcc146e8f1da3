//! The register tiles of a convolution: products whose rows are gathered through offsets.
//!
//! Each element of a product is one chain of fused multiply-adds in the order of `k`, which may be
//! interrupted and continued: its value depends neither on tiles and threads nor on the width of a vector.

use crate::fused::simd;
use pulp::{Simd, WithSimd};

/// Columns of a panel at most: four of the widest vectors.
pub(super) const PANEL: usize = 64;

/// Rows of a panel are padded with zeros to a multiple of the widest vector.
pub(super) const LANES: usize = 16;

/// Width of panel `index` of a matrix of `columns`, and the padded distance between its rows.
pub(super) fn panel_width(columns: usize, index: usize) -> (usize, usize) {
    let width = (columns - index * PANEL).min(PANEL);
    (width, width.next_multiple_of(LANES))
}

/// `len` values of each left row from `left` on, against rows `right..right + len` of a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    pub(super) left: usize,
    pub(super) right: usize,
    pub(super) len: usize,
}

/// What the chains of multiply-adds begin with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin<'a> {
    Zero,
    /// One value a column.
    Bias(&'a [f32]),
}

/// `C[j][n] = begin[n] + sum_k L[j][k] R[k][n]`, where row `j` of `L` is the concatenation of
/// `data[starts[j] + segment.left..][..segment.len]` and row `j` of `C` begins at `out[targets[j]]`.
pub(super) struct Gather<'a> {
    pub(super) data: &'a [f32],
    pub(super) starts: &'a [u32],
    pub(super) segments: &'a [Segment],
    pub(super) panel: &'a [f32],
    /// Columns that are stored, and the distance between rows of the panel.
    pub(super) width: (usize, usize),
    pub(super) out: &'a mut [f32],
    pub(super) targets: &'a [u32],
    pub(super) begin: Begin<'a>,
    pub(super) relu: bool,
}

/// `C[m][n] = C[m][n] + sum_k L[k][m] R[k][n]` for `m < rows`, where row `k` of `L` begins at
/// `left[pairs[k].0]` and row `k` of `R` at `right[pairs[k].1]`; `repeats` runs over the pairs again at
/// other offsets of the two operands.
pub(super) struct Outer<'a> {
    pub(super) left: &'a [f32],
    pub(super) right: &'a [f32],
    pub(super) pairs: &'a [[u32; 2]],
    /// Repetitions, and how far they are apart in both operands.
    pub(super) repeats: (usize, usize, usize),
    pub(super) rows: usize,
    /// Columns of `R`, and the distance between rows of `C`.
    pub(super) width: (usize, usize),
    pub(super) out: &'a mut [f32],
}

pub(super) fn gather(product: Gather<'_>) {
    simd::run(product);
}

pub(super) fn outer(product: Outer<'_>) {
    simd::run(product);
}

/// A load of `values`, which are at most a vector; zeros beyond them.
#[inline(always)]
pub(super) fn load_part<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values) {
        ([full, ..], _) => *full,
        (_, rest) => simd.partial_load_f32s(rest),
    }
}

/// Stores what `values` has room for.
#[inline(always)]
pub(super) fn put_part<S: Simd>(simd: S, values: &mut [f32], vector: S::f32s) {
    if values.len() >= S::F32_LANES {
        S::as_mut_simd_f32s(values).0[0] = vector;
    } else {
        simd.partial_store_f32s(values, vector);
    }
}

/// The part of `values` that belongs to the vector at `column` of `width`.
#[inline(always)]
fn part<S: Simd>(values: &[f32], column: usize, width: usize) -> &[f32] {
    &values[column.min(width)..(column + S::F32_LANES).min(width)]
}

/// Calls `$tile::<S, ROWS, $vectors>` over all rows, in tiles as even as possible.
macro_rules! tiles {
    ($rows:expr, $most:expr, $vectors:ident, |$row:ident| $tile:ident($($argument:expr),*)) => {{
        let (rows, most) = ($rows, $most);
        let mut $row = 0;
        while $row < rows {
            let left: usize = rows - $row;
            let size = left.div_ceil(left.div_ceil(most));
            $row += tiles!(@sizes size, $tile, $vectors, ($($argument),*));
        }
    }};
    (@sizes $size:ident, $tile:ident, $vectors:ident, $arguments:tt) => {
        match $size {
            12.. if $vectors <= 2 => tiles!(@call $tile, 12, $vectors, $arguments),
            9.. if $vectors <= 2 => tiles!(@call $tile, 9, $vectors, $arguments),
            8.. if $vectors <= 3 => tiles!(@call $tile, 8, $vectors, $arguments),
            6.. => tiles!(@call $tile, 6, $vectors, $arguments),
            5 => tiles!(@call $tile, 5, $vectors, $arguments),
            4 => tiles!(@call $tile, 4, $vectors, $arguments),
            3 => tiles!(@call $tile, 3, $vectors, $arguments),
            2 => tiles!(@call $tile, 2, $vectors, $arguments),
            _ => tiles!(@call $tile, 1, $vectors, $arguments),
        }
    };
    (@call $tile:ident, $size:literal, $vectors:ident, ($($argument:expr),*)) => {{
        $tile::<S, { $size }, { $vectors }>($($argument),*);
        $size
    }};
}

/// Rows of a tile at most, so that its sums stay in registers.
#[inline(always)]
fn most_rows<S: Simd>(vectors: usize) -> usize {
    match (S::REGISTER_COUNT >= 32, vectors) {
        (true, 4) => 6,
        (true, 3) => 8,
        (true, 2) => 12,
        (true, _) => 12,
        (false, 2) => 6,
        (false, _) => 9,
    }
}

/// Cuts columns into strips of vectors, the last of which may be partly used.
macro_rules! strips {
    ($columns:expr, |$column:ident| $body:ident($($argument:expr),*)) => {{
        let columns: usize = $columns.next_multiple_of(S::F32_LANES);
        let most = if const { S::REGISTER_COUNT >= 32 } { 4 } else { 2 };
        let mut $column = 0;
        while $column < columns {
            let vectors = ((columns - $column) / S::F32_LANES).min(most);
            match vectors {
                4 => $body::<S, 4>($($argument),*),
                3 => $body::<S, 3>($($argument),*),
                2 => $body::<S, 2>($($argument),*),
                _ => $body::<S, 1>($($argument),*),
            }
            $column += vectors * S::F32_LANES;
        }
    }};
}

impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        strips!(self.width.0, |column| gather_strip(simd, &mut self, column));
    }
}

#[inline(always)]
fn gather_strip<S: Simd, const VECTORS: usize>(simd: S, product: &mut Gather<'_>, column: usize) {
    let rows = product.starts.len();
    tiles!(rows, most_rows::<S>(VECTORS), VECTORS, |row| gather_tile(simd, product, row, column));
}

#[inline(always)]
fn gather_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    product: &mut Gather<'_>,
    row: usize,
    column: usize,
) {
    let (width, ld) = product.width;
    let begin: [S::f32s; VECTORS] = match product.begin {
        Begin::Zero => [simd.splat_f32s(0.0); VECTORS],
        Begin::Bias(bias) => {
            std::array::from_fn(|v| load_part(simd, part::<S>(bias, column + v * S::F32_LANES, width)))
        }
    };
    let mut acc = [begin; ROWS];
    let starts = &product.starts[row..row + ROWS];
    let (panel, _) = S::as_simd_f32s(product.panel);
    let (ld, first) = (ld / S::F32_LANES, column / S::F32_LANES);
    for segment in product.segments {
        let len = segment.len;
        let l: [&[f32]; ROWS] =
            std::array::from_fn(|j| &product.data[starts[j] as usize + segment.left..][..len]);
        let r = &panel[segment.right * ld..][..len * ld];
        for (k, r) in (0..len).zip(r.chunks_exact(ld)) {
            let r = &r[first..first + VECTORS];
            for (acc, l) in acc.iter_mut().zip(&l) {
                let l = simd.splat_f32s(l[k]);
                for (acc, r) in acc.iter_mut().zip(r) {
                    *acc = simd.mul_add_f32s(l, *r, *acc);
                }
            }
        }
    }
    let zero = simd.splat_f32s(0.0);
    for (j, acc) in acc.iter().enumerate() {
        let c = &mut product.out[product.targets[row + j] as usize..][..width];
        for (v, sum) in acc.iter().enumerate() {
            // Operand order matters: `max(sum, 0)` would drop a NaN.
            let value = if product.relu { simd.max_f32s(zero, *sum) } else { *sum };
            let from = (column + v * S::F32_LANES).min(width);
            let to = (from + S::F32_LANES).min(width);
            put_part(simd, &mut c[from..to], value);
        }
    }
}

impl WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if self.width.0.is_multiple_of(S::F32_LANES) {
            strips!(self.width.0, |column| whole_strip(simd, &mut self, column));
        } else {
            strips!(self.width.0, |column| part_strip(simd, &mut self, column));
        }
    }
}

#[inline(always)]
fn whole_strip<S: Simd, const VECTORS: usize>(simd: S, product: &mut Outer<'_>, column: usize) {
    tiles!(product.rows, most_rows::<S>(VECTORS), VECTORS, |row| whole_tile(simd, product, row, column));
}

#[inline(always)]
fn part_strip<S: Simd, const VECTORS: usize>(simd: S, product: &mut Outer<'_>, column: usize) {
    tiles!(product.rows, most_rows::<S>(VECTORS), VECTORS, |row| part_tile(simd, product, row, column));
}

#[inline(always)]
fn whole_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    product: &mut Outer<'_>,
    row: usize,
    column: usize,
) {
    outer_tile::<S, ROWS, VECTORS, false>(simd, product, row, column);
}

#[inline(always)]
fn part_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    product: &mut Outer<'_>,
    row: usize,
    column: usize,
) {
    outer_tile::<S, ROWS, VECTORS, true>(simd, product, row, column);
}

#[inline(always)]
fn outer_tile<S: Simd, const ROWS: usize, const VECTORS: usize, const PART: bool>(
    simd: S,
    product: &mut Outer<'_>,
    row: usize,
    column: usize,
) {
    let (width, ld) = product.width;
    let mut acc = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (j, acc) in acc.iter_mut().enumerate() {
        let (c, _) = S::as_simd_f32s(&product.out[(row + j) * ld + column..][..VECTORS * S::F32_LANES]);
        acc.copy_from_slice(c);
    }
    let columns = if PART { (width - column).min(VECTORS * S::F32_LANES) } else { VECTORS * S::F32_LANES };
    let (repeats, left_step, right_step) = product.repeats;
    for repeat in 0..repeats {
        let left = &product.left[repeat * left_step + row..];
        let right = &product.right[repeat * right_step + column..];
        for &[l, r] in product.pairs {
            let l = &left[l as usize..][..ROWS];
            let r = &right[r as usize..][..columns];
            let r: [S::f32s; VECTORS] = if PART {
                std::array::from_fn(|v| load_part(simd, part::<S>(r, v * S::F32_LANES, columns)))
            } else {
                let (full, _) = S::as_simd_f32s(r);
                std::array::from_fn(|v| full[v])
            };
            for (acc, l) in acc.iter_mut().zip(l) {
                let l = simd.splat_f32s(*l);
                for (acc, r) in acc.iter_mut().zip(&r) {
                    *acc = simd.mul_add_f32s(l, *r, *acc);
                }
            }
        }
    }
    for (j, acc) in acc.iter().enumerate() {
        let (c, _) =
            S::as_mut_simd_f32s(&mut product.out[(row + j) * ld + column..][..VECTORS * S::F32_LANES]);
        c.copy_from_slice(acc);
    }
}
