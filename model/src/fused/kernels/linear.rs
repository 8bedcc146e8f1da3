//! A layer `y = x W^T + b` on the weights `[out, in]` as they lie.

use super::product::{Scratch, Store, View, multiply, multiply_transposed};
use crate::fused::parallel::Threads;

/// Batches of at most so many rows are packed instead of the weights, if these are large.
const FEW_ROWS: usize = 256;

/// Values of large weights.
const LARGE: usize = 1 << 17;

/// Rows whose sums make up one piece of the bias's gradient.
const PIECE: usize = 2048;

/// The features of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl Linear {
    /// `y [rows, outputs]` of `x [rows, inputs]`, with a ReLU if asked.
    #[expect(clippy::too_many_arguments, reason = "a pass has that many tensors")]
    pub(crate) fn forward(
        self,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        let Self { inputs, outputs } = self;
        let store = bias.map_or(Store::Set, |bias| Store::Bias { bias, relu });
        let x = View::new(x, x.len() / inputs, inputs);
        let w = View::new(w, outputs, inputs);
        if x.rows <= FEW_ROWS && inputs * outputs >= LARGE {
            multiply_transposed(w, x.transposed(), y, outputs, store, scratch, threads);
        } else {
            multiply(x, w.transposed(), y, outputs, store, scratch, threads);
        }
        if relu && bias.is_none() {
            y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
        }
    }

    /// `dx = dy W`.
    pub(crate) fn backward_input(
        self,
        dy: &[f32],
        w: &[f32],
        dx: &mut [f32],
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        let Self { inputs, outputs } = self;
        let dy = View::new(dy, dy.len() / outputs, outputs);
        multiply(dy, View::new(w, outputs, inputs), dx, inputs, Store::Set, scratch, threads);
    }

    /// `dw = dy^T x`, `db` the sums of the columns of `dy`.
    pub(crate) fn backward_weight(
        self,
        dy: &[f32],
        x: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        self.weights(dy, x, dw, Store::Set, scratch, threads);
        if let Some(db) = db {
            self.column_sums(dy, db, threads);
        }
    }

    /// A step of plain gradient descent, `w - lr dy^T x` and likewise the bias, without a gradient in memory.
    #[expect(clippy::too_many_arguments, reason = "a pass has that many tensors")]
    pub(crate) fn descend(
        self,
        dy: &[f32],
        x: &[f32],
        w: &mut [f32],
        bias: Option<&mut [f32]>,
        lr: f32,
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        self.weights(dy, x, w, Store::Descend { lr }, scratch, threads);
        if let Some(bias) = bias {
            let mut sums = vec![0.0; self.outputs];
            self.column_sums(dy, &mut sums, threads);
            bias.iter_mut().zip(sums).for_each(|(bias, sum)| *bias -= lr * sum);
        }
    }

    fn weights(
        self,
        dy: &[f32],
        x: &[f32],
        out: &mut [f32],
        store: Store<'_>,
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        let Self { inputs, outputs } = self;
        let rows = x.len() / inputs;
        let dy = View::new(dy, rows, outputs).transposed();
        multiply(dy, View::new(x, rows, inputs), out, inputs, store, scratch, threads);
    }

    fn column_sums(self, dy: &[f32], sums: &mut [f32], threads: &Threads) {
        let outputs = self.outputs;
        let add = |rows: &[f32], sums: &mut [f32]| {
            sums.fill(0.0);
            for row in rows.chunks_exact(outputs) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        };
        if dy.len() <= PIECE * outputs {
            return add(dy, sums);
        }
        let mut pieces: Vec<_> = dy.chunks(PIECE * outputs).map(|rows| (rows, vec![0.0; outputs])).collect();
        threads.each(&mut pieces, |_, (rows, sums)| add(rows, sums));
        sums.fill(0.0);
        for (_, piece) in pieces {
            sums.iter_mut().zip(piece).for_each(|(sum, value)| *sum += value);
        }
    }
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

    fn close(got: &[f32], want: impl Iterator<Item = f64>, what: &str) {
        let (mut error, mut norm) = (0.0, 1e-30);
        for (&got, want) in got.iter().zip(want) {
            error += (f64::from(got) - want).powi(2);
            norm += want * want;
        }
        assert!(error.sqrt() <= 1e-5 * norm.sqrt(), "{what}: {error} {norm}");
    }

    /// Everything of one layer with `threads` threads.
    fn outcome(layer: Linear, rows: usize, bias: bool, threads: usize) -> [Vec<f32>; 6] {
        let Linear { inputs, outputs } = layer;
        let (x, dy) = (values(rows * inputs, 1), values(rows * outputs, 2));
        let (w, b) = (values(inputs * outputs, 3), values(outputs, 4));
        let b = bias.then_some(&b[..]);
        let threads = &Threads::new(threads).unwrap();
        let scratch = &mut Scratch::default();
        let (mut y, mut dx) = (vec![9.0; rows * outputs], vec![9.0; rows * inputs]);
        let (mut dw, mut db) = (vec![9.0; inputs * outputs], vec![9.0; outputs]);
        let (mut moved, mut moved_bias) = (w.clone(), b.unwrap_or(&db).to_vec());
        threads.enter(|| {
            layer.forward(&x, &w, b, true, &mut y, scratch, threads);
            layer.backward_input(&dy, &w, &mut dx, scratch, threads);
            layer.backward_weight(&dy, &x, &mut dw, bias.then_some(&mut db), scratch, threads);
            let moved_bias = bias.then_some(&mut moved_bias[..]);
            layer.descend(&dy, &x, &mut moved, moved_bias, 0.25, scratch, threads);
        });
        [y, dx, dw, db, moved, moved_bias]
    }

    fn check(rows: usize, inputs: usize, outputs: usize, bias: bool) {
        let layer = Linear { inputs, outputs };
        let all = outcome(layer, rows, bias, 1);
        assert!(all == outcome(layer, rows, bias, 2), "threads: {rows} {inputs} {outputs}");
        let [y, dx, dw, db, moved, moved_bias] = all;
        let (x, dy) = (values(rows * inputs, 1), values(rows * outputs, 2));
        let (w, b) = (values(inputs * outputs, 3), values(outputs, 4));
        let product = |x: f32, y: f32| f64::from(x) * f64::from(y);
        let forward = (0..rows * outputs).map(|at| {
            let (row, out) = (at / outputs, at % outputs);
            let sum: f64 = (0..inputs).map(|k| product(x[row * inputs + k], w[out * inputs + k])).sum();
            (sum + if bias { f64::from(b[out]) } else { 0.0 }).max(0.0)
        });
        close(&y, forward, "y");
        let input = (0..rows * inputs).map(|at| {
            let (row, k) = (at / inputs, at % inputs);
            (0..outputs).map(|out| product(dy[row * outputs + out], w[out * inputs + k])).sum()
        });
        close(&dx, input, "dx");
        let weight = |at: usize| -> f64 {
            let (out, k) = (at / inputs, at % inputs);
            (0..rows).map(|row| product(dy[row * outputs + out], x[row * inputs + k])).sum()
        };
        close(&dw, (0..dw.len()).map(weight), "dw");
        close(&moved, (0..dw.len()).map(|at| f64::from(w[at]) - 0.25 * weight(at)), "moved");
        if bias {
            let sum = |out: usize| -> f64 { (0..rows).map(|row| f64::from(dy[row * outputs + out])).sum() };
            close(&db, (0..outputs).map(sum), "db");
            close(&moved_bias, (0..outputs).map(|out| f64::from(b[out]) - 0.25 * sum(out)), "moved bias");
        }
    }

    #[test]
    fn layers_equal_the_reference() {
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 17, 63), (64, 63, 10), (129, 40, 33)] {
            check(rows, inputs, outputs, true);
            check(rows, inputs, outputs, false);
        }
    }

    #[test]
    fn large_weights_and_long_batches_equal_the_reference() {
        check(1, 400, 400, true);
        check(17, 300, 513, true);
        check(70, 513, 300, false);
        check(9001, 17, 5, true);
    }
}
