//! The order in which a tensor's indices are coded, and what is known when each one's turn comes.

use super::{
    context::{self, CONTEXTS, Contexts, Indices, LANES, Neighbours, Packed, contexts},
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

/// Times that are coded in one go: what is laid out by time then stays in the first-level cache, and
/// takes no memory that the input declares.
const SPAN: usize = 512;

/// What both sides know of the indices coded so far.
#[derive(Debug, Default)]
pub struct Walk {
    /// Running mean magnitude of every column, in sixteenths.
    means: Vec<i16>,
    /// The group's last indices, as many times as the walk looks back, in a ring; zeros at first.
    ring: Vec<Packed>,
    strided: bool,
    group: Group,
}

/// Where a group of rows stands.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    /// Columns of each row, of the last row, and rows.
    cols: usize,
    last_row: usize,
    lanes: usize,
    front: Front,
}

/// What changes with every element; in registers while the rows are walked.
#[derive(Debug, Clone, Copy, Default)]
struct Front {
    left: Indices,
    left2: Indices,
    far: Indices,
    /// The means of the columns where the rows are: four numbers of 16 bits.
    means: u64,
    machines: [Machine; LANES],
    /// Where the ring's oldest element is.
    oldest: usize,
}

impl Walk {
    /// Prepares for a tensor.
    pub fn start(&mut self, grid: &Grid) {
        self.means.clear();
        // Behind the last column the rows find zeros.
        self.means.resize(times(grid.cols), 0);
        self.strided = grid.stride > 0;
        self.ring.clear();
        self.ring.resize(grid.stride.max(1), Packed::default());
    }

    /// The running mean of every column.
    pub fn means(&self) -> &[i16] {
        &self.means
    }

    /// Begins the next rows of `cols` columns, `count` indices in all: a group, or what is left of the
    /// tensor. Returns the spans of time to walk.
    pub fn start_group(&mut self, cols: usize, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let lanes = count.div_ceil(cols);
        self.ring.fill(Packed::default());
        self.group = Group { cols, lanes, last_row: count - (lanes - 1) * cols, front: Front::default() };
        let times = times(cols);
        (0..times).step_by(SPAN).map(move |start| start..times.min(start + SPAN))
    }

    /// Walks over a span of time. `code(models, at, active, places)` gives what it codes in the active
    /// lanes at a time, counted from the span's begin.
    ///
    /// Each row is one column behind the row above, whose part of the mean it needs. What the rows code
    /// at one time is coded with the same models, which learn afterwards: so their chains of
    /// arithmetic overlap.
    #[inline(always)]
    pub fn span<const TRELLIS: bool>(
        &mut self,
        span: Range<usize>,
        models: &mut Models,
        mut code: impl FnMut(&Models, usize, Range<usize>, &Places) -> Coded,
    ) {
        let Group { cols, last_row, lanes, mut front } = self.group;
        let ramp = lanes - 1;
        // Lanes that have an element at this time.
        let active = |time: usize| {
            let first = (time + 1).saturating_sub(cols);
            let last = if time >= last_row + ramp { ramp } else { lanes.min(time + 1) };
            first.min(last)..last
        };
        // The common case is all lanes at once, in a number that the compiler knows.
        let full = if lanes == LANES { ramp..cols.min(last_row + ramp) } else { 0..0 };
        let first_full = full.start.clamp(span.start, span.end);
        let last_full = full.end.clamp(first_full, span.end);
        let start = span.start;
        for time in span.start..first_full {
            self.step::<TRELLIS>(active(time), start, time, models, &mut front, &mut code);
        }
        for time in first_full..last_full {
            self.step::<TRELLIS>(0..LANES, start, time, models, &mut front, &mut code);
        }
        for time in last_full..span.end {
            self.step::<TRELLIS>(active(time), start, time, models, &mut front, &mut code);
        }
        self.group.front = front;
    }

    /// Codes what the lanes have at one time, then lets the models learn it.
    #[inline(always)]
    fn step<const TRELLIS: bool>(
        &mut self,
        active: Range<usize>,
        start: usize,
        time: usize,
        models: &mut Models,
        front: &mut Front,
        code: &mut impl FnMut(&Models, usize, Range<usize>, &Places) -> Coded,
    ) {
        let Front { left, left2, far, machines, oldest, .. } = *front;
        let next = if oldest + 1 < self.ring.len() { oldest + 1 } else { 0 };
        let far_next = self.ring[next].unpack();
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
        let coded = code(models, time - start, active.clone(), &Places { models: names, flips, quantizers });
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
        if self.strided {
            self.ring[oldest] = Packed::new(values);
        }
        if let Some(column) = (time + 1).checked_sub(LANES) {
            self.means[column] = (learned >> 48) as i16;
        }
        (front.left2, front.left, front.far) = (left, values, far_next);
        (front.means, front.oldest) = (learned, next);
    }
}

/// Times that rows of `cols` columns take.
pub const fn times(cols: usize) -> usize {
    cols + LANES - 1
}

/// Lays a span of up to four rows out by time.
pub fn by_time(rows: &[i32], cols: usize, span: &Range<usize>, out: &mut Vec<Time>) {
    out.clear();
    out.resize(span.len(), [0; LANES]);
    for (lane, row) in rows.chunks(cols).take(LANES).enumerate() {
        let (places, columns) = overlap(lane, row.len(), span);
        for (time, index) in out[places].iter_mut().zip(&row[columns]) {
            time[lane] = *index;
        }
    }
}

/// The way back.
pub fn by_row(by_time: &[Time], cols: usize, span: &Range<usize>, rows: &mut [i32]) {
    for (lane, row) in rows.chunks_mut(cols).take(LANES).enumerate() {
        let (places, columns) = overlap(lane, row.len(), span);
        for (time, index) in by_time[places].iter().zip(&mut row[columns]) {
            *index = time[lane];
        }
    }
}

/// Where a span holds elements of a lane's row, and the columns that these are.
fn overlap(lane: usize, len: usize, span: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let first = span.start.clamp(lane, lane + len);
    let end = span.end.clamp(first, lane + len);
    if first < span.start {
        return (0..0, 0..0);
    }
    (first - span.start..end - span.start, first - lane..end - lane)
}
