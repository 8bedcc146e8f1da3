//! Tiles of a matrix product: rows or columns of the left operand, broadcast, times packed panels of the
//! right one.
//!
//! A panel is 16 to [`PANEL`] columns, row by row, padded with zeros to a multiple of [`LANES`] columns. Its
//! layout does not depend on the vectors of the machine.

pub(super) use super::panel::{LANES, PANEL, padded};
use super::{
    pack,
    view::{Store, View},
};
use pulp::{Simd, WithSimd};

/// Rows of the left operand that are finished together, at most.
pub(super) const MOST_ROWS: usize = 96;

/// Terms of an element that are added before its tile goes back to memory.
const DEPTH: usize = 512;

/// The same where the right operand is packed on the way.
const DEPTH_ON_THE_WAY: usize = 256;

/// Panels that are packed together on the way: the reads of a row are as long as theirs.
const PANELS_ON_THE_WAY: usize = 4;

/// Values of the left operand that stay in the second cache level.
const LEFT_VALUES: usize = 1 << 17;

/// Columns of the left operand further apart than this are copied to lie together: lines that are a power of
/// two apart displace each other from the caches.
const FAR_APART: usize = 256;

/// The right operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Panels, one after the other.
    Panels(&'a [f32]),
    /// To be packed block by block. For products of few rows.
    View(View<'a>),
}

/// Rows of the result.
pub(super) enum Target<'a> {
    Strided { c: &'a mut [f32], ldc: usize },
    Rows(Vec<&'a mut [f32]>),
}

impl Target<'_> {
    #[inline(always)]
    fn row(&mut self, row: usize, first: usize, len: usize) -> &mut [f32] {
        match self {
            Self::Strided { c, ldc } => &mut c[row * *ldc + first..][..len],
            Self::Rows(rows) => &mut rows[row][first..][..len],
        }
    }
}

/// Buffers of a job.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Tiles whose sums are unfinished, row by row.
    partial: Vec<f32>,
    /// Blocks of the right operand that are packed on the way.
    blocks: Vec<f32>,
    /// A finished block, transposed.
    turned: Vec<f32>,
    /// A block of the left operand, term by term.
    left: Vec<f32>,
}

/// A product, or the piece of one that a thread computes.
pub(super) struct Job<'a> {
    /// Unit stride along rows or along columns.
    pub(super) a: View<'a>,
    pub(super) b: Right<'a>,
    pub(super) columns: usize,
    pub(super) target: Target<'a>,
    /// The target is the transpose of the product.
    pub(super) transposed: bool,
    pub(super) store: Store<'a>,
    pub(super) buffers: &'a mut Buffers,
}

impl WithSimd for Job<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let View { data, rows, columns: depth, row_stride, column_stride } = self.a;
        let block_rows = match self.b {
            Right::Panels(_) => (LEFT_VALUES / depth.max(1)).clamp(12, MOST_ROWS) / 12 * 12,
            Right::View(_) => rows,
        };
        let block_rows = block_rows.min(rows).max(1);
        let copied = column_stride >= FAR_APART && block_rows * depth <= 2 * LEFT_VALUES;
        let mut own = std::mem::take(&mut self.buffers.left);
        for first_row in (0..rows).step_by(block_rows) {
            let block_rows = block_rows.min(rows - first_row);
            if column_stride == 1 {
                let left = Rows { data: &data[first_row * row_stride..], stride: row_stride };
                self.block(simd, left, first_row, block_rows);
                continue;
            }
            let mut left = Columns { data: data.get(first_row..).unwrap_or(&[]), stride: column_stride };
            if copied {
                own.resize(own.len().max(block_rows * depth), 0.0);
                let columns = left.data.chunks(column_stride).take(depth);
                for (own, column) in own.chunks_exact_mut(block_rows).zip(columns) {
                    own.copy_from_slice(&column[..block_rows]);
                }
                left = Columns { data: &own, stride: block_rows };
            }
            self.block(simd, left, first_row, block_rows);
        }
        self.buffers.left = own;
    }
}

/// What [`Job::block`] knows of the block at hand.
#[derive(Clone, Copy)]
struct Block<'a> {
    first_row: usize,
    rows: usize,
    /// First column of the panel, in the product and in the buffer of unfinished tiles.
    column: usize,
    partial_column: usize,
    /// Padded width of the panel.
    width: usize,
    first_term: usize,
    panel: &'a [f32],
    /// The sums continue, or are continued later.
    begun: bool,
    unfinished: bool,
    partial_len: usize,
}

impl Job<'_> {
    /// The rows of the product from `first_row` on, whose left operand begins with the first row of `left`.
    #[inline(always)]
    fn block<S: Simd>(&mut self, simd: S, left: impl Left, first_row: usize, block_rows: usize) {
        let (depth, columns) = (self.a.columns, self.columns);
        let (block_depth, group) = match self.b {
            Right::Panels(_) => (DEPTH, PANEL),
            Right::View(_) => (DEPTH_ON_THE_WAY, PANELS_ON_THE_WAY * PANEL),
        };
        let Buffers { partial, blocks, turned, .. } = &mut *self.buffers;
        if self.transposed || depth > block_depth {
            partial.resize(partial.len().max(block_rows * group), 0.0);
        }
        if self.transposed {
            turned.resize(turned.len().max(block_rows * group), 0.0);
        }
        for first_column in (0..columns).step_by(group) {
            let group = group.min(columns - first_column);
            let partial_len = group.next_multiple_of(LANES);
            for first_term in (0..depth.max(1)).step_by(block_depth) {
                let terms = block_depth.min(depth - first_term);
                if let Right::View(view) = self.b {
                    blocks.resize(blocks.len().max(terms * partial_len), 0.0);
                    let part = view.part(first_term, terms, first_column, group);
                    pack::panels(part, &mut blocks[..terms * partial_len]);
                }
                for at in (0..group).step_by(PANEL) {
                    let column = first_column + at;
                    let width = padded(columns, column);
                    let panel = match self.b {
                        Right::Panels(data) => &data[column * depth + first_term * width..][..terms * width],
                        Right::View(_) => &blocks[at * terms..][..terms * width],
                    };
                    let block = Block {
                        first_row,
                        rows: block_rows,
                        column,
                        partial_column: at,
                        width,
                        first_term,
                        panel,
                        begun: first_term > 0,
                        unfinished: self.transposed || first_term + terms < depth,
                        partial_len,
                    };
                    let columns = columns.min(column + width);
                    let mut out = Out { target: &mut self.target, store: self.store, columns, partial };
                    panel_times::<S>(simd, left, block, &mut out);
                }
            }
            if self.transposed {
                pack::turn(&partial[..block_rows * partial_len], partial_len, group, turned, block_rows);
                for (n, turned) in turned.chunks_exact(block_rows).take(group).enumerate() {
                    let c = self.target.row(first_column + n, first_row, block_rows);
                    finish(simd, turned, c, self.store, first_row);
                }
            }
        }
    }
}

/// Where tiles go.
struct Out<'a, 'b> {
    target: &'a mut Target<'b>,
    store: Store<'a>,
    /// End of the columns of this panel.
    columns: usize,
    partial: &'a mut [f32],
}

/// Chooses the vectors of a tile; every panel is a whole number of them.
#[inline(always)]
fn panel_times<S: Simd>(simd: S, left: impl Left, block: Block<'_>, out: &mut Out<'_, '_>) {
    let quarters = block.width / LANES;
    if const { S::F32_LANES == 16 && S::REGISTER_COUNT >= 32 } {
        match quarters {
            4 => strips::<S, _, 4, 1>(simd, left, block, out),
            3 => strips::<S, _, 3, 1>(simd, left, block, out),
            2 => strips::<S, _, 2, 1>(simd, left, block, out),
            _ => strips::<S, _, 1, 1>(simd, left, block, out),
        }
    } else if const { S::F32_LANES == 8 } {
        match quarters {
            4 => strips::<S, _, 2, 4>(simd, left, block, out),
            3 => strips::<S, _, 2, 3>(simd, left, block, out),
            2 => strips::<S, _, 2, 2>(simd, left, block, out),
            _ => strips::<S, _, 2, 1>(simd, left, block, out),
        }
    } else if const { S::F32_LANES == 4 } {
        match quarters {
            4 => strips::<S, _, 4, 4>(simd, left, block, out),
            3 => strips::<S, _, 4, 3>(simd, left, block, out),
            2 => strips::<S, _, 4, 2>(simd, left, block, out),
            _ => strips::<S, _, 4, 1>(simd, left, block, out),
        }
    } else {
        assert_eq!(S::F32_LANES, 1);
        match quarters {
            4 => strips::<S, _, 2, 32>(simd, left, block, out),
            3 => strips::<S, _, 2, 24>(simd, left, block, out),
            2 => strips::<S, _, 2, 16>(simd, left, block, out),
            _ => strips::<S, _, 2, 8>(simd, left, block, out),
        }
    }
}

/// A panel of `PARTS` times `VECTORS` vectors a row times all rows of the block.
#[inline(always)]
fn strips<S: Simd, L: Left, const VECTORS: usize, const PARTS: usize>(
    simd: S,
    left: L,
    block: Block<'_>,
    out: &mut Out<'_, '_>,
) {
    let panel = S::as_simd_f32s(block.panel).0.as_chunks::<VECTORS>().0.as_chunks::<PARTS>().0;
    for part in 0..PARTS {
        let mut row = 0;
        while row < block.rows {
            let at = (row, part);
            row += match block.rows - row {
                12.. if const { S::REGISTER_COUNT >= 32 && VECTORS <= 2 } => {
                    tile::<S, L, 12, VECTORS, PARTS>(simd, left, panel, block, at, out)
                }
                6.. => tile::<S, L, 6, VECTORS, PARTS>(simd, left, panel, block, at, out),
                4.. => tile::<S, L, 4, VECTORS, PARTS>(simd, left, panel, block, at, out),
                2.. => tile::<S, L, 2, VECTORS, PARTS>(simd, left, panel, block, at, out),
                _ => tile::<S, L, 1, VECTORS, PARTS>(simd, left, panel, block, at, out),
            };
        }
    }
}

/// Computes and stores one tile; gives its number of rows.
#[inline(always)]
fn tile<S: Simd, L: Left, const ROWS: usize, const VECTORS: usize, const PARTS: usize>(
    simd: S,
    left: L,
    panel: &[[[S::f32s; VECTORS]; PARTS]],
    block: Block<'_>,
    (row, part): (usize, usize),
    out: &mut Out<'_, '_>,
) -> usize {
    let width = VECTORS * S::F32_LANES;
    let at = block.partial_column + part * width;
    let mut acc = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    if block.begun {
        for (j, acc) in acc.iter_mut().enumerate() {
            let partial = &out.partial[(row + j) * block.partial_len + at..][..width];
            acc.copy_from_slice(S::as_simd_f32s(partial).0);
        }
    }
    left.add::<S, ROWS, VECTORS, PARTS>(simd, &mut acc, row, block.first_term, panel, part);
    if block.unfinished {
        for (j, acc) in acc.iter().enumerate() {
            let partial = &mut out.partial[(row + j) * block.partial_len + at..][..width];
            S::as_mut_simd_f32s(partial).0.copy_from_slice(acc);
        }
        return ROWS;
    }
    let column = block.column + part * width;
    if column + width <= out.columns {
        for (j, acc) in acc.iter().enumerate() {
            let c = out.target.row(block.first_row + row + j, column, width);
            let c = S::as_mut_simd_f32s(c).0;
            let bias = bias(out.store, column, width);
            let bias = S::as_simd_f32s(bias).0;
            for (v, (acc, c)) in acc.iter().zip(c).enumerate() {
                let old = if bias.is_empty() { *c } else { bias[v] };
                *c = combine(simd, out.store, *acc, old);
            }
        }
    } else if column < out.columns {
        for (j, acc) in acc.iter().enumerate() {
            let c = out.target.row(block.first_row + row + j, column, out.columns - column);
            let bias = bias(out.store, column, c.len());
            for (v, (acc, c)) in acc.iter().zip(c.chunks_mut(S::F32_LANES)).enumerate() {
                let old = if bias.is_empty() { &*c } else { &bias[v * S::F32_LANES..][..c.len()] };
                let new = combine(simd, out.store, *acc, simd.partial_load_f32s(old));
                simd.partial_store_f32s(c, new);
            }
        }
    }
    ROWS
}

/// Stores one row of a finished product.
pub(super) struct Finish<'a> {
    pub(super) sums: &'a [f32],
    pub(super) c: &'a mut [f32],
    pub(super) store: Store<'a>,
}

impl WithSimd for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        finish(simd, self.sums, self.c, self.store, 0);
    }
}

/// `c` from a finished product; `first` is the column of `c[0]`.
#[inline(always)]
fn finish<S: Simd>(simd: S, product: &[f32], c: &mut [f32], store: Store<'_>, first: usize) {
    let bias = bias(store, first, c.len());
    let (products, rest) = S::as_simd_f32s(product);
    let (full, c_rest) = S::as_mut_simd_f32s(c);
    let (biases, bias_rest) = S::as_simd_f32s(bias);
    for (v, (product, c)) in products.iter().zip(full).enumerate() {
        let old = if bias.is_empty() { *c } else { biases[v] };
        *c = combine(simd, store, *product, old);
    }
    if !rest.is_empty() {
        let old = if bias.is_empty() { &*c_rest } else { bias_rest };
        let new = combine(simd, store, simd.partial_load_f32s(rest), simd.partial_load_f32s(old));
        simd.partial_store_f32s(c_rest, new);
    }
}

#[inline(always)]
fn bias(store: Store<'_>, first: usize, len: usize) -> &[f32] {
    match store {
        Store::Bias { bias, .. } => &bias[first..][..len],
        Store::Set | Store::Add | Store::Descend { .. } => &[],
    }
}

#[inline(always)]
fn combine<S: Simd>(simd: S, store: Store<'_>, product: S::f32s, old: S::f32s) -> S::f32s {
    match store {
        Store::Set => product,
        Store::Add => simd.add_f32s(old, product),
        Store::Descend { lr } => simd.mul_add_f32s(simd.splat_f32s(-lr), product, old),
        Store::Bias { relu, .. } => {
            let sum = simd.add_f32s(product, old);
            // Operand order matters: `max(sum, 0)` would drop a NaN.
            if relu { simd.max_f32s(simd.splat_f32s(0.0), sum) } else { sum }
        }
    }
}

/// The left operand.
trait Left: Copy {
    /// Adds to `acc` the products of rows `row..row + ROWS` with part `part` of the rows of `panel`, whose first
    /// is row `first_term` of the right operand.
    fn add<S: Simd, const ROWS: usize, const VECTORS: usize, const PARTS: usize>(
        self,
        simd: S,
        acc: &mut [[S::f32s; VECTORS]; ROWS],
        row: usize,
        first_term: usize,
        panel: &[[[S::f32s; VECTORS]; PARTS]],
        part: usize,
    );
}

/// Rows without gaps.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

/// Columns without gaps.
#[derive(Clone, Copy)]
struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
}

impl Left for Rows<'_> {
    #[inline(always)]
    fn add<S: Simd, const ROWS: usize, const VECTORS: usize, const PARTS: usize>(
        self,
        simd: S,
        acc: &mut [[S::f32s; VECTORS]; ROWS],
        row: usize,
        first_term: usize,
        panel: &[[[S::f32s; VECTORS]; PARTS]],
        part: usize,
    ) {
        let len = panel.len();
        let l: [&[f32]; ROWS] =
            std::array::from_fn(|j| &self.data[(row + j) * self.stride + first_term..][..len]);
        let mut sums = *acc;
        for k in 0..len {
            fma(simd, &mut sums, |j| l[j][k], panel[k][part]);
        }
        *acc = sums;
    }
}

impl Left for Columns<'_> {
    #[inline(always)]
    fn add<S: Simd, const ROWS: usize, const VECTORS: usize, const PARTS: usize>(
        self,
        simd: S,
        acc: &mut [[S::f32s; VECTORS]; ROWS],
        row: usize,
        first_term: usize,
        panel: &[[[S::f32s; VECTORS]; PARTS]],
        part: usize,
    ) {
        if panel.is_empty() {
            return;
        }
        let mut sums = *acc;
        let l = &self.data[first_term * self.stride + row..];
        for (l, r) in l.chunks(self.stride).zip(panel) {
            let l = &l[..ROWS];
            fma(simd, &mut sums, |j| l[j], r[part]);
        }
        *acc = sums;
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
