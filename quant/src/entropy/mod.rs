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

use context::{CONTEXTS, Context, Row};
use model::{LAST_SHIFTS, Models, SYMBOLS};
use rans::{MAX_LANES, Reader, Recorder};

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

    /// Codes `values`, whole groups of `lanes` rows (or the last ones), after what came before.
    #[inline(always)]
    pub fn encode_rows(&mut self, grid: &Grid, indices: Indices, values: &[i32]) {
        let Self { models, walk, recorder, .. } = self;
        walk.group(
            grid,
            indices,
            values.len(),
            #[inline(always)]
            |lane, at, context| {
                let value = values[at];
                let magnitude = value.unsigned_abs();
                let symbol = token::symbol(magnitude, (value < 0) != context.flip);
                recorder.push(lane, models.interval(context.model, symbol));
                models.update(context.model, symbol);
                token::write_rest(magnitude, lane, recorder);
                value
            },
        );
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

    /// Tries which shift suits the first rows best.
    #[inline(always)]
    pub fn find_shift(&mut self, grid: &mut Grid, indices: Indices, values: &[i32]) {
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

    /// Codes all of `values` and writes them.
    #[inline(always)]
    pub fn encode_all(&mut self, grid: &Grid, indices: Indices, values: &[i32], out: &mut Vec<u8>) {
        self.start(grid, indices);
        for rows in values.chunks(grid.cols * grid.lanes) {
            self.encode_rows(grid, indices, rows);
        }
        self.finish(grid, out);
    }

    /// Writes what has been coded since [`Coder::start`].
    fn finish(&mut self, grid: &Grid, out: &mut Vec<u8>) {
        self.recorder.finish(grid.lanes, out);
    }

    /// Decodes `count` indices: `emit(offset, values)` gets them in order, some rows at a time. Under
    /// the trellis they are what [`Indices::level`] makes of them.
    ///
    /// Any payload decodes to something; what it decodes to is checked by its checksum alone.
    #[inline(always)]
    pub fn decode(
        &mut self,
        grid: &Grid,
        indices: Indices,
        payload: &[u8],
        count: usize,
        buffer: &mut Vec<i32>,
        mut emit: impl FnMut(usize, &mut [i32]),
    ) {
        self.start(grid, indices);
        let Self { models, walk, .. } = self;
        let mut reader = Reader::new(payload, grid.lanes);
        let group = grid.cols * grid.lanes;
        buffer.clear();
        buffer.resize(group.min(count), 0);
        let mut offset = 0;
        while offset < count {
            let values = &mut buffer[..group.min(count - offset)];
            walk.group(
                grid,
                indices,
                values.len(),
                #[inline(always)]
                |lane, at, context| {
                    let (symbol, interval) = models.find(context.model, reader.slot(lane));
                    reader.advance(lane, interval);
                    models.update(context.model, symbol);
                    let (magnitude, negative) = token::read(symbol, lane, &mut reader);
                    let value = if negative != context.flip { -(magnitude as i32) } else { magnitude as i32 };
                    values[at] = indices.level(context.quantizer, value);
                    value
                },
            );
            emit(offset, values);
            offset += values.len();
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

    /// Walks up to `lanes` rows, `count` indices in all. `code(lane, position, place)` gives the index.
    #[inline(always)]
    fn group(
        &mut self,
        grid: &Grid,
        indices: Indices,
        count: usize,
        mut code: impl FnMut(usize, usize, Place) -> i32,
    ) {
        let cols = grid.cols;
        let mut machines = [Machine::default(); MAX_LANES];
        self.rows.iter_mut().for_each(Row::restart);
        let lanes = count.div_ceil(cols);
        for time in 0..cols + lanes - 1 {
            for lane in 0..lanes {
                // Each row is one column behind the row above, whose part of the mean it needs.
                let column = time.wrapping_sub(lane);
                let at = lane * cols + column;
                if column >= cols || at >= count {
                    continue;
                }
                let row = &mut self.rows[lane];
                let mean = &mut self.means[column];
                let Context { model, flip } = row.context(column, *mean);
                let quantizer = machines[lane].quantizer(indices);
                let value = code(lane, at, Place { model: model + quantizer * CONTEXTS, flip, quantizer });
                row.push(column, value, mean);
                machines[lane].advance(value);
            }
        }
    }
}
