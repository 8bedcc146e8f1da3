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

/// What becomes of a product.
#[derive(Clone, Copy)]
pub(crate) enum Store<'a> {
    /// `C = P`
    Set,
    /// `C = C + P`
    Add,
    /// `C = beta C + alpha P`
    Blend { alpha: f32, beta: f32 },
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
    pub(crate) starts: &'a [u32],
    pub(crate) segments: &'a [u32],
    pub(crate) segment_len: usize,
}

/// `C[j][n] = sum_k L[j][k] R[k][n]` for `n < columns`.
pub(crate) fn nn(l: Rows<'_>, r: &[f32], ldr: usize, c: &mut [f32], ldc: usize, columns: usize, store: Store<'_>) {
    struct Op<'a>(Rows<'a>, &'a [f32], usize, &'a mut [f32], usize, usize, Store<'a>);
    impl WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Op(l, r, ldr, c, ldc, columns, store) = self;
            let source = Nn { l, r, ldr };
            product(simd, source, l.starts.len(), c, ldc, columns, store);
        }
    }
    simd::run(Op(l, r, ldr, c, ldc, columns, store));
}

/// The left operand of [`tn`]: column `m` of row `k` is `data[starts[k] + offset + m]`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) starts: &'a [u32],
    pub(crate) offset: usize,
    /// Columns: rows of the product.
    pub(crate) width: usize,
}

/// `C[m][n] = sum_k L[k][m] R[k][n]` for `n < columns`.
pub(crate) fn tn(l: Columns<'_>, r: &[f32], ldr: usize, c: &mut [f32], ldc: usize, columns: usize, store: Store<'_>) {
    struct Op<'a>(Columns<'a>, &'a [f32], usize, &'a mut [f32], usize, usize, Store<'a>);
    impl WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Op(l, r, ldr, c, ldc, columns, store) = self;
            let source = Tn { l, r, ldr };
            product(simd, source, l.width, c, ldc, columns, store);
        }
    }
    simd::run(Op(l, r, ldr, c, ldc, columns, store));
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
    for j in 0..ROWS {
        let l = simd.splat_f32s(l(j));
        for v in 0..VECTORS {
            acc[j][v] = simd.mul_add_f32s(l, r[v], acc[j][v]);
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
        let starts: &[u32; ROWS] = self.l.starts[row..].first_chunk().unwrap();
        let len = self.l.segment_len;
        let mut r_rows = self.r.chunks(self.ldr);
        for &segment in self.l.segments {
            let l: [&[f32]; ROWS] =
                std::array::from_fn(|j| &self.l.data[starts[j] as usize + segment as usize..][..len]);
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
            let l: &[f32; ROWS] = l[start as usize..].first_chunk().unwrap();
            let r = load::<S, VECTORS, TAIL>(simd, &r[column..column + width]);
            fma(simd, &mut acc, |j| l[j], r);
        }
        acc
    }
}

/// Cuts the product into tiles.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    source: impl Source,
    rows: usize,
    c: &mut [f32],
    ldc: usize,
    columns: usize,
    store: Store<'_>,
) {
    // 24 of 32 registers accumulate (6 x 4 vectors), or 12 of 16.
    let most = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
    let lanes = S::F32_LANES;
    let mut column = 0;
    while column < columns {
        let width = (columns - column).min(most * lanes);
        let mut row = 0;
        while row < rows {
            let mut at = At { c: &mut *c, ldc, row, column, width, store };
            row += match (rows - row, width.div_ceil(lanes), width % lanes != 0) {
                (6.., 4, false) => at.put(simd, source.tile::<S, 6, 4, false>(simd, row, column, width)),
                (6.., 3, false) => at.put(simd, source.tile::<S, 6, 3, false>(simd, row, column, width)),
                (6.., 2, false) => at.put(simd, source.tile::<S, 6, 2, false>(simd, row, column, width)),
                (6.., 1, false) => at.put(simd, source.tile::<S, 6, 1, false>(simd, row, column, width)),
                (6.., 4, true) => at.put(simd, source.tile::<S, 6, 4, true>(simd, row, column, width)),
                (6.., 3, true) => at.put(simd, source.tile::<S, 6, 3, true>(simd, row, column, width)),
                (6.., 2, true) => at.put(simd, source.tile::<S, 6, 2, true>(simd, row, column, width)),
                (6.., 1, true) => at.put(simd, source.tile::<S, 6, 1, true>(simd, row, column, width)),
                (4.., 4, false) => at.put(simd, source.tile::<S, 4, 4, false>(simd, row, column, width)),
                (4.., 2, false) => at.put(simd, source.tile::<S, 4, 2, false>(simd, row, column, width)),
                (2.., 4, false) => at.put(simd, source.tile::<S, 2, 4, false>(simd, row, column, width)),
                (2.., 2, false) => at.put(simd, source.tile::<S, 2, 2, false>(simd, row, column, width)),
                (_, 4, false) => at.put(simd, source.tile::<S, 1, 4, false>(simd, row, column, width)),
                (_, 3, false) => at.put(simd, source.tile::<S, 1, 3, false>(simd, row, column, width)),
                (_, 2, false) => at.put(simd, source.tile::<S, 1, 2, false>(simd, row, column, width)),
                (_, 1, false) => at.put(simd, source.tile::<S, 1, 1, false>(simd, row, column, width)),
                (_, 4, true) => at.put(simd, source.tile::<S, 1, 4, true>(simd, row, column, width)),
                (_, 3, true) => at.put(simd, source.tile::<S, 1, 3, true>(simd, row, column, width)),
                (_, 2, true) => at.put(simd, source.tile::<S, 1, 2, true>(simd, row, column, width)),
                _ => at.put(simd, source.tile::<S, 1, 1, true>(simd, row, column, width)),
            };
        }
        column += width;
    }
}

/// Where a tile goes.
struct At<'a> {
    c: &'a mut [f32],
    ldc: usize,
    row: usize,
    column: usize,
    width: usize,
    store: Store<'a>,
}

impl At<'_> {
    /// Stores a tile; gives its number of rows.
    #[inline(always)]
    fn put<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        acc: [[S::f32s; VECTORS]; ROWS],
    ) -> usize {
        let zero = simd.splat_f32s(0.0);
        for (j, acc) in acc.iter().enumerate() {
            let row = self.row + j;
            let c = &mut self.c[row * self.ldc + self.column..][..self.width];
            for (v, c) in c.chunks_mut(S::F32_LANES).enumerate() {
                let p = acc[v];
                let value = match self.store {
                    Store::Set => p,
                    Store::Add => simd.add_f32s(simd.partial_load_f32s(c), p),
                    Store::Blend { alpha, beta } => simd.mul_add_f32s(
                        simd.splat_f32s(alpha),
                        p,
                        simd.mul_f32s(simd.splat_f32s(beta), simd.partial_load_f32s(c)),
                    ),
                    Store::RowBias { bias, relu } => {
                        let sum = simd.add_f32s(p, simd.splat_f32s(bias[row]));
                        if relu { simd.max_f32s(sum, zero) } else { sum }
                    }
                    Store::ColumnBias { bias, relu } => {
                        let bias = &bias[self.column + v * S::F32_LANES..][..c.len()];
                        let sum = simd.add_f32s(p, simd.partial_load_f32s(bias));
                        if relu { simd.max_f32s(sum, zero) } else { sum }
                    }
                };
                simd.partial_store_f32s(c, value);
            }
        }
        ROWS
    }
}
