//! Rate-distortion optimised quantization under the trellis: the Viterbi algorithm, row by row.
//!
//! A path through the state machine is a sequence of indices; the search finds the one of least
//! `error + lambda * bits`. Bits are estimated by the models as they are at the start of the row.

use crate::entropy::{
    EntropyCoder, MAX_MAGNITUDE, NEXT, Quantization, RowLayout, STATES, SymbolCosts, quantizer, token_cost,
};

/// The Lagrange multiplier: the price of a bit, in squared steps. At high rates theory gives `2 ln 2` times
/// the error per element, which is about a quarter of a squared step under this trellis.
const LAMBDA: f32 = 0.36;

/// The two transitions into each state: from which state, with which parity.
const PREVIOUS: [[(u8, u8); 2]; STATES] = {
    let mut previous = [[(0, 0); 2]; STATES];
    let mut filled = [0; STATES];
    let mut state = 0;
    while state < STATES {
        let mut parity = 0;
        while parity < 2 {
            let next = NEXT[state][parity] as usize;
            previous[next][filled[next]] = (state as u8, parity as u8);
            filled[next] += 1;
            parity += 1;
        }
        state += 1;
    }
    previous
};

/// The best index of each quantizer and parity for one element.
#[derive(Debug, Clone, Copy, Default)]
struct Candidates {
    index: [[u32; 2]; 2],
    cost: [[f32; 2]; 2],
}

/// The Viterbi search; its buffers are reused from row to row.
#[derive(Debug, Default)]
pub struct Viterbi {
    candidates: Vec<[[u32; 2]; 2]>,
    /// Per element and state, which of the two transitions was better.
    decisions: Vec<[u8; STATES]>,
    costs: SymbolCosts,
}

impl Viterbi {
    /// Replaces `indices`, a first guess, by the best ones. Codes each group of rows with `coder` before the
    /// next, so that its models adapt.
    #[inline(always)]
    pub fn quantize(
        &mut self,
        x: &[f32],
        step: f32,
        layout: &RowLayout,
        coder: &mut EntropyCoder,
        indices: &mut [i32],
    ) {
        coder.start(layout, Quantization::Trellis);
        let group = layout.cols * layout.lanes;
        for (x, indices) in x.chunks(group).zip(indices.chunks_mut(group)) {
            self.costs.renew();
            for (x, indices) in x.chunks(layout.cols).zip(indices.chunks_mut(layout.cols)) {
                self.row(x, step, layout, coder, indices);
            }
            coder.encode_rows(layout, Quantization::Trellis, indices);
        }
    }

    #[inline(always)]
    fn row(
        &mut self,
        x: &[f32],
        step: f32,
        layout: &RowLayout,
        coder: &mut EntropyCoder,
        indices: &mut [i32],
    ) {
        let Self { candidates, decisions, costs } = self;
        candidates.clear();
        decisions.clear();
        let inverse = 1.0 / step;
        let mut metric = [f32::INFINITY; STATES];
        metric[0] = 0.0;
        coder.look_ahead(
            layout,
            indices,
            costs,
            #[inline(always)]
            |column, flip, costs| {
                let found =
                    candidates_of((x[column] * inverse).abs(), usize::from(flip != (x[column] < 0.0)), costs);
                let mut next = [0.0; STATES];
                let mut decision = [0; STATES];
                for state in 0..STATES {
                    let [(s0, p0), (s1, p1)] = PREVIOUS[state];
                    let cost =
                        |s: u8, p: u8| metric[s as usize] + found.cost[quantizer(s as usize)][p as usize];
                    let (first, second) = (cost(s0, p0), cost(s1, p1));
                    decision[state] = u8::from(second < first);
                    next[state] = if second < first { second } else { first };
                }
                metric = next;
                candidates.push(found.index);
                decisions.push(decision);
            },
        );
        let mut state = (1..STATES).fold(0, |best, s| if metric[s] < metric[best] { s } else { best });
        for column in (0..x.len()).rev() {
            let (previous, parity) = PREVIOUS[state][usize::from(decisions[column][state])];
            let magnitude = candidates[column][quantizer(previous as usize)][parity as usize] as i32;
            indices[column] = if x[column] < 0.0 { -magnitude } else { magnitude };
            state = previous as usize;
        }
    }
}

/// `position` is the magnitude in steps, `sign` 1 if it is negative after sign prediction.
#[inline(always)]
fn candidates_of(position: f32, sign: usize, costs: [&[f32; 16]; 2]) -> Candidates {
    let mut found = Candidates::default();
    for (quantizer, costs) in costs.into_iter().enumerate() {
        // Index k of the first quantizer lies at 2 k, of the second at 2 k - 1 (0 for k = 0).
        let shift = quantizer as f32;
        let scaled = (position + shift) * 0.5;
        let nearest = (scaled + 0.5) as u32;
        let nearest = nearest.clamp(quantizer as u32, MAX_MAGNITUDE - 1);
        let other =
            if scaled < nearest as f32 && nearest > quantizer as u32 { nearest - 1 } else { nearest + 1 };
        let zero = position * position + LAMBDA * costs[0];
        found.cost[quantizer] = [zero, f32::INFINITY];
        for index in [nearest, other] {
            let error = position - (2.0 * index as f32 - shift);
            let cost = error * error + LAMBDA * token_cost(index, sign, costs);
            let parity = index as usize & 1;
            if index > 0 && cost < found.cost[quantizer][parity] {
                found.cost[quantizer][parity] = cost;
                found.index[quantizer][parity] = index;
            }
        }
    }
    found
}
