//! Streaming passes over matrices of rows by channels: sums per channel, and values per channel applied.
//!
//! Several rows are taken as one, so that few channels fill whole vectors: the matrix `[rows, channels]` is
//! read as `[rows / phases, phases * channels]`, and values per channel are repeated. The sum of a column is
//! made in the order of the rows: the width of a vector does not matter.

use super::vector::{keep_positive, load, relu, store};
use crate::fused::simd;
use pulp::{Simd, WithSimd};

/// Columns that a wide row has at least, if there are enough rows.
const WIDE: usize = 64;

/// Wide rows that are summed in f32 before they are added in f64.
const BLOCK: usize = 64;

/// Rows of which the mean is the shift of the sums of squares.
const SHIFT_ROWS: usize = 8;

/// Values that one piece of work has at least, before work is cut over threads.
const PIECE: usize = 1 << 14;

/// Items (samples or rows) of `len` values to a piece of work: depends on shapes only.
pub(crate) fn items_per_piece(items: usize, len: usize) -> usize {
    PIECE.div_ceil(len.max(1)).clamp(1, items.max(1))
}

/// How many rows are read as one.
fn phases(channels: usize, rows: usize) -> usize {
    let mut phases = 16 >> channels.trailing_zeros().min(4);
    while phases * channels < WIDE {
        phases *= 2;
    }
    phases.min(rows.max(1))
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    tiled: [Vec<f32>; 5],
    block: [Vec<f32>; 2],
    wide: [Vec<f64>; 2],
}

fn tile(values: &[f32], phases: usize, out: &mut Vec<f32>) {
    out.clear();
    for _ in 0..phases {
        out.extend_from_slice(values);
    }
}

/// Adds the phases up.
fn fold(wide: &[f64], channels: usize, out: &mut [f64]) {
    out.fill(0.0);
    for phase in wide.chunks_exact(channels) {
        for (out, value) in out.iter_mut().zip(phase) {
            *out += value;
        }
    }
}

/// Mean and sum of the squared deviations from it, per channel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    pub(crate) rows: usize,
    pub(crate) mean: Vec<f64>,
    pub(crate) squares: Vec<f64>,
}

impl Moments {
    /// The moments of the rows of `x`.
    pub(crate) fn of(&mut self, x: &[f32], channels: usize, scratch: &mut Scratch) {
        let rows = x.len() / channels;
        let phases = phases(channels, rows);
        let mut shift = vec![0.0f32; channels];
        let sampled = rows.min(SHIFT_ROWS);
        for k in 0..sampled {
            for (shift, x) in shift.iter_mut().zip(&x[k * rows / sampled * channels..]) {
                *shift += x;
            }
        }
        shift.iter_mut().for_each(|shift| *shift /= sampled.max(1) as f32);
        tile(&shift, phases, &mut scratch.tiled[0]);
        let Scratch { tiled: [tiled, ..], block, wide } = scratch;
        simd::run(Sums { op: Shifted { shift: tiled }, x, dy: x, columns: phases * channels, block, wide });
        self.rows = rows;
        self.mean.resize(channels, 0.0);
        self.squares.resize(channels, 0.0);
        fold(&wide[0], channels, &mut self.mean);
        fold(&wide[1], channels, &mut self.squares);
        let n = rows as f64;
        for ((mean, squares), shift) in self.mean.iter_mut().zip(&mut self.squares).zip(shift) {
            let around_mean = *squares - *mean * *mean / n;
            // Rounding can make it negative; a NaN stays one.
            *squares = if around_mean < 0.0 { 0.0 } else { around_mean };
            *mean = f64::from(shift) + *mean / n;
        }
    }

    /// Adds the moments of further rows (Chan, Golub and LeVeque 1979).
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.rows == 0 {
            self.clone_from(other);
            return;
        }
        let (n, m) = (self.rows as f64, other.rows as f64);
        for (c, mean) in self.mean.iter_mut().enumerate() {
            let difference = other.mean[c] - *mean;
            self.squares[c] += other.squares[c] + difference * difference * n * m / (n + m);
            *mean += difference * m / (n + m);
        }
        self.rows += other.rows;
    }
}

/// `y = (x - mean) * scale + bias` per channel, then ReLU if asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) mean: &'a [f32],
    pub(crate) scale: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) relu: bool,
}

impl Affine<'_> {
    fn tile(&self, phases: usize, out: &mut [Vec<f32>; 5]) {
        tile(self.mean, phases, &mut out[0]);
        tile(self.scale, phases, &mut out[1]);
        tile(self.bias, phases, &mut out[2]);
    }

    /// Writes `y`.
    pub(crate) fn forward(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
        let channels = self.mean.len();
        let phases = phases(channels, x.len() / channels);
        self.tile(phases, &mut scratch.tiled);
        let [mean, scale, bias, ..] = &scratch.tiled;
        simd::run(Forward { x, y, columns: phases * channels, mean, scale, bias, relu: self.relu });
    }

    /// Per channel, the sums of `dy` and of `dy * (x - mean)`, where ReLU let `y` through.
    pub(crate) fn gradient_sums(
        &self,
        x: &[f32],
        dy: &[f32],
        [sum, product]: [&mut [f64]; 2],
        scratch: &mut Scratch,
    ) {
        let channels = self.mean.len();
        let phases = phases(channels, x.len() / channels);
        self.tile(phases, &mut scratch.tiled);
        let Scratch { tiled: [mean, scale, bias, ..], block, wide } = scratch;
        let columns = phases * channels;
        if self.relu {
            simd::run(Sums { op: Masked { mean, scale, bias }, x, dy, columns, block, wide });
        } else {
            simd::run(Sums { op: Plain { mean }, x, dy, columns, block, wide });
        }
        fold(&wide[0], channels, sum);
        fold(&wide[1], channels, product);
    }

    /// `dx = scale * dy + slope * (x - mean) + offset`, with `dy` where ReLU let `y` through, else 0.
    /// Without `dy`, `dx` holds it.
    pub(crate) fn gradient(
        &self,
        x: &[f32],
        dy: Option<&[f32]>,
        dx: &mut [f32],
        [slope, offset]: [&[f32]; 2],
        scratch: &mut Scratch,
    ) {
        let channels = self.mean.len();
        let phases = phases(channels, x.len() / channels);
        self.tile(phases, &mut scratch.tiled);
        tile(slope, phases, &mut scratch.tiled[3]);
        tile(offset, phases, &mut scratch.tiled[4]);
        let columns = phases * channels;
        simd::run(Backward { x, dy, dx, columns, values: &scratch.tiled, relu: self.relu });
    }
}

/// Columns `column..column + width` of the wide rows `first..`, as many as `rows`.
///
/// The loops over strips are plain ones: iterators and closures are functions of their own, which the
/// compiler does not always inline, and then they are compiled without the vector instructions.
#[derive(Clone, Copy)]
struct At {
    first: usize,
    rows: usize,
    columns: usize,
    column: usize,
    width: usize,
}

/// What is done to a strip of columns whose values per column stay in registers.
trait Strip {
    fn strip<S: Simd, const VECTORS: usize, const TAIL: bool>(&mut self, simd: S, at: At);

    /// Called behind each block of rows.
    #[inline(always)]
    fn end_block(&mut self, _columns: usize) {}
}

/// Cuts wide rows into strips; `columns` of a row of `stride` are there.
#[inline(always)]
fn strips<S: Simd>(simd: S, first: usize, rows: usize, stride: usize, columns: usize, op: &mut impl Strip) {
    let most = if const { S::REGISTER_COUNT >= 32 } { 4 } else { 2 } * S::F32_LANES;
    let mut column = 0;
    while column < columns {
        let left = columns - column;
        let width = if left >= most { most } else { left.min(S::F32_LANES) };
        let at = At { first, rows, columns: stride, column, width };
        match width / S::F32_LANES {
            4 => op.strip::<S, 4, false>(simd, at),
            2 => op.strip::<S, 2, false>(simd, at),
            1 => op.strip::<S, 1, false>(simd, at),
            _ => op.strip::<S, 1, true>(simd, at),
        }
        column += width;
    }
}

/// Calls `op` on all rows, block by block.
#[inline(always)]
fn blocks<S: Simd, O: Strip>(simd: S, len: usize, columns: usize, op: &mut O) {
    let rows = len / columns;
    let mut first = 0;
    while first < rows {
        let count = (rows - first).min(BLOCK);
        strips(simd, first, count, columns, columns, op);
        op.end_block(columns);
        first += count;
    }
    let rest = len % columns;
    if rest > 0 {
        strips(simd, rows, 1, columns, rest, op);
        op.end_block(rest);
    }
}

/// The two terms that a value adds to its column's sums.
trait Terms: Copy {
    /// Values per column that stay in registers.
    type Held<S: Simd, const VECTORS: usize>: Copy;
    fn hold<S: Simd, const VECTORS: usize, const TAIL: bool>(self, simd: S, at: At)
    -> Self::Held<S, VECTORS>;
    /// Adds to the sums `[a, b]`.
    fn add<S: Simd, const VECTORS: usize>(
        simd: S,
        held: Self::Held<S, VECTORS>,
        v: usize,
        x: S::f32s,
        dy: S::f32s,
        sums: [S::f32s; 2],
    ) -> [S::f32s; 2];
    /// Whether `dy` is read.
    const READS_DY: bool;
}

/// `x - shift` and its square.
#[derive(Clone, Copy)]
struct Shifted<'a> {
    shift: &'a [f32],
}

impl Terms for Shifted<'_> {
    type Held<S: Simd, const VECTORS: usize> = [S::f32s; VECTORS];
    const READS_DY: bool = false;

    #[inline(always)]
    fn hold<S: Simd, const VECTORS: usize, const TAIL: bool>(self, simd: S, at: At) -> [S::f32s; VECTORS] {
        load::<S, VECTORS, TAIL>(simd, &self.shift[at.column..][..at.width])
    }

    #[inline(always)]
    fn add<S: Simd, const VECTORS: usize>(
        simd: S,
        shift: [S::f32s; VECTORS],
        v: usize,
        x: S::f32s,
        _: S::f32s,
        [a, b]: [S::f32s; 2],
    ) -> [S::f32s; 2] {
        let d = simd.sub_f32s(x, shift[v]);
        [simd.add_f32s(a, d), simd.mul_add_f32s(d, d, b)]
    }
}

/// `dy` and `dy * (x - mean)`.
#[derive(Clone, Copy)]
struct Plain<'a> {
    mean: &'a [f32],
}

impl Terms for Plain<'_> {
    type Held<S: Simd, const VECTORS: usize> = [S::f32s; VECTORS];
    const READS_DY: bool = true;

    #[inline(always)]
    fn hold<S: Simd, const VECTORS: usize, const TAIL: bool>(self, simd: S, at: At) -> [S::f32s; VECTORS] {
        load::<S, VECTORS, TAIL>(simd, &self.mean[at.column..][..at.width])
    }

    #[inline(always)]
    fn add<S: Simd, const VECTORS: usize>(
        simd: S,
        mean: [S::f32s; VECTORS],
        v: usize,
        x: S::f32s,
        dy: S::f32s,
        [a, b]: [S::f32s; 2],
    ) -> [S::f32s; 2] {
        [simd.add_f32s(a, dy), simd.mul_add_f32s(dy, simd.sub_f32s(x, mean[v]), b)]
    }
}

/// [`Plain`] behind a ReLU.
#[derive(Clone, Copy)]
struct Masked<'a> {
    mean: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
}

impl Terms for Masked<'_> {
    type Held<S: Simd, const VECTORS: usize> = [[S::f32s; VECTORS]; 3];
    const READS_DY: bool = true;

    #[inline(always)]
    fn hold<S: Simd, const VECTORS: usize, const TAIL: bool>(
        self,
        simd: S,
        at: At,
    ) -> [[S::f32s; VECTORS]; 3] {
        [
            load::<S, VECTORS, TAIL>(simd, &self.mean[at.column..][..at.width]),
            load::<S, VECTORS, TAIL>(simd, &self.scale[at.column..][..at.width]),
            load::<S, VECTORS, TAIL>(simd, &self.bias[at.column..][..at.width]),
        ]
    }

    #[inline(always)]
    fn add<S: Simd, const VECTORS: usize>(
        simd: S,
        [mean, scale, bias]: [[S::f32s; VECTORS]; 3],
        v: usize,
        x: S::f32s,
        dy: S::f32s,
        [a, b]: [S::f32s; 2],
    ) -> [S::f32s; 2] {
        let d = simd.sub_f32s(x, mean[v]);
        // The same operations as in the forward pass: the sign is the same too.
        let dy = keep_positive(simd, simd.mul_add_f32s(d, scale[v], bias[v]), dy);
        [simd.add_f32s(a, dy), simd.mul_add_f32s(dy, d, b)]
    }
}

/// Two sums per column: in f32 within a block, in f64 over the blocks.
struct Sums<'a, T> {
    op: T,
    x: &'a [f32],
    dy: &'a [f32],
    columns: usize,
    block: &'a mut [Vec<f32>; 2],
    wide: &'a mut [Vec<f64>; 2],
}

impl<T: Terms> Strip for Sums<'_, T> {
    #[inline(always)]
    fn strip<S: Simd, const VECTORS: usize, const TAIL: bool>(&mut self, simd: S, at: At) {
        let held = self.op.hold::<S, VECTORS, TAIL>(simd, at);
        let mut a = [simd.splat_f32s(0.0); VECTORS];
        let mut b = a;
        for row in at.first..at.first + at.rows {
            let start = row * at.columns + at.column;
            let x = load::<S, VECTORS, TAIL>(simd, &self.x[start..][..at.width]);
            let dy =
                if T::READS_DY { load::<S, VECTORS, TAIL>(simd, &self.dy[start..][..at.width]) } else { x };
            for v in 0..VECTORS {
                [a[v], b[v]] = T::add(simd, held, v, x[v], dy[v], [a[v], b[v]]);
            }
        }
        let [block_a, block_b] = &mut *self.block;
        store::<S, VECTORS, TAIL>(simd, &mut block_a[at.column..][..at.width], a);
        store::<S, VECTORS, TAIL>(simd, &mut block_b[at.column..][..at.width], b);
    }

    #[inline(always)]
    fn end_block(&mut self, columns: usize) {
        for k in 0..2 {
            let block = &self.block[k][..columns];
            let wide = &mut self.wide[k][..columns];
            for c in 0..columns {
                wide[c] += f64::from(block[c]);
            }
        }
    }
}

impl<T: Terms> WithSimd for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.columns;
        for k in 0..2 {
            self.block[k].resize(columns, 0.0);
            self.wide[k].clear();
            self.wide[k].resize(columns, 0.0);
        }
        blocks(simd, self.x.len(), columns, &mut self);
    }
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    columns: usize,
    mean: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
    relu: bool,
}

impl Strip for Forward<'_> {
    #[inline(always)]
    fn strip<S: Simd, const VECTORS: usize, const TAIL: bool>(&mut self, simd: S, at: At) {
        let mean = load::<S, VECTORS, TAIL>(simd, &self.mean[at.column..][..at.width]);
        let scale = load::<S, VECTORS, TAIL>(simd, &self.scale[at.column..][..at.width]);
        let bias = load::<S, VECTORS, TAIL>(simd, &self.bias[at.column..][..at.width]);
        for row in at.first..at.first + at.rows {
            let start = row * at.columns + at.column;
            let mut y = load::<S, VECTORS, TAIL>(simd, &self.x[start..][..at.width]);
            for v in 0..VECTORS {
                y[v] = simd.mul_add_f32s(simd.sub_f32s(y[v], mean[v]), scale[v], bias[v]);
                if self.relu {
                    y[v] = relu(simd, y[v]);
                }
            }
            store::<S, VECTORS, TAIL>(simd, &mut self.y[start..][..at.width], y);
        }
    }
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        blocks(simd, self.x.len(), self.columns, &mut self);
    }
}

struct Backward<'a> {
    x: &'a [f32],
    dy: Option<&'a [f32]>,
    dx: &'a mut [f32],
    columns: usize,
    /// Mean, scale, bias, slope, offset.
    values: &'a [Vec<f32>; 5],
    relu: bool,
}

impl Strip for Backward<'_> {
    #[inline(always)]
    fn strip<S: Simd, const VECTORS: usize, const TAIL: bool>(&mut self, simd: S, at: At) {
        let [mean, scale, bias, slope, offset] = self.values;
        let mean = load::<S, VECTORS, TAIL>(simd, &mean[at.column..][..at.width]);
        let scale = load::<S, VECTORS, TAIL>(simd, &scale[at.column..][..at.width]);
        let bias = load::<S, VECTORS, TAIL>(simd, &bias[at.column..][..at.width]);
        let slope = load::<S, VECTORS, TAIL>(simd, &slope[at.column..][..at.width]);
        let offset = load::<S, VECTORS, TAIL>(simd, &offset[at.column..][..at.width]);
        for row in at.first..at.first + at.rows {
            let start = row * at.columns + at.column;
            let x = load::<S, VECTORS, TAIL>(simd, &self.x[start..][..at.width]);
            let dx = &mut self.dx[start..][..at.width];
            let dy = match self.dy {
                Some(dy) => load::<S, VECTORS, TAIL>(simd, &dy[start..][..at.width]),
                None => load::<S, VECTORS, TAIL>(simd, dx),
            };
            let mut gradient = dy;
            for v in 0..VECTORS {
                let d = simd.sub_f32s(x[v], mean[v]);
                if self.relu {
                    gradient[v] = keep_positive(simd, simd.mul_add_f32s(d, scale[v], bias[v]), dy[v]);
                }
                let rest = simd.mul_add_f32s(d, slope[v], offset[v]);
                gradient[v] = simd.mul_add_f32s(gradient[v], scale[v], rest);
            }
            store::<S, VECTORS, TAIL>(simd, dx, gradient);
        }
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        blocks(simd, self.x.len(), self.columns, &mut self);
    }
}
