//! Matrix products of strided operands: packed, blocked for the caches, cut over threads.
//!
//! The result of an element is one chain of fused multiply-adds in the order of `k`: it depends neither on
//! the blocks nor on the threads nor on the width of a vector.

use crate::fused::{
    gemm::{self, Rows},
    parallel::Threads,
};

/// A matrix within a slice: element `(r, c)` is `data[r * row_stride + c * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Columns `0..columns` of a row-major matrix whose rows are `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// How a product `P` is stored in the row-major `C`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Store<'a> {
    /// `C = P`
    Set,
    /// `C = C + P`
    Add,
    /// `C = C - lr P`
    Descend { lr: f32 },
    /// `C = P + bias`, one value a column; then ReLU if asked.
    Bias { bias: &'a [f32], relu: bool },
}

/// A right operand that is packed once for several products.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    data: Vec<f32>,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// Packs `b`, in place of what was packed before.
    pub(crate) fn pack(&mut self, b: View<'_>, _threads: &Threads) {
        (self.depth, self.columns) = (b.rows, b.columns);
        self.data.clear();
        for r in 0..b.rows {
            for c in 0..b.columns {
                self.data.push(b.data[r * b.row_stride + c * b.column_stride]);
            }
        }
    }
}

/// Buffers of [`multiply`].
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    packed: Packed,
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
    scratch.packed.pack(b, threads);
    multiply_packed(a, &scratch.packed, c, ldc, store, threads);
}

/// [`multiply`] with a right operand that is packed already.
pub(crate) fn multiply_packed(
    a: View<'_>,
    b: &Packed,
    c: &mut [f32],
    ldc: usize,
    store: Store<'_>,
    _threads: &Threads,
) {
    assert_eq!(a.columns, b.depth);
    // Replaced by blocked kernels.
    let rows: Vec<f32> =
        (0..a.rows).flat_map(|r| (0..a.columns).map(move |k| a.data[r * a.row_stride + k * a.column_stride])).collect();
    let starts: Vec<usize> = (0..a.rows).map(|r| r * a.columns).collect();
    let l = Rows { data: &rows, starts: &starts, segments: &[0], segment_len: a.columns };
    let store = match store {
        Store::Set => gemm::Store::Set,
        Store::Add => gemm::Store::Add,
        Store::Descend { lr } => gemm::Store::Descend { lr },
        Store::Bias { bias, relu } => gemm::Store::ColumnBias { bias, relu },
    };
    gemm::nn(l, &b.data, b.columns, c, ldc, b.columns, store);
}
