//! Layers against a plain f64 forward pass and its central differences.

use super::*;
use crate::fused::kernels::vector::tests::{assert_close, assert_same_bits, noise, output_and_slopes};

const SHAPES: [[usize; 4]; 7] =
    [[1, 1, 1, 1], [1, 5, 3, 2], [3, 1, 2, 17], [2, 7, 8, 16], [9, 4, 5, 6], [19, 3, 1, 9], [4, 6, 17, 20]];

struct Case {
    cell: Cell,
    shape: [usize; 4],
    x: Vec<f32>,
    dy: Vec<f32>,
    weights: [Vec<f32>; 4],
}

impl Case {
    fn new(cell: Cell, shape: [usize; 4]) -> Self {
        let [batch, length, input, hidden] = shape;
        let width = cell.gates() * hidden;
        let lens = [width * input, width * hidden, width, width];
        let mut seed = 0;
        let weights = lens.map(|len| {
            seed += 1;
            noise(len, seed).iter().map(|w| w * 0.6).collect()
        });
        let (x, dy) = (noise(batch * length * input, 9), noise(batch * length * hidden, 10));
        Self { cell, shape, x, dy, weights }
    }

    /// `y`, `dx` and the gradients of the parameters.
    fn fused(&self, threads: usize) -> [Vec<f32>; 6] {
        let [_, length, input, hidden] = self.shape;
        let [weight_ih, weight_hh, bias_ih, bias_hh] = &self.weights;
        let weights = Weights { weight_ih, weight_hh, bias_ih, bias_hh };
        let threads = Threads::new(threads).unwrap();
        let mut layer = Recurrent::new(self.cell, input, hidden);
        let mut y = vec![f32::NAN; self.dy.len()];
        let mut dx = vec![f32::NAN; self.x.len()];
        let [mut d_ih, mut d_hh, mut b_ih, mut b_hh] = self.weights.clone();
        threads.enter(|| {
            // The second time with buffers that hold what the first time left.
            for _ in 0..2 {
                layer.forward(&self.x, length, weights, &mut y, &threads);
                let gradients = Gradients {
                    weight_ih: &mut d_ih,
                    weight_hh: &mut d_hh,
                    bias_ih: &mut b_ih,
                    bias_hh: &mut b_hh,
                };
                let (dx, d) = (Some(&mut dx[..]), Some(gradients));
                layer.backward(&self.x, &y, &self.dy, length, weights, dx, d, &threads);
            }
        });
        [y, dx, d_ih, d_hh, b_ih, b_hh]
    }

    fn plain(&self, values: &[Vec<f64>; 5]) -> Vec<f64> {
        let [batch, length, input, hidden] = self.shape;
        let [x, w_ih, w_hh, b_ih, b_hh] = values;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut y = vec![0.0; batch * length * hidden];
        for b in 0..batch {
            let (mut h, mut c) = (vec![0.0; hidden], vec![0.0; hidden]);
            for t in 0..length {
                let row = b * length + t;
                let dot = |w: &[f64], v: &[f64], gate: usize| -> f64 {
                    w[gate * v.len()..].iter().zip(v).map(|(w, v)| w * v).sum()
                };
                let from_x = |gate| dot(w_ih, &x[row * input..][..input], gate) + b_ih[gate];
                let from_h = |gate| dot(w_hh, &h, gate) + b_hh[gate];
                let next: Vec<f64> = (0..hidden)
                    .map(|j| match self.cell {
                        Cell::Lstm => {
                            let [i, f, g, o] =
                                [0, 1, 2, 3].map(|k| from_x(k * hidden + j) + from_h(k * hidden + j));
                            c[j] = sigmoid(f) * c[j] + sigmoid(i) * g.tanh();
                            sigmoid(o) * c[j].tanh()
                        }
                        Cell::Gru => {
                            let r = sigmoid(from_x(j) + from_h(j));
                            let z = sigmoid(from_x(hidden + j) + from_h(hidden + j));
                            let n = (from_x(2 * hidden + j) + r * from_h(2 * hidden + j)).tanh();
                            (1.0 - z) * n + z * h[j]
                        }
                    })
                    .collect();
                y[row * hidden..][..hidden].copy_from_slice(&next);
                h = next;
            }
        }
        y
    }

    /// What [`Case::fused`] should give.
    fn expected(&self) -> Vec<Vec<f64>> {
        let [a, b, c, d] = &self.weights;
        output_and_slopes([&self.x, a, b, c, d], &self.dy, |values| self.plain(values))
    }
}

#[test]
fn outputs_and_gradients_are_those_of_plain_loops() {
    for cell in [Cell::Lstm, Cell::Gru] {
        for shape in SHAPES {
            let case = Case::new(cell, shape);
            for (k, (got, expected)) in case.fused(1).iter().zip(case.expected()).enumerate() {
                assert_close(got, &expected, 2e-6, &format!("{cell:?} {shape:?}, result {k}"));
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for cell in [Cell::Lstm, Cell::Gru] {
        for shape in [[33, 5, 12, 20], [20, 9, 33, 50]] {
            let case = Case::new(cell, shape);
            let one = case.fused(1);
            for threads in [2, 3] {
                for (one, more) in one.iter().zip(case.fused(threads)) {
                    assert_same_bits(&more, one, &format!("{cell:?} {shape:?}, {threads} threads"));
                }
            }
        }
    }
}

/// A pass over one sample of one layer, with instructions of the caller's choice.
#[test]
fn cells_are_the_same_to_the_bit_without_vectors() {
    for cell in [Cell::Lstm, Cell::Gru] {
        for hidden in [1, 16, 37] {
            let width = cell.gates() * hidden;
            let rows = 3;
            let pass = |scalar: bool| -> Vec<f32> {
                let (mut gates, mut y) = (noise(rows * KEPT * hidden, 1), vec![0.0; rows * hidden]);
                let (mut cells, mut state) = (noise(rows * hidden, 2), noise(rows * hidden, 3));
                let (mut step, zeros, dy) =
                    (noise(rows * width, 4), vec![0.0; hidden], noise(rows * hidden, 5));
                let mut forward = Forward {
                    cell,
                    hidden,
                    length: 1,
                    time: 0,
                    gates: &mut gates,
                    y: &mut y,
                    cells: &mut cells,
                    state: &mut state,
                    step: &mut step,
                    zeros: &zeros,
                };
                if scalar {
                    Simd::vectorize(pulp::Scalar, &mut forward)
                } else {
                    simd::run(&mut forward)
                }
                let (mut cell_gradient, mut sums) = (noise(rows * hidden, 6), noise(rows * KEPT * hidden, 7));
                let mut backward = Backward {
                    cell,
                    hidden,
                    length: 1,
                    time: 0,
                    gates: &mut gates,
                    y: &y,
                    dy: &dy,
                    cells: &cells,
                    state: &mut state,
                    cell_gradient: &mut cell_gradient,
                    step: &mut step,
                    sums: &mut sums,
                    zeros: &zeros,
                };
                if scalar {
                    Simd::vectorize(pulp::Scalar, &mut backward)
                } else {
                    simd::run(&mut backward)
                }
                [y, gates, state, step, cell_gradient, sums].concat()
            };
            assert_same_bits(&pass(false), &pass(true), &format!("{cell:?} of {hidden}"));
        }
    }
}
