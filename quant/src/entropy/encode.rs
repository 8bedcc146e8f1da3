//! Coding: indices to symbols with their probabilities, in the order of decoding.

use super::{
    context::{CONTEXTS, Contexts, Indices as Clamped, LANES, Neighbours, clamp, clamped, contexts},
    grid::Grid,
    model::{LAST_SHIFTS, Models, SYMBOLS},
    rans::{Record, Recorder},
    token,
    trellis::Indices,
    walk::{Coded, Time, Walk, by_time},
};
use crate::simd::vectorized;
use bytemuck::cast;
use std::ops::Range;
use wide::{i16x8, i32x8};

/// The part of a tensor that is tried to find a shift, and its bounds in elements.
const SAMPLED_PART: usize = 32;
const MIN_SAMPLE: usize = 2048;
const MAX_SAMPLE: usize = 32_768;

/// Memory that coding reuses from call to call.
#[derive(Debug, Default)]
pub struct Coder {
    models: Models,
    walk: Walk,
    recorder: Recorder,
    by_time: Vec<Time>,
}

impl Coder {
    /// Codes `values` and writes grid and payload, with the shift that suits them.
    pub fn write(&mut self, mut grid: Grid, indices: Indices, values: &[i32], out: &mut Vec<u8>) {
        self.find_shift(&mut grid, indices, values);
        self.start(&grid, indices);
        for rows in values.chunks(grid.cols * grid.lanes) {
            self.encode_rows(&grid, indices, rows);
        }
        grid.write(out);
        vectorized(
            #[inline(always)]
            || self.recorder.finish(grid.lanes, out),
        );
    }

    /// Prepares for a tensor.
    pub fn start(&mut self, grid: &Grid, indices: Indices) {
        self.models.reset(CONTEXTS * indices.quantizers(), grid.shift);
        self.walk.start(grid);
        self.recorder.clear();
    }

    /// Codes `values`, one group of `lanes` rows (or the last ones), after what came before.
    pub fn encode_rows(&mut self, grid: &Grid, indices: Indices, values: &[i32]) {
        for span in self.walk.start_group(grid.cols, values.len()) {
            by_time(values, grid.cols, &span, &mut self.by_time);
            vectorized(
                #[inline(always)]
                || match indices {
                    Indices::Scalar => self.encode_span::<false>(span.clone()),
                    Indices::Trellis => self.encode_span::<true>(span.clone()),
                },
            );
        }
    }

    #[inline(always)]
    fn encode_span<const TRELLIS: bool>(&mut self, span: Range<usize>) {
        let Self { models, walk, recorder, by_time } = self;
        walk.span::<TRELLIS>(
            span,
            models,
            #[inline(always)]
            |models, at, active, places| {
                let indices = by_time[at];
                let [i0, i1, i2, i3] = indices;
                let values = i16x8::from_i32x8_saturate(i32x8::new([0, 0, 0, 0, i0, i1, i2, i3]));
                // The smallest of all has no magnitude.
                let values = values.max(i16x8::splat(-i16::MAX));
                let (symbols, open) = token::symbols(values, places.flips);
                let symbols = std::array::from_fn(|lane| (symbols >> (16 * lane)) as usize & 0xff);
                let record =
                    |lane: usize| Record::new(lane, models.interval(places.models[lane], symbols[lane]));
                if active == (0..LANES) && !open {
                    recorder.extend(std::array::from_fn(record));
                } else {
                    for lane in active {
                        recorder.push(record(lane));
                        token::write_rest(indices[lane].unsigned_abs(), lane, recorder);
                    }
                }
                Coded { symbols, indices, clamped: clamped(values) }
            },
        );
    }

    /// Tries which shift suits the first rows best.
    fn find_shift(&mut self, grid: &mut Grid, indices: Indices, values: &[i32]) {
        let rows = (values.len() / SAMPLED_PART).clamp(MIN_SAMPLE, MAX_SAMPLE).div_ceil(grid.cols);
        let group = grid.cols * grid.lanes;
        let sample = &values[..values.len().min(rows.next_multiple_of(grid.lanes) * grid.cols)];
        let mut bits = |shift| {
            self.start(&Grid { shift, ..*grid }, indices);
            sample.chunks(group).for_each(|rows| self.encode_rows(grid, indices, rows));
            self.recorder.bits()
        };
        // There is one minimum: from the usual shift it is downhill all the way.
        let mut best = (bits(grid.shift), grid.shift);
        for direction in [1, -1] {
            let before = best.1;
            for shift in (1..).map(|steps| before.wrapping_add_signed(direction * steps)) {
                let tried = if LAST_SHIFTS.contains(&shift) { bits(shift) } else { f64::INFINITY };
                if tried >= best.0 {
                    break;
                }
                best = (tried, shift);
            }
            if best.1 != before {
                break;
            }
        }
        grid.shift = best.1;
    }

    /// Walks over a guess of the row that comes next without coding it: `f(column, flip, costs)` gets
    /// the symbols' costs under both quantizers, and whether signs are coded the other way round.
    #[inline(always)]
    pub fn look_ahead(
        &mut self,
        grid: &Grid,
        guess: &[i32],
        costs: &mut Costs,
        mut f: impl FnMut(usize, bool, [&[f32; SYMBOLS]; 2]),
    ) {
        // The index at a column, and zero where there is none.
        let at = |column: Option<usize>| {
            let index = column.map_or(0, |column| clamp(guess[column]));
            Clamped::new(i16x8::splat(index))
        };
        let far = |column: usize| if grid.stride == 0 { None } else { column.checked_sub(grid.stride) };
        for column in 0..guess.len() {
            let around = Neighbours {
                left: at(column.checked_sub(1)),
                left2: at(column.checked_sub(2)),
                far: at(far(column)),
                far_next: at(far(column + 1)),
            };
            let Contexts { models, flips } = contexts(&around, i16x8::splat(self.walk.means()[column]));
            let model = models as u16 as usize;
            costs.fill(&self.models, model);
            costs.fill(&self.models, model + CONTEXTS);
            let [_, flips]: [u64; 2] = cast(flips);
            f(column, flips & 1 != 0, [&costs.tables[model], &costs.tables[model + CONTEXTS]]);
        }
    }
}

/// Costs of symbols in bits, kept for as long as the models may count as unchanged.
#[derive(Debug, Default)]
pub struct Costs {
    tables: Vec<[f32; SYMBOLS]>,
    /// When each table was filled.
    filled: Vec<u32>,
    now: u32,
}

impl Costs {
    /// Forgets everything.
    pub fn renew(&mut self) {
        self.tables.resize(2 * CONTEXTS, [0.0; SYMBOLS]);
        self.filled.resize(2 * CONTEXTS, self.now);
        self.now = self.now.wrapping_add(1);
    }

    #[inline(always)]
    fn fill(&mut self, models: &Models, model: usize) {
        if self.filled[model] != self.now {
            self.filled[model] = self.now;
            self.tables[model] = models.costs(model);
        }
    }
}

/// Bits that an index takes; `sign` is 1 if its sign is coded as negative.
#[inline(always)]
pub fn token_cost(magnitude: u32, sign: usize, costs: &[f32; SYMBOLS]) -> f32 {
    let symbol = token::symbol(magnitude, sign == 1);
    let plain = if magnitude > token::DIRECT { token::plain_bits(magnitude) as f32 } else { 0.0 };
    costs[symbol % SYMBOLS] + plain
}
