//! Vectors of tokens and of positions.

use crate::fused::parallel::Threads;

/// Rows of the table that a thread takes at a time in the backward pass.
const VECTORS: usize = 64;

/// `y [tokens, dim]`: the rows of `table [vocab, dim]` that `tokens` name; zeros for a token outside of it.
pub(crate) fn forward(tokens: &[u32], table: &[f32], dim: usize, y: &mut [f32], threads: &Threads) {
    if dim == 0 {
        return;
    }
    threads.rows(y, dim, dim, |first, y| {
        for (y, &token) in y.chunks_exact_mut(dim).zip(&tokens[first..]) {
            match table.chunks_exact(dim).nth(token as usize) {
                Some(vector) => y.copy_from_slice(vector),
                None => y.fill(0.0),
            }
        }
    });
}

/// Writes `d_table [vocab, dim]`: the sums of the rows of `dy [tokens, dim]` of each token, in their order.
pub(crate) fn backward(tokens: &[u32], dy: &[f32], dim: usize, d_table: &mut [f32], threads: &Threads) {
    if dim == 0 {
        return;
    }
    let sums = |first: usize, table: &mut [f32]| {
        table.fill(0.0);
        for (dy, &token) in dy.chunks_exact(dim).zip(tokens) {
            let Some(row) = (token as usize).checked_sub(first) else { continue };
            if let Some(sum) = table.chunks_exact_mut(dim).nth(row) {
                sum.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            }
        }
    };
    // Each piece reads all tokens, so only wide vectors are worth another thread.
    if dim < VECTORS || threads.count() == 1 {
        return sums(0, d_table);
    }
    let rows = (d_table.len() / dim).div_ceil(threads.count()).max(1);
    let mut pieces: Vec<_> = d_table.chunks_mut(rows * dim).collect();
    threads.each(&mut pieces, |index, table| sums(index * rows, table));
}

/// `y = x + positions`, with `x [batch, length, dim]` and the first `length` rows of `positions [.., dim]`.
pub(crate) fn add_positions(x: &[f32], positions: &[f32], sample: usize, y: &mut [f32], threads: &Threads) {
    if sample == 0 {
        return;
    }
    threads.rows(y, sample, sample, |first, y| {
        for (y, x) in y.chunks_exact_mut(sample).zip(x[first * sample..].chunks_exact(sample)) {
            for ((y, x), p) in y.iter_mut().zip(x).zip(&positions[..sample]) {
                *y = x + p;
            }
        }
    });
}

/// Writes the gradient of `positions`: the sum of `dy` over the samples, of `sample = length x dim` values
/// each; zeros for positions that no sample has. The gradient of `x` is `dy` itself.
pub(crate) fn positions_gradient(dy: &[f32], sample: usize, d_positions: &mut [f32]) {
    d_positions.fill(0.0);
    if sample == 0 {
        return;
    }
    for dy in dy.chunks_exact(sample) {
        d_positions.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::kernels::vector::tests::{assert_same_bits, noise};

    #[test]
    fn vectors_and_their_gradients_are_those_of_plain_loops() {
        for (count, vocab, dim) in [(1, 1, 1), (7, 3, 8), (500, 90, 64), (900, 31, 130)] {
            let tokens: Vec<u32> = (0..count).map(|k| (k * k * 31 + k) as u32 % vocab as u32).collect();
            let (table, dy) = (noise(vocab * dim, 1), noise(count * dim, 2));
            let mut expected = vec![0.0; vocab * dim];
            for (k, &token) in tokens.iter().enumerate() {
                for c in 0..dim {
                    expected[token as usize * dim + c] += dy[k * dim + c];
                }
            }
            for threads in 1..4 {
                let threads = Threads::new(threads).unwrap();
                let (mut y, mut d_table) = (vec![f32::NAN; count * dim], vec![f32::NAN; vocab * dim]);
                threads.enter(|| {
                    forward(&tokens, &table, dim, &mut y, &threads);
                    backward(&tokens, &dy, dim, &mut d_table, &threads);
                });
                for (y, &token) in y.chunks(dim).zip(&tokens) {
                    assert_eq!(y, &table[token as usize * dim..][..dim]);
                }
                assert_same_bits(&d_table, &expected, "gradient of the table");
            }
        }
    }

    #[test]
    fn positions_are_added_and_their_gradients_summed() {
        let (batch, length, dim, most) = (5, 7, 3, 9);
        let sample = length * dim;
        let (x, positions) = (noise(batch * sample, 1), noise(most * dim, 2));
        let mut y = vec![f32::NAN; x.len()];
        add_positions(&x, &positions, sample, &mut y, &Threads::none());
        let mut gradient = vec![f32::NAN; most * dim];
        positions_gradient(&x, sample, &mut gradient);
        for k in 0..x.len() {
            assert_eq!(y[k], x[k] + positions[k % sample]);
        }
        for (k, gradient) in gradient.iter().enumerate() {
            let sum: f32 = if k < sample { x.iter().skip(k).step_by(sample).sum() } else { 0.0 };
            assert!((gradient - sum).abs() < 1e-6);
        }
    }
}
