//! Operands and results of matrix products.

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

    /// `rows` rows from `row` on of `columns` columns from `column` on.
    #[inline(always)]
    pub(super) fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Self {
        let start =
            if rows == 0 || columns == 0 { 0 } else { row * self.row_stride + column * self.column_stride };
        Self { data: &self.data[start..], rows, columns, ..self }
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

impl Store<'_> {
    /// For the columns of `C` from `first` on.
    pub(super) fn behind(self, first: usize) -> Self {
        match self {
            Store::Bias { bias, relu } => Store::Bias { bias: &bias[first..], relu },
            other => other,
        }
    }
}
