//! One layer of an LSTM (Hochreiter and Schmidhuber 1997) or a GRU (Cho et al. 2014) over whole sequences,
//! with the gates, formulas and parameters of PyTorch's `nn.LSTM` and `nn.GRU`.
//!
//! The samples of a batch are independent in time, so each thread runs all steps of its samples without
//! waiting for another. Products with the weights of the input and the gradients of all weights are one
//! product each over all steps.

use super::{
    math,
    product::{self, Packed, Scratch, Store, View},
    vector,
};
use crate::fused::{parallel::Threads, simd};
use pulp::{Simd, WithSimd};

/// Values kept for each unit and token: input, forget, cell and output gate of an LSTM; reset and update
/// gate, new value and the hidden part of it of a GRU.
const KEPT: usize = 4;

/// Samples that a thread takes at least: products of fewer rows read the weights too often.
const LEAST_SAMPLES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    Lstm,
    Gru,
}

impl Cell {
    /// Blocks of `hidden` rows in a weight matrix.
    pub(crate) fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

/// The parameters of a layer: `weight_ih [gates x hidden, input]`, `weight_hh [gates x hidden, hidden]`,
/// `bias_ih` and `bias_hh` `[gates x hidden]`; gates in the order i, f, g, o (LSTM) or r, z, n (GRU).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) weight_ih: &'a [f32],
    pub(crate) weight_hh: &'a [f32],
    pub(crate) bias_ih: &'a [f32],
    pub(crate) bias_hh: &'a [f32],
}

/// Where the gradients of [`Weights`] are written.
#[derive(Debug)]
pub(crate) struct Gradients<'a> {
    pub(crate) weight_ih: &'a mut [f32],
    pub(crate) weight_hh: &'a mut [f32],
    pub(crate) bias_ih: &'a mut [f32],
    pub(crate) bias_hh: &'a mut [f32],
}

/// A layer, and what its backward pass needs of the forward pass: `4 x hidden` gates a token, and the cells
/// of an LSTM.
#[derive(Debug)]
pub(crate) struct Recurrent {
    cell: Cell,
    input: usize,
    hidden: usize,
    /// After activation, `[batch, length, 4, hidden]`; the backward pass overwrites them with gradients.
    gates: Vec<f32>,
    /// `[batch, length, hidden]`, of an LSTM.
    cells: Vec<f32>,
    /// `[batch, hidden]`: the hidden state; backwards, its gradient from the next step.
    state: Vec<f32>,
    /// `[batch, hidden]`: the gradient of the cell from the next step, of an LSTM.
    cell_gradient: Vec<f32>,
    /// `[batch, gates, hidden]`: product with the hidden state; backwards, gradients of one step.
    step: Vec<f32>,
    /// `[batch, 4, hidden]`: sums over time of the gradients of the gates.
    sums: Vec<f32>,
    zeros: Vec<f32>,
    packed: Packed,
    scratch: Scratch,
}

impl Recurrent {
    pub(crate) fn new(cell: Cell, input: usize, hidden: usize) -> Self {
        Self {
            cell,
            input,
            hidden,
            gates: Vec::new(),
            cells: Vec::new(),
            state: Vec::new(),
            cell_gradient: Vec::new(),
            step: Vec::new(),
            sums: Vec::new(),
            zeros: vec![0.0; hidden],
            packed: Packed::default(),
            scratch: Scratch::default(),
        }
    }

    /// `y [batch, length, hidden]` of `x [batch, length, input]`, from a state of zeros.
    pub(crate) fn forward(
        &mut self,
        x: &[f32],
        length: usize,
        w: Weights<'_>,
        y: &mut [f32],
        threads: &Threads,
    ) {
        let (input, hidden, cell) = (self.input, self.hidden, self.cell);
        let (width, kept) = (cell.gates() * hidden, KEPT * hidden);
        let rows = x.len() / input;
        let batch = rows / length;
        self.gates.resize(rows * kept, 0.0);
        self.cells.resize(if cell == Cell::Lstm { rows * hidden } else { 0 }, 0.0);
        self.state.resize(batch * hidden, 0.0);
        self.step.resize(batch * width, 0.0);
        product::multiply(
            View::new(x, rows, input),
            View::new(w.weight_ih, width, input).transposed(),
            &mut self.gates,
            kept,
            Store::Bias { bias: w.bias_ih, relu: false },
            &mut self.scratch,
            threads,
        );
        self.packed.pack(View::new(w.weight_hh, width, hidden).transposed(), threads);
        let samples = samples_of_a_piece(batch, threads);
        let mut cells = self.cells.chunks_mut(samples * length * hidden);
        let mut pieces: Vec<_> = self
            .gates
            .chunks_mut(samples * length * kept)
            .zip(y.chunks_mut(samples * length * hidden))
            .zip(self.state.chunks_mut(samples * hidden).zip(self.step.chunks_mut(samples * width)))
            .map(|((gates, y), (state, step))| Forward {
                cell,
                hidden,
                length,
                time: 0,
                gates,
                y,
                cells: cells.next().unwrap_or_default(),
                state,
                step,
                zeros: &self.zeros,
            })
            .collect();
        let packed = &self.packed;
        threads.each(&mut pieces, |_, piece| piece.run(packed, w.bias_hh));
    }

    /// Writes those gradients that are asked for, for `dy [batch, length, hidden]`; `x` and `y` are those of the forward pass,
    /// which a second backward pass needs anew.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn backward(
        &mut self,
        x: &[f32],
        y: &[f32],
        dy: &[f32],
        length: usize,
        w: Weights<'_>,
        dx: Option<&mut [f32]>,
        d: Option<Gradients<'_>>,
        threads: &Threads,
    ) {
        let (input, hidden, cell) = (self.input, self.hidden, self.cell);
        let (width, kept) = (cell.gates() * hidden, KEPT * hidden);
        let rows = x.len() / input;
        let batch = rows / length;
        for (buffer, len) in [
            (&mut self.sums, batch * kept),
            (&mut self.state, batch * hidden),
            (&mut self.cell_gradient, if cell == Cell::Lstm { batch * hidden } else { 0 }),
        ] {
            buffer.clear();
            buffer.resize(len, 0.0);
        }
        self.packed.pack(View::new(w.weight_hh, width, hidden), threads);
        let samples = samples_of_a_piece(batch, threads);
        let mut cells = self.cells.chunks(samples * length * hidden);
        let mut cell_gradient = self.cell_gradient.chunks_mut(samples * hidden);
        let mut pieces: Vec<_> = self
            .gates
            .chunks_mut(samples * length * kept)
            .zip(y.chunks(samples * length * hidden).zip(dy.chunks(samples * length * hidden)))
            .zip(self.state.chunks_mut(samples * hidden).zip(self.step.chunks_mut(samples * width)))
            .zip(self.sums.chunks_mut(samples * kept))
            .map(|(((gates, (y, dy)), (state, step)), sums)| Backward {
                cell,
                hidden,
                length,
                time: 0,
                gates,
                y,
                dy,
                cells: cells.next().unwrap_or_default(),
                state,
                cell_gradient: cell_gradient.next().unwrap_or_default(),
                step,
                sums,
                zeros: &self.zeros,
            })
            .collect();
        let packed = &self.packed;
        threads.each(&mut pieces, |_, piece| piece.run(packed));
        drop(pieces);

        let scratch = &mut self.scratch;
        let of_inputs = View::strided(&self.gates, rows, width, kept);
        if let Some(dx) = dx {
            let weights = View::new(w.weight_ih, width, input);
            product::multiply(of_inputs, weights, dx, input, Store::Set, scratch, threads);
        }
        let Some(d) = d else { return };
        let x = View::new(x, rows, input);
        product::multiply(of_inputs.transposed(), x, d.weight_ih, input, Store::Set, scratch, threads);

        d.bias_ih.fill(0.0);
        d.bias_hh.fill(0.0);
        let split = width - hidden;
        for sums in self.sums.chunks(kept) {
            add(d.bias_ih, &sums[..width]);
            add(&mut d.bias_hh[..split], &sums[..split]);
            add(&mut d.bias_hh[split..], &sums[kept - hidden..]);
        }

        // Row r meets the state after row r - 1, but the first step of a sample none.
        for sample in self.gates.chunks_mut(length * kept) {
            sample[..kept].fill(0.0);
        }
        if length == 1 {
            d.weight_hh.fill(0.0);
            return;
        }
        self.packed.pack(View::new(y, rows - 1, hidden), threads);
        let later = &self.gates[kept..];
        let blocks: &[(usize, usize, usize)] = match cell {
            Cell::Lstm => &[(0, 0, width)],
            Cell::Gru => &[(0, 0, split), (kept - hidden, split, hidden)],
        };
        for &(from, to, count) in blocks {
            let gradients = View::strided(&later[from..], rows - 1, count, kept).transposed();
            let out = &mut d.weight_hh[to * hidden..][..count * hidden];
            product::multiply_packed(gradients, &self.packed, out, hidden, Store::Set, threads);
        }
    }
}

/// Each sample is computed alike in every cut.
fn samples_of_a_piece(batch: usize, threads: &Threads) -> usize {
    batch.div_ceil(threads.count()).max(LEAST_SAMPLES)
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// The samples of one thread.
struct Forward<'a> {
    cell: Cell,
    hidden: usize,
    length: usize,
    time: usize,
    gates: &'a mut [f32],
    y: &'a mut [f32],
    cells: &'a mut [f32],
    state: &'a mut [f32],
    step: &'a mut [f32],
    zeros: &'a [f32],
}

impl Forward<'_> {
    fn run(&mut self, weights: &Packed, bias: &[f32]) {
        let none = Threads::none();
        let width = bias.len();
        let samples = self.state.len() / self.hidden;
        self.state.fill(0.0);
        for time in 0..self.length {
            if time == 0 {
                self.step.chunks_mut(width).for_each(|row| row.copy_from_slice(bias));
            } else {
                let state = View::new(self.state, samples, self.hidden);
                let store = Store::Bias { bias, relu: false };
                product::multiply_packed(state, weights, self.step, width, store, &none);
            }
            self.time = time;
            simd::run(&mut *self);
        }
    }
}

impl WithSimd for &mut Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (h, length, time) = (self.hidden, self.length, self.time);
        let width = self.cell.gates() * h;
        let rows = self.step.chunks_exact(width).zip(self.state.chunks_exact_mut(h));
        for (sample, (step, state)) in rows.enumerate() {
            let row = sample * length + time;
            let gates = &mut self.gates[row * KEPT * h..][..KEPT * h];
            let y = &mut self.y[row * h..][..h];
            match self.cell {
                Cell::Lstm => {
                    let (before, from_here) = self.cells.split_at_mut(row * h);
                    let before = if time == 0 { self.zeros } else { &before[(row - 1) * h..] };
                    let row = LstmRow { step, gates, before, cells: &mut from_here[..h], state, y };
                    each_vector::<S>(simd, h, row);
                }
                Cell::Gru => each_vector::<S>(simd, h, GruRow { step, gates, state, y }),
            }
        }
    }
}

/// What happens to the units `at..at + LANES` of a row, or to its last ones.
trait Units {
    fn at<S: Simd, const TAIL: bool>(&mut self, simd: S, hidden: usize, at: usize);
}

#[inline(always)]
fn each_vector<S: Simd>(simd: S, hidden: usize, mut row: impl Units) {
    let whole = hidden - hidden % S::F32_LANES;
    for at in (0..whole).step_by(S::F32_LANES) {
        row.at::<S, false>(simd, hidden, at);
    }
    if whole < hidden {
        row.at::<S, true>(simd, hidden, whole);
    }
}

/// The vector at `at` of part `part` of a row of parts of `hidden` values.
#[inline(always)]
fn get<S: Simd, const TAIL: bool>(simd: S, row: &[f32], hidden: usize, part: usize, at: usize) -> S::f32s {
    let end = if TAIL { hidden } else { at + S::F32_LANES };
    let [value] = vector::load::<S, 1, TAIL>(simd, &row[part * hidden + at..part * hidden + end]);
    value
}

#[inline(always)]
fn put<S: Simd, const TAIL: bool>(
    simd: S,
    row: &mut [f32],
    hidden: usize,
    part: usize,
    at: usize,
    value: S::f32s,
) {
    let end = if TAIL { hidden } else { at + S::F32_LANES };
    vector::store::<S, 1, TAIL>(simd, &mut row[part * hidden + at..part * hidden + end], [value]);
}

struct LstmRow<'a> {
    step: &'a [f32],
    gates: &'a mut [f32],
    before: &'a [f32],
    cells: &'a mut [f32],
    state: &'a mut [f32],
    y: &'a mut [f32],
}

impl Units for LstmRow<'_> {
    #[inline(always)]
    fn at<S: Simd, const TAIL: bool>(&mut self, simd: S, h: usize, at: usize) {
        let sum = |part| {
            let input = get::<S, TAIL>(simd, self.gates, h, part, at);
            simd.add_f32s(input, get::<S, TAIL>(simd, self.step, h, part, at))
        };
        let i = math::sigmoid(simd, sum(0));
        let f = math::sigmoid(simd, sum(1));
        let g = math::tanh(simd, sum(2));
        let o = math::sigmoid(simd, sum(3));
        let before = get::<S, TAIL>(simd, self.before, h, 0, at);
        let c = simd.mul_add_f32s(f, before, simd.mul_f32s(i, g));
        let y = simd.mul_f32s(o, math::tanh(simd, c));
        for (part, gate) in [i, f, g, o].into_iter().enumerate() {
            put::<S, TAIL>(simd, self.gates, h, part, at, gate);
        }
        put::<S, TAIL>(simd, self.cells, h, 0, at, c);
        put::<S, TAIL>(simd, self.state, h, 0, at, y);
        put::<S, TAIL>(simd, self.y, h, 0, at, y);
    }
}

struct GruRow<'a> {
    step: &'a [f32],
    gates: &'a mut [f32],
    state: &'a mut [f32],
    y: &'a mut [f32],
}

impl Units for GruRow<'_> {
    #[inline(always)]
    fn at<S: Simd, const TAIL: bool>(&mut self, simd: S, h: usize, at: usize) {
        let x = |part| get::<S, TAIL>(simd, self.gates, h, part, at);
        let hidden = |part| get::<S, TAIL>(simd, self.step, h, part, at);
        let r = math::sigmoid(simd, simd.add_f32s(x(0), hidden(0)));
        let z = math::sigmoid(simd, simd.add_f32s(x(1), hidden(1)));
        let part_of_n = hidden(2);
        let n = math::tanh(simd, simd.mul_add_f32s(r, part_of_n, x(2)));
        let before = get::<S, TAIL>(simd, self.state, h, 0, at);
        let y = simd.mul_add_f32s(z, simd.sub_f32s(before, n), n);
        for (part, value) in [r, z, n, part_of_n].into_iter().enumerate() {
            put::<S, TAIL>(simd, self.gates, h, part, at, value);
        }
        put::<S, TAIL>(simd, self.state, h, 0, at, y);
        put::<S, TAIL>(simd, self.y, h, 0, at, y);
    }
}

/// The samples of one thread, backwards in time.
struct Backward<'a> {
    cell: Cell,
    hidden: usize,
    length: usize,
    time: usize,
    gates: &'a mut [f32],
    y: &'a [f32],
    dy: &'a [f32],
    cells: &'a [f32],
    state: &'a mut [f32],
    cell_gradient: &'a mut [f32],
    step: &'a mut [f32],
    sums: &'a mut [f32],
    zeros: &'a [f32],
}

impl Backward<'_> {
    fn run(&mut self, weights: &Packed) {
        let none = Threads::none();
        let width = self.cell.gates() * self.hidden;
        let samples = self.state.len() / self.hidden;
        for time in (0..self.length).rev() {
            self.time = time;
            simd::run(&mut *self);
            if time > 0 {
                let gradients = View::new(self.step, samples, width);
                let store = if self.cell == Cell::Lstm { Store::Set } else { Store::Add };
                product::multiply_packed(gradients, weights, self.state, self.hidden, store, &none);
            }
        }
    }
}

impl WithSimd for &mut Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (h, length, time) = (self.hidden, self.length, self.time);
        let width = self.cell.gates() * h;
        let sums = self.sums.chunks_exact_mut(KEPT * h);
        let rows = self.step.chunks_exact_mut(width).zip(self.state.chunks_exact_mut(h)).zip(sums);
        for (sample, ((step, state), sums)) in rows.enumerate() {
            let row = sample * length + time;
            let gates = &mut self.gates[row * KEPT * h..][..KEPT * h];
            let dy = &self.dy[row * h..][..h];
            match self.cell {
                Cell::Lstm => {
                    let cells = &self.cells[row * h..][..h];
                    let before = if time == 0 { self.zeros } else { &self.cells[(row - 1) * h..row * h] };
                    let cell_gradient = &mut self.cell_gradient[sample * h..][..h];
                    let row = LstmGradient { step, gates, before, cells, state, cell_gradient, dy, sums };
                    each_vector::<S>(simd, h, row);
                }
                Cell::Gru => {
                    let before = if time == 0 { self.zeros } else { &self.y[(row - 1) * h..row * h] };
                    each_vector::<S>(simd, h, GruGradient { step, gates, before, state, dy, sums });
                }
            }
        }
    }
}

/// `s (1 - s)`, the derivative of a sigmoid.
#[inline(always)]
fn slope<S: Simd>(simd: S, s: S::f32s) -> S::f32s {
    simd.negate_mul_add_f32s(s, s, s)
}

/// `1 - t^2`, the derivative of a tanh.
#[inline(always)]
fn tanh_slope<S: Simd>(simd: S, t: S::f32s) -> S::f32s {
    simd.negate_mul_add_f32s(t, t, simd.splat_f32s(1.0))
}

struct LstmGradient<'a> {
    step: &'a mut [f32],
    gates: &'a mut [f32],
    before: &'a [f32],
    cells: &'a [f32],
    state: &'a [f32],
    cell_gradient: &'a mut [f32],
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl Units for LstmGradient<'_> {
    #[inline(always)]
    fn at<S: Simd, const TAIL: bool>(&mut self, simd: S, h: usize, at: usize) {
        let [i, f, g, o]: [S::f32s; 4] =
            std::array::from_fn(|part| get::<S, TAIL>(simd, self.gates, h, part, at));
        let c = math::tanh(simd, get::<S, TAIL>(simd, self.cells, h, 0, at));
        let dh = simd
            .add_f32s(get::<S, TAIL>(simd, self.dy, h, 0, at), get::<S, TAIL>(simd, self.state, h, 0, at));
        let later = get::<S, TAIL>(simd, self.cell_gradient, h, 0, at);
        let dc = simd.mul_add_f32s(simd.mul_f32s(dh, o), tanh_slope(simd, c), later);
        let before = get::<S, TAIL>(simd, self.before, h, 0, at);
        let gradients = [
            simd.mul_f32s(simd.mul_f32s(dc, g), slope(simd, i)),
            simd.mul_f32s(simd.mul_f32s(dc, before), slope(simd, f)),
            simd.mul_f32s(simd.mul_f32s(dc, i), tanh_slope(simd, g)),
            simd.mul_f32s(simd.mul_f32s(dh, c), slope(simd, o)),
        ];
        put::<S, TAIL>(simd, self.cell_gradient, h, 0, at, simd.mul_f32s(dc, f));
        for (part, value) in gradients.into_iter().enumerate() {
            put::<S, TAIL>(simd, self.gates, h, part, at, value);
            put::<S, TAIL>(simd, self.step, h, part, at, value);
            let sum = simd.add_f32s(get::<S, TAIL>(simd, self.sums, h, part, at), value);
            put::<S, TAIL>(simd, self.sums, h, part, at, sum);
        }
    }
}

struct GruGradient<'a> {
    step: &'a mut [f32],
    gates: &'a mut [f32],
    before: &'a [f32],
    state: &'a mut [f32],
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl Units for GruGradient<'_> {
    #[inline(always)]
    fn at<S: Simd, const TAIL: bool>(&mut self, simd: S, h: usize, at: usize) {
        let [r, z, n, part_of_n]: [S::f32s; 4] =
            std::array::from_fn(|part| get::<S, TAIL>(simd, self.gates, h, part, at));
        let dh = simd
            .add_f32s(get::<S, TAIL>(simd, self.dy, h, 0, at), get::<S, TAIL>(simd, self.state, h, 0, at));
        let before = get::<S, TAIL>(simd, self.before, h, 0, at);
        let kept = simd.mul_f32s(dh, z);
        let dn = simd.mul_f32s(simd.sub_f32s(dh, kept), tanh_slope(simd, n));
        let dz = simd.mul_f32s(simd.mul_f32s(dh, simd.sub_f32s(before, n)), slope(simd, z));
        let dr = simd.mul_f32s(simd.mul_f32s(dn, part_of_n), slope(simd, r));
        let d_part = simd.mul_f32s(dn, r);
        put::<S, TAIL>(simd, self.state, h, 0, at, kept);
        for (part, value) in [dr, dz, dn, d_part].into_iter().enumerate() {
            put::<S, TAIL>(simd, self.gates, h, part, at, value);
            let sum = simd.add_f32s(get::<S, TAIL>(simd, self.sums, h, part, at), value);
            put::<S, TAIL>(simd, self.sums, h, part, at, sum);
        }
        for (part, value) in [dr, dz, d_part].into_iter().enumerate() {
            put::<S, TAIL>(simd, self.step, h, part, at, value);
        }
    }
}

#[cfg(test)]
#[path = "recurrent_tests.rs"]
mod tests;
