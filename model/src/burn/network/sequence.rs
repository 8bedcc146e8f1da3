//! Layers over sequences, `[samples, length, channels]`.

use super::layers::linear;
use burn::tensor::{
    Bool, Tensor,
    activation::{sigmoid, softmax},
};

/// Parameters of one recurrent layer, in PyTorch's layout.
pub(super) struct Weights {
    /// `[gates * hidden, in]`.
    pub(super) input: Tensor<2>,
    /// `[gates * hidden, hidden]`.
    pub(super) hidden: Tensor<2>,
    /// `[gates * hidden]`.
    pub(super) input_bias: Tensor<1>,
    /// `[gates * hidden]`.
    pub(super) hidden_bias: Tensor<1>,
}

/// What a recurrent layer keeps from position to position: output and, in an LSTM, cell.
#[derive(Clone)]
pub(super) struct Memory {
    h: Tensor<2>,
    c: Tensor<2>,
}

/// One position: the gates of the input and of the last output, each with its bias.
pub(super) type Cell = fn(Tensor<2>, Tensor<2>, Memory) -> Memory;

/// Recurrent layers one on top of the other. They start from zeros.
pub(super) fn stacked(x: Tensor<3>, layers: &[Weights], cell: Cell) -> Tensor<3> {
    let [samples, length, _] = x.dims();
    let device = x.device();
    // A list of positions: slicing the outputs of a layer again would cost its gradient a whole sequence each.
    let mut positions: Vec<Tensor<2>> =
        (0..length).map(|t| x.clone().narrow(1, t, 1).squeeze_dim(1)).collect();
    for weights in layers {
        let hidden = weights.hidden.dims()[1];
        let zeros = Tensor::zeros([samples, hidden], &device);
        let mut memory = Memory { h: zeros.clone(), c: zeros };
        for position in &mut positions {
            let of_input = linear(position.clone(), weights.input.clone(), Some(weights.input_bias.clone()));
            let of_last = linear(memory.h.clone(), weights.hidden.clone(), Some(weights.hidden_bias.clone()));
            memory = cell(of_input, of_last, memory);
            *position = memory.h.clone();
        }
    }
    Tensor::stack(positions, 1)
}

/// Gate `k` of all.
fn gate(gates: &Tensor<2>, k: usize, hidden: usize) -> Tensor<2> {
    gates.clone().narrow(1, k * hidden, hidden)
}

/// Gates: input, forget, cell, output.
pub(super) fn lstm(of_input: Tensor<2>, of_last: Tensor<2>, memory: Memory) -> Memory {
    let hidden = memory.h.dims()[1];
    let gates = of_input + of_last;
    let [i, f, o] = [0, 1, 3].map(|k| sigmoid(gate(&gates, k, hidden)));
    let c = f * memory.c + i * gate(&gates, 2, hidden).tanh();
    Memory { h: o * c.clone().tanh(), c }
}

/// Gates: reset, update, new. The reset gate applies to the last output's part with its bias.
pub(super) fn gru(of_input: Tensor<2>, of_last: Tensor<2>, memory: Memory) -> Memory {
    let hidden = memory.h.dims()[1];
    let [r, z] = [0, 1].map(|k| sigmoid(gate(&of_input, k, hidden) + gate(&of_last, k, hidden)));
    let n = (gate(&of_input, 2, hidden) + r * gate(&of_last, 2, hidden)).tanh();
    let h = n.clone() + z * (memory.h - n);
    Memory { h, c: memory.c }
}

/// Scaled dot-product attention of several heads, from queries, keys and values side by side.
pub(super) fn attention(projected: Tensor<3>, heads: usize, causal: bool) -> Tensor<3> {
    let [samples, length, three] = projected.dims();
    let (dim, size) = (three / 3, three / 3 / heads);
    let device = projected.device();
    let [q, k, v] = [0, 1, 2].map(|part| {
        let part = projected.clone().narrow(2, part * dim, dim);
        part.reshape([samples, length, heads, size]).swap_dims(1, 2)
    });
    let mut scores = q.matmul(k.swap_dims(2, 3)) / (size as f64).sqrt();
    if causal {
        // False on and below the diagonal.
        let later = Tensor::<2, Bool>::tril_mask([length, length], 0, &device);
        let later = later.unsqueeze::<4>().expand([samples, heads, length, length]);
        scores = scores.mask_fill(later, f32::NEG_INFINITY);
    }
    softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([samples, length, dim])
}
