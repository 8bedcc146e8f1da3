//! Matrix products `C = L R` on unpacked operands.
//!
//! `R` and `C` are row-major. The elements of `L` are broadcast, one at a time, against vectors of a
//! row of `R`, so `L` may lie anywhere: its rows (or, in [`tn`], the rows of its transpose) start at
//! offsets that the caller lists. That makes a convolution over channels-last images a matrix
//! product without the copy of `im2col`.
//!
//! Each element of `C` is one chain of fused multiply-adds in the order of `k`: its value does not
//! depend on how the work is cut into tiles, vectors or threads.

use super::simd;
use pulp::{Simd, WithSimd};

/// How a product is stored.
#[derive(Clone, Copy)]
pub(crate) enum Store<'a> {
    /// `C = P`
    Set,
    /// `C = C + P`
    Add,
    /// `C = C - lr P`
    Descend { lr: f32 },
    /// `C = P + bias`, one per row; then ReLU if asked.
    RowBias { bias: &'a [f32], relu: bool },
    /// `C = P + bias`, one per column; then ReLU if asked.
    ColumnBias { bias: &'a [f32], relu: bool },
}

/// The left operand, whose row `j` is the concatenation of
/// `data[starts[j] + segment..][..segment_len]` over the segments.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) starts: &'a [usize],
    pub(crate) segments: &'a [usize],
    pub(crate) segment_len: usize,
}

/// The left operand of [`tn`]: column `m` of row `k` is `data[starts[k] + offset + m]`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) starts: &'a [usize],
    pub(crate) offset: usize,
    /// Columns: rows of the product.
    pub(crate) width: usize,
}

/// `C[j][n] = sum_k L[j][k] R[k][n]` for `n < columns`.
pub(crate) fn nn(
    l: Rows<'_>,
    r: &[f32],
    ldr: usize,
    c: &mut [f32],
    ldc: usize,
    columns: usize,
    store: Store<'_>,
) {
    let target = Target { c, ldc, rows: l.starts.len(), columns, store };
    simd::run(Product { source: Nn { l, r, ldr }, target });
}

/// `C[m][n] = sum_k L[k][m] R[k][n]` for `n < columns`.
pub(crate) fn tn(
    l: Columns<'_>,
    r: &[f32],
    ldr: usize,
    c: &mut [f32],
    ldc: usize,
    columns: usize,
    store: Store<'_>,
) {
    let target = Target { c, ldc, rows: l.width, columns, store };
    simd::run(Product { source: Tn { l, r, ldr }, target });
}

/// How one tile of the product is computed.
trait Source: Copy {
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        self,
        simd: S,
        row: usize,
        column: usize,
        width: usize,
    ) -> [[S::f32s; VECTORS]; ROWS];
}

#[derive(Clone, Copy)]
struct Nn<'a> {
    l: Rows<'a>,
    r: &'a [f32],
    ldr: usize,
}

#[derive(Clone, Copy)]
struct Tn<'a> {
    l: Columns<'a>,
    r: &'a [f32],
    ldr: usize,
}

#[inline(always)]
fn load<S: Simd, const VECTORS: usize, const TAIL: bool>(simd: S, row: &[f32]) -> [S::f32s; VECTORS] {
    if TAIL {
        let (full, rest) = S::as_simd_f32s(row);
        let mut out = [simd.splat_f32s(0.0); VECTORS];
        out[..VECTORS - 1].copy_from_slice(&full[..VECTORS - 1]);
        out[VECTORS - 1] = simd.partial_load_f32s(rest);
        out
    } else {
        let (full, _) = S::as_simd_f32s(row);
        std::array::from_fn(|v| full[v])
    }
}

#[inline(always)]
fn fma<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    acc: &mut [[S::f32s; VECTORS]; ROWS],
    l: impl Fn(usize) -> f32,
    r: [S::f32s; VECTORS],
) {
    for (j, acc) in acc.iter_mut().enumerate() {
        let l = simd.splat_f32s(l(j));
        for (acc, r) in acc.iter_mut().zip(r) {
            *acc = simd.mul_add_f32s(l, r, *acc);
        }
    }
}

impl Source for Nn<'_> {
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        self,
        simd: S,
        row: usize,
        column: usize,
        width: usize,
    ) -> [[S::f32s; VECTORS]; ROWS] {
        let mut acc = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        let starts = &self.l.starts[row..row + ROWS];
        let len = self.l.segment_len;
        let mut r_rows = self.r.chunks(self.ldr);
        for &segment in self.l.segments {
            let l: [&[f32]; ROWS] = std::array::from_fn(|j| &self.l.data[starts[j] + segment..][..len]);
            for (k, r) in (&mut r_rows).take(len).enumerate() {
                let r = load::<S, VECTORS, TAIL>(simd, &r[column..column + width]);
                fma(simd, &mut acc, |j| l[j][k], r);
            }
        }
        acc
    }
}

impl Source for Tn<'_> {
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        self,
        simd: S,
        row: usize,
        column: usize,
        width: usize,
    ) -> [[S::f32s; VECTORS]; ROWS] {
        let mut acc = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        let l = &self.l.data[self.l.offset + row..];
        for (&start, r) in self.l.starts.iter().zip(self.r.chunks(self.ldr)) {
            let l = &l[start..][..ROWS];
            let r = load::<S, VECTORS, TAIL>(simd, &r[column..column + width]);
            fma(simd, &mut acc, |j| l[j], r);
        }
        acc
    }
}

/// Where a product goes.
struct Target<'a> {
    c: &'a mut [f32],
    ldc: usize,
    rows: usize,
    columns: usize,
    store: Store<'a>,
}

struct Product<'a, L> {
    source: L,
    target: Target<'a>,
}

impl<L: Source> WithSimd for Product<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { source, mut target } = self;
        strips(simd, source, &mut target);
    }
}

/// Cuts the product into strips of up to four vectors.
#[inline(always)]
fn strips<S: Simd>(simd: S, source: impl Source, target: &mut Target<'_>) {
    let lanes = S::F32_LANES;
    // 6 rows of 4 vectors accumulate in 24 of 32 registers, 6 of 2 in 12 of 16.
    let wide = const { S::REGISTER_COUNT >= 32 };
    let most = if wide { 4 } else { 2 } * lanes;
    let mut column = 0;
    while column < target.columns {
        let width = (target.columns - column).min(most);
        match (width.div_ceil(lanes), width % lanes != 0) {
            (4, false) if wide => strip::<S, 4, false>(simd, source, column, width, target),
            (4, true) if wide => strip::<S, 4, true>(simd, source, column, width, target),
            (3, false) if wide => strip::<S, 3, false>(simd, source, column, width, target),
            (3, true) if wide => strip::<S, 3, true>(simd, source, column, width, target),
            (2, false) => strip::<S, 2, false>(simd, source, column, width, target),
            (2, true) => strip::<S, 2, true>(simd, source, column, width, target),
            (1, false) => strip::<S, 1, false>(simd, source, column, width, target),
            _ => strip::<S, 1, true>(simd, source, column, width, target),
        }
        column += width;
    }
}

/// Cuts a strip into tiles of up to six rows, or twelve where a narrow strip leaves the registers.
#[inline(always)]
fn strip<S: Simd, const VECTORS: usize, const TAIL: bool>(
    simd: S,
    source: impl Source,
    column: usize,
    width: usize,
    target: &mut Target<'_>,
) {
    let mut row = 0;
    while row < target.rows {
        let at = (row, column, width);
        row += match target.rows - row {
            12.. if const { S::REGISTER_COUNT >= 32 && VECTORS <= 2 } => {
                tile::<S, 12, VECTORS, TAIL>(simd, source, at, target)
            }
            6.. => tile::<S, 6, VECTORS, TAIL>(simd, source, at, target),
            4.. => tile::<S, 4, VECTORS, TAIL>(simd, source, at, target),
            2.. => tile::<S, 2, VECTORS, TAIL>(simd, source, at, target),
            _ => tile::<S, 1, VECTORS, TAIL>(simd, source, at, target),
        };
    }
}

/// Computes and stores one tile; gives its number of rows.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
    simd: S,
    source: impl Source,
    (row, column, width): (usize, usize, usize),
    target: &mut Target<'_>,
) -> usize {
    let acc = source.tile::<S, ROWS, VECTORS, TAIL>(simd, row, column, width);
    for (j, acc) in acc.iter().enumerate() {
        let c = &mut target.c[(row + j) * target.ldc + column..][..width];
        let old = match target.store {
            Store::Add | Store::Descend { .. } => load::<S, VECTORS, TAIL>(simd, c),
            Store::ColumnBias { bias, .. } => load::<S, VECTORS, TAIL>(simd, &bias[column..column + width]),
            Store::RowBias { bias, .. } => [simd.splat_f32s(bias[row + j]); VECTORS],
            Store::Set => [simd.splat_f32s(0.0); VECTORS],
        };
        let new = std::array::from_fn(|v| combine(simd, target.store, acc[v], old[v]));
        put::<S, VECTORS, TAIL>(simd, c, new);
    }
    ROWS
}

#[inline(always)]
fn combine<S: Simd>(simd: S, store: Store<'_>, product: S::f32s, old: S::f32s) -> S::f32s {
    match store {
        Store::Set => product,
        Store::Add => simd.add_f32s(old, product),
        Store::Descend { lr } => simd.mul_add_f32s(simd.splat_f32s(-lr), product, old),
        Store::RowBias { relu, .. } | Store::ColumnBias { relu, .. } => {
            let sum = simd.add_f32s(product, old);
            // Operand order matters: `max(sum, 0)` would drop a NaN.
            if relu { simd.max_f32s(simd.splat_f32s(0.0), sum) } else { sum }
        }
    }
}

#[inline(always)]
fn put<S: Simd, const VECTORS: usize, const TAIL: bool>(simd: S, c: &mut [f32], values: [S::f32s; VECTORS]) {
    let (full, rest) = S::as_mut_simd_f32s(c);
    let whole = if TAIL { VECTORS - 1 } else { VECTORS };
    full[..whole].copy_from_slice(&values[..whole]);
    if TAIL {
        simd.partial_store_f32s(rest, values[VECTORS - 1]);
    }
}
