//! Multi-head self-attention (Vaswani et al. 2017) with the parameters of `torch.nn.MultiheadAttention`.
//!
//! A thread takes whole samples. Queries go in blocks: the scores of a block against all keys that it may
//! see are one product, and the backward pass computes them again, so that memory does not grow with the
//! square of the length.

use super::{
    product::{self, Scratch, Store, View},
    softmax::{Gradient, Softmax},
};
use crate::fused::{parallel::Threads, simd};

/// Queries of a block.
const BLOCK: usize = 64;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Channels, `E`.
    pub(crate) dim: usize,
    /// A divisor of `dim`.
    pub(crate) heads: usize,
    /// Whether a token sees only itself and earlier ones.
    pub(crate) causal: bool,
}

/// `in_weight [3 E, E]` (queries, keys, values), `in_bias [3 E]`, `out_weight [E, E]`, `out_bias [E]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) in_weight: &'a [f32],
    pub(crate) in_bias: Option<&'a [f32]>,
    pub(crate) out_weight: &'a [f32],
    pub(crate) out_bias: Option<&'a [f32]>,
}

/// Where the gradients of [`Weights`] are written.
#[derive(Debug)]
pub(crate) struct Gradients<'a> {
    pub(crate) in_weight: &'a mut [f32],
    pub(crate) in_bias: Option<&'a mut [f32]>,
    pub(crate) out_weight: &'a mut [f32],
    pub(crate) out_bias: Option<&'a mut [f32]>,
}

/// A layer with what its backward pass needs: `4 E` values a token, and `4 E` of gradients.
#[derive(Debug)]
pub(crate) struct Attention {
    shape: Shape,
    /// `[batch, length, 3 E]`
    qkv: Vec<f32>,
    d_qkv: Vec<f32>,
    /// `[batch, length, E]`: the heads' outputs.
    context: Vec<f32>,
    d_context: Vec<f32>,
    /// One for each piece of samples.
    buffers: Vec<Buffers>,
    scratch: Scratch,
}

/// What one thread needs.
#[derive(Debug, Default)]
struct Buffers {
    /// `[BLOCK, length]`
    probabilities: Vec<f32>,
    gradients: Vec<f32>,
    scratch: Scratch,
}

fn store(bias: Option<&[f32]>) -> Store<'_> {
    bias.map_or(Store::Set, |bias| Store::Bias { bias, relu: false })
}

/// Sums of the columns, in the order of the rows.
fn column_sums(rows: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

impl Attention {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            qkv: Vec::new(),
            d_qkv: Vec::new(),
            context: Vec::new(),
            d_context: Vec::new(),
            buffers: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Makes the buffers; gives the number of samples of a piece.
    fn pieces(&mut self, batch: usize, length: usize, threads: &Threads) -> usize {
        // More pieces than threads, so that one which starts late takes fewer.
        let samples = batch.div_ceil(4 * threads.count()).max(1);
        self.buffers.resize_with(batch.div_ceil(samples), Buffers::default);
        for buffers in &mut self.buffers {
            buffers.probabilities.resize(BLOCK.min(length) * length, 0.0);
        }
        samples
    }

    /// `y` of `x`, both `[batch, length, E]`.
    pub(crate) fn forward(
        &mut self,
        x: &[f32],
        length: usize,
        w: Weights<'_>,
        y: &mut [f32],
        threads: &Threads,
    ) {
        let (shape, dim) = (self.shape, self.shape.dim);
        let rows = x.len() / dim;
        self.qkv.resize(rows * 3 * dim, 0.0);
        self.context.resize(rows * dim, 0.0);
        let samples = self.pieces(rows / length, length, threads);
        let weights = View::new(w.in_weight, 3 * dim, dim).transposed();
        let x = View::new(x, rows, dim);
        product::multiply(x, weights, &mut self.qkv, 3 * dim, store(w.in_bias), &mut self.scratch, threads);
        let tokens = samples * length;
        let mut pieces: Vec<_> = self
            .context
            .chunks_mut(tokens * dim)
            .zip(self.qkv.chunks(tokens * 3 * dim))
            .zip(&mut self.buffers)
            .collect();
        threads.each(&mut pieces, |_, ((context, qkv), buffers)| {
            for (context, qkv) in context.chunks_mut(length * dim).zip(qkv.chunks(length * 3 * dim)) {
                for head in 0..shape.heads {
                    Head { shape, length, head, qkv }.forward(context, buffers);
                }
            }
        });
        let weights = View::new(w.out_weight, dim, dim).transposed();
        let context = View::new(&self.context, rows, dim);
        product::multiply(context, weights, y, dim, store(w.out_bias), &mut self.scratch, threads);
    }

    /// Writes those gradients that are asked for, for `dy [batch, length, E]`, after a forward pass of `x`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn backward(
        &mut self,
        x: &[f32],
        dy: &[f32],
        length: usize,
        w: Weights<'_>,
        dx: Option<&mut [f32]>,
        mut d: Option<Gradients<'_>>,
        threads: &Threads,
    ) {
        let (shape, dim) = (self.shape, self.shape.dim);
        let rows = x.len() / dim;
        self.d_qkv.resize(rows * 3 * dim, 0.0);
        self.d_context.resize(rows * dim, 0.0);
        let samples = self.pieces(rows / length, length, threads);
        for buffers in &mut self.buffers {
            buffers.gradients.resize(BLOCK.min(length) * length, 0.0);
        }
        let out = View::new(dy, rows, dim);
        let (context, scratch) = (View::new(&self.context, rows, dim), &mut self.scratch);
        if let Some(d) = &mut d {
            product::multiply(out.transposed(), context, d.out_weight, dim, Store::Set, scratch, threads);
            if let Some(bias) = &mut d.out_bias {
                column_sums(dy, bias);
            }
        }
        let weights = View::new(w.out_weight, dim, dim);
        product::multiply(out, weights, &mut self.d_context, dim, Store::Set, scratch, threads);

        let tokens = samples * length;
        let mut pieces: Vec<_> = self
            .d_qkv
            .chunks_mut(tokens * 3 * dim)
            .zip(self.qkv.chunks(tokens * 3 * dim).zip(self.d_context.chunks(tokens * dim)))
            .zip(&mut self.buffers)
            .collect();
        threads.each(&mut pieces, |_, ((d_qkv, (qkv, d_context)), buffers)| {
            let contexts = d_context.chunks(length * dim);
            let samples = qkv.chunks(length * 3 * dim).zip(contexts);
            for (d_qkv, (qkv, d_context)) in d_qkv.chunks_mut(length * 3 * dim).zip(samples) {
                for head in 0..shape.heads {
                    Head { shape, length, head, qkv }.backward(d_context, d_qkv, buffers);
                }
            }
        });

        let d_qkv = View::new(&self.d_qkv, rows, 3 * dim);
        if let Some(d) = d {
            let x = View::new(x, rows, dim);
            product::multiply(d_qkv.transposed(), x, d.in_weight, dim, Store::Set, scratch, threads);
            if let Some(bias) = d.in_bias {
                column_sums(&self.d_qkv, bias);
            }
        }
        if let Some(dx) = dx {
            let weights = View::new(w.in_weight, 3 * dim, dim);
            product::multiply(d_qkv, weights, dx, dim, Store::Set, scratch, threads);
        }
    }
}

/// One head of one sample.
#[derive(Clone, Copy)]
struct Head<'a> {
    shape: Shape,
    length: usize,
    head: usize,
    qkv: &'a [f32],
}

impl<'a> Head<'a> {
    fn width(self) -> usize {
        self.shape.dim / self.shape.heads
    }

    /// Where this head's queries (0), keys (1) or values (2) of token `row` begin in `qkv`.
    fn at(self, part: usize, row: usize) -> usize {
        (3 * row + part) * self.shape.dim + self.head * self.width()
    }

    /// Rows `first..first + rows` of the queries (0), keys (1) or values (2).
    fn part(self, part: usize, first: usize, rows: usize) -> View<'a> {
        View::strided(&self.qkv[self.at(part, first)..], rows, self.width(), 3 * self.shape.dim)
    }

    /// The rows of `[length, E]` at this head's columns.
    fn context(self, context: &[f32], first: usize, rows: usize) -> View<'_> {
        let at = first * self.shape.dim + self.head * self.width();
        View::strided(&context[at..], rows, self.width(), self.shape.dim)
    }

    /// `(first query, queries, keys)` of each block.
    fn blocks(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.length).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(self.length - first);
            (first, rows, if self.shape.causal { first + rows } else { self.length })
        })
    }

    fn scale(self) -> f32 {
        1.0 / (self.width() as f32).sqrt()
    }

    /// Computes the probabilities `[rows, keys]` of a block.
    fn probabilities(self, (first, rows, keys): (usize, usize, usize), buffers: &mut Buffers) {
        let (q, k) = (self.part(0, first, rows), self.part(1, 0, keys).transposed());
        let scores = &mut buffers.probabilities[..rows * keys];
        product::multiply(q, k, scores, keys, Store::Set, &mut buffers.scratch, &Threads::none());
        let causal = self.shape.causal;
        let visible = if causal { first + 1 } else { keys };
        simd::run(Softmax { scores, stride: keys, scale: self.scale(), visible, causal });
    }

    fn forward(self, context: &mut [f32], buffers: &mut Buffers) {
        let dim = self.shape.dim;
        for (first, rows, keys) in self.blocks() {
            self.probabilities((first, rows, keys), buffers);
            let p = View::new(&buffers.probabilities, rows, keys);
            let out = &mut context[first * dim + self.head * self.width()..];
            let v = self.part(2, 0, keys);
            product::multiply(p, v, out, dim, Store::Set, &mut buffers.scratch, &Threads::none());
        }
    }

    fn backward(self, d_context: &[f32], d_qkv: &mut [f32], buffers: &mut Buffers) {
        let (none, stride) = (Threads::none(), 3 * self.shape.dim);
        // Blocks add to the gradients of keys and values.
        for row in 0..self.length {
            for part in [1, 2] {
                d_qkv[self.at(part, row)..][..self.width()].fill(0.0);
            }
        }
        for (first, rows, keys) in self.blocks() {
            self.probabilities((first, rows, keys), buffers);
            let Buffers { probabilities, gradients, scratch } = buffers;
            let d_out = self.context(d_context, first, rows);
            let p = View::new(probabilities, rows, keys);
            let d_v = &mut d_qkv[self.at(2, 0)..];
            product::multiply(p.transposed(), d_out, d_v, stride, Store::Add, scratch, &none);

            let gradients = &mut gradients[..rows * keys];
            let v = self.part(2, 0, keys).transposed();
            product::multiply(d_out, v, gradients, keys, Store::Set, scratch, &none);
            let probabilities = &probabilities[..rows * keys];
            let scale = self.scale();
            simd::run(Gradient { probabilities, gradients: &mut *gradients, stride: keys, scale });

            let d_scores = View::new(gradients, rows, keys);
            let d_q = &mut d_qkv[self.at(0, first)..];
            product::multiply(d_scores, self.part(1, 0, keys), d_q, stride, Store::Set, scratch, &none);
            let (q, d_k) = (self.part(0, first, rows), &mut d_qkv[self.at(1, 0)..]);
            product::multiply(d_scores.transposed(), q, d_k, stride, Store::Add, scratch, &none);
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
