//! Matrix products of strided operands: packed, blocked for the caches, cut over threads.
//!
//! The result of an element is one chain of fused multiply-adds in the order of `k`: it depends neither on the
//! blocks nor on the threads nor on the width of a vector.

use super::{
    pack,
    tiles::{Buffers, Finish, Job, LANES, PANEL, Right, Target},
};
use crate::fused::{parallel::Threads, simd};
use pulp::{Simd, WithSimd};

pub(crate) use super::view::{Store, View};

/// A right operand that is packed once for several products.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    data: Vec<f32>,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// Packs `b`, in place of what was packed before.
    pub(crate) fn pack(&mut self, b: View<'_>, threads: &Threads) {
        (self.depth, self.columns) = (b.rows, b.columns);
        let len = b.rows * b.columns.next_multiple_of(LANES);
        if self.data.len() < len {
            self.data.resize(len, 0.0);
        }
        let out = &mut self.data[..len];
        let strips = (b.columns / PANEL).min(2 * threads.count());
        if threads.count() == 1 || b.rows * b.columns < WORTH_PACKING_TOGETHER || strips < 2 {
            return simd::run(Pack { b, out });
        }
        let width = b.columns.div_ceil(strips).next_multiple_of(PANEL);
        let mut parts: Vec<_> = out.chunks_mut(width * b.rows).collect();
        threads.each(&mut parts, |index, out| {
            let first = index * width;
            let b = b.part(0, b.rows, first, width.min(b.columns - first));
            simd::run(Pack { b, out });
        });
    }
}

struct Pack<'a> {
    b: View<'a>,
    out: &'a mut [f32],
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        pack::panels(self.b, self.out);
    }
}

/// Matrices of fewer values are packed by one thread.
const WORTH_PACKING_TOGETHER: usize = 1 << 17;

/// Products of fewer multiply-adds are slower on two threads than on one.
const WORTH_A_THREAD: usize = 1 << 20;

/// Right operands of more values are packed on the way where the left one has few rows.
const PACKED_AT_ONCE: usize = 1 << 17;

/// Rows of the left operand, at most, for that.
const FEW_ROWS: usize = 256;

/// Sums of more terms are cut into pieces where the result is small.
const LONG: usize = 8192;

/// Values of such a result, at most: each piece has one of its own.
const SMALL_RESULT: usize = 1 << 16;

/// Values of the right operand in such a piece, about.
const PIECE_VALUES: usize = 1 << 17;

/// Buffers of [`multiply`].
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    packed: Packed,
    /// One of each job.
    buffers: Vec<Buffers>,
    /// One of each thread that adds pieces of long sums.
    pieces: Vec<(Packed, Buffers)>,
    /// The results of the pieces.
    partial: Vec<f32>,
}

/// `C = A B` stored by `store`; row `r` of `C` begins at `c[r * ldc]`.
pub(crate) fn multiply(
    a: View<'_>,
    b: View<'_>,
    c: &mut [f32],
    ldc: usize,
    store: Store<'_>,
    scratch: &mut Scratch,
    threads: &Threads,
) {
    assert_eq!(a.columns, b.rows);
    if a.columns >= LONG && a.rows * b.columns <= SMALL_RESULT && (a.column_stride == 1 || a.row_stride == 1)
    {
        return multiply_long(a, b, c, ldc, store, scratch, threads);
    }
    let Scratch { packed, buffers, .. } = scratch;
    let right = if is_a_panel(b) {
        Right::Panels(&b.data[..b.rows * b.columns])
    } else if a.rows <= FEW_ROWS && b.rows * b.columns > PACKED_AT_ONCE {
        Right::View(b)
    } else {
        packed.pack(b, threads);
        Right::Panels(&packed.data)
    };
    product(a, right, b.columns, c, ldc, store, buffers, threads);
}

/// [`multiply`] with a right operand that is packed already.
pub(crate) fn multiply_packed(
    a: View<'_>,
    b: &Packed,
    c: &mut [f32],
    ldc: usize,
    store: Store<'_>,
    threads: &Threads,
) {
    assert_eq!(a.columns, b.depth);
    product(a, Right::Panels(&b.data), b.columns, c, ldc, store, &mut Vec::new(), threads);
}

/// `C = (A B)^T` stored by `store`: for an `A` that is too large to be packed and a `B` of few columns. Row `r`
/// of `C` begins at `c[r * ldc]`; a bias has a value for each column of `C`, that is, row of `A`.
///
/// The values are those that [`multiply`] gives for `B^T A^T`.
pub(crate) fn multiply_transposed(
    a: View<'_>,
    b: View<'_>,
    c: &mut [f32],
    ldc: usize,
    store: Store<'_>,
    scratch: &mut Scratch,
    threads: &Threads,
) {
    assert_eq!(a.columns, b.rows);
    assert!(a.column_stride == 1 || a.row_stride == 1);
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    let Scratch { packed, buffers, .. } = scratch;
    packed.pack(b, threads);
    let (b, columns) = (Right::Panels(&packed.data), b.columns);
    let count = jobs(a.rows * a.columns * columns, threads);
    let piece = a.rows.div_ceil(count).next_multiple_of(12);
    run(cut_columns(c, ldc, columns, a.rows, piece), buffers, threads, |index, target, buffers| {
        let first = index * piece;
        let a = a.part(first, piece.min(a.rows - first), 0, a.columns);
        Job { a, b, columns, target, transposed: true, store: store.behind(first), buffers }
    });
}

/// [`multiply`] of long sums with a small result: the terms are cut into pieces, whose sums are added in order.
/// The pieces depend on the shapes alone.
fn multiply_long(
    a: View<'_>,
    b: View<'_>,
    c: &mut [f32],
    ldc: usize,
    store: Store<'_>,
    scratch: &mut Scratch,
    threads: &Threads,
) {
    let (rows, depth, columns) = (a.rows, a.columns, b.columns);
    let len = rows * columns;
    if len == 0 {
        return;
    }
    let terms = (PIECE_VALUES / columns).clamp(1024, 2048);
    let count = depth.div_ceil(terms);
    let Scratch { pieces, partial, .. } = scratch;
    partial.resize(partial.len().max(count * len), 0.0);
    let partial = &mut partial[..count * len];
    let jobs = threads.count();
    if pieces.len() < jobs {
        pieces.resize_with(jobs, Default::default);
    }
    let own = count.div_ceil(jobs);
    let mut items: Vec<_> = partial.chunks_mut(own * len).zip(pieces).collect();
    threads.each(&mut items, |index, (partial, (packed, buffers))| {
        for (k, c) in partial.chunks_exact_mut(len).enumerate() {
            let first = (index * own + k) * terms;
            let terms = terms.min(depth - first);
            let (a, b) = (a.part(0, rows, first, terms), b.part(first, terms, 0, columns));
            let b = if is_a_panel(b) {
                Right::Panels(&b.data[..terms * columns])
            } else {
                packed.pack(b, &Threads::none());
                Right::Panels(&packed.data)
            };
            let target = Target::Strided { c, ldc: columns };
            simd::run(Job { a, b, columns, target, transposed: false, store: Store::Set, buffers });
        }
    });
    let (sums, rest) = partial.split_at_mut(len);
    threads.rows(sums, 1, count, |first, sums| {
        for piece in rest.chunks_exact(len) {
            sums.iter_mut().zip(&piece[first..]).for_each(|(sum, value)| *sum += value);
        }
    });
    for (c, sums) in c.chunks_mut(ldc).zip(sums.chunks_exact(columns)) {
        simd::run(Finish { sums, c: &mut c[..columns], store });
    }
}

/// Whether `b` lies in memory as its only panel would.
fn is_a_panel(b: View<'_>) -> bool {
    b.column_stride == 1 && b.row_stride == b.columns && b.columns <= PANEL && b.columns.is_multiple_of(LANES)
}

/// Jobs that a product of so many multiply-adds is cut into.
fn jobs(work: usize, threads: &Threads) -> usize {
    if threads.count() == 1 || work < WORTH_A_THREAD { 1 } else { threads.count() }
}

#[expect(clippy::too_many_arguments, reason = "a product has three operands, each with its layout")]
fn product(
    a: View<'_>,
    b: Right<'_>,
    columns: usize,
    c: &mut [f32],
    ldc: usize,
    store: Store<'_>,
    buffers: &mut Vec<Buffers>,
    threads: &Threads,
) {
    if a.rows == 0 || columns == 0 {
        return;
    }
    let copy;
    let a = if a.column_stride == 1 || a.row_stride == 1 {
        a
    } else {
        copy = contiguous(a);
        View::new(&copy, a.rows, a.columns)
    };
    let count = jobs(a.rows * a.columns * columns, threads);
    let of_columns = matches!(b, Right::View(_)) || (a.rows <= FEW_ROWS && columns >= 2 * PANEL * count);
    if count == 1 {
        if buffers.is_empty() {
            buffers.push(Buffers::default());
        }
        let target = Target::Strided { c, ldc };
        let buffers = &mut buffers[0];
        simd::run(Job { a, b, columns, target, transposed: false, store, buffers });
    } else if of_columns {
        let piece = columns.div_ceil(count).next_multiple_of(PANEL);
        let pieces = cut_columns(c, ldc, a.rows, columns, piece);
        run(pieces, buffers, threads, |index, target, buffers| {
            let first = index * piece;
            let columns = piece.min(columns - first);
            let b = match b {
                Right::View(b) => Right::View(b.part(0, b.rows, first, columns)),
                Right::Panels(data) => Right::Panels(&data[first * a.columns..]),
            };
            Job { a, b, columns, target, transposed: false, store: store.behind(first), buffers }
        });
    } else {
        let piece = a.rows.div_ceil(count).next_multiple_of(6);
        let pieces = c.chunks_mut(piece * ldc).take(a.rows.div_ceil(piece));
        let pieces = pieces.map(|c| Target::Strided { c, ldc }).collect();
        run(pieces, buffers, threads, |index, target, buffers| {
            let first = index * piece;
            let a = a.part(first, piece.min(a.rows - first), 0, a.columns);
            Job { a, b, columns, target, transposed: false, store, buffers }
        });
    }
}

/// Runs a job for each target.
fn run<'a>(
    targets: Vec<Target<'a>>,
    buffers: &'a mut Vec<Buffers>,
    threads: &Threads,
    job: impl Fn(usize, Target<'a>, &'a mut Buffers) -> Job<'a> + Sync,
) {
    if buffers.len() < targets.len() {
        buffers.resize_with(targets.len(), Buffers::default);
    }
    let mut items: Vec<_> = targets.into_iter().zip(buffers).map(Some).collect();
    threads.each(&mut items, |index, item| {
        if let Some((target, buffers)) = item.take() {
            simd::run(job(index, target, buffers));
        }
    });
}

/// `rows` rows of `columns` values, cut into pieces of `piece` columns.
fn cut_columns(c: &mut [f32], ldc: usize, rows: usize, columns: usize, piece: usize) -> Vec<Target<'_>> {
    let count = columns.div_ceil(piece);
    let mut pieces: Vec<Vec<&mut [f32]>> = (0..count).map(|_| Vec::with_capacity(rows)).collect();
    for row in c.chunks_mut(ldc).take(rows) {
        for (out, values) in pieces.iter_mut().zip(row[..columns].chunks_mut(piece)) {
            out.push(values);
        }
    }
    pieces.into_iter().map(Target::Rows).collect()
}

/// A row-major copy, for strides that no kernel reads.
fn contiguous(a: View<'_>) -> Vec<f32> {
    let row = |r: usize| (0..a.columns).map(move |k| a.data[r * a.row_stride + k * a.column_stride]);
    (0..a.rows).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// A view of `rows` by `columns` in one of four layouts, over enough random values.
    fn view(data: &mut Vec<f32>, rows: usize, columns: usize, layout: usize, seed: u32) -> View<'_> {
        let gap = layout % 2 * 3;
        *data = values(2 * (rows + gap + 1) * (columns + gap + 1), seed);
        match layout {
            0 | 1 => View::strided(data, rows, columns, columns + gap),
            2 | 3 => View::strided(data, columns, rows, rows + gap).transposed(),
            _ => View { data, rows, columns, row_stride: 2 * columns, column_stride: 2 },
        }
    }

    fn store_of(kind: usize, bias: &[f32]) -> Store<'_> {
        match kind {
            0 => Store::Set,
            1 => Store::Add,
            2 => Store::Descend { lr: 0.5 },
            _ => Store::Bias { bias, relu: kind == 3 },
        }
    }

    /// The transposed product in another orientation gives the same bits.
    fn check_transposed(rows: usize, depth: usize, columns: usize, layouts: (usize, usize), kind: usize) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let a = view(&mut a, rows, depth, layouts.0, 1);
        let b = view(&mut b, depth, columns, layouts.1, 2);
        let (bias, ldc) = (values(rows, 3), rows + kind % 2);
        let old = values(columns * ldc + 5, 4);
        let store = store_of(kind, &bias);
        let mut want = old.clone();
        let mut scratch = Scratch::default();
        multiply(b.transposed(), a.transposed(), &mut want, ldc, store, &mut scratch, &Threads::none());
        for count in [1, 2, 3] {
            let threads = Threads::new(count).unwrap();
            let mut c = old.clone();
            threads.enter(|| multiply_transposed(a, b, &mut c, ldc, store, &mut scratch, &threads));
            assert!(c == want, "{rows} {depth} {columns} {layouts:?} {kind} {count}");
        }
    }

    #[test]
    fn transposed_products_are_the_same_to_the_bit() {
        for kind in 0..5 {
            for layouts in [(0, 0), (0, 3), (2, 3), (3, 1)] {
                for (rows, depth, columns) in
                    [(1, 1, 1), (7, 5, 17), (130, 20, 9), (30, 33, 130), (400, 1100, 66)]
                {
                    check_transposed(rows, depth, columns, layouts, kind);
                }
            }
            check_transposed(5, 0, 6, (0, 0), kind);
            check_transposed(0, 5, 6, (0, 0), kind);
        }
    }

    #[test]
    fn long_sums_equal_the_reference() {
        for kind in 0..5 {
            check(3, 8192, 5, (0, 0), kind);
            check(17, 9001, 70, (2, 0), kind);
            check(16, 8300, 64, (3, 3), kind);
        }
    }

    fn check(rows: usize, depth: usize, columns: usize, layouts: (usize, usize), kind: usize) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let a = view(&mut a, rows, depth, layouts.0, 1);
        let b = view(&mut b, depth, columns, layouts.1, 2);
        let (bias, ldc) = (values(columns, 3), columns + kind % 2);
        let old = values(rows * ldc + 5, 4);
        let store = store_of(kind, &bias);
        let mut first: Option<Vec<f32>> = None;
        for count in [1, 2, 3, 5] {
            let threads = Threads::new(count).unwrap();
            let mut c = old.clone();
            threads.enter(|| multiply(a, b, &mut c, ldc, store, &mut Scratch::default(), &threads));
            let mut packed = Packed::default();
            let mut again = old.clone();
            threads.enter(|| {
                packed.pack(b, &threads);
                multiply_packed(a, &packed, &mut again, ldc, store, &threads);
            });
            // Long sums are cut into pieces only where nothing is packed before.
            assert!(
                c == again || depth >= LONG,
                "packed before: {rows} {depth} {columns} {layouts:?} {kind} {count}"
            );
            assert!(
                first.get_or_insert_with(|| c.clone()) == &c,
                "threads: {rows} {depth} {columns} {count}"
            );
        }
        let c = first.unwrap();
        let (mut error, mut norm) = (0.0, 1e-30);
        for (i, (&got, &old)) in c.iter().zip(&old).enumerate() {
            let row = i.checked_div(ldc).unwrap_or(rows);
            let column = i.checked_rem(ldc).unwrap_or(0);
            if row >= rows || column >= columns {
                assert_eq!(got, old, "outside: {rows} {depth} {columns} {kind}");
                continue;
            }
            let at =
                |v: View<'_>, r: usize, c: usize| f64::from(v.data[r * v.row_stride + c * v.column_stride]);
            let product: f64 = (0..depth).map(|k| at(a, row, k) * at(b, k, column)).sum();
            let old = f64::from(old);
            let want = match kind {
                0 => product,
                1 => old + product,
                2 => old - 0.5 * product,
                3 => (product + f64::from(bias[column])).max(0.0),
                _ => product + f64::from(bias[column]),
            };
            error += (f64::from(got) - want).powi(2);
            norm += want.powi(2);
        }
        assert!(
            error.sqrt() <= 1e-5 * norm.sqrt(),
            "{rows} {depth} {columns} {layouts:?} {kind}: {error} {norm}"
        );
    }

    #[test]
    fn products_equal_the_reference_with_every_store_and_layout() {
        for kind in 0..5 {
            for layouts in [(0, 0), (0, 3), (3, 0), (1, 2), (2, 1), (4, 4)] {
                for (rows, depth, columns) in
                    [(1, 1, 1), (7, 5, 17), (13, 20, 70), (30, 33, 130), (14, 600, 66)]
                {
                    check(rows, depth, columns, layouts, kind);
                }
            }
        }
    }

    #[test]
    fn empty_products_and_every_narrow_width() {
        for kind in 0..5 {
            check(0, 5, 6, (0, 0), kind);
            check(5, 0, 6, (0, 0), kind);
            check(5, 0, 6, (2, 2), kind);
            check(5, 6, 0, (0, 0), kind);
        }
        for columns in 1..71 {
            check(9, 11, columns, (0, columns % 4), columns % 5);
        }
    }

    #[test]
    fn large_products_are_the_same_on_every_number_of_threads() {
        for kind in 0..5 {
            check(70, 700, 400, (0, 0), kind);
            check(400, 130, 200, (2, 2), kind);
            check(300, 520, 90, (1, 3), kind);
        }
    }
}
