//! The lossless stage: context-adaptive entropy coding of integers.
//!
//! Indices are coded row by row, up to four rows side by side, each one column behind the row above.
//! A [`context::Context`] of what is already coded picks one of a few hundred adaptive
//! [`model::Models`], whose symbols go through [`rans`].

mod context;
mod grid;
mod model;
mod rans;
mod token;
mod trellis;

pub use grid::{Grid, Signs};
pub use token::MAX_MAGNITUDE;
pub use trellis::{Indices, Machine, NEXT, STATES, quantizer};

use crate::{limits::CHUNK, simd::vectorized};
use context::{CONTEXTS, Context, Row};
use model::{LAST_SHIFTS, Models, SYMBOLS};
use rans::{MAX_LANES, Reader, Recorder};
use std::ops::Range;

/// The part of a tensor that is tried to find a shift, and its bounds in elements.
const SAMPLED_PART: usize = 24;
const MIN_SAMPLE: usize = 2048;
const MAX_SAMPLE: usize = 32_768;

/// Memory that encoder and decoder reuse from call to call.
#[derive(Debug, Default)]
pub struct Coder {
    models: Models,
    walk: Walk,
    recorder: Recorder,
    ahead: Row,
}

impl Coder {
    /// Prepares for a tensor.
    pub fn start(&mut self, grid: &Grid, indices: Indices) {
        self.models.reset(CONTEXTS * indices.quantizers(), grid.shift);
        self.walk.start(grid);
        self.recorder.clear();
    }

    /// Codes `values`, one group of `lanes` rows (or the last ones), after what came before.
    #[inline(always)]
    pub fn encode_rows(&mut self, grid: &Grid, indices: Indices, values: &[i32]) {
        let Self { models, walk, recorder, .. } = self;
        walk.group(
            grid,
            indices,
            values.len(),
            models,
            #[inline(always)]
            |models, lane, at, place| {
                let value = values[at];
                let magnitude = value.unsigned_abs();
                let symbol = token::symbol(magnitude, (value < 0) != place.flip);
                recorder.push(lane, models.interval(place.model, symbol));
                token::write_rest(magnitude, lane, recorder);
                (symbol, value)
            },
        );
    }

    /// Tries which shift suits the first rows best.
    #[inline(always)]
    fn find_shift(&mut self, grid: &mut Grid, indices: Indices, values: &[i32]) {
        let rows = (values.len() / SAMPLED_PART).clamp(MIN_SAMPLE, MAX_SAMPLE).div_ceil(grid.cols);
        let group = grid.cols * grid.lanes;
        let sample = &values[..values.len().min(rows.next_multiple_of(grid.lanes) * grid.cols)];
        let mut best = (f64::INFINITY, grid.shift);
        for shift in LAST_SHIFTS {
            grid.shift = shift;
            self.start(grid, indices);
            sample.chunks(group).for_each(|rows| self.encode_rows(grid, indices, rows));
            let bits = self.recorder.bits();
            if bits < best.0 {
                best = (bits, shift);
            }
        }
        grid.shift = best.1;
    }

    /// Codes `values` and writes grid and payload, with the shift that suits them.
    pub fn write(&mut self, mut grid: Grid, indices: Indices, values: &[i32], out: &mut Vec<u8>) {
        vectorized(
            #[inline(always)]
            || {
                self.find_shift(&mut grid, indices, values);
                self.start(&grid, indices);
                for rows in values.chunks(grid.cols * grid.lanes) {
                    self.encode_rows(&grid, indices, rows);
                }
            },
        );
        grid.write(out);
        self.recorder.finish(grid.lanes, out);
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
        let row = &mut self.ahead;
        row.start(grid.cols, grid.stride);
        for (column, index) in guess.iter().enumerate() {
            let mut mean = self.walk.means[column];
            let Context { model, flip } = row.context(column, mean);
            costs.fill(&self.models, model);
            costs.fill(&self.models, model + CONTEXTS);
            f(column, flip, [&costs.tables[model], &costs.tables[model + CONTEXTS]]);
            row.push(column, *index, &mut mean);
        }
    }

    /// Decodes the next group of rows into `values`. Under the trellis they are what
    /// [`Indices::level`] makes of the indices.
    ///
    /// Any payload decodes to something; what it decodes to is checked by its checksum alone.
    fn decode_rows(&mut self, grid: &Grid, indices: Indices, reader: &mut Reader<'_>, values: &mut [i32]) {
        vectorized(
            #[inline(always)]
            || {
                let Self { models, walk, .. } = self;
                walk.group(
                    grid,
                    indices,
                    values.len(),
                    models,
                    #[inline(always)]
                    |models, lane, at, place| {
                        let (symbol, interval) = models.find(place.model, reader.slot(lane));
                        reader.advance(lane, interval);
                        let (magnitude, negative) = token::read(symbol, lane, reader);
                        let value =
                            if negative != place.flip { -(magnitude as i32) } else { magnitude as i32 };
                        values[at] = indices.level(place.quantizer, value);
                        (symbol, value)
                    },
                );
            },
        );
    }
}

/// Memory that decoding reuses.
#[derive(Debug, Default)]
pub struct Scratch {
    coder: Coder,
    integers: Vec<i32>,
    values: Vec<f32>,
}

impl Scratch {
    /// Decodes `count` integers chunk by chunk: `f(offset, integers, values)`, where `values` is an
    /// empty buffer for what becomes of them.
    pub fn for_each_chunk(
        &mut self,
        grid: &Grid,
        indices: Indices,
        payload: &[u8],
        count: usize,
        mut f: impl FnMut(usize, &[i32], &mut Vec<f32>),
    ) {
        let Self { coder, integers, values } = self;
        coder.start(grid, indices);
        let mut reader = Reader::new(payload, grid.lanes);
        let group = (grid.cols * grid.lanes).min(count);
        integers.clear();
        integers.resize(group, 0);
        let mut offset = 0;
        while offset < count {
            let integers = &mut integers[..group.min(count - offset)];
            coder.decode_rows(grid, indices, &mut reader, integers);
            for integers in integers.chunks(CHUNK) {
                values.clear();
                f(offset, integers, values);
                offset += integers.len();
            }
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

/// Where the walk stands: the context of the index that comes next.
#[derive(Debug, Clone, Copy)]
struct Place {
    model: usize,
    flip: bool,
    quantizer: usize,
}

/// What both sides know of the indices coded so far.
#[derive(Debug, Default)]
struct Walk {
    /// Running mean magnitude of every column, in sixteenths.
    means: Vec<u16>,
    rows: [Row; MAX_LANES],
}

impl Walk {
    fn start(&mut self, grid: &Grid) {
        self.means.clear();
        self.means.resize(grid.cols, 0);
        for row in &mut self.rows[..grid.lanes] {
            row.start(grid.cols, grid.stride);
        }
    }

    /// Walks up to `lanes` rows, `count` indices in all. `code(models, lane, position, place)` gives the
    /// symbol and the index.
    ///
    /// Each row is one column behind the row above, whose part of the mean it needs. What the rows code
    /// at one time is coded with the same models, which learn afterwards: so their chains of
    /// arithmetic overlap.
    #[inline(always)]
    fn group(
        &mut self,
        grid: &Grid,
        indices: Indices,
        count: usize,
        models: &mut Models,
        mut code: impl FnMut(&Models, usize, usize, Place) -> (usize, i32),
    ) {
        let cols = grid.cols;
        let lanes = count.div_ceil(cols);
        let last_row = count - (lanes - 1) * cols;
        let mut machines = [Machine::default(); MAX_LANES];
        self.rows.iter_mut().for_each(Row::restart);
        let ramp = lanes - 1;
        // Lanes that have an element at this time.
        let active = |time: usize| {
            let first = (time + 1).saturating_sub(cols);
            let last = if time >= last_row + ramp { ramp } else { lanes.min(time + 1) };
            first..last
        };
        // The common case is all lanes at once, in a number that the compiler knows.
        let full = if lanes == MAX_LANES { ramp..cols.min(last_row + ramp).max(ramp) } else { 0..0 };
        for time in 0..full.start {
            self.step(cols, indices, active(time), time, models, &mut machines, &mut code);
        }
        for time in full.clone() {
            self.step(cols, indices, 0..MAX_LANES, time, models, &mut machines, &mut code);
        }
        for time in full.end..cols + ramp {
            self.step(cols, indices, active(time), time, models, &mut machines, &mut code);
        }
    }

    /// Codes what the lanes have at one time, then lets the models learn it.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the state of one loop, shared by its three parts")]
    fn step(
        &mut self,
        cols: usize,
        indices: Indices,
        lanes: Range<usize>,
        time: usize,
        models: &mut Models,
        machines: &mut [Machine; MAX_LANES],
        code: &mut impl FnMut(&Models, usize, usize, Place) -> (usize, i32),
    ) {
        let mut coded = [(0, 0, 0); MAX_LANES];
        for lane in lanes.clone() {
            let column = time - lane;
            let Context { model, flip } = self.rows[lane].context(column, self.means[column]);
            let quantizer = machines[lane].quantizer(indices);
            let model = model + quantizer * CONTEXTS;
            let (symbol, value) = code(models, lane, lane * cols + column, Place { model, flip, quantizer });
            coded[lane] = (model, symbol, value);
        }
        for lane in lanes {
            let (model, symbol, value) = coded[lane];
            models.update(model, symbol);
            self.rows[lane].push(time - lane, value, &mut self.means[time - lane]);
            machines[lane].advance(value);
        }
    }
}
