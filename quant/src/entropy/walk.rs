//! The order in which a tensor's indices are coded, and what is known when each one's turn comes.

use super::{
    context::{self, CONTEXTS, Contexts, Indices, LANES, Neighbours, contexts},
    grid::Grid,
    model::Models,
    trellis::Machine,
};
use bytemuck::cast;
use std::ops::Range;
use wide::i16x8;

/// The elements that are coded at one time, one of each row. A row is one column behind the row above.
pub type Time = [i32; LANES];

/// What is known of them.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The models of their symbols.
    pub models: [usize; LANES],
    /// In the upper half, -1 where signs are coded the other way round, 0 elsewhere.
    pub flips: i16x8,
    /// The quantizers that their indices belong to.
    pub quantizers: [usize; LANES],
}

/// What became of them; zeros where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Coded {
    /// The symbols.
    pub symbols: [usize; LANES],
    /// The indices.
    pub indices: Time,
    /// The same, clamped, in the upper half.
    pub clamped: i16x8,
}

/// What both sides know of the indices coded so far.
#[derive(Debug, Default)]
pub struct Walk {
    /// Running mean magnitude of every column, in sixteenths.
    means: Vec<i16>,
    /// The indices of the group's rows by time, behind as many zeros as the walk looks back.
    history: Vec<Indices>,
    back: usize,
}

/// A group's state that changes with every element; in registers.
#[derive(Debug, Clone, Copy, Default)]
struct Front {
    left: Indices,
    left2: Indices,
    far: Indices,
    /// The means of the columns where the rows are: four numbers of 16 bits.
    means: u64,
    machines: [Machine; LANES],
}

impl Walk {
    /// Prepares for a tensor.
    pub fn start(&mut self, grid: &Grid) {
        self.means.clear();
        // Behind the last column the rows find zeros.
        self.means.resize(times(grid.cols), 0);
        // Without a stride, what lies that far back must be zero: before the rows' first column.
        self.back = if grid.stride == 0 { times(grid.cols) + 1 } else { grid.stride };
        self.history.clear();
        self.history.resize(self.back + times(grid.cols), Indices::default());
    }

    /// The running mean of every column.
    pub fn means(&self) -> &[i16] {
        &self.means
    }

    /// Walks the next rows of `cols` columns, `count` indices in all: a group, or what is left of the
    /// tensor. `code(models, time, active, places)` gives what it codes in the active lanes.
    ///
    /// Each row is one column behind the row above, whose part of the mean it needs. What the rows code
    /// at one time is coded with the same models, which learn afterwards: so their chains of
    /// arithmetic overlap.
    #[inline(always)]
    pub fn group<const TRELLIS: bool>(
        &mut self,
        cols: usize,
        count: usize,
        models: &mut Models,
        mut code: impl FnMut(&Models, usize, Range<usize>, &Places) -> Coded,
    ) {
        let lanes = count.div_ceil(cols);
        let last_row = count - (lanes - 1) * cols;
        let ramp = lanes - 1;
        // Lanes that have an element at this time.
        let active = |time: usize| {
            let first = (time + 1).saturating_sub(cols);
            let last = if time >= last_row + ramp { ramp } else { lanes.min(time + 1) };
            first.min(last)..last
        };
        // The common case is all lanes at once, in a number that the compiler knows.
        let full = if lanes == LANES { ramp..cols.min(last_row + ramp).max(ramp) } else { 0..0 };
        let mut front = Front { far: self.history[0], ..Front::default() };
        for time in 0..full.start {
            self.step::<TRELLIS>(active(time), time, models, &mut front, &mut code);
        }
        for time in full.clone() {
            self.step::<TRELLIS>(0..LANES, time, models, &mut front, &mut code);
        }
        for time in full.end..times(cols) {
            self.step::<TRELLIS>(active(time), time, models, &mut front, &mut code);
        }
    }

    /// Codes what the lanes have at one time, then lets the models learn it.
    #[inline(always)]
    fn step<const TRELLIS: bool>(
        &mut self,
        active: Range<usize>,
        time: usize,
        models: &mut Models,
        front: &mut Front,
        code: &mut impl FnMut(&Models, usize, Range<usize>, &Places) -> Coded,
    ) {
        let Front { left, left2, far, machines, .. } = *front;
        let far_next = self.history[time + 1];
        let means: i16x8 = cast([front.means << 16 | self.means[time] as u64, 0]);
        let Contexts { models: names, flips } = contexts(&Neighbours { left, left2, far, far_next }, means);
        let mut names: [usize; LANES] = std::array::from_fn(|lane| (names >> (16 * lane)) as usize & 0xffff);
        let mut quantizers = [0; LANES];
        if TRELLIS {
            for lane in 0..LANES {
                quantizers[lane] = machines[lane].quantizer();
                names[lane] += CONTEXTS * quantizers[lane];
            }
        }
        let coded = code(models, time, active.clone(), &Places { models: names, flips, quantizers });
        let values = Indices::new(coded.clamped);
        let [mut learned, _]: [u64; 2] = cast(context::learn(means, values));
        if active != (0..LANES) {
            // The columns where nothing was coded have learned nothing.
            let fields = |lanes: usize| if lanes == LANES { u64::MAX } else { (1 << (16 * lanes)) - 1 };
            let mask = fields(active.end) & !fields(active.start);
            let [before, _]: [u64; 2] = cast(means);
            learned = learned & mask | before & !mask;
        }
        for lane in active {
            models.update(names[lane], coded.symbols[lane]);
            if TRELLIS {
                front.machines[lane].advance(coded.indices[lane]);
            }
        }
        self.history[time + self.back] = values;
        if let Some(column) = (time + 1).checked_sub(LANES) {
            self.means[column] = (learned >> 48) as i16;
        }
        (front.left2, front.left, front.far, front.means) = (left, values, far_next, learned);
    }
}

/// Times that rows of `cols` columns take.
pub const fn times(cols: usize) -> usize {
    cols + LANES - 1
}

/// Lays up to four rows out by time.
pub fn by_time(rows: &[i32], cols: usize, out: &mut Vec<Time>) {
    out.clear();
    out.resize(times(cols), [0; LANES]);
    for (lane, row) in rows.chunks(cols).take(LANES).enumerate() {
        for (time, index) in out[lane..].iter_mut().zip(row) {
            time[lane] = *index;
        }
    }
}

/// The way back.
pub fn by_row(by_time: &[Time], cols: usize, rows: &mut [i32]) {
    for (lane, row) in rows.chunks_mut(cols).take(LANES).enumerate() {
        for (time, index) in by_time[lane..].iter().zip(row) {
            *index = time[lane];
        }
    }
}
