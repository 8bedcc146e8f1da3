//! Layers against a plain f64 forward pass and its central differences.

use super::*;
use crate::fused::kernels::vector::tests::{assert_close, assert_same_bits, noise, output_and_slopes};

/// Batch, length, channels, heads.
const SHAPES: [[usize; 4]; 5] = [[1, 1, 1, 1], [1, 1, 4, 2], [2, 5, 6, 2], [1, 67, 4, 1], [3, 17, 9, 3]];

struct Case {
    size: [usize; 4],
    causal: bool,
    bias: bool,
    x: Vec<f32>,
    dy: Vec<f32>,
    weights: [Vec<f32>; 4],
}

impl Case {
    fn new(size: [usize; 4], causal: bool, bias: bool) -> Self {
        let [batch, length, dim, _] = size;
        let biases = if bias { [3 * dim, dim] } else { [0, 0] };
        let weights =
            [noise(3 * dim * dim, 1), noise(biases[0], 2), noise(dim * dim, 3), noise(biases[1], 4)];
        let (x, dy) = (noise(batch * length * dim, 5), noise(batch * length * dim, 6));
        Self { size, causal, bias, x, dy, weights }
    }

    /// `y`, `dx` and the gradients of the parameters.
    fn fused(&self, threads: usize) -> [Vec<f32>; 6] {
        let [_, length, dim, heads] = self.size;
        let [in_weight, in_bias, out_weight, out_bias] = &self.weights;
        let weights = Weights {
            in_weight,
            in_bias: self.bias.then_some(in_bias),
            out_weight,
            out_bias: self.bias.then_some(out_bias),
        };
        let threads = Threads::new(threads).unwrap();
        let mut layer = Attention::new(Shape { dim, heads, causal: self.causal });
        let (mut y, mut dx) = (vec![f32::NAN; self.x.len()], vec![f32::NAN; self.x.len()]);
        let [mut d_in, mut b_in, mut d_out, mut b_out] = self.weights.clone();
        threads.enter(|| {
            for _ in 0..2 {
                layer.forward(&self.x, length, weights, &mut y, &threads);
                let gradients = Gradients {
                    in_weight: &mut d_in,
                    in_bias: self.bias.then_some(&mut b_in),
                    out_weight: &mut d_out,
                    out_bias: self.bias.then_some(&mut b_out),
                };
                let dx = Some(&mut dx[..]);
                layer.backward(&self.x, &self.dy, length, weights, dx, Some(gradients), &threads);
            }
        });
        [y, dx, d_in, b_in, d_out, b_out]
    }

    fn plain(&self, values: &[Vec<f64>; 5]) -> Vec<f64> {
        let [batch, length, dim, heads] = self.size;
        let width = dim / heads;
        let [x, w_in, b_in, w_out, b_out] = values;
        let linear = |w: &[f64], b: &[f64], x: &[f64], k: usize| -> f64 {
            w[k * dim..].iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b.get(k).unwrap_or(&0.0)
        };
        let mut y = Vec::new();
        for sample in x.chunks(length * dim).take(batch) {
            let qkv: Vec<Vec<f64>> = sample
                .chunks(dim)
                .map(|x| (0..3 * dim).map(|k| linear(w_in, b_in, x, k)).collect())
                .collect();
            for t in 0..length {
                let mut context = vec![0.0; dim];
                for head in 0..heads {
                    let seen = if self.causal { t + 1 } else { length };
                    let at = |part: usize, c: usize| part * dim + head * width + c;
                    let score =
                        |s: usize| (0..width).map(|c| qkv[t][at(0, c)] * qkv[s][at(1, c)]).sum::<f64>();
                    let e: Vec<f64> = (0..seen).map(|s| (score(s) / (width as f64).sqrt()).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    for c in 0..width {
                        context[head * width + c] = (0..seen).map(|s| e[s] / sum * qkv[s][at(2, c)]).sum();
                    }
                }
                y.extend((0..dim).map(|k| linear(w_out, b_out, &context, k)));
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
    for size in SHAPES {
        for (causal, bias) in [(false, true), (true, true), (true, false)] {
            let case = Case::new(size, causal, bias);
            for (k, (got, expected)) in case.fused(1).iter().zip(case.expected()).enumerate() {
                assert_close(
                    got,
                    &expected,
                    4e-6,
                    &format!("{size:?}, causal {causal}, bias {bias}, result {k}"),
                );
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for size in [[5, 70, 24, 3], [2, 130, 16, 2], [17, 9, 32, 4]] {
        let case = Case::new(size, true, true);
        let one = case.fused(1);
        for threads in [2, 3] {
            for (one, more) in one.iter().zip(case.fused(threads)) {
                assert_same_bits(&more, one, &format!("{size:?}, {threads} threads"));
            }
        }
    }
}
